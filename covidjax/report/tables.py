"""Tables for the terminal and figures for a run's ``report/`` folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from covidjax.errors import printable
from covidjax.metrics import AnyMetrics, MaskMetrics, Metrics, headline_metrics, mean_and_sd

SYNTHETIC = "Synthetic sample: these figures say nothing about patients."

WIDE = 1000
"""Columns where there is no terminal: tables are as wide as what they hold, and nothing is wrapped."""

TRAINED_ON_SYNTHETIC = "Trained on the synthetic sample: these figures say nothing about patients."


def result_tables(found: AnyMetrics, title: str) -> list[Group]:
    """All tables of a result."""
    if isinstance(found, MaskMetrics):
        return [masks_table(found, title)]
    return [metrics_table(found, title), confusion_table(found)]


def masks_table(found: MaskMetrics, title: str) -> Group:
    """Dice coefficients and IoUs of each kind of mask, and of all."""
    numbers = ("mean Dice", "95 % interval", "median Dice", "least Dice", "mean IoU", "films", "patients")
    rows = [
        (
            name,
            f"{row.dice:.3f}",
            _interval(row.interval) if row.interval else "",
            *(f"{figure:.3f}" for figure in (row.median, row.least, row.iou)),
            row.films,
            row.patients,
        )
        for name, row in (*found.per_class.items(), *((("all", found.overall),) if len(found.per_class) > 1 else ()))
    ]
    return titled(title, text_table(("mask", *numbers), rows, right=numbers))


def metrics_table(found: Metrics, title: str) -> Group:
    """Precision, recall and F1 of each class, their means, and the accuracy with its interval below. Intervals are over
    patients where those are known."""
    over = found.bootstrap
    numbers = ("precision", "recall", "F1", *(("F1 95 % interval",) if over else ()), "images")
    rows = []
    for name, row in (*found.per_class.items(), ("macro mean", found.macro)):
        intervals = over and (over.macro if row is found.macro else over.per_class[name])
        of_f1 = (_interval(intervals.f1),) if intervals else ()
        rows.append((name, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", *of_f1, row.support))
    table = text_table(("class", *numbers), rows, right=numbers)
    interval = _interval(over.accuracy if over else found.interval)
    whose = f"{found.macro.support} images" + (f" of {over.patients} patients" if over else "")
    return titled(title, table, f"accuracy {found.accuracy:.3f} (95 % interval {interval}, {whose})")


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.3f}–{high:.3f}"


def networks_table(found: Mapping[str, AnyMetrics], title: str) -> Group:
    """Accuracy and macro means, or Dice and IoU, of each network of a run, and their mean ± standard deviation."""
    names = {"accuracy": "accuracy", "precision": "macro precision", "recall": "macro recall", "f1": "macro F1"}
    if any(isinstance(each, MaskMetrics) for each in found.values()):
        names = {"dice": "mean Dice", "iou": "mean IoU"}
    rows: list[tuple[object, ...]] = [
        (
            name,
            *(f"{headline_metrics(each)[figure]:.3f}" for figure in names),
            each.overall.films if isinstance(each, MaskMetrics) else each.macro.support,
        )
        for name, each in found.items()
    ]
    over_all = mean_and_sd(list(found.values()))
    rows.append(("mean ± sd", *(f"{over_all[figure].mean:.3f} ± {over_all[figure].sd:.3f}" for figure in names), ""))
    columns = (*names.values(), "images")
    return titled(title, text_table(("network", *columns), rows, right=columns))


def mean_history(histories: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Loss and accuracy of every epoch, as means over the networks of a run."""

    def mean(parts: Sequence[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}

    folds = [name for name in ("train", "val", "test") if histories[0] and name in histories[0][0]]
    return [
        {"epoch": records[0]["epoch"]} | {name: mean([record[name] for record in records]) for name in folds}
        for records in zip(*histories, strict=True)
    ]


def confusion_table(found: Metrics) -> Group:
    """Rows are true classes, columns predicted ones."""
    rows = [(name, *row) for name, row in zip(found.classes, found.confusion, strict=True)]
    table = text_table(("true ╲ predicted", *found.classes), rows, right=found.classes)
    return titled("Confusion matrix", table)


def timing_table(stages: Iterable[tuple[str, float, int]], below: str = "") -> Group:
    """Seconds and, where images were handled, images per second of each stage."""
    rows = [
        (name, f"{seconds:.2f}", f"{images / seconds:,.1f}" if images and seconds else "")
        for name, seconds, images in stages
    ]
    numbers = ("seconds", "images/s")
    return titled("Timing", text_table(("stage", *numbers), rows, right=numbers), below)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A table of plain text: nothing in a cell is taken for markup, and bytes of a name that are no UTF-8 are escaped.

    Args:
      columns: headings; the first column's text is folded where it is too long.
      rows: cells, shown by ``str``.
      right: columns that are aligned to the right.
    """
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if name in right else "left", overflow="ellipsis" if number else "fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    return table


def titled(title: str, table: Table, below: str = "") -> Group:
    """A table between two lines of text, which a table's own title and caption would wrap to its width."""
    lines = [Text(printable(text)) for text in (title, below) if text]
    return Group(lines[0], table, *lines[1:], "")


def as_text(parts: Iterable[RenderableType]) -> str:
    """Tables as text, for a file."""
    text = io.StringIO()
    console = Console(width=WIDE, file=text)
    for part in parts:
        console.print(part)
    return text.getvalue()
