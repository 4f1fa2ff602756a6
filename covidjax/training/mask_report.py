"""The held-out images of a segmenter's run: a table of all, and pictures of the worst and of typical ones."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import numpy as np

from covidjax import device
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


@device.own_flags()
def write(folder: Path, run: Path, dataset: Dataset, held_out: np.ndarray, scores: np.ndarray, note: str) -> None:
    """Write ``masks.csv``, the held-out images from the worst to the best, and ``worst.png`` and ``typical.png``, of ten
    images each the image, the true mask and the predicted one, and the crop.

    Args:
      folder: the run's report.
      run: a run of lung-unet.
      dataset: the one with masks that it was trained on.
      held_out: rows of the dataset.
      scores: loss, Dice and IoU of each of them, float ``[N, 3]``.
      note: stands above the pictures.
    """
    source = dataset.source(range(dataset.folds))
    ranking = np.argsort(scores[:, 1], kind="stable")
    batch = next(loader.eval_batches(source, len(ranking), held_out[ranking]))
    kinds = dataset.preprocess.classes
    with (folder / "masks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "source", "patient", "mask", "dice", "iou"))
        for row, kind in zip(ranking.tolist(), batch.labels.tolist(), strict=True):
            texts = map(printable, source.texts(int(held_out[row]), "name", "source", "patient"))
            table.writerow((*texts, kinds[kind], *(f"{share:.4f}" for share in scores[row, 1:])))
    loaded = load_run(run)
    predict = make_predict(loaded.network, loaded.run.config.model)
    count = min(PICTURED, len(ranking))
    typical = np.linspace(0, len(ranking) - 1, count).round().astype(int)
    for name, ranks in (("worst", np.arange(count)), ("typical", typical)):
        assert batch.masks is not None
        probabilities = np.asarray(jax.nn.sigmoid(predict(loaded.weights, batch.images[ranks])))
        rows = []
        for rank, predicted in zip(ranks, probabilities, strict=True):
            kind = batch.labels[rank]
            caption = f"Dice {scores[ranking[rank], 1]:.3f}, {kinds[kind]}"
            rows.append(mask_tiles(batch.images[rank, ..., 0], batch.masks[rank, ..., 0] > 0, predicted, kind, caption))
        image_grid(folder / f"{name}.png", rows, title=f"Held-out images: {name} by Dice" + f"\n{note}" * bool(note))


def mask_tiles(image: np.ndarray, true_mask: np.ndarray, probabilities: np.ndarray, kind: int, caption: str) -> list[Tile]:
    """An image, its true and its predicted mask, and its crop.

    Args:
      image: uint8 ``[H, W]``.
      true_mask: bool ``[H, W]``.
      probabilities: float32 ``[H, W, K]``, of each kind of mask.
      kind: the kind of the true mask.
      caption: of the image.
    """
    # The box is that of the last kind, as in use; the mask that is measured is of the image's own kind.
    lungs = geometry.find_lungs(probabilities[..., -1], *image.shape)
    return [
        Tile(image, caption),
        Tile(tint(image, true_mask), "true mask"),
        Tile(tint(image, probabilities[..., kind] > 0.5), "predicted mask"),
        Tile(geometry.frame_lungs(image, lungs, "crop"), f"whole image: {lungs.flag}" if lungs.flag else "crop"),
    ]
