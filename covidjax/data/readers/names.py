"""What the file names of public collections say about patients, and the keys that stand for patients and images.

A patient's key is ``<collection>:<number>`` where a collection published the number, ``series:<name>`` where only images of
one series are known to belong together, and ``file:<source>/<path>`` where nothing is known. Nothing else in the project
looks at how a key begins.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

# The parts at the end of an image's name that tell one image of a patient from another: projection, day, figure, panel.
_SERIES_END = re.compile(
    r"([-_.\s]*(?:\b|(?<=[-_\d]))("
    r"pa|ap|l|lat|left|right|supine|frontal|day[-_]?\d+|\d+[-_](?:hours?|days?)|admission|discharge|initial|follow[-_]?up"
    r"|g\d+|gr\d+(?:_lrg)?|fig[-_]?\d+[a-z]?|f\d+[a-z]?|figure[-_]?\d+[a-z]?|[a-z]\d?|lrg|jumbo|html|(?<!\d)\d_\d"
    r"))+$"
)

_PUBLISHED = {
    r"(\d{8})_\d{3}\b": "nih:",
    r"(person\d+)_": "kermany:",
    r"((?:NORMAL2-)?IM-\d+)-\d+": "kermany:",
    r"((?:MCU|CHN)CXR_\d+)_": "nlm:",
    r"(phantom-\d+-\d+)-\d+": "",
}
"""Names that tell the patient: NIH ChestX-ray8 ``<patient>_<number>``, Kermany ``person<number>_…`` and ``IM-<number>-…``,
Montgomery ``MCUCXR_<number>_…`` and Shenzhen ``CHNCXR_<number>_…``, the synthetic images of this package."""

_SERIES, _FILE = "series:", "file:"


def series_of(name: str) -> str:
    """The stem of an image's name without what marks one image of a series, so that a patient's series keeps together.

    >>> series_of("covid-19-pneumonia-24-day12.jpg"), series_of("nejmc2001573_f1b.jpeg")
    ('covid-19-pneumonia-24', 'nejmc2001573')
    """
    stem = Path(name).stem.lower()
    if re.fullmatch(r"[0-9a-f-]{7,}", stem):  # a random identifier: its last letters mark nothing
        return stem
    short = _SERIES_END.sub("", stem)
    return short if len(short) >= 4 else stem


def published_patient(name: str) -> str | None:
    """The key of the patient that a published file name tells, or None."""
    for pattern, collection in _PUBLISHED.items():
        if match := re.match(pattern, name):
            return collection + match[1]
    return None


def patient_of(name: str) -> str:
    """The key of the patient that a published file name tells; any other name stands for its series of images."""
    return published_patient(name) or _SERIES + series_of(name)


def file_patient(source: str, path: PurePath) -> str:
    """The key of a patient of whom nothing is known but one image: its path below the source's folder."""
    return f"{_FILE}{source}/{path.with_suffix('')}"


def is_published(key: str) -> bool:
    """Whether a patient's key is a number by which the patient can be looked up in a published collection."""
    return not key.startswith((_SERIES, _FILE))


def is_one_file(key: str) -> bool:
    """Whether a patient's key stands for a single file, so that it means nothing in another dataset."""
    return key.startswith(_FILE)


def image_key(name: str) -> str:
    """The name that one image has in every collection that holds it: its stem, whatever the ending."""
    return f"image:{Path(name).stem.lower()}"
