"""Synthetic collections, laid out as the published ones."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from covidjax.data import synthetic
from covidjax.labels import CLASSES

COLLECTION_IMAGES = 90
"""Images of each collection."""

SIDES = {"ozturk": 128, "ieee8023": 112, "radiography": 96}
"""Pixels of a side of each collection's images."""

OZTURK_FOLDERS = ("Covid-19", "No_findings", "Pneumonia")
IEEE8023_FINDINGS = ("COVID-19", "No Finding", "Pneumonia")
RADIOGRAPHY_FOLDERS = ("COVID-19", "NORMAL", "Viral Pneumonia")


def draw_collections(root: Path) -> None:
    """Draw three collections of synthetic images into a folder, unless it is there already. Each collection also holds some
    images of the one before, shrunk."""
    if root.exists():
        return
    partial = root.with_suffix(f".partial-{os.getpid()}")
    step = COLLECTION_IMAGES * 4 // 5 // 6 * 6  # a multiple of 6: all images of a patient and an image of every class
    metadata = ["patientid,finding,view,modality,filename"]
    for number, (collection, side) in enumerate(SIDES.items()):
        for index in range(number * step, number * step + COLLECTION_IMAGES):
            phantom, label = synthetic.draw(index, size=128), index % len(CLASSES)
            patient = int(phantom.patient.rpartition("-")[2])
            if collection == "ozturk":
                name = f"{OZTURK_FOLDERS[label]}/{patient:08d}_{index % 1000:03d}.jpg"
            elif collection == "ieee8023":
                name = f"images/case-{index:04d}.jpg"
                metadata.append(f"{patient},{IEEE8023_FINDINGS[label]},PA,X-ray,case-{index:04d}.jpg")
            else:
                name = f"{RADIOGRAPHY_FOLDERS[label]}/{RADIOGRAPHY_FOLDERS[label]} ({index}).jpg"
            path = partial / collection / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(phantom.image).resize((side, side)).save(path, quality=90)
    (partial / "ieee8023" / "metadata.csv").write_text("\n".join(metadata) + "\n")
    partial.replace(root)
