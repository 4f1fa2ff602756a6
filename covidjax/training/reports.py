"""What a report's folder holds: tables, metrics, figures, the predictions and the page of all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import RenderableType

from covidjax.data.dataset import Dataset
from covidjax.data.loader import load_rows, origins
from covidjax.metrics import AnyMetrics, Metrics
from covidjax.report import curves, html, run_report
from covidjax.report.html import About
from covidjax.report.metric_tables import classifier_tables, confusion_table
from covidjax.report.plots import Tile, image_grid
from covidjax.training.predictions import Predictions
from covidjax.trust.predictions import FILE, PredictionTable

GALLERY, PICTURED, PER_ROW = "errors.png", 12, 4
"""Images of the most confident errors."""

CAPTION = "The most confident errors: the true class, the predicted one with its probability, and the source."


def write(
    folder: Path,
    metrics: AnyMetrics,
    predictions: Predictions,
    dataset: Dataset,
    *,
    about: About,
    tables: Iterable[RenderableType],
    history: Sequence[dict[str, Any]] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
    page: bool = True,
) -> None:
    """Write the report of a run, or of its evaluation on another dataset: what ``run_report.write`` does and, of a
    classifier, ``predictions.csv``, the figures of ``report.curves``, ``errors.png`` and ``report.html``.

    Args:
      folder: the report's folder.
      metrics: what was measured.
      predictions: of what.
      dataset: that the images are of.
      about: what the page tells beside them.
      tables: what the command prints.
      history: of the training; none for an evaluation.
      more: goes into ``metrics.json`` beside the metrics.
      page: whether to draw the figures of a classifier and to write the page.
    """
    run_report.write(folder, metrics, history, tables, about.note, more)
    if not isinstance(metrics, Metrics):
        return
    table = predictions.table(metrics.classes)
    table.write(folder / FILE)
    if not page:
        return
    held_out = curves.HeldOut(table.classes, table.labels, table.probabilities, table.sources)
    curves.draw(folder, held_out, about.note)
    figures = {**curves.FIGURES, "confusion_matrix.png": "Confusion matrix.", "curves.png": "Training."}
    if "gap" in more:
        curves.draw_elsewhere(folder, more["gap"], more["calibration"], about.note)
        figures = {**curves.ELSEWHERE, **figures}
    if gallery(folder / GALLERY, table, dataset, about.note):
        figures |= {GALLERY: CAPTION}
    shown = [*classifier_tables(metrics, "Classification", wide=True), confusion_table(metrics)]
    html.write(folder, _without_folders(about, dataset), shown, figures)


def _without_folders(about: About, dataset: Dataset) -> About:
    """With the names alone of datasets and runs: the folders above them may tell whose the page is, which is mailed."""
    facts = [fact.replace(str(dataset.path), dataset.path.name) for fact in about.facts]
    return about._replace(facts=facts, settings=re.sub(r'"/[^"\n]*/([^"/\n]+)"', r'"\1"', about.settings))


def gallery(path: Path, table: PredictionTable, dataset: Dataset, note: str = "") -> bool:
    """Draw the images of the most confident errors, as the network saw them, without names or patients; return whether
    there are any.

    Args:
      path: the file to write; one that is there goes where there are no errors.
      table: the predictions.
      dataset: that the images are of.
      note: stands above them.
    """
    confidence = table.probabilities.max(-1)
    wrong = np.flatnonzero(table.predictions != table.labels)
    worst: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")][:PICTURED].tolist()
    keys = list(zip(table.patients, table.sources, table.paths, strict=True))
    rows = find_rows(dataset, [keys[row] for row in worst])
    known = [(row, rows[keys[row]]) for row in worst if keys[row] in rows]
    if not known:
        path.unlink(missing_ok=True)
        return False
    images = load_rows(dataset.source(range(dataset.folds)), np.asarray([place for _, place in known])).images
    true, stated = ([table.classes[number] for number in numbers] for numbers in (table.labels, table.predictions))
    tiles = [
        Tile(image[..., 0], f"true: {true[row]}\n{stated[row]} {confidence[row]:.3f}\n{table.sources[row]}")
        for (row, _), image in zip(known, images, strict=True)
    ]
    grid = [tiles[start : start + PER_ROW] for start in range(0, len(tiles), PER_ROW)]
    image_grid(path, grid, title="The most confident errors" + f"\n{note}" * bool(note))
    return True


def find_rows(dataset: Dataset, wanted: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """The rows of some images, by patient, source and name, among those of all folds; without those that are not told
    apart by these."""
    if not wanted:
        return {}
    source = dataset.source(range(dataset.folds))
    found: dict[tuple[str, str, str], list[int]] = {key: [] for key in wanted}
    for row, key in enumerate(zip(*origins(source, np.arange(len(source))), strict=True)):
        if key in found:
            found[key].append(row)
    return {key: rows[0] for key, rows in found.items() if len(rows) == 1}
