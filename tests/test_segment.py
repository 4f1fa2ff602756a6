"""``covidjax segment`` with the phantoms' own masks, and the segmenter's weights on disk."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from test_lungs import SIZE, Perfect

from covidjax.config import Config, ModelConfig, Preprocess
from covidjax.data import synthetic
from covidjax.errors import UserError
from covidjax.lungs import geometry, segmenter
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.export import output_names
from covidjax.models import create_model
from covidjax.runs import folder as run_folder
from covidjax.runs import load, weights_file
from covidjax.runs.folder import Run

KINDS = Preprocess(32, classes=("fields", "lungs"))


@pytest.fixture
def perfect(monkeypatch):
    films = [synthetic.draw(index, size=SIZE) for index in range(6)]
    monkeypatch.setattr(segmenter, "open_segmenter", lambda *_: Perfect(films))
    return films


@pytest.fixture
def folder(perfect, tmp_path):
    """Six phantoms, two of them alike but for the ending, one that is no film and one with nothing on it."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    for index, film in enumerate(perfect):
        name = ("a.png", "a.bmp", "b.png", "deep/a.png", "deep/c.tif", "d.png")[index]
        Image.fromarray(film.image).save(root / name)
    (root / "bad.png").write_text("no film")
    Image.fromarray(perfect[0].image[::-1]).save(root / "upside.png")
    return root


