"""Metrics of a classifier from labels and predictions, and of a segmenter from the overlaps of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from covidjax.bootstrap import Interval, percentile_interval, ratio, resampled_patients


@dataclass(frozen=True)
class PredictiveValues:
    """Of a class at a prevalence other than that of the images, by Bayes' theorem from sensitivity and specificity."""

    ppv: float | None
    npv: float | None
    intervals: dict[str, Interval | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class against the rest, or their means over the classes that have images. A metric that is not defined
    is None, such as all those of a class without images; but precision of a class that was never predicted is 0, as in
    scikit-learn. Those below ``support`` need probabilities, where ``trust.metrics`` says what each is."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """Number of examples of the class."""
    sensitivity: float | None = None
    """Recall by its clinical name."""
    specificity: float | None = None
    ppv: float | None = None
    """Positive predictive value: precision by its clinical name."""
    npv: float | None = None
    """Negative predictive value."""
    auroc: float | None = None
    auprc: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    ece: float | None = None
    calibration_slope: float | None = None
    calibration_intercept: float | None = None
    aurc: float | None = None
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """95 % percentile interval of each of the above, as in ``Bootstrap``; None where there are fewer than two patients or
    where the metric is not defined in most of the samples. Empty where patients are not known."""
    at_prevalence: dict[str, PredictiveValues] = field(default_factory=dict)
    """By prevalence, such as ``0.01``."""


class ClassIntervals(NamedTuple):
    """Intervals of one class, or of the means over the classes."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile intervals by drawing patients with replacement, each with all their images (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", chapter 13)."""

    patients: int
    resamples: int
    accuracy: Interval | None
    macro: ClassIntervals
    per_class: dict[str, ClassIntervals]


@dataclass(frozen=True)
class _Result:
    classes: tuple[str, ...]
    """Names of the classes, or the kinds of mask."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Metrics(_Result):
    """Metrics of a classifier on some images. Those with None for a default need probabilities."""

    per_class: dict[str, ClassMetrics]
    macro: ClassMetrics
    """Mean over the classes that have images, each counting the same."""
    accuracy: float
    interval: Interval
    """95 % score interval of the accuracy, each image taken as independent (Wilson 1927, "Probable inference, the law of
    succession, and statistical inference")."""
    confusion: list[list[int]]
    """``confusion[true][predicted]``."""
    bootstrap: Bootstrap | None = None
    """Intervals over patients, where the images' patients are known and are at least two."""
    confidence: float | None = None
    """Mean probability of the predicted class."""
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    aurc: float | None = None
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """Of the metrics of all classes together, as in ``ClassMetrics``."""
    per_source: dict[str, Metrics] = field(default_factory=dict)
    """Of the images of each source alone."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of predicted masks A and true masks B, over some images."""

    dice: float
    """Mean over the images of 2·|A∩B| / (|A| + |B|)."""
    interval: Interval | None
    """95 % percentile interval of the mean Dice coefficient by drawing patients with replacement, as in ``Bootstrap``; None
    where there is one patient only."""
    median: float
    """Median Dice coefficient."""
    least: float
    """Dice coefficient of the worst image."""
    iou: float
    """Mean over the images of |A∩B| / |A∪B|."""
    films: int
    """Number of images."""
    patients: int


@dataclass(frozen=True)
class MaskMetrics(_Result):
    """Metrics of a segmenter on some images."""

    per_class: dict[str, Overlap]
    """The overlap of each kind that some image has."""
    overall: Overlap


AnyMetrics = Metrics | MaskMetrics


class MeanAndSd(NamedTuple):
    """Mean and standard deviation (of a sample) over the networks of a run."""

    mean: float
    sd: float


def headline_metrics(metrics: AnyMetrics) -> dict[str, float]:
    """The numbers by which whole results are compared: accuracy and macro means, or Dice and IoU."""
    if isinstance(metrics, MaskMetrics):
        return {"dice": metrics.overall.dice, "iou": metrics.overall.iou}
    macro = {name: getattr(metrics.macro, name) for name in ("precision", "recall", "f1")}  # some class has images
    return {"accuracy": metrics.accuracy, **macro}


