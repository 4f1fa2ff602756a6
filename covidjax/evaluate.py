"""Logits of every example of a fold, and what they say about a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from covidjax import metrics, pipeline, rundir
from covidjax.config import Preprocess, UserError
from covidjax.dataset import Dataset
from covidjax.models import Weights
from covidjax.prepare import sample_dataset
from covidjax.trained import Predict, load_run, make_predict


def logits_of(predict: Predict, weights: Weights, batches: Iterable[pipeline.Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 ``[N, classes]`` and labels int32 ``[N]`` of every real example; padding is dropped."""
    pending, labels = [], []
    for batch in batches:
        pending.append((predict(weights, batch.images), batch.real))
        labels.append(batch.labels[: batch.real])
    logits = [np.asarray(values)[:count] for values, count in pending]
    return np.concatenate(logits), np.concatenate(labels)


class HeldOut(NamedTuple):
    """Loss and accuracy of held-out examples."""

    loss: float
    accuracy: float


def summary(logits: np.ndarray, labels: np.ndarray) -> HeldOut:
    """Mean cross-entropy and accuracy."""
    loss = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(labels)).mean()
    return HeldOut(float(loss), float((logits.argmax(-1) == labels).mean()))


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
    return f"--image-size {preprocess.image_size} --lungs {preprocess.lungs} --classes {len(preprocess.classes)}"


class Evaluation(NamedTuple):
    """What ``evaluate`` found."""

    metrics: metrics.Metrics
    described: str
    """Which examples, in words."""
    synthetic: bool


def evaluate(path: Path, data: str | None = None, *, batch_size: int = 32) -> Evaluation:
    """Metrics of a run on examples it was not trained on.

    Args:
      path: the run.
      data: a prepared dataset, of which all is used that the run was not trained on: of its own one the test fold, of
        another one every film but those that it has in common with the training and validation folds, by content or by
        published patient number.
      batch_size: images at a time.

    Raises:
      UserError: no run, no dataset, a dataset prepared with other options, or one of which nothing is held out.
    """
    loaded = load_run(path)
    run = loaded.run
    dataset = open_dataset(data or run.config.data.path, run.preprocess)
    rows = None
    if dataset.fingerprint == run.dataset:
        folds, described = [run.config.data.test_fold], f"test fold {run.config.data.test_fold} of {dataset.path}"
    elif data is None:
        raise UserError(
            f"{run.config.data.path} is no longer the dataset that {path} was trained on, so its test fold is not "
            "held out; name a dataset with --data."
        )
    else:
        folds = list(range(dataset.folds))
        known = rundir.read_seen(path)
        identities = pipeline.identities(dataset.source(folds))
        rows = np.asarray([row for row, keys in enumerate(identities) if not known & set(keys)], int)
        left_out = len(identities) - len(rows)
        described = f"{dataset.path}, without {left_out} films of the run's training" if left_out else f"all of {data}"
        if not len(rows):
            raise UserError(f"The run was trained on every film of {data}, or on their patients; name another dataset.")
    predict = make_predict(loaded.network, run.config.model.channels)
    batches = pipeline.eval_batches(dataset.source(folds), batch_size, rows)
    logits, labels = logits_of(predict, loaded.weights, batches)
    found = metrics.measure(labels, logits.argmax(-1), run.preprocess.classes)
    return Evaluation(found, described, "synthetic" in dataset.manifest["per_source"])
