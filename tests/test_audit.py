"""The audit: what tells classes apart besides the lungs, copies and contradictions, what a run relies on."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from scipy.stats.contingency import association
from sklearn.metrics import roc_auc_score

from covidjax.config import Preprocess
from covidjax.data import synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.images import decode
from covidjax.labels import CLASSES
from covidjax.lungs.segmenter import open_segmenter
from covidjax.trust import audit, audit_classes, audit_images, told
from covidjax.trust.audit_images import SIDE, AuditImages
from covidjax.trust.copies import find_copies


def phantoms(count: int, size: int = 112, sources: int = 1) -> AuditImages:
    """Synthetic X-rays, whose classes differ in the lungs alone; sources take turns, patient by patient."""
    images = list(synthetic.draw_images(count, seed=3, size=size))
    patients = np.unique([image.patient for image in images], return_inverse=True)[1]
    return AuditImages(
        np.stack([image.image for image in images]),
        CLASSES,
        np.asarray([image.label for image in images]),
        tuple(f"source{number}" for number in range(sources)),
        patients % sources,
        patients,
        patients % 5,
        np.arange(count),
        [f"{number}.png" for number in range(count)],
        ["" for _ in images],
    )


@pytest.fixture(scope="module")
def images() -> AuditImages:
    return phantoms(180)


@pytest.fixture(scope="module")
def masks(images: AuditImages) -> tuple[np.ndarray, np.ndarray]:
    """The true lungs."""
    lungs = [image.lungs for image in synthetic.draw_images(len(images), seed=3, size=SIDE)]
    return np.stack(lungs), np.ones(len(images), bool)


# Association


def test_cramers_v_is_without_bias():
    assert audit.cramers_v(np.diag([50, 50, 50])) == pytest.approx(1)
    assert audit.cramers_v(np.full((3, 2), 40)) == 0
    assert audit.cramers_v(np.asarray([[10, 20]])) == 0
    assert audit.cramers_v(np.asarray([[10, 20, 0], [30, 5, 0], [0, 0, 0]])) > 0.3
    large = np.asarray([[40, 10, 30], [10, 60, 20]]) * 1000  # where the bias is next to nothing
    assert audit.cramers_v(large) == pytest.approx(association(large, "cramer"), abs=1e-3)
    # Bergsma 2013, section 3: of independent variables the corrected value has no bias, the usual one has.
    rng = np.random.default_rng(0)
    tables = [np.bincount(rng.integers(0, 16, 60), minlength=16).reshape(4, 4) for _ in range(200)]
    usual = [association(table, "cramer") for table in tables]
    assert np.mean([audit.cramers_v(table) for table in tables]) < 0.07 < 0.2 < np.mean(usual)


def test_source_and_class(images: AuditImages):
    one = audit.source_and_class(images)
    assert (one.status, one.details["cramers_v"]) == ("not applicable", 0)
    apart = replace(images, source_names=("a", "b", "c"), sources=images.labels)
    check = audit.source_and_class(apart)
    assert check.status == "fail" and "nearly one" in check.sentence
    assert check.details["table"]["a"] == {CLASSES[0]: 60, CLASSES[1]: 0, CLASSES[2]: 0}
    assert audit.source_and_class(phantoms(60, 32, sources=2)).status == "pass"


# Telling


def test_auroc_is_scikit_learns_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), np.round(rng.normal(size=300), 1)  # with ties
    value, influence = told._auroc(scores, labels == 1)
    assert value == pytest.approx(roc_auc_score(labels, scores))
    assert influence[labels == 1].sum() == pytest.approx(0, abs=1e-9)
    covered, truth = 0, 0.7602  # of two normal distributions a standard deviation apart
    for _ in range(200):
        labels = np.repeat(rng.integers(0, 2, 80), 2)  # two images a patient, which are alike
        person = np.repeat(rng.normal(size=80), 2) * 0.9 + rng.normal(size=160) * (1 - 0.81) ** 0.5
        scores = np.stack([-(person + labels), person + labels], 1)
        result = told._told(scores, labels, ("a", "b"), np.repeat(np.arange(80), 2), 1)
        low, high = result.per_class["b"].interval
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_what_is_there_is_told_and_what_is_not_is_not():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 2)
    labels = patients % 3
    noise = rng.normal(size=(200, 30)) + rng.normal(size=(100, 30)).repeat(2, 0)  # which tells patients, not classes
    for kind in ("linear", "places", "forest"):
        (nothing,) = told.tell([(kind, noise)], labels, CLASSES, patients)
        assert nothing.macro.bound < 0.6 and all(auroc.bound < 0.6 for auroc in nothing.per_class.values())
        marked = noise.copy()
        marked[labels == 1, 4] += 8
        (result,) = told.tell([(kind, marked)], labels, CLASSES, patients)
        assert result.per_class[CLASSES[1]].value > 0.99 and result.per_class[CLASSES[1]].bound > 0.8
        (constant,) = told.tell([(kind, np.ones((200, 2)))], labels, CLASSES, patients)
        assert constant.macro.value == 0.5


# Border and what lies outside the lungs


def test_classes_that_differ_in_the_lungs_alone_pass(images: AuditImages, masks: tuple[np.ndarray, np.ndarray]):
    assert audit_classes.class_from_frame(images, *masks).status == "pass"
    assert audit_classes.class_without_lungs(images, *masks).status == "pass"


PLACES: dict[str, Callable[[np.random.Generator], tuple[int, int]]] = {
    "corner": lambda rng: (2, 2),
    "spine": lambda rng: (30, 53),
    "lower corner": lambda rng: (103, 103),  # where it is no brighter, nor darker, than all else
    "anywhere on the border": lambda rng: (int(rng.integers(0, 106)), int(rng.choice((1, 105)))),
}


@pytest.mark.parametrize(
    ("place", "tone"), [("corner", 255), ("spine", 255), ("anywhere on the border", 0), ("lower corner", 128)]
)
def test_a_mark_of_12_pixels_in_224_is_seen(
    images: AuditImages, masks: tuple[np.ndarray, np.ndarray], place: str, tone: int
):
    pixels, rng = images.pixels.copy(), np.random.default_rng(0)
    for row in np.flatnonzero(images.labels == 2):
        top, left = PLACES[place](rng)
        pixels[row, top : top + 6, left : left + 6] = tone
    marked = replace(images, pixels=pixels)
    check = audit_classes.class_without_lungs(marked, *masks)
    assert check.status == "fail" and check.details["highest"]["class"] == CLASSES[2]
    if place != "spine":
        assert audit_classes.class_from_frame(marked, *masks).status == "fail"


def test_a_mark_in_one_of_two_sources_is_seen_there(masks: tuple[np.ndarray, np.ndarray]):
    images = phantoms(180, sources=2)
    pixels = images.pixels.copy()
    pixels[(images.labels == 0) & (images.sources == 1), 2:8, 100:106] = 255
    check = audit_classes.class_from_frame(replace(images, pixels=pixels), *masks)
    assert check.status == "fail" and check.details["highest"] == {"source": "source1", "class": CLASSES[0]}


def test_where_each_class_has_its_source_nothing_is_said_beyond_that(
    images: AuditImages, masks: tuple[np.ndarray, np.ndarray]
):
    apart = replace(images, source_names=("a", "b", "c"), sources=images.labels)
    check = audit_classes.class_from_frame(apart, *masks)
    assert check.status == "not applicable" and "No source holds two classes" in check.sentence


def test_no_lungs_no_blacking_out(images: AuditImages, masks: tuple[np.ndarray, np.ndarray]):
    check = audit_classes.class_without_lungs(images, masks[0], np.zeros(len(images), bool))
    assert check.status == "not applicable"


# Files and people


def rows_of(images: AuditImages, **columns: Callable[[int], str]) -> list[dict[str, str]]:
    usual = {"width": "224", "height": "224", "bits": "8", "format": "PNG"}
    return [
        usual | {name: text(row) for name, text in columns.items()} | {"name": name}
        for row, name in enumerate(images.names)
    ]


def test_class_from_the_file(images: AuditImages):
    assert audit_classes.class_from_file(images, rows_of(images)).status == "pass"
    sizes = rows_of(images, width=lambda row: str(300 if images.labels[row] == 1 else 224))
    assert audit_classes.class_from_file(images, sizes).status == "fail"
    formats = rows_of(images, format=lambda row: "JPEG" if images.labels[row] else "PNG")
    assert audit_classes.class_from_file(images, formats).status == "fail"
    assert audit_classes.class_from_file(images, None).status == "not applicable"


def test_class_from_the_person(images: AuditImages):
    assert audit_classes.class_from_person(images, rows_of(images)).status == "not applicable"
    children = rows_of(images, age=lambda row: str(5 + row % 7 if images.labels[row] == 1 else 50 + row % 30))
    check = audit_classes.class_from_person(images, children)
    assert check.status == "fail" and "from age alone" in check.sentence
    views = rows_of(images, view=lambda row: "AP" if images.labels[row] == 0 else "PA", sex=lambda row: "MF"[row % 2])
    assert "sex and projection alone" in audit_classes.class_from_person(images, views).sentence
    mixed = rows_of(images, age=lambda row: str(20 + images.patients[row] * 37 % 60))
    assert audit_classes.class_from_person(images, mixed).status == "pass"


# Copies


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def cropped(pixels: np.ndarray, left: float, right: float, top: float, bottom: float) -> np.ndarray:
    height, width = pixels.shape
    return pixels[round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)]


def changed(pixels: np.ndarray, kind: str) -> np.ndarray:
    """A copy of an image."""
    if kind == "resized":
        return np.asarray(Image.fromarray(pixels).resize((120, 130), Image.Resampling.BICUBIC))
    if kind == "brighter":
        return np.clip(pixels * 0.8 + 30, 0, 255).astype(np.uint8)
    if kind == "mirrored":
        return pixels[:, ::-1]
    edges = {"every side": (0.05, 0.05, 0.05, 0.05), "one side": (0.05, 0, 0, 0), "between": (0.02, 0.03, 0.01, 0.04)}
    if kind == "cropped and re-encoded":
        return jpeg(cropped(pixels, *edges["every side"]), 30)
    return jpeg(pixels, 30) if kind == "re-encoded" else cropped(pixels, *edges[kind])


KINDS = (
    *("re-encoded", "resized", "brighter", "mirrored", "every side", "one side", "between"),
    "cropped and re-encoded",
)


def test_copies_are_found_and_nothing_else():
    drawn = [image.image for image in synthetic.draw_images(60, seed=5, size=224)]
    copies = [decode.resize(changed(drawn[row], kind), 224) for row, kind in enumerate(KINDS)]
    pixels = np.stack([decode.resize(image, 128) for image in [*drawn, *copies]])
    found = {frozenset((copy.first, copy.second)): copy for copy in find_copies(pixels)}
    assert found.keys() == {frozenset((row, len(drawn) + row)) for row in range(len(KINDS))}
    assert [kind for row, kind in enumerate(KINDS) if found[frozenset((row, len(drawn) + row))].mirrored] == ["mirrored"]


def test_small_images_of_two_exposures_are_no_copies():
    drawn = [decode.resize(image.image, 64) for image in synthetic.draw_images(26, seed=11, size=224)]
    assert find_copies(np.stack(drawn)) == []


def test_one_image_or_none_has_no_copy():
    assert find_copies(np.zeros((1, 32, 32), np.uint8)) == find_copies(np.zeros((0, 32, 32), np.uint8)) == []


def test_copies_across_folds_and_under_two_labels_fail(images: AuditImages):
    few = np.arange(40)
    parts = {name: getattr(images, name)[few].copy() for name in ("labels", "sources", "patients", "folds", "numbers")}
    some = replace(images, pixels=images.pixels[few].copy(), names=images.names[:40], digests=[""] * 40, **parts)
    clean = audit.copies(some)
    assert (clean.status, clean.details["pairs"]) == ("pass", 0)
    some.pixels[20] = jpeg(some.pixels[3], 75)
    some.folds[20], some.labels[20] = some.folds[3], some.labels[3]
    listed = audit.copies(some)
    assert (listed.status, listed.details["pairs"]) == ("pass", 1)
    some.folds[20] = some.folds[3] + 1
    assert audit.copies(some).status == "fail" and audit.copies(some).details["across_folds"] == 1
    some.folds[20], some.labels[20] = some.folds[3], (some.labels[3] + 1) % 3
    check = audit.copies(some)
    assert check.status == "fail" and check.details["contradictions"] == 1
    (copy,) = check.details["copies"]
    assert {copy["first"]["name"], copy["second"]["name"]} == {"3.png", "20.png"} and len(check.pictures) == 1


def test_files_of_one_digest_are_copies_however_many(images: AuditImages):
    few = 12
    parts = {name: getattr(images, name)[:few] for name in ("pixels", "labels", "sources", "patients", "folds", "numbers")}
    same = replace(images, names=images.names[:few], digests=["a"] * few, **parts)
    assert audit.copies(same).details["pairs"] == few - 1


# The command


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty patients' X-rays, two each, in five folds."""
    folder = tmp_path_factory.mktemp("audited")
    synthetic.write_images(folder / "films", 60, size=96)
    prepare([folder / "films"], folder / "data", Options(Preprocess(image_size=96)))
    return folder / "data"


