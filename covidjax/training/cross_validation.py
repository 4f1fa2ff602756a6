"""Several networks of one run: the folds of a cross-validation, the seeds of an ensemble, or both.

They are trained one after another by ``train.fit``, or, where that is asked for, together: one program over a stacked
state, of which each network comes to what it would have come to alone, within rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from covidjax import device, metrics
from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.inference.forward import make_forward
from covidjax.models import Weights
from covidjax.runs import checkpoint, folder
from covidjax.runs.folder import Run
from covidjax.runs.recorder import Recorder
from covidjax.timing import Stopwatch, Timing
from covidjax.training.engine import SCAN_STEPS, Engine
from covidjax.training.loop import TELL_SECONDS, Progress, Result, fit
from covidjax.training.predictions import Predictions, concatenate, ensemble_mean
from covidjax.training.step import State, StepInputs, make_step


def network_configs(config: Config, folds: int) -> dict[str, Config]:
    """The settings of each network of a cross-validation or an ensemble, by the name of its folder; empty for a single run.

    Args:
      config: of the whole; of a validation fold its distance from the test fold is kept, round and round the folds.
      folds: of the dataset.
    """
    train, data = dataclasses.replace(config.train, cv=False, ensemble=1), config.data
    held_out, seeds = {"": data}, {"": config.seed}
    if config.train.cv:
        apart = None if data.val_fold is None else data.val_fold - data.test_fold
        val_folds = [None if apart is None else (fold + apart) % folds for fold in range(folds)]
        held_out = {
            f"fold{fold}": dataclasses.replace(data, test_fold=fold, val_fold=val) for fold, val in enumerate(val_folds)
        }
    if config.train.ensemble > 1:
        seeds = {f"member{number}": (config.seed + number) % 2**32 for number in range(config.train.ensemble)}
    each = {
        "-".join(filter(None, (fold, member))): dataclasses.replace(config, seed=seed, data=films, train=train)
        for fold, films in held_out.items()
        for member, seed in seeds.items()
    }
    return each if len(each) > 1 else {}


class CrossValidation(NamedTuple):
    """What a cross-validation or an ensemble amounts to."""

    networks: dict[str, Result]
    """By the name of its folder."""
    folds: dict[str, metrics.AnyMetrics]
    """On each test fold, by its network, or by the mean probabilities of its networks."""
    metrics: metrics.AnyMetrics
    """On the films of all of them."""
    timing: Timing
    """Of this call."""
    together: bool
    """Whether they were trained as one program."""


def train_networks(
    config: Config,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    progress: Callable[[str], Progress],
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> CrossValidation:
    """Train every network of a cross-validation or an ensemble, each in a folder of its own that is a run by itself.

    Args:
      config: with ``train.cv`` or ``train.ensemble``.
      dataset: what to train on.
      run: a folder for ``config.toml`` and the networks' folders, ``fold0`` …, ``member0`` … or ``fold0-member0`` ….
      resume: go on from the last checkpoints; what has been trained to its end is only tested again.
      progress: the one to tell, by what the network is called, such as ``fold 2/5``.
      say: told in words which way was taken, and why.
      stop: as for ``train``; of networks that are trained together asked after every epoch.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, folds that there are not, a checkpoint that does not fit.
    """
    began = time.perf_counter()
    timing = Timing()
    dataset.split(config.data.test_fold, config.data.val_fold)
    configs = network_configs(config, dataset.folds)
    if not resume:
        folder.create_run(run, Run(config, dataset.preprocess, dataset.fingerprint, dataset.segmenter))
    with folder.lock(run):
        for name, each in configs.items():
            if not (run / name / folder.CONFIG).exists():
                folder.create_run(run / name, Run(each, dataset.preprocess, dataset.fingerprint, dataset.segmenter))
        program = Engine(config, dataset, timing)
        kind = "network" if config.train.cv and config.train.ensemble > 1 else "fold" if config.train.cv else "member"

        def member(number: int) -> Recorder:
            name, settings = list(configs.items())[number]
            return Recorder(settings, dataset, run / name, progress(f"{kind} {number + 1}/{len(configs)}"), run)

        results = None
        if config.train.together == "yes":
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(member(number)) for number in range(len(configs))]
                reason = _why_not(opened, program)
                if not reason:
                    try:
                        results = _fit_together(opened, program, stop)
                        reason = "" if results else "they have come to different epochs"
                    except jax.errors.JaxRuntimeError as error:
                        if "RESOURCE_EXHAUSTED" not in str(error):
                            raise
                        reason = "the device's memory is too small for them together"
            if reason:
                say(f"The networks are trained one after another: {reason}.")
        together = results is not None
        if results is None:
            results = []
            for number in range(len(configs)):
                with member(number) as each:
                    results.append(fit(each, program, stop))
    timing.add("wall", began)
    examined = predictions_by_fold(list(configs.values()), [result.examined for result in results])
    measure = functools.partial(program.task.measure, classes=dataset.preprocess.classes)
    folds = {fold: measure(found) for fold, found in examined.items()}
    whole = measure(concatenate(list(examined.values())))
    return CrossValidation(dict(zip(configs, results, strict=True)), folds, whole, timing, together)


def predictions_by_fold(configs: Sequence[Config], each: Sequence[Predictions]) -> dict[str, Predictions]:
    """What networks found of their test folds, by fold: of several networks the mean probabilities."""
    found: dict[str, list[Predictions]] = {}
    for config, own in zip(configs, each, strict=True):
        found.setdefault(f"fold{config.data.test_fold}", []).append(own)
    return {fold: ensemble_mean(own) if len(own) > 1 else own[0] for fold, own in found.items()}


def _why_not(opened: Sequence[Recorder], program: Engine) -> str:
    """Why the networks cannot be trained together, or nothing; then they all have the same epoch as their last."""
    if program.data is None:
        return "the images do not lie in the device's memory"
    if program.data.masks is not None:
        return "that is for classifiers"
    if len({member.batch for member in opened}) > 1:
        return "a fold has fewer images than a batch"
    reached = [[step / member.epoch_steps for step in checkpoint.steps(member.run, "last")] for member in opened]
    if any(epochs and epochs[-1] == member.config.train.epochs for epochs, member in zip(reached, opened, strict=True)):
        return "some of them are finished"
    # A process that was killed while it saved leaves some of them a checkpoint ahead, and that one is made again.
    ends = [epochs[-1] if epochs else 0 for epochs in reached]
    common = min(ends)
    for epochs in reached:
        if common % 1 or common not in [0, *epochs][-2:]:
            return "they have come to different epochs"
    for epochs, member in zip(reached, opened, strict=True):
        if epochs and epochs[-1] > common:
            checkpoint.drop(member.run, "last", round(epochs[-1] * member.epoch_steps))
    return ""


class _Programs:
    """The compiled programs of stacked networks, on the first device alone."""

    def __init__(self, program: Engine):
        assert program.data
        mesh = device.mesh(1)
        self._images, self._targets = device.replicate((program.data.images, program.data.labels), mesh)
        self.labels = program.data.labels
        self._scan = program.accelerated
        self._eval_batch = program.eval_batch
        step = make_step(program.network, program.task, program.optimizer, program.scaled, averaging=program.averaging)

        def advance(state: State, given: StepInputs, images: Any, labels: Any, rows: Any, real: Any) -> State:
            """A step of every network; of one whose epoch is over already ``real`` is false, and its state stays."""

            def one(state: State, given: StepInputs, rows: Any, real: Any) -> State:
                new = step(state, given, images[rows], labels[rows])
                return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)

            return jax.vmap(one)(state, given, rows, real)

        def scan(state: State, given: StepInputs, images: Any, labels: Any, rows: Any, real: Any) -> State:
            return jax.lax.scan(lambda s, x: (advance(s, given, images, labels, *x), None), state, (rows, real))[0]

        def forward(views: Literal[1, 10]) -> Callable[..., Any]:
            one = make_forward(program.network, dataclasses.replace(program.model, views=views))

            def all_of(weights: Weights, images: Any, rows: Any) -> Any:
                return jax.vmap(lambda weights, rows: one(weights, images[rows]))(weights, rows)

            return program.compiled(mesh, all_of, P(), P(), donated=False)

        self._advance = program.compiled(mesh, scan if self._scan else advance, *[P()] * 5)
        self._forward, self._glance = forward(program.model.views), forward(1)
        self.apart = jax.jit(_apart, static_argnums=1)

    def steps(self, state: State, given: StepInputs, orders: Sequence[np.ndarray]) -> Iterator[tuple[State, int]]:
        """Takes the stacked state through an epoch, of which each network has its own rows ``[steps, batch]``; yields it,
        with the images that were trained on, after every call of the device."""
        longest = max(map(len, orders))
        rows = np.stack([np.pad(order, ((0, longest - len(order)), (0, 0))) for order in orders], 1)
        real = np.stack([np.arange(longest) < len(order) for order in orders], 1)
        size = SCAN_STEPS if self._scan else 1
        for first in range(0, longest, size):
            part = slice(first, first + size) if self._scan else first
            state = self._advance(state, given, self._images, self._targets, rows[part], real[part])
            yield state, int(real[part].sum()) * rows.shape[-1]

    def logits(self, weights: Weights, rows: Sequence[np.ndarray], *, once: bool = False) -> list[np.ndarray]:
        """Logits ``[N, classes]`` of each network's own rows ``[N]``, by its own weights; ``once`` as ``Task.examine`` has
        it."""
        forward = self._glance if once else self._forward
        longest = max(map(len, rows))
        size = min(self._eval_batch, longest)
        padded = np.stack([np.pad(each, (0, -(-longest // size) * size - len(each))) for each in rows])
        pending = [
            forward(weights, self._images, padded[:, first : first + size]) for first in range(0, padded.shape[1], size)
        ]
        found = np.concatenate(jax.device_get(pending), 1)
        return [logits[: len(each)] for logits, each in zip(found, rows, strict=True)]


def _fit_together(opened: Sequence[Recorder], program: Engine, stop: Callable[[], bool]) -> list[Result] | None:
    """Train networks that have come to the same epoch to their end, as one program, and test them; or do nothing, where a
    damaged checkpoint put one of them back."""
    timing, epochs = program.timing, opened[0].config.train.epochs
    programs = _Programs(program)
    starts = [member.start(program) for member in opened]
    if len({int(state.step) // member.epoch_steps for (state, _), member in zip(starts, opened, strict=True)}) > 1:
        return None
    state = _stacked([state for state, _ in starts])
    longest = max(len(given.learning_rates) for _, given in starts)
    given = _stacked(
        [
            g._replace(learning_rates=np.pad(g.learning_rates, (0, longest - len(g.learning_rates)), "edge"))
            for _, g in starts
        ]
    )
    names = list(opened[0].held_out)
    labels = programs.labels
    held_out = {name: [member.held_out[name] for member in opened] for name in names}

    def means(state: State) -> list[tuple[float, float]]:
        totals, bad_steps = jax.device_get((state.totals, state.bad_step))
        each = zip(opened, _apart(totals, len(opened)), bad_steps, strict=True)
        return [member.means(own, bad) for member, own, bad in each]

    for epoch in range(int(starts[0][0].step) // opened[0].epoch_steps, epochs):
        clock = Stopwatch(timing)
        told_at = -np.inf
        for new_state, images in programs.steps(state, given, [member.order(epoch) for member in opened]):
            state = new_state
            clock.add(images)
            if time.perf_counter() - told_at >= TELL_SECONDS:
                taken = np.asarray(state.step)
                for member, found, step in zip(opened, means(state), taken, strict=True):
                    member.progress.step(epoch + 1, int(step) - epoch * member.epoch_steps, *found, clock.speed)
                told_at = time.perf_counter()
        trained = means(state)
        clock.done()

        start = time.perf_counter()
        logits = {name: programs.logits(state.weights, rows, once=True) for name, rows in held_out.items()}
        timing.add("evaluate", start, sum(len(each) for rows in held_out.values() for each in rows))
        state = state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
        measured = [
            {name: program.task.summary(logits[name][at], labels[member.held_out[name]]) for name in names}
            for at, member in enumerate(opened)
        ]
        for member, means_of, found in zip(opened, trained, measured, strict=True):
            member.log(epoch, means_of, found, clock.speed)
        finished = epoch + 1 == epochs
        stopping = stop()
        saving = finished or stopping or any(member.due() for member in opened)
        better = [member.better(found) for member, found in zip(opened, measured, strict=True)]
        if saving or any(better):
            for member, found, own, best in zip(opened, measured, programs.apart(state, len(opened)), better, strict=True):
                if best:
                    member.choose(own, epoch, found)
                if saving:
                    member.save(own, epoch + 1)
        if stopping and not finished:
            raise opened[0].interrupted(f"epoch {epoch + 1}")

    weights = _stacked([member.saved() for member in opened])
    start = time.perf_counter()
    tested = programs.logits(weights, held_out["test"])
    timing.add("evaluate", start, sum(map(len, tested)))
    return [
        member.result(found, labels[rows]) for member, found, rows in zip(opened, tested, held_out["test"], strict=True)
    ]


def _apart(tree: Any, count: int) -> list[Any]:
    """Stacked trees, one by one."""
    return [jax.tree.map(operator.itemgetter(at), tree) for at in range(count)]


def _stacked(trees: Sequence[Any]) -> Any:
    """The leaves of alike trees along a new first axis, on the first device."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(trees)))
    return device.replicate(stacked, device.mesh(1))
