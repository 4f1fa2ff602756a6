"""Lungs on a film: from a segmenter's mask to the box of both, a crop, a blanked film, or the reason not to trust it.

Whatever computes the masks is handed in, so this page is geometry alone: a perfect mask gives the exact answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from covidjax import archives, radiograph, reading
from covidjax.config import Limits, Preprocess
from covidjax.decoding import Job
from covidjax.reading import Film, Source

What = Literal["crop", "mask"]

SIDEWAYS, ENDS = 0.03, 0.08
"""The margin around the box of both masks, as shares of its width, left and right, and of its height, above and below. What
radiologists box is larger than what is masked: on V7's own masks these margins come closest to their boxes."""

CONTEXT = 0.2
"""What a classifier sees around the box in a crop, as a share of its longer side, on every side. Cut to the box itself a
classifier loses what lies around the lungs; docs/lungs.md has the figures."""

DILATION = 1 / 64
"""How far outside the mask a blanked film is still shown, as a share of the film's sides: the pleura lies on the edge."""

SMALLEST, LARGEST = 0.06, 0.70
"""Least and greatest share of the film that both lungs take; in the masks of Montgomery, Shenzhen and V7 0.08 to 0.62."""

SECOND = 0.2
"""Least area of the smaller lung, as a share of the larger one's. 0.10 to 1.00 in those masks, one of 1,122 below 0.2."""

CUT_OFF = 1.0
"""Most of the film's edge that the lungs touch, the shares of the four sides added up; at most 0.82 in those masks."""

UNSURE = 0.4
"""Most pixels whose probability lies between 0.2 and 0.8, as a share of the mask. An outline has some, 0.1 on most films
and 0.23 on all but one in a hundred; where no chest is to be seen it is mostly more than 0.4."""

BATCH = 16
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


class Lungs(NamedTuple):
    """What was found on one film."""

    box: tuple[int, int, int, int]
    """Left, top, right and bottom of both lungs with the margin, in pixels of the film, right and bottom exclusive; the
    whole film where there is a flag."""
    share: float
    """Of the film's area that the mask takes."""
    flag: str
    """Why the mask is implausible; empty where it is not."""
    mask: np.ndarray
    """bool ``[N, N]``: the two largest pieces, their holes filled."""


def find(probabilities: np.ndarray, height: int, width: int) -> Lungs:
    """Box and plausibility of a mask.

    Args:
      probabilities: ``[N, N]``, as a segmenter gives them; above a half is lung.
      height: of the film in pixels.
      width: likewise.
    """
    pieces, areas = _pieces(probabilities > 0.5)
    largest = np.argsort(areas, kind="stable")[::-1][:2] + 1
    mask = np.asarray(_ndimage().binary_fill_holes(np.isin(pieces, largest)))
    share = float(mask.mean())
    unsure = np.count_nonzero((probabilities > 0.2) & (probabilities < 0.8))
    flag = _flag(mask, share, unsure / max(np.count_nonzero(mask), 1))
    box = (0, 0, width, height) if flag else _box(mask, height, width)
    return Lungs(box, share, flag, mask)


def _ndimage() -> Any:
    """Imported here: that takes up to half a second, and scoring whole films does without."""
    import scipy.ndimage

    return scipy.ndimage


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which piece each pixel belongs to, from 1, and the pieces' areas in pixels."""
    pieces, count = _ndimage().label(mask)
    return pieces, np.bincount(pieces.ravel(), minlength=count + 1)[1:]


def _flag(mask: np.ndarray, share: float, unsure: float) -> str:
    if not mask.any():
        return "no lungs"
    if share < SMALLEST:
        return "lungs too small"
    if share > LARGEST:
        return "lungs too large"
    if _second(mask) < SECOND:
        return "one lung"
    if unsure > UNSURE:
        return "outline unsure"
    if sum(edge.mean() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) > CUT_OFF:
        return "lungs out of frame"
    return ""


