"""An audit of a dataset: what tells its classes apart besides the lungs, and which images it holds twice.

A network learns whatever tells the classes apart. Where that is the hospital, the border, the size of the file or a copy in
the training folds, it scores well on held-out images and nowhere else (Zech et al. 2018; DeGrave et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from covidjax.data.dataset import Dataset
from covidjax.lungs.stream import Segmenter
from covidjax.trust import audit_images, told
from covidjax.trust.audit_images import SIDE, AuditImages
from covidjax.trust.copies import Copy, find_copies
from covidjax.trust.told import Auroc, Probe, Told

Status = Literal["pass", "fail", "not applicable"]

TOLD = 0.6
"""Something is told where the lower end of its AUROC's interval lies above this. Chance is 0.5; what lies outside the lungs
knows a little of who is ill (how a patient lies, what lines there are)."""

ASSOCIATED, ONE = 0.1, 0.5
"""Cramér's V from which source and class go together at all, and from which they are nearly one: a small and a large effect
(Cohen 1988, chapter 7)."""

THUMBNAIL = 32

SHOWN = 12
"""Pairs of copies that the page shows."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    title: str
    status: Status
    sentence: str
    """The finding, in plain words."""
    details: dict[str, Any] = field(default_factory=dict)
    """Its figures, as JSON takes them."""
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """Captions and uint8 ``[H, W]`` or ``[H, W, 3]``."""

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures."""
        return {key: getattr(self, key) for key in ("name", "title", "status", "sentence", "details")}


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
    masks = audit_images.find_masks(images.pixels, segmenter, lambda done: tick("Finding lungs", done, total))
    files = dataset.original_files()
    tick("Comparing", 0, 6)
    checks = [source_and_class(images)]
    steps: list[Callable[[], Check]] = [
        lambda: source_from_thumbnail(images, checks[0].details["cramers_v"]),
        lambda: class_from_frame(images),
        lambda: class_without_lungs(images, *masks),
        lambda: class_from_file(images, files),
        lambda: class_from_person(images, files),
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


# 2. Source


def source_from_thumbnail(images: AuditImages, association: float) -> Check:
    """Whether the source is seen on a thumbnail, which matters where it goes together with the class."""
    name, title = "source_thumbnail", f"Source from a thumbnail of {THUMBNAIL}²"
    rows = told.enough(images.sources, images.patients)
    if not rows.any():
        sentence = f"No two sources have {told.LEAST_PATIENTS} patients each, so none is told from another."
        return Check(name, title, "not applicable", sentence)
    small = images.small(THUMBNAIL)[rows].reshape(rows.sum(), -1).astype(np.float32)
    comparisons = len(np.unique(images.sources[rows]))
    (result,) = told.tell(
        [("linear", small)], images.sources[rows], images.source_names, images.patients[rows], comparisons
    )
    seen = result.macro.bound > TOLD
    fails = seen and association >= ASSOCIATED
    matters = "and it goes together with the class" if association >= ASSOCIATED else "but it says nothing of the class"
    text = f"{_auroc_text(result.macro)}, {matters}" if seen else _auroc_text(result.macro)
    sentence = (
        f"The source is {'told' if seen else 'not told'} from a thumbnail of {THUMBNAIL} × {THUMBNAIL} pixels: {text}."
    )
    return Check(name, title, "fail" if fails else "pass", sentence, _told_dict(result) | {"fails_above": TOLD})


def _auroc_text(auroc: Auroc) -> str:
    return f"AUROC {auroc.value:.2f} (95 % interval {auroc.interval[0]:.2f}–{auroc.interval[1]:.2f}, chance 0.5)"


def _told_dict(result: Told) -> dict[str, Any]:
    return {
        "images": result.images,
        "patients": result.patients,
        "auroc": result.macro._asdict(),
        "per_class": {name: auroc._asdict() for name, auroc in result.per_class.items()},
    }


# 3 and 4. Class


Features = Callable[[np.ndarray], list[tuple[Probe, np.ndarray]]]
"""Rows → the features that each probe gets."""


def _class_told(name: str, title: str, what: str, images: AuditImages, features: Features, **details: Any) -> Check:
    """Whether the class is told from something, within each source that holds several."""
    by_source = [np.flatnonzero(images.sources == source) for source in range(len(images.source_names))]
    usable = [rows[told.enough(images.labels[rows], images.patients[rows])] for rows in by_source]
    groups = {source: rows for source, rows in zip(images.source_names, usable, strict=True) if len(rows)}
    everything = np.flatnonzero(told.enough(images.labels, images.patients))
    if not len(everything):
        sentence = f"No two classes have {told.LEAST_PATIENTS} patients each, so none can be told from another."
        return Check(name, title, "not applicable", sentence, details)
    within = bool(groups)
    groups = groups or {"all sources": everything}
    prepared = {source: features(rows) for source, rows in groups.items()}
    comparisons = sum(len(np.unique(images.labels[rows])) * len(prepared[source]) for source, rows in groups.items())
    results, best = {}, ("", "", Auroc(0, (0, 0), -1))
    for source, rows in groups.items():
        about = images.labels[rows], images.classes, images.patients[rows], comparisons
        found = told.tell(prepared[source], *about)
        kinds = [kind for kind, _ in prepared[source]]
        results[source] = {kind: _told_dict(result) for kind, result in zip(kinds, found, strict=True)}
        for result in found:
            label, auroc = max(result.per_class.items(), key=lambda item: item[1].bound)
            best = max(best, (source, label, auroc), key=lambda item: item[2].bound)
    source, label, auroc = best
    seen, where = auroc.bound > TOLD, f" within {source}" if within and len(images.source_names) > 1 else ""
    details |= {
        "fails_above": TOLD,
        "within_sources": within,
        "highest": {"source": source, "class": label},
        "results": results,
    }
    if not within:
        sentence = (
            f"No source holds two classes of {told.LEAST_PATIENTS} patients each, so what tells sources tells classes: "
            f"{label} from {what}, {_auroc_text(auroc)}, which says no more than the table of sources."
        )
        return Check(name, title, "not applicable", sentence, details)
    verb = "is told" if seen else "is not told"
    sentence = f"The class {verb} from {what}: at most {label}{where}, {_auroc_text(auroc)}."
    return Check(name, title, "fail" if seen else "pass", sentence, details)


def class_from_frame(images: AuditImages) -> Check:
    """Whether the class is told from the border of the images."""
    small, ring = images.small(SIDE), audit_images.frame()
    shown = np.broadcast_to(ring, small.shape)

    def features(rows: np.ndarray) -> list[tuple[Probe, np.ndarray]]:
        return [
            ("linear", audit_images.by_place(small[rows], shown[rows])),
            ("forest", audit_images.anywhere(small[rows], shown[rows])),
        ]

    check = _class_told("class_frame", "Class from the border", "the border frame alone", images, features)
    return _with_picture(check, images, small, shown)


def class_without_lungs(images: AuditImages, masks: np.ndarray, plausible: np.ndarray) -> Check:
    """Whether the class is told from what lies outside the lungs."""
    name, title = "class_outside_lungs", "Class without the lungs"
    counts = {"lungs_found": int(plausible.sum())}
    if plausible.mean() < 0.5:
        sentence = f"Lungs were found on {plausible.sum()} of {len(images)} images only, so they could not be blacked out."
        return Check(name, title, "not applicable", sentence, counts)
    small, shown = images.small(SIDE), audit_images.outside_lungs(masks, plausible)

    def features(rows: np.ndarray) -> list[tuple[Probe, np.ndarray]]:
        return [
            ("linear", audit_images.by_place(small[rows], shown[rows])),
            ("forest", audit_images.anywhere(small[rows], shown[rows])),
        ]

    check = _class_told(name, title, "what lies outside the lungs", images, features, **counts)
    return _with_picture(check, images, small, shown)


def _with_picture(check: Check, images: AuditImages, small: np.ndarray, shown: np.ndarray) -> Check:
    """Adds a map of where the class that is told best differs from the others: red brighter, blue darker, by Cohen's d."""
    if "highest" not in check.details:
        return check
    highest = check.details["highest"]
    label = images.classes.index(highest["class"])
    rows = np.ones(len(images), bool)
    if check.details["within_sources"]:
        rows = images.sources == images.source_names.index(highest["source"])
    values, weights = small[rows].astype(np.float32), shown[rows]
    means, variances = [], []
    for of in (images.labels[rows] == label, images.labels[rows] != label):
        count = np.maximum(weights[of].sum(0), 1)
        mean = (values[of] * weights[of]).sum(0) / count
        means.append(mean)
        variances.append((((values[of] - mean) ** 2) * weights[of]).sum(0) / count)
    effect = np.clip((means[0] - means[1]) / np.sqrt(np.mean(variances, 0) + 1), -1, 1)
    effect[shown[rows].mean(0) < 0.5] = 0
    colours = np.full((SIDE, SIDE, 3), 255, np.float32)
    colours[..., 1] -= 255 * abs(effect)
    colours[..., 2] -= 255 * np.maximum(effect, 0)
    colours[..., 0] -= 255 * np.maximum(-effect, 0)
    dark = shown[rows].mean(0) < 0.5
    colours[dark] = 40
    caption = f"Where {highest['class']} is brighter (red) or darker (blue) than the other classes; black is not looked at"
    check.pictures.append((caption, colours.astype(np.uint8)))
    return check


