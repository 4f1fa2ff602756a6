"""Synthetic collections, laid out as the published ones."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from covidjax.data import synthetic

COLLECTION_IMAGES = 90
"""Images of each collection."""

COLLECTIONS = {
    "ozturk": ("{name}/{patient:08d}_{index:03d}.jpg", ("Covid-19", "No_findings", "Pneumonia"), 128),
    "ieee8023": ("images/case-{index:04d}.jpg", ("COVID-19", "No Finding", "Pneumonia"), 112),
    "radiography": ("{name}/{name} ({index}).jpg", ("COVID-19", "NORMAL", "Viral Pneumonia"), 96),
}
"""Each collection's files, its names of the classes, and the pixels of an image's side."""


def draw_collections(root: Path) -> None:
    """Draw three collections of synthetic images into a folder, unless it is there already. Each collection also holds some
    images of the one before, shrunk."""
    if root.exists():
        return
    partial = root.with_suffix(f".partial-{os.getpid()}")
    step = COLLECTION_IMAGES * 4 // 5 // 6 * 6  # a multiple of 6: all images of a patient and an image of every class
    metadata = ["patientid,finding,view,modality,filename"]
    for number, (collection, (file, classes, side)) in enumerate(COLLECTIONS.items()):
        for index in range(number * step, number * step + COLLECTION_IMAGES):
            phantom = synthetic.draw(index, size=128)
            patient, name = int(phantom.patient.rpartition("-")[2]), classes[phantom.label]
            path = partial / collection / file.format(name=name, patient=patient, index=index)
            if collection == "ieee8023":
                metadata.append(f"{patient},{name},PA,X-ray,{path.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(phantom.image).resize((side, side)).save(path, quality=90)
    (partial / "ieee8023" / "metadata.csv").write_text("\n".join(metadata) + "\n", encoding="utf-8")
    partial.replace(root)
