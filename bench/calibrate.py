"""A trained run calibrated, as the classifier that the package carries.

A run with ``train.calibration`` has a temperature that was fitted on left-out sources, which the file's header carries. The
probabilities of another are calibrated by one temperature (Guo et al.: "On Calibration of Modern Neural Networks", ICML
2017, section 4.2), the one with the smallest cross-entropy on the run's validation fold. Logits are linear in the last
layer, so that goes into its weights, and whatever computes them needs to know nothing of it.
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
from covidjax.inference.forward import ensemble_mean
from covidjax.models import Weights
from covidjax.runs import load, weights_file
from covidjax.runs.load import LoadedRun
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
    >>> temperature, _, _ = fit(sure, np.asarray([0, 0, 0, 1]))
    >>> scipy.special.softmax(sure[0, 0] / temperature).round(3).tolist()
    [0.75, 0.25]
    """
    minimum: Any = scipy.optimize.minimize_scalar(
        lambda log_temperature: cross_entropy(logits, labels, np.exp(log_temperature)),
        bounds=np.log([COLDEST, HOTTEST]),
        method="bounded",
    )
    temperature = float(np.exp(minimum.x))
    return Fit(temperature, cross_entropy(logits, labels, 1.0), cross_entropy(logits, labels, temperature))


def cross_entropy(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Of the mean probabilities of logits ``[networks, N, classes]`` with labels int ``[N]``."""
    log_probabilities = np.asarray(ensemble_mean(logits / temperature), float)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def tempered(weights: Weights, temperature: float) -> Weights:
    """The weights whose logits are those of the given ones, divided by a temperature."""
    dense = {name: leaf / temperature for name, leaf in weights.params["dense"].items()}
    return Weights({**weights.params, "dense": dense}, weights.batch_stats)


def held_out(loaded: LoadedRun, data: str, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a fold of the dataset that the networks were trained on: logits ``[networks, N, classes]`` and labels int ``[N]``.

    Raises:
      UserError: another dataset, or none.
    """
    dataset = open_dataset(data, loaded.run.preprocess)
    if dataset.fingerprint != loaded.run.dataset:
        raise UserError(f"{data} is not the dataset that the run was trained on; prepare that again.")
    source = dataset.source([fold])
    eval_step = make_task(loaded.run.config, dataset).eval_step(loaded.network)
    predictions = [predict(eval_step, weights, loader.eval_batches(source, 32)) for weights in loaded.networks]
    return np.stack([logits for logits, _ in predictions]), predictions[0][1]


def bundle(path: Path, out: Path = load.BUNDLED, licence: str = "") -> str:
    """Write a run as one file, calibrated.

    Args:
      path: the run.
      out: the file.
      licence: of the weights, which follows from the images; by default that of what they were started from.

    Returns:
      What the file says of itself.

    Raises:
      UserError: the run has no validation fold, its dataset is not there, or it finds lungs.
    """
    loaded, trust = load.load_run(path, "cpu"), load.trust(path)
    data, train = loaded.run.config.data, loaded.run.config.train
    if train.cv or data.val_fold is None or loaded.run.config.model.is_segmenter:
        raise UserError(f"{path} has no fold to calibrate on; train a classifier with --val-fold.")
    networks, on = loaded.networks, "left-out sources"
    if "calibration" not in trust:
        logits, labels = held_out(loaded, data.path, data.val_fold)
        fitted, on = fit(logits, labels), f"fold {data.val_fold}"
        networks = [tempered(weights, fitted.temperature) for weights in networks]
    description = f"calibrated on {on}, trained without fold {data.test_fold}"
    weights_file.write(out, loaded.run, networks, description, load.trained_on(path), trust, licence)
    return description
