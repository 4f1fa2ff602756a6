"""What is learned: how images and targets become a loss and a score, and which of two results is the better one.

Steps and loops know a task by the four methods of ``Classification`` alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax import Array

from covidjax.augment import augment, normalise
from covidjax.config import Config


class HeldOut(NamedTuple):
    """Loss and accuracy of held-out examples."""

    loss: float
    accuracy: float


class Losses(NamedTuple):
    """Of every example of a batch, float32 ``[B]``."""

    loss: Array
    importance: Array
    """The batch's loss is the mean weighted by this."""
    score: Array
    """What the epoch's training score is the mean of."""


class Classification:
    """One class for each film."""

    score = "accuracy"
    """What the score is called in the log."""

    def __init__(self, config: Config):
        self._augment, self._channels = config.augment, config.model.channels
        self._smoothing = config.train.label_smoothing

    def inputs(self, key: Array, images: Array, targets: Array, axis: str | None) -> tuple[Array, Array]:
        """Augmented and normalised images float32 ``[B, S, S, C]``, and their targets, of uint8 images ``[B, S, S, 1]``
        and int32 labels ``[B]``; with an ``axis`` of a mesh, of this device's share."""
        return normalise(augment(key, images, self._augment, axis), self._channels), targets

    def losses(self, logits: Array, targets: Array, class_weights: Array) -> Losses:
        """Cross-entropy of logits ``[B, classes]`` with smoothed labels, weighted by class; score 1 where right."""
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self._smoothing)
        right = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        return Losses(optax.softmax_cross_entropy(logits, smooth), class_weights[targets], right)

    def summary(self, logits: np.ndarray, targets: np.ndarray) -> HeldOut:
        """Mean cross-entropy and accuracy of held-out examples."""
        log_probabilities = scipy.special.log_softmax(logits, -1)
        right = logits.argmax(-1) == targets
        return HeldOut(-float(log_probabilities[np.arange(len(targets)), targets].mean()), float(right.mean()))

    def merit(self, found: HeldOut) -> tuple[float, ...]:
        """What the best checkpoint has most of: accuracy, and of two equal ones the smaller loss."""
        return found.accuracy, -found.loss
