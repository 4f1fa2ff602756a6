"""How unlike all training images an image is, by its features."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPONENTS = 64
"""Most principal components."""

QUANTILE = 0.99
"""Of the distances of held-out images; an image that is further than a margin times it is unlike them."""

FEW = 3
"""Of so few held-out images the quantile may be half of what it is of many: the margin is twice as wide."""


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product on one thread: a BLAS's threads spin for a while after each, and take the processor from segmenter
    and decoders, which cost a fifth of the pace of scoring."""
    return np.einsum("ij,jk->ik", a, b)


@dataclass(frozen=True)
class Novelty:
    """A distance to the training images: Mahalanobis' in the space of their principal components, and what lies outside of
    that space, each by its mean over the training images.

    Lee et al.: "A simple unified framework for detecting out-of-distribution samples and adversarial attacks", NeurIPS
    2018, section 2.1, with one Gaussian for all classes, which Ren et al. ("A simple fix to Mahalanobis distance", 2021)
    have as the background; the part outside is that of probabilistic PCA (Tipping and Bishop 1999, section 3.2).
    """

    mean: np.ndarray
    """float32 ``[F]``."""
    components: np.ndarray
    """float32 ``[F, K]``, orthonormal."""
    scale: np.ndarray
    """float32 ``[K]``, standard deviations along the components."""
    residual: float
    """Mean squared length of what the components leave of a training image."""
    threshold: float
    """Of the distance."""

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Features ``[N, F]`` → float ``[N]``: about 1 for images like the training images, whose mean is 1."""
        with np.errstate(all="ignore"):  # of weights that are not finite, which is told elsewhere
            centred = features.astype(np.float32) - self.mean
            within = product(centred, self.components)
            outside = np.maximum((centred**2).sum(-1) - (within**2).sum(-1), 0)
            return np.sqrt((((within / self.scale) ** 2).mean(-1) + outside / self.residual) / 2)

    def is_unlike(self, features: np.ndarray) -> np.ndarray:
        """Features ``[N, F]`` → bool ``[N]``."""
        return self.distances(features) > self.threshold

    @classmethod
    def fit(cls, features: np.ndarray, held_out: np.ndarray, margin: float) -> Novelty:
        """Fit to training images.

        Args:
          features: of training images, ``[N, F]``.
          held_out: of images that were not trained on, ``[M, F]``, which give the threshold.
          margin: how many times as far as nearly all of them an image may be.
        """
        features = np.asarray(features, np.float64)
        mean = features.mean(0)
        _, lengths, rows = np.linalg.svd(features - mean, full_matrices=False)
        deviations = lengths / np.sqrt(max(len(features) - 1, 1))
        # What lies along a direction of next to no variance, or of one that few images tell of, says nothing; and something
        # is to be left outside of them.
        most = min(COMPONENTS, features.shape[1] // 2, (len(features) - 1) // 4)
        count = max(min(most, int((deviations > 1e-3 * deviations[:1]).sum())), 1)
        scale = np.maximum(deviations[:count], 1e-6)
        components = rows[:count].T
        left = ((features - mean) ** 2).sum(-1) - (((features - mean) @ components) ** 2).sum(-1)
        residual = max(float(left.mean()), 1e-6 * float((scale**2).sum()))
        # Rounded as they are stored, so that the threshold is that of what is used.
        fitted = cls._stored(mean, components, scale, residual)
        distances = fitted.distances(held_out if len(held_out) else features.astype(np.float32))
        threshold = margin * (1 + FEW / len(distances)) * float(np.quantile(distances, QUANTILE))
        return cls(fitted.mean, fitted.components, fitted.scale, residual, threshold)

    @classmethod
    def _stored(cls, mean: Any, components: Any, scale: Any, residual: float) -> Novelty:
        mean, components = (np.ascontiguousarray(each, np.float16).astype(np.float32) for each in (mean, components))
        return cls(mean, components, np.asarray(scale, np.float32), residual, np.inf)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: arrays as base64 of their float16 values, the scale as float32."""
        texts = {
            name: base64.b64encode(np.asarray(getattr(self, name), kind).tobytes()).decode()
            for name, kind in _ARRAYS.items()
        }
        return {**texts, "residual": self.residual, "threshold": self.threshold}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Novelty:
        """What ``as_dict`` gave.

        Raises:
          ValueError, KeyError, TypeError: it is damaged.
        """
        mean, components, scale = (
            np.frombuffer(base64.b64decode(table[name], validate=True), kind).astype(np.float32)
            for name, kind in _ARRAYS.items()
        )
        components = components.reshape(len(mean), len(scale))
        return cls(mean, components, scale, float(table["residual"]), float(table["threshold"]))


_ARRAYS = {"mean": "<f2", "components": "<f2", "scale": "<f4"}
