"""The report of a classifier: figures, the gallery, the page, the predictions."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data.dataset import Dataset
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.report import curves
from covidjax.report import html as page
from covidjax.report.metric_tables import TableData, classifier_tables, confusion_table
from covidjax.report.tables import as_text, render
from covidjax.training.reports import find_rows
from covidjax.trust.metrics import measure
from covidjax.trust.predictions import PredictionTable

FIGURES = {*curves.FIGURES, "confusion_matrix.png", "errors.png"}


def table(classes=("COVID-19", "No-Findings", "Pneumonia"), images=90) -> PredictionTable:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(len(classes)), images)
    labels = random.integers(0, len(classes), images)
    names = [f"{number}.png" for number in range(images)]
    sources = [("north", "south")[number % 2] for number in range(images)]
    return PredictionTable(classes, labels, probabilities, names, names, sources)


def test_a_run_has_the_whole_report(trained: Path, prepared: Path):
    folder = trained / "report"
    names = {path.name for path in folder.iterdir()}
    assert names == FIGURES | {"curves.png", "tables.txt", "metrics.json", "predictions.csv", "report.html", "claim.md"}
    for name in FIGURES:
        with Image.open(folder / name) as image:
            assert min(image.size) > 300, name
    predictions = PredictionTable.read(folder / "predictions.csv")
    found = json.loads((folder / "metrics.json").read_text())
    again = measure(predictions)
    assert again.confusion == found["confusion"]
    assert again.macro.auroc == pytest.approx(found["macro"]["auroc"])
    text = (folder / "report.html").read_text()
    shown = dict.fromkeys(re.findall(r'src="([^"]{22})', text))
    assert list(shown) == ["data:image/png;base64,"]
    assert text.count("data:image/png;base64,") == len(FIGURES) + 1
    assert "http" not in text and str(prepared) not in text and "path = " in text
    for key in {*predictions.patients, *(Path(name).name for name in predictions.paths)}:
        assert key not in text
    for row in ("macro mean", "Calibration", "learning_rate", f"{found['macro']['auroc']:.3f}"):
        assert row in text


def test_evaluate_writes_the_report_of_another_dataset(trained: Path, prepared: Path, tmp_path: Path):
    out = tmp_path / "there" / "report"
    result = run("evaluate", trained, "--data", prepared, "--out", out, "--prevalence", "0.01,0.2", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.endswith(f"Wrote {out}.\n")
    assert {path.name for path in out.iterdir()} == FIGURES | {
        "tables.txt",
        "metrics.json",
        "predictions.csv",
        "report.html",
    }
    metrics = json.loads(result.stdout)["metrics"]
    written = json.loads((out / "metrics.json").read_text())
    assert metrics == {key: written[key] for key in metrics}
    assert list(metrics["per_class"]["Pneumonia"]["at_prevalence"]) == ["0.01", "0.2"]
    assert "Predictive values by prevalence" in (out / "report.html").read_text()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("evaluate", trained, "--out", tmp_path / "file", code=1)


@pytest.mark.slow
def test_of_several_networks_all_have_predictions(prepared: Path, tmp_path: Path):
    out = tmp_path / "cv"
    result = run("train", "--data", prepared, "--cv", "--epochs", 1, "--run", out, "--set", "train.batch_size=4", "--json")
    assert result.exit_code == 0, result.output
    whole = PredictionTable.read(out / "report" / "predictions.csv")
    parts = [PredictionTable.read(out / f"fold{fold}" / "report" / "predictions.csv") for fold in range(3)]
    assert sorted(whole.paths) == sorted(path for part in parts for path in part.paths)
    assert len(whole) == 30
    assert (out / "report" / "report.html").is_file()
    assert (out / "report" / "roc.png").is_file()


def test_no_errors_no_gallery(trained: Path, prepared: Path, tmp_path: Path):
    from covidjax.data.dataset import Dataset
    from covidjax.training.reports import gallery

    dataset = Dataset(prepared)
    predictions = PredictionTable.read(trained / "report" / "predictions.csv")
    wrong = predictions.predictions != predictions.labels
    assert gallery(tmp_path / "errors.png", predictions, dataset)
    assert wrong.any()
    assert not gallery(tmp_path / "errors.png", predictions.select(~wrong), dataset)
    assert not (tmp_path / "errors.png").exists()


def test_the_page_escapes_everything(tmp_path: Path):
    evil = '<script>alert("1")</script>'
    classes = (evil, "a$b$&")
    found = measure(dataclasses.replace(table(classes), sources=[f"{evil}2", "$x^$"] * 45), [0.1])
    curves.draw(tmp_path, curves.HeldOut(classes, table(classes).labels, table(classes).probabilities, [evil, "$x^$"] * 45))
    about = page.About(evil, evil, [evil, "name\udce9"], f"note = '{evil}'")
    page.write(tmp_path, about, [*classifier_tables(found, evil, wide=True), confusion_table(found)], curves.FIGURES)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert html.escape("a$b$&") in text
    assert "name\\xe9" in text


def test_tables_fit_80_columns():
    found = measure(table(), [0.01])
    for data in [*classifier_tables(found, "Test"), confusion_table(found)]:
        assert isinstance(data, TableData)
        text = as_text([render(data)])
        assert max(map(len, text.splitlines()[1:-2])) <= 80 or "│" not in text, text
        assert "…" not in text


def test_a_class_without_images_is_a_dash():
    few = table()
    found = measure(few.select(few.labels != 1))
    text = as_text([render(data) for data in classifier_tables(found, "Test")])
    rows = [line for line in text.splitlines() if line.startswith("│ No-Findings")]
    assert len(rows) == 3
    assert all(set(re.findall(r"│\s+(\S+)", line)) <= {"No-Findings", "–", "0"} for line in rows)


def test_net_benefit_by_hand():
    true = np.array([True, True, False, False, False])
    scores = np.array([0.9, 0.4, 0.6, 0.2, 0.1])
    # At 0.5 one true and one false positive of five; at 0.25 two and one.
    assert curves.net_benefit(true, scores, np.array([0.5, 0.25])) == pytest.approx([0.2 - 0.2, 0.4 - 0.2 / 3])
    assert curves.net_benefit(true, np.ones(5), np.array([0.4])) == pytest.approx([0.4 - 0.6 * 0.4 / 0.6])


def test_risk_and_coverage_by_hand():
    coverage, risk = curves.risk_coverage(np.array([True, False, True, True]), np.array([0.9, 0.8, 0.8, 0.6]))
    assert coverage == pytest.approx([0.25, 0.75, 1])
    assert risk == pytest.approx([0, 1 / 3, 0.25])


def test_an_image_that_others_have_the_name_of_has_no_picture(tmp_path: Path):
    with create_dataset(tmp_path / "data", Preprocess(32, classes=("COVID-19",)), 2) as writer:
        for fold, name, digest in ((0, "a", "1"), (0, "b", "2"), (1, "a", "3"), (1, "c", "4")):
            image = np.zeros((32, 32, 1), np.uint8)
            writer.add(fold, Example(Path(f"{name}.png"), "COVID-19", "patient", "source"), image, digest)
        writer.close()
    keys = [("patient", "source", f"{name}.png") for name in "abc"]
    assert find_rows(Dataset(tmp_path / "data"), keys) == {keys[1]: 1, keys[2]: 3}
