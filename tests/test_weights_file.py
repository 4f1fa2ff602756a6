"""Classifiers in one file: what is written is what scores, calibrated, and found where there is no run."""

from __future__ import annotations

import csv
import dataclasses
import doctest
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.special
from click.testing import CliRunner
from commands import TINY, refused, run

import covidjax
from bench import calibrate
from bench.bundle import main
from covidjax.config import Preprocess
from covidjax.data import synthetic
from covidjax.errors import UserError
from covidjax.images import stream
from covidjax.labels import CLASSES
from covidjax.lungs import segmenter
from covidjax.models import create_model
from covidjax.runs import folder, load, trust_file, weights_file
from covidjax.scoring.classifier import Classifier

ELSEWHERE: Any = {"temperature": 4.0, "run": "loso", "elsewhere": {"sources": {"here": {}, "there": {}}}, "in_source": None}


@pytest.fixture(scope="module")
def validated(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two, with a validation fold."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ("--data", prepared, "--epochs", 3, "--val-fold", 1, "--set", "train.ensemble=2")
    result = run("train", *words, "--run", out, *TINY)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def file(validated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "classifier.safetensors"
    calibrate.bundle(validated, out)
    return out


def test_temperature_of_the_example():
    assert doctest.testmod(calibrate).failed == 0


def test_temperature_makes_surer_what_was_too_careful():
    logits = np.log(np.asarray([[[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]] * 2))
    found = calibrate.fit(logits, np.arange(3))  # right every time
    assert found.temperature == pytest.approx(calibrate.COLDEST, rel=1e-3)
    assert found.before == pytest.approx(-np.log(0.6))
    assert found.after < 1e-3


@pytest.mark.parametrize("runtime", ["jax", "openvino"])
def test_file_gives_the_runs_probabilities_at_its_temperature(validated: Path, file: Path, films: Path, runtime: str):
    if runtime != "jax":
        pytest.importorskip(runtime)
    from covidjax.inference.forward import make_predict
    from covidjax.runs.load import load_run

    paths = sorted(films.rglob("*.png"))
    read = [stream.read_image(path, Preprocess(image_size=32)).image for path in paths]
    images = np.stack([image for image in read if image is not None])
    loaded = load_run(validated, "cpu")
    with pytest.raises(UserError, match="sample is not the dataset that the run was trained on"):
        calibrate.held_out(loaded, "sample", 1)
    temperature = calibrate.fit(*calibrate.held_out(loaded, loaded.run.config.data.path, 1)).temperature
    assert abs(np.log(temperature)) > 0.05  # or nothing below would say anything
    predict = make_predict(loaded.network, loaded.run.config.model)
    logits = np.stack([np.asarray(predict(weights, images)) for weights in loaded.networks])
    found = Classifier.load(file, device="cpu", runtime=runtime).probabilities(images)
    # Its weights are float16.
    np.testing.assert_allclose(found, scipy.special.softmax(logits / temperature, -1).mean(0), atol=2e-3)
    assert file.stat().st_size < 0.55 * sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.networks))


def test_file_keeps_settings_and_what_was_seen_and_no_folder_of_its_maker(validated: Path, file: Path, prepared: Path):
    was, found = folder.read_run(validated), load.read_run(file)
    assert found.config.data.path == prepared.name
    assert (found.preprocess, found.dataset, found.config.train) == (was.preprocess, was.dataset, was.config.train)
    assert str(prepared.parent).encode() not in file.read_bytes()
    assert load.trained_on(file) == load.trained_on(validated)
    assert load.describe(file) == "calibrated on fold 1, trained without fold 0"
    assert len(load.digests(file)) == 1


def test_file_keeps_what_is_known_of_trust_and_no_folder_of_its_maker(validated: Path, tmp_path: Path):
    loaded, trust = load.load_run(validated), {"calibration": {"temperature": 2.0, "run": "/mnt/x/runs/elsewhere"}}
    train = dataclasses.replace(loaded.run.config.train, calibration="/mnt/x/runs/elsewhere")
    described = dataclasses.replace(loaded.run, config=dataclasses.replace(loaded.run.config, train=train))
    weights_file.write(tmp_path / "one.safetensors", described, loaded.networks, "", set(), trust)
    assert b"/mnt/x" not in (tmp_path / "one.safetensors").read_bytes()
    assert load.read_run(tmp_path / "one.safetensors").config.train.calibration == "elsewhere"
    assert load.trust(tmp_path / "one.safetensors") == {"calibration": {"temperature": 2.0, "run": "elsewhere"}}


def test_calibration_for_elsewhere_travels_as_it_is(validated: Path, films: Path, tmp_path: Path):
    shutil.copytree(validated, tmp_path / "run")
    trust_file.write(tmp_path / "run", calibration=ELSEWHERE)
    said = calibrate.bundle(tmp_path / "run", tmp_path / "one.safetensors", licence="research only")
    assert said == "calibrated on left-out sources, trained without fold 0"
    assert load.licence(tmp_path / "one.safetensors") == "research only"
    results = [
        run("score", films, "--checkpoint", path, "--gate", "off", "--json")
        for path in (tmp_path / "run", tmp_path / "one.safetensors", validated)
    ]
    licence = "Licence of the trained weights: research only."
    assert [licence in result.stderr for result in results] == [False, True, False]
    confidences = [[row["confidence"] for row in json.loads(result.stdout)["rows"]] for result in results]
    np.testing.assert_allclose(confidences[0], confidences[1], atol=2e-3)  # its weights are float16
    assert np.mean(confidences[1]) < np.mean(confidences[2]) - 0.01


def test_score_without_a_run_takes_the_bundled_classifier_and_says_so(
    file: Path, validated: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "BUNDLED", file)
    # The ten images that it was trained on tell too little of what is like them.
    result = run("score", films, "--gate", "off", "--output", "rows.csv")
    assert result.exit_code == 0, result.output
    described = "calibrated on fold 1, trained without fold 0"
    said = f"Model: no trained classifier under runs/, so the bundled one, darkcovidnet, {described}, on "
    assert result.stderr.startswith(said)
    with (tmp_path / "rows.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["status"] for row in rows] == ["ok"] * 30
    assert all(sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5) for row in rows)
    named = run("score", films, "--gate", "off", "--checkpoint", file, "--output", "named.csv")
    assert named.exit_code == 0
    assert named.stderr.startswith("Model: the bundled one, darkcovidnet, ")
    assert (tmp_path / "named.csv").read_bytes() == (tmp_path / "rows.csv").read_bytes()
    assert covidjax.load().checkpoint == described
    shutil.copytree(validated, "runs/mine")
    assert run("score", films).stderr.startswith("Model: run runs/mine, ")


def test_file_is_evaluated_on_films_of_patients_it_has_not_seen(file: Path, prepared: Path):
    result = run("evaluate", file, "--data", prepared, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"].startswith(f"test fold 0 of {prepared}")
    assert "is a file, which has no images beside it; name a dataset with --data" in refused("evaluate", file, code=1)


def test_evaluate_without_a_run_takes_the_bundled_classifier(
    file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "BUNDLED", file)
    assert "There is no run under runs/" in refused("evaluate", code=1)
    films = tmp_path_factory.mktemp("others") / "films"
    synthetic.write_images(films, 30, seed=77)
    words = ("prepare", films, "--out", "other", "--image-size", 32, "--lungs", "none", "--folds", 3)
    assert run(*words).exit_code == 0
    result = run("evaluate", "--data", "other")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("The bundled classifier on all of other, by the mean of 2 networks.")


def test_files_that_are_no_classifiers(file: Path, tmp_path: Path, films: Path, validated: Path):
    cut_off = tmp_path / "cut.safetensors"
    cut_off.write_bytes(file.read_bytes()[:-100])
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    flipped = tmp_path / "flipped.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1000] ^= 1
    flipped.write_bytes(whole)
    for path in (cut_off, text, flipped):
        assert f"{path} is damaged or no file of weights (" in refused("score", films, "--checkpoint", path, code=1)
    lungs = weights_file.FOLDER / "lung_unet.safetensors"
    assert f"{lungs} finds lungs, not classes" in refused("score", films, "--checkpoint", lungs, code=1)
    with pytest.raises(UserError, match="finds classes, not lungs"):
        segmenter.open_segmenter("cpu", weights=file)
    assert weights_file.read(file).data == file.read_bytes()
    with safetensors.safe_open(file, "np") as opened:
        header = opened.metadata()
    header.pop("digest")
    array = {"0.a": np.zeros(3, np.float16)}
    uncounted = tmp_path / "uncounted.safetensors"
    uncounted.write_bytes(safetensors.numpy.save(array, header | {"members": "two"}))
    with pytest.raises(UserError, match="is damaged"):
        load.read_run(uncounted)
    something = tmp_path / "something.safetensors"
    something.write_bytes(safetensors.numpy.save(array, {"format": "pt"}))
    with pytest.raises(UserError, match="holds no trained network"):
        load.read_run(something)
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.numpy.save(array, header | {"members": "1"}))
    with pytest.raises(UserError, match="arrays are those of another network"):
        Classifier.load(other, device="cpu", runtime="jax")
    with pytest.raises(UserError, match="has no fold to calibrate on; train a classifier with --val-fold"):
        calibrate.bundle(without_validation(validated, tmp_path), tmp_path / "x")


def test_missing_bundled_file(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_file, "FOLDER", tmp_path)
    monkeypatch.setattr(load, "BUNDLED", tmp_path / "classifier.safetensors")
    assert "classifier.safetensors is not there; install covidjax again" in refused("score", films, code=1)


def test_card_describes_the_bundled_classifier():
    card = (Path(__file__).parents[1] / "MODEL_CARD.md").read_text()
    assert hashlib.sha256(load.BUNDLED.read_bytes()).hexdigest() in card
    assert f"{load.BUNDLED.stat().st_size / 1e6:.1f} MB" in card
    described = load.read_run(load.BUNDLED)
    network = create_model(described.config.model, described.preprocess)
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(network.abstract().params)):,} parameters" in card
    assert load.trained_on(load.BUNDLED)


def test_the_maker_of_the_bundled_weights_refuses_what_is_no_run(tmp_path: Path):
    result = CliRunner().invoke(main, [])
    assert (result.exit_code, "Missing argument 'RUN'" in result.output) == (2, True)
    result = CliRunner().invoke(main, [str(tmp_path / "none")])
    assert (result.exit_code, "does not exist" in result.output) == (1, True)


def without_validation(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of a run whose settings name no validation fold."""
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    for config in copy.rglob("config.toml"):
        config.write_text(config.read_text().replace("val_fold = 1\n", ""))
    return copy
