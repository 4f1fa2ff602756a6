"""CNN13: its shape, its numbers beside Keras, dropout, and training that goes on to the same bits."""

from __future__ import annotations

import functools
import itertools
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import refused, run
from jax.sharding import PartitionSpec as P
from test_models import relative
from test_train import run_training, without_times

from covidjax import device
from covidjax.config import ModelConfig, Preprocess, load_config
from covidjax.data.dataset import Dataset
from covidjax.errors import UsageError, UserError
from covidjax.inference import runtimes
from covidjax.models import Network, Weights, count_parameters, create_model
from covidjax.models.layers import Mode, dropout
from covidjax.runs import checkpoint
from covidjax.runs.load import load_run
from covidjax.scoring import classifier
from covidjax.training.loop import Interrupted

NARROW = ("model.name=cnn13", "model.width=2", "train.learning_rate=1e-3")


def network(size: int, width: int = 16, channels: int = 1, rate: float = 0.5, **more: Any) -> Network:
    return create_model(ModelConfig("cnn13", 3 if channels == 3 else 1, width, rate), Preprocess(image_size=size), **more)


def test_thirteen_convolutions_and_one_dense_layer():
    weights = network(224).abstract()
    kernels = [unit["conv"]["kernel"].shape for unit in weights.params["units"].values()]
    assert [kernel[3] for kernel in kernels] == [16] * 2 + [32] * 2 + [64] * 3 + [128] * 6
    assert {kernel[:2] for kernel in kernels} == {(3, 3)}
    assert weights.params["dense"]["kernel"].shape == (7 * 7 * 128, 3)
    assert weights.batch_stats == {}
    # 9·in·out + out for each convolution, and the dense layer.
    widths = [1, 16, 16, 32, 32, 64, 64, 64, *[128] * 6]
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    assert count_parameters(weights) == convolutions + 7 * 7 * 128 * 3 + 3


def test_signal_is_as_strong_after_the_last_convolution():
    """He's draws: with those of DarkCovidNet it would be a thousandth."""
    net = network(64)
    maps = jax.jit(net.apply)(net.init(0), jax.random.normal(jax.random.key(0), (8, 64, 64, 1)))[1]
    assert list(maps) == [f"block{number}" for number in range(1, 6)]
    assert maps["block5"].shape == (8, 2, 2, 128)
    strength = [float(jnp.sqrt(jnp.mean(each**2))) for each in maps.values()]
    assert 0.3 < strength[4] / strength[0] < 3


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match="at least 32 pixels, not 31"):
        network(31)


def test_width_and_dropout_are_of_this_network_alone():
    for setting in ("model.width=8", "model.dropout=0.1"):
        with pytest.raises(UsageError, match="is of cnn13 alone, and the model is darkcovidnet; leave it out"):
            load_config(None, [setting])
        load_config(None, ["model.name=cnn13", setting])
    assert "model.dropout must be at least 0 and below 1" in refused("train", "--set", "model.dropout=1", code=2)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [(40, 1), (67, 3)])
