"""Synthetic collections, laid out as the published ones."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from covidjax.data import synthetic
from covidjax.labels import CLASSES

SAMPLE_FILMS = 90
"""Of each collection of a rehearsal on synthetic films."""


def _draw(root: Path) -> None:
    """Three collections of phantoms, laid out as the published ones; each also holds some of the one before, shrunk."""
    if root.exists():
        return
    partial = root.with_suffix(f".partial-{os.getpid()}")
    step = SAMPLE_FILMS * 4 // 5 // 6 * 6  # a multiple of 6: all films of a patient and a film of every class
    rows = ["patientid,finding,view,modality,filename"]
    findings = ("COVID-19", "No Finding", "Pneumonia")
    for number, collection in enumerate(("ozturk", "ieee8023", "radiography")):
        for index in range(number * step, number * step + SAMPLE_FILMS):
            film, label = synthetic.draw(index, size=128), index % len(CLASSES)
            patient = int(film.patient.rpartition("-")[2])
            if collection == "ozturk":
                folder = ("Covid-19", "No_findings", "Pneumonia")[label]
                name = f"{folder}/{patient:08d}_{index % 1000:03d}.jpg"
            elif collection == "ieee8023":
                name = f"images/case-{index:04d}.jpg"
                rows.append(f"{patient},{findings[label]},PA,X-ray,case-{index:04d}.jpg")
            else:
                folder = ("COVID-19", "NORMAL", "Viral Pneumonia")[label]
                name = f"{folder}/{folder} ({index}).jpg"
            path = partial / collection / name
            path.parent.mkdir(parents=True, exist_ok=True)
            side = (128, 112, 96)[number]
            Image.fromarray(film.image).resize((side, side)).save(path, quality=90)
    (partial / "ieee8023" / "metadata.csv").write_text("\n".join(rows) + "\n")
    partial.replace(root)
