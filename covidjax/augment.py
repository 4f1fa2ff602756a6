"""Random changes to a batch of training images, and the normalisation of every image, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from covidjax.config import AugmentConfig

MEAN, SPREAD = 0.5, 0.25
"""Of a typical film's gray, as a share of white: what normalisation takes off and divides by."""


def normalise(images: Array, channels: int = 1) -> Array:
    """Pixels from 0 to 255, ``[B, S, S, 1]`` → float32 ``[B, S, S, channels]`` of about zero mean and unit variance."""
    scaled = (images.astype(jnp.float32) / 255 - MEAN) / SPREAD
    return jnp.broadcast_to(scaled, (*images.shape[:3], channels))


def augment(key: Array, images: Array, config: AugmentConfig, axis: str | None = None) -> Array:
    """Mirror, rotate, scale, shift, and change brightness and contrast, each image by its own draw.

    Args:
      key: one for the batch.
      images: uint8 ``[B, S, S, 1]``.
      config: how much of each; what is 0 is not computed.
      axis: name of the mesh axis over which the batch is split between devices, or None; the draws are the same either way.

    Returns:
      float32 ``[B, S, S, 1]``, still from 0 to 255. What comes from outside the film repeats its nearest edge.
    """
    draws = _Draws(key, images, config, axis)
    return draws.exposed(draws.moved(images))


def augment_pairs(
    key: Array, images: Array, masks: Array, config: AugmentConfig, axis: str | None = None
) -> tuple[Array, Array]:
    """``augment`` for images and their masks, uint8 ``[B, S, S, 1]`` of 0 and 1, which move with the images.

    Returns:
      The images as ``augment`` gives them, and the masks, float32 ``[B, S, S, 1]`` of 0 and 1: where the four nearest
      pixels of the mask, weighed as those of the image are, come to half or more.
    """
    draws = _Draws(key, images, config, axis)
    moved = draws.moved(masks.astype(jnp.float32))
    return draws.exposed(draws.moved(images)), (moved >= 0.5).astype(jnp.float32)


class _Draws:
    """The random changes to one batch."""

    def __init__(self, key: Array, images: Array, config: AugmentConfig, axis: str | None):
        names = ("flip", "rotation", "zoom", "shift", "brightness", "contrast")
        self._keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        self._config, self._axis, self._count = config, axis, images.shape[0]
        self._batch = self._count * (1 if axis is None else lax.axis_size(axis))

    def _own(self, draws: Array) -> Array:
        """Those of this device's images."""
        if self._axis is None:
            return draws
        return lax.dynamic_slice_in_dim(draws, lax.axis_index(self._axis) * self._count, self._count)

    def moved(self, images: Array) -> Array:
        """Mirrored, rotated, scaled and shifted, ``[B, S, S, 1]``."""
        config, keys, batch, x = self._config, self._keys, self._batch, images[..., 0]
        if config.flip:
            mirrored = self._own(jax.random.bernoulli(keys["flip"], 0.5, (batch, 1, 1)))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        if config.rotation or config.zoom or config.shift:
            angle = jnp.deg2rad(_either_way(keys["rotation"], batch, config.rotation))
            scale = _factor(keys["zoom"], batch, config.zoom)
            shift = jax.random.uniform(keys["shift"], (batch, 2), minval=-config.shift, maxval=config.shift) * x.shape[1]
            x = jax.vmap(_warp)(x, self._own(angle), self._own(scale), self._own(shift))
        return x[..., None]

    def exposed(self, images: Array) -> Array:
        """Of other contrast and brightness, float32 from 0 to 255."""
        config, keys, batch = self._config, self._keys, self._batch
        x = images.astype(jnp.float32)
        if config.contrast:
            factor = self._own(_factor(keys["contrast"], batch, config.contrast))
            x = (x - 255 * MEAN) * factor[:, None, None, None] + 255 * MEAN
        if config.brightness:
            x = x + 255 * self._own(_either_way(keys["brightness"], batch, config.brightness))[:, None, None, None]
        return jnp.clip(x, 0, 255)


def _either_way(key: Array, batch: int, most: float) -> Array:
    return jax.random.uniform(key, (batch,), minval=-most, maxval=most)


def _factor(key: Array, batch: int, most: float) -> Array:
    """Factors from 1/(1+most) to 1+most, as likely above 1 as below."""
    return jnp.exp(_either_way(key, batch, 1.0) * jnp.log1p(most))


def _warp(image: Array, angle: Array, scale: Array, shift: Array) -> Array:
    """Rotate ``[S, S]`` about its centre, scale and shift it (bilinear): each pixel is fetched from where it came."""
    size = image.shape[0]
    centre = (size - 1) / 2
    rows, columns = jnp.mgrid[:size, :size] - centre
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    rows, columns = rows - shift[0], columns - shift[1]
    y = jnp.clip(cos * rows - sin * columns + centre, 0, size - 1)
    x = jnp.clip(sin * rows + cos * columns + centre, 0, size - 1)
    top, left = (jnp.minimum(jnp.floor(v).astype(jnp.int32), size - 2) for v in (y, x))
    down, right = y - top, x - left
    flat, start = image.reshape(-1), top * size + left
    above = flat[start] * (1 - right) + flat[start + 1] * right
    below = flat[start + size] * (1 - right) + flat[start + size + 1] * right
    return above * (1 - down) + below * down
