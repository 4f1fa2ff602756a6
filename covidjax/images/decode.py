"""One X-ray: a file, or its bytes, to gray pixels.

Whatever the file's colour mode, what comes back is one gray channel, 8 bits, upright. What cannot be read raises
:class:`ImageError`, whose message is the reason, ready to be shown in a table row.
"""

from __future__ import annotations

import os
import stat
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from covidjax.errors import ImageError, one_line
from covidjax.images import codecs, dicom, dicom_display, dicom_pixels, polarity, rasters, values
from covidjax.images.formats import HEAD, KNOWN, Limits, is_dicom, too_long, too_many_pixels
from covidjax.images.values import NO_INFO, ImageInfo, Samples

SMALLEST = 32
"""Least height and width in pixels in which a chest can be told at all."""

LEAST_CONTRAST = 4.0
"""Least standard deviation, in gray levels, of an X-ray reduced to 16 × 16 pixels, which averages noise away."""

# What Pillow warns of, large sizes and broken EXIF, is no news to the reader of a table. Set once and not around each
# image: the warnings module is not made for several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow refuses twice this number of itself, before it allocates anything. A decoder process leaves it to the limits.
Image.MAX_IMAGE_PIXELS = Limits().pixels // 2

FileOrBytes = str | os.PathLike[str] | bytes
"""A path, or a file's bytes."""

Invert = Literal["auto", "never"]
"""Whether negatives are turned into positives; ``auto`` does where ``images.polarity`` is sure, and warns where not."""


class DecodedImage(NamedTuple):
    """An image as it was read."""

    pixels: np.ndarray
    """Gray uint8 ``[height, width]``, upright, of square pixels, bone brighter than air."""
    warning: str
    """What speaks against relying on it: it is no plain X-ray of a chest, or it was or may be a negative; mostly empty."""
    refused: str = ""
    """Why it is no X-ray, whatever a classifier would say of it; mostly empty."""
    format: str = ""
    """Of the file: PNG, DICOM, …"""
    info: ImageInfo = NO_INFO
    """Size and bits in the file."""
    not_chest: bool = False
    """Whether the file's header says that it is no frontal X-ray of a chest; ``warning`` says why."""
    thumbnail: np.ndarray | None = None
    """uint8 ``[N, N]``, where one was asked for."""
    person: dicom.Person = dicom.NOBODY
    """Age, sex and projection by the header."""

    @property
    def facts(self) -> dict[str, Any]:
        """All but the pixels, by the names of ``facts.FileFacts``."""
        names = ("warning", "refused", "format", "not_chest")
        return {name: getattr(self, name) for name in names} | self.info._asdict() | self.person._asdict()


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
      uint8 ``[height, width]``, as ``images.values`` makes it of the stored values: upright, of square pixels, larger is
      brighter.

    Raises:
      ImageError: missing, empty, truncated, not an image, below 32 pixels a side or above the limits.
    """
    return _read(source, at_least, None, None, invert, limits).pixels


def read_resized(
    source: FileOrBytes, size: int, thumbnail: int | None = None, *, invert: Invert = "auto", limits: Limits = Limits()
) -> DecodedImage:
    """``resize(read(source, at_least=2 * size), size)`` without the copies between, uint8 ``[size, size]``, and warnings;
    and a copy of ``thumbnail`` pixels a side, if one is wanted.

    Twice the size, since a JPEG decoded smaller than that would lose detail to the two resizings in a row.
    """
    return _read(source, 2 * size, size, thumbnail, invert, limits)


def read_reduced(
    source: FileOrBytes, at_least: int | None = None, *, invert: Invert = "auto", limits: Limits = Limits()
) -> DecodedImage:
    """``read`` and warnings; where an image is still more than twice as large as ``at_least``, blocks of its pixels are
    averaged, so that its shorter side has at least so many pixels, if it had them in the file."""
    image = _read(source, at_least, None, None, invert, limits)
    factor = min(image.pixels.shape) // at_least if at_least else 1
    return image._replace(pixels=np.asarray(Image.fromarray(image.pixels).reduce(factor))) if factor > 1 else image


def _read(
    source: FileOrBytes, at_least: int | None, size: int | None, thumbnail: int | None, invert: Invert, limits: Limits
) -> DecodedImage:
    data = source if isinstance(source, bytes) else read_bytes(source, limits)
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    try:
        samples, header = _samples(data, limits.pixels, at_least)
        remarks = [header.warning]
        width, height, _ = samples.info
        if min(height, width) < SMALLEST:
            raise ImageError(f"{width}×{height} pixels; an X-ray has at least {SMALLEST}×{SMALLEST}")
        shown = values.to_gray(samples)
        whole = Image.fromarray(shown.pixels)
        flat = shown.flat or polarity.contrast(whole) < LEAST_CONTRAST
        # Of what its header calls no chest, nobody knows how it looks.
        if invert == "auto" and not flat and not any(remarks):
            # Before resizing, which rounds up: an image and its negative are to give the same pixels.
            kind = polarity.judge(whole)
            if kind == "negative":
                whole = polarity.to_positive(whole)
            remarks.append(polarity.REMARKS[kind])
        remarks += [*samples.warnings, "" if samples.format == "PNG" else codecs.holes_warning(data)]
        refused = "next to no contrast" if flat else ""
        warning = "; ".join(dict.fromkeys(filter(None, remarks)))
        resized = _resized(whole, size)
        # Of what is resized already: several times faster, and next to no other pixels.
        small = _resized(resized if size and thumbnail and size >= thumbnail else whole, thumbnail) if thumbnail else None
        pixels, small_pixels = np.asarray(resized), None if small is None else np.asarray(small)
        about = warning, refused, samples.format, samples.info, header.not_chest
        return DecodedImage(pixels, *about, small_pixels, header.person)
    except Image.DecompressionBombError:
        raise too_many_pixels(limits.pixels) from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a known format ({KNOWN})") from None
    except (ImageError, MemoryError):
        raise
    # A damaged file can raise nearly anything from a decoder; whatever it is, it is this file's own fault.
    except Exception as error:
        # pydicom's own errors repeat the bytes of the header.
        header = type(error).__module__.startswith("pydicom.")
        reason = "a value of the header cannot be read" if header else one_line(error)
        raise ImageError(f"damaged: {reason}") from error


class _Header(NamedTuple):
    """What a DICOM header says."""

    warning: str = ""
    """Against taking the image for an X-ray of a chest."""
    not_chest: bool = False
    """Whether it is sure of that."""
    person: dicom.Person = dicom.NOBODY


def _samples(data: bytes, most_pixels: int, at_least: int | None) -> tuple[Samples, _Header]:
    """Stored values of a file, and what its header says."""
    if not is_dicom(data[:HEAD]):
        return rasters.read(data, most_pixels, at_least), _Header()
    dataset = dicom.read(data)
    samples = dicom_pixels.samples(dataset, most_pixels, at_least)
    dicom_display.describe(samples, dataset)
    return samples, _Header(*dicom.warning_of(dataset), dicom.person_of(dataset))


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
