"""What one network is trained and tested on, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset, Origins
from covidjax.data.holdout import Holdout, hold_out, holdout_name
from covidjax.data.sampling import balanced_weights, draw_epoch
from covidjax.training.optimizer import learning_rate_table
from covidjax.training.step import StepInputs, class_weights

LOG = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What one network is trained and tested on."""

    config: Config
    train_rows: np.ndarray
    """int32 ``[N]``, rows of the whole dataset, fold after fold."""
    held_out: dict[str, np.ndarray]
    """Rows of ``test`` and, where there is a validation fold, ``val``: what is looked at after each epoch."""
    in_source: np.ndarray
    """Rows that are tested at the end, see ``Holdout``."""
    images: loader.Source
    """The whole dataset."""
    batch_size: int
    steps: int
    """Of an epoch."""
    inputs: StepInputs
    origins: Origins | None
    """Of the whole dataset, for a probe and for balanced sampling."""
    draws: np.ndarray | None
    """How often each training image is drawn in an epoch, float64 ``[N]`` of mean 1; None for once each."""
    left_out: str
    """Which images are not held out since the weights to start from were trained on them, in words; empty if none."""

    def order(self, epoch: int) -> np.ndarray:
        """The rows of the dataset that each step of an epoch takes, int32 ``[steps, batch]``."""
        if self.draws is not None:
            rows = draw_epoch(self.draws, self.batch_size, seed=self.config.seed, epoch=epoch)
        else:
            rows = loader.epoch_rows(len(self.train_rows), self.batch_size, seed=self.config.seed, epoch=epoch)
        return self.train_rows[rows]

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """What each training image, whose labels are int ``[N]``, counts for in an epoch: its draws times its class's
        weight, float ``[N]``."""
        draws = np.ones(len(labels)) if self.draws is None else self.draws
        return draws * np.asarray(self.inputs.class_weights)[labels]


def make_plan(config: Config, dataset: Dataset, known: Collection[str] = ()) -> Plan:
    """What a network of these settings is trained on.

    Args:
      config: the settings.
      dataset: whose images.
      known: keys of images that the weights to start from were trained on.

    Raises:
      UserError: folds or a source that the dataset does not have, or nothing left to test or to validate on.
    """
    held_out = hold_out(dataset, config.data, known)
    batch_size = min(config.train.batch_size, len(held_out.train))
    steps = len(held_out.train) // batch_size
    rates = learning_rate_table(config.train, max(steps * config.train.epochs, 1))
    counts, draws = held_out.class_counts, None
    origins = dataset.origins if config.train.probe or config.train.sampling == "balanced" else None
    if origins and config.train.sampling == "balanced":
        labels = origins.labels[held_out.train]
        draws = balanced_weights(labels, [origins.sources[row] for row in held_out.train])
        counts = np.bincount(labels, draws, minlength=len(counts))
    return Plan(
        config=config,
        train_rows=held_out.train,
        held_out={"test": held_out.test} | ({"val": held_out.val} if len(held_out.val) else {}),
        in_source=held_out.in_source,
        images=dataset.source(range(dataset.folds)),
        batch_size=batch_size,
        steps=steps,
        inputs=StepInputs(np.uint32(config.seed), rates, class_weights(config.train, counts)),
        origins=origins,
        draws=draws,
        left_out=_left_out(held_out, config),
    )


def _left_out(held_out: Holdout, config: Config) -> str:
    test, val = held_out.left_out
    if not test + val:
        return ""
    all_test, all_val = len(held_out.test) + test, len(held_out.val) + val
    counts = f"{test} of {all_test} test images" + f" and {val} of {all_val} validation images" * bool(all_val)
    sentence = f"Not tested on {counts} of {holdout_name(config.data)}: the weights to start from were trained on them."
    LOG.warning("%s", sentence)
    return sentence
