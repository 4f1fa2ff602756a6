"""Whose image each is, and the fold of each: patients never stand in two folds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from covidjax.data.readers.base import Example
from covidjax.errors import UserError


def patients_of(
    examples: Sequence[Example], contents: Mapping[int, str], alike: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """Whose film each is, across collections.

    Two collections that hold the same film, by its published name, by its bytes or by its look, hold films of the same
    patient, and so do all films that either of them groups with it: the connected components of films and their identities.

    Args:
      examples: films.
      contents: what ``identical`` found.
      alike: what ``copies.look_alikes`` found.
    """
    identities = ((each.patient, each.film, contents.get(row)) for row, each in enumerate(examples))
    components = _components(identities, alike)
    names: dict[int, str] = {}
    for component, example in zip(components, examples, strict=True):
        # Of several names the collection's own number is the one to look a patient up by.
        best = min(
            names.get(component, example.patient),
            example.patient,
            key=lambda name: (name.startswith(("series:", "file:")), name),
        )
        names[component] = best
    return [names[component] for component in components]


def _components(identities: Iterable[Iterable[str | None]], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The connected component of each film: films that have an identity in common, or are a pair, are connected."""
    keys: dict[str, int] = {}
    known = [[keys.setdefault(key, len(keys)) for key in mine if key] for mine in identities]
    count = len(known)
    edges = [(row, count + key) for row, mine in enumerate(known) for key in mine]
    rows, columns = np.asarray([*edges, *pairs], int).reshape(-1, 2).T
    total = count + len(keys)
    graph = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), (total, total))
    return connected_components(graph, directed=False)[1][:count].tolist()


def assign_folds(
    labels: np.ndarray, patients: Sequence[str] | None, strata: Sequence[str], *, folds: int, seed: int
) -> list[int]:
    """The fold of each film: stratified and, where patients are given, none of them in two folds.

    Args:
      labels: the stratum of each film, int ``[films]``.
      patients: whose each film is.
      strata: how the strata are called, such as ``Class Pneumonia``.
      folds: at least 2.
      seed: of the shuffling.

    Raises:
      UserError: a stratum with fewer patients (or films) than folds.
    """
    if folds < 2:
        raise UserError(f"A dataset needs at least 2 folds, one to train on and one to test on, not {folds}.")
    for index, name in enumerate(strata):
        mine = np.flatnonzero(labels == index)
        count, what = (
            (len(mine), "films") if patients is None else (len({patients[row] for row in mine.tolist()}), "patients")
        )
        if count < folds:
            raise UserError(f"{name} has {count} {what}, fewer than {folds} folds; add films or use fewer --folds.")
    splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
    result = np.empty(len(labels), int)
    split = splitter(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, patients)
    for fold, (_, held_out) in enumerate(split):
        result[held_out] = fold
    return result.tolist()
