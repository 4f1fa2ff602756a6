"""Frozen backbones: no gradient of them is computed, and nothing of a step changes them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax import P

from covidjax import device
from covidjax.config import Config, ModelConfig, Preprocess, TrainConfig
from covidjax.models import Network, Weights, create_model
from covidjax.training.optimizer import make_optimizer
from covidjax.training.step import StepInputs, TrainState, create_train_state, make_train_step
from covidjax.training.tasks import Classification

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
LABELS = np.asarray([0, 1, 2, 0, 1, 2, 0, 1], np.int32)
INPUTS = StepInputs(np.uint32(0), np.full(1024, 1e-2, np.float32), np.ones(3, np.float32))


@functools.cache
def network() -> Network:
    return create_model(ModelConfig(), Preprocess(image_size=32))


def make_step(freeze: str, axis: str | None = None, **settings: float):
    config = Config(train=TrainConfig(freeze=freeze, **settings))  # pyright: ignore[reportArgumentType]
    optimizer = functools.partial(make_optimizer, config.train, head=network().head)
    task, frozen = Classification(config), freeze == "backbone"
    options = {"freeze_batch_norm": frozen, "freeze_backbone": frozen, "axis": axis}
    decay = config.train.ema_decay
    step = make_train_step(network(), task.inputs, task.losses, optimizer, loss_scaling=False, ema_decay=decay, **options)
    rate: optax.Schedule = lambda count: count  # noqa: E731
    return step, create_train_state(network().init(0), optimizer(rate), loss_scaling=False, ema_decay=decay)


def parts(weights: Weights) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Arrays of the backbone with all batch statistics, and parameters of the head."""
    names = network().head
    backbone = {name: part for name, part in weights.params.items() if name not in names}
    head = {name: weights.params[name] for name in names}
    return leaves((backbone, weights.batch_stats)), leaves(head)


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_no_gradient_of_a_frozen_backbone_is_computed():
    flops = {}
    for freeze in ("none", "backbone"):
        step, state = make_step(freeze)
        analysis = jax.jit(step).lower(state, INPUTS, IMAGES, LABELS).cost_analysis()
        assert analysis
        flops[freeze] = analysis["flops"]
    assert flops["backbone"] < 0.45 * flops["none"]  # a step is three forward passes, and this is little more than one


def test_the_backbone_has_a_smaller_rate():
    params = {"stem": np.ones(2, np.float32), "dense": np.ones(2, np.float32)}
    updates = {}
    for share in (1.0, 0.1):
        optimizer = make_optimizer(TrainConfig(backbone_rate=share), optax.constant_schedule(0.5), head=("dense",))
        updates[share], _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates[0.1]["stem"], 0.1 * updates[1.0]["stem"], rtol=1e-6)
    np.testing.assert_array_equal(updates[0.1]["dense"], updates[1.0]["dense"])


@pytest.mark.parametrize("devices", [1, 2])
def test_frozen_arrays_keep_their_bits(devices: int):
    """Under weight decay and in the moving average too."""
    mesh = device.mesh(len(IMAGES) if devices > 1 else 1)
    if mesh.size < devices:
        pytest.skip("one device")
    step, state = make_step("backbone", device.AXIS if devices > 1 else None, weight_decay=0.1, ema_decay=0.9)
    before, share = state.weights, P(device.AXIS)
    call = jax.jit(device.shard(step, mesh, P(), P(), share, share, result=P()) if devices > 1 else step)
    state: TrainState = device.replicate(state, mesh) if devices > 1 else state
    for _ in range(3):
        state = call(state, INPUTS, IMAGES, LABELS)
    assert isinstance(state.raw_weights, Weights)
    old, old_head = parts(before)
    for after in (state.weights, state.raw_weights):
        kept, changed = parts(after)
        assert len(kept) > 50
        for ours, theirs in zip(kept, old, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert all((ours != theirs).any() for ours, theirs in zip(changed, old_head, strict=True))
