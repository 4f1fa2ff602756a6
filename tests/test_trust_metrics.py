"""Metrics from probabilities: against scikit-learn's, against plain loops, and intervals against a truth that is known."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from covidjax.metrics import Metrics
from covidjax.trust.metrics import measure
from covidjax.trust.predictions import PredictionTable

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")


def predictions(images: int = 300, *, seed: int = 0, classes=CLASSES, ties: int = 0, patients: int | None = None):
    """A table of a classifier that is right more often than not; with ``ties`` its probabilities are so many steps."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes), images)
    logits = random.normal(size=(images, len(classes))) * 1.5
    logits[np.arange(images), labels] += 1.2
    probabilities = softmax(logits, -1)
    if ties:
        probabilities = softmax(np.round(logits * ties) / ties, -1)
    of = random.integers(0, patients, images) if patients else np.arange(images)
    sources = np.array(["north", "south"])[random.integers(0, 2, images)]
    names = [f"image{number}.png" for number in range(images)]
    return PredictionTable(classes, labels, probabilities, names, [f"patient{number}" for number in of], sources.tolist())


def expected_class(table: PredictionTable, number: int) -> dict[str, float]:
    """Metrics of a class by scikit-learn, and those that it has not by their definitions."""
    true, scores = table.labels == number, table.probabilities[:, number]
    predicted = table.predictions == number
    logits = np.log(scores / (1 - scores))[:, None]
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, true)
    return {
        "precision": sk.precision_score(true, predicted),
        "recall": sk.recall_score(true, predicted),
        "f1": sk.f1_score(true, predicted),
        "specificity": sk.recall_score(true, predicted, pos_label=False),
        "npv": sk.precision_score(true, predicted, pos_label=False),
        "sensitivity": sk.recall_score(true, predicted),
        "ppv": sk.precision_score(true, predicted),
        "auroc": sk.roc_auc_score(true, scores),
        "auprc": sk.average_precision_score(true, scores),
        "brier": sk.brier_score_loss(true, scores),
        "log_loss": sk.log_loss(true, scores),
        "ece": calibration_error(true, scores),
        "calibration_slope": regression.coef_[0, 0],
        "calibration_intercept": regression.intercept_[0],
        "aurc": risk_area(true == predicted, np.where(predicted, scores, 1 - scores)),
    }


def calibration_error(true: np.ndarray, scores: np.ndarray) -> float:
    """By scikit-learn's bins of equal mass, and how many images each of them has."""
    share, mean = calibration_curve(true, scores, n_bins=10, strategy="quantile")
    edges = np.percentile(scores, np.linspace(0, 100, 11))
    images = np.bincount(np.searchsorted(edges[1:-1], scores))
    images = images[images > 0]
    return float((np.abs(share - mean) * images).sum() / len(true))


def risk_area(right: np.ndarray, confidence: np.ndarray) -> float:
    """The mean over all images of the risk where that image and all that are as sure or surer are accepted."""
    return float(np.mean([1 - right[confidence >= threshold].mean() for threshold in confidence]))


@pytest.mark.parametrize("ties", [0, 2])
@pytest.mark.parametrize("classes", [CLASSES, ("a", "b")])
def test_every_metric_is_that_of_scikit_learn(classes, ties):
    table = predictions(classes=classes, ties=ties)
    found = measure(table)
    expected = [expected_class(table, number) for number in range(len(classes))]
    for name, of_class in zip(classes, expected, strict=True):
        for metric, value in of_class.items():
            assert getattr(found.per_class[name], metric) == pytest.approx(value, rel=1e-6), (name, metric)
    for metric in expected[0]:
        assert getattr(found.macro, metric) == pytest.approx(np.mean([one[metric] for one in expected]), rel=1e-6), metric
    right, confidence = table.predictions == table.labels, table.probabilities.max(-1)
    assert found.accuracy == pytest.approx(sk.accuracy_score(table.labels, table.predictions))
    assert found.confidence == pytest.approx(confidence.mean())
    assert found.log_loss == pytest.approx(sk.log_loss(table.labels, table.probabilities))
    brier = sk.brier_score_loss(table.labels, table.probabilities, scale_by_half=False)  # pyright: ignore[reportArgumentType]
    assert found.brier == pytest.approx(brier)
    assert found.ece == pytest.approx(calibration_error(right, confidence))
    assert found.aurc == pytest.approx(risk_area(right, confidence))
    assert found.macro.auroc == pytest.approx(sk.roc_auc_score(np.eye(len(classes))[table.labels], table.probabilities))


