"""From collections of images to a prepared dataset."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from covidjax.config import Preprocess
from covidjax.data import duplicates, folds, readers
from covidjax.data.patient_key import PatientKey
from covidjax.data.patients import check_way, identify
from covidjax.data.readers.base import Collection, Example
from covidjax.data.readers.understood import check_names, classes_with_images, count_absent_once
from covidjax.data.splits import keep_split
from covidjax.data.writer import Writer, create_dataset, refuse_existing
from covidjax.errors import UsageError, UserError
from covidjax.images import stream
from covidjax.images.formats import Limits
from covidjax.labels import MASK_KINDS, ClassNames
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.segmenter import open_segmenter

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


@dataclass(frozen=True)
class Options:
    """The options of ``prepare``; written to the manifest."""

    preprocess: Preprocess = field(default_factory=Preprocess)
    layout: str = "auto"
    group_by: str = "patient"
    """``patient``: all images of a patient in one fold. ``none``: a plain random split, which leaks between folds."""
    folds: int = 5
    seed: int = 0
    limit_per_class: int | None = None
    duplicates: Literal["refuse", "drop", "keep"] = "refuse"
    """Of an image that several sources hold, all but ``keep`` take the first source's only. An image under several labels
    is refused, or all of its copies are left out, or taken, as one patient's."""
    patient_from: str = "auto"
    """What tells whose image it is, see ``data.patients.WAYS``."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Source → the only classes that are taken of it."""
    limits_by_class: Mapping[str, int] = field(default_factory=dict)
    """Class → most images of it, drawn at random, where that is not ``limit_per_class``."""
    table: Path | None = None
    """What the images are, in place of the folders they lie in; only those are taken that it lists."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Name of a folder, a label or a finding → the class that it stands for."""
    infer_classes: bool = False
    """The classes are those of the study's three, and of the mapping's, that there are images of; else those of
    ``preprocess``, all of which there must be."""
    keep_split: bool = False
    """The publisher's split: a fold for each of its parts, ``test`` first, then ``val``, ``train`` last."""
    masks: bool = False
    """Pairs of images and lung masks, for a segmenter: the classes are the kinds of mask that there are, and the folds are
    stratified by source."""
    limits: Limits = field(default_factory=Limits)
    """What one file may take."""


