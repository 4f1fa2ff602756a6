"""The classes, the kinds of lung mask, and the names that people give to classes."""

from __future__ import annotations

import re

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")

MASK_KINDS = ("fields", "lungs")
"""What lung masks show. ``fields``: the lungs as far as heart and diaphragm do not hide them (Montgomery, Shenzhen, the
synthetic images). ``lungs``: also what lies behind the heart (V7 Labs' masks of ieee8023). A network learns each as an
output of its own, from the images that have it."""

_ALIASES = {
    "COVID-19": ("covid", "covid19", "coronavirus", "sarscov2"),
    "No-Findings": ("nofinding", "nofindings", "normal", "healthy", "clear", "negative"),
    "Pneumonia": ("pneumonia", "viralpneumonia", "bacterialpneumonia", "otherpneumonia"),
}


def class_of(folder: str) -> str | None:
    """The class that a folder name or a label stands for (``Covid-19``, ``covid``, ``NORMAL``, …), or None."""
    plain = re.sub(r"[^a-z0-9]", "", folder.lower())
    return next((label for label, names in _ALIASES.items() if plain in names), None)
