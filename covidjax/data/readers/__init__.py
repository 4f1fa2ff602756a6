"""Collections of chest X-rays, one's own and published ones, each layout read by a small reader of its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from covidjax.data.readers import folder, ieee8023, table
from covidjax.data.readers.base import Collection, Tree
from covidjax.data.tables import read_table
from covidjax.errors import UsageError, UserError
from covidjax.images.archives import folder_name, is_archive
from covidjax.labels import ClassNames, options_for, shown

__all__ = ["LAYOUTS", "MASKED", "detect", "read"]

TABLES = ("nih", "rsna", "chexpert", "covidx")
"""Layouts of published tables."""

LAYOUTS: dict[str, Callable[[Collection], None]] = {
    "folder": folder.read_folder,
    "split": folder.read_split,
    "table": partial(table.read_layout, layout="table"),
    "ozturk": folder.read_ozturk,
    "ieee8023": ieee8023.read_ieee8023,
    "radiography": folder.read_radiography,
    **{layout: partial(table.read_layout, layout=layout) for layout in TABLES},
}

MASKED: dict[str, Callable[[Collection], None]] = {
    "lungs": folder.read_lungs,
    "ieee8023": ieee8023.read_ieee8023_masks,
    "radiography": folder.read_radiography_masks,
}
"""Layouts whose images have lung masks."""

_REQUIRED = {
    "ieee8023": [{"metadata.csv", "images"}],
    "ozturk": [set(folder.OZTURK)],
    "radiography": [set(folder.RADIOGRAPHY), set(folder.RADIOGRAPHY_NOW)],
    "lungs": [{"cxr", "masks"}],
}
"""Files and folders that tell a layout, in the forms it has; the first that fits is taken."""


def detect(root: Path, names: ClassNames = ClassNames()) -> str:
    """The layout of a folder or an archive, told by what lies in it.

    Raises:
      UserError: nothing is there, or nothing that is known.
    """
    tree = Tree.open(root)
    layout, inner = _locate(tree, names, lambda inner: _layout_of(inner, names))
    return layout or _unknown(inner if inner.folders else tree, names)


def read(
    root: Path,
    layout: str = "auto",
    *,
    source: str | None = None,
    masks: bool = False,
    names: ClassNames = ClassNames(),
    labels: Path | None = None,
) -> Collection:
    """List the images of a collection; nothing is decoded.

    Args:
      root: its folder, an archive of it, or a folder within an archive (``archive.zip/inner``); a folder that holds one
        folder, and no images or tables, stands for that.
      layout: one of ``LAYOUTS`` or ``MASKED``, or ``auto``.
      source: the name its images carry; the folder's name if None.
      masks: list the images that have lung masks, for a segmenter, and not the classes.
      names: what the names of folders, labels and findings mean.
      labels: a table of the images, whosever it is; only those that it lists are taken.

    Raises:
      UserError: no such folder or layout, the folder is empty or laid out otherwise, it has masks where classes are
        wanted or the other way round, or a class folder has no image.
    """
    tree = _opened(root)
    if not tree:
        problem = "is a file" if root.exists() else "does not exist"
        expected = "cxr/ and masks/" if masks else "one subfolder of images for each class"
        raise UsageError(f"{root} {problem}; name a folder that holds {expected}.")
    known = sorted({*LAYOUTS, *MASKED})
    if layout not in ("auto", *known):
        raise UsageError(f"There is no layout {layout!r}; choose one of auto, {', '.join(known)}.")
    if labels:
        if layout not in ("auto", "table", "ieee8023", *TABLES):
            raise UsageError(f"--table tells what the images are, and --layout {layout} has folders do so; leave one out.")
        collection = Collection(root, "table", source or root.resolve().name, tree, names)
        table.read_tables(collection, [labels])
    else:
        layout, tree = _chosen(tree, layout, masks, names)
        collection = Collection(tree.root, layout, source or root.resolve().name, tree, names)
        _check_masks(collection, masks)
        (MASKED if masks else LAYOUTS)[layout](collection)
    _check(collection, masks)
    return collection


def _opened(root: Path) -> Tree | None:
    """The files of a folder, of an archive, or of a folder within an archive; None if it is neither."""
    if root.is_dir() or (root.is_file() and is_archive(root)):
        return Tree.open(root)
    archive = next((parent for parent in root.parents if is_archive(parent) and parent.is_file()), None)
    if not archive:
        return None
    whole = Tree.open(archive)
    inner = whole.below(os.fspath(root.relative_to(archive)))
    if inner.images or inner.others:
        return inner
    return whole if whole.unreadable else None


def _chosen(tree: Tree, layout: str, masks: bool, names: ClassNames) -> tuple[str, Tree]:
    """The layout of a tree, and the folder within it that is laid out so.

    Raises:
      UserError: it is laid out otherwise, or in no known way.
    """
    if layout == "auto" and masks:
        found, inner = _locate(
            tree, names, lambda inner: next((name for name in MASKED if not _missing(inner, name)), None)
        )
        return found or "folder", inner  # of a folder without masks the next check says so
    if layout == "auto":
        found, inner = _locate(tree, names, lambda inner: _layout_of(inner, names))
        return found or _unknown(inner if inner.folders else tree, names), inner
    if layout in _REQUIRED:
        found, inner = _locate(tree, names, lambda inner: None if _missing(inner, layout) else layout)
        if not found:
            (missing, *_) = _missing(tree, layout)
            told = "leave --layout out to have it told"
            raise UserError(f"{tree.root} is not laid out as {layout}: it has no {missing}; {told}.")
        return layout, inner
    tells: dict[str, Callable[[Tree], object]] = {
        "folder": lambda inner: folder.class_folders(inner, names),
        "split": lambda inner: folder.split_folders(inner, names),
    }
    tell = tells.get(layout, lambda inner: table.tables_of(inner, layout))
    found, inner = _locate(tree, names, lambda inner: layout if tell(inner) else None)
    return layout, inner if found else tree


def _locate(tree: Tree, names: ClassNames, layout_of: Callable[[Tree], str | None]) -> tuple[str | None, Tree]:
    """What a function says of a tree, or of the only folder in it, as archives have one, and so on: a licence or a README
    may lie beside it, but neither images nor a table of them."""
    while True:
        beside = table.may_list_images(tree) or any(len(tree.parts(file)) == 1 for file in tree.images)
        inner = tree.below(tree.folders[0]) if len(tree.folders) == 1 and not beside else None
        # A collection of several classes may well be called as one of them: tuberculosis/.
        if inner and (len(folder.classes_of(inner, names)) > 1 or folder.split_folders(inner, names)):
            tree = inner
            continue
        if layout := layout_of(tree):
            return layout, tree
        if not inner:
            return None, tree
        tree = inner


def _layout_of(tree: Tree, names: ClassNames) -> str | None:
    for layout in _REQUIRED:
        if not _missing(tree, layout):
            # Hugging Face's tables of images are called as ieee8023's is.
            return "table" if layout == "ieee8023" and _is_own_table(tree) else layout
    for layout in TABLES:
        if table.tables_of(tree, layout):
            return layout
    if folder.class_folders(tree, names):
        return "folder"
    if folder.split_folders(tree, names):
        return "split"
    return "table" if table.tables_of(tree, "table") else None


def _missing(tree: Tree, layout: str) -> list[str]:
    """What a layout needs and a tree has not, in the layout's first form; empty if it has what any of its forms needs."""
    missing = [sorted(name for name in form if not tree.exists(name)) for form in _REQUIRED.get(layout, [])]
    return [] if not all(missing) else missing[0]


