"""What networks lose at places that they were not trained on: their metrics there beside those at their own places."""

from __future__ import annotations

from typing import Any

import numpy as np

from covidjax.bootstrap import percentile_interval, resampled_patients
from covidjax.trust.metrics import weighted_statistics
from covidjax.trust.predictions import PredictionTable, Tables

METRICS = ("accuracy", "f1", "auroc", "ece")
"""F1 and AUROC are means over the classes for which they are defined at both places."""

RESAMPLES, MOST_IMAGES = 1000, 10**7
"""Bootstrap samples of an interval, fewer (at least 200) where all of them together would have more images than that."""


def generalisation_gap(left_out: Tables, in_source: Tables) -> dict[str, Any]:
    """Metrics on left-out sources beside those of the same networks on unseen patients of their own sources.

    The interval is the 95 % percentile interval of the difference, by drawing patients with replacement, each with all
    their images and in all networks' predictions alike.

    Args:
      left_out: predictions of each source by a network that was trained without it.
      in_source: by the same names, the network's predictions of held-out images of the other sources; a source without any
        is left out.

    Returns:
      ``{"sources": {SOURCE: {METRIC: {"left_out", "in_source", "gap", "interval"}}}, "mean": {METRIC: …}}``, where ``gap``
      is in-source minus left-out, None where a metric is not defined, and ``mean`` is over the sources for which it is.
    """
    pairs = {name: (left_out[name], in_source[name]) for name in left_out if name in in_source}
    if not pairs:
        return {"sources": {}, "mean": {}}
    patients = {patient for pair in pairs.values() for table in pair for patient in table.patients}
    number = {patient: index for index, patient in enumerate(sorted(patients))}
    images = sum(len(table) for pair in pairs.values() for table in pair)
    point = _pairs(pairs, number, np.ones((1, len(number)), np.int32))
    resamples = max(200, min(RESAMPLES, MOST_IMAGES // images))
    parts = [_pairs(pairs, number, counts) for counts in resampled_patients(len(number), images, resamples)]
    samples = np.concatenate(parts, -1) if parts else None  # [sources, places, metrics, samples]
    sources = {
        name: _described(point[index], None if samples is None else samples[index]) for index, name in enumerate(pairs)
    }
    mean = _described(_mean(point), None if samples is None else _mean(samples))
    return {"sources": sources, "mean": mean}


def _pairs(
    pairs: dict[str, tuple[PredictionTable, PredictionTable]], number: dict[str, int], counts: np.ndarray
) -> np.ndarray:
    """Metrics of samples of patients, float ``[sources, places, metrics, samples]``, left out first; NaN where one of the
    two is not defined."""
    found = []
    for pair in pairs.values():
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample may have none of the patients
            away, home = (
                weighted_statistics(table, np.asarray([number[patient] for patient in table.patients]), counts)
                for table in pair
            )
        values = []
        for metric in METRICS:
            if metric in away.overall:
                both = np.stack([away.overall[metric], home.overall[metric]])
            else:
                classes = np.stack([away.per_class[metric], home.per_class[metric]])
                defined = np.isfinite(classes).all(0)
                count = defined.sum(-1)
                both = np.where(count > 0, np.where(defined, classes, 0).sum(-1) / np.maximum(count, 1), np.nan)
            values.append(np.where(np.isfinite(both).all(0), both, np.nan))
        found.append(np.stack(values, 1))
    return np.stack(found)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the sources for which a metric is defined, of ``[sources, places, metrics, samples]``."""
    defined = np.isfinite(values)
    count = defined.sum(0)
    return np.where(count > 0, np.where(defined, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _described(point: np.ndarray, samples: np.ndarray | None) -> dict[str, Any]:
    """Of ``[places, metrics, samples]`` each."""
    described = {}
    for index, metric in enumerate(METRICS):
        away, home = point[:, index, 0].tolist()
        if not np.isfinite(away):
            described[metric] = {"left_out": None, "in_source": None, "gap": None, "interval": None}
            continue
        interval = None if samples is None else percentile_interval(samples[1, index] - samples[0, index])
        described[metric] = {"left_out": away, "in_source": home, "gap": home - away, "interval": interval}
    return described
