"""From labels and predictions to a confusion matrix and the figures of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True)
class Metrics:
    """What a classifier's predictions on some examples amount to."""

    classes: tuple[str, ...]
    per_class: dict[str, ClassMetrics]
    macro: ClassMetrics
    """Mean over the classes, each counting the same."""
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson score interval of the accuracy, each image taken as independent."""
    confusion: list[list[int]]
    """``confusion[true][predicted]``."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(labels: ArrayLike, predictions: ArrayLike, classes: Sequence[str]) -> Metrics:
    """Precision, recall, F1, accuracy with its interval, confusion matrix.

    Args:
      labels: int ``[N]``, true classes.
      predictions: int ``[N]``.
      classes: names, by index.

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
    )