def _is_own_table(tree: Tree) -> bool:
    metadata = read_table(tree.files["metadata.csv"])
    return metadata.column("finding") is None and bool(metadata.role("path") and metadata.role("label"))


def _unknown(tree: Tree, names: ClassNames) -> NoReturn:
    if not (tree.images or tree.masks or tree.others or tree.folders or tree.unreadable):
        raise UserError(f"{tree.root} is empty; name a folder that holds one subfolder of images for each class.")
    for file in tree.unreadable:
        raise UserError(f"{os.fspath(file)} cannot be read: {file.error}; name another.")
    below = {name: tree.below(name) for name in tree.folders}
    if inside := [
        name for name, inner in below.items() if folder.class_folders(inner, names) or folder.split_folders(inner, names)
    ]:
        sources = " ".join(shlex.quote(str(tree.root / name)) for name in inside[:3])
        raise UserError(f"{tree.root} has class folders deeper; name each as a source: {sources}.")
    counts = {folder_name(name): len(inner.images) for name, inner in below.items()}
    unknown = {name: count for name, count in counts.items() if count}
    remedies = [f"it has {shown(unknown)}: {options_for(unknown)}"] if unknown else []
    if problem := table.problem_of(tree):  # one folder beside a table is no class
        remedies = [*(remedies if len(unknown) > 1 else []), problem]
    remedy = "; ".join(remedies) or "sort the images into such subfolders or name the layout with --layout"
    classes = ", ".join(names.classes)
    raise UserError(f"{tree.root} has no subfolder named after a class ({classes}) and is no known collection; {remedy}.")


def _check_masks(collection: Collection, masks: bool) -> None:
    root, layout, tree = collection.root, collection.layout, collection.tree
    has_masks = {
        "lungs": True,
        "ieee8023": tree.exists("lung_masks"),
        "radiography": any(tree.exists(f"{name}/masks") for name in tree.folders),
    }
    if masks and not has_masks.get(layout):
        raise UserError(f"{root} has no lung masks; name a folder with cxr/ and masks/, or ieee8023 with lung_masks/.")
    if masks and not root.is_dir():
        raise UserError(f"{root} lies in an archive, where masks are not read; unpack it.")
    if not masks and layout not in LAYOUTS:
        raise UserError(f"{root} holds lung masks and no classes; add --masks to prepare it for a segmenter.")


def _check(collection: Collection, masks: bool) -> None:
    root = collection.root
    if collection.empty:
        raise UserError(f"{collection.empty[0]} holds no image; add images to this class folder, or remove it.")
    if not collection.examples and masks:
        raise UserError(f"{root} holds no image with a mask; both files of a pair have the same name but for the ending.")
    if not collection.examples:
        unknown = collection.unknown_names
        remedy = f"{shown(unknown)} name none: {options_for(unknown)}" if unknown else _NEEDED
        raise UserError(f"{root} holds no image of a known class; {remedy}.")


_NEEDED = "one subfolder of images for each class is needed"
