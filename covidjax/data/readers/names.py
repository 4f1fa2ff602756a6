"""What the file names of public collections say about patients, and the keys that stand for patients and images.

A patient's key is ``<collection>:<number>`` where a collection published the number, ``patient:<key>:<hash>`` where a
hospital's own number was hashed (see ``data.patients``), ``study:…`` likewise where only images of one study,
``series:<name>`` where only images of one series are known to belong together, and ``file:<source>/<path>`` where nothing
is known. Nothing else in the project looks at how a key begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

# The parts at the end of an image's name that tell one image of a patient from another: projection, day, figure, panel.
_SERIES_END = re.compile(
    r"([-_.\s]*(?:\b|(?<=[-_\d]))("
    r"pa|ap|l|lat|left|right|supine|frontal|day[-_]?\d+|\d+[-_](?:hours?|days?)|admission|discharge|initial|follow[-_]?up"
    r"|g\d+|gr\d+(?:_lrg)?|fig[-_]?\d+[a-z]?|f\d+[a-z]?|figure[-_]?\d+[a-z]?|[a-z]\d?|lrg|jumbo|html|(?<!\d)\d_\d"
    r"))+$"
)

_UNMISTAKABLE = {
    r"(000\d{5})_\d{3}\b": "nih:",
    r"(person\d+)_(?:virus|bacteria)_\d": "kermany:",
    r"(NORMAL2-IM-\d+)-\d+": "kermany:",
    r"((?:MCU|CHN)CXR_\d+)_": "nlm:",
    r"(phantom-\d+-\d+)-\d+": "",
}
"""Names that tell the patient, and that no hospital's system gives by chance: NIH ChestX-ray8 ``<patient>_<number>`` of
30,805 patients, so that no date is one, Kermany ``person<number>_virus_…``, Montgomery ``MCUCXR_<number>_…`` and Shenzhen
``CHNCXR_<number>_…``, the synthetic images of this package."""

_PUBLISHED = _UNMISTAKABLE | {r"(IM-\d+)-\d+": "kermany:"}
"""Kermany's normal X-rays are ``IM-<number>-…``, and so are the files of many a PACS export, whose numbers count anew in
each: that name means something in a published collection only."""

LEAST_SHARE = 0.1
"""In Kermany's collection it is far more."""

_FILE, _SERIES, _STUDY, _HASHED, _TABLE = "file:", "series:", "study:", "patient:", "table:"
_PREFIXES = (_FILE, _SERIES, _STUDY, _HASHED)
"""From what says least to what says most; a published number says more."""


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
    """The key of the patient that a file name tells in a published collection, or None."""
    return _told_by(name, _PUBLISHED)


def unmistakable_patient(name: str) -> str | None:
    """The key of the patient that a file name tells wherever the file lies, or None."""
    return _told_by(name, _UNMISTAKABLE)


def patients_of_collection(images: Iterable[tuple[str, str]]) -> list[str | None]:
    """The keys of the patients that the file names of one collection tell: unmistakable ones and, where these images are
    Kermany's, the others of its names too. A stray image of Kermany's among a hospital's makes them none: at least
    ``LEAST_SHARE`` of Kermany's names are unmistakable, and its others, of normal X-rays, lie in no class with pneumonia.

    Args:
      images: name and class of each.
    """
    images = list(images)
    patients = [unmistakable_patient(name) for name, _ in images]
    others = [label for (name, label), key in zip(images, patients, strict=True) if not key and published_patient(name)]
    sure = [(key, label) for key, (_, label) in zip(patients, images, strict=True) if key and key.startswith("kermany:")]
    with_pneumonia = {label for key, label in sure if key.startswith("kermany:person")}
    enough = len(sure) >= LEAST_SHARE * (len(sure) + len(others))
    if sure and enough and not with_pneumonia.intersection(others):
        patients = [key or published_patient(name) for key, (name, _) in zip(patients, images, strict=True)]
    return patients


def _told_by(name: str, patterns: Mapping[str, str]) -> str | None:
    matches = ((collection, re.match(pattern, name)) for pattern, collection in patterns.items())
    return next((collection + match[1] for collection, match in matches if match), None)


def patient_of(name: str) -> str:
    """The key of the patient that a published file name tells; any other name stands for its series of images."""
    return published_patient(name) or _SERIES + series_of(name)


def file_patient(source: str, path: PurePath) -> str:
    """The key of a patient of whom nothing is known but one image: its path below the source's folder."""
    return f"{_FILE}{source}/{path.with_suffix('')}"


def table_patient(number: str) -> str:
    """What stands for a patient's number of a user's table until ``data.patients`` hashes it."""
    return _TABLE + number


def number_in_table(key: str) -> str | None:
    """The number that ``table_patient`` was given, or None where the key is another."""
    return key.removeprefix(_TABLE) if key.startswith(_TABLE) else None


def hashed_patient(key_name: str, digest: str, *, study: bool = False) -> str:
    """The key of a patient, or of a study, whose number was hashed with a key of that name."""
    return f"{_STUDY if study else _HASHED}{key_name}:{digest}"


def key_name(key: str) -> str | None:
    """The name of the key that a patient's number was hashed with; None where it was not hashed."""
    return key.split(":")[1] if key.startswith((_HASHED, _STUDY)) else None


def certainty(key: str) -> int:
    """How much a patient's key says, from 0 for a single file to 4 for a published number."""
    return next((rank for rank, prefix in enumerate(_PREFIXES) if key.startswith(prefix)), len(_PREFIXES))


def is_published(key: str) -> bool:
    """Whether a patient's key is a number by which the patient can be looked up in a published collection."""
    return certainty(key) == len(_PREFIXES)


def is_known(key: str) -> bool:
    """Whether a patient's key tells the patient, so that all images of one have it."""
    return certainty(key) >= _PREFIXES.index(_HASHED)


def is_one_file(key: str) -> bool:
    """Whether a patient's key stands for a single file, so that it means nothing in another dataset."""
    return key.startswith(_FILE)


def image_key(name: str) -> str:
    """The name that one image has in every collection that holds it: its stem, whatever the ending."""
    return f"image:{Path(name).stem.lower()}"