def test_the_command_passes_the_synthetic_sample(dataset: Path, tmp_path: Path):
    result = run("audit", dataset, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(lines) == len(found["checks"]) == 7 and found["passed"]
    page = (tmp_path / "out" / "audit.html").read_text()
    for line, check in zip(lines, found["checks"], strict=True):
        assert check["sentence"] in line and check["sentence"].endswith(".")
        assert check["title"] in page
    assert "phantom" not in page and 'src="http' not in page and 'src="data:image/png' in page


def test_the_command_fails_where_a_check_does_and_names_no_patient(dataset: Path, tmp_path: Path):
    films = tmp_path / "films"
    shutil.copytree(dataset.parent / "films", films)
    first, second = sorted((films / CLASSES[0]).iterdir())[:2]
    shutil.copy(first, films / CLASSES[1] / "Mueller_Hans.png")
    for file in (films / CLASSES[2]).iterdir():
        pixels = np.array(Image.open(file))
        pixels[2:7, 2:7] = 255
        Image.fromarray(pixels).save(file)
    prepare([films], tmp_path / "data", Options(Preprocess(image_size=96), duplicates="keep"))
    result = run("audit", tmp_path / "data", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["class_frame"]["status"] == found["copies"]["status"] == "fail"
    assert found["copies"]["details"]["contradictions"] == 1
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Mueller" not in page and second.stem not in page
    assert not re.search(r"patient:|file:|phantom", page)


def test_the_command_with_a_run(trained: Path, prepared: Path, tmp_path: Path):
    result = run("audit", prepared, "--run", trained, "--out", tmp_path / "out")
    assert result.exit_code in (0, 1) and "What the run relies on" in result.stdout
    check = json.loads((tmp_path / "out" / "audit.json").read_text())["checks"][-1]
    assert check["name"] == "reliance"
    if check["status"] != "not applicable":
        figures = check["details"]["figures"]
        assert figures["held-out images"] == 10  # of the test fold alone
        assert all(0 <= value <= 1 for name, value in figures.items() if "share" in name or "change" in name)


def test_mistakes_are_told(prepared: Path, trained: Path, films: Path, tmp_path: Path):
    assert "is no prepared dataset; make one" in refused("audit", films, "--out", tmp_path / "out", code=2)
    assert "does not exist" in refused("audit", tmp_path / "none", "--out", tmp_path / "out", code=2)
    assert "does not exist" in refused("audit", prepared, "--run", tmp_path / "none", "--out", tmp_path / "out", code=2)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("audit", prepared, "--out", tmp_path / "file", code=1)
    other = tmp_path / "other"
    prepare([films], other, Options(Preprocess(image_size=48), folds=3))
    assert "prepared with" in refused("audit", other, "--run", trained, "--out", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


# Real X-rays


@pytest.mark.slow
@pytest.mark.parametrize("lungs", ["none", "crop"])
def test_planted_copies_among_real_x_rays(shared_data: Path, tmp_path: Path, lungs: str):
    """All of 50 re-encoded or resized copies and 50 contradictions, 19 of 20 crops, one false pair in 1,000 at most."""
    rng = random.Random(0)
    originals = [
        file for file in sorted((shared_data / "ozturk").rglob("*")) if file.suffix.lower() in (".jpg", ".png", ".jpeg")
    ]
    folders = {file.parent.name for file in originals}
    expected: dict[str, list[frozenset[str]]] = {"re-encoded": [], "cropped": [], "contradiction": []}
    for file in originals:
        (tmp_path / "films" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "films" / file.parent.name / file.name)
    kinds = {"re-encoded": ("re-encoded", "resized"), "contradiction": ("re-encoded", "resized", "brighter")}
    for number, file in enumerate(rng.sample(originals, 150)):
        group = tuple(expected)[number % 3]
        kind = rng.choice(kinds.get(group, ("every side", "one side", "between", "cropped and re-encoded")))
        others = sorted(folders - {file.parent.name})
        label = rng.choice(others) if group == "contradiction" else file.parent.name
        pixels = decode.read(file)
        copy = pixels[::2, ::2] if kind == "resized" else changed(pixels, kind)
        Image.fromarray(copy).save(tmp_path / "films" / label / f"planted{number}.png")
        expected[group].append(frozenset((file.name, f"planted{number}.png")))
    options = Options(Preprocess(224, lungs), layout="folder", duplicates="keep")  # pyright: ignore[reportArgumentType]
    prepare([tmp_path / "films"], tmp_path / "data", options)
    images = audit_images.read_images(Dataset(tmp_path / "data"))
    pairs = {frozenset((images.names[copy.first], images.names[copy.second])) for copy in find_copies(images.pixels)}
    shares = {group: np.mean([pair in pairs for pair in wanted]) for group, wanted in expected.items()}
    assert shares["re-encoded"] == shares["contradiction"] == 1 and shares["cropped"] >= 0.95, shares
    known = {frozenset(names) for names in (("00002658_001.jpg", "00002658_002.jpg"),)}
    known.add(frozenset(("E63574A7-4188-4C8D-8D17-9D67A18A1AFA.jpg", "F4341CE7-73C9-45C6-99C8-8567A5484B63.jpg")))
    others = pairs - known - {pair for wanted in expected.values() for pair in wanted}
    # Copies of one original are copies of each other.
    assert len([pair for pair in others if not any("planted" in name for name in pair)]) <= len(images) / 1000
    contradictions = [check for check in [audit.copies(images)] if check.details["contradictions"] >= 50]
    assert contradictions


@pytest.mark.slow
@pytest.mark.parametrize(("count", "seed", "size"), [(150, 0, 224), (300, 1, 112), (90, 2, 64), (324, 3, 224)])
def test_synthetic_datasets_of_any_size_pass(tmp_path: Path, count: int, seed: int, size: int):
    synthetic.write_images(tmp_path / "films", count, seed=seed)
    prepare([tmp_path / "films"], tmp_path / "data", Options(Preprocess(image_size=size)))
    checks = audit.audit(Dataset(tmp_path / "data"), open_segmenter())
    assert [check.name for check in checks if check.status == "fail"] == []
