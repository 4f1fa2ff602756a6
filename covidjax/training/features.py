"""Features of all images of a dataset by a backbone: computed once for all networks that have it, and kept on disk."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import platformdirs

from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.files import cached
from covidjax.models.network import Network, Weights
from covidjax.timing import Timing

FORMAT = 1
"""Of what is computed and kept, to be raised when that changes."""

CACHED = 8
"""Sets of features that are kept in the cache folder; the longest unused ones go. Those of 4,202 images by
EfficientNet-Lite0 take 22 MB."""

BATCH_SIZE, ACCELERATED_BATCH_SIZE = 32, 256

Compute = Callable[[np.ndarray], Sequence[Any]]
"""Of ``inference.runtimes.open_runtime``, for features alone."""

OpenRuntime = Callable[..., Compute]
"""That function."""

Progress = Callable[[int, int], None]
"""Told how many of how many images are done."""


class Runtimes(NamedTuple):
    """What may compute the features: the functions of ``inference.runtimes`` of these names."""

    choose_runtime: Callable[[str, str, str], str]
    open_runtime: OpenRuntime


class Computed(NamedTuple):
    """Features of every image of a dataset."""

    features: np.ndarray
    """float32 ``[N, F]``, in the order of ``Dataset.source`` of all folds."""
    seconds: float
    by: str
    """Where they come from, such as ``openvino`` or ``cache``."""


class BackboneFeatures:
    """Features of the images of a dataset by a network's backbone.

    Args:
      config: of the run.
      dataset: all of its images count.
      network: without weights, in the precision of the settings.
      timing: told of what is computed.
    """

    def __init__(self, config: Config, dataset: Dataset, network: Network, timing: Timing):
        self._config = replace(config, model=replace(config.model, tta=1))
        self._dataset, self._network, self._timing = dataset, network, timing
        self._latest: tuple[str, np.ndarray] | None = None

    def of(self, weights: Weights, runtimes: Runtimes, *, accelerated: bool, progress: Progress) -> Computed:
        """The features by the backbone of these weights, from memory, from the cache on disk, or computed by what is
        fastest: on a CPU by the runtimes that score images.

        Args:
          weights: of the network.
          runtimes: what may compute them.
          accelerated: whether jax computes on something else than a CPU.
          progress: told how it goes on.

        Raises:
          UserError: images that cannot be read.
        """
        start = time.perf_counter()
        digest = backbone_digest(self._network, weights)
        if self._latest and self._latest[0] == digest:
            return Computed(self._latest[1], time.perf_counter() - start, "memory")
        device = "gpu" if accelerated else "cpu"
        by, computed = runtimes.choose_runtime("auto", device, self._config.train.precision), []

        def make() -> bytes:
            computed.append(True)
            compute = self._open(by, weights, digest, runtimes.open_runtime, device)
            size = ACCELERATED_BATCH_SIZE if accelerated else BATCH_SIZE
            return _to_bytes(self._compute(compute, size, progress))

        config, precision = asdict(self._config.model), self._config.train.precision
        key = json.dumps([FORMAT, digest, self._dataset.fingerprint, config, precision, device, by])
        file = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.features"
        features = np.load(io.BytesIO(cached(file, make, keep=CACHED)), allow_pickle=False)
        self._latest = digest, features
        self._timing.add("features", start, len(features) if computed else 0)
        return Computed(features, time.perf_counter() - start, by if computed else "cache")

    def _open(self, name: str, weights: Weights, digest: str, open_runtime: OpenRuntime, device: str) -> Compute:
        run = SimpleNamespace(config=self._config)
        loaded = SimpleNamespace(run=run, network=self._network, networks=[weights])
        options = {"digests": [digest], "load": lambda _: loaded, "outputs": ("features",)}
        preprocess = self._dataset.preprocess
        try:
            return open_runtime(name, device, self._config, preprocess, **options)
        except UserError:  # a network that the converter does not know
            return open_runtime("jax", device, self._config, preprocess, **options)

    def _compute(self, compute: Compute, batch_size: int, progress: Progress) -> np.ndarray:
        source = self._dataset.source(range(self._dataset.folds))
        parts, done = [], 0
        for batch in loader.eval_batches(source, batch_size):
            parts.append(np.asarray(compute(np.asarray(batch.images))[0], np.float32)[: batch.count])
            done += batch.count
            progress(done, len(source))
        return np.concatenate(parts)


def backbone_digest(network: Network, weights: Weights) -> str:
    """A digest of all arrays of a network but its head's."""
    digest = hashlib.sha256()
    backbone = [{name: part for name, part in arrays.items() if name not in network.head} for arrays in weights]
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(backbone)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder of the features."""
    return platformdirs.user_cache_path("covidjax") / "features"


def _to_bytes(features: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, features, allow_pickle=False)
    return file.getvalue()
