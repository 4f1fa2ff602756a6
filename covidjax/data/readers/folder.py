"""Layouts of subfolders: one a class (any folder of one's own, Ozturk's set, the Kaggle COVID-19 Radiography Database), the
parts of a split above them (Kermany et al.), or one of images and one of their lung masks (Montgomery, Shenzhen)."""

from __future__ import annotations

from collections.abc import Callable

from covidjax.data.label_tables import split_of
from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example, Tree
from covidjax.data.tables import read_table
from covidjax.errors import UserError
from covidjax.images.archives import folder_name
from covidjax.labels import ClassNames

OZTURK = ("Covid-19", "No_findings", "Pneumonia")
"""github muhammedtalo/COVID-19 (Ozturk et al. 2020): COVID-19 images of ieee8023, the rest of NIH ChestX-ray8."""

RADIOGRAPHY = ("COVID-19", "NORMAL", "Viral Pneumonia")
"""Kaggle COVID-19 Radiography Database, first version (Chowdhury et al. 2020): ieee8023 and Kermany et al. 2018."""

RADIOGRAPHY_NOW = ("COVID/images", "Normal/images")
"""Its versions 2 to 5, where the images and the lung masks of a class have folders of their own: these and two more."""


def class_folders(tree: Tree, classes: ClassNames) -> list[str]:
    """The subfolders that are called as a class."""
    return [name for name in tree.folders if classes.of(folder_name(name))]


def classes_of(tree: Tree, classes: ClassNames) -> set[str | None]:
    """The classes that the subfolders are called as."""
    return {classes.of(folder_name(name)) for name in class_folders(tree, classes)}


def split_folders(tree: Tree, classes: ClassNames) -> dict[str, str]:
    """The subfolders that are called as parts of a split and have subfolders of images → the part; empty where only one is
    and it holds no class, since a folder of one's own may well be called so."""
    parts = {name: split_of(folder_name(name)) for name in tree.folders}
    below = {name: tree.below(name) for name, part in parts.items() if part}
    found = {name: parts[name] for name, part in below.items() if any(len(part.parts(file)) > 1 for file in part.images)}
    if len(set(found.values())) > 1 or any(class_folders(below[name], classes) for name in found):
        return found
    return {}


def read_folder(collection: Collection) -> None:
    """One subfolder a class, any nesting below it; a subfolder that is no class is left out and counted.

    Names that only NIH or Kermany give tell the patient; any other file is a patient of its own.
    """
    _read_classes(collection, collection.tree)


def read_split(collection: Collection) -> None:
    """Class folders within ``train``, ``val`` and ``test``, in any spelling."""
    tree = collection.tree
    parts = split_folders(tree, collection.names)
    if not parts:
        raise UserError(f"{collection.root} has no folders train, val or test of class folders; leave --layout out.")
    for name in tree.folders:
        if name in parts:
            _read_classes(collection, tree.below(name), split=parts[name])
        else:
            holds = "holds no class folders" if split_of(folder_name(name)) else "is no part of the split"
            reason = f"folder {name!r} {holds}"
            collection.left_out[reason] += len(collection.list_images(tree.below(name)))
    collection.left_out["beside the class folders, so of no class"] += _beside(tree)


def read_ozturk(collection: Collection) -> None:
    """Ozturk's set: NIH names carry the patient; COVID-19 names are those of ieee8023."""
    for folder in OZTURK:
        # In the other classes only NIH's names tell anything.
        _read_class(collection, collection.tree.below(folder), folder, str if folder == OZTURK[0] else None)


def read_radiography(collection: Collection) -> None:
    """The Radiography Database, with or without folders of masks: its files are numbered, and ``origin.csv`` (``file``,
    ``origin_file``), where there is one, tells which published image each was; without it every file stands for itself."""
    table = collection.tree.files.get("origin.csv")
    origins: dict[str, str] = {}
    if table:
        read = read_table(table)
        file, origin = read.require("file", "origin_file")
        origins = {row[file]: row[origin] for row in read.rows}
    if not origins:
        collection.notes.append(
            "without origin.csv nothing tells whose image each is, nor which of them other collections hold too: "
            "a merged dataset may have copies of an image in several folds"
        )
    _read_classes(collection, collection.tree, origins.get, beside=False)


def read_radiography_masks(collection: Collection) -> None:
    """The Radiography Database's images with its masks, which end at the heart: ``CLASS/images`` and ``CLASS/masks``."""
    for folder in collection.tree.folders:
        if collection.tree.exists(f"{folder}/masks"):
            for path, mask in collection.list_pairs(f"{folder}/images", f"{folder}/masks"):
                patient = collection.file_patient(path)
                collection.examples.append(Example(path, "fields", patient, collection.source, mask=mask))


def read_lungs(collection: Collection) -> None:
    """Images in ``cxr/``, each with a mask of the same stem in ``masks/`` (Jaeger et al. 2014: Montgomery and Shenzhen).

    Their names, ``MCUCXR_<number>_…`` and ``CHNCXR_<number>_…``, tell the patient; any other image is of one of its own.
    """
    root, source = collection.root, collection.source
    for path, mask in collection.list_pairs("cxr", "masks"):
        patient = names.published_patient(path.name) or names.file_patient(source, path.relative_to(root / "cxr"))
        collection.examples.append(Example(path, "fields", patient, source, mask=mask))


def _read_classes(
    collection: Collection,
    tree: Tree,
    published_name: Callable[[str], str | None] | None = None,
    *,
    split: str = "",
    beside: bool = True,
) -> None:
    """Add the images of the class folders of a tree; what lies beside them is counted as left out if ``beside``."""
    for folder in tree.folders:
        if collection.names.of(folder_name(folder)):
            _read_class(collection, tree.below(folder), folder, published_name, split)
        elif images := len(collection.list_images(tree.below(folder))):
            collection.left_out[f"folder {folder!r} names no class"] += images
            collection.unknown_names[folder_name(folder)] += images
    if beside:
        collection.left_out["beside the class folders, so of no class"] += _beside(tree)


def _read_class(
    collection: Collection,
    tree: Tree,
    folder: str,
    published_name: Callable[[str], str | None] | None = None,
    split: str = "",
) -> None:
    """Add the images of a class folder to a collection; see ``Collection.add`` for what is published of their names."""
    label, images = collection.names.of(folder_name(folder)), collection.list_images(tree)
    if not label:  # two of the classes that were asked for have this meaning
        collection.left_out[f"folder {folder!r} names no class"] += len(images)
        collection.unknown_names[folder_name(folder)] += len(images)
        return
    if not images:
        collection.empty.append(tree.root)
    collection.known_names[folder_name(folder)] += len(images)
    for path in images:
        published = published_name(path.name) if published_name else None
        below = next(filter(None, map(split_of, tree.parts(path)[:-1])), "")  # class folders may have the parts below them
        collection.add(path, label, published=published, split=split or below)


def _beside(tree: Tree) -> int:
    """How many files lie right in the root."""
    return len(tree.files) + sum(len(tree.parts(file)) == 1 for file in tree.images)
