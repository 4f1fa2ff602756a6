"""Draws synthetic images, by the bundled segmenter, into a PNG: ``python -m bench.lungs_picture docs/lungs.png``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from covidjax.data import synthetic
from covidjax.lungs import segmenter
from covidjax.training.mask_report import Segmentation, draw


def main(path: Path) -> None:
    """Four images, each with the true mask, the predicted one and the crop."""
    opened = segmenter.open_segmenter("cpu")
    phantoms = [synthetic.draw(index, size=opened.size) for index in range(4)]
    probabilities = np.asarray(opened(np.stack([phantom.image for phantom in phantoms])[..., None]))
    segmentations = []
    for phantom, predicted in zip(phantoms, probabilities, strict=True):
        true_mask, mask = phantom.lungs, predicted > 0.5
        dice = float(2 * (true_mask & mask).sum() / (true_mask.sum() + mask.sum()))
        segmentations.append(Segmentation(phantom.image, true_mask, predicted[..., None], kind=0, dice=dice))
    draw(path, segmentations, ("synthetic",), "Synthetic images, by the bundled segmenter")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
