"""Intervals by drawing patients with replacement, each with all their images (Efron and Tibshirani 1993, "An Introduction
to the Bootstrap", chapter 13)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Interval = tuple[float, float]
"""Lower and upper end."""

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

SAMPLED_AT_ONCE = 200_000
"""Images of the bootstrap samples that are computed together."""


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Elementwise, NaN where the denominator is 0."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def resampled_patients(patients: int, images: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each patient was drawn, int32 ``[samples, patients]``, in parts of which each fits the processor's cache
    where it is spread over so many images; none where there are fewer than two patients. Always the same draws."""
    if patients < 2:
        return
    random, size = np.random.default_rng(0), max(1, SAMPLED_AT_ONCE // max(images, patients))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = random.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.int32)


def percentile_interval(values: np.ndarray) -> Interval | None:
    """95 % percentile interval of a metric's bootstrap samples, ``[samples]``; None where most are not defined."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) <= len(values):
        return None
    low, high = np.percentile(defined, [2.5, 97.5]).tolist()
    return low, high
