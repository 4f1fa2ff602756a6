"""A trained run in JAX: its network, its weights and its jitted forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from covidjax import device
from covidjax.config import ModelConfig
from covidjax.models import Network, Weights

MEAN, STD = 0.5, 0.25
"""Of a typical film's gray, as a share of white: what normalisation takes off and divides by."""


def normalize(images: Array, channels: int = 1) -> Array:
    """Pixels from 0 to 255, ``[B, S, S, 1]`` → float32 ``[B, S, S, channels]`` of about zero mean and unit variance."""
    scaled = (images.astype(jnp.float32) / 255 - MEAN) / STD
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
    for film in (images, images[:, :, ::-1]):
        wide = jnp.pad(film, ((0, 0), (step, step), (step, step), (0, 0)), "edge")
        views += [film, *(wide[:, y : y + side, x : x + side] for y, x in corners)]
    return jnp.concatenate(views)


Predict = Callable[[Weights | list[Weights], Any], Array]
"""Weights and uint8 images ``[B, S, S, 1]`` → float32 logits ``[B, classes]``; jitted. Of several networks' weights the
logits are the logarithms of their mean probabilities."""


def make_forward(network: Network, model: ModelConfig) -> Callable[[Weights, Array], Array]:
    """From one network's weights and uint8 images ``[B, S, S, 1]`` to logits ``[B, classes]``, of several views of each
    image their means; not jitted."""

    def forward(weights: Weights, images: Array) -> Array:
        seen = images if model.views == 1 else ten_crop(images)
        logits, *_ = network.apply(weights, normalize(seen, model.channels))
        return logits if model.views == 1 else logits.reshape(model.views, images.shape[0], logits.shape[-1]).mean(0)

    return forward


def make_predict(network: Network, model: ModelConfig) -> Predict:
    """The jitted forward pass from pixels to logits; the devices share the batch."""

    call = data_parallel(make_forward(network, model))

    @jax.jit
    def mean(logits: list[Array]) -> Array:
        log_probabilities = jax.nn.log_softmax(jnp.stack(logits))
        return jax.nn.logsumexp(log_probabilities, 0) - jnp.log(len(logits))

    def predict(weights: Weights | list[Weights], images: Any) -> Array:
        if isinstance(weights, list):
            logits = [predict(each, images) for each in weights]
            return mean(logits) if len(logits) > 1 else logits[0]
        return call(weights, images)

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
