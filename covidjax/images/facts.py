"""What is known of a file once it was decoded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What became of a file, but for its pixels."""

    error: str = ""
    """Why it could not be read; empty for an image that was read."""
    warning: str = ""
    """See ``decode.DecodedImage``."""
    refused: str = ""
    """Why an image that was read is no X-ray, see ``decode.DecodedImage``."""
    not_chest: bool = False
    """Whether the file's header says so."""
    format: str = ""
    """Of the file: PNG, DICOM, …"""
    width: int = 0
    """In the file, in pixels."""
    height: int = 0
    bits: int = 0
    """Of a value in the file; 0 for floats."""
    age: str = ""
    """Whole years by a DICOM header, see ``images.person``; empty where none states it."""
    sex: str = ""
    """Likewise."""
    view: str = ""
    """Projection by a DICOM header (PA, AP, …), likewise."""
    sha256: str = ""
    """Of the file's bytes, hexadecimal; empty where there were none, or it was not asked for."""
    decode_seconds: float = 0.0
    """Reading, decoding and resizing, in the process that did it."""

    @property
    def facts(self) -> dict[str, Any]:
        """These fields, for another class that has them."""
        return {fact.name: getattr(self, fact.name) for fact in fields(FileFacts)}
