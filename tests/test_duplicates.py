"""Films that several collections hold: found by their look, dropped or kept together, counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data import duplicates, readers, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.data.readers.base import Example
from covidjax.errors import UsageError, UserError
from covidjax.images.formats import Limits
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


def examples(paths: list[Path], *sources: str, label: str = "COVID-19") -> list[Example]:
    """An example for each path, of a patient of its own."""
    return [
        Example(path, label, f"file:{path}", source) for path, source in zip(paths, sources or repeat("s"), strict=False)
    ]


def test_reencoded_and_resized_films_look_alike_and_others_do_not(tmp_path: Path):
    paths = [draw(tmp_path / f"a{index}.jpg", index) for index in range(12)]
    paths += [draw(tmp_path / f"b{index}.jpg", index, 97, 60) for index in (3, 7)]
    (tmp_path / "broken.png").write_text("no film")
    paths.append(tmp_path / "broken.png")
    told = []
    pairs = duplicates.compare(examples(paths), progress=lambda *done: told.append(done)).pairs
    assert list(pairs) == [(3, 12), (7, 13)]
    assert told[-1] == (15, 15)
    assert duplicates.compare(examples(paths[-1:])) == ({}, {})


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
    assert manifest["options"]["duplicates"] == "refuse"


def test_copies_that_are_kept_are_one_patient(overlapping: list[Path], tmp_path: Path):
    manifest = prepare(overlapping, tmp_path / "out", Options(SMALL, folds=3, duplicates="keep"))
    assert (manifest["images"], manifest["patients"]) == (36, 30)
    folds = names(tmp_path / "out")
    for index in range(12, 18):
        assert folds[f"x{index}.jpg"] == folds[f"y{index}.jpg"]


def test_one_source_without_duplicates_is_taken_as_it_is(overlapping: list[Path], tmp_path: Path):
    manifest = prepare(overlapping[:1], tmp_path / "out", Options(SMALL, folds=3))
    assert (manifest["images"], manifest["patients"], manifest["near_duplicates"]) == (18, 18, 0)


def test_near_duplicates_within_one_source_are_taken_as_one_patient(tmp_path: Path):
    """As re-encoded copies, resized ones and ones of a slightly other brightness are."""
    source = folder(tmp_path / "one", range(9), 160, "x")
    for index in range(9):
        draw(source / CLASSES[index % 3] / f"copy{index}.jpg", index, 120, 70)
    manifest = prepare([source], tmp_path / "out", Options(SMALL, folds=3))
    assert (manifest["images"], manifest["patients"], manifest["near_duplicates"]) == (18, 9, 9)
    folds = names(tmp_path / "out")
    assert all(folds[f"x{index}.jpg"] == folds[f"copy{index}.jpg"] for index in range(9))


def test_many_copies_of_an_image_make_few_pairs(tmp_path: Path):
    paths = [Path(shutil.copy(draw(tmp_path / "a.jpg", 1), tmp_path / f"{copy}.jpg")) for copy in range(40)]
    prints = duplicates.compare(examples([tmp_path / "a.jpg", *paths]))
    assert set(prints.pairs) == {(0, row) for row in range(1, 41)}
    assert len(set(prints.digests.values())) == 1


def test_pairs_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch):
    hashes = np.random.default_rng(0).random((50, 256)) < 0.5
    hashes[[7, 31, 49]] = hashes[[3, 30, 0]]
    hashes[31, :20] ^= True
    hashes[49, :31] ^= True  # one bit too many
    expected = {(3, 7): 0, (30, 31): 20}
    assert duplicates.alike(hashes) == expected
    monkeypatch.setattr(duplicates, "_BLOCK", 60)
    assert duplicates.alike(hashes) == expected


def two_labels(root: Path) -> Path:
    """A folder with one film as it is under two classes, and another re-encoded."""
    source = folder(root, range(12), 160, "x")
    shutil.copy(source / CLASSES[0] / "x0.jpg", source / CLASSES[1] / "same.jpg")
    draw(source / CLASSES[2] / "alike.jpg", 1, 128, 70)
    return source


def test_an_image_under_two_labels_is_refused_by_one_sentence_that_lists_it(tmp_path: Path):
    source = two_labels(tmp_path / "films")
    message = refused("prepare", source, "--out", tmp_path / "out", "--image-size", 32, "--folds", 3, code=1)
    assert message.startswith("2 images stand under several labels: ")
    for part in ("COVID-19/x0.jpg (COVID-19)", "No-Findings/same.jpg (No-Findings)", "Pneumonia/alike.jpg (Pneumonia)"):
        assert part in message
    assert "--duplicates drop" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("choice", "images", "patients"), [("drop", 10, 10), ("keep", 14, 12)])
def test_images_under_two_labels_are_dropped_or_taken_and_listed(tmp_path: Path, choice: str, images: int, patients: int):
    words = ("--image-size", 32, "--folds", 2, "--duplicates", choice, "--json")
    result = run("prepare", two_labels(tmp_path / "films"), "--out", tmp_path / "out", *words)
    manifest = json.loads(result.stdout)
    assert (manifest["images"], manifest["patients"]) == (images, patients)
    assert Counter(entry["image"] for entry in manifest["contradictions"]) == {"0": 2, "1": 2}
    assert "Same image under several labels: 4 files" in result.stderr
    left_out = {"the same image under several labels": 4} if choice == "drop" else {}
    assert manifest["left_out"] == {"films": left_out}


def test_an_image_under_two_labels_in_two_sources_is_refused_too(tmp_path: Path):
    sources = [folder(tmp_path / "one", range(9), 160, "x"), folder(tmp_path / "two", range(9, 18), 160, "y")]
    draw(sources[1] / CLASSES[1] / "other.jpg", 0, 128)
    with pytest.raises(UserError, match="1 image stands under several labels"):
        prepare(sources, tmp_path / "out", Options(SMALL, folds=3))


def test_nothing_is_dropped_by_its_name_alone(tmp_path: Path):
    """Cut to the lungs an image is no copy by its look; its published name tells whose it is."""
    ozturk, cohen = tmp_path / "ozturk", tmp_path / "cohen"
    rows = ["patientid,finding,view,modality,filename"]
    for index in range(4):
        draw(ozturk / "Covid-19" / f"case{index}.jpg", index)
        draw(ozturk / "No_findings" / f"{index:08d}_000.jpg", 20 + index)
        draw(ozturk / "Pneumonia" / f"{40 + index:08d}_000.jpg", 40 + index)
        path = draw(cohen / "images" / f"case{index}.jpg", index)
        Image.open(path).crop((40, 40, 120, 120)).save(path)
        rows.append(f"{index},COVID-19,PA,X-ray,{path.name}")
    (cohen / "metadata.csv").write_text("\n".join(rows))
    manifest = prepare([ozturk, cohen], tmp_path / "out", Options(SMALL, folds=2))
    assert (manifest["images"], manifest["patients"], manifest["duplicates_dropped"]) == (16, 12, {})


def test_synthetic_films_are_neither_copies_nor_contradictions(tmp_path: Path):
    """More alike than real ones as they are."""
    synthetic.write_images(tmp_path / "films", 300)
    manifest = prepare([tmp_path / "films"], tmp_path / "out", Options(SMALL))
    assert (manifest["images"], manifest["patients"], manifest["contradictions"]) == (300, 150, [])


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


@pytest.mark.slow
def test_of_two_sources_of_synthetic_films_none_is_dropped(tmp_path: Path):
    """Though the hashes of some differ in few bits: their pixels do not agree."""
    for seed in (0, 1):
        synthetic.write_images(tmp_path / f"seed{seed}", 300, seed=seed)
    sources = [tmp_path / "seed0", tmp_path / "seed1"]
    films = [each for source in sources for each in readers.read(source).examples]
    hashes = np.stack([found[1] for each in films if (found := duplicates._fingerprint(each.path, Limits()))])
    apart = [pair for pair in duplicates.alike(hashes) if films[pair[0]].source != films[pair[1]].source]
    assert len(apart) > 5
    manifest = prepare(sources, tmp_path / "out", Options(SMALL))
    assert (manifest["images"], manifest["patients"]) == (600, 300)


def test_command_has_the_choice(overlapping: list[Path], tmp_path: Path):
    words = ("prepare", *overlapping, "--image-size", 32, "--folds", 3, "--json", "--out")
    assert json.loads(run(*words, tmp_path / "a").stdout)["images"] == 30
    assert json.loads(run(*words, tmp_path / "b", "--duplicates", "keep").stdout)["images"] == 36
    message = refused(*words, tmp_path / "c", "--copies", "keep", code=2)
    assert message == "The option --copies is now called --duplicates; use --duplicates keep."


@pytest.mark.slow
def test_measured_basis_of_the_threshold(shared_data: Path):
    """What stands beside MOST_BITS."""
    films = [each for name in ("ozturk", "ieee8023", "radiography") for each in readers.read(shared_data / name).examples]
    hashes = np.stack([found[1] for each in films if (found := duplicates._fingerprint(each.path, Limits()))])
    assert len(hashes) == len(films) == 4545
    signs = np.where(hashes, 1, -1).astype(np.float32)
    different = (256 - signs @ signs.T) / 2
    keys, sources = (np.asarray([getattr(each, what) for each in films]) for what in ("image_key", "source"))
    row, other = np.triu_indices(len(films), 1)
    bits, published = different[row, other], (keys[row] == keys[other]) & (keys[row] != "")
    named = np.sort(bits[published & (sources[row] != sources[other])])
    assert len(named) == 459
    assert (np.count_nonzero(named <= 6), named[340], named[341]) == (339, 26, 58)
    unnamed = bits[~published]
    assert np.count_nonzero(unnamed <= duplicates.MOST_BITS) == np.count_nonzero(unnamed <= 22) == 48
    assert unnamed[unnamed > 22].min() == 38
    patients, labels = (np.asarray([getattr(each, what) for each in films]) for what in ("patient", "label"))
    within = bits[(sources[row] == sources[other]) & (patients[row] != patients[other])]
    assert (np.count_nonzero(within <= duplicates.MOST_BITS), np.count_nonzero(within <= duplicates.SAME_BITS)) == (13, 12)
    assert not np.any((bits <= duplicates.MOST_BITS) & (labels[row] != labels[other]))
