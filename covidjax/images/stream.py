"""Films from plain files and from archives, for ``prepare`` and ``score``, decoded ahead of the reader.

Threads of the standard library, each waiting for a decoder process, and not grain: grain imports jax, a second of start-up
that scoring by another runtime does without.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from covidjax.config import Preprocess
from covidjax.errors import ImageError
from covidjax.images import archives, workers
from covidjax.images.archives import Source
from covidjax.images.formats import Limits
from covidjax.images.workers import Decoded, DecodeJob

T = TypeVar("T")

PREFETCH = 32
"""Films that are decoded ahead of the reader, besides those that the threads are at."""


class LoadedImage(NamedTuple):
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
    """Reading, decoding and resizing, in the process that did it."""
    mask: np.ndarray | None = None
    """uint8 ``[S, S, 1]`` of 0 and 1, where one was asked for."""
    lungs: str = ""
    """What was done with the lungs, or why nothing; empty where nothing was asked for."""
    lungs_seconds: float = 0.0
    """Finding the lungs and cutting them out."""


def workers_or_default(workers: int | None) -> int:
    """Processes that decode, unless told otherwise: one for each core this process may use, and one more, since each idles
    for a moment between two films."""
    return workers or len(os.sched_getaffinity(0)) + 1


def decode_source(source: Source | archives.LoadedMember, job: DecodeJob) -> Decoded:
    """Decode a file, or a member of an archive. Never raises for its faults."""
    try:
        if isinstance(source, archives.LoadedMember):
            return workers.decode(source.data, job) if source.data is not None else Decoded([], source.error)
        if isinstance(source, archives.Member):
            return workers.decode(source.read(job.limits), job)
    except ImageError as fault:
        return Decoded([], str(fault))
    return workers.decode(source, job)


def load_source(source: Source, limits: Limits) -> Source | archives.LoadedMember:
    """A source that may be read at any time and by any thread: members that can only be read one after another are read
    here and now."""
    return source.load(limits) if isinstance(source, archives.Member) and source.in_turn else source


def read_image(
    source: Source | archives.LoadedMember, preprocess: Preprocess, *, digest: bool = True, limits: Limits = Limits()
) -> LoadedImage:
    """Read a file as a model is to see it. Never raises for the file's faults: they are in ``error``."""
    return _film(
        source,
        decode_source(source, DecodeJob(preprocess.image_size, invert=preprocess.invert, digest=digest, limits=limits)),
    )


def read_pair(path: Path, mask: Path, preprocess: Preprocess, *, limits: Limits = Limits()) -> LoadedImage:
    """Read a film and its lung mask as a segmenter is to see them, with the digest of the film's file. Never raises for the
    files' faults."""
    size, invert = preprocess.image_size, preprocess.invert
    return _film(
        path, decode_source(path, DecodeJob(size, mask=str(mask.absolute()), invert=invert, digest=True, limits=limits))
    )


def _film(source: Source | archives.LoadedMember, found: Decoded) -> LoadedImage:
    image, mask = (*(array[..., None] for array in found.arrays), None, None)[:2]
    return LoadedImage(os.fspath(source), image, found.error, found.remark, found.sha256, found.seconds, mask)


def read_images(
    paths: Sequence[Source],
    preprocess: Preprocess,
    *,
    workers: int | None = None,
    ahead: int = PREFETCH,
    digest: bool = True,
    limits: Limits = Limits(),
) -> Iterator[LoadedImage]:
    """Every file in order.

    Args:
      paths: files, and members of archives.
      preprocess: size of the images.
      workers: processes that decode; one a core if None.
      ahead: films that are decoded ahead of the reader, which bounds the memory.
      digest: whether the files' digests are wanted.
      limits: what one file may take.
    """
    jobs = (partial(read_image, load_source(path, limits), preprocess, digest=digest, limits=limits) for path in paths)
    return map_in_order(jobs, workers=workers, ahead=ahead)


def read_pairs(
    paths: Sequence[tuple[Path, Path]],
    preprocess: Preprocess,
    *,
    workers: int | None = None,
    ahead: int = PREFETCH,
    limits: Limits = Limits(),
) -> Iterator[LoadedImage]:
    """``read_images`` for pairs of a film and its lung mask."""
    jobs = (partial(read_pair, *pair, preprocess, limits=limits) for pair in paths)
    return map_in_order(jobs, workers=workers, ahead=ahead)


def map_in_order(jobs: Iterable[Callable[[], T]], *, workers: int | None = None, ahead: int = PREFETCH) -> Iterator[T]:
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
