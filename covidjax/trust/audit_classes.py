"""Checks of an audit that train a probe: whether source or class are told from what should not tell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from covidjax.trust import audit_images, told
from covidjax.trust.audit_images import SIDE, AuditImages
from covidjax.trust.check import Check
from covidjax.trust.told import Auroc, Probe, Told

TOLD = 0.6
"""Something is told where the lower end of its AUROC's interval lies above this. Chance is 0.5; what lies outside the lungs
knows a little of who is ill (how a patient lies, what lines there are)."""

THUMBNAIL = 32

ASSOCIATED = 0.1
"""Cramér's V from which source and class go together at all: a small effect (Cohen 1988, chapter 7)."""

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
            label, auroc = max(result.per_class.items(), key=lambda item: _surest(item[1]))
            best = max(best, (source, label, auroc), key=lambda item: _surest(item[2]))
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


def _surest(auroc: Auroc) -> tuple[bool, float]:
    """What is told comes before what is not, and that in the order of its value."""
    return (True, auroc.bound) if auroc.bound > TOLD else (False, auroc.value)


def _looks(images: AuditImages, small: np.ndarray, shown: np.ndarray) -> Features:
    """What probes see of the part of the images that is shown."""

    def features(rows: np.ndarray) -> list[tuple[Probe, np.ndarray]]:
        return [
            ("linear", audit_images.by_place(small[rows], shown[rows])),
            ("places", audit_images.details_by_place(images.pixels[rows], shown[rows])),
            ("forest", audit_images.anywhere(small[rows], shown[rows])),
        ]

    return features


def class_from_frame(images: AuditImages, masks: np.ndarray, plausible: np.ndarray) -> Check:
    """Whether the class is told from the border of the images, but for what lung reaches into it."""
    small = images.small(SIDE)
    shown = audit_images.outside_lungs(masks, plausible) & audit_images.frame()
    check = _class_told(
        "class_frame", "Class from the border", "the border frame alone", images, _looks(images, small, shown)
    )
    return _with_picture(check, images, small, shown)


def class_without_lungs(images: AuditImages, masks: np.ndarray, plausible: np.ndarray) -> Check:
    """Whether the class is told from what lies outside the lungs."""
    name, title = "class_outside_lungs", "Class without the lungs"
    counts = {"lungs_found": int(plausible.sum())}
    if plausible.mean() < 0.5:
        sentence = f"Lungs were found on {plausible.sum()} of {len(images)} images only, so they could not be blacked out."
        return Check(name, title, "not applicable", sentence, counts)
    small, shown = images.small(SIDE), audit_images.outside_lungs(masks, plausible)
    check = _class_told(name, title, "what lies outside the lungs", images, _looks(images, small, shown), **counts)
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
    effect[shown[rows].mean(0) < 0.2] = 0
    colours = np.full((SIDE, SIDE, 3), 255, np.float32)
    colours[..., 1] -= 255 * abs(effect)
    colours[..., 2] -= 255 * np.maximum(effect, 0)
    colours[..., 0] -= 255 * np.maximum(-effect, 0)
    dark = shown[rows].mean(0) < 0.2
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
