"""From collections of films, or from nothing (the built-in sample), to a prepared dataset."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from covidjax.config import Preprocess
from covidjax.data import duplicates, folds, readers
from covidjax.data.readers.base import Collection, Example
from covidjax.data.writer import Record, create_dataset
from covidjax.errors import UsageError, UserError
from covidjax.images import stream
from covidjax.images.formats import Limits
from covidjax.labels import MASK_KINDS
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.segmenter import open_segmenter

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


@dataclass(frozen=True)
class Options:
    """Everything ``prepare`` can be told; written to the manifest."""

    preprocess: Preprocess = field(default_factory=Preprocess)
    layout: str = "auto"
    group_by: str = "patient"
    """``patient``: all films of a patient in one fold. ``none``: a plain random split, which leaks between folds."""
    folds: int = 5
    seed: int = 0
    limit_per_class: int | None = None
    copies: Literal["drop", "keep"] = "drop"
    """Of a film that several sources hold, ``drop`` keeps the first source's; ``keep`` keeps all, as one patient's."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes that alone are taken of a source, by its name."""
    limits_by_class: Mapping[str, int] = field(default_factory=dict)
    """Most films of a class, drawn at random, where it is not ``limit_per_class``."""
    masks: bool = False
    """Pairs of films and lung masks, for a segmenter: the classes are the kinds of mask that there are, and the folds are
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read collections, sort their films into folds, decode and write them.

    Args:
      sources: folders of films.
      out: the dataset's folder, made whole under a temporary name and then renamed.
      options: see there.
      workers: decoding processes; one a core and one more if None.
      segmenter: what finds the lungs where ``options.preprocess.lungs`` wants them; the bundled one if None.
      progress: told after each film.

    Returns:
      The manifest, as written to ``out/manifest.json``.

    Raises:
      UsageError: ``only`` names a source that there is not.
      UserError: nothing usable in a source, one class only, fewer patients than folds, ``out`` not writable, no segmenter.
    """
    if options.preprocess.lungs != "none" and segmenter is None:
        segmenter = open_segmenter()
    names = _source_names(sources)
    if unknown := options.only.keys() - names:
        raise UsageError(f"There is no source {min(unknown)}; the sources are called {', '.join(names)}.")
    read = [
        readers.read(root, options.layout, source=name, masks=options.masks)
        for root, name in zip(sources, names, strict=True)
    ]
    if options.masks:
        found = {example.label for collection in read for example in collection.examples}
        kinds = tuple(kind for kind in MASK_KINDS if kind in found)
        options = dataclasses.replace(options, preprocess=dataclasses.replace(options.preprocess, classes=kinds))
    classes = options.preprocess.classes
    everything = [example for collection in read for example in collection.examples]
    counted = progress or (lambda done, total: None)
    alike = []
    if len(read) > 1:
        paths, total = [example.path for example in everything], 2 * len(everything)
        alike = duplicates.near_duplicates(
            paths, workers=workers, progress=lambda done, _: counted(done, total), limits=options.limits
        )
    contents = duplicates.identical_files(everything)
    whose = folds.patients_of(everything, contents, alike)
    rows = _chosen(read, everything, options, contents, alike)
    examples, patients = [everything[row] for row in rows], [whose[row] for row in rows]
    labels = np.asarray([classes.index(example.label) for example in examples], int)
    for label, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if not count:
            raise UserError(f"There is no film of class {label}; add a source that has some, or prepare other --classes.")
    strata, named = labels, [f"Class {name}" for name in classes]
    if options.masks:
        strata = np.asarray([names.index(example.source) for example in examples])
        named = [f"Source {name}" for name in names]
    grouped = options.group_by == "patient"
    fold_of = folds.assign_folds(strata, patients if grouped else None, named, folds=options.folds, seed=options.seed)
    skipped, remarks, whole = [], [], []
    digest = segmenter.digest if segmenter else ""
    with create_dataset(out, options.preprocess, options.folds, masks=options.masks, segmenter=digest) as writer:
        images = _films(examples, options, workers, segmenter)
        for done, (example, patient, fold, film) in enumerate(zip(examples, patients, fold_of, images, strict=True), 1):
            if film.image is None:
                skipped.append({"path": str(example.path), "source": example.source, "reason": film.error})
            else:
                name, view = example.path.name, example.view
                record = Record(film.image, example.label, patient, example.source, name, film.sha256, view, film.mask)
                writer.add(fold, record)
            if film.remark:
                remarks.append({"path": str(example.path), "source": example.source, "remark": film.remark})
            if film.lungs.startswith(lung_stream.WHOLE):
                whole.append({"path": str(example.path), "source": example.source, "reason": film.lungs})
            before = len(everything) if len(read) > 1 else 0
            counted(before + done, before + len(examples))
        return writer.close(
            options=dataclasses.asdict(options),
            sources=[
                {"name": collection.source, "path": str(collection.root), "layout": collection.layout}
                for collection in read
            ],
            left_out={collection.source: dict(+collection.left_out) for collection in read},
            skipped=skipped,
            remarks=remarks,
            **({"lungs_by": segmenter.title, "whole_films": whole} if segmenter else {}),
            identical_files=len(contents) - len(set(contents.values())),
            look_alikes=len(alike),
            notes=[f"{collection.source}: {note}" for collection in read for note in collection.notes],
        )


