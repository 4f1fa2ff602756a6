"""Grain loaders: batches from a prepared dataset.

Pixels stay uint8 here; everything numeric happens on the device.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from covidjax.data.readers.names import is_one_file
from covidjax.data.source import Source
from covidjax.errors import UserError, one_line


class Batch(NamedTuple):
    """A batch of constant size; ``count`` examples come first, the rest is padding."""

    images: np.ndarray
    """uint8 ``[B, S, S, 1]``."""
    labels: np.ndarray
    """int32 ``[B]``."""
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody counts in a tuple of arrays
    masks: np.ndarray | None = None
    """uint8 ``[B, S, S, 1]`` of 0 and 1 where the dataset has masks; the labels then say what kind each is."""

    @property
    def targets(self) -> Any:
        """The labels, or labels and masks."""
        return self.labels if self.masks is None else (self.labels, self.masks)


def epoch_rows(count: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The rows of each step of an epoch, int32 ``[steps, batch]``: shuffled, the incomplete last batch left out."""
    batch = min(batch_size, count)
    shuffled = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)
    return shuffled[: count // batch * batch].reshape(-1, batch)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    # The file format's reader answers damaged bytes with errors of many kinds.
    except Exception as error:
        raise UserError(f"A record of the dataset cannot be read ({one_line(error)}); prepare it again.") from error


def _stack(source: Source, rows: np.ndarray, size: int | None = None) -> Batch:
    count, size = len(rows), size or len(rows)
    images, labels = np.zeros((size, *source.shape), np.uint8), np.zeros(size, np.int32)
    masks = np.zeros_like(images) if source.masks else None
    with _reading():
        source.read(rows, images[:count], labels[:count], None if masks is None else masks[:count])
    return Batch(images, labels, count, masks)


def train_batches(source: Source, steps: Sequence[np.ndarray] | np.ndarray, size: int | None = None) -> Iterator[Batch]:
    """A batch for each array of rows, such as ``epoch_rows`` gives, in order, read ahead; padded to ``size`` if given."""
    dataset = grain.MapDataset.source(list(steps)).map(lambda rows: _stack(source, rows, size))
    # One thread: a second one would mostly wait for Python's lock, and the two would be slower than the one.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def identities(source: Source, rows: np.ndarray | None = None) -> list[tuple[str, ...]]:
    """For every record (or those of the given rows) the keys by which its image can be known in another dataset: the file's
    digest and, where it means anything outside its own dataset, the patient's key."""
    with _reading():
        numbers = range(len(source)) if rows is None else rows.tolist()
        keys = [source.texts(row, "sha256", "patient") for row in numbers]
    return [(digest,) if is_one_file(patient) else (digest, patient) for digest, patient in keys]


def origins(source: Source, rows: np.ndarray) -> tuple[list[str], list[str], list[str]]:
    """The patient's key, the source and the name of each of some records."""
    with _reading():
        texts = [source.texts(row, "patient", "source", "name") for row in rows.tolist()]
    patients, sources, names = zip(*texts, strict=True) if texts else ((), (), ())
    return list(patients), list(sources), list(names)


def labels(source: Source, rows: np.ndarray) -> np.ndarray:
    """The label of each of some records, int32 ``[N]``."""
    with _reading():
        return np.asarray([source.label(row) for row in rows.tolist()], np.int32)


def eval_batches(source: Source, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """Every record (or those of the given rows) once, in order; the last batch is padded to the common size."""
    rows = np.arange(len(source)) if rows is None else rows
    batch_size = min(batch_size, max(len(rows), 1))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return train_batches(source, batches, batch_size)


def cached_batches(
    data: Batch, batch_size: int, rows: np.ndarray, take: Callable[[Any, np.ndarray], Any] = operator.getitem
) -> Iterator[Batch]:
    """The batches of ``eval_batches`` from images that lie in memory, of which ``take`` gives some rows."""
    batch_size = min(batch_size, max(len(rows), 1))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        padded = np.concatenate([part, np.zeros(batch_size - len(part), part.dtype)])
        masks = None if data.masks is None else take(data.masks, padded)
        yield Batch(take(data.images, padded), data.labels[padded], len(part), masks)


def load_rows(source: Source, rows: np.ndarray) -> Batch:
    """Some records, in order."""
    return _stack(source, rows)


def load_all(source: Source) -> Batch:
    """Every record at once, in order."""
    if not len(source):
        raise UserError("the chosen folds hold no image; prepare the dataset again with fewer folds.")
    return _stack(source, np.arange(len(source)))
