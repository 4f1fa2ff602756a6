"""Images with lung masks: folders of pairs as Montgomery and Shenzhen are kept, and the V7 masks of ieee8023."""

from __future__ import annotations

from pathlib import Path

from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example
from covidjax.files import read_csv


def read_lungs(collection: Collection) -> None:
    """Images in ``cxr/``, each with a mask of the same stem in ``masks/`` (Jaeger et al. 2014: Montgomery and Shenzhen).

    Their names, ``MCUCXR_<number>_…`` and ``CHNCXR_<number>_…``, tell the patient; any other image is of one of its own.
    """
    root, source = collection.root, collection.source
    for path, mask in _pairs(collection, "cxr", "masks"):
        patient = names.published_patient(path.name) or names.file_patient(source, path.relative_to(root / "cxr"))
        collection.examples.append(Example(path, "fields", patient, source, mask=mask))


def read_ieee8023_masks(collection: Collection) -> None:
    """Images in ``images/`` with a mask in ``lung_masks/`` (V7 Labs); ``metadata.csv`` tells the patient and the view.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    table = read_csv(collection.root / "metadata.csv", "patientid", "view", "filename")
    rows = {row["filename"]: row for row in table}
    for path, mask in _pairs(collection, "images", "lung_masks"):
        row = rows.get(path.name)
        patient = f"ieee8023:{row['patientid']}" if row else names.patient_of(path.name)
        view, key = row["view"] if row else "", names.image_key(path.name)
        example = Example(path, "lungs", patient, collection.source, view=view, image_key=key, mask=mask)
        collection.examples.append(example)


def _pairs(collection: Collection, images: str, masks: str) -> list[tuple[Path, Path]]:
    """Images and masks of two subfolders, of the same path but for the ending; what is alone is counted as left out."""
    folder, mask_folder = collection.root / images, collection.root / masks
    mask_of = {path.relative_to(mask_folder).with_suffix(""): path for path in collection.list_images(mask_folder)}
    pairs = []
    for path in collection.list_images(folder):
        mask = mask_of.pop(path.relative_to(folder).with_suffix(""), None)
        if mask is None:
            collection.left_out["without a lung mask"] += 1
        else:
            pairs.append((path, mask))
    collection.left_out["lung mask without an image"] += len(mask_of)
    return pairs
