"""The COVID-19 image data collection (github ieee8023/covid-chestxray-dataset; Cohen et al. 2020), with V7 Labs' masks."""

from __future__ import annotations

from covidjax.data.readers.base import Collection, Example
from covidjax.data.readers.names import image_key, patient_of
from covidjax.files import read_csv

VIEWS = ("PA", "AP", "AP Supine")
"""Frontal projections; lateral X-rays and CT slices are left out."""

PNEUMONIA = frozenset(
    (
        *("Pneumonia", "Viral", "SARS", "MERS-CoV", "Influenza", "H1N1", "Varicella", "Herpes"),
        *("Bacterial", "Streptococcus", "Staphylococcus", "Klebsiella", "E.Coli", "Legionella", "Nocardia"),
        *("Mycoplasma", "Mycoplasma Bacterial Pneumonia", "Chlamydophila"),
        *("Fungal", "Pneumocystis", "Aspergillosis", "Lipoid", "Aspiration"),
    )
)
"""Findings of the collection that are pneumonias other than COVID-19."""


def class_of_finding(finding: str) -> str | None:
    """The class of a ``finding``, in the spelling of 2020 (``COVID-19, ARDS``) or the later one (``Pneumonia/Viral/SARS``).

    Returns None for what is no pneumonia, or nothing yet (``ARDS``, ``Tuberculosis``, ``todo``).
    """
    parts = [part.strip() for part in finding.replace("/", ",").split(",")]
    if "COVID-19" in parts:
        return "COVID-19"
    if parts == ["No Finding"]:
        return "No-Findings"
    return "Pneumonia" if parts[0] in PNEUMONIA else None


def read_ieee8023(collection: Collection) -> None:
    """Images in ``images/`` by the rows of ``metadata.csv``.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    root, left_out = collection.root, collection.left_out
    files = {path.name: path for path in collection.list_images(root / "images")}
    for row in read_csv(root / "metadata.csv", "patientid", "finding", "view", "modality", "filename"):
        path = files.pop(row["filename"], None)
        label = class_of_finding(row["finding"])
        if path is None:
            left_out["named in metadata.csv but not in images/"] += 1
        elif row["modality"] != "X-ray":
            left_out[f"modality {row['modality'] or 'not stated'}"] += 1
        elif row["view"] not in VIEWS:
            left_out[f"view {row['view']}" if row["view"] else "view not stated"] += 1
        elif label is None:
            left_out[f"finding {row['finding'] or 'not stated'}"] += 1
        else:
            patient = f"ieee8023:{row['patientid']}"
            key = image_key(path.name)
            example = Example(path, label, patient, collection.source, view=row["view"], image_key=key)
            collection.examples.append(example)
    left_out["in images/ but not in metadata.csv"] += len(files)


def read_ieee8023_masks(collection: Collection) -> None:
    """Images in ``images/`` with a mask in ``lung_masks/`` (V7 Labs); ``metadata.csv`` tells the patient and the view.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    table = read_csv(collection.root / "metadata.csv", "patientid", "view", "filename")
    rows = {row["filename"]: row for row in table}
    for path, mask in collection.list_pairs("images", "lung_masks"):
        row = rows.get(path.name)
        patient = f"ieee8023:{row['patientid']}" if row else patient_of(path.name)
        view, key = row["view"] if row else "", image_key(path.name)
        example = Example(path, "lungs", patient, collection.source, view=view, image_key=key, mask=mask)
        collection.examples.append(example)
