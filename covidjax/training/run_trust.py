"""What a run learns of how far its scores can be trusted: checked before it is trained, written when it has been. The
sections of ``trust.json`` are those of ``trust.calibration``, ``trust.operating_points`` and
``trust.abstention``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covidjax.config import Config, Preprocess
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out
from covidjax.errors import UsageError
from covidjax.report import trust_tables
from covidjax.runs import folder, trust_file
from covidjax.runs.trust_file import Trust
from covidjax.training.predictions import Predictions
from covidjax.trust import abstention, calibration, operating_points
from covidjax.trust.generalisation import generalisation_gap
from covidjax.trust.predictions import PredictionTable

VALIDATION = "validation_predictions.csv"
"""In a network's report: what it said of its validation fold, without calibration."""

INHERITED = ("calibration", "risk_coverage")
"""Sections that a run takes from the one that ``train.calibration`` names."""

HeldOut = Mapping[str, Mapping[str, Predictions]]
"""Without calibration: by kind (``test``, ``val``, ``in_source``), then by what the networks hold out."""


class Findings(NamedTuple):
    """What ``finish`` found out."""

    tables: list[Any]
    details: dict[str, Any]
    """For JSON."""


def is_by_source(config: Config) -> bool:
    """Whether a run leaves out each source in turn."""
    return config.train.cv and config.train.cv_by == "source"


def check(config: Config, dataset: Dataset, known: Collection[str] = ()) -> None:
    """Say what does not go before anything is trained.

    Args:
      config: the settings.
      dataset: what is trained on.
      known: keys of images that the weights to start from were trained on.

    Raises:
      UserError: operating points without a validation fold or of classes that there are not, or a ``train.calibration``
        that is no run of the kind.
    """
    targets = operating_points.parse(config.train.operating_points, dataset.preprocess.classes)
    if targets and config.data.val_fold is None:
        raise UsageError(f"The threshold of {targets[0]} is chosen on a validation fold; hold one out with --val-fold.")
    if targets:
        operating_points.check_labels(targets, _validation_labels(config, dataset, known), dataset.preprocess.classes)
    if config.train.calibration:
        _inherited(config, dataset.preprocess)


def _validation_labels(config: Config, dataset: Dataset, known: Collection[str]) -> np.ndarray:
    """Of all images that some network of the run validates on."""
    labels = dataset.origins.labels
    if not config.train.cv:
        return labels[hold_out(dataset, config.data, known).val]
    return labels[dataset.fold_of_rows == config.data.val_fold] if is_by_source(config) else labels


def _inherited(config: Config, preprocess: Preprocess) -> dict[str, Any]:
    path = Path(config.train.calibration)
    trust, theirs = trust_file.read(path), folder.read_run(path).preprocess
    if "calibration" not in trust:
        remedy = "name a run of `covidjax train --cv --by source`, whose networks tell how wrong they are elsewhere"
        raise UsageError(f"train.calibration: {path} has no calibration; {remedy}.")
    if theirs != preprocess:
        same = "the same classes" if theirs.classes != preprocess.classes else "images prepared in the same way"
        raise UsageError(
            f"train.calibration: {path} was not trained on {same}; train one with --cv --by source on this data."
        )
    return {name: trust[name] for name in INHERITED if name in trust}


def inherit(run: Path, config: Config, preprocess: Preprocess) -> None:
    """Give a run that has just been made the sections of the run that ``train.calibration`` names.

    Raises:
      UserError: see ``check``.
    """
    if config.train.calibration and "calibration" not in trust_file.read(run):
        trust_file.write(run, **_inherited(config, preprocess))


def temperature_at_home(run: Path, config: Config) -> float:
    """What predictions of the held-out parts of a run's own dataset are calibrated by: that of the run; but those of
    left-out sources by none, since the run's was fitted on them, and by one for each their confidences would not
    compare."""
    return 1.0 if is_by_source(config) else calibration.temperature_of(trust_file.read(run))


def finish(run: Path, config: Config, classes: Sequence[str], held_out: HeldOut, title: str) -> Findings:
    """Write the sections of a trained run of a classifier.

    Args:
      run: its folder.
      config: its settings.
      classes: their names.
      held_out: what its networks said of what they hold out.
      title: stands above the tables.

    Raises:
      UserError: an operating point of a class that the validation fold has no image of.
    """
    tables = {kind: {name: each.table(classes) for name, each in by_name.items()} for kind, by_name in held_out.items()}
    parts: list[Any] = []
    details: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    own = temperature_at_home(run, config)
    test = {name: calibrated(table, own) for name, table in tables["test"].items()}
    if is_by_source(config):
        in_source = tables.get("in_source", {})
        sections["calibration"] = calibration.section(tables["test"], in_source, str(run))
        whole = sections["calibration"]["temperature"]
        as_scored = {name: calibrated(table, whole) for name, table in tables["test"].items()}
        sections["risk_coverage"] = abstention.section(as_scored, str(run))
        details["gap"] = generalisation_gap(tables["test"], in_source)
        details["calibration"] = sections["calibration"]
        parts.append(trust_tables.gap_table(details["gap"], "Generalisation gap: in-source minus left out" + title))
        parts.append(trust_tables.calibration_table(sections["calibration"], "Calibration for elsewhere" + title))
    targets = operating_points.parse(config.train.operating_points, classes)
    if targets:
        whole = calibration.temperature_of({**trust_file.read(run), **sections})
        validation = {name: calibrated(table, own) for name, table in tables["val"].items()}
        pooled = PredictionTable.concatenate([calibrated(table, whole) for table in tables["val"].values()])
        points = sections["operating_points"] = operating_points.section(targets, validation, pooled)
        details["operating_points"] = operating_points.applied(points, *pooled_test(test))
        parts += operating_point_tables(points, details["operating_points"], title)
    if sections:
        trust_file.write(run, **sections)
    return Findings(parts, details)


def operating_point_tables(points: Sequence[Trust], applied: Sequence[Trust], title: str) -> list[Any]:
    """What operating points amount to on the validation fold and on the test set."""
    of_validation = [{**point, "figures": point["validation"]} for point in points]
    return [
        trust_tables.operating_points_table(of_validation, "Operating points, on the validation fold" + title),
        trust_tables.operating_points_table(applied, "Operating points, on the test set" + title),
    ]


def calibrated(table: PredictionTable, temperature: float) -> PredictionTable:
    """The same predictions, calibrated."""
    return table.with_probabilities(calibration.calibrate(table.probabilities, temperature))


def pooled_test(test: Mapping[str, PredictionTable]) -> tuple[PredictionTable, list[str]]:
    """Predictions of all parts, and what held out each image."""
    return PredictionTable.concatenate(list(test.values())), [
        name for name, table in test.items() for _ in range(len(table))
    ]


def write_validation(run: Path, held_out: Mapping[str, Predictions], classes: Sequence[str]) -> None:
    """Keep what a network said of its validation fold, if it has one."""
    if "val" in held_out:
        held_out["val"].table(classes).write(run / "report" / VALIDATION)
