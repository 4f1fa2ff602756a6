"""Checkpoints of a run: the only file that knows orbax.

``checkpoints/last/<step>`` holds the weights, everything training needs to go on to the same bits, and a few facts;
``checkpoints/best/<step>`` the weights that did best on the validation fold, where there is one. Orbax writes into a
temporary folder and renames it, so a checkpoint is there whole or not at all. Nothing in it is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from covidjax.errors import UserError, one_line
from covidjax.files import NO_SPACE, write_atomic

# jax and orbax are imported where they are used: what a run holds can be told without the second they take.
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells of every step it takes, and of faults in pages

LOG = logging.getLogger(__name__)

_SEAL = "sha256.json"

RESUME = "then go on with --resume"
"""The end of every remedy: what was saved before stays."""

_SPACE, _RIGHTS = "free some space", "see that you may write there"
_FAULTS = {os.strerror(number): _SPACE for number in NO_SPACE}
_FAULTS |= {os.strerror(number): _RIGHTS for number in (errno.EACCES, errno.EPERM, errno.EROFS)}
"""The system's words for faults of a disk, which the storage library passes on among its own, and what mends them."""


class Saved(NamedTuple):
    """What one checkpoint holds."""

    step: int
    weights: Any
    training: Any
    """Optimizer and counters; None where only the weights were asked for."""
    facts: dict[str, Any]


class CheckpointWriter:
    """Writes the checkpoints of one kind (``last`` or ``best``) of a run, in the background.

    Args:
      run: the run's folder.
      kind: subfolder of ``checkpoints/``.
      keep: how many of the newest to keep.
    """

    def __init__(self, run: Path, kind: str, *, keep: int):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._folder = (run / "checkpoints" / kind).absolute()
        for step in steps(run, kind):  # a damaged one would stand in the way of its own step, which comes again
            with contextlib.suppress(OSError):  # what cannot be read just now may be whole
                if not _whole(self._folder / str(step)):
                    drop(run, kind, step)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, weights: Any, training: Any, facts: dict[str, Any]) -> None:
        """Start saving; the arrays are copied before this returns, so their buffers may be reused. A step that is
        there already is left as it is: a resumed run comes by it with the same bits.

        Raises:
          UserError: it, or the one before it, could not be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in (("weights", weights), ("training", training))}
        with self._naming_the_folder():
            self._manager.save(step, args=ocp.args.Composite(**items, facts=ocp.args.JsonSave(facts)))

    def wait(self) -> None:
        """Until everything begun is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._naming_the_folder():
            self._manager.wait_until_finished()
            for step in self._manager.all_steps():
                if not (self._folder / str(step) / _SEAL).exists():
                    _seal(self._folder / str(step))

    @contextlib.contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        # A full disk surfaces as whatever the storage library makes of it.
        except Exception as error:
            reason = next((reason for reason in _FAULTS if reason.lower() in _texts(error)), one_line(error))
            remedy = f"{_FAULTS.get(reason, 'mend that')}, {RESUME}"
            raise UserError(f"{self._folder} cannot be written ({reason}); {remedy}.") from error

    def close(self) -> None:
        """Wait, and let go of the folder."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what fails now has failed before, and was told
                self._manager.close()


def _texts(error: BaseException | None) -> str:
    """What an error and those that it follows from say, in lower case."""
    return "" if error is None else f"{error} {_texts(error.__cause__ or error.__context__)}".lower()


def steps(run: Path, kind: str) -> list[int]:
    """Steps of the whole checkpoints of a kind, oldest first."""
    folder = run / "checkpoints" / kind
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def selected_kind(run: Path) -> str:
    """The kind of checkpoint that a finished run is used by: ``best`` where a validation fold chose one, else ``last``."""
    return "best" if steps(run, "best") else "last"


def drop(run: Path, kind: str, step: int) -> None:
    """Remove a checkpoint, so that the one before it is the newest."""
    shutil.rmtree(run / "checkpoints" / kind / str(step))


def verify(run: Path, kind: str) -> tuple[int, str]:
    """The newest checkpoint of a kind whose files are those that were written, which is said where it is not the newest of
    all: its step, and a digest by which its content is known again.

    Raises:
      UserError: there is none.
    """
    finished = steps(run, kind)
    if not finished:
        raise UserError(f"{run} has no finished checkpoint; train it, or go on with `covidjax train --resume --run {run}`.")
    folder = run / "checkpoints" / kind
    for step in reversed(finished):
        if digests := _intact(folder / str(step)):
            _warn_of_damaged(folder, tuple(later for later in finished if later > step), step)
            return step, hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    raise _damaged(run, kind)


def _intact(folder: Path) -> dict[str, str] | None:
    """The digests of a checkpoint's files, or None where they are not those that were noted, or cannot be read."""
    try:
        return _whole(folder)
    except OSError:
        return None


