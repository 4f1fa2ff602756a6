"""CNN13: thirteen convolutions with leaky ReLU, max-pooling, dropout, one dense softmax layer.

The study names these parts and no more. What it leaves open, and what was chosen here:

- **Where to pool.** Thirteen poolings do not fit in 224 pixels, so one follows each block of 2, 2, 3, 3 and 3 convolutions,
  as in VGG-16 (Simonyan and Zisserman 2015, table 1, column D), which has thirteen convolutions too.
- **Widths.** VGG's, with ``width`` in place of its 64: once, twice, four times, and in the last two blocks eight times.
- **Kernels** are 3×3 with padding 1, with biases, since nothing is said of batch normalisation.
- **Leaky ReLU** has slope 0.1, as in DarkCovidNet.
- **Initial weights** keep the variance from layer to layer (He et al. 2015, equation 14, for this slope): without
  normalisation, after thirteen of the narrower draws that DarkCovidNet starts from the signal would be gone.
- **Dropout** stands once, before the dense layer, at VGG's rate of one half.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.kernels import SLOPE, leaky_relu
from covidjax.models.layers import Conv, Dense, Mode, dropout, max_pool

BLOCKS = (2, 2, 3, 3, 3)
"""Convolutions before each pooling."""

FACTORS = (1, 2, 4, 8, 8)
"""Channels of each block, in widths."""

LEAST = 2 ** len(BLOCKS)
"""Least side of the images."""

he_uniform = jax.nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "uniform")


class Unit(nnx.Module):
    """3×3 convolution with bias, leaky ReLU; with ``pool`` also the 2×2 max-pooling after it."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, padding=1, dtype=dtype, rngs=rngs, init=he_uniform)
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array, mode: Mode, *, pool: bool = False) -> Array:
        x = self.conv(x, mode)
        # Bias and leaky ReLU keep the order of values, so after the pooling they are the same for a quarter of the work.
        x = max_pool(x, mode) if pool else x
        return leaky_relu(x + self.bias[...].astype(x.dtype))


class CNN13(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 32.
      channels: 1 (gray) or 3 (gray repeated).
      classes: number of classes.
      width: channels of the first block.
      rate: share of the last map that dropout sets to zero in training.
      dtype: of convolutions and activations; parameters and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"block1": [B, S/2, S/2, width], …, "block5": [B, S/32, S/32, 8·width]}``.
    """

    features: ClassVar[dict[str, int]] = {"block5": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(
        self, image_size: int, channels: int, classes: int, *, width: int, rate: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        if image_size < LEAST:
            raise ValueError(f"CNN13 needs images of at least {LEAST} pixels, not {image_size}.")
        outputs = [width * factor for factor, count in zip(FACTORS, BLOCKS, strict=True) for _ in range(count)]
        self.units = nnx.List([Unit(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise((channels, *outputs))])
        self.rate = rate
        self.dense = Dense((image_size // LEAST) ** 2 * outputs[-1], classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps, x = {}, images
        ends = list(itertools.accumulate(BLOCKS))
        for number, unit in enumerate(self.units, 1):
            x = unit(x, mode, pool=number in ends)
            if number in ends:
                maps[f"block{ends.index(number) + 1}"] = x
        return self.dense(dropout(x.reshape(x.shape[0], -1), self.rate, mode)), maps
