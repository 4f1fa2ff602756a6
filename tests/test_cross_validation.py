"""Cross-validations and ensembles: trained one after another, resumed, pooled, scored."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import refused, run
from test_train import Silent, assert_same_bits, saved

import covidjax
from covidjax.config import Config, Preprocess, load_config
from covidjax.data import loader, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.inference import runtimes
from covidjax.inference.forward import make_predict
from covidjax.runs import checkpoint, folder, load
from covidjax.runs.folder import Run
from covidjax.runs.load import load_run
from covidjax.training import cross_validation, engine
from covidjax.training.cross_validation import CrossValidation, ensemble, network_configs, train_networks
from covidjax.training.loop import Interrupted
from covidjax.training.predictions import Predictions, concatenate
from covidjax.training.tasks import Classification

SIZES = (8, 12, 17)
"""Images of the folds."""
SETTINGS = ("train.epochs=2", "train.batch_size=4", "train.learning_rate=1e-6", "train.ema_decay=0.1", "model.tta=10")


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of 32 × 32 pixels whose three folds are of different sizes, of two films a patient."""
    out = tmp_path_factory.mktemp("dataset") / "uneven"
    films = iter(synthetic.draw_images(sum(SIZES), size=32))
    with create_dataset(out, Preprocess(image_size=32), len(SIZES)) as writer:
        for fold, size in enumerate(SIZES):
            for number in range(size):
                film, name = next(films), f"{fold}-{number}.png"
                digest = hashlib.sha256(name.encode()).hexdigest()
                label = synthetic.CLASSES[number % 3]
                example = Example(Path(name), label, f"p{fold}-{number // 2}", "mine")
                writer.add(fold, example, film.image[..., None], digest)
        writer.close()
    return Dataset(out)


class Told:
    """Progress of several networks, and a question to stop after so many of their epochs."""

    def __init__(self, stop_after: int | None = None):
        self.stop_after = stop_after
        self.networks: dict[str, Silent] = {}

    def of(self, name: str) -> Silent:
        return self.networks.setdefault(name, Silent())

    def stop(self) -> bool:
        epochs = sum(len(network.records) for network in self.networks.values())
        return self.stop_after is not None and epochs >= self.stop_after


def trained(
    dataset: Dataset, out: Path, *settings: str, stop_after: int | None = None, resume: bool = False
) -> tuple[CrossValidation, Told]:
    told = Told(stop_after)
    config = load_config(None, [f"data.path={dataset.path}", *SETTINGS, *settings])
    found = train_networks(config, dataset, out, resume=resume, progress=told.of, stop=told.stop)
    return found, told


CV = ("train.cv=true", "data.val_fold=1")


@pytest.fixture(scope="module")
def alone(uneven: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trained by the command, one after another; the run and what --json printed."""
    out = tmp_path_factory.mktemp("alone") / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    result = run("train", "--cv", "--val-fold", 1, "--data", uneven.path, "--run", out, "--json", *settings)
    assert result.exit_code == 0, result.output
    for line in ("fold 1/3, CPU", "fold 2/3, epoch 1/2: train loss", "fold 3/3, epoch 2/2: train loss"):
        assert line in result.stderr
    return out, json.loads(result.stdout)


def test_settings_of_the_members():
    cv = network_configs(load_config(None, ["train.cv=true", "data.val_fold=1"]), 3)
    assert {name: (each.data.test_fold, each.data.val_fold) for name, each in cv.items()} == {
        "fold0": (0, 1),
        "fold1": (1, 2),
        "fold2": (2, 0),
    }
    assert not any(each.train.cv for each in cv.values())
    ensemble = network_configs(load_config(None, ["train.ensemble=2", f"seed={2**32 - 1}"]), 3)
    assert {name: each.seed for name, each in ensemble.items()} == {"member0": 2**32 - 1, "member1": 0}
    assert {each.train.ensemble for each in ensemble.values()} == {1}
    assert network_configs(Config(), 3) == {}
    both = network_configs(load_config(None, ["train.cv=true", "train.ensemble=2", "seed=5", "data.val_fold=2"]), 3)
    assert {name: (each.data.test_fold, each.data.val_fold, each.seed) for name, each in both.items()} == {
        "fold0-member0": (0, 2, 5),
        "fold0-member1": (0, 2, 6),
        "fold1-member0": (1, 0, 5),
        "fold1-member1": (1, 0, 6),
        "fold2-member0": (2, 1, 5),
        "fold2-member1": (2, 1, 6),
    }
    assert {(each.train.cv, each.train.ensemble) for each in both.values()} == {(False, 1)}


@pytest.mark.parametrize("settings", [("train.cv=true",), ("train.ensemble=11",), ("train.cv=true", "train.ensemble=11")])
def test_folders_of_the_members(tmp_path: Path, settings: tuple[str, ...]):
    config = load_config(None, settings)
    each = network_configs(config, 12)
    Run(config, Preprocess()).save(tmp_path / folder.CONFIG)
    for name in (*each, "fold1-member", "member1-fold1", "report"):
        folder.create_run(tmp_path / name, Run(config, Preprocess()))
    assert [folder.name for folder in folder.member_folders(tmp_path)] == list(each)


def _moved(one: checkpoint.Saved) -> list[np.ndarray]:
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(one.weights.params) if "bias" in str(path)]
    return [np.asarray(leaf) for leaf in (*jax.tree.leaves((one.training["optimizer"], one.weights.batch_stats)), *biases)]


def test_result_of_a_cross_validation(alone: tuple[Path, dict[str, Any]], uneven: Dataset):
    folder, found = alone
    each = [found["members"][f"fold{fold}"]["metrics"] for fold in range(3)]
    assert [one["macro"]["support"] for one in each] == list(SIZES)
    assert found["metrics"]["confusion"] == np.sum([one["confusion"] for one in each], 0).tolist()
    accuracies = [one["accuracy"] for one in each]
    assert found["spread"]["accuracy"] == pytest.approx({"mean": np.mean(accuracies), "sd": np.std(accuracies, ddof=1)})
    assert found["metrics"]["bootstrap"]["patients"] == sum(-(-size // 2) for size in SIZES)
    assert json.loads((folder / "report" / "metrics.json").read_text())["spread"] == found["spread"]
    for report in (folder / "report", folder / "fold0" / "report"):
        assert {path.name for path in report.iterdir()} >= {"tables.txt", "metrics.json", "curves.png"}
    tables = (folder / "report" / "tables.txt").read_text()
    for text in ("mean ± sd", "every image by the network that it was held out from", "95 % interval", "Timing"):
        assert text in tables
    # Each fold is a run by itself, and the whole evaluates to its own result.
    assert json.loads(run("evaluate", folder / "fold2", "--json").stdout)["metrics"] == each[2]
    again = json.loads(run("evaluate", folder, "--json").stdout)
    assert again["metrics"] == found["metrics"]
    assert again["data"] == f"all 3 folds of {uneven.path}, each by the network that it was held out from"


@pytest.mark.slow
def test_finished_networks_are_not_trained_again(alone: tuple[Path, dict[str, Any]]):
    before = [checkpoint.steps(member, "last") for member in folder.member_folders(alone[0])]
    result = run("train", "--resume", "--run", alone[0], "--json")
    assert result.exit_code == 0, result.output
    assert "epoch" not in result.stderr.replace("steps an epoch", "")
    assert json.loads(result.stdout)["metrics"] == alone[1]["metrics"]
    assert [checkpoint.steps(member, "last") for member in folder.member_folders(alone[0])] == before


@pytest.fixture(scope="module")
def seeds(alone: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folds' networks in the folders of an ensemble: three networks, whatever they were trained on, and one view."""
    out = tmp_path_factory.mktemp("ensemble") / "run"
    shutil.copytree(alone[0], out)
    text = (out / "config.toml").read_text()
    for old, new in (("cv = true", "cv = false"), ("ensemble = 1", "ensemble = 3"), ("tta = 10", "tta = 1")):
        assert old in text
        text = text.replace(old, new)
    (out / "config.toml").write_text(text)
    for number in range(3):
        (out / f"fold{number}").rename(out / f"member{number}")
    return out


@pytest.mark.parametrize(
    "name", ["jax", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "onnxruntime"))]
)
def test_probabilities_are_the_means_of_all_networks(seeds: Path, uneven: Dataset, name: str):
    if not runtimes.is_installed(name) and name != "jax":
        pytest.skip(f"{name} is not installed")
    images = loader.load_all(uneven.source([0])).images[:4]
    loaded = load_run(seeds)
    predict = make_predict(loaded.network, loaded.run.config.model)
    each = [jax.nn.softmax(predict(weights, images)) for weights in loaded.networks]
    assert len(each) == 3
    assert np.ptp(each, 0).max() > 0.01
    classifier = covidjax.load(seeds, runtime=name)
    assert classifier.checkpoint == "mean probabilities of the 3 networks of an ensemble"
    np.testing.assert_allclose(classifier.probabilities(images), np.mean(each, 0), atol=1e-5)


@pytest.mark.slow
def test_scoring_says_what_computes(alone: tuple[Path, dict[str, Any]], films: Path):
    result = run("score", films / "COVID-19", "--checkpoint", alone[0], "--runtime", "jax")
    assert result.exit_code == 0, result.output
    assert "mean probabilities of the 3 folds of a cross-validation, on JAX" in result.stderr.splitlines()[0]


@pytest.mark.slow
def test_evaluating_says_what_computes(alone: tuple[Path, dict[str, Any]], seeds: Path, prepared: Path):
    found = json.loads(run("evaluate", alone[0], "--data", prepared, "--json").stdout)
    assert found["data"] == f"all of {prepared}, by the mean probabilities of the 3 folds of a cross-validation"
    assert found["metrics"]["macro"]["support"] == 30
    found = json.loads(run("evaluate", seeds, "--json").stdout)
    assert found["data"].endswith("by the mean probabilities of the 3 networks of an ensemble")
    assert found["metrics"]["macro"]["support"] == SIZES[0]


def test_a_network_that_is_not_trained_yet_is_missed(alone: tuple[Path, dict[str, Any]], tmp_path: Path, films: Path):
    shutil.copytree(alone[0], tmp_path / "runs" / "half")
    shutil.rmtree(tmp_path / "runs" / "half" / "fold1" / "checkpoints")
    message = refused("score", films, "--checkpoint", tmp_path / "runs" / "half", code=1)
    assert message.startswith(f"{tmp_path / 'runs' / 'half' / 'fold1'} has no finished checkpoint")
    assert load.newest_run(tmp_path / "runs") is None
    shutil.copytree(alone[0], tmp_path / "runs" / "whole")
    assert load.newest_run(tmp_path / "runs") == tmp_path / "runs" / "whole"


def test_mean_of_probabilities_by_hand():
    films = [["a", "b"], np.array([0, 1], np.int32)]
    logits = [np.log(np.array(p, np.float32)) for p in ([[0.8, 0.2], [0.6, 0.4]], [[0.4, 0.6], [0.0001, 0.9999]])]
    found = ensemble([Predictions(each + 3, films[1], films[0]) for each in logits])
    np.testing.assert_allclose(np.exp(found.outputs), [[0.6, 0.4], [0.30005, 0.69995]], rtol=1e-5)
    assert Classification(Config()).measure(found, ("x", "y")).accuracy == 1
    both = concatenate([found, found])
    assert (len(both.outputs), both.labels.tolist(), both.patients) == (4, [0, 1, 0, 1], ["a", "b", "a", "b"])


def test_networks_of_a_fold_count_by_their_mean_probabilities():
    """Their mean calls the second film otherwise than either fold's first network."""
    configs = list(network_configs(load_config(None, ["train.cv=true", "train.ensemble=2"]), 2).values())
    chances = [[[0.8, 0.2], [0.6, 0.4]], [[0.7, 0.3], [0.1, 0.9]], [[0.3, 0.7], [0.4, 0.6]], [[0.1, 0.9], [0.9, 0.1]]]
    each = [Predictions(np.log(np.array(one, np.float32)), np.array([0, 1], np.int32), ["a", "b"]) for one in chances]
    found = cross_validation.predictions_by_fold(configs, each)
    assert list(found) == ["fold0", "fold1"]
    np.testing.assert_allclose(np.exp(found["fold0"].outputs), [[0.75, 0.25], [0.35, 0.65]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found["fold1"].outputs), [[0.2, 0.8], [0.65, 0.35]], rtol=1e-5)
    alone = cross_validation.predictions_by_fold(configs[::2], each[::2])
    assert alone["fold0"] is each[0] and alone["fold1"] is each[2]


@pytest.mark.slow
def test_the_way_of_accelerators_comes_to_the_same(uneven: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Taken on the CPU: images on the device, several steps a scan."""
    monkeypatch.setattr(engine.Engine, "accelerated", True)
    monkeypatch.setattr(engine, "SCAN_STEPS", 3)
    joint, _ = trained(uneven, tmp_path / "run", *CV, "train.epochs=1", "train.schedule=constant")
    assert joint.timing.images["train"] == 4 * sum((4, 2, 3))
    monkeypatch.undo()
    first, _ = trained(uneven, tmp_path / "other", *CV, "train.epochs=1", "train.schedule=constant")
    for name, result in joint.networks.items():
        for fold in ("train", "val", "test"):
            expected = first.networks[name].history[0][fold]["loss"]
            assert result.history[0][fold]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_stopped_one_after_another_resumes_to_the_same_bits(
    alone: tuple[Path, dict[str, Any]], uneven: Dataset, tmp_path: Path
):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"saved at step \d+ of fold1; go on with `covidjax train --resume --run \S+run`"):
        trained(uneven, out, *CV, stop_after=3)
    assert not checkpoint.steps(out / "fold2", "last")
    trained(uneven, out, *CV, resume=True)
    for member in folder.member_folders(out):
        assert_same_bits(saved(alone[0] / member.name), saved(member))


@pytest.mark.slow
def test_ensemble_by_the_command(uneven: Dataset, tmp_path: Path):
    settings = [word for setting in (*SETTINGS, "train.ensemble=2") for word in ("--set", setting)]
    result = run("train", "--data", uneven.path, "--run", tmp_path / "run", "--seed", 7, *settings)
    assert result.exit_code == 0, result.output
    assert "member 2/2, epoch 2/2" in result.stderr
    assert "mean probabilities of the networks" in result.stdout
    members = folder.member_folders(tmp_path / "run")
    assert [folder.read_run(member).config.seed for member in members] == [7, 8]
    kernels = [load_run(member).weights.params["dense"]["kernel"] for member in members]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_ensembles_of_a_cross_validation(uneven: Dataset, tmp_path: Path):
    """Every film by the mean probabilities of the networks that it was held out from, in training and in evaluating."""
    out = tmp_path / "run"
    settings = [word for setting in (*SETTINGS, "train.ensemble=2") for word in ("--set", setting)]
    result = run("train", "--cv", "--data", uneven.path, "--run", out, "--json", *settings)
    assert result.exit_code == 0, result.output
    assert "network 6/6, epoch 2/2" in result.stderr
    found = json.loads(result.stdout)
    names = [f"fold{fold}-member{member}" for fold in range(3) for member in range(2)]
    assert [member.name for member in folder.member_folders(out)] == names == list(found["members"])
    assert [found["folds"][f"fold{fold}"]["macro"]["support"] for fold in range(3)] == list(SIZES)
    assert found["metrics"]["confusion"] == np.sum([fold["confusion"] for fold in found["folds"].values()], 0).tolist()
    accuracies = [fold["accuracy"] for fold in found["folds"].values()]
    assert found["spread"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    data = loader.load_all(uneven.source([1]))
    each = []
    for name in names[2:4]:
        loaded = load_run(out / name)
        each.append(jax.nn.softmax(make_predict(loaded.network, loaded.run.config.model)(loaded.weights, data.images)))
    assert np.abs(each[0] - each[1]).max() > 1e-3
    right = np.mean(each, 0).argmax(-1) == data.labels
    assert found["folds"]["fold1"]["accuracy"] == pytest.approx(right.mean())
    tables = (out / "report" / "tables.txt").read_text()
    for title in ("Folds, mean probabilities", "Networks, each alone", "by the networks that it was held out from"):
        assert title in tables
    again = json.loads(run("evaluate", out, "--json").stdout)
    assert again["metrics"] == found["metrics"]
    assert again["data"] == f"all 3 folds of {uneven.path}, each by the networks that it was held out from"
    assert load.describe(out) == "mean probabilities of the 6 networks of a cross-validation"
