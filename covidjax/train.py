"""Training a network: data, model, state, loop, result; ``train`` reads from top to bottom.

A run that was stopped anywhere goes on from its last checkpoint to the same bits as one that never was: the order of
the images follows from the seed and the epoch, everything else from the state (see ``covidjax.step``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from covidjax import checkpoint, device, metrics, pipeline, rundir
from covidjax.config import Config, Run, UserError
from covidjax.dataset import Dataset
from covidjax.evaluate import HeldOut, load_run, logits_of, make_predict, summary
from covidjax.models import Network, count_parameters
from covidjax.step import State, class_weights, initial_state, learning_rate, make_optimizer, make_step, zero_totals

SCAN_STEPS = 512
"""Steps that are one compiled scan on an accelerator, with no host work between them. On a CPU they are called one by
one: XLA's CPU backend computes a convolution inside a loop with scalar code, forty times slower."""


TELL_SECONDS = 0.2
"""Least time between two looks at the loss within an epoch."""


class Interrupted(UserError):
    """Training was asked to stop and saved its state first."""


class Progress(Protocol):
    """Told how training goes on."""

    def begin(self, what: str, steps: int) -> None:
        """Before the first step: what is trained on what, in words, and how many steps an epoch has."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Now and then within an epoch, with the means of the epoch so far."""

    def epoch(self, record: dict[str, Any]) -> None:
        """After every epoch, with the line for ``metrics.jsonl``."""


