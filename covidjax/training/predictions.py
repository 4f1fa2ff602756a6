"""What networks predict of held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from covidjax import device
from covidjax.data import loader
from covidjax.models.network import Weights

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
