"""The gate of a run: what its training images are like, found out when its training has ended."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.images import decode
from covidjax.lungs.segmenter import Encoder
from covidjax.runs import trust_file
from covidjax.training.loop import Result
from covidjax.trust import gate
from covidjax.trust.gate import RunFeatures

BATCH_SIZE = 64
"""Images of one call of the fixed network; few may be trained on."""


def write_gates(run: Path, networks: Mapping[str, Result], dataset: Dataset) -> None:
    """Write the sections of ``trust.json`` that the gate reads; none of segmenters, which have no gate.

    Args:
      run: its folder.
      networks: what became of each network, by the name of its folder within the run's; empty for a single run's.
      dataset: what they were trained on.
    """
    parts = {name: result.features for name, result in networks.items() if result.features}
    if not parts:
        return
    rows = np.unique(np.concatenate([part.rows for pair in parts.values() for part in pair]))
    fixed = _fixed_features(dataset, rows)
    sections = {}
    for name, pair in parts.items():
        training, held_out = (RunFeatures(part.features, fixed[np.searchsorted(rows, part.rows)]) for part in pair)
        sections[name] = gate.fit(training, held_out)
        if name:
            trust_file.write(run / name, **{gate.SECTION: sections[name]})
    trust_file.write(run, **{gate.SECTION: gate.merge(list(sections.values()))})


def _fixed_features(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Features float32 ``[N, F]`` of rows of a dataset by the fixed network, of the images as they were prepared."""
    encoder, features = open_encoder(), []
    for batch in loader.eval_batches(dataset.source(range(dataset.folds)), BATCH_SIZE, rows):
        thumbnails = np.zeros((BATCH_SIZE, encoder.size, encoder.size, 1), np.uint8)  # so that one shape is compiled
        images = np.asarray(batch.images)[: batch.count, ..., 0]
        thumbnails[: batch.count, ..., 0] = [decode.resize(image, encoder.size) for image in images]
        features.append(encoder(thumbnails)[: batch.count])
    return np.concatenate(features)


@functools.cache
def open_encoder() -> Encoder:
    """The fixed network, by jax, which training has started."""
    return Encoder(runtime="jax")
