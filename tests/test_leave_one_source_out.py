"""Leave-one-source-out: what is held out, trained, resumed, tested again, and said."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run

import covidjax
from covidjax.config import DataConfig, Preprocess, load_config
from covidjax.data import loader, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.runs import checkpoint, folder, load, trust_file
from covidjax.training.cross_validation import network_configs
from covidjax.trust.predictions import PredictionTable

SOURCES = ("north", "South ward", "west")
FOLDS, SIZE = 3, 24
SETTINGS = ("train.epochs=2", "train.batch_size=4")


def write_dataset(out: Path, sources: tuple[str, ...] = SOURCES) -> Dataset:
    """A dataset of 32 × 32 pixels in three folds, 24 images of 12 patients of each source. The first patient of each fold
    is in all sources; only north has Pneumonia."""
    films = iter(synthetic.draw_images(SIZE * len(sources), size=32))
    with create_dataset(out, Preprocess(image_size=32), FOLDS) as writer:
        for fold in range(FOLDS):
            for source in sources:
                for number in range(SIZE // FOLDS):
                    name = f"{source}-{fold}-{number}.png"
                    patient = f"shared:{fold}" if number < 2 else f"{source}:{fold}-{number // 2}"
                    label = synthetic.CLASSES[number % (3 if source == "north" else 2)]
                    digest = hashlib.sha256(name.encode()).hexdigest()
                    writer.add(fold, Example(Path(name), label, patient, source), next(films).image[..., None], digest)
        writer.close()
    return Dataset(out)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("sources") / "dataset")


@pytest.fixture(scope="module")
def left_out(sources: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Trained by the command; the run, what --json printed, and what was said."""
    out = tmp_path_factory.mktemp("loso") / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ("--cv", "--by", "source", "--val-fold", 1, "--data", sources.path, "--run", out, "--json", *settings)
    words += ("--operating-point", "COVID-19:sensitivity=0.8")
    result = run("train", *words)
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout), result.stderr


