"""The faster forms of layers against their plain ones."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from covidjax.models import kernels, layers


def numbers(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def to_blocks(x: Array) -> Array:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def assert_close(found: Array, wanted: Array) -> None:
    assert float(jnp.abs(found - wanted).max()) <= 2e-6 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize(
    ("height", "width", "inputs", "outputs"), [(12, 16, 1, 8), (6, 4, 3, 2), (8, 10, 8, 16), (2, 2, 5, 3)]
)
def test_convolution_into_blocks(height: int, width: int, inputs: int, outputs: int):
    x, kernel = numbers(0, 3, height, width, inputs), numbers(1, 3, 3, inputs, outputs)
    gradient = numbers(2, 3, height, width, outputs)
    plain, plain_gradients = jax.vjp(lambda x, kernel: kernels.conv(x, kernel, 1), x, kernel)
    blocks, gradients = jax.vjp(kernels.conv_blocks, x, kernel)
    assert_close(blocks, to_blocks(plain))
    for found, wanted in zip(gradients(to_blocks(gradient)), plain_gradients(gradient), strict=True):
        assert_close(found, wanted)


def plain_norm_act(z: Array, scale: Array, bias: Array) -> Array:
    axes = tuple(range(z.ndim - 1))
    mean, var = z.mean(axes), z.var(axes)
    a = (z - mean) / jnp.sqrt(var + 1e-5) * scale + bias
    return jnp.where(a >= 0, a, 0.1 * a)


def pool(y: Array) -> Array:
    batch, height, width, channels = y.shape
    return y.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


@pytest.mark.parametrize("blocks", [False, True])
def test_normalisation_activation_and_pooling(blocks: bool):
    z, scale, bias = numbers(3, 4, 6, 8, 5) + 2, numbers(4, 5), numbers(5, 5)  # some of the scales are negative
    assert (np.asarray(scale) < 0).any()

    def plain(z: Array, scale: Array, bias: Array) -> Array:
        y = plain_norm_act(z, scale, bias)
        return pool(y) if blocks else y

    def fast(z: Array, scale: Array, bias: Array) -> Array:
        found: Any = kernels.norm_act(to_blocks(z) if blocks else z, scale, bias, blocks, None)
        return found[0]

    wanted, wanted_gradients = jax.vjp(plain, z, scale, bias)
    found, gradients = jax.vjp(fast, z, scale, bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    gradient = numbers(6, *wanted.shape)
    for a, b in zip(gradients(gradient), wanted_gradients(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_of_equal_pixels_the_first_gets_the_gradient():
    z = jnp.concatenate([jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1, 1, 4))], 2)  # two blocks of one channel

    def total(z: Array) -> Array:
        found: Any = kernels.norm_act(z, jnp.ones(1), jnp.zeros(1), True, None)
        return found[0][0, 0, 0, 0]

    gradient = np.asarray(jax.grad(total)(z))[0, 0]
    # Without ties the three others of a block would differ from it by the whole factor 1/sqrt(var + eps).
    assert gradient[0, 0] - gradient[0, 1] == pytest.approx(1 / np.sqrt(0.25 + 1e-5), rel=1e-5)
    assert gradient[0, 1] == gradient[0, 2] == gradient[0, 3]


def value_and_gradients(function: Any, gradient: Array, *inputs: Array) -> tuple[Array, ...]:
    """In one program each: compiled operation by operation it takes ten times as long."""

    def both(*inputs: Array) -> tuple[Array, ...]:
        value, pull = jax.vjp(function, *inputs)
        return value, *pull(gradient)

    return jax.jit(both)(*inputs)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [(8, 9, 3, 1), (8, 9, 3, 2), (9, 8, 5, 1), (9, 8, 5, 2), (8, 7, 5, 2), (2, 1, 5, 2), (1, 2, 3, 1), (7, 7, 3, 2)],
)
def test_depthwise_convolution(height: int, width: int, size: int, stride: int):
    channels = 6
    x, kernel = numbers(7, 3, height, width, channels), numbers(8, size, size, channels)
    gradient = numbers(9, 3, -(-height // stride), -(-width // stride), channels)
    wanted = value_and_gradients(
        lambda x, kernel: kernels.conv(x, kernel[:, :, None], "same", stride, groups=channels), gradient, x, kernel
    )
    found = value_and_gradients(lambda x, kernel: kernels.depthwise_conv(x, kernel, stride), gradient, x, kernel)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 1), (0, 2)])
def test_convolution_by_one_pixel(padding: int, stride: int):
    layer = layers.Conv(5, 7, 1, padding=padding, stride=stride, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    layer.bias = nnx.Param(numbers(0, 7))
    x = numbers(1, 2, 6, 7, 5)
    gradient = numbers(2, *jax.eval_shape(layer, x).shape)
    wanted = value_and_gradients(lambda x: layer(x, layers.Mode(form="plain")), gradient, x)
    for a, b in zip(value_and_gradients(layer, gradient, x), wanted, strict=True):
        assert_close(a, b)


POOLS: Any = {
    "max": (layers.max_pool, "max_pool2d", (2, 2, 0)),
    "max 3": (layers.max_pool3, "max_pool2d", (3, 2, 0)),
    "max 3, padded": (functools.partial(layers.max_pool3, padding=1), "max_pool2d", (3, 2, 1)),
    "mean": (layers.mean_pool, "avg_pool2d", (2, 2, 0)),
    "mean 3": (layers.mean_pool3, "avg_pool2d", (3, 1, 1)),
}


@pytest.mark.parametrize(("height", "width"), [(8, 7), (3, 10)])
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str, height: int, width: int):
    pool, theirs, window = POOLS[name]
    x = numbers(0, 2, height, width, 3) - 1  # most are below the zeros of a padding
    gradient = numbers(1, *jax.eval_shape(pool, x).shape)
    wanted = value_and_gradients(lambda x: pool(x, layers.Mode(form="plain")), gradient, x)
    found = value_and_gradients(pool, gradient, x)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'covidjax[peers]'")
    answer = getattr(torch.nn.functional, theirs)(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)), *window)
    assert_close(found[0], jnp.asarray(answer.numpy().transpose(0, 2, 3, 1)))
