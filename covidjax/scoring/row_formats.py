"""Tables that grow row by row: CSV, JSON lines and Parquet.

The file holds whole rows only at every moment: whole lines, or whole Parquet files in a folder beside the one that they
become. So the rows of a process that was killed can be read, and appended to.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from covidjax.errors import UserError, printable
from covidjax.files import write_atomic
from covidjax.scoring.row import Row

SYNC_SECONDS = 5.0
"""Most time that rows wait until they are on disk for good, and that Parquet's wait to be written."""

RESUMED_COLUMNS = ("path", "status", "prediction", "warning", "lungs")
"""Columns that are read again of the rows of an earlier command."""


@contextlib.contextmanager
def naming_faults(path: Path) -> Iterator[None]:
    """OSErrors of the block as UserErrors that name the table."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); name a file in a folder that you may write to.") from error


class TableWriter:
    """Appends rows to a table; those that were written are kept even when the work breaks off.

    Args:
      path: the table.
      columns: the first two are ``path`` and ``status``.
      resume: read the rows that are there and append to them, instead of replacing the table.

    Attributes:
      previous_rows: rows that were there; ``RESUMED_COLUMNS`` of them.
      count: rows of the table.
      finished: whether the job whose table this is had come to its end.

    Raises:
      UserError: Parquet without pyarrow, a table of other columns.
      OSError: the table cannot be read or written.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, list(columns)
        self.previous_rows: list[Row] = []
        self.count = 0
        self.finished = False
        self._synced = time.monotonic()

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether anything was written to the table."""
        return path.exists() and path.stat().st_size > 0

    def key(self, path: str) -> str:
        """A path as the rows of this format hold it."""
        return path

    def begin(self) -> None:
        """Write what stands before the first row."""

    def write(self, cells: Mapping[str, Any]) -> None:
        """Append a row, given its cells by column."""
        with naming_faults(self.path):
            self._append_row(cells)
            self.count += 1
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
                self._synced = time.monotonic()

    def close(self) -> None:
        """Bring all rows to disk."""
        raise NotImplementedError

    def _append_row(self, cells: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _sync(self) -> None:
        raise NotImplementedError

    def _add_previous(self, cells: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {name: cells.get(name) or "" for name in RESUMED_COLUMNS}
        self.previous_rows.append(Row(**values))
        self.count += 1

    def _other_columns(self) -> UserError:
        return UserError(f"{self.path} has other columns than the rows of this job; name another --output.")


class _LineWriter(TableWriter):
    """A table of lines, each written by one call of the system, so that there are whole ones only."""

    header = b""

    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool):
        super().__init__(path, columns)
        self._size = 0
        if resume:
            with path.open("rb") as file:
                for cells in self._read_rows(file):
                    self._add_previous(cells)
                    self._size = file.tell()
        self._file = path.open("r+b" if resume else "wb", buffering=0)
        if resume:
            self._file.truncate(self._size)
            self._file.seek(self._size)

    def begin(self) -> None:
        if not self._size:
            self._append(self.header)

    def _append_row(self, cells: Mapping[str, Any]) -> None:
        # Probabilities to six decimals: float32 has no more.
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in cells.items()}
        self._append(self._line(rounded))

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
        if not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
            raise OSError("another file has taken its place")

    def close(self) -> None:
        with naming_faults(self.path), self._file:
            self._sync()

    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        """The cells of every whole row, up to the first line that is none; ``file`` is then read up to that row's end."""
        raise NotImplementedError

    def _line(self, cells: dict[str, Any]) -> bytes:
        raise NotImplementedError


class CsvWriter(_LineWriter):
    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool):
        self.header = _csv_line(columns)
        super().__init__(path, columns, resume=resume)

    def _line(self, cells: dict[str, Any]) -> bytes:
        # The csv module quotes a line feed of itself, but not a carriage return.
        return _csv_line(cells.values(), csv.QUOTE_ALL if "\r" in cells["path"] else csv.QUOTE_MINIMAL)

    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        lines = (line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b"") if line.endswith(b"\n"))
        reader = csv.reader(lines)
        with contextlib.suppress(csv.Error):
            if next(reader, self.columns) != self.columns:
                raise self._other_columns()
            for row in reader:
                cells = dict(zip(self.columns, row, strict=False))
                if len(row) != len(self.columns) or cells["status"] not in ("ok", "error"):
                    return
                yield cells