def class_from_file(images: AuditImages, files: Sequence[dict[str, str]] | None) -> Check:
    """Whether the class is told from what the original file was."""
    name, title = "class_file", "Class from the file"
    if not files or len(files) != len(images):
        return Check(
            name, title, "not applicable", "The dataset does not say what the original files were; prepare it again."
        )
    numbers = np.asarray([[float(row[column] or 0) for column in ("width", "height", "bits")] for row in files])
    width, height, _ = numbers.T
    values = np.column_stack([numbers, width / np.maximum(height, 1), _codes([row["format"] for row in files])])

    def features(rows: np.ndarray) -> list[tuple[Probe, np.ndarray]]:
        return [("forest", values[rows])]

    return _class_told(name, title, "size, aspect, bits and format of the file alone", images, features)


PERSON = {"age": "age", "sex": "sex", "view": "projection"}
"""Columns of ``images.csv`` and what they say."""


def class_from_person(images: AuditImages, files: Sequence[dict[str, str]] | None) -> Check:
    """Whether the class is told from age, sex and projection, or from whether they are stated."""
    name, title = "class_person", "Class from age, sex and projection"
    known = [column for column in PERSON if files and len(files) == len(images) and any(row.get(column) for row in files)]
    if not files or not known:
        return Check(name, title, "not applicable", "No header or table states age, sex or projection.")
    columns = []
    for column in known:
        texts = [row.get(column) or "" for row in files]
        columns += [[float(text or -1) for text in texts] if column == "age" else _codes(texts)]
    values = np.column_stack(columns)

    def features(rows: np.ndarray) -> list[tuple[Probe, np.ndarray]]:
        return [("forest", values[rows])]

    *others, last = [PERSON[column] for column in known]
    what = f"{', '.join(others)} and {last}" if others else last
    shares = {column: float(np.mean([bool(row.get(column)) for row in files])) for column in known}
    return _class_told(name, title, f"{what} alone", images, features, stated=shares)


def _codes(texts: Sequence[str]) -> list[float]:
    """A number for each text, in the order of how often there is one."""
    names, inverse, counts = np.unique(np.asarray(texts, object).astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(np.argsort(-counts, kind="stable"))
    return order[inverse].astype(float).tolist() if len(names) else []


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
