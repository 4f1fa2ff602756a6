"""A trained run calibrated, as the classifier that the package carries.

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
from covidjax.inference.forward import ensemble_mean
from covidjax.metrics import Metrics
from covidjax.models import Weights
from covidjax.runs import load, weights_file
from covidjax.runs.load import LoadedRun
from covidjax.training.predictions import Predictions, predict
from covidjax.training.tasks import make_task
from covidjax.trust.metrics import measure

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


def held_out(loaded: LoadedRun, data: str, fold: int) -> tuple[np.ndarray, np.ndarray, loader.Source]:
    """Of a fold of the dataset that the networks were trained on: logits ``[networks, N, classes]``, labels int ``[N]``,
    and the images themselves.

    Raises:
      UserError: another dataset, or none.
    """
    dataset = open_dataset(data, loaded.run.preprocess)
    if dataset.fingerprint != loaded.run.dataset:
        raise UserError(f"{data} is not the dataset that the run was trained on; prepare that again.")
    source = dataset.source([fold])
    eval_step = make_task(loaded.run.config, dataset).eval_step(loaded.network)
    predictions = [predict(eval_step, weights, loader.eval_batches(source, 32)) for weights in loaded.networks]
    return np.stack([logits for logits, _ in predictions]), predictions[0][1], source


def bundle(path: Path, out: Path = load.BUNDLED) -> Fit:
    """Calibrate a run on its validation fold and write it as one file.

    Raises:
      UserError: the run has no validation fold, its dataset is not there, or it finds lungs.
    """
    loaded = load.load_run(path, "cpu")
    config = loaded.run.config
    if config.train.cv or config.data.val_fold is None or config.model.is_segmenter:
        raise UserError(f"{path} has no fold to calibrate on; train a classifier with --val-fold.")
    logits, labels, _ = held_out(loaded, config.data.path, config.data.val_fold)
    fitted = fit(logits, labels)
    networks = [tempered(weights, fitted.temperature) for weights in loaded.networks]
    description = f"calibrated on fold {config.data.val_fold}, trained without fold {config.data.test_fold}"
    weights_file.write(out, loaded.run, networks, description, load.trained_on(path), load.trust(path))
    return fitted


def test_metrics(path: Path, data: str) -> Metrics:
    """What the card says: metrics of what ``bundle`` wrote on the fold that it has not seen, also of each source's images.

    Args:
      path: the file.
      data: the dataset that it was trained on.
    """
    loaded = load.load_run(path, "cpu")
    logits, labels, source = held_out(loaded, data, loaded.run.config.data.test_fold)
    outputs = np.asarray(ensemble_mean(logits))
    predictions = Predictions(outputs, labels, *loader.origins(source, np.arange(len(labels))))
    return measure(predictions.table(loaded.run.preprocess.classes))
