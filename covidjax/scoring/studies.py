"""One row for all images of a study."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from covidjax.data.patients import read_ids
from covidjax.images import stream
from covidjax.images.archives import LoadedMember, Source
from covidjax.images.formats import Limits
from covidjax.scoring.ground_truth import LabelLookup
from covidjax.scoring.row import Row

RULE = "a study is all DICOM files of one StudyInstanceUID, and of other files those of one folder"

Studies = Mapping[str, Sequence[Source]]
"""What stands for a study in the column ``path`` (its first DICOM file, or the folder) → its images."""


def group(paths: Sequence[Source], limits: Limits = Limits()) -> Studies:
    """The studies of some images, in the order of their first images. No StudyInstanceUID is kept.

    Args:
      paths: files, and members of archives.
      limits: what one file may take.
    """
    headers = stream.map_in_order(partial(read_ids, stream.load_source(path, limits), limits) for path in paths)
    studies: dict[str, list[Source]] = {}
    first: dict[str, str] = {}
    for path, header in zip(paths, headers, strict=True):
        name = os.fspath(path)
        if header.study:
            name = first.setdefault(header.study, name)
        elif not isinstance(path, LoadedMember):  # which stands for a folder that cannot be read
            name = str(Path(name).parent)
        studies.setdefault(name, []).append(path)
    return studies


def label_of_study(label_of: LabelLookup, studies: Studies) -> LabelLookup:
    """Looks up the class that all images of a study have; images whose class is not known have no say."""

    def look_up(study: str) -> str | None:
        labels = {label_of(os.fspath(image)) for image in studies.get(study, ())} - {None}
        return labels.pop() if len(labels) == 1 else None

    return look_up


def merge_rows(rows: Iterable[Row], studies: Studies) -> Iterator[Row]:
    """One row a study, from the rows of their images, which come study after study."""
    rows = iter(rows)
    for name, images in studies.items():
        yield _merged(name, [next(rows) for _ in images])


def _merged(study: str, rows: Sequence[Row]) -> Row:
    accepted = [row for row in rows if row.status == "ok"]
    counted = accepted or [row for row in rows if row.probabilities]
    statuses = {row.status for row in rows}
    status = next(status for status in ("ok", "uncertain", "refused", "error") if status in statuses)
    names = counted[0].probabilities if counted else ()
    probabilities = {name: fmean(row.probabilities[name] for row in counted) for name in names}
    left_out = [row for row in rows if row not in accepted] if accepted else []
    reasons = Counter(text for row in (accepted or rows) if (text := row.warning))
    if left_out:
        why = next((text for row in left_out if (text := row.error or row.warning)), "uncertain")
        reasons[f"{len(left_out)} of {len(rows)} images left out: {why}"] = 1
    best = max(probabilities, key=probabilities.__getitem__) if accepted else ""
    return Row(
        path=study,
        status=status,
        prediction=best,
        confidence=probabilities[best] if accepted else None,
        probabilities=probabilities,
        error=next((row.error for row in rows if row.error), "") if status == "error" else "",
        warning="; ".join(reasons),
        lungs="; ".join(sorted({row.lungs for row in counted if row.lungs})),
        images=len(accepted),
    )
