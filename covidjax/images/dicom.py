"""DICOM files to gray pixels, the way a viewer shows them, and what their headers say against taking them for chest X-rays.

The steps are those of the standard's grayscale pipeline (PS3.4, N.2): stored values, modality rescaling, window or
lookup table, and the inversion of MONOCHROME1. Only the header's elements that this needs are read here, none that could
tell who the patient is (``data.patients`` reads the PatientID, and hashes it); messages name elements, never their contents
as they stand in the file.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from covidjax.errors import ImageError
from covidjax.images.formats import Limits, too_many_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

LARGEST_DEFLATED = Limits().bytes
"""Most bytes of a deflated file, inflated."""

PLAIN_XRAY = ("CR", "DX", "DR")
"""Modalities that are projection radiographs: computed, digital, and what some devices write for either."""

_HEADER = (
    *("Modality", "ViewPosition", "BodyPartExamined", "PatientOrientation", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)

_PIXELS = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_DEFLATED = "1.2.840.10008.1.2.1.99"


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes are DICOM: by its preamble, or, as old devices write it, a data set without one."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    element, length = struct.unpack("<HI", data[2:8])
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    return element < 0x1000 and (explicit or length < min(len(data), 1024))


def read(data: bytes) -> Dataset:
    """The pixels of a file, not decoded yet, and the elements of its header that are needed.

    Raises:
      ImageError: damaged, or too long when inflated.
    """
    try:
        _refuse_bomb(data)
        return _pydicom().dcmread(io.BytesIO(data), force=True, specific_tags=[*_HEADER, *_PIXELS, "SpecificCharacterSet"])
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("damaged DICOM: the header cannot be read") from error


def decode(dataset: Dataset, most_pixels: int) -> np.ndarray:
    """Pixels as a viewer shows them.

    Args:
      dataset: see ``read``.
      most_pixels: images of more are refused before they are decoded.

    Returns:
      Gray uint8 ``[height, width]``, brighter where fewer rays came through. The window or lookup table of the header is
      applied; without one, values of more than 8 bits are stretched from the least to the greatest, leaving out padding.
      Padding is black. Where the header tells the orientation, the patient's left is on the right of the image and the
      head on top.

    Raises:
      ImageError: several frames, no image, a compression that cannot be decoded, damage.
    """
    if "PixelData" not in dataset:
        raise ImageError("a DICOM file without an image")
    frames = dataset.get("NumberOfFrames") or 1
    if frames != 1:
        raise ImageError(f"a DICOM file of {frames} frames; an X-ray has one")
    rows, columns = dataset.get("Rows") or 0, dataset.get("Columns") or 0
    if not rows or not columns:
        raise ImageError("damaged DICOM: no size in the header")
    if rows * columns > most_pixels:
        raise too_many_pixels(most_pixels)
    try:
        return _shown(dataset)
    except (ImageError, MemoryError):
        raise
    # Of a damaged file pydicom and its decoders raise nearly anything, and their messages may quote the header.
    except Exception as error:
        raise ImageError(f"damaged DICOM: {_fault(dataset, error)}") from error


def warning_of(dataset: Dataset) -> str:
    """What speaks against taking a DICOM file for a frontal X-ray of the chest; empty if nothing does."""
    names = ("Modality", "ViewPosition", "BodyPartExamined")
    try:
        modality, view, part = (str(dataset.get(name) or "").strip().upper() for name in names)
    except Exception:  # pydicom raises nearly anything where a value is damaged
        return ""
    remarks = []
    if modality and modality not in PLAIN_XRAY:
        remarks.append(f"modality {_code(modality)}, no plain X-ray")
    if view in ("LL", "RL", "LLD", "RLD") or "LAT" in view:
        remarks.append("lateral view")
    if part and not any(name in part for name in ("CHEST", "THORAX", "LUNG", "TORAX", "TORACE", "RIB")):
        remarks.append(f"body part {_code(part)}, not the chest")
    return "; ".join(remarks)


def _code(value: str) -> str:
    """A code of the header, if it is one: anything else might be text about a patient."""
    return value if len(value) <= 16 and value.replace(" ", "").replace("_", "").isalpha() else "unknown"


@functools.cache
def _pydicom() -> Any:
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


def _fault(dataset: Dataset, error: Exception) -> str:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if isinstance(error, NotImplementedError):
        return f"its compression ({getattr(syntax, 'name', 'unknown')}) is not supported"
    name = syntax.name if syntax is not None and not syntax.is_private and syntax.name != syntax else "unknown"
    return f"its pixels cannot be decoded (transfer syntax {name})"


def _shown(dataset: Dataset) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset.ensure_file_meta()
    if "TransferSyntaxUID" not in dataset.file_meta:
        # A data set without a preamble: stored as it was sent, uncompressed.
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    pixels = pixel_array(dataset)
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:  # a photograph or a screen: its brightness, as Pillow has it (ITU-R 601-2)
        depth = 8 * pixels.dtype.itemsize
        pixels = (pixels[..., :3] @ np.asarray([0.299, 0.587, 0.114], np.float32)) * (255 / (2**depth - 1))
        gray = np.rint(pixels).astype(np.uint8)
    elif pixels.ndim == 2:
        gray = _brightness(dataset, pixels)
    else:
        raise ImageError(f"a DICOM image of {pixels.ndim} dimensions; an X-ray has two")
    return np.ascontiguousarray(_upright(gray, dataset.get("PatientOrientation")))


def _brightness(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Stored values ``[H, W]`` → uint8. Every step goes from value to value, so it is taken once for each."""
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= 2**24:
        raise ImageError("a DICOM image of more than 24 bits a pixel")
    stored = np.arange(low, high + 1, dtype=np.int64)
    padding = _padding(dataset, stored)
    index = pixels.astype(np.int64) - low
    shown = np.clip(np.rint(_window(dataset, stored.astype(pixels.dtype), index, padding)), 0, 255)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return np.where(padding, 0, shown).astype(np.uint8)[index]


