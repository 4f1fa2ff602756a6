"""Draws synthetic images, by the bundled segmenter, into a PNG: ``python -m bench.lungs_picture docs/lungs.png``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from covidjax.data import synthetic
from covidjax.lungs import segmenter
from covidjax.training.mask_report import _draw


def main(path: Path) -> None:
    """Four images, each with the true mask, the predicted one and the crop."""
    opened = segmenter.open_segmenter("cpu")
    drawn = [synthetic.draw(index, size=opened.size) for index in range(4)]
    masks = np.asarray(opened(np.stack([film.image for film in drawn])[..., None]))
    films = [(film.image, film.lungs, found[..., None], 0) for film, found in zip(drawn, masks, strict=True)]
    pairs = [(film.lungs, found > 0.5) for film, found in zip(drawn, masks, strict=True)]
    dice = np.asarray([2 * (true & found).sum() / (true.sum() + found.sum()) for true, found in pairs])
    _draw(path, films, dice, ("synthetic",), "Synthetic films, by the bundled segmenter")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
