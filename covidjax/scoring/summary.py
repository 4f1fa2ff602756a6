"""What the rows of ``score`` and ``segment`` amount to: counts, metrics, tables, JSON and closing sentences."""

from __future__ import annotations

import abc
import functools
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidjax.errors import UserError
from covidjax.lungs.export import GOOD, SegmentationRow
from covidjax.scoring.ground_truth import LabelLookup
from covidjax.scoring.row import Row
from covidjax.timing import Timing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from covidjax.metrics import Metrics
    from covidjax.scoring.classifier import Classifier

# The tables, and rich with them, are imported where they are used: a command's first row does without.

SHOWN_ROWS = 50
"""Rows that are printed where no output file is named, and errors where one is."""


@dataclass
class Summary(abc.ABC):
    """Counts of the rows of a command."""

    ok: int = 0
    """Files that were read."""
    refused: int = 0
    """Files that were read and are no frontal chest X-ray, or unlike all that the model was trained on."""
    errors: int = 0
    """Files that were not read."""
    warnings: int = 0
    """Rows with a warning."""
    timing: Timing = field(default_factory=Timing)
    start: float = field(default_factory=time.perf_counter)

    error_rows = "the error rows"
    """Where the reader finds the reasons of errors."""

    @property
    def files(self) -> int:
        """Files that have a row."""
        return self.ok + self.refused + self.errors

    def add(self, row: Any) -> None:
        """Count a row, which has a ``status`` and a ``warning``."""
        self.ok += row.status == "ok"
        self.refused += row.status == "refused"
        self.errors += row.status == "error"
        self.warnings += bool(row.warning)

    def stop(self) -> None:
        """Take the wall time, after the last row."""
        self.timing.add("wall", self.start, self.timing.images.get("decode", 0))

    def as_dict(self) -> dict[str, Any]:
        """The counts and the timing, for JSON."""
        counts = {name: getattr(self, name) for name in ("files", "ok", "refused", "errors", "warnings")}
        return {**counts, "timing": [stage._asdict() for stage in self.timing.stages()]}

    @abc.abstractmethod
    def tables(self) -> list[RenderableType]:
        """Tables for the terminal."""

    def sentences(self) -> list[str]:
        """Closing sentences for the reader."""
        return [f"{self.warnings} of them with a warning; see the column of that name."] if self.warnings else []

    def check(self, strict: bool) -> None:
        """Raises UserError where no file could be read or, if ``strict``, where any could not."""
        if self.errors == self.files:
            raise UserError(f"No image could be read; see {self.error_rows}.")
        if strict and self.errors:
            counts = f"{self.errors} of {self.files} files could not be read"
            raise UserError(f"{counts}, and --strict was given; see {self.error_rows}.")


