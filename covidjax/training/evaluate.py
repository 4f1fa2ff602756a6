"""What is found of every example of a fold, and what it says about a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from covidjax import metrics
from covidjax.data import loader
from covidjax.data.sample import open_dataset
from covidjax.errors import UserError
from covidjax.models import Weights
from covidjax.runs import folder, load
from covidjax.runs.load import load_run
from covidjax.training.predictions import Predictions, concatenate, predict
from covidjax.training.tasks import make_task


class Evaluation(NamedTuple):
    """What ``evaluate`` found."""

    metrics: metrics.AnyMetrics
    described: str
    """Which examples, in words."""
    synthetic: bool


def evaluate(path: Path, data: str | None = None, *, batch_size: int = 32) -> Evaluation:
    """Metrics of a run on examples it was not trained on.

    Args:
      path: the run; of an ensemble, and of a cross-validation on another dataset, the mean probabilities count.
      data: a prepared dataset, of which all is used that the run was not trained on: of its own one the test fold, and of a
        cross-validation every film, each by the network that it was held out from; of another one every film but those
        that it has in common with the training and validation folds, by content or by published patient number.
      batch_size: images at a time.

    Raises:
      UserError: no run, no dataset, a dataset prepared with other options, or one of which nothing is held out.
    """
    if data is None and load.is_file(path):
        raise UserError(f"{path} is a file, which has no films beside it; name a dataset with --data.")
    loaded = load_run(path)
    run = loaded.run
    dataset = open_dataset(data or run.config.data.path, run.preprocess, masks=run.config.model.name == "lung-unet")
    task = make_task(run.config, dataset)
    source = dataset.source(range(dataset.folds))
    examine = task.examine(loaded.network)
    members = [] if load.is_file(path) else folder.member_folders(path)
    weights = loaded.members if len(loaded.members) > 1 else loaded.weights

    def of_rows(weights: Weights | list[Weights], source: loader.Source, rows: np.ndarray) -> Predictions:
        found, labels = predict(examine, weights, loader.eval_batches(source, batch_size, rows))
        return Predictions(found, labels, loader.patients(source, rows))

    def test_fold(weights: Weights | list[Weights], fold: int) -> Predictions:
        source = dataset.source([fold])
        return of_rows(weights, source, np.arange(len(source)))

    if dataset.fingerprint == run.dataset and run.config.train.cv:
        by_fold: dict[int, list[Weights]] = {}
        for member, own in zip(members, loaded.members, strict=True):
            by_fold.setdefault(folder.read_run(member).config.data.test_fold, []).append(own)
        found = concatenate([test_fold(own if len(own) > 1 else own[0], fold) for fold, own in by_fold.items()])
        by = "network" if len(members) == len(by_fold) else "networks"
        described = f"all {len(by_fold)} folds of {dataset.path}, each by the {by} that it was held out from"
    elif dataset.fingerprint == run.dataset:
        fold = run.config.data.test_fold
        found, described = test_fold(weights, fold), f"test fold {fold} of {dataset.path}"
    elif data is None:
        raise UserError(
            f"{run.config.data.path} is no longer the dataset that {path} was trained on, so its test fold is not "
            "held out; name a dataset with --data."
        )
    else:
        known = load.seen(path)
        identities = loader.identities(source)
        rows = np.asarray([row for row, keys in enumerate(identities) if not known & set(keys)], int)
        left_out = len(identities) - len(rows)
        described = f"{dataset.path}, without {left_out} films of the run's training" if left_out else f"all of {data}"
        if dataset.masks and members:
            raise UserError(f"{path} holds {len(members)} segmenters, which have no mean; name one, such as {members[0]}.")
        if not len(rows):
            raise UserError(f"The run was trained on every film of {data}, or on their patients; name another dataset.")
        found = of_rows(weights, source, rows)
    if len(loaded.members) > 1 and not (run.config.train.cv and dataset.fingerprint == run.dataset):
        several = f"mean of {len(loaded.members)} networks" if load.is_file(path) else load.described(path)
        described += f", by the {several}"
    measured = task.measure(found, run.preprocess.classes)
    return Evaluation(measured, described, "synthetic" in dataset.manifest["per_source"])
