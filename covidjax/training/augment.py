"""Random changes to a batch of training images, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from covidjax.config import PIXEL_MEAN, AugmentConfig

QUALITIES = (20, 95)
"""Of JPEG compression, between which an image's own is drawn: from the least that published X-rays have to nearly none."""

LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
"""JPEG's table of quantization steps for luminance at quality 50 (ITU-T T.81, annex K, table K.1)."""


def augment(key: Array, images: Array, config: AugmentConfig, axis: str | None = None) -> Array:
    """Mirror, rotate, scale, stretch, shift, blur, reduce and enlarge, change contrast, brightness and gamma, add noise,
    compress, each image by its own draw.

    Args:
      key: one for the batch.
      images: uint8 ``[B, S, S, 1]``.
      config: how much of each; what is 0 is not computed.
      axis: name of the mesh axis over which the batch is split between devices, or None; the draws are the same either way.

    Returns:
      float32 ``[B, S, S, 1]``, still from 0 to 255. What comes from outside the image repeats its nearest edge.
    """
    draws = _Draws(key, images, config, axis)
    return draws.exposed(draws.moved(images))


def augment_with_masks(
    key: Array, images: Array, masks: Array, config: AugmentConfig, axis: str | None = None
) -> tuple[Array, Array]:
    """``augment`` for images and their masks, uint8 ``[B, S, S, 1]`` of 0 and 1, which move with the images.

    Returns:
      The images as ``augment`` gives them, and the masks, float32 ``[B, S, S, 1]`` of 0 and 1: where the four nearest
      pixels of the mask, weighed as those of the image are, come to half or more.
    """
    draws = _Draws(key, images, config, axis)
    moved = draws.moved(masks).astype(jnp.float32)
    return draws.exposed(draws.moved(images)), (moved >= 0.5).astype(jnp.float32)


class _Draws:
    """The random changes to one batch."""

    def __init__(self, key: Array, images: Array, config: AugmentConfig, axis: str | None):
        names = ["flip", "rotation", "zoom", "shift", "brightness", "contrast"]
        self._keys: dict[str, Array] = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        younger = ("blur", "gamma", "noise", "grain", "resample", "jpeg", "quality", "aspect")
        for name in younger:  # so that the draws of the others are what they were
            self._keys[name] = jax.random.fold_in(key, len(self._keys))
        self._config, self._axis, self._count = config, axis, images.shape[0]
        self._batch = self._count * (1 if axis is None else lax.axis_size(axis))

    def _own(self, draws: Array) -> Array:
        """Those of this device's images."""
        if self._axis is None:
            return draws
        return lax.dynamic_slice_in_dim(draws, lax.axis_index(self._axis) * self._count, self._count)

    def moved(self, images: Array) -> Array:
        """Mirrored, rotated, scaled, stretched and shifted, ``[B, S, S, 1]``."""
        config, keys, batch, x = self._config, self._keys, self._batch, images[..., 0]
        if config.horizontal_flip:
            mirrored = self._own(jax.random.bernoulli(keys["flip"], 0.5, (batch, 1, 1)))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        if config.rotation or config.zoom or config.shift or config.aspect:
            angle = jnp.deg2rad(_either_way(keys["rotation"], batch, config.rotation))
            scale = _factor(keys["zoom"], batch, config.zoom)[:, None]
            if config.aspect:
                stretch = jnp.sqrt(_factor(keys["aspect"], batch, config.aspect))
                scale *= jnp.stack([1 / stretch, stretch], 1)
            shift = jax.random.uniform(keys["shift"], (batch, 2), minval=-config.shift, maxval=config.shift) * x.shape[1]
            x = _warp(x, self._own(angle), self._own(scale), self._own(shift))
        return x[..., None]

    def exposed(self, images: Array) -> Array:
        """Blurred, reduced, of other contrast, brightness and gamma, noisy, and compressed, float32 from 0 to 255."""
        config, keys, batch = self._config, self._keys, self._batch
        x = images.astype(jnp.float32)
        if config.blur:
            deviation = jax.random.uniform(keys["blur"], (batch,), maxval=config.blur * x.shape[1])
            x = _blur(x[..., 0], self._own(deviation))[..., None]
        if config.resample:
            reduction = jnp.exp(jax.random.uniform(keys["resample"], (batch,)) * jnp.log1p(config.resample))
            x = _resample(x[..., 0], self._own(reduction))[..., None]
        if config.contrast:
            factor = self._own(_factor(keys["contrast"], batch, config.contrast))
            x = (x - 255 * PIXEL_MEAN) * factor[:, None, None, None] + 255 * PIXEL_MEAN
        if config.brightness:
            x = x + 255 * self._own(_either_way(keys["brightness"], batch, config.brightness))[:, None, None, None]
        if config.gamma:
            power = self._own(_factor(keys["gamma"], batch, config.gamma))
            x = 255 * (jnp.clip(x, 0, 255) / 255) ** power[:, None, None, None]
        if config.noise:
            deviation = jax.random.uniform(keys["noise"], (batch, 1, 1, 1), maxval=255 * config.noise)
            x = x + self._own(deviation * jax.random.normal(keys["grain"], (batch, *x.shape[1:])))
        x = jnp.clip(x, 0, 255)
        if config.jpeg:
            chosen = self._own(jax.random.uniform(keys["jpeg"], (batch, 1, 1, 1)) < config.jpeg)
            quality = self._own(jax.random.uniform(keys["quality"], (batch,), minval=QUALITIES[0], maxval=QUALITIES[1]))
            x = jnp.where(chosen, _compress(x[..., 0], quality)[..., None], x)
        return x


def _either_way(key: Array, batch: int, most: float) -> Array:
    return jax.random.uniform(key, (batch,), minval=-most, maxval=most)


