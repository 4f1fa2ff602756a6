"""Which files are images, by their names, and how large one file may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


SUFFIXES = frozenset(
    {
        ".dcm",
        ".dicom",
        ".dic",
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jp2",
        ".j2k",
        ".jpx",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
    }
)
"""File endings that are taken for films when a folder is read (``may_be_image``); one that is named itself may have any."""

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF")
"""What is decoded besides DICOM, whatever a file is called: not every format that Pillow knows, some of which call other
programs."""


def may_be_image(path: Path) -> bool:
    """Whether a file in a folder is taken for a film: by its ending, or because it begins as a DICOM file does, which
    archives name by number. The index that such archives have beside them, DICOMDIR, is none."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def too_long(limits: Limits) -> ImageError:
    """The error of a file that has more bytes than it may."""
    return ImageError(f"longer than {limits.megabytes:g} MB, which no film is")
