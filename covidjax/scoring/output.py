"""Rows of scores to a file: CSV, JSON lines or Parquet, by the file's ending.

Rows are appended as they come, and what was written is a whole table at every moment: whole lines, or whole Parquet
files in a folder beside the one that they become. A job that was broken off, even by a power cut, goes on from its last
whole row. Beside the table lies, until it is finished, a file that tells what makes it and that holds it for one process
alone.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from covidjax.errors import UsageError, UserError, printable
from covidjax.scoring.classifier import Row

SUFFIXES = (".csv", ".jsonl", ".parquet")

SYNC_SECONDS = 5.0
"""Most time that rows wait until they are on disk for good, and that Parquet's wait to be written."""

RESUMED_COLUMNS = ("path", "status", "prediction", "warning", "lungs")
"""What is read again of the rows of an earlier command."""


class PreviousRow(NamedTuple):
    """A row that an earlier command wrote; ``RESUMED_COLUMNS`` of it, empty where the table has no such column."""

    path: str
    status: str
    prediction: str
    warning: str
    lungs: str


class RowWriter(Protocol):
    """Takes rows one by one; what was written is kept even when the work breaks off."""

    earlier: list[PreviousRow]
    """The rows of the job that goes on."""
    finished: bool
    """Whether that job came to its end."""

    def key(self, path: str) -> str:
        """A path as this format's rows have it."""
        ...

    def write(self, row: Row) -> None: ...


