"""Micro-batching: smaller batches where the device has not enough memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from covidjax.errors import UserError

LOG = logging.getLogger(__name__)

Outputs = tuple[np.ndarray, ...]
"""Arrays ``[B, …]`` of one batch."""


class MicroBatcher:
    """Computes batches of images, and in smaller ones where the device has not enough memory, from then on.

    Args:
      compute: uint8 ``[B, S, S, 1]`` → arrays ``[B, …]``, which may still be computing.
    """

    def __init__(self, compute: Callable[[np.ndarray], Sequence[Any]]):
        self._compute = compute
        self._micro_batch: int | None = None
        """Images of one call, once a whole batch has been too large."""

    def __call__(self, images: np.ndarray) -> PendingOutputs:
        if self._micro_batch is None:
            # A device may run out of memory now, or only when the result is asked for.
            with _running_out():
                return PendingOutputs(self, images, self._compute(images))
        return PendingOutputs(self, images, self.in_micro_batches(images))

    def in_micro_batches(self, images: np.ndarray) -> Outputs:
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

    def _compute_parts(self, images: np.ndarray, size: int) -> Outputs:
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        padding = np.zeros((size * len(parts) - len(images), *images.shape[1:]), np.uint8)
        parts[-1] = np.concatenate([parts[-1], padding])  # so that one shape is compiled
        outputs = zip(*([np.asarray(array) for array in self._compute(part)] for part in parts), strict=True)
        return tuple(np.concatenate(arrays)[: len(images)] for arrays in outputs)


class PendingOutputs:
    """What is being computed of a batch."""

    def __init__(self, micro_batcher: MicroBatcher, images: np.ndarray, outputs: Sequence[Any]):
        self._micro_batcher, self._images, self._outputs = micro_batcher, images, outputs

    def result(self) -> Outputs:
        """Wait for it.

        Raises:
          UserError: a single image does not fit.
        """
        with _running_out():
            return tuple(map(np.asarray, self._outputs))
        return self._micro_batcher.in_micro_batches(self._images)


@contextlib.contextmanager
def _running_out() -> Iterator[None]:
    """Goes on after the block where the device has not enough memory for it, whatever the runtime calls that."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
