"""The layers whose plain form, or whose automatic gradient, is slow: the same numbers within rounding, sooner.

``tests/test_kernels.py`` compares each with its plain form. ``conv_blocks`` is for XLA's CPU backend, which computes a
convolution of few channels at a fifth of the pace of one of many; the others serve every device. ``docs/performance.md``
tells what each of them brings.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
SLOPE = 0.1
"""Of the leaky ReLU in both papers' networks."""

EPSILON = 1e-5
"""Added to the variance in batch normalisation."""


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU with slope 0.1."""
    return jax.nn.leaky_relu(x, SLOPE)


Padding = int | tuple[int, int] | Literal["same"]
"""Zero pixels on every side; above and below, and left and right; or so many, the odd one below and right, that the map
keeps its size, or with a stride has it divided by that and rounded up, as TensorFlow pads."""


def pads(padding: Padding, height: int, width: int, size: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """Zero pixels before and after the rows, and before and after the columns, of a map of this height and width for a
    kernel of this height and width."""
    if padding == "same":
        ends = [(-(-side // stride) - 1) * stride + k for side, k in zip((height, width), size, strict=True)]
        totals = [max(end - side, 0) for end, side in zip(ends, (height, width), strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    high, wide = padding if isinstance(padding, tuple) else (padding, padding)
    return [(high, high), (wide, wide)]


def conv(x: Array, kernel: Array, padding: Padding, stride: int = 1, groups: int = 1) -> Array:
    """Convolution: ``[B, H, W, in]``, ``[k, k, in / groups, out]`` → with stride 1 ``[B, H + 2·padding - k + 1, W + …,
    out]``."""
    high, wide = kernel.shape[:2]
    padded = pads(padding, x.shape[1], x.shape[2], (high, wide), stride)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padded, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _products(a: Array, b: Array) -> Array:
    """Sum over all pixels of the products of a's and b's channels, float32 ``[A, B]``."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def conv_blocks(x: Array, kernel: Array) -> Array:
    """3×3 convolution with padding 1 whose output lies in blocks of 2×2 pixels, the windows of the max-pooling after it.

    Args:
      x: ``[B, H, W, in]``, H and W even.
      kernel: ``[3, 3, in, out]``.

    Returns:
      ``[B, H/2, W/2, 4·out]``: the pixels (0, 0), (0, 1), (1, 0), (1, 1) of each block, one after the other. It is one 4×4
      convolution of stride 2 with four times the channels, four ninths of whose kernel are zeros: more arithmetic, but
      on wide channels.
    """
    return conv(x, _block_kernel(kernel), 1, stride=2)


def _block_kernel(kernel: Array) -> Array:
    shifted = [jnp.pad(kernel, ((row, 1 - row), (col, 1 - col), (0, 0), (0, 0))) for row in (0, 1) for col in (0, 1)]
    return jnp.concatenate(shifted, -1)


def _conv_blocks_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv_blocks(x, kernel), (x, kernel)


