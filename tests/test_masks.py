"""Films with lung masks: what is paired, how masks are resized, and the dataset made of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from commands import refused, run
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data import loader, readers, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.data.sample import sample_dataset
from covidjax.errors import UserError
from covidjax.images import decode


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    """Twelve phantoms of six patients, named as Montgomery's films are, with their masks; and what cannot be used."""
    root = tmp_path_factory.mktemp("masked") / "lungs"
    for index in range(12):
        film = synthetic.draw(index, size=64)
        name = f"MCUCXR_{int(film.patient[-5:]):04d}_{index}"
        save(root / "cxr" / f"{name}.png", film.image)
        save(root / "masks" / f"{name}.png", film.lungs)
    film = synthetic.draw(0, size=64)
    save(root / "cxr" / "empty.png", film.image)
    save(root / "masks" / "empty.png", np.zeros((64, 64), np.uint8))
    save(root / "cxr" / "narrow.png", film.image + 1)
    save(root / "masks" / "narrow.png", film.lungs[:, :60])
    save(root / "cxr" / "alone.png", film.image)
    save(root / "masks" / "nobodys.png", film.lungs)
    return root


@pytest.fixture(scope="module")
def pairs(lungs, tmp_path_factory):
    """The dataset made from them by the command."""
    out = tmp_path_factory.mktemp("masked") / "pairs"
    result = run("prepare", lungs, "--masks", "--out", out, "--image-size", 32, "--folds", 3)
    assert result.exit_code == 0, result.output
    return out


def ieee8023(root):
    """A film with a mask, one whose mask the metadata does not know, one without."""
    film = synthetic.draw(1, size=64)
    for name in ("a.png", "b.png", "c.png"):
        save(root / "images" / name, film.image)
    for name in ("a.png", "b.png"):
        save(root / "lung_masks" / name, film.lungs)
    (root / "metadata.csv").write_text("patientid,finding,view,modality,filename\n7,ARDS,PA,X-ray,a.png\n")
    return root


def test_pairs_are_told_by_their_names(lungs):
    found = readers.read(lungs, masks=True)
    assert found.layout == "lungs"
    assert {example.label for example in found.examples} == {"fields"}
    assert all(example.mask and example.mask.stem == example.path.stem for example in found.examples)
    patients = [example.patient for example in found.examples if example.path.name.startswith("MCU")]
    assert len(patients) == 12
    assert len(set(patients)) == 6
    assert min(patients) == "nlm:MCUCXR_0000"
    assert {"file:lungs/empty", "file:lungs/narrow"} < {example.patient for example in found.examples}
    assert +found.left_out == {"without a lung mask": 1, "lung mask without an image": 1}


def test_masks_of_ieee8023_take_films_of_any_finding_and_patients_from_its_table(tmp_path):
    found = readers.read(ieee8023(tmp_path), masks=True)
    assert [(each.path.name, each.label, each.patient, each.view) for each in found.examples] == [
        ("a.png", "lungs", "ieee8023:7", "PA"),
        ("b.png", "lungs", "series:b", ""),
    ]
    assert +found.left_out == {"without a lung mask": 1}


def test_masks_and_classes_are_not_taken_for_each_other(lungs, films, tmp_path):
    assert "add --masks" in refused("prepare", lungs, "--out", tmp_path / "a", code=1)
    assert "has no lung masks" in refused("prepare", films, "--masks", "--out", tmp_path / "a", code=1)
    with pytest.raises(UserError, match="it has no masks"):
        (tmp_path / "cxr").mkdir()
        readers.read(tmp_path, "lungs", masks=True)
    assert "leave --classes and --lungs out" in refused(
        "prepare", lungs, "--masks", "--classes", 2, "--out", tmp_path / "a", code=2
    )


def test_manifest_tells_of_pairs_and_of_what_was_skipped(lungs, pairs):
    manifest = json.loads((pairs / "manifest.json").read_text())
    assert manifest["masks"] is True
    assert manifest["classes"] == ["fields"]
    assert manifest["per_class"] == {"fields": 12}
    assert manifest["options"]["masks"] is True
    assert {entry["path"].rpartition("/")[2]: entry["reason"] for entry in manifest["skipped"]} == {
        "empty.png": "the mask is empty",
        "narrow.png": "the mask has 60×64 pixels, the image 64×64",
    }


