"""What ``score`` and ``segment`` amount to: counts, metrics, tables, JSON and closing sentences."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidjax.errors import UserError
from covidjax.lungs.export import GOOD, SegmentationRow
from covidjax.scoring.row import Row
from covidjax.timing import Timing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from covidjax.metrics import Metrics
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.ground_truth import LabelLookup

# The tables, and rich with them, are imported where they are used: a command's first row does without.

SHOWN_ROWS = 50
"""Rows that are printed where no output file is named, and errors where one is."""


class Summary:
    """Counts of the rows of a command.

    Args:
      stages: of the timing, in order.
      error_rows: where the reader finds the reasons of errors, in words.

    Attributes:
      ok: files that were read.
      errors: files that were not.
      warnings: files whose rows have a warning.
      timing: seconds by stage.
    """

    def __init__(self, stages: Iterable[str], error_rows: str):
        self.ok = self.errors = self.warnings = 0
        self.timing = Timing(stages)
        self._error_rows, self._start = error_rows, time.perf_counter()

    @property
    def files(self) -> int:
        """Files that have a row."""
        return self.ok + self.errors

    def add(self, row: Any) -> None:
        """Count a row, which has a ``status`` and a ``warning``."""
        self.ok += row.status == "ok"
        self.errors += row.status != "ok"
        self.warnings += bool(row.warning)

    def stop(self) -> None:
        """Take the wall time, after the last row."""
        self.timing.add("wall", self._start, self.timing.images.get("decode", 0))

    def as_dict(self) -> dict[str, Any]:
        """The counts and the timing, for JSON."""
        return {
            "files": self.files,
            "ok": self.ok,
            "errors": self.errors,
            "warnings": self.warnings,
            "timing": [stage._asdict() for stage in self.timing.stages()],
        }

    def tables(self) -> list[RenderableType]:
        """Tables for the terminal."""
        raise NotImplementedError

    def sentences(self) -> list[str]:
        """Closing sentences for the reader."""
        return [f"{self.warnings} of them with a warning; see the column of that name."] if self.warnings else []

    def check(self, strict: bool) -> None:
        """Raises UserError where no file could be read or, if ``strict``, where any could not."""
        if not self.ok:
            raise UserError(f"No image could be read; see {self._error_rows}.")
        if strict and self.errors:
            counts = f"{self.errors} of {self.files} files could not be read"
            raise UserError(f"{counts}, and --strict was given; see {self._error_rows}.")


class ScoreSummary(Summary):
    """Summary of ``score``: also the metrics over the rows whose true class is known.

    Args:
      classifier: what scores.
      model: the run, or the classifier's file.
      label_of: looks up true classes.
      labels_given: whether they come from a table, whose use is then always reported.
      output: file of the rows.
      max_rows: most rows that are kept to be shown.
    """

    def __init__(
        self,
        classifier: Classifier,
        model: Path,
        label_of: LabelLookup,
        *,
        labels_given: bool = False,
        output: Path | None = None,
        max_rows: float = SHOWN_ROWS,
    ):
        self._classes = classifier.classes
        self._lungs = classifier.preprocess.lungs
        self._with_lungs = self._lungs != "none"
        super().__init__(["decode", *["lungs"] * self._with_lungs, "model", "write"], "the error rows")
        self._model, self._synthetic = model, classifier.run.config.data.path == "sample"
        self._label_of, self._labels_given = label_of, labels_given
        self._output, self._max_rows = output, max_rows
        self._rows: list[Row] = []
        self._error_rows_shown: list[Row] = []
        self._true: list[str] = []
        self._predicted: list[str] = []
        self._labelled = self._whole = 0

    def add(self, row: Row, *, show: bool = True) -> None:
        """Count a row, and keep it for the tables if ``show``."""
        super().add(row)
        if self._with_lungs and row.status == "ok":
            self._whole += row.lungs != self._lungs
        label = self._label_of(row.path)
        self._labelled += label is not None
        if label in self._classes and row.status == "ok":
            self._true.append(label)
            self._predicted.append(row.prediction)
        if not show:
            return
        if len(self._rows) < self._max_rows:
            self._rows.append(row)
        elif row.status != "ok" and len(self._error_rows_shown) < SHOWN_ROWS:
            self._error_rows_shown.append(row)

    @functools.cached_property
    def metrics(self) -> Metrics | None:
        """Over the readable files whose true class is one of the model's; None where there are none."""
        if not self._true:
            return None
        from covidjax.metrics import classification_metrics

        index = self._classes.index
        return classification_metrics([*map(index, self._true)], [*map(index, self._predicted)], self._classes)

    @property
    def note(self) -> str:
        """A warning that stands with every figure of a model that was trained on synthetic images, else nothing."""
        from covidjax.report import tables

        return tables.TRAINED_ON_SYNTHETIC if self._synthetic else ""

    def as_dict(self) -> dict[str, Any]:
        summary = {"model": str(self._model), "note": self.note, **super().as_dict()}
        if self._with_lungs:
            summary["whole_films"] = self._whole
        summary["metrics"] = self.metrics.as_dict() if self.metrics else None
        if self._output:
            return {**summary, "output": str(self._output)}
        return {**summary, "rows": [row.cells(self._classes, lungs=self._with_lungs) for row in self._rows]}

    def tables(self) -> list[RenderableType]:
        from covidjax.report import tables

        parts: list[RenderableType] = []
        if self._rows:
            more = self.files - len(self._rows)
            parts.append(_rows_table("Images", self._rows, f"and {more} more" if more else ""))
        if self._error_rows_shown:
            parts.append(_rows_table("Could not be read", self._error_rows_shown))
        threads = "decode: all threads added up; it goes on beside the model"
        parts.append(tables.timing_table(self.timing.stages(), threads))
        if self.metrics:
            parts += tables.result_tables(self.metrics, "Metrics" + f"\n{self.note}" * bool(self.note))
        return parts

    def sentences(self) -> list[str]:
        known = len(self._true)
        sentences = []
        if self._labels_given or 0 < known < self.ok:
            unused = self._labelled - known
            why = f", {unused} of them unreadable or of a class that the model has not" if unused else ""
            sentences.append(
                f"The truth is known of {self._labelled} of {self.files} images{why}; the metrics are on {known}."
            )
        where = f" Wrote {self._output}." if self._output else ""
        if not self._output and len(self._rows) < self.files:
            where = " --output FILE.csv keeps the rows."
        sentences.append(f"{self.ok} of {self.files} images scored, {self.errors} could not be read.{where}")
        sentences += super().sentences()
        if self._whole:
            sentences.append(
                f"On {self._whole} of them no plausible lungs were found; they were scored whole, as their rows tell."
            )
        return sentences


