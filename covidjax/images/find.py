"""The images below folders and in archives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from covidjax.errors import UserError
from covidjax.images.archives import LoadedMember, Source, is_archive, members
from covidjax.images.formats import HEAD, SUFFIXES, may_be_image


class Walked(NamedTuple):
    """What lies below a folder."""

    images: list[Path]
    skipped: int
    """Number of the other files."""
    unreadable: list[OSError]
    """Why folders cannot be listed; ``filename`` says which."""


def walk(folder: Path, *, archives: bool = False) -> Walked:
    """Every image below a folder, sorted, and every archive too if asked for. Links to folders are followed, each folder
    is read once; names that begin with a dot are left alone."""
    images: list[Path] = []
    unreadable: list[OSError] = []
    skipped = 0
    visited = set()
    for directory, subfolders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (Path(directory, name) for name in sorted(names) if not name.startswith(".")):
            if (archives and is_archive(path)) or may_be_image(path, partial(_head, path)):
                images.append(path)
            else:
                skipped += 1
    return Walked(images, skipped, unreadable)


def _head(path: Path) -> bytes:
    if not path.is_file():  # opening a pipe would wait for ever
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


class FoundImages(NamedTuple):
    """What ``find_images`` found."""

    paths: list[Source]
    skipped: int
    """Number of files in folders and archives that are no images, by their ending."""
    roots: list[Path]
    """The given paths that are folders or archives."""


def find_images(paths: Sequence[Path]) -> FoundImages:
    """All images below the given folders, sorted by name, those in archives, given or below the folders, in their own
    order, and every other given path as it is, in the order given. A folder or an archive that cannot be read stands for
    itself.

    Raises:
      UserError: nothing found.
    """
    sources: list[Source] = []
    skipped = 0
    roots = []
    for path in paths:
        walked = walk(path, archives=True) if path.is_dir() else Walked([path], 0, [])
        skipped += walked.skipped
        if path.is_dir() or (is_archive(path) and path.is_file()):
            roots.append(path)
        for file in walked.images:
            if not (is_archive(file) and file.is_file()):
                sources.append(os.fspath(file))
                continue
            images, others = members(os.fspath(file))
            sources += images
            skipped += others
        for error in walked.unreadable:
            sources.append(LoadedMember(error.filename, None, f"a folder that cannot be read: {error.strerror}"))
    if not sources:
        endings = ", ".join(sorted(SUFFIXES))
        searched = ", ".join(map(str, paths[:5])) + ", …" * (len(paths) > 5)
        raise UserError(f"There is no image in {searched}; files ending in {endings} are looked for.")
    return FoundImages(sources, skipped, roots)


def paths_from_list(text: bytes) -> list[Path]:
    """The paths of a list, one a line, or ended by NUL bytes where there is any: as ``find`` prints them."""
    end = b"\0" if b"\0" in text else b"\n"
    return [Path(os.fsdecode(name)) for name in text.split(end) if name]
