"""What networks predict of held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jax import Array

from covidjax import device
from covidjax.data import loader
from covidjax.models.network import Weights
from covidjax.trust.predictions import PredictionTable

EvalStep = Callable[[Weights | list[Weights], loader.Batch], Array]
"""Weights and a batch → outputs of each example, float32 ``[B, K]``; jitted."""


class Predictions(NamedTuple):
    """Outputs for some held-out examples."""

    outputs: np.ndarray
    """float32 ``[N, K]``, as the task's ``eval_step`` gives them: the logits of a classifier; loss, Dice and IoU of
    masks."""
    labels: np.ndarray
    """int32 ``[N]``."""
    patients: list[str]
    """Keys of the patients, ``[N]``."""
    sources: list[str] = []  # noqa: RUF012  # nobody changes it
    """The collection that each image is of, ``[N]``."""
    paths: list[str] = []  # noqa: RUF012
    """Their names in the dataset, ``[N]``."""

    def calibrated(self, temperature: float) -> Predictions:
        """Logits, or logarithms of probabilities, over a temperature, see ``trust.calibration``."""
        return self if temperature == 1 else self._replace(outputs=self.outputs.astype(float) / temperature)

    def table(self, classes: Sequence[str]) -> PredictionTable:
        """The probabilities of a classifier."""
        probabilities = scipy.special.softmax(self.outputs.astype(float), -1)
        nameless = [""] * len(self.labels)
        texts = self.paths or nameless, self.patients, self.sources or nameless
        return PredictionTable(tuple(classes), self.labels, probabilities, *texts)


class Features(NamedTuple):
    """Pooled features of some examples, see ``models.Network.pooled_features``."""

    rows: np.ndarray
    """int ``[N]``, of the dataset."""
    features: np.ndarray
    """float32 ``[N, F]``."""


def predict(
    eval_step: EvalStep, weights: Weights | list[Weights], batches: Iterable[loader.Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs, float32 ``[N, K]``, and labels int32 ``[N]`` of every real example; padding is dropped."""
    pending, labels = [], []
    for batch in batches:
        weights = device.replicate(weights, device.mesh(len(batch.images)))  # copied once: batches are of one size
        pending.append((eval_step(weights, batch), batch.count))
        labels.append(batch.labels[: batch.count])
    return np.concatenate([np.asarray(outputs)[:count] for outputs, count in pending]), np.concatenate(labels)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of different examples, one after another."""
    outputs, labels = (np.concatenate(arrays) for arrays in zip(*(part[:2] for part in parts), strict=True))
    origins = ([text for part in parts for text in part[field]] for field in range(2, 5))
    return Predictions(outputs, labels, *origins)