def mean_and_sd(results: Sequence[AnyMetrics]) -> dict[str, MeanAndSd]:
    """Mean and standard deviation of each of ``headline_metrics`` over at least two results."""
    headlines = [headline_metrics(result) for result in results]
    columns = {name: [headline[name] for headline in headlines] for name in headlines[0]}
    return {name: MeanAndSd(float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in columns.items()}


class Statistics(NamedTuple):
    """Metrics of several samples of the same patients, NaN where not defined."""

    overall: dict[str, np.ndarray]
    """Name → float ``[samples]``."""
    per_class: dict[str, np.ndarray]
    """Name → float ``[samples, classes]``."""


def count_statistics(confusion: np.ndarray) -> Statistics:
    """What follows from confusion matrices, ``[samples, true, predicted]``."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted, true = confusion.sum(-2), confusion.sum(-1)
    total = true.sum(-1, keepdims=True)
    others = total - true - predicted + hits  # neither of the class nor predicted
    per_class = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(true, 1),
        "f1": 2 * hits / np.maximum(predicted + true, 1),
        "specificity": ratio(others, total - true),
        "npv": ratio(others, total - predicted),
    }
    present = np.where(true > 0, 1, np.nan)
    return Statistics(
        {"accuracy": hits.sum(-1) / total[..., 0]}, {name: each * present for name, each in per_class.items()}
    )


def assemble(
    classes: Sequence[str],
    confusion: np.ndarray,
    point: Statistics,
    resampled: Sequence[Statistics],
    patients: int,
    prevalences: Sequence[float] = (),
) -> Metrics:
    """Metrics with their intervals.

    Args:
      classes: their names, by index.
      confusion: ``[true, predicted]``.
      point: of the images themselves, one sample.
      resampled: of bootstrap samples, in parts, of which later ones may lack some metrics; no part where there are
        fewer than two patients.
      patients: how many there are.
      prevalences: for predictive values.
    """
    from scipy.stats import binomtest  # here: it takes long to import, and scoring without known truth does without

    overall: dict[str, Any] = {name: float(values[0]) for name, values in point.overall.items()}
    each = _with_means(point, prevalences)
    samples = [_with_means(part, prevalences) for part in resampled]
    intervals = {
        name: [percentile_interval(values) for values in np.concatenate([part[name] for part in samples if name in part]).T]
        for name in (each if samples else ())
    }
    over_all = {
        name: percentile_interval(np.concatenate([part.overall[name] for part in resampled if name in part.overall]))
        for name in (overall if resampled else ())
    }
    supports = [*confusion.sum(1).astype(int).tolist(), int(confusion.sum())]
    *per_class, macro = (
        _class_metrics(number, support, each, intervals, prevalences) for number, support in enumerate(supports)
    )
    wilson = binomtest(int(np.trace(confusion)), int(confusion.sum())).proportion_ci(0.95, "wilson")
    *class_intervals, macro_intervals = (
        ClassIntervals(*(one.intervals.get(name) for name in ClassIntervals._fields)) for one in (*per_class, macro)
    )
    resamples = sum(len(part.overall["accuracy"]) for part in resampled)
    by_class = dict(zip(classes, class_intervals, strict=True))
    return Metrics(
        classes=tuple(classes),
        per_class=dict(zip(classes, per_class, strict=True)),
        macro=macro,
        interval=(float(wilson.low), float(wilson.high)),
        confusion=confusion.astype(int).tolist(),
        bootstrap=Bootstrap(patients, resamples, over_all["accuracy"], macro_intervals, by_class) if resampled else None,
        intervals=over_all,
        **overall,
    )


def _with_means(statistics: Statistics, prevalences: Sequence[float]) -> dict[str, np.ndarray]:
    """Name → float ``[samples, classes + 1]``, the last the mean over the classes where it is defined."""
    values = dict(statistics.per_class)
    recall, specificity = values["recall"], values["specificity"]
    for share in prevalences:
        true, false = recall * share, (1 - specificity) * (1 - share)
        # Of a class that was never predicted it is 0, as precision is.
        values[f"ppv {share:g}"] = np.where(true + false == 0, 0 * recall, ratio(true, true + false))
        true, false = specificity * (1 - share), (1 - recall) * share
        values[f"npv {share:g}"] = ratio(true, true + false)
    means = {}
    for name, each in values.items():
        mean = ratio(np.nansum(each, -1), np.isfinite(each).sum(-1))
        means[name] = np.concatenate([each, mean[..., None]], -1)
    return means


def _class_metrics(
    number: int,
    support: int,
    values: Mapping[str, np.ndarray],
    intervals: Mapping[str, Sequence[Interval | None]],
    prevalences: Sequence[float],
) -> ClassMetrics:
    """One class, by its number, or the mean over all."""
    value = {name: float(each[0, number]) if np.isfinite(each[0, number]) else None for name, each in values.items()}
    interval = {name: each[number] if value[name] is not None else None for name, each in intervals.items()}
    at_prevalence = {}
    for share in (f"{share:g}" for share in prevalences):
        own = {name: value.pop(f"{name} {share}") for name in ("ppv", "npv")}
        own_intervals = {name: interval.pop(f"{name} {share}") for name in own if interval}
        at_prevalence[share] = PredictiveValues(**own, intervals=own_intervals)
    for name, clinical in (("recall", "sensitivity"), ("precision", "ppv")):
        value[clinical] = value[name]
        if interval:
            interval[clinical] = interval[name]
    return ClassMetrics(**value, support=support, intervals=interval, at_prevalence=at_prevalence)


def mask_metrics(
    kinds: np.ndarray, dice: np.ndarray, iou: np.ndarray, classes: Sequence[str], patients: Sequence[str]
) -> MaskMetrics:
    """Dice coefficients and IoUs of each kind of mask and of all.

    Args:
      kinds: int ``[N]``, the kind of each image's mask.
      dice: float ``[N]``, Dice coefficients.
      iou: float ``[N]``, intersections over unions.
      classes: the kinds' names, by index.
      patients: the patient of each image, ``[N]``.

    Raises:
      ValueError: there are no images.
    """
    if not len(dice):
        raise ValueError("There are no masks to measure.")
    patient_names = np.asarray(patients)

    def overlap(rows: np.ndarray) -> Overlap:
        names, patient = np.unique(patient_names[rows], return_inverse=True)
        sums, counts = np.bincount(patient, dice[rows]), np.bincount(patient)
        means = [drawn @ sums / (drawn @ counts) for drawn in resampled_patients(len(names), len(names))]
        return Overlap(
            dice=float(dice[rows].mean()),
            interval=percentile_interval(np.concatenate(means)) if means else None,
            median=float(np.median(dice[rows])),
            least=float(dice[rows].min()),
            iou=float(iou[rows].mean()),
            films=int(rows.sum()),
            patients=len(names),
        )

    rows_by_kind = {name: kinds == index for index, name in enumerate(classes) if (kinds == index).any()}
    per_class = {name: overlap(rows) for name, rows in rows_by_kind.items()}
    return MaskMetrics(tuple(classes), per_class, overlap(np.ones(len(dice), bool)))
