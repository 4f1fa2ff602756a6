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
    """

    def __init__(self, compute: Callable[[np.ndarray], Any]):
        self._compute = compute
        self._micro_batch: int | None = None
        """Images of one call, once a whole batch has been too large."""

    def __call__(self, images: np.ndarray) -> Any:
        if self._micro_batch is None:
            # A device may run out of memory now, or only when the result is asked for.
            with _running_out():
                return _PendingResult(self, images, self._compute(images))
        return self.in_micro_batches(images)

    def in_micro_batches(self, images: np.ndarray) -> np.ndarray:
        """Compute a batch in parts that fit into memory.

        Raises:
          UserError: a single image does not fit.
        """
        size = self._micro_batch or max(len(images) // 2, 1)
        while size:
            with _running_out():
                outputs = self._compute_parts(images, size)
                if self._micro_batch is None:
                    message = "The device has not enough memory for batches of %d images; they have %d from now on."
                    LOG.warning(message, len(images), size)
                self._micro_batch = size
                return outputs
            size //= 2
        raise UserError("The device has not enough memory for a single image; free some, or choose --device cpu.")

    def _compute_parts(self, images: np.ndarray, size: int) -> np.ndarray:
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        padding = np.zeros((size * len(parts) - len(images), *images.shape[1:]), np.uint8)
        parts[-1] = np.concatenate([parts[-1], padding])  # so that one shape is compiled
        return np.concatenate([np.asarray(self._compute(part)) for part in parts])[: len(images)]


class _PendingResult:
    """The result of a batch that is being computed; ``np.asarray`` waits for it."""

    def __init__(self, micro_batcher: MicroBatcher, images: np.ndarray, result: Any):
        self._micro_batcher, self._images, self._result = micro_batcher, images, result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _running_out():
            return np.asarray(self._result, dtype)
        return self._micro_batcher.in_micro_batches(self._images).astype(dtype or np.float32)


@contextlib.contextmanager
def _running_out() -> Iterator[None]:
    """Goes on after the block where the device has not enough memory for it, whatever the runtime calls that."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
