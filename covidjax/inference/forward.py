"""The forward pass: from uint8 images to logits and probabilities, with test-time augmentation and ensembles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, P
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from covidjax import device
from covidjax.config import ModelConfig
from covidjax.models.network import Network, Weights


class Outputs(NamedTuple):
    """What a network gives of a batch."""

    logits: Array
    """float32 ``[B, classes]``, of a segmenter ``[B, S, S, kinds]``."""
    features: Array
    """float32 ``[B, F]``, pooled from the maps before the logits, see ``Network.pooled_features``; of several networks one
    after another, ``[B, networks · F]``."""


def normalize(images: Array, model: ModelConfig = ModelConfig()) -> Array:
    """Pixels from 0 to 255, ``[B, S, S, 1]`` → float32 ``[B, S, S, channels]`` of about zero mean and unit variance, by the
    mean and the standard deviation of the settings."""
    scaled = (images.astype(jnp.float32) / 255 - jnp.asarray(model.pixel_mean)) / jnp.asarray(model.pixel_std)
    return jnp.broadcast_to(scaled, (*images.shape[:3], model.channels))


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


def make_forward(network: Network, model: ModelConfig) -> Callable[[Weights, Array], Outputs]:
    """From one network's weights and uint8 images ``[B, S, S, 1]`` to its outputs, of several views of each image their
    means. Not jitted."""

    def forward(weights: Weights, images: Array) -> Outputs:
        views = images if model.tta == 1 else ten_crop(images)
        logits, maps, _ = network.apply(weights, normalize(views, model))
        outputs = Outputs(logits, network.pooled_features(maps))
        if model.tta == 1:
            return outputs
        return Outputs(*(each.reshape(model.tta, images.shape[0], each.shape[-1]).mean(0) for each in outputs))

    return forward


def ensemble_mean(logits: Sequence[Array] | ArrayLike) -> Array:
    """Logits of several networks, each ``[B, classes]`` → the logarithms of their mean probabilities, ``[B, classes]``."""
    log_probabilities = jax.nn.log_softmax(jnp.asarray(logits))
    return jax.nn.logsumexp(log_probabilities, 0) - jnp.log(len(log_probabilities))


def probabilities(logits: Array, model: ModelConfig) -> Array:
    """Logits → probabilities: of the classes ``[B, classes]``, or of a segmenter, whose last kind of mask is the widest,
    that a pixel belongs to the lungs, ``[B, S, S]``."""
    return jax.nn.sigmoid(logits[..., -1]) if model.is_segmenter else jax.nn.softmax(logits)


def combine(networks: Sequence[Outputs]) -> Outputs:
    """The outputs of several networks as those of one."""
    if len(networks) == 1:
        return networks[0]
    return Outputs(
        ensemble_mean([each.logits for each in networks]), jnp.concatenate([each.features for each in networks], -1)
    )


class Predict:
    """The jitted forward pass from pixels to logits and features; the devices share the batch."""

    def __init__(self, network: Network, model: ModelConfig):
        self._forward = data_parallel(make_forward(network, model))
        self._combine = jax.jit(combine)

    def outputs(self, weights: Weights | list[Weights], images: Any) -> Outputs:
        """Of weights, or those of several networks, and uint8 images ``[B, S, S, 1]``; of several networks the logits are
        the logarithms of their mean probabilities."""
        networks = [self._forward(each, images) for each in (weights if isinstance(weights, list) else [weights])]
        return self._combine(networks) if len(networks) > 1 else networks[0]

    def __call__(self, weights: Weights | list[Weights], images: Any) -> Array:
        """The logits alone, float32 ``[B, classes]``."""
        return self.outputs(weights, images).logits


def make_predict(network: Network, model: ModelConfig) -> Predict:
    """The jitted forward pass of a network."""
    return Predict(network, model)


def make_features(network: Network, model: ModelConfig) -> Callable[[Weights, Any], Array]:
    """The jitted pass from pixels to features alone; what leads to the logits only is not computed."""
    forward = make_forward(network, model)
    return data_parallel(lambda weights, images: forward(weights, images).features)


def data_parallel(forward: Callable[..., Any], arrays: int = 1) -> Callable[..., Any]:
    """The jitted function of weights and of so many arrays whose first axis is a batch, which the devices share."""
    share = P(device.AXIS)

    @functools.cache
    def program(mesh: Mesh) -> Callable[..., Any]:
        return jax.jit(device.shard(forward, mesh, P(), *[share] * arrays, result=share))

    def call(weights: Weights, *batch: Any) -> Any:
        mesh = device.mesh(len(batch[0]))
        batch = jax.device_put(batch, NamedSharding(mesh, share))
        return program(mesh)(device.replicate(weights, mesh), *batch)

    return call
