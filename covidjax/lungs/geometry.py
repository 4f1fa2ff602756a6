"""Lungs on an X-ray: from a segmenter's mask to the box of both, a crop, a blanked image, or the reason not to trust it.

Nothing here computes masks, so this is geometry alone: a perfect mask gives the exact answer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

Framing = Literal["crop", "mask"]

SIDEWAYS, ENDS = 0.03, 0.08
"""The margin around the box of both masks, as shares of its width, left and right, and of its height, above and below. What
radiologists box is larger than what is masked: on V7's own masks these margins come closest to their boxes."""

CONTEXT = 0.2
"""What a classifier sees around the box in a crop, as a share of its longer side, on every side. Cut to the box itself a
classifier loses what lies around the lungs; docs/lungs.md has the figures."""

DILATION = 1 / 64
"""How far outside the mask a blanked image is still shown, as a share of its sides: the pleura lies on the edge."""

SMALLEST, LARGEST = 0.06, 0.70
"""Least and greatest share of the image that both lungs take; in the masks of Montgomery, Shenzhen and V7 0.08 to 0.62."""

SECOND = 0.2
"""Least area of the smaller lung, as a share of the larger one's. 0.10 to 1.00 in those masks, one of 1,122 below 0.2."""

CUT_OFF = 1.0
"""Most of the image's edge that the lungs touch, the shares of the four sides added up; at most 0.82 in those masks."""

UNSURE = 0.4
"""Most pixels whose probability lies between 0.2 and 0.8, as a share of the mask. An outline has some, 0.1 on most images
and 0.23 on all but one in a hundred; where no chest is to be seen it is mostly more than 0.4."""


class Lungs(NamedTuple):
    """The lungs on one image."""

    box: tuple[int, int, int, int]
    """Left, top, right and bottom of both lungs with the margin, in pixels of the image, right and bottom exclusive; the
    whole image where there is a flag."""
    share: float
    """Of the image's area that the mask takes."""
    flag: str
    """Why the mask is implausible; empty where it is not."""
    mask: np.ndarray
    """bool ``[N, N]``: the two largest pieces, their holes filled."""


def find_lungs(probabilities: np.ndarray, height: int, width: int) -> Lungs:
    """Box and plausibility of a mask.

    Args:
      probabilities: ``[N, N]``, as a segmenter gives them; above a half is lung.
      height: of the image in pixels.
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
    """Imported here: that takes up to half a second, and scoring whole images does without."""
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
    if not _has_two_lungs(mask):
        return "one lung"
    if unsure > UNSURE:
        return "outline unsure"
    if sum(edge.mean() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) > CUT_OFF:
        return "lungs out of frame"
    return ""


def _has_two_lungs(mask: np.ndarray) -> bool:
    """Whether the second largest piece has at least ``SECOND`` of the largest's area. Lungs that touch are separated by
    eroding the mask, by up to a thirty-second of its side."""
    for _ in range(max(len(mask) // 32, 1) + 1):
        areas = np.sort(_pieces(mask)[1])[::-1]
        if len(areas) > 1 and areas[1] >= SECOND * areas[0]:
            return True
        mask = np.asarray(_ndimage().binary_erosion(mask))
    return False


def _box(mask: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = np.asarray(Image.fromarray(mask).getbbox()) / len(mask)
    beside, above = SIDEWAYS * (right - left), ENDS * (bottom - top)
    left, right = (max(left - beside, 0) * width, min(right + beside, 1) * width)
    top, bottom = (max(top - above, 0) * height, min(bottom + above, 1) * height)
    # To the nearest pixel, so that rounding does not widen every box.
    return round(left), round(top), round(right), round(bottom)


def crop_to_box(gray: np.ndarray, lungs: Lungs, framing: Framing) -> np.ndarray:
    """The box of an image at the image's own scale; with ``mask`` black outside the lungs, which are dilated. An image
    whose mask is implausible stays whole.

    Args:
      gray: uint8 ``[H, W]``, on which ``lungs`` were found.
      lungs: see ``find_lungs``.
      framing: ``crop`` or ``mask``.
    """
    left, top, right, bottom = lungs.box
    part = gray[top:bottom, left:right]
    if framing == "crop" or lungs.flag:
        return part
    return np.where(visible_pixels(lungs, *gray.shape), part, np.uint8(0))


def visible_pixels(lungs: Lungs, height: int, width: int) -> np.ndarray:
    """Which pixels of the box a blanked image of the given size shows, bool ``[bottom - top, right - left]``."""
    steps = round(len(lungs.mask) * DILATION)
    mask = _ndimage().binary_dilation(lungs.mask, iterations=steps) if steps else lungs.mask
    return resize_mask(np.asarray(mask), height, width, lungs.box)


def resize_mask(mask: np.ndarray, height: int, width: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A mask ``[N, N]`` at the scale of an image, bilinear: bool ``[height, width]``, or the part in a box of the image."""
    left, top, right, bottom = box or (0, 0, width, height)
    side = len(mask)
    region = (left * side / width, top * side / height, right * side / width, bottom * side / height)
    white = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(white.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=region)) >= 128


def pad_to_square(gray: np.ndarray) -> np.ndarray:
    """Black beside an image or above and below it, so that a square keeps its aspect: uint8 ``[H, W]`` → ``[S, S]``."""
    height, width = gray.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(gray, ((top, side - height - top), (left, side - width - left)))


def frame_lungs(gray: np.ndarray, lungs: Lungs, framing: Framing) -> np.ndarray:
    """The square that a classifier sees, at the image's own scale: uint8 ``[H, W]`` → ``[S, S]``.

    ``crop``: the box in the middle of a square window of the image, ``CONTEXT`` wider on every side, moved into the image
    where it reaches out of it, with black only where the image is smaller than the window. ``mask``: the box, black outside
    the lungs. An image whose mask is implausible: the whole of it. For the arguments see ``crop_to_box``.
    """
    if framing == "mask" or lungs.flag:
        return pad_to_square(crop_to_box(gray, lungs, framing))
    left, top, right, bottom = lungs.box
    side = round(max(bottom - top, right - left) * (1 + 2 * CONTEXT))
    height, width = gray.shape
    return pad_to_square(gray[_window(top, bottom, side, height), _window(left, right, side, width)])


def _window(first: int, last: int, side: int, length: int) -> slice:
    """The slice of an axis of ``length`` pixels, ``side`` long and centred on ``first:last``, moved inside the axis."""
    start = min(max((first + last - side) // 2, 0), max(length - side, 0))
    return slice(start, min(start + side, length))
