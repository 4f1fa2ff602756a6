"""Metrics of a trained run on examples that it was not trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import RenderableType

from covidjax import device, files, metrics
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out, holdout_name
from covidjax.data.readers.names import key_name
from covidjax.data.sample import open_dataset
from covidjax.errors import UsageError, UserError
from covidjax.models import Weights
from covidjax.report.html import About
from covidjax.runs import folder, load
from covidjax.runs.folder import Run
from covidjax.runs.load import LoadedRun
from covidjax.training import applied_trust, reports
from covidjax.training.predictions import EvalStep, Predictions, concatenate, predict
from covidjax.training.tasks import make_task
from covidjax.trust.calibration import sentence
from covidjax.trust.operating_points import applied as applied_to


class Evaluation(NamedTuple):
    """What ``evaluate`` measured."""

    metrics: metrics.AnyMetrics
    description: str
    """Which examples, by which networks, in words."""
    synthetic: bool
    operating_points: list[dict[str, Any]]
    """What those of the run amount to on these examples, see ``trust.operating_points.applied``."""
    notes: list[str]
    """What else there is to say."""
    run: Run
    dataset: Dataset
    predictions: Predictions

    def write_report(self, out: Path, about: About, tables: Iterable[RenderableType]) -> None:
        """Write what a run's report has, but the curves of its training.

        Raises:
          UserError: it cannot be written.
        """
        with files.explaining(out):
            about = about._replace(facts=[f"Measured on {self.description}."], settings=self.run.text())
            reports.write(out, self.metrics, self.predictions, self.dataset, about=about, tables=tables)


class _Part(NamedTuple):
    """Examples and the networks that predict them; of several networks the mean probabilities count."""

    networks: list[Weights]
    source: loader.Source
    rows: np.ndarray
    holdout: str = ""
    """What of the run's own dataset this is, such as ``fold0``; empty for another dataset."""


@device.own_flags()
def evaluate(
    path: Path,
    data: str | None = None,
    *,
    batch_size: int = 32,
    operating_points: Sequence[str] = (),
    prevalences: Sequence[float] = (),
) -> Evaluation:
    """Metrics of a run on examples it was not trained on.

    Args:
      path: the run; of an ensemble, and of a cross-validation on another dataset, the mean probabilities count.
      data: a prepared dataset, which may lack some of the run's classes and of which all is used that the run was not
        trained on: of its own one the test fold or test source, and of a cross-validation every image, each by the network
        that it was held out from; of another one every image but those that it has in common with the training and
        validation folds, by content or by published patient number.
      batch_size: images at a time.
      operating_points: such as ``COVID-19:sensitivity=0.95``, whose thresholds are those of the run, else chosen on its
        validation fold; by default those of the run.
      prevalences: shares of a class at which its predictive values are told too.

    Raises:
      UserError: no run, no dataset, a dataset prepared with other options, or one of which nothing is held out.
    """
    if data is None and load.is_file(path):
        raise UserError(f"{path} is a file, which has no images beside it; name a dataset with --data.")
    loaded = load.load_run(path)
    run = loaded.run
    where, masks = data or run.config.data.path, run.config.model.is_segmenter
    dataset = open_dataset(where, run.preprocess, masks=masks, some_classes=True)
    if prevalences and dataset.masks:
        raise UsageError("--prevalence is for classes; leave it out for lung masks.")
    task = make_task(run.config, dataset)
    if dataset.fingerprint == run.dataset:
        parts, description = _own_test_folds(path, loaded, dataset)
    elif data is None:
        raise UserError(
            f"{run.config.data.path} is no longer the dataset that {path} was trained on, so its test fold is not "
            "held out; name a dataset with --data."
        )
    else:
        parts, description = _other_dataset(path, loaded, dataset)
    classes, trust = run.preprocess.classes, load.trust(path)
    points = [] if dataset.masks else applied_trust.points_of(path, trust, operating_points, classes)
    temperature = applied_trust.temperature_of_parts(path, trust, own=bool(parts[0].holdout))
    numbers = np.asarray([classes.index(name) for name in dataset.preprocess.classes], np.int32)
    held_out = _predictions(parts, task.eval_step(loaded.network), batch_size, numbers).calibrated(temperature)
    holdouts = [part.holdout for part in parts for _ in part.rows if part.holdout]
    return Evaluation(
        metrics=task.measure(held_out, classes, prevalences),
        description=description,
        synthetic=dataset.is_synthetic,
        operating_points=applied_to(points, held_out.table(classes), holdouts) if points else [],
        notes=[sentence(trust)] if temperature != 1 else [],
        run=run,
        dataset=dataset,
        predictions=held_out,
    )