def _whole(folder: Path) -> dict[str, str] | None:
    """As ``_intact``. Raises OSError where they cannot be read."""
    digests, seal = _digests(folder), folder / _SEAL
    try:
        return digests if digests and (not seal.exists() or json.loads(seal.read_bytes()) == digests) else None
    except (ValueError, RecursionError):
        return None


@functools.cache
def _warn_of_damaged(folder: Path, damaged: tuple[int, ...], used: int) -> None:
    """Say, once, that checkpoints are damaged, if any, and which step is used instead."""
    if damaged:
        names = ", ".join(str(folder / str(step)) for step in damaged)
        LOG.warning("Damaged: %s. The checkpoint before it is used, step %d.", names, used)


def _damaged(run: Path, kind: str) -> UserError:
    folder = run / "checkpoints" / kind
    instead = "use the last checkpoint" if kind == "best" and steps(run, "last") else "begin anew with --resume"
    return UserError(f"Every checkpoint in {folder} is damaged; remove that folder to {instead}, or train again.")


def restore(run: Path, kind: str, weights: Any, training: Any = None) -> Saved:
    """Load the newest checkpoint of a kind that is whole.

    Args:
      run: the run's folder.
      kind: ``last`` or ``best``.
      weights: shapes and dtypes that are expected, as a tree of ``jax.ShapeDtypeStruct``.
      training: the same for the optimizer and counters, or None to leave them out.

    Raises:
      UserError: there is none, it is damaged, or it is of another network.
    """
    import jax

    # Before orbax reads: its threads answer a damaged file with a page of tracebacks that name no cause.
    newest, _ = verify(run, kind)
    folder = run / "checkpoints" / kind
    expected = {"weights": weights} | ({"training": training} if training is not None else {})
    unreadable: list[int] = []
    for step in reversed(steps(run, kind)):
        if step > newest or (step < newest and not _intact(folder / str(step))):  # the newest was just verified
            continue
        try:
            items = _restore_step(run, folder, step, expected)
        except UserError:
            raise
        # One that was cut off before its digests were noted surfaces as whatever the storage library meets first.
        except Exception as error:
            if (folder / str(step) / _SEAL).exists():  # its bytes are right, so the fault lies elsewhere: it stays
                if isinstance(error, jax.errors.JaxRuntimeError):
                    raise
                remedy = "mend that, and give the command again"
                raise UserError(f"{folder / str(step)} cannot be restored ({one_line(error)}); {remedy}.") from error
            unreadable.append(step)
            if training is not None:
                drop(run, kind, step)  # its step comes again
            continue
        _warn_of_damaged(folder, tuple(unreadable), step)
        return Saved(step, items["weights"], items.get("training"), items["facts"])
    raise _damaged(run, kind)


def _restore_step(run: Path, folder: Path, step: int, expected: dict[str, Any]) -> Any:
    """The items of one checkpoint: the expected ones, which are trees of ``jax.ShapeDtypeStruct``, and ``facts``."""
    import jax
    import orbax.checkpoint as ocp

    # Onto this process's device, whatever the one was that trained: a GPU's run is scored on a CPU.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), expected)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in placed.items()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    handlers = {
        "weights": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "facts": ocp.JsonCheckpointHandler(),
    }
    with ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers) as manager:
        stored = manager.item_metadata(step)
        # Orbax would tell of a wrong shape by a page of tracebacks from its threads, so shapes are compared first.
        for name, tree in expected.items():
            if stored[name] is not None and _shapes(stored[name]) != _shapes(tree):
                problem = f"The checkpoint {folder / str(step)} is of another network than {run / 'config.toml'} says"
                raise UserError(f"{problem}; restore the run's own files, or train again.")
        return manager.restore(step, args=ocp.args.Composite(**items, facts=ocp.args.JsonRestore()))


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    import jax

    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path inside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _SEAL not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _seal(folder: Path) -> None:
    """Note the digests of a finished checkpoint. One that the process was killed before noting stays usable: orbax had
    finished it; only damage done later would go unnoticed until it is read."""
    write_atomic(folder / _SEAL, json.dumps(_digests(folder)))
