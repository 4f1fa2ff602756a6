"""The backbones: torchvision's answers from the same weights, any size, published names, evidence, other runtimes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from goldens import formula

from covidjax.config import ModelConfig, Preprocess
from covidjax.errors import UserError
from covidjax.inference import evidence
from covidjax.inference.forward import make_forward, normalize, probabilities
from covidjax.models import MODELS, Network, Weights, create_model
from covidjax.models.pretrained import LEAVES, TABLES, published_classes, to_weights
from covidjax.models.vgg16 import VGG16

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "torchvision.json").read_text())["answers"]

LEAST = {"resnet50": 32, "vgg16": 32, "vgg16-bn": 32, "inceptionv3": 75, "densenet121": 29, "efficientnet-lite0": 32}
"""Of each backbone the least side of an image."""

SLOW = pytest.mark.slow
EVERY = [pytest.param(name, marks=() if name == "vgg16-bn" else SLOW) for name in LEAST]
"""All of them, of which one is quick to compile."""


def network(name: str, size: int, channels: int = 3, classes: int = formula.CLASSES, **options: Any) -> Network:
    model: Any = {"name": name, "channels": channels}
    names = tuple(str(number) for number in range(classes))
    return create_model(ModelConfig(**model), Preprocess(image_size=size, classes=names), **options)


def whole_vgg(size: int, batch_norm: bool) -> Network:
    """With the paper's three dense layers, as torchvision has it."""

    def make(key: Any) -> VGG16:
        options: Any = {"batch_norm": batch_norm, "hidden": 4096, "dtype": jnp.float32}
        return VGG16(size, 3, formula.CLASSES, **options, rngs=nnx.Rngs(params=key))

    return Network(make, VGG16.features, VGG16.head)


network_of = functools.cache(network)
"""For shapes alone: to build one takes up to a second."""


@functools.cache
def published(name: str) -> Mapping[str, np.ndarray]:
    """The formula's weights by torchvision's names."""
    net = whole_vgg(32, name == "vgg16-bn") if name.startswith("vgg") else network_of(name, 97, 3)
    table, shapes = TABLES[name][0](), {}
    for path, leaf in jax.tree.leaves_with_path(net.abstract()):
        ours, part = jax.tree_util.keystr(path, simple=True, separator=".").split(".", 1)[1].rsplit(".", 1)
        shape = leaf.shape
        if part == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shapes[f"{table.layers[ours]}.{LEAVES[part]}"] = (
            (shape[0], int(np.prod(shape[1:]))) if ours.startswith("hidden") and part == "kernel" else shape
        )
    return formula.arrays(shapes)


def settled(net: Network, images: jax.Array) -> Weights:
    """Drawn weights with batch statistics that fit the images: with others every image gets the same answer."""
    weights = net.init(0)
    moved = jax.jit(functools.partial(net.apply, train=True))(weights, images)[2]  # by a tenth of the way
    return weights._replace(batch_stats=jax.tree.map(lambda a, b: a + 10 * (b - a), weights.batch_stats, moved))


def relative(found: object, wanted: object) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# torchvision -----------------------------------------------------------------------------------------------------------

MOST = [pytest.param(name, marks=SLOW if name in {"densenet121", "inceptionv3"} else ()) for name in LEAST]

