"""Lungs: the box of both by covidjax's segmenter and by lungs-finder, on the same films in memory; masks by the segmenter.

The films are those of ieee8023 that radiologists boxed (lung_boxes.json), of patients of whom the bundled weights have not
seen any film. They are looked for in ``../shared/data/ieee8023`` beside the checkout, or where COVIDJAX_IEEE8023 says; and
the masks of Montgomery and Shenzhen in ``../shared/data/lungs``, or where COVIDJAX_LUNGS says.
``IoU`` is that of the box of both lungs with the union of the two boxes drawn; a film is ``clipped`` if more than a tenth
of the area of the drawn boxes lies outside the box that was found. What finds nothing counts in neither, but by itself.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.harness import Entry, Options, only, turns
from bench.machine import ROOT, say
from bench.tables import Result, Row, Spread, Table, against

if TYPE_CHECKING:
    from covidjax.data.readers.base import Example

OURS, THEIRS = "covidjax", "lungs-finder"
CLIPPED = 0.1


class Quality(NamedTuple):
    """Of boxes against drawn ones."""

    iou: float
    clipped: float
    """Share of the found boxes."""
    missing: float
    """Share of all films."""


def measure(options: Options) -> Result:
    """images/s, IoU, and shares of films clipped and without a result."""
    paths, drawn = films()
    if not paths:
        rows = [Row(name, None, "skipped: no films with drawn boxes") for name in (OURS, THEIRS)]
        return Result([Table("Box of both lungs", "images/s", rows)], {})
    if options.quick:
        paths, drawn = paths[:16], drawn[:16]
    rounds, seconds = (1, 0.01) if options.quick else (3, 2.0)
    common = {"paths": list(map(str, paths))}
    entries = [
        Entry(OURS, "bench.peers.lung_boxes:Ours", common),
        Entry(f"{OURS} --runtime jax", "bench.peers.lung_boxes:Ours", common | {"runtime": "jax"}),
        Entry(THEIRS, "bench.peers.lung_boxes:LungsFinder", common),
    ]
    rows, answers = turns(only(entries, options.only), rounds=rounds, seconds=seconds, say=say)
    tables = [Table(f"Box of both lungs, {len(paths)} films", "images/s", rows, reference=OURS)]
    figures = against(tables[0], OURS, THEIRS, "lungs_vs_lungs_finder")
    for name, title in ((OURS, "lungs"), (THEIRS, "lungs_finder")):
        if name in answers:
            box_quality = quality(np.asarray(answers[name]).reshape(-1, 4), drawn)
            figures |= {f"{title}_{what}": value for what, value in box_quality._asdict().items()}
            lines = [Row(what, Spread.of([value]), samples=[value]) for what, value in box_quality._asdict().items()]
            tables.append(Table(f"Boxes of {name} against the radiologists'", "share", lines))
    table, mask_figures = masks(options)
    return Result([*tables, table], figures | mask_figures)


def masks(options: Options) -> tuple[Table, dict[str, float]]:
    """Mean Dice coefficient of the bundled weights on the held-out films of lungs/ and ieee8023/, by kind of mask and
    in the way of training: at the network's size, each film by the output for its kind."""
    import jax

    from covidjax.data import readers
    from covidjax.data.loader import Batch
    from covidjax.images import stream
    from covidjax.labels import MASK_KINDS
    from covidjax.lungs import segmenter
    from covidjax.runs.load import load_run
    from covidjax.training.tasks import Segmentation

    loaded = load_run(segmenter.BUNDLED, "cpu")
    preprocess, weights = loaded.run.preprocess, loaded.weights
    eval_step = Segmentation(loaded.run.config).eval_step(loaded.network)
    rows, figures = [], {}
    for kind, name in (("fields", "lungs"), ("lungs", "ieee8023")):
        root = folder(name)
        examples = held_out(readers.read(root, masks=True).examples) if root.is_dir() else []
        examples = examples[: 16 if options.quick else None]
        if not examples:
            rows.append(Row(f"{kind} of {name}", None, "skipped: no held-out films"))
            continue
        masks = [example.mask for example in examples]
        loaded = stream.read_images([example.path for example in examples], preprocess, masks=masks)
        decoded = [film for film in loaded if film.image is not None]
        images, true = (np.stack(list(each)) for each in zip(*((film.image, film.mask) for film in decoded), strict=True))
        kinds = np.full(len(decoded), MASK_KINDS.index(kind), np.int32)
        dice = np.asarray(jax.device_get(eval_step(weights, Batch(images, kinds, len(decoded), true))))[:, 1].tolist()
        rows.append(Row(f"{kind} of {name}", Spread.of(dice), f"{len(dice)} films", samples=dice))
        figures[f"lungs_dice_{kind}"] = float(np.mean(dice))
    return Table("Masks of held-out films", "Dice", rows), figures


