"""Age and sex as headers and tables state them, in one spelling that says nothing of who it is."""

from __future__ import annotations

import re

OLDEST = 90
"""Years. Whoever is older is this old: few are, so that an age above 89 may tell who it is (45 CFR 164.514(b)(2)(i)(C))."""


def age_of(text: object) -> str:
    """Whole years, at most ``OLDEST``, from ``45``, ``45.0``, ``45Y``, DICOM's ``045Y``, ``018M`` (months) and their like;
    empty where nothing is stated, or nothing that an age may be."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*(y|yr|yrs|years?|m|w|d)?", str(text or "").strip().lower())
    if not match:
        return ""
    years = float(match[1]) / {"m": 12, "w": 52.2, "d": 365.25}.get(match[2] or "", 1)
    return str(min(int(years), OLDEST)) if years < 125 else ""


def sex_of(text: object) -> str:
    """``M``, ``F`` or ``O`` (other), as DICOM has it; empty for anything else."""
    plain = str(text or "").strip().lower()
    return {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F", "o": "O", "other": "O"}.get(plain, "")