QUICK = {("resnet50", 64)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=() if (name, size) in QUICK else SLOW)
        for name, sizes in formula.SIZES.items()
        for size in sizes
    ],
)
def test_answers_are_torchvisions(name: str, size: int):
    golden, images = GOLDENS[name][str(size)], jnp.asarray(formula.image(size))
    net = network(name, size)
    weights = to_weights(name, published(name), net.abstract(), "the file")
    logits, maps, _ = jax.jit(net.apply)(weights, images)
    if name.startswith("vgg"):
        assert relative(net.pooled_features(maps)[0, : formula.CLASSES], golden["features"]) < 1e-4
        np.testing.assert_array_equal(logits, np.zeros((1, formula.CLASSES)))  # the publisher has no such layer
    else:
        assert relative(logits[0], golden["logits"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg16-bn"])
@pytest.mark.parametrize("size", formula.SIZES["vgg16"])
def test_whole_vgg_answers_as_torchvisions(name: str, size: int):
    net = whole_vgg(size, name == "vgg16-bn")
    weights = to_weights(name, published(name), net.abstract(), "the file")
    logits, _, _ = jax.jit(net.apply)(weights, jnp.asarray(formula.image(size)))
    assert relative(logits[0], GOLDENS[name][str(size)]["logits"]) < 1e-4


# Sizes and channels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOST)
def test_any_size_and_channels(name: str):
    for size, channels in ((LEAST[name], 1), (97, 3)):
        net = network_of(name, size, channels)
        images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
        logits, maps, stats = jax.eval_shape(functools.partial(net.apply, train=True), net.abstract(), images)
        assert logits.shape == (2, formula.CLASSES) and logits.dtype == jnp.float32
        assert jax.tree.structure(stats) == jax.tree.structure(net.abstract().batch_stats)
        last = maps[evidence.LAST_MAPS[name]]
        assert size > LEAST[name] or last.shape[1:3] == (1, 1)
        features = jax.eval_shape(net.pooled_features, maps)
        assert features.shape == (2, net.abstract().params["dense"]["kernel"].shape[0])
        assert net.head == ("dense",)


@pytest.mark.parametrize("name", LEAST)
def test_too_small_images_are_refused(name: str):
    with pytest.raises(UserError, match=f"needs images of at least {LEAST[name]} pixels, not {LEAST[name] - 1}"):
        network(name, LEAST[name] - 1)


# Published arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAST)
def test_every_layer_has_a_name_in_every_table(name: str):
    layers = {
        jax.tree_util.keystr(path[1:-1], simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(network_of(name, 97, 3).abstract())
    }
    hidden = {"hidden.0", "hidden.1"}
    for table in (make() for make in TABLES[name]):
        assert {*table.layers, *table.unpublished} - hidden == layers
        assert len({*table.layers.values(), *table.unused}) == len(table.layers) + len(table.unused)
        assert table.first in layers


def test_the_auxiliary_classifier_is_left_out():
    net, arrays = network_of("inceptionv3", 97, 3), published("inceptionv3")
    auxiliary = {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1)), "AuxLogits.fc.bias": np.zeros(16)}
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros(())}
    to_weights("inceptionv3", {**arrays, **auxiliary, **counters}, net.abstract(), "the file")
    with pytest.raises(UserError, match=r"AuxLogits\.conv2\.weight is no array of it"):
        to_weights("inceptionv3", {**arrays, "AuxLogits.conv2.weight": np.zeros(1)}, net.abstract(), "the file")


def test_the_file_of_torchvisions_densenet_has_older_names():
    net, arrays = network("densenet121", 32), published("densenet121")
    older = {}
    for key, array in arrays.items():
        head, dot, last = key.partition("denselayer")
        for part in ("norm", "conv") if dot else ():
            last = last.replace(f"{part}1", f"{part}.1").replace(f"{part}2", f"{part}.2")
        older[f"{head}{dot}{last}"] = array
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    found, wanted = (to_weights("densenet121", each, net.abstract(), "the file") for each in (older, arrays))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, wanted)))


@pytest.mark.slow
def test_timms_vgg_has_its_dense_layers_as_convolutions():
    arrays = dict(published("vgg16"))
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    sides = {"pre_logits.fc1.weight": (4096, 512, 7, 7), "pre_logits.fc2.weight": (4096, 4096, 1, 1)}
    for theirs, timms in names.items():
        for part in ("weight", "bias"):
            array = arrays.pop(f"{theirs}.{part}")
            arrays[f"{timms}.{part}"] = array.reshape(sides.get(f"{timms}.{part}", array.shape))
    assert published_classes("vgg16", arrays) == published_classes("vgg16", published("vgg16")) == formula.CLASSES
    net = whole_vgg(32, False)
    found, wanted = (to_weights("vgg16", each, net.abstract(), "f") for each in (arrays, published("vgg16")))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, wanted)))