def test_predictive_values_at_a_prevalence():
    found = measure(predictions(), [0.01, 0.5]).per_class["COVID-19"]
    assert list(found.at_prevalence) == ["0.01", "0.5"]
    sensitivity, specificity = found.sensitivity, found.specificity
    assert sensitivity and specificity
    for share, values in ((0.01, found.at_prevalence["0.01"]), (0.5, found.at_prevalence["0.5"])):
        true, false = sensitivity * share, (1 - specificity) * (1 - share)
        assert values.ppv == pytest.approx(true / (true + false))
        true, false = specificity * (1 - share), (1 - sensitivity) * share
        assert values.npv == pytest.approx(true / (true + false))
        for name, value in (("ppv", values.ppv), ("npv", values.npv)):
            low, high = values.intervals[name] or (1, 0)
            assert value and low < value < high
    # At the images' own prevalence they are those of the images.
    own = measure(predictions(), [support_share := found.support / 300]).per_class["COVID-19"]
    values = own.at_prevalence[f"{support_share:g}"]
    assert (values.ppv, values.npv) == pytest.approx((own.ppv, own.npv))


@pytest.mark.parametrize("ties", [0, 2])
def test_bootstrap_is_that_of_a_plain_loop(ties):
    """Each sample, written out as a table of its own, has the metrics that stand in the distribution."""
    table = predictions(120, patients=40, ties=ties)
    found = measure(dataclasses.replace(table, sources=[""] * 120))
    names, patient = np.unique(table.patients, return_inverse=True)
    random = np.random.default_rng(0)
    drawn = random.integers(0, len(names), (2000, len(names)))
    samples: list[Metrics] = []
    for draw in drawn[:150]:
        rows = np.concatenate([np.flatnonzero(patient == one) for one in draw])
        sample = dataclasses.replace(table.select(rows), patients=["one"] * len(rows), sources=[""] * len(rows))
        samples.append(measure(sample))
    everything = {"auroc", "auprc", "brier", "log_loss", "ece", "aurc", "calibration_slope", "npv", "f1"}
    for metric in everything:
        interval = found.per_class["Pneumonia"].intervals[metric]
        values = [getattr(sample.per_class["Pneumonia"], metric) for sample in samples]
        spread = float(np.std(values))
        assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.6 * spread), metric
    for metric in ("ece", "aurc", "confidence", "accuracy", "brier"):
        values = [getattr(sample, metric) for sample in samples]
        ends, spread = np.percentile(values, [2.5, 97.5]), float(np.std(values))
        assert found.intervals[metric] == pytest.approx(ends, abs=0.6 * spread), metric


def test_a_class_without_images_has_no_metrics():
    table = predictions()
    found = measure(table.select(table.labels != 1), [0.1])
    absent = found.per_class["No-Findings"]
    assert absent.support == 0
    values = {name: value for name, value in dataclasses.asdict(absent).items() if name not in ("support", "at_prevalence")}
    assert not any(interval for interval in values.pop("intervals").values())
    assert set(values.values()) == {None}
    assert absent.at_prevalence["0.1"].ppv is None
    assert found.macro.f1 == pytest.approx(sum(found.per_class[name].f1 or 0 for name in ("COVID-19", "Pneumonia")) / 2)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["per_class"]["No-Findings"]["auroc"] is None


def test_one_class_alone_has_a_sensitivity_and_no_area():
    table = predictions()
    found = measure(table.select(table.labels == 2)).per_class["Pneumonia"]
    assert found.recall == pytest.approx((table.predictions[table.labels == 2] == 2).mean())
    assert found.intervals["recall"]
    for metric in ("auroc", "auprc", "specificity", "calibration_slope", "calibration_intercept"):
        assert getattr(found, metric) is None
        assert found.intervals[metric] is None