def test_keras_twin_has_equal_logits_and_gradients(monkeypatch: pytest.MonkeyPatch, size: int, channels: int):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Keras does on being imported is no business of these tests
        pytest.importorskip("keras", reason="Keras is not installed; pip install 'covidjax[peers]'")
        from bench.peers.keras_peer import build_cnn13, cnn13_arrays

    net = network(size, 4, channels, rate=0.0)
    images = np.random.default_rng(0).standard_normal((4, size, size, channels), np.float32)
    labels = jnp.arange(4) % 3
    params = net.init(0).params
    twin: Any = build_cnn13(size, params)
    assert twin.count_params() == count_parameters(net.init(0))

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = net.apply(Weights(params, {}), jnp.asarray(images), train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    def twin_loss(variables: list[Any]) -> tuple[jax.Array, jax.Array]:
        logits = twin.stateless_call(variables, [], images, training=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    variables = [variable.value for variable in twin.trainable_variables]
    (_, wanted), wanted_grads = jax.jit(jax.value_and_grad(twin_loss, has_aux=True))(variables)
    assert relative(logits, wanted) < 1e-5
    for found, gradient in zip(cnn13_arrays(grads), wanted_grads, strict=True):
        assert relative(found, gradient) < 1e-4


@pytest.mark.slow
def test_torch_twin_is_as_large():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'covidjax[peers]'")
    from bench.peers.twin import cnn13

    twin = cnn13(67, 1, 3, 4)
    assert sum(p.numel() for p in twin.parameters()) == count_parameters(network(67, 4).abstract())
    assert twin(torch.zeros(2, 1, 67, 67)).shape == (2, 3)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((64, 1000))
    dropped = np.asarray(dropout(x, 0.25, Mode(train=True, key=jax.random.key(0))))
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert dropout(x, 0.25, Mode()) is x
    assert dropout(x, 0.0, Mode(train=True)) is x
    with pytest.raises(ValueError, match="needs a key"):
        dropout(x, 0.25, Mode(train=True))


def test_devices_that_share_a_batch_drop_what_one_would():
    device.start()
    mesh, key = device.mesh(8), jax.random.key(3)
    assert mesh.size == 2
    x = jax.random.normal(jax.random.key(1), (8, 50))
    share = P(device.AXIS)
    shared = device.shard(lambda x: dropout(x, 0.5, Mode(True, device.AXIS, key=key)), mesh, share, result=share)
    np.testing.assert_array_equal(shared(x), dropout(x, 0.5, Mode(True, key=key)))


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset(prepared)


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run_training(dataset, out, *NARROW)
    return out


def bits(out: Path) -> list[Any]:
    restored = checkpoint.restore(
        out, "last", create_model(ModelConfig("cnn13", 1, 2), Preprocess(image_size=32)).abstract()
    )
    return [restored.step, *map(np.asarray, jax.tree.leaves(restored.weights))]


def assert_same(first: Path, second: Path) -> None:
    for a, b in zip(bits(first), bits(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(first / "metrics.jsonl") == without_times(second / "metrics.jsonl")


@pytest.mark.slow
def test_stopped_and_streamed_it_comes_to_the_same_bits(dataset: Dataset, finished: Path, tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_training(dataset, out, *NARROW, "train.cache=stream", stop_after=3)
    run_training(dataset, out, *NARROW, "train.cache=stream", resume=True)
    assert_same(finished, out)


@pytest.mark.slow
def test_dropout_changes_training(dataset: Dataset, finished: Path, tmp_path: Path):
    run_training(dataset, tmp_path / "run", *NARROW, "model.dropout=0", "train.epochs=1", "train.schedule=constant")
    run_training(dataset, tmp_path / "with", *NARROW, "train.epochs=1", "train.schedule=constant")
    losses = [without_times(tmp_path / name / "metrics.jsonl")[0]["train"]["loss"] for name in ("run", "with")]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in runtimes.RUNTIMES if name not in ("auto", "jax")])
def test_every_runtime_gives_the_probabilities_of_jax(finished: Path, films: Path, name: str):
    if not runtimes.is_installed(name):
        pytest.skip(f"{name} is not installed")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    loaded = load_run(finished, "cpu")
    seen = jnp.asarray((images / np.float32(255) - 0.5) / 0.25)
    logits = jax.jit(functools.partial(loaded.network.apply, train=False))(loaded.weights, seen)[0]
    found = classifier.Classifier.load(finished, device="cpu", runtime=name).probabilities(images)
    np.testing.assert_allclose(np.asarray(found), jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.slow
def test_evaluate_and_score_take_it(finished: Path, films: Path, dataset: Dataset, tmp_path: Path):
    result = run("evaluate", finished, "--data", dataset.path)
    assert result.exit_code == 0, result.output
    result = run("score", films, "--checkpoint", finished, "--output", tmp_path / "scores.csv", "--runtime", "jax")
    assert result.exit_code == 0, result.output
    assert "cnn13" in result.stderr
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 31