def _conv_blocks_backward(saved: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    x, kernel = saved
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    # Input: a 2×2 convolution from blocks to the blocks of the padded input, which lie one pixel up and left of these.
    wide = _block_kernel(kernel).reshape(2, 2, 2, 2, inputs, 4 * outputs)  # [block row, row, block column, column, …]
    wide = wide.transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, 4 * outputs, 4 * inputs)
    dx = from_blocks(conv(dz, wide[::-1, ::-1], 1))[:, 1 : height + 1, 1 : width + 1]
    if inputs > 4:
        (dkernel,) = jax.vjp(lambda kernel: conv(x, kernel, 1), kernel)[1](from_blocks(dz))
        return dx, dkernel
    # Kernel, of an image: each block's 4×4 pixels by its gradients.
    corners = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2 * inputs)
    corners = corners.transpose(0, 1, 3, 2, 4).reshape(batch, height // 2 + 1, width // 2 + 1, 4 * inputs)

    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        corners, dz = image
        high, wide = dz.shape[:2]
        pixels = [corners[row : row + high, col : col + wide] for row in (0, 1) for col in (0, 1)]
        return total + _products(jnp.concatenate(pixels, -1), dz), None

    dwide, _ = lax.scan(add, jnp.zeros((16 * inputs, 4 * outputs)), (corners, dz))
    dwide = dwide.reshape(2, 2, 2, 2, inputs, 4, outputs).transpose(0, 2, 1, 3, 4, 5, 6).reshape(4, 4, inputs, 4, outputs)
    dkernel = sum(dwide[row : row + 3, col : col + 3, :, 2 * row + col] for row in (0, 1) for col in (0, 1))
    return dx, jnp.asarray(dkernel, kernel.dtype)


def from_blocks(x: Array) -> Array:
    """``[B, H, W, 4·C]`` → ``[B, 2·H, 2·W, C]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


conv_blocks.defvjp(_conv_blocks_forward, _conv_blocks_backward)


def moments(z: Array, channels: int, axis: str | None) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, float32, over the whole batch, also where devices share it."""
    z = z.reshape(-1, channels).astype(jnp.float32)
    mean = jnp.mean(z, 0)
    # Not from the sum of squares: where the mean is large against the deviation, its rounding would show.
    own = jnp.stack([mean, jnp.mean(jnp.square(z - mean), 0)])
    if axis is None:
        return own[0], own[1]
    means, variances = jnp.moveaxis(lax.all_gather(own, axis), 1, 0)
    mean = means.mean(0)
    return mean, jnp.mean(variances + jnp.square(means - mean), 0)  # Chan, Golub and LeVeque 1979


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_act(z: Array, scale: Array, bias: Array, blocks: bool, axis: str | None) -> tuple[Array, Array, Array]:
    """Batch normalisation by the batch's own statistics, leaky ReLU and, of blocks, max-pooling.

    Args:
      z: ``[..., C]``; from ``conv_blocks`` ``[B, H/2, W/2, 4·C]``.
      scale, bias: float32 ``[C]``.
      blocks: whether z is of ``conv_blocks``; then the maximum of each block is taken.
      axis: name of the mesh axis over which the batch is split, or None.

    Returns:
      The activations ``[..., C]`` in z's dtype, and mean and biased variance ``[C]`` of the batch, through which no
      gradient flows. Where several pixels of a block are the greatest the first gets the gradient, as in PyTorch.
    """
    return _norm_act_forward(z, scale, bias, blocks, axis)[0]


def _norm_act_forward(z: Array, scale: Array, bias: Array, blocks: bool, axis: str | None) -> tuple:
    channels = len(scale)
    mean, var = moments(z, channels, axis)
    inverse = lax.rsqrt(var + EPSILON)
    factor = scale * inverse
    picked = z
    if blocks:
        # The greatest of a block is the greatest z, or, where the scale is negative, the least.
        a, b, c, d = jnp.split(z, 4, -1)
        highest = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
        lowest = jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
        picked = jnp.where(factor >= 0, highest, lowest)
    y = leaky_relu(picked * factor + (bias - mean * factor)).astype(z.dtype)
    return (y, mean, var), (z, picked, scale, bias, mean, inverse)


def _norm_act_backward(
    blocks: bool, axis: str | None, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    z, picked, scale, bias, mean, inverse = saved
    channels = len(scale)
    axes = tuple(range(z.ndim - 1))
    factor = scale * inverse
    dy = cotangents[0].astype(jnp.float32)
    dy = jnp.where(picked * factor + (bias - mean * factor) >= 0, dy, SLOPE * dy)
    dbias = jnp.sum(dy, axes)
    dscale = jnp.sum(dy * (picked - mean), axes) * inverse
    totals = jnp.stack([dbias, dscale])
    total_bias, total_scale = totals if axis is None else lax.psum(totals, axis)
    count = z.size // channels * (1 if axis is None else lax.axis_size(axis))
    from_mean, from_var = total_bias / count, total_scale * inverse / count

    def gradient(part: Array, dy: Array) -> Array:
        return (factor * (dy - from_mean - (part - mean) * from_var)).astype(z.dtype)

    if not blocks:
        return gradient(z, dy), dscale, dbias
    gradients, taken = [], jnp.zeros(picked.shape, bool)
    for part in jnp.split(z, 4, -1):
        here = (part == picked) & ~taken
        taken |= here
        gradients.append(gradient(part, jnp.where(here, dy, 0.0)))
    return jnp.concatenate(gradients, -1), dscale, dbias


norm_act.defvjp(_norm_act_forward, _norm_act_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution of every channel by a kernel of its own, padded as ``"same"``.

    Args:
      x: ``[B, H, W, C]``.
      kernel: ``[k, k, C]``.
      stride: 1 or 2.

    Returns:
      ``[B, ⌈H/stride⌉, ⌈W/stride⌉, C]``: the sum of the shifted images, each times one number a channel. XLA's CPU backend
      computes a grouped convolution with scalar code, at a tenth of the pace.
    """
    return _add_taps(_phases(x, kernel.shape[0], stride), kernel, stride, x.shape[1:3])


def _phases(x: Array, size: int, stride: int) -> list[list[Array]]:
    """The padded x by row and column modulo the stride, so that the taps of a kernel are shifts without gaps."""
    rows, columns = pads("same", x.shape[1], x.shape[2], (size, size), stride)
    padded = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    if stride == 1:
        return [[padded]]
    padded = jnp.pad(padded, ((0, 0), (0, padded.shape[1] % 2), (0, padded.shape[2] % 2), (0, 0)))
    batch, height, width, channels = padded.shape
    parts = padded.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [[parts[:, :, row, :, column] for column in (0, 1)] for row in (0, 1)]


def _add_taps(phases: list[list[Array]], kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    high, wide = (-(-side // stride) for side in shape)
    taps = [(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]
    total = jnp.zeros((), phases[0][0].dtype)
    for row, column in taps:
        part, top, left = phases[row % stride][column % stride], row // stride, column // stride
        total = total + part[:, top : top + high, left : left + wide] * kernel[row, column]
    return total


def _depthwise_conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel, stride), (x, kernel)


def _depthwise_conv_backward(stride: int, saved: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size, channels, (high, wide) = kernel.shape[0], x.shape[-1], dz.shape[1:3]
    (top, _), (left, _) = pads("same", x.shape[1], x.shape[2], (size, size), stride)
    phases = _phases(x, size, stride)

    def input_gradient(row: int, column: int) -> Array:
        """That of one phase: the taps that meet it, over dz with room around."""
        part, own = phases[row][column], kernel[row::stride, column::stride][::-1, ::-1]
        below, beyond = part.shape[1] - high, part.shape[2] - wide
        before = (own.shape[0] - 1, own.shape[1] - 1)
        room = jnp.pad(dz, ((0, 0), (before[0], max(below, 0)), (before[1], max(beyond, 0)), (0, 0)))
        return _add_taps([[room]], own, 1, part.shape[1:3])

    gradients = [[input_gradient(row, column) for column in range(stride)] for row in range(stride)]
    dx = gradients[0][0]
    if stride == 2:
        dx = from_blocks(jnp.concatenate([part for row in gradients for part in row], -1))
    dx = dx[:, top : top + x.shape[1], left : left + x.shape[2]]

    # Image by image, each tap's products added up by a matrix product: as one sum over the batch, or fused with the
    # slices, it takes five times as long.
    ones = jnp.ones((1, high * wide), x.dtype)

    def add(total: Array, image: tuple[list[list[Array]], Array]) -> tuple[Array, None]:
        phases, dz = image
        sums = []
        for row in range(size):
            for column in range(size):
                part, top, left = phases[row % stride][column % stride], row // stride, column // stride
                products = (part[top : top + high, left : left + wide] * dz).reshape(-1, channels)
                sums.append(jnp.matmul(ones, products, preferred_element_type=jnp.float32))
        return total + jnp.concatenate(sums), None

    dkernel, _ = lax.scan(add, jnp.zeros((size * size, channels)), (phases, dz))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)
