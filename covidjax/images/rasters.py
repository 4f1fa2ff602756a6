"""Files that are no DICOM to stored values: PNG, JPEG, JPEG 2000, TIFF and what Pillow reads."""

from __future__ import annotations

import functools
import io
import logging
import re
import struct
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from covidjax.errors import ImageError, one_line
from covidjax.images import codecs
from covidjax.images.formats import FORMATS, kind_of, too_many_pixels
from covidjax.images.values import ImageInfo, Samples

_ORIENTATION = 0x0112
"""EXIF's tag, and TIFF's."""

_PALETTE = 3
"""A PNG's kind of colour."""

_EXIF_WITHIN = 2**17
"""Bytes at the beginning of a JPEG in which its EXIF lies, if it has one: one segment has at most half as many."""


def read(data: bytes, most_pixels: int, at_least: int | None = None) -> Samples:
    """Stored values of a file, told by its first bytes.

    Args:
      data: its bytes.
      most_pixels: images of more are refused before they are decoded.
      at_least: a side in pixels that suffices, see ``decode.read``.

    Raises:
      ImageError: damaged, no image, or more pixels than that.
      Exception: whatever a decoder raises of a damaged file.
    """
    kind = kind_of(data)
    try:
        if kind == "PNG":
            return _png(data, most_pixels)
        if kind in ("JPEG", "JPEG 2000"):
            return _codestream(data, kind, most_pixels, at_least)
        if kind == "TIFF":
            return _tiff(data, most_pixels)
        if kind == "PNM" and data[:2] in (b"P5", b"P6"):
            return _pnm(data, most_pixels)
    except (ImageError, MemoryError):
        raise
    # Decoders raise nearly anything of a file that they decline, which is not always the file's fault.
    except Exception as error:
        return _by_next_decoder(data, most_pixels, error)
    return _by_pillow(data, most_pixels)


def _by_next_decoder(data: bytes, most_pixels: int, error: Exception) -> Samples:
    """What Pillow makes of a file that the first decoder of its format declined.

    Raises:
      Exception: ``error``, if it declines it too.
    """
    try:
        samples = _by_pillow(data, most_pixels)
    except ImageError:
        raise
    except Exception:
        raise error from None
    samples.warnings.append(f"decoded by its second decoder, since the first declined it ({one_line(error)})")
    return samples


def _codestream(data: bytes, kind: str, most_pixels: int, at_least: int | None) -> Samples:
    header = codecs.header(data)
    if header.height * header.width > most_pixels:
        raise too_many_pixels(most_pixels)
    info = ImageInfo(header.width, header.height, header.bits)
    image = codecs.decode(data, header, at_least)
    orientation = _orientation(data[:_EXIF_WITHIN], b"Exif\0", b"tiff:Orientation") if kind == "JPEG" else 1
    return Samples(image.values, header.bits, header.kind, info, orientation=orientation, warnings=image.warnings)


def _png(data: bytes, most_pixels: int) -> Samples:
    if len(data) < 33:
        raise ImageError(codecs.TRUNCATED)
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if width * height > most_pixels:
        raise too_many_pixels(most_pixels)
    warnings = codecs.check_png(data)
    values = imagecodecs.png_decode(data)  # palettes and fewer than 8 bits as 8 bits
    orientation = _orientation(data, b"eXIf", b"Raw profile", b"tiff:Orientation")
    bits = 16 if depth == 16 else 8
    info = ImageInfo(width, height, bits if colour == _PALETTE else depth)
    return Samples(values, bits, "PNG", info, orientation=orientation, warnings=warnings)


def _pnm(data: bytes, most_pixels: int) -> Samples:
    """Binary PGM and PPM, of which Pillow keeps 8 bits of a colour."""
    header = re.match(rb"P[56]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s", data)
    if not header:
        raise ImageError(codecs.TRUNCATED)
    width, height, greatest = map(int, header.groups())
    if width * height > most_pixels:
        raise too_many_pixels(most_pixels)
    channels, kind = 3 if data[:2] == b"P6" else 1, ">u2" if greatest > 255 else "u1"
    if len(data) < header.end() + width * height * channels * np.dtype(kind).itemsize:
        raise ImageError(codecs.TRUNCATED)
    values = np.frombuffer(data, kind, width * height * channels, header.end()).reshape(height, width * channels)
    warnings = [*filter(None, [codecs.zeros_warning(values, header.end())])]
    values = values.astype(np.uint16 if greatest > 255 else np.uint8)
    if greatest < 255:
        values = np.minimum(values * (255 / max(greatest, 1)), 255).astype(np.uint8)
    values = values.reshape(height, width, channels) if channels > 1 else values
    return Samples(values, 16 if greatest > 255 else 8, "PNM", warnings=warnings)


