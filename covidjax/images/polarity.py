"""Whether an X-ray is a negative: bone dark, air bright, as some devices store them and many headers wrongly claim.

A logistic regression on the X-ray at 16 × 16 pixels, both halves added up, each at mean 0 and deviation 1. It has no
intercept, so a negative has exactly the score of its positive with the other sign, and being sure of one is being sure of
the other. ``python -m bench.polarity FOLDER...`` fits the bundled weights and prints how they do on patients they were
not fitted to.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
"""Height and width in pixels at which X-rays are looked at."""

SURE = 2.0
"""How far below zero the score of a negative lies. X-rays that are not of a chest come to within 1."""

WEIGHTS = Path(__file__).parents[1] / "weights" / "polarity.safetensors"


def features(gray: Image.Image) -> np.ndarray:
    """An image in mode ``L`` → float32 ``[SIDE · SIDE / 2]``, mean 0 and deviation 1; zeros for an image of one value."""
    small = _small(gray)
    halves = (small + small[:, ::-1])[:, : SIDE // 2].ravel()
    halves -= halves.mean()
    return halves / max(halves.std(), 1e-3)


def _small(gray: Image.Image) -> np.ndarray:
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.0), np.float32)


def contrast(gray: Image.Image) -> float:
    """Standard deviation, in gray levels, of an image in mode ``L`` at ``SIDE`` × ``SIDE`` pixels."""
    return float(np.std(_small(gray)))


def score(gray: Image.Image) -> float:
    """Logarithm of the odds that an image in mode ``L`` is no negative."""
    return float(features(gray) @ _weights())


def is_negative(gray: Image.Image) -> bool:
    """Whether an image in mode ``L`` is surely a negative."""
    return score(gray) <= -SURE


@functools.cache
def _weights() -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(WEIGHTS)["weights"]
