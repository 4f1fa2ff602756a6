"""The pixels of DICOM files as stored values, and what their headers say of these, for ``images.values``.

An element that an image can do without and that cannot be used is left out, with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from covidjax.errors import ImageError
from covidjax.images import codecs
from covidjax.images.formats import too_many_pixels
from covidjax.images.lookup import Table, expand, table_bits, table_entries
from covidjax.images.values import ImageInfo, Linear, Samples, Window, from_words

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")

MOST_ASPECT = 4.0
"""Most times that a pixel may be as high as wide, or as wide as high; more is a mistake of the header."""

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_RLE = "1.2.840.10008.1.2.5"


def samples(dataset: Dataset, most_pixels: int, at_least: int | None = None) -> Samples:
    """Stored values of a data set, and what its header says of them.

    Args:
      dataset: see ``read``.
      most_pixels: images of more are refused before they are decoded.
      at_least: a side in pixels that suffices, see ``decode.read``.

    Raises:
      ImageError: several frames, no image, a compression that cannot be decoded, damage.
    """
    if not any(name in dataset for name in _PIXELS):
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
        return _Reader(dataset).samples(at_least)
    except (ImageError, MemoryError):
        raise
    # Of a damaged file pydicom and its decoders raise nearly anything, and their messages may quote the header.
    except Exception as error:
        raise ImageError(f"damaged DICOM: {_fault(dataset, error)}") from error


def _fault(dataset: Dataset, error: Exception) -> str:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if isinstance(error, NotImplementedError):
        return f"its compression ({getattr(syntax, 'name', 'unknown')}) is not supported"
    name = syntax.name if syntax is not None and not syntax.is_private and syntax.name != syntax else "unknown"
    return f"its pixels cannot be decoded (transfer syntax {name})"


class _Reader:
    """Reads one data set; gathers warnings of what it leaves out."""

    def __init__(self, dataset: Dataset):
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

        self._dataset, self._warnings = dataset, []
        dataset.ensure_file_meta()
        if "TransferSyntaxUID" not in dataset.file_meta:
            # A data set without a preamble: stored as it was sent, uncompressed.
            implicit = dataset.original_encoding[0]
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        self._syntax = dataset.file_meta.TransferSyntaxUID
        self._little_endian = bool(dataset.original_encoding[1])
        self._kind = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper()
        self._signed = dataset.get("PixelRepresentation") == 1

    def samples(self, at_least: int | None) -> Samples:
        """See the function of that name."""
        values, bits = self._stored(at_least)
        self._least, self._most = float(values.min()), float(values.max())
        info = ImageInfo(self._dataset.Columns, self._dataset.Rows, bits)
        found = Samples(values, bits, "DICOM", info, warnings=self._warnings)
        if self._kind == "PALETTE COLOR":
            found.values, found.bits = self._palette(values), 8
        elif values.ndim == 3 or self._kind.startswith(("RGB", "YBR")):
            found.display = True
        else:
            found.modality = self._optional("RescaleSlope or RescaleIntercept", self._rescaling)
            table = self._optional("ModalityLUTSequence", lambda: self._table("ModalityLUTSequence", None))
            found.modality = table or found.modality
            found.voi = self._optional("VOILUTSequence", lambda: self._table("VOILUTSequence", found))
            found.voi = found.voi or self._optional("WindowCenter or WindowWidth", self._window)
            found.padding = self._optional("PixelPaddingValue", lambda: self._padding(bits))
            found.inverse = self._is_inverse()
        found.aspect = self._optional("PixelAspectRatio or PixelSpacing", self._aspect) or 1.0
        found.orientation = self._orientation()
        self._warnings[:] = dict.fromkeys(filter(None, self._warnings))
        return found

    def _optional(self, name: str, use: Callable[[], T]) -> T | None:
        """What an element says, or None and a warning where it cannot be used."""
        try:
            return use()
        # pydicom raises nearly anything where a value is damaged.
        except Exception:
            self._warnings.append(f"its {name} cannot be used and is left out")
            return None

    # Stored values

    def _stored(self, at_least: int | None) -> tuple[np.ndarray, int]:
        """Stored values ``[H, W]`` or ``[H, W, C]``, and their bits, 0 for floats."""
        dataset = self._dataset
        for name, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
            if name in dataset:
                order = "<" if self._little_endian else ">"
                values = np.frombuffer(dataset[name].value, f"{order}{kind}")
                return values.reshape(dataset.Rows, dataset.Columns).astype(np.float64), 0
        # Of a transfer syntax that nobody knows, whether its pixels have a length of their own.
        compressed = (
            self._syntax.is_encapsulated if self._syntax.is_transfer_syntax else dataset["PixelData"].is_undefined_length
        )
        if compressed and self._syntax != _RLE:
            return self._compressed(at_least)
        return self._words()

    def _words(self) -> tuple[np.ndarray, int]:
        """Values that are stored as they are, or run by run."""
        dataset = self._dataset
        allocated = int(dataset.BitsAllocated)
        # What the pixels can be read without, and pydicom wants.
        dataset.PixelRepresentation = int(self._signed)
        dataset.PhotometricInterpretation = self._kind
        dataset.SamplesPerPixel = dataset.get("SamplesPerPixel") or 1
        stored = self._optional("BitsStored", lambda: int(dataset.BitsStored)) or allocated
        high = self._optional("HighBit", lambda: int(dataset.get("HighBit", stored - 1)))
        if not 0 < stored <= allocated:
            self._warnings.append("its BitsStored cannot be used and is left out")
            stored = allocated
        if high is None or not stored - 1 <= high < allocated:
            self._warnings.append("its HighBit cannot be used and is left out")
            high = stored - 1
        # pydicom takes the values for those of the lowest bits.
        dataset.BitsStored, dataset.HighBit = allocated, allocated - 1
        words = self._by_pydicom()
        if self._syntax != _RLE:
            self._warnings.append(codecs.zeros_warning(words, dataset["PixelData"].file_tell or 0))
        else:
            codecs.check_compressed(self._frame())
        if self._kind.startswith("YBR") and words.ndim == 3:
            words = words[..., 0]
        if allocated == 1:
            return words, 1
        return from_words(words, stored=stored, high=high, signed=self._signed), stored

    def _by_pydicom(self) -> np.ndarray:
        from pydicom.pixels.utils import pixel_array

        return pixel_array(self._dataset, raw=True)

    def _frame(self) -> bytes:
        from pydicom.encaps import get_frame

        return get_frame(self._dataset.PixelData, 0, number_of_frames=1)

    def _compressed(self, at_least: int | None) -> tuple[np.ndarray, int]:
        dataset, frame = self._dataset, self._frame()
        try:
            header = codecs.header(frame)
            if (header.height, header.width) != (dataset.Rows, dataset.Columns):
                size = f"{header.width}×{header.height}"
                raise ImageError(f"damaged DICOM: a header of {dataset.Columns}×{dataset.Rows} pixels, an image of {size}")
            image = codecs.decode(frame, header, at_least)
        except ImageError:
            raise
        # The decoder declines it: the next ones may know how.
        except Exception:
            values = self._by_pydicom()
            self._warnings.append("decoded by its second decoder, since the first declined it")
            return values, int(dataset.BitsStored)
        self._warnings += image.warnings
        values, bits = image.values, header.bits
        if values.ndim == 3 and self._kind in ("YBR_FULL", "YBR_FULL_422"):
            values = values[..., 0]
        if self._signed and values.dtype.kind == "u":
            values = from_words(values, stored=bits, high=bits - 1, signed=True)
        # Of fewer bits than the codestream's, where all values are within them.
        stored = int(dataset.get("BitsStored") or bits)
        if 0 < stored < bits and values.min() >= -(2 ** (stored - 1)) * self._signed and values.max() < 2**stored:
            bits = stored
        return values, bits

    def _palette(self, values: np.ndarray) -> np.ndarray:
        """Colours by number → uint8 RGB ``[H, W, 3]`` (PS3.3, C.7.6.3.1.5 and C.7.9)."""
        dataset, tables = self._dataset, []
        for colour in ("Red", "Green", "Blue"):
            count, first, declared = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
            count, first = count or 2**16, first - 2**16 if self._signed and first >= 2**15 else first
            name = f"{colour}PaletteColorLookupTableData"
            if name in dataset:
                entries = table_entries(dataset[name].value, count, little_endian=self._little_endian)
            else:
                entries = expand(dataset[f"Segmented{name}"].value, count, declared, little_endian=self._little_endian)
            if entries is None:
                raise ImageError("damaged DICOM: its palette has fewer entries than it declares")
            tables.append((entries, first, declared))
        greatest = max(int(entries.max()) for entries, _, _ in tables)
        # Of 8 bits also where they lie in the upper half of their words.
        upper = greatest > 255 and tables[0][2] == 8 and not any((entries & 0xFF).any() for entries, _, _ in tables)
        most = 65280 if upper else 255 if greatest < 256 else 65535
        colours = [Table(entries, first, 0)(values) for entries, first, _ in tables]
        return np.rint(np.stack(colours, -1) * (255 / most)).astype(np.uint8)

    # What the header says of the values

    def _rescaling(self) -> Linear | None:
        slope, intercept = self._dataset.get("RescaleSlope"), self._dataset.get("RescaleIntercept")
        linear = Linear(1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept))
        if not all(map(math.isfinite, linear)) or not linear.slope:
            raise ValueError("no rescaling")
        return None if linear == (1, 0) else linear

    def _table(self, name: str, found: Samples | None) -> Table | None:
        """The table of a sequence, which has one, or of several the first; None where there is none."""
        sequence = self._dataset.get(name)
        if not sequence:
            return None
        count, first, declared = (int(number) for number in sequence[0]["LUTDescriptor"].value)
        entries = table_entries(sequence[0]["LUTData"].value, count % 2**16 or 2**16, little_endian=self._little_endian)
        if entries is None:
            raise ValueError("too few entries")
        # The sign of the first value is that of the values looked up, whatever the device made of it.
        first %= 2**16
        wrapped = first - 2**16
        values = self._ends(found)
        if _overlap(wrapped, len(entries), *values) > _overlap(first, len(entries), *values):
            first = wrapped
        return Table(entries, first, table_bits(entries, declared))

    def _ends(self, found: Samples | None) -> tuple[float, float]:
        """Least and greatest value that is looked up in a table: a stored one, or one after the modality's step."""
        if found is None:
            return self._least, self._most
        ends = np.linspace(self._least, self._most, 256)
        ends = found.modality(ends) if found.modality else ends
        return float(ends.min()), float(ends.max())

    def _window(self) -> Window | None:
        """The first window that can be used (PS3.3, C.11.2.1.2)."""
        dataset = self._dataset
        if dataset.get("WindowCenter") in (None, "") and dataset.get("WindowWidth") in (None, ""):
            return None
        function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            self._warnings.append("its VOILUTFunction cannot be used and is left out")
            function = "LINEAR"
        centers, widths = (np.atleast_1d(dataset[name].value).astype(float) for name in ("WindowCenter", "WindowWidth"))
        for center, width in zip(centers.tolist(), widths.tolist(), strict=False):
            if math.isfinite(center) and math.isfinite(width) and width > 0:
                return Window(center, width, function)
        raise ValueError("no window")

    def _padding(self, bits: int) -> tuple[int, int] | None:
        """Which stored values stand for no pixel (PS3.3, C.7.5.1.1.2)."""
        first, last = self._dataset.get("PixelPaddingValue"), self._dataset.get("PixelPaddingRangeLimit")
        if first is None or not bits:
            return None
        ends = [int(first), int(first if last is None else last)]
        if self._signed:  # whatever sign the header gives them
            half = 2 ** (bits - 1)
            ends = [(end + half) % 2**bits - half for end in ends]
        else:
            ends = [end % 2**16 if end < 0 else end for end in ends]
        return min(ends), max(ends)

    def _is_inverse(self) -> bool:
        """PresentationLUTShape goes before the photometric interpretation, with which it should agree (PS3.3, C.8.11.3)."""
        inverse = self._kind == "MONOCHROME1"
        shape = str(self._dataset.get("PresentationLUTShape") or "").strip().upper()
        if shape not in ("INVERSE", "IDENTITY") or (shape == "INVERSE") == inverse:
            return inverse
        self._warnings.append(f"{self._kind} with PresentationLUTShape {shape}, by which it is shown")
        return not inverse

    def _aspect(self) -> float | None:
        """Height of a pixel divided by its width (PS3.3, C.7.6.3.1.7); None where nothing says so."""
        for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            value = self._dataset.get(name)
            if value in (None, "") or not len(value):
                continue
            height, width = (float(number) for number in value)
            if not height and not width:  # as some write what they do not know
                continue
            if not (height > 0 and width > 0 and 1 / MOST_ASPECT <= height / width <= MOST_ASPECT):
                raise ValueError("no aspect")
            return height / width if abs(height / width - 1) > 0.01 else 1.0
        return None

    def _orientation(self) -> int:
        """The EXIF orientation by which rows run to the patient's left and columns to the feet, where the header says how
        they run (PS3.3, C.7.6.1.1.1); an oblique or a lateral one is left as it is."""
        try:
            row, column = (str(part)[:1].upper() for part in self._dataset.get("PatientOrientation"))
        except Exception:
            return 1
        places = {"LF": 1, "RF": 2, "RH": 3, "LH": 4, "FL": 5, "HL": 6, "HR": 7, "FR": 8}
        return places.get(row + column, 1)


def _overlap(first: int, count: int, least: float, most: float) -> float:
    """How much of the values from ``least`` to ``most`` a table has entries for."""
    return min(first + count - 1, most) - max(first, least)
