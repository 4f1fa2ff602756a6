"""What the rows of ``score`` and ``segment`` amount to: counts, metrics, tables, JSON and closing sentences."""

from __future__ import annotations

import abc
import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidjax.errors import UserError, printable
from covidjax.images.find import FoundImages
from covidjax.images.formats import Limits
from covidjax.lungs.export import GOOD, SegmentationRow
from covidjax.runs import folder, load
from covidjax.scoring.ground_truth import LabelLookup
from covidjax.scoring.row import Row
from covidjax.timing import Timing
from covidjax.trust.operating_points import thresholds_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from covidjax.metrics import Metrics
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.measured import Measured
    from covidjax.scoring.studies import Studies

# The tables, and rich with them, are imported where they are used: a command's first row does without.

FEWEST = 20
"""Rows of one class that make the model suspect."""

SHOWN_ROWS = 50
"""Rows that are printed where no output file is named, and errors where one is."""


@dataclass
class Summary(abc.ABC):
    """Counts of the rows of a command."""

    ok: int = 0
    """Files that were read."""
    refused: int = 0
    """Files that were read and are no frontal chest X-ray, or unlike all that the model was trained on."""
    uncertain: int = 0
    """Files that were read, with too little confidence for an answer."""
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
        return self.ok + self.refused + self.uncertain + self.errors

    def add(self, row: Any) -> None:
        """Count a row, which has a ``status`` and a ``warning``."""
        self.ok += row.status == "ok"
        self.refused += row.status == "refused"
        self.uncertain += row.status == "uncertain"
        self.errors += row.status == "error"
        self.warnings += bool(row.warning)

    def stop(self) -> None:
        """Take the wall time, after the last row."""
        self.timing.add("wall", self.start, self.timing.images.get("decode", 0))

    def as_dict(self) -> dict[str, Any]:
        """The counts and the timing, for JSON."""
        counts = {name: getattr(self, name) for name in ("files", "ok", "refused", "uncertain", "errors", "warnings")}
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
    images: FoundImages | None = None
    """Those that are scored, which the metrics look at again."""
    studies: Studies | None = None
    """Where a row is of a study, their images."""
    prevalences: Sequence[float] = ()
    """For predictive values."""
    limits: Limits = field(default_factory=Limits)
    rows: list[Row] = field(default_factory=list)
    other_errors: list[Row] = field(default_factory=list)
    """Some of the rows of errors that are not among ``rows``."""
    labels: list[tuple[Row, str]] = field(default_factory=list)
    """Every row with probabilities whose true class is known and one of the model's."""
    labelled: int = 0
    """Files whose true class is known, whether or not they could be read."""
    predicted: Counter[str] = field(default_factory=Counter)
    """Rows of each predicted class."""
    whole: int = 0
    """Images without plausible lungs, of a model that was trained on lungs."""

    @property
    def noun(self) -> str:
        """What a row is of."""
        return "images" if self.studies is None else "studies"

    def cells(self, row: Row) -> dict[str, Any]:
        """The cells of a row, by column."""
        thresholds = thresholds_of(self.classifier.trust)
        return row.cells(self.classifier.classes, lungs=bool(self.classifier.segmenter), thresholds=thresholds)

    @property
    def columns(self) -> list[str]:
        """The columns of the rows."""
        return list(self.cells(Row("", "", images=None if self.studies is None else 0)))

    def add(self, row: Row, *, show: bool = True) -> None:
        """Count a row, and keep it for the tables if ``show``."""
        super().add(row)
        if self.classifier.segmenter and row.status in ("ok", "uncertain"):
            self.whole += row.lungs != self.classifier.preprocess.lungs
        label = self.label_of(row.path)
        self.labelled += label is not None
        if row.status == "ok":
            self.predicted[row.prediction] += 1
        if label in self.classifier.classes and row.probabilities:
            self.labels.append((row, label))
        if show and len(self.rows) < self.max_rows:
            self.rows.append(row)
        elif show and row.status == "error" and len(self.other_errors) < SHOWN_ROWS:
            self.other_errors.append(row)

    @functools.cached_property
    def measured(self) -> Measured | None:
        """The metrics; None where the true class of no row is known."""
        if not self.labels:
            return None
        from covidjax.scoring.measured import LabelledRow, measure_rows

        found = self.images.paths if self.images else [row.path for row, _ in self.labels]
        by_path = self.studies or {os.fspath(path): [path] for path in found}
        # A Parquet table that is resumed has names in UTF-8, whatever the files' own.
        by_path = {printable(path): images for path, images in by_path.items()} | dict(by_path)
        labelled = [LabelledRow(row, label, by_path.get(row.path, [row.path])) for row, label in self.labels]
        roots = self.images.roots if self.images else []
        options: Any = {"prevalences": self.prevalences, "limits": self.limits}
        return measure_rows(labelled, roots, self.classifier.classes, self._trained_on or set(), **options)

    @functools.cached_property
    def _trained_on(self) -> set[str] | None:
        """Keys of what the model was trained on; None for a run of which that was not kept."""
        with contextlib.suppress(UserError):
            return load.trained_on(self.model)
        return None

    @property
    def metrics(self) -> Metrics | None:
        """Of the rows with a prediction, whose true class is one of the model's, and which the model was not trained on."""
        return self.measured.accepted if self.measured else None

    @property
    def remarks(self) -> list[str]:
        """What speaks against the model."""
        remarks = []
        right = [row.prediction == label for row, label in self.labels if row.status == "ok"]
        all_right = len(right) == self.ok and all(right)
        if self.ok >= FEWEST and len(self.predicted) == 1 and len(self.classifier.classes) > 1 and not all_right:
            (name,) = self.predicted
            remarks.append(f"All {self.ok} predictions are {name}: the model may be of no use for these images.")
        if self.labels and self._trained_on is None:
            remarks.append(f"{self.model} does not tell what it was trained on, so the metrics may be on its own images.")
        if not load.is_file(self.model) and (progress := folder.unfinished(self.model)):
            remarks.append(
                f"{self.model} is unfinished: {progress}; go on with `covidjax train --resume --run {self.model}`."
            )
        return remarks

    @property
    def note(self) -> str:
        """What stands with every figure of a model that was trained on synthetic images."""
        from covidjax.report.tables import TRAINED_ON_SYNTHETIC

        return TRAINED_ON_SYNTHETIC if self.classifier.run.config.data.path == "sample" else ""

    def as_dict(self) -> dict[str, Any]:
        summary = {"model": str(self.model), "note": self.note, **super().as_dict()}
        if self.classifier.segmenter:
            summary["whole_films"] = self.whole
        measured, remarks = self.measured, self.remarks
        everything = measured and (measured.everything or measured.accepted)
        summary |= {
            "metrics": self.metrics.as_dict() if self.metrics else None,
            "metrics_all": everything.as_dict() if everything else None,
            "coverage": measured.coverage if measured else None,
            "trained_on": measured.trained_on if measured else None,
            "remarks": remarks,
        }
        if self.output:
            return {**summary, "output": str(self.output)}
        return {**summary, "rows": [*map(self.cells, self.rows)]}

    def tables(self) -> list[RenderableType]:
        from covidjax.report import tables

        parts: list[RenderableType] = []
        more = self.files - len(self.rows)
        if self.rows:
            parts.append(_rows_table(self.noun.capitalize(), self.rows, f"and {more} more" if more else ""))
        if self.other_errors:
            parts.append(_rows_table("Could not be read", self.other_errors))
        threads = "decode: all threads added up; it goes on beside the model"
        parts.append(tables.timing_table(self.timing.stages(), threads))
        if self.measured:
            parts += self._metrics_tables(self.measured)
        return parts

    def _metrics_tables(self, measured: Measured) -> list[RenderableType]:
        from covidjax.report import tables

        parts: list[RenderableType] = []
        if measured.accepted:
            coverage = f" of {self.noun} with a prediction, coverage {measured.coverage:.3f}" if measured.everything else ""
            parts += tables.result_tables(measured.accepted, f"Metrics{coverage}\n{self.note}".strip())
        if measured.everything:
            title = f"Metrics of all {self.noun}, also those without a prediction"
            parts += tables.result_tables(measured.everything, f"{title}\n{self.note}".strip())
        return parts

    def sentences(self) -> list[str]:
        measured, sentences = self.measured, []
        known = sum(row.status == "ok" for row, _ in self.labels)
        if self.labels_given or 0 < known < self.ok:
            unused = self.labelled - known
            why = f", {unused} of them unreadable, refused, uncertain or of no class of the model" if unused else ""
            truth = f"The truth is known of {self.labelled} of {self.files} {self.noun}{why}"
            measured_on = measured.accepted.macro.support if measured and measured.accepted else 0
            sentences.append(f"{truth}; the metrics are on {measured_on}.")
        if measured and measured.trained_on:
            own = f"{measured.trained_on} {self.noun} are of the model's own training, or of its patients"
            sentences.append(f"{own}: the metrics leave them out.")
        where = f" Wrote {self.output}." if self.output else ""
        if not self.output and len(self.rows) < self.files:
            where = " --output FILE.csv keeps the rows."
        refused = f", {self.refused} refused, as their warnings say" if self.refused else ""
        uncertain = f", {self.uncertain} uncertain" if self.uncertain else ""
        counts = f"{self.ok} of {self.files} {self.noun} scored{refused}{uncertain}, {self.errors} could not be read"
        sentences.append(f"{counts}.{where}")
        sentences += super().sentences()
        if self.whole:
            whole = f"On {self.whole} of them no plausible lungs were found; they were scored whole, as their rows tell."
            if self.studies is not None:
                whole = f"{self.whole} of them have images without plausible lungs, which were scored whole."
            sentences.append(whole)
        return sentences + self.remarks


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
    if any(row.images is not None for row in rows):
        counts = ["" if row.images is None else str(row.images) for row in rows]
        cells = {"path": cells.pop("path"), "images": counts} | cells
    table = tables.text_table(list(cells), zip(*cells.values(), strict=True), right=("confidence", "images"))
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
