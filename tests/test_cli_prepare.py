from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import refused, run, start
from test_cli_train import wait_for


def test_prepare_prints_counts_layout_and_what_was_left_out(films: Path, tmp_path: Path):
    source = tmp_path / "films"
    shutil.copytree(films, source)
    (source / "COVID-19" / "notes.txt").write_text("")
    (source / "COVID-19" / "broken.png").write_text("")
    (source / "lateral").mkdir()
    shutil.copy(next(films.glob("*/*.png")), source / "lateral")
    result = run("prepare", source, "--out", tmp_path / "data", "--image-size", 32, "--folds", 3)
    assert result.exit_code == 0, result.output
    assert f"{source}: layout folder" in result.stderr
    assert "Wrote 30 images of 15 patients in 3 folds" in result.stderr
    for text in ("fold2", "not an image file, by its ending", "folder 'lateral' names no class", "broken.png", "0 bytes"):
        assert text in result.stdout
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert [entry["reason"] for entry in manifest["skipped"]] == ["the file is empty (0 bytes)"]
    assert manifest["left_out"]["films"] == {"not an image file, by its ending": 1, "folder 'lateral' names no class": 1}


def test_random_split_says_that_it_leaks(films: Path, tmp_path: Path):
    words = ("prepare", films, "--out", tmp_path / "data", "--image-size", 32, "--group-by", "none", "--json")
    result = run(*words)
    assert "images of one patient stand in several folds" in result.stderr
    assert json.loads(result.stdout)["options"]["group_by"] == "none"


def test_two_classes_and_a_limit(films: Path, tmp_path: Path):
    words = ("prepare", films, "--out", tmp_path / "data", "--image-size", 32, "--folds", 2)
    found = json.loads(run(*words, "--classes", 2, "--limit-per-class", 6, "--json").stdout)
    assert found["per_class"] == {"COVID-19": 6, "No-Findings": 6}
    assert found["left_out"]["films"] == {"class Pneumonia, not asked for": 10, "over the limit of 6 images a class": 8}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_interrupted_prepare_leaves_no_half_dataset(films: Path, tmp_path: Path, number: int):
    source = tmp_path / "films"
    for copy in range(60):  # enough work to be interrupted in
        shutil.copytree(
            films, source, copy_function=lambda a, b, c=copy: shutil.copy(a, f"{b}-{c}.png"), dirs_exist_ok=True
        )
    process = start("prepare", source, "--out", "data", "--image-size", 600, cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob(".data.partial/*fold*")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 1), errors
    assert "Traceback" not in errors
    assert not (tmp_path / "data").exists()
    result = run("prepare", films, "--out", tmp_path / "data", "--image-size", 32)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "films"]


@pytest.mark.parametrize(
    ("make", "code", "part"),
    [
        (lambda root: None, 2, "does not exist; name a folder that holds one subfolder of images for each class."),
        (lambda root: root.mkdir(), 1, "is empty; name a folder that holds one subfolder of images for each class."),
        (lambda root: (root / "cats").mkdir(parents=True), 1, "has no subfolder named after a class"),
    ],
)
def test_unusable_source(tmp_path: Path, make, code: int, part: str):
    make(tmp_path / "source")
    assert part in refused("prepare", tmp_path / "source", "--out", tmp_path / "data", code=code)
    assert not (tmp_path / "data").exists()


def test_class_folder_without_films(films: Path, tmp_path: Path):
    shutil.copytree(films, tmp_path / "films")
    shutil.rmtree(tmp_path / "films" / "Pneumonia")
    (tmp_path / "films" / "Pneumonia").mkdir()
    message = refused("prepare", tmp_path / "films", "--out", tmp_path / "data", code=1)
    assert message.endswith("Pneumonia holds no image; add images to this class folder, or remove it.")


def test_one_class_only(films: Path, tmp_path: Path):
    shutil.copytree(films / "COVID-19", tmp_path / "films" / "COVID-19")
    message = refused("prepare", tmp_path / "films", "--out", tmp_path / "data", code=1)
    assert message.startswith("There is no image of class No-Findings; add a source that has some")


def test_fewer_patients_than_folds(films: Path, tmp_path: Path):
    message = refused("prepare", films, "--out", tmp_path / "data", "--folds", 6, code=1)
    assert message == "Class COVID-19 has 5 patients, fewer than 6 folds; add images or use fewer --folds."


def test_output_in_use_or_not_writable(films: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "something").write_text("")
    assert "exists already; remove it or name another folder" in refused(
        "prepare", films, "--out", tmp_path / "data", code=1
    )
    inside = tmp_path / "data" / "something" / "data"
    assert "cannot be written" in refused("prepare", films, "--out", inside, code=1)


@pytest.mark.slow
def test_three_real_collections_merge(shared_data: Path, tmp_path: Path):
    sources = [shared_data / name for name in ("ozturk", "ieee8023", "radiography")]
    result = run("prepare", *sources, "--out", tmp_path / "data")
    assert result.exit_code == 0, result.output
    for name, layout in (("ozturk", "ozturk"), ("ieee8023", "ieee8023"), ("radiography", "radiography")):
        assert f"{name}: layout {layout}" in result.stderr
    for text in ("finding todo", "view not stated", "in images/ but not in metadata.csv", "a copy of an image of ozturk"):
        assert text in result.stdout
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    dropped = sum(reasons.get("a copy of an image of ozturk", 0) for reasons in manifest["left_out"].values())
    dropped += manifest["left_out"]["radiography"]["a copy of an image of ieee8023"]
    assert (manifest["images"], dropped) == (4262, 1124 + 516 + 2905 - 4262)
    assert manifest["skipped"] == []
