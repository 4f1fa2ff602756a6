"""How well something is told from something else: AUROC by cross-validation over patients, with intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from covidjax.bootstrap import Interval

FOLDS = 5

LEAST_PATIENTS = 10
"""Patients that a class must have to be told from the others."""

COMPONENTS = 100
"""Most principal components that a logistic regression sees."""

CHOSEN = 100
"""Features that a random forest on places sees: those that go best with a class in training."""

Probe = Literal["linear", "places", "forest"]
"""What learns to tell: a logistic regression on principal components, which sees what many pixels share; a random forest on
the few features that say most, which sees what a small mark changes; or a random forest on all of few features."""


class Auroc(NamedTuple):
    """An area under the ROC curve."""

    value: float
    interval: Interval
    """95 %."""
    bound: float
    """Lower end of an interval that is wide enough for all comparisons of a check together."""


class Told(NamedTuple):
    """How well the classes of some images were told."""

    images: int
    patients: int
    macro: Auroc
    """Mean over the classes, each against the others."""
    per_class: dict[str, Auroc]


def tell(
    features: Sequence[tuple[Probe, np.ndarray]],
    labels: np.ndarray,
    names: Sequence[str],
    patients: np.ndarray,
    comparisons: int = 1,
) -> list[Told]:
    """How well each of some probes tells labels from features that it was not trained on, patients kept apart.

    Args:
      features: for each probe its kind and float ``[N, F]``.
      labels: int ``[N]``, indices of ``names``; at least two are there, each of ``LEAST_PATIENTS`` patients or more.
      names: of the classes.
      patients: int ``[N]``.
      comparisons: AUROCs of the check, which share its error of 5 %.
    """
    present, index = np.unique(labels, return_inverse=True)
    of_labels = [names[int(label)] for label in present]
    results = []
    for kind, values in features:
        scores = cross_validate(kind, values, index, patients)
        results.append(_told(scores, index, of_labels, patients, comparisons))
    return results


def enough(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Which images are of a class of enough patients, bool ``[N]``; none where there are not two such classes."""
    counts = {label: len(np.unique(patients[labels == label])) for label in np.unique(labels)}
    usable = [label for label, count in counts.items() if count >= LEAST_PATIENTS]
    return np.isin(labels, usable) if len(usable) > 1 else np.zeros(len(labels), bool)


def _told(scores: np.ndarray, labels: np.ndarray, names: Sequence[str], patients: np.ndarray, comparisons: int) -> Told:
    from scipy.stats import norm

    wide = float(norm.isf(0.05 / (2 * max(comparisons, 1))))
    persons = [len(np.unique(patients[labels == label])) for label in range(len(names))]
    few, others = min(persons), sum(persons) - min(persons)
    chance = float(np.sqrt((few + others + 1) / (12 * few * others)))  # Mann and Whitney 1947, of patients
    values, influences = [], []
    for label in range(len(names)):
        value, influence = _auroc(scores[:, label], labels == label)
        values.append(value)
        influences.append(influence)

    def auroc(value: float, influence: np.ndarray) -> Auroc:
        sums = np.bincount(patients, influence)[np.unique(patients)]
        deviation = float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)))
        low, high = value - 1.96 * deviation, value + 1.96 * deviation
        # Of few patients a high AUROC by chance has a small deviation; that of chance itself is the larger one.
        deviation = max(deviation, chance)
        return Auroc(value, (max(low, 0.0), min(high, 1.0)), max(value - wide * deviation, 0.0))

    per_class = {name: auroc(*item) for name, *item in zip(names, values, influences, strict=True)}
    macro = auroc(float(np.mean(values)), np.mean(influences, 0))
    return Told(len(labels), len(np.unique(patients)), macro, per_class)


def _auroc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The AUROC and each image's influence on it, whose sums over patients have its variance (Obuchowski 1997: images of a
    patient are not independent)."""
    from scipy.stats import rankdata

    ranks, inside = rankdata(scores), np.zeros(len(scores))
    inside[positive], inside[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    positives, negatives = int(positive.sum()), int((~positive).sum())
    # The share of the other kind that an image is on the right side of.
    share = np.where(positive, (ranks - inside) / negatives, 1 - (ranks - inside) / positives)
    value = float(share[positive].mean())
    return value, (share - value) / np.where(positive, positives, negatives)


def cross_validate(kind: Probe, features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Probabilities of the classes by probes that were trained on other patients, float ``[N, classes]``.

    Args:
      kind: of the probe.
      features: float ``[N, F]``.
      labels: int ``[N]``, from 0, without a gap.
      patients: int ``[N]``.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.tile(np.bincount(labels) / len(labels), (len(labels), 1))
    deviation = features.std(0)
    features = (features[:, deviation > 1e-6] - features[:, deviation > 1e-6].mean(0)) / deviation[deviation > 1e-6]
    if not features.shape[1]:
        return scores  # all are alike
    features = _components(features) if kind == "linear" else features
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a probe that has not converged: it is no worse than its scores say
        for training, held_out in splitter.split(features, labels, patients):
            chosen = _chosen(features, labels, training) if kind == "places" else slice(None)
            probe = _probe(kind).fit(features[training][:, chosen], labels[training])
            scores[held_out] = 0
            scores[np.ix_(held_out, probe.classes_)] = probe.predict_proba(features[held_out][:, chosen])
    return scores


def _probe(kind: Probe) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    if kind == "linear":
        return LogisticRegression(C=0.1, max_iter=200)
    return RandomForestClassifier(100, min_samples_leaf=5, class_weight="balanced", random_state=0, n_jobs=1)


def _chosen(features: np.ndarray, labels: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The features that are correlated most with being of some class in training, indices ``[CHOSEN]`` or fewer."""
    values, classes = features[training].astype(np.float32), np.eye(labels.max() + 1, dtype=np.float32)[labels[training]]
    values, classes = values - values.mean(0), classes - classes.mean(0)
    spread = np.outer(np.linalg.norm(classes, axis=0), np.linalg.norm(values, axis=0))
    correlations = abs(classes.T @ values) / np.maximum(spread, 1e-6)
    return np.argsort(-correlations.max(0), kind="stable")[:CHOSEN]


def _components(features: np.ndarray) -> np.ndarray:
    """Standardized principal components, at most a fifth as many as images; float32 ``[N, K]``."""
    values = features.astype(np.float32)
    count = max(1, min(COMPONENTS, len(values) // 5, values.shape[1]))
    if values.shape[1] <= len(values):
        powers, vectors = np.linalg.eigh(values.T @ values)
        components = values @ vectors[:, ::-1][:, :count]
    else:
        powers, vectors = np.linalg.eigh(values @ values.T)
        components = vectors[:, ::-1][:, :count] * np.sqrt(np.maximum(powers[::-1][:count], 0))
    deviation = components.std(0)
    return components[:, deviation > 1e-6] / deviation[deviation > 1e-6]
