from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covidjax.config import ModelConfig, Preprocess
from covidjax.errors import UserError
from covidjax.labels import CLASSES
from covidjax.models import Network, Weights, count_parameters, create_model
from covidjax.models.darkcovidnet import head_size


def network(size: int, channels: int = 1, classes: int = 3, dtype=jnp.float32) -> Network:
    assert channels in (1, 3)
    return create_model(ModelConfig(channels=channels), Preprocess(image_size=size, classes=CLASSES[:classes]), dtype)


def train_mode(net: Network):
    return jax.jit(functools.partial(net.apply, train=True))


def kernels(tree: object) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim == 4]


def test_paper_sizes():
    weights = network(256, 3).init(0)
    assert count_parameters(weights) == 1_167_586
    assert len(kernels(weights.params)) == 17
    assert weights.params["dense"]["kernel"].shape == (507, 3)
    assert network(224, 3).abstract().params["dense"]["kernel"].shape == (432, 3)


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 1, 3), (50, 3, 2), (64, 3, 3), (97, 1, 2)])
def test_any_size_channels_and_classes(size: int, channels: int, classes: int):
    net = network(size, channels, classes)
    logits, maps, _ = jax.jit(net.apply)(net.init(0), jnp.ones((2, size, size, channels)))
    assert logits.shape == (2, classes)
    assert logits.dtype == jnp.float32
    assert maps["head"].shape == (2, head_size(size), head_size(size), classes)
    assert maps["stem"].shape == (2, size // 4, size // 4, 16)
    assert set(maps) == {"stem", "stage1", "stage2", "stage3", "stage4", "head"}


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="at least 16 pixels, not 8"):
        network(8)


def test_seed_decides_the_weights():
    net = network(32)
    first, again, other = (net.init(seed) for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, again)))
    assert not np.array_equal(first.params["stem1"]["conv"]["kernel"], other.params["stem1"]["conv"]["kernel"])


def test_initial_weights_spread_as_torch_draws_them():
    kernel = np.asarray(network(32).init(0).params["stage4"]["first"]["conv"]["kernel"])
    bound = (9 * 128) ** -0.5
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_evaluation_does_not_depend_on_the_rest_of_the_batch():
    net = network(32)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    weights = net.init(0)
    alone, _, stats = jax.jit(net.apply)(weights, images[:1])
    together, _, _ = jax.jit(net.apply)(weights, images)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-5, atol=1e-6)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), stats, weights.batch_stats)))


@pytest.mark.parametrize("dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float16])
def test_half_precision_is_close_and_keeps_float32_weights(dtype):
    images = jax.random.normal(jax.random.key(0), (8, 64, 64, 1))
    weights = network(64).init(0)
    exact, _, stats = train_mode(network(64))(weights, images)
    half, maps, half_stats = train_mode(network(64, dtype=dtype))(weights, images)
    assert half.dtype == jnp.float32
    assert maps["stage2"].dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(half_stats)} == {jnp.dtype(jnp.float32)}
    # One rounding is half an eps; seventeen normalised layers carry it on.
    assert relative(half, exact) < 20 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(half_stats["stem1"]["norm"]["var"], stats["stem1"]["norm"]["var"], rtol=0.02)


def trained_a_little(net: Network, images: jax.Array) -> Weights:
    """Weights whose batch statistics are no longer zeros and ones."""
    weights = net.init(0)
    for _ in range(3):
        weights = weights._replace(batch_stats=train_mode(net)(weights, images)[2])
    return weights


def relative(found: object, wanted: object) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("size", "channels", "classes", "batch", "seed"),
    [
        (64, 1, 3, 4, 0),
        pytest.param(67, 3, 2, 4, 0, marks=pytest.mark.slow),
        pytest.param(224, 1, 3, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_torch_twin_has_equal_logits_statistics_and_gradients(
    size: int, channels: int, classes: int, batch: int, seed: int
):
    """The twin computes in float64: in float32 its own rounding, through 17 normalised layers, is up to 4e-5.

    The seeds are such that no maximum and no sign hangs on a rounding: where one does, the gradient jumps by up to a
    hundredth, in PyTorch's own float32 as much as here.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'covidjax[peers]'")
    from bench.peers.arrays import UNITS, at
    from bench.peers.twin import Twin, from_flax

    net = network(size, channels, classes)
    images = np.random.default_rng(seed).standard_normal((batch, size, size, channels), np.float32)
    labels = np.arange(batch) % classes
    weights = trained_a_little(net, jnp.asarray(images))
    twin = Twin(size, channels, classes).double()
    twin.load(weights)
    assert sum(p.numel() for p in twin.parameters()) == count_parameters(weights)
    torch_images = torch.tensor(images.transpose(0, 3, 1, 2)).double()

    with torch.no_grad():
        logits = jax.jit(lambda w, x: net.apply(w, x)[0])(weights, images)
        assert relative(logits, twin.eval()(torch_images)) < 1e-5

    def loss(params: object) -> tuple[jax.Array, tuple[jax.Array, dict[str, Any]]]:
        logits, _, stats = net.apply(Weights(params, weights.batch_stats), jnp.asarray(images), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean(), (logits, stats)

    (value, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights.params)
    torch_logits = twin.train()(torch_images)
    torch_loss = torch.nn.functional.cross_entropy(torch_logits, torch.tensor(labels))
    torch_loss.backward()
    assert relative(logits, torch_logits.detach()) < 1e-5
    assert float(value) == pytest.approx(torch_loss.item(), rel=1e-5)

    wanted, found = [], []
    for unit, name in zip(twin.units(), UNITS, strict=True):
        conv, norm = unit[0], unit[1]
        assert relative(at(stats, name)["norm"]["mean"], norm.running_mean) < 1e-5, name
        assert relative(at(stats, name)["norm"]["var"], norm.running_var) < 1e-5, name
        wanted += [conv.weight.grad, norm.weight.grad, norm.bias.grad]
        gradient = at(grads, name)
        found += [from_flax(gradient["conv"]["kernel"]), gradient["norm"]["scale"], gradient["norm"]["bias"]]
    wanted += [twin.score_map.weight.grad, twin.score_norm.weight.grad, twin.dense.weight.grad, twin.dense.bias.grad]
    found += [from_flax(grads["score_map"]["kernel"]), grads["score_norm"]["scale"]]
    found += [twin.dense_from_flax(grads["dense"]["kernel"]), grads["dense"]["bias"]]
    assert relative(flat(found), flat(wanted)) < 1e-5


def flat(arrays: list[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])
