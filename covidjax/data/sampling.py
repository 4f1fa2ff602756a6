"""Which training images an epoch draws: each once, or those of every class and source equally often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_DRAWS = 10.0
"""An image is drawn at most so many times as often as with equal chances. A cell of three images among thousands would
otherwise be learned by heart: a network sees them hundreds of times an epoch, and what it learns of the cell is these
three. What the limit leaves over goes to the other cells."""


def balanced_weights(labels: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """How often each training image is drawn in an epoch, on average, float64 ``[N]``, of mean 1: every cell of class and
    source that has images equally often, but no image more than ``MOST_DRAWS`` times.

    Args:
      labels: int ``[N]``.
      sources: of each, ``[N]``.
    """
    numbers = np.unique(np.asarray(sources, object).astype(str), return_inverse=True)[1]
    cells = np.unique(np.stack([np.asarray(labels), numbers]), axis=1, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(cells).astype(float)
    shares = np.zeros_like(sizes)
    open_cells = np.ones(len(sizes), bool)
    while open_cells.any():  # each round fills at least one cell, or ends
        shares[open_cells] = (sizes.sum() - shares[~open_cells].sum()) / open_cells.sum()
        full = open_cells & (shares > MOST_DRAWS * sizes)
        if not full.any():
            break
        shares[full] = MOST_DRAWS * sizes[full]
        open_cells &= ~full
    return (shares / sizes)[cells]


def draw_epoch(weights: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The rows of each step of an epoch, int32 ``[steps, batch]``, as ``loader.epoch_rows`` gives them, but each image as
    often as its weight says, rounded up or down by chance.

    Systematic resampling (Kitagawa 1996, "Monte Carlo Filter and Smoother", appendix) of the images in random order:
    independent draws would leave out a third of the images whose weight is 1, and favour some cells by chance.

    Args:
      weights: float64 ``[N]`` of mean 1.
      batch_size: images a step; the incomplete last batch is left out.
      seed: of the run.
      epoch: its number.
    """
    count, rng = len(weights), np.random.default_rng([seed, epoch])
    order = rng.permutation(count)
    ends = np.cumsum(weights[order])
    places = (rng.random() + np.arange(count)) * (ends[-1] / count)
    drawn = order[np.minimum(np.searchsorted(ends, places, side="right"), count - 1)]
    batch = min(batch_size, count)
    return rng.permutation(drawn).astype(np.int32)[: count // batch * batch].reshape(-1, batch)
