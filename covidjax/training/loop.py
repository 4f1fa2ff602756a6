"""Training a network: its folder, its state, the loop, the result; ``fit`` reads from top to bottom.

A run that was stopped anywhere goes on from its last checkpoint to the same bits as one that never was: the order of
the images follows from the seed and the epoch, everything else from the state (see ``covidjax.step``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from covidjax import device
from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.runs import folder
from covidjax.runs.folder import Run
from covidjax.runs.recorder import Progress, Recorder, Result
from covidjax.timing import Stopwatch, Timing
from covidjax.training.engine import Engine
from covidjax.training.predictions import predict
from covidjax.training.step import zero_sums

TELL_SECONDS = 0.2
"""Least time between two looks at the loss within an epoch."""


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
      config: all settings, of a single run.
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
    dataset.split(config.data.test_fold, config.data.val_fold)  # before there is a folder
    if not resume:
        folder.create_run(run, Run(config, dataset.preprocess, dataset.fingerprint, dataset.segmenter))
    with Recorder(config, dataset, run, progress) as member:
        result = fit(member, Engine(config, dataset, timing), stop)
    timing.add("wall", began)
    return result


def fit(member: Recorder, program: Engine, stop: Callable[[], bool]) -> Result:
    """Train one network to its end, from wherever it is, and test it.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, a checkpoint that does not fit.
    """
    timing, epochs, epoch_steps = program.timing, member.config.train.epochs, member.epoch_steps
    mesh = device.mesh(member.batch)
    state, given = device.replicate(member.start(program), mesh)
    steps = program.steps(member.batch)
    done = int(state.step)
    for epoch in range(done // epoch_steps, epochs):
        clock = Stopwatch(timing)
        told_at = -np.inf
        for new_state, count in steps(state, given, member.order(epoch)[done - epoch * epoch_steps :]):
            state, done = new_state, done + count
            clock.add(count * member.batch)
            # Asking for the loss waits for the device, so that is done now and then only.
            if time.perf_counter() - told_at >= TELL_SECONDS:
                means = member.means(*jax.device_get((state.totals, state.bad_step)))
                member.progress.step(epoch + 1, done - epoch * epoch_steps, *means, clock.speed)
                told_at = time.perf_counter()
            stopping = stop()
            if (stopping or member.due()) and done % epoch_steps:
                member.save(state, epoch)
                if stopping:
                    raise member.interrupted(f"step {done}{member.name}")
        trained = member.means(*jax.device_get((state.totals, state.bad_step)))
        clock.done()

        start = time.perf_counter()
        found = {
            name: program.task.summary(*predict(program.glance, state.weights, program.batches(rows)))
            for name, rows in member.held_out.items()
        }
        timing.add("evaluate", start, sum(map(len, member.held_out.values())))
        member.log(epoch, trained, found, clock.speed)

        state = state._replace(totals=zero_sums())
        if member.better(found):
            member.choose(state, epoch, found)
        finished = epoch + 1 == epochs
        stopping = stop()
        if finished or stopping or member.due():
            member.save(state, epoch + 1)
        if stopping and not finished:
            raise member.interrupted(f"step {done}{member.name}")

    start = time.perf_counter()
    found, labels = predict(program.examine, member.saved(), program.batches(member.held_out["test"]))
    timing.add("evaluate", start, len(labels))
    return member.result(found, labels)
