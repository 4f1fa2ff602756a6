"""A run's ``report/`` folder: tables, metrics and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import RenderableType

from covidjax.metrics import AnyMetrics, Metrics
from covidjax.report import plots
from covidjax.report.tables import as_text


def write(
    folder: Path,
    metrics: AnyMetrics,
    history: Sequence[dict[str, Any]],
    tables: Iterable[RenderableType],
    note: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``tables.txt``, ``metrics.json``, ``curves.png`` and, for a classifier, ``confusion_matrix.png``.

    Args:
      folder: the report's folder; it is made if it is not there.
      metrics: the metrics on the test fold.
      history: the lines of ``metrics.jsonl``; without them no curves are drawn.
      tables: what the command prints.
      note: stands with every table and figure, such as that the images are synthetic.
      more: goes into ``metrics.json`` beside the metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.txt").write_text(f"{note}\n\n" * bool(note) + as_text(tables), encoding="utf-8")
    figures = json.dumps({"note": note, **metrics.as_dict(), **more}, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(figures, encoding="utf-8")
    if history:
        plots.curves(folder / "curves.png", history, note)
    if isinstance(metrics, Metrics):
        title = f"accuracy {metrics.accuracy:.3f}, {metrics.macro.support} images" + f"\n{note}" * bool(note)
        plots.confusion_matrices(folder / "confusion_matrix.png", {title: metrics.as_dict()})