def _films(
    examples: Sequence[Example], options: Options, workers: int | None, segmenter: lung_stream.Segmenter | None
) -> Iterator[stream.LoadedImage]:
    preprocess, limits = options.preprocess, options.limits
    pairs = [(example.path, example.mask) for example in examples if example.mask]
    if pairs:
        return stream.read_pairs(pairs, preprocess, workers=workers, limits=limits)
    paths = [example.path for example in examples]
    if segmenter:
        return lung_stream.read_lungs(paths, preprocess, segmenter, workers=workers, limits=limits)
    return stream.read_images(paths, preprocess, workers=workers, limits=limits)


def _source_names(sources: Sequence[Path]) -> list[str]:
    """The folders' own names, of a link not that of what it leads to; numbered where two are the same."""
    names = [Path(os.path.normpath(root.absolute())).name for root in sources]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}" for index, name in enumerate(names)
    ]


def _chosen(
    read: Sequence[Collection],
    examples: Sequence[Example],
    options: Options,
    contents: Mapping[int, str],
    alike: Sequence[tuple[int, int]],
) -> list[int]:
    """The rows of the films of the asked-for classes, without copies, at most so many of each class, drawn at random; what
    is left out is counted."""
    left_out = {collection.source: collection.left_out for collection in read}
    taken = []
    for row, example in enumerate(examples):
        if example.label in options.only.get(example.source, options.preprocess.classes):
            taken.append(row)
        else:
            left_out[example.source][f"class {example.label}, not asked for"] += 1
    # In a dataset of masks the same film may stand with both kinds of mask.
    dropping = options.copies == "drop" and not options.masks
    first = duplicates.copies_of_earlier_sources(examples, taken, contents, alike) if dropping else {}
    by_class = defaultdict(list)
    for row in taken:
        example = examples[row]
        if row in first:
            left_out[example.source][f"a copy of a film of {first[row]}"] += 1
        else:
            by_class[example.label].append(row)
    random = np.random.default_rng(options.seed)
    chosen = []
    for label in options.preprocess.classes:
        mine, limit = by_class[label], options.limits_by_class.get(label, options.limit_per_class)
        keep = set(range(len(mine)) if limit is None else random.permutation(len(mine))[:limit].tolist())
        for place, row in enumerate(mine):
            if place in keep:
                chosen.append(row)
            else:
                left_out[examples[row].source][f"over the limit of {limit} films a class"] += 1
    return chosen
