"""The true class of an image, from a table or from the names of folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from covidjax.errors import UserError
from covidjax.files import read_csv
from covidjax.labels import class_of

LabelLookup = Callable[[str], str | None]
"""Path → class name, or None where it is not known."""


def labels_from_folders(roots: Sequence[Path]) -> LabelLookup:
    """Looks up the class that the nearest folder above an image is named after (``Covid-19``, ``NORMAL``, …), among those
    below a root: the folders above it, a project called covid perhaps, say nothing of its images."""

    def look_up(path: str) -> str | None:
        for root in roots:
            if Path(path).is_relative_to(root):
                folders = Path(path).relative_to(root).parts[:-1]
                return next((label for name in reversed(folders) if (label := class_of(name))), None)
        return None

    return look_up


def labels_from_csv(file: Path, classes: Sequence[str]) -> LabelLookup:
    """Looks an image's class up in a table with the columns ``path`` and ``label``, by its path or by its file name alone.

    Raises:
      UserError: no such file or columns, a label that is none of the model's classes, one name with two labels.
    """
    labels: dict[str, str] = {}
    for number, row in enumerate(read_csv(file, "path", "label"), 2):
        label = class_of(row["label"])
        if label is None or label not in classes:
            known = ", ".join(classes)
            raise UserError(f"{file}, row {number}: {row['label']!r} is no class of the model; use one of {known}.")
        if labels.setdefault(row["path"], label) != label:
            raise UserError(f"{file} gives {row['path']} two labels; remove one.")
    labels = {os.path.normpath(path): label for path, label in labels.items()}
    return lambda path: labels.get(os.path.normpath(path)) or labels.get(Path(path).name)
