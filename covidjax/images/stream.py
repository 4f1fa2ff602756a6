"""Images from plain files and from archives, for ``prepare`` and ``score``, decoded ahead of the reader.

Threads of the standard library, each waiting for a decoder process, and not grain: grain imports jax, a second of start-up
that scoring by another runtime does without.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from covidjax import environment
from covidjax.config import Preprocess
from covidjax.errors import ImageError
from covidjax.images import workers
from covidjax.images.archives import LoadedMember, Member, Source
from covidjax.images.facts import FileFacts
from covidjax.images.formats import Limits
from covidjax.images.workers import Decoded, DecodeJob

T = TypeVar("T")

PREFETCH = 32
"""Images that are decoded ahead of the reader, besides those that the threads are at."""


@dataclass(frozen=True, kw_only=True)
class LoadedImage(FileFacts):
    """What became of one file."""

    path: str
    image: np.ndarray | None = None
    """uint8 ``[S, S, 1]``, or None where the file could not be read."""
    mask: np.ndarray | None = None
    """uint8 ``[S, S, 1]`` of 0 and 1, where one was asked for."""
    thumbnail: np.ndarray | None = None
    """uint8 ``[N, N]``, where one was asked for."""
    features: np.ndarray | None = None
    """float32 ``[F]``, of the whole image by the lung segmenter's encoder, where that was computed."""
    lungs: str = ""
    """What was done with the lungs, or why nothing, as a text; empty where nothing was asked for."""
    whole_because: str = ""
    """Why the image was kept whole where the lungs were to be cut out; empty where it was not."""
    lungs_seconds: float = 0.0
    """Finding the lungs and cutting them out."""


def workers_or_default(workers: int | None) -> int:
    """Processes that decode, unless told otherwise: one for each core this process may use, and one more, since each idles
    for a moment between two images."""
    return workers or environment.cores() + 1


def decode_source(source: Source, job: DecodeJob) -> Decoded:
    """Decode a file, or a member of an archive. Never raises for its faults."""
    try:
        data = source.read(job.limits) if isinstance(source, Member | LoadedMember) else source
    except ImageError as error:
        return Decoded(error=str(error))
    return workers.decode(data, job)


def load_source(source: Source, limits: Limits) -> Source:
    """A source that may be read at any time and by any thread: members that can only be read one after another are read
    here and now."""
    return source.load(limits) if isinstance(source, Member) and source.in_turn else source


def read_image(
    source: Source,
    preprocess: Preprocess,
    *,
    mask: Path | None = None,
    thumbnail: int | None = None,
    digest: bool = True,
    limits: Limits = Limits(),
) -> LoadedImage:
    """Read a file as a model is to see it, with its lung mask if one is given, and a copy of ``thumbnail`` pixels a side if
    one is wanted. Never raises for the files' faults: they are in ``error``."""
    mask_path = str(mask.absolute()) if mask else None
    job = DecodeJob(
        preprocess.image_size,
        thumbnail=thumbnail,
        mask=mask_path,
        invert=preprocess.invert,
        digest=digest,
        limits=limits,
    )
    decoded = decode_source(source, job)
    arrays = iter(decoded.arrays)
    image, small, mask_array = next(arrays, None), next(arrays, None) if thumbnail else None, next(arrays, None)
    image, mask_array = (None if array is None else array[..., None] for array in (image, mask_array))
    return LoadedImage(path=os.fspath(source), image=image, mask=mask_array, thumbnail=small, **decoded.facts)


def read_images(
    paths: Sequence[Source],
    preprocess: Preprocess,
    *,
    masks: Iterable[Path | None] = (),
    thumbnail: int | None = None,
    workers: int | None = None,
    ahead: int = PREFETCH,
    digest: bool = True,
    limits: Limits = Limits(),
) -> Iterator[LoadedImage]:
    """Every file in order.

    Args:
      paths: files, and members of archives.
      preprocess: size of the images.
      masks: the lung mask of each file, where there are masks.
      thumbnail: side in pixels of a second copy of each image, if one is wanted.
      workers: processes that decode; one a core and one more if None.
      ahead: images that are decoded ahead of the reader, which bounds the memory.
      digest: whether the files' digests are wanted.
      limits: what one file may take.
    """
    read = partial(read_image, preprocess=preprocess, thumbnail=thumbnail, digest=digest, limits=limits)
    pairs = itertools.zip_longest(paths, masks)
    jobs = (partial(read, load_source(path, limits), mask=mask) for path, mask in pairs)
    return map_in_order(jobs, workers=workers, ahead=ahead)


def map_in_order(jobs: Iterable[Callable[[], T]], *, workers: int | None = None, ahead: int = PREFETCH) -> Iterator[T]:
    """The results of jobs in order, each computed on one of the threads, ahead of the reader."""
    threads = workers_or_default(workers)
    pool = ThreadPoolExecutor(threads, "decode")
    futures = (pool.submit(job) for job in jobs)
    try:
        waiting = deque(itertools.islice(futures, ahead + threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(futures, 1))
    finally:  # also where the reader has had enough
        pool.shutdown(cancel_futures=True)
