"""The prepared dataset on disk: a TFDS builder folder of ArrayRecord files, one split a fold, beside a manifest.

``tfds.builder_from_directory(path)`` opens it, with or without this package. TensorFlow is not needed to read or write.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from covidjax.config import Preprocess
from covidjax.data import loader
from covidjax.data.source import Source
from covidjax.errors import UsageError, UserError, one_line

FORMAT = 2

NAME = "covidjax"

MANIFEST = "manifest.json"

IMAGES = "images.csv"

ORIGINAL = ("width", "height", "bits", "format")
"""What ``images.csv`` says of each original file, see ``images.facts.FileFacts``; empty where it is not known."""

PERSON = ("age", "sex", "view")
"""What ``images.csv`` says of each patient and of the projection, by a table or a DICOM header; empty where none states it,
and not there in datasets of earlier versions. Ages are whole years, 90 where they are above 89."""

IMAGE_COLUMNS = ("fold", "source", "name", "sha256", *ORIGINAL, *PERSON)

TEXTS = ("patient", "source", "name", "sha256", "view")


class Origins(NamedTuple):
    """Where each image of a dataset comes from, ``[N]`` each, in the order of ``source`` of all folds."""

    labels: np.ndarray
    """int32."""
    patients: list[str]
    """Keys."""
    sources: list[str]


class Dataset:
    """A prepared dataset, opened for reading.

    Raises:
      UserError: no dataset, one of another format, or a damaged one.

    Attributes:
      masks: whether every image has a lung mask; the classes then are the kinds of mask.
      segmenter: digest of the weights that found the lungs; empty for whole images.
      splits: of ``prepare --keep-split``: part of the publisher's split (``test``, ``val``, ``train``) → its fold.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            raise UsageError(f"{path} does not exist; make it with `covidjax prepare SOURCE --out {path}`.")
        if not (path / MANIFEST).is_file():
            raise UsageError(f"{path} is no prepared dataset; make one of it with `covidjax prepare {path} --out NAME`.")
        try:
            self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if self.manifest["format"] != FORMAT:
                raise UserError(f"{path} was prepared by another version of covidjax; prepare it again.")
            preprocess = {field.name: self.manifest[field.name] for field in dataclasses.fields(Preprocess)}
            preprocess["classes"] = tuple(preprocess["classes"])
            self.preprocess = Preprocess(**preprocess)
            self.masks: bool = self.manifest["masks"]
            self.segmenter: str = self.manifest["segmenter"]
            self.folds: int = self.manifest["folds"]
            splits: dict[str, str] = self.manifest.get("splits", {})  # datasets of earlier versions have none
            self.splits = {split: int(fold.removeprefix("fold")) for fold, split in splits.items()}
            self.fingerprint: str = self.manifest["fingerprint"]
            self._builder: Any = tfds.builder_from_directory(path)
            for name, size in self.manifest["bytes"].items():
                if (path / name).stat().st_size != size:
                    raise ValueError(f"{name} is not as long as it was written")
            for fold in range(self.folds):
                if len(self.source([fold])) != self.class_counts([fold]).sum():
                    raise ValueError(f"fold{fold} does not hold the records that the manifest tells of")
        except UserError:
            raise
        # The file formats' own readers raise whatever they like on a damaged file.
        except Exception as error:
            raise UserError(f"{path} is damaged ({one_line(error)}); prepare it again.") from error

    def source(self, folds: Sequence[int]) -> Source:
        """Random access to the records of some folds, in the order of the folds."""
        files = [os.fspath(file) for fold in folds for file in self._builder.info.splits[f"fold{fold}"].filepaths]
        return Source(files, self.preprocess.image_size, self.masks)

    @functools.cached_property
    def fold_of_rows(self) -> np.ndarray:
        """The fold of each image, int ``[N]``, in the order of ``source`` of all folds."""
        return np.repeat(np.arange(self.folds), [self.class_counts([fold]).sum() for fold in range(self.folds)])

    @functools.cached_property
    def origins(self) -> Origins:
        """Label, patient and source of every image; the records are read once for all who ask."""
        source = self.source(range(self.folds))
        rows = np.arange(len(source))
        return Origins(loader.labels(source, rows), *loader.origins(source, rows)[:2])

    @property
    def is_synthetic(self) -> bool:
        """Whether any image is synthetic, as those of the built-in sample are."""
        return "synthetic" in self.manifest["per_source"]

    @property
    def known_share(self) -> float | None:
        """The share of the images whose patient is known; None where that was not recorded."""
        known = self.manifest.get("patients_known")
        return None if known is None else known / max(self.manifest["images"], 1)

    def original_files(self) -> list[dict[str, str]] | None:
        """What the original file of each image was, see ``IMAGE_COLUMNS``, in the order of ``source`` of all folds; None in
        datasets that do not say it."""
        try:
            with (self.path / IMAGES).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return None

    def class_counts(self, folds: Sequence[int]) -> np.ndarray:
        """Images of each class in some folds, int ``[classes]``."""
        per_fold = [list(self.manifest["per_fold"][f"fold{fold}"].values()) for fold in folds]
        return np.asarray(per_fold, int).sum(0)

    def split(self, test_fold: int, val_fold: int | None = None) -> tuple[list[int], list[int], list[int]]:
        """Folds to train on, to test on and to validate on.

        Raises:
          UserError: a fold that there is not, or one fold for both.
        """
        for name, fold in (("test", test_fold), ("validation", val_fold)):
            if fold is not None and not 0 <= fold < self.folds:
                raise UsageError(f"{self.path} has no {name} fold {fold}; choose one from 0 to {self.folds - 1}.")
        if test_fold == val_fold:
            raise UsageError(f"Fold {test_fold} cannot be both test and validation fold; choose another --val-fold.")
        held_out = {test_fold, val_fold}
        training = [fold for fold in range(self.folds) if fold not in held_out]
        if not training:
            raise UserError(f"{self.path} has only {self.folds} folds, so none is left to train on; prepare more.")
        return training, [test_fold], [] if val_fold is None else [val_fold]
