"""The lung segmenter's network: shapes, blocks of pixels, what it is small enough for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covidjax.config import ModelConfig, Preprocess
from covidjax.data import synthetic
from covidjax.errors import UserError
from covidjax.inference.forward import normalize
from covidjax.models import Network, Weights, count_parameters, create_model
from covidjax.models.kernels import from_blocks
from covidjax.models.lung_unet import repeat, to_blocks


def network(size: int, **choices) -> Network:
    return create_model(ModelConfig("lung-unet"), Preprocess(size, classes=("fields", "lungs")), **choices)


def test_blocks_and_back():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    blocks = to_blocks(x)
    np.testing.assert_array_equal(blocks[1, 1, 2], np.concatenate([x[1, 2, 4], x[1, 2, 5], x[1, 3, 4], x[1, 3, 5]]))
    np.testing.assert_array_equal(from_blocks(blocks), x)


def test_repeat_makes_four_of_each_pixel():
    x = np.arange(12).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(repeat(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def test_sizes():
    net = network(64)
    weights = net.init(0)
    assert count_parameters(weights) == 270_530
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(weights)) < 1_000_000  # bytes as float16, as it is bundled
    logits, maps, _ = jax.eval_shape(net.apply, weights, jnp.ones((2, 64, 64, 1)))
    assert logits.shape == (2, 64, 64, 2)
    assert logits.dtype == jnp.float32
    downs, ups = [32, 16, 8, 4, 2], [4, 8, 16, 32]
    assert [maps[f"down{level}"].shape[1] for level in range(5)] == downs
    assert [maps[f"up{level}"].shape[1] for level in (3, 2, 1, 0)] == ups


def test_sizes_that_do_not_halve_are_refused():
    with pytest.raises(UserError, match="a multiple of 32 pixels, not 100"):
        network(100)


@pytest.mark.slow
def test_learns_the_lungs_of_a_few_films():
    net = network(32)
    films = [synthetic.draw(index, size=32) for index in range(8)]
    images = normalize(jnp.asarray(np.stack([film.image for film in films])[..., None]))
    masks = jnp.asarray(np.stack([film.lungs for film in films]))
    weights, optimizer = net.init(0), optax.adam(1e-2)

    @jax.jit
    def step(weights: Weights, state: optax.OptState):
        def loss(params):
            logits, _, stats = net.apply(Weights(params, weights.batch_stats), images, train=True)
            return optax.sigmoid_binary_cross_entropy(logits[..., 0], masks).mean(), (logits, stats)

        (_, (logits, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(weights.params)
        updates, state = optimizer.update(gradient, state)
        return Weights(optax.apply_updates(weights.params, updates), stats), state, logits

    state = optimizer.init(weights.params)
    logits = jnp.zeros(())
    for _ in range(60):
        weights, state, logits = step(weights, state)
    right = (np.asarray(logits[..., 0]) > 0) == np.asarray(masks)
    assert right.mean() > 0.97
