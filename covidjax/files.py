"""Files that are written whole or not at all, locks between processes, and tables in CSV."""

from __future__ import annotations

import csv
import fcntl
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from covidjax.errors import UserError
from covidjax.runs.folder import LOCK

if TYPE_CHECKING:
    pass


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns; what a row lacks is empty.

    Raises:
      UserError: it cannot be read as text in UTF-8, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets put a byte order mark first
            reader = csv.DictReader(file, restval="")
            missing = sorted(set(columns) - set(reader.fieldnames or ()))
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)}; give it that header.")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}); mend the file.") from error


def lock_folder(folder: Path, wait: bool) -> int:
    """A folder, made if need be, that no other process holds while the descriptor that is returned is open.

    Raises:
      BlockingIOError: another one does.
    """
    while True:
        folder.mkdir(exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if folder.exists() and os.path.samestat(folder.stat(), os.fstat(held)):
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # the other one has just finished, and renamed or removed it


def fsync(file: Path) -> None:
    held = os.open(file, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


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
