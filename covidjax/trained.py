"""A trained run in JAX: its network, its weights and its jitted forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from covidjax import checkpoint, device, rundir
from covidjax.augment import normalise
from covidjax.config import Run
from covidjax.models import Network, Weights

Predict = Callable[[Weights, Any], Array]
"""Weights and uint8 images ``[B, S, S, 1]`` → float32 logits ``[B, classes]``; jitted."""


def make_predict(network: Network, channels: int) -> Predict:
    """The jitted forward pass from pixels to logits; the devices share the batch."""

    def forward(weights: Weights, images: Array) -> Array:
        return network.apply(weights, normalise(images, channels))[0]

    @functools.cache
    def program(mesh: Mesh) -> Predict:
        share = P(device.AXIS)
        return jax.jit(device.split(forward, mesh, P(), share, result=share))

    def predict(weights: Weights, images: Any) -> Array:
        mesh = device.mesh(len(images))
        images = jax.device_put(images, NamedSharding(mesh, P(device.AXIS)))
        return program(mesh)(device.on_all(weights, mesh), images)

    return predict


class Loaded(NamedTuple):
    """A trained run, ready to predict."""

    run: Run
    kind: str
    """``best``, chosen by the validation fold, or ``last``."""
    step: int
    weights: Weights
    network: Network


def load_run(path: Path, device_name: str = "auto") -> Loaded:
    """Settings and weights of a run: its best checkpoint where a validation fold chose one, else its last. The network
    computes in the precision that the run's settings give on this device.

    Raises:
      UserError: no run, no usable checkpoint in it, or no such device.
    """
    run = rundir.settings(path)
    dtype, _ = device.precision(run.config.train.precision, device.start(device_name))
    network = Network(run.config.model, run.preprocess, dtype)
    kind = checkpoint.chosen(path)
    saved = checkpoint.restore(path, kind, network.abstract())
    return Loaded(run, kind, saved.step, saved.weights, network)
