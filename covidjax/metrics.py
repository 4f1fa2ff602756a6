"""Metrics of a classifier from labels and predictions, and of a segmenter from the overlaps of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class against the rest; a metric whose denominator is zero is 0."""

    precision: float
    recall: float
    f1: float
    support: int
    """Number of examples of the class."""


Interval = tuple[float, float]
"""Lower and upper end."""


class ClassIntervals(NamedTuple):
    """Intervals of one class, or of the means over the classes."""

    precision: Interval
    recall: Interval
    f1: Interval


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile intervals by drawing patients with replacement, each with all their images (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", chapter 13)."""

    patients: int
    resamples: int
    accuracy: Interval
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
    """Metrics of a classifier on some images."""

    per_class: dict[str, ClassMetrics]
    macro: ClassMetrics
    """Mean over the classes, each counting the same."""
    accuracy: float
    interval: Interval
    """95 % score interval of the accuracy, each image taken as independent (Wilson 1927, "Probable inference, the law of
    succession, and statistical inference")."""
    confusion: list[list[int]]
    """``confusion[true][predicted]``."""
    bootstrap: Bootstrap | None = None
    """Intervals over patients, where the images' patients are known and are at least two."""


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
    macro = metrics.macro
    return {"accuracy": metrics.accuracy, "precision": macro.precision, "recall": macro.recall, "f1": macro.f1}


def mean_and_sd(results: Sequence[AnyMetrics]) -> dict[str, MeanAndSd]:
    """Mean and standard deviation of each of ``headline_metrics`` over at least two results."""
    headlines = [headline_metrics(result) for result in results]
    columns = {name: [headline[name] for headline in headlines] for name in headlines[0]}
    return {name: MeanAndSd(float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in columns.items()}


def mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the networks of a run of every epoch's loss and metric.

    Args:
      histories: the lines of each network's ``metrics.jsonl``, equally many.
    """
    folds = [fold for fold in ("train", "val", "test") if histories[0] and fold in histories[0][0]]

    def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}

    return [
        {"epoch": records[0]["epoch"]} | {fold: mean([record[fold] for record in records]) for fold in folds}
        for records in zip(*histories, strict=True)
    ]


def classification_metrics(
    labels: ArrayLike, predictions: ArrayLike, classes: Sequence[str], patients: Sequence[str] | None = None
) -> Metrics:
    """Precision, recall, F1, accuracy with its intervals, and the confusion matrix.

    Args:
      labels: int ``[N]``, true classes.
      predictions: int ``[N]``, predicted classes.
      classes: the classes' names, by index.
      patients: the patient of each image, ``[N]``, for intervals over patients.

    Raises:
      ValueError: there are no images.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if not len(labels):
        raise ValueError("There are no examples to measure.")
    from scipy.stats import binomtest  # here: it takes long to import, and scoring without known truth does without

    names, patient = np.unique(np.zeros(len(labels)) if patients is None else np.asarray(patients), return_inverse=True)
    confusions = np.zeros((len(names), len(classes), len(classes)), int)
    np.add.at(confusions, (patient, labels, predictions), 1)
    confusion = confusions.sum(0)
    accuracy, macro, *per_class = _by_class(_scores(confusion).tolist())
    wilson = binomtest(int(np.trace(confusion)), len(labels)).proportion_ci(0.95, "wilson")
    bootstrap, intervals = None, _bootstrap_over_patients(len(names), lambda drawn: _scores(confusions[drawn].sum(-3)))
    if intervals:
        accuracy_interval, *score_intervals = _by_class(intervals)
        macro_interval, *class_intervals = (ClassIntervals(*scores) for scores in score_intervals)
        by_class = dict(zip(classes, class_intervals, strict=True))
        bootstrap = Bootstrap(len(names), RESAMPLES, accuracy_interval, macro_interval, by_class)
    supports = confusion.sum(1).tolist()
    return Metrics(
        classes=tuple(classes),
        per_class={
            name: ClassMetrics(*scores, support=support)
            for name, scores, support in zip(classes, per_class, supports, strict=True)
        },
        macro=ClassMetrics(*macro, support=len(labels)),
        accuracy=accuracy,
        interval=(float(wilson.low), float(wilson.high)),
        confusion=confusion.tolist(),
        bootstrap=bootstrap,
    )


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
        intervals = _bootstrap_over_patients(len(names), lambda drawn: sums[drawn].sum(-1) / counts[drawn].sum(-1))
        return Overlap(
            dice=float(dice[rows].mean()),
            interval=intervals[0] if intervals else None,
            median=float(np.median(dice[rows])),
            least=float(dice[rows].min()),
            iou=float(iou[rows].mean()),
            films=int(rows.sum()),
            patients=len(names),
        )

    rows_by_kind = {name: kinds == index for index, name in enumerate(classes) if (kinds == index).any()}
    per_class = {name: overlap(rows) for name, rows in rows_by_kind.items()}
    return MaskMetrics(tuple(classes), per_class, overlap(np.ones(len(dice), bool)))


def _scores(confusion: np.ndarray) -> np.ndarray:
    """Accuracy, then the classes' mean precision, recall and F1, then those of each class.

    Args:
      confusion: int ``[…, true, predicted]``.

    Returns:
      float ``[1 + 3 + 3·classes, …]``.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted, true = confusion.sum(-2), confusion.sum(-1)
    fractions = (hits, predicted), (hits, true), (2 * hits, predicted + true)
    scores = np.stack([top / np.maximum(bottom, 1) for top, bottom in fractions])  # [3, …, classes]
    scores = np.moveaxis(np.concatenate([scores.mean(-1, keepdims=True), scores], -1), -1, 0)  # [1 + classes, 3, …]
    accuracy = hits.sum(-1) / np.maximum(true.sum(-1), 1)
    return np.concatenate([accuracy[None], scores.reshape(-1, *accuracy.shape)])


def _by_class(scores: Sequence[Any]) -> list[Any]:
    """The accuracy, then triples of precision, recall and F1, from the order of ``_scores``."""
    return [scores[0], *(scores[at : at + 3] for at in range(1, len(scores), 3))]


def _bootstrap_over_patients(patients: int, statistics: Callable[[np.ndarray], np.ndarray]) -> list[Interval]:
    """95 % percentile intervals of statistics of patients; none where there is one patient only.

    Args:
      patients: how many there are.
      statistics: from patients drawn by number, int ``[…, patients]``, to numbers ``[…]`` or ``[statistics, …]``.
    """
    from scipy.stats import bootstrap

    if patients < 2:
        return []
    result = bootstrap(
        (np.arange(patients),),
        lambda drawn, axis: statistics(np.moveaxis(drawn, axis, -1)),
        n_resamples=RESAMPLES,
        batch=50,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = map(np.atleast_1d, result.confidence_interval)
    return list(zip(low.tolist(), high.tolist(), strict=True))
