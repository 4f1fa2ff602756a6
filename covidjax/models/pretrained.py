"""Published weights of the backbones as ours, by the names of ``pretrained_tables``.

Loading is strict: an array that is missing, that no layer takes, or that has another shape is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from covidjax.errors import UserError
from covidjax.models.network import Weights
from covidjax.models.pretrained_tables import TABLES, Table

__all__ = ["TABLES", "published_classes", "to_weights"]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Arrays of a layer: our names and PyTorch's."""

COUNTER = "num_batches_tracked"
"""What PyTorch's batch normalisation keeps beside them, and ours has no use for."""


def to_weights(name: str, arrays: Mapping[str, np.ndarray], expected: Weights, where: str) -> Weights:
    """Published arrays as the weights of our network.

    Where the arrays are of a network that sees three channels, and ours sees one, the first kernel is summed over them.
    That is the same function of gray images if mean and standard deviation of the pixels are equal in all channels.

    Args:
      name: of the network.
      arrays: by their names.
      expected: shapes of all weights, as ``Network.abstract`` gives them, with as many classes as the arrays have.
      where: the file, for messages.

    Returns:
      float32. Of a layer that the publisher has none of (the last one of VGG-16, in place of the paper's three) zeros.

    Raises:
      UserError: arrays that are missing, unknown, of another shape, or not finite.
    """
    named = _named_leaves(expected)
    table = _matching(name, arrays, {layer for layer, _, _ in named})
    wanted, values = set(), []
    for layer, leaf, shape in named:
        if layer in table.unpublished:
            values.append(np.zeros(shape, np.float32))
            continue
        theirs = f"{table.layers[layer]}.{LEAVES[leaf]}"
        wanted.add(theirs)
        if theirs not in arrays:
            raise _unfit(where, name, f"{theirs} is missing")
        array = np.asarray(arrays[theirs], np.float32)
        if not np.isfinite(array).all():
            raise _unfit(where, name, f"{theirs} holds numbers that are not finite")
        values.append(_fitted(array, leaf, shape, layer == table.first, f"{where} holds no weights of {name}: {theirs}"))
    layers = set(table.unused)
    extra = sorted(key for key in arrays.keys() - wanted if not key.endswith(COUNTER) and _layer(key) not in layers)
    if extra:
        raise _unfit(where, name, f"{extra[0]} is no array of it")
    return jax.tree.unflatten(jax.tree.structure(expected), values)


def published_classes(name: str, arrays: Mapping[str, Any]) -> int:
    """How many classes published arrays of a network tell apart; 1 where their last layer is missing."""
    last = f"{_matching(name, arrays).layers['dense']}.weight"
    return len(arrays[last]) if last in arrays else 1


def _matching(name: str, arrays: Iterable[str], layers: set[str] | None = None) -> Table:
    """The publisher's table that names most of the arrays; among those for our layers, if these are given, else among those
    that name a last layer."""
    tables = [make() for make in TABLES[name]]
    if layers is None:
        tables = [table for table in tables if "dense" in table.layers]
    else:
        tables = [table for table in tables if {*table.layers, *table.unpublished} == layers]
    published = {_layer(key) for key in arrays}
    return max(tables, key=lambda table: len(published & {*table.layers.values(), *table.unused}))


def _fitted(array: np.ndarray, leaf: str, shape: tuple[int, ...], is_first: bool, what: str) -> np.ndarray:
    """A published array in our order of axes: PyTorch has outputs and inputs first, and we have them last.

    Raises:
      UserError: it has another shape, or other channels.
    """
    found = array
    if leaf == "kernel":
        if len(shape) == 4 and array.shape == (shape[3], shape[0] * shape[1] * shape[2]):
            found = array.reshape(shape[3], shape[2], *shape[:2])  # a dense layer over a whole map
        found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found.T
    if is_first and found.ndim == 4 and leaf == "kernel" and found.shape[2] != shape[2]:
        if (found.shape[2], shape[2]) != (3, 1):
            remedy = "set model.channels to 1" if found.shape[2] == 1 else "name another file"
            raise UserError(f"{what} takes {found.shape[2]} channels, and the network's images have {shape[2]}; {remedy}.")
        found = found.sum(2, keepdims=True)
    if found.shape != shape:
        remedy = "name another file, or another --model"
        raise UserError(f"{what} has the shape {array.shape}, which gives {found.shape}, not {shape}; {remedy}.")
    return found


def _unfit(where: str, name: str, reason: str) -> UserError:
    return UserError(f"{where} holds no weights of {name}: {reason}; name another file, or another --model.")


def _layer(key: str) -> str:
    return key.rsplit(".", 1)[0]


def _named_leaves(tree: Weights) -> list[tuple[str, str, tuple[int, ...]]]:
    """Layer, array and shape of each leaf, in the order of the leaves."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        _, name = jax.tree_util.keystr(path, simple=True, separator=".").split(".", 1)
        found.append((_layer(name), name.rsplit(".", 1)[1], tuple(leaf.shape)))
    return found
