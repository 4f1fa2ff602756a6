"""What is learned: how images and targets become a loss and a metric, and which of two results is the better one.

Steps and loops know a task by the methods that ``Classification`` and ``Segmentation`` share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax import Array

from covidjax import metrics
from covidjax.config import Config
from covidjax.errors import UsageError
from covidjax.inference.forward import Predict, data_parallel, make_predict, normalize
from covidjax.models.lung_unet import MULTIPLE
from covidjax.models.network import Network, Weights
from covidjax.training.augment import augment, augment_with_masks
from covidjax.training.predictions import EvalStep, Predictions
from covidjax.training.step import Losses
from covidjax.trust.metrics import measure

if TYPE_CHECKING:
    from covidjax.data.dataset import Dataset
    from covidjax.data.loader import Batch

WITHOUT_PROBE = ("darkcovidnet", "cnn13", "lung-unet")
"""Networks whose logits are not a dense layer of their pooled features."""


class Task:
    """What is learned; ``Classification`` says what each of a task's methods does."""

    metric: str
    """The name in the log of what is told beside the loss."""

    def selection_key(self, summary: dict[str, float]) -> tuple[float, float]:
        """What the best checkpoint has most of: the metric, and of two equal ones the smaller loss."""
        return summary[self.metric], -summary["loss"]


def make_task(config: Config, dataset: Dataset) -> Classification | Segmentation:
    """The task of a network on a dataset.

    Raises:
      UsageError: a classifier and a dataset of masks, or the other way round, images of a size that does not go, or a
        network that cannot be probed.
    """
    if config.train.probe and config.model.name in WITHOUT_PROBE:
        problem = f"{config.model.name} does not end with one dense layer on pooled features, which a probe fits"
        raise UsageError(f"{problem}; leave train.probe out, or choose a backbone such as efficientnet-lite0.")
    if dataset.masks == config.model.is_segmenter:
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
    """One class for each image; the targets are labels, int32 ``[B]``."""

    metric = "accuracy"

    def __init__(self, config: Config):
        self._augment, self._model = config.augment, config.model
        self._smoothing = config.train.label_smoothing
        self._predict: dict[tuple[Network, int], Predict] = {}

    def inputs(self, key: Array, images: Array, targets: Array, axis: str | None) -> tuple[Array, Array]:
        """Augmented and normalized images float32 ``[B, S, S, C]``, and their targets, of uint8 images ``[B, S, S, 1]``
        and ``loader.Batch.targets``; with an ``axis`` of a mesh, of this device's share."""
        return normalize(augment(key, images, self._augment, axis), self._model), targets

    def losses(self, logits: Array, targets: Array, class_weights: Array) -> Losses:
        """Of logits and targets as ``inputs`` gave them, with a weight for each class, float32 ``[classes]``: cross-entropy
        with smoothed labels, and 1 where right."""
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self._smoothing)
        right = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        return Losses(optax.softmax_cross_entropy(logits, smooth), class_weights[targets], right)

    def eval_step(self, network: Network, *, tta: bool = True) -> EvalStep:
        """What is computed of held-out examples: logits ``[B, classes]``, of several networks' weights the logarithms of
        their mean probabilities. Without ``tta`` of one view of each, whatever the settings say, which is enough to watch
        training by."""
        predict = self.predict(network, tta=tta)
        return lambda weights, batch: predict(weights, batch.images)

    def predict(self, network: Network, *, tta: bool = True) -> Predict:
        """The forward pass of ``eval_step``, which gives features too; compiled once for both kinds where they are the
        same."""
        model = self._model if tta else dataclasses.replace(self._model, tta=1)
        return self._predict.setdefault((network, model.tta), make_predict(network, model))

    def summarize(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """``loss`` and metric of outputs ``[N, K]``, as ``eval_step`` gives them, of examples with labels ``[N]``."""
        log_probabilities = scipy.special.log_softmax(outputs, -1)
        loss = -log_probabilities[np.arange(len(labels)), labels].mean()
        return {"loss": float(loss), "accuracy": float((outputs.argmax(-1) == labels).mean())}

    def measure(
        self, predictions: Predictions, classes: Sequence[str], prevalences: Sequence[float] = ()
    ) -> metrics.Metrics:
        """What is reported, with intervals over patients; of classes also predictive values at prevalences."""
        return measure(predictions.table(classes), prevalences)


class Segmentation(Task):
    """Lung masks; the targets are the kinds of mask, int32 ``[B]``, and the masks, uint8 ``[B, S, S, 1]`` of 0 and 1.

    Each image has a mask of one kind, and the loss is that of the output for this kind alone: the sum of the mean binary
    cross-entropy of the image's pixels and of one minus the soft Dice coefficient of the image (Milletari, Navab, Ahmadi:
    "V-Net", 3DV 2016, section 3, with sums in place of squares in the denominator).
    """

    metric = "dice"

    def __init__(self, config: Config):
        self._augment, self._model = config.augment, config.model

    def inputs(self, key: Array, images: Array, targets: tuple[Array, Array], axis: str | None) -> tuple[Array, Any]:
        kinds, masks = targets
        images, masks = augment_with_masks(key, images, masks, self._augment, axis)
        return normalize(images, self._model), (kinds, masks)

    def losses(self, logits: Array, targets: tuple[Array, Array], class_weights: Array) -> Losses:
        kinds, masks = targets
        loss, dice, _ = _overlap(logits, kinds, masks)
        return Losses(loss, class_weights[kinds], dice)

    def eval_step(self, network: Network, *, tta: bool = True) -> EvalStep:
        """Loss, Dice and IoU of each image, ``[B, 3]``."""

        def forward(weights: Weights, images: Array, kinds: Array, masks: Array) -> Array:
            logits, *_ = network.apply(weights, normalize(images, self._model))
            return jnp.stack(_overlap(logits, kinds, masks.astype(jnp.float32)), -1)

        call = data_parallel(forward, 3)

        def step(weights: Weights | list[Weights], batch: Batch) -> Array:
            (network_weights,) = weights if isinstance(weights, list) else [weights]  # there are no ensembles
            return call(network_weights, batch.images, *batch.targets)

        return step

    def summarize(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean loss and mean Dice over the images."""
        loss, dice, _ = outputs.mean(0, dtype=float).tolist()
        return {"loss": loss, "dice": dice}

    def measure(
        self, predictions: Predictions, classes: Sequence[str], prevalences: Sequence[float] = ()
    ) -> metrics.MaskMetrics:
        _, dice, iou = predictions.outputs.astype(float).T
        return metrics.mask_metrics(predictions.labels, dice, iou, classes, predictions.patients)


def _overlap(logits: Array, kinds: Array, masks: Array) -> tuple[Array, Array, Array]:
    """Loss, Dice and IoU of each image, ``[B]``: of logits ``[B, S, S, kinds]`` that for the image's own kind ``[B]``, with
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
