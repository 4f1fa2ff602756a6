"""Films with lung masks: folders of pairs as Montgomery and Shenzhen are kept, and the V7 masks of ieee8023."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers.base import Collection, Example, list_images
from covidjax.data.readers.names import image_key, patient_of
from covidjax.files import read_csv


def read_lungs(root: Path, source: str) -> Collection:
    """Films in ``cxr/``, each with a mask of the same stem in ``masks/`` (Jaeger et al. 2014: Montgomery and Shenzhen).

    Their names, ``MCUCXR_<number>_…`` and ``CHNCXR_<number>_…``, tell the patient; any other film is of one of its own.
    """
    collection = Collection(root, "lungs", source)
    for film, mask in _pairs(root / "cxr", root / "masks", collection):
        patient = patient_of(film.name)
        if patient.startswith("series:"):
            patient = f"file:{source}/{film.relative_to(root / 'cxr').with_suffix('')}"
        collection.examples.append(Example(film, "fields", patient, source, mask=mask))
    return collection


def read_ieee8023_masks(root: Path, source: str) -> Collection:
    """Films in ``images/`` with a mask in ``lung_masks/`` (V7 Labs); ``metadata.csv`` tells the patient and the view.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    collection = Collection(root, "ieee8023", source)
    rows = {row["filename"]: row for row in read_csv(root / "metadata.csv", "patientid", "view", "filename")}
    for film, mask in _pairs(root / "images", root / "lung_masks", collection):
        row = rows.get(film.name)
        patient = f"ieee8023:{row['patientid']}" if row else patient_of(film.name)
        view = row["view"] if row else ""
        collection.examples.append(Example(film, "lungs", patient, source, view, image_key(film.name), mask))
    return collection


def _pairs(folder: Path, masks: Path, collection: Collection) -> list[tuple[Path, Path]]:
    """Films and masks of the same path but for the ending; what is alone is counted as left out."""
    found = {path.relative_to(masks).with_suffix(""): path for path in list_images(masks, collection.left_out)}
    pairs = []
    for film in list_images(folder, collection.left_out):
        mask = found.pop(film.relative_to(folder).with_suffix(""), None)
        if mask is None:
            collection.left_out["without a lung mask"] += 1
        else:
            pairs.append((film, mask))
    collection.left_out["lung mask without a film"] += len(found)
    return pairs
