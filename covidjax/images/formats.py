"""Which files are images, by their names and first bytes, and how large one file may be."""

from __future__ import annotations

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

_JPEG = (".jpg", ".jpeg", ".jpe", ".jp2", ".j2k", ".jpx")

SUFFIXES = frozenset((*_DICOM, *_JPEG, ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"))
"""File endings that are taken for images when a folder or an archive is read; a file that is named itself may have any."""

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's formats that are decoded besides DICOM, whatever a file is called. Pillow knows more, and some of those call
other programs."""

HEAD = 132
"""Bytes at the beginning of a file that show whether it is DICOM."""


def may_be_image(name: PurePath, head: Callable[[], bytes]) -> bool:
    """Whether a file of a folder or an archive is taken for an image: by its ending, or because it begins as a DICOM file
    does, which archives name by number. The index that such archives have beside them, DICOMDIR, is none.

    Args:
      name: the file's name.
      head: reads its first ``HEAD`` bytes.
    """
    if name.suffix.lower() in SUFFIXES:
        return True
    if name.name.upper() == "DICOMDIR":
        return False
    try:
        return head()[128:] == b"DICM"
    except Exception:  # unreadable, or encrypted: nothing says that it is an image
        return False


def too_many_pixels(pixels: int) -> ImageError:
    """The error of an image that has more pixels than it may, which are so many."""
    return ImageError(f"more than {pixels / 1e6:g} megapixels, which no X-ray has")


def too_long(limits: Limits) -> ImageError:
    """The error of a file that has more bytes than it may."""
    return ImageError(f"longer than {limits.megabytes:g} MB, which no X-ray is")
