"""Rows of scores to a file: CSV, JSON lines or Parquet, by the file's ending."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from covidjax.config import UsageError, UserError, printable
from covidjax.score import Row

ENDINGS = (".csv", ".jsonl", ".parquet")


class RowWriter(Protocol):
    """Takes rows one by one; what was written is kept even when the work breaks off."""

    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


def check_ending(path: Path) -> None:
    """Raises UsageError where a file's ending names no format."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path} has none of the endings {', '.join(ENDINGS)}, which choose the format; name it so.")


class TableWriter(Protocol):
    """Takes the cells of a row, by column."""

    def write(self, cells: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def open_output(path: Path, classes: Sequence[str], *, lungs: bool = False) -> Iterator[RowWriter]:
    """A writer of rows to a file ending in ``.csv``, ``.jsonl`` or ``.parquet``, with the column ``lungs`` if asked for; a
    file that is there is replaced.

    Raises:
      UserError: another ending, a place that cannot be written, Parquet without pyarrow.
    """
    columns = Row("", "", "", None, {}, "").cells(classes, lungs=lungs)
    with open_table(path, list(columns)) as table:
        yield _Rows(table, classes, lungs)


@contextlib.contextmanager
def open_table(path: Path, columns: Sequence[str]) -> Iterator[TableWriter]:
    """The same for any columns, the first of which is ``path``."""
    kinds = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}
    check_ending(path)
    with _telling(path):
        writer = kinds[path.suffix.lower()](path, columns)
    try:
        yield _Told(path, writer)
    finally:
        with _telling(path):
            writer.close()


class _Rows:
    """Rows of scores to a table."""

    def __init__(self, table: TableWriter, classes: Sequence[str], lungs: bool):
        self._table, self._classes, self._lungs = table, classes, lungs

    def write(self, row: Row) -> None:
        self._table.write(row.cells(self._classes, lungs=self._lungs))

    def close(self) -> None:
        self._table.close()


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); name a file in a folder that you may write to.") from error


class _Told:
    """A writer whose faults name the file."""

    def __init__(self, path: Path, writer: TableWriter):
        self._path, self._writer = path, writer

    def write(self, cells: dict[str, Any]) -> None:
        with _telling(self._path):
            self._writer.write(cells)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path, columns: Sequence[str]):
        # surrogateescape: a file name that is no UTF-8 comes out as the bytes it is.
        self._file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._quoting = csv.DictWriter(self._file, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._writer.writeheader()

    def write(self, cells: dict[str, Any]) -> None:
        # The csv module quotes a line feed of itself, but not a carriage return.
        writer = self._quoting if "\r" in cells["path"] else self._writer
        writer.writerow({key: _rounded(value) for key, value in cells.items()})

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    def __init__(self, path: Path, columns: Sequence[str]):
        self._file = path.open("w", encoding="utf-8")

    def write(self, cells: dict[str, Any]) -> None:
        self._file.write(json.dumps({key: _rounded(value) for key, value in cells.items()}) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    GROUP = 1024
    """Rows held in memory before they are written as one row group."""

    def __init__(self, path: Path, columns: Sequence[str]):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path} needs pyarrow; run `pip install 'covidjax[parquet]'` or write .csv.") from None
        numbers = {name for name in columns if name == "confidence" or name.startswith("p_")}
        self._schema = pyarrow.schema([(n, pyarrow.float32() if n in numbers else pyarrow.string()) for n in columns])
        self._table = pyarrow.Table.from_pylist
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, cells: dict[str, Any]) -> None:
        # Parquet's text is UTF-8: a name that is not stands with escapes.
        self._rows.append({**cells, "path": printable(cells["path"])})
        if len(self._rows) == self.GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table(self._rows, schema=self._schema))
            self._rows.clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _rounded(value: Any) -> Any:
    """Probabilities to six decimals: float32 has no more to tell."""
    return round(value, 6) if isinstance(value, float) else value
