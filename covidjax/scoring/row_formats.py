"""Tables that grow row by row: CSV, JSON lines and Parquet.

Each row is one or several whole lines, written by one call of the system, so the rows of a process that was killed can be
read, and appended to. Parquet, whose files are whole only when they are closed, is made of JSON lines at the end.
"""

from __future__ import annotations

import abc
import contextlib
import csv
import io
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from covidjax.errors import UserError, printable
from covidjax.files import explaining, hidden_beside, write_atomic
from covidjax.scoring.row import Row

SYNC_SECONDS = 5.0
"""Most time that rows wait until they are on disk for good."""

RESUMED_COLUMNS = ("path", "status", "prediction", "warning", "lungs")
"""Columns that are read again of the rows of an earlier command, and so are the probabilities."""


REMEDY = "name a file in a folder that you may write to"
"""Where a table cannot be written."""


def _other_columns(path: Path) -> UserError:
    return UserError(f"{path} has other columns than the rows of this job; name another --output.")


def _probabilities(cells: Mapping[str, Any]) -> dict[str, float]:
    """By class name; none of a row of an error."""
    values = {name.removeprefix("p_"): value for name, value in cells.items() if name.startswith("p_")}
    try:
        return {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError):
        return {}


class TableWriter(abc.ABC):
    """Appends rows to a table; those that were written are kept even when the work breaks off.

    Args:
      path: the table.
      columns: the first two are ``path`` and ``status``.
      resume: read the rows that are there and append to them, instead of replacing the table.

    Attributes:
      previous_rows: rows that were there; ``RESUMED_COLUMNS`` and probabilities of them.
      count: rows of the table.
      finished: whether the job whose table this is had come to its end.

    Raises:
      UserError: Parquet without pyarrow, a damaged Parquet file, a table of other columns.
      OSError: the table cannot be read or written.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool):
        self.path, self.columns = path, list(columns)
        self.previous_rows: list[Row] = []
        self.finished = False
        self._lines, self._size = self.lines_file(path), 0
        if resume:
            with self._lines.open("rb") as file:
                for cells in self._read_rows(file):
                    values: dict[str, Any] = {name: cells.get(name) or "" for name in RESUMED_COLUMNS}
                    self.previous_rows.append(Row(**values, probabilities=_probabilities(cells)))
                    self._size = file.tell()
        self._file = self._lines.open("r+b" if resume else "wb", buffering=0)
        if resume:
            self._file.seek(self._size)
            self._file.truncate()
        self.count = len(self.previous_rows)
        self._synced = time.monotonic()

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether anything was written to the table."""
        return any(file.exists() and file.stat().st_size for file in (path, cls.lines_file(path)))

    @staticmethod
    def lines_file(path: Path) -> Path:
        """The file of the lines that become the table."""
        return path

    def key(self, path: str) -> str:
        """A path as the rows of this format hold it."""
        return path

    def begin(self) -> None:
        """Write what stands before the first row."""
        if not self._size:
            self._append(self._header())

    def write(self, cells: dict[str, Any]) -> None:
        """Append a row, given its cells by column."""
        with explaining(self.path, REMEDY):
            self._append(self._line(cells))
            self.count += 1
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()

    def close(self) -> None:
        """Bring all rows to disk."""
        with explaining(self.path, REMEDY), self._file:
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
        if not os.path.samestat(self._lines.stat(), os.fstat(self._file.fileno())):
            raise OSError("another file has taken its place")

    def _header(self) -> bytes:
        return b""

    @abc.abstractmethod
    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        """The cells of every whole row, up to the first line that is none; ``file`` is then read up to that row's end."""

    @abc.abstractmethod
    def _line(self, cells: dict[str, Any]) -> bytes:
        """A row as it is written."""


class CsvWriter(TableWriter):
    def _header(self) -> bytes:
        return _csv_line(self.columns)

    def _line(self, cells: dict[str, Any]) -> bytes:
        return _csv_line(str(value).lower() if isinstance(value, bool) else _rounded(value) for value in cells.values())

    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        lines = (line.decode("utf-8", "surrogateescape") for line in iter(file.readline, b"") if line.endswith(b"\n"))
        reader = csv.reader(lines)
        with contextlib.suppress(csv.Error):
            if next(reader, self.columns) != self.columns:
                raise _other_columns(self.path)
            for row in reader:
                cells = dict(zip(self.columns, row, strict=False))
                if len(row) != len(self.columns) or cells["status"] not in ("ok", "refused", "uncertain", "error"):
                    return
                yield cells


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    # Cells that hold a character of the terminator are quoted: with this one also those with a carriage return.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    # surrogateescape: a file name that is no UTF-8 comes out as the bytes it is.
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def _rounded(value: Any) -> Any:
    """Probabilities to six decimals: float32 has no more."""
    return round(value, 6) if isinstance(value, float) else value


class JsonLinesWriter(TableWriter):
    def _line(self, cells: dict[str, Any]) -> bytes:
        return json.dumps({name: _rounded(value) for name, value in cells.items()}).encode() + b"\n"

    def _read_rows(self, file: BinaryIO) -> Iterator[Mapping[str, Any]]:
        for line in iter(file.readline, b""):
            try:
                cells = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(cells, dict):
                return
            if list(cells) != self.columns:
                raise _other_columns(self.path)
            yield cells


class ParquetWriter(JsonLinesWriter):
    """Rows stand as JSON lines in ``.NAME.jsonl`` until the end, also where that is an early one."""

    GROUP = 1024
    """Rows of a row group."""

    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path} needs pyarrow; run `pip install 'covidjax[parquet]'` or write .csv.") from None
        kinds = {"confidence": pyarrow.float32(), "images": pyarrow.int32()}
        kinds |= {name: pyarrow.float32() for name in columns if name.startswith("p_")}
        kinds |= {name: pyarrow.bool_() for name in columns if name.startswith("positive_")}
        types = [(name, kinds.get(name, pyarrow.string())) for name in columns]
        self._schema, self._pyarrow = pyarrow.schema(types), pyarrow
        lines = self.lines_file(path)
        if resume and not lines.exists():
            try:
                table = pyarrow.parquet.read_table(path)
            except ValueError as error:
                raise UserError(f"{path} is damaged; remove it to score its images again.") from error
            if table.column_names != list(columns):
                raise _other_columns(path)
            write_atomic(lines, b"".join(map(self._line, table.to_pylist())))
        super().__init__(path, columns, resume=resume)
        if not resume:
            path.unlink(missing_ok=True)

    @staticmethod
    def lines_file(path: Path) -> Path:
        return hidden_beside(path, ".jsonl")

    def key(self, path: str) -> str:
        return printable(path)

    def _line(self, cells: dict[str, Any]) -> bytes:
        # Parquet's text is UTF-8: a name that is not stands with escapes.
        return json.dumps({**cells, "path": printable(cells["path"])}).encode() + b"\n"

    def close(self) -> None:
        """Make the table of the lines. Where that fails, a full disk perhaps, these stay."""
        super().close()
        with explaining(self.path, REMEDY):
            write_atomic(self.path, self._write_parquet)
            self._lines.unlink()

    def _write_parquet(self, file: Any) -> None:
        with self._pyarrow.parquet.ParquetWriter(file, self._schema) as writer, self._lines.open(encoding="utf-8") as lines:
            while rows := [json.loads(line) for line in itertools.islice(lines, self.GROUP)]:
                writer.write_table(self._pyarrow.Table.from_pylist(rows, schema=self._schema))
