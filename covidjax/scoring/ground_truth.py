"""The true class of an image, from a table or from the names of folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from covidjax.data.label_tables import SEVERAL, LabelRow, decide, find_image, no_match, read_labels, tables_beside
from covidjax.data.tables import PathIndex
from covidjax.errors import UserError
from covidjax.images.archives import folder_name
from covidjax.images.find import FoundImages
from covidjax.labels import ClassNames

LabelLookup = Callable[[str], str | None]
"""Path → class name, or None where it is not known."""


def labels_from_folders(roots: Sequence[Path], classes: Sequence[str]) -> LabelLookup:
    """Looks up the class that the nearest folder above an image is named after (``Covid-19``, ``NORMAL``, …), among those
    below a root: the folders above it, a project called covid perhaps, say nothing of its images.

    Args:
      roots: folders and archives.
      classes: of the model.
    """
    names = ClassNames(classes)

    def look_up(path: str) -> str | None:
        for root in roots:
            if Path(path).is_relative_to(root):
                folders = Path(path).relative_to(root).parts[:-1]
                return names.first(map(folder_name, reversed(folders)))
        return None

    return look_up


def labels_from_table(file: Path, classes: Sequence[str], images: FoundImages) -> tuple[LabelLookup, list[str]]:
    """Looks an image's class up in a table, one's own or a published collection's, as ``prepare --table`` takes it.

    Args:
      file: the table.
      classes: of the model.
      images: those that are scored.

    Returns:
      What looks a label up, and what the reader should know of rows that say nothing.

    Raises:
      UserError: no such file or columns, a table of one's own no label of which is a class of the model, no path that names
        an image.
    """
    names = ClassNames(classes)
    _, rows = read_labels(file, tables_beside(file, {}))
    index = PathIndex(images.paths, images.roots, (row.path for row in rows))
    rows_of: defaultdict[int, list[LabelRow]] = defaultdict(list)
    strange = [row for row in rows if row.label and not row.published and not set(row.classes(names)) & set(classes)]
    if strange and len(strange) == sum(bool(row.label) for row in rows):
        known = ", ".join(classes)
        raise UserError(
            f"{file}, row {strange[0].number}: {strange[0].label!r} is no class of the model, nor is another label; use "
            f"one of {known}."
        )
    matched = ambiguous = several = 0
    for row in rows:
        found = find_image(index, row)
        matched += bool(found)
        ambiguous += len(found) > 1
        if len(found) == 1:
            rows_of[found[0]].append(row)
    labels: dict[str, str] = {}
    for image, of_image in rows_of.items():
        label, reason = decide(of_image, names)
        several += reason == SEVERAL
        if label:
            labels[os.fspath(images.paths[image])] = label
    if not matched:
        where = ", ".join(map(str, images.roots[:3])) or "those named"
        raise no_match([file], rows, images.paths, where)
    notes = [f"{ambiguous} paths in {file} could be those of several files, so they say nothing"] * bool(ambiguous)
    notes += [f"{several} images have findings of two classes in {file}, so their truth is not known"] * bool(several)
    if strange:
        notes.append(
            f"{len(strange)} rows of {file} have a label that is no class of the model, such as row {strange[0].number}, "
            f"{strange[0].label!r}, so they say nothing"
        )
    return labels.get, notes
