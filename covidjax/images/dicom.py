"""DICOM files: the elements of their headers that are needed, and what these say against taking them for chest X-rays.

No value of an element that could tell who the patient is is read here (``data.patients`` reads the PatientID, and hashes
it), but for age and sex, which ``images.person`` coarsens; messages name elements, never their contents as they stand in
the file."""

from __future__ import annotations

import functools
import io
import logging
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from covidjax.errors import ImageError
from covidjax.images.formats import Limits
from covidjax.images.person import age_of, sex_of

if TYPE_CHECKING:
    from pydicom import Dataset

LARGEST_DEFLATED = Limits().bytes
"""Most bytes of a deflated file, inflated."""

PLAIN_XRAY = ("CR", "DX", "DR")
"""Modalities that are projection radiographs: computed, digital, and what some devices write for either."""

UNKNOWN = "unknown"
"""In place of what is no code."""

UNTOLD = ("OT", "SC", "RG", "RF")
"""Modalities under which chest X-rays are stored too: other, secondary capture (digitized film), radiographic imaging,
fluoroscopy."""

_HEADER = (
    *("Modality", "PatientAge", "PatientSex", "ViewPosition", "BodyPartExamined", "PatientOrientation", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_DEFLATED = "1.2.840.10008.1.2.1.99"


def read(data: bytes) -> Dataset:
    """The pixels of a file, not decoded yet, and the elements of its header that are needed.

    Raises:
      ImageError: damaged, or too long when inflated.
    """
    try:
        _refuse_bomb(data)
        return load_pydicom().dcmread(
            io.BytesIO(data), force=True, specific_tags=[*_HEADER, *_PIXELS, "SpecificCharacterSet"]
        )
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("damaged DICOM: the header cannot be read") from error


def warning_of(dataset: Dataset) -> tuple[str, bool]:
    """What speaks against taking a DICOM file for a frontal X-ray of the chest, empty if nothing does; and whether that is
    sure, which a modality of ``UNTOLD`` is not, nor a part of the body that is no code."""
    names = ("Modality", "ViewPosition", "BodyPartExamined")
    try:
        modality, view, part = (str(dataset.get(name) or "").strip().upper() for name in names)
    except Exception:  # pydicom raises nearly anything where a value is damaged
        return "", False
    remarks = []
    if modality and modality not in PLAIN_XRAY:
        remarks.append(f"modality {_code(modality)}, no plain X-ray")
    if view in ("LL", "RL", "LLD", "RLD") or "LAT" in view:
        remarks.append("lateral view")
    if part and not any(name in part for name in ("CHEST", "THORAX", "LUNG", "TORAX", "TORACE", "RIB")):
        remarks.append(f"body part {_code(part)}, not the chest")
    unsure = (modality in UNTOLD) + (bool(part) and _code(part) == UNKNOWN)
    return "; ".join(remarks), len(remarks) > unsure


class Person(NamedTuple):
    """What a header says of the patient and of how the X-ray was taken; empty where it says nothing."""

    age: str
    """Whole years, see ``images.person``."""
    sex: str
    """``M``, ``F`` or ``O``."""
    view: str
    """Projection, such as PA."""


NOBODY = Person("", "", "")


def person_of(dataset: Dataset) -> Person:
    """Age, sex and projection. The date of birth is not read."""
    try:
        age, sex, view = (str(dataset.get(name) or "").strip() for name in ("PatientAge", "PatientSex", "ViewPosition"))
    except Exception:  # as above
        return NOBODY
    return Person(age_of(age), sex_of(sex), _code(view.upper()) if view else "")


def _code(value: str) -> str:
    """A code of the header, if it is one: anything else might be text about a patient."""
    return value if len(value) <= 16 and value.replace(" ", "").replace("_", "").isalpha() else UNKNOWN


@functools.cache
def load_pydicom() -> Any:
    """pydicom, which takes half a second to import; its warnings, which quote headers, are switched off."""
    import pydicom
    import pydicom.config

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _refuse_bomb(data: bytes) -> None:
    """Refuse a deflated file that inflates to more than any X-ray."""
    if data[128:132] != b"DICM" or _DEFLATED.encode() not in data[132:1024]:
        return
    (length,) = struct.unpack("<I", data[140:144])  # of the file's meta information, its first element
    body, rest, inflated = zlib.decompressobj(-zlib.MAX_WBITS), data[144 + length :], 0
    while rest and inflated <= LARGEST_DEFLATED:
        inflated += len(body.decompress(rest, 2**24))
        rest = body.unconsumed_tail
    if inflated > LARGEST_DEFLATED:
        raise ImageError(f"longer than {LARGEST_DEFLATED / 1e6:g} MB when inflated, which no X-ray is")
