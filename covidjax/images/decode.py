"""One film: a file, or its bytes, to gray pixels.

Whatever the file's colour mode, what comes back is one gray channel, 8 bits, upright. What cannot be read raises
:class:`RadiographError`, whose message is the reason, ready to be shown in a table row.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from covidjax.errors import ImageError
from covidjax.images import dicom, polarity
from covidjax.images.formats import FORMATS, Limits, too_long

SMALLEST = 32
"""Least height and width in pixels in which a chest can be told at all."""

# What Pillow warns of, large sizes and broken EXIF, is no news to the reader of a table. Set once and not around each
# film: the warnings module is not made for several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow refuses twice this number of itself, before it allocates anything. A decoder process leaves it to the limits.
Image.MAX_IMAGE_PIXELS = Limits().pixels // 2


class DecodedImage(NamedTuple):
    """A film as it was read."""

    pixels: np.ndarray
    """Gray uint8 ``[height, width]``, upright, bone brighter than air."""
    remark: str
    """What a reader of its results should know: it is no plain film of a chest, it was a negative; mostly nothing."""


Invert = Literal["auto", "never"]
"""Whether negatives are turned into positives; ``auto`` does where ``covidjax.polarity`` is sure."""


def read(
    source: str | os.PathLike[str] | bytes,
    *,
    at_least: int | None = None,
    invert: Invert = "auto",
    limits: Limits = Limits(),
) -> np.ndarray:
    """Decode a film to gray uint8 ``[height, width]``.

    Args:
      source: a path, or the file's bytes.
      at_least: a side in pixels that suffices. A JPEG more than twice as large is decoded at a half, a quarter or an
        eighth of its size, the smallest that still has this many pixels on its shorter side: several times faster.
      invert: ``never`` leaves negatives as they are.
      limits: most pixels and bytes; how long it takes is bounded in ``images.workers`` only.

    Returns:
      uint8 ``[height, width]``, larger is brighter in the file. 16-bit pixels are stretched linearly from their own
      least to their own greatest value; transparent pixels become black; EXIF orientation is applied. DICOM files are
      shown as ``covidjax.dicom.decode`` says.

    Raises:
      RadiographError: missing, empty, truncated, not an image, below 32 pixels a side or above the limits.
    """
    return _read(source, at_least, None, invert, limits).pixels


def read_resized(
    source: str | os.PathLike[str] | bytes, size: int, *, invert: Invert = "auto", limits: Limits = Limits()
) -> DecodedImage:
    """``resize(read(source, at_least=2 * size), size)`` without the copies between, as uint8 ``[size, size]``, and remarks.

    Twice the size, since a JPEG decoded smaller than that would lose detail to the two resizings in a row.
    """
    return _read(source, 2 * size, size, invert, limits)


def read_reduced(
    source: str | os.PathLike[str] | bytes,
    at_least: int | None = None,
    *,
    invert: Invert = "auto",
    limits: Limits = Limits(),
) -> DecodedImage:
    """``read`` and remarks; of a film that is still more than twice as large as ``at_least`` blocks of pixels are averaged,
    so that its shorter side has at least so many pixels, if the film's own has."""
    pixels, remark = _read(source, at_least, None, invert, limits)
    factor = min(pixels.shape) // at_least if at_least else 1
    return DecodedImage(np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels, remark)


def _read(
    source: str | os.PathLike[str] | bytes, at_least: int | None, size: int | None, invert: Invert, limits: Limits
) -> DecodedImage:
    if not isinstance(source, bytes):
        source = read_bytes(source, limits)
    if not source:
        raise ImageError("the file is empty (0 bytes)")
    remarks = []
    try:
        if dicom.is_dicom(source):
            gray = _large_enough(Image.fromarray(dicom.decode(source, limits.pixels)))
            remarks.append(dicom.warning_of(source))
        else:
            with Image.open(io.BytesIO(source), formats=FORMATS) as image:
                if image.width * image.height > limits.pixels:
                    raise Image.DecompressionBombError
                gray = _gray(image, at_least)
        whole, gray = gray, _resized(gray, size) if size else gray
        if invert == "auto" and polarity.is_negative(gray):
            # Before resizing, which rounds up: a film and its negative are to give the same pixels.
            whole = ImageOps.invert(whole)
            gray = _resized(whole, size) if size else whole
            remarks.append("a negative, turned into a positive")
        return DecodedImage(np.asarray(gray), "; ".join(filter(None, remarks)))
    except Image.DecompressionBombError:
        raise ImageError(f"more than {limits.megapixels:g} megapixels, which no film has") from None
    except Image.UnidentifiedImageError:
        raise ImageError("not an image in a known format (DICOM, PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF)") from None
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    # A damaged file can raise nearly anything from a decoder; whatever it is, it is this file's own fault.
    except Exception as error:
        raise ImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_bytes(path: str | os.PathLike[str], limits: Limits = Limits()) -> bytes:
    """The contents of a regular file.

    Raises:
      RadiographError: missing, a folder, a pipe or device, too long.
    """
    try:
        # Non-blocking, since opening a pipe that nobody writes to would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a regular file")
            if status.st_size > limits.bytes:
                raise too_long(limits)
            return file.read(limits.bytes + 1)
    except IsADirectoryError:
        raise ImageError("this is a folder, not a film") from None
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: a NUL in the name
        raise ImageError(f"cannot be opened: {reason}") from error


def _large_enough(image: Image.Image) -> Image.Image:
    if min(image.size) < SMALLEST:
        raise ImageError(f"{image.width}×{image.height} pixels; a film has at least {SMALLEST}×{SMALLEST}")
    return image


def _gray(image: Image.Image, at_least: int | None) -> Image.Image:
    """Mode ``L``, upright; the image itself where it is so already, since copies of large films cost milliseconds."""
    _large_enough(image)
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
        raise ImageError("has pixels that are no numbers")
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((pixels.astype(np.float32) - low) * scale).astype(np.uint8)


def resize(gray: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 ``[height, width]`` to ``[size, size]``, bilinear with antialiasing; the aspect is not kept."""
    if gray.shape == (size, size):
        return gray
    return np.asarray(_resized(Image.fromarray(gray), size))


def read_mask(
    source: str | os.PathLike[str] | bytes, size: int, film: tuple[int, ...], *, limits: Limits = Limits()
) -> np.ndarray:
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
    mask = read(source, invert="never", limits=limits)
    (height, width), (film_height, film_width) = mask.shape, film
    if abs(height * film_width / (width * film_height) - 1) > 0.02:
        raise ImageError(f"the mask has {width}×{height} pixels, the film {film_width}×{film_height}")
    inside = mask > int(mask.max()) / 2
    if not inside.any():
        raise ImageError("the mask is empty")
    return (resize(inside.astype(np.uint8) * 255, size) >= 128).astype(np.uint8)


def _resized(gray: Image.Image, size: int) -> Image.Image:
    return gray.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
