"""What lies in a run's folder beside its checkpoints and its report: settings, log, lock, and what was trained on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from covidjax import files
from covidjax.config import Config, Preprocess, modernize
from covidjax.errors import UsageError, UserError
from covidjax.runs.weights_record import WeightsRecord
from covidjax.toml import from_table, read_toml

CONFIG, LOG, TRAINED_ON, LOCK = "config.toml", "metrics.jsonl", "trained_on.txt", ".lock"
INITIAL_TRAINED_ON = "initial_trained_on.txt"
"""Keys of the images that the weights were trained on that a run started from."""

FORMER_TRAINED_ON = "seen.txt"
"""What earlier versions called ``TRAINED_ON``."""


@dataclass(frozen=True)
class Run:
    """What ``config.toml`` of a run holds: its settings and the preprocessing of the dataset it was trained on."""

    config: Config
    preprocess: Preprocess
    dataset: str = ""
    """Fingerprint of the dataset, so that its held-out fold is known again."""
    segmenter: str = ""
    """Digest of the weights that found the lungs in the dataset; empty for whole images."""
    init: WeightsRecord = field(default_factory=WeightsRecord)
    """What ``train.init`` started it from; runs of earlier versions have none."""

    def save(self, path: Path) -> None:
        """Write as TOML, whole or not at all."""
        files.write_atomic(path, self.text())

    def text(self) -> str:
        """As TOML; ``None`` is an absent key."""
        table = dataclasses.asdict(self, dict_factory=lambda items: dict(item for item in items if item[1] is not None))
        return tomli_w.dumps(table)

    @classmethod
    def parse(cls, text: str, where: str) -> Run:
        """Read what ``text`` gave.

        Args:
          text: the TOML.
          where: its file, for messages.

        Raises:
          UserError: it is damaged.
        """
        try:
            return cls._from_table(tomllib.loads(text), where)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{where} is damaged ({error}); put back the file as it was written.") from error

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what ``save`` wrote.

        Raises:
          UserError: the file is missing or damaged.
        """
        if not path.is_file():
            raise UserError(f"{path.parent} is not a run: it has no {path.name}; name a folder that `covidjax train` made.")
        return cls._from_table(read_toml(path), str(path))

    @classmethod
    def _from_table(cls, table: dict[str, Any], where: str) -> Run:
        if isinstance(settings := table.get("config"), dict):
            modernize(settings)
        return from_table(cls, table, where=where)


def create_run(run: Path, settings: Run, initial_trained_on: Iterable[str] = ()) -> None:
    """Make a run's folder and write its settings; from here on --resume goes on, whatever happens.

    Args:
      run: the folder.
      settings: its settings.
      initial_trained_on: keys of the images that the weights it starts from were trained on.

    Raises:
      UserError: the folder holds anything else, since nothing is overwritten, or it cannot be written.
    """
    try:
        str(run).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{os.fsencode(run)!r} cannot be a run's folder: its name is not UTF-8; choose another.") from None
    with files.explaining(run):
        run.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in run.iterdir()} - {LOCK}
        killed = (INITIAL_TRAINED_ON, *(files.hidden_name(name, ".partial") for name in (INITIAL_TRAINED_ON, CONFIG)))
        inside = {name for name in inside if not name.startswith(killed)}  # without what a process that was killed left
    if CONFIG in inside:
        raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with --run.")
    if inside:
        raise UserError(f"{run} holds other files, such as {min(inside)}; name a new or an empty folder with --run.")
    (run / INITIAL_TRAINED_ON).unlink(missing_ok=True)
    if keys := sorted(set(initial_trained_on)):
        files.write_atomic(run / INITIAL_TRAINED_ON, "".join(f"{key}\n" for key in keys))
    settings.save(run / CONFIG)


def read_run(run: Path) -> Run:
    """Settings and preprocessing of a run.

    Raises:
      UserError: there is no such run, or its settings are damaged.
    """
    if not run.exists():
        raise UsageError(f"{run} does not exist; name a folder that `covidjax train` made, such as one under runs/.")
    return Run.load(run / CONFIG)


def member_folders(run: Path) -> list[Path]:
    """The folders of the networks of a cross-validation or an ensemble, each a run; empty for a single run."""
    train = Run.load(run / CONFIG).config.train
    by_source = train.cv and train.cv_by == "source"
    parts = [r"source-(.+)" if by_source else r"fold(\d+)"] * train.cv + [r"member(\d+)"] * (train.ensemble > 1)
    if not parts:
        return []
    name = re.compile("-".join(parts), re.ASCII)
    matches = [name.fullmatch(path.parent.name) for path in run.glob(f"*/{CONFIG}")]

    def by_number(match: re.Match[str]) -> list[tuple[int, str]]:
        return [(int(part) if part.isdecimal() else -1, part) for part in match.groups()]

    return [run / match.string for match in sorted(filter(None, matches), key=by_number)]


def network_folders(run: Path) -> list[Path]:
    """The folder of every network of a run: those of its members, or its own for a single run."""
    return member_folders(run) or [run]


def lock(run: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a run's folder for this process alone until the block ends.

    Raises:
      UserError: another process holds it.
    """
    return files.lock(run / LOCK, f"{run} is being trained by another process; wait for it, or name another folder.")


def append_log(run: Path, record: dict[str, Any]) -> None:
    """Add a line to the log, on disk before this returns."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_log(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the log; one that was half written when the process ended is left out."""
    log = run / LOG
    records = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return records


def unfinished(run: Path) -> str:
    """How far a run that was not trained to its end is, in words; empty where it was."""
    networks = [network for network in network_folders(run) if (network / LOG).exists()]
    epochs = Run.load(run / CONFIG).config.train.epochs
    done = [max((record["epoch"] for record in read_log(network)), default=0) for network in networks]
    if min(done, default=epochs) >= epochs:
        return ""
    if len(networks) == 1:
        return f"{done[0]} of {epochs} epochs are done"
    return f"{sum(count >= epochs for count in done)} of {len(networks)} networks are trained to their end"


def truncate_log(run: Path, epochs: int) -> None:
    """Drop the lines that were written after the checkpoint: those epochs come again."""
    kept = [record for record in read_log(run) if record["epoch"] <= epochs]
    files.write_atomic(run / LOG, "".join(f"{json.dumps(record)}\n" for record in kept))


def write_trained_on(run: Path, keys: Iterable[str]) -> None:
    """Note the keys that the training images can be known by in another dataset, one a line."""
    files.write_atomic(run / TRAINED_ON, "".join(f"{key}\n" for key in sorted(set(keys))))


def read_trained_on(run: Path) -> set[str]:
    """Read what ``write_trained_on`` noted.

    Raises:
      UserError: the run has no such file.
    """
    for name in (TRAINED_ON, FORMER_TRAINED_ON):
        if (run / name).is_file():
            return set((run / name).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    raise UserError(f"{run} has no {TRAINED_ON}, which tells what it was trained on; evaluate it on its own test fold.")


def read_initial_trained_on(run: Path) -> frozenset[str]:
    """Keys of the images that the weights were trained on that a run started from; none of a run from scratch."""
    if not (run / INITIAL_TRAINED_ON).is_file():
        return frozenset()
    return frozenset((run / INITIAL_TRAINED_ON).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
