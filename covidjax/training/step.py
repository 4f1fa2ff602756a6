"""One step of training: the state and its update. All of it runs on the device.

The recipe is near that of the paper's framework (fastai): Adam, one-cycle learning rate, cross-entropy. Every random draw
follows from the seed and the step's number, and every sum from the state, so the same state goes on to the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from covidjax.config import TrainConfig
from covidjax.models.network import Network, Weights

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
    metric: Array
    """Of the task's metric: how many were right, or of masks the Dice coefficients."""
    images: Array


class TrainState(NamedTuple):
    """All that changes in training; lives on the device and is donated to every step."""

    step: Array
    weights: Weights
    """That are tested and used."""
    opt_state: optax.OptState
    loss_scale: LossScale
    sums: EpochSums
    first_bad_step: Array
    """First step whose loss was not finite, or -1."""
    raw_weights: Weights | tuple[()] = ()
    """With ``ema_decay`` the weights that the last step came to, of which ``weights`` is the moving average; else
    nothing."""


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


class Losses(NamedTuple):
    """Of every example of a batch, float32 ``[B]``."""

    loss: Array
    sample_weight: Array
    """The batch's loss is the mean weighted by this."""
    metric: Array
    """The epoch's training metric is the mean of this."""


PrepareInputs = Callable[[Array, Array, Any, str | None], tuple[Array, Any]]
"""A task's ``inputs``, see ``training.tasks``."""

Optimizer = Callable[[optax.Schedule], optax.GradientTransformation]
"""A learning-rate schedule → ``optimizer.make_optimizer`` of it."""

LossFunction = Callable[[Array, Any, Array], Losses]
"""A task's ``losses``, see ``training.tasks``."""


