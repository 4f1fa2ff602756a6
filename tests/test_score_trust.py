"""What ``score`` says by itself: metrics without what the run was trained on, rows of studies, remarks on a run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from commands import refused, run
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileMetaDataset

from covidjax.runs import trust_file
from covidjax.scoring.row import Row
from covidjax.scoring.studies import label_of_study, merge_rows
from covidjax.trust import calibration
from covidjax.trust.abstention import Abstention

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")


@pytest.fixture(scope="module")
def scored(trained: Path, films: Path) -> dict[str, Any]:
    result = run("score", films, "--checkpoint", trained, "--json", "--prevalence", "0.05")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) | {"stderr": result.stderr}


def test_metrics_leave_out_what_the_run_was_trained_on(trained: Path, scored: dict[str, Any]):
    evaluated = json.loads(run("evaluate", trained, "--json", "--prevalence", "0.05").stdout)["metrics"]
    held_out = evaluated["macro"]["support"]
    assert 0 < held_out < 30
    assert (scored["trained_on"], scored["ok"], scored["coverage"]) == (30 - held_out, 30, 1)
    assert f"{30 - held_out} images are of the model's own training, or of its patients" in scored["stderr"]
    assert scored["metrics"]["confusion"] == evaluated["confusion"]
    assert scored["metrics"]["bootstrap"]["patients"] == evaluated["bootstrap"]["patients"]
    for metric in ("brier", "log_loss", "npv", "specificity"):  # of hardly trained networks the ranking is chance
        assert scored["metrics"]["macro"][metric] == pytest.approx(evaluated["macro"][metric], abs=1e-4), metric
    values = scored["metrics"]["per_class"]["Pneumonia"]["at_prevalence"]["0.05"]
    assert values["npv"] == pytest.approx(evaluated["per_class"]["Pneumonia"]["at_prevalence"]["0.05"]["npv"])


def test_copies_are_known_by_their_bytes_and_by_their_patients(trained: Path, films: Path, tmp_path: Path):
    known = (trained / "trained_on.txt").read_text()
    trained_on = [path for path in sorted(films.rglob("*.png")) if path.stem.rpartition("-")[0] in known]
    assert len(trained_on) >= 3
    renamed, reencoded, unknown = trained_on[:3]
    folder = tmp_path / renamed.parent.name
    folder.mkdir()
    shutil.copy(renamed, folder / "a.png")  # the same bytes under another name
    Image.open(reencoded).save(folder / reencoded.with_suffix(".bmp").name)  # the same patient
    Image.open(unknown).save(folder / "c.bmp")  # nothing tells
    found = json.loads(run("score", tmp_path, "--checkpoint", trained, "--json").stdout)
    assert (found["trained_on"], found["metrics"]["macro"]["support"]) == (2, 1)


def test_nothing_left_to_measure(trained: Path, films: Path, tmp_path: Path):
    known = (trained / "trained_on.txt").read_text()
    path = next(path for path in sorted(films.rglob("*.png")) if path.stem.rpartition("-")[0] in known)
    (tmp_path / path.parent.name).mkdir()
    shutil.copy(path, tmp_path / path.parent.name)
    result = run("score", tmp_path, "--checkpoint", trained, "--json")
    found = json.loads(result.stdout)
    assert (found["metrics"], found["metrics_all"], found["trained_on"]) == (None, None, 1)
    assert run("score", tmp_path, "--checkpoint", trained).exit_code == 0


def test_a_run_that_does_not_tell_what_it_was_trained_on(trained: Path, films: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "trained_on.txt").unlink()
    result = run("score", films, "--checkpoint", tmp_path / "run", "--json")
    found = json.loads(result.stdout)
    assert (found["trained_on"], found["metrics"]["macro"]["support"]) == (0, 30)
    assert "does not tell what it was trained on" in result.stderr


def test_metrics_of_all_rows_beside_accepted_ones(trained: Path, films: Path, tmp_path: Path):
    shutil.copytree(films, tmp_path / "in")
    Image.new("L", (64, 64), 90).save(tmp_path / "in" / "Pneumonia" / "blank.png")
    result = run("score", tmp_path / "in", "--checkpoint", trained, "--json")
    found = json.loads(result.stdout)
    accepted, everything = found["metrics"]["macro"]["support"], found["metrics_all"]["macro"]["support"]
    assert (found["refused"], everything) == (1, accepted + 1)
    assert found["coverage"] == pytest.approx(accepted / everything)
    shown = run("score", tmp_path / "in", "--checkpoint", trained).stdout
    assert f"with a prediction, coverage {accepted / everything:.3f}" in shown
    assert "Metrics of all images" in shown


def test_sources_are_folders_that_are_no_class(trained: Path, films: Path, tmp_path: Path):
    for name in ("north", "south"):
        shutil.copytree(films, tmp_path / name)
    found = json.loads(run("score", tmp_path, "--checkpoint", trained, "--json").stdout)
    sources = found["metrics"]["per_source"]
    assert list(sources) == ["north", "south"]
    assert sources["north"]["confusion"] == sources["south"]["confusion"]
    assert json.loads(run("score", films, "--checkpoint", trained, "--json").stdout)["metrics"]["per_source"] == {}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_interrupted_job_ends_with_the_metrics_of_one_that_was_not(trained, films, tmp_path: Path, ending: str, scored):
    output = tmp_path / f"rows{ending}"
    arguments = "score", films, "--checkpoint", trained, "--output", output, "--json", "--prevalence", "0.05"
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"] == scored["metrics"]


def write_dicom(path: Path, pixels: np.ndarray, study: str) -> None:
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", uid.generate_uid()
    header.PatientID, header.StudyInstanceUID, header.Modality = "P-77", study, "CR"
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelData = 1, "MONOCHROME2", pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def test_one_row_a_study(trained: Path, films: Path, tmp_path: Path):
    images = [np.asarray(Image.open(path).convert("L")) for path in sorted(films.rglob("*.png"))[:5]]
    data, study = tmp_path / "in", "1.2.826.0.1.3680043.8.498.1"
    write_dicom(data / "a" / "1.dcm", images[0], study)
    write_dicom(data / "b" / "2.dcm", images[1], study)  # the same study in another folder
    write_dicom(data / "b" / "3.dcm", images[2], "1.2.826.0.1.3680043.8.498.2")
    for number in (3, 4):
        Image.fromarray(images[number]).save(data / "b" / f"{number}.png")
    Image.new("L", (64, 64), 90).save(data / "b" / "blank.png")
    (data / "c").mkdir()
    (data / "c" / "bad.png").write_bytes(b"no image")
    output = tmp_path / "rows.csv"
    result = run("score", data, "--by", "study", "--checkpoint", trained, "--output", output)
    assert result.exit_code == 0, result.output
    assert "4 studies in 7 images: a study is all DICOM files of one StudyInstanceUID" in result.stderr
    assert "3 of 4 studies scored" in result.stderr
    with output.open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert list(rows) == [str(data / "a" / "1.dcm"), str(data / "b" / "3.dcm"), str(data / "b"), str(data / "c")]
    assert [row["images"] for row in rows.values()] == ["2", "1", "2", "0"]
    assert [row["status"] for row in rows.values()] == ["ok", "ok", "ok", "error"]
    assert "1 of 3 images left out" in rows[str(data / "b")]["warning"]
    assert study not in result.output + output.read_text()
    alone = {row["path"]: row for row in json.loads(run("score", data, "--checkpoint", trained, "--json").stdout)["rows"]}
    for name_of_study, files in (("a/1.dcm", ("a/1.dcm", "b/2.dcm")), ("b", ("b/3.png", "b/4.png"))):
        for name in CLASSES:
            mean = np.mean([alone[str(data / file)][f"p_{name}"] for file in files])
            assert float(rows[str(data / name_of_study)][f"p_{name}"]) == pytest.approx(mean, abs=2e-6)
    lines = output.read_text().splitlines(keepends=True)
    again = run("score", data, "--by", "study", "--checkpoint", trained, "--output", output, "--resume")
    assert again.exit_code == 0, again.output
    assert output.read_text().splitlines(keepends=True) == lines


def test_metrics_of_studies(trained: Path, films: Path):
    """Folders of classes are studies of theirs; with some of their images in training they are left out."""
    found = json.loads(run("score", films, "--by", "study", "--checkpoint", trained, "--json").stdout)
    assert (found["files"], found["trained_on"], found["metrics"]) == (3, 3, None)
    assert {row["images"] for row in found["rows"]} == {10}


def test_images_of_two_classes_give_a_study_none():
    labels = {"a.png": "COVID-19", "b.png": "Pneumonia"}
    look_up = label_of_study(labels.get, {"one": ["a.png", "c.png"], "both": ["a.png", "b.png"]})
    assert (look_up("one"), look_up("both"), look_up("other")) == ("COVID-19", None, None)


def test_rows_of_a_study_where_none_is_accepted():
    probabilities = {"1": {"a": 0.2, "b": 0.8}, "2": {"a": 0.4, "b": 0.6}}
    refusals = [Row(name, "refused", probabilities=own, warning="blank") for name, own in probabilities.items()]
    (row,) = merge_rows(refusals, {"study": ["1", "2"]})
    assert (row.status, row.prediction, row.confidence, row.images, row.warning) == ("refused", "", None, 0, "blank")
    assert row.probabilities == pytest.approx({"a": 0.3, "b": 0.7})


def test_a_model_that_gives_one_class_only_is_said(trained: Path, films: Path, tmp_path: Path):
    path = sorted(films.rglob("*.png"))[0]
    for number in range(20):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "in" / f"{number}.png")
    result = run("score", tmp_path / "in", "--checkpoint", trained, "--json")
    assert "All 20 predictions are " in result.stderr
    assert len(json.loads(result.stdout)["remarks"]) == 1
    name = json.loads(result.stdout)["rows"][0]["prediction"]
    (tmp_path / "in").rename(tmp_path / name)  # which is what all of them are
    assert "predictions are" not in run("score", tmp_path, "--checkpoint", trained).stderr
    (tmp_path / name).rename(tmp_path / "in")
    (tmp_path / "in" / "0.png").unlink()
    assert "predictions are" not in run("score", tmp_path / "in", "--checkpoint", trained).stderr


def test_an_unfinished_run_and_a_toy_are_said(trained: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/mine")
    image = sorted(films.rglob("*.png"))[0]
    assert "unfinished" not in run("score", image).stderr
    log = Path("runs/mine/metrics.jsonl")
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert "runs/mine is unfinished: 1 of 2 epochs are done; go on with `covidjax train" in run("score", image).stderr
    config = Path("runs/mine/config.toml")
    text = config.read_text()
    start = text.index("path = ")
    config.write_text(text[:start] + 'path = "sample"' + text[text.index("\n", start) :])
    assert "was trained on the built-in sample of synthetic images" in run("score", image).stderr
    assert "was trained on the built-in sample" not in run("score", image, "--checkpoint", "runs/mine").stderr


@pytest.mark.parametrize("value", ["0", "1", "1.5", "a", "", "0.1,,0.2", "nan", "10%"])
def test_prevalences_that_are_none(value: str, films: Path):
    for command in (("evaluate",), ("score", films)):
        assert "--prevalence takes shares between 0 and 1" in refused(*command, "--prevalence", value, code=2)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"operating_points": {"COVID-19": 0.5}}, "section operating_points of the run's trust.json is damaged"),
        ({"operating_points": [{"class": "COVID-19", "threshold": 0.5}]}, "it has no 'metric'"),
        (
            {"calibration": {"temperature": 2.0}},
            "section calibration of the run's trust.json is damaged (it has no 'elsewhere')",
        ),
        ({"calibration": {"temperature": 0}}, "a temperature of 0"),
        ({"calibration": {"temperature": "warm"}}, "section calibration of the run's trust.json is damaged"),
        (
            {"risk_coverage": {"risk": [0.1]}},
            "section risk_coverage of the run's trust.json is damaged (it has no 'confidence')",
        ),
        ({"risk_coverage": [1]}, "remove it from there, and score without --abstain."),
    ],
)
def test_damaged_sections_are_told(trained: Path, films: Path, tmp_path: Path, sections: dict[str, Any], problem: str):
    damaged = tmp_path / "run"
    shutil.copytree(trained, damaged)
    (damaged / trust_file.FILE).write_text(json.dumps(sections))
    abstain = ("--abstain", "0.1") if "risk_coverage" in sections else ()
    assert problem in refused("score", films, "--checkpoint", damaged, *abstain, code=1)


def test_scores_are_calibrated_where_the_run_is(trained: Path, films: Path, tmp_path: Path, scored: dict[str, Any]):
    calibrated = tmp_path / "run"
    shutil.copytree(trained, calibrated)
    trust_file.write(calibrated, calibration={"temperature": 3.0, "elsewhere": {"sources": {"a": {}, "b": {}}}})
    result = run("score", films, "--checkpoint", calibrated, "--json")
    assert "calibrated for elsewhere (T = 3.000" in result.stderr
    columns = [f"p_{name}" for name in CLASSES]
    raw, found = (
        np.array([[row[name] for name in columns] for row in rows["rows"]]) for rows in (scored, json.loads(result.stdout))
    )
    powers = raw ** (1 / 3)
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-4)
    assert np.abs(found - raw).max() > 0.01
    before, after = (json.loads(run("evaluate", path, "--json").stdout)["metrics"] for path in (trained, calibrated))
    assert after["accuracy"] == before["accuracy"]
    assert after["confidence"] < before["confidence"]


def test_a_calibration_by_guesses_is_said():
    section = {"temperature": calibration.MOST * 0.999, "elsewhere": {"sources": {"a": {}, "b": {}}}}
    assert "no better than guesses" in calibration.sentence({"calibration": section})
    assert "guesses" not in calibration.sentence({"calibration": section | {"temperature": 20.0}})


def test_a_share_that_is_too_small_to_show_is_not_called_none():
    curve = {"risk": [0.0, 0.5], "confidence": [0.9, 0.4], "coverage": [0.0002, 1.0], "sources": 2}
    assert "of the less than 0.1% of answers" in Abstention({"risk_coverage": curve}, 0.1, "run").sentence
