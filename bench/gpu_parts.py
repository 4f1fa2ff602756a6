"""The measurements of ``bench.gpu``, each called in a process of its own; they return what JSON can hold."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.peers.ours import UNCHANGED, constant_inputs, read_batch
from covidjax import device
from covidjax.config import Config, TrainConfig, load_config
from covidjax.data.dataset import Dataset
from covidjax.inference.forward import normalize
from covidjax.metrics import headline_metrics
from covidjax.models import create_model
from covidjax.runs.load import load_run
from covidjax.training.cross_validation import train_networks
from covidjax.training.loop import train
from covidjax.training.optimizer import learning_rate, make_optimizer
from covidjax.training.step import create_train_state, make_train_step
from covidjax.training.tasks import Classification

ADAM_B1 = 0.9
"""The share of the last moments in the next, optax's default."""


def results(batch: str, run: str, where: str, precision: Any) -> dict[str, Any]:
    """Logits of a batch, gradients of its loss, and the losses of five steps, on one device in one precision.

    Two programs are compiled, and no more: the gradients are read from the moments that Adam keeps of them.
    """
    used = device.start(where)
    # TensorFloat32 would be compared with float32 here: the question is whether the programs are the same.
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    images, labels = read_batch(batch)
    loaded = load_run(Path(run), where)
    dtype, scaled = device.precision(precision, used)
    settings = TrainConfig(learning_rate=1e-4, schedule="constant", batch_size=len(images), precision=precision)
    config = Config(augment=UNCHANGED, train=settings)
    network, task = create_model(config.model, loaded.run.preprocess, dtype), Classification(config)
    logits = jax.jit(lambda weights: network.apply(weights, normalize(jnp.asarray(images)))[0])(loaded.weights)
    optimizer = functools.partial(make_optimizer, settings)
    step = jax.jit(make_train_step(network, task.inputs, task.losses, optimizer, loss_scaling=scaled))
    inputs = constant_inputs(settings.learning_rate, logits.shape[-1])
    state = create_train_state(loaded.weights, optimizer(learning_rate(settings, 1)), loss_scaling=scaled)
    losses, gradients, before = [], np.zeros(0), 0.0
    for number in range(5):
        state = step(state, inputs, images, labels)
        losses.append((float(state.sums.loss) - before) / len(images))
        before = float(state.sums.loss)
        if number == 0:
            moments = optax.tree.get(state.opt_state, "mu")
            gradients = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moments)]) / (1 - ADAM_B1)
    return {
        "device": used.device_kind,
        "dtype": np.dtype(dtype).name,
        "logits": np.asarray(logits).ravel().tolist(),
        "gradients": gradients.tolist(),
        "losses": losses,
    }


class _Progress:
    """Keeps how many steps an epoch has and when each network was begun, and shows nothing."""

    def __init__(self) -> None:
        self.steps = 0
        self.begun: list[float] = []

    def features(self, done: int, total: int) -> None:
        pass

    def begin(self, description: str, steps: int, metric: str) -> None:
        self.steps = steps
        self.begun.append(time.perf_counter())

    def step(self, epoch: int, step: int, loss: float, metric: float, images_per_second: float) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        pass


def whole_run(dataset: str, *overrides: str) -> dict[str, Any]:
    """A run of ``train`` with default settings but those given, as ``--set`` takes them."""
    config = load_config(None, overrides, {"data.path": dataset})
    progress, opened = _Progress(), Dataset(Path(dataset))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(config, opened, Path(folder, "run"), progress=progress)
        wall = time.perf_counter() - start
    used = jax.devices()[0]
    return {
        "seconds": {name: round(seconds, 3) for name, seconds in (result.timing.seconds | {"wall": wall}).items()},
        "steps": progress.steps * config.train.epochs,
        "batch": config.train.batch_size,
        "images": sum(
            int(opened.class_counts([fold]).sum()) for fold in range(opened.folds) if fold != config.data.test_fold
        ),
        "held_out": int(opened.class_counts([config.data.test_fold]).sum()),
        "accuracy": headline_metrics(result.metrics)["accuracy"],
        "loss": result.history[-1]["train"]["loss"],
        "device": used.device_kind,
        "dtype": np.dtype(device.precision(config.train.precision, used)[0]).name,
    }


def whole_run_twice(dataset: str, *overrides: str) -> list[dict[str, Any]]:
    """The same run two times; the second finds every program in the cache, also those whose compilation ``Timing`` does not
    know: of the first weights, of batch statistics, of evaluation."""
    return [whole_run(dataset, *overrides) for _ in range(2)]


def networks(dataset: str, *overrides: str) -> dict[str, Any]:
    """A network for every fold, one after another: the seconds of each, from its first line to its last epoch."""
    config = load_config(None, ["train.cv=true", *overrides], {"data.path": dataset})
    progress = _Progress()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train_networks(config, Dataset(Path(dataset)), Path(folder, "run"), progress=lambda name: progress)
        end = time.perf_counter()
    return {
        "wall": end - start,
        "each": np.diff([*progress.begun, end]).tolist(),
        "seconds": result.timing.seconds,
        "images": result.timing.images,
        "accuracy": headline_metrics(result.metrics)["accuracy"],
        "device": jax.devices()[0].device_kind,
    }


def limits(batch: str, run: str, copied: int, side: int) -> dict[str, Any]:
    """GB/s of a copy of that many floats, TFLOP/s of a square product, and what XLA counts in a training step."""
    used = device.start()
    dtype, scaled = device.precision("auto", used)
    floats = jnp.ones(copied, jnp.float32)
    bandwidth = [2 * floats.nbytes / seconds / 1e9 for seconds in _timed(jax.jit(lambda x: x + 1), floats)]
    floats.delete()
    # Random numbers: zeros flip no bits, and a card that draws less power runs faster.
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    arithmetic = [2 * side**3 / seconds / 1e12 for seconds in _timed(jax.jit(lambda x: x @ x), square)]

    images, labels = read_batch(batch)
    loaded = load_run(Path(run))
    settings = TrainConfig(batch_size=len(images))
    network = create_model(Config().model, loaded.run.preprocess, dtype)
    task = Classification(Config(train=settings))
    optimizer = functools.partial(make_optimizer, settings)
    step = make_train_step(network, task.inputs, task.losses, optimizer, loss_scaling=scaled)
    state = create_train_state(loaded.weights, optimizer(learning_rate(settings, 100)), loss_scaling=scaled)
    lowered = jax.jit(step, donate_argnums=0).lower(state, constant_inputs(1e-3, 3), images, labels)
    cost: Any = lowered.compile().cost_analysis()
    return {
        "bandwidth": bandwidth,
        "arithmetic": arithmetic,
        "dtype": np.dtype(dtype).name,
        "flops": float(cost["flops"]),
        "bytes": float(cost["bytes accessed"]),
    }


def _timed(function: Any, argument: jax.Array) -> list[float]:
    """Seconds a call, nine times the mean of five."""
    jax.block_until_ready(function(argument))
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready([function(argument) for _ in range(5)])
        seconds.append((time.perf_counter() - start) / 5)
    return seconds
