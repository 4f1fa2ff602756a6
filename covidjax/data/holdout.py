"""Which images of a dataset a network is trained on, and which are held out: folds, or a whole source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from covidjax.config import DataConfig
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UsageError, UserError


class Holdout(NamedTuple):
    """Rows of the whole dataset, fold after fold, int32 ``[N]``; no patient stands in two of the four sets."""

    train: np.ndarray
    test: np.ndarray
    """Of the test fold, or of the test source."""
    val: np.ndarray
    """Of the validation fold; empty without one."""
    in_source: np.ndarray
    """With a test source the test fold of all other sources, which shows what the network is worth at places that it was
    trained on; else empty."""
    class_counts: np.ndarray
    """Training images of each class, int ``[classes]``."""
    left_out: tuple[int, int] = (0, 0)
    """How many test and validation images are in none of these, since the weights that the network starts from were trained
    on them."""


def holdout_name(data: DataConfig) -> str:
    """What a network holds out, such as ``fold0`` or the name of a source."""
    return data.test_source or f"fold{data.test_fold}"


def hold_out(dataset: Dataset, data: DataConfig, known: Collection[str] = ()) -> Holdout:
    """The images that settings train on, and those that they hold out.

    Args:
      dataset: whose images.
      data: the settings.
      known: keys of images that the weights to start from were trained on, which are then not held out.

    With ``data.test_source`` images of that source's patients are left out wherever else they stand: other sources may
    hold the same patients, whose keys are then the same (see ``folds.patients_of``).

    Raises:
      UserError: folds or a source that the dataset does not have, or nothing left to train, to validate or to test on.
    """
    return _without(_hold_out(dataset, data), dataset, known)


def _without(held_out: Holdout, dataset: Dataset, known: Collection[str]) -> Holdout:
    """Without the held-out images that have one of these keys.

    Raises:
      UserError: none is left to test or to validate on.
    """
    if not known:
        return held_out
    known, source = frozenset(known), dataset.source(range(dataset.folds))
    kept = {}
    for name in ("test", "val", "in_source"):
        rows: np.ndarray = getattr(held_out, name)
        kept[name] = rows[[known.isdisjoint(keys) for keys in loader.identities(source, rows)]]
        if len(rows) and not len(kept[name]) and name != "in_source":
            kind, remedy = "test", "hold out a fold that they were not trained on by --test-fold"
            if name == "val":
                kind, remedy = "validation", "leave --val-fold out"
            all_known = f"The weights to start from were trained on all {len(rows)} {kind} images of {dataset.path}"
            raise UserError(f"{all_known}; {remedy}, or start from other weights.")
    counts = [len(getattr(held_out, name)) - len(kept[name]) for name in ("test", "val")]
    return held_out._replace(**kept, left_out=(counts[0], counts[1]))


def _hold_out(dataset: Dataset, data: DataConfig) -> Holdout:
    training, test, val = dataset.split(data.test_fold, data.val_fold)
    folds = dataset.fold_of_rows
    if not data.test_source:
        train, held_out, validation = (_rows(np.isin(folds, chosen)) for chosen in (training, test, val))
        return Holdout(train, held_out, validation, train[:0], dataset.class_counts(training))
    check_source(dataset, data.test_source)
    patients, sources = dataset.origins.patients, dataset.origins.sources
    of_source = np.asarray([source == data.test_source for source in sources])
    known = {patient for patient, inside in zip(patients, of_source, strict=True) if inside}
    others = np.asarray([patient not in known for patient in patients])
    parts = [_rows(others & np.isin(folds, chosen)) for chosen in (training, val, test)]
    without = f"Without source {data.test_source} and its patients"
    if not len(parts[0]):
        raise UserError(f"{without} {dataset.path} has no image to train on; prepare it with more sources.")
    if val and not len(parts[1]):
        raise UserError(f"{without} fold {data.val_fold} of {dataset.path} is empty; choose another --val-fold.")
    counts = np.bincount(dataset.origins.labels[parts[0]], minlength=len(dataset.preprocess.classes))
    return Holdout(train=parts[0], test=_rows(of_source), val=parts[1], in_source=parts[2], class_counts=counts)


def check_source(dataset: Dataset, name: str) -> None:
    """Raises UserError where the dataset has no such source, or no other one."""
    sources = source_names(dataset)
    if name not in sources:
        raise UsageError(f"{dataset.path} has no source {name}; choose one of {', '.join(sources)}.")
    if len(sources) == 1:
        remedy = f"prepare several together, as by `covidjax prepare {name} OTHER --out NAME`, or leave --by source out"
        raise UsageError(f"{dataset.path} has one source only, {name}, so none is left to train on; {remedy}.")


def source_names(dataset: Dataset) -> list[str]:
    """The sources that the dataset has images of, in the order of their names."""
    names = (name for name, counts in dataset.manifest["per_source"].items() if sum(counts.values()))
    return sorted(names, key=lambda name: (name.casefold(), name))


def classes_of_one_source(dataset: Dataset) -> dict[str, str]:
    """The classes that a single source has images of, and that source: a network without it has no image of the class to
    train on."""
    holders: dict[str, list[str]] = {}
    for source, counts in dataset.manifest["per_source"].items():
        for name in (name for name, count in counts.items() if count):
            holders.setdefault(name, []).append(source)
    return {name: sources[0] for name, sources in holders.items() if len(sources) == 1}


def _rows(chosen: Sequence[bool] | np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen).astype(np.int32)