def rows_in(out):
    with open(out / "lungs.csv", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("output_type", ["mask", "crop", "overlay"])
def test_one_picture_for_every_film_and_a_row_for_every_file(perfect, folder, tmp_path, output_type):
    out = tmp_path / "out"
    result = run("segment", folder, "--out", out, "--output-type", output_type, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["files"], told["ok"], told["errors"]) == (8, 7, 1)
    assert told["quality"] == {"good": 6, "no lungs": 1}
    assert [stage["stage"] for stage in told["timing"]] == ["decode", "lungs", "write", "wall"]
    rows = rows_in(out)
    assert len(rows) == 8
    bad = rows[str(folder / "bad.png")]
    assert (bad["status"], bad["file"], bad["area"], bad["left"]) == ("error", "", "", "")
    assert "not an image" in bad["error"]
    files = [row["file"] for row in rows.values() if row["file"]]
    assert sorted(files) == sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    for index, name in enumerate(("a.png", "a.bmp", "b.png", "deep/a.png", "deep/c.tif", "d.png")):
        film, row = perfect[index], rows[str(folder / name)]
        expected = geometry.find_lungs(film.lungs.astype(float), SIZE, SIZE)
        assert tuple(int(row[side]) for side in ("left", "top", "right", "bottom")) == expected.box
        assert float(row["area"]) == pytest.approx(film.lungs.mean(), abs=1e-6)
        pixels = np.asarray(Image.open(out / row["file"]))
        left, top, right, bottom = expected.box
        if output_type == "mask":
            np.testing.assert_array_equal(pixels, film.lungs)
        elif output_type == "crop":
            np.testing.assert_array_equal(pixels, film.image[top:bottom, left:right])
        else:
            assert pixels.shape == (SIZE, SIZE, 3)
            assert (pixels[top, left:right] == (0, 255, 0)).all()
            inside = film.lungs.copy()
            assert (pixels[inside][:, 0] > pixels[inside][:, 1]).all()
            outside = ~film.lungs
            outside[top:bottom, left:right] = False
            np.testing.assert_array_equal(pixels[outside], film.image[outside][:, None].repeat(3, 1))
    whole = rows[str(folder / "upside.png")]
    assert (whole["quality"], whole["right"], whole["bottom"]) == ("no lungs", str(SIZE), str(SIZE))


def test_names_never_collide(tmp_path):
    names = output_names(["a.png", "x/a.png", "y/A.jpg", "z/a.png.png", "a.jpg"], [])
    assert names[:3] == ["a.png", "a.png.png", "A.jpg.png"]
    assert len({name.lower() for name in names}) == 5
    (tmp_path / "one" / "deep").mkdir(parents=True)
    found = output_names([f"{tmp_path}/one/deep/f.jpg", "g.bmp"], [tmp_path / "one"])
    assert found == [os.path.join("deep", "f.png"), "g.png"]


def test_what_cannot_be_is_said_in_one_sentence(perfect, folder, tmp_path):
    assert "does not exist" in refused("segment", tmp_path / "none", "--out", tmp_path / "o", code=2)
    assert "lies in" in refused("segment", folder, "--out", folder / "o", code=2)
    assert "No image could be read" in refused("segment", folder / "bad.png", "--out", tmp_path / "o", code=1)
    assert "--strict" in refused("segment", folder, "--out", tmp_path / "o", "--strict", code=1)
    message = refused("segment", folder, "--what", "crop", code=2)
    assert message == "The option --what is now called --output-type; use --output-type crop."
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused("segment", folder, "--out", tmp_path / "file" / "o", code=1)


def test_weights_that_are_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_file, "FOLDER", tmp_path)
    monkeypatch.setattr(segmenter, "BUNDLED", tmp_path / "lung_unet.safetensors")
    with pytest.raises(UserError, match="is not there; install covidjax again"):
        segmenter.open_segmenter("cpu")
    (tmp_path / "lung_unet.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(UserError, match="is damaged"):
        segmenter.open_segmenter("cpu")


def write(path):
    """Fresh weights, and the file of them."""
    run = Run(Config(model=ModelConfig("lung-unet")), KINDS)
    weights = create_model(run.config.model, KINDS).init(0)
    weights_file.write(path, run, [weights], "", ["nlm:1", "file:a"])
    return weights


def test_weights_come_back_rounded_to_float16(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = write(path)
    assert load.trained_on(path) == {"nlm:1", "file:a"}
    assert path.stat().st_size < 1_000_000
    restored = load.load_run(path, "cpu").weights
    assert jax.tree.structure(restored) == jax.tree.structure(weights)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(weights), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    other = create_model(ModelConfig("lung-unet"), Preprocess(32, classes=("fields",))).abstract()
    with pytest.raises(UserError, match="arrays are those of another network"):
        weights_file.networks(path, weights_file.read(path), other)


@pytest.mark.slow
def test_runtimes_agree(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "weights.safetensors"
    write(path)
    images = np.stack([synthetic.draw(index, size=32).image for index in range(8)])[..., None]
    results = {}
    for runtime in ("jax", "openvino", "onnxruntime"):
        opened = segmenter.open_segmenter("cpu", runtime, path)
        assert opened.size == 32
        results[runtime], _ = opened.segment(images)
        assert results[runtime].shape == (8, 32, 32)
    for found in results.values():
        np.testing.assert_allclose(found, results["jax"], atol=1e-5)


def test_score_cuts_out_the_lungs_as_prepare_did(perfect, folder, tmp_path, monkeypatch):
    """The classifier is given the pixels that training had, and every row tells what was done."""
    from covidjax.scoring import classifier

    class Runtime:
        title = "none"
        given: list[np.ndarray] = []  # noqa: RUF012

        def __call__(self, images):
            self.given += list(images)
            return np.full((len(images), 3), 1 / 3, np.float32), np.zeros((len(images), 2), np.float32)

    runtime = Runtime()
    monkeypatch.setattr(load, "read_run", lambda _: Run(Config(), Preprocess(32, "mask")))
    monkeypatch.setattr(load, "describe", lambda _: "last checkpoint, step 1")
    monkeypatch.setattr(classifier, "open_runtime", lambda *_, **__: runtime)
    monkeypatch.setattr(classifier, "open_segmenter", lambda *_: Perfect(perfect))
    monkeypatch.setattr(load, "digests", lambda _: ["1" * 64])
    monkeypatch.setattr(load, "trust", lambda _: {})
    monkeypatch.setattr(load, "licence", lambda _: "")
    monkeypatch.setattr(run_folder, "unfinished", lambda _: "")
    options = ("--checkpoint", tmp_path, "--gate", "off")
    result = run("score", folder, *options, "--output", tmp_path / "rows.csv", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert "Lungs: mask, as in training, by perfect masks." in result.stderr
    assert "other lung masks than the run was trained with" in result.stderr  # it says nothing of its own
    assert "On 1 of them no plausible lungs were found" in result.stderr
    assert "lungs" in result.stdout  # the stage
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-3:] == ["error", "warning", "lungs"]
    told = {os.path.relpath(row["path"], folder): row["lungs"] for row in rows}
    assert told.pop("upside.png") == "whole film: no lungs"
    assert told.pop("bad.png") == ""
    assert set(told.values()) == {"mask"}
    expected = list(lung_stream.read_lungs([row["path"] for row in rows], Preprocess(32, "mask"), Perfect(perfect)))
    images = [film.image for film in expected if film.image is not None]
    np.testing.assert_array_equal(runtime.given[: len(images)], images)
    assert "whole film: no lungs" in run("score", folder, *options).stdout


def test_the_bundled_segmenter(tmp_path):
    """It finds the phantoms' lungs, trusts nothing on what is no chest, and passes on what a DICOM file says of itself."""
    import pydicom
    import sklearn.datasets

    root = tmp_path / "in"
    root.mkdir()
    drawn = [synthetic.draw(index, size=256) for index in range(4)]
    for index, film in enumerate(drawn):
        Image.fromarray(film.image).save(root / f"{index}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)).save(root / "noise.png")
    Image.fromarray(np.rot90(drawn[0].image)).save(root / "turned.png")
    shutil.copy(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg", root)
    shutil.copy(Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm", root)
    result = run("segment", root, "--out", tmp_path / "out", "--runtime", "jax")
    assert result.exit_code == 0, result.output
    assert "3 of them with a warning" in result.stderr
    rows = {Path(path).name: row for path, row in rows_in(tmp_path / "out").items()}
    for index, film in enumerate(drawn):
        assert rows[f"{index}.png"]["quality"] == "good"
        found = np.asarray(Image.open(tmp_path / "out" / f"{index}.png")) > 0
        assert 2 * (found & film.lungs).sum() / (found.sum() + film.lungs.sum()) > 0.8
    for name in ("noise.png", "turned.png", "flower.jpg"):
        assert rows[name]["quality"] != "good"
    assert "CT" in rows["CT_small.dcm"]["warning"]
    unsure = [name for name, row in rows.items() if "unsure" in row["warning"]]
    assert "noise.png" in unsure
    assert not {f"{index}.png" for index in range(4)} & set(unsure)


def test_what_comes_with_the_bundled_weights():
    card = segmenter.BUNDLED.with_suffix(".md").read_text()
    assert segmenter.BUNDLED.stat().st_size < 1_000_000
    assert {key.partition(":")[0] for key in load.trained_on(segmenter.BUNDLED)} == {"nlm", "ieee8023"}
    assert hashlib.sha256(segmenter.BUNDLED.read_bytes()).hexdigest() in card
    for licence in ("CC BY-NC-SA 4.0", "CC BY 4.0"):
        assert licence in card


@pytest.mark.slow
def test_held_out_films_of_real_people(shared_data):
    """What the card states, within what rounding moves."""
    from bench.harness import Options
    from bench.lungs import masks

    found = masks(Options())[1]
    assert found["lungs_dice_fields"] == pytest.approx(0.962, abs=2e-3)
    assert found["lungs_dice_lungs"] == pytest.approx(0.960, abs=2e-3)
