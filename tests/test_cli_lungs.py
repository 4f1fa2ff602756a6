"""Training a segmenter by the real command, and using it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from covidjax.data import synthetic
from covidjax.runs import folder
from covidjax.runs.load import load_run

SMALL = ("--set", "train.batch_size=4")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 phantoms of nine patients with their masks, 32 × 32 pixels, three folds."""
    root = tmp_path_factory.mktemp("pairs")
    for index in range(18):
        film = synthetic.draw(index, size=64)
        for kind, pixels in (("cxr", film.image), ("masks", film.lungs)):
            (root / "films" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "films" / kind / f"MCUCXR_{int(film.patient[-5:]):04d}_{index}.png")
    command = ("prepare", root / "films", "--masks", "--out", root / "out", "--image-size", 32, "--folds", 3)
    assert run(*command).exit_code == 0
    return root / "out"


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unet"
    result = run("train", "--model", "lung-unet", "--data", pairs, "--epochs", 20, "--run", out, *SMALL)
    assert result.exit_code == 0, result.output
    for text in ("mean Dice", "mean IoU", "fields", "Timing"):
        assert text in result.stdout
    assert "epoch 20/20: train loss" in result.stderr
    assert " dice " in result.stderr
    assert f"covidjax segment FOLDER --out DIR --checkpoint {out}" in result.stderr
    return out


def test_it_learns_masks(trained: Path):
    history = folder.read_log(trained)
    assert history[-1]["test"]["dice"] > 0.7
    assert history[-1]["test"]["loss"] < history[0]["test"]["loss"]
    found = json.loads((trained / "report" / "metrics.json").read_text())
    assert found["overall"]["films"] == 6
    assert found["overall"]["dice"] == pytest.approx(history[-1]["test"]["dice"], abs=1e-6)


def test_report_has_pictures_and_every_film(trained: Path):
    with (trained / "report" / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["dice"]) for row in rows]
    assert len(rows) == 6
    assert scores == sorted(scores)
    assert np.mean(scores) == pytest.approx(folder.read_log(trained)[-1]["test"]["dice"], abs=1e-4)
    for name in ("worst.png", "typical.png", "curves.png"):
        with Image.open(trained / "report" / name) as picture:
            assert min(picture.size) > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert not (trained / "report" / "confusion_matrix.png").exists()


def test_evaluate_gives_the_same_figures(trained: Path, prepared: Path):
    found = json.loads(run("evaluate", trained, "--json").stdout)["metrics"]
    written = json.loads((trained / "report" / "metrics.json").read_text())
    for name, figure in written["overall"].items():
        assert found["overall"][name] == pytest.approx(figure, abs=1e-6), name
    assert "--masks (fields)" in refused("evaluate", trained, "--data", prepared, code=1)


def test_segment_by_the_run(trained: Path, tmp_path: Path):
    pytest.importorskip("jax")
    film = synthetic.draw(40, size=64)
    Image.fromarray(film.image).save(tmp_path / "film.png")
    command = ("segment", tmp_path / "film.png", "--out", tmp_path / "out", "--runtime", "jax")
    result = run(*command, "--checkpoint", trained)
    assert result.exit_code == 0, result.output
    assert "at 32²" in result.stderr
    found = np.asarray(Image.open(tmp_path / "out" / "film.png")) > 0
    assert 2 * (found & film.lungs).sum() / (found.sum() + film.lungs.sum()) > 0.7


def test_each_model_has_its_dataset_and_its_command(
    trained: Path, pairs: Path, prepared: Path, films: Path, tmp_path: Path
):
    run_of = ("--run", tmp_path / "never")
    assert "lung-unet" in refused("train", "--data", pairs, *run_of, code=2)
    assert "--masks" in refused("train", "--model", "lung-unet", "--data", prepared, *run_of, code=2)
    assert "covidjax segment" in refused("score", films, "--checkpoint", trained, code=1)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_cross_validation_and_resumption(pairs: Path, tmp_path: Path):
    common = ("train", "--model", "lung-unet", "--data", pairs, "--cv", "--epochs", 2, *SMALL, "--json")
    found = json.loads(run(*common, "--run", tmp_path / "one").stdout)
    assert found["metrics"]["overall"]["films"] == 18
    assert set(found["spread"]) == {"dice", "iou"}
    assert found["metrics"]["overall"]["dice"] == pytest.approx(found["spread"]["dice"]["mean"], abs=1e-6)
    run(*common, "--run", tmp_path / "two", "--set", "train.cache=stream")
    for fold in range(3):
        weights = [jax.tree.leaves(load_run(tmp_path / name / f"fold{fold}").weights) for name in ("one", "two")]
        for one, two in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, two)
        assert (tmp_path / "one" / f"fold{fold}" / "report" / "worst.png").exists()
    assert "name one of them" in refused(
        "segment", tmp_path / "one", "--out", tmp_path / "out", "--checkpoint", tmp_path / "one", code=1
    )
