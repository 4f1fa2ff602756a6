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
from covidjax.models.kernels import Padding, leaky_relu

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
    use_running_average: bool = False
    """Normalise by the running statistics in training too, and leave them as they are."""


class Conv(nnx.Module):
    """2-D convolution, without bias unless one is asked for.

    A 1×1 kernel is computed as a matrix product of two dimensions: XLA's CPU backend lowers the filter gradient of a 1×1
    convolution twenty times slower, and that of a product of four dimensions ten times.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        *,
        padding: Padding,
        stride: int = 1,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        init: jax.nn.initializers.Initializer = uniform_fan_in,
    ):
        self.size = (size, size) if isinstance(size, int) else size
        self.kernel = nnx.Param(init(rngs.params(), (*self.size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.padding: Padding = padding
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Array, mode: Mode = Mode(), *, blocks: bool = False) -> Array:
        """``[B, H, W, inputs]`` → with stride 1 ``[B, H + 2·padding − size + 1, W + …, outputs]`` in the layer's dtype, or
        the blocks of ``kernels.conv_blocks``."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if blocks:
            return kernels.conv_blocks(x, kernel)
        x = self._product(x, kernel[0, 0]) if self.size == (1, 1) and mode.form != "plain" else self._conv(x, kernel)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)

    def _conv(self, x: Array, kernel: Array) -> Array:
        return kernels.conv(x, kernel, self.padding, self.stride)

    def _product(self, x: Array, kernel: Array) -> Array:
        x = x[:, :: self.stride, :: self.stride]
        product = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
        padded = kernels.pads(self.padding, x.shape[1], x.shape[2], self.size, 1)
        return jnp.pad(product, ((0, 0), *padded, (0, 0)))


class DepthwiseConv(nnx.Module):
    """2-D convolution of every channel by a kernel of its own, padded so that the map keeps its size, or with stride 2 has
    half of it (Howard et al. 2017, "MobileNets", section 3.1)."""

    def __init__(self, channels: int, size: int, *, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), (size, size, 1, channels), jnp.float32))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Array, mode: Mode = Mode()) -> Array:
        """``[B, H, W, channels]`` → ``[B, ⌈H/stride⌉, ⌈W/stride⌉, channels]`` in the layer's dtype."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if mode.form == "cpu":
            return kernels.depthwise_conv(x, kernel[:, :, 0], self.stride)
        return kernels.conv(x, kernel, "same", self.stride, groups=x.shape[-1])


MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics, as in PyTorch and so in fastai."""


class BatchNorm(nnx.Module):
    """Batch normalisation over every axis but the last (Ioffe and Szegedy 2015), statistics in float32.

    The running variance is the unbiased estimate. In training the batch's own statistics are used and the running ones are
    updated in place.
    """

    def __init__(self, channels: int, *, epsilon: float = kernels.EPSILON):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[..., channels]`` → the same shape and dtype."""
        if mode.train and not mode.use_running_average:
            mean, var = kernels.moments(x, x.shape[-1], mode.axis)
            self._update(mean, var, x.size // x.shape[-1], mode)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return (x * scale + (self.bias[...] - mean * scale)).astype(x.dtype)

    def activated(self, z: Array, mode: Mode, *, blocks: bool = False) -> Array:
        """Normalised, then leaky ReLU: ``[..., channels]`` → the same shape and dtype. Blocks of ``kernels.conv_blocks``
        are also max-pooled."""
        if not mode.train or mode.use_running_average:
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


class ConvNorm(nnx.Module):
    """Convolution without bias and batch normalisation, without an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        *,
        padding: Padding = 0,
        stride: int = 1,
        epsilon: float = kernels.EPSILON,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(inputs, outputs, size, padding=padding, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, epsilon=epsilon)

    def __call__(self, x: Array, mode: Mode) -> Array:
        """``[B, H, W, inputs]`` → ``[B, …, outputs]``, see ``Conv``."""
        return self.norm(self.conv(x, mode), mode)


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


def global_mean(x: Array) -> Array:
    """Mean of every channel over the pixels, ``[B, H, W, C]`` → float32 ``[B, C]``."""
    return jnp.mean(x.astype(jnp.float32), (1, 2))


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


def max_pool3(x: Array, mode: Mode = Mode(), *, padding: int = 0) -> Array:
    """3×3 max-pooling, stride 2; ``[B, H, W, C]`` → ``[B, ⌊(H + 2·padding − 3) / 2⌋ + 1, …, C]``.

    Written as elementwise maxima, as ``max_pool`` is, first of rows, then of columns.
    """
    if padding:
        edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, edges, constant_values=jnp.finfo(x.dtype).min)
    if mode.form == "plain":
        return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2))
    high, wide = ((side - 3) // 2 * 2 + 1 for side in x.shape[1:3])
    x = functools.reduce(jnp.maximum, [x[:, row : row + high : 2] for row in range(3)])
    return functools.reduce(jnp.maximum, [x[:, :, column : column + wide : 2] for column in range(3)])


def mean_pool(x: Array, mode: Mode = Mode()) -> Array:
    """2×2 average-pooling, stride 2; an odd last row or column is left out, as PyTorch does."""
    if mode.form == "plain":
        return nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    rows = x[:, ::2] + x[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) * jnp.asarray(0.25, x.dtype)


def mean_pool3(x: Array, mode: Mode = Mode()) -> Array:
    """3×3 average-pooling, stride 1, of the same size; the zeros around the map count, as in PyTorch."""
    if mode.form == "plain":
        return nnx.avg_pool(x, window_shape=(3, 3), strides=(1, 1), padding="SAME")
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) * jnp.asarray(1 / 9, x.dtype)
