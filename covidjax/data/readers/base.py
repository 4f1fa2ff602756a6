"""What every reader of a collection returns, and what the file names of public collections say about patients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from covidjax.images.find import walk


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


def list_images(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Every film below a folder, sorted; other files are counted into ``left_out``."""
    found = walk(folder)
    left_out["not an image file, by its ending"] += found.others
    for path, reason in found.unreadable:
        left_out[f"in the folder {path}, which cannot be read: {reason}"] += 1
    return found.films