def prepare(
    sources: Sequence[Path],
    out: Path,
    options: Options = Options(),
    *,
    workers: int | None = None,
    segmenter: lung_stream.Segmenter | None = None,
    patients: Path | None = None,
    patient_key: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read collections, sort their images into folds, decode and write them.

    Args:
      sources: folders of images.
      out: the dataset's folder, made whole under a temporary name and then renamed.
      options: see there.
      workers: decoding processes; one a core and one more if None.
      segmenter: finds the lungs where ``options.preprocess.lungs`` wants them; the bundled one if None.
      patients: a table of whose images they are, see ``data.patients.identify``.
      patient_key: file of the key that patients' numbers are hashed with; the user's own if None.
      progress: called after each image; every image is decoded twice, first to find duplicates.

    Returns:
      The manifest, as written to ``out/manifest.json``.

    Raises:
      UsageError: ``only`` names a source that there is not.
      UserError: nothing usable in a source, one class only, fewer patients than folds, an image under several labels, a
        table or a key that cannot be used, ``out`` not writable, no segmenter.
    """
    if options.preprocess.lungs != "none" and segmenter is None:
        segmenter = open_segmenter()
    refuse_existing(out)
    progress = progress or (lambda done, total: None)
    check_way(options.patient_from)
    collections, classes = _read_collections(sources, options)
    if options.masks:
        labels = {example.label for collection in collections for example in collection.examples}
        classes = tuple(kind for kind in MASK_KINDS if kind in labels)
    options = replace(options, preprocess=replace(options.preprocess, classes=classes))
    examples, prints = _recognize(collections, options, patients, PatientKey(patient_key), workers, progress)
    contradictions: list[dict[str, str]] = []
    chosen = [examples[row] for row in _choose(collections, examples, options, prints, contradictions)]
    fold_of, splits = _assign_folds(chosen, options, collections)
    digest, count = segmenter.digest if segmenter else "", len(splits) or options.folds
    with create_dataset(out, options.preprocess, count, masks=options.masks, segmenter=digest) as writer:
        images = _read_images(chosen, options, workers, segmenter)
        count = len(examples)
        lists = _write(writer, chosen, fold_of, images, lambda done: progress(count + done, count + len(chosen)))
        return writer.close(
            options=dataclasses.asdict(options) | {"table": str(options.table) if options.table else None},
            **_facts(collections, prints),
            splits={f"fold{fold}": split for fold, split in enumerate(splits)},
            skipped=lists["skipped"],
            remarks=lists["remarks"],
            **({"lungs_by": segmenter.title, "whole_films": lists["whole_films"]} if segmenter else {}),
            contradictions=contradictions,
        )


def _recognize(
    collections: Sequence[Collection],
    options: Options,
    table: Path | None,
    key: PatientKey,
    workers: int | None,
    progress: Progress,
) -> tuple[list[Example], duplicates.Fingerprints]:
    """The examples of all collections, each with its patient, and which of them are the same image."""
    count, way, limits = sum(len(collection.examples) for collection in collections), options.patient_from, options.limits
    tick = partial(progress, 0, 2 * count)
    examples = identify(collections, way, table=table, key=key, limits=limits, tick=tick)
    _check_classes(examples, options)
    prints = duplicates.compare(
        examples, workers=workers, progress=lambda done, total: progress(done, 2 * total), limits=limits
    )
    patients = folds.patients_of(examples, prints.digests, list(prints.pairs))
    return [replace(example, patient=patient) for example, patient in zip(examples, patients, strict=True)], prints


def _read_collections(sources: Sequence[Path], options: Options) -> tuple[list[Collection], tuple[str, ...]]:
    """The collections, and the classes."""
    names = _source_names(sources)
    if unknown := options.only.keys() - names:
        raise UsageError(f"There is no source {min(unknown)}; the sources are called {', '.join(names)}.")
    asked = () if options.infer_classes or options.masks else options.preprocess.classes
    classes = ClassNames(asked, options.mapping)
    about: dict[str, Any] = {"masks": options.masks, "names": classes, "labels": options.table}
    collections = [
        readers.read(root, options.layout, source=name, **about) for root, name in zip(sources, names, strict=True)
    ]
    if options.table:
        count_absent_once(collections)
    check_names(collections, classes)
    return collections, options.preprocess.classes if options.masks else classes_with_images(collections, classes)


def _source_names(sources: Sequence[Path]) -> list[str]:
    """The folders' own names, of a link not that of what it leads to; numbered where two are the same."""
    names = [Path(os.path.normpath(root.absolute())).name for root in sources]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}" for index, name in enumerate(names)
    ]


def _choose(
    collections: Sequence[Collection],
    examples: Sequence[Example],
    options: Options,
    fingerprints: duplicates.Fingerprints,
    contradictions: list[dict[str, str]],
) -> list[int]:
    """The rows of the images of the asked-for classes, without duplicates, at most so many of each class, drawn at random;
    what is left out is counted in its collection, and images under several labels are added to ``contradictions``.

    Raises:
      UserError: an image under several labels.
    """
    classes = options.preprocess.classes
    left_out = {
        row: f"class {example.label}, not asked for"
        for row, example in enumerate(examples)
        if example.label not in options.only.get(example.source, classes)
    }
    earlier: Mapping[int, str] = {}
    # In a dataset of masks the same image may stand with both kinds of mask.
    if not options.masks:
        rows = [row for row in range(len(examples)) if row not in left_out]
        groups = duplicates.contradictions(examples, rows, fingerprints)
        if groups and options.duplicates == "refuse":
            raise duplicates.refuse(examples, groups)
        for number, row in ((number, row) for number, group in enumerate(groups) for row in group):
            example = examples[row]
            image = {
                "image": str(number),
                "path": example.written_path,
                "source": example.source,
                "label": example.label,
            }
            contradictions.append(image)
            if options.duplicates == "drop":
                left_out[row] = "the same image under several labels"
        if options.duplicates != "keep":
            rows = [row for row in rows if row not in left_out]
            earlier = duplicates.duplicates_of_earlier_sources(examples, rows, fingerprints)
            left_out |= {row: f"a copy of an image of {source}" for row, source in earlier.items()}
    random = np.random.default_rng(options.seed)
    chosen = []
    for label in classes:
        rows = [row for row, example in enumerate(examples) if example.label == label and row not in left_out]
        limit = options.limits_by_class.get(label, options.limit_per_class)
        if limit is not None:
            over = [rows[index] for index in random.permutation(len(rows))[limit:].tolist()]
            left_out |= dict.fromkeys(over, f"over the limit of {limit} images a class")
        chosen += [row for row in rows if row not in left_out]
    start = 0
    for collection in collections:
        rows_of = range(start, start := start + len(collection.examples))
        collection.left_out.update(reason for row, reason in left_out.items() if row in rows_of)
        collection.duplicates = sum(row in rows_of for row in earlier)
    return chosen


