"""Published weights of the backbones: what torchvision and timm call each layer, and how its arrays lie there.

A table says for every layer of ours what the publisher calls it; all else follows from the kinds of layers. Loading is
strict: an array that is missing, that no layer takes, or that has another shape is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from covidjax.errors import UserError
from covidjax.models import efficientnet_lite0
from covidjax.models.network import Weights

Table = Mapping[str, str]
"""From our name of a layer, such as ``stages.0.0.expand.conv``, to theirs, such as ``blocks.0.0.conv_pw``."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Arrays of a layer: our names and PyTorch's."""

IGNORED = "num_batches_tracked"
"""What PyTorch's batch normalisation keeps beside them."""


def _efficientnet_lite0_timm() -> Table:
    """timm's ``tf_efficientnet_lite0``."""
    table = {
        "stem.conv": "conv_stem",
        "stem.norm": "bn1",
        "last.conv": "conv_head",
        "last.norm": "bn2",
        "dense": "classifier",
    }
    for number, stage in enumerate(efficientnet_lite0.STAGES):
        layers = {"depthwise": "conv_dw", "norm": "bn1", "project.conv": "conv_pw", "project.norm": "bn2"}
        if stage.expansion > 1:
            layers = {"expand.conv": "conv_pw", "expand.norm": "bn1", "depthwise": "conv_dw", "norm": "bn2"}
            layers |= {"project.conv": "conv_pwl", "project.norm": "bn3"}
        for block in range(stage.blocks):
            table |= {f"stages.{number}.{block}.{ours}": f"blocks.{number}.{block}.{name}" for ours, name in layers.items()}
    return table


def _efficientnet_lite0_lukemelas() -> Table:
    """The names of ``efficientnet_lite_pytorch``, after lukemelas' EfficientNet-PyTorch."""
    table = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "last.conv": "_conv_head", "last.norm": "_bn1", "dense": "_fc"}
    layers = {"depthwise": "_depthwise_conv", "norm": "_bn1", "project.conv": "_project_conv", "project.norm": "_bn2"}
    expand = {"expand.conv": "_expand_conv", "expand.norm": "_bn0"}
    count = 0
    for number, stage in enumerate(efficientnet_lite0.STAGES):
        for block in range(stage.blocks):
            own = layers | (expand if stage.expansion > 1 else {})
            table |= {f"stages.{number}.{block}.{ours}": f"_blocks.{count}.{name}" for ours, name in own.items()}
            count += 1
    return table


TABLES: Mapping[str, tuple[Callable[[], Table], ...]] = {
    "efficientnet-lite0": (_efficientnet_lite0_timm, _efficientnet_lite0_lukemelas),
}
"""Of every backbone the tables of those who publish weights of it."""


def to_weights(name: str, arrays: Mapping[str, np.ndarray], expected: Weights, where: str) -> Weights:
    """Published arrays as the weights of our network.

    Args:
      name: of the network.
      arrays: by their names.
      expected: shapes of all weights, as ``Network.abstract`` gives them, with as many classes as the arrays have.
      where: the file, for messages.

    Raises:
      UserError: arrays that are missing, unknown, of another shape, or not finite.
    """
    table = _matching(name, arrays)
    leaves = {
        f"{layer}.{leaf}": (keystr, shape.shape)
        for keystr, shape in _named_leaves(expected)
        for layer, leaf in [keystr.split(".", 1)[1].rsplit(".", 1)]
    }
    found: dict[str, np.ndarray] = {}
    wanted = set()
    for ours, (keystr, shape) in leaves.items():
        layer, leaf = ours.rsplit(".", 1)
        theirs = f"{table[layer]}.{LEAVES[leaf]}"
        wanted.add(theirs)
        if theirs not in arrays:
            raise _unfit(where, name, f"{theirs} is missing")
        array = _transposed(np.asarray(arrays[theirs], np.float32), leaf)
        if array.shape != shape:
            raise _unfit(
                where, name, f"{theirs} has the shape {tuple(arrays[theirs].shape)}, which gives {array.shape}, not {shape}"
            )
        if not np.isfinite(array).all():
            raise _unfit(where, name, f"{theirs} holds numbers that are not finite")
        found[keystr] = array
    extra = sorted(key for key in arrays.keys() - wanted if not key.endswith(IGNORED))
    if extra:
        raise _unfit(where, name, f"{extra[0]} is no array of it")
    values = [found[keystr] for keystr, _ in _named_leaves(expected)]
    return jax.tree.unflatten(jax.tree.structure(expected), values)


def published_classes(name: str, arrays: Mapping[str, Any]) -> int:
    """How many classes published arrays of a network tell apart; 1 where their last layer is missing."""
    last = f"{_matching(name, arrays)['dense']}.weight"
    return len(arrays[last]) if last in arrays else 1


def _matching(name: str, arrays: Mapping[str, Any]) -> Table:
    """The publisher's table that names most of the arrays."""
    layers = {key.rsplit(".", 1)[0] for key in arrays}
    return max((make() for make in TABLES[name]), key=lambda table: len(layers.intersection(table.values())))


def _transposed(array: np.ndarray, leaf: str) -> np.ndarray:
    """From PyTorch's order of axes, outputs and inputs first, to ours, outputs last."""
    if leaf != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _unfit(where: str, name: str, reason: str) -> UserError:
    return UserError(f"{where} holds no weights of {name}: {reason}; name another file, or another --model.")


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]
