"""The layers that the networks share: convolution, batch normalisation and pooling with PyTorch's conventions.

Both papers' networks were written in frameworks with these conventions, so that a weight or a batch statistic means
here what it means there: padding is a number of pixels on every side, batch statistics move by 0.1 a step, and the
running variance is the unbiased one. Arrays are channels-last, ``[batch, height, width, channels]``.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from covidjax.models import kernels
from covidjax.models.kernels import leaky_relu

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Conv2d and torch.nn.Linear start from.
uniform_fan_in = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Mode(NamedTuple):
    """How a network is called."""

    train: bool = False
    """Normalise by the batch's own statistics and update the running ones."""
    axis: str | None = None
    """Name of the mesh axis over which the batch is split between devices, if it is."""
    form: Literal["usual", "cpu", "plain"] = "usual"
    """``cpu`` for the forms that are faster there; ``plain`` for one known operation a layer, which converters to other
    formats make the best of."""
    key: Array | None = None
    """For dropout in training: the same on every device that shares the batch."""


class Conv(nnx.Module):
    """2-D convolution without bias, stride 1, ``padding`` zero pixels on every side.

    A 1×1 kernel is computed as a matrix product: XLA's CPU backend lowers the filter gradient of a 1×1 convolution
    twenty times slower than the same sums written as a product.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        padding: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        init: jax.nn.initializers.Initializer = uniform_fan_in,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.size, self.padding, self.dtype = size, padding, dtype

    def __call__(self, x: Array, mode: Mode = Mode(), *, blocks: bool = False) -> Array:
        """``[B, H, W, inputs]`` → ``[B, H + 2·padding − size + 1, W + …, outputs]`` in the layer's dtype, or the blocks of
        ``kernels.conv_blocks``."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if blocks:
            return kernels.conv_blocks(x, kernel)
        pad = (self.padding, self.padding)
        if self.size == 1 and mode.form != "plain":
            return jnp.pad(x @ kernel[0, 0], ((0, 0), pad, pad, (0, 0)))
        return kernels.conv(x, kernel, self.padding)


MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics, as in PyTorch and so in fastai."""


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last (Ioffe and Szegedy 2015), statistics in float32.

    The running variance is the unbiased estimate. In training the batch's own statistics are used and the running ones are
    updated in place.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[..., channels]`` → the same shape and dtype."""
        if mode.train:
            mean, var = kernels.moments(x, x.shape[-1], mode.axis)
            self._update(mean, var, x.size // x.shape[-1], mode)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + kernels.EPSILON)
        return (x * scale + (self.bias[...] - mean * scale)).astype(x.dtype)

    def activated(self, z: Array, mode: Mode, *, blocks: bool = False) -> Array:
        """Normalised, then leaky ReLU: ``[..., channels]`` → the same shape and dtype. Blocks of ``kernels.conv_blocks``
        are also max-pooled."""
        if not mode.train:
            channels = self.scale.shape[0]
            parts = [z] if not blocks else [z[..., i * channels : (i + 1) * channels] for i in range(4)]
            return leaky_relu(functools.reduce(jnp.maximum, [self(part, mode) for part in parts]))
        results: Any = kernels.norm_act(z, self.scale[...], self.bias[...], blocks, mode.axis)
        y, mean, var = results
        self._update(mean, var, z.size // self.scale.shape[0], mode)
        return y

    def _update(self, mean: Array, var: Array, count: int, mode: Mode) -> None:
        if mode.axis:
            count *= lax.axis_size(mode.axis)
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] += MOMENTUM * (lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += MOMENTUM * (lax.stop_gradient(unbiased) - self.var[...])


class ConvNormAct(nnx.Module):
    """Convolution without bias, batch normalisation, leaky ReLU: DarkCovidNet's ``conv_block``; with ``pool``
    also the 2×2 max-pooling after it."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, *, padding: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, size, padding=padding, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs)

    def __call__(self, x: Array, mode: Mode, *, pool: bool = False) -> Array:
        # Blocks pay where the channels are few; they tile only maps of even height and width.
        if pool and mode.form == "cpu" and x.shape[-1] < 16 and not (x.shape[1] % 2 or x.shape[2] % 2):
            return self.norm.activated(self.conv(x, blocks=True), mode, blocks=True)
        x = self.norm.activated(self.conv(x, mode), mode)
        return max_pool(x, mode) if pool else x


class Dense(nnx.Module):
    """``x @ kernel + bias`` in float32: the logits of a classifier are worth their full precision."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (inputs, outputs), jnp.float32))
        bound = inputs**-0.5
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (outputs,), jnp.float32, -bound, bound))

    def __call__(self, x: Array) -> Array:
        """``[B, inputs]`` → float32 ``[B, outputs]``."""
        return x.astype(jnp.float32) @ self.kernel[...] + self.bias[...]


def dropout(x: Array, rate: float, mode: Mode) -> Array:
    """In training a share of all values ``[B, ...]`` is set to zero and the others are enlarged by as much (Srivastava et
    al. 2014); devices that share a batch draw the same as one device would."""
    if not (mode.train and rate):
        return x
    if mode.key is None:
        raise ValueError("Dropout needs a key in training.")
    count = x.shape[0]
    batch = count * (lax.axis_size(mode.axis) if mode.axis else 1)
    kept = jax.random.bernoulli(mode.key, 1 - rate, (batch, *x.shape[1:]))
    if mode.axis:
        kept = lax.dynamic_slice_in_dim(kept, lax.axis_index(mode.axis) * count, count)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


def max_pool(x: Array, mode: Mode = Mode()) -> Array:
    """2×2 max-pooling, stride 2; an odd last row or column is left out, as PyTorch does.

    Written as three elementwise maxima: their gradient costs XLA's CPU backend far less than that of ``reduce_window``.
    """
    if mode.form == "plain":
        return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