def _check_classes(examples: Sequence[Example], options: Options) -> None:
    """See that there is an image of each class.

    Raises:
      UserError: there is none.
    """
    labels = {example.label for example in examples}
    if missing := [label for label in options.preprocess.classes if label not in labels]:
        raise UserError(f"There is no image of class {missing[0]}; add a source that has some, or prepare other --classes.")


def _assign_folds(
    examples: Sequence[Example], options: Options, collections: Sequence[Collection]
) -> tuple[list[int], list[str]]:
    """The fold of each image, stratified by class or, where there are masks, by source; and the parts of the publisher's
    split, in the order of their folds, where that is kept.

    Raises:
      UserError: a class of which there is no image, or fewer patients than folds.
    """
    _check_classes(examples, options)
    labels = [example.label for example in examples]
    if options.keep_split:
        splits, fold_of, warning = keep_split(examples)
        collections[0].notes += [warning] * bool(warning)
        return fold_of, splits
    kind, strata, of_image = "Class", options.preprocess.classes, labels
    if options.masks:
        sources = tuple(collection.source for collection in collections)
        kind, strata, of_image = "Source", sources, [example.source for example in examples]
    fold_of = folds.assign_folds(
        np.asarray([strata.index(stratum) for stratum in of_image]),
        [example.patient for example in examples] if options.group_by == "patient" else None,
        [f"{kind} {stratum}" for stratum in strata],
        folds=options.folds,
        seed=options.seed,
    )
    return fold_of, []


def _read_images(
    examples: Sequence[Example], options: Options, workers: int | None, segmenter: lung_stream.Segmenter | None
) -> Iterator[stream.LoadedImage]:
    preprocess, limits = options.preprocess, options.limits
    paths = [example.path for example in examples]
    if segmenter and not options.masks:
        return lung_stream.read_lungs(paths, preprocess, segmenter, workers=workers, limits=limits)
    masks = [example.mask for example in examples]
    return stream.read_images(paths, preprocess, masks=masks, workers=workers, limits=limits)


def _write(
    writer: Writer,
    examples: Sequence[Example],
    fold_of: Sequence[int],
    images: Iterator[stream.LoadedImage],
    progress: Callable[[int], None],
) -> defaultdict[str, list[dict[str, str]]]:
    """Add the images to the dataset. Returns the manifest's lists of files: ``skipped``, ``remarks``, ``whole_films``."""
    lists = defaultdict(list)
    for done, (example, fold, image) in enumerate(zip(examples, fold_of, images, strict=True), 1):
        file = {"path": example.written_path, "source": example.source}
        if image.image is None or image.refused:
            lists["skipped"].append({**file, "reason": image.error or image.refused})
        else:
            writer.add(fold, example, image.image, image.sha256, image.mask, image)
        if image.warning:
            lists["remarks"].append({**file, "remark": image.warning})
        if image.whole_because:
            lists["whole_films"].append({**file, "reason": image.lungs})
        progress(done)
    return lists


def _facts(collections: Sequence[Collection], prints: duplicates.Fingerprints) -> dict[str, Any]:
    """What the manifest says of the collections."""
    return {
        "sources": [
            {"name": collection.source, "path": str(collection.root), "layout": collection.layout}
            for collection in collections
        ],
        "left_out": {collection.source: dict(+collection.left_out) for collection in collections},
        "duplicates_dropped": {
            collection.source: collection.duplicates for collection in collections if collection.duplicates
        },
        "identical_files": len(prints.digests) - len(set(prints.digests.values())),
        "near_duplicates": len(prints.pairs),
        "undecided": [
            {"path": image.written_path, "source": image.source, "label": image.label}
            for collection in collections
            for image in collection.undecided
        ],
        "notes": [f"{collection.source}: {note}" for collection in collections for note in collection.notes],
    }
