"""What every reader of a collection reads from, and what it returns."""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from covidjax.data.readers import names
from covidjax.images.archives import LoadedMember, Member, Source
from covidjax.images.find import list_files, split_masks
from covidjax.labels import ClassNames

NO_IMAGE = "not an image file, by its ending"
"""Why a file is left out."""


@dataclass(frozen=True)
class Example:
    """One image of a collection."""

    path: Path | Member
    """The file, or the member of an archive."""
    label: str
    """Class name; where there is a mask, its kind, one of ``labels.MASK_KINDS``."""
    patient: str
    """Key of the patient, see ``names``: images of one patient never stand in two folds."""
    source: str
    """Name of the collection it came from, or what the collection's table says of that."""
    view: str = ""
    """Projection (PA, AP, AP Supine), where the collection states it."""
    age: str = ""
    """Whole years, see ``images.person``, where the collection states it."""
    sex: str = ""
    """``M``, ``F`` or ``O``, likewise."""
    image_key: str = ""
    """Name of the published image, where it is known: one image in two collections belongs to one patient."""
    mask: Path | None = None
    """Its lung mask."""
    split: str = ""
    """The publisher's split it belongs to: ``train``, ``val``, ``test`` or what a table calls it."""
    written: str = ""
    """Its path without the patient's number; empty where that is not in it."""

    @property
    def written_path(self) -> str:
        """The path that a dataset may hold."""
        return self.written or os.fspath(self.path)


