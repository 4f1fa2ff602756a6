"""Thresholds of a class's probability that reach a sensitivity or a specificity, chosen on the validation fold alone.

Section ``operating_points`` of ``trust.json``, a list with at most one entry a class::

    {"class": NAME, "metric": "sensitivity" or "specificity", "target": 0.95,
     "threshold": T,              an image is positive where the calibrated p_NAME is at least this
     "few": bool,                 too few validation images to tell the target from 1
     "by_holdout": {NAME: T},     of a cross-validation the threshold of each fold's or source's own networks
     "validation": {"images", "patients", "positives", "sensitivity", "specificity", "ppv", "npv"}}

where each figure is ``{"value", "interval"}``, the 95 % percentile interval by drawing patients with replacement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from covidjax.bootstrap import percentile_interval, ratio, resampled_patients
from covidjax.errors import UsageError
from covidjax.runs import trust_file
from covidjax.trust.predictions import PredictionTable

METRICS = ("sensitivity", "specificity")
EXAMPLE = "COVID-19:sensitivity=0.95"


class Target(NamedTuple):
    """What an operating point is to reach."""

    name: str
    """The class."""
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}:{self.metric}={self.value:g}"


def parse(texts: Sequence[str], classes: Sequence[str]) -> list[Target]:
    """Targets from texts such as ``COVID-19:sensitivity=0.95``.

    Raises:
      UsageError: another form, no such class or metric, a share that is none, two targets of a class.
    """
    targets: dict[str, Target] = {}
    by_name = {name.casefold(): name for name in classes}
    for text in texts:
        wanted, colon, rest = text.rpartition(":")
        metric, equals, share = rest.partition("=")
        if not (colon and equals):
            raise UsageError(f"An operating point is written as {EXAMPLE}, not {text!r}.")
        name = wanted if wanted in classes else by_name.get(wanted.strip().casefold())
        if name is None:
            raise UsageError(f"{text}: there is no class {wanted}; choose one of {', '.join(classes)}.")
        if metric.strip().lower() not in METRICS:
            raise UsageError(f"{text}: an operating point reaches a sensitivity or a specificity, not {metric!r}.")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise UsageError(f"{text}: {share!r} is no share above 0 and up to 1, such as 0.95.")
        if name in targets:
            raise UsageError(f"{text}: {name} has an operating point already, {targets[name]}; give one for each class.")
        targets[name] = Target(name, metric.strip().lower(), value)
    return list(targets.values())


def check_labels(targets: Sequence[Target], labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raises UsageError where validation images, of these classes by number, do not tell a target's class from others."""
    for target in targets:
        positive = labels == list(classes).index(target.name)
        for chosen, what in ((positive, f"image of {target.name}"), (~positive, f"image that is not {target.name}")):
            if not chosen.any():
                remedy = "choose another --val-fold or another class"
                raise UsageError(f"{target}: the validation fold has no {what}; {remedy}.")


def threshold(table: PredictionTable, target: Target) -> float:
    """The threshold that reaches a target on these images, of all such the one that is best for the other metric; halfway
    to the next probability, so that rounding moves no image across it.

    Raises:
      UsageError: see ``check_labels``.
    """
    check_labels([target], table.labels, table.classes)
    column = table.classes.index(target.name)
    probabilities, positive = np.asarray(table.probabilities[:, column], float), table.labels == column
    own = np.sort(probabilities[positive if target.metric == "sensitivity" else ~positive])
    reached = max(int(np.ceil(target.value * len(own) - 1e-9)), 1)
    every = np.concatenate([[0.0], np.unique(probabilities), [1.0]])
    if target.metric == "sensitivity":
        least = own[len(own) - reached]  # must still be positive
        return float((every[every < least].max(initial=0.0) + least) / 2)
    most = own[reached - 1]  # must still be negative
    above = every[every > most]
    return float((most + above.min()) / 2) if len(above) else float(np.nextafter(most, 2))


