"""ResNet-50: convolutions whose output is added to their input.

He, Zhang, Ren and Sun: "Deep residual learning for image recognition", CVPR 2016, table 1 (50 layers) and figure 5, right.
Here as in torchvision, whose weights are published under ``IMAGENET1K_V1`` and ``V2`` ("v1.5"): a block that halves the map
does so in its 3×3 convolution, where the paper's does in its first 1×1.
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import ConvNorm, Dense, Mode, global_mean, max_pool3

BLOCKS, WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
"""Of each stage: blocks, and channels of their 3×3 convolutions."""

STEM, EXPANSION = 64, 4

LEAST = 32
"""Least side of the images: one cell of the last map."""


class Bottleneck(nnx.Module):
    """1×1 to few channels, 3×3, 1×1 to four times as many, added to the input, or where that has another shape to a 1×1
    convolution of it."""

    def __init__(self, inputs: int, width: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        outputs = width * EXPANSION
        unit = {"dtype": dtype, "rngs": rngs}
        self.reduce = ConvNorm(inputs, width, 1, **unit)
        self.conv = ConvNorm(width, width, 3, padding=1, stride=stride, **unit)
        self.expand = ConvNorm(width, outputs, 1, **unit)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = None if is_same else ConvNorm(inputs, outputs, 1, stride=stride, **unit)

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, ⌈H/stride⌉, ⌈W/stride⌉, 4·width]``."""
        y = jax.nn.relu(self.reduce(x, mode))
        y = jax.nn.relu(self.conv(y, mode))
        y = self.expand(y, mode)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, mode)))


class ResNet50(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 32; its weights were trained at 224.
      channels: 1 (gray) or 3.
      classes: number of classes.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"stem": [B, S/4, S/4, 64], "stage1": [B, S/4, S/4, 256], …, "stage4": [B, S/32,
    S/32, 2048]}``, sizes rounded up.
    """

    features: ClassVar[dict[str, int]] = {"stage4": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < LEAST:
            raise ValueError(f"ResNet-50 needs images of at least {LEAST} pixels, not {image_size}.")
        self.stem = ConvNorm(channels, STEM, 7, padding=3, stride=2, dtype=dtype, rngs=rngs)
        inputs, stages = STEM, []
        for number, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            blocks = []
            for block in range(count):
                stride = 2 if number and not block else 1
                blocks.append(Bottleneck(inputs, width, stride=stride, dtype=dtype, rngs=rngs))
                inputs = width * EXPANSION
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.dense = Dense(inputs, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps = {}
        x = jax.nn.relu(self.stem(images, mode))
        x = maps["stem"] = max_pool3(x, mode, padding=1)
        for number, stage in enumerate(self.stages, 1):
            for block in stage:
                x = block(x, mode)
            maps[f"stage{number}"] = x
        return self.dense(global_mean(x)), maps