def _factor(key: Array, batch: int, most: float) -> Array:
    """Factors from 1/(1+most) to 1+most, as likely above 1 as below."""
    return jnp.exp(_either_way(key, batch, 1.0) * jnp.log1p(most))


def _blur(images: Array, deviation: Array) -> Array:
    """Each of float32 ``[B, S, S]`` by a Gaussian of its own standard deviation in pixels, ``[B]``; outside the image there
    is nothing, and the weights inside add up to 1."""
    places = jnp.arange(images.shape[1], dtype=jnp.float32)
    distance = places[:, None] - places
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(deviation, 1e-3)[:, None, None]) ** 2)
    weights /= weights.sum(-1, keepdims=True)
    # In two matrix products, whatever the width: an image is small beside its network.
    return jnp.einsum("bik,bkl,bjl->bij", weights, images, weights, precision=lax.Precision.HIGHEST)


def _resample(images: Array, reduction: Array) -> Array:
    """Each of float32 ``[B, S, S]`` reduced by its own factor, ``[B]`` from 1 up, with antialiasing, and enlarged again,
    both bilinearly; the number of pixels between is rounded."""
    size = images.shape[1]
    pixels = jnp.maximum(jnp.round(size / reduction), 1)[:, None, None]
    step = size / pixels
    places = jnp.arange(size, dtype=jnp.float32)
    centres = (places + 0.5) * step - 0.5  # [B, 1, S] of the reduced pixels, of which the last ones are not there
    distance = jnp.abs(places[:, None] - centres) / step
    weights = jnp.maximum(1 - distance, 0) * (places < pixels)
    reduce = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
    # What is nearer to the edge than the outermost centre repeats that pixel.
    enlarge = weights / weights.sum(2, keepdims=True)
    both = jnp.einsum("bij,bkj->bik", enlarge, reduce, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bik,bkl,bjl->bij", both, images, both, precision=lax.Precision.HIGHEST)


def _compress(images: Array, quality: Array) -> Array:
    """Each of float32 ``[B, S, S]`` from 0 to 255 as JPEG of its own quality, ``[B]``, leaves its luminance: the cosine
    coefficients of blocks of 8×8 pixels, rounded to multiples of the table's steps. Rows and columns beyond the last whole
    block stay as they are."""
    size = images.shape[1] // 8 * 8
    blocks = size // 8
    frequency, pixel = np.mgrid[:8, :8]
    cosines = np.cos((2 * pixel + 1) * frequency * np.pi / 16) / np.where(frequency, 2, np.sqrt(8))
    # All blocks of a row at once: the matrix is orthogonal, as each of its blocks is.
    transform = jnp.asarray(np.kron(np.eye(blocks), cosines), jnp.float32)
    scale = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]  # as the Independent JPEG Group's
    steps = jnp.tile(jnp.clip(jnp.round(LUMINANCE * scale), 1, 255), (1, blocks, blocks))

    def product(left: Array, middle: Array, right: Array) -> Array:
        return jnp.einsum("ik,bkl,lj->bij", left, middle, right, precision=lax.Precision.HIGHEST)

    coefficients = product(transform, images[:, :size, :size] - 128, transform.T)
    rounded = jnp.round(coefficients / steps) * steps
    inside = jnp.clip(product(transform.T, rounded, transform) + 128, 0, 255)
    return images.at[:, :size, :size].set(inside)


def _warp(images: Array, angle: Array, scale: Array, shift: Array) -> Array:
    """Rotate each of uint8 ``[B, S, S]`` about its centre, scale and shift it (bilinear): each pixel is packed from where
    it came. ``angle`` is ``[B]``; ``shift`` is ``[B, 2]``, down and right; ``scale`` is ``[B, 2]``, of rows and of columns,
    or ``[B, 1]``, of both."""
    size = images.shape[1]
    centre = (size - 1) / 2
    rows, columns = jnp.mgrid[:size, :size] - centre
    rows, columns = rows - shift[:, 0, None, None], columns - shift[:, 1, None, None]
    cos, sin = ((f(angle)[:, None] / scale).T[..., None, None] for f in (jnp.cos, jnp.sin))  # [1 or 2, B, 1, 1]
    y = jnp.clip(cos[0] * rows - sin[0] * columns + centre, 0, size - 1)
    x = jnp.clip(sin[-1] * rows + cos[-1] * columns + centre, 0, size - 1)
    top, left = (jnp.minimum(jnp.floor(v).astype(jnp.int32), size - 2) for v in (y, x))
    # A pixel and its neighbours to the right, below and across as the four bytes of one number: one fetch, not four.
    padded = jnp.pad(images.astype(jnp.uint32), ((0, 0), (0, 1), (0, 1)))
    fours = padded[:, :-1, :-1] | padded[:, :-1, 1:] << 8 | padded[:, 1:, :-1] << 16 | padded[:, 1:, 1:] << 24
    fetches = (fours.reshape(len(images), -1), top * size + left, y - top, x - left)
    # On a CPU image by image: otherwise XLA computes places and weights within the loops that use them, more than once and
    # without vector instructions, five times slower.
    return lax.map(_fetch, fetches) if jax.default_backend() == "cpu" else jax.vmap(_fetch)(fetches)


def _fetch(image: tuple[Array, Array, Array, Array]) -> Array:
    """Of the fours of an image those at places ``[S, S]``, each of the four weighed by the shares down and right."""
    fours, places, down, right = image
    packed = fours.at[places].get(mode="promise_in_bounds")
    near, beside, below, across = (
        ((packed >> bits) & 255).astype(jnp.int32).astype(jnp.float32) for bits in (0, 8, 16, 24)
    )
    return (near * (1 - right) + beside * right) * (1 - down) + (below * (1 - right) + across * right) * down
