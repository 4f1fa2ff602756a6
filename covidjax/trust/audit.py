"""An audit of a dataset: what tells its classes apart besides the lungs, and which images it holds twice.

A network learns whatever tells the classes apart. Where that is the hospital, the border, the size of the file or a copy in
the training folds, it scores well on held-out images and nowhere else (Zech et al. 2018; DeGrave et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from covidjax.data.dataset import Dataset
from covidjax.lungs.stream import Segmenter
from covidjax.trust import audit_classes, audit_images, audit_lungs
from covidjax.trust.audit_classes import ASSOCIATED
from covidjax.trust.audit_images import AuditImages
from covidjax.trust.check import Check, Status
from covidjax.trust.copies import Copy, find_copies

ONE = 0.5
"""Cramér's V from which source and class are nearly one: a large effect (Cohen 1988, chapter 7)."""

SHOWN = 12
"""Pairs of copies that the page shows."""


def audit(
    dataset: Dataset, segmenter: Segmenter, tick: Callable[[str, int, int], object] = lambda what, done, total: None
) -> list[Check]:
    """All checks of a dataset by itself.

    Args:
      dataset: of classes.
      segmenter: finds the lungs.
      tick: called with what is done, how many images of it, and how many there are.

    Raises:
      UserError: a record that cannot be read.
    """
    total = dataset.manifest["images"]
    images = audit_images.read_images(dataset, lambda done: tick("Reading", done, total))
    masks = audit_lungs.find_masks(images.pixels, segmenter, lambda done: tick("Finding lungs", done, total))
    files = dataset.original_files()
    tick("Comparing", 0, 6)
    checks = [source_and_class(images)]
    steps: list[Callable[[], Check]] = [
        lambda: audit_classes.source_from_thumbnail(images, checks[0].details["cramers_v"]),
        lambda: audit_classes.class_from_frame(images, *masks),
        lambda: audit_classes.class_without_lungs(images, *masks),
        lambda: audit_classes.class_from_file(images, files),
        lambda: audit_classes.class_from_person(images, files),
        lambda: copies(images),
    ]
    for done, step in enumerate(steps, 1):
        checks.append(step())
        tick("Comparing", done, len(steps))
    return checks


# 1. Source and class


def cramers_v(table: np.ndarray) -> float:
    """Cramér's V of a table of counts ``[rows, columns]``, without its bias (Bergsma 2013, equations 3 to 5)."""
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    total, (rows, columns) = table.sum(), table.shape
    if min(rows, columns) < 2:
        return 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / total
    phi = max(0.0, ((table - expected) ** 2 / expected).sum() / total - (rows - 1) * (columns - 1) / (total - 1))
    sides = (count - (count - 1) ** 2 / (total - 1) for count in (rows, columns))
    return float(np.sqrt(phi / max(min(sides) - 1, 1e-9)))


def source_and_class(images: AuditImages) -> Check:
    """Whether the source tells the class."""
    table = np.zeros((len(images.source_names), len(images.classes)), int)
    np.add.at(table, (images.sources, images.labels), 1)
    value = cramers_v(table)
    details = {
        "cramers_v": value,
        "fails_from": ONE,
        "table": {
            name: dict(zip(images.classes, row, strict=True))
            for name, row in zip(images.source_names, table.tolist(), strict=True)
        },
    }
    title = "Source and class"
    if len(table) < 2:
        sentence = f"All images are of one source, {images.source_names[0]}, so source and class cannot be confused."
        return Check("source_class", title, "not applicable", sentence, details)
    status: Status = "fail" if value >= ONE else "pass"
    how = (
        "are nearly one" if value >= ONE else "go together" if value >= ASSOCIATED else "have nothing to do with each other"
    )
    sentence = f"Source and class {how}: Cramér's V is {value:.2f} (0: unrelated, 1: the source tells the class)."
    return Check("source_class", title, status, sentence, details)


# 5. Copies


def copies(images: AuditImages) -> Check:
    """Which images are there twice, across folds and across labels."""
    first: dict[str, int] = {}
    pairs = {tuple(sorted((copy.first, copy.second))): copy for copy in find_copies(images.pixels)}
    for row, digest in enumerate(images.digests):
        if digest and first.setdefault(digest, row) != row:
            pairs.setdefault((first[digest], row), Copy(first[digest], row, 1.0, False))
    found = list(pairs.values())
    across = [images.folds[a] != images.folds[b] for a, b, *_ in found]
    contradictions = [images.labels[a] != images.labels[b] for a, b, *_ in found]
    details = {
        "pairs": len(found),
        "across_folds": sum(map(bool, across)),
        "contradictions": sum(map(bool, contradictions)),
        "copies": [
            {
                "first": _identity(images, copy.first),
                "second": _identity(images, copy.second),
                "correlation": round(copy.correlation, 3),
                "mirrored": copy.mirrored,
                "across_folds": bool(leaks),
                "contradiction": bool(contradicts),
            }
            for copy, leaks, contradicts in zip(found, across, contradictions, strict=True)
        ],
    }
    order = sorted(range(len(found)), key=lambda place: (not contradictions[place], not across[place]))
    pictures = [
        (_caption(images, found[place]), np.hstack([images.pixels[found[place].first], images.pixels[found[place].second]]))
        for place in order[:SHOWN]
    ]
    worst = details["across_folds"] or details["contradictions"]
    sentence = (
        f"{_count(details['pairs'], 'pair')} of images {'is' if len(found) == 1 else 'are'} copies of each other: "
        f"{details['across_folds']} across folds, {details['contradictions']} under two labels."
    )
    if not found:
        sentence = "No image is there twice."
    return Check("copies", "Copies and contradictions", "fail" if worst else "pass", sentence, details, pictures)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _identity(images: AuditImages, row: int) -> dict[str, Any]:
    return {
        "fold": int(images.folds[row]),
        "number": int(images.numbers[row]),
        "name": images.names[row],
        "source": images.source_names[images.sources[row]],
        "label": images.classes[images.labels[row]],
    }


def _caption(images: AuditImages, copy: Copy) -> str:
    parts = []
    for row in (copy.first, copy.second):
        about = _identity(images, row)
        parts.append(f"{about['label']}, {about['source']}, fold {about['fold']} no. {about['number']}")
    return " | ".join(parts) + (" (mirrored)" if copy.mirrored else "")
