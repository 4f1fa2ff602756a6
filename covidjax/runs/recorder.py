"""One network in training, alone or as a member of a cross-validation or an ensemble: its folder, its rows of the dataset,
and what is done at the end of an epoch. The loops are in ``train`` and ``together``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from covidjax import metrics
from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.models import Weights, count_parameters
from covidjax.runs import checkpoint, folder
from covidjax.runs.folder import Run
from covidjax.timing import Timing
from covidjax.training.engine import Engine
from covidjax.training.predictions import Predictions
from covidjax.training.step import State, StepInputs, class_weights, learning_rate, learning_rate_table


class Interrupted(UserError):
    """Training was asked to stop and saved its state first."""


class Progress(Protocol):
    """Told how the training of one network goes on."""

    def begin(self, what: str, steps: int, score: str) -> None:
        """Before the first step: what is trained on what, in words, how many steps an epoch has, and what beside the loss
        is told of them, such as ``accuracy``."""

    def step(self, epoch: int, step: int, loss: float, score: float, images_per_second: float) -> None:
        """Now and then within an epoch, with the means of the epoch so far."""

    def epoch(self, record: dict[str, Any]) -> None:
        """After every epoch, with the line for ``metrics.jsonl``."""


class Result(NamedTuple):
    """What a finished run amounts to."""

    metrics: metrics.AnyMetrics
    """On the test fold."""
    checkpoint: str
    """Which checkpoint was tested: ``last``, or ``best`` by the validation fold."""
    history: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    timing: Timing
    """Of this call: what came before a resumption is not in it. Members of one run share it."""
    parameters: int
    examined: Predictions
    """Of the films of the test fold."""


class Recorder:
    """One network in training; holds its folder for this process alone until the block ends.

    Args:
      config: of this network.
      dataset: what to train on.
      run: its folder, with its settings in it.
      progress: told how it goes on.
      whole: the run that is to be resumed, where it is another one than this folder.

    Raises:
      UserError: another process trains it, or its folds are not there.
    """

    def __init__(self, config: Config, dataset: Dataset, run: Path, progress: Progress, whole: Path | None = None):
        self.config, self.run, self.progress = config, run, progress
        self._whole, self._classes = whole or run, dataset.preprocess.classes
        self.name = f" of {run.name}" if whole else ""
        settings = config.train
        training, test, val = dataset.split(config.data.test_fold, config.data.val_fold)
        Run.load(run / folder.CONFIG)  # says so where there is none
        ends = np.cumsum([0, *(dataset.class_counts([fold]).sum() for fold in range(dataset.folds))])
        rows_of = [np.arange(ends[fold], ends[fold + 1], dtype=np.int32) for fold in range(dataset.folds)]
        self._rows = np.concatenate([rows_of[fold] for fold in training])
        self.held_out = {"test": rows_of[test[0]]} | ({"val": rows_of[val[0]]} if val else {})
        self.batch = min(settings.batch_size, len(self._rows))
        self.epoch_steps = len(self._rows) // self.batch
        self._class_weights = class_weights(settings, dataset.class_counts(training))
        self._seen = dataset.source([*training, *val])
        self._began = self._saved_at = time.perf_counter()
        self._best: list[float] | None = None
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(folder.lock(run))
        self._last = self._chosen = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *reason: object) -> None:
        start = time.perf_counter()
        try:
            for checkpoints in filter(None, (self._last, self._chosen)):
                checkpoints.close()
        finally:
            self._stack.close()
        if self._last:
            self._program.timing.add("checkpoint", start)

    def start(self, program: Engine) -> tuple[State, StepInputs]:
        """The state to go on from, fresh or of the last checkpoint, and what every step is given."""
        self._program = program
        settings = self.config.train
        table = learning_rate_table(
            learning_rate(settings, self.epoch_steps * settings.epochs), self.epoch_steps * settings.epochs
        )
        self._given = StepInputs(np.uint32(self.config.seed), table, self._class_weights)
        if checkpoint.steps(self.run, "last"):
            template = jax.eval_shape(lambda: program.fresh(0))
            saved = checkpoint.restore(self.run, "last", template.weights, without_weights(template))
            state = State(weights=saved.weights, **saved.training)
            self._best = saved.facts["best"]
            folder.truncate_log(self.run, saved.facts["epoch"])
            before = folder.read_log(self.run)
            self._began -= before[-1]["seconds"] if before else 0.0  # the clock goes on where it stopped
        else:
            state = program.fresh(self.config.seed)
            folder.truncate_log(self.run, 0)
            folder.write_trained_on(self.run, self._seen)
        self._last = checkpoint.CheckpointWriter(self.run, "last", keep=2)
        self._chosen = checkpoint.CheckpointWriter(self.run, "best", keep=1) if "val" in self.held_out else None
        done = int(state.step)
        parameters = f"{count_parameters(state.weights):,} parameters"
        what = f"{len(self._rows)} training images, {self.epoch_steps} steps an epoch, {parameters}"
        self.progress.begin(
            f"{program.describe()}; {what}; starting at step {done + 1}.", self.epoch_steps, program.task.score
        )
        return state, self._given

    def order(self, epoch: int) -> np.ndarray:
        """The rows of the dataset that each step of an epoch takes, int32 ``[steps, batch]``."""
        return self._rows[loader.epoch_rows(len(self._rows), self.batch, seed=self.config.seed, epoch=epoch)]

    def means(self, totals: Any, bad_step: Any) -> tuple[float, float]:
        """Loss and score of the epoch so far.

        Raises:
          UserError: the loss is no longer finite.
        """
        if bad_step >= 0:
            raise self._diverged(int(bad_step))
        return float(totals.loss) / int(totals.images), float(totals.score) / int(totals.images)

    def log(self, epoch: int, trained: tuple[float, float], found: dict[str, dict[str, float]], speed: float) -> None:
        """The line of an epoch, counted from 0, with what training and held-out folds came to."""
        done = (epoch + 1) * self.epoch_steps
        if not all(np.isfinite(value["loss"]) for value in found.values()):
            raise self._diverged(done - 1)
        loss, score = trained
        record = {"epoch": epoch + 1, "step": done, "learning_rate": self._rate(done - 1)}
        record["train"] = {"loss": loss, self._program.task.score: score}
        record |= found
        record["seconds"] = round(time.perf_counter() - self._began, 3)
        record["images_per_second"] = round(speed, 1)
        folder.append_log(self.run, record)
        self.progress.epoch(record)

    def better(self, found: dict[str, Any]) -> bool:
        """Whether the validation fold says that this epoch's weights are the best so far."""
        return "val" in found and (self._best is None or self._program.task.merit(found["val"]) > tuple(self._best))

    def choose(self, state: State, epoch: int, found: dict[str, Any]) -> None:
        """Keep the state after an epoch as the best one."""
        assert self._chosen
        start = time.perf_counter()
        self._best = list(self._program.task.merit(found["val"]))
        facts = {"epoch": epoch + 1, "best": self._best}
        self._chosen.save(int(state.step), self._kept(state), without_weights(state), facts)
        self._program.timing.add("checkpoint", start)

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.perf_counter() - self._saved_at >= self.config.train.checkpoint_seconds

    def save(self, state: State, epochs: int) -> None:
        """Begin a checkpoint of the state after so many whole epochs, or within the one after them."""
        assert self._last
        start = time.perf_counter()
        if self._chosen:
            self._chosen.wait()  # before a state that knows of this best can be on disk
        facts = {"epoch": epochs, "best": self._best}
        weights = self._kept(state) if epochs == self.config.train.epochs else state.weights
        self._last.save(int(state.step), weights, without_weights(state), facts)
        self._saved_at = time.perf_counter()
        self._program.timing.add("checkpoint", start)

    def _kept(self, state: State) -> Weights:
        """The weights that are to be used, not trained on."""
        if not self.config.train.refresh:
            return state.weights
        rows = self.order(0).ravel()  # as mixed as the batches of training
        return self._program.refreshed(state.weights, rows)

    def saved(self) -> Weights:
        """The weights that ``score`` will use, when training has ended."""
        for checkpoints in filter(None, (self._last, self._chosen)):
            checkpoints.wait()
        self._used = checkpoint.selected_kind(self.run)
        return checkpoint.restore(self.run, self._used, self._program.network.abstract()).weights

    def result(self, found: np.ndarray, labels: np.ndarray) -> Result:
        """What was found of the test fold by these weights, as the task's ``examine`` gives it, comes to."""
        program = self._program
        examined = Predictions(found, labels, loader.patients(program.source, self.held_out["test"]))
        measured = program.task.measure(examined, self._classes)
        parameters = count_parameters(program.network.abstract())
        return Result(measured, self._used, folder.read_log(self.run), program.timing, parameters, examined)

    def interrupted(self, at: str) -> Interrupted:
        """To be raised when everything is saved, at a step or an epoch."""
        return Interrupted(
            f"Stopped, with everything saved at {at}; go on with `covidjax train --resume --run {self._whole}`."
        )

    def _diverged(self, step: int) -> UserError:
        return UserError(
            f"The loss{self.name} became NaN or infinite at step {step + 1}, where the learning rate was "
            f"{self._rate(step):.3g}; train again with a smaller one, such as --set train.learning_rate=1e-3."
        )

    def _rate(self, step: int) -> float:
        return float(self._given.learning_rates[step])


def without_weights(state: State) -> dict[str, Any]:
    """The state without the weights, which have their own place in a checkpoint, and without what there is not."""
    return {name: value for name, value in state._asdict().items() if name != "weights" and (name != "newest" or value)}
