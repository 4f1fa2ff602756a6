"""Tables for the terminal and for a run's ``report/`` folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from covidjax.errors import printable
from covidjax.metrics import AnyMetrics, MaskMetrics, headline_metrics, mean_and_sd
from covidjax.report.metric_tables import TableData, classifier_tables, confusion_table, interval_text

SYNTHETIC = "Synthetic sample: these figures say nothing about patients."
TRAINED_ON_SYNTHETIC = "Trained on the synthetic sample: these figures say nothing about patients."

WIDE = 1000
"""Columns where there is no terminal: tables are as wide as their content, and nothing is wrapped."""


def result_tables(metrics: AnyMetrics, title: str) -> list[Group]:
    """All tables of a result."""
    if isinstance(metrics, MaskMetrics):
        return [masks_table(metrics, title)]
    return [render(data) for data in (*classifier_tables(metrics, title), confusion_table(metrics))]


def masks_table(metrics: MaskMetrics, title: str) -> Group:
    """Dice coefficients and IoUs of each kind of mask, and of all where there are several kinds."""
    numbers = ("mean Dice", "95 % interval", "median Dice", "least Dice", "mean IoU", "images", "patients")
    overlaps = metrics.per_class | ({"all": metrics.overall} if len(metrics.per_class) > 1 else {})
    rows = []
    for kind, overlap in overlaps.items():
        shares = (f"{share:.3f}" for share in (overlap.median, overlap.least, overlap.iou))
        dice = f"{overlap.dice:.3f}", interval_text(overlap.interval)
        rows.append((kind, *dice, *shares, overlap.films, overlap.patients))
    return titled(title, text_table(("mask", *numbers), rows, right=numbers))


def render(data: TableData) -> Group:
    """A table of texts for the terminal."""
    table = text_table(data.columns, data.rows, right=data.columns[data.left :])
    return titled(data.title, table, data.below)


def networks_table(networks: Mapping[str, AnyMetrics], title: str) -> Group:
    """Accuracy and macro means, or Dice and IoU, of each network of a run, and their mean ± standard deviation."""
    over_all = mean_and_sd(list(networks.values()))
    rows: list[tuple[object, ...]] = []
    for name, metrics in networks.items():
        images = metrics.overall.films if isinstance(metrics, MaskMetrics) else metrics.macro.support
        rows.append((name, *(f"{value:.3f}" for value in headline_metrics(metrics).values()), images))
    rows.append(("mean ± sd", *(f"{spread.mean:.3f} ± {spread.sd:.3f}" for spread in over_all.values()), ""))
    masks = any(isinstance(metrics, MaskMetrics) for metrics in networks.values())
    names = ("mean Dice", "mean IoU") if masks else ("accuracy", "macro precision", "macro recall", "macro F1")
    columns = (*names, "images")
    return titled(title, text_table(("network", *columns), rows, right=columns))


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


def as_text(tables: Iterable[RenderableType]) -> str:
    """Tables as text, for a file."""
    text = io.StringIO()
    console = Console(width=WIDE, file=text)
    for table in tables:
        console.print(table)
    return text.getvalue()
