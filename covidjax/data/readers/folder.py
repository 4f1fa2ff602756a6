"""Layouts of subfolders: one a class (any folder of one's own, Ozturk's set, the Kaggle COVID-19 Radiography Database), or
one of images and one of their lung masks (Montgomery, Shenzhen)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example
from covidjax.files import read_csv
from covidjax.labels import class_of

OZTURK = {"Covid-19": "COVID-19", "No_findings": "No-Findings", "Pneumonia": "Pneumonia"}
"""github muhammedtalo/COVID-19 (Ozturk et al. 2020): COVID-19 images of ieee8023, the rest of NIH ChestX-ray8."""

RADIOGRAPHY = {"COVID-19": "COVID-19", "NORMAL": "No-Findings", "Viral Pneumonia": "Pneumonia"}
"""Kaggle COVID-19 Radiography Database, first version (Chowdhury et al. 2020): ieee8023 and Kermany et al. 2018."""


def class_folders(root: Path) -> dict[Path, str]:
    """The subfolders of ``root`` whose names are classes."""
    labels = {path: class_of(path.name) for path in sorted(root.iterdir()) if path.is_dir()}
    return {path: label for path, label in labels.items() if label}


def read_folder(collection: Collection) -> None:
    """One subfolder a class, any nesting below it; a subfolder that is no class is left out and counted.

    Names that only NIH or Kermany give tell the patient; any other file is a patient of its own.
    """
    folders = class_folders(collection.root)
    for path in sorted(collection.root.iterdir()):
        if path.is_dir() and path not in folders:
            collection.left_out[f"folder {path.name!r} names no class"] += len(collection.list_images(path))
        elif path.is_file() and not path.name.startswith("."):
            collection.left_out["beside the class folders, so of no class"] += 1
    for folder, label in folders.items():
        _read_class(collection, folder, label)


def read_ozturk(collection: Collection) -> None:
    """Ozturk's set: NIH names carry the patient; COVID-19 names are those of ieee8023."""
    for folder, label in OZTURK.items():
        # In the other classes only NIH's names tell anything.
        _read_class(collection, collection.root / folder, label, str if label == "COVID-19" else None)


def read_radiography(collection: Collection) -> None:
    """The Radiography Database: its files are numbered, and ``origin.csv`` (``file``, ``origin_file``), where there is
    one, tells which published image each was; without it every file stands for itself."""
    table = collection.root / "origin.csv"
    rows = read_csv(table, "file", "origin_file") if table.is_file() else []
    if not rows:
        collection.notes.append(
            "without origin.csv nothing tells whose image each is, nor which of them other collections hold too: "
            "a merged dataset may have copies of an image in several folds"
        )
    origins = {row["file"]: row["origin_file"] for row in rows}
    for folder, label in RADIOGRAPHY.items():
        _read_class(collection, collection.root / folder, label, origins.get)


def read_lungs(collection: Collection) -> None:
    """Images in ``cxr/``, each with a mask of the same stem in ``masks/`` (Jaeger et al. 2014: Montgomery and Shenzhen).

    Their names, ``MCUCXR_<number>_…`` and ``CHNCXR_<number>_…``, tell the patient; any other image is of one of its own.
    """
    root, source = collection.root, collection.source
    for path, mask in collection.list_pairs("cxr", "masks"):
        patient = names.published_patient(path.name) or names.file_patient(source, path.relative_to(root / "cxr"))
        collection.examples.append(Example(path, "fields", patient, source, mask=mask))


def _read_class(
    collection: Collection, folder: Path, label: str, published_name: Callable[[str], str | None] | None = None
) -> None:
    """Add the images of a class folder to a collection.

    Args:
      collection: to be added to.
      folder: below which the images lie.
      label: their class.
      published_name: the name under which the image in a file was published, which means the same image in every
        collection. Two people's folders both hold a 1.png, so any other file's name counts only if it tells a patient,
        and the file is a patient of its own if not.
    """
    paths = collection.list_images(folder)
    if not paths:
        collection.empty.append(folder)
    for path in paths:
        published = published_name(path.name) if published_name else None
        if not published and names.unmistakable_patient(path.name):
            published = path.name
        if published:
            patient, key = names.patient_of(published), names.image_key(published)
        else:
            patient, key = names.file_patient(collection.source, path.relative_to(collection.root)), ""
        collection.examples.append(Example(path, label, patient, collection.source, image_key=key))
