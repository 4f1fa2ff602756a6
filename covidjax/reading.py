"""Films from plain files, for ``prepare`` and ``score``, decoded by threads ahead of the reader.

Threads of the standard library and not grain: grain imports jax, a second of start-up that scoring by another
runtime does without. The decoders work outside Python's lock, so threads keep all cores busy.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from covidjax import radiograph
from covidjax.config import Preprocess

AHEAD = 32
"""Films that are decoded ahead of the reader, besides those that the threads are at."""


class Film(NamedTuple):
    """What became of one file."""

    path: str
    image: np.ndarray | None
    """uint8 ``[S, S, 1]``, or None where the file could not be read."""
    error: str
    """Why not; empty for a film that was read."""
    remark: str
    """What ``radiograph.Radiograph`` says of it."""
    sha256: str
    """Of the file's bytes, hexadecimal; empty where there were none, or it was not asked for."""
    decode_seconds: float
    """Reading, decoding and resizing, on the thread that did it."""


def workers_or_default(workers: int | None) -> int:
    """Threads that decode: one for each core this process may use, unless told otherwise."""
    return workers or len(os.sched_getaffinity(0))


def open_film(path: str | os.PathLike[str], preprocess: Preprocess, *, digest: bool = True) -> Film:
    """Read a file as a model is to see it. Never raises for the file's faults: they are in ``error``."""
    start = time.perf_counter()
    image, error, remark, sha256 = None, "", "", ""
    try:
        data = radiograph.read_bytes(path)
        if digest:
            sha256 = hashlib.sha256(data).hexdigest()
        pixels, remark = radiograph.read_resized(data, preprocess.image_size, invert=preprocess.invert)
        image = pixels[..., None]
    except radiograph.RadiographError as fault:
        error = str(fault)
    return Film(os.fspath(path), image, error, remark, sha256, time.perf_counter() - start)


def films(
    paths: Sequence[str | os.PathLike[str]],
    preprocess: Preprocess,
    *,
    workers: int | None = None,
    ahead: int = AHEAD,
    digest: bool = True,
) -> Iterator[Film]:
    """Every file in order.

    Args:
      paths: files.
      preprocess: size of the images.
      workers: threads that decode; one a core if None.
      ahead: films that are decoded ahead of the reader, which bounds the memory.
      digest: whether the files' digests are wanted.
    """
    threads = workers_or_default(workers)
    waiting: deque[Future[Film]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for path in paths:
            waiting.append(pool.submit(open_film, path, preprocess, digest=digest))
            if len(waiting) == ahead + threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the reader has had enough
        pool.shutdown(cancel_futures=True)
