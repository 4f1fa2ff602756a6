"""Figures of the literature, checked against values worked out by hand."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from covidjax.metrics import ClassMetrics, mean_and_sd
from covidjax.trust.metrics import measure
from covidjax.trust.predictions import PredictionTable

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")
CONFUSION = [[8, 1, 1], [0, 15, 5], [2, 4, 14]]


def pairs(confusion):
    """Labels and predictions that give a confusion matrix."""
    cells = [(t, p) for t, row in enumerate(confusion) for p, count in enumerate(row) for _ in range(count)]
    return list(zip(*cells, strict=True))


def measured(labels, predictions, classes, patients=None):
    """Metrics of predictions that are certain; of one patient unless told otherwise."""
    names = [str(row) for row in range(len(labels))]
    probabilities = np.eye(len(classes))[np.asarray(predictions, int)]
    table = PredictionTable(classes, np.asarray(labels, int), probabilities, names, patients or ["one"] * len(names), names)
    return measure(table)


def test_three_classes_by_hand():
    labels, predictions = pairs(CONFUSION)
    result = measured(labels, predictions, CLASSES)
    assert result.confusion == CONFUSION
    assert result.classes == CLASSES
    assert list(result.per_class) == list(CLASSES)
    for name, precision, recall, f1, support in (
        ("COVID-19", 8 / 10, 8 / 10, 0.8, 10),
        ("No-Findings", 15 / 20, 15 / 20, 0.75, 20),
        ("Pneumonia", 14 / 20, 14 / 20, 0.7, 20),
    ):
        found = result.per_class[name]
        assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, f1))
        assert found.support == support
    assert (result.macro.precision, result.macro.recall, result.macro.f1) == pytest.approx((0.75, 0.75, 0.75))
    assert result.macro.support == 50
    assert result.accuracy == pytest.approx(37 / 50)


def test_precision_goes_by_predictions_and_recall_by_labels():
    result = measured([0, 0, 0, 0, 1], [0, 1, 1, 1, 1], ("a", "b"))
    assert result.confusion == [[1, 3], [0, 1]]
    for name, *expected in (("a", 1.0, 0.25, 0.4, 4, 1.0, 0.25), ("b", 0.25, 1.0, 0.4, 1, 0.25, 1.0)):
        found = result.per_class[name]
        values = found.precision, found.recall, found.f1, found.support, found.specificity, found.npv
        assert values == pytest.approx(tuple(expected))
    assert result.macro.recall == pytest.approx(0.625)
    assert result.accuracy == pytest.approx(0.4)


def test_class_without_images_has_no_metrics():
    result = measured([0, 0, 1], [0, 1, 1], CLASSES)
    assert result.per_class["Pneumonia"] == ClassMetrics(None, None, None, 0)
    assert result.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.macro.precision == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
        (45, 50, 0.7864, 0.9565),
        (50, 50, 0.9286, 1.0),
        (0, 50, 0.0, 0.0714),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_interval_by_hand(right, total, low, high):
    result = measured([0] * total, [0] * right + [1] * (total - right), CLASSES)
    assert result.accuracy == pytest.approx(right / total)
    assert result.interval == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_is_over_patients():
    random = np.random.default_rng(3)
    labels, predictions = random.integers(0, 3, (2, 60))
    predictions = np.where(random.random(60) < 0.6, labels, predictions)
    patients = [f"p{number}" for number in range(60)]
    found = measured(labels, predictions, CLASSES, patients).bootstrap
    assert found
    assert (found.patients, found.resamples) == (60, 2000)
    # By a loop over draws of its own, and scikit-learn.
    figures = []
    for draw in (random.integers(0, 60, 60) for _ in range(400)):
        options: Any = {"labels": [0, 1, 2], "zero_division": 0}
        scores: Any = precision_recall_fscore_support(labels[draw], predictions[draw], **options)
        accuracy = (labels[draw] == predictions[draw]).mean()
        figures.append((accuracy, scores[2].mean(), scores[0][2], scores[1][0]))  # macro F1, a precision, a recall
    intervals = found.accuracy, found.macro.f1, found.per_class["Pneumonia"].precision, found.per_class["COVID-19"].recall
    for interval, values in zip(intervals, np.transpose(figures), strict=True):
        assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.04)
    # Every film of a patient twice tells no more than once.
    twice = measured(np.tile(labels, 2), np.tile(predictions, 2), CLASSES, patients * 2)
    assert twice.bootstrap == found
    assert twice.interval[0] > measured(labels, predictions, CLASSES).interval[0]
    assert measured([0, 1], [0, 1], CLASSES, ["same", "same"]).bootstrap is None
    assert measured([0, 1], [0, 1], CLASSES).bootstrap is None


def test_spread_of_several():
    found = mean_and_sd([measured([0, 1], [0, 1], ("a", "b")), measured([0, 1], [1, 0], ("a", "b"))])
    assert found["accuracy"] == pytest.approx((0.5, 0.5**0.5))
    assert set(found) == {"accuracy", "precision", "recall", "f1"}


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        measured([], [], CLASSES)


def test_result_goes_into_json_and_holds_plain_numbers():
    labels, predictions = pairs(CONFUSION)
    result = measured(labels, predictions, CLASSES)
    table = json.loads(json.dumps(result.as_dict()))
    assert table["per_class"]["COVID-19"]["support"] == 10
    assert table["confusion"] == CONFUSION
    assert table["accuracy"] == pytest.approx(0.74)
    assert len(table["interval"]) == 2
