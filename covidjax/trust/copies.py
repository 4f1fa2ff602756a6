"""Copies of images: re-encoded, resized, brighter or darker, mirrored, or cropped by a few percent.

``data.duplicates`` knows copies by a hash of the whole image, which a crop changes. Here every image is compared with
sixteen windows of every other one, and the nearest are laid over each other: left, right, top and bottom of the window move
until the images fit best (Gauss-Newton on the normalized correlation; Lucas and Kanade 1981). What is a copy fits in its
details, and without any rotation. A second exposure of the same patient never does: nobody stands twice at the same angle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

COARSE, FINE = 64, 128
"""Pixels of a side that images are laid over each other with, first roughly, then in detail."""

VIEW = 24
"""Pixels of a side of a window that is compared."""

CUTS = ((0.0, 1.0), (0.05, 1.0), (0.0, 0.95), (0.05, 0.95))
"""First and last edge of the windows on each axis, as shares of the image."""

WINDOWS = np.asarray([(*across, *down) for down in CUTS for across in CUTS], np.float32)
"""Left, right, top and bottom of the sixteen windows, float32 ``[16, 4]``."""

COMPONENTS, NEIGHBOURS = 64, 3
"""Principal components that windows are compared by, and the nearest images of each that are looked at."""

NEAR = 0.65
"""Least cosine of two windows' components for a closer look. Of 1,124 images of Ozturk's set the nearest of another patient
has 0.60 in the middle, 0.70 at nine in ten; copies have at least 0.74."""

ALIKE = 0.72
"""Least correlation of the coarse images. Of 580 copies of real X-rays the lowest had 0.86 (both sides cut by 5 %, JPEG of
quality 30); of the 4,262 X-rays of three collections no pair of different patients that is no copy has more than 0.81."""

SAME, SAME_SMALL = 0.84, 0.94
"""Least correlation of the fine images of ``FINE`` pixels a side, and of ``COARSE`` pixels, which have few details to
differ in; between them it is interpolated. Of 400 copies the lowest had 0.85 and 0.95. Two exposures of one patient have at
most 0.64, two patients 0.37; of synthetic X-rays, which are more alike, two exposures of one patient without a rotation
between them rarely have more than 0.83 and 0.94."""

MOST = 0.12
"""How far an image may reach out of the other, as a share of its side."""

MOST_ROTATION = 0.06
"""Degrees. Copies have at most 0.05, two synthetic exposures with a correlation of 0.7 or more mostly 0.2 to 1."""

_BLOCK, _STEPS = 256, 8


class Copy(NamedTuple):
    """Two images, by row, the first of which shows nothing but what the second shows."""

    first: int
    second: int
    correlation: float
    """Of their details, laid over each other."""
    mirrored: bool


def find_copies(images: np.ndarray) -> list[Copy]:
    """The pairs of images that are copies of each other, the surest first. It takes time as N²: about 40 s on a core for
    4,600 images.

    Args:
      images: uint8 ``[N, S, S]``, at least 32 pixels a side. Of many copies of one image each is paired with some others.
    """
    if len(images) < 2:
        return []
    rough = _resized(images, min(COARSE, images.shape[1]))
    detail = _normalized(rough, 3.0)
    same = np.interp(images.shape[1], (COARSE, FINE), (SAME_SMALL, SAME))
    copies: dict[tuple[int, int], Copy] = {}
    for rows in _blocks(_candidates(rough)):
        first, second, window, mirrored = (np.asarray(column) for column in zip(*rows, strict=True))
        queries = _flipped(detail[first], mirrored)
        fits, correlation = _register(queries, detail[second], WINDOWS[window])
        good = correlation >= ALIKE
        first, second, mirrored = first[good], second[good], mirrored[good]
        correlations, rotations = _fine(_flipped(images[first], mirrored), images[second], fits[good])
        for a, b, flip, value, degrees in zip(first, second, mirrored, correlations, rotations, strict=True):
            key = (min(int(a), int(b)), max(int(a), int(b)))
            is_copy = value >= same and abs(degrees) <= MOST_ROTATION
            if is_copy and (key not in copies or copies[key].correlation < value):
                copies[key] = Copy(int(a), int(b), float(value), bool(flip))
    return sorted(copies.values(), key=lambda copy: -copy.correlation)


def _blocks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _flipped(images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    return np.where(mirrored[:, None, None], images[:, :, ::-1], images)


def _sampling(side: int, count: int, first: float, last: float) -> np.ndarray:
    """Weights that resample ``side`` pixels from one share of an axis to another to ``count`` pixels, bilinear with
    antialiasing: float32 ``[count, side]``."""
    step = (last - first) * side / count
    centres = first * side + (np.arange(count) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(side) + 0.5 - centres[:, None]) / max(step, 1))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """``[N, S, S]`` → float32 ``[N, size, size]``."""
    weights = _sampling(images.shape[1], size, 0, 1)
    # As float32 before the product, which else does without BLAS.
    parts = [weights @ images[row : row + _BLOCK].astype(np.float32) @ weights.T for row in range(0, len(images), _BLOCK)]
    return np.concatenate(parts)


def _normalized(images: np.ndarray, sigma: float) -> np.ndarray:
    """Images less their local mean, divided by their local deviation, which takes out brightness, contrast and slow changes
    of both: ``[N, S, S]`` → float32."""
    from scipy.ndimage import gaussian_filter1d

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter1d(gaussian_filter1d(values, sigma, axis=1, mode="nearest"), sigma, axis=2, mode="nearest")

    parts = []
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK].astype(np.float32)
        difference = block - blur(block)
        parts.append(np.clip(difference / np.sqrt(blur(difference**2) + 4), -4, 4))
    return np.concatenate(parts)


def _candidates(images: np.ndarray) -> list[tuple[int, int, int, bool]]:
    """For each image, and its mirror image, the images with the windows nearest to it: row, row, window, mirrored."""
    smooth = _normalized(images, 5.3)
    side, count = images.shape[1], len(images)
    across = [_sampling(side, VIEW, *cut) for cut in CUTS]

    def centred(views: np.ndarray) -> np.ndarray:
        flat = views.reshape(*views.shape[:-2], -1)
        return flat - flat.mean(-1, keepdims=True)

    views = centred(np.stack([down @ smooth @ beside.T for down in across for beside in across], 1))
    mean = views[:, 0].mean(0)
    values, vectors = np.linalg.eigh(np.cov((views[:, 0] - mean).T))
    values, vectors = values[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
    whiten = (vectors / np.sqrt(values + 0.02 * values[0] + 1e-6)).astype(np.float32)

    def described(flat: np.ndarray) -> np.ndarray:
        components = (flat - mean) @ whiten
        return components / np.maximum(np.linalg.norm(components, axis=-1, keepdims=True), 1e-6)

    windows = described(views).reshape(count * len(WINDOWS), -1)
    mirrored = centred(across[0] @ smooth[:, :, ::-1] @ across[0].T)
    nearest = min(NEIGHBOURS, count - 1)
    found = []
    for flip, queries in ((False, described(views[:, 0])), (True, described(mirrored))):
        for start in range(0, count, _BLOCK):
            similar = (queries[start : start + _BLOCK] @ windows.T).reshape(-1, count, len(WINDOWS))
            best, rows = similar.max(-1), np.arange(start, min(start + _BLOCK, count))
            best[np.arange(len(rows)), rows] = -1
            others = np.argpartition(-best, nearest - 1, axis=1)[:, :nearest]
            found += [
                (int(row), int(other), int(similar[index, other].argmax()), flip)
                for index, row in enumerate(rows)
                for other in others[index]
                if best[index, other] >= NEAR
            ]
    return found


def _cut(images: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """A window of each image at the image's own size, bilinear: ``[M, S, S]`` and ``[M, 4]`` → ``[M, S, S]``."""
    side = images.shape[1]
    grid = (np.arange(side) + 0.5) / side
    for axis, (first, last) in ((2, (0, 1)), (1, (2, 3))):
        place = (windows[:, first, None] + (windows[:, last] - windows[:, first])[:, None] * grid) * side - 0.5
        place = np.clip(place, 0, side - 1.001)
        whole = place.astype(int)
        shape = (len(images), 1, side) if axis == 2 else (len(images), side, 1)
        part = (place - whole).astype(np.float32).reshape(shape)
        low, high = (np.take_along_axis(images, (whole + more).reshape(shape), axis) for more in (0, 1))
        images = low * (1 - part) + high * part
    return images