def ones(name: str, channels: int) -> dict[str, np.ndarray]:
    """Arrays of torchvision's or timm's shapes without weights in them."""
    table, found = TABLES[name][0](), {}
    for path, leaf in jax.tree.leaves_with_path(network_of(name, 97, channels).abstract()):
        ours, part = jax.tree_util.keystr(path, simple=True, separator=".").split(".", 1)[1].rsplit(".", 1)
        shape = (leaf.shape[3], leaf.shape[2], *leaf.shape[:2]) if len(leaf.shape) == 4 else leaf.shape[::-1]
        if ours in table.layers and not (name.startswith("vgg") and ours == "dense"):
            found[f"{table.layers[ours]}.{LEAVES[part]}"] = np.broadcast_to(np.float32(1), shape)
    return found


@pytest.mark.parametrize("name", MOST)
def test_the_first_kernel_is_summed_for_gray_images(name: str):
    weights = to_weights(name, ones(name, 3), network_of(name, 97, 1).abstract(), "the file")
    first: Any = weights.params
    for part in TABLES[name][0]().first.split("."):
        first = first[int(part) if part.isdigit() else part]
    kernel = np.asarray(first["kernel"])
    assert kernel.shape[2] == 1 and (kernel == 3).all()
    others = [leaf for leaf in jax.tree.leaves(weights) if leaf.shape != kernel.shape]
    assert all(np.isin(leaf, (0, 1)).all() for leaf in others)
    message = "takes 1 channels, and the network's images have 3; set model.channels to 1"
    with pytest.raises(UserError, match=message):
        to_weights(name, ones(name, 1), network_of(name, 97, 3).abstract(), "the file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv2.weight": None}, "f holds no weights of resnet50: layer1.0.conv2.weight is missing; name another"),
        ({"layer5.weight": np.ones(3)}, "layer5.weight is no array of it"),
        ({"layer1.0.conv2.weight": np.ones((64, 64, 1, 1))}, r"conv2.weight has the shape \(64, 64, 1, 1\), which gives"),
        ({"bn1.bias": np.full(64, np.nan)}, "bn1.bias holds numbers that are not finite"),
        ({"fc.weight": np.ones((5, 2048))}, r"fc.weight has the shape \(5, 2048\)"),
        ({"conv1.weight": np.ones((64, 4, 7, 7))}, "conv1.weight takes 4 channels, and the network's images have 3"),
    ],
)
def test_loading_is_strict(change: dict[str, np.ndarray | None], message: str):
    arrays = {key: array for key, array in {**ones("resnet50", 3), **change}.items() if array is not None}
    with pytest.raises(UserError, match=message):
        to_weights("resnet50", arrays, network_of("resnet50", 97, 3).abstract(), "f")


# All that uses networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_evidence_adds_up_to_the_logits(name: str):
    size = LEAST[name] + 34
    model = ModelConfig(name=name)  # pyright: ignore[reportArgumentType]
    net = create_model(model, Preprocess(image_size=size))
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), np.uint8)
    weights = settled(net, normalize(jnp.asarray(images), model))
    found = jax.jit(lambda weights: evidence.decompose(net, weights, images, model))(weights)
    cells, logits = np.asarray(found.cells), np.asarray(found.logits)
    side = cells.shape[1]  # of those that round sizes up one more
    assert cells.shape == (3, side, side, 3) and side in {2, 3}
    np.testing.assert_allclose(cells.sum((1, 2)) + np.asarray(found.bias), logits, atol=1e-4 * np.abs(logits).max())
    assert np.ptp(cells) > 0
    covered = evidence.coverage(np.ones((1, size, size), bool), model, side)
    assert 0.2 < covered.mean() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 225),
        ("vgg16-bn", 224),
        ("inceptionv3", 203),
        ("densenet121", 224),
        ("efficientnet-lite0", 224),
        ("efficientnet-lite0", 193),
    ],
)
def test_a_cell_is_where_it_looks(name: str, size: int):
    """The middle of the gradient's square is that of the cell, here one near the image's middle: another sees less on the
    side of the nearer edge."""
    net = network(name, size, 1)
    weights = net.init(0)
    shape = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    last = jax.eval_shape(lambda weights, images: net.apply(weights, images)[1], weights, shape)
    cell = last[evidence.LAST_MAPS[name]].shape[1] // 2
    middle = evidence.first_cell(name, size) + evidence.STEP * (cell + 0.5) - 0.5

    def seen(images: jax.Array, direction: jax.Array) -> jax.Array:
        last = net.apply(weights, images, train=True)[1][evidence.LAST_MAPS[name]]
        return (last[:, cell, cell] * direction).sum()

    gradient, total = jax.jit(jax.grad(seen)), np.zeros(size)
    for seed in range(6):
        images, direction = (jax.random.normal(jax.random.key(seed), shape) for shape in ((1, size, size, 1), (1, 1)))
        square = np.square(np.asarray(gradient(images, direction))[0, :, :, 0])
        total += (square.sum(0) + square.sum(1)) / square.sum()
    assert abs((total * np.arange(size)).sum() / total.sum() - middle) < 7


