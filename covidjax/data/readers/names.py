"""What the file names of public collections say about patients."""

from __future__ import annotations

import re
from pathlib import Path

# The parts at the end of a film's name that tell one film of a patient from another: projection, day, figure, panel.
_SERIES_END = re.compile(
    r"([-_.\s]*(?:\b|(?<=[-_\d]))("
    r"pa|ap|l|lat|left|right|supine|frontal|day[-_]?\d+|\d+[-_](?:hours?|days?)|admission|discharge|initial|follow[-_]?up"
    r"|g\d+|gr\d+(?:_lrg)?|fig[-_]?\d+[a-z]?|f\d+[a-z]?|figure[-_]?\d+[a-z]?|[a-z]\d?|lrg|jumbo|html|(?<!\d)\d_\d"
    r"))+$"
)


def series_of(name: str) -> str:
    """The stem of a film's name without what marks one film of a series, so that a patient's series keeps together.

    >>> series_of("covid-19-pneumonia-24-day12.jpg"), series_of("nejmc2001573_f1b.jpeg")
    ('covid-19-pneumonia-24', 'nejmc2001573')
    """
    stem = Path(name).stem.lower()
    if re.fullmatch(r"[0-9a-f-]{7,}", stem):  # a random identifier: its last letters mark nothing
        return stem
    short = _SERIES_END.sub("", stem)
    return short if len(short) >= 4 else stem


def patient_of(name: str) -> str:
    """The patient that a published file name tells.

    NIH ChestX-ray8 ``<patient>_<number>``, Kermany ``person<number>_…`` and ``IM-<number>-…``, Montgomery
    ``MCUCXR_<number>_…`` and Shenzhen ``CHNCXR_<number>_…``, the phantoms of this
    package; any other name stands for the series of films it belongs to.
    """
    if match := re.match(r"(\d{8})_\d{3}\b", name):
        return f"nih:{match[1]}"
    if match := re.match(r"(person\d+)_", name):
        return f"kermany:{match[1]}"
    if match := re.match(r"((?:NORMAL2-)?IM-\d+)-\d+", name):
        return f"kermany:{match[1]}"
    if match := re.match(r"((?:MCU|CHN)CXR_\d+)_", name):
        return f"nlm:{match[1]}"
    if match := re.match(r"(phantom-\d+-\d+)-\d+", name):
        return match[1]
    return f"series:{series_of(name)}"


def image_key(name: str) -> str:
    """The name that one film has in every collection that holds it: its stem, whatever the ending."""
    return f"film:{Path(name).stem.lower()}"
