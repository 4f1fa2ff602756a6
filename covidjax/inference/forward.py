"""The forward pass: from uint8 images to logits and probabilities, with test-time augmentation and ensembles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, P
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from covidjax import device
from covidjax.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from covidjax.models.network import Network, Weights

Predict = Callable[[Weights | list[Weights], Any], Array]
"""Weights and uint8 images ``[B, S, S, 1]`` → float32 logits ``[B, classes]``; jitted. Of several networks' weights the
logits are the logarithms of their mean probabilities."""


def normalize(images: Array, channels: int = 1) -> Array:
    """Pixels from 0 to 255, ``[B, S, S, 1]`` → float32 ``[B, S, S, channels]`` of about zero mean and unit variance."""
    scaled = (images.astype(jnp.float32) / 255 - PIXEL_MEAN) / PIXEL_STD
    return jnp.broadcast_to(scaled, (*images.shape[:3], channels))


def ten_crop(images: Array) -> Array:
    """Each image as it is and shifted towards its four corners by a thirty-second of its side, and the same of its mirror
    image: ``[B, S, S, 1]`` → ``[10 · B, S, S, 1]``, first all images in their first view. What comes from outside repeats
    the nearest edge.

    The ten crops of Krizhevsky et al. 2012, section 4.1, with shifts in their place, so that the size stays.
    """
    side = images.shape[1]
    step = max(side // 32, 1)
    corners = [(y, x) for y in (0, 2 * step) for x in (0, 2 * step)]
    views = []
    for view in (images, images[:, :, ::-1]):
        padded = jnp.pad(view, ((0, 0), (step, step), (step, step), (0, 0)), "edge")
        views += [view, *(padded[:, y : y + side, x : x + side] for y, x in corners)]
    return jnp.concatenate(views)


def make_forward(network: Network, model: ModelConfig) -> Callable[[Weights, Array], Array]:
    """From one network's weights and uint8 images ``[B, S, S, 1]`` to logits ``[B, classes]``, of several views of each
    image their means; of a segmenter to ``[B, S, S, kinds]``. Not jitted."""

    def forward(weights: Weights, images: Array) -> Array:
        views = images if model.tta == 1 else ten_crop(images)
        logits, *_ = network.apply(weights, normalize(views, model.channels))
        return logits if model.tta == 1 else logits.reshape(model.tta, images.shape[0], logits.shape[-1]).mean(0)

    return forward


def ensemble_mean(logits: Sequence[Array] | ArrayLike) -> Array:
    """Logits of several networks, each ``[B, classes]`` → the logarithms of their mean probabilities, ``[B, classes]``."""
    log_probabilities = jax.nn.log_softmax(jnp.asarray(logits))
    return jax.nn.logsumexp(log_probabilities, 0) - jnp.log(len(log_probabilities))


def probabilities(logits: Array, model: ModelConfig) -> Array:
    """Logits → probabilities: of the classes ``[B, classes]``, or of a segmenter, whose last kind of mask is the widest,
    that a pixel belongs to the lungs, ``[B, S, S]``."""
    return jax.nn.sigmoid(logits[..., -1]) if model.is_segmenter else jax.nn.softmax(logits)


def make_predict(network: Network, model: ModelConfig) -> Predict:
    """The jitted forward pass from pixels to logits; the devices share the batch."""
    forward = data_parallel(make_forward(network, model))
    mean = jax.jit(ensemble_mean)

    def predict(weights: Weights | list[Weights], images: Any) -> Array:
        if isinstance(weights, list):
            logits = [forward(member, images) for member in weights]
            return mean(logits) if len(logits) > 1 else logits[0]
        return forward(weights, images)

    return predict


def data_parallel(forward: Callable[..., Array], arrays: int = 1) -> Callable[..., Array]:
    """The jitted function of weights and of so many arrays whose first axis is a batch, which the devices share."""
    share = P(device.AXIS)

    @functools.cache
    def program(mesh: Mesh) -> Callable[..., Array]:
        return jax.jit(device.shard(forward, mesh, P(), *[share] * arrays, result=share))

    def call(weights: Weights, *batch: Any) -> Array:
        mesh = device.mesh(len(batch[0]))
        batch = jax.device_put(batch, NamedSharding(mesh, share))
        return program(mesh)(device.replicate(weights, mesh), *batch)

    return call
