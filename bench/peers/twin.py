"""DarkCovidNet in PyTorch, layer for layer as the paper's notebook builds it, and the way weights get there from Flax; and
CNN13."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bench.peers.arrays import UNITS, Arrays, at

if TYPE_CHECKING:  # jax is not to be imported into PyTorch's processes
    from covidjax.models import Weights


def conv_block(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=1, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)
    )


def triple_conv(narrow: int, wide: int) -> list[nn.Sequential]:
    return [conv_block(narrow, wide), conv_block(wide, narrow, 1), conv_block(narrow, wide)]


def head_size(image_size: int) -> int:
    """Height and width of the last map."""
    side = image_size // 4
    for _ in range(3):
        side = (side + 2) // 2  # the 1×1 convolution's padding, then the pool
    return side + 4


class Twin(nn.Module):
    def __init__(self, image_size: int, channels: int, classes: int):
        super().__init__()
        pool = nn.MaxPool2d(2, stride=2)
        self.body = nn.Sequential(
            *(conv_block(channels, 8), pool, conv_block(8, 16), pool),
            *(*triple_conv(16, 32), pool, *triple_conv(32, 64), pool),
            *(*triple_conv(64, 128), pool, *triple_conv(128, 256)),
            *(conv_block(256, 128, 1), conv_block(128, 256)),
        )
        self.score_map = nn.Conv2d(256, classes, 3, padding=1, bias=False)
        self.score_norm = nn.BatchNorm2d(classes)
        self.dense = nn.Linear(classes * head_size(image_size) ** 2, classes)
        self.side, self.classes = head_size(image_size), classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.score_norm(torch.relu(self.score_map(self.body(x))))
        return self.dense(maps.flatten(1))

    def units(self) -> list[nn.Sequential]:
        return [module for module in self.body if isinstance(module, nn.Sequential)]

    def load(self, weights: Weights | Arrays) -> None:
        """Take over parameters and batch statistics from Flax."""
        with torch.no_grad():
            for unit, name in zip(self.units(), UNITS, strict=True):
                _set(unit[0].weight, at(weights.params, name)["conv"]["kernel"])
                _set_norm(unit[1], at(weights.params, name)["norm"], at(weights.batch_stats, name)["norm"])
            _set(self.score_map.weight, weights.params["score_map"]["kernel"])
            _set_norm(self.score_norm, weights.params["score_norm"], weights.batch_stats["score_norm"])
            self.dense.weight.copy_(torch.tensor(self.dense_from_flax(weights.params["dense"]["kernel"])))
            self.dense.bias.copy_(torch.tensor(np.asarray(weights.params["dense"]["bias"])))

    def dense_from_flax(self, kernel: Any) -> np.ndarray:
        """``[H·W·C, classes]`` → ``[classes, C·H·W]``: Flax flattens channels last, PyTorch channels first."""
        cube = np.asarray(kernel).reshape(self.side, self.side, self.classes, -1)
        return np.ascontiguousarray(cube.transpose(3, 2, 0, 1).reshape(self.classes, -1))


def cnn13(image_size: int, channels: int, classes: int, width: int) -> nn.Sequential:
    """CNN13 as ``covidjax.models.cnn13`` describes it, with PyTorch's own initial weights."""
    layers: list[nn.Module] = []
    for factor, convolutions in zip((1, 2, 4, 8, 8), (2, 2, 3, 3, 3), strict=True):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width * factor, 3, padding=1), nn.LeakyReLU(0.1)]
            channels = width * factor
        layers.append(nn.MaxPool2d(2))
    features = channels * (image_size // 32) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(features, classes))


def from_flax(kernel: Any) -> np.ndarray:
    """``[kh, kw, in, out]`` → ``[out, in, kh, kw]``."""
    return np.ascontiguousarray(np.asarray(kernel).transpose(3, 2, 0, 1))


def _set(parameter: Any, kernel: Any) -> None:
    parameter.copy_(torch.tensor(from_flax(kernel)))


def _set_norm(norm: Any, params: Any, stats: Any) -> None:
    for target, source in (
        (norm.weight, params["scale"]),
        (norm.bias, params["bias"]),
        (norm.running_mean, stats["mean"]),
        (norm.running_var, stats["var"]),
    ):
        target.copy_(torch.tensor(np.asarray(source)))
