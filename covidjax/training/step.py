"""One step of training: the state, the learning rate, the update. All of it runs on the device.

The recipe is near that of the paper's framework (fastai): Adam, one-cycle learning rate, cross-entropy. Every random draw
follows from the seed and the step's number, and every sum from the state, so the same state goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from covidjax.config import TrainConfig
from covidjax.models import Network, Weights
from covidjax.training.tasks import Task

_DROPOUT = 2**16
"""What the step's key is folded with for dropout. Small numbers give the keys that it is split into for augmentation."""

_FIRST_SCALE, _LARGEST_SCALE, _SCALE_GROWTH_STEPS = 2.0**15, 2.0**24, 1000


class LossScale(NamedTuple):
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, section 3.2); constant 1 for other precisions."""

    value: Array
    good_steps: Array


class EpochSums(NamedTuple):
    """Sums over the epoch so far."""

    loss: Array
    score: Array
    """By the task: how many were right, or of masks the Dice coefficients."""
    images: Array


class State(NamedTuple):
    """All that changes in training; lives on the device and is donated to every step."""

    step: Array
    weights: Weights
    """That are tested and used."""
    optimizer: optax.OptState
    scale: LossScale
    totals: EpochSums
    bad_step: Array
    """First step whose loss was not finite, or -1."""
    newest: Weights | tuple[()] = ()
    """With averaging the weights that the last step came to, of which ``weights`` is the running mean; else nothing."""


def learning_rate(config: TrainConfig, steps: int) -> optax.Schedule:
    """Step → learning rate: constant, or one cycle (Smith 2018) in the shape that fastai gives it: from a 25th of the peak
    up to it in the first 30 % of the steps, then down to a 250,000th of it, both along a cosine. Adam's momentum, which
    fastai moves the other way, stays as it is."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    return optax.cosine_onecycle_schedule(max(steps, 2), config.learning_rate, 0.3, 25.0, 1e4)


def class_weights(config: TrainConfig, counts: np.ndarray) -> np.ndarray:
    """Weight of each class in the loss, float32 ``[classes]``."""
    if config.class_weights == "none":
        return np.ones(len(counts), np.float32)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


class StepInputs(NamedTuple):
    """What differs between the networks of a cross-validation or an ensemble: arguments of the step, so that all share
    one program."""

    seed: Array | np.ndarray | np.uint32
    """uint32 ``[]``."""
    learning_rates: Array | np.ndarray
    """Learning rate of every step, float32 ``[steps]`` or longer."""
    class_weights: Array | np.ndarray
    """float32 ``[classes]``."""


def learning_rate_table(schedule: optax.Schedule, steps: int) -> np.ndarray:
    """The schedule as a table, float32. Its length is the next multiple of 1024, so that runs of other lengths are the
    same program; what is beyond ``steps`` is not reached."""
    return np.asarray(jax.vmap(schedule)(jnp.arange(-(-steps // 1024) * 1024)), np.float32)


Optimizer = Callable[[optax.Schedule], optax.GradientTransformation]


def make_step(
    network: Network, task: Task, optimizer: Optimizer, scaled: bool, axis: str | None = None, averaging: float = 0.0
) -> Callable[[State, StepInputs, Array, Any], State]:
    """One step of training, to be jitted: (state, given, uint8 images ``[B, S, S, 1]``, ``Batch.targets``) → state.

    With an ``axis`` of a mesh each device calls it with its share of the batch, and all come to the same state: that which
    one device would have come to with the whole batch, within rounding.

    With ``averaging`` a running mean of the weights and of the batch statistics is what is tested and used (Szegedy et al.
    2016, section 8). Each step keeps that share of it, and the first steps less, so that the initial weights are soon
    forgotten.
    """

    def everywhere(values: Any) -> Any:
        """Added up over the devices."""
        return values if axis is None else lax.psum(values, axis)

    def step(state: State, given: StepInputs, images: Array, targets: Any) -> State:
        key = jax.random.fold_in(jax.random.key(given.seed), state.step)
        inputs, targets = task.inputs(key, images, targets, axis)
        batch = len(images) * (1 if axis is None else lax.axis_size(axis))
        before = state.newest or state.weights

        def loss_of(params: Any) -> tuple[Array, tuple[Array, Array, dict[str, Any]]]:
            weights = Weights(params, before.batch_stats)
            logits, _, stats = network.apply(weights, inputs, train=True, axis=axis, key=jax.random.fold_in(key, _DROPOUT))
            found = task.losses(logits, targets, jnp.asarray(given.class_weights))
            loss = jnp.sum(found.loss * found.importance) / everywhere(jnp.sum(found.importance))  # this device's part
            return loss * state.scale.value, (loss, jnp.sum(found.score), stats)

        (_, (loss, score, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(before.params)
        grads, loss, score = everywhere((grads, loss, score))
        grads = jax.tree.map(lambda g: g / state.scale.value, grads)
        transformation = optimizer(lambda count: jnp.asarray(given.learning_rates)[count])
        updates, optimizer_state = transformation.update(grads, state.optimizer, before.params)
        weights = Weights(optax.apply_updates(before.params, updates), stats)
        scale, bad = state.scale, ~jnp.isfinite(loss)
        if scaled:
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
            # A step that overflowed is left out, with a smaller scale for the next; one that cannot be made
            # smaller has diverged.
            weights, optimizer_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (weights, optimizer_state),
                (before, state.optimizer),
            )
            grow = finite & (scale.good_steps + 1 >= _SCALE_GROWTH_STEPS)
            value = jnp.where(grow, scale.value * 2, jnp.where(finite, scale.value, scale.value / 2))
            good_steps = jnp.where(finite & ~grow, scale.good_steps + 1, 0)
            bad = ~finite & (value < 1)
            scale = LossScale(jnp.clip(value, 1.0, _LARGEST_SCALE), good_steps)
        totals = EpochSums(
            state.totals.loss + jnp.where(jnp.isfinite(loss), loss, 0.0) * batch,
            state.totals.score + score,
            state.totals.images + batch,
        )
        bad_step = jnp.where((state.bad_step < 0) & bad, state.step, state.bad_step)
        newest = ()
        if averaging:
            decay = jnp.minimum(averaging, (1 + state.step) / (10 + state.step))
            newest, weights = weights, jax.tree.map(lambda mean, new: new + decay * (mean - new), state.weights, weights)
        return State(state.step + 1, weights, optimizer_state, scale, totals, bad_step, newest)

    return step


def zero_sums() -> EpochSums:
    return EpochSums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def initial_state(weights: Weights, optimizer: optax.GradientTransformation, scaled: bool, averaging: float = 0.0) -> State:
    """The state before the first step."""
    scale = LossScale(jnp.float32(_FIRST_SCALE if scaled else 1.0), jnp.int32(0))
    newest = jax.tree.map(jnp.copy, weights) if averaging else ()  # a buffer cannot be donated twice
    return State(jnp.int32(0), weights, optimizer.init(weights.params), scale, zero_sums(), jnp.int32(-1), newest)


def make_optimizer(config: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015), or AdamW where there is weight decay (Loshchilov and Hutter 2019)."""
    if config.weight_decay:
        return optax.adamw(rate, weight_decay=config.weight_decay)
    return optax.adam(rate)
