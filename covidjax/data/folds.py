"""Whose image each is, and the fold of each: patients never stand in two folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from covidjax.data.readers.base import Example
from covidjax.data.readers.names import certainty, key_name
from covidjax.errors import UserError


def patients_of(
    examples: Sequence[Example], digests: Mapping[int, str], near_duplicates: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """The patient's key of each image, across collections.

    Images that are the same, by their published name, their bytes or their look, are of one patient, and so are all images
    of the patients of either: the connected components of images and their keys.

    Args:
      examples: images.
      digests: row → digest of the file's bytes.
      near_duplicates: see ``duplicates.near_duplicates``.
    """
    keys = [(example.patient, example.image_key, digests.get(row)) for row, example in enumerate(examples)]
    components = components_of(keys, near_duplicates)
    patients = defaultdict(set)
    for component, example in zip(components, examples, strict=True):
        patients[component].add(example.patient)
    # Of several keys the collection's own number is the one to look a patient up by.
    chosen = {component: min(keys, key=lambda key: (-certainty(key), key)) for component, keys in patients.items()}
    return [chosen[component] for component in components]


def components_of(keys: Sequence[Iterable[str | None]], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The connected component of each image: images that have a key in common, or are a pair, are connected."""
    components, first = DisjointSet(range(len(keys))), {}
    for row, of_image in enumerate(keys):
        for key in filter(None, of_image):
            components.merge(first.setdefault(key, row), row)
    for row, duplicate in pairs:
        components.merge(row, duplicate)
    return [components[row] for row in range(len(keys))]


def assign_folds(
    labels: np.ndarray, patients: Sequence[str] | None, strata: Sequence[str], *, folds: int, seed: int
) -> list[int]:
    """The fold of each image: stratified and, where patients are given, none of them in two folds.

    Args:
      labels: the stratum of each image, int ``[images]``.
      patients: the patient of each image.
      strata: how the strata are called, such as ``Class Pneumonia``.
      folds: at least 2.
      seed: of the shuffling.

    Raises:
      UserError: a stratum with fewer patients (or images) than folds.
    """
    if folds < 2:
        raise UserError(f"A dataset needs at least 2 folds, one to train on and one to test on, not {folds}.")
    groups = np.arange(len(labels)) if patients is None else _groups(patients)
    unit = "images" if patients is None else "patients"
    for index, name in enumerate(strata):
        count = len(np.unique(groups[labels == index]))
        if count < folds:
            raise UserError(f"{name} has {count} {unit}, fewer than {folds} folds; add images or use fewer --folds.")
    splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
    result = np.empty(len(labels), int)
    split = splitter(folds, shuffle=True, random_state=seed).split(
        np.zeros(len(labels)), labels, None if patients is None else groups
    )
    for fold, (_, held_out) in enumerate(split):
        result[held_out] = fold
    return result.tolist()


def _groups(patients: Sequence[str]) -> np.ndarray:
    """The patients' keys, whose order decides between folds that fit equally well, without their hashes: the same images
    have the same folds whatever key their patients' numbers were hashed with."""
    first: dict[str, int] = {}
    for row, patient in enumerate(patients):
        first.setdefault(patient, row)
    return np.asarray([f"hashed:{first[patient]:09d}" if key_name(patient) else patient for patient in patients])
