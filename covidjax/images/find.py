"""The images below folders and in archives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from covidjax.errors import UserError
from covidjax.images import archives
from covidjax.images.archives import Source, is_archive
from covidjax.images.formats import SUFFIXES, may_be_image


class Walked(NamedTuple):
    """What lies below a folder."""

    films: list[Path]
    others: int
    """Other files."""
    unreadable: list[tuple[Path, str]]
    """Folders whose files nobody knows of, with the reasons."""


def walk(folder: Path, *, archives: bool = False) -> Walked:
    """Every film below a folder, sorted, and every archive too if asked for. Links to folders are followed, each folder
    is read once; names that begin with a dot are left alone."""
    found, others = [], 0
    unreadable: list[tuple[Path, str]] = []
    seen = set()

    def note(error: OSError) -> None:
        unreadable.append((Path(error.filename), error.strerror or str(error)))

    for directory, subfolders, names in os.walk(folder, onerror=note, followlinks=True):
        try:
            status = Path(directory).stat()
        except OSError as error:  # removed in the meantime
            note(error)
            subfolders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        paths = (Path(directory, name) for name in visible)
        mine = [path for path in paths if (archives and is_archive(path)) or may_be_image(path)]
        found += mine
        others += len(visible) - len(mine)
    return Walked(found, others, unreadable)


class FoundImages(NamedTuple):
    """What ``find_images`` found."""

    paths: list[Source]
    passed_over: int
    """Files in folders and archives that are no images, by their ending."""
    roots: list[Path]
    """The given paths that are folders or archives."""


def find_images(paths: Sequence[Path]) -> FoundImages:
    """All films below the given folders, sorted by name, those in archives, given or below the folders, in their own order,
    and every other given path as it is, in the order given. A folder or an archive that cannot be read stands for itself.

    Raises:
      UserError: nothing found.
    """
    found: list[Source] = []
    passed_over = 0
    roots = []
    for path in paths:
        inside, unreadable = [path], []
        if path.is_dir():
            roots.append(path)
            inside, others, unreadable = walk(path, archives=True)
            passed_over += others
        elif archives.is_archive(path) and path.is_file():
            roots.append(path)
        for file in inside:
            if not (archives.is_archive(file) and file.is_file()):
                found.append(os.fspath(file))
                continue
            members = archives.members(os.fspath(file))
            found += members.films
            passed_over += members.others
            if members.fault:
                found.append(archives.LoadedMember(os.fspath(file), None, members.fault))
        for folder, reason in unreadable:
            found.append(archives.LoadedMember(os.fspath(folder), None, f"a folder that cannot be read: {reason}"))
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        named = ", ".join(map(str, paths[:5])) + ", …" * (len(paths) > 5)
        raise UserError(f"There is no film in {named}; files ending in {endings} are looked for.")
    return FoundImages(found, passed_over, roots)


def paths_from_list(text: bytes) -> list[Path]:
    """The paths of a list, one a line, or ended by NUL bytes where there is any: as ``find`` prints them."""
    end = b"\0" if b"\0" in text else b"\n"
    return [Path(os.fsdecode(name)) for name in text.split(end) if name]
