"""The way of weights from Flax to others: names, and a reader that needs no jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

UNITS = (
    "stem1",
    "stem2",
    *(f"stage{stage}/{part}" for stage in (1, 2, 3, 4) for part in ("first", "squeeze", "last")),
    "squeeze",
    "expand",
)
"""The units in the order in which an image meets them."""


class Arrays:
    """Weights read from the ``.npz`` file that ``bench.peers.ours.write_weights`` wrote."""

    def __init__(self, file: str | Path):
        self.params: dict[str, Any] = {}
        self.batch_stats: dict[str, Any] = {}
        with np.load(file) as stored:
            for name in stored:
                part, *keys, last = name.split("/")
                tree = getattr(self, part)
                for key in keys:
                    tree = tree.setdefault(key, {})
                tree[last] = stored[name]


def at(tree: Any, name: str) -> Any:
    """The part of nested dictionaries that a path like ``stage1/first`` leads to."""
    for key in name.split("/"):
        tree = tree[key]
    return tree
