"""VGG-16: thirteen 3×3 convolutions in five blocks.

Simonyan and Zisserman: "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1, column D;
``vgg16-bn`` is torchvision's variant with batch normalisation after every convolution. The paper's three dense layers hold
nine tenths of its weights, which a few thousand X-rays cannot train: in their place the means of the last map go to one
dense layer (Lin, Chen and Yan: "Network in network", ICLR 2014, section 3.2).
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import BatchNorm, Conv, Dense, Mode, global_mean, max_pool

BLOCKS, WIDTHS = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)
"""Of each block: convolutions before its pooling, and their channels."""

HIDDEN, CELLS = 4096, 7
"""Outputs of the paper's first two dense layers, and cells a side of the map before them."""

LEAST = 32
"""Least side of the images: the five poolings leave one cell."""

he_normal = jax.nn.initializers.variance_scaling(2, "fan_out", "normal")
"""He et al. 2015, equation 14 and below: without normalisation the signal would be gone after thirteen narrower draws."""


class Unit(nnx.Module):
    """3×3 convolution with bias, batch normalisation if it is asked for, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, batch_norm: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, padding=1, bias=True, dtype=dtype, rngs=rngs, init=he_normal)
        self.norm = BatchNorm(outputs) if batch_norm else None

    def __call__(self, x: Array, mode: Mode) -> Array:
        x = self.conv(x, mode)
        return jax.nn.relu(x if self.norm is None else self.norm(x, mode))


class VGG16(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 32; its weights were trained at 224.
      channels: 1 (gray) or 3.
      classes: number of classes.
      batch_norm: after every convolution.
      hidden: the outputs of the paper's first two dense layers in place of the mean of the last map, without dropout: to
        compare with the published network, not to train. 0 is without them.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"block1": [B, S/2, S/2, 64], …, "block5": [B, S/32, S/32, 512]}``, sizes rounded
    down.
    """

    features: ClassVar[dict[str, int]] = {"block5": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(
        self,
        image_size: int,
        channels: int,
        classes: int,
        *,
        batch_norm: bool = False,
        hidden: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if image_size < LEAST:
            raise ValueError(f"VGG-16 needs images of at least {LEAST} pixels, not {image_size}.")
        inputs, blocks = channels, []
        for count, width in zip(BLOCKS, WIDTHS, strict=True):
            units = []
            for _ in range(count):
                units.append(Unit(inputs, width, batch_norm=batch_norm, dtype=dtype, rngs=rngs))
                inputs = width
            blocks.append(nnx.List(units))
        self.blocks = nnx.List(blocks)
        # A dense layer over a whole map is a convolution of the map's size.
        layer = {"padding": 0, "bias": True, "dtype": dtype, "rngs": rngs}
        layers = [Conv(inputs, hidden, CELLS, **layer), Conv(hidden, hidden, 1, **layer)] if hidden else []
        self.hidden = nnx.List(layers)
        self.dense = Dense(hidden or inputs, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps, x = {}, images
        for number, block in enumerate(self.blocks, 1):
            for unit in block:
                x = unit(x, mode)
            x = maps[f"block{number}"] = max_pool(x, mode)
        x = adaptive_mean(x, CELLS) if self.hidden else x
        for layer in self.hidden:
            x = jax.nn.relu(layer(x, mode))
        return self.dense(global_mean(x)), maps


class VGG16BN(VGG16):
    """VGG-16 with batch normalisation."""

    def __init__(self, *args: int, dtype: DTypeLike, rngs: nnx.Rngs, **options: int):
        super().__init__(*args, batch_norm=True, dtype=dtype, rngs=rngs, **options)


def adaptive_mean(x: Array, cells: int) -> Array:
    """Means of so many cells a side, which overlap where they do not divide the map: ``[B, H, W, C]`` → ``[B, cells, cells,
    C]``, as PyTorch's ``AdaptiveAvgPool2d`` computes them."""
    rows, columns = (_cell_weights(side, cells) for side in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest").astype(x.dtype)


def _cell_weights(side: int, cells: int) -> np.ndarray:
    weights = np.zeros((cells, side), np.float32)
    for cell in range(cells):
        first, last = cell * side // cells, -(-(cell + 1) * side // cells)
        weights[cell, first:last] = 1 / (last - first)
    return weights
