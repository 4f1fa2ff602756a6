"""A linear probe: logistic regression on the features of a backbone, as the layer that the network ends with.

"Linear evaluation" of transfer learning (Kornblith, Shlens, Le: "Do Better ImageNet Models Transfer Better?", CVPR 2019,
section 4.1), with the strength of its regularisation chosen by patients that the fit has not seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from covidjax.errors import UserError

STRENGTHS = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-10, 3))
"""The C, inverse strength of the L2 penalty on standardised features, that is chosen from: 1e-5 to 10, two a decade."""

FALLBACK = 1e-2
"""C where the patients are too few to choose it by."""

FOLDS = 5
"""Of the patients that C is chosen by."""

RISES = 2
"""Steps of C without a smaller loss after which larger ones are not tried: they fit longest, and overfit more still."""

ITERATIONS = 200


class Probe(NamedTuple):
    """The last layer, and how it was come by."""

    kernel: np.ndarray
    """float32 ``[F, classes]``, for features as the network gives them."""
    bias: np.ndarray
    """float32 ``[classes]``."""
    strength: float
    """C."""
    losses: dict[float, float]
    """Mean cross-entropy of patients left out, weighted as the fit is, by C; empty where there were too few patients."""

    def layer(self) -> dict[str, np.ndarray]:
        """As the network's parameters."""
        return {"kernel": self.kernel, "bias": self.bias}

    def facts(self, features_by: str, features_seconds: float, fit_seconds: float) -> dict[str, Any]:
        """For the log, with where the features come from and what they and the fit took."""
        return {
            "C": self.strength,
            "validation_loss": self.losses.get(self.strength),
            "losses": {f"{strength:g}": round(loss, 6) for strength, loss in self.losses.items()},
            "features_by": features_by,
            "features_seconds": round(features_seconds, 3),
            "fit_seconds": round(fit_seconds, 3),
        }


def fit(
    features: np.ndarray, labels: np.ndarray, patients: Sequence[str], weights: np.ndarray, classes: int, *, seed: int
) -> Probe:
    """Fit the last layer to the training images.

    A class without any of them gets the probability that half an image among all would give it.

    Args:
      features: float32 ``[N, F]`` of the training images, and of no other.
      labels: int ``[N]``.
      patients: the patient of each image; those of one patient are left out together.
      weights: of each image, float ``[N]``.
      classes: how many there are.
      seed: of the folds that C is chosen by.

    Raises:
      UserError: images of a single class.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("A probe takes training images of two classes or more; choose other folds, or leave --probe out.")
    # One thread: on matrices this narrow several cost more than they save, seventyfold where the cores have other work.
    with threadpool_limits(1):
        return _fit(features, labels, patients, np.asarray(weights, float) / np.mean(weights), classes, seed)


def _fit(
    features: np.ndarray, labels: np.ndarray, patients: Sequence[str], weights: np.ndarray, classes: int, seed: int
) -> Probe:
    """Of weights with mean 1."""
    mean = np.average(features, axis=0, weights=weights)
    deviation = np.sqrt(np.average(np.square(features - mean), axis=0, weights=weights))
    deviation[deviation < 1e-6] = 1.0  # of a feature that is the same for every image
    x = ((features - mean) / deviation).astype(np.float32)
    losses = _validation_losses(x, labels, patients, weights, classes, seed)
    strength = min(losses, key=losses.__getitem__) if losses else FALLBACK
    kernel, bias = _layer(_regression(strength).fit(x, labels, sample_weight=weights), x, classes)
    kernel = kernel / deviation[:, None]
    return Probe(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32), strength, losses)


def _validation_losses(
    x: np.ndarray, labels: np.ndarray, patients: Sequence[str], weights: np.ndarray, classes: int, seed: int
) -> dict[float, float]:
    """Mean loss of patients that are left out, by C; each fit goes on from that of the C before."""
    groups = np.asarray(patients, object).astype(str)
    fewest = min(len(np.unique(groups[labels == label])) for label in np.unique(labels))
    if fewest < 2:
        return {}
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a class with fewer images than folds
        parts = [pair for pair in folds.split(x, labels, groups) if len(np.unique(labels[pair[0]])) > 1 and len(pair[1])]
    models = [_regression(STRENGTHS[0]) for _ in parts]
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        total = 0.0
        for (inside, outside), model in zip(parts, models, strict=True):
            model.set_params(C=strength).fit(x[inside], labels[inside], sample_weight=weights[inside])
            kernel, bias = _layer(model, x[inside], classes)
            log_probabilities = log_softmax(x[outside] @ kernel + bias, -1)
            total -= float(weights[outside] @ log_probabilities[np.arange(len(outside)), labels[outside]])
        losses[strength] = total / float(sum(weights[outside].sum() for _, outside in parts))
        if len(losses) > RISES and min(losses, key=losses.__getitem__) not in list(losses)[-RISES:]:
            break
    return losses


class _Regression(LogisticRegression):
    """One that stops silently after its iterations: the loss of patients left out tells what it is worth."""

    def fit(self, *args: Any, **options: Any) -> _Regression:
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            super().fit(*args, **options)
        return self


def _regression(strength: float) -> _Regression:
    return _Regression(C=strength, max_iter=ITERATIONS, warm_start=True)


def _layer(model: LogisticRegression, x: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel ``[F, classes]`` and bias ``[classes]`` of a fitted regression, whose softmax is its probabilities."""
    weight, offset = model.coef_.T, model.intercept_
    if weight.shape[1] == 1:  # of two classes it keeps the difference
        weight, offset = np.hstack([-weight / 2, weight / 2]), np.concatenate([-offset / 2, offset / 2])
    kernel, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    kernel[:, model.classes_], bias[model.classes_] = weight, offset
    missing = np.setdiff1d(np.arange(classes), model.classes_)
    if len(missing):
        bias[missing] = logsumexp(x @ weight + offset, axis=-1).mean() + np.log(0.5 / (len(x) + 0.5))
    return kernel, bias


def describe(facts: Mapping[str, Any]) -> str:
    """What the log says of a probe, as a clause."""
    chosen = f"C {facts['C']:g}"
    if facts["validation_loss"] is None:
        chosen += " (too few patients to choose it by)"
    else:
        chosen += f" (cross-entropy {facts['validation_loss']:.3f} of training patients left out)"
    by = {"cache": "from the cache", "memory": "from memory"}.get(facts["features_by"], f"by {facts['features_by']}")
    return f"{chosen}; features {by} in {facts['features_seconds']:.1f} s, fit in {facts['fit_seconds']:.1f} s"