def make_train_step(
    network: Network,
    prepare_inputs: PrepareInputs,
    losses: LossFunction,
    optimizer: Optimizer,
    *,
    loss_scaling: bool,
    axis: str | None = None,
    ema_decay: float = 0.0,
    freeze_batch_norm: bool = False,
    freeze_backbone: bool = False,
) -> Callable[[TrainState, StepInputs, Array, Any], TrainState]:
    """One step of training, to be jitted: (state, inputs, uint8 images ``[B, S, S, 1]``, ``Batch.targets``) → state.

    With an ``axis`` of a mesh each device calls it with its share of the batch, and all come to the same state: that which
    one device would have come to with the whole batch, within rounding.

    With ``ema_decay`` an exponential moving average of the weights and of the batch statistics is what is tested and used
    (Szegedy et al. 2016, section 8). Each step keeps that share of it, the first ones less, to forget the initial weights.
    """

    def all_sum(values: Any) -> Any:
        """Added up over the devices."""
        return values if axis is None else lax.psum(values, axis)

    def step(state: TrainState, inputs: StepInputs, images: Array, targets: Any) -> TrainState:
        key = jax.random.fold_in(jax.random.key(inputs.seed), state.step)
        images, targets = prepare_inputs(key, images, targets, axis)
        batch = len(images) * (1 if axis is None else lax.axis_size(axis))
        before = state.raw_weights or state.weights

        def loss_fn(params: Any) -> tuple[Array, tuple[Array, Array, dict[str, Any]]]:
            weights = Weights(_trained_alone(params, network.head) if freeze_backbone else params, before.batch_stats)
            options = {"key": jax.random.fold_in(key, _DROPOUT), "use_running_average": freeze_batch_norm}
            logits, _, batch_stats = network.apply(weights, images, train=True, axis=axis, **options)
            loss, sample_weight, metric = losses(logits, targets, jnp.asarray(inputs.class_weights))
            loss = jnp.sum(loss * sample_weight) / all_sum(jnp.sum(sample_weight))  # this device's part
            return loss * state.loss_scale.value, (loss, jnp.sum(metric), batch_stats)

        (_, (loss, metric, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(before.params)
        grads, loss, metric = all_sum((grads, loss, metric))
        grads = jax.tree.map(lambda g: g / state.loss_scale.value, grads)
        transformation = optimizer(lambda count: jnp.asarray(inputs.learning_rates)[count])
        updates, opt_state = transformation.update(grads, state.opt_state, before.params)
        weights = Weights(optax.apply_updates(before.params, updates), batch_stats)
        loss_scale, bad = state.loss_scale, ~jnp.isfinite(loss)
        if loss_scaling:
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
            new, old = (weights, opt_state), (before, state.opt_state)
            weights, opt_state = jax.tree.map(functools.partial(jnp.where, finite), new, old)
            loss_scale, bad = _next_scale(loss_scale, finite)
        total = state.sums.loss + jnp.where(jnp.isfinite(loss), loss, 0.0) * batch
        sums = EpochSums(total, state.sums.metric + metric, state.sums.images + batch)
        first_bad_step = jnp.where((state.first_bad_step < 0) & bad, state.step, state.first_bad_step)
        raw_weights = ()
        if ema_decay:
            raw_weights, weights = weights, _moving_average(state, weights, ema_decay)
        return TrainState(state.step + 1, weights, opt_state, loss_scale, sums, first_bad_step, raw_weights)

    return step


def _trained_alone(params: Any, head: Sequence[str]) -> dict[str, Any]:
    """The parameters, of which no gradient is computed but of the head's."""
    return {name: part if name in head else lax.stop_gradient(part) for name, part in params.items()}


def _moving_average(state: TrainState, weights: Weights, ema_decay: float) -> Weights:
    """The average of a step's new weights and those before."""
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda mean, new: new + decay * (mean - new), state.weights, weights)


def _next_scale(scale: LossScale, finite: Array) -> tuple[LossScale, Array]:
    """The scale after a step, and whether training has diverged. A step that overflowed is left out, with a smaller
    scale for the next; one whose scale cannot be made smaller has diverged."""
    grow = finite & (scale.good_steps + 1 >= _SCALE_GROWTH_STEPS)
    value = jnp.where(grow, scale.value * 2, jnp.where(finite, scale.value, scale.value / 2))
    good_steps = jnp.where(finite & ~grow, scale.good_steps + 1, 0)
    return LossScale(jnp.clip(value, 1.0, _LARGEST_SCALE), good_steps), ~finite & (value < 1)


def zero_sums() -> EpochSums:
    """The sums before an epoch's first step."""
    return EpochSums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def create_train_state(
    weights: Weights, optimizer: optax.GradientTransformation, *, loss_scaling: bool, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first step."""
    scale = LossScale(jnp.float32(_FIRST_SCALE if loss_scaling else 1.0), jnp.int32(0))
    raw_weights = jax.tree.map(jnp.copy, weights) if ema_decay else ()  # a buffer cannot be donated twice
    return TrainState(
        step=jnp.int32(0),
        weights=weights,
        opt_state=optimizer.init(weights.params),
        loss_scale=scale,
        sums=zero_sums(),
        first_bad_step=jnp.int32(-1),
        raw_weights=raw_weights,
    )


def with_weights(state: TrainState, weights: Weights) -> TrainState:
    """A state before the first step with other weights."""
    raw_weights = jax.tree.map(jnp.copy, weights) if state.raw_weights else ()
    return state._replace(weights=weights, raw_weights=raw_weights)


def to_checkpoint(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state beside the weights, which have a place of their own, under the names that
    checkpoints have had from the beginning."""
    items = {"step": state.step, "optimizer": state.opt_state, "scale": state.loss_scale, "bad_step": state.first_bad_step}
    items["totals"] = {"loss": state.sums.loss, "score": state.sums.metric, "images": state.sums.images}
    return items | ({"newest": state.raw_weights} if state.raw_weights else {})


def from_checkpoint(weights: Weights, items: dict[str, Any]) -> TrainState:
    """The state whose weights and ``to_checkpoint`` were saved."""
    totals = items["totals"]
    return TrainState(
        step=items["step"],
        weights=weights,
        opt_state=items["optimizer"],
        loss_scale=items["scale"],
        sums=EpochSums(totals["loss"], totals["score"], totals["images"]),
        first_bad_step=items["bad_step"],
        raw_weights=items.get("newest", ()),
    )