def _window(dataset: Dataset, stored: np.ndarray, index: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Stored values → brightness from 0 to 255: by the header's lookup table or window, else by the range of the values
    that pixels have, of which ``index`` says which one each has."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(stored, dataset).astype(np.float64)
    tables = dataset.get("VOILUTSequence")
    if tables and tables[0].get("LUTData") is not None:
        # Entries are looked up by whole values.
        return apply_voi(np.rint(values).astype(np.int64), dataset) * (255 / (2 ** tables[0].LUTDescriptor[2] - 1))
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        # Of a data set that says 8 bits, the window's output is 0 to 255.
        window = _pydicom().Dataset()
        window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 8
        window.WindowCenter, window.WindowWidth = dataset.WindowCenter, dataset.WindowWidth
        window.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
        return apply_windowing(values, window)
    if dataset.BitsStored <= 8 and dataset.PixelRepresentation == 0:
        return stored * (255 / (2**dataset.BitsStored - 1))
    present = np.zeros(len(stored), bool)
    present[index] = True
    real = values[present & ~padding]
    least, most = (real.min(), real.max()) if len(real) else (0.0, 1.0)
    return (values - least) * (255 / max(most - least, 1e-9))


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values stand for no pixel (PS3.3, C.7.5.1.1.2)."""
    first, last = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if first is None:
        return np.zeros(len(stored), bool)
    low, high = sorted((int(first), int(first if last is None else last)))
    return (stored >= low) & (stored <= high)


def _upright(gray: np.ndarray, orientation: Any) -> np.ndarray:
    """Turned so that rows run to the patient's left and columns to the feet, where the header says how they run
    (PS3.3, C.7.6.1.1.1); an oblique or a lateral orientation is left as it is."""
    try:
        row, column = (str(part)[:1].upper() for part in orientation)
    except (TypeError, ValueError):
        return gray
    sides, ends = {"L", "R"}, {"F", "H"}
    if row in ends and column in sides:
        gray, row, column = gray.T, column, row
    if not (row in sides and column in ends):
        return gray
    return gray[:: 1 if column == "F" else -1, :: 1 if row == "L" else -1]
