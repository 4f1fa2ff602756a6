"""What an audit looks at: the images of a dataset, reduced, with what is known of each, and what lies outside their
lungs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from covidjax.data import loader
from covidjax.data.dataset import Dataset

LARGEST = 128
"""Most pixels of a side that are kept."""

SIDE = 64
"""Pixels of a side that the border and what lies outside the lungs are looked at with. A mark of 12 pixels on an image of
224 has three of them."""

FRAME = SIDE // 8
"""Width of the border frame."""

DILATION = 2
"""Pixels around a lung mask that count as lung."""

OFTEN = 0.25
"""Where more than this share of the images have lung, none is looked at: what an opacity takes from one mask is not to be
visible there."""

BATCH = 32


@dataclass(frozen=True)
class AuditImages:
    """The images of a dataset, in the order of its folds."""

    pixels: np.ndarray
    """uint8 ``[N, S, S]``, at most ``LARGEST`` a side."""
    classes: tuple[str, ...]
    labels: np.ndarray
    """int ``[N]``."""
    source_names: tuple[str, ...]
    sources: np.ndarray
    """int ``[N]``."""
    patients: np.ndarray
    """int ``[N]``."""
    folds: np.ndarray
    """int ``[N]``."""
    numbers: np.ndarray
    """int ``[N]``, the place of each image within its fold."""
    names: Sequence[str]
    """As the dataset has them."""
    digests: Sequence[str]
    """Of the files."""

    def __len__(self) -> int:
        return len(self.labels)

    def small(self, side: int) -> np.ndarray:
        """uint8 ``[N, side, side]``."""
        return np.stack([_resize(image, side) for image in self.pixels])


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape == (side, side):
        return image
    method = Image.Resampling.BOX if side < len(image) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((side, side), method))


def read_images(dataset: Dataset, tick: Callable[[int], object] = lambda done: None) -> AuditImages:
    """All images of a dataset.

    Args:
      dataset: see there.
      tick: called with the number of images after each batch.

    Raises:
      UserError: a record that cannot be read.
    """
    source = dataset.source(range(dataset.folds))
    side = min(dataset.preprocess.image_size, LARGEST)
    pixels, labels = np.zeros((len(source), side, side), np.uint8), np.zeros(len(source), int)
    done = 0
    for batch in loader.eval_batches(source, BATCH):
        for image, label in zip(batch.images[: batch.count, ..., 0], batch.labels, strict=False):
            # Boxes of unequal numbers of pixels would blur the details that copies share, here more and there less.
            reduced = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            pixels[done], labels[done] = np.asarray(reduced), label
            done += 1
        tick(done)
    patients, sources, names = loader.origins(source, np.arange(len(source)))
    digests = [source.texts(row, "sha256")[0] for row in range(len(source))]
    counts = [int(dataset.class_counts([fold]).sum()) for fold in range(dataset.folds)]
    source_names, source_of = np.unique(sources, return_inverse=True)
    return AuditImages(
        pixels,
        dataset.preprocess.classes,
        labels,
        tuple(map(str, source_names)),
        source_of,
        np.unique(patients, return_inverse=True)[1],
        np.repeat(np.arange(dataset.folds), counts),
        np.concatenate([np.arange(count) for count in counts]),
        names,
        digests,
    )


def outside_lungs(masks: np.ndarray, plausible: np.ndarray) -> np.ndarray:
    """What is looked at outside the lungs of each image: all but its own mask, dilated, and where lungs often are; bool
    ``[N, SIDE, SIDE]``."""
    hidden = dilate(masks & plausible[:, None, None])
    often = masks[plausible].mean(0) > OFTEN if plausible.any() else np.zeros((SIDE, SIDE), bool)
    return ~(hidden | often)


def dilate(masks: np.ndarray) -> np.ndarray:
    """Masks ``[N, SIDE, SIDE]``, ``DILATION`` pixels wider on every side."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(masks, np.ones((1, 3, 3), bool), iterations=DILATION))


def frame() -> np.ndarray:
    """The border frame, bool ``[SIDE, SIDE]``."""
    inside = np.zeros((SIDE, SIDE), bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    return ~inside


def by_place(images: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The pixels that are visible in a fifth of the images or more, where they are not by the mean of the others: float32
    ``[N, P]``.

    Args:
      images: uint8 ``[N, SIDE, SIDE]``.
      visible: bool ``[N, SIDE, SIDE]``.
    """
    often = visible.mean(0) >= 0.2
    values, weights = images[:, often].astype(np.float32), visible[:, often]
    mean = (values * weights).sum(0) / np.maximum(weights.sum(0), 1)
    return np.where(weights, values, mean)


def details_by_place(pixels: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Of the places that ``by_place`` takes: brightness, brightness against the surroundings, and the greatest step between
    neighbouring pixels, as the edge of a small mark has it; float32 ``[N, 3 · P]``.

    Args:
      pixels: uint8 ``[N, S, S]``.
      visible: bool ``[N, SIDE, SIDE]``.
    """
    from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

    twice = np.stack([_resize(image, 2 * SIDE) for image in pixels])
    steps = maximum_filter(twice, (1, 3, 3)) - minimum_filter(twice, (1, 3, 3))
    blocks = (len(pixels), SIDE, 2, SIDE, 2)
    bright = twice.reshape(blocks).mean((2, 4), np.float32)
    weights = visible.astype(np.float32)  # so that no lung counts among the surroundings
    share = np.maximum(uniform_filter(weights, 9, axes=(1, 2), mode="constant"), 1e-3)
    surroundings = uniform_filter(bright * weights, 9, axes=(1, 2), mode="constant") / share
    maps = (bright, bright - surroundings, steps.reshape(blocks).max((2, 4)))
    return np.concatenate([by_place(values, visible) for values in maps], 1)


SHARES = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0)


def anywhere(images: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """What is visible wherever it lies: percentiles of brightness, of local means, contrasts and spots of several sizes,
    and the shares of white and of black pixels, float32 ``[N, F]``; for the arguments see ``by_place``."""
    from scipy.ndimage import uniform_filter

    rows = []
    for image, shown in zip(images, visible, strict=True):
        weights, values = shown.astype(np.float32), np.where(shown, image, 0).astype(np.float32)
        if not shown.any():
            rows.append(np.zeros(5 * len(SHARES) + 2, np.float32))
            continue
        means = []
        for size in (3, 9):
            share = np.maximum(uniform_filter(weights, size, mode="constant"), 1e-3)
            means.append(uniform_filter(values, size, mode="constant") / share)
        square = uniform_filter(values**2, 3, mode="constant") / np.maximum(
            uniform_filter(weights, 3, mode="constant"), 1e-3
        )
        contrast = np.sqrt(np.maximum(square - means[0] ** 2, 0))
        maps = (values, means[0], contrast, values - means[1], means[0] - means[1])
        quantiles = [np.percentile(values_of[shown], SHARES) for values_of in maps]
        tones = [(values[shown] >= 250).mean(), (values[shown] <= 5).mean()]
        rows.append(np.concatenate([*quantiles, tones]))
    return np.asarray(rows, np.float32)
