"""A trained run as the classifier that the package carries.

Its probabilities are calibrated by one temperature (Guo et al.: "On Calibration of Modern Neural Networks", ICML 2017,
section 4.2), the one with the smallest cross-entropy on the run's validation fold. Logits are linear in the last layer, so
the temperature goes into its weights, and whatever computes them needs to know nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from covidjax.data import loader
from covidjax.data.sample import open_dataset
from covidjax.errors import UserError
from covidjax.metrics import Metrics, classification_metrics
from covidjax.models import Weights
from covidjax.runs import load
from covidjax.runs.load import Loaded, load_run
from covidjax.training.predictions import predict
from covidjax.training.tasks import make_task

COLDEST, HOTTEST = 0.1, 10.0
"""Bounds of the temperature."""


class Fit(NamedTuple):
    """A temperature and what it does on one fold."""

    temperature: float
    before: float
    """Mean cross-entropy at temperature 1."""
    after: float


def fit(logits: np.ndarray, labels: np.ndarray) -> Fit:
    """The temperature with the smallest cross-entropy of the networks' mean probabilities.

    Args:
      logits: ``[networks, N, classes]``.
      labels: int ``[N]``.

    >>> sure = np.log([[[0.9, 0.1]] * 4])  # right in three of four, so a probability of 0.75 is due
    >>> found = fit(sure, np.asarray([0, 0, 0, 1]))
    >>> scipy.special.softmax(sure[0, 0] / found.temperature).round(3).tolist()
    [0.75, 0.25]
    """

    def entropy(log_temperature: float) -> float:
        return cross_entropy(logits, labels, float(np.exp(log_temperature)))

    bounds = np.log([COLDEST, HOTTEST])
    least: Any = scipy.optimize.minimize_scalar(entropy, bounds=bounds, method="bounded")
    temperature = float(np.exp(least.x))
    return Fit(temperature, cross_entropy(logits, labels, 1.0), cross_entropy(logits, labels, temperature))


def cross_entropy(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Of the mean probabilities of logits ``[networks, N, classes]`` with labels int ``[N]``."""
    each = scipy.special.log_softmax(logits / temperature, -1)
    mean = scipy.special.logsumexp(each, 0) - np.log(len(logits))
    return float(-mean[np.arange(len(labels)), labels].mean())


def tempered(weights: Weights, temperature: float) -> Weights:
    """The weights whose logits are those of the given ones, divided by a temperature."""
    dense = {name: leaf / temperature for name, leaf in weights.params["dense"].items()}
    return Weights({**weights.params, "dense": dense}, weights.batch_stats)


def held_out(loaded: Loaded, data: str, fold: int) -> tuple[np.ndarray, np.ndarray, loader.Source]:
    """Of a fold of the dataset that the networks were trained on: logits ``[networks, N, classes]``, labels int ``[N]``,
    and the films themselves.

    Raises:
      UserError: another dataset, or none.
    """
    run = loaded.run
    dataset = open_dataset(data, run.preprocess)
    if dataset.fingerprint != run.dataset:
        raise UserError(f"{data} is not the dataset that the run was trained on; prepare that again.")
    source = dataset.source([fold])
    examine = make_task(run.config, dataset).examine(loaded.network)
    found: list[Any] = [predict(examine, weights, loader.eval_batches(source, 32)) for weights in loaded.members]
    return np.stack([logits for logits, _ in found]), found[0][1], source


def bundle(path: Path, out: Path = load.BUNDLED) -> Fit:
    """Calibrate a run on its validation fold and write it as one file.

    Raises:
      UserError: the run has no validation fold, its dataset is not there, or it finds lungs.
    """
    loaded = load_run(path, "cpu")
    data = loaded.run.config.data
    if loaded.run.config.train.cv or data.val_fold is None or loaded.run.config.model.name == "lung-unet":
        raise UserError(f"{path} has no fold to calibrate on; train a classifier with --val-fold.")
    logits, labels, _ = held_out(loaded, data.path, data.val_fold)
    found = fit(logits, labels)
    members = [tempered(weights, found.temperature) for weights in loaded.members]
    described = f"calibrated on fold {data.val_fold}, trained without fold {data.test_fold}"
    load.save(out, loaded.run, members, described, load.seen(path))
    return found


def figures(path: Path, data: str) -> dict[str, Metrics]:
    """What the card says: metrics of what ``bundle`` wrote on the fold that it has not seen, of all its films and of each
    source's.

    Args:
      path: the file.
      data: the dataset that it was trained on.
    """
    loaded = load_run(path, "cpu")
    logits, labels, source = held_out(loaded, data, loaded.run.config.data.test_fold)
    chosen = scipy.special.softmax(logits, -1).mean(0).argmax(-1)
    rows = np.arange(len(labels))
    origins = np.asarray([source.texts(row, "source")[0] for row in range(len(labels))])
    parts = {"all sources": rows} | {name: rows[origins == name] for name in np.unique(origins).tolist()}
    classes = loaded.run.preprocess.classes
    return {
        name: classification_metrics(labels[part], chosen[part], classes, patients=loader.patients(source, part))
        for name, part in parts.items()
    }
