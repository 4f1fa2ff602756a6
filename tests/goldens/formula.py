"""Weights and images from a formula: the same in PyTorch and here, without a file of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

CLASSES = 16

SIZES = {
    "resnet50": (64, 97),
    "vgg16": (64, 97),
    "vgg16-bn": (64, 97),
    "inceptionv3": (96, 139),
    "densenet121": (64, 97),
}
"""Of each network the sides of the images, one of them odd."""

TORCHVISION = {
    "resnet50": "resnet50",
    "vgg16": "vgg16",
    "vgg16-bn": "vgg16_bn",
    "inceptionv3": "inception_v3",
    "densenet121": "densenet121",
}
"""Our names and torchvision's."""


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from -1 to 1, float32, which follow from the name and each number's place (the finalizer of MurmurHash3)."""
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float32) * np.float32(2**-31) - np.float32(1)).reshape(shape)


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight by PyTorch's name of it, so that activations neither vanish nor grow without bound (He et al. 2015)."""
    values = uniform(name, shape)
    if len(shape) > 1:
        return values * np.float32((6 / math.prod(shape[1:])) ** 0.5)
    return {"weight": 1 + values / 5, "running_var": 1 + values / 3}.get(name.rsplit(".", 1)[-1], values / 10)


def arrays(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All weights of a network, but for what counts batches."""
    return {name: array(name, tuple(shape)) for name, shape in shapes.items() if "num_batches" not in name}


def image(side: int) -> np.ndarray:
    """float32 ``[1, side, side, 3]``: waves and noise."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / np.float32(side)
    waves = [np.sin(np.float32(channel + 5) * x + np.float32(9 - channel) * y) for channel in range(3)]
    return (np.stack(waves, -1) + uniform(f"image{side}", (side, side, 3)) / 2)[None].astype(np.float32)
