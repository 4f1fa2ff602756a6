"""Inception-v3: blocks of convolutions side by side, whose large kernels are split into small ones.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna: "Rethinking the Inception architecture for computer vision", CVPR 2016, table 1
and figures 5 to 7 and 10. Widths are torchvision's, which has them from TensorFlow. The auxiliary classifier of the paper's
section 4, which is used in training from scratch only, is left out, and so is the dropout before the last layer.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import ConvNorm, Dense, Mode, global_mean, max_pool3, mean_pool3

EPSILON = 1e-3
"""Of batch normalisation, as in TensorFlow's weights."""

LEAST = 75
"""Least side of the images: one cell of the last map."""

Layer = tuple[int, int | tuple[int, int], int | tuple[int, int]]
"""Outputs, kernel and padding."""

ROW, COLUMN = ((1, 7), (0, 3)), ((7, 1), (3, 0))
"""7×7 in two parts (the paper's section 3.2): kernel and padding."""


class Chain(nnx.Module):
    """Units of convolution, batch normalisation and ReLU, one after the other; the last may have a stride."""

    def __init__(self, inputs: int, *layers: Layer, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        units = []
        for number, (outputs, size, padding) in enumerate(layers, 1):
            step = stride if number == len(layers) else 1
            shape = {"padding": padding, "stride": step, "epsilon": EPSILON}
            units.append(ConvNorm(inputs, outputs, size, **shape, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.units = nnx.List(units)
        self.outputs = inputs

    def __call__(self, x: Array, mode: Mode) -> Array:
        for unit in self.units:
            x = jax.nn.relu(unit(x, mode))
        return x


class Mixed(nnx.Module):
    """Chains side by side, and one pooling: of stride 1 with a 1×1 convolution after it, or where the map is halved a
    max-pooling without. ``pool`` has that convolution's outputs, or 0."""

    def __init__(self, inputs: int, *chains: tuple[Layer, ...], pool: int, dtype: DTypeLike, rngs: nnx.Rngs):
        unit = {"dtype": dtype, "rngs": rngs}
        self.chains = nnx.List([Chain(inputs, *chain, stride=1 if pool else 2, **unit) for chain in chains])
        self.pool = Chain(inputs, (pool, 1, 0), **unit) if pool else None
        self.outputs = sum(chain.outputs for chain in self.chains) + (pool or inputs)

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, H, W, outputs]``, or of half the height and width, rounded down without padding."""
        pooled = max_pool3(x, mode) if self.pool is None else self.pool(mean_pool3(x, mode), mode)
        return jnp.concatenate([*(chain(x, mode) for chain in self.chains), pooled], -1)


class Expanded(nnx.Module):
    """The last blocks: two of their chains end in a 1×3 and a 3×1 convolution side by side (the paper's figure 7)."""

    def __init__(self, inputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        unit = {"dtype": dtype, "rngs": rngs}
        self.narrow = Chain(inputs, (320, 1, 0), **unit)
        self.single = Chain(inputs, (384, 1, 0), **unit)
        self.double = Chain(inputs, (448, 1, 0), (384, 3, 1), **unit)
        self.ends = nnx.List([Chain(384, (384, *split), **unit) for split in 2 * (((1, 3), (0, 1)), ((3, 1), (1, 0)))])
        self.pool = Chain(inputs, (192, 1, 0), **unit)
        self.outputs = 320 + 4 * 384 + 192

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, H, W, outputs]``."""
        single, double = self.single(x, mode), self.double(x, mode)
        ends = [end(part, mode) for end, part in zip(self.ends, (single, single, double, double), strict=True)]
        return jnp.concatenate([self.narrow(x, mode), *ends, self.pool(mean_pool3(x, mode), mode)], -1)


def _mixed5(pool: int) -> tuple[tuple[tuple[Layer, ...], ...], int]:
    """5×5 once as it is, and once as two of 3×3 (figure 5)."""
    return (((64, 1, 0),), ((48, 1, 0), (64, 5, 2)), ((64, 1, 0), (96, 3, 1), (96, 3, 1))), pool


def _mixed6(width: int) -> tuple[tuple[tuple[Layer, ...], ...], int]:
    """7×7 in two parts, and twice so (figure 6)."""
    once = ((width, 1, 0), (width, *ROW), (192, *COLUMN))
    twice = ((width, 1, 0), (width, *COLUMN), (width, *ROW), (width, *COLUMN), (192, *ROW))
    return (((192, 1, 0),), once, twice), 192


STAGES = (
    (_mixed5(32), _mixed5(64), _mixed5(64)),
    (
        ((((384, 3, 0),), ((64, 1, 0), (96, 3, 1), (96, 3, 0))), 0),
        *(_mixed6(width) for width in (128, 160, 160, 192)),
    ),
    (((((192, 1, 0), (320, 3, 0)), ((192, 1, 0), (192, *ROW), (192, *COLUMN), (192, 3, 0))), 0),),
)
"""Of each block, stage by stage: its chains, and ``pool``. Two of ``Expanded`` follow."""


class InceptionV3(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 75; its weights were trained at 299.
      channels: 1 (gray) or 3.
      classes: number of classes.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, of 299 pixels ``{"stem": [B, 35, 35, 192], "stage1": [B, 35, 35, 288], "stage2": [B,
    17, 17, 768], "stage3": [B, 8, 8, 2048]}``.
    """

    features: ClassVar[dict[str, int]] = {"stage3": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < LEAST:
            raise ValueError(f"Inception-v3 needs images of at least {LEAST} pixels, not {image_size}.")
        unit = {"dtype": dtype, "rngs": rngs}
        first = [Chain(channels, (32, 3, 0), stride=2, **unit), Chain(32, (32, 3, 0), (64, 3, 1), **unit)]
        self.stem = nnx.List([*first, Chain(64, (80, 1, 0), (192, 3, 0), **unit)])
        inputs, stages = 192, []
        for stage in STAGES:
            blocks: list[nnx.Module] = []
            for chains, pool in stage:
                block = Mixed(inputs, *chains, pool=pool, **unit)
                blocks, inputs = [*blocks, block], block.outputs
            stages.append(blocks)
        for _ in range(2):
            block = Expanded(inputs, **unit)
            inputs = block.outputs
            stages[-1].append(block)
        self.stages = nnx.List([nnx.List(blocks) for blocks in stages])
        self.dense = Dense(inputs, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps = {}
        x = self.stem[1](self.stem[0](images, mode), mode)
        x = self.stem[2](max_pool3(x, mode), mode)
        x = maps["stem"] = max_pool3(x, mode)
        for number, stage in enumerate(self.stages, 1):
            for block in stage:
                x = block(x, mode)
            maps[f"stage{number}"] = x
        return self.dense(global_mean(x)), maps
