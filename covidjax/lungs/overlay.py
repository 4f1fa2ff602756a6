"""Pictures of a mask on an image."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from covidjax.lungs import geometry

OutputType = Literal["mask", "crop", "overlay"]


def render(gray: np.ndarray, lungs: geometry.Lungs, output: OutputType) -> Image.Image:
    """What ``segment`` writes of an image uint8 ``[H, W]`` and its lungs."""
    if output == "crop":
        return Image.fromarray(geometry.crop_to_box(gray, lungs, "crop"))
    mask = geometry.resize_mask(lungs.mask, *gray.shape)
    if output == "mask":
        return Image.fromarray(mask)
    # A third of the way to red; the image's structure stays to be seen.
    dim = np.where(mask, gray // 3 * 2, gray)
    picture = np.stack([dim + mask * np.uint8(85), dim, dim], -1)
    left, top, right, bottom = lungs.box
    line = max(min(gray.shape) // 256, 1)
    part = picture[top:bottom, left:right]
    for edge in (part[:line], part[-line:], part[:, :line], part[:, -line:]):
        edge[:] = (0, 255, 0)
    return Image.fromarray(picture)


def tint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image uint8 ``[H, W]`` with a mask ``[H, W]`` in blue: uint8 ``[H, W, 3]``."""
    colour = np.where(mask[..., None], np.asarray([70, 160, 255]), image[..., None])
    return (0.6 * image[..., None] + 0.4 * colour).astype(np.uint8)
