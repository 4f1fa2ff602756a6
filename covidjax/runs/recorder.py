"""What a training run leaves on disk: its log and its checkpoints, and where it goes on from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from covidjax.files import explaining
from covidjax.runs import checkpoint, folder
from covidjax.runs.checkpoint import RESUME, CheckpointWriter, Saved
from covidjax.timing import Timing


class Recorder:
    """Writes the log and the checkpoints of one network; holds its folder for this process alone until the block ends.

    Args:
      run: its folder, with its settings in it.
      parent: the run that it is one of several networks of; None for a single run.
      keep_best: whether there is a validation fold, which chooses a best checkpoint.
      checkpoint_seconds: least time between two checkpoints.
      timing: told how long training waited for checkpoints.

    Raises:
      UserError: another process trains it, or there is no such run.
    """

    def __init__(
        self, run: Path, parent: Path | None = None, *, keep_best: bool, checkpoint_seconds: float, timing: Timing
    ):
        folder.read_run(run)  # says so where there is none
        self.run, self.parent = run, parent or run
        self.of_network = f" of {run.name}" if parent else ""
        """For messages, such as `` of fold1``."""
        self.best: list[float] | None = None
        """Selection key of the best checkpoint so far."""
        self._keep_best, self._checkpoint_seconds, self._timing = keep_best, checkpoint_seconds, timing
        self._writers: dict[str, CheckpointWriter] = {}
        self._began = self._saved_at = time.perf_counter()
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(folder.lock(run))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *reason: object) -> None:
        start = time.perf_counter()
        try:
            for writer in self._writers.values():
                writer.close()
        finally:
            self._lock.close()
        if self._writers:
            self._timing.add("checkpoint", start)

    def resume(self, expected: Callable[[], tuple[Any, Any]]) -> Saved | None:
        """Go back to the last checkpoint, if there is one: log and clock go on from there.

        Args:
          expected: gives shapes and dtypes, as trees of ``jax.ShapeDtypeStruct``, of the weights and of all else that
            training goes on from.

        Raises:
          UserError: a checkpoint of another network, or damaged ones only.
        """
        saved = checkpoint.restore(self.run, "last", *expected()) if checkpoint.steps(self.run, "last") else None
        if saved:
            self.best = saved.facts["best"]
        folder.truncate_log(self.run, saved.facts["epoch"] if saved else -1)  # a probe is epoch 0
        if log := folder.read_log(self.run):
            self._began -= log[-1]["seconds"]
        self._writers["last"] = CheckpointWriter(self.run, "last", keep=2)
        if self._keep_best:
            self._writers["best"] = CheckpointWriter(self.run, "best", keep=1)
        return saved

    def log(self, record: dict[str, Any], images_per_second: float) -> dict[str, Any]:
        """Write the line of an epoch; returns it with the time since the run was begun."""
        seconds = round(time.perf_counter() - self._began, 3)
        record |= {"seconds": seconds, "images_per_second": round(images_per_second, 1)}
        with explaining(self.run / folder.LOG, f"see that it may be written, {RESUME}", space=f"free some space, {RESUME}"):
            folder.append_log(self.run, record)
        return record

    def is_better(self, key: tuple[float, float]) -> bool:
        """Whether a selection key is above that of the best checkpoint."""
        return self._keep_best and (self.best is None or key > tuple(self.best))

    def save_best(self, step: int, weights: Any, training: Any, epochs: int, key: tuple[float, float]) -> None:
        """Begin the best checkpoint, after so many whole epochs."""
        self.best = list(key)
        self._save("best", step, weights, training, epochs)

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.perf_counter() - self._saved_at >= self._checkpoint_seconds

    def save(self, step: int, weights: Any, training: Any, epochs: int) -> None:
        """Begin a checkpoint after so many whole epochs, or within the one after them."""
        if self._keep_best:
            self._writers["best"].wait()  # before a state that knows of this best can be on disk
        self._save("last", step, weights, training, epochs)
        self._saved_at = time.perf_counter()

    def _save(self, kind: str, step: int, weights: Any, training: Any, epochs: int) -> None:
        start = time.perf_counter()
        self._writers[kind].save(step, weights, training, {"epoch": epochs, "best": self.best})
        self._timing.add("checkpoint", start)

    def final_weights(self, weights: Any) -> tuple[str, Any]:
        """The kind of checkpoint that the finished run is used by, and its weights.

        Args:
          weights: shapes and dtypes, as a tree of ``jax.ShapeDtypeStruct``.
        """
        for writer in self._writers.values():
            writer.wait()
        kind = checkpoint.selected_kind(self.run)
        return kind, checkpoint.restore(self.run, kind, weights).weights