def _rows_table(title: str, rows: list[Row], below: str = "") -> RenderableType:
    """Rows by their paths without the folders that these share: the files' own names are what tells them apart."""
    from covidjax.report import tables

    parents = [str(Path(row.path).parent) for row in rows]
    mixed = len({Path(parent).is_absolute() for parent in parents}) > 1
    base = "" if mixed else os.path.commonpath(parents)
    lungs = any(row.lungs for row in rows)
    cells = [
        (
            os.path.relpath(row.path, base) if base else row.path,
            row.prediction,
            "" if row.confidence is None else f"{row.confidence:.3f}",
            *([row.lungs] if lungs else []),
            row.error or row.warning,
        )
        for row in rows
    ]
    columns = ("path", "prediction", "confidence", *(["lungs"] if lungs else []), "error or warning")
    table = tables.text_table(columns, cells, right=("confidence",))
    return tables.titled(title + f" in {base}" * bool(base), table, below)


class SegmentSummary(Summary):
    """Summary of ``segment``: also the quality of the masks.

    Args:
      output: folder of the results.
    """

    def __init__(self, output: Path):
        super().__init__(("decode", "lungs", "write"), "lungs.csv")
        self._output = output
        self._quality, self._reasons = Counter[str](), Counter[str]()

    def add(self, row: SegmentationRow) -> None:
        super().add(row)
        readable = row.status == "ok"
        if readable:
            self._quality[row.quality] += 1
        else:
            self._reasons[row.error] += 1
        self.timing.add_seconds("decode", row.decode_seconds, 1)
        self.timing.add_seconds("lungs", row.lungs_seconds, int(readable))
        self.timing.add_seconds("write", row.write_seconds, int(readable))

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "quality": dict(self._quality), "output": str(self._output)}

    def tables(self) -> list[RenderableType]:
        from covidjax.report import tables

        qualities = tables.text_table(("quality", "images"), self._quality.most_common(), right=("images",))
        parts: list[RenderableType] = [tables.titled("Lungs", qualities)]
        if self._reasons:
            reasons = tables.text_table(("reason", "files"), self._reasons.most_common(), right=("files",))
            parts.append(tables.titled("Could not be read", reasons))
        return [*parts, tables.timing_table(self.timing.stages(), "decode, write: all threads added up")]

    def sentences(self) -> list[str]:
        good = self._quality[GOOD]
        sentence = f"{good} of {self.files} images have plausible lungs, {self.errors} could not be read."
        return [f"{sentence} Wrote {self._output}.", *super().sentences()]
