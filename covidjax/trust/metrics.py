"""Metrics of a classifier from its probabilities, overall and for each source, with intervals over patients.

Each class is measured against the rest, and means over classes are of those that have images.

- ``auroc``: area under the ROC curve; ``auprc``: average precision, the area under the precision–recall curve without
  interpolation.
- ``brier``, ``log_loss`` (natural logarithm): means over the images. Those of all classes together are the multiclass
  ones, the Brier score summed over the classes (Brier 1950, "Verification of forecasts expressed in terms of
  probability").
- ``ece``: expected calibration error over bins of equally many images (Nguyen and O'Connor 2015, "Posterior calibration
  and exploratory analysis for natural language processing models", section 3.2), of a class that of its probabilities,
  overall that of the confidence (Guo et al. 2017, "On calibration of modern neural networks", section 2).
- ``calibration_slope``, ``calibration_intercept``: of a logistic regression of the class on the logit of its probability
  (Cox 1958, "Two further applications of a model for binary regression"; Van Calster et al. 2016, "A calibration
  hierarchy for risk models was defined"); 1 and 0 of a calibrated model, a slope below 1 of an overconfident one.
- ``aurc``: area under the risk–coverage curve, the mean over all coverages of the share of errors among the most
  confident images (Geifman and El-Yaniv 2017, "Selective classification for deep neural networks"). Of a class it is that
  of the statement "this class" or "another", whose confidence is the probability of what is stated.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from covidjax.bootstrap import RESAMPLES, ratio, resampled_patients
from covidjax.metrics import Metrics, Statistics, assemble, count_statistics
from covidjax.trust.predictions import PredictionTable

EPSILON = float(np.finfo(np.float32).eps)
"""Probabilities, float32 as networks give them, are kept so far from 0 and 1 where their logarithm is taken."""

BINS = 10
"""Of the calibration error, or as many as there are different probabilities."""

MOST_SOURCES = 50
"""Sources that are measured each by itself: the largest ones."""

FEWEST_RESAMPLES = 200
CURVE_SAMPLES, REGRESSION_SAMPLES = 2 * 10**7, 2 * 10**6
"""Most images of all bootstrap samples together, of areas under curves and of regressions; where there would be more, fewer
samples are drawn: fewer than 2,000 above 10,000 images, or 1,000 for regressions."""

LEAST_SPREAD = 1e-3
"""Least standard deviation of logits that a calibration slope is fitted to. Those of a network that has not learned
anything differ by less: their slope is in the millions and says nothing."""

NEWTON_STEPS, MOST_NEWTON = 30, 4.0
"""Of a regression, and how far one goes, in standard deviations of the logit."""


def measure(table: PredictionTable, prevalences: Sequence[float] = ()) -> Metrics:
    """All metrics of some predictions.

    Args:
      table: the predictions.
      prevalences: shares of a class, between 0 and 1, for which predictive values are told too.

    Raises:
      ValueError: there are no images.
    """
    whole = _measure(table, prevalences)
    sources = sorted(name for name, _ in Counter(filter(None, table.sources)).most_common(MOST_SOURCES))
    rows = {name: np.flatnonzero(np.asarray(table.sources) == name) for name in sources}
    if [len(rows_of) for rows_of in rows.values()] == [len(table)]:
        return dataclasses.replace(whole, per_source={sources[0]: whole})
    parts = {name: _measure(table.select(rows_of), prevalences) for name, rows_of in rows.items()}
    return dataclasses.replace(whole, per_source=parts)


def _measure(table: PredictionTable, prevalences: Sequence[float]) -> Metrics:
    if not len(table):
        raise ValueError("There are no examples to measure.")
    # In an order of their own: neither names nor the order of the images have a say in what is drawn.
    table = table.select(np.lexsort((table.labels, *table.probabilities.T)))
    names, first, patient = np.unique(np.asarray(table.patients), return_index=True, return_inverse=True)
    patient = np.argsort(np.argsort(first))[patient]
    sample = _Sample(table, patient, len(names))
    point = sample.statistics(np.ones((1, len(names)), np.int32), regress=True)
    curves = min(RESAMPLES, max(FEWEST_RESAMPLES, CURVE_SAMPLES // len(table)))
    regressions = min(curves // 2, max(FEWEST_RESAMPLES, REGRESSION_SAMPLES // len(table)))
    resampled = []
    for counts in resampled_patients(len(names), len(table)):
        done = sum(len(part.overall["accuracy"]) for part in resampled)
        resampled.append(sample.statistics(counts, curves=done < curves, regress=done < regressions))
    return assemble(table.classes, sample.confusion, point, resampled, len(names), prevalences)


def calibration_error(table: PredictionTable) -> float:
    """``ece`` alone, of all classes together."""
    ranking = _Ranking(table.probabilities.max(-1), table.predictions == table.labels, np.arange(len(table)))
    return float(ranking.ece(np.ones((len(table), 1), np.int32))[0])


def weighted_statistics(table: PredictionTable, patient: np.ndarray, counts: np.ndarray) -> Statistics:
    """Metrics of samples of patients, without regressions.

    Args:
      table: the predictions.
      patient: the number of each image's patient, int ``[N]``.
      counts: how often each patient was drawn, int32 ``[samples, patients]``.
    """
    return _Sample(table, patient, counts.shape[1]).statistics(counts, regress=False)


class _Sample:
    """The images of some patients, ready to be weighted by how often each patient was drawn."""

    def __init__(self, table: PredictionTable, patient: np.ndarray, patients: int):
        self._patients, labels, predictions = patients, table.labels, table.predictions
        probabilities = np.asarray(table.probabilities, float)
        self._classes = classes = probabilities.shape[1]
        confidence = probabilities.max(-1)
        true = labels[:, None] == np.arange(classes)
        stated = predictions[:, None] == np.arange(classes)
        clipped = np.clip(probabilities, EPSILON, 1 - EPSILON)
        brier, log_loss = (probabilities - true) ** 2, -np.log(np.where(true, clipped, 1 - clipped))
        own_loss = -np.log(clipped[np.arange(len(labels)), labels])
        cells = np.zeros((len(labels), classes, classes))
        cells[np.arange(len(labels)), labels, predictions] = 1
        columns = [cells.reshape(len(labels), -1), brier, log_loss, brier.sum(-1), own_loss, confidence]
        by_image = np.column_stack(columns)
        self.sums = np.zeros((patients, by_image.shape[1]))
        np.add.at(self.sums, patient, by_image)
        self._classed = [_Ranking(probabilities[:, k], true[:, k], patient) for k in range(classes)]
        sure = np.where(stated, probabilities, 1 - probabilities)
        self._stated = [_Ranking(sure[:, k], true[:, k] == stated[:, k], patient) for k in range(classes)]
        self._confident = _Ranking(confidence, labels == predictions, patient)
        logits = np.log(clipped / (1 - clipped))
        self._regressions = [_Regression(logits[:, k], true[:, k], patient) for k in range(classes)]

    @property
    def confusion(self) -> np.ndarray:
        """``[true, predicted]``."""
        return self.sums[:, : self._classes**2].sum(0).reshape(self._classes, self._classes)

    def statistics(self, counts: np.ndarray, *, curves: bool = True, regress: bool = True) -> Statistics:
        """The metrics of samples of patients, int ``[samples, patients]``; with or without those that take long."""
        classes, sums = self._classes, counts @ self.sums
        confusion, brier, log_loss, alone = np.split(sums, np.cumsum([classes**2, classes, classes]), -1)
        overall, per_class = count_statistics(confusion.reshape(-1, classes, classes))
        images = confusion.sum(-1)
        overall |= zip(("brier", "log_loss", "confidence"), (alone / images[:, None]).T, strict=True)
        new = {"brier": brier / images[:, None], "log_loss": log_loss / images[:, None]}
        if curves:
            turned = np.ascontiguousarray(counts.T)
            drawn = [ranking.draw(turned) for ranking in self._classed]
            new |= {name: np.stack([getattr(one, name)() for one in drawn], -1) for name in ("auroc", "auprc")}
            new["ece"] = np.stack([ranking.ece(turned) for ranking in self._classed], -1)
            new["aurc"] = np.stack([ranking.draw(turned).aurc() for ranking in self._stated], -1)
            overall |= {"ece": self._confident.ece(turned), "aurc": self._confident.draw(turned).aurc()}
        if regress:
            fits = np.stack([regression.fit(counts) for regression in self._regressions], -1)
            new |= zip(("calibration_intercept", "calibration_slope"), fits, strict=True)
        present = np.where(np.isfinite(per_class["recall"]), 1, np.nan)
        return Statistics(overall, per_class | {name: values * present for name, values in new.items()})


class _Ranking:
    """Images from the greatest score to the least; those with equal scores are one step of every curve."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, patient: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        self._patient, self._positive = patient[order], positive[order].astype(np.int32)[:, None]
        ordered = scores[order]
        ends = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
        self._ends = None if len(ends) == len(ordered) else ends
        self._excess = (ordered - positive[order])[:, None]

    def draw(self, counts: np.ndarray) -> _Drawn:
        """The ranking of samples of patients, int32 ``[patients, samples]``."""
        weights = counts[self._patient]
        images, positive = weights, weights * self._positive
        above = self._sums(images, np.int32), self._sums(positive, np.int32)
        if self._ends is not None:
            images, positive = (np.diff(sums, axis=0, prepend=0) for sums in above)
        return _Drawn(images, positive, *above)

    def ece(self, counts: np.ndarray) -> np.ndarray:
        """Mean over the bins, weighted by their images, of the distance between the mean score and the share of positive
        images. The bins are those of ``sklearn.calibration.calibration_curve(strategy="quantile")``."""
        weights = counts[self._patient]
        above, excess = self._sums(weights, np.int32), self._sums(weights * self._excess, float)
        total = above[-1]
        below = np.arange(1, BINS)[:, None] * (total - 1) // BINS + 1  # images below the upper edge of each bin, at least
        columns = zip(np.ascontiguousarray(above.T), (total - below).T, strict=True)
        steps = np.stack([np.searchsorted(column, wanted, "right") for column, wanted in columns], -1) - 1
        inner = np.where(steps < 0, 0, np.take_along_axis(excess, np.maximum(steps, 0), 0))
        return np.abs(np.diff(inner, axis=0, prepend=excess[-1:], append=0)).sum(0) / total

    def _sums(self, values: np.ndarray, dtype: type) -> np.ndarray:
        """Sums over the images from the first step to each, ``[steps, samples]``."""
        sums = values.cumsum(0, dtype)
        return sums if self._ends is None else sums[self._ends]


