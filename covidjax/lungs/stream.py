"""Images from files with the lungs on them, in batches through a segmenter."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from covidjax.config import Preprocess
from covidjax.images import archives, decode, stream
from covidjax.images.archives import Source
from covidjax.images.formats import Limits
from covidjax.images.stream import LoadedImage
from covidjax.images.workers import DecodeJob
from covidjax.lungs.geometry import Lungs, find_lungs, frame_lungs

BATCH_SIZE = 16
"""Films of one call of the segmenter. Whole films wait meanwhile, so it is less than a classifier's."""

WHOLE = "whole film: "
"""What stands before the reason where no lungs could be trusted."""


class Segmenter(Protocol):
    """Computes lung masks."""

    size: int
    """Height and width N of the images it takes."""
    title: str
    """For the reader."""
    digest: str
    """Of its weights."""

    def __call__(self, images: np.ndarray) -> Any:
        """uint8 ``[B, N, N, 1]`` → float32 ``[B, N, N]``, the probability that a pixel belongs to the lungs."""
        ...


class SegmentedImage(NamedTuple):
    """One file and the lungs on it."""

    path: str
    gray: np.ndarray | None
    """uint8 ``[H, W]``, or None where the file could not be read."""
    lungs: Lungs | None
    error: str
    remark: str
    """What ``radiograph.Radiograph`` says of it."""
    sha256: str
    decode_seconds: float
    lungs_seconds: float
    """This film's share of its batch's time in the segmenter, and finding the box."""


class _Decoded(NamedTuple):
    image: SegmentedImage
    small: np.ndarray | None
    """uint8 ``[N, N, 1]``, for the segmenter."""


def segment_images(
    paths: Sequence[Source],
    segmenter: Segmenter,
    *,
    at_least: int | None = None,
    invert: decode.Invert = "auto",
    workers: int | None = None,
    digest: bool = False,
    limits: Limits = Limits(),
) -> Iterator[SegmentedImage]:
    """Every file in order, decoded ahead of the segmenter, which takes them in batches of one size.

    Args:
      paths: files.
      segmenter: what computes the masks.
      at_least: a side in pixels that suffices, see ``radiograph.read_reduced``; all pixels if None.
      invert: whether negatives are turned into positives.
      workers: processes that decode; one a core if None.
      digest: whether the files' digests are wanted.
      limits: what one file may take.
    """
    job = DecodeJob(None, at_least, segmenter.size, invert=invert, digest=digest, limits=limits)
    jobs = (partial(_decode, stream.load_source(path, limits), job) for path in paths)
    batch_size = min(BATCH_SIZE, max(len(paths), 1))
    group: list[_Decoded] = []
    for decoded in stream.map_in_order(jobs, workers=workers, ahead=BATCH_SIZE):
        group.append(decoded)
        if len(group) == batch_size:
            yield from _segment(group, segmenter, batch_size)
            group = []
    yield from _segment(group, segmenter, batch_size)


def _decode(source: Source | archives.LoadedMember, job: DecodeJob) -> _Decoded:
    found = stream.decode_source(source, job)
    gray, small = found.arrays or (None, None)
    film = SegmentedImage(os.fspath(source), gray, None, found.error, found.remark, found.sha256, found.seconds, 0.0)
    return _Decoded(film, None if small is None else small[..., None])


def _segment(group: list[_Decoded], segmenter: Segmenter, batch_size: int) -> Iterator[SegmentedImage]:
    start = time.perf_counter()
    readable = [decoded.small for decoded in group if decoded.small is not None]
    masks: Iterator[np.ndarray] = iter(())
    if readable:
        batch = np.zeros((batch_size, segmenter.size, segmenter.size, 1), np.uint8)
        batch[: len(readable)] = readable
        masks = iter(np.asarray(segmenter(batch)))
    each = (time.perf_counter() - start) / max(len(readable), 1)
    for film, _ in group:
        if film.gray is None:
            yield film
            continue
        start = time.perf_counter()
        lungs = find_lungs(next(masks), *film.gray.shape)
        yield film._replace(lungs=lungs, lungs_seconds=each + time.perf_counter() - start)


def read_lungs(
    paths: Sequence[Source],
    preprocess: Preprocess,
    segmenter: Segmenter,
    *,
    workers: int | None = None,
    digest: bool = True,
    limits: Limits = Limits(),
) -> Iterator[LoadedImage]:
    """``reading.films`` for ``preprocess.lungs`` other than ``none``: the lungs as ``framed`` shows them, resized."""
    # A box has at least a third of the film's sides or so: four times the size leaves more than is wanted.
    side, invert = 4 * preprocess.image_size, preprocess.invert
    found = segment_images(paths, segmenter, at_least=side, invert=invert, workers=workers, digest=digest, limits=limits)
    jobs = (partial(_finished, film, preprocess) for film in found)
    return stream.map_in_order(jobs, workers=workers, ahead=BATCH_SIZE)


def _finished(film: SegmentedImage, preprocess: Preprocess) -> LoadedImage:
    if film.gray is None or film.lungs is None or preprocess.lungs == "none":
        return LoadedImage(film.path, None, film.error, film.remark, film.sha256, film.decode_seconds)
    start = time.perf_counter()
    image = decode.resize(frame_lungs(film.gray, film.lungs, preprocess.lungs), preprocess.image_size)[..., None]
    seconds = film.lungs_seconds + time.perf_counter() - start
    done = WHOLE + film.lungs.flag if film.lungs.flag else preprocess.lungs
    return LoadedImage(
        film.path, image, "", film.remark, film.sha256, film.decode_seconds, lungs=done, lungs_seconds=seconds
    )
