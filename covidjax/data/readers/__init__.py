"""Published collections of chest X-rays, each read by a small reader of its own."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers import folder, ieee8023
from covidjax.data.readers.base import Collection
from covidjax.errors import UsageError, UserError

__all__ = ["LAYOUTS", "MASKED", "detect", "read"]

LAYOUTS = {
    "folder": folder.read_folder,
    "ozturk": folder.read_ozturk,
    "ieee8023": ieee8023.read_ieee8023,
    "radiography": folder.read_radiography,
}

MASKED = {"lungs": folder.read_lungs, "ieee8023": ieee8023.read_ieee8023_masks}
"""Layouts whose images have lung masks."""

_REQUIRED = {
    "ieee8023": {"metadata.csv", "images"},
    "ozturk": set(folder.OZTURK),
    "radiography": set(folder.RADIOGRAPHY),
    "lungs": {"cxr", "masks"},
}
"""Files and folders that tell a layout; the first that fits is taken."""


def detect(root: Path) -> str:
    """The layout of a folder, told by what lies in it.

    Raises:
      UserError: nothing is there, or nothing that is known.
    """
    if all(path.name.startswith(".") for path in root.iterdir()):
        raise UserError(f"{root} is empty; name a folder that holds one subfolder of images for each class.")
    for layout in _REQUIRED:
        if not _missing(root, layout):
            return layout
    if folder.class_folders(root):
        return "folder"
    raise UserError(
        f"{root} has no subfolder named after a class (COVID-19, No-Findings, Pneumonia) and is no known collection; "
        "sort the images into such subfolders or name the layout with --layout."
    )


def read(root: Path, layout: str = "auto", *, source: str | None = None, masks: bool = False) -> Collection:
    """List the images of a collection; nothing is decoded.

    Args:
      root: its folder.
      layout: one of ``LAYOUTS`` or ``MASKED``, or ``auto``.
      source: the name its images carry; the folder's name if None.
      masks: list the images that have lung masks, for a segmenter, and not the classes.

    Raises:
      UserError: no such folder or layout, the folder is empty or laid out otherwise, it has masks where classes are
        wanted or the other way round, or a class folder has no image.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        expected = "cxr/ and masks/" if masks else "one subfolder of images for each class"
        raise UsageError(f"{root} {problem}; name a folder that holds {expected}.")
    known = sorted({*LAYOUTS, *MASKED})
    if layout not in ("auto", *known):
        raise UsageError(f"There is no layout {layout!r}; choose one of auto, {', '.join(known)}.")
    if layout == "auto" and masks:
        layout = next((name for name in MASKED if not _missing(root, name)), "folder")
    layout = detect(root) if layout == "auto" else layout
    if missing := _missing(root, layout):
        raise UserError(f"{root} is not laid out as {layout}: it has no {missing[0]}; leave --layout out to have it told.")
    if masks and (layout not in MASKED or (layout == "ieee8023" and not (root / "lung_masks").is_dir())):
        raise UserError(f"{root} has no lung masks; name a folder with cxr/ and masks/, or ieee8023 with lung_masks/.")
    if not masks and layout not in LAYOUTS:
        raise UserError(f"{root} holds lung masks and no classes; add --masks to prepare it for a segmenter.")
    collection = Collection(root, layout, source or root.resolve().name)
    (MASKED if masks else LAYOUTS)[layout](collection)
    if collection.empty:
        raise UserError(f"{collection.empty[0]} holds no image; add images to this class folder, or remove it.")
    if not collection.examples and masks:
        raise UserError(f"{root} holds no image with a mask; both files of a pair have the same name but for the ending.")
    if not collection.examples:
        raise UserError(f"{root} holds no image of a known class; one subfolder of images for each class is needed.")
    return collection


def _missing(root: Path, layout: str) -> list[str]:
    return sorted(name for name in _REQUIRED.get(layout, ()) if not (root / name).exists())