def check_suffix(path: Path) -> None:
    """Raises UsageError where a file's ending names no format."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has none of the endings {', '.join(SUFFIXES)}, which choose the format; name it so.")


class TableWriter(Protocol):
    """Takes the cells of a row, by column."""

    earlier: list[PreviousRow]
    finished: bool

    def key(self, path: str) -> str: ...
    def write(self, cells: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def open_output(
    path: Path,
    classes: Sequence[str],
    *,
    lungs: bool = False,
    facts: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Iterator[RowWriter]:
    """A writer of rows to a file ending in ``.csv``, ``.jsonl`` or ``.parquet``, with the column ``lungs`` if asked for.

    Args:
      path: the file. One that is there is replaced, unless it holds the rows of a job that was broken off.
      classes: of the model.
      lungs: whether there is that column.
      facts: what the rows follow from, besides the films: a job goes on only where these are the same. Without them
        none goes on.
      resume: keep the rows that are there, and append.

    Raises:
      UserError: another ending, a place that cannot be written, Parquet without pyarrow, a file that another process
        writes, a job that cannot go on.
    """
    columns = Row("", "", "", None, {}, "").cells(classes, lungs=lungs)
    with open_table(path, list(columns), facts=facts, resume=resume) as table:
        yield _Rows(table, classes, lungs)


@contextlib.contextmanager
def open_table(
    path: Path, columns: Sequence[str], *, facts: Mapping[str, Any] | None = None, resume: bool = False
) -> Iterator[TableWriter]:
    """The same for any columns, the first of which are ``path`` and ``status``."""
    kinds = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}
    check_suffix(path)
    kind = kinds[path.suffix.lower()]
    with contextlib.ExitStack() as stack:
        with _telling(path):
            job = stack.enter_context(_Job(path))
        wanted = {"columns": list(columns), **(facts or {})}
        there = kind.exists(path)
        if facts is not None and job.facts and there:
            if not resume:
                raise UserError(f"{path} holds the rows of a job that was interrupted; go on with --resume, or remove it.")
            if job.facts != wanted:
                other = ", ".join(key for key in wanted if job.facts.get(key) != wanted[key])
                raise UserError(
                    f"{path} was begun with another {other or 'version'}; resume with the same, or name another --output."
                )
        try:
            with _telling(path):
                if not there:
                    job.begin(wanted)
                writer = kind(path, columns, resume and there)
                writer.finished = resume and there and not job.facts
                if there and not writer.finished and job.facts != wanted:
                    job.begin(wanted)
        except BaseException:
            if not job.facts:
                job.end()
            raise
        try:
            yield _Told(path, writer)
        except BaseException:
            with _telling(path):
                writer.close()
            if not writer.count or writer.finished:
                job.end()
            raise
        with _telling(path):
            writer.close()
        job.end()


class _Job:
    """The file beside a table that says what makes it; held by this process alone until the block ends."""

    def __init__(self, table: Path):
        self._table, self._path = table, table.with_name(f".{table.name}.job")
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> _Job:
        while True:
            self._file = self._path.open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise UserError(
                    f"{self._table} is being written by another command; wait for it, or name another file."
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == os.fstat(self._file.fileno()).st_ino:
                    break
            self._file.close()  # the other one has just ended, and removed it
        self._file.seek(0)
        with contextlib.suppress(ValueError):
            self.facts = json.loads(self._file.read(2**20))
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def begin(self, facts: Mapping[str, Any]) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps(facts))
        self._file.flush()
        os.fsync(self._file.fileno())

    def end(self) -> None:
        self._path.unlink(missing_ok=True)


class _Rows:
    def __init__(self, table: TableWriter, classes: Sequence[str], lungs: bool):
        self._table, self._classes, self._lungs = table, classes, lungs
        self.earlier, self.finished, self.key = table.earlier, table.finished, table.key

    def write(self, row: Row) -> None:
        self._table.write(row.cells(self._classes, lungs=self._lungs))


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); name a file in a folder that you may write to.") from error


class _Told:
    """A writer whose faults name the file."""

    def __init__(self, path: Path, writer: _Lines | _Parquet):
        self._path, self._writer = path, writer
        self.earlier, self.finished, self.key = writer.earlier, writer.finished, writer.key

    def write(self, cells: dict[str, Any]) -> None:
        with _telling(self._path):
            self._writer.write(cells)

    def close(self) -> None:
        self._writer.close()


class _Lines:
    """A table of lines, each written by one call of the system, so that there are whole ones only."""

    header = b""

    def __init__(self, path: Path, columns: Sequence[str], resume: bool):
        self._path, self._columns = path, columns
        self.earlier: list[PreviousRow] = []
        self.finished = False
        self._size = self._read() if resume else 0
        self._file = path.open("r+b" if resume else "wb", buffering=0)
        if resume:
            self._file.truncate(self._size)
            self._file.seek(self._size)
        self.count = len(self.earlier)
        self._synced = time.monotonic()
        if not self._size:
            try:
                self._append(self.header)
            except BaseException:
                self._file.close()
                raise

    @staticmethod
    def exists(path: Path) -> bool:
        return path.exists()

    def key(self, path: str) -> str:
        return path

    def write(self, cells: dict[str, Any]) -> None:
        self._append(self._line({key: _rounded(value) for key, value in cells.items()}))
        self.count += 1
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def _append(self, line: bytes) -> None:
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(line)

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # a device, perhaps, which cannot
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()
        if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            raise OSError("another file has taken its place")

    def close(self) -> None:
        try:
            self._sync()
        finally:
            self._file.close()

    def _read(self) -> int:
        """Take the whole rows that are there into ``earlier``; returns how many bytes they are."""
        raise NotImplementedError

    def _line(self, cells: dict[str, Any]) -> bytes:
        raise NotImplementedError

    def _other(self) -> UserError:
        return UserError(f"{self._path} has other columns than the rows of this job; name another --output.")


class _Csv(_Lines):
    def __init__(self, path: Path, columns: Sequence[str], resume: bool):
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._quoting = csv.writer(self._text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._writer.writerow(columns)
        self.header = self._taken()
        super().__init__(path, columns, resume)

    def _taken(self) -> bytes:
        # surrogateescape: a file name that is no UTF-8 comes out as the bytes it is.
        line = self._text.getvalue().encode("utf-8", "surrogateescape")
        self._text.seek(0)
        self._text.truncate()
        return line

    def _line(self, cells: dict[str, Any]) -> bytes:
        # The csv module quotes a line feed of itself, but not a carriage return.
        (self._quoting if "\r" in cells["path"] else self._writer).writerow(cells.values())
        return self._taken()

    def _read(self) -> int:
        whole = at = 0

        def texts() -> Iterator[str]:
            nonlocal at
            with self._path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        at += len(line)
                        yield line.decode("utf-8", "surrogateescape")

        with contextlib.suppress(csv.Error):
            for number, row in enumerate(csv.reader(texts())):
                if number == 0 and row != list(self._columns):
                    raise self._other()
                cells = dict(zip(self._columns, row, strict=False))
                if number and (len(row) != len(self._columns) or cells["status"] not in ("ok", "error")):
                    break
                whole = at
                if number:
                    self.earlier.append(_earlier(cells))
        return whole


class _JsonLines(_Lines):
    def _line(self, cells: dict[str, Any]) -> bytes:
        return json.dumps(cells).encode() + b"\n"

    def _read(self) -> int:
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                try:
                    cells = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    cells = None
                if not isinstance(cells, dict):
                    break
                if list(cells) != list(self._columns):
                    raise self._other()
                whole += len(line)
                self.earlier.append(_earlier(cells))
        return whole


class _Parquet:
    """A Parquet file is whole only when it is closed. So rows are written as small files into a folder, ``NAME.parts``, and
    become one file at the end, also where that is an early one."""

    GROUP = 1024
    """Rows held in memory before they are written."""

    def __init__(self, path: Path, columns: Sequence[str], resume: bool):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path} needs pyarrow; run `pip install 'covidjax[parquet]'` or write .csv.") from None
        numbers = {name for name in columns if name == "confidence" or name.startswith("p_")}
        self._schema = pyarrow.schema([(n, pyarrow.float32() if n in numbers else pyarrow.string()) for n in columns])
        self._table, self._parquet = pyarrow.Table.from_pylist, pyarrow.parquet
        self._path, self._columns, self._parts = path, columns, self._folder(path)
        self._rows: list[dict[str, Any]] = []
        self.earlier: list[PreviousRow] = []
        self.finished = False
        if not resume or path.exists():  # the file was made of the parts, if these are there too
            shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir(exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        elif path.exists():
            path.rename(self._name(0))
        for part in self._written():
            self._read(part)
        self.count = len(self.earlier)
        self._next = max((int(part.stem) for part in self._written()), default=-1) + 1  # one may have been removed
        self._flushed = time.monotonic()

    @staticmethod
    def _folder(path: Path) -> Path:
        return path.with_name(path.name + ".parts")

    @classmethod
    def exists(cls, path: Path) -> bool:
        return path.exists() or cls._folder(path).exists()

    def key(self, path: str) -> str:
        return printable(path)

    def _name(self, number: int) -> Path:
        return self._parts / f"{number:06}.parquet"

    def _written(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))

    def _read(self, part: Path) -> None:
        try:
            table = self._parquet.read_table(part)
        except (OSError, ValueError) as error:
            raise UserError(f"{part} is damaged; remove it to score its films again.") from error
        if not table.schema.equals(self._schema):
            raise UserError(f"{self._path} has other columns than the rows of this job; name another --output.")
        self.earlier += map(_earlier, table.select([name for name in RESUMED_COLUMNS if name in self._columns]).to_pylist())

    def write(self, cells: dict[str, Any]) -> None:
        # Parquet's text is UTF-8: a name that is not stands with escapes.
        self._rows.append({**cells, "path": printable(cells["path"])})
        self.count += 1
        if len(self._rows) >= self.GROUP or time.monotonic() - self._flushed >= SYNC_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            part = self._name(self._next)
            partial = part.with_suffix(".partial")
            with partial.open("wb") as file:
                self._parquet.write_table(self._table(self._rows, schema=self._schema), file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(part)
            self._next += 1
            self._rows.clear()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Make one file of the parts. Where that fails, a full disk perhaps, the parts stay."""
        self._flush()
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            with partial.open("wb") as file:
                with self._parquet.ParquetWriter(file, self._schema) as writer:
                    for part in self._written():
                        writer.write_table(self._parquet.read_table(part))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path)
        finally:
            partial.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)


def _earlier(cells: Mapping[str, Any]) -> PreviousRow:
    return PreviousRow(*(cells.get(name) or "" for name in RESUMED_COLUMNS))


def _rounded(value: Any) -> Any:
    """Probabilities to six decimals: float32 has no more to tell."""
    return round(value, 6) if isinstance(value, float) else value
