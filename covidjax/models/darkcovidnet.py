"""DarkCovidNet: 17 convolutions after Darknet-19.

Ozturk, Talo, Yildirim, Baloglu, Yildirim, Acharya: "Automated detection of COVID-19 cases using deep neural networks
with X-ray images", Computers in Biology and Medicine 121 (2020), section 3 and the authors' three-class notebook,
which this follows where the two differ: *every* convolution has padding 1, the 1×1 ones too, so that each of those
grows the map by two pixels.
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.models.layers import BatchNorm, Conv, ConvNormAct, Dense, Mode, max_pool


class Triple(nnx.Module):
    """3×3 a→b, 1×1 b→a, 3×3 a→b: the paper's ``triple_conv``."""

    def __init__(self, narrow: int, wide: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = ConvNormAct(narrow, wide, dtype=dtype, rngs=rngs)
        self.squeeze = ConvNormAct(wide, narrow, 1, dtype=dtype, rngs=rngs)
        self.last = ConvNormAct(narrow, wide, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, mode: Mode) -> Array:
        return self.last(self.squeeze(self.first(x, mode), mode), mode)


def head_size(image_size: int) -> int:
    """Height and width of the last map: 12 for 224-pixel images, 13 for 256."""
    side = image_size // 4
    for _ in range(3):
        side = (side + 2) // 2
    return side + 4


class DarkCovidNet(nnx.Module):
    """Logits of a chest X-ray.

    Args:
      image_size: height and width of the images in pixels, at least 16.
      channels: 1 (gray) or 3 (gray repeated, as the paper fed it).
      classes: number of classes.
      dtype: of convolutions and activations; parameters, statistics and logits stay float32.
      rngs: the stream ``params`` draws the initial weights.

    Called with float images ``[B, image_size, image_size, channels]`` it returns float32 logits ``[B, classes]`` and
    the named maps that led to them, ``{"stem": [B, S/4, S/4, 16], "stage1": …, "stage4": …, "head": …}``.
    """

    features: ClassVar[dict[str, int]] = {"stage4": 1}
    head: ClassVar[tuple[str, ...]] = ("score_map", "score_norm", "dense")

    def __init__(self, image_size: int, channels: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if image_size < 16:
            raise ValueError(f"DarkCovidNet needs images of at least 16 pixels, not {image_size}.")
        unit = {"dtype": dtype, "rngs": rngs}
        self.stem1 = ConvNormAct(channels, 8, **unit)
        self.stem2 = ConvNormAct(8, 16, **unit)
        self.stage1 = Triple(16, 32, **unit)
        self.stage2 = Triple(32, 64, **unit)
        self.stage3 = Triple(64, 128, **unit)
        self.stage4 = Triple(128, 256, **unit)
        self.squeeze = ConvNormAct(256, 128, 1, **unit)
        self.expand = ConvNormAct(128, 256, **unit)
        self.score_map = Conv(256, classes, 3, padding=1, **unit)
        self.score_norm = BatchNorm(classes)
        self.dense = Dense(classes * head_size(image_size) ** 2, classes, rngs=rngs)

    def __call__(self, images: Array, mode: Mode = Mode()) -> tuple[Array, dict[str, Array]]:
        maps = {}
        x = self.stem1(images, mode, pool=True)
        x = maps["stem"] = self.stem2(x, mode, pool=True)
        x = maps["stage1"] = self.stage1(x, mode)
        x = maps["stage2"] = self.stage2(max_pool(x, mode), mode)
        x = maps["stage3"] = self.stage3(max_pool(x, mode), mode)
        x = maps["stage4"] = self.stage4(max_pool(x, mode), mode)
        x = self.expand(self.squeeze(x, mode), mode)
        x = maps["head"] = self.score_norm(jax.nn.relu(self.score_map(x, mode)), mode)
        return self.dense(x.reshape(x.shape[0], -1)), maps