def _orientation(data: bytes, *signs: bytes) -> int:
    """EXIF's orientation where there is any of the signs of one; 1 where it cannot be read: the image can."""
    if not any(sign in data for sign in signs):
        return 1
    try:
        return int(Image.open(io.BytesIO(data), formats=FORMATS).getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _by_pillow(data: bytes, most_pixels: int) -> Samples:
    """BMP, GIF, WebP, PNM, and any TIFF that tifffile declines."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    name = {"PPM": "PNM", "WEBP": "WebP"}.get(image.format or "", image.format or "")
    if image.width * image.height > most_pixels:
        raise too_many_pixels(most_pixels)
    warnings = [_of_pages(image, "frames", "first")] if getattr(image, "is_animated", False) else []
    if name == "WebP":
        warnings.append(codecs.webp_warning(data))
    orientation = int(image.getexif().get(_ORIENTATION, 1))
    if image.mode in ("1", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    values = np.asarray(image)
    bits = 8 if values.dtype == np.uint8 else 0 if values.dtype.kind == "f" else 16
    if name == "BMP" and values.size < 2 * len(data):  # not compressed
        stored = values.reshape(len(values), -1)[::-1]
        warnings.append(codecs.zeros_warning(stored, struct.unpack_from("<I", data, 10)[0]))
    return Samples(values, bits, name, orientation=orientation, warnings=[*filter(None, warnings)])


def _of_pages(image: Any, pages: str, which: str) -> str:
    return f"{image.n_frames} {pages}, of which the {which} is read"


def _tiff(data: bytes, most_pixels: int) -> Samples:
    with _tifffile().TiffFile(io.BytesIO(data)) as file:
        pages = [page for page in file.pages if not page.is_reduced and not page.is_mask] or list(file.pages)
        page = max(pages, key=lambda page: page.imagelength * page.imagewidth)
        if page.imagelength * page.imagewidth > most_pixels:
            raise too_many_pixels(most_pixels)
        warnings = [_segments_warning(page, data)]
        values = page.asarray()
        if len(pages) > 1:
            warnings.append(f"{len(pages)} pages, of which the largest is read")
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        if planar and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if values.ndim not in (2, 3) or values.shape[:2] != (page.imagelength, page.imagewidth):
            raise ImageError(f"a TIFF of {'×'.join(map(str, values.shape))} values, which no X-ray has")
        if values.dtype.kind not in "biuf":
            raise ImageError(f"a TIFF of values of kind {values.dtype}, which no X-ray has")
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        tags = page.tags
        orientation = tags[_ORIENTATION].value if _ORIENTATION in tags else 1
        bits = 0 if values.dtype.kind == "f" else page.bitspersample
        if isinstance(bits, tuple):
            bits = max(bits)
        samples = Samples(values, bits, "TIFF", orientation=int(orientation), warnings=warnings)
        _photometric(samples, page)
    samples.warnings = [*filter(None, warnings)]
    return samples


def _segments_warning(page: Any, data: bytes) -> str:
    """A warning where a part of the pixels may be missing, which tifffile shows as if it were black; else nothing.

    Raises:
      ValueError: one is missing.
      ImageError: damaged.
    """
    segments = sorted(zip(page.dataoffsets, page.databytecounts, strict=True))
    for offset, length in segments:
        if not length or offset + length > len(data):
            raise ValueError("a part of its pixels is missing")
    parts = [memoryview(data)[offset : offset + length] for offset, length in segments]
    if page.compression in (6, 7):  # JPEG
        for part in parts:
            codecs.check_compressed(part)
        return ""
    if page.compression != 1:
        return codecs.tail_warning(b"".join(parts))
    kind = f"u{page.dtype.itemsize}" if page.bitspersample in (8, 16, 32, 64) else "u1"
    width = (page.tilewidth if page.is_tiled else page.imagewidth) * (page.samplesperpixel if page.planarconfig == 1 else 1)
    values = np.frombuffer(b"".join(parts), kind, sum(map(len, parts)) // np.dtype(kind).itemsize)
    rows = len(values) // width
    return codecs.zeros_warning(values[: rows * width].reshape(rows, width), segments[0][0]) if rows else ""


def _photometric(samples: Samples, page: Any) -> None:
    """What the values mean (TIFF 6.0, PhotometricInterpretation)."""
    kind, values = int(page.photometric), samples.values
    if kind == 0:
        samples.inverse = True
    elif kind == 3:
        colours = np.asarray(page.colormap)  # [3, 2^bits], of 16 bits
        depth = 255 if colours.max() < 256 else 65535  # as some write them, and libtiff takes them
        index, more = (values, ()) if values.ndim == 2 else (values[..., 0], (values[..., 1:],))
        rgb = np.rint(np.moveaxis(colours[:, index], 0, -1) * (255 / depth)).astype(np.uint8)
        samples.values, samples.bits = np.concatenate((rgb, *more), -1), 8
    elif kind == 6 and page.compression not in (6, 7):
        samples.values = values[..., 0]  # luma
    elif kind not in (1, 2, 6):
        raise ValueError(f"photometric interpretation {kind}")
    # Beyond gray or colours there is alpha first, and then anything.
    if samples.values.ndim == 3:
        colours = 3 if kind in (2, 3, 6) else 1
        alpha = bool(page.extrasamples) and int(page.extrasamples[0]) in (1, 2)
        samples.values = samples.values[..., : colours + alpha]
        if samples.values.shape[-1] == 1:
            samples.values = samples.values[..., 0]


@functools.cache
def _tifffile() -> Any:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile
