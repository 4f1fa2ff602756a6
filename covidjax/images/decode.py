"""One X-ray: a file, or its bytes, to gray pixels.

Whatever the file's colour mode, what comes back is one gray channel, 8 bits, upright. What cannot be read raises
:class:`ImageError`, whose message is the reason, ready to be shown in a table row.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from covidjax.errors import ImageError, one_line
from covidjax.images import dicom, polarity
from covidjax.images.formats import FORMATS, Limits, too_long, too_many_pixels

SMALLEST = 32
"""Least height and width in pixels in which a chest can be told at all."""

# What Pillow warns of, large sizes and broken EXIF, is no news to the reader of a table. Set once and not around each
# image: the warnings module is not made for several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow refuses twice this number of itself, before it allocates anything. A decoder process leaves it to the limits.
Image.MAX_IMAGE_PIXELS = Limits().pixels // 2

FileOrBytes = str | os.PathLike[str] | bytes
"""A path, or a file's bytes."""

Invert = Literal["auto", "never"]
"""Whether negatives are turned into positives; ``auto`` does where ``images.polarity`` is sure."""


class DecodedImage(NamedTuple):
    """An image as it was read."""

    pixels: np.ndarray
    """Gray uint8 ``[height, width]``, upright, bone brighter than air."""
    warning: str
    """What speaks against relying on it: it is no plain X-ray of a chest, or it was a negative; mostly empty."""


def read(
    source: FileOrBytes, *, at_least: int | None = None, invert: Invert = "auto", limits: Limits = Limits()
) -> np.ndarray:
    """Decode an image to gray uint8 ``[height, width]``.

    Args:
      source: a path, or the file's bytes.
      at_least: a side in pixels that suffices. A JPEG more than twice as large is decoded at a half, a quarter or an
        eighth of its size, the smallest that still has this many pixels on its shorter side: several times faster.
      invert: ``never`` leaves negatives as they are.
      limits: most pixels and bytes; how long it takes is bounded in ``images.workers`` only.

    Returns:
      uint8 ``[height, width]``, larger is brighter in the file. 16-bit pixels are stretched linearly from their own
      least to their own greatest value; transparent pixels become black; EXIF orientation is applied. DICOM files are
      shown as ``images.dicom.decode`` says.

    Raises:
      ImageError: missing, empty, truncated, not an image, below 32 pixels a side or above the limits.
    """
    return _read(source, at_least, None, invert, limits).pixels


def read_resized(source: FileOrBytes, size: int, *, invert: Invert = "auto", limits: Limits = Limits()) -> DecodedImage:
    """``resize(read(source, at_least=2 * size), size)`` without the copies between, uint8 ``[size, size]``, and warnings.

    Twice the size, since a JPEG decoded smaller than that would lose detail to the two resizings in a row.
    """
    return _read(source, 2 * size, size, invert, limits)


def read_reduced(
    source: FileOrBytes, at_least: int | None = None, *, invert: Invert = "auto", limits: Limits = Limits()
) -> DecodedImage:
    """``read`` and warnings; where an image is still more than twice as large as ``at_least``, blocks of its pixels are
    averaged, so that its shorter side has at least so many pixels, if it had them in the file."""
    pixels, warning = _read(source, at_least, None, invert, limits)
    factor = min(pixels.shape) // at_least if at_least else 1
    return DecodedImage(np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels, warning)


def _read(source: FileOrBytes, at_least: int | None, size: int | None, invert: Invert, limits: Limits) -> DecodedImage:
    data = source if isinstance(source, bytes) else read_bytes(source, limits)
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    try:
        remarks = []
        if dicom.is_dicom(data):
            dataset = dicom.read(data)
            image = Image.fromarray(dicom.decode(dataset, limits.pixels))
            remarks.append(dicom.warning_of(dataset))
        else:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > limits.pixels:
                raise Image.DecompressionBombError
        whole = _gray(image, at_least)
        gray = _resized(whole, size)
        if invert == "auto" and polarity.is_negative(gray):
            # Before resizing, which rounds up: an image and its negative are to give the same pixels.
            gray = _resized(ImageOps.invert(whole), size)
            remarks.append("a negative, turned into a positive")
        return DecodedImage(np.asarray(gray), "; ".join(filter(None, remarks)))
    except Image.DecompressionBombError:
        raise too_many_pixels(limits.pixels) from None
    except Image.UnidentifiedImageError:
        raise ImageError("not an image in a known format (DICOM, PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF)") from None
    except (ImageError, MemoryError):
        raise
    # A damaged file can raise nearly anything from a decoder; whatever it is, it is this file's own fault.
    except Exception as error:
        raise ImageError(f"damaged: {one_line(error)}") from error


def describe(data: bytes) -> dict[str, int | str]:
    """Width, height, bits and format of an image that can be read, as its file has them, see ``workers.FileFacts``."""
    if dicom.is_dicom(data):
        header = dicom.read(data)
        sizes = {"width": header.Columns, "height": header.Rows, "bits": header.get("BitsStored") or 0}
        return {**{name: int(size) for name, size in sizes.items()}, "format": "DICOM"}
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    bits = 1 if image.mode == "1" else 16 if "16" in image.mode else 32 if image.mode in ("I", "F") else 8
    return {"width": image.width, "height": image.height, "bits": bits, "format": image.format or ""}


def read_bytes(path: str | os.PathLike[str], limits: Limits = Limits()) -> bytes:
    """The contents of a regular file.

    Raises:
      ImageError: missing, a folder, a pipe or device, too long.
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
        raise ImageError("this is a folder, not an image") from None
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: a NUL in the name
        raise ImageError(f"cannot be opened: {reason}") from error


def _gray(image: Image.Image, at_least: int | None) -> Image.Image:
    """Mode ``L``, upright; the image itself where it is so already, since copies of large images cost milliseconds."""
    if min(image.size) < SMALLEST:
        raise ImageError(f"{image.width}×{image.height} pixels; an X-ray has at least {SMALLEST}×{SMALLEST}")
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


def read_mask(source: FileOrBytes, size: int, shape: tuple[int, ...], *, limits: Limits = Limits()) -> np.ndarray:
    """An image's lung mask as it lies on the image after ``read_resized``: uint8 ``[size, size]`` of 0 and 1.

    Inside is what is brighter than half the mask's brightest pixel. It is resized as the image is, and inside again is
    where that leaves half or more.

    Args:
      source: as for ``read``.
      size: of the image after resizing.
      shape: height and width of the image, before.
      limits: as for ``read``.

    Raises:
      ImageError: as ``read``, and where the mask is empty or of another aspect than the image.
    """
    mask = read(source, invert="never", limits=limits)
    (height, width), (image_height, image_width) = mask.shape, shape
    if abs(height * image_width / (width * image_height) - 1) > 0.02:
        raise ImageError(f"the mask has {width}×{height} pixels, the image {image_width}×{image_height}")
    inside = mask > int(mask.max()) / 2
    if not inside.any():
        raise ImageError("the mask is empty")
    return (resize(inside.astype(np.uint8) * 255, size) >= 128).astype(np.uint8)


def _resized(gray: Image.Image, size: int | None) -> Image.Image:
    return gray.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0) if size else gray
