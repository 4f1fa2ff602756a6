"""Images with lung masks: folders of pairs as Montgomery and Shenzhen are kept, and the V7 masks of ieee8023."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example
from covidjax.files import read_csv


def read_lungs(root: Path, source: str) -> Collection:
    """Images in ``cxr/``, each with a mask of the same stem in ``masks/`` (Jaeger et al. 2014: Montgomery and Shenzhen).

    Their names, ``MCUCXR_<number>_…`` and ``CHNCXR_<number>_…``, tell the patient; any other image is of one of its own.
    """
    collection = Collection(root, "lungs", source)
    for path, mask in _pairs(root / "cxr", root / "masks", collection):
        patient = names.published_patient(path.name) or names.file_patient(source, path.relative_to(root / "cxr"))
        collection.examples.append(Example(path, "fields", patient, source, mask=mask))
    return collection


def read_ieee8023_masks(root: Path, source: str) -> Collection:
    """Images in ``images/`` with a mask in ``lung_masks/`` (V7 Labs); ``metadata.csv`` tells the patient and the view.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    collection = Collection(root, "ieee8023", source)
    rows = {row["filename"]: row for row in read_csv(root / "metadata.csv", "patientid", "view", "filename")}
    for path, mask in _pairs(root / "images", root / "lung_masks", collection):
        row = rows.get(path.name)
        patient = f"ieee8023:{row['patientid']}" if row else names.patient_of(path.name)
        view, key = row["view"] if row else "", names.image_key(path.name)
        collection.examples.append(Example(path, "lungs", patient, source, view=view, image_key=key, mask=mask))
    return collection


def _pairs(folder: Path, mask_folder: Path, collection: Collection) -> list[tuple[Path, Path]]:
    """Images and masks of the same path but for the ending; what is alone is counted as left out."""
    masks = {path.relative_to(mask_folder).with_suffix(""): path for path in collection.list_images(mask_folder)}
    pairs = []
    for path in collection.list_images(folder):
        mask = masks.pop(path.relative_to(folder).with_suffix(""), None)
        if mask is None:
            collection.left_out["without a lung mask"] += 1
        else:
            pairs.append((path, mask))
    collection.left_out["lung mask without an image"] += len(masks)
    return pairs
