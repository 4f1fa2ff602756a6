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
from covidjax.files import explaining, hidden_beside, lock, write_atomic
from covidjax.images.archives import Source
from covidjax.scoring.row_formats import REMEDY, CsvWriter, JsonLinesWriter, ParquetWriter, TableWriter

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
    facts = {"columns": list(columns), **facts} if facts else {}
    job_file = hidden_beside(path, ".job")
    with contextlib.ExitStack() as stack:
        with explaining(path, REMEDY):
            os.scandir(path.parent).close()  # the lock would make a folder that is missing
            busy = f"{path} is being written by another command; wait for it, or name another file."
            stack.enter_context(lock(hidden_beside(path, ".lock"), busy))
        recorded = _read_facts(job_file)
        exists = writer_class.exists(path)
        if exists and facts and recorded:
            _check_job(path if path.exists() else writer_class.lines_file(path), recorded, facts, resume)
        with explaining(path, REMEDY):
            writer = writer_class(path, columns, resume=resume and exists)
        writer.finished = resume and exists and not recorded
        resumable = bool(facts) and not writer.finished
        try:
            with explaining(path, REMEDY):
                if resumable:
                    write_atomic(job_file, json.dumps(facts))
                writer.begin()
            yield writer
            resumable = False
        finally:
            writer.close()
            if not (resumable and writer.count):
                job_file.unlink(missing_ok=True)


def _read_facts(job_file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(job_file.read_text(encoding="utf-8"))
    return {}


def _check_job(path: Path, recorded: dict[str, Any], facts: dict[str, Any], resume: bool) -> None:
    """Raises UserError where an interrupted job's rows would be lost, or go on with other facts."""
    if not resume:
        raise UserError(f"{path} holds the rows of a job that was interrupted; go on with --resume, or remove it.")
    if recorded != facts:
        names = ", ".join(name for name, value in facts.items() if recorded.get(name) != value) or "version"
        raise UserError(f"{path} was begun with another {names}; resume with the same, or name another --output.")


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
        problem = f"{table.path} is finished, and {len(missing)} files have no row in it"
        raise UserError(f"{problem}; score them into another --output.")
    return missing
