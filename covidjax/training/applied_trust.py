"""What a run knows of how far its scores can be trusted, put to use where it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.data.holdout import holdout_name
from covidjax.errors import UsageError
from covidjax.runs import folder, load
from covidjax.runs.trust_file import Trust
from covidjax.training.run_trust import VALIDATION, calibrated, temperature_at_home
from covidjax.trust import calibration, operating_points
from covidjax.trust.predictions import PredictionTable


def validation_tables(run: Path) -> dict[str, PredictionTable]:
    """What the networks of a run said of their validation folds, by what they hold out: of several networks the mean.

    Raises:
      UserError: there was no validation fold, or what was said of it is not there.
    """
    by_name: dict[str, list[PredictionTable]] = {}
    for network in folder.network_folders(run):
        data = folder.read_run(network).config.data
        if data.val_fold is None:
            remedy = "train it again with --val-fold, or name one that was"
            raise UsageError(f"{run} has no validation fold, on which thresholds are chosen; {remedy}.")
        by_name.setdefault(holdout_name(data), []).append(PredictionTable.read(network / "report" / VALIDATION))
    return {
        name: tables[0].with_probabilities(np.mean([table.probabilities for table in tables], 0))
        for name, tables in by_name.items()
    }


def points_of(path: Path, trust: Trust, texts: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The operating points to evaluate a run at: those asked for, else those that it was trained with.

    Args:
      path: the run, or the file.
      trust: its sections.
      texts: such as ``COVID-19:sensitivity=0.95``.
      classes: their names.

    Raises:
      UserError: another form, or neither a threshold of the run's own nor a validation fold to choose one on.
    """
    stored: list[dict[str, Any]] = list(trust.get("operating_points") or [])
    targets = operating_points.parse(texts, classes)
    if not targets:
        return stored
    known = {operating_points.Target(point["class"], point["metric"], point["target"]): point for point in stored}
    missing = [target for target in targets if target not in known]
    if missing and load.is_file(path):
        remedy = f"name the run that it was made of, or train one with --operating-point {missing[0]}"
        raise UsageError(
            f"{path} is a file, which has no validation fold to choose the threshold of {missing[0]} on; {remedy}."
        )
    if missing:
        tables, whole = validation_tables(path), calibration.temperature_of(trust)
        own = temperature_of_parts(path, trust, own=True)
        validation = {name: calibrated(table, own) for name, table in tables.items()}
        pooled = PredictionTable.concatenate([calibrated(table, whole) for table in tables.values()])
        for target, point in zip(missing, operating_points.section(missing, validation, pooled), strict=True):
            known[target] = point
    return [known[target] for target in targets]


def temperature_of_parts(path: Path, trust: Trust, *, own: bool) -> float:
    """What predictions are calibrated by: of the run's own dataset see ``run_trust.temperature_at_home``.

    Args:
      path: the run, or the file.
      trust: its sections.
      own: whether they are of what the run holds out of its own dataset.
    """
    if own and not load.is_file(path):
        return temperature_at_home(path, folder.read_run(path).config)
    return calibration.temperature_of(trust)
