from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from test_dicom import make, written

import covidjax
from covidjax.labels import CLASSES

COLUMNS = ["path", "status", "prediction", "confidence", "p_COVID-19", "p_No-Findings", "p_Pneumonia", "error", "warning"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def paths_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


def test_one_row_a_file_with_timing_and_metrics(trained: Path, films: Path, tmp_path: Path):
    result = run("score", films, "--checkpoint", trained, "--output", tmp_path / "s.csv", "--batch-size", 8)
    assert result.exit_code == 0, result.output
    assert f"Model: run {trained}, darkcovidnet, last checkpoint" in result.stderr.splitlines()[0]
    for text in ("Timing", "decode", "model", "write", "wall", "precision", "Confusion matrix"):
        assert text in result.stdout
    rows = rows_of(tmp_path / "s.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == paths_below(films)
    for row in rows:
        probabilities = [float(row[f"p_{name}"]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == CLASSES[int(np.argmax(probabilities))]
        assert float(row["confidence"]) == max(probabilities)


def test_rows_do_not_depend_on_batch_size_workers_or_format(trained: Path, films: Path, tmp_path: Path):
    import pyarrow.parquet

    first = run("score", films, "--checkpoint", trained, "--output", tmp_path / "a.csv", "--batch-size", 32)
    other = run(
        "score", films, "--checkpoint", trained, "--output", tmp_path / "b.jsonl", "--batch-size", 7, "--workers", 1
    )
    third = run("score", films, "--checkpoint", trained, "--output", tmp_path / "c.parquet", "--device", "cpu")
    assert first.exit_code == other.exit_code == third.exit_code == 0
    table = rows_of(tmp_path / "a.csv")
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    parquet = pyarrow.parquet.read_table(tmp_path / "c.parquet").to_pylist()
    assert len(table) == len(lines) == len(parquet) == 30
    for a, b, c in zip(table, lines, parquet, strict=True):
        assert a["path"] == b["path"] == c["path"]
        for name in CLASSES:
            assert float(a[f"p_{name}"]) == pytest.approx(b[f"p_{name}"], abs=2e-5)
            assert float(a[f"p_{name}"]) == pytest.approx(c[f"p_{name}"], abs=2e-5)


def test_scores_are_those_of_evaluate(trained: Path, films: Path, prepared: Path):
    """A model sees at scoring exactly what it saw in training: the same pixels give the same confusion matrix."""
    found = json.loads(run("score", films, "--checkpoint", trained, "--json").stdout)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    records = [record for fold in range(3) for record in builder.as_data_source(split=f"fold{fold}")]
    classifier = covidjax.load(trained)
    images = np.stack([record["image"] for record in records])
    by_name = dict(zip((record["name"].decode() for record in records), classifier.probabilities(images), strict=True))
    for row in found["rows"]:
        expected = by_name[Path(row["path"]).name]
        np.testing.assert_allclose([row[f"p_{name}"] for name in CLASSES], expected, atol=1e-5)


def bad_files(folder: Path) -> dict[str, str]:
    """Files that no film reader can read, by name, with what their reason must say."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    Image.fromarray(noise).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:20000])
    Image.fromarray(noise).save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:5000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no image\n")
    Image.new("L", (1, 1)).save(folder / "pixel.png")
    Image.new("1", (15_000, 14_000)).save(folder / "huge.png")
    return {
        "truncated.png": "truncated",
        "truncated.jpg": "truncated",
        "empty.png": "0 bytes",
        "text.png": "not an image",
        "pixel.png": "1×1 pixels",
        "huge.png": "more than 200 megapixels",
    }


def test_bad_files_among_good_ones_cost_one_row_each(trained: Path, films: Path, tmp_path: Path):
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    reasons = bad_files(folder / "COVID-19")
    result = run("score", folder, "--checkpoint", trained, "--output", tmp_path / "s.csv", "--batch-size", 8)
    assert result.exit_code == 0, result.output
    assert f"30 of {30 + len(reasons)} images scored, {len(reasons)} could not be read" in result.stderr
    rows = {row["path"]: row for row in rows_of(tmp_path / "s.csv")}
    assert len(rows) == 30 + len(reasons)
    for name, reason in reasons.items():
        row = rows[str(folder / "COVID-19" / name)]
        assert (row["status"], row["prediction"], row["confidence"], row["p_COVID-19"]) == ("error", "", "", "")
        assert reason in row["error"]
        assert name in result.stdout
    alone = run("score", films, "--checkpoint", trained, "--output", tmp_path / "alone.csv", "--batch-size", 8)
    assert alone.exit_code == 0
    for row in rows_of(tmp_path / "alone.csv"):
        same = rows[row["path"].replace(str(films), str(folder))]
        assert float(same["confidence"]) == pytest.approx(float(row["confidence"]), abs=1e-5)


def test_strict_fails_after_writing_every_row(trained: Path, films: Path, tmp_path: Path):
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    (folder / "COVID-19" / "empty.png").write_bytes(b"")
    words = ("score", folder, "--checkpoint", trained, "--output", tmp_path / "s.csv", "--strict")
    assert refused(*words, code=1) == "1 of 31 files could not be read, and --strict was given; see the error rows."
    assert len(rows_of(tmp_path / "s.csv")) == 31


def test_no_readable_film(trained: Path, tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    words = ("score", tmp_path / "text.png", "--checkpoint", trained, "--output", tmp_path / "s.jsonl")
    assert refused(*words, code=1) == "No image could be read; see the error rows."
    row = json.loads((tmp_path / "s.jsonl").read_text())
    assert row["status"] == "error"
    assert row["confidence"] is None


def test_missing_file_among_good_ones_is_a_row(trained: Path, films: Path, tmp_path: Path):
    good = paths_below(films)[0]
    result = run("score", good, tmp_path / "gone.png", "--checkpoint", trained, "--json")
    assert result.exit_code == 0
    first, second = json.loads(result.stdout)["rows"]
    assert (first["status"], second["status"], second["error"]) == ("ok", "error", "no such file")


def test_labels_from_a_table(trained: Path, films: Path, tmp_path: Path):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["path,label"]
    for path in map(Path, paths_below(films)):
        shutil.copy(path, flat)
        lines.append(f"{path.name},{path.parent.name}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    unlabelled = json.loads(run("score", flat, "--checkpoint", trained, "--json").stdout)
    assert unlabelled["metrics"] is None
    with_table = json.loads(run("score", flat, "--checkpoint", trained, "--labels", labels, "--json").stdout)
    with_folders = json.loads(run("score", films, "--checkpoint", trained, "--json").stdout)
    assert with_table["metrics"] == with_folders["metrics"]
    labels.write_text("path,label\nx.png,Tuberculosis\n")
    message = refused("score", flat, "--checkpoint", trained, "--labels", labels, code=1)
    assert (
        "row 2: 'Tuberculosis' is no class of the model, nor is another label; use one of COVID-19, No-Findings" in message
    )
    other = {"COVID-19": "Pneumonia", "Pneumonia": "COVID-19", "No-Findings": "COVID-19"}[lines[1].rpartition(",")[2]]
    twice, strange = f"{lines[1].partition(',')[0]},{other}", f"{lines[2].partition(',')[0]},Tuberculosis"
    labels.write_text("\n".join([*lines[:2], twice, strange, *lines[3:]]))
    result = run("score", flat, "--checkpoint", trained, "--labels", labels, "--json")
    assert result.exit_code == 0, result.output
    assert "1 images have findings of two classes" in result.stderr
    assert f"1 rows of {labels} have a label that is no class of the model, such as row 4, 'Tuberculosis'" in result.stderr
    per_class = json.loads(result.stdout)["metrics"]["per_class"].values()
    assert sum(row["support"] for row in per_class) + json.loads(result.stdout)["trained_on"] == len(lines) - 1 - 2
    labels.write_text("a,b\n")
    assert "has no column label, path" in refused("score", flat, "--checkpoint", trained, "--labels", labels, code=1)


def test_labels_that_match_nothing_are_said(trained: Path, films: Path, tmp_path: Path):
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nelsewhere.png,normal\n")
    message = refused("score", films, "--checkpoint", trained, "--labels", labels, code=1)
    assert message.startswith(
        f"No path in {labels} names an image of {films}: it lists, for example, elsewhere.png, and there"
    )
    assert paths_below(films)[0] in message


def test_truth_from_folders_at_any_depth(trained: Path, films: Path, tmp_path: Path):
    shutil.copytree(films / "COVID-19", tmp_path / "xrays" / "Covid-19" / "hospital" / "2020")
    found = json.loads(run("score", tmp_path / "xrays", "--checkpoint", trained, "--json").stdout)
    assert found["metrics"]["per_class"]["COVID-19"]["support"] + found["trained_on"] == 10


def test_truth_comes_only_from_below_the_given_folder(trained: Path, films: Path, tmp_path: Path):
    shutil.copytree(films / "Pneumonia", tmp_path / "covid" / "new")
    found = json.loads(run("score", tmp_path / "covid" / "new", "--checkpoint", trained, "--json").stdout)
    assert found["metrics"] is None


def test_names_that_look_like_markup_and_pipes(trained: Path, films: Path, tmp_path: Path):
    folder = tmp_path / "[red]films"
    folder.mkdir()
    good = Path(paths_below(films)[0])
    for name in ("[bold]a[red].png", "ä ö.png", "tab\tin.png"):
        shutil.copy(good, folder / name)
    shutil.copy(good, folder / os.fsdecode(b"caf\xe9.png"))
    os.mkfifo(folder / "pipe.png")
    result = run("score", folder, "--checkpoint", trained, "--output", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    assert "not a regular file" in result.stdout
    assert "4 of 5 images scored" in result.stderr
    shown = run("score", folder, "--checkpoint", trained)
    assert "[bold]a[red].png" in shown.stdout
    assert "caf\\xe9.png" in shown.stdout
    assert "Images in " in shown.stdout
    assert "[red]films" in shown.stdout


def test_weights_that_are_no_numbers_give_error_rows(trained: Path, films: Path):
    import jax

    classifier: Any = covidjax.load(trained, runtime="jax")
    runtime = classifier._compute._compute
    runtime._weights = jax.tree.map(lambda leaf: leaf * float("nan"), runtime._weights)
    rows = list(classifier.score(paths_below(films)[:3]))
    assert {row.status for row in rows} == {"error"}
    assert "not finite" in rows[0].error


def test_every_image_mode_scores_like_its_gray_original(trained: Path, films: Path, tmp_path: Path):
    gray = Image.open(paths_below(films)[0])
    gray.save(tmp_path / "L.png")
    for mode in ("LA", "RGB", "RGBA", "P"):
        gray.convert(mode).save(tmp_path / f"{mode}.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "I16.png")
    inverted = Image.fromarray(255 - np.asarray(gray))
    Image.merge("CMYK", [Image.new("L", gray.size)] * 3 + [inverted]).save(tmp_path / "CMYK.jpg", quality=95)
    exif = Image.Exif()
    exif[274] = 6
    gray.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    gray.convert("1").save(tmp_path / "1.png")
    rows = json.loads(run("score", tmp_path, "--checkpoint", trained, "--json").stdout)["rows"]
    found = {Path(row["path"]).stem: [row[f"p_{name}"] for name in CLASSES] for row in rows}
    assert set(found) == {"L", "LA", "RGB", "RGBA", "P", "I16", "CMYK", "turned", "1"}
    for mode in ("LA", "RGB", "RGBA", "P", "turned"):
        np.testing.assert_allclose(found[mode], found["L"], atol=1e-4, err_msg=mode)
    # 16 bits are stretched to the full range and JPEG loses a little: close, not equal.
    for mode in ("I16", "CMYK"):
        np.testing.assert_allclose(found[mode], found["L"], atol=0.1, err_msg=mode)


def test_python_api(trained: Path, films: Path):
    classifier = covidjax.load(trained)
    paths = paths_below(films)
    assert [row.path for row in classifier.score(paths[0])] == paths[:1]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(classifier.score(paths, batch_size=0))
    rows = list(classifier.score([*paths, "gone.png"], batch_size=4))
    assert [row.path for row in rows] == [*paths, "gone.png"]
    assert rows[0].probabilities[rows[0].prediction] == rows[0].confidence
    assert rows[-1].error == "no such file"
    assert classifier.classes == CLASSES


def test_rows_come_before_all_files_are_read(trained: Path, films: Path, monkeypatch: pytest.MonkeyPatch):
    from covidjax.images import stream

    opened = []
    whole = stream.read_image

    def counted(path, preprocess, **options):
        opened.append(path)
        return whole(path, preprocess, **options)

    monkeypatch.setattr(stream, "read_image", counted)
    rows = covidjax.load(trained).score(paths_below(films) * 20, batch_size=4, workers=2)
    for _ in range(5):
        next(rows)
    assert len(opened) < 100


@pytest.mark.parametrize(
    ("output", "code", "part"),
    [
        ("s.xlsx", 2, "has none of the endings .csv, .jsonl, .parquet"),
        ("nowhere/s.csv", 1, "cannot be written (No such file or directory)"),
        (".", 2, "has none of the endings"),
    ],
)
def test_output_that_cannot_be_written(trained: Path, films: Path, tmp_path: Path, output: str, code: int, part: str):
    assert part in refused("score", films, "--checkpoint", trained, "--output", tmp_path / output, code=code)


def test_paths_that_hold_nothing(trained: Path, tmp_path: Path):
    missing = tmp_path / "nowhere"
    assert refused("score", missing, "--checkpoint", trained, code=2).startswith(f"{missing} does not exist")
    assert "There is no image in" in refused("score", tmp_path, "--checkpoint", trained, code=1)


def test_what_is_no_run(films: Path, tmp_path: Path):
    assert refused("score", films, "--checkpoint", "gone", code=2).startswith("gone does not exist")
    assert "is not a run: it has no config.toml" in refused("score", films, "--checkpoint", tmp_path, code=1)


def test_newest_run_is_taken(trained: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    result = run("score", paths_below(films)[0])
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0].startswith("Model: run runs/mine")


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def newest(run_folder: Path) -> Path:
    return max((run_folder / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))


def with_one_before(run_folder: Path) -> Path:
    """The same checkpoint again as that of an earlier step, and no other: how many a short training leaves is a matter of
    the machine's speed."""
    last = newest(run_folder)
    for step in last.parent.iterdir():
        if step != last:
            shutil.rmtree(step)
    shutil.copytree(last, last.with_name("1"))
    return run_folder


def test_checkpoint_half_written(copied: Path, films: Path):
    for file in (newest(with_one_before(copied)) / "weights").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = run("score", films, "--checkpoint", copied)
    assert result.exit_code == 0, result.output
    assert f"Damaged: {newest(copied)}. The checkpoint before it is used, step 1." in result.stderr
    assert "last checkpoint, step 1," in result.stderr


def test_checkpoint_with_a_flipped_bit(copied: Path, films: Path):
    file = max((newest(with_one_before(copied)) / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    result = run("score", films, "--checkpoint", copied)
    assert result.exit_code == 0, result.output
    assert f"Damaged: {newest(copied)}. The checkpoint before it is used" in result.stderr
    for step in (copied / "checkpoints" / "last").iterdir():
        (step / "sha256.json").write_text("[" * 100_000)
    message = refused("score", films, "--checkpoint", copied, code=1)
    assert message.startswith(f"Every checkpoint in {copied / 'checkpoints' / 'last'} is damaged; remove that folder")


def test_checkpoint_missing(copied: Path, films: Path):
    shutil.rmtree(copied / "checkpoints")
    assert "has no finished checkpoint" in refused("score", films, "--checkpoint", copied, code=1)


def test_checkpoint_of_another_model(copied: Path, films: Path):
    config = copied / "config.toml"
    config.write_text(config.read_text().replace("channels = 1", "channels = 3"))
    assert "is of another network than" in refused("score", films, "--checkpoint", copied, code=1)


def test_config_cut_off(copied: Path, films: Path):
    (copied / "config.toml").write_text("[config]\nseed = 0\n")
    message = refused("score", films, "--checkpoint", copied, code=1)
    assert "is damaged: it has no [preprocess]" in message


def test_gpu_asked_for_where_there_is_none(trained: Path, films: Path):
    import jax

    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    message = refused("score", films, "--checkpoint", trained, "--device", "gpu", code=1)
    assert message == "There is no GPU that jax can use; run `covidjax doctor` to see why, or choose --device cpu."


def test_real_films(trained: Path, shared_data: Path):
    # The run was trained on synthetic images, and would refuse all of these.
    result = run("score", shared_data / "ozturk-originals", "--checkpoint", trained, "--gate", "off", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["files"], found["ok"], len(found["rows"])) == (35, 35, 35)
    support = {name: row["support"] for name, row in found["metrics"]["per_class"].items()}
    assert support == {"COVID-19": 11, "No-Findings": 12, "Pneumonia": 12}


def test_dicom_files_and_negatives_give_the_rows_of_their_films(trained: Path, films: Path, tmp_path: Path):
    film = np.asarray(Image.open(next(films.rglob("*.png"))).convert("L"))
    (tmp_path / "in").mkdir()
    Image.fromarray(film).save(tmp_path / "in" / "a.png")
    Image.fromarray(255 - film).save(tmp_path / "in" / "b.png")
    headers: dict[str, dict[str, Any]] = {
        "c": {},
        "d": {"PhotometricInterpretation": "MONOCHROME1"},
        "e": {"Modality": "MR", "ViewPosition": "LL"},
    }
    for name, header in headers.items():
        (tmp_path / "in" / name).write_bytes(written(make(film, **header)))
    result = run("score", tmp_path / "in", "--checkpoint", trained, "--gate", "off", "--output", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    assert "3 of them with a warning" in result.stderr
    rows = rows_of(tmp_path / "s.csv")
    turned = "a negative, turned into a positive"
    assert [row["warning"] for row in rows] == ["", turned, "", turned, "modality MR, no plain X-ray; lateral view"]
    for row in rows:
        assert row["prediction"] == rows[0]["prediction"]
        assert float(row["p_COVID-19"]) == pytest.approx(float(rows[0]["p_COVID-19"]), abs=1e-4)
    options = ("--checkpoint", trained, "--gate", "off", "--invert", "never")
    result = run("score", tmp_path / "in", *options, "--output", tmp_path / "t.csv")
    kept = rows_of(tmp_path / "t.csv")
    assert [row["warning"] for row in kept] == ["", "", "", "", rows[-1]["warning"]]
    assert kept[0] == rows[0]
    assert kept[1]["p_COVID-19"] == kept[3]["p_COVID-19"] != rows[1]["p_COVID-19"]
