"""Layouts with one subfolder a class: any folder of one's own, Ozturk's set, the Kaggle COVID-19 Radiography Database."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from covidjax.collections.base import Collection, Example, film_of, films, patient_of

OZTURK = {"Covid-19": "COVID-19", "No_findings": "No-Findings", "Pneumonia": "Pneumonia"}
"""github muhammedtalo/COVID-19 (Ozturk et al. 2020): COVID-19 films of ieee8023, the rest of NIH ChestX-ray8."""

RADIOGRAPHY = {"COVID-19": "COVID-19", "NORMAL": "No-Findings", "Viral Pneumonia": "Pneumonia"}
"""Kaggle COVID-19 Radiography Database, first version (Chowdhury et al. 2020): ieee8023 and Kermany et al. 2018."""

_ALIASES = {
    "COVID-19": ("covid", "covid19", "coronavirus", "sarscov2"),
    "No-Findings": ("nofinding", "nofindings", "normal", "healthy", "clear", "negative"),
    "Pneumonia": ("pneumonia", "viralpneumonia", "bacterialpneumonia", "otherpneumonia"),
}


def class_of(folder: str) -> str | None:
    """The class that a folder name or a label stands for (``Covid-19``, ``covid``, ``NORMAL``, …), or None."""
    plain = re.sub(r"[^a-z0-9]", "", folder.lower())
    return next((label for label, names in _ALIASES.items() if plain in names), None)


def class_folders(root: Path) -> dict[Path, str]:
    """The subfolders of ``root`` whose names are classes."""
    found = {}
    for path in sorted(root.iterdir()):
        label = class_of(path.name) if path.is_dir() else None
        if label:
            found[path] = label
    return found


def read_folder(root: Path, source: str) -> Collection:
    """One subfolder a class, any nesting below it; a subfolder that is no class is left out and counted.

    Names as NIH and Kermany give them tell the patient; any other file is a patient of its own.
    """
    collection = Collection(root, "folder", source)
    folders = class_folders(root)
    for path in sorted(root.iterdir()):
        if path.is_dir() and path not in folders:
            count = len(films(path, collection.left_out))
            collection.left_out[f"folder {path.name!r} names no class"] += count
        elif path.is_file() and not path.name.startswith("."):
            collection.left_out["beside the class folders, so of no class"] += 1
    for folder, label in folders.items():
        for path in _films_of(folder, collection):
            patient = patient_of(path.name)
            if patient.startswith("series:"):
                # Two people's folders both hold a 1.png; only published names mean the same film everywhere.
                patient = f"file:{source}/{path.relative_to(root).with_suffix('')}"
            collection.examples.append(Example(path, label, patient, source))
    return collection


def read_ozturk(root: Path, source: str) -> Collection:
    """Ozturk's set: NIH names carry the patient; COVID-19 names are those of ieee8023."""
    collection = Collection(root, "ozturk", source)
    _read_classes(collection, OZTURK)
    return collection


def read_radiography(root: Path, source: str) -> Collection:
    """The Radiography Database: its files are numbered, and ``origin.csv`` (``file``, ``origin_file``), where there is
    one, tells which published film each was; without it every file stands for itself."""
    collection = Collection(root, "radiography", source)
    origins = {}
    if (root / "origin.csv").is_file():
        with (root / "origin.csv").open(newline="", encoding="utf-8") as file:
            origins = {row["file"]: row["origin_file"] for row in csv.DictReader(file)}
    _read_classes(collection, RADIOGRAPHY, origins)
    return collection


def _read_classes(collection: Collection, classes: dict[str, str], origins: dict[str, str] | None = None) -> None:
    for folder, label in classes.items():
        for path in _films_of(collection.root / folder, collection):
            name = (origins or {}).get(path.name, path.name)
            collection.examples.append(Example(path, label, patient_of(name), collection.source, film=film_of(name)))


def _films_of(folder: Path, collection: Collection) -> list[Path]:
    found = films(folder, collection.left_out)
    if not found:
        collection.empty.append(folder)
    return found
