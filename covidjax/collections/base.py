"""What every reader of a collection returns, and what the file names of public collections say about patients."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from covidjax.archives import is_archive
from covidjax.config import UserError
from covidjax.radiograph import may_be_film


@dataclass(frozen=True)
class Example:
    """One film of a collection."""

    path: Path
    label: str
    """Class name, one of ``covidjax.config.CLASSES``; where there is a mask, its kind, one of ``covidjax.config.MASKS``."""
    patient: str
    """Whose film it is: films of one patient never stand in two folds."""
    source: str
    """Name of the collection it came from."""
    view: str = ""
    """Projection (PA, AP, AP Supine), where the collection states it."""
    film: str = ""
    """Name of the original film, where it is known: the same film in two collections belongs to one patient."""
    mask: Path | None = None
    """Its lung mask."""


@dataclass
class Collection:
    """The films of one source folder and what was left out of it."""

    root: Path
    layout: str
    source: str
    """The name its films carry."""
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → number of files."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about it."""
    empty: list[Path] = field(default_factory=list)
    """Class folders that hold no film."""


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns; what a row lacks is empty.

    Raises:
      UserError: it cannot be read as text in UTF-8, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets put a byte order mark first
            reader = csv.DictReader(file, restval="")
            missing = sorted(set(columns) - set(reader.fieldnames or ()))
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)}; give it that header.")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8 ({error}); mend the file.") from error


class Walked(NamedTuple):
    """What lies below a folder."""

    films: list[Path]
    others: int
    """Other files."""
    unreadable: list[tuple[Path, str]]
    """Folders whose files nobody knows of, with the reasons."""


def walk(folder: Path, *, archives: bool = False) -> Walked:
    """Every film below a folder, sorted, and every archive too if asked for. Links to folders are followed, each folder
    is read once; names that begin with a dot are left alone."""
    found, others = [], 0
    unreadable: list[tuple[Path, str]] = []
    seen = set()

    def note(error: OSError) -> None:
        unreadable.append((Path(error.filename), error.strerror or str(error)))

    for directory, subfolders, names in os.walk(folder, onerror=note, followlinks=True):
        try:
            status = Path(directory).stat()
        except OSError as error:  # removed in the meantime
            note(error)
            subfolders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        paths = (Path(directory, name) for name in visible)
        mine = [path for path in paths if (archives and is_archive(path)) or may_be_film(path)]
        found += mine
        others += len(visible) - len(mine)
    return Walked(found, others, unreadable)


def films(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Every film below a folder, sorted; other files are counted into ``left_out``."""
    found = walk(folder)
    left_out["not an image file, by its ending"] += found.others
    for path, reason in found.unreadable:
        left_out[f"in the folder {path}, which cannot be read: {reason}"] += 1
    return found.films


# The parts at the end of a film's name that tell one film of a patient from another: projection, day, figure, panel.
_SERIES_END = re.compile(
    r"([-_.\s]*(?:\b|(?<=[-_\d]))("
    r"pa|ap|l|lat|left|right|supine|frontal|day[-_]?\d+|\d+[-_](?:hours?|days?)|admission|discharge|initial|follow[-_]?up"
    r"|g\d+|gr\d+(?:_lrg)?|fig[-_]?\d+[a-z]?|f\d+[a-z]?|figure[-_]?\d+[a-z]?|[a-z]\d?|lrg|jumbo|html|(?<!\d)\d_\d"
    r"))+$"
)


def series(name: str) -> str:
    """The stem of a film's name without what marks one film of a series, so that a patient's series keeps together.

    >>> series("covid-19-pneumonia-24-day12.jpg"), series("nejmc2001573_f1b.jpeg")
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
    return f"series:{series(name)}"


def film_of(name: str) -> str:
    """The name that one film has in every collection that holds it: its stem, whatever the ending."""
    return f"film:{Path(name).stem.lower()}"
