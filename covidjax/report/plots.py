"""The figures of the study's report, as SVG where they are drawn and as PNG where they are films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {"train": "training (augmented)", "val": "validation fold", "test": "held out"}

ACROSS = 3
"""Small matrices side by side."""


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    # Not pyplot: it keeps every figure alive and looks for a display.
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = path.suffix == ".svg"
    # Nothing of the moment, so that the same results are the same file.
    with mpl.rc_context({"svg.hashsalt": "covidjax"}):
        figure.savefig(path, metadata={"Date": None} if drawn else None)


def _matrix(axis: Any, found: Mapping[str, Any], size: float, names: bool = True) -> None:
    counts = np.asarray(found["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
    ticks = range(len(counts))
    axis.set_xticks(ticks, found["classes"] if names else [], fontsize=size - 1)
    axis.set_yticks(ticks, found["classes"] if names else [], fontsize=size - 1)


def confusion(path: Path, found: Mapping[str, Any]) -> None:
    """The confusion matrix of ``Metrics.as_dict()``; a cell is as dark as its share of the true class."""
    figure, axes = _figure(4.2, 3.4)
    _matrix(axes[0, 0], found, 10)
    axes[0, 0].set(xlabel="predicted", ylabel="true")
    _save(figure, path)


def fold_confusions(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """A small confusion matrix for every fold, classes in the order of the large one."""
    rows = -(-len(found) // ACROSS)
    figure, axes = _figure(4.2, 1.6 * rows, rows, ACROSS)
    for axis in axes.ravel()[len(found) :]:
        axis.set_axis_off()
    for axis, (name, metrics) in zip(axes.ravel(), found.items(), strict=False):
        _matrix(axis, metrics, 8, names=False)
        axis.set_title(f"{name}: {metrics['accuracy']:.3f}", fontsize=8)
    _save(figure, path)


def curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Loss and accuracy after every epoch, one above the other."""
    figure, axes = _figure(4.2, 4.6, 2)
    epochs = [record["epoch"] for record in history]
    for axis, quantity in zip(axes[:, 0], ("loss", "accuracy"), strict=True):
        for name, label in NAMES.items():
            if name in history[0]:
                values = [record[name][quantity] for record in history]
                axis.plot(epochs, values, marker="." if len(epochs) < 30 else "", label=label)
        axis.set_ylabel("cross-entropy" if quantity == "loss" else quantity)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1, 0].set(xlabel="epoch", ylim=(0, 1.02))
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def _bare(axes: np.ndarray) -> None:
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