def section(
    targets: Sequence[Target], validation: Mapping[str, PredictionTable], pooled: PredictionTable
) -> list[dict[str, Any]]:
    """The section of ``trust.json``.

    Args:
      targets: what is to be reached.
      validation: calibrated predictions of the validation fold, by what the networks hold out; one entry for a single run.
      pooled: those of all of them, calibrated as ``score`` does.

    Raises:
      UsageError: see ``check_labels``.
    """
    points = []
    for target in targets:
        column = pooled.classes.index(target.name)
        limit = threshold(pooled, target)
        of_class = pooled.labels == column
        count = int((of_class if target.metric == "sensitivity" else ~of_class).sum())
        by_holdout = {}
        for name, table in validation.items():
            own = table.labels == column
            # The fold of a network may lack the class that its network's sources lack.
            by_holdout[name] = threshold(table, target) if own.any() and not own.all() else None
        points.append(
            {
                "class": target.name,
                "metric": target.metric,
                "target": target.value,
                "threshold": limit,
                "few": count * (1 - target.value) < 1 - 1e-9,
                "by_holdout": by_holdout if len(validation) > 1 else {},
                "validation": {
                    "images": len(pooled),
                    "patients": len(set(pooled.patients)),
                    "positives": int(of_class.sum()),
                    **figures(pooled, target.name, np.full(len(pooled), limit)),
                },
            }
        )
    return points


def figures(table: PredictionTable, name: str, thresholds: np.ndarray) -> dict[str, dict[str, Any]]:
    """Sensitivity, specificity, PPV and NPV of a threshold for each image, ``[N]``, with intervals over patients; a value
    that is not defined is None. Images whose threshold is NaN are left out."""
    rows = np.isfinite(thresholds)
    table, thresholds = table.select(rows), thresholds[rows]
    column = table.classes.index(name)
    positive, called = table.labels == column, table.probabilities[:, column] >= thresholds
    names, patient = np.unique(np.asarray(table.patients), return_inverse=True)
    cells = np.zeros((len(names), 4))
    np.add.at(cells, (patient, 2 * positive + called), 1)  # true and false negatives and positives: 00, 01, 10, 11
    point = _rates(cells.sum(0)[None])
    samples = [_rates(counts @ cells) for counts in resampled_patients(len(names), len(names))]
    found = {}
    for metric, values in point.items():
        value = float(values[0]) if np.isfinite(values[0]) else None
        draws = np.concatenate([sample[metric] for sample in samples]) if samples else None
        interval = percentile_interval(draws) if value is not None and draws is not None else None
        found[metric] = {"value": value, "interval": interval}
    return found


def _rates(cells: np.ndarray) -> dict[str, np.ndarray]:
    """Of counts ``[samples, 4]``: true negatives, false positives, false negatives, true positives."""
    true_negative, false_positive, false_negative, true_positive = cells.T
    return {
        "sensitivity": ratio(true_positive, true_positive + false_negative),
        "specificity": ratio(true_negative, true_negative + false_positive),
        "ppv": ratio(true_positive, true_positive + false_positive),
        "npv": ratio(true_negative, true_negative + false_negative),
    }


def applied(
    points: Sequence[Mapping[str, Any]], table: PredictionTable, holdouts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What operating points amount to on some images: each with ``figures``.

    Args:
      points: of a section.
      table: calibrated predictions.
      holdouts: what held out each image, ``[N]``, whose networks' own thresholds then count.
    """
    found = []
    for point in points:
        limits = np.full(len(table), point["threshold"], float)
        if holdouts and point["by_holdout"]:
            own = {name: np.nan if limit is None else limit for name, limit in point["by_holdout"].items()}
            limits = np.asarray([own.get(name, np.nan) for name in holdouts])
        about = {name: point[name] for name in ("class", "metric", "target", "threshold")}
        found.append({**about, "figures": figures(table, point["class"], limits)})
    return found


@trust_file.reading("operating_points")
def thresholds_of(trust: Mapping[str, Any]) -> dict[str, float]:
    """The threshold of each class that has an operating point.

    Raises:
      UserError: a damaged section.
    """
    return {point["class"]: float(point["threshold"]) for point in trust.get("operating_points") or ()}


@trust_file.reading("operating_points")
def sentence(trust: Mapping[str, Any]) -> str:
    """What the columns of ``score`` mean, for the reader; empty where there are none."""
    points = trust.get("operating_points") or ()
    parts = (
        f"positive_{point['class']} is true from p_{point['class']} = {point['threshold']:.4f} on "
        f"({point['metric']} {point['target']:g} on {point['validation']['images']} validation images)"
        for point in points
    )
    return "; ".join(parts) + "." * bool(points)
