"""Every figure: training curves, confusion matrices and grids of images, as SVG or PNG by the file's suffix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covidjax.report.drawing import DEFAULT_STYLE, Axes, Figure, FigureCanvasAgg

FOLDS = {"train": "training (augmented)", "val": "validation fold", "test": "held out"}
"""Legends of the folds in a line of ``metrics.jsonl``."""

QUANTITIES = {"loss": "loss", "accuracy": "accuracy", "dice": "mean Dice coefficient"}
"""Labels of the vertical axes."""

MATRICES_PER_ROW = 3


class Tile(NamedTuple):
    """An image of a grid: uint8 ``[H, W]`` or ``[H, W, 3]``, or None for an empty place."""

    image: np.ndarray | None
    caption: str = ""


def mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the networks of a run of every epoch's loss and metric.

    Args:
      histories: the lines of each network's ``metrics.jsonl``, equally many.
    """
    folds = [fold for fold in ("train", "val", "test") if histories[0] and fold in histories[0][0]]

    def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}

    return [
        {"epoch": records[0]["epoch"]} | {fold: mean([record[fold] for record in records]) for fold in folds}
        for records in zip(*histories, strict=True)
    ]


@DEFAULT_STYLE
def curves(path: Path, history: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Draw the loss and the metric (accuracy or Dice) of every epoch, one above the other.

    Args:
      path: the file to write.
      history: the lines of ``metrics.jsonl``.
      title: stands above the curves.
    """
    figure, axes = new_figure(4.2, 4.6, rows=2)
    epochs = [record["epoch"] for record in history]
    quantities = list(history[0]["train"]) if history else ["loss", "accuracy"]
    for axis, quantity in zip(axes[:, 0], quantities, strict=True):
        for fold, label in FOLDS.items():
            if history and fold in history[0]:
                values = [record[fold][quantity] for record in history]
                axis.plot(epochs, values, marker="." if len(epochs) < 30 else "", label=label)
        axis.set_ylabel(QUANTITIES[quantity])
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1, 0].set(xlabel="epoch", ylim=(0, 1.02))
    if history:
        axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path, title)


@DEFAULT_STYLE
def confusion_matrices(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a large confusion matrix, or several small ones. A cell is as dark as its share of the true class.

    Args:
      path: the file to write.
      metrics: ``Metrics.as_dict()`` by the title above the matrix.
    """
    single = len(metrics) == 1
    rows, columns = (1, 1) if single else (-(-len(metrics) // MATRICES_PER_ROW), MATRICES_PER_ROW)
    figure, axes = new_figure(4.2, 3.4 if single else 1.6 * rows, rows, columns)
    for axis in axes.ravel()[len(metrics) :]:
        axis.set_axis_off()
    for axis, (title, result) in zip(axes.ravel(), metrics.items(), strict=False):
        _confusion_matrix(axis, result["confusion"], result["classes"] if single else (), 10 if single else 8)
        axis.set_title(title, fontsize=8)
    if single:
        axes[0, 0].set(xlabel="predicted", ylabel="true")
    save_figure(figure, path)


@DEFAULT_STYLE
def image_grid(path: Path, rows: Sequence[Sequence[Tile]], labels: Sequence[str] = (), title: str = "") -> None:
    """Draw images in rows, each with a caption above it.

    Args:
      path: the file to write.
      rows: the images, from left to right; rows may differ in length.
      labels: a name for each row; none if empty.
      title: stands above the grid.
    """
    columns = max(map(len, rows))
    figure, axes = new_figure(1.5 * columns, 1.7 * len(rows) + 0.5 * bool(title), len(rows), columns)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row_axes, row in zip(axes, rows, strict=True):
        for axis, tile in zip(row_axes, row, strict=False):
            if tile.image is not None:
                axis.imshow(tile.image, cmap="gray", vmin=0, vmax=255)
            axis.set_title(tile.caption, fontsize=7, parse_math=False)
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label)
    save_figure(figure, path, title)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes ``[rows, columns]``."""
    # Not pyplot: it keeps every figure alive and looks for a display.
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path, title: str = "") -> None:
    """Write a figure, with a title above all."""
    if title:
        figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font has not
        # No date, so that the same results make the same file.
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _confusion_matrix(axis: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str], size: int) -> None:
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
    ticks = range(len(counts))
    text: dict[str, Any] = {"fontsize": size - 1, "parse_math": False}  # classes may be called as they like
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, classes)) > 36 else {}
    axis.set_xticks(ticks, classes, **text, **turned)
    axis.set_yticks(ticks, classes, **text)
