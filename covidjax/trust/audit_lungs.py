"""Lung masks of prepared images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from covidjax.lungs.geometry import find_lungs
from covidjax.lungs.stream import Segmenter
from covidjax.trust.audit_images import BATCH, SIDE


def find_masks(
    pixels: np.ndarray, segmenter: Segmenter, tick: Callable[[int], object] = lambda done: None
) -> tuple[np.ndarray, np.ndarray]:
    """The lungs of prepared images, bool ``[N, SIDE, SIDE]``, and which of them are plausible, bool ``[N]``.

    Args:
      pixels: uint8 ``[N, S, S]``.
      segmenter: finds them.
      tick: called with the number of images after each batch.
    """
    masks, plausible = np.zeros((len(pixels), SIDE, SIDE), bool), np.zeros(len(pixels), bool)
    for start in range(0, len(pixels), BATCH):
        rows = range(start, min(start + BATCH, len(pixels)))
        batch = np.zeros((min(BATCH, len(pixels)), segmenter.size, segmenter.size, 1), np.uint8)
        for place, row in enumerate(rows):
            image = Image.fromarray(pixels[row])
            batch[place, ..., 0] = np.asarray(image.resize((segmenter.size, segmenter.size), Image.Resampling.BILINEAR))
        for row, probabilities in zip(rows, segmenter.segment(batch)[0], strict=False):
            lungs = find_lungs(probabilities, SIDE, SIDE)
            plausible[row] = not lungs.flag
            mask = Image.fromarray(lungs.mask.astype(np.uint8) * 255)
            masks[row] = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX)) > 0
        tick(rows[-1] + 1)
    return masks, plausible
