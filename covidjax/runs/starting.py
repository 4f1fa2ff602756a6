"""What networks start from: weights of somebody else's network, or of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from covidjax.errors import UserError
from covidjax.models.network import Network, Weights
from covidjax.runs.folder import Run
from covidjax.runs.weights_record import WeightsRecord


class Initial(NamedTuple):
    """Weights to start from, in our layout."""

    weights: Weights
    """float32."""
    classes: tuple[str, ...]
    """Of the head; none for a network of other people's classes."""
    where: str
    """For messages."""

    def keeps_head(self, network: Network, classes: tuple[str, ...]) -> bool:
        """Whether the layers that belong to the classes go on too: classes and shapes are the same."""
        ours = network.abstract()
        return self.classes == classes and all(
            _shapes(mine.get(name)) == _shapes(theirs.get(name))
            for mine, theirs in zip(ours, self.weights, strict=True)
            for name in network.head
        )

    def put_into(self, network: Network, fresh: Weights, classes: tuple[str, ...]) -> Weights:
        """The weights that a network starts from: the backbone's of here, and the head's where it ``keeps_head``.

        Args:
          network: the one that is to be trained.
          fresh: weights drawn for it.
          classes: that it learns.

        Raises:
          UserError: a backbone of another shape.
        """
        kept = () if self.keeps_head(network, classes) else network.head
        return Weights(*(self._taken(own, theirs, kept) for own, theirs in zip(fresh, self.weights, strict=True)))

    def _taken(self, fresh: Mapping[str, Any], theirs: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any]:
        taken = {}
        for name, own in fresh.items():
            taken[name] = own if name in kept else self._fitted(name, own, theirs.get(name))
        return taken

    def _fitted(self, name: str, own: Any, theirs: Any) -> Any:
        if jax.tree.structure(own) != jax.tree.structure(theirs):
            raise self._unfit(name, "other layers")
        return jax.tree.map(lambda wanted, array: self._leaf(name, wanted.shape, np.asarray(array)), own, theirs)

    def _leaf(self, name: str, shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
        if array.shape == shape:
            return array
        # Gray repeated over three channels gives the same sums.
        if array.ndim == 4 and (*array.shape[:2], 1, array.shape[3]) == shape:
            return array.sum(2, keepdims=True)
        raise self._unfit(name, f"shape {array.shape} where {shape} is wanted")

    def _unfit(self, name: str, reason: str) -> UserError:
        return UserError(f"{self.where} does not fit: {name} has {reason}; start from weights of the same network.")


class StartingPoint(NamedTuple):
    """What ``train.init`` names, opened."""

    record: WeightsRecord
    """Kept in the run."""
    trained_on: frozenset[str]
    """Keys of the images that the weights were trained on, see ``runs.folder.write_trained_on``; none are known of other
    people's."""
    load: Callable[[], Initial]
    """Reads the weights, once."""
    run: Run | None = None
    """Of weights of ours."""


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
