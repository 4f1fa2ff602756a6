"""From stored values to gray of 8 bits, the same way for every file.

The steps are those of DICOM's grayscale pipeline (PS3.4, N.2), which other formats have a part of:

    stored value → modality (rescaling or table) → value of interest (window or table) → polarity → 0 to 255

A step that the file says nothing of is left out. Without a window the values of at most 8 bits are shown over the whole
range of their bits, since that is how they were meant to be shown; of deeper ones, and of floats, the range that the
image's own values take is shown, by percentiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from covidjax.errors import ImageError
from covidjax.images.lookup import Table

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour (ITU-R BT.601), which Pillow takes too."""

FULL_RANGE_BITS = 8
"""Most bits of values that are shown over the range of their bits where nothing says otherwise."""

CORE, MARGIN = 2.0, 0.5
"""Without a window the shown range is that of the values which lie beyond the middle ones, those without ``CORE`` percent
at each end, by at most this share of their range. Hot pixels, dead rows, frames and markers take up to so many percent, and
may lie far from all that is an X-ray."""

OUTLIERS = 0.3
"""Most values at an end that are left out of the shown range for lying far from all others."""

FEWEST_LEVELS = 8
"""Values that lie within fewer gray levels than that are no image, but noise."""

_SAMPLE = 2**15
"""Values that are looked at for percentiles."""

_TABLE_RANGE = 2**16
"""Most stored values for which each step is taken once a value, and not once a pixel."""


class Linear(NamedTuple):
    """Rescaling: ``slope · value + intercept``."""

    slope: float
    intercept: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values * self.slope + self.intercept


class Window(NamedTuple):
    """A window (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values → 0 to 1."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
        # LINEAR counts whole values, and says nothing of windows narrower than one of them.
        if self.function == "LINEAR" and width >= 1:
            center, width = center - 0.5, width - 1
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


class ImageInfo(NamedTuple):
    """What a file's own header says of its image, before anything is made smaller or turned."""

    width: int
    """In pixels."""
    height: int
    bits: int
    """Of a stored value; 0 for floats."""


NO_INFO = ImageInfo(0, 0, 0)


@dataclass
class Samples:
    """Stored values of an image, and what its file says of them."""

    values: np.ndarray
    """Numbers ``[H, W]``, or ``[H, W, C]``: gray and alpha, RGB, RGB and alpha. A fresh or a read-only array."""
    bits: int
    """Of each value; 0 where nobody knows, as of floats."""
    format: str = ""
    """Of the file, for the reader: PNG, DICOM, …"""
    info: ImageInfo = NO_INFO
    """Told by ``values`` and ``bits`` unless given."""
    modality: Linear | Table | None = None
    voi: Window | Table | None = None
    display: bool = False
    """Whether values of more than 8 bits too are meant to be shown over the whole range of their bits."""
    inverse: bool = False
    """Whether the least value is the brightest."""
    padding: tuple[int, int] | None = None
    """Least and greatest of the stored values that stand for no pixel, which are black."""
    aspect: float = 1.0
    """Height of a pixel divided by its width."""
    orientation: int = 1
    """As EXIF counts them."""
    warnings: list[str] = field(default_factory=list)
    """What speaks against relying on the image."""

    def __post_init__(self) -> None:
        height, width = self.values.shape[:2]
        self.info = ImageInfo(width, height, self.bits) if self.info == NO_INFO else self.info


class Gray(NamedTuple):
    """An image to look at."""

    pixels: np.ndarray
    """uint8 ``[H, W]``, upright, of square pixels."""
    flat: bool
    """Whether it has next to no contrast, however much was made of it."""


def to_gray(samples: Samples) -> Gray:
    """Take all steps.

    Raises:
      ImageError: values that are no numbers.
    """
    if samples.values.dtype.kind == "f" and not np.isfinite(samples.values).all():
        raise ImageError("has pixels that are no numbers")
    values = brightness(samples.values, samples.bits)
    plain = not (samples.modality or samples.voi or samples.inverse or samples.padding)
    flat = False
    if plain and samples.bits == 8 and values.dtype == np.uint8:
        pixels = values
    else:
        pixels, flat = _shown(values, samples)
    return Gray(square(upright(pixels, samples.orientation), _aspect(samples)), flat)


def brightness(values: np.ndarray, bits: int) -> np.ndarray:
    """Colours ``[H, W, C]`` → their brightness ``[H, W]``, in the same range; transparent pixels become black.

    Args:
      values: one, two (the second is alpha), three or four channels, or gray ``[H, W]``, which is given back.
      bits: of the values, and so of alpha; 0 for floats, whose alpha ends at 1.
    """
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    if values.dtype == np.uint8 and channels >= 3:
        gray = np.asarray(Image.fromarray(np.ascontiguousarray(values[..., :3])).convert("L"))
    elif channels >= 3:
        gray = values[..., :3].astype(np.float64) @ np.asarray(LUMA)
        gray = gray if values.dtype.kind == "f" else np.rint(gray).astype(values.dtype)
    else:
        gray = values[..., 0]
    if channels in (2, 4):
        opaque = 2**bits - 1 if bits else 1
        alpha = values[..., -1]
        if alpha.min() < opaque:
            shaded = gray * (alpha / opaque)
            gray = shaded if values.dtype.kind == "f" else np.rint(shaded).astype(values.dtype)
    return gray


def _without_outliers(values: np.ndarray) -> np.ndarray:
    """Values ``[N]`` without those at either end that lie farther from all others than these from each other, such as
    frames, markers, dead rows, and padding that no header tells of; at most ``OUTLIERS`` of them. Sorted."""
    values = np.sort(values)
    most = int(OUTLIERS * len(values))
    if most < 1:
        return values
    for _ in range(2):  # the greatest, then the least
        gaps = np.diff(values[-most - 1 :].astype(np.float64))
        place = len(values) - most + int(gaps.argmax())
        rest = values[:place]
        core = np.percentile(rest, (CORE, 100 - CORE)) if len(rest) else np.zeros(2)
        if np.ptp(core) > 0 and gaps.max() > float(rest[-1]) - float(rest[0]):
            values = rest
        values = -values[::-1].astype(np.float64)
    return values


def _shown(values: np.ndarray, samples: Samples) -> tuple[np.ndarray, bool]:
    """Values ``[H, W]`` → uint8, and whether they have next to no contrast."""
    step = math.ceil(math.sqrt(values.size / _SAMPLE))
    stored = values[::step, ::step].ravel()
    if samples.padding is not None:
        inside = stored[~_padded(stored, samples.padding)]
        stored = inside if len(inside) else stored
    least, most = values.min(), values.max()
    if values.dtype.kind in "iu" and int(most) - int(least) < _TABLE_RANGE:
        # Every step goes from value to value, so it is taken once for each.
        table = np.arange(int(least), int(most) + 1, dtype=np.int64)
        pixels, flat = _steps(table, stored, samples)
        return pixels[values.astype(np.int64) - int(least) if int(least) else values], flat
    return _steps(values, stored, samples)


