"""Where on an image a classifier's evidence lies: an exact decomposition of its logits.

DarkCovidNet and CNN13 end in a flattened map and a dense layer, the backbones in the mean of a map and a dense layer. So
each logit is the layer's bias and the sum of what every cell of the last map adds to it; nothing is approximated (as in
Zhou et al. 2016, section 2, for the mean)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from covidjax.config import ModelConfig
from covidjax.inference.forward import normalize
from covidjax.models.network import Network, Weights

STEP = 32
"""Pixels between the middles of two cells: every network halves an image five times."""

LAST_MAPS = {
    "darkcovidnet": "head",
    "cnn13": "block5",
    "resnet50": "stage4",
    "vgg16": "block5",
    "vgg16-bn": "block5",
    "inceptionv3": "stage3",
    "densenet121": "head",
    "efficientnet-lite0": "head",
}
"""The map before the dense layer."""

FIRST_CELLS = {
    "darkcovidnet": -92,
    "cnn13": 0,
    "resnet50": -16,
    "vgg16": 0,
    "vgg16-bn": 0,
    "inceptionv3": 21,
    "densenet121": -2,
}
"""Where the first cell begins, in pixels of the image: 16 before the middle of what it sees. DarkCovidNet's 1×1
convolutions pad: by a cell of 4, 8, 16 and twice 32 pixels on every side. The middle of a first 3×3 window of stride 2 is
the map's first pixel where the window pads, as in ResNet-50 and at first in DenseNet-121, and the second where it does not,
as in Inception-v3; that of a 2×2 window lies between the two."""


def first_cell(name: str, image_size: int) -> int:
    """Where the first cell of a network's last map begins, in pixels of the image.

    EfficientNet-Lite0 pads as TensorFlow does, which has the odd zero pixel of an even map after it, so that every window
    of stride 2 moves by one.
    """
    if name != "efficientnet-lite0":
        return FIRST_CELLS[name]
    sides = [-(-image_size // 2**halving) for halving in range(5)]
    return sum(2**halving for halving, side in enumerate(sides) if side % 2 == 0) - STEP // 2


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
    last = maps[LAST_MAPS[model.name]].astype("float32")
    kernel, bias = weights.params["dense"]["kernel"], weights.params["dense"]["bias"]
    channels, cells = last.shape[3], last.shape[1] * last.shape[2]
    if len(kernel) == channels:  # the same of every cell, whose mean the layer takes
        return Evidence(jnp.einsum("bhwc,ck->bhwk", last, kernel / cells, precision="highest"), bias, logits)
    return Evidence((last[..., None] * kernel.reshape(*last.shape[1:], -1)).sum(3), bias, logits)


def coverage(masks: np.ndarray, model: ModelConfig, cells: int) -> np.ndarray:
    """The share of each cell that lies in a mask; what a cell has outside the image lies in none.

    Args:
      masks: ``[B, S, S]`` of 0 and 1.
      model: whose cells.
      cells: along a side.

    Returns:
      float ``[B, cells, cells]``.
    """
    pixels = np.arange(masks.shape[1])
    first = first_cell(model.name, len(pixels)) + STEP * np.arange(cells)[:, None]
    inside = ((pixels >= first) & (pixels < first + STEP)).astype(np.float32) / STEP
    return inside @ masks.astype(np.float32) @ inside.T
