"""What is learned: how images and targets become a loss and a score, and which of two results is the better one.

Steps and loops know a task by the methods of ``Task`` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax import Array

from covidjax import metrics
from covidjax.config import Config
from covidjax.errors import UsageError
from covidjax.inference.forward import data_parallel, make_predict, normalize
from covidjax.models import Network, Weights
from covidjax.models.lung_unet import MULTIPLE
from covidjax.training.augment import augment, augment_with_masks
from covidjax.training.predictions import EvalStep, Predictions

if TYPE_CHECKING:
    from covidjax.data.dataset import Dataset
    from covidjax.data.loader import Batch


class Losses(NamedTuple):
    """Of every example of a batch, float32 ``[B]``."""

    loss: Array
    importance: Array
    """The batch's loss is the mean weighted by this."""
    score: Array
    """What the epoch's training score is the mean of."""


class Task(Protocol):
    """What is learned."""

    score: str
    """What the score is called in the log."""

    def inputs(self, key: Array, images: Array, targets: Any, axis: str | None) -> tuple[Array, Any]:
        """Augmented and normalised images float32 ``[B, S, S, C]``, and their targets, of uint8 images ``[B, S, S, 1]``
        and ``pipeline.Batch.targets``; with an ``axis`` of a mesh, of this device's share."""
        ...

    def losses(self, logits: Array, targets: Any, class_weights: Array) -> Losses:
        """Of logits and targets as ``inputs`` gave them, with a weight for each class, float32 ``[classes]``."""
        ...

    def examine(self, network: Network, *, once: bool = False) -> EvalStep:
        """What is computed of held-out examples; ``once``: of one view of each, whatever the settings say, which is enough
        to watch training by."""
        ...

    def summary(self, found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """``loss`` and score of what ``examine`` found, ``[N, K]``, of examples with labels ``[N]``."""
        ...

    def merit(self, found: dict[str, float]) -> tuple[float, float]:
        """What the best checkpoint has most of: the score, and of two equal ones the smaller loss."""
        return found[self.score], -found["loss"]

    def measure(self, found: Predictions, classes: Sequence[str]) -> metrics.AnyMetrics:
        """What is reported, with intervals over patients."""
        ...


def make_task(config: Config, dataset: Dataset) -> Task:
    """The task of a network on a dataset.

    Raises:
      UsageError: a classifier and a dataset of masks, or the other way round, or images of a size that does not go.
    """
    if dataset.masks == (config.model.name == "lung-unet"):
        size = dataset.preprocess.image_size
        if dataset.masks and size % MULTIPLE:
            raise UsageError(
                f"{dataset.path} has images of {size} pixels, and lung-unet takes a multiple of {MULTIPLE}; prepare them "
                f"again with --image-size {max(size // MULTIPLE, 1) * MULTIPLE}."
            )
        return Segmentation(config) if dataset.masks else Classification(config)
    if dataset.masks:
        raise UsageError(f"{dataset.path} has lung masks and no classes; train --model lung-unet on it, or name another.")
    raise UsageError(f"{dataset.path} has no lung masks, which lung-unet learns; make such a dataset with prepare --masks.")


class Classification(Task):
    """One class for each film; the targets are labels, int32 ``[B]``."""

    score = "accuracy"

    def __init__(self, config: Config):
        self._augment, self._model = config.augment, config.model
        self._smoothing = config.train.label_smoothing

    def inputs(self, key: Array, images: Array, targets: Array, axis: str | None) -> tuple[Array, Array]:
        return normalize(augment(key, images, self._augment, axis), self._model.channels), targets

    def losses(self, logits: Array, targets: Array, class_weights: Array) -> Losses:
        """Cross-entropy of logits ``[B, classes]`` with smoothed labels, weighted by class; score 1 where right."""
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self._smoothing)
        right = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        return Losses(optax.softmax_cross_entropy(logits, smooth), class_weights[targets], right)

    def examine(self, network: Network, *, once: bool = False) -> EvalStep:
        """Logits ``[B, classes]``; of several networks' weights the logarithms of their mean probabilities."""
        predict = make_predict(network, dataclasses.replace(self._model, views=1) if once else self._model)
        return lambda weights, batch: predict(weights, batch.images)

    def summary(self, found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean cross-entropy and accuracy."""
        log_probabilities = scipy.special.log_softmax(found, -1)
        loss = -log_probabilities[np.arange(len(labels)), labels].mean()
        return {"loss": float(loss), "accuracy": float((found.argmax(-1) == labels).mean())}

    def measure(self, found: Predictions, classes: Sequence[str]) -> metrics.Metrics:
        return metrics.classification_metrics(found.labels, found.found.argmax(-1), classes, found.patients)


class Segmentation(Task):
    """Lung masks; the targets are the kinds of mask, int32 ``[B]``, and the masks, uint8 ``[B, S, S, 1]`` of 0 and 1.

    Each film has a mask of one kind, and the loss is that of the output for this kind alone: the sum of the mean binary
    cross-entropy of the film's pixels and of one minus the soft Dice coefficient of the film (Milletari, Navab, Ahmadi:
    "V-Net", 3DV 2016, section 3, with sums in place of squares in the denominator).
    """

    score = "dice"

    def __init__(self, config: Config):
        self._augment, self._channels = config.augment, config.model.channels

    def inputs(self, key: Array, images: Array, targets: tuple[Array, Array], axis: str | None) -> tuple[Array, Any]:
        kinds, masks = targets
        images, masks = augment_with_masks(key, images, masks, self._augment, axis)
        return normalize(images, self._channels), (kinds, masks)

    def losses(self, logits: Array, targets: tuple[Array, Array], class_weights: Array) -> Losses:
        kinds, masks = targets
        loss, dice, _ = _overlap(logits, kinds, masks)
        return Losses(loss, class_weights[kinds], dice)

    def examine(self, network: Network, *, once: bool = False) -> EvalStep:
        """Loss, Dice and IoU of each film, ``[B, 3]``."""

        def forward(weights: Weights, images: Array, kinds: Array, masks: Array) -> Array:
            logits, *_ = network.apply(weights, normalize(images, self._channels))
            return jnp.stack(_overlap(logits, kinds, masks.astype(jnp.float32)), -1)

        call = data_parallel(forward, 3)

        def examine(weights: Weights | list[Weights], batch: Batch) -> Array:
            assert not isinstance(weights, list), "there are no ensembles of segmenters"
            return call(weights, batch.images, *batch.targets)

        return examine

    def summary(self, found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean loss and mean Dice over the films."""
        loss, dice, _ = found.mean(0, dtype=float).tolist()
        return {"loss": loss, "dice": dice}

    def measure(self, found: Predictions, classes: Sequence[str]) -> metrics.MaskMetrics:
        _, dice, iou = found.found.astype(float).T
        return metrics.mask_metrics(found.labels, dice, iou, classes, found.patients)


def _overlap(logits: Array, kinds: Array, masks: Array) -> tuple[Array, Array, Array]:
    """Loss, Dice and IoU of each film, ``[B]``: of logits ``[B, S, S, kinds]`` that for the film's own kind ``[B]``, with
    masks float32 ``[B, S, S, 1]``. An empty mask found empty has Dice and IoU 1."""
    own = jnp.take_along_axis(logits, kinds[:, None, None, None], -1)
    axes = (1, 2, 3)
    entropy = optax.sigmoid_binary_cross_entropy(own, masks).mean(axes)
    soft, area = jax.nn.sigmoid(own), masks.sum(axes)
    loss = entropy + 1 - (2 * (soft * masks).sum(axes) + 1) / (soft.sum(axes) + area + 1)
    hard = (own > 0).astype(jnp.float32)
    both, total = (hard * masks).sum(axes), hard.sum(axes) + area
    dice = jnp.where(total > 0, 2 * both / jnp.maximum(total, 1), 1.0)
    return loss, dice, dice / (2 - dice)