@dataclass
class Timing:
    """Seconds by stage, and images handled where that makes sense."""

    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, since: float, images: int = 0) -> None:
        """Add the time since then to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - since
        if images:
            self.images[stage] = self.images.get(stage, 0) + images


class Result(NamedTuple):
    """What a finished run amounts to."""

    metrics: metrics.Metrics
    """On the test fold."""
    checkpoint: str
    """Which checkpoint was tested: ``last``, or ``best`` by the validation fold."""
    history: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    timing: Timing
    """Of this call: what came before a resumption is not in it."""
    parameters: int


Steps = Callable[[State, np.ndarray], Iterator[tuple[State, int]]]
"""Takes the state through the steps whose rows ``[steps, batch]`` are given; yields it, with the number of steps done,
after every call of the device."""


def train(
    config: Config,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train a network on the training folds of a dataset and test it on its test fold.

    Args:
      config: all settings.
      dataset: what to train on.
      run: a folder for ``config.toml``, ``metrics.jsonl`` and ``checkpoints/``.
      resume: go on from the run's last checkpoint; the settings must be those it was begun with.
      progress: told how it goes on.
      stop: asked after every call of the device; once it says so, the state is saved and Interrupted raised.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, folds that there are not, a checkpoint that does not fit.
    """
    began = time.perf_counter()
    timing = Timing()
    settings = config.train
    training_folds, test_folds, val_folds = dataset.split(config.data.test_fold, config.data.val_fold)

    # The run's folder, before anything that takes long: whatever happens from here on, --resume goes on.
    if resume:
        Run.load(run / rundir.CONFIG)  # says so where there is nothing to resume
    else:
        rundir.make(run)
        Run(config, dataset.preprocess, dataset.fingerprint).save(run / rundir.CONFIG)
    lock = rundir.lock(run)
    where = device.start()

    # Data: how many steps.
    source = dataset.source(training_folds)
    held_out = {"test": dataset.source(test_folds)} | ({"val": dataset.source(val_folds)} if val_folds else {})
    batch = min(settings.batch_size, len(source))
    epoch_steps = len(source) // batch

    # Model, optimizer, step.
    dtype, scaled = device.precision(settings.precision, where)
    network = Network(config.model, dataset.preprocess, dtype)
    rate = learning_rate(settings, epoch_steps * settings.epochs)
    optimizer = make_optimizer(settings, rate)
    weights_of_classes = class_weights(settings, dataset.class_counts(training_folds))
    mesh = device.mesh(batch)
    axis = device.AXIS if mesh.size > 1 else None
    step = make_step(config, network, optimizer, weights_of_classes, scaled, axis)
    predict = make_predict(network, config.model.channels)

    # State: fresh, or from the last checkpoint.
    best: list[float] | None = None
    if checkpoint.steps(run, "last"):
        template = jax.eval_shape(lambda: initial_state(network.init(0), optimizer, scaled))
        saved = checkpoint.restore(run, "last", template.weights, _without_weights(template))
        state = State(weights=saved.weights, **saved.training)
        best = saved.facts["best"]
        rundir.keep_epochs(run, saved.facts["epoch"])
    else:
        state = initial_state(network.init(config.seed), optimizer, scaled)
        rundir.keep_epochs(run, 0)
        rundir.write_seen(run, dataset.source([*training_folds, *val_folds]))
    state = device.on_all(state, mesh)
    done = int(state.step)
    what = f"{len(source)} training images, {epoch_steps} steps an epoch, {count_parameters(state.weights):,} parameters"
    progress.begin(f"{_name(where)}, {np.dtype(dtype).name}; {what}; starting at step {done + 1}.", epoch_steps)

    # The way from rows to steps: images on the device, in memory, or streamed.
    size = len(source) * dataset.preprocess.image_size**2
    in_memory = settings.cache == "device" or (settings.cache == "auto" and device.fits(size, where))
    compiled = _compile_once(timing, mesh)
    if not in_memory:
        steps = _streamed(step, source, compiled, mesh)
    else:
        start = time.perf_counter()
        data = pipeline.load_all(source)
        timing.add("load", start, len(source))
        steps = _one_by_one(step, data, compiled) if where.platform == "cpu" else _scanned(step, data, compiled, mesh)

    last = checkpoint.Checkpoints(run, "last", keep=2)
    chosen = checkpoint.Checkpoints(run, "best", keep=1) if val_folds else None

    def save(state: State, epochs_done: int) -> None:
        start = time.perf_counter()
        last.save(int(state.step), state.weights, _without_weights(state), {"epoch": epochs_done, "best": best})
        timing.add("checkpoint", start)

    # Loop.
    saved_at = time.perf_counter()
    try:
        for epoch in range(done // epoch_steps, settings.epochs):
            rows = pipeline.order(len(source), batch, seed=config.seed, epoch=epoch)[done - epoch * epoch_steps :]
            clock = _Stopwatch(timing, batch)
            told_at = -np.inf
            for new_state, count in steps(state, rows):
                state, done = new_state, done + count
                clock.steps(count)
                # Asking for the loss waits for the device, so that is done now and then only.
                if time.perf_counter() - told_at >= TELL_SECONDS:
                    loss, accuracy = _means(state, rate)
                    progress.step(epoch + 1, done - epoch * epoch_steps, loss, accuracy, clock.speed)
                    told_at = time.perf_counter()
                stopping = stop()
                due = time.perf_counter() - saved_at >= settings.checkpoint_seconds
                if (stopping or due) and done % epoch_steps:
                    save(state, epoch)
                    saved_at = time.perf_counter()
                    if stopping:
                        raise Interrupted(_stopped(run, done))
            loss, accuracy = _means(state, rate)
            clock.done()
            record = {"epoch": epoch + 1, "step": done, "learning_rate": _float(rate(done - 1))}
            record["train"] = {"loss": loss, "accuracy": accuracy}
            start = time.perf_counter()
            found = {
                name: summary(*logits_of(predict, state.weights, pipeline.eval_batches(fold, settings.batch_size)))
                for name, fold in held_out.items()
            }
            timing.add("evaluate", start, sum(map(len, held_out.values())))
            if not all(np.isfinite(value.loss) for value in found.values()):
                raise UserError(_diverged(done - 1, rate))
            record |= {name: value._asdict() for name, value in found.items()}
            record["seconds"] = round(time.perf_counter() - began, 3)
            record["images_per_second"] = round(clock.speed, 1)
            rundir.append(run, record)
            progress.epoch(record)

            state = state._replace(totals=zero_totals())
            if chosen and (best is None or _merit(found["val"]) > tuple(best)):
                best = list(_merit(found["val"]))
                chosen.save(done, state.weights, _without_weights(state), {"epoch": epoch + 1, "best": best})
                chosen.wait()  # before a state that knows of this best can be on disk
            finished = epoch + 1 == settings.epochs
            stopping = stop()
            if finished or stopping or time.perf_counter() - saved_at >= settings.checkpoint_seconds:
                save(state, epoch + 1)
                saved_at = time.perf_counter()
            if stopping and not finished:
                raise Interrupted(_stopped(run, done))
    finally:
        start = time.perf_counter()
        for checkpoints in filter(None, (last, chosen)):
            checkpoints.close()
        timing.add("checkpoint", start)
        lock.close()

    # Result: the checkpoint that `score` will use, on the test fold.
    start = time.perf_counter()
    loaded = load_run(run)
    logits, labels = logits_of(predict, loaded.weights, pipeline.eval_batches(held_out["test"], settings.batch_size))
    timing.add("evaluate", start, len(labels))
    timing.add("wall", began)
    history = rundir.history(run)
    measured = metrics.measure(labels, logits.argmax(-1), dataset.preprocess.classes)
    return Result(measured, loaded.kind, history, timing, count_parameters(loaded.weights))


class _Stopwatch:
    """Times the steps of an epoch, without what compiling and saving took in it."""

    def __init__(self, timing: Timing, batch: int):
        self._timing, self._batch, self._images = timing, batch, 0
        self._start, self._before = time.perf_counter(), self._aside()
        self.speed = 0.0

    def steps(self, count: int) -> None:
        self._images += count * self._batch
        self.speed = self._images / max(self._seconds(), 1e-9)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start - (self._aside() - self._before)

    def _aside(self) -> float:
        return sum(self._timing.seconds.get(stage, 0.0) for stage in ("compile", "checkpoint"))

    def done(self) -> None:
        self.steps(0)
        self._timing.add("train", time.perf_counter() - self._seconds(), self._images)


Compiled = Callable[..., State]


class Compile(Protocol):
    """Makes the program of a function (state, *arrays) → state; of each array every device has the given share."""

    def __call__(self, function: Compiled, *shares: P) -> Compiled: ...


def _compile_once(timing: Timing, mesh: Mesh) -> Compile:
    """A ``jax.jit`` with donated state that times its compilations, one for each set of shapes."""

    def wrap(function: Compiled, *shares: P) -> Compiled:
        whole = NamedSharding(mesh, P())
        jitted = jax.jit(
            device.split(function, mesh, P(), *shares, result=P()),
            donate_argnums=0,
            in_shardings=(whole, *(NamedSharding(mesh, share) for share in shares)),
            out_shardings=whole,
        )
        programs: dict[tuple[tuple[int, ...], ...], Compiled] = {}

        def call(state: State, *arrays: Any) -> State:
            shapes = tuple(array.shape for array in arrays)
            if shapes not in programs:
                start = time.perf_counter()
                programs[shapes] = jitted.lower(state, *arrays).compile()
                timing.add("compile", start)
            return programs[shapes](state, *arrays)

        return call

    return wrap


def _one_by_one(step: Compiled, data: pipeline.Batch, compiled: Compile) -> Steps:
    call = compiled(step, P(device.AXIS), P(device.AXIS))

    def steps(state: State, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        for row in rows:
            state = call(state, data.images[row], data.labels[row])
            yield state, 1

    return steps


def _scanned(step: Compiled, data: pipeline.Batch, compiled: Compile, mesh: Mesh) -> Steps:
    images, labels = device.on_all((data.images, data.labels), mesh)

    def scan(state: State, images: jax.Array, labels: jax.Array, rows: jax.Array) -> State:
        return jax.lax.scan(lambda s, row: (step(s, images[row], labels[row]), None), state, rows)[0]

    call = compiled(scan, P(), P(), P(None, device.AXIS))

    def steps(state: State, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        for first in range(0, len(rows), SCAN_STEPS):
            part = rows[first : first + SCAN_STEPS]
            state = call(state, images, labels, part)
            yield state, len(part)

    return steps


def _streamed(step: Compiled, source: pipeline.Source, compiled: Compile, mesh: Mesh) -> Steps:
    call = compiled(step, P(device.AXIS), P(device.AXIS))
    shares = NamedSharding(mesh, P(device.AXIS))

    def steps(state: State, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        batches = (jax.device_put((batch.images, batch.labels), shares) for batch in pipeline.train_batches(source, rows))
        batch = next(batches, None)
        while batch:
            state = call(state, *batch)
            batch = next(batches, None)  # on its way to the device while that computes the step
            yield state, 1

    return steps


def _without_weights(state: State) -> dict[str, Any]:
    """The state without the weights, which have their own place in a checkpoint."""
    return {name: value for name, value in state._asdict().items() if name != "weights"}


def _means(state: State, rate: optax.Schedule) -> tuple[float, float]:
    """Loss and accuracy of the epoch so far.

    Raises:
      UserError: the loss is no longer finite.
    """
    totals, bad = jax.device_get((state.totals, state.bad_step))
    if bad >= 0:
        raise UserError(_diverged(int(bad), rate))
    return float(totals.loss) / int(totals.images), int(totals.correct) / int(totals.images)


def _diverged(step: int, rate: optax.Schedule) -> str:
    return (
        f"The loss became NaN or infinite at step {step + 1}, where the learning rate was {_float(rate(step)):.3g}; "
        "train again with a smaller one, such as --set train.learning_rate=1e-3."
    )


def _float(value: Any) -> float:
    return float(value)


def _merit(found: HeldOut) -> tuple[float, float]:
    """What the best checkpoint has most of: accuracy, and of two equal ones the smaller loss."""
    return found.accuracy, -found.loss


def _stopped(run: Path, step: int) -> str:
    return f"Stopped, with everything saved at step {step}; go on with `covidjax train --resume --run {run}`."


def _name(where: device.Device) -> str:
    return f"CPU, {os.cpu_count()} cores" if where.platform == "cpu" else f"{where.device_kind} ({where.platform})"
