"""From labels and predictions, or from the overlaps of masks, to the figures of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; a figure whose denominator is zero is 0."""

    precision: float
    recall: float
    f1: float
    support: int
    """Number of examples of the class."""


Interval = tuple[float, float]


class ClassIntervals(NamedTuple):
    """Of one class, or of the means over the classes."""

    precision: Interval
    recall: Interval
    f1: Interval


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile intervals by drawing patients with replacement, each with all their films (Efron and Tibshirani 1993,
    chapter 13)."""

    patients: int
    resamples: int
    accuracy: Interval
    macro: ClassIntervals
    per_class: dict[str, ClassIntervals]


@dataclass(frozen=True)
class Metrics:
    """What a classifier's predictions on some examples amount to."""

    classes: tuple[str, ...]
    per_class: dict[str, ClassMetrics]
    macro: ClassMetrics
    """Mean over the classes, each counting the same."""
    accuracy: float
    interval: Interval
    """95 % Wilson score interval of the accuracy, each image taken as independent."""
    confusion: list[list[int]]
    """``confusion[true][predicted]``."""
    bootstrap: Bootstrap | None = None
    """Intervals over patients, where it is known whose films they are, and they are of two patients at least."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """Of found and true masks, over some films."""

    dice: float
    """Mean over the films of 2·|A∩B| / (|A| + |B|)."""
    interval: Interval | None
    """95 % percentile interval of the mean Dice coefficient by drawing patients with replacement, as in ``Bootstrap``; None
    where there is one patient only."""
    median: float
    """Dice coefficient of the middle film."""
    least: float
    """Dice coefficient of the worst film."""
    iou: float
    """Mean over the films of |A∩B| / |A∪B|."""
    films: int
    patients: int


@dataclass(frozen=True)
class MaskMetrics:
    """What a segmenter's masks of some films amount to."""

    classes: tuple[str, ...]
    """The kinds of mask."""
    per_class: dict[str, Overlap]
    """Of each kind that there are films of."""
    overall: Overlap

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


AnyMetrics = Metrics | MaskMetrics


class MeanAndSd(NamedTuple):
    """Mean and standard deviation (of a sample) over the networks of a run."""

    mean: float
    sd: float


def headline_metrics(found: AnyMetrics) -> dict[str, float]:
    """The figures by which whole results are compared."""
    if isinstance(found, MaskMetrics):
        return {"dice": found.overall.dice, "iou": found.overall.iou}
    macro = found.macro
    return {"accuracy": found.accuracy, "precision": macro.precision, "recall": macro.recall, "f1": macro.f1}


def mean_and_sd(found: Sequence[AnyMetrics]) -> dict[str, MeanAndSd]:
    """Of each of ``headline_metrics`` over at least two results."""
    table = {name: [headline_metrics(each)[name] for each in found] for name in headline_metrics(found[0])}
    return {name: MeanAndSd(float(np.mean(row)), float(np.std(row, ddof=1))) for name, row in table.items()}


def classification_metrics(
    labels: ArrayLike, predictions: ArrayLike, classes: Sequence[str], patients: Sequence[str] | None = None
) -> Metrics:
    """Precision, recall, F1, accuracy with its interval, confusion matrix.

    Args:
      labels: int ``[N]``, true classes.
      predictions: int ``[N]``.
      classes: names, by index.
      patients: whose film each example is, ``[N]``, for intervals over patients.

    Raises:
      ValueError: no examples.
    """
    # Here: they take a second to import, and scoring without known truth does without.
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if not len(labels):
        raise ValueError("There are no examples to measure.")
    indices = range(len(classes))
    zero: Any = 0  # the library's type hints know only its textual values
    scores: Any = precision_recall_fscore_support(labels, predictions, labels=indices, zero_division=zero)
    precision, recall, f1, support = scores
    correct = int((labels == predictions).sum())
    interval = binomtest(correct, len(labels)).proportion_ci(0.95, "wilson")
    return Metrics(
        classes=tuple(classes),
        per_class={
            name: ClassMetrics(float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(classes)
        },
        macro=ClassMetrics(float(precision.mean()), float(recall.mean()), float(f1.mean()), len(labels)),
        accuracy=correct / len(labels),
        interval=(float(interval.low), float(interval.high)),
        confusion=confusion_matrix(labels, predictions, labels=indices).tolist(),
        bootstrap=None if patients is None else _bootstrap(labels, predictions, classes, patients),
    )


def mask_metrics(
    kinds: np.ndarray, dice: np.ndarray, iou: np.ndarray, classes: Sequence[str], patients: Sequence[str]
) -> MaskMetrics:
    """Means of the films' Dice coefficients and IoUs, by kind of mask and over all.

    Args:
      kinds: int ``[N]``, which kind of mask each film has.
      dice: float ``[N]``.
      iou: float ``[N]``.
      classes: names of the kinds, by index.
      patients: whose film each is, ``[N]``.

    Raises:
      ValueError: no films.
    """
    if not len(dice):
        raise ValueError("There are no masks to measure.")
    owners = np.asarray(patients)

    def overlap(rows: np.ndarray) -> Overlap:
        names, patient = np.unique(owners[rows], return_inverse=True)
        return Overlap(
            dice=float(dice[rows].mean()),
            interval=_mean_interval(dice[rows], patient),
            median=float(np.median(dice[rows])),
            least=float(dice[rows].min()),
            iou=float(iou[rows].mean()),
            films=int(rows.sum()),
            patients=len(names),
        )

    each = {name: kinds == index for index, name in enumerate(classes) if (kinds == index).any()}
    per_class = {name: overlap(rows) for name, rows in each.items()}
    return MaskMetrics(tuple(classes), per_class, overlap(np.ones(len(dice), bool)))


def _mean_interval(values: np.ndarray, patient: np.ndarray) -> Interval | None:
    """Of the mean of ``values``, drawing patients, given by number for each value."""
    from scipy.stats import bootstrap

    sums, counts = np.bincount(patient, values), np.bincount(patient)
    if len(counts) < 2:
        return None
    found = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        n_resamples=RESAMPLES,
        batch=50,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


RESAMPLES = 2000


def _bootstrap(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], patients: Sequence[str]
) -> Bootstrap | None:
    from scipy.stats import bootstrap

    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        return None
    count = len(classes)
    confusions = np.zeros((len(names), count, count), int)
    np.add.at(confusions, (patient, labels, predictions), 1)

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        """Accuracy, then precision, recall and F1 of the mean and of each class, of patients by number."""
        confusion = confusions[np.moveaxis(drawn, axis, -1)].sum(-3)
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        predicted, true = confusion.sum(-2), confusion.sum(-1)
        pairs = (hits, predicted), (hits, true), (2 * hits, predicted + true)
        each = np.stack([top / np.maximum(bottom, 1) for top, bottom in pairs])  # [3, ..., classes]
        each = np.moveaxis(np.concatenate([each.mean(-1, keepdims=True), each], -1), -1, 0)  # [1 + classes, 3, ...]
        accuracy = hits.sum(-1) / np.maximum(true.sum(-1), 1)
        return np.concatenate([accuracy[None], each.reshape(-1, *accuracy.shape)])

    found = bootstrap(
        (np.arange(len(names)),),
        statistic,
        n_resamples=RESAMPLES,
        batch=50,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    accuracy, *others = map(tuple, np.stack(found.confidence_interval, -1).tolist())
    intervals = [ClassIntervals(*others[at : at + 3]) for at in range(0, len(others), 3)]
    return Bootstrap(len(names), RESAMPLES, accuracy, intervals[0], dict(zip(classes, intervals[1:], strict=True)))
