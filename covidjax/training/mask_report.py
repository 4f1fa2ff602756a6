"""The held-out films of a segmenter's run: a table of all, and pictures of the worst and of typical ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import printable
from covidjax.inference.forward import make_predict
from covidjax.lungs import geometry
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.overlay import tint
from covidjax.runs.load import load_run

SHOWN = 10
"""Films of a picture."""


def write(folder: Path, run: Path, dataset: Dataset, fold: int, found: np.ndarray, note: str) -> None:
    """Write ``masks.csv``, the films of a fold from the worst to the best, and ``worst.png`` and ``typical.png``, of ten
    films each the film, the true mask and the found one, and the crop.

    Args:
      folder: the run's report.
      run: a run of lung-unet.
      dataset: the one with masks that it was trained on.
      fold: the test fold.
      found: loss, Dice and IoU of each film of the fold, ``[N, 3]``.
      note: stands under the pictures.
    """
    source = dataset.source([fold])
    ranking = np.argsort(found[:, 1], kind="stable")
    batch = next(loader.train_batches(source, ranking[None]))
    kinds = dataset.preprocess.classes
    with (folder / "masks.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("name", "source", "patient", "mask", "dice", "iou"))
        for row, kind in zip(ranking.tolist(), batch.labels.tolist(), strict=True):
            name, where, patient = map(printable, source.texts(row, "name", "source", "patient"))
            table.writerow((name, where, patient, kinds[kind], *(f"{value:.4f}" for value in found[row, 1:])))
    loaded = load_run(run)
    predict = make_predict(loaded.network, loaded.run.config.model)
    spread = np.linspace(0, len(ranking) - 1, min(SHOWN, len(ranking))).round().astype(int)
    for name, places in (("worst", np.arange(len(spread))), ("typical", spread)):
        assert batch.masks is not None
        logits = np.asarray(predict(loaded.weights, batch.images[places]))
        films = [
            (batch.images[place, ..., 0], batch.masks[place, ..., 0], np.asarray(jax.nn.sigmoid(each)), batch.labels[place])
            for place, each in zip(places, logits, strict=True)
        ]
        title = f"Held-out films: {'the worst by Dice' if name == 'worst' else 'evenly from the worst to the best'}"
        _draw(folder / f"{name}.png", films, found[ranking[places], 1], kinds, title + f"\n{note}" * bool(note))


def _draw(path: Path, films: list[Any], dice: np.ndarray, kinds: tuple[str, ...], title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heads = ("film", "true mask", "found mask", "crop")
    lines = -(-len(films) // 2)
    figure = Figure(figsize=(12, 1.75 * lines + 0.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, 2 * len(heads), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, ((image, mask, probabilities, kind), score) in enumerate(zip(films, dice, strict=True)):
        mine = axes[number // 2, number % 2 * len(heads) :][: len(heads)]
        # The box is that of the last kind, as in use; the mask that is measured is of the film's own kind.
        seen = geometry.find_lungs(probabilities[..., -1], *image.shape)
        crop = geometry.frame_lungs(image, seen, "crop")
        pictures = (image, tint(image, mask > 0), tint(image, probabilities[..., kind] > 0.5), crop)
        below = (f"Dice {score:.3f}, {kinds[kind]}", "", "", lung_stream.WHOLE + seen.flag if seen.flag else "")
        for axis, picture, head, text in zip(mine, pictures, heads, below, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_title(text or head, fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)
