"""From collections of films, or from nothing (the built-in sample), to a prepared dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from covidjax import collections, copies, dataset, lungs, phantom, reading
from covidjax.collections import Collection, Example
from covidjax.config import CLASSES, MASKS, Limits, Preprocess, UsageError, UserError
from covidjax.dataset import Record, writing
from covidjax.segmenter import open_segmenter

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

SAMPLE_IMAGES = 324
"""Size of the built-in sample: training on it with all defaults takes about ten minutes on two CPU cores."""


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
    segmenter: lungs.Segmenter | None = None,
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
        collections.read(root, options.layout, source=name, masks=options.masks)
        for root, name in zip(sources, names, strict=True)
    ]
    if options.masks:
        found = {example.label for collection in read for example in collection.examples}
        kinds = tuple(kind for kind in MASKS if kind in found)
        options = dataclasses.replace(options, preprocess=dataclasses.replace(options.preprocess, classes=kinds))
    classes = options.preprocess.classes
    everything = [example for collection in read for example in collection.examples]
    counted = progress or (lambda done, total: None)
    alike = []
    if len(read) > 1:
        paths, total = [example.path for example in everything], 2 * len(everything)
        alike = copies.look_alikes(
            paths, workers=workers, progress=lambda done, _: counted(done, total), limits=options.limits
        )
    contents = copies.identical(everything)
    whose = copies.patients_of(everything, contents, alike)
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
    folds = assign_folds(strata, patients if grouped else None, named, folds=options.folds, seed=options.seed)
    skipped, remarks, whole = [], [], []
    digest = segmenter.digest if segmenter else ""
    with writing(out, options.preprocess, options.folds, masks=options.masks, segmenter=digest) as writer:
        stream = _films(examples, options, workers, segmenter)
        for done, (example, patient, fold, film) in enumerate(zip(examples, patients, folds, stream, strict=True), 1):
            if film.image is None:
                skipped.append({"path": str(example.path), "source": example.source, "reason": film.error})
            else:
                name, view = example.path.name, example.view
                record = Record(film.image, example.label, patient, example.source, name, film.sha256, view, film.mask)
                writer.add(fold, record)
            if film.remark:
                remarks.append({"path": str(example.path), "source": example.source, "remark": film.remark})
            if film.lungs.startswith(lungs.WHOLE):
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
    examples: Sequence[Example], options: Options, workers: int | None, segmenter: lungs.Segmenter | None
) -> Iterator[reading.Film]:
    preprocess, limits = options.preprocess, options.limits
    pairs = [(example.path, example.mask) for example in examples if example.mask]
    if pairs:
        return reading.pairs(pairs, preprocess, workers=workers, limits=limits)
    paths = [example.path for example in examples]
    if segmenter:
        return lungs.films(paths, preprocess, segmenter, workers=workers, limits=limits)
    return reading.films(paths, preprocess, workers=workers, limits=limits)


def sample_dataset(
    size: int = Preprocess().image_size,
    images: int = SAMPLE_IMAGES,
    *,
    seed: int = 0,
    masks: bool = False,
    progress: Progress | None = None,
) -> dataset.Dataset:
    """The built-in dataset of synthetic films, drawn once into the user's cache folder and opened from there; with
    ``masks`` the films with their lung masks in place of classes."""
    # Another drawing or another format on disk is another dataset.
    code = b"".join(Path(file).read_bytes() for file in (phantom.__file__, dataset.__file__, __file__))
    version = hashlib.sha256(code).hexdigest()[:8]
    out = Path(platformdirs.user_cache_dir("covidjax"), "sample", f"{images}x{size}-seed{seed}{'-masks' * masks}-{version}")
    if out.exists():
        try:
            return dataset.Dataset(out)
        except UserError:
            shutil.rmtree(out, ignore_errors=True)  # damaged; nobody but this function can mend it
    try:
        preprocess = Preprocess(size, classes=("fields",) if masks else CLASSES)
        _draw_sample(out, Options(preprocess, seed=seed, masks=masks), images, progress)
    except UserError as error:
        if not out.exists():  # else another process drew it in the meantime
            raise UserError(f"The sample could not be drawn: {error} XDG_CACHE_HOME names the cache folder.") from error
    return dataset.Dataset(out)


def _draw_sample(out: Path, options: Options, images: int, progress: Progress | None) -> None:
    films = list(phantom.sample(images, seed=options.seed, size=options.preprocess.image_size))
    labels = np.asarray([film.label for film in films])
    named = [f"Class {name}" for name in CLASSES]
    folds = assign_folds(labels, [film.patient for film in films], named, folds=options.folds, seed=options.seed)
    with writing(out, options.preprocess, options.folds, masks=options.masks, wait=True) as writer:
        for index, (film, fold) in enumerate(zip(films, folds, strict=True)):
            digest = hashlib.sha256(film.image.tobytes()).hexdigest()
            label = "fields" if options.masks else CLASSES[film.label]
            mask = film.lungs[..., None].astype(np.uint8) if options.masks else None
            name = f"{film.patient}-{index}"
            writer.add(fold, Record(film.image[..., None], label, film.patient, "synthetic", name, digest, mask=mask))
            if progress:
                progress(index + 1, images)
        writer.close(options=dataclasses.asdict(options), sources=[], left_out={}, skipped=[], identical_files=0, notes=[])


def assign_folds(
    labels: np.ndarray, patients: Sequence[str] | None, strata: Sequence[str], *, folds: int, seed: int
) -> list[int]:
    """The fold of each film: stratified and, where patients are given, none of them in two folds.

    Args:
      labels: the stratum of each film, int ``[films]``.
      patients: whose each film is.
      strata: how the strata are called, such as ``Class Pneumonia``.
      folds: at least 2.
      seed: of the shuffling.

    Raises:
      UserError: a stratum with fewer patients (or films) than folds.
    """
    if folds < 2:
        raise UserError(f"A dataset needs at least 2 folds, one to train on and one to test on, not {folds}.")
    for index, name in enumerate(strata):
        mine = np.flatnonzero(labels == index)
        count, what = (
            (len(mine), "films") if patients is None else (len({patients[row] for row in mine.tolist()}), "patients")
        )
        if count < folds:
            raise UserError(f"{name} has {count} {what}, fewer than {folds} folds; add films or use fewer --folds.")
    splitter = StratifiedKFold if patients is None else StratifiedGroupKFold
    result = np.empty(len(labels), int)
    split = splitter(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, patients)
    for fold, (_, held_out) in enumerate(split):
        result[held_out] = fold
    return result.tolist()


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
    first = copies.first_sources(examples, taken, contents, alike) if dropping else {}
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
