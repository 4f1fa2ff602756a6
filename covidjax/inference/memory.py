"""Micro-batching: smaller batches where the device has not enough memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from covidjax.errors import UserError

LOG = logging.getLogger(__name__)


class MicroBatcher:
    """Computes batches of images, and in smaller ones where the device has not enough memory, from then on.

    Args:
      compute: uint8 ``[B, S, S, 1]`` → an array ``[B, …]``, which may still be computing.
      size: S.
      title: what computes, for the reader.
      digest: of its weights, where it is a segmenter.
    """

    def __init__(self, compute: Callable[[np.ndarray], Any], size: int, title: str, digest: str = ""):
        self._compute, self.size, self.title, self.digest = compute, size, title, digest
        self._most: int | None = None

    def __call__(self, images: np.ndarray) -> Any:
        if self._most is None:
            # What cannot be had is told when the result is asked for at the latest.
            with contextlib.suppress(_OutOfMemory), _memory():
                return _Result(self, images, self._compute(images))
        return self.parts(images)

    def parts(self, images: np.ndarray) -> np.ndarray:
        """Compute a batch in parts that fit."""
        most = self._most or max(len(images) // 2, 1)
        while True:
            try:
                with _memory():
                    parts = [images[at : at + most] for at in range(0, len(images), most)]
                    padding = np.zeros((most * len(parts) - len(images), *images.shape[1:]), np.uint8)
                    parts[-1] = np.concatenate([parts[-1], padding])  # so that one shape is compiled
                    found = np.concatenate([np.asarray(self._compute(part)) for part in parts])[: len(images)]
            except _OutOfMemory as error:
                if most == 1:
                    raise UserError(
                        "The device has not enough memory for a single image; free some, or choose --device cpu."
                    ) from error
                most //= 2
                continue
            if self._most is None:
                said = "The device has not enough memory for batches of %d images; they have %d from now on."
                LOG.warning(said, len(images), most)
            self._most = most
            return found


class _Result:
    """A batch that is being computed."""

    def __init__(self, sparing: MicroBatcher, images: np.ndarray, result: Any):
        self._sparing, self._images, self._result = sparing, images, result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            with _memory():
                return np.asarray(self._result, dtype)
        except _OutOfMemory:
            return self._sparing.parts(self._images).astype(dtype or np.float32)


class _OutOfMemory(Exception):
    """By whatever the runtime calls it."""


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise _OutOfMemory from error
        raise
