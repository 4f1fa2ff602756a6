"""The held-out images of a segmenter's run: a table of all, and pictures of the worst and of typical ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import printable
from covidjax.inference.forward import make_predict
from covidjax.lungs import geometry
from covidjax.lungs.overlay import tint
from covidjax.report.plots import Tile, image_grid
from covidjax.runs.load import load_run

PICTURED = 10
"""Images of a picture."""


class Segmentation(NamedTuple):
    """An image and its masks."""

    image: np.ndarray
    """uint8 ``[H, W]``."""
    true_mask: np.ndarray
    """bool ``[H, W]``."""
    probabilities: np.ndarray
    """float32 ``[H, W, K]``, of each kind of mask."""
    kind: int
    """The kind of the true mask."""
    dice: float


def write(folder: Path, run: Path, dataset: Dataset, fold: int, found: np.ndarray, note: str) -> None:
    """Write ``masks.csv``, the images of a fold from the worst to the best, and ``worst.png`` and ``typical.png``, of ten
    images each the image, the true mask and the predicted one, and the crop.

    Args:
      folder: the run's report.
      run: a run of lung-unet.
      dataset: the one with masks that it was trained on.
      fold: the test fold.
      found: loss, Dice and IoU of each image of the fold, float ``[N, 3]``.
      note: stands above the pictures.
    """
    source = dataset.source([fold])
    ranking = np.argsort(found[:, 1], kind="stable")
    batch = next(loader.train_batches(source, ranking[None]))
    kinds = dataset.preprocess.classes
    with (folder / "masks.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("name", "source", "patient", "mask", "dice", "iou"))
        for row, kind in zip(ranking.tolist(), batch.labels.tolist(), strict=True):
            texts = map(printable, source.texts(row, "name", "source", "patient"))
            table.writerow((*texts, kinds[kind], *(f"{share:.4f}" for share in found[row, 1:])))
    loaded = load_run(run)
    predict = make_predict(loaded.network, loaded.run.config.model)
    count = min(PICTURED, len(ranking))
    typical = np.linspace(0, len(ranking) - 1, count).round().astype(int)
    for name, title, ranks in (
        ("worst", "the worst by Dice", np.arange(count)),
        ("typical", "evenly from the worst to the best", typical),
    ):
        assert batch.masks is not None
        images, masks = batch.images[ranks, ..., 0], batch.masks[ranks, ..., 0] > 0
        probabilities = np.asarray(jax.nn.sigmoid(predict(loaded.weights, batch.images[ranks])))
        dice = found[ranking[ranks], 1]
        columns = (images, masks, probabilities, batch.labels[ranks].tolist(), dice.tolist())
        pictured = [Segmentation(*row) for row in zip(*columns, strict=True)]
        draw(folder / f"{name}.png", pictured, kinds, f"Held-out images: {title}" + f"\n{note}" * bool(note))


def draw(path: Path, segmentations: Sequence[Segmentation], kinds: Sequence[str], title: str) -> None:
    """Draw images with their true and predicted masks and their crops, two to a row."""
    tiles = [_tiles(segmentation, kinds) for segmentation in segmentations]
    image_grid(path, [[*chain.from_iterable(tiles[at : at + 2])] for at in range(0, len(tiles), 2)], title=title)


def _tiles(segmentation: Segmentation, kinds: Sequence[str]) -> list[Tile]:
    image, true_mask, probabilities, kind, dice = segmentation
    # The box is that of the last kind, as in use; the mask that is measured is of the image's own kind.
    lungs = geometry.find_lungs(probabilities[..., -1], *image.shape)
    return [
        Tile(image, f"Dice {dice:.3f}, {kinds[kind]}"),
        Tile(tint(image, true_mask), "true mask"),
        Tile(tint(image, probabilities[..., kind] > 0.5), "predicted mask"),
        Tile(geometry.frame_lungs(image, lungs, "crop"), f"whole image: {lungs.flag}" if lungs.flag else "crop"),
    ]