@dataclass(kw_only=True)
class ScoreSummary(Summary):
    """Summary of ``score``: also the metrics over the rows whose true class is known."""

    classifier: Classifier
    model: Path
    """Its run or file."""
    label_of: LabelLookup
    labels_given: bool = False
    """Whether true classes come from a table, whose use is then always reported."""
    output: Path | None = None
    """File of the rows."""
    max_rows: float = SHOWN_ROWS
    """Most rows that are kept to be shown."""
    rows: list[Row] = field(default_factory=list)
    other_errors: list[Row] = field(default_factory=list)
    """Some of the rows of errors that are not among ``rows``."""
    labels: list[tuple[str, str]] = field(default_factory=list)
    """True and predicted class of every row where both are known."""
    labelled: int = 0
    """Files whose true class is known, whether or not they could be read."""
    whole: int = 0
    """Images without plausible lungs, of a model that was trained on lungs."""

    def cells(self, row: Row) -> dict[str, Any]:
        """The cells of a row, by column."""
        return row.cells(self.classifier.classes, lungs=bool(self.classifier.segmenter))

    @property
    def columns(self) -> list[str]:
        """The columns of the rows."""
        return list(self.cells(Row("", "")))

    def add(self, row: Row, *, show: bool = True) -> None:
        """Count a row, and keep it for the tables if ``show``."""
        super().add(row)
        if self.classifier.segmenter and row.status == "ok":
            self.whole += row.lungs != self.classifier.preprocess.lungs
        label = self.label_of(row.path)
        self.labelled += label is not None
        if label in self.classifier.classes and row.status == "ok":
            self.labels.append((label, row.prediction))
        if show and len(self.rows) < self.max_rows:
            self.rows.append(row)
        elif show and row.status == "error" and len(self.other_errors) < SHOWN_ROWS:
            self.other_errors.append(row)

    @functools.cached_property
    def metrics(self) -> Metrics | None:
        """Of the scored files whose true class is one of the model's; None where there are none."""
        if not self.labels:
            return None
        from covidjax.metrics import classification_metrics

        classes = self.classifier.classes
        true, predicted = ([*map(classes.index, names)] for names in zip(*self.labels, strict=True))
        return classification_metrics(true, predicted, classes)

    @property
    def note(self) -> str:
        """What stands with every figure of a model that was trained on synthetic images."""
        from covidjax.report.tables import TRAINED_ON_SYNTHETIC

        return TRAINED_ON_SYNTHETIC if self.classifier.run.config.data.path == "sample" else ""

    def as_dict(self) -> dict[str, Any]:
        summary = {"model": str(self.model), "note": self.note, **super().as_dict()}
        if self.classifier.segmenter:
            summary["whole_films"] = self.whole
        summary["metrics"] = self.metrics.as_dict() if self.metrics else None
        if self.output:
            return {**summary, "output": str(self.output)}
        return {**summary, "rows": [*map(self.cells, self.rows)]}

    def tables(self) -> list[RenderableType]:
        from covidjax.report import tables

        parts: list[RenderableType] = []
        more = self.files - len(self.rows)
        if self.rows:
            parts.append(_rows_table("Images", self.rows, f"and {more} more" if more else ""))
        if self.other_errors:
            parts.append(_rows_table("Could not be read", self.other_errors))
        threads = "decode: all threads added up; it goes on beside the model"
        parts.append(tables.timing_table(self.timing.stages(), threads))
        if self.metrics:
            parts += tables.result_tables(self.metrics, f"Metrics\n{self.note}".strip())
        return parts

    def sentences(self) -> list[str]:
        known, sentences = len(self.labels), []
        if self.labels_given or 0 < known < self.ok:
            unused = self.labelled - known
            why = f", {unused} of them unreadable, refused or of a class that the model has not" if unused else ""
            truth = f"The truth is known of {self.labelled} of {self.files} images{why}"
            sentences.append(f"{truth}; the metrics are on {known}.")
        where = f" Wrote {self.output}." if self.output else ""
        if not self.output and len(self.rows) < self.files:
            where = " --output FILE.csv keeps the rows."
        refused = f", {self.refused} refused, as their warnings say" if self.refused else ""
        sentences.append(f"{self.ok} of {self.files} images scored{refused}, {self.errors} could not be read.{where}")
        sentences += super().sentences()
        if self.whole:
            whole = f"On {self.whole} of them no plausible lungs were found"
            sentences.append(f"{whole}; they were scored whole, as their rows tell.")
        return sentences


def _rows_table(title: str, rows: list[Row], below: str = "") -> RenderableType:
    """Rows by their paths without the folders that these share: the files' own names are what tells them apart."""
    from covidjax.report import tables

    folders = [Path(row.path).parent for row in rows]
    mixed = len({folder.is_absolute() for folder in folders}) > 1
    base = "" if mixed else os.path.commonpath(folders)
    cells = {
        "path": [os.path.relpath(row.path, base) if base else row.path for row in rows],
        "prediction": [row.prediction for row in rows],
        "confidence": ["" if row.confidence is None else f"{row.confidence:.3f}" for row in rows],
        "lungs": [row.lungs for row in rows],
        "error or warning": [row.error or row.warning for row in rows],
    }
    if not any(cells["lungs"]):
        del cells["lungs"]
    table = tables.text_table(list(cells), zip(*cells.values(), strict=True), right=("confidence",))
    return tables.titled(title + f" in {base}" * bool(base), table, below)


@dataclass(kw_only=True)
class SegmentSummary(Summary):
    """Summary of ``segment``: also the quality of the masks."""

    output: Path
    """Folder of the results."""
    quality: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Of errors."""

    error_rows = "lungs.csv"

    def add(self, row: SegmentationRow) -> None:
        super().add(row)
        readable = row.status == "ok"
        (self.quality if readable else self.reasons)[row.quality or row.error] += 1
        self.timing.add_seconds("decode", row.decode_seconds, 1)
        self.timing.add_seconds("lungs", row.lungs_seconds, int(readable))
        self.timing.add_seconds("write", row.write_seconds, int(readable))

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "quality": dict(self.quality), "output": str(self.output)}

    def tables(self) -> list[RenderableType]:
        from covidjax.report.tables import text_table, timing_table, titled

        parts = [titled("Lungs", text_table(("quality", "images"), self.quality.most_common(), right=("images",)))]
        if self.reasons:
            reasons = text_table(("reason", "files"), self.reasons.most_common(), right=("files",))
            parts.append(titled("Could not be read", reasons))
        return [*parts, timing_table(self.timing.stages(), "decode, write: all threads added up")]

    def sentences(self) -> list[str]:
        counts = f"{self.quality[GOOD]} of {self.files} images have plausible lungs, {self.errors} could not be read."
        return [f"{counts} Wrote {self.output}.", *super().sentences()]
