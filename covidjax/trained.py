"""A trained run in JAX: its network, its weights and its jitted forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from covidjax import device, networks
from covidjax.augment import normalise, ten_views
from covidjax.config import ModelConfig, Run
from covidjax.models import Network, Weights

Predict = Callable[[Weights | list[Weights], Any], Array]
"""Weights and uint8 images ``[B, S, S, 1]`` → float32 logits ``[B, classes]``; jitted. Of several networks' weights the
logits are the logarithms of their mean probabilities."""


def make_forward(network: Network, model: ModelConfig) -> Callable[[Weights, Array], Array]:
    """From one network's weights and uint8 images ``[B, S, S, 1]`` to logits ``[B, classes]``, of several views of each
    image their means; not jitted."""

    def forward(weights: Weights, images: Array) -> Array:
        seen = images if model.views == 1 else ten_views(images)
        logits, *_ = network.apply(weights, normalise(seen, model.channels))
        return logits if model.views == 1 else logits.reshape(model.views, images.shape[0], logits.shape[-1]).mean(0)

    return forward


def make_predict(network: Network, model: ModelConfig) -> Predict:
    """The jitted forward pass from pixels to logits; the devices share the batch."""

    call = shared(make_forward(network, model))

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


def shared(forward: Callable[..., Array], arrays: int = 1) -> Callable[..., Array]:
    """The jitted function of weights and of so many arrays whose first axis is a batch, which the devices share."""
    share = P(device.AXIS)

    @functools.cache
    def program(mesh: Mesh) -> Callable[..., Array]:
        return jax.jit(device.split(forward, mesh, P(), *[share] * arrays, result=share))

    def call(weights: Weights, *batch: Any) -> Array:
        mesh = device.mesh(len(batch[0]))
        batch = jax.device_put(batch, NamedSharding(mesh, share))
        return program(mesh)(device.on_all(weights, mesh), *batch)

    return call


class Loaded(NamedTuple):
    """A trained run, ready to predict."""

    run: Run
    kind: str
    """See ``networks.Saved``."""
    step: int
    members: list[Weights]
    """One, or those of every fold of a cross-validation or every network of an ensemble."""
    network: Network

    @property
    def weights(self) -> Weights:
        """Of a single run."""
        return self.members[0]


def load_run(path: Path, device_name: str = "auto") -> Loaded:
    """Settings and weights of a run, or of all members of a cross-validation or an ensemble, or of what ``networks.save``
    wrote. The network computes in the precision that the run's settings give on this device.

    Raises:
      UserError: no run, no usable checkpoint in it, or no such device.
    """
    run = networks.settings(path)
    dtype, _ = device.precision(run.config.train.precision, device.start(device_name))
    network = Network(run.config.model, run.preprocess, dtype)
    return Loaded(run, *networks.restore(path, network.abstract()), network)