@pytest.mark.parametrize("name", EVERY)
def test_other_runtimes_compute_the_same(name: str):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
    from covidjax.inference import onnx, runtimes

    assert onnxruntime
    size = LEAST[name] + 33  # so that batch statistics are of more than one pixel of the last maps
    model, preprocess = ModelConfig(name=name), Preprocess(image_size=size)  # pyright: ignore[reportArgumentType]
    net = create_model(model, preprocess)
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 1), np.uint8)
    images[2:] //= 3
    weights = settled(net, normalize(jnp.asarray(images), model))
    outputs = jax.jit(make_forward(net, model))(weights, images)
    wanted = np.asarray(probabilities(outputs.logits, model))
    assert np.ptp(wanted, axis=0).max() > 1e-3
    converted = onnx.convert([weights], model, preprocess)
    kinds = [runtimes.OnnxRuntime, *([runtimes.OpenVino] if runtimes.is_installed("openvino") else [])]
    for kind in kinds:
        found, features = kind(converted)(images)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        # Rounding grows through Inception's 94 drawn layers: in float32 jax itself is 1e-4 from its features in float64.
        assert relative(features, outputs.features) < (3e-4 if name == "inceptionv3" else 1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_a_step_of_training(name: str):
    """Its gradient, in bfloat16, reaches every weight, and it moves all batch statistics."""
    size = LEAST[name] + 2
    net = network(name, size, 1, 3, dtype=jnp.bfloat16)
    weights = net.init(0)
    images = jax.random.normal(jax.random.key(0), (4, size, size, 1))

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, _, stats = net.apply(Weights(params, weights.batch_stats), images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4) % 3).mean(), stats

    (value, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights.params)
    assert np.isfinite(value)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()), path
        assert bool((leaf != 0).any()), path
    changed = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (stats, weights.batch_stats)), strict=True)]
    assert all(changed) and bool(changed) == (name != "vgg16")


@pytest.mark.parametrize("name", EVERY)
def test_frozen_batch_statistics_stay(name: str):
    size = LEAST[name]
    net = network(name, size, 1, 3)
    weights = net.init(0)
    images = jax.random.normal(jax.random.key(0), (2, size, size, 1))
    stats = jax.jit(functools.partial(net.apply, train=True, use_running_average=True))(weights, images)[2]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, stats, weights.batch_stats)))


@pytest.mark.slow
def test_a_backbone_is_trained_and_scores(prepared: Path, films: Path, tmp_path: Path):
    from commands import TINY, run

    out = tmp_path / "run"
    result = run("train", "--model", "resnet50", "--data", prepared, "--epochs", 1, "--run", out, *TINY)
    assert result.exit_code == 0, result.output
    result = run("score", films, "--checkpoint", out, "--output", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 31


def test_every_backbone_is_here():
    assert set(LEAST) == set(TABLES) == set(MODELS) - {"darkcovidnet", "cnn13", "lung-unet"}
    assert set(evidence.LAST_MAPS) == set(MODELS) - {"lung-unet"}