class Tree:
    """The files of a folder and of the archives below it, or of an archive.

    Attributes:
      root: a folder, an archive, or a folder within an archive.
      images: in order of names; of an archive in its own order.
      masks: lung masks that lie beside their images, which are no images.
      others: all other files.
      unreadable: what stands for folders and archives that cannot be read.
    """

    def __init__(self, root: Path, images: Sequence[Source], others: Sequence[Source]):
        self.root, self.others = root, list(others)
        self.unreadable = [file for file in images if isinstance(file, LoadedMember)]
        readable = [file for file in images if not isinstance(file, LoadedMember)]
        files = [file if isinstance(file, Member) else Path(file) for file in readable]
        self.images, self.masks = split_masks(files, root)

    @classmethod
    def open(cls, root: Path) -> Tree:
        """List the files of a folder or an archive."""
        return cls(root, *list_files(root))

    def parts(self, file: Source) -> tuple[str, ...]:
        """The names of the folders that a file lies in below the root, and its own."""
        return Path(file).relative_to(self.root).parts

    def below(self, name: str) -> Tree:
        """The files of a subfolder, which may be a path."""
        tree = self
        for part in PurePath(name).parts:
            tree = Tree(tree.root / part, *tree._groups.get(part, ([], [])))
        return tree

    @functools.cached_property
    def _groups(self) -> dict[str, tuple[list[Source], list[Source]]]:
        """Images and other files by the subfolder that they lie in: there may be a folder for each patient."""
        groups: defaultdict[str, tuple[list[Source], list[Source]]] = defaultdict(lambda: ([], []))
        for index, files in enumerate((self._all, self.others)):
            for file in files:
                if parts := self.parts(file):
                    groups[parts[0]][index].append(file)
        return groups

    @property
    def _all(self) -> list[Source]:
        return [*self.images, *self.masks, *self.unreadable]

    @functools.cached_property
    def folders(self) -> list[str]:
        """Names of the subfolders, also of empty ones, and of archives, which are as good as folders; sorted."""
        found = {parts[0] for file in (*self._all, *self.others) if len(parts := self.parts(file)) > 1}
        found |= {parts[0] for file in self.unreadable if (parts := self.parts(file))}
        if self.root.is_dir():
            found |= {path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")}
        return sorted(found)

    @functools.cached_property
    def files(self) -> dict[str, Source]:
        """The files right in the root that are no images, by name."""
        return {parts[0]: file for file in self.others if len(parts := self.parts(file)) == 1}

    def exists(self, name: str) -> bool:
        """Whether there is a file or a folder of this name, which may be a path."""
        path = os.fspath(self.root / name)
        if self.root.is_dir():
            return os.path.exists(path)  # noqa: PTH110
        files = (os.fspath(file) for file in (*self._all, *self.others))
        return any(file == path or file.startswith(path + os.sep) for file in files)


@dataclass
class Collection:
    """The images of one source and what was left out of it."""

    root: Path
    layout: str
    source: str
    """The name its images carry."""
    tree: Tree
    names: ClassNames = field(default_factory=ClassNames)
    """What the names of folders, labels and findings mean."""
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → number of files."""
    duplicates: int = 0
    """Images that were left out since an earlier collection has them too."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about it."""
    empty: list[Path] = field(default_factory=list)
    """Class folders that hold no image."""
    known_names: Counter[str] = field(default_factory=Counter)
    """Names of folders, labels and findings that stand for a class → number of images."""
    unknown_names: Counter[str] = field(default_factory=Counter)
    """Those that stand for none."""
    absent: set[tuple[str, int]] = field(default_factory=set)
    """Rows of tables, by table and line, whose image is not there."""
    undecided: list[Example] = field(default_factory=list)
    """Images with findings of two classes, which are left out."""

    def list_images(self, tree: Tree) -> list[Path | Member]:
        """Every image of a tree; its other files are counted into ``left_out``."""
        self.left_out[NO_IMAGE] += len(tree.others)
        self.left_out["a lung mask beside its image"] += len(tree.masks)
        for file in tree.unreadable:
            self.left_out[f"in {os.fspath(file)}: {file.error}"] += 1
        return tree.images

    def add(
        self,
        path: Path | Member,
        label: str,
        *,
        published: str | None = None,
        patient: str = "",
        source: str = "",
        view: str = "",
        split: str = "",
        age: str = "",
        sex: str = "",
    ) -> None:
        """Add an image.

        Args:
          path: its file.
          label: its class.
          published: the name under which the image in the file was published, which means the same image in every
            collection. Two people's folders both hold a 1.png, so any other file's name counts only if it tells a patient.
          patient: key of the patient, where the collection states it; else a published name tells it, and any other file
            is a patient of its own.
          source: where it came from, where the collection states it.
          view: its projection, where the collection states it.
          split: of the publisher.
          age: of the patient, where the collection states it.
          sex: likewise.
        """
        if not published and names.unmistakable_patient(path.name):
            published = path.name
        source, key = source or self.source, names.image_key(published) if published else ""
        if not patient:
            patient = names.patient_of(published) if published else self.file_patient(path)
        about: dict[str, Any] = {"view": view, "age": age, "sex": sex, "split": split}
        self.examples.append(Example(path, label, patient, source, image_key=key, **about))

    def file_patient(self, path: Source) -> str:
        """The key of a patient of whom nothing is known but one image."""
        file = Path(path)
        return names.file_patient(self.source, file.relative_to(self.root) if file.is_relative_to(self.root) else file)

    def list_pairs(self, images: str, masks: str) -> list[tuple[Path, Path]]:
        """Images and masks of two subfolders, of the same path but for the ending; what is alone, or in an archive, is
        counted as left out."""
        of_images, of_masks = self.tree.below(images), self.tree.below(masks)
        mask_of = {_stem(of_masks, path): path for path in self.list_images(of_masks) if isinstance(path, Path)}
        pairs = []
        for path in self.list_images(of_images):
            if not isinstance(path, Path):
                self.left_out["in an archive, where masks are not read"] += 1
                continue
            mask = mask_of.pop(_stem(of_images, path), None)
            if mask is None:
                self.left_out["without a lung mask"] += 1
            else:
                pairs.append((path, mask))
        self.left_out["lung mask without an image"] += len(mask_of)
        return pairs


def _stem(tree: Tree, path: Source) -> Path:
    return Path(*tree.parts(path)).with_suffix("")
