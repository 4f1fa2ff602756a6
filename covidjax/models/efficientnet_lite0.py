"""EfficientNet-Lite0: EfficientNet-B0 for devices without much arithmetic.

Tan and Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, table 1, whose inverted
bottlenecks are those of Sandler et al.: "MobileNetV2", CVPR 2018, figure 3b. Lite0 (Liu and Tan: "Higher accuracy on
vision models with EfficientNet-Lite", TensorFlow blog, 2020) has no squeeze-and-excitation, and ReLU6 in place of swish.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import BatchNorm, ConvNorm, Dense, DepthwiseConv, Mode, global_mean


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    outputs: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
EPSILON = 1e-3
"""Of batch normalisation, as in TensorFlow's weights."""


class InvertedBottleneck(nnx.Module):
    """1×1 to more channels, one depthwise convolution, 1×1 to few, added to the input where that has the same shape."""

    def __init__(
        self, inputs: int, outputs: int, *, expansion: int, kernel: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        wide = inputs * expansion
        unit = {"epsilon": EPSILON, "dtype": dtype, "rngs": rngs}
        self.expand = ConvNorm(inputs, wide, 1, **unit) if expansion > 1 else None
        self.depthwise = DepthwiseConv(wide, kernel, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(wide, epsilon=EPSILON)
        self.project = ConvNorm(wide, outputs, 1, **unit)
        self.is_residual = stride == 1 and inputs == outputs

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, ⌈H/stride⌉, ⌈W/stride⌉, outputs]``."""
        y = x if self.expand is None else jax.nn.relu6(self.expand(x, mode))
        y = jax.nn.relu6(self.norm(self.depthwise(y, mode), mode))
        y = self.project(y, mode)
        return x + y if self.is_residual else y


class EfficientNetLite0(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 32; its weights were trained at 224.
      channels: 1 (gray) or 3.
      classes: number of classes.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"stage1": [B, S/2, S/2, 16], …, "stage7": [B, S/32, S/32, 320], "head": [B, S/32,
    S/32, 1280]}``, sizes rounded up.
    """

    features: ClassVar[dict[str, int]] = {"head": 1}
    head: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < 32:
            raise ValueError(f"EfficientNet-Lite0 needs images of at least 32 pixels, not {image_size}.")
        unit = {"epsilon": EPSILON, "dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(channels, STEM, 3, padding="same", stride=2, **unit)
        inputs, stages = STEM, []
        for stage in STAGES:
            blocks = []
            for number in range(stage.blocks):
                stride = 1 if number else stage.stride
                shape = {"expansion": stage.expansion, "kernel": stage.kernel, "stride": stride}
                blocks.append(InvertedBottleneck(inputs, stage.outputs, **shape, dtype=dtype, rngs=rngs))
                inputs = stage.outputs
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.last = ConvNorm(inputs, HEAD, 1, **unit)
        self.dense = Dense(HEAD, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps = {}
        x = jax.nn.relu6(self.stem(images, mode))
        for number, stage in enumerate(self.stages, 1):
            for block in stage:
                x = block(x, mode)
            maps[f"stage{number}"] = x
        x = maps["head"] = jax.nn.relu6(self.last(x, mode))
        return self.dense(global_mean(x)), maps
