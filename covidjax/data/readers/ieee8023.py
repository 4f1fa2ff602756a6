"""The COVID-19 image data collection (github ieee8023/covid-chestxray-dataset; Cohen et al. 2020), with V7 Labs' masks."""

from __future__ import annotations

from covidjax.data.label_tables import class_of_finding, ieee8023_rows, no_match
from covidjax.data.readers.base import Collection, Example
from covidjax.data.readers.names import image_key, patient_of
from covidjax.data.tables import PathIndex, read_table

__all__ = ["class_of_finding", "read_ieee8023", "read_ieee8023_masks"]

METADATA = "metadata.csv"


def read_ieee8023(collection: Collection) -> None:
    """Images in ``images/`` by the rows of ``metadata.csv``; only frontal X-rays are taken.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    tree, left_out = collection.tree.below("images"), collection.left_out
    images = collection.list_images(tree)
    rows = [*ieee8023_rows(read_table(collection.tree.files[METADATA]))]
    index, unused = PathIndex(images, [tree.root], (row.path for row in rows)), set(range(len(images)))
    for row in rows:
        found = [image for image in index.find(row.path, tree.root) if image in unused]
        label, reason = row.decide(collection.names)
        if len(found) != 1:
            left_out["named in metadata.csv but not in images/"] += 1
            continue
        unused.discard(found[0])
        if label is None:
            left_out[reason if row.left_out else f"finding {row.label or 'not stated'}"] += 1
            if not row.left_out and row.label:
                collection.unknown_names[row.label] += 1
            continue
        path = images[found[0]]
        collection.known_names[row.label] += 1
        about = {"view": row.view, "age": row.age, "sex": row.sex}
        collection.add(path, label, published=path.name, patient=row.patient, **about)
    left_out["in images/ but not in metadata.csv"] += len(unused)
    if rows and len(unused) == len(images):
        raise no_match([collection.tree.files[METADATA]], rows, images, str(collection.root))


def read_ieee8023_masks(collection: Collection) -> None:
    """Images in ``images/`` with a mask in ``lung_masks/`` (V7 Labs); ``metadata.csv`` tells the patient and the view.

    Raises:
      UserError: a metadata.csv without the columns that are read.
    """
    table = read_table(collection.tree.files[METADATA])
    patient_column, view_column, name_column = table.require("patientid", "view", "filename")
    rows = {row[name_column]: row for row in table.rows}
    for path, mask in collection.list_pairs("images", "lung_masks"):
        name = path.name
        row = rows.get(name) or rows.get(path.stem)
        patient = f"ieee8023:{row[patient_column]}" if row else patient_of(name)
        view, key = row[view_column] if row else "", image_key(name)
        example = Example(path, "lungs", patient, collection.source, view=view, image_key=key, mask=mask)
        collection.examples.append(example)
