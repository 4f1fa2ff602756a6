"""Metrics of scored images whose class is known, without those that the model was trained on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from covidjax.data.patient_key import PatientKey, user_key_file
from covidjax.data.patients import identify
from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example, Tree
from covidjax.errors import ImageError, UserError
from covidjax.images import stream
from covidjax.images.archives import LoadedMember, Member, Source, folder_name
from covidjax.images.formats import Limits
from covidjax.labels import ClassNames
from covidjax.scoring.row import Row

if TYPE_CHECKING:
    from covidjax.metrics import Metrics

MOST_SOURCES = 20
"""Folders below a root. Where there are more, they are patients or days, not places that X-rays come from."""

DECIMALS = 6
"""Of probabilities, as tables have them, so that an interrupted command ends with the metrics of one that was not."""


class LabelledRow(NamedTuple):
    """A row with probabilities whose true class is known."""

    row: Row
    label: str
    images: Sequence[Source]
    """The file, or those of the study."""


class Measured(NamedTuple):
    """Metrics of the rows whose class is known."""

    accepted: Metrics | None
    """Of those that have a prediction; None where there are none."""
    everything: Metrics | None
    """Of all that have probabilities; None where the first are all."""
    rows: int
    """With probabilities."""
    trained_on: int
    """Rows that were left out, since the model was trained on an image or a patient of theirs."""

    @property
    def coverage(self) -> float | None:
        """The share of rows with a prediction; None where there are no rows."""
        return self.accepted.macro.support / self.rows if self.accepted else 0.0 if self.rows else None


def measure_rows(
    labelled: Sequence[LabelledRow],
    roots: Sequence[Path],
    classes: Sequence[str],
    trained_on: set[str],
    *,
    prevalences: Sequence[float] = (),
    limits: Limits = Limits(),
) -> Measured:
    """Metrics of scored images or studies, also of each source where folders tell it.

    Args:
      labelled: the rows.
      roots: folders and archives that were scored.
      classes: of the model.
      trained_on: keys of what it was trained on, see ``runs.load.trained_on``.
      prevalences: for predictive values.
      limits: what a file may take.
    """
    from covidjax.trust.metrics import measure
    from covidjax.trust.predictions import PredictionTable

    patients = _patients(labelled, roots, limits)
    digests = _digests(labelled, limits) if trained_on else [set[str]()] * len(labelled)
    keys = [digests[row] | {key for key in patients[row] if not names.is_one_file(key)} for row in range(len(labelled))]
    kept = [row for row in range(len(labelled)) if not keys[row] & trained_on]
    rows = [labelled[number].row for number in kept]
    table = PredictionTable(
        classes=tuple(classes),
        labels=np.asarray([classes.index(labelled[number].label) for number in kept], int),
        probabilities=np.round([[row.probabilities[name] for name in classes] for row in rows], DECIMALS),
        paths=[row.path for row in rows],
        patients=[min(patients[number]) for number in kept],
        sources=_sources([labelled[number].images[0] for number in kept], roots, classes),
    )
    ok = np.asarray([row.status == "ok" for row in rows], bool)
    accepted = measure(table.select(ok), prevalences) if ok.any() else None
    everything = measure(table, prevalences) if len(table) and not ok.all() else None
    return Measured(accepted, everything, len(table), len(labelled) - len(kept))


def _patients(labelled: Sequence[LabelledRow], roots: Sequence[Path], limits: Limits) -> list[set[str]]:
    """The keys of each row's patients, as ``prepare`` would make them."""
    collections: dict[Path, Collection] = {}
    places: list[tuple[Path, int]] = []
    for item in labelled:
        for image in item.images:
            root = _root(image, roots) or Path(image).parent
            collection = collections.setdefault(root, Collection(root, "folder", root.name, Tree(root, [], [])))
            patient = names.file_patient(root.name, PurePath(os.path.relpath(os.fspath(image), root)))
            path = image if isinstance(image, Member) else Path(image)
            places.append((root, len(collection.examples)))
            collection.examples.append(Example(path, item.label, patient, root.name))
    key = PatientKey(keep=user_key_file().exists())  # where there is none, no dataset has hashes to compare with
    examples = {root: collection.examples for root, collection in collections.items()}
    with contextlib.suppress(UserError):  # a key that cannot be read: the files themselves still tell
        examples = {root: identify([collection], key=key, limits=limits) for root, collection in collections.items()}
    found = iter(places)
    return [{examples[root][number].patient for root, number in (next(found) for _ in item.images)} for item in labelled]


def _digests(labelled: Sequence[LabelledRow], limits: Limits) -> list[set[str]]:
    """The digests of each row's files."""
    sources = (image for item in labelled for image in item.images)
    digests = stream.map_in_order(partial(_digest, stream.load_source(source, limits), limits) for source in sources)
    return [{next(digests) for _ in item.images} for item in labelled]


def _digest(source: Source, limits: Limits) -> str:
    try:
        data = source.read(limits) if isinstance(source, Member | LoadedMember) else Path(source).read_bytes()
    except (OSError, ImageError):  # it is gone since
        return ""
    return hashlib.sha256(data).hexdigest()


def _sources(images: Iterable[Source], roots: Sequence[Path], classes: Sequence[str]) -> list[str]:
    """Where each image comes from: of several roots the root, of one the folder right below it, if that is no class."""
    class_names = ClassNames(classes)
    found = []
    for image in images:
        root = _root(image, roots)
        parts = Path(image).relative_to(root).parts if root else ()
        if len(roots) > 1:
            found.append(str(root) if root else "")
        else:
            found.append(parts[0] if len(parts) > 1 and not class_names.of(folder_name(parts[0])) else "")
    return found if len(set(found)) <= MOST_SOURCES else [""] * len(found)


def _root(image: Source, roots: Sequence[Path]) -> Path | None:
    return next((root for root in roots if Path(image).is_relative_to(root)), None)