def test_masks_come_back_as_they_lie_on_the_film(lungs, pairs):
    dataset = Dataset(pairs)
    assert dataset.masks
    seen, patients = 0, []
    for fold in range(3):
        source = dataset.source([fold])
        batch = loader.load_all(source)
        assert batch.masks is not None
        patients.append({source.texts(row, "patient")[0] for row in range(len(source))})
        for row in range(len(source)):
            name = source.texts(row, "name")[0]
            mask = np.asarray(Image.open(lungs / "masks" / name))
            expected = decode.resize(mask.astype(np.uint8) * 255, 32) >= 128
            np.testing.assert_array_equal(batch.masks[row, ..., 0], expected)
            film = decode.resize(decode.read(lungs / "cxr" / name), 32)
            np.testing.assert_array_equal(batch.images[row, ..., 0], film)
            seen += 1
    assert seen == 12
    assert not patients[0] & patients[1] and not patients[1] & patients[2] and not patients[0] & patients[2]


def test_tfds_reads_the_mask_feature(pairs):
    builder: Any = tfds.builder_from_directory(pairs)
    record = next(iter(builder.as_data_source("fold0")))
    assert record["mask"].shape == (32, 32, 1)
    assert set(np.unique(record["mask"])) == {0, 1}


def test_batches_pad_masks_as_images(pairs):
    *_, last = loader.eval_batches(Dataset(pairs).source([0, 1, 2]), 5)
    assert last.masks is not None
    assert (last.count, last.masks.shape) == (2, (5, 32, 32, 1))
    assert not last.masks[2:].any()
    assert last.masks[:2].any((1, 2, 3)).all()


def test_both_kinds_of_mask_in_one_dataset_are_stratified_by_source(tmp_path):
    for index in range(12):
        film = synthetic.draw(index, size=32)
        for folder in ("one", "two"):
            save(tmp_path / folder / "cxr" / f"{folder}{index}.png", film.image + (folder == "two"))
            save(tmp_path / folder / "masks" / f"{folder}{index}.png", film.lungs)
    third = tmp_path / "three"
    for index in range(12, 16):
        film = synthetic.draw(index, size=32)
        save(third / "images" / f"{index}.png", film.image)
        save(third / "lung_masks" / f"{index}.png", film.lungs)
    rows = "".join(f"{index},ARDS,PA,X-ray,{index}.png\n" for index in range(12, 16))
    (third / "metadata.csv").write_text(f"patientid,finding,view,modality,filename\n{rows}")
    sources = [tmp_path / "one", tmp_path / "two", third]
    manifest = prepare(sources, tmp_path / "out", Options(Preprocess(32), folds=4, masks=True))
    assert manifest["classes"] == ["fields", "lungs"]
    assert manifest["per_source"] == {"one": {"fields": 12}, "two": {"fields": 12}, "three": {"lungs": 4}}
    assert all(fold == {"fields": 6, "lungs": 1} for fold in manifest["per_fold"].values())


def test_masks_as_other_programs_write_them(tmp_path):
    film = synthetic.draw(0, size=64)
    for name, scale in (("one.png", 1), ("white.png", 255)):
        save(tmp_path / name, film.lungs.astype(np.uint8) * np.uint8(scale))
        np.testing.assert_array_equal(decode.read_mask(tmp_path / name, 64, (64, 64)), film.lungs)
    twice = decode.read_mask(tmp_path / "one.png", 32, (128, 128))
    blocks = film.lungs.reshape(32, 2, 32, 2).mean((1, 3))
    assert (twice[blocks == 1] == 1).mean() > 0.97
    assert (twice[blocks == 0] == 0).mean() > 0.97


def test_sample_has_masks_too(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path))
    dataset = sample_dataset(32, 30, masks=True)
    assert dataset.masks
    assert dataset.preprocess.classes == ("fields",)
    source = dataset.source(range(5))
    batch = loader.load_all(source)
    assert batch.masks is not None
    for row in range(3):
        film = synthetic.draw(int(source.texts(row, "name")[0].rpartition("-")[2]), size=32)
        np.testing.assert_array_equal(batch.masks[row, ..., 0], film.lungs)
