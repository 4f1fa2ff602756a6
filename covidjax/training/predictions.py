"""What a network says of held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jax import Array

from covidjax.data import loader
from covidjax.models import Weights

EvalStep = Callable[[Weights | list[Weights], loader.Batch], Array]
"""Weights and a batch → what is known of each example, float32 ``[B, K]``; jitted."""


class Predictions(NamedTuple):
    """What became of some held-out films."""

    found: np.ndarray
    """float32 ``[N, K]``, as the task's ``examine`` gives it: the logits of a classifier; loss, Dice and IoU of masks."""
    labels: np.ndarray
    """int32 ``[N]``."""
    patients: list[str]
    """Keys of the patients, ``[N]``."""


def predict(
    examine: EvalStep, weights: Weights | list[Weights], batches: Iterable[loader.Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """What ``examine`` finds, float32 ``[N, K]``, and labels int32 ``[N]`` of every real example; padding is dropped."""
    pending, labels = [], []
    for batch in batches:
        pending.append((examine(weights, batch), batch.count))
        labels.append(batch.labels[: batch.count])
    found = [np.asarray(values)[:count] for values, count in pending]
    return np.concatenate(found), np.concatenate(labels)


def concatenate(each: Sequence[Predictions]) -> Predictions:
    """Different films, one after another."""
    found, labels = (np.concatenate(parts) for parts in ([e.found for e in each], [e.labels for e in each]))
    return Predictions(found, labels, [patient for one in each for patient in one.patients])


def ensemble_mean(each: Sequence[Predictions]) -> Predictions:
    """The same films by several classifiers: the logarithms of their mean probabilities."""
    log_probabilities = scipy.special.log_softmax(np.stack([one.found for one in each]), -1)
    return each[0]._replace(found=scipy.special.logsumexp(log_probabilities, 0) - np.log(len(each)))
