"""Layouts with one subfolder a class: any folder of one's own, Ozturk's set, the Kaggle COVID-19 Radiography Database."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers.base import Collection, Example, list_images
from covidjax.data.readers.names import image_key, patient_of
from covidjax.files import read_csv
from covidjax.labels import class_of

OZTURK = {"Covid-19": "COVID-19", "No_findings": "No-Findings", "Pneumonia": "Pneumonia"}
"""github muhammedtalo/COVID-19 (Ozturk et al. 2020): COVID-19 films of ieee8023, the rest of NIH ChestX-ray8."""

RADIOGRAPHY = {"COVID-19": "COVID-19", "NORMAL": "No-Findings", "Viral Pneumonia": "Pneumonia"}
"""Kaggle COVID-19 Radiography Database, first version (Chowdhury et al. 2020): ieee8023 and Kermany et al. 2018."""


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
            count = len(list_images(path, collection.left_out))
            collection.left_out[f"folder {path.name!r} names no class"] += count
        elif path.is_file() and not path.name.startswith("."):
            collection.left_out["beside the class folders, so of no class"] += 1
    for folder, label in folders.items():
        for path in _films_of(folder, collection):
            collection.examples.append(_own(path, label, collection))
    return collection


def read_ozturk(root: Path, source: str) -> Collection:
    """Ozturk's set: NIH names carry the patient; COVID-19 names are those of ieee8023."""
    collection = Collection(root, "ozturk", source)
    for folder, label in OZTURK.items():
        for path in _films_of(root / folder, collection):
            published = label == "COVID-19"  # elsewhere only NIH's names tell anything
            example = _published(path, path.name, label, collection) if published else _own(path, label, collection)
            collection.examples.append(example)
    return collection


def read_radiography(root: Path, source: str) -> Collection:
    """The Radiography Database: its files are numbered, and ``origin.csv`` (``file``, ``origin_file``), where there is
    one, tells which published film each was; without it every file stands for itself."""
    collection = Collection(root, "radiography", source)
    table = root / "origin.csv"
    rows = read_csv(table, "file", "origin_file") if table.is_file() else []
    if not rows:
        collection.notes.append(
            "without origin.csv nothing tells whose film each is, nor which of them other collections hold too: "
            "a merged dataset may have copies of a film in several folds"
        )
    origins = {row["file"]: row["origin_file"] for row in rows}
    for folder, label in RADIOGRAPHY.items():
        for path in _films_of(root / folder, collection):
            origin = origins.get(path.name)
            example = _published(path, origin, label, collection) if origin else _own(path, label, collection)
            collection.examples.append(example)
    return collection


def _published(path: Path, name: str, label: str, collection: Collection) -> Example:
    """A film that was published under ``name``, which means the same film in every collection."""
    return Example(path, label, patient_of(name), collection.source, film=image_key(name))


def _own(path: Path, label: str, collection: Collection) -> Example:
    """Any other film. Two people's folders both hold a 1.png, so unless the name tells a patient, it is one of its own."""
    if not patient_of(path.name).startswith("series:"):
        return _published(path, path.name, label, collection)
    patient = f"file:{collection.source}/{path.relative_to(collection.root).with_suffix('')}"
    return Example(path, label, patient, collection.source)


def _films_of(folder: Path, collection: Collection) -> list[Path]:
    found = list_images(folder, collection.left_out)
    if not found:
        collection.empty.append(folder)
    return found
