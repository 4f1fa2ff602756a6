"""DICOM's lookup tables, however their entries are written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """A lookup table; values before its first entry get that, values after its last the last."""

    entries: np.ndarray
    first: int
    """The value of the first entry."""
    bits: int
    """Of the entries."""

    def __call__(self, values: np.ndarray) -> np.ndarray:
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)].astype(np.float64)


def table_bits(entries: np.ndarray, declared: int) -> int:
    """The bits of a table's entries: as declared, unless the greatest of them needs more, or fewer."""
    needed = int(entries.max()).bit_length()
    return declared if declared == needed else max(needed, 1)


def table_entries(data: bytes | Sequence[int], count: int, *, little_endian: bool = True) -> np.ndarray | None:
    """The entries of a DICOM lookup table: bytes, or words, or two bytes in a word.

    Args:
      data: the element's value, as it lies in the file or as numbers.
      count: how many there are to be.
      little_endian: whether the low byte of a word comes first.

    Returns:
      Integers ``[count]``, or None where there are fewer.
    """
    order = "<" if little_endian else ">"
    if not isinstance(data, bytes):
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
        if len(words) >= count:
            return words[:count]
        data = words.astype(f"{order}u2").tobytes()
    if len(data) >= 2 * count:
        return np.frombuffer(data, f"{order}u2", count)
    return np.frombuffer(data, np.uint8, count) if len(data) >= count else None


def expand(data: bytes, count: int, bits: int, *, little_endian: bool = True) -> np.ndarray | None:
    """The entries of a segmented palette (PS3.3, C.7.9.2). Arguments and result are those of ``table_entries``, with the
    declared ``bits`` of an entry: those of 8 bits may lie in bytes or in words, and what gives all entries is right.

    Raises:
      ValueError, IndexError: segments that lead nowhere.
    """
    words = "<u2" if little_endian else ">u2"
    for kind in ("u1", words) if bits == 8 else (words,):
        numbers = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize).tolist()
        with contextlib.suppress(ValueError, IndexError):
            entries = _expanded(numbers, np.dtype(kind).itemsize, count)
            if len(entries) == count:
                return np.rint(entries).astype(np.int64)
    return None


def _expanded(numbers: list[int], size: int, count: int) -> list[float]:
    """Entries of segments that are numbers of ``size`` bytes, at most ``count``."""
    entries: list[float] = []

    def take(place: int, most: int, nested: bool = False) -> None:
        """Take so many segments from a place on; one that repeats others is not repeated itself."""
        for _ in range(most):
            if place + 1 >= len(numbers) or len(entries) >= count:
                return
            code, length = numbers[place], numbers[place + 1]
            if code == 0:  # entries one by one
                entries.extend(numbers[place + 2 : place + 2 + length])
                place += 2 + length
            elif code == 1:  # a line from the entry before
                entries.extend(np.linspace(entries[-1], numbers[place + 2], length + 1)[1:].tolist())
                place += 3
            elif code == 2 and not nested:  # so many segments from an earlier place, in bytes, its lowest number first
                parts = 4 // size
                offset = sum(numbers[place + 2 + part] << 8 * size * part for part in range(parts))
                take(offset // size, length, nested=True)
                place += 2 + parts
            else:
                raise ValueError("a segment of an unknown kind")

    take(0, len(numbers))
    return entries[:count]
