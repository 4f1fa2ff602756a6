"""Probes: the fit and its choice, features that are computed once, and what a run makes of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import run
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from covidjax.config import Config, ModelConfig, Preprocess, TrainConfig, load_config
from covidjax.data.dataset import Dataset
from covidjax.errors import UsageError, UserError
from covidjax.inference.runtimes import choose_runtime, open_runtime
from covidjax.models import MODELS, Weights, create_model
from covidjax.runs import checkpoint, folder
from covidjax.runs.folder import Run
from covidjax.runs.load import load_run
from covidjax.timing import Timing
from covidjax.training import features, probe
from covidjax.training.features import BackboneFeatures, Runtimes
from covidjax.training.tasks import WITHOUT_PROBE, make_task

BACKBONE = ("--model", "efficientnet-lite0")


def drawn(count: int = 240, size: int = 12, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of unlike scales, two of which tell the class by a noisy shift, with labels and patients of two images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.normal(size=(count, size))
    x[:, 0] += labels
    x[:, 1] -= 0.7 * (labels == 1)
    scale = 10.0 ** rng.uniform(-3, 3, size)
    return (x * scale + 5 * scale).astype(np.float32), labels, [f"p{row // 2}" for row in range(count)]


def fit(x: np.ndarray, labels: np.ndarray, patients: list[str], weights: Any = None, classes: int = 3) -> probe.Probe:
    return probe.fit(x, labels, patients, np.ones(len(x)) if weights is None else weights, classes, seed=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_layer_is_the_regression_on_standardised_features(classes: int):
    x, labels, patients = drawn(classes=classes)
    found = fit(x, labels, patients, classes=classes)
    standard = (x.astype(float) - x.mean(0, dtype=float)) / x.std(0, dtype=float)
    wanted = LogisticRegression(C=found.strength, max_iter=1000).fit(standard, labels)
    logits = x.astype(float) @ found.kernel + found.bias
    np.testing.assert_allclose(softmax(logits, -1), wanted.predict_proba(standard), atol=5e-3)
    assert found.kernel.shape == (12, classes)
    assert found.kernel.dtype == found.bias.dtype == np.float32


def test_strength_is_that_of_the_least_loss_of_patients_left_out():
    found = fit(*drawn())
    assert found.strength == min(found.losses, key=found.losses.__getitem__)
    assert set(found.losses) <= set(probe.STRENGTHS)
    assert list(found.losses) == sorted(found.losses)
    assert len(found.losses) < len(probe.STRENGTHS)  # larger ones than help are not tried
    noise = np.random.default_rng(1).normal(size=(600, 60)).astype(np.float32)
    assert fit(noise, np.arange(600) % 3, [str(row) for row in range(600)]).strength <= 1e-3 < found.strength


def test_patients_are_left_out_together():
    """Features that tell the patient alone help with images of known patients only."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 40), 6)
    x = np.repeat(rng.normal(size=(40, 30)), 6, axis=0).astype(np.float32)
    together = fit(x, labels, [f"p{row // 6}" for row in range(240)], classes=2)
    apart = fit(x, labels, [str(row) for row in range(240)], classes=2)
    assert min(apart.losses.values()) < 0.2 < 0.5 < min(together.losses.values())


def test_weights_count_as_repetitions():
    x, labels, _ = drawn(60)
    weights = np.random.default_rng(0).integers(1, 4, 60)
    rows = np.repeat(np.arange(60), weights)
    patients = ["one"] * 60  # too few to choose by, so that both have the same strength
    weighted = fit(x, labels, patients, weights)
    repeated = fit(x[rows], labels[rows], ["one"] * len(rows), np.ones(len(rows)))
    assert weighted.strength == repeated.strength == probe.FALLBACK
    assert weighted.losses == {}
    # The penalty weighs less against more images.
    np.testing.assert_allclose(weighted.kernel * x.std(0)[:, None], repeated.kernel * x.std(0)[:, None], atol=0.12)
    assert (np.sign(weighted.kernel[0]) == np.sign(repeated.kernel[0])).all()


def test_class_without_images_is_hardly_ever_said():
    x, labels, patients = drawn(classes=2)
    found = fit(x, labels * 2, patients)
    probabilities = softmax(x @ found.kernel + found.bias, -1)
    assert 0 < probabilities[:, 1].max() < 0.02
    assert np.isfinite(log_softmax(x @ found.kernel + found.bias, -1)).all()


def test_features_that_are_the_same_everywhere_do_no_harm():
    x, labels, patients = drawn()
    found = fit(np.hstack([x, np.full((len(x), 1), 7, np.float32)]), labels, patients)
    assert np.isfinite(found.kernel).all()
    assert found.kernel[-1] == pytest.approx([0, 0, 0], abs=1e-6)


def test_one_class_is_an_error():
    with pytest.raises(UserError, match="two classes or more"):
        fit(drawn()[0], np.zeros(240, int), drawn()[2])


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(WITHOUT_PROBE)))
def test_networks_end_with_a_dense_layer_of_their_features(name: Any):
    network = create_model(ModelConfig(name), Preprocess(image_size=96))
    abstract = network.abstract()
    assert network.head == ("dense",)
    shape = jax.ShapeDtypeStruct((1, 96, 96, 1), np.float32)
    maps = jax.eval_shape(lambda w, x: network.apply(w, x)[1], abstract, shape)
    pooled = jax.eval_shape(network.pooled_features, maps)
    assert abstract.params["dense"]["kernel"].shape[0] == pooled.shape[-1]


@pytest.fixture(scope="module")
def backbone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the backbone whose weights are drawn, not trained."""
    out = tmp_path_factory.mktemp("backbone") / "run"
    dataset = Dataset(prepared)
    config = Config(model=ModelConfig("efficientnet-lite0"))
    network = create_model(config.model, dataset.preprocess)
    weights = jax.tree.map(np.asarray, network.init(0))
    folder.create_run(out, Run(config, dataset.preprocess, dataset.fingerprint))
    folder.write_trained_on(out, [])
    writer = checkpoint.CheckpointWriter(out, "last", keep=1)
    writer.save(0, weights, {"step": np.int32(0)}, {"epoch": 100, "best": None})
    writer.close()
    return out


@pytest.fixture(scope="module")
def probed(prepared: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("probed") / "run"
    result = run("train", *BACKBONE, "--probe", "--data", prepared, *start(backbone), "--run", out, "--json")
    assert result.exit_code == 0, result.output
    assert "probe: train loss" in result.stderr
    assert "cross-entropy" in result.stderr
    return out, json.loads(result.stdout)


def start(backbone: Path) -> tuple[str, str]:
    return "--set", f"train.init={backbone}"


def weights_of(run: Path) -> Weights:
    return Weights(*load_run(run).weights)


def assert_same_backbone(first: Weights, second: Weights) -> None:
    for ours, theirs in zip(first, second, strict=True):
        pair = ({name: part for name, part in tree.items() if name != "dense"} for tree in (ours, theirs))
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_probe_is_a_run_like_any_other(probed: tuple[Path, dict[str, Any]]):
    out, summary = probed
    (record,) = folder.read_log(out)
    assert record["epoch"] == record["step"] == 0
    assert summary["probe"] == record["probe"]
    assert record["probe"]["C"] in probe.STRENGTHS
    assert record["probe"]["losses"][f"{record['probe']['C']:g}"] == pytest.approx(record["probe"]["validation_loss"], 1e-4)
    assert "epochs = 0" in (out / "config.toml").read_text()
    assert "It began with a probe: C " in (out / "report" / "report.html").read_text()
    again = run("evaluate", out, "--json")
    assert again.exit_code == 0, again.output
    metrics = json.loads(again.stdout)["metrics"]
    # By the network from pixels, not from features that were kept.
    assert metrics["accuracy"] == summary["metrics"]["accuracy"]
    assert metrics["log_loss"] == pytest.approx(summary["metrics"]["log_loss"], rel=1e-3)


@pytest.mark.slow
def test_images_are_scored_by_a_probe(probed: tuple[Path, dict[str, Any]], films: Path, tmp_path: Path):
    out, _ = probed
    scored = run("score", films, "--checkpoint", out, "--output", tmp_path / "scores.csv", "--gate", "off")
    assert scored.exit_code == 0, scored.output
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 31


@pytest.mark.slow
def test_finished_probe_resumes_to_the_same(probed: tuple[Path, dict[str, Any]], tmp_path: Path):
    out, summary = probed
    copy = shutil.copytree(out, tmp_path / "run")
    for interrupted in (False, True):
        if interrupted:  # killed between the line of the log and the checkpoint
            shutil.rmtree(copy / "checkpoints")
        result = run("train", "--resume", "--run", copy, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["metrics"] == summary["metrics"]
        (record,) = folder.read_log(copy)
        assert record["test"] == folder.read_log(out)[0]["test"]
        assert (record["seconds"] == folder.read_log(out)[0]["seconds"]) is not interrupted


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_probe(
    probed: tuple[Path, dict[str, Any]], prepared: Path, backbone: Path, tmp_path: Path
):
    """With a frozen backbone: all of it stays, whatever else is on."""
    words = ("train", *BACKBONE, "--probe", "--data", prepared, *start(backbone), "--epochs", 2, "--val-fold", 1)
    words += ("--freeze", "backbone", "--set", "train.ema_decay=0.9", "--set", "train.weight_decay=0.1")
    result = run(*words, "--run", tmp_path / "run", "--set", "train.batch_size=8")
    assert result.exit_code == 0, result.output
    log = folder.read_log(tmp_path / "run")
    assert [record["epoch"] for record in log] == [0, 1, 2]
    assert "probe" in log[0]
    before, after = weights_of(probed[0]), weights_of(tmp_path / "run")
    assert_same_backbone(before, after)
    last = checkpoint.restore(tmp_path / "run", "last", after).weights
    assert_same_backbone(before, last)
    assert (np.asarray(last.params["dense"]["kernel"]) != np.asarray(before.params["dense"]["kernel"])).any()


@pytest.mark.slow
def test_folds_share_the_features(prepared: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    computed = []
    compute = BackboneFeatures._compute
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(BackboneFeatures, "_compute", lambda *words: computed.append(1) or compute(*words))
    words = ("train", *BACKBONE, "--probe", "--cv", "--data", prepared, *start(backbone))
    words += ("--set", "train.sampling=balanced", "--set", "train.class_weights=balanced")
    result = run(*words, "--run", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert len(computed) == 1
    assert set(json.loads(result.stdout)["members"]) == {"fold0", "fold1", "fold2"}


def test_features_are_kept_by_weights_and_dataset(
    prepared: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(features, "CACHED", 2)
    dataset, config = Dataset(prepared), Config(model=ModelConfig("efficientnet-lite0"))
    network, weights, told = create_model(config.model, dataset.preprocess), weights_of(backbone), []

    def compute(images: np.ndarray) -> list[np.ndarray]:
        return [images.reshape(len(images), -1)[:, :5].astype(np.float32)]

    def computed(weights: Weights, config: Config = config, dataset: Dataset = dataset) -> features.Computed:
        store = BackboneFeatures(config, dataset, network, Timing())
        runtimes = Runtimes(choose_runtime, lambda *words, **options: compute)
        return store.of(weights, runtimes, accelerated=False, progress=lambda done, total: told.append((done, total)))

    first = computed(weights)
    assert first.features.shape == (30, 5)
    assert told[-1] == (30, 30)
    assert first.by != "cache"
    other_head = weights._replace(params=weights.params | {"dense": jax.tree.map(np.zeros_like, weights.params["dense"])})
    for again in (computed(weights), computed(other_head)):
        assert again.by == "cache"
        np.testing.assert_array_equal(again.features, first.features)
    moved = weights._replace(batch_stats=jax.tree.map(lambda leaf: leaf + 1, weights.batch_stats))
    other_images = Dataset(prepared)
    other_images.fingerprint = "another"
    assert computed(weights, dataset=other_images).by != "cache"
    assert computed(weights).by == "cache"
    assert computed(moved).by != "cache"
    os.utime(next(tmp_path.iterdir()), (1, 1))
    dark = Config(model=ModelConfig("efficientnet-lite0", pixel_mean=(0.4,)))
    assert computed(weights, dark).by != "cache"
    assert len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert computed(weights, dark).by != "cache"


@pytest.mark.slow
def test_runtimes_give_the_network_s_own_features(prepared: Path, backbone: Path):
    dataset, config = Dataset(prepared), Config(model=ModelConfig("efficientnet-lite0"))
    network, weights = create_model(config.model, dataset.preprocess), weights_of(backbone)
    found = {}
    for name in ("auto", "jax"):
        store = BackboneFeatures(config, dataset, network, Timing())
        runtimes = Runtimes(lambda *words, chosen=name: choose_runtime(chosen, *words[1:]), open_runtime)
        found[name] = store.of(weights, runtimes, accelerated=False, progress=lambda *_: None)
    np.testing.assert_allclose(found["auto"].features, found["jax"].features, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.probe=true",), "train.probe builds on given weights"),
        (("train.freeze=backbone",), "train.freeze builds on given weights"),
        (("train.freeze_batch_norm=true",), "train.freeze_batch_norm builds on given weights"),
        (("train.epochs=0",), "train.epochs must be at least 1"),
        (("train.init=x", "train.freeze=backbone", "train.recalibrate_batch_norm=true"), "leaves the batch statistics"),
        (("train.init=x", "train.probe=true", "train.recalibrate_batch_norm=true"), "A probe alone leaves"),
    ],
)
def test_settings_that_do_not_go_together(settings: tuple[str, ...], message: str):
    with pytest.raises(UsageError, match=message):
        load_config(None, settings)


def test_epochs_of_a_probe():
    assert load_config(None, ["train.init=x"], {"train.probe": True}).train.epochs == 0
    assert load_config(None, ["train.init=x", "train.epochs=3", "train.probe=true"]).train.epochs == 3
    assert load_config().train.epochs == TrainConfig().epochs == 100


@pytest.mark.parametrize("name", WITHOUT_PROBE)
def test_networks_without_a_dense_layer_on_features_are_refused(name: str, prepared: Path):
    with pytest.raises(UsageError, match=f"{name} does not end with one dense layer"):
        make_task(load_config(None, ["train.init=x", "train.probe=true", f"model.name={name}"]), Dataset(prepared))
