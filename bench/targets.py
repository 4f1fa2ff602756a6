"""Targets: what a benchmark's figures are to reach, and whether they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.tables import number


class Target(NamedTuple):
    """A bound for a figure."""

    figure: str
    description: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def text(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


class Check(NamedTuple):
    """A target and the measured value."""

    description: str
    target: str
    value: float | None
    ok: bool


def check(figures: Mapping[str, float], targets: Sequence[Target]) -> list[Check]:
    """Compare figures with their targets; a figure that was not measured is not ok."""
    checks = []
    for target in targets:
        value = figures.get(target.figure)
        checks.append(Check(target.description, target.text(), value, value is not None and target.holds(value)))
    return checks


def show_checks(checks: Sequence[Check]) -> None:
    """Print them on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What is asked for", title_justify="left")
    for name in ("", "target", "measured", "ok"):
        table.add_column(name)
    for line in checks:
        value = "not measured" if line.value is None else number(line.value)
        table.add_row(line.description, line.target, value, "yes" if line.ok else "NO")
    Console(width=140, highlight=False).print(table)