def test_precision_of_a_class_that_is_never_predicted_is_zero():
    labels = np.array([0, 0, 1, 1])
    table = PredictionTable(("a", "b"), labels, np.array([[0.9, 0.1]] * 4), list("wxyz"), list("wxyz"), [""] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(table, [0.2])
    assert (found.per_class["b"].precision, found.per_class["b"].f1, found.per_class["b"].at_prevalence["0.2"].ppv) == (
        0,
        0,
        0,
    )
    assert found.per_class["a"].npv is None
    assert found.per_class["a"].auroc == 0.5
    assert found.per_class["a"].calibration_slope is None  # all probabilities are the same


def test_no_regression_where_the_classes_are_apart():
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    table = PredictionTable(
        ("a", "b"), (scores > 0.5).astype(int), np.stack([1 - scores, scores], -1), list("abcdef"), list("abcdef"), [""] * 6
    )
    found = measure(table).per_class["b"]
    assert (found.auroc, found.calibration_slope, found.calibration_intercept) == (1, None, None)


def test_probabilities_of_nought_and_one():
    labels = np.array([0, 1, 0, 1] * 5)
    probabilities = np.eye(2)[np.array([0, 1, 1, 1] * 5)]
    table = PredictionTable(
        ("a", "b"), labels, probabilities, [str(n) for n in range(20)], [str(n) for n in range(20)], [""] * 20
    )
    found = measure(table)
    assert found.log_loss == pytest.approx(sk.log_loss(labels, probabilities.astype(np.float32)), rel=1e-3)
    assert all(math.isfinite(value) for value in (found.brier, found.ece, found.aurc) if value is not None)
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_patient_has_no_interval():
    table = dataclasses.replace(predictions(20), patients=["same"] * 20)
    found = measure(table)
    assert found.bootstrap is None
    assert (found.intervals, found.macro.intervals) == ({}, {})
    assert found.macro.auroc is not None


def test_each_source_is_measured_alone():
    table = predictions()
    found = measure(table)
    assert list(found.per_source) == ["north", "south"]
    rows = np.asarray(table.sources) == "south"
    alone = measure(table.select(rows))
    assert found.per_source["south"] == dataclasses.replace(alone, per_source={})
    assert measure(dataclasses.replace(table, sources=[""] * 300)).per_source == {}


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        measure(predictions().select(np.zeros(300, bool)))


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Images of a patient are alike, in the disease and in what the network makes of it: 400 simulated studies of 200
    patients, and the share of intervals that hold what a very large study finds."""

    def study(size: int, seed: int) -> PredictionTable:
        random = np.random.default_rng(seed)
        images = random.integers(1, 4, size)
        of = np.repeat(np.arange(size), images)
        labels = np.repeat(random.random(size) < 0.4, images).astype(int)
        own = np.repeat(random.normal(size=size), images)
        score = 2 * labels - 1 + 0.7 * own + random.normal(size=len(of))
        probability = expit(1.3 * score + 0.2)
        names = [str(number) for number in range(len(of))]
        patients, both = [f"p{one}" for one in of], np.stack([1 - probability, probability], -1)
        return PredictionTable(("no", "yes"), labels, both, names, patients, [""] * len(of))

    large = measure(study(60_000, 10**6))
    metrics = ("sensitivity", "specificity", "ppv", "npv", "f1", "auroc", "auprc", "brier", "log_loss", "aurc")
    metrics += ("calibration_slope", "calibration_intercept")
    truth = {name: getattr(large.per_class["yes"], name) for name in metrics}
    covered = dict.fromkeys(metrics, 0)
    for seed in range(400):
        intervals = measure(study(200, seed)).per_class["yes"].intervals
        for name in metrics:
            low, high = intervals[name] or (1, 0)
            covered[name] += low <= truth[name] <= high
    assert min(covered.values()) >= 360, str(covered)


def test_probabilities_that_hardly_differ_have_no_slope():
    table = predictions(60)
    learned_nothing = 1 / 3 + (table.probabilities - table.probabilities.mean(0)) * 1e-6
    found = measure(dataclasses.replace(table, probabilities=learned_nothing))
    assert {scores.calibration_slope for scores in found.per_class.values()} == {None}
    assert found.macro.calibration_intercept is None and found.macro.auroc == pytest.approx(measure(table).macro.auroc)


def test_what_is_written_is_ranked_alike(tmp_path):
    table = predictions(60)
    close = dataclasses.replace(table, probabilities=1 / 3 + (table.probabilities - 1 / 3) * 1e-9)
    close.write(tmp_path / "predictions.csv")
    assert measure(PredictionTable.read(tmp_path / "predictions.csv")).macro.auroc == measure(close).macro.auroc
