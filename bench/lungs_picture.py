"""Draws synthetic images, by the bundled segmenter, into a PNG: ``python -m bench.lungs_picture docs/lungs.png``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from covidjax.data import synthetic
from covidjax.lungs import segmenter
from covidjax.report.plots import image_grid
from covidjax.training.mask_report import mask_tiles


def main(path: Path) -> None:
    """Four images, each with the true mask, the predicted one and the crop."""
    opened = segmenter.open_segmenter("cpu")
    phantoms = [synthetic.draw(index, size=opened.size) for index in range(4)]
    probabilities = opened.segment(np.stack([phantom.image for phantom in phantoms])[..., None])[0]
    rows = []
    for phantom, predicted in zip(phantoms, probabilities, strict=True):
        true_mask, mask = phantom.lungs, predicted > 0.5
        dice = 2 * (true_mask & mask).sum() / (true_mask.sum() + mask.sum())
        rows.append(mask_tiles(phantom.image, true_mask, predicted[..., None], kind=0, caption=f"Dice {dice:.3f}"))
    image_grid(path, rows, title="Synthetic images, by the bundled segmenter")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