def _second(mask: np.ndarray) -> float:
    """Area of the second largest piece as a share of the largest's. Lungs that touch are told apart by what is left of them
    when their edge is taken away, up to a thirty-second of the side."""
    for _ in range(max(len(mask) // 32, 1) + 1):
        areas = np.sort(_pieces(mask)[1])[::-1]
        if len(areas) > 1 and areas[1] >= SECOND * areas[0]:
            return float(areas[1] / areas[0])
        mask = np.asarray(_ndimage().binary_erosion(mask))
    return 0.0


def _box(mask: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    (top, bottom), (left, right) = (_ends(np.asarray(mask.any(axis))) for axis in (1, 0))
    beside, above = SIDEWAYS * (right - left), ENDS * (bottom - top)
    left, right = (max(left - beside, 0) * width, min(right + beside, 1) * width)
    top, bottom = (max(top - above, 0) * height, min(bottom + above, 1) * height)
    # To the nearest pixel, so that rounding does not widen every box.
    return round(left), round(top), round(right), round(bottom)


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """Where the first true value begins and the last ends, as shares of the length."""
    found = np.flatnonzero(profile)
    return float(found[0]) / len(profile), float(found[-1] + 1) / len(profile)


def cut(gray: np.ndarray, lungs: Lungs, what: What) -> np.ndarray:
    """The box of a film at the film's own scale; with ``mask`` black outside the lungs, which are dilated. A film whose
    mask is implausible stays whole.

    Args:
      gray: uint8 ``[H, W]``, of which ``lungs`` were found.
      lungs: see ``find``.
      what: ``crop`` or ``mask``.
    """
    left, top, right, bottom = lungs.box
    part = gray[top:bottom, left:right]
    if what == "crop" or lungs.flag:
        return part
    return np.where(shown(lungs, *gray.shape), part, np.uint8(0))


def shown(lungs: Lungs, height: int, width: int) -> np.ndarray:
    """Which pixels of the box a blanked film of the given size shows, bool ``[bottom - top, right - left]``."""
    steps = round(len(lungs.mask) * DILATION)
    mask = _ndimage().binary_dilation(lungs.mask, iterations=steps) if steps else lungs.mask
    return enlarged(np.asarray(mask), height, width, lungs.box)


def enlarged(mask: np.ndarray, height: int, width: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A mask ``[N, N]`` at the scale of a film, bilinear: bool ``[height, width]``, or the part in a box of the film."""
    left, top, right, bottom = box or (0, 0, width, height)
    side = len(mask)
    region = (left * side / width, top * side / height, right * side / width, bottom * side / height)
    white = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(white.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=region)) >= 128


def square(gray: np.ndarray) -> np.ndarray:
    """Black beside a film or above and below it, so that a square keeps its aspect: uint8 ``[H, W]`` → ``[S, S]``."""
    height, width = gray.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(gray, ((top, side - height - top), (left, side - width - left)))


def framed(gray: np.ndarray, lungs: Lungs, what: What) -> np.ndarray:
    """The square that a classifier sees, at the film's own scale: uint8 ``[H, W]`` → ``[S, S]``.

    ``crop``: the box in the middle of a square window of the film, ``CONTEXT`` wider on every side, moved into the film
    where it reaches out of it, with black only where the film is smaller than the window. ``mask``: the box, black outside
    the lungs. A film whose mask is implausible: the whole of it. For the arguments see ``cut``.
    """
    if what == "mask" or lungs.flag:
        return square(cut(gray, lungs, what))
    left, top, right, bottom = lungs.box
    side = round(max(bottom - top, right - left) * (1 + 2 * CONTEXT))
    height, width = gray.shape
    return square(gray[_stretch(top, bottom, side, height), _stretch(left, right, side, width)])


def _stretch(first: int, last: int, side: int, length: int) -> slice:
    """Of a length, the part of a given size around another, or all of it."""
    start = min(max((first + last - side) // 2, 0), max(length - side, 0))
    return slice(start, min(start + side, length))


class Seen(NamedTuple):
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
    seen: Seen
    small: np.ndarray | None
    """uint8 ``[N, N, 1]``, for the segmenter."""


def seen(
    paths: Sequence[Source],
    segmenter: Segmenter,
    *,
    at_least: int | None = None,
    invert: radiograph.Invert = "auto",
    workers: int | None = None,
    digest: bool = False,
    limits: Limits = Limits(),
) -> Iterator[Seen]:
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
    job = Job(None, at_least, segmenter.size, invert=invert, digest=digest, limits=limits)
    jobs = (partial(_decode, reading.loaded(path, limits), job) for path in paths)
    batch_size = min(BATCH, max(len(paths), 1))
    group: list[_Decoded] = []
    for decoded in reading.in_order(jobs, workers=workers, ahead=BATCH):
        group.append(decoded)
        if len(group) == batch_size:
            yield from _segment(group, segmenter, batch_size)
            group = []
    yield from _segment(group, segmenter, batch_size)


def _decode(source: Source | archives.Loaded, job: Job) -> _Decoded:
    found = reading.decoded(source, job)
    gray, small = found.arrays or (None, None)
    film = Seen(os.fspath(source), gray, None, found.error, found.remark, found.sha256, found.seconds, 0.0)
    return _Decoded(film, None if small is None else small[..., None])


def _segment(group: list[_Decoded], segmenter: Segmenter, batch_size: int) -> Iterator[Seen]:
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
        lungs = find(next(masks), *film.gray.shape)
        yield film._replace(lungs=lungs, lungs_seconds=each + time.perf_counter() - start)


def films(
    paths: Sequence[Source],
    preprocess: Preprocess,
    segmenter: Segmenter,
    *,
    workers: int | None = None,
    digest: bool = True,
    limits: Limits = Limits(),
) -> Iterator[Film]:
    """``reading.films`` for ``preprocess.lungs`` other than ``none``: the lungs as ``framed`` shows them, resized."""
    # A box has at least a third of the film's sides or so: four times the size leaves more than is wanted.
    side, invert = 4 * preprocess.image_size, preprocess.invert
    found = seen(paths, segmenter, at_least=side, invert=invert, workers=workers, digest=digest, limits=limits)
    jobs = (partial(_finished, film, preprocess) for film in found)
    return reading.in_order(jobs, workers=workers, ahead=BATCH)


def _finished(film: Seen, preprocess: Preprocess) -> Film:
    if film.gray is None or film.lungs is None or preprocess.lungs == "none":
        return Film(film.path, None, film.error, film.remark, film.sha256, film.decode_seconds)
    start = time.perf_counter()
    image = radiograph.resize(framed(film.gray, film.lungs, preprocess.lungs), preprocess.image_size)[..., None]
    seconds = film.lungs_seconds + time.perf_counter() - start
    done = WHOLE + film.lungs.flag if film.lungs.flag else preprocess.lungs
    return Film(film.path, image, "", film.remark, film.sha256, film.decode_seconds, lungs=done, lungs_seconds=seconds)