class _Drawn(NamedTuple):
    """Samples of a ranking, int32 ``[steps, samples]``: images and positive ones of each step, and from the first to it."""

    images: np.ndarray
    positive: np.ndarray
    images_above: np.ndarray
    positive_above: np.ndarray

    def auroc(self) -> np.ndarray:
        """The share of pairs of a positive and a negative image that are in order, ties half."""
        positive = self.positive_above[-1].astype(float)
        negative = self.images_above[-1] - positive
        twice = (self.images - self.positive) * (2.0 * self.positive_above - self.positive)
        return ratio(twice.sum(0) / 2, positive * negative)

    def auprc(self) -> np.ndarray:
        """Average precision; NaN where all are positive."""
        positive, images = self.positive_above[-1], self.images_above[-1]
        return ratio((self.positive * self._share()).sum(0), positive * (positive < images))

    def aurc(self) -> np.ndarray:
        """Mean over the images of the share of errors, which are not positive, among those ranked as high or higher."""
        return 1 - (self.images * self._share()).sum(0) / self.images_above[-1]

    def _share(self) -> np.ndarray:
        """Of positive images among those from the first step to each."""
        return self.positive_above / np.maximum(self.images_above, 1)


class _Regression:
    """Logistic regression of a class on the logit of its probability, by Newton's method."""

    def __init__(self, logits: np.ndarray, positive: np.ndarray, patient: np.ndarray):
        self._center, self._scale = logits.mean(), logits.std() or 1.0
        self._flat = logits.std() < LEAST_SPREAD
        x = (logits - self._center) / self._scale
        self._patient, self._x, self._positive = patient, x, positive
        self._design = np.column_stack([np.ones_like(x), x, x * x])
        self._start = np.zeros(2)
        self._start = np.nan_to_num(self._solve(np.ones((1, len(x))))[0])

    def fit(self, counts: np.ndarray) -> np.ndarray:
        """Intercept and slope of samples of patients, int ``[samples, patients]``, as float ``[2, samples]``; NaN where
        there is none, since the classes are apart or the probabilities all the same."""
        if self._flat:
            return np.full((2, len(counts)), np.nan)
        intercept, slope = self._solve(counts[:, self._patient].astype(float)).T
        slope = slope / self._scale
        return np.stack([intercept - slope * self._center, slope])

    def _solve(self, weights: np.ndarray) -> np.ndarray:
        """Intercept and slope in ``x``, ``[samples, 2]``."""
        found = np.full((len(weights), 2), np.nan)
        rows, estimate = np.arange(len(weights)), np.tile(self._start, (len(weights), 1))
        for _ in range(NEWTON_STEPS):
            odds = np.exp(-np.clip(estimate[:, :1] + estimate[:, 1:] * self._x, -35, 35))
            expected = 1 / (1 + odds)
            gradient = (weights * (self._positive - expected)) @ self._design[:, :2]
            flat, slope, square = ((weights * expected * (1 - expected)) @ self._design).T
            determinant = flat * square - slope**2
            wanted = square * gradient[:, 0] - slope * gradient[:, 1], flat * gradient[:, 1] - slope * gradient[:, 0]
            with np.errstate(divide="ignore", invalid="ignore"):
                step = np.clip(np.stack(wanted, -1) / determinant[:, None], -MOST_NEWTON, MOST_NEWTON)
            estimate = estimate + step
            done = np.abs(step).max(-1) < 1e-9
            # Where the classes are apart the slope grows without end.
            found[rows[done]] = estimate[done]
            going = ~done & np.isfinite(step).all(-1) & (np.abs(estimate).max(-1) < 1e3)
            rows, estimate, weights = rows[going], estimate[going], weights[going]
            if not len(rows):
                break
        return found
