"""The pixels of DICOM files as stored values, for ``images.values``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from covidjax.errors import ImageError
from covidjax.images import codecs
from covidjax.images.formats import too_many_pixels
from covidjax.images.lookup import Table, expand, table_entries
from covidjax.images.values import ImageInfo, Samples, brightness, from_words

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_RLE = "1.2.840.10008.1.2.5"

_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
"""Transfer syntaxes that may lose detail: JPEG, JPEG-LS, JPEG 2000 and its high-throughput kind."""


def samples(dataset: Dataset, most_pixels: int, at_least: int | None = None) -> Samples:
    """Stored values of a data set.

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
    name = syntax.name if syntax is not None and not syntax.is_private and syntax.name != syntax else "unknown"
    if isinstance(error, NotImplementedError):
        return f"its compression ({name}) is not supported"
    return f"its pixels cannot be decoded (transfer syntax {name})"


class _Reader:
    """Reads the pixels of one data set."""

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
        info = ImageInfo(self._dataset.Columns, self._dataset.Rows, bits)
        samples = Samples(values, bits, "DICOM", info, warnings=self._warnings)
        if self._kind == "PALETTE COLOR":
            samples.values, samples.bits, samples.display = self._palette(values), 8, True
        elif not self._kind.startswith("MONOCHROME") and (values.ndim == 3 or self._kind.startswith(("RGB", "YBR"))):
            samples.display = True
        else:
            samples.values = brightness(values, bits)  # of colours that the header calls gray
        return samples

    def _number(self, name: str, default: int) -> int | None:
        """An element that is a number, or None and a warning where it cannot be used."""
        try:
            return int(self._dataset.get(name, default))
        except (TypeError, ValueError):
            self._warnings.append(f"its {name} cannot be used and is left out")
            return None

    # Stored values

    def _stored(self, at_least: int | None) -> tuple[np.ndarray, int]:
        """Stored values ``[H, W]`` or ``[H, W, C]``, and their bits, 0 for floats."""
        dataset = self._dataset
        for name, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
            if name in dataset:
                values = self._raw(name, np.dtype(kind))
                return values.reshape(dataset.Rows, dataset.Columns).astype(np.float64), 0
        # What the pixels can be read without, and pydicom wants.
        dataset.PixelRepresentation = int(self._signed)
        dataset.PhotometricInterpretation = self._kind
        dataset.SamplesPerPixel = dataset.get("SamplesPerPixel") or 1
        # Of a transfer syntax that nobody knows, whether its pixels have a length of their own.
        syntax, pixels = self._syntax, dataset["PixelData"]
        if syntax == _RLE:
            values, bits = self._runs(), int(dataset.BitsAllocated)
        elif syntax.is_encapsulated if syntax.is_transfer_syntax else pixels.is_undefined_length:
            values, bits = self._compressed(at_least)
            if values.dtype.kind == "i":  # a codestream may know of signs itself
                return values, bits
        else:
            values, bits = self._words(), int(dataset.BitsAllocated)
        if values.ndim == 3 and self._kind in ("YBR_FULL", "YBR_FULL_422"):
            values = values[..., 0]  # luma
        return self._meant(values, bits)

    def _raw(self, name: str, kind: np.dtype[Any], *, row: int = 0) -> np.ndarray:
        """The values of an element as they are stored, ``[N]``; warns where they end as those of a torn file.

        Args:
          name: of the element.
          kind: of a value, but for the order of its bytes.
          row: values of a row, as they are stored; the image's columns if 0.

        Raises:
          ImageError: there are more or fewer than the header says.
        """
        dataset, row = self._dataset, row or int(self._dataset.Columns)
        data = dataset[name].value
        wanted = dataset.Rows * dataset.Columns * int(dataset.get("SamplesPerPixel") or 1) * kind.itemsize
        if self._kind in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            wanted = wanted * 2 // 3
        if kind.itemsize == 1 and dataset.BitsAllocated == 1:
            wanted = -(-dataset.Rows * dataset.Columns // 8)
        if not wanted <= len(data) < wanted + max(row * kind.itemsize, 2):
            raise ImageError(f"damaged DICOM: {len(data)} bytes of pixels, where its header says {wanted}")
        values = np.frombuffer(data, kind.newbyteorder("<" if self._little_endian else ">"), wanted // kind.itemsize)
        rows = len(values) // row
        stored = values[: rows * row].reshape(rows, row)
        self._warnings.append(codecs.zeros_warning(stored, dataset[name].file_tell or 0))
        return values

    def _words(self) -> np.ndarray:
        """Values that are stored as they are, each in its word."""
        dataset = self._dataset
        allocated = int(dataset.BitsAllocated)
        interleaved = int(dataset.SamplesPerPixel) if not dataset.get("PlanarConfiguration") else 1
        self._raw("PixelData", np.dtype(f"u{max(allocated // 8, 1)}"), row=dataset.Columns * interleaved)
        return self._by_pydicom()

    def _by_pydicom(self) -> np.ndarray:
        from pydicom.pixels.utils import pixel_array

        dataset = self._dataset
        stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
        if not self._syntax.is_encapsulated:  # whole words, of which this class knows what counts
            dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
        values = pixel_array(dataset, raw=True)
        dataset.BitsStored, dataset.HighBit = stored, high
        if values.shape[:2] != (dataset.Rows, dataset.Columns):
            raise ImageError(f"damaged DICOM: {'×'.join(map(str, values.shape))} values, which is no image")
        return values

    def _frame(self) -> bytes:
        from pydicom.encaps import get_frame

        return get_frame(self._dataset.PixelData, 0, number_of_frames=1)

    def _runs(self) -> np.ndarray:
        dataset = self._dataset
        rows, columns, channels = dataset.Rows, dataset.Columns, int(dataset.SamplesPerPixel)
        kind = np.dtype(f"<u{int(dataset.BitsAllocated) // 8}")
        planes = codecs.decode_rle(self._frame(), kind, rows * columns * channels).reshape(channels, rows, columns)
        return planes[0] if channels == 1 else np.moveaxis(planes, 0, -1)

    def _compressed(self, at_least: int | None) -> tuple[np.ndarray, int]:
        """Values of a codestream, and its bits."""
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
        return image.values, header.bits

    def _meant(self, values: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
        """The values that the header means, of those of so many bits that were decoded, and their bits."""
        dataset = self._dataset
        stored = self._number("BitsStored", bits) or bits
        high = self._number("HighBit", stored - 1)
        if not 0 < stored <= int(dataset.get("BitsAllocated") or bits):
            self._warnings.append("its BitsStored cannot be used and is left out")
            stored, high = bits, bits - 1
        stored = min(stored, bits)
        if high is not None and high < stored - 1:
            self._warnings.append("its HighBit cannot be used and is left out")
        if high is None or not stored - 1 <= high < bits:  # a codestream may hold the values alone
            high = stored - 1
        if bits == 1:
            return values, bits
        if stored < bits and self._syntax in _LOSSY:
            # Beyond the bits there is what the compression added, and no other values.
            if not self._signed:
                return np.minimum(values, 2**stored - 1), stored
            stored, high = bits, bits - 1
        return from_words(values, stored=stored, high=high, signed=self._signed), stored

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
        most = 65280 if upper else 2 ** max(greatest.bit_length(), 8) - 1
        colours = [Table(entries, first, 0)(values) for entries, first, _ in tables]
        return np.rint(np.stack(colours, -1) * (255 / most)).astype(np.uint8)
