"""What lies in a run's folder beside its checkpoints and its report: settings, log, lock, and what was trained on."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from covidjax.config import Run, UsageError, UserError

if TYPE_CHECKING:
    from covidjax.pipeline import Source

CONFIG, LOG, SEEN, LOCK = "config.toml", "metrics.jsonl", "seen.txt", ".lock"


def make(run: Path) -> None:
    """Make a run's folder. One that holds anything else is refused: nothing of somebody else's is overwritten."""
    try:
        str(run).encode()
        run.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in run.iterdir()} - {LOCK, "config.partial"}
    except UnicodeEncodeError:
        raise UsageError(f"{os.fsencode(run)!r} cannot be a run's folder: its name is not UTF-8; choose another.") from None
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}); name a folder that you may write to.") from error
    if CONFIG in inside:
        raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with --run.")
    if inside:
        raise UserError(f"{run} holds other files, such as {min(inside)}; name a new or an empty folder with --run.")


def settings(run: Path) -> Run:
    """Settings and preprocessing of a run.

    Raises:
      UserError: there is no such run, or its settings are damaged.
    """
    if not run.exists():
        raise UsageError(f"{run} does not exist; name a folder that `covidjax train` made, such as one under runs/.")
    return Run.load(run / CONFIG)


def begin(run: Path, settings: Run) -> None:
    """Make a run's folder and write its settings; from here on --resume goes on, whatever happens."""
    make(run)
    settings.save(run / CONFIG)


def members(run: Path) -> list[Path]:
    """The folders of the networks of a cross-validation or an ensemble, each a run; empty for a single run."""
    train = Run.load(run / CONFIG).config.train
    parts = ["fold"] * train.cv + ["member"] * (train.ensemble > 1)
    if not parts:
        return []
    name = re.compile("-".join(rf"{part}(\d+)" for part in parts), re.ASCII)
    matches = [(name.fullmatch(path.parent.name), path.parent) for path in run.glob(f"*/{CONFIG}")]
    found = {tuple(map(int, match.groups())): folder for match, folder in matches if match}
    return [found[numbers] for numbers in sorted(found)]


def lock(run: Path) -> IO[str]:
    """Hold a run's folder for this process alone, until the file is closed or the process ends.

    Raises:
      UserError: another process holds it.
    """
    file = (run / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{run} is being trained by another process; wait for it, or name another folder.") from None
    return file


def append(run: Path, record: dict[str, Any]) -> None:
    """Add a line to the log, on disk before this returns."""
    with (run / LOG).open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def history(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the log; one that was half written when the process ended is left out."""
    log = run / LOG
    records = []
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return records


def keep_epochs(run: Path, epochs: int) -> None:
    """Drop the lines that were written after the checkpoint: those epochs come again."""
    kept = [record for record in history(run) if record["epoch"] <= epochs]
    log = run / LOG
    partial = log.with_suffix(".partial")
    partial.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
    partial.replace(log)


def write_seen(run: Path, source: Source) -> None:
    """Note in a run what its films can be known by again: ``seen.txt``, one key a line."""
    from covidjax import pipeline  # here: grain is slow to import, and scoring does without

    keys = sorted({key for keys in pipeline.identities(source) for key in keys})
    (run / SEEN).write_text("".join(f"{key}\n" for key in keys), errors="surrogateescape")


def read_seen(run: Path) -> set[str]:
    """What ``write_seen`` noted."""
    file = run / SEEN
    if not file.is_file():
        raise UserError(f"{run} has no {SEEN}, which tells what it was trained on; evaluate it on its own test fold.")
    return set(file.read_text(errors="surrogateescape").splitlines())