def _predictions(parts: Sequence[_Part], eval_step: EvalStep, batch_size: int, numbers: np.ndarray) -> Predictions:
    """Of the images of all parts, without calibration; ``numbers`` are the run's of the dataset's classes."""
    predictions = []
    for networks, source, rows, _ in parts:
        outputs, labels = predict(eval_step, networks, loader.eval_batches(source, batch_size, rows))
        predictions.append(Predictions(outputs, numbers[labels], *loader.origins(source, rows)))
    return concatenate(predictions)


def _own_test_folds(path: Path, loaded: LoadedRun, dataset: Dataset) -> tuple[list[_Part], str]:
    """What was held out of the run's own dataset, and that in words."""
    config = loaded.run.config
    by_holdout = {replace(config.data, path=""): loaded.networks}
    held_out = f"source {source}" if (source := config.data.test_source) else f"test fold {config.data.test_fold}"
    description = f"{held_out} of {dataset.path}{_by_several(path, loaded)}"
    if config.train.cv:
        by_holdout = {}
        for member, weights in zip(folder.member_folders(path), loaded.networks, strict=True):
            of_member = folder.read_run(member).config.data  # some may be of before the dataset was moved
            by_holdout.setdefault(replace(of_member, path=""), []).append(weights)
        noun = "network" if len(loaded.networks) == len(by_holdout) else "networks"
        several = f"all {len(by_holdout)} {config.train.cv_by}s of {dataset.path}"
        description = f"{several}, each by the {noun} that it was held out from"
    # A file does not say which of its keys are of the weights that it was started from.
    known = folder.read_initial_trained_on(path)
    if load.is_file(path) and loaded.run.init.source:
        known = load.trained_on(path)
    source, parts, skipped = dataset.source(range(dataset.folds)), [], 0
    for data, networks in by_holdout.items():
        held_out = hold_out(dataset, replace(data, val_fold=None), known)  # which images are tested does not depend on it
        parts.append(_Part(networks, source, held_out.test, holdout_name(data)))
        skipped += held_out.left_out[0]
    if skipped:
        description += f", without {skipped} images that the weights it started from were trained on"
    return parts, description


def _other_dataset(path: Path, loaded: LoadedRun, dataset: Dataset) -> tuple[list[_Part], str]:
    """What the run was not trained on of another dataset, and that in words.

    Raises:
      UserError: nothing, or a run of several segmenters.
    """
    if dataset.masks and len(loaded.networks) > 1:
        members = folder.member_folders(path)
        raise UserError(f"{path} holds {len(members)} segmenters, which have no mean; name one, such as {members[0]}.")
    trained_on, source = load.trained_on(path), dataset.source(range(dataset.folds))
    identities = loader.identities(source)
    rows = np.asarray([row for row, keys in enumerate(identities) if not trained_on & set(keys)], int)
    if not len(rows):
        known = f"The run was trained on every image of {dataset.path}, or on their patients"
        raise UserError(f"{known}; name another dataset.")
    skipped = len(identities) - len(rows)
    ours, theirs = ({key_name(key) for key in keys} - {None} for keys in (trained_on, itertools.chain(*identities)))
    other_key = ", whose patients' numbers were hashed with another key and tell nothing" * bool(ours and theirs - ours)
    images = f"{dataset.path}, without {skipped} images of the run's training" if skipped else f"all of {dataset.path}"
    return [_Part(loaded.networks, source, rows)], images + other_key + _by_several(path, loaded)


def _by_several(path: Path, loaded: LoadedRun) -> str:
    if len(loaded.networks) == 1:
        return ""
    several = f"mean of {len(loaded.networks)} networks" if load.is_file(path) else load.describe(path)
    return f", by the {several}"
