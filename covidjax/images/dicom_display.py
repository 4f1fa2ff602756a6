"""What DICOM headers say of how stored values are shown, for ``images.values``.

An element that an image can do without and that cannot be used is left out, with a warning.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from covidjax.images.lookup import Table, table_bits, table_entries
from covidjax.images.values import Linear, Samples, Window

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")

MOST_ASPECT = 4.0
"""Most times that a pixel may be as high as wide, or as wide as high; more is a mistake of the header."""


def describe(samples: Samples, dataset: Dataset) -> None:
    """Add to the stored values of a data set what its header says of them."""
    _Header(samples, dataset).describe()


class _Header:
    """Reads one header; gathers warnings of what it leaves out."""

    def __init__(self, samples: Samples, dataset: Dataset):
        self._samples, self._dataset, self._warnings = samples, dataset, samples.warnings
        self._least, self._most = float(samples.values.min()), float(samples.values.max())
        self._kind = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper()
        self._signed = dataset.get("PixelRepresentation") == 1
        self._little_endian = bool(dataset.original_encoding[1])

    def describe(self) -> None:
        """See the function of that name."""
        samples = self._samples
        if not samples.display:
            samples.modality = self._optional("RescaleSlope or RescaleIntercept", self._rescaling)
            table = self._optional("ModalityLUTSequence", lambda: self._table("ModalityLUTSequence", None))
            samples.modality = table or samples.modality
            samples.voi = self._optional("VOILUTSequence", lambda: self._table("VOILUTSequence", samples))
            samples.voi = samples.voi or self._optional("WindowCenter or WindowWidth", self._window)
            samples.padding = self._optional("PixelPaddingValue", lambda: self._padding(samples.bits))
            samples.inverse = self._is_inverse()
        samples.aspect = self._optional("PixelAspectRatio or PixelSpacing", self._aspect) or 1.0
        samples.orientation = self._orientation()

    def _optional(self, name: str, use: Callable[[], T]) -> T | None:
        """What an element says, or None and a warning where it cannot be used."""
        try:
            return use()
        # pydicom raises nearly anything where a value is damaged.
        except Exception:
            self._warnings.append(f"its {name} cannot be used and is left out")
            return None

    def _rescaling(self) -> Linear | None:
        slope, intercept = self._dataset.get("RescaleSlope"), self._dataset.get("RescaleIntercept")
        linear = Linear(1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept))
        if not all(map(math.isfinite, linear)) or not linear.slope:
            raise ValueError("no rescaling")
        return None if linear == (1, 0) else linear

    def _table(self, name: str, samples: Samples | None) -> Table | None:
        """The first table of a sequence that can be used; None where there is none at all."""
        for item in self._dataset.get(name) or ():
            with contextlib.suppress(Exception):  # pydicom raises nearly anything where a value is damaged
                return self._table_of(item, samples)
        if self._dataset.get(name):
            raise ValueError("no table")
        return None

    def _table_of(self, item: Dataset, samples: Samples | None) -> Table:
        count, first, declared = (int(number) for number in item["LUTDescriptor"].value)
        entries = table_entries(item["LUTData"].value, count % 2**16 or 2**16, little_endian=self._little_endian)
        if entries is None:
            raise ValueError("too few entries")
        # The sign of the first value is that of the values looked up, whatever the device made of it.
        first %= 2**16
        wrapped = first - 2**16
        values = self._ends(samples)
        if _overlap(wrapped, len(entries), *values) > _overlap(first, len(entries), *values):
            first = wrapped
        return Table(entries, first, table_bits(entries, declared))

    def _ends(self, samples: Samples | None) -> tuple[float, float]:
        """Least and greatest value that is looked up in a table: a stored one, or one after the modality's step."""
        if samples is None:
            return self._least, self._most
        ends = np.linspace(self._least, self._most, 256)
        ends = samples.modality(ends) if samples.modality else ends
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
        unusable = False
        for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            height, width = 0.0, 0.0
            with contextlib.suppress(Exception):  # as in _table
                height, width = (float(number) for number in self._dataset.get(name) or (0, 0))
            if height > 0 and width > 0 and 1 / MOST_ASPECT <= height / width <= MOST_ASPECT:
                return height / width if abs(height / width - 1) > 0.01 else 1.0
            unusable |= bool(height or width)  # two zeros are what some write where they do not know
        if unusable:
            raise ValueError("no aspect")
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
