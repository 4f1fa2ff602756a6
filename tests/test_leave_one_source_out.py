"""Leave-one-source-out: what is held out, trained, resumed, tested again, and said."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run

from covidjax.config import DataConfig, Preprocess, load_config
from covidjax.data import loader, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out
from covidjax.data.readers.base import Example
from covidjax.data.writer import create_dataset
from covidjax.runs import checkpoint, folder, load
from covidjax.training.cross_validation import network_configs

SOURCES = ("north", "South ward", "west")
FOLDS, SIZE = 3, 24
SETTINGS = ("train.epochs=1", "train.batch_size=8")


def write_dataset(out: Path, sources: tuple[str, ...] = SOURCES) -> Dataset:
    """A dataset of 32 × 32 pixels in three folds, 24 images of 12 patients of each source. The first patient of each fold
    is in all sources; west has no Pneumonia."""
    films = iter(synthetic.draw_images(SIZE * len(sources), size=32))
    with create_dataset(out, Preprocess(image_size=32), FOLDS) as writer:
        for fold in range(FOLDS):
            for source in sources:
                for number in range(SIZE // FOLDS):
                    name = f"{source}-{fold}-{number}.png"
                    patient = f"shared:{fold}" if number < 2 else f"{source}:{fold}-{number // 2}"
                    label = synthetic.CLASSES[number % (2 if source == "west" else 3)]
                    digest = hashlib.sha256(name.encode()).hexdigest()
                    writer.add(fold, Example(Path(name), label, patient, source), next(films).image[..., None], digest)
        writer.close()
    return Dataset(out)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("sources") / "dataset")


@pytest.fixture(scope="module")
def left_out(sources: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Trained by the command; the run, what --json printed, and what was said."""
    out = tmp_path_factory.mktemp("loso") / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ("--cv", "--by", "source", "--val-fold", 1, "--data", sources.path, "--run", out, "--json", *settings)
    result = run("train", *words)
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout), result.stderr


def test_no_patient_of_the_left_out_source_is_trained_on(sources: Dataset):
    patients, names = (np.asarray(texts) for texts in (sources.origins.patients, sources.origins.sources))
    for source in SOURCES:
        parts = hold_out(sources, DataConfig(test_fold=2, val_fold=0, test_source=source))
        assert set(names[parts.test]) == {source}
        assert len(parts.test) == SIZE
        for rows, fold in ((parts.train, 1), (parts.val, 0), (parts.in_source, 2)):
            assert set(names[rows]) == {*SOURCES} - {source}
            assert set(sources.fold_of_rows[rows]) == {fold}
            assert not {*patients[rows]} & {*patients[parts.test]}
            assert len(rows) == 2 * (SIZE // FOLDS - 2)
        labels = loader.load_all(sources.source(range(FOLDS))).labels
        assert parts.class_counts.tolist() == np.bincount(labels[parts.train], minlength=3).tolist()
    by_fold = hold_out(sources, DataConfig(test_fold=2, val_fold=0))
    assert [{*sources.fold_of_rows[rows].tolist()} for rows in by_fold[:4]] == [{1}, {2}, {0}, set()]


def test_folders_of_sources(tmp_path: Path):
    config = load_config(None, ["train.cv=true", "train.cv_by=source", "train.ensemble=2", "data.val_fold=1"])
    names = ["a b", "a/b", "Ä", "10", "9"]
    configs = network_configs(config, 5, names)
    assert {each.data.test_source for each in configs.values()} == {*names}
    assert {(each.data.test_fold, each.data.val_fold) for each in configs.values()} == {(0, 1)}
    folders = ["source-a-b", "source-a-b-2", "source-unnamed", "source-10", "source-9"]
    assert list(configs) == [f"{name}-member{number}" for name in folders for number in range(2)]
    folder.create_run(tmp_path / "run", folder.Run(config, Preprocess()))
    for name in configs:
        folder.create_run(tmp_path / "run" / name, folder.Run(configs[name], Preprocess()))
    assert {path.name for path in folder.member_folders(tmp_path / "run")} == {*configs}


def test_every_source_is_left_out_once(left_out: tuple[Path, dict[str, Any], str], sources: Dataset):
    out, found, said = left_out
    assert list(found["members"]) == ["source-north", "source-south-ward", "source-west"]
    assert list(found["folds"]) == [*SOURCES]
    assert found["metrics"]["macro"]["support"] == SIZE * len(SOURCES)
    assert "source 3/3, epoch 1/1" in said
    # Each network is a run by itself, and the whole evaluates to its own result.
    one = json.loads(run("evaluate", out / "source-west", "--json").stdout)
    assert one["data"] == f"source west of {sources.path}"
    assert one["metrics"] == found["members"]["source-west"]["metrics"]
    again = json.loads(run("evaluate", out, "--json").stdout)
    assert again["data"] == f"all 3 sources of {sources.path}, each by the network that it was held out from"
    assert again["metrics"] == found["metrics"]
    assert load.describe(out) == "mean probabilities of the 3 sources of a cross-validation"
    keys = load.trained_on(out / "source-west")
    assert not any(key.startswith(("west:", "shared:")) for key in keys)
    assert any(key.startswith("north:") for key in keys)


def test_resuming_trains_what_is_missing_only(left_out: tuple[Path, dict[str, Any], str], tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(left_out[0], copy)
    shutil.rmtree(copy / "source-west")
    result = run("train", "--resume", "--run", copy, "--json")
    assert result.exit_code == 0, result.output
    assert "source 3/3, epoch 1/1" in result.stderr
    assert "source 2/3, epoch 1/1" not in result.stderr
    assert json.loads(result.stdout)["metrics"] == left_out[1]["metrics"]
    assert all(checkpoint.steps(member, "last") for member in folder.member_folders(copy))


def test_what_cannot_be_left_out(tmp_path: Path, sources: Dataset):
    single = write_dataset(tmp_path / "single", ("north",))
    message = refused("train", "--cv", "--by", "source", "--data", single.path, "--run", tmp_path / "run", code=2)
    assert "one source only" in message
    assert "prepare" in message
    assert not (tmp_path / "run").exists()
    assert "--cv" in refused("train", "--by", "source", "--data", sources.path, code=2)
    assert "no source east" in refused("train", "--data", sources.path, "--set", "data.test_source=east", code=2)
    words = ("--cv", "--set", "data.test_source=west")
    assert "test_source" in refused("train", "--data", sources.path, *words, code=2)


def test_a_class_of_one_source_is_named(tmp_path: Path):
    two = write_dataset(tmp_path / "two", ("north", "west"))
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    result = run("train", "--cv", "--by", "source", "--data", two.path, "--run", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.output
    assert "Only north has Pneumonia" in result.stderr
