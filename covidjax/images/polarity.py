"""Whether an X-ray is a negative: bone dark, air bright, as some devices store them and many headers wrongly claim.

The X-ray is looked for within its page first: white slides, black margins and collimation say nothing of it, since a
positive on a white page is the negative of a negative with black margins. What is left, with the page painted in its mean
gray, goes at 16 × 16 pixels of mean 0 and deviation 1 through a network of one hidden layer without biases. So an image and
its negative have the same score but for the sign, exactly, and being sure of one is being sure of the other.
``python -m bench.polarity FOLDER...`` fits the bundled weights and prints how they do on patients they were not fitted to.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

Polarity = Literal["positive", "negative", "unsure"]
"""``unsure`` of what is no frontal chest X-ray, too small a part of one, or of too little contrast."""

REMARKS: dict[Polarity, str] = {
    "positive": "",
    "negative": "a negative, turned into a positive",
    "unsure": "unsure whether it is a negative, left as it is",
}
"""What is said of an image that was judged."""

SIDE = 16
"""Height and width in pixels at which X-rays are judged."""

SURE = 2.0
"""How far from zero a score is that counts."""

WEIGHTS = Path(__file__).parents[1] / "weights" / "polarity.safetensors"

_GRID, _SAMPLES = 64, 4
"""Cells a side in which the X-ray is looked for, and samples a side of which a cell is the mean."""

_SMALLEST = 10
"""Fewest cells a side of an X-ray that can be judged."""

_NARROW = 2 / 3
"""Width by height below which an X-ray may be half a chest; one of 8,788 X-rays of six sources is below 0.7."""

_TOLERANCE = (3.0, 12.0)
"""Grays by which a page may differ from its median, at least and at most: JPEG and scanners leave it uneven."""

_UNIFORM = 0.85
"""Share of an outermost row or column that has one gray, if it is of a page; the rest is for text on it."""

_KEPT_DARK = 0.1
"""Least share of a negative that is a dark page, if that is to stay dark."""


class _Content(NamedTuple):
    """The X-ray within its page."""

    box: tuple[int, int, int, int]
    """Left, upper, right and lower edge in cells."""
    page: np.ndarray
    """bool ``[_GRID, _GRID]``: what is no X-ray, also within the box."""


def judge(gray: Image.Image) -> Polarity:
    """The polarity of an image in mode ``L``; with ``255 - gray``, positive and negative change places."""
    value = score(gray)
    if abs(value) < SURE:
        return "unsure"
    return "positive" if value > 0 else "negative"


def to_positive(gray: Image.Image) -> Image.Image:
    """A negative in mode ``L`` as a positive: all of it inverted, or its X-ray only where a dark page is around it."""
    inverted = ImageOps.invert(gray)
    box = content_box(gray)
    inside = np.asarray(gray.crop(box))
    count = gray.width * gray.height - inside.size
    if count < _KEPT_DARK * gray.width * gray.height:
        return inverted
    if np.asarray(gray).sum(dtype=np.int64) - inside.sum(dtype=np.int64) >= 127.5 * count:
        return inverted
    positive = gray.copy()
    positive.paste(inverted.crop(box), box)
    return positive


def content_box(gray: Image.Image) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge in pixels of the X-ray in an image in mode ``L``, without its page and margins."""
    (left, upper, right, lower), _ = _within_page(_samples(gray))
    pixels = np.asarray(gray)
    rows = pixels[:, left * gray.width // _GRID : -(-right * gray.width // _GRID)]
    columns = pixels[upper * gray.height // _GRID : -(-lower * gray.height // _GRID)].T
    return _edge(columns, left), _edge(rows, upper), _edge(columns, right), _edge(rows, lower)


def contrast(gray: Image.Image) -> float:
    """Standard deviation, in gray levels, of an image in mode ``L`` at ``SIDE`` × ``SIDE`` pixels."""
    part = _GRID // SIDE
    return float(np.std(_cells(_samples(gray)).reshape(SIDE, part, SIDE, part).mean((1, 3))))


def score(gray: Image.Image) -> float:
    """About the logarithm of the odds that an image in mode ``L`` is a positive; around 0 for what is no chest X-ray."""
    return score_of(features(gray), *_weights())


def score_of(views: np.ndarray, hidden: np.ndarray, output: np.ndarray) -> float:
    """Of the views ``[V, F]`` of one image, by weights ``[F, H]`` and ``[H]``. At most two of three are of a chest."""
    if not len(views):
        return 0.0
    scores = np.tanh(views @ hidden) @ output
    return float(scores.mean() * min(len(views), 2))


def features(gray: Image.Image) -> np.ndarray:
    """An image in mode ``L`` → float32 ``[views, SIDE · SIDE]``, each of mean 0 and deviation 1.

    One view is the X-ray. A narrow one may be half a chest, and has two more: with itself mirrored at its left and at its
    right edge, one of which makes it whole. What is too small to be judged has none.
    """
    samples = _samples(gray)
    cells, ((left, upper, right, lower), page) = _cells(samples), _within_page(samples)
    cells, page = cells[upper:lower, left:right], page[upper:lower, left:right]
    if min(cells.shape) < _SMALLEST or page.all():
        return np.zeros((0, SIDE * SIDE), np.float32)
    if page.any():
        cells = np.where(page, cells[~page].mean(), cells)
    views = [_scaled(cells)]
    if cells.shape[1] * gray.width < _NARROW * cells.shape[0] * gray.height:
        mirrored = cells[:, ::-1]
        views += [_scaled(np.concatenate(pair, axis=1)) for pair in ((mirrored, cells), (cells, mirrored))]
    return np.stack(views)


def _scaled(cells: np.ndarray) -> np.ndarray:
    small = np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()
    small = small - small.mean()
    return small / max(small.std(), np.float32(1e-3))


def _samples(gray: Image.Image) -> np.ndarray:
    """uint8 ``[_GRID · _SAMPLES, _GRID · _SAMPLES]``, which all else is computed from.

    Samples and not averages of all pixels: exactly those of the negative with the other sign, and as fast for any size.
    """
    side = _GRID * _SAMPLES
    return np.asarray(gray.resize((side, side), Image.Resampling.NEAREST))


def _cells(samples: np.ndarray) -> np.ndarray:
    """The mean of each cell, float32 ``[_GRID, _GRID]`` from -127.5 to 127.5."""
    rows = samples.reshape(_GRID, _SAMPLES, -1).sum(axis=1, dtype=np.uint16)
    sums = rows.reshape(_GRID, _GRID, _SAMPLES) @ np.ones(_SAMPLES, np.float32)
    return sums / _SAMPLES**2 - np.float32(127.5)


def _within_page(samples: np.ndarray) -> _Content:
    """Where the X-ray is. Lines of text are gray by the means of cells, as an X-ray is, and as the page by what most of a
    cell is: of the samples above each other the two in the middle, and of those beside each other likewise."""
    content = _content(_cells(samples))
    if not content.page.any():
        return content
    columns = _middle([samples[row::_SAMPLES] for row in range(_SAMPLES)])
    middle = [_middle([part[:, column::_SAMPLES] for column in range(_SAMPLES)]) for part in columns]
    medians = sum(part.astype(np.float32) for pair in middle for part in pair) / 4
    return _content(np.asarray(medians) - np.float32(127.5))


def _middle(four: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The second and the third of four values, element by element, in any order."""
    a, b, c, d = four
    return np.maximum(np.minimum(a, b), np.minimum(c, d)), np.minimum(np.maximum(a, b), np.maximum(c, d))


def _content(cells: np.ndarray) -> _Content:
    """Takes page after page away, such as a white slide and then black collimation, until no side is of one gray."""
    left, upper, right, lower = 0, 0, cells.shape[1], cells.shape[0]
    page = np.zeros(cells.shape, bool)
    while (margin := _page(cells[upper:lower, left:right])) is not None:
        page[upper:lower, left:right] |= margin
        rows, columns = np.flatnonzero(~margin.all(1)), np.flatnonzero(~margin.all(0))
        left, right = left + int(columns[0]), left + int(columns[-1]) + 1
        upper, lower = upper + int(rows[0]), upper + int(rows[-1]) + 1
        if min(right - left, lower - upper) < _SMALLEST:
            break
    return _Content((left, upper, right, lower), page)


def _page(cells: np.ndarray) -> np.ndarray | None:
    """Where the cells are of a page around an X-ray, or of what else is on the page; None if there is no such page.

    A page touches the border and is of the gray of the border. The X-ray is the largest thing on it; text and lines are
    too thin to be one, and icons are much smaller. Something half as large as the largest can be a part of the X-ray
    that the page's gray cuts in two.
    """
    tolerance = np.clip(cells.std() / 4, *_TOLERANCE)
    for line in (cells[:, 0], cells[0], cells[:, -1], cells[-1]):
        ordered = np.sort(line)
        median = (ordered[(line.size - 1) // 2] + ordered[line.size // 2]) / 2
        if (np.abs(line - median) <= tolerance).mean() < _UNIFORM:
            continue
        parts, count = _parts(np.abs(cells - median) <= tolerance)
        outer = np.zeros(count + 1, bool)
        outer[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = True
        outer[0] = False
        page = outer[parts]
        parts, count = _parts(_eroded(~page))
        if not count:
            continue
        areas = np.bincount(parts.ravel())
        areas[0] = 0
        page |= _eroded((areas < areas.max() / 2)[parts])
        if page[0].all() or page[-1].all() or page[:, 0].all() or page[:, -1].all():
            return page
    return None


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The cells whose eight neighbours are all set; beyond the border all is."""
    rows = mask.copy()
    rows[1:] &= mask[:-1]
    rows[:-1] &= mask[1:]
    both = rows.copy()
    both[:, 1:] &= rows[:, :-1]
    both[:, :-1] &= rows[:, 1:]
    return both


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected parts of a mask numbered from 1, 0 elsewhere; and how many there are.

    As ``scipy.ndimage.label``, which takes longer to import than a decoder takes for its first ten images.
    """
    edges = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    rows, firsts = (places.tolist() for places in np.nonzero(edges == 1))
    lasts = np.nonzero(edges == -1)[1].tolist()
    part, above = list(range(len(rows))), 0  # of each run of a row, an earlier run of the same part, or itself

    def root(run: int) -> int:
        while part[run] != run:
            run = part[run]
        return run

    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and lasts[above] <= firsts[run]):
            above += 1
        other = above
        while rows[other] == row - 1 and firsts[other] < lasts[run]:
            part[root(run)] = root(other)
            other += 1
    number, parts = {}, np.zeros(mask.shape, np.intp)
    for run, row in enumerate(rows):
        parts[row, firsts[run] : lasts[run]] = number.setdefault(root(run), len(number) + 1)
    return parts, len(number)


def _edge(lines: np.ndarray, cell: int) -> int:
    """Of lines of pixels, the one before which they change most, within a cell of the beginning of that cell."""
    count = len(lines)
    if cell in (0, _GRID):
        return count if cell else 0
    first, last = max((cell - 1) * count // _GRID - 1, 0), min(-(-(cell + 1) * count // _GRID) + 1, count)
    steps = np.abs(np.diff(lines[first:last].astype(np.int16), axis=0)).mean(axis=1)
    return first + 1 + int(steps.argmax())


@functools.cache
def _weights() -> tuple[np.ndarray, np.ndarray]:
    from safetensors.numpy import load_file

    weights = load_file(WEIGHTS)
    return weights["hidden"], weights["output"]
