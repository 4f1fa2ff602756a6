"""Tables of a classifier's metrics, before they are drawn: for the terminal as for ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from covidjax.bootstrap import Interval
from covidjax.metrics import ClassMetrics, Metrics, PredictiveValues

MACRO = "macro mean"

CLASSIFICATION = {"precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC"}
DETECTION = {"specificity": "specificity", "npv": "NPV", "auprc": "AUPRC", "aurc": "AURC"}
CALIBRATION = {
    "brier": "Brier",
    "log_loss": "log loss",
    "ece": "ECE",
    "calibration_slope": "slope",
    "calibration_intercept": "intercept",
}
"""Metrics of a class and their headings, by table: each has to fit 80 columns."""

OVERALL = {"brier": "Brier", "log_loss": "log loss", "ece": "ECE", "aurc": "AURC", "confidence": "mean confidence"}
"""Metrics of all classes together."""

ALL = CLASSIFICATION | DETECTION | CALIBRATION

MOST_ROWS = 40
"""Of a table of sources and classes on a terminal."""


class TableData(NamedTuple):
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A cell may have a second line."""
    below: str = ""
    left: int = 1
    """Columns of names; those after them hold numbers."""


def classifier_tables(metrics: Metrics, title: str, *, wide: bool = False) -> list[TableData]:
    """All tables of a result but the confusion matrix, as wide as a terminal or with all metrics of sources."""
    tables = [classification_table(metrics, title)]
    if metrics.brier is not None:
        tables += [detection_table(metrics), calibration_table(metrics)]
    if any(one.at_prevalence for one in metrics.per_class.values()):
        tables.append(prevalence_table(metrics))
    if len(metrics.per_source) > 1:
        tables += [sources_table(metrics, wide=wide), source_classes_table(metrics, wide=wide)]
    return tables


def classification_table(metrics: Metrics, title: str) -> TableData:
    """Precision, recall, F1 and AUROC of each class, their means, and the accuracy with its interval below. Intervals are
    over patients where those are known."""
    bootstrap = metrics.bootstrap
    interval = bootstrap.accuracy if bootstrap else metrics.interval
    images = f"{metrics.macro.support} images" + (f" of {bootstrap.patients} patients" if bootstrap else "")
    accuracy = f"accuracy {metrics.accuracy:.3f} (95 % interval {interval_text(interval)}, {images})"
    if bootstrap:
        accuracy += "; below each number its 95 % interval, by resampling patients"
    columns = {name: heading for name, heading in CLASSIFICATION.items() if name != "auroc" or metrics.brier is not None}
    return _by_class(metrics, title, columns, accuracy)


def detection_table(metrics: Metrics) -> TableData:
    """Each class against the rest, in the terms of diagnostic tests."""
    below = "recall above is the sensitivity, precision the PPV; PPV and NPV depend on the shares of the classes here"
    return _by_class(metrics, "Each class against the rest", DETECTION, below)


def calibration_table(metrics: Metrics) -> TableData:
    """How far each class's probabilities can be taken as such, and below that all classes together."""
    texts = (
        f"{heading} {number_text(getattr(metrics, name))}" + (f" ({interval_text(interval)})" if interval else "")
        for name, heading in OVERALL.items()
        for interval in [metrics.intervals.get(name)]
    )
    below = f"all classes together: {', '.join(texts)}; a calibrated model has slope 1 and intercept 0"
    return _by_class(metrics, "Calibration", CALIBRATION, below, images=False)


def prevalence_table(metrics: Metrics) -> TableData:
    """Predictive values at other prevalences."""
    rows = [
        (name, share, _cell(values, "ppv"), _cell(values, "npv"))
        for name, one in metrics.per_class.items()
        for share, values in one.at_prevalence.items()
    ]
    return TableData("Predictive values by prevalence of the class", ("class", "prevalence", "PPV", "NPV"), rows)


def sources_table(metrics: Metrics, *, wide: bool = False) -> TableData:
    """The metrics of each source's images alone."""
    means = {name: ALL[name] for name in ("recall", "auroc", *(("f1", "auprc") if wide else ()))}
    overall = OVERALL if wide else {"ece": "ECE"}
    rows = [
        (
            name,
            str(one.macro.support),
            _cell(one, "accuracy"),
            *(_cell(one.macro, metric) for metric in means),
            *(_cell(one, metric) for metric in overall),
        )
        for name, one in metrics.per_source.items()
    ]
    below = f"{', '.join(means.values())}: means over the classes that the source has"
    return TableData("Sources", ("source", "images", "accuracy", *means.values(), *overall.values()), rows, below)


def source_classes_table(metrics: Metrics, *, wide: bool = False) -> TableData:
    """Each class of each source that has images of it."""
    columns = ALL if wide else {name: ALL[name] for name in ("recall", "specificity", "auroc")}
    rows = [
        (source, name, str(one.support), *(_cell(one, metric) for metric in columns))
        for source, of_source in metrics.per_source.items()
        for name, one in of_source.per_class.items()
        if one.support
    ]
    shown = len(rows) if wide else MOST_ROWS
    below = f"and {len(rows) - shown} more in report.html and in the JSON" if len(rows) > shown else ""
    headings = ("source", "class", "images", *columns.values())
    return TableData("Sources and classes", headings, rows[:shown], below, left=2)


def confusion_table(metrics: Metrics) -> TableData:
    """Rows are true classes, columns predicted ones."""
    rows = [(name, *map(str, row)) for name, row in zip(metrics.classes, metrics.confusion, strict=True)]
    return TableData("Confusion matrix", ("true ╲ predicted", *metrics.classes), rows)


def number_text(value: float | None) -> str:
    """Three decimals, or – where it is not defined."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: Interval | None, decimals: int = 3) -> str:
    """``low–high``, or ``low, high`` where one is negative; empty for None."""
    if interval is None:
        return ""
    ends = (f"{end:.{decimals}f}" for end in interval)
    return (", " if min(interval) < 0 else "–").join(ends)


def _by_class(metrics: Metrics, title: str, columns: Mapping[str, str], below: str, *, images: bool = True) -> TableData:
    """A row for each class and one for their means."""
    rows = [
        (name, *(_cell(one, metric) for metric in columns), *((str(one.support),) if images else ()))
        for name, one in (*metrics.per_class.items(), (MACRO, metrics.macro))
    ]
    return TableData(title, ("class", *columns.values(), *(("images",) if images else ())), rows, below)


def _cell(result: Metrics | ClassMetrics | PredictiveValues, name: str) -> str:
    """A metric, and its interval on a second line."""
    interval = result.intervals.get(name)
    return number_text(getattr(result, name)) + f"\n{interval_text(interval, 2)}" * (interval is not None)
