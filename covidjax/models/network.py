"""A network as a pure function of its weights.

Flax NNX's own transformations walk the Python object graph at every call, which costs a network this small more than
its layers do; so a network is split once here, and plain ``jax.jit`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from covidjax.models.layers import Mode


class Weights(NamedTuple):
    """All arrays of a network, as nested dictionaries of float32 arrays."""

    params: Any
    batch_stats: Any


class Network:
    """A network without its weights, split once into structure and arrays.

    Args:
      make: from a PRNG key to the module, a fresh ``nnx.Module``; called with normalized images ``[B, S, S, C]`` and a
        ``layers.Mode`` it returns logits and named feature maps.
      features: the maps whose means are the network's features, and into how many cells a side each is divided first.
      head: the first names of the parameters that belong to the classes; the others are the backbone's.
      plain: compute each layer by the one operation that converters to other formats know it by, and not by what is
        fastest in XLA.
    """

    def __init__(
        self,
        make: Callable[[Array], nnx.Module],
        features: Mapping[str, int],
        head: Sequence[str] = (),
        *,
        plain: bool = False,
    ):
        self._plain, self._features, self.head = plain, features, tuple(head)
        structure = nnx.eval_shape(lambda: make(jax.random.key(0, impl="rbg")))
        self._graph, self._params, self._stats = nnx.split(structure, nnx.Param, nnx.BatchStat)
        self._draw = jax.jit(lambda key: _weights(*nnx.split(make(key), nnx.Param, nnx.BatchStat)[1:]))

    def init(self, seed: int) -> Weights:
        """Fresh weights, drawn as PyTorch draws them; the same on every platform.

        Drawn in one program, on the CPU, by the generator that compiles fastest: JAX's default one costs this network
        five seconds of compilation, and this one's numbers depend on the platform.
        """
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return self._draw(jax.random.key(seed, impl="rbg"))

    def abstract(self) -> Weights:
        """Shapes and dtypes of the weights."""
        return _weights(self._params, self._stats)

    def apply(
        self,
        weights: Weights,
        images: Array,
        *,
        train: bool = False,
        axis: str | None = None,
        key: Array | None = None,
        use_running_average: bool = False,
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """Logits ``[B, classes]`` (of a segmenter ``[B, S, S, classes]``), named maps and the new batch statistics for
        normalised images ``[B, S, S, C]``; with an ``axis`` of a mesh, of this device's share of a batch. Networks with
        dropout need a ``key`` in training. ``use_running_average`` normalizes by the batch statistics that there are in
        training too."""
        params, stats = (
            jax.tree.map(nnx.Variable.replace, state, nnx.State(pure), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
            for state, pure in ((self._params, weights.params), (self._stats, weights.batch_stats))
        )
        model = nnx.merge(self._graph, params, stats, copy=True)
        form = "plain" if self._plain else "cpu" if jax.default_backend() == "cpu" else "usual"
        mode = Mode(train, axis, form, key, use_running_average)
        logits, maps = model(images, mode)
        return logits, maps, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def pooled_features(self, maps: Mapping[str, Array]) -> Array:
        """The means of the cells of the network's feature maps, among those of ``apply``: float32 ``[B, F]``, map after
        map, row after row."""
        return jnp.concatenate([_cell_means(maps[name], cells) for name, cells in self._features.items()], axis=-1)


def _cell_means(x: Array, cells: int) -> Array:
    """``[B, H, W, C]`` → float32 ``[B, cells² · C]``; of a map with fewer pixels a side than cells, its pixels, and of one
    that cells do not divide without the last rows and columns."""
    batch, height, width, channels = x.shape
    rows, columns = min(cells, height), min(cells, width)
    high, wide = height // rows, width // columns
    x = x[:, : rows * high, : columns * wide].astype(jnp.float32)
    return x.reshape(batch, rows, high, columns, wide, channels).mean((2, 4)).reshape(batch, -1)


def _weights(params: nnx.State, batch_stats: nnx.State) -> Weights:
    return Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))


def count_parameters(weights: Weights) -> int:
    """Trainable numbers of a network; batch statistics are not among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(weights.params))
