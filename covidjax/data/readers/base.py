"""What every reader of a collection returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from covidjax.images.find import walk


@dataclass(frozen=True)
class Example:
    """One image of a collection."""

    path: Path
    label: str
    """Class name, one of ``covidjax.labels.CLASSES``; where there is a mask, its kind, one of ``labels.MASK_KINDS``."""
    patient: str
    """Key of the patient, see ``names``: images of one patient never stand in two folds."""
    source: str
    """Name of the collection it came from."""
    view: str = ""
    """Projection (PA, AP, AP Supine), where the collection states it."""
    image_key: str = ""
    """Name of the published image, where it is known: one image in two collections belongs to one patient."""
    mask: Path | None = None
    """Its lung mask."""


@dataclass
class Collection:
    """The images of one source folder and what was left out of it."""

    root: Path
    layout: str
    source: str
    """The name its images carry."""
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → number of files."""
    duplicates: int = 0
    """Images that were left out since an earlier collection has them too."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about it."""
    empty: list[Path] = field(default_factory=list)
    """Class folders that hold no image."""

    def list_images(self, folder: Path) -> list[Path]:
        """Every image below a folder, sorted; other files are counted into ``left_out``."""
        walked = walk(folder)
        self.left_out["not an image file, by its ending"] += walked.skipped
        for error in walked.unreadable:
            self.left_out[f"in the folder {error.filename}, which cannot be read: {error.strerror}"] += 1
        return walked.images

    def list_pairs(self, images: str, masks: str) -> list[tuple[Path, Path]]:
        """Images and masks of two subfolders, of the same path but for the ending; what is alone is counted as left out."""
        folder, mask_folder = self.root / images, self.root / masks
        mask_of = {path.relative_to(mask_folder).with_suffix(""): path for path in self.list_images(mask_folder)}
        pairs = []
        for path in self.list_images(folder):
            mask = mask_of.pop(path.relative_to(folder).with_suffix(""), None)
            if mask is None:
                self.left_out["without a lung mask"] += 1
            else:
                pairs.append((path, mask))
        self.left_out["lung mask without an image"] += len(mask_of)
        return pairs
