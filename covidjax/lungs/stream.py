"""Images from files with the lungs on them, in batches through a segmenter."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from covidjax.config import Preprocess
from covidjax.images import decode, stream
from covidjax.images.archives import Source
from covidjax.images.facts import FileFacts
from covidjax.images.formats import Limits
from covidjax.images.stream import LoadedImage
from covidjax.images.workers import Decoded, DecodeJob
from covidjax.lungs.geometry import Lungs, find_lungs, frame_lungs

BATCH_SIZE = 16
"""Images of one call of the segmenter. Whole images wait meanwhile, so it is less than a classifier's."""

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

    def segment(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``[B, N, N, 1]`` → float32 ``[B, N, N]``, the probability that a pixel belongs to the lungs, and features,
        float32 ``[B, F]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmentedImage(FileFacts):
    """One file and the lungs on it."""

    path: str
    gray: np.ndarray | None = None
    """uint8 ``[H, W]``, or None where the file could not be read."""
    lungs: Lungs | None = None
    features: np.ndarray | None = None
    """float32 ``[F]``, of the segmenter's encoder."""
    lungs_seconds: float = 0.0
    """This image's share of its batch's time in the segmenter, and finding the box."""


def segment_images(
    paths: Sequence[Source], segmenter: Segmenter, job: DecodeJob = DecodeJob(), *, workers: int | None = None
) -> Iterator[SegmentedImage]:
    """Every file in order, decoded ahead of the segmenter, which takes them in batches of one size.

    Args:
      paths: files.
      segmenter: what computes the masks.
      job: how files are decoded; the thumbnail is the segmenter's.
      workers: processes that decode; one a core and one more if None.
    """
    job = replace(job, thumbnail=segmenter.size)
    jobs = (partial(stream.decode_source, stream.load_source(path, job.limits), job) for path in paths)
    decoded = stream.map_in_order(jobs, workers=workers, ahead=BATCH_SIZE)
    files = zip((os.fspath(path) for path in paths), decoded, strict=True)
    batch_size = min(BATCH_SIZE, max(len(paths), 1))
    while group := list(itertools.islice(files, batch_size)):
        yield from _segment(group, segmenter, batch_size)


def _segment(group: list[tuple[str, Decoded]], segmenter: Segmenter, batch_size: int) -> Iterator[SegmentedImage]:
    start = time.perf_counter()
    thumbnails = [decoded.arrays[1] for _, decoded in group if decoded.arrays]
    found: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
    if thumbnails:
        batch = np.zeros((batch_size, segmenter.size, segmenter.size, 1), np.uint8)
        batch[: len(thumbnails), ..., 0] = thumbnails
        found = zip(*segmenter.segment(batch), strict=True)
    share = (time.perf_counter() - start) / max(len(thumbnails), 1)
    for path, decoded in group:
        start = time.perf_counter()
        image = SegmentedImage(path=path, **decoded.facts)
        if decoded.arrays:
            gray = decoded.arrays[0]
            mask, features = next(found)
            lungs = find_lungs(mask, *gray.shape)
            seconds = share + time.perf_counter() - start
            image = replace(image, gray=gray, lungs=lungs, features=features, lungs_seconds=seconds)
        yield image


def read_lungs(
    paths: Sequence[Source],
    preprocess: Preprocess,
    segmenter: Segmenter,
    *,
    workers: int | None = None,
    digest: bool = True,
    limits: Limits = Limits(),
) -> Iterator[LoadedImage]:
    """``images.stream.read_images`` for ``preprocess.lungs`` other than ``none``: the lungs as ``geometry.frame_lungs``
    shows them, resized."""
    # A box has at least a third of the image's sides or so: four times the size leaves more than is wanted.
    job = DecodeJob(at_least=4 * preprocess.image_size, invert=preprocess.invert, digest=digest, limits=limits)
    images = segment_images(paths, segmenter, job, workers=workers)
    jobs = (partial(_frame, image, preprocess) for image in images)
    return stream.map_in_order(jobs, workers=workers, ahead=BATCH_SIZE)


def _frame(image: SegmentedImage, preprocess: Preprocess) -> LoadedImage:
    loaded = LoadedImage(path=image.path, **image.facts)
    if image.gray is None or image.lungs is None or preprocess.lungs == "none":
        return loaded
    start = time.perf_counter()
    framed = frame_lungs(image.gray, image.lungs, preprocess.lungs)
    pixels = decode.resize(framed, preprocess.image_size)[..., None]
    flag = image.lungs.flag
    return replace(
        loaded,
        image=pixels,
        lungs=WHOLE + flag if flag else preprocess.lungs,
        whole_because=flag,
        features=image.features,
        lungs_seconds=image.lungs_seconds + time.perf_counter() - start,
    )
