"""What is found of every example of a fold, and what it says about a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special

from covidjax import metrics, networks, pipeline, rundir
from covidjax.config import MASKS, Preprocess, UserError
from covidjax.dataset import Dataset
from covidjax.models import Weights
from covidjax.prepare import sample_dataset
from covidjax.task import Examine, Examined, make_task
from covidjax.trained import load_run


def examined(
    examine: Examine, weights: Weights | list[Weights], batches: Iterable[pipeline.Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """What ``examine`` finds, float32 ``[N, K]``, and labels int32 ``[N]`` of every real example; padding is dropped."""
    pending, labels = [], []
    for batch in batches:
        pending.append((examine(weights, batch), batch.real))
        labels.append(batch.labels[: batch.real])
    found = [np.asarray(values)[:count] for values, count in pending]
    return np.concatenate(found), np.concatenate(labels)


def pooled(each: Sequence[Examined]) -> Examined:
    """Different films, one after another."""
    found, labels = (np.concatenate(parts) for parts in ([e.found for e in each], [e.labels for e in each]))
    return Examined(found, labels, [patient for one in each for patient in one.patients])


def averaged(each: Sequence[Examined]) -> Examined:
    """The same films by several classifiers: the logarithms of their mean probabilities."""
    log_probabilities = scipy.special.log_softmax(np.stack([one.found for one in each]), -1)
    return each[0]._replace(found=scipy.special.logsumexp(log_probabilities, 0) - np.log(len(each)))


def open_dataset(path: str | Path, preprocess: Preprocess | None = None, *, masks: bool = False) -> Dataset:
    """A prepared dataset, or the built-in sample for ``sample``.

    Args:
      path: its folder, or ``sample``.
      preprocess: what a run was trained with; the dataset must have been prepared in the same way.
      masks: of the sample, films with lung masks in place of classes.

    Raises:
      UserError: there is none, or it was prepared with other options.
    """
    size = preprocess.image_size if preprocess else Preprocess().image_size
    dataset = sample_dataset(size, masks=masks) if str(path) == "sample" else Dataset(Path(path))
    if preprocess and dataset.preprocess != preprocess:
        raise UserError(
            f"{path} was prepared with {_options(dataset.preprocess)}, but the run was trained on {_options(preprocess)}; "
            "prepare the films again with the run's options."
        )
    return dataset


def _options(preprocess: Preprocess) -> str:
    masks = set(preprocess.classes) <= set(MASKS)
    what = f"--masks ({', '.join(preprocess.classes)})" if masks else f"--classes {len(preprocess.classes)}"
    return f"--image-size {preprocess.image_size} --lungs {preprocess.lungs} {what} --invert {preprocess.invert}"


class Evaluation(NamedTuple):
    """What ``evaluate`` found."""

    metrics: metrics.Measured
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
    if data is None and networks.is_file(path):
        raise UserError(f"{path} is a file, which has no films beside it; name a dataset with --data.")
    loaded = load_run(path)
    run = loaded.run
    dataset = open_dataset(data or run.config.data.path, run.preprocess, masks=run.config.model.name == "lung-unet")
    task = make_task(run.config, dataset)
    source = dataset.source(range(dataset.folds))
    examine = task.examine(loaded.network)
    members = [] if networks.is_file(path) else rundir.members(path)
    weights = loaded.members if len(loaded.members) > 1 else loaded.weights

    def of_rows(weights: Weights | list[Weights], source: pipeline.Source, rows: np.ndarray) -> Examined:
        found, labels = examined(examine, weights, pipeline.eval_batches(source, batch_size, rows))
        return Examined(found, labels, pipeline.patients(source, rows))

    def test_fold(weights: Weights | list[Weights], fold: int) -> Examined:
        source = dataset.source([fold])
        return of_rows(weights, source, np.arange(len(source)))

    if dataset.fingerprint == run.dataset and run.config.train.cv:
        by_fold: dict[int, list[Weights]] = {}
        for member, own in zip(members, loaded.members, strict=True):
            by_fold.setdefault(rundir.settings(member).config.data.test_fold, []).append(own)
        found = pooled([test_fold(own if len(own) > 1 else own[0], fold) for fold, own in by_fold.items()])
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
        known = networks.seen(path)
        identities = pipeline.identities(source)
        rows = np.asarray([row for row, keys in enumerate(identities) if not known & set(keys)], int)
        left_out = len(identities) - len(rows)
        described = f"{dataset.path}, without {left_out} films of the run's training" if left_out else f"all of {data}"
        if dataset.masks and members:
            raise UserError(f"{path} holds {len(members)} segmenters, which have no mean; name one, such as {members[0]}.")
        if not len(rows):
            raise UserError(f"The run was trained on every film of {data}, or on their patients; name another dataset.")
        found = of_rows(weights, source, rows)
    if len(loaded.members) > 1 and not (run.config.train.cv and dataset.fingerprint == run.dataset):
        several = f"mean of {len(loaded.members)} networks" if networks.is_file(path) else networks.described(path)
        described += f", by the {several}"
    measured = task.measure(found, run.preprocess.classes)
    return Evaluation(measured, described, "synthetic" in dataset.manifest["per_source"])
