"""Published collections of chest X-rays, each read by a small reader of its own."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers.base import Collection, Example
from covidjax.data.readers.folder import OZTURK, RADIOGRAPHY, class_folders, read_folder, read_ozturk, read_radiography
from covidjax.data.readers.ieee8023 import read_ieee8023
from covidjax.data.readers.masks import read_ieee8023_masks, read_lungs
from covidjax.errors import UsageError, UserError

__all__ = ["LAYOUTS", "MASKED", "Collection", "Example", "detect", "read"]

LAYOUTS = {"folder": read_folder, "ozturk": read_ozturk, "ieee8023": read_ieee8023, "radiography": read_radiography}

MASKED = {"lungs": read_lungs, "ieee8023": read_ieee8023_masks}
"""Layouts whose films have lung masks."""

_NEEDED = {
    "ozturk": set(OZTURK),
    "radiography": set(RADIOGRAPHY),
    "ieee8023": {"metadata.csv", "images"},
    "lungs": {"cxr", "masks"},
}


def detect(root: Path) -> str:
    """The layout of a folder, told by what lies in it.

    Raises:
      UserError: nothing is there, or nothing that is known.
    """
    inside = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    if not inside:
        raise UserError(f"{root} is empty; name a folder that holds one subfolder of films for each class.")
    for layout in ("ieee8023", "ozturk", "radiography", "lungs"):
        if _NEEDED[layout] <= inside:
            return layout
    if class_folders(root):
        return "folder"
    raise UserError(
        f"{root} has no subfolder named after a class (COVID-19, No-Findings, Pneumonia) and is no known collection; "
        "sort the films into such subfolders or name the layout with --layout."
    )


def read(root: Path, layout: str = "auto", *, source: str | None = None, masks: bool = False) -> Collection:
    """List the films of a collection; nothing is decoded.

    Args:
      root: its folder.
      layout: one of ``LAYOUTS`` or ``MASKED``, or ``auto``.
      source: the name its films carry; the folder's name if None.
      masks: list the films that have lung masks, for a segmenter, and not the classes.

    Raises:
      UserError: no such folder or layout, the folder is empty or laid out otherwise, it has masks where classes are
        wanted or the other way round, or a class folder has no film.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        wanted = "cxr/ and masks/" if masks else "one subfolder of films for each class"
        raise UsageError(f"{root} {what}; name a folder that holds {wanted}.")
    known = sorted({*LAYOUTS, *MASKED})
    if layout != "auto" and layout not in known:
        raise UsageError(f"There is no layout {layout!r}; choose one of auto, {', '.join(known)}.")
    if layout == "auto" and masks:
        layout = next((name for name in MASKED if all((root / part).exists() for part in _NEEDED[name])), "folder")
    layout = detect(root) if layout == "auto" else layout
    missing = sorted(name for name in _NEEDED.get(layout, ()) if not (root / name).exists())
    if missing:
        raise UserError(f"{root} is not laid out as {layout}: it has no {missing[0]}; leave --layout out to have it told.")
    if masks and (layout not in MASKED or (layout == "ieee8023" and not (root / "lung_masks").is_dir())):
        raise UserError(f"{root} has no lung masks; name a folder with cxr/ and masks/, or ieee8023 with lung_masks/.")
    if not masks and layout not in LAYOUTS:
        raise UserError(f"{root} holds lung masks and no classes; add --masks to prepare it for a segmenter.")
    collection = (MASKED if masks else LAYOUTS)[layout](root, source or root.resolve().name)
    if collection.empty:
        raise UserError(f"{collection.empty[0]} holds no film; add images to this class folder, or remove it.")
    if not collection.examples and masks:
        raise UserError(f"{root} holds no film with a mask; both files of a pair have the same name but for the ending.")
    if not collection.examples:
        raise UserError(f"{root} holds no film of a known class; one subfolder of images for each class is needed.")
    return collection
