"""Logits of every example of a fold, and what they say about a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special

from covidjax import checkpoint, metrics, pipeline, rundir
from covidjax.config import Preprocess, UserError
from covidjax.dataset import Dataset
from covidjax.models import Weights
from covidjax.prepare import sample_dataset
from covidjax.trained import Predict, load_run, make_predict


def logits_of(
    predict: Predict, weights: Weights | list[Weights], batches: Iterable[pipeline.Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 ``[N, classes]`` and labels int32 ``[N]`` of every real example; padding is dropped."""
    pending, labels = [], []
    for batch in batches:
        pending.append((predict(weights, batch.images), batch.real))
        labels.append(batch.labels[: batch.real])
    logits = [np.asarray(values)[:count] for values, count in pending]
    return np.concatenate(logits), np.concatenate(labels)


class Predicted(NamedTuple):
    """What became of some held-out films."""

    logits: np.ndarray
    """float32 ``[N, classes]``."""
    labels: np.ndarray
    """int32 ``[N]``."""
    patients: list[str]
    """Keys of the patients, ``[N]``."""

    def measure(self, classes: Sequence[str]) -> metrics.Metrics:
        """Metrics, with intervals over patients."""
        return metrics.measure(self.labels, self.logits.argmax(-1), classes, self.patients)


def pooled(found: Sequence[Predicted]) -> Predicted:
    """Different films, one after another."""
    logits, labels = (np.concatenate(each) for each in ([p.logits for p in found], [p.labels for p in found]))
    return Predicted(logits, labels, [patient for each in found for patient in each.patients])


def averaged(found: Sequence[Predicted]) -> Predicted:
    """The same films by several networks: the logarithms of their mean probabilities."""
    log_probabilities = scipy.special.log_softmax(np.stack([each.logits for each in found]), -1)
    return found[0]._replace(logits=scipy.special.logsumexp(log_probabilities, 0) - np.log(len(found)))


def open_dataset(path: str | Path, preprocess: Preprocess | None = None) -> Dataset:
    """A prepared dataset, or the built-in sample for ``sample``.

    Args:
      path: its folder, or ``sample``.
      preprocess: what a run was trained with; the dataset must have been prepared in the same way.

    Raises:
      UserError: there is none, or it was prepared with other options.
    """
    size = preprocess.image_size if preprocess else Preprocess().image_size
    dataset = sample_dataset(size) if str(path) == "sample" else Dataset(Path(path))
    if preprocess and dataset.preprocess != preprocess:
        raise UserError(
            f"{path} was prepared with {_options(dataset.preprocess)}, but the run was trained on {_options(preprocess)}; "
            "prepare the films again with the run's options."
        )
    return dataset


def _options(preprocess: Preprocess) -> str:
    size, classes = preprocess.image_size, len(preprocess.classes)
    return f"--image-size {size} --lungs {preprocess.lungs} --classes {classes} --invert {preprocess.invert}"


class Evaluation(NamedTuple):
    """What ``evaluate`` found."""

    metrics: metrics.Metrics
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
    loaded = load_run(path)
    run = loaded.run
    dataset = open_dataset(data or run.config.data.path, run.preprocess)
    source = dataset.source(range(dataset.folds))
    predict = make_predict(loaded.network, run.config.model.channels)
    members = rundir.members(path)

    def predicted(weights: Weights | list[Weights], source: pipeline.Source, rows: np.ndarray) -> Predicted:
        logits, labels = logits_of(predict, weights, pipeline.eval_batches(source, batch_size, rows))
        return Predicted(logits, labels, pipeline.patients(source, rows))

    def test_fold(weights: Weights | list[Weights], fold: int) -> Predicted:
        source = dataset.source([fold])
        return predicted(weights, source, np.arange(len(source)))

    if dataset.fingerprint == run.dataset and run.config.train.cv:
        folds = [rundir.settings(member).config.data.test_fold for member in members]
        found = pooled([test_fold(weights, fold) for weights, fold in zip(loaded.members, folds, strict=True)])
        described = f"all {len(folds)} folds of {dataset.path}, each by the network that it was held out from"
    elif dataset.fingerprint == run.dataset:
        fold = run.config.data.test_fold
        found, described = test_fold(loaded.members, fold), f"test fold {fold} of {dataset.path}"
    elif data is None:
        raise UserError(
            f"{run.config.data.path} is no longer the dataset that {path} was trained on, so its test fold is not "
            "held out; name a dataset with --data."
        )
    else:
        known = set().union(*(rundir.read_seen(folder) for folder in members or [path]))
        identities = pipeline.identities(source)
        rows = np.asarray([row for row, keys in enumerate(identities) if not known & set(keys)], int)
        left_out = len(identities) - len(rows)
        described = f"{dataset.path}, without {left_out} films of the run's training" if left_out else f"all of {data}"
        if not len(rows):
            raise UserError(f"The run was trained on every film of {data}, or on their patients; name another dataset.")
        found = predicted(loaded.members, source, rows)
    if len(loaded.members) > 1 and not (run.config.train.cv and dataset.fingerprint == run.dataset):
        described += f", by the {checkpoint.described(path)}"
    return Evaluation(found.measure(run.preprocess.classes), described, "synthetic" in dataset.manifest["per_source"])
