"""The images below folders and in archives."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from covidjax.errors import UserError
from covidjax.images.archives import LoadedMember, Source, all_members, is_archive
from covidjax.images.formats import HEAD, SUFFIXES, may_be_image
from covidjax.labels import plain

MASK_FOLDERS = ("mask", "masks")
"""How the names of folders end, without case and punctuation, that may hold masks of the images beside them: ``masks``,
``lung masks``, ``ManualMask``."""

IMAGE_FOLDERS = frozenset(("image", "images", "img", "imgs", "cxr", "cxrs", "cxrpng"))
"""Names of folders beside which such a folder holds masks, whatever the files are called."""


class Walked(NamedTuple):
    """What lies below a folder."""

    images: list[Path]
    others: list[Path]
    """The other files."""
    unreadable: list[OSError]
    """Why folders cannot be listed; ``filename`` says which."""

    @property
    def skipped(self) -> int:
        """Number of the other files."""
        return len(self.others)


def walk(folder: Path, *, archives: bool = False) -> Walked:
    """Every image below a folder, sorted, and every archive too if asked for. Links to folders are followed, each folder
    is read once; names that begin with a dot are left alone."""
    images: list[Path] = []
    others: list[Path] = []
    unreadable: list[OSError] = []
    visited = set()
    for directory, subfolders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (Path(directory, name) for name in sorted(names) if not name.startswith(".")):
            is_image = (archives and is_archive(path)) or may_be_image(path, partial(_head, path))
            (images if is_image else others).append(path)
    return Walked(images, others, unreadable)


def _head(path: Path) -> bytes:
    if not path.is_file():  # opening a pipe would wait for ever
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


S = TypeVar("S", bound=Source)


def split_masks(paths: Sequence[S], root: Path) -> tuple[list[S], list[S]]:
    """Images, and the lung masks among them: what lies in a folder called ``masks`` or the like, beside a folder called
    ``images`` or the like, or beside images of the same names.

    Args:
      paths: all images below a root.
      root: names of folders above it say nothing.
    """
    if not any("mask" in os.fspath(path).lower() for path in paths):
        return list(paths), []
    folders = [_mask_folder(os.path.relpath(path, root)) for path in paths]
    inside, beside, siblings = defaultdict(set), defaultdict(set), defaultdict(set)
    parents = {os.path.dirname(folder) for folder in folders if folder}  # noqa: PTH120
    for path, folder in zip(paths, folders, strict=True):
        relative = PurePath(os.path.relpath(path, root))
        if folder:
            inside[folder].add(_stem(relative))
            continue
        for parent in relative.parents:
            if (key := "" if parent == PurePath() else os.fspath(parent)) in parents:
                beside[key].add(_stem(relative))
                siblings[key].add(plain(relative.parts[len(parent.parts)]))
    masks = {
        folder
        for folder, stems in inside.items()
        if siblings[parent := os.path.dirname(folder)] & IMAGE_FOLDERS or beside[parent] & stems  # noqa: PTH120
    }
    pairs = list(zip(paths, folders, strict=True))
    return [path for path, folder in pairs if folder not in masks], [path for path, folder in pairs if folder in masks]


def _mask_folder(relative: str) -> str:
    """The outermost folder of a path that is called as folders of masks are; empty if there is none."""
    parts = PurePath(relative).parts[:-1]
    named = (index for index, part in enumerate(parts, 1) if "mask" in part.lower() and plain(part).endswith(MASK_FOLDERS))
    return os.sep.join(parts[: next(named, 0)])


def _stem(path: PurePath) -> str:
    """A file's name without its ending, and without what marks the mask of an image of that name."""
    return re.sub(r"[-_. ]?mask$", "", path.stem.lower())


class FoundImages(NamedTuple):
    """What ``find_images`` found."""

    paths: list[Source]
    skipped: int
    """Number of files in folders and archives that are no images, by their ending."""
    roots: list[Path]
    """The given paths that are folders or archives."""
    masks: int = 0
    """Number of lung masks beside their images, which are no images."""


def find_images(paths: Sequence[Path]) -> FoundImages:
    """All images below the given folders, sorted by name, those in archives, given or below the folders, in their own
    order, and every other given path as it is, in the order given. A folder or an archive that cannot be read stands for
    itself.

    Raises:
      UserError: nothing found.
    """
    sources: list[Source] = []
    roots = []
    skipped = masks = 0
    for path in paths:
        if path.is_dir() or (is_archive(path) and path.is_file()):
            roots.append(path)
            files, others = list_files(path)
            images, of_masks = split_masks(files, path)
            sources += images
            skipped += len(others)
            masks += len(of_masks)
        else:
            sources.append(os.fspath(path))
    if not sources:
        endings = ", ".join(sorted(SUFFIXES))
        searched = ", ".join(map(str, paths[:5])) + ", …" * (len(paths) > 5)
        raise UserError(f"There is no image in {searched}; files ending in {endings} are looked for.")
    return FoundImages(sources, skipped, roots, masks)


def list_files(root: Path) -> tuple[list[Source], list[Source]]:
    """The images of a folder and of the archives below it, or of an archive, and the other files; a ``LoadedMember`` with
    the reason stands for a folder or an archive that cannot be read."""
    walked = walk(root, archives=True) if root.is_dir() else Walked([root], [], [])
    images: list[Source] = []
    others: list[Source] = [os.fspath(file) for file in walked.others]
    for file in walked.images:
        if not (is_archive(file) and file.is_file()):
            images.append(os.fspath(file))
            continue
        inside, of_archive = all_members(os.fspath(file))
        images += inside
        others += of_archive
    for error in walked.unreadable:
        images.append(LoadedMember(error.filename, None, f"a folder that cannot be read: {error.strerror}"))
    return images, others


def paths_from_list(text: bytes) -> list[Path]:
    """The paths of a list, one a line, or ended by NUL bytes where there is any: as ``find`` prints them."""
    end = b"\0" if b"\0" in text else b"\n"
    return [Path(os.fsdecode(name)) for name in text.split(end) if name]
