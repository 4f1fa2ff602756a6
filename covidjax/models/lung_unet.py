"""The lung segmenter: a small U-Net.

After Ronneberger, Fischer, Brox: "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015, cut down
to what a CPU does hundreds of times a second, with four differences. The first convolution has stride 2, and the logits
of a block of 2×2 pixels come as channels of one (Shi et al. 2016, section 3.2), so nothing is computed at the image's
own size. Skips are added, not concatenated. Maps are enlarged by repetition after a 1×1 convolution. Every convolution is
padded and followed by batch normalisation and leaky ReLU.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.kernels import from_blocks
from covidjax.models.layers import Conv, ConvNormAct, Mode, max_pool

WIDTHS = (16, 32, 48, 64, 64)
"""Channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's side."""

MULTIPLE = 2 ** len(WIDTHS)
"""The side of the images must be a multiple of this."""


class Pair(nnx.Module):
    """Two 3×3 units."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = ConvNormAct(inputs, outputs, dtype=dtype, rngs=rngs)
        self.last = ConvNormAct(outputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.last(self.first(x, mode), mode)


class Up(nnx.Module):
    """From the map below, half as large, and the skip beside it to the map above: ``[B, H/2, W/2, below]`` and
    ``[B, H, W, above]`` → ``[B, H, W, above]``."""

    def __init__(self, below: int, above: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.narrow = ConvNormAct(below, above, 1, padding=0, dtype=dtype, rngs=rngs)
        self.merge = ConvNormAct(above, above, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, skip: Array, mode: Mode) -> Array:
        return self.merge(repeat(self.narrow(x, mode)) + skip, mode)


class LungUNet(nnx.Module):
    """Logits of lung masks.

    Args:
      image_size: height and width of the images in pixels, a multiple of 32.
      channels: of the images, 1 or 3.
      classes: number of masks; each is a channel of its own, since one kind of lung mask contains the other.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, image_size,
    image_size, classes]`` and the named maps that led to them, ``{"down0": [B, S/2, S/2, 16], …, "down4": …, "up3": …,
    "up0": [B, S/2, S/2, 16]}``.
    """

    features: ClassVar[dict[str, int]] = {"down2": 4, "down3": 4, "down4": 4}
    head: ClassVar[tuple[str, ...]] = ("masks", "bias")

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < MULTIPLE or image_size % MULTIPLE:
            raise ValueError(f"LungUNet needs images of a multiple of {MULTIPLE} pixels, not {image_size}.")
        unit = {"dtype": dtype, "rngs": rngs}
        self.down = nnx.List([Pair(a, b, **unit) for a, b in itertools.pairwise((4 * channels, *WIDTHS))])
        self.up = nnx.List([Up(below, above, **unit) for above, below in itertools.pairwise(WIDTHS)])
        self.masks = Conv(WIDTHS[0], 4 * classes, 3, padding=1, **unit)
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps, skips = {}, []
        x = to_blocks(images)
        for level, pair in enumerate(self.down):
            x = maps[f"down{level}"] = pair(max_pool(x, mode) if level else x, mode)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = maps[f"up{level}"] = self.up[level](x, skips[level], mode)
        return from_blocks(self.masks(x, mode).astype(jnp.float32)) + self.bias[...], maps


def to_blocks(x: Array) -> Array:
    """The reverse of ``kernels.from_blocks``: ``[B, H, W, C]`` → ``[B, H/2, W/2, 4·C]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def repeat(x: Array) -> Array:
    """Each pixel four times: ``[B, H, W, C]`` → ``[B, 2·H, 2·W, C]``."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
