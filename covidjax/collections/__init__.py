"""Published collections of chest X-rays, each read by a small reader of its own."""

from __future__ import annotations

from pathlib import Path

from covidjax.collections.base import Collection, Example
from covidjax.collections.folder import OZTURK, RADIOGRAPHY, class_folders, read_folder, read_ozturk, read_radiography
from covidjax.collections.ieee8023 import read_ieee8023
from covidjax.config import UsageError, UserError

__all__ = ["LAYOUTS", "Collection", "Example", "detect", "read"]

LAYOUTS = {"folder": read_folder, "ozturk": read_ozturk, "ieee8023": read_ieee8023, "radiography": read_radiography}


def detect(root: Path) -> str:
    """The layout of a folder, told by what lies in it.

    Raises:
      UserError: nothing is there, or nothing that is known.
    """
    inside = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    if not inside:
        raise UserError(f"{root} is empty; name a folder that holds one subfolder of films for each class.")
    if {"metadata.csv", "images"} <= inside:
        return "ieee8023"
    if set(OZTURK) <= inside:
        return "ozturk"
    if set(RADIOGRAPHY) <= inside:
        return "radiography"
    if class_folders(root):
        return "folder"
    raise UserError(
        f"{root} has no subfolder named after a class (COVID-19, No-Findings, Pneumonia) and is no known collection; "
        "sort the films into such subfolders or name the layout with --layout."
    )


def read(root: Path, layout: str = "auto", *, source: str | None = None) -> Collection:
    """List the films of a collection; nothing is decoded.

    Args:
      root: its folder.
      layout: one of ``LAYOUTS``, or ``auto``.
      source: the name its films carry; the folder's name if None.

    Raises:
      UserError: no such folder or layout, the folder is empty or laid out otherwise, or a class folder has no film.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UsageError(f"{root} {what}; name a folder that holds one subfolder of films for each class.")
    if layout != "auto" and layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}; choose one of auto, {', '.join(LAYOUTS)}.")
    layout = detect(root) if layout == "auto" else layout
    needed = {"ozturk": set(OZTURK), "radiography": set(RADIOGRAPHY), "ieee8023": {"metadata.csv", "images"}}
    missing = sorted(name for name in needed.get(layout, ()) if not (root / name).exists())
    if missing:
        raise UserError(f"{root} is not laid out as {layout}: it has no {missing[0]}; leave --layout out to have it told.")
    collection = LAYOUTS[layout](root, source or root.resolve().name)
    if collection.empty:
        raise UserError(f"{collection.empty[0]} holds no film; add images to this class folder, or remove it.")
    if not collection.examples:
        raise UserError(f"{root} holds no film of a known class; one subfolder of images for each class is needed.")
    return collection