def _csv_line(cells: Any, quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(cells)
    # surrogateescape: a file name that is no UTF-8 comes out as the bytes it is.
    return text.getvalue().encode("utf-8", "surrogateescape")


class JsonLinesWriter(_LineWriter):
    def _line(self, cells: dict[str, Any]) -> bytes:
        return json.dumps(cells).encode() + b"\n"

    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        for line in iter(file.readline, b""):
            try:
                cells = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(cells, dict):
                return
            if list(cells) != self.columns:
                raise self._other_columns()
            yield cells


class ParquetWriter(TableWriter):
    """A Parquet file is whole only when it is closed. So rows are written as small files into a folder, ``NAME.parts``, and
    become one file at the end, also where that is an early one."""

    GROUP = 1024
    """Rows held in memory before they are written."""

    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool):
        super().__init__(path, columns)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path} needs pyarrow; run `pip install 'covidjax[parquet]'` or write .csv.") from None
        numbers = {name for name in columns if name == "confidence" or name.startswith("p_")}
        types = [(name, pyarrow.float32() if name in numbers else pyarrow.string()) for name in columns]
        self._schema, self._parquet = pyarrow.schema(types), pyarrow.parquet
        self._to_table = pyarrow.Table.from_pylist
        self._parts_folder = _parts_folder(path)
        self._rows: list[Mapping[str, Any]] = []
        if resume:
            # Where the whole table is there, it was made of the parts that may be there too.
            for part in [path] if path.exists() else self._parts():
                self._read(part)
        if not resume or path.exists():
            shutil.rmtree(self._parts_folder, ignore_errors=True)
        self._parts_folder.mkdir(exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        elif path.exists():
            path.rename(self._part(0))
        # Not their count: one that was damaged may have been removed.
        self._next = max((int(part.stem) for part in self._parts()), default=-1) + 1

    @staticmethod
    def exists(path: Path) -> bool:
        return path.exists() or any(_parts_folder(path).glob("*.parquet"))

    def key(self, path: str) -> str:
        return printable(path)

    def _part(self, number: int) -> Path:
        return self._parts_folder / f"{number:06}.parquet"

    def _parts(self) -> list[Path]:
        return sorted(self._parts_folder.glob("*.parquet"))

    def _read(self, part: Path) -> None:
        try:
            table = self._parquet.read_table(part)
        except (OSError, ValueError) as error:
            raise UserError(f"{part} is damaged; remove it to score its images again.") from error
        if not table.schema.equals(self._schema):
            raise self._other_columns()
        for cells in table.select([name for name in RESUMED_COLUMNS if name in self.columns]).to_pylist():
            self._add_previous(cells)

    def _append_row(self, cells: Mapping[str, Any]) -> None:
        # Parquet's text is UTF-8: a name that is not stands with escapes.
        self._rows.append({**cells, "path": printable(cells["path"])})
        if len(self._rows) >= self.GROUP:
            self._sync()

    def _sync(self) -> None:
        if self._rows:
            table = self._to_table(self._rows, schema=self._schema)
            write_atomic(self._part(self._next), lambda file: self._parquet.write_table(table, file))
            self._next += 1
            self._rows.clear()

    def close(self) -> None:
        """Make one file of the parts. Where that fails, a full disk perhaps, the parts stay."""
        with naming_faults(self.path):
            self._sync()
            write_atomic(self.path, self._write_parts)
        shutil.rmtree(self._parts_folder, ignore_errors=True)

    def _write_parts(self, file: Any) -> None:
        with self._parquet.ParquetWriter(file, self._schema) as writer:
            for part in self._parts():
                writer.write_table(self._parquet.read_table(part))


def _parts_folder(path: Path) -> Path:
    return path.with_name(path.name + ".parts")