def _standardized(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image with mean 0 and length 1, ``[M, S · S]``, and its length before, ``[M]``."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.maximum(np.linalg.norm(flat, axis=1), 1e-6)
    return flat / length[:, None], length


def _directions(images: np.ndarray, standard: np.ndarray, length: np.ndarray, rotation: bool) -> np.ndarray:
    """How a standardized image changes with each edge of its window and, where asked for, with its angle in radians:
    ``[M, 4 or 5, S · S]``."""
    side = images.shape[1]
    down, across = np.gradient(images, axis=1) * side, np.gradient(images, axis=2) * side
    grid = ((np.arange(side) + 0.5) / side).astype(np.float32)
    moves = [across * (1 - grid), across * grid, down * (1 - grid)[:, None], down * grid[:, None]]
    if rotation:
        moves.append(down * (grid - 0.5) - across * (grid - 0.5)[:, None])
    jacobian = np.stack(moves, 1).reshape(len(images), len(moves), -1) / length[:, None, None]
    jacobian -= jacobian.mean(2, keepdims=True)
    return jacobian - (jacobian @ standard[:, :, None]) * standard[:, None]


def _solve(jacobian: np.ndarray, rest: np.ndarray) -> np.ndarray:
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    damping = 1e-4 * np.trace(normal, axis1=1, axis2=2) + 1e-9
    normal += damping[:, None, None] * np.eye(normal.shape[1], dtype=normal.dtype)
    return np.linalg.solve(normal, jacobian @ rest[:, :, None])[..., 0]


def _register(
    queries: np.ndarray, images: np.ndarray, windows: np.ndarray, steps: int = _STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """The window of each image that fits its query best, and the correlation there.

    Args:
      queries: float32 ``[M, S, S]``.
      images: likewise.
      windows: to begin with, ``[M, 4]``.
      steps: of Gauss-Newton.
    """
    target, _ = _standardized(queries)
    best, correlation = windows.copy(), np.full(len(queries), -1, np.float32)
    for step in range(steps + 1):
        cut = _cut(images, windows)
        standard, length = _standardized(cut)
        value = (standard * target).sum(1)
        better = value > correlation
        best[better], correlation[better] = windows[better], value[better]
        if step == steps:
            break
        scale = np.stack([windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2]], 1).repeat(2, 1)
        jacobian = _directions(cut, standard, length, rotation=False) / scale[:, :, None]
        move = _solve(jacobian, target - standard * value[:, None]) / np.maximum(value, 0.3)[:, None]
        windows = np.clip(windows + np.clip(move, -0.03, 0.03), (-MOST, 0.8, -MOST, 0.8), (0.2, 1 + MOST, 0.2, 1 + MOST))
        windows = windows.astype(np.float32)
    return best, correlation


def _fine(queries: np.ndarray, images: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of the details of images that were laid over each other, and the rotation in degrees that would make
    it greater still; for the arguments see ``_register``."""
    if not len(queries):
        return np.zeros(0), np.zeros(0)
    size = min(FINE, images.shape[1])
    queries, images = (_resized(part, size) for part in (queries, images))
    # Only what both show is compared: where lungs were cut out, neither need show all that the other does.
    first, last = windows[:, (0, 0, 2, 2)], windows[:, (1, 1, 3, 3)]
    both = np.clip((np.asarray((0, 1, 0, 1)) - first) / (last - first), 0, 1).astype(np.float32)
    queries, images = (_normalized(_cut(*part), 2.0) for part in ((queries, both), (images, np.clip(windows, 0, 1))))
    windows, correlation = _register(queries, images, np.tile(WINDOWS[0], (len(queries), 1)), steps=4)
    (target, _), cut = _standardized(queries), _cut(images, windows)
    standard, length = _standardized(cut)
    jacobian = _directions(cut, standard, length, rotation=True)
    angle = _solve(jacobian, target - standard * correlation[:, None])[:, 4] / np.maximum(correlation, 0.3)
    return correlation, np.degrees(angle)
