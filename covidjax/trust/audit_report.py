"""What an audit writes: ``audit.json``, and ``audit.html`` for whoever reads it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax.data.dataset import Dataset
from covidjax.errors import printable
from covidjax.files import explaining, write_atomic
from covidjax.report import audit_page, tables
from covidjax.trust.check import Check

HTML, JSON = "audit.html", "audit.json"

MEANINGS = {
    "source_class": "Where each class comes from a place of its own, a network may learn the place, and no held-out fold "
    "shows it.",
    "source_thumbnail": "A logistic regression that sees hardly more than a blur, tested on patients it was not trained "
    "on.",
    "class_frame": "A logistic regression sees the pixels of the outermost eighth, a random forest the few places of it "
    "that tell most, another one its brightness wherever it is; all are tested on patients they were not trained on.",
    "class_outside_lungs": "As for the border, of all that lies outside the lungs: marks, letters, lines, arms, the way an "
    "image was cut. Where many images have lung nothing is looked at.",
    "class_file": "A random forest sees what the files were before they were prepared. A network does not see that, but "
    "what came with it: compression, sharpness, the aspect of a squashed image.",
    "class_person": "Children have other lungs than adults, and patients who lie are more ill than those who stand.",
    "copies": "A copy in another fold is known from training; one under another label teaches nonsense. Re-encoded, "
    "resized, cropped and mirrored copies are found; two exposures of a patient are none.",
    "reliance": "The run's own held-out images, with parts of them replaced by middle gray, which is zero for the network.",
}
"""What each check looks at, and why."""


def verdict(checks: Sequence[Check]) -> str:
    """All checks in one sentence."""
    failed = [check.title for check in checks if check.status == "fail"]
    done = sum(check.status != "not applicable" for check in checks)
    if not failed:
        return f"All {done} checks that apply pass."
    return f"{len(failed)} of {done} checks that apply fail: {'; '.join(failed)}."


def as_dict(dataset: Dataset, checks: Sequence[Check], run: str | None) -> dict[str, Any]:
    """What ``audit.json`` holds."""
    return {
        "dataset": str(dataset.path),
        "fingerprint": dataset.fingerprint,
        "run": run,
        "images": dataset.manifest["images"],
        "synthetic": dataset.is_synthetic,
        "passed": not any(check.status == "fail" for check in checks),
        "verdict": verdict(checks),
        "checks": [check.as_dict() for check in checks],
    }


def write(out: Path, dataset: Dataset, checks: Sequence[Check], run: str | None) -> None:
    """Write both files.

    Args:
      out: the folder; it is made if it is not there.
      dataset: what was audited.
      checks: what was found.
      run: the run, where one was looked at.

    Raises:
      UserError: they cannot be written.
    """
    about = {
        "dataset": printable(dataset.path.name),
        "images": dataset.manifest["images"],
        "size": dataset.preprocess.image_size,
        "lungs": {"none": "none cut out", "crop": "cut out", "mask": "cut out, black around them"}[
            dataset.preprocess.lungs
        ],
        "classes": dataset.preprocess.classes,
        "covidjax": importlib.metadata.version("covidjax"),
        "note": tables.SYNTHETIC if dataset.is_synthetic else "",
        "verdict": verdict(checks),
    }
    with explaining(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / JSON, json.dumps(as_dict(dataset, checks, run), indent=1) + "\n")
        write_atomic(out / HTML, audit_page.render(about, [_section(check) for check in checks]))


def _section(check: Check) -> audit_page.Section:
    columns, rows = _table(check.details)
    about = check.name, check.title, check.status, printable(check.sentence), MEANINGS[check.name]
    return audit_page.Section(*about, columns, rows, check.pictures)


def _table(details: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[object]]]:
    """The figures of a check that a table shows. Names of files stand in the JSON alone: they may tell who the patient
    is."""
    if table := details.get("table"):
        classes = list(next(iter(table.values())))
        return ("source", *classes), [(name, *row.values()) for name, row in table.items()]
    if results := details.get("results"):
        named = {
            "linear": "by place",
            "places": "at a few places",
            "forest": "anywhere" if any("linear" in probes for probes in results.values()) else "",
        }
        rows = [
            ((source, named[kind], label), auroc)
            for source, probes in results.items()
            for kind, result in probes.items()
            for label, auroc in result["per_class"].items()
        ]
        return _aurocs(("source", "", "class"), rows)
    if per_class := details.get("per_class"):
        return _aurocs(("source",), [((name,), auroc) for name, auroc in per_class.items()])
    if figures := details.get("figures"):
        return ("what", "value"), list(figures.items())
    return (), []


def _aurocs(
    columns: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Mapping[str, Any]]]
) -> tuple[Sequence[str], list[Sequence[object]]]:
    shown: list[Sequence[object]] = [
        (*names, f"{auroc['value']:.3f}", "–".join(f"{end:.3f}" for end in auroc["interval"]), f"{auroc['bound']:.3f}")
        for names, auroc in rows
    ]
    return (*columns, "AUROC", "95 % interval", "at least, all together"), shown
