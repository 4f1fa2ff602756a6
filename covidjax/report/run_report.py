"""A run's ``report/`` folder: tables, metrics and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import RenderableType

from covidjax.metrics import AnyMetrics, Metrics
from covidjax.report.tables import as_text


def write(
    folder: Path,
    found: AnyMetrics,
    history: Sequence[dict[str, Any]],
    tables: Iterable[RenderableType],
    note: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``report/`` of a run: tables as text, metrics as JSON, curves and, of classes, the confusion matrix as PNG.

    Args:
      folder: made if it is not there.
      found: metrics on the test fold.
      history: the lines of ``metrics.jsonl``.
      tables: what the command prints.
      note: stands under every figure, such as that the images are synthetic.
      more: goes into the JSON beside the metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.txt").write_text(f"{note}\n\n" * bool(note) + as_text(tables))
    (folder / "metrics.json").write_text(json.dumps({"note": note, **found.as_dict(), **more}, indent=2))
    _curves(folder / "curves.png", history, note)
    if isinstance(found, Metrics):
        _confusion(folder / "confusion_matrix.png", found, note)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


_LABELS = {"dice": "mean Dice coefficient"}


def _curves(path: Path, history: Sequence[dict[str, Any]], note: str) -> None:
    figure, axes = _figure(2, (10, 4))
    epochs = [record["epoch"] for record in history]
    names = {"train": "training (augmented)", "val": "validation fold", "test": "test fold"}
    quantities = list(history[0]["train"]) if history else ["loss", "accuracy"]
    for axis, quantity in zip(axes, quantities, strict=True):
        for name, label in names.items():
            if history and name in history[0]:
                marker = "." if len(epochs) < 30 else ""
                axis.plot(epochs, [record[name][quantity] for record in history], marker=marker, label=label)
        axis.set(xlabel="epoch", ylabel=_LABELS.get(quantity, quantity), title=quantity.capitalize())
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
