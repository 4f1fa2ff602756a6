"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from covidjax.errors import UserError

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota or a file that is full."""

MORE_SPACE = "free some space, and give the command again"
"""What mends these."""


def hidden_name(name: str, suffix: str) -> str:
    """The name of a hidden file that belongs to the file of this name and lies beside it: ``.NAME`` and the suffix. Where
    that would be too long for file systems, a digest stands for ``NAME``."""
    hidden = f".{name}{suffix}"
    if len(os.fsencode(hidden)) <= LONGEST_NAME:
        return hidden
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}{suffix}"


def hidden_beside(path: Path, suffix: str) -> Path:
    """The hidden file that belongs to ``path``, see ``hidden_name``."""
    return path.with_name(hidden_name(path.name, suffix))


def write_atomic(path: Path, content: str | bytes | Callable[[IO[bytes]], object], *, sync: bool = True) -> None:
    """Write a file so that it is there whole, or as it was before.

    Args:
      path: the file.
      content: text, bytes, or a function that writes to the open file it is given.
      sync: wait until it is on disk, so that this holds after a power cut too.

    Raises:
      OSError: it cannot be written.
    """
    # The process's number: two processes that write one file do not write into each other's.
    partial = hidden_beside(path, f".partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until what was written to a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def explaining(
    path: Path, remedy: str = "name a folder that you may write to", verb: str = "written", *, space: str = MORE_SPACE
) -> Iterator[None]:
    """Turn an OSError of the block into a sentence for the user.

    Args:
      path: what cannot be written.
      remedy: what to do about it.
      verb: what cannot be done with it.
      space: what to do where no space is left instead.

    Raises:
      UserError: ``path`` cannot be written, with the system's reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            remedy = space
        raise UserError(f"{path} cannot be {verb} ({error.strerror or error}); {remedy}.") from error


@contextlib.contextmanager
def lock(path: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file until the block, or this process, ends.

    Args:
      path: the lock file; it is made, and removed when the lock is let go.
      busy: what is said where another process holds it.
      wait: for the other process, rather than to fail.

    Raises:
      UserError: another process holds it.
      OSError: the file cannot be made.
    """
    import filelock  # here: it takes 25 ms, and most commands lock nothing

    file_lock = filelock.FileLock(path, timeout=-1 if wait else 0)
    try:
        file_lock.acquire()
    except filelock.Timeout:
        raise UserError(busy) from None
    try:
        yield
    finally:
        # While it is held: whoever waits for it sees that this one has no name any more, and makes another.
        path.unlink(missing_ok=True)
        file_lock.release()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8; bytes of names that are no UTF-8 stay as they are.

    Raises:
      OSError: it cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def cached(file: Path, make: Callable[[], bytes], *, keep: int) -> bytes:
    """The content of a file of a cache folder, or, where it is not there whole, made anew and put there.

    Args:
      file: its name stands for all that the content depends on.
      make: gives the content.
      keep: how many files of this suffix stay in the folder; the longest unused ones go.
    """
    with contextlib.suppress(OSError):
        content = file.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            os.utime(file)
            return content[32:]
    content = make()
    # A cache that cannot be written costs the next one some time, and nothing else.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, hashlib.sha256(content).digest() + content)
        for old in sorted(file.parent.glob(f"*{file.suffix}"), key=lambda path: path.stat().st_mtime)[:-keep]:
            old.unlink()
    return content
