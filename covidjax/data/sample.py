"""The built-in synthetic dataset, and opening a dataset by its path or as ``sample``."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs

from covidjax.config import Preprocess
from covidjax.data import synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.folds import assign_folds
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.errors import UserError
from covidjax.labels import CLASSES, MASK_KINDS, as_option

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

SAMPLE_VERSION = 1
"""Raised when ``synthetic`` draws other pixels, or when the dataset made of them changes: part of its name in the cache."""

SAMPLE_FOLDS = 5

SAMPLE_IMAGES = 324
"""Size of the built-in sample: training on it with all defaults takes about ten minutes on two CPU cores."""


def sample_dataset(
    size: int = Preprocess().image_size,
    images: int = SAMPLE_IMAGES,
    *,
    seed: int = 0,
    masks: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """The built-in dataset of synthetic images, drawn once into the user's cache folder and opened from there.

    Args:
      size: height and width in pixels.
      images: their number.
      seed: of the images and the folds.
      masks: images with their lung masks in place of classes.
      progress: called with (done, total) after each image that is drawn.

    Raises:
      UserError: the cache folder cannot be written.
    """
    name = f"{images}x{size}-seed{seed}{'-masks' * masks}-v{SAMPLE_VERSION}"
    out = platformdirs.user_cache_path("covidjax") / "sample" / name
    if out.exists():
        try:
            return Dataset(out)
        except UserError:
            shutil.rmtree(out, ignore_errors=True)  # damaged; nobody but this function can mend it
    try:
        _draw_sample(out, size, images, seed, masks, progress)
    except UserError as error:
        if not out.exists():  # else another process drew it in the meantime
            raise UserError(f"The sample could not be drawn: {error} XDG_CACHE_HOME names the cache folder.") from error
    return Dataset(out)


def _draw_sample(out: Path, size: int, count: int, seed: int, masks: bool, progress: Progress | None) -> None:
    images = list(synthetic.draw_images(count, seed=seed, size=size))
    labels, patients = np.asarray([image.label for image in images]), [image.patient for image in images]
    folds = assign_folds(labels, patients, [f"Class {name}" for name in CLASSES], folds=SAMPLE_FOLDS, seed=seed)
    preprocess = Preprocess(size, classes=("fields",) if masks else CLASSES)
    with create_dataset(out, preprocess, SAMPLE_FOLDS, masks=masks, wait=True) as writer:
        for index, (image, fold) in enumerate(zip(images, folds, strict=True)):
            path, label = Path(f"{image.patient}-{index}"), "fields" if masks else CLASSES[image.label]
            digest = hashlib.sha256(image.image.tobytes()).hexdigest()
            mask = image.lungs[..., None].astype(np.uint8) if masks else None
            writer.add(fold, Example(path, label, image.patient, "synthetic"), image.image[..., None], digest, mask)
            if progress:
                progress(index + 1, count)
        writer.close(sources=[], left_out={}, skipped=[], identical_files=0, notes=[])


def open_dataset(
    path: str | Path, preprocess: Preprocess | None = None, *, masks: bool = False, some_classes: bool = False
) -> Dataset:
    """A prepared dataset, or the built-in sample for ``sample``.

    Args:
      path: its folder, or ``sample``.
      preprocess: what a run was trained with; the dataset must have been prepared in the same way.
      masks: of the sample, images with lung masks in place of classes.
      some_classes: whether the dataset may lack some of the run's classes.

    Raises:
      UserError: there is none, or it was prepared with other options.
    """
    size = preprocess.image_size if preprocess else Preprocess().image_size
    dataset = sample_dataset(size, masks=masks) if str(path) == "sample" else Dataset(Path(path))
    theirs = dataset.preprocess
    if preprocess and some_classes and not masks and set(theirs.classes) <= set(preprocess.classes):
        theirs = dataclasses.replace(theirs, classes=preprocess.classes)
    if preprocess and theirs != preprocess:
        raise UserError(
            f"{path} was prepared with {_options(dataset.preprocess)}, but the run was trained on {_options(preprocess)}; "
            "prepare the images again with the run's options."
        )
    return dataset


def _options(preprocess: Preprocess) -> str:
    masks = set(preprocess.classes) <= set(MASK_KINDS)
    classes = f"--masks ({', '.join(preprocess.classes)})" if masks else f"--classes {as_option(preprocess.classes)}"
    return f"--image-size {preprocess.image_size} --lungs {preprocess.lungs} {classes} --invert {preprocess.invert}"
