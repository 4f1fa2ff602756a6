"""The results of a benchmark: samples and their spread, tables for the terminal and for a page, and the result file."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.machine import machine, say, versions


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(values))

    def text(self, digits: int | None = None) -> str:
        """``median (low–high)``."""
        return f"{number(self.median, digits)} ({number(self.low, digits)}–{number(self.high, digits)})"


def number(value: float, digits: int | None = None) -> str:
    """With three significant digits unless told how many decimals."""
    if digits is None:
        digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:,.{digits}f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs, turn by turn: what slows the whole machine down for a while slows down both of a pair."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


@dataclass
class Row:
    """One contender, or one quantity."""

    name: str
    value: Spread | None
    """None where it could not take part."""
    note: str = ""
    samples: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, samples: Sequence[float], note: str = "") -> Row:
        """A row of at least one sample."""
        return cls(name, Spread.of(samples), note, list(samples))


@dataclass
class Table:
    """The rows of one benchmark, in one unit."""

    title: str
    unit: str
    rows: list[Row]
    note: str = ""
    reference: str = ""
    """The row that the others are compared with; empty for none."""

    def row(self, name: str) -> Row | None:
        """The row of that name that has a value."""
        return next((row for row in self.rows if row.name == name and row.value), None)

    def compared(self, row: Row) -> str:
        """How many times this row's the reference's value is."""
        reference = self.row(self.reference)
        if not reference or not row.value or row is reference:
            return ""
        return f"{ratio(reference.samples, row.samples).median:.2f} ×"


class Result(NamedTuple):
    """What a benchmark's ``measure`` returns: tables to show, and the numbers that are asked for by name."""

    tables: list[Table]
    figures: dict[str, float]


def best(table: Table, pattern: str) -> Row | None:
    """The row with the greatest median among those whose names match from their beginning."""
    matching = [row for row in table.rows if row.value and re.match(pattern, row.name)]
    return max(matching, key=lambda row: row.value.median if row.value else 0.0, default=None)


def against(table: Table, ours: str, theirs: str, name: str) -> dict[str, float]:
    """``{name: median ratio}`` of our row and the best of theirs; empty where one is missing."""
    our_row, their_row = table.row(ours), best(table, theirs)
    return {name: ratio(our_row.samples, their_row.samples).median} if our_row and their_row else {}


def show(tables: Sequence[Table]) -> None:
    """Print tables on stdout."""
    from rich.console import Console
    from rich.table import Table as Rich

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in tables:
        drawn = Rich(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        drawn.add_column("")
        drawn.add_column(f"{table.unit}, median (quartiles)", justify="right")
        drawn.add_column(f"{table.reference} is" if table.reference else "", justify="right")
        drawn.add_column("remarks")
        for row in table.rows:
            drawn.add_row(row.name, row.value.text() if row.value else "—", table.compared(row), row.note)
        console.print(drawn)


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in tables:
        lines = [f"{table.title}, {table.unit}:", ""]
        lines += [f"| | median (quartiles) | {table.reference} is | remarks |", "| --- | ---: | ---: | --- |"]
        for row in table.rows:
            value = row.value.text() if row.value else "—"
            lines.append(f"| {row.name} | {value} | {table.compared(row)} | {row.note} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def as_json(result: Result) -> dict[str, Any]:
    """A dict for the result file."""
    return {"tables": [asdict(table) for table in result.tables], "figures": result.figures}


def from_json(stored: dict[str, Any]) -> Result:
    """The result that ``as_json`` made a dict of."""

    def row(value: dict[str, Any]) -> Row:
        spread = Spread(**value["value"]) if value["value"] else None
        return Row(value["name"], spread, value["note"], value["samples"])

    tables = [Table(**table | {"rows": [row(value) for value in table["rows"]]}) for table in stored["tables"]]
    return Result(tables, stored["figures"])


class Log:
    """Collects the content of a result file. Each benchmark has its time and the load average before and after, which shows
    whether other programs were running."""

    def __init__(self, command: str):
        self._command = command
        self._benchmarks: dict[str, Any] = {}

    def measure(self, name: str, measure: Callable[[], Result]) -> Result:
        """Run a benchmark and keep its result."""
        when, before = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()
        start = time.perf_counter()
        result = measure()
        self._benchmarks[name] = as_json(result) | {
            "when": when,
            "seconds": round(time.perf_counter() - start, 1),
            "load_average_before": list(before),
            "load_average_after": list(os.getloadavg()),
        }
        return result

    def content(self) -> dict[str, Any]:
        """For the file."""
        when = max(benchmark["when"] for benchmark in self._benchmarks.values())
        return {
            "command": self._command,
            "when": when,
            "machine": machine(),
            "versions": versions(),
            "benchmarks": self._benchmarks,
        }


def write(file: Path, content: dict[str, Any]) -> None:
    """A result file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    say(f"Wrote {os.path.relpath(file)}.")