def folder(name: str) -> Path:
    """Where a collection of films lies."""
    return Path(os.environ.get(f"COVIDJAX_{name.upper()}") or ROOT.parent / "shared" / "data" / name)


def held_out(examples: Sequence[Example]) -> list[Example]:
    """Those of whose patients the bundled weights have not seen any film; one film under two names is of one patient."""
    from covidjax.data.duplicates import compare
    from covidjax.data.folds import patients_of
    from covidjax.lungs.segmenter import BUNDLED
    from covidjax.runs.load import trained_on as keys_of

    trained_on = keys_of(BUNDLED)
    names = patients_of(examples, compare(examples).digests)
    trained_names = {name for example, name in zip(examples, names, strict=True) if trained_on & {example.patient, name}}
    return [example for example, name in zip(examples, names, strict=True) if name not in trained_names]


def films() -> tuple[list[Path], list[np.ndarray]]:
    """Films of patients that are held out, and the two boxes drawn on each: left, top, right, bottom, ``[2, 4]``."""
    from covidjax.data import readers
    from covidjax.data.readers.base import Example
    from covidjax.data.readers.names import image_key

    root = folder("ieee8023")
    if not (root / "lung_boxes.json").is_file():
        return [], []
    with (root / "metadata.csv").open(newline="") as file:
        patients = {row["filename"]: f"ieee8023:{row['patientid']}" for row in csv.DictReader(file)}
    boxes = json.loads((root / "lung_boxes.json").read_text())
    boxed = [
        Example(root / "images" / name, "boxed", patients[name], "boxes", image_key=image_key(name))
        for name in sorted(boxes)
        if name in patients and (root / "images" / name).is_file()
    ]
    masked = readers.read(root, masks=True).examples
    paths = [Path(example.path) for example in held_out([*masked, *boxed]) if example.label == "boxed"]
    drawn = [np.asarray(boxes[path.name], float) for path in paths]
    for corners in drawn:
        corners[:, 2:] += corners[:, :2]
    return paths, drawn


def quality(boxes: np.ndarray, drawn: list[np.ndarray]) -> Quality:
    """Of boxes ``[films, 4]``, negative where there is none, against the two drawn on each film.

    >>> drawn = [np.asarray([[0, 0, 4, 10], [6, 0, 10, 10]])] * 2
    >>> quality(np.asarray([[0, 0, 5, 10], [-1, -1, -1, -1]]), drawn)
    Quality(iou=0.5, clipped=1.0, missing=0.5)
    """
    overlaps, lost = [], []
    for box, pair in zip(boxes, drawn, strict=True):
        if (box < 0).any():
            continue
        whole = np.concatenate([pair[:, :2].min(0), pair[:, 2:].max(0)])
        both = common_area(box, whole)
        overlaps.append(both / (area(box) + area(whole) - both))
        lost.append(1 - sum(common_area(box, one) for one in pair) / sum(area(one) for one in pair))
    clipped = float(np.mean(np.asarray(lost) > CLIPPED)) if lost else 0.0
    iou = float(np.mean(overlaps)) if overlaps else 0.0
    return Quality(iou, clipped, 1 - len(overlaps) / max(len(drawn), 1))


def area(box: np.ndarray) -> float:
    """Of a box of left, top, right, bottom; nothing where it is turned inside out."""
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def common_area(a: np.ndarray, b: np.ndarray) -> float:
    """Of what two boxes share."""
    return area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))


if __name__ == "__main__":
    from bench.harness import command

    command("lungs", measure, __doc__)()
