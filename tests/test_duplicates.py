"""Films that several collections hold: found by their look, dropped or kept together, counted."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data import duplicates, readers, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.errors import UsageError
from covidjax.labels import CLASSES

SMALL = Preprocess(image_size=32)


def draw(path: Path, index: int, size: int = 160, quality: int = 90) -> Path:
    """A phantom as JPEG, drawn at 256 pixels and shrunk, as collections shrink films."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(synthetic.draw(index, size=256).image).resize((size, size)).save(path, quality=quality)
    return path


def folder(root: Path, indices: range, size: int, prefix: str) -> Path:
    """A folder of phantoms by class; their names tell nothing."""
    for index in indices:
        draw(root / CLASSES[index % 3] / f"{prefix}{index}.jpg", index, size)
    return root


def test_reencoded_and_resized_films_look_alike_and_others_do_not(tmp_path: Path):
    paths = [draw(tmp_path / f"a{index}.jpg", index) for index in range(12)]
    paths += [draw(tmp_path / f"b{index}.jpg", index, 97, 60) for index in (3, 7)]
    (tmp_path / "broken.png").write_text("no film")
    paths.append(tmp_path / "broken.png")
    told = []
    pairs = duplicates.near_duplicates(paths, progress=lambda *done: told.append(done))
    assert pairs == [(3, 12), (7, 13)]
    assert told[-1] == (15, 15)
    assert duplicates.near_duplicates(paths[-1:]) == []


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of 18 films each, of which the last 6 and the first 6 are the same, at another size."""
    root = tmp_path_factory.mktemp("overlapping")
    return [folder(root / "one", range(18), 160, "x"), folder(root / "two", range(12, 30), 128, "y")]


def names(dataset: Path) -> dict[str, set[int]]:
    """Film name → folds."""
    opened = Dataset(dataset)
    found = defaultdict(set)
    for fold in range(opened.folds):
        source = opened.source([fold])
        for row in range(len(source)):
            found[source.texts(row, "name")[0]].add(fold)
    return found


def test_merged_folders_hold_every_film_once(overlapping: list[Path], tmp_path: Path):
    manifest = prepare(overlapping, tmp_path / "out", Options(SMALL, folds=3))
    assert manifest["images"] == 30
    assert manifest["near_duplicates"] == 6
    assert manifest["left_out"] == {"one": {}, "two": {"a copy of an image of one": 6}}
    assert manifest["duplicates_dropped"] == {"two": 6}
    assert {name for name in names(tmp_path / "out") if name.startswith("y")} == {
        f"y{index}.jpg" for index in range(18, 30)
    }
    assert manifest["options"]["duplicates"] == "drop"


def test_copies_that_are_kept_are_one_patient(overlapping: list[Path], tmp_path: Path):
    manifest = prepare(overlapping, tmp_path / "out", Options(SMALL, folds=3, duplicates="keep"))
    assert (manifest["images"], manifest["patients"]) == (36, 30)
    folds = names(tmp_path / "out")
    for index in range(12, 18):
        assert folds[f"x{index}.jpg"] == folds[f"y{index}.jpg"]


def test_one_source_is_taken_as_it_is(overlapping: list[Path], tmp_path: Path):
    manifest = prepare(overlapping[:1], tmp_path / "out", Options(SMALL, folds=3))
    assert (manifest["images"], manifest["near_duplicates"]) == (18, 0)


def test_patients_are_joined_by_a_copy_that_is_dropped(tmp_path: Path):
    """A film of one's own is a copy of one of a published patient with a second film: all three are of one patient."""
    own, nih = folder(tmp_path / "own", range(9), 160, "x"), tmp_path / "nih"
    for index in range(9, 15):
        draw(nih / CLASSES[index % 3] / f"{index:08d}_000.png", index, 128)
    draw(nih / CLASSES[0] / "00000001_000.png", 0, 128)  # a copy of x0
    draw(nih / CLASSES[0] / "00000001_001.png", 21, 128)
    prepare([own, nih], tmp_path / "out", Options(SMALL, folds=3))
    folds = names(tmp_path / "out")
    assert "00000001_000.png" not in folds
    assert folds["00000001_001.png"] == folds["x0.jpg"]


def test_a_source_that_is_a_link_goes_by_the_links_name(overlapping: list[Path], tmp_path: Path):
    (tmp_path / "second").symlink_to(overlapping[1])
    sources, only = [overlapping[0], tmp_path / "second"], {"second": ("COVID-19",)}
    manifest = prepare(sources, tmp_path / "out", Options(SMALL, folds=3, only=only))
    assert manifest["left_out"]["second"]["class Pneumonia, not asked for"] == 6
    with pytest.raises(UsageError, match="There is no source two; the sources are called one, second"):
        prepare(sources, tmp_path / "none", Options(SMALL, folds=3, only={"two": ("COVID-19",)}))


def test_classes_of_a_source_and_limits_of_a_class(overlapping: list[Path], tmp_path: Path):
    only, limits = {"two": ("COVID-19",)}, {"COVID-19": 7, "Pneumonia": 5}
    manifest = prepare(overlapping, tmp_path / "out", Options(SMALL, folds=3, only=only, limits_by_class=limits))
    assert manifest["per_class"] == {"COVID-19": 7, "No-Findings": 6, "Pneumonia": 5}
    left = Counter(manifest["left_out"]["two"]) + Counter(manifest["left_out"]["one"])
    assert left["class Pneumonia, not asked for"] == left["class No-Findings, not asked for"] == 6
    assert left["a copy of an image of one"] == 2
    assert left["over the limit of 7 images a class"] == 10 - 7


def test_command_has_the_choice(overlapping: list[Path], tmp_path: Path):
    words = ("prepare", *overlapping, "--image-size", 32, "--folds", 3, "--json", "--out")
    assert json.loads(run(*words, tmp_path / "a").stdout)["images"] == 30
    assert json.loads(run(*words, tmp_path / "b", "--duplicates", "keep").stdout)["images"] == 36
    message = refused(*words, tmp_path / "c", "--copies", "keep", code=2)
    assert message == "The option --copies is now called --duplicates; use --duplicates keep."


@pytest.mark.slow
def test_measured_basis_of_the_threshold(shared_data: Path):
    """What stands beside MOST_BITS."""
    examples = [
        each for name in ("ozturk", "ieee8023", "radiography") for each in readers.read(shared_data / name).examples
    ]
    hashes = np.stack([found for each in examples if (found := duplicates.perceptual_hash(each.path)) is not None])
    assert len(hashes) == len(examples) == 4545
    signs = np.where(hashes, 1, -1).astype(np.float32)
    different = (256 - signs @ signs.T) / 2
    films, sources = (np.asarray([getattr(each, what) for each in examples]) for what in ("image_key", "source"))
    row, other = np.triu_indices(len(examples), 1)
    bits, published = different[row, other], (films[row] == films[other]) & (films[row] != "")
    named = np.sort(bits[published & (sources[row] != sources[other])])
    assert len(named) == 459
    assert (np.count_nonzero(named <= 6), named[340], named[341]) == (339, 26, 58)
    unnamed = bits[~published]
    assert np.count_nonzero(unnamed <= duplicates.MOST_BITS) == np.count_nonzero(unnamed <= 22) == 48
    assert unnamed[unnamed > 22].min() == 38
