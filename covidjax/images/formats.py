"""Which files are images, by their names and first bytes, and how large one file may be."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from covidjax.errors import ImageError


@dataclass(frozen=True)
class Limits:
    """What one file may take; a file that takes more is an error of that file."""

    megapixels: float = 200.0
    """The largest detectors give some 20; more than ten times that is a mistake or a bomb."""
    megabytes: float = 512.0
    """Of the file, and of what a compressed file or archive holds of it; 200 megapixels of 16 bits are 400."""
    seconds: float = 60.0
    """For reading, decoding and resizing."""

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)


_DICOM = (".dcm", ".dicom", ".dic")

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jls", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jph", ".jhc")

_OTHERS = (".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".pnm")

SUFFIXES = frozenset((*_DICOM, *_JPEG, *_OTHERS))
"""File endings that are taken for images when a folder or an archive is read, whatever the file holds. A file that begins
as an image does may have any ending, and so may one that is named itself."""

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Pillow's formats that may be decoded, whatever a file is called. Pillow knows more, and some of those call other
programs."""

KNOWN = "DICOM, PNG, JPEG, JPEG-LS, JPEG 2000, BMP, TIFF, WebP, GIF, PNM"
"""The formats, for the reader."""

_BEGINNINGS = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF87a", b"GIF89a"),
}

HEAD = 132
"""Bytes at the beginning of a file that show what it is."""

_VALUE_REPRESENTATIONS = tuple(re.findall("..", "AEASATCSDADSDTFDFLISLOLTOBOWPNSHSLSQSSSTTMUIULUNUSUT"))


def kind_of(head: bytes) -> str:
    """The format that a file has by its first ``HEAD`` bytes, as ``KNOWN`` names it; empty where they are no image's."""
    if is_dicom(head):  # first: its preamble may be that of another format
        return "DICOM"
    for kind, beginnings in _BEGINNINGS.items():
        if head.startswith(beginnings):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    # Two letters begin many a file; these have zeros where no text has any, or a number and no other letter after them.
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and head[14:18] in _BMP_HEADERS:
        return "BMP"
    return "PNM" if re.match(rb"P[1-6](?:\s|#[^\n]*\n)+\d+\s", head) else ""


_BMP_HEADERS = frozenset(struct.pack("<I", length) for length in (12, 40, 52, 56, 64, 108, 124))
"""Lengths of a BMP's second header."""


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are those of DICOM: by its preamble, or, as old devices write it, a data set without
    one."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element, length = struct.unpack("<HI", head[2:8])
    explicit = head[4:6].decode("latin-1") in _VALUE_REPRESENTATIONS
    return element < 0x1000 and (explicit or length < 1024)


def may_be_image(name: PurePath, head: Callable[[], bytes]) -> bool:
    """Whether a file of a folder or an archive is taken for an image: by its ending, or because it begins as an image does;
    archives name DICOM files by number, and browsers save images without an ending. The index that such archives have
    beside them, DICOMDIR, is none.

    Args:
      name: the file's name.
      head: reads its first ``HEAD`` bytes.
    """
    if name.suffix.lower() in SUFFIXES:
        return True
    if name.name.upper() == "DICOMDIR":
        return False
    try:
        return bool(kind_of(head()))
    except Exception:  # unreadable, or encrypted: nothing says that it is an image
        return False


def too_many_pixels(pixels: int) -> ImageError:
    """The error of an image that has more pixels than it may, which are so many."""
    return ImageError(f"more than {pixels / 1e6:g} megapixels, which no X-ray has")


def too_long(limits: Limits) -> ImageError:
    """The error of a file that has more bytes than it may."""
    return ImageError(f"longer than {limits.megabytes:g} MB, which no X-ray is")
