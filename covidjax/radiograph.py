"""One film: a file, or its bytes, to gray pixels.

Whatever the file's colour mode, what comes back is one gray channel, 8 bits, upright. What cannot be read raises
:class:`RadiographError`, whose message is the reason, ready to be shown in a table row.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from covidjax.config import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp"})
"""File endings that are taken for films when a folder is read; a file that is named itself may have any ending."""

LARGEST = 200_000_000
"""Most pixels that are decoded. The largest detectors give some 20 million; more is a mistake or a bomb."""

SMALLEST = 32
"""Least height and width in pixels in which a chest can be told at all."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: not every format that Pillow knows, some of which call other programs."""

LONGEST = 2**30
"""Most bytes of a file."""

# What Pillow warns of, sizes between half and all of LARGEST and broken EXIF, is no news to the reader of a table. Set
# once and not around each film: the warnings module is not made for several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow refuses twice this number of itself, before it allocates anything.
Image.MAX_IMAGE_PIXELS = LARGEST // 2


class RadiographError(UserError):
    """A film that cannot be read; the message says why."""


def read(source: str | os.PathLike[str] | bytes, *, at_least: int | None = None) -> np.ndarray:
    """Decode a film to gray uint8 ``[height, width]``.

    Args:
      source: a path, or the file's bytes.
      at_least: a side in pixels that suffices. A JPEG more than twice as large is decoded at a half, a quarter or an
        eighth of its size, the smallest that still has this many pixels on its shorter side: several times faster.

    Returns:
      uint8 ``[height, width]``, larger is brighter in the file. 16-bit pixels are stretched linearly from their own
      least to their own greatest value; transparent pixels become black; EXIF orientation is applied.

    Raises:
      RadiographError: missing, empty, truncated, not an image, below 32 pixels a side or above 200 megapixels.
    """
    return _decoded(source, at_least, np.asarray)


def read_resized(source: str | os.PathLike[str] | bytes, size: int) -> np.ndarray:
    """``resize(read(source, at_least=2 * size), size)`` without the copies between: uint8 ``[size, size]``.

    Twice the size, since a JPEG decoded smaller than that would lose detail to the two resizings in a row.
    """
    return _decoded(source, 2 * size, lambda gray: np.asarray(_resized(gray, size)))


def read_reduced(source: str | os.PathLike[str] | bytes, at_least: int) -> np.ndarray:
    """``read``, and a film that is still more than twice as large has blocks of pixels averaged: uint8 ``[height, width]``,
    whose shorter side has at least so many pixels if the film's own has."""

    def reduced(gray: Image.Image) -> np.ndarray:
        factor = min(gray.size) // at_least
        return np.asarray(gray.reduce(factor) if factor > 1 else gray)

    return _decoded(source, at_least, reduced)


def _decoded(
    source: str | os.PathLike[str] | bytes, at_least: int | None, finish: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    if not isinstance(source, bytes):
        source = read_bytes(source)
    if not source:
        raise RadiographError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(source), formats=FORMATS) as image:
            return finish(_gray(image, at_least))
    except Image.DecompressionBombError:
        raise RadiographError(f"more than {LARGEST // 1_000_000} megapixels, which no film has") from None
    except Image.UnidentifiedImageError:
        raise RadiographError("not an image in a known format (PNG, JPEG, BMP, TIFF, WebP)") from None
    except RadiographError:
        raise
    # A damaged file can raise nearly anything from a decoder; whatever it is, it is this file's own fault.
    except Exception as error:
        raise RadiographError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a regular file.

    Raises:
      RadiographError: missing, a folder, a pipe or device, too long.
    """
    try:
        # Non-blocking, since opening a pipe that nobody writes to would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RadiographError("not a regular file")
            if status.st_size > LONGEST:
                raise RadiographError(f"longer than {LONGEST // 2**30} GiB, which no film is")
            return file.read()
    except IsADirectoryError:
        raise RadiographError("this is a folder, not a film") from None
    except FileNotFoundError:
        raise RadiographError("no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: a NUL in the name
        raise RadiographError(f"cannot be opened: {reason}") from error


def _gray(image: Image.Image, at_least: int | None) -> Image.Image:
    """Mode ``L``, upright; the image itself where it is so already, since copies of large films cost milliseconds."""
    if min(image.size) < SMALLEST:
        raise RadiographError(f"{image.width}×{image.height} pixels; a film has at least {SMALLEST}×{SMALLEST}")
    if image.format == "JPEG" and at_least and image.mode in ("L", "RGB"):
        image.draft("L", (at_least, at_least))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_stretch(np.asarray(image)))
    if "A" in image.mode or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode != "L":
        return image.convert("L")
    image.load()
    return image


def _stretch(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise RadiographError("has pixels that are no numbers")
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((pixels.astype(np.float32) - low) * scale).astype(np.uint8)


def resize(gray: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 ``[height, width]`` to ``[size, size]``, bilinear with antialiasing; the aspect is not kept."""
    if gray.shape == (size, size):
        return gray
    return np.asarray(_resized(Image.fromarray(gray), size))


def read_mask(source: str | os.PathLike[str] | bytes, size: int, film: tuple[int, int]) -> np.ndarray:
    """A film's lung mask as it lies on the film after ``read_resized``: uint8 ``[size, size]`` of 0 and 1.

    Inside is what is brighter than half the mask's brightest pixel. It is resized as the film is, and inside again is where
    that leaves half or more.

    Args:
      source: as for ``read``.
      size: of the film after resizing.
      film: height and width of the film, before.

    Raises:
      RadiographError: as ``read``, and where the mask is empty or of another shape than the film.
    """
    mask = read(source)
    (height, width), (film_height, film_width) = mask.shape, film
    if abs(height * film_width / (width * film_height) - 1) > 0.02:
        raise RadiographError(f"the mask has {width}×{height} pixels, the film {film_width}×{film_height}")
    inside = mask > int(mask.max()) / 2
    if not inside.any():
        raise RadiographError("the mask is empty")
    return (resize(inside.astype(np.uint8) * 255, size) >= 128).astype(np.uint8)


def _resized(gray: Image.Image, size: int) -> Image.Image:
    return gray.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
