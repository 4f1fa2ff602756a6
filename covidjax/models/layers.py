"""The layers that the networks share: convolution, batch normalisation and pooling with PyTorch's conventions.

Both papers' networks were written in frameworks with these conventions, so that a weight or a batch statistic means
here what it means there: padding is a number of pixels on every side, batch statistics move by 0.1 a step, and the
running variance is the unbiased one. Arrays are channels-last, ``[batch, height, width, channels]``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Conv2d and torch.nn.Linear start from.
uniform_fan_in = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nnx.Module):
    """2-D convolution without bias, stride 1, ``padding`` zero pixels on every side.

    A 1×1 kernel is computed as a matrix product: XLA's CPU backend lowers the filter gradient of a 1×1 convolution
    twenty times slower than the same sums written as a product.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, padding: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.size, self.padding, self.dtype = size, padding, dtype

    def __call__(self, x: Array) -> Array:
        """``[B, H, W, inputs]`` → ``[B, H + 2·padding − size + 1, W + …, outputs]`` in the layer's dtype."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        pad = (self.padding, self.padding)
        if self.size == 1:
            return jnp.pad(x @ kernel[0, 0], ((0, 0), pad, pad, (0, 0)))
        return lax.conv_general_dilated(x, kernel, (1, 1), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"))


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last (Ioffe and Szegedy 2015), statistics in float32.

    ``momentum`` is the weight of the newest batch, 0.1 as in PyTorch and so in fastai; the running variance is the
    unbiased estimate. In training the batch's own statistics are used and the running ones are updated in place.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[..., channels]`` → the same shape and dtype."""
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axes, dtype=jnp.float32), jnp.var(x.astype(jnp.float32), axes)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] += self.momentum * (lax.stop_gradient(mean) - self.mean[...])
            self.var[...] += self.momentum * (lax.stop_gradient(unbiased) - self.var[...])
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return (x * scale + (self.bias[...] - mean * scale)).astype(x.dtype)


class Dense(nnx.Module):
    """``x @ kernel + bias`` in float32: the logits of a classifier are worth their full precision."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (inputs, outputs), jnp.float32))
        bound = inputs**-0.5
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (outputs,), jnp.float32, -bound, bound))

    def __call__(self, x: Array) -> Array:
        """``[B, inputs]`` → float32 ``[B, outputs]``."""
        return x.astype(jnp.float32) @ self.kernel[...] + self.bias[...]


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU with slope 0.1, the slope of both papers' networks."""
    return jnp.where(x >= 0, x, 0.1 * x)


def max_pool(x: Array) -> Array:
    """2×2 max-pooling, stride 2; an odd last row or column is left out, as PyTorch does.

    Written as three elementwise maxima: their gradient costs XLA's CPU backend far less than that of ``reduce_window``.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
