"""The table of a job that may be interrupted and resumed: CSV, JSON lines or Parquet, by the file's ending.

Beside the table lie, until it is finished, ``.NAME.job``, which says what its rows follow from, and ``.NAME.lock``, which
holds it for one process alone. An interrupted job, even by a power cut, keeps its ``.job`` and goes on from its last whole
row.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax.errors import UsageError, UserError
from covidjax.files import lock, write_atomic
from covidjax.images.archives import Source
from covidjax.scoring.row_formats import CsvWriter, JsonLinesWriter, ParquetWriter, TableWriter, naming_faults

WRITERS = {".csv": CsvWriter, ".jsonl": JsonLinesWriter, ".parquet": ParquetWriter}
"""By the file's ending."""


def check_suffix(path: Path) -> None:
    """Raises UsageError where a file's ending names no format."""
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path} has none of the endings {', '.join(WRITERS)}, which choose the format; name it so.")


@contextlib.contextmanager
def open_table(
    path: Path, columns: Sequence[str], *, facts: Mapping[str, Any] | None = None, resume: bool = False
) -> Iterator[TableWriter]:
    """A writer of rows to a file ending in ``.csv``, ``.jsonl`` or ``.parquet``.

    Args:
      path: the file. One that is there is replaced, unless it holds the rows of a job that was interrupted.
      columns: the first two are ``path`` and ``status``.
      facts: what the rows follow from, besides the images: a job goes on only where these are the same. Without them none
        goes on.
      resume: keep the rows that are there, and append.

    Raises:
      UserError: another ending, a place that cannot be written, Parquet without pyarrow, a file that another process
        writes, a job that cannot go on.
    """
    check_suffix(path)
    writer_class = WRITERS[path.suffix.lower()]
    with contextlib.ExitStack() as stack:
        with naming_faults(path):
            os.scandir(path.parent).close()  # a lock file makes the folders above it
            busy = f"{path} is being written by another command; wait for it, or name another file."
            stack.enter_context(lock(path.with_name(f".{path.name}.lock"), busy))
        job = _Job(path, None if facts is None else {"columns": list(columns), **facts})
        resume = resume and writer_class.exists(path)
        if writer_class.exists(path):
            job.check(resume)
        with naming_faults(path):
            writer = writer_class(path, columns, resume=resume)
        writer.finished = resume and not job.interrupted
        try:
            with naming_faults(path):
                if not writer.finished:
                    job.begin()
                writer.begin()
            yield writer
        except BaseException:
            writer.close()
            if not writer.count:
                job.end()
            raise
        writer.close()
        job.end()


class _Job:
    """The facts of a job, in a file beside its table until it ends."""

    def __init__(self, table: Path, facts: dict[str, Any] | None):
        self._table, self._facts = table, facts
        self._file = table.with_name(f".{table.name}.job")
        self._previous_facts: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._previous_facts = json.loads(self._file.read_text())

    @property
    def interrupted(self) -> bool:
        """Whether an earlier command began this job and did not end it."""
        return bool(self._previous_facts)

    def check(self, resume: bool) -> None:
        """Raises UserError where an interrupted job's rows would be lost, or follow from other facts than this one's."""
        if self._facts is None or not self.interrupted:
            return
        if not resume:
            raise UserError(
                f"{self._table} holds the rows of a job that was interrupted; go on with --resume, or remove it."
            )
        if self._previous_facts != self._facts:
            names = [name for name, value in self._facts.items() if self._previous_facts.get(name) != value]
            raise UserError(
                f"{self._table} was begun with another {', '.join(names) or 'version'}; resume with the same, or name "
                "another --output."
            )

    def begin(self) -> None:
        if self._facts is not None:
            write_atomic(self._file, json.dumps(self._facts))

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


def paths_without_rows(paths: Sequence[Source], table: TableWriter) -> list[Source]:
    """The paths that have no row in a resumed table. A path that was given twice has two rows.

    Raises:
      UserError: there are some, but the table's job had come to its end.
    """
    rows = Counter(row.path for row in table.previous_rows)
    missing = []
    for path in paths:
        key = table.key(os.fspath(path))
        if rows[key]:
            rows[key] -= 1
        else:
            missing.append(path)
    if missing and table.finished:
        raise UserError(
            f"{table.path} is finished, and {len(missing)} files have no row in it; score them into another --output."
        )
    return missing