def test_no_patient_of_the_left_out_source_is_trained_on(sources: Dataset):
    patients, names = (np.asarray(texts) for texts in (sources.origins.patients, sources.origins.sources))
    for source in SOURCES:
        parts = hold_out(sources, DataConfig(test_fold=2, val_fold=0, test_source=source))
        assert set(names[parts.test]) == {source}
        assert len(parts.test) == SIZE
        for rows, fold in ((parts.train, 1), (parts.val, 0), (parts.in_source, 2)):
            assert set(names[rows]) == {*SOURCES} - {source}
            assert set(sources.fold_of_rows[rows]) == {fold}
            assert not {*patients[rows]} & {*patients[parts.test]}
            assert len(rows) == 2 * (SIZE // FOLDS - 2)
        labels = loader.load_all(sources.source(range(FOLDS))).labels
        assert parts.class_counts.tolist() == np.bincount(labels[parts.train], minlength=3).tolist()
    by_fold = hold_out(sources, DataConfig(test_fold=2, val_fold=0))
    assert [{*sources.fold_of_rows[rows].tolist()} for rows in by_fold[:4]] == [{1}, {2}, {0}, set()]


def test_folders_of_sources(tmp_path: Path):
    config = load_config(None, ["train.cv=true", "train.cv_by=source", "train.ensemble=2", "data.val_fold=1"])
    names = ["a b", "a/b", "Ä", "10", "9"]
    configs = network_configs(config, 5, names)
    assert {each.data.test_source for each in configs.values()} == {*names}
    assert {(each.data.test_fold, each.data.val_fold) for each in configs.values()} == {(0, 1)}
    folders = ["source-a-b", "source-a-b-2", "source-unnamed", "source-10", "source-9"]
    assert list(configs) == [f"{name}-member{number}" for name in folders for number in range(2)]
    folder.create_run(tmp_path / "run", folder.Run(config, Preprocess()))
    for name in configs:
        folder.create_run(tmp_path / "run" / name, folder.Run(configs[name], Preprocess()))
    assert {path.name for path in folder.member_folders(tmp_path / "run")} == {*configs}


def test_every_source_is_left_out_once(left_out: tuple[Path, dict[str, Any], str], sources: Dataset):
    out, found, said = left_out
    assert list(found["members"]) == ["source-north", "source-south-ward", "source-west"]
    assert list(found["folds"]) == [*SOURCES]
    assert found["metrics"]["macro"]["support"] == SIZE * len(SOURCES)
    assert "source 3/3, epoch 2/2" in said
    assert "Only north has Pneumonia: the network that leaves north out is trained without any Pneumonia." in said
    # Each network is a run by itself, and the whole evaluates to its own result.
    one = json.loads(run("evaluate", out / "source-west", "--json").stdout)
    assert one["data"] == f"source west of {sources.path}"
    assert one["metrics"] == found["members"]["source-west"]["metrics"]
    again = json.loads(run("evaluate", out, "--json").stdout)
    assert again["data"] == f"all 3 sources of {sources.path}, each by the network that it was held out from"
    assert again["metrics"] == found["metrics"]
    assert again["operating_points"] == found["operating_points"]
    assert load.describe(out) == "mean probabilities of the 3 sources of a cross-validation"
    keys = load.trained_on(out / "source-west")
    assert not any(key.startswith(("west:", "shared:")) for key in keys)
    assert any(key.startswith("north:") for key in keys)


@pytest.mark.slow
def test_the_checklist_says_how_such_a_run_predicts(left_out: tuple[Path, dict[str, Any], str]):
    whole, network = ((left_out[0] / name / "report" / "claim.md").read_text() for name in ("", f"source-{SOURCES[0]}"))
    assert "temperature fitted on the left-out sources" in whole and "COVID-19:sensitivity=0.8" in whole
    for text in (whole, network):
        assert "sources that the network had not seen: the figures here" in text
    assert "| one network, for each part held out; mean probabilities. |" in whole and "| one network. |" in network


@pytest.mark.slow
def test_resuming_trains_what_is_missing_only(left_out: tuple[Path, dict[str, Any], str], tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(left_out[0], copy)
    shutil.rmtree(copy / "source-west")
    result = run("train", "--resume", "--run", copy, "--json")
    assert result.exit_code == 0, result.output
    assert "source 3/3, epoch 2/2" in result.stderr
    assert "source 2/3, epoch 1/2" not in result.stderr
    assert json.loads(result.stdout)["metrics"] == left_out[1]["metrics"]
    assert all(checkpoint.steps(member, "last") for member in folder.member_folders(copy))


def test_what_cannot_be_left_out(tmp_path: Path, sources: Dataset):
    single = write_dataset(tmp_path / "single", ("north",))
    message = refused("train", "--cv", "--by", "source", "--data", single.path, "--run", tmp_path / "run", code=2)
    assert "one source only" in message
    assert "prepare" in message
    assert not (tmp_path / "run").exists()
    assert "--cv" in refused("train", "--by", "source", "--data", sources.path, code=2)
    assert "no source east" in refused("train", "--data", sources.path, "--set", "data.test_source=east", code=2)
    words = ("--cv", "--set", "data.test_source=west")
    assert "test_source" in refused("train", "--data", sources.path, *words, code=2)


def test_what_the_run_knows_of_elsewhere(left_out: tuple[Path, dict[str, Any], str], sources: Dataset):
    out, found, _ = left_out
    trust = trust_file.read(out)
    assert set(trust) >= {"calibration", "risk_coverage", "operating_points"}
    assert found["calibration"] == trust["calibration"]
    of_sources = found["calibration"]["elsewhere"]["sources"]
    assert {name: source["images"] for name, source in of_sources.items()} == dict.fromkeys(SOURCES, SIZE)
    # The metrics of the networks are without calibration, which was fitted on these sources.
    for name in SOURCES:
        assert found["folds"][name]["ece"] == pytest.approx(of_sources[name]["raw_ece"], abs=1e-6)
        assert found["folds"][name]["confidence"] == pytest.approx(of_sources[name]["raw_confidence"], abs=1e-6)
    assert set(found["gap"]["sources"]) == {*SOURCES}
    member = found["members"]["source-north"]["metrics"]
    assert found["gap"]["sources"]["north"]["accuracy"]["left_out"] == pytest.approx(member["accuracy"])
    assert of_sources["north"]["raw_ece"] == pytest.approx(member["ece"], abs=1e-6)
    tables = (out / "report" / "tables.txt").read_text()
    for text in ("Generalisation gap", "Calibration for elsewhere", "Operating points, on the test set"):
        assert text in tables
    assert (out / "report" / "elsewhere.png").stat().st_size > 10_000
    assert "not trained on" in (out / "report" / "report.html").read_text()
    validation = PredictionTable.read(out / "source-north" / "report" / "validation_predictions.csv")
    rows = hold_out(sources, DataConfig(val_fold=1, test_source="north")).val
    assert validation.patients == [sources.origins.patients[row] for row in rows]


@pytest.mark.slow
def test_scoring_by_such_a_run(left_out: tuple[Path, dict[str, Any], str], films: Path, tmp_path: Path):
    out, found, _ = left_out
    words = ("score", films / "COVID-19", "--checkpoint", out, "--runtime", "jax")
    result = run(*words, "--output", tmp_path / "scores.csv", "--json")
    assert result.exit_code == 0, result.output
    assert "calibrated for elsewhere" in result.stderr
    (point,) = trust_file.read(out)["operating_points"]
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["positive_COVID-19"] == str(float(row["p_COVID-19"]) >= point["threshold"]).lower()
        assert row["status"] == "ok"
    assert list(rows[0])[-1] == "positive_COVID-19"
    # Probabilities are those of the network to the power of one over the temperature.
    classifier = covidjax.load(out, runtime="jax")
    temperature = found["calibration"]["temperature"]
    raw = covidjax.load(shutil.copytree(out, tmp_path / "raw", ignore=lambda *_: ["trust.json"]), runtime="jax")
    images = loader.load_all(Dataset(Path(found_data(out))).source([0])).images[:4]
    powers = raw.probabilities(images).astype(float) ** (1 / temperature)
    np.testing.assert_allclose(classifier.probabilities(images), powers / powers.sum(-1, keepdims=True), atol=1e-5)
    # Without the section nothing can be told of risk.
    assert "--cv --by source" in refused(*words[:3], tmp_path / "raw", "--abstain", 0.1, code=2)


def found_data(out: Path) -> str:
    return folder.read_run(out).config.data.path


@pytest.mark.parametrize("ending", ["csv", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jsonl", "parquet"))])
def test_abstaining(left_out: tuple[Path, dict[str, Any], str], films: Path, tmp_path: Path, ending: str):
    copy, table = tmp_path / "run", tmp_path / f"scores.{ending}"
    shutil.copytree(left_out[0], copy)
    words = ("score", films, "--checkpoint", copy, "--runtime", "jax", "--json")
    trust_file.write(copy, calibration=None)
    confidences = sorted(row["confidence"] for row in json.loads(run(*words).stdout)["rows"])
    below = int(np.argmax(np.diff(confidences))) + 1  # where there is most room between two of them
    middle = (confidences[below - 1] + confidences[below]) / 2
    curve = {
        "confidence": [middle, 0.0],
        "risk": [0.1, 0.5],
        "coverage": [0.6, 1.0],
        "sources": 3,
        "images": 72,
        "run": "x",
    }
    trust_file.write(copy, risk_coverage=curve)  # as if the networks were worth something
    result = run(*words, "--output", table, "--abstain", 0.2)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["ok"], summary["uncertain"], summary["refused"], summary["errors"]) == (30 - below, below, 0, 0)
    assert "Answers below a confidence of" in result.stderr
    if ending == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(table).to_pylist()
    elif ending == "jsonl":
        rows = [json.loads(line) for line in table.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(table.read_text().splitlines()))
    uncertain = [row for row in rows if row["status"] == "uncertain"]
    assert len(uncertain) == below
    assert not any(row["prediction"] or row["confidence"] for row in uncertain)
    assert all(max(float(row[f"p_{name}"]) for name in synthetic.CLASSES) < middle + 1e-6 for row in uncertain)
    assert {str(row["positive_COVID-19"]).lower() for row in rows} <= {"true", "false"}
    if ending != "csv":
        assert {type(row["positive_COVID-19"]) for row in rows} == {bool}
    # All of them uncertain is work done too.
    result = run(*words, "--abstain", 0.05)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["uncertain"] == 30
    assert "Every answer is uncertain" in result.stderr


@pytest.mark.slow
def test_a_later_run_takes_the_calibration_over(
    left_out: tuple[Path, dict[str, Any], str], sources: Dataset, prepared: Path, tmp_path: Path
):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ("train", *settings, "--set", f"train.calibration={left_out[0]}")
    out = tmp_path / "run"
    points = ("--operating-point", "covid-19:sensitivity=0.8", "--operating-point", "Pneumonia:specificity=0.9")
    result = run(*words, "--data", sources.path, "--val-fold", 1, "--run", out, "--json", *points)
    assert result.exit_code == 0, result.output
    found, theirs, own = json.loads(result.stdout), trust_file.read(left_out[0]), trust_file.read(out)
    assert {name: own[name] for name in ("calibration", "risk_coverage")} == {
        name: theirs[name] for name in ("calibration", "risk_coverage")
    }
    assert [point["class"] for point in own["operating_points"]] == ["COVID-19", "Pneumonia"]
    again = run("evaluate", out, "--json")
    assert json.loads(again.stdout)["metrics"] == found["metrics"]
    assert json.loads(again.stdout)["operating_points"] == found["operating_points"]
    assert "calibrated for elsewhere" in again.stderr
    # A threshold that was not asked for in training is chosen on what was said of the validation fold.
    asked = ("evaluate", out, "--json", "--operating-point")
    other = json.loads(run(*asked, "Pneumonia:specificity=0.8").stdout)["operating_points"]
    assert [(point["class"], point["target"]) for point in other] == [("Pneumonia", 0.8)]
    assert other[0]["threshold"] <= own["operating_points"][1]["threshold"]
    same = json.loads(run(*asked, "Pneumonia:specificity=0.9").stdout)["operating_points"]
    assert same == found["operating_points"][1:]
    assert json.loads(run("evaluate", out, "--data", prepared, "--json").stdout)["operating_points"]
    # Images of another size are another model's.
    message = refused(*words, "--data", "sample", "--run", tmp_path / "no", code=2)
    assert "prepared in the same way" in message
    bare = ("train", *settings, "--data", sources.path, "--run", tmp_path / "no")
    assert "no calibration" in refused(*bare, "--set", f"train.calibration={left_out[0] / 'source-west'}", code=2)
    assert "--val-fold" in refused(*bare, *points, code=2)
    assert "no class measles" in refused(*bare, "--val-fold", 1, "--operating-point", "measles:sensitivity=0.9", code=2)
    of_north = ("--val-fold", 1, "--operating-point", "Pneumonia:sensitivity=1")
    assert "no image of Pneumonia" in refused(*bare, *of_north, "--set", "data.test_source=north", code=2)
    assert not (tmp_path / "no").exists()
    result = run(*bare, *of_north)
    assert result.exit_code == 0, result.output
    assert "too few" in result.stdout


def test_a_run_without_a_validation_fold_has_no_threshold(trained: Path):
    message = refused("evaluate", trained, "--operating-point", "COVID-19:sensitivity=0.9", code=2)
    assert "--val-fold" in message
