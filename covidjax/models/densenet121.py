"""DenseNet-121: layers that see the outputs of all layers of their block before them.

Huang, Liu, van der Maaten and Weinberger: "Densely connected convolutional networks", CVPR 2017, table 1 (DenseNet-121,
growth rate 32, with bottlenecks and compression: section 3).
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import BatchNorm, Conv, ConvNorm, Dense, Mode, global_mean, max_pool3, mean_pool

LAYERS = (6, 12, 24, 16)
"""Of each block."""

STEM, GROWTH, BOTTLENECK = 64, 32, 128
"""Channels of the first convolution, of each layer's output and of its 1×1 convolution."""

LEAST = 29
"""Least side of the images: one cell of the last map."""


class DenseLayer(nnx.Module):
    """Batch normalisation, ReLU and convolution twice: 1×1 to few channels, 3×3 to fewer."""

    def __init__(self, inputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = BatchNorm(inputs)
        self.reduce = ConvNorm(inputs, BOTTLENECK, 1, dtype=dtype, rngs=rngs)
        self.conv = Conv(BOTTLENECK, GROWTH, 3, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, H, W, GROWTH]``."""
        x = jax.nn.relu(self.norm(x, mode))
        return self.conv(jax.nn.relu(self.reduce(x, mode)), mode)


class Transition(nnx.Module):
    """Half the channels, by a 1×1 convolution, and half the size, by 2×2 average-pooling."""

    def __init__(self, inputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = BatchNorm(inputs)
        self.conv = Conv(inputs, inputs // 2, 1, padding=0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, ⌊H/2⌋, ⌊W/2⌋, inputs/2]``."""
        return mean_pool(self.conv(jax.nn.relu(self.norm(x, mode)), mode), mode)


class DenseNet121(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 29; its weights were trained at 224.
      channels: 1 (gray) or 3.
      classes: number of classes.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"stem": [B, S/4, S/4, 64], "block1": [B, S/4, S/4, 256], …, "block4": [B, S/32,
    S/32, 1024], "head": [B, S/32, S/32, 1024]}``, the last normalised.
    """

    features: ClassVar[dict[str, int]] = {"head": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < LEAST:
            raise ValueError(f"DenseNet-121 needs images of at least {LEAST} pixels, not {image_size}.")
        unit = {"dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(channels, STEM, 7, padding=3, stride=2, **unit)
        inputs, blocks, transitions = STEM, [], []
        for number, count in enumerate(LAYERS, 1):
            blocks.append(nnx.List([DenseLayer(inputs + layer * GROWTH, **unit) for layer in range(count)]))
            inputs += count * GROWTH
            if number < len(LAYERS):
                transitions.append(Transition(inputs, **unit))
                inputs //= 2
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.norm = BatchNorm(inputs)
        self.dense = Dense(inputs, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps = {}
        x = jax.nn.relu(self.stem(images, mode))
        x = maps["stem"] = max_pool3(x, mode, padding=1)
        for number, block in enumerate(self.blocks, 1):
            if number > 1:
                x = self.transitions[number - 2](x, mode)
            for layer in block:
                x = jnp.concatenate([x, layer(x, mode)], -1)
            maps[f"block{number}"] = x
        x = maps["head"] = jax.nn.relu(self.norm(x, mode))
        return self.dense(global_mean(x)), maps
