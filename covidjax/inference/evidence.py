"""Where on an image a classifier's evidence lies: an exact decomposition of its logits.

DarkCovidNet and CNN13 end in a flattened map and a dense layer, so each logit is the layer's bias and the sum of what every
cell of the last map adds to it; nothing is approximated (as in Zhou et al. 2016, section 2, where the map is averaged
instead)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax import Array

from covidjax.config import ModelConfig
from covidjax.inference.forward import normalize
from covidjax.models.network import Network, Weights

STEP = 32
"""Pixels between the middles of two cells: both networks halve an image five times."""

LAST_MAPS = {"darkcovidnet": ("head", -92), "cnn13": ("block5", 0)}
"""The map before the dense layer, and where its first cell begins, in pixels of the image. DarkCovidNet's 1×1 convolutions
pad: by a cell of 4, 8, 16 and twice 32 pixels on every side."""


class Evidence(NamedTuple):
    """What makes up the logits of some images."""

    cells: Array
    """float32 ``[B, H, W, classes]``, what each cell of the last map adds to each logit."""
    bias: Array
    """float32 ``[classes]``, what every image has."""
    logits: Array
    """float32 ``[B, classes]``: bias and the sum over the cells."""


def decompose(network: Network, weights: Weights, images: Any, model: ModelConfig) -> Evidence:
    """The evidence of a classifier, of the images as they are, without test-time augmentation.

    Args:
      network: the function.
      weights: of one network.
      images: uint8 ``[B, S, S, 1]``.
      model: its settings.
    """
    logits, maps, _ = network.apply(weights, normalize(images, model))
    last = maps[LAST_MAPS[model.name][0]].astype("float32")
    dense = weights.params["dense"]
    kernel = dense["kernel"].reshape(*last.shape[1:], -1)
    return Evidence((last[..., None] * kernel).sum(3), dense["bias"], logits)


def coverage(masks: np.ndarray, model: ModelConfig, cells: int) -> np.ndarray:
    """The share of each cell that lies in a mask; what a cell has outside the image lies in none.

    Args:
      masks: ``[B, S, S]`` of 0 and 1.
      model: whose cells.
      cells: along a side.

    Returns:
      float ``[B, cells, cells]``.
    """
    first = LAST_MAPS[model.name][1] + STEP * np.arange(cells)[:, None]
    pixels = np.arange(masks.shape[1])
    inside = ((pixels >= first) & (pixels < first + STEP)).astype(np.float32) / STEP
    return inside @ masks.astype(np.float32) @ inside.T
