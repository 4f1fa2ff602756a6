"""Grain loaders: batches from a prepared dataset.

Pixels stay uint8 here; everything numeric happens on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from covidjax.config import UserError


class Batch(NamedTuple):
    """A batch of constant size; ``real`` examples come first, the rest is padding."""

    images: np.ndarray
    """uint8 ``[B, S, S, 1]``."""
    labels: np.ndarray
    """int32 ``[B]``."""
    real: int


class Source(Protocol):
    """Random access to the records of a prepared dataset."""

    def __len__(self) -> int: ...
    def __getitems__(self, rows: Sequence[int]) -> Sequence[dict[str, Any]]: ...


def order(count: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The rows of each step of an epoch, int32 ``[steps, batch]``: shuffled, the incomplete last batch left out."""
    batch = min(batch_size, count)
    shuffled = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)
    return shuffled[: count // batch * batch].reshape(-1, batch)


def _stack(source: Source, rows: np.ndarray, size: int | None = None) -> Batch:
    try:
        records = source.__getitems__(rows.tolist())
    # The file format's reader answers damaged bytes with errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"A record of the dataset cannot be read ({reason}); prepare it again.") from error
    images = np.stack([record["image"] for record in records])
    labels = np.asarray([record["label"] for record in records], np.int32)
    if missing := (size or len(rows)) - len(rows):
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        labels = np.concatenate([labels, np.zeros(missing, np.int32)])
    return Batch(images, labels, len(rows))


def train_batches(source: Source, steps: np.ndarray) -> Iterator[Batch]:
    """The batches whose rows ``order`` gave, read one ahead of the training step."""
    dataset = grain.MapDataset.source(list(steps)).map(lambda rows: _stack(source, rows))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def identities(source: Source) -> list[tuple[str, ...]]:
    """For every record what its film can be known by in another dataset: the file's digest and, where it means anything
    outside its own dataset, the patient."""
    found = []
    for start in range(0, len(source), 256):
        for record in source.__getitems__(range(start, min(start + 256, len(source)))):
            patient, digest = os.fsdecode(record["patient"]), os.fsdecode(record["sha256"])
            found.append((digest,) if patient.startswith("file:") else (digest, patient))
    return found


def eval_batches(source: Source, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """Every record (or those of the given rows) once, in order; the last batch is padded to the common size."""
    rows = np.arange(len(source)) if rows is None else rows
    batch_size = min(batch_size, max(len(rows), 1))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    dataset = grain.MapDataset.source(batches).map(lambda rows: _stack(source, rows, batch_size))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def load_all(source: Source) -> Batch:
    """Every record at once, in order."""
    if not len(source):
        raise UserError("the chosen folds hold no image; prepare the dataset again with fewer folds.")
    return _stack(source, np.arange(len(source)))
