"""Films from plain files, for ``prepare`` and ``score``, decoded by threads ahead of the reader.

Threads of the standard library and not grain: grain imports jax, a second of start-up that scoring by another
runtime does without. The decoders work outside Python's lock, so threads keep all cores busy.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from covidjax import radiograph
from covidjax.config import Preprocess

T = TypeVar("T")

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
    mask: np.ndarray | None = None
    """uint8 ``[S, S, 1]`` of 0 and 1, where one was asked for."""
    lungs: str = ""
    """What was done with the lungs, or why nothing; empty where nothing was asked for."""
    lungs_seconds: float = 0.0
    """Finding the lungs and cutting them out."""


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


def open_pair(path: str | os.PathLike[str], mask: str | os.PathLike[str], preprocess: Preprocess) -> Film:
    """Read a film and its lung mask as a segmenter is to see them, with the digest of the film's file. Never raises for the
    files' faults."""
    start = time.perf_counter()
    image, inside, error, remark, sha256 = None, None, "", "", ""
    try:
        data = radiograph.read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        gray, remark = radiograph.read_reduced(data, invert=preprocess.invert)
        inside = radiograph.read_mask(mask, preprocess.image_size, gray.shape)[..., None]
        image = radiograph.resize(gray, preprocess.image_size)[..., None]
    except radiograph.RadiographError as fault:
        error = str(fault)
    return Film(os.fspath(path), image, error, remark, sha256, time.perf_counter() - start, inside)


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
    return in_order((partial(open_film, path, preprocess, digest=digest) for path in paths), workers=workers, ahead=ahead)


def pairs(
    paths: Sequence[tuple[Path, Path]], preprocess: Preprocess, *, workers: int | None = None, ahead: int = AHEAD
) -> Iterator[Film]:
    """``films`` for pairs of a film and its lung mask."""
    return in_order((partial(open_pair, *pair, preprocess) for pair in paths), workers=workers, ahead=ahead)


def in_order(jobs: Iterable[Callable[[], T]], *, workers: int | None = None, ahead: int = AHEAD) -> Iterator[T]:
    """The results of jobs in order, each computed on one of the threads, ahead of the reader."""
    threads = workers_or_default(workers)
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) == ahead + threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the reader has had enough
        pool.shutdown(cancel_futures=True)
