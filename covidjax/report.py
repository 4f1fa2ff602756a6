"""Tables for the terminal and figures for a run's ``report/`` folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from covidjax.metrics import Metrics

SYNTHETIC = "Synthetic sample: these figures say nothing about patients."
WIDE = 1000
"""Columns where there is no terminal: tables are as wide as what they hold, and nothing is wrapped."""
TRAINED_ON_SYNTHETIC = "Trained on the synthetic sample: these figures say nothing about patients."


def metrics_table(found: Metrics, title: str) -> Group:
    """Precision, recall and F1 of each class, their means, and the accuracy with its interval below."""
    table = Table()
    table.add_column("class")
    for name in ("precision", "recall", "F1", "images"):
        table.add_column(name, justify="right")
    for name, row in (*found.per_class.items(), ("macro mean", found.macro)):
        table.add_row(name, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", str(row.support))
    low, high = found.interval
    below = f"accuracy {found.accuracy:.3f} (95 % interval {low:.3f}–{high:.3f}, {found.macro.support} images)"
    return titled(title, table, below)


def confusion_table(found: Metrics) -> Group:
    """Rows are true classes, columns predicted ones."""
    table = Table()
    table.add_column("true ╲ predicted")
    for name in found.classes:
        table.add_column(name, justify="right")
    for name, row in zip(found.classes, found.confusion, strict=True):
        table.add_row(name, *map(str, row))
    return titled("Confusion matrix", table)


def timing_table(stages: Iterable[tuple[str, float, int]], below: str = "") -> Group:
    """Seconds and, where images were handled, images per second of each stage."""
    table = Table()
    for name in ("stage", "seconds", "images/s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, seconds, images in stages:
        table.add_row(name, f"{seconds:.2f}", f"{images / seconds:,.1f}" if images and seconds else "")
    return titled("Timing", table, below)


def titled(title: str, table: Table, below: str = "") -> Group:
    """A table between two lines of text, which a table's own title and caption would wrap to its width."""
    lines = [Text(text) for text in (title, below) if text]
    return Group(lines[0], table, *lines[1:], "")


def plain(parts: Iterable[RenderableType]) -> str:
    """Tables as text, for a file."""
    text = io.StringIO()
    console = Console(width=WIDE, file=text)
    for part in parts:
        console.print(part)
    return text.getvalue()


def write(
    folder: Path, found: Metrics, history: Sequence[dict[str, Any]], tables: Iterable[RenderableType], note: str
) -> None:
    """Write ``report/`` of a run: tables as text, metrics as JSON, curves and confusion matrix as PNG.

    Args:
      folder: made if it is not there.
      found: metrics on the test fold.
      history: the lines of ``metrics.jsonl``.
      tables: what the command prints.
      note: stands under every figure, such as that the images are synthetic.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.txt").write_text(f"{note}\n\n" * bool(note) + plain(tables))
    (folder / "metrics.json").write_text(json.dumps({"note": note, **found.as_dict()}, indent=2))
    _curves(folder / "curves.png", history, note)
    _confusion(folder / "confusion_matrix.png", found, note)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _curves(path: Path, history: Sequence[dict[str, Any]], note: str) -> None:
    figure, axes = _figure(2, (10, 4))
    epochs = [record["epoch"] for record in history]
    names = {"train": "training (augmented)", "val": "validation fold", "test": "test fold"}
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for name, label in names.items():
            if history and name in history[0]:
                marker = "." if len(epochs) < 30 else ""
                axis.plot(epochs, [record[name][quantity] for record in history], marker=marker, label=label)
        axis.set(xlabel="epoch", ylabel="cross-entropy" if quantity == "loss" else quantity, title=quantity.capitalize())
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(framealpha=0.5)
    axes[1].set_ylim(0, 1.02)
    figure.suptitle(note, fontsize=9)
    figure.savefig(path)


def _confusion(path: Path, found: Metrics, note: str) -> None:
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, axis = _figure(1, (5.5, 4.8))
    display = ConfusionMatrixDisplay(np.asarray(found.confusion), display_labels=list(found.classes))
    display.plot(ax=axis, cmap="Blues", colorbar=False)
    axis.set_title(f"accuracy {found.accuracy:.3f}, {found.macro.support} images" + f"\n{note}" * bool(note), fontsize=9)
    figure.savefig(path)