def _steps(values: np.ndarray, stored: np.ndarray, samples: Samples) -> tuple[np.ndarray, bool]:
    """Take the steps for stored values of any shape.

    Args:
      values: stored values.
      stored: those of the image itself, or of a part of its pixels, ``[N]``.
      samples: what the file says of them.

    Returns:
      uint8 of the values' shape, and whether the image has next to no contrast.
    """
    modality = samples.modality or (lambda array: array.astype(np.float64))
    real = _without_outliers(modality(stored))
    core = np.percentile(real, (CORE, 100 - CORE))
    # Levels are those of stored values, of which a slope says how far apart they are.
    apart = abs(samples.modality.slope) if isinstance(samples.modality, Linear) else 1.0
    fewest = min(FEWEST_LEVELS, 2**samples.bits / 4) * apart if stored.dtype.kind in "iu" else 0
    flat = bool(np.ptp(core) < fewest or np.ptp(core) == 0)
    shown = _apply_voi(samples, modality(values), core, flat)
    if shown is None:
        least, most = _shown_range(samples, real, core)
        shown = (modality(values) - least) / (most - least if most > least else 1)
    shown = np.clip(shown, 0, 1)
    if samples.inverse:
        shown = 1 - shown
    pixels = np.rint(shown * 255).astype(np.uint8)
    if samples.padding is not None:
        pixels[_padded(values, samples.padding)] = 0
    return pixels, flat


def _apply_voi(samples: Samples, values: np.ndarray, core: np.ndarray, flat: bool) -> np.ndarray | None:
    """Values after the modality's step → 0 to 1 by the window or table; None where there is none, or it shows no difference
    between the least and the greatest of the middle values, ``core``, or any between."""
    voi = samples.voi
    if voi is None:
        return None

    def look(array: np.ndarray) -> np.ndarray:
        return voi(array) / (2**voi.bits - 1) if isinstance(voi, Table) else voi(array)

    visible = np.clip(look(np.linspace(core[0], core[1], 64)), 0, 1)
    if np.ptp(visible) * 255 < 2 * FEWEST_LEVELS and not flat:
        samples.warnings.append("its window shows nothing of it and is left out")
        return None
    return look(values)


def _shown_range(samples: Samples, real: np.ndarray, core: np.ndarray) -> tuple[float, float]:
    """Least and greatest of the values, after the modality's step, that are told apart where there is no window."""
    if samples.bits and (samples.display or samples.bits <= FULL_RANGE_BITS):
        return _full_range(samples)
    low, high = core.tolist()
    margin = MARGIN * (high - low)
    inside = real[(real >= low - margin) & (real <= high + margin)]
    return float(inside.min()), float(inside.max())


def _full_range(samples: Samples) -> tuple[float, float]:
    """Least and greatest value that values of so many bits can have after the modality's step."""
    if isinstance(samples.modality, Table):
        return 0.0, float(2**samples.modality.bits - 1)
    signed = samples.values.dtype.kind == "i"
    low, high = (-(2 ** (samples.bits - 1)), 2 ** (samples.bits - 1) - 1) if signed else (0, 2**samples.bits - 1)
    ends = (samples.modality or Linear(1.0, 0.0))(np.asarray([low, high], np.float64))
    return float(ends.min()), float(ends.max())


def _padded(values: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    return (values >= padding[0]) & (values <= padding[1])


def from_words(words: np.ndarray, *, stored: int, high: int, signed: bool) -> np.ndarray:
    """The stored values in words, whatever else their other bits hold (PS3.5, 8.1.1).

    Args:
      words: integers of 8, 16 or 32 bits, any shape.
      stored: bits of a value.
      high: the value's highest bit, counted from 0 for the word's lowest.
      signed: whether values are two's complement.
    """
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    size = 8 * words.dtype.itemsize
    above, below = size - 1 - high, size - stored
    unsigned = words.view(f"u{words.dtype.itemsize}")
    values = unsigned << above if above else unsigned
    values = values.view(f"i{words.dtype.itemsize}") if signed else values
    # Shifting back is arithmetic for signed values, so that their sign is kept.
    return values >> below if below else values


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image as EXIF's or TIFF's orientation, 1 to 8, means it."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::down, ::across]


def square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """An image of pixels that are higher than wide, or wider than high, with more of them along the longer side, so that
    each is a square: uint8 ``[H, W]``."""
    height, width = pixels.shape
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))


def _aspect(samples: Samples) -> float:
    return 1 / samples.aspect if samples.orientation in (5, 6, 7, 8) else samples.aspect
