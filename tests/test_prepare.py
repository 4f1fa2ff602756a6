"""From folders of films to a dataset on disk and back."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data import loader, synthetic, writer
from covidjax.data.dataset import Dataset
from covidjax.data.duplicates import compare
from covidjax.data.folds import assign_folds, patients_of
from covidjax.data.prepare import Options, prepare
from covidjax.data.readers.base import Example
from covidjax.data.sample import SAMPLE_VERSION, sample_dataset
from covidjax.errors import UserError
from covidjax.files import lock
from covidjax.images import decode
from covidjax.labels import CLASSES

SMALL = Preprocess(image_size=32)


def make(sources, out, *, preprocess=SMALL, folds=3, **options):
    sources = [sources] if isinstance(sources, Path) else sources
    return prepare(sources, out, Options(preprocess, folds=folds, **options))


def error_of(call, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def records_of(path):
    """(fold, record) of everything in a dataset."""
    dataset = Dataset(path)
    return [(fold, record) for fold in range(dataset.folds) for record in map_records(dataset, fold)]


def map_records(dataset, *folds):
    builder: Any = tfds.builder_from_directory(dataset.path)
    return list(builder.as_data_source("+".join(f"fold{fold}" for fold in folds)))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def folds_of_patients(path):
    folds = defaultdict(set)
    for fold, record in records_of(path):
        folds[record["patient"].decode()].add(fold)
    return folds


def three_classes(write_films, root, per_class=4):
    for label in CLASSES:
        write_films(root / label, *(f"{number}.png" for number in range(per_class)))
    return root


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy of the prepared dataset, to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "damaged"))


# What stands on disk


def test_manifest_counts_what_was_prepared(films, prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert (manifest["format"], manifest["images"], manifest["patients"]) == (2, 30, 15)
    assert (manifest["image_size"], manifest["lungs"], manifest["folds"]) == (32, "none", 3)
    assert manifest["classes"] == ["COVID-19", "No-Findings", "Pneumonia"]
    assert manifest["per_class"] == {"COVID-19": 10, "No-Findings": 10, "Pneumonia": 10}
    assert manifest["per_source"] == {"films": {"COVID-19": 10, "No-Findings": 10, "Pneumonia": 10}}
    assert manifest["sources"] == [{"name": "films", "path": str(films), "layout": "folder"}]
    assert (manifest["skipped"], manifest["left_out"], manifest["identical_files"]) == ([], {"films": {}}, 0)
    assert list(manifest["per_fold"]) == ["fold0", "fold1", "fold2"]
    assert sum(sum(counts.values()) for counts in manifest["per_fold"].values()) == 30
    assert manifest["options"] == {
        "preprocess": {
            "image_size": 32,
            "lungs": "none",
            "classes": ["COVID-19", "No-Findings", "Pneumonia"],
            "invert": "auto",
        },
        "layout": "auto",
        "group_by": "patient",
        "folds": 3,
        "seed": 0,
        "limit_per_class": None,
        "duplicates": "refuse",
        "patient_from": "auto",
        "only": {},
        "limits_by_class": {},
        "table": None,
        "mapping": {},
        "infer_classes": False,
        "keep_split": False,
        "masks": False,
        "limits": {"megapixels": 200.0, "megabytes": 512.0, "seconds": 60.0},
    }


def test_folds_are_stratified_to_within_one_patient(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    for counts in manifest["per_fold"].values():
        assert set(counts.values()) == {2, 4}  # five patients of two films each, in three folds


def test_tfds_reads_back_the_resized_pixels_and_every_field(films, prepared):
    builder: Any = tfds.builder_from_directory(prepared)
    names = builder.info.features["label"].names
    seen = set()
    for split in ("fold0", "fold1", "fold2"):
        for record in builder.as_data_source(split):
            label, name = names[record["label"]], record["name"].decode()
            path = films / label / name
            expected = decode.resize(decode.read(path), 32)[..., None]
            np.testing.assert_array_equal(record["image"], expected)
            assert record["image"].dtype == np.uint8
            assert record["patient"].decode() == path.stem.rpartition("-")[0]
            assert (record["source"], record["view"]) == (b"films", b"")
            assert record["sha256"].decode() == sha256(path.read_bytes()).hexdigest()
            seen.add(path)
    assert seen == set(films.glob("*/*.png"))


def test_dataset_knows_its_manifest_and_counts(prepared):
    dataset = Dataset(prepared)
    assert dataset.preprocess == SMALL
    assert dataset.folds == 3
    assert dataset.fingerprint == dataset.manifest["fingerprint"]
    assert len(dataset.source([0, 1, 2])) == 30
    counts = dataset.class_counts([0, 2])
    records = map_records(dataset, 0, 2)
    assert counts.tolist() == [Counter(record["label"] for record in records)[label] for label in range(3)]
    assert len(dataset.source([2])) == dataset.class_counts([2]).sum()


def test_view_of_the_collection_is_kept(write_films, tmp_path):
    root = tmp_path / "cohen"
    rows = ["patientid,finding,view,modality,filename"]
    for label in ("COVID-19", "No Finding", "Pneumonia"):
        for number in range(2):
            name = f"{label[:2]}{number}.png".lower()
            write_films(root / "images", name)
            rows.append(f"{label[0]}{number},{label},AP Supine,X-ray,{name}")
    (root / "metadata.csv").write_text("\n".join(rows))
    make(root, tmp_path / "out", folds=2)
    assert {record["view"] for _, record in records_of(tmp_path / "out")} == {b"AP Supine"}


def test_same_seed_same_dataset_and_another_seed_another(films, prepared, tmp_path):
    first = Dataset(prepared).fingerprint
    assert make(films, tmp_path / "same")["fingerprint"] == first
    assert make(films, tmp_path / "other", seed=1)["fingerprint"] != first
    assert make(films, tmp_path / "larger", preprocess=Preprocess(image_size=40))["fingerprint"] != first


def test_order_of_records_does_not_depend_on_the_number_of_workers(films, prepared, tmp_path):
    prepare([films], tmp_path / "one", Options(SMALL, folds=3), workers=1)
    for (fold, a), (other_fold, b) in zip(records_of(prepared), records_of(tmp_path / "one"), strict=True):
        assert (fold, a["sha256"]) == (other_fold, b["sha256"])


def test_two_classes_leave_the_third_out(films, tmp_path):
    manifest = make(films, tmp_path / "two", preprocess=Preprocess(32, classes=CLASSES[:2]))
    assert manifest["per_class"] == {"COVID-19": 10, "No-Findings": 10}
    assert manifest["left_out"] == {"films": {"class Pneumonia, not asked for": 10}}
    assert Dataset(tmp_path / "two").preprocess.classes == ("COVID-19", "No-Findings")


def test_limit_takes_a_random_few_of_each_class_and_counts_the_rest(films, tmp_path):
    manifest = make(films, tmp_path / "a", limit_per_class=4)
    assert manifest["per_class"] == {"COVID-19": 4, "No-Findings": 4, "Pneumonia": 4}
    assert manifest["left_out"] == {"films": {"over the limit of 4 images a class": 18}}
    make(films, tmp_path / "b", limit_per_class=4, seed=1)
    first, second = ({record["name"] for _, record in records_of(tmp_path / name)} for name in "ab")
    assert first != second


def test_progress_is_told_after_every_film(films, tmp_path):
    told = []
    prepare([films], tmp_path / "out", Options(SMALL), progress=lambda done, total: told.append((done, total)))
    steps = [progress for progress in told if progress[0]]  # before them, whose images they are is looked up
    assert steps == [(done, 60) for done in range(1, 61)]


def test_unreadable_films_are_listed_with_their_reason_and_stop_nothing(write_films, tmp_path):
    root = three_classes(write_films, tmp_path / "films")
    (root / "COVID-19" / "empty.png").touch()
    (root / "Pneumonia" / "text.png").write_text("no image")
    manifest = make(root, tmp_path / "out", folds=2)
    assert manifest["images"] == 12
    assert manifest["per_class"] == {"COVID-19": 4, "No-Findings": 4, "Pneumonia": 4}
    assert manifest["skipped"] == [
        {"path": str(root / "COVID-19" / "empty.png"), "source": "films", "reason": "the file is empty (0 bytes)"},
        {
            "path": str(root / "Pneumonia" / "text.png"),
            "source": "films",
            "reason": "not an image in a known format (DICOM, PNG, JPEG, JPEG-LS, JPEG 2000, BMP, TIFF, WebP, GIF, PNM)",
        },
    ]


def test_images_without_contrast_are_listed_and_not_trained_on(write_films, tmp_path):
    root = three_classes(write_films, tmp_path / "films")
    Image.new("L", (64, 64), 200).save(root / "COVID-19" / "blank.png")
    manifest = make(root, tmp_path / "out", folds=2)
    assert manifest["per_class"]["COVID-19"] == 4
    blank = {"path": str(root / "COVID-19" / "blank.png"), "source": "films", "reason": "next to no contrast"}
    assert manifest["skipped"] == [blank]


def test_film_whose_name_is_no_utf8_is_prepared(write_films, tmp_path):
    root = three_classes(write_films, tmp_path / "films")
    name = os.fsdecode(b"caf\xe9.png")
    write_films(root / "COVID-19", name)
    assert make(root, tmp_path / "out", folds=2)["skipped"] == []
    assert b"caf\xe9.png" in {record["name"] for _, record in records_of(tmp_path / "out")}


def test_two_sources_of_one_name_are_told_apart(write_films, tmp_path):
    roots = [three_classes(write_films, tmp_path / parent / "films") for parent in "ab"]
    manifest = make(roots, tmp_path / "out", folds=2)
    assert list(manifest["per_source"]) == ["films-1", "films-2"]
    assert (manifest["images"], manifest["patients"]) == (24, 24)


# Patients and folds


def test_no_patient_stands_in_two_folds(write_films, tmp_path):
    root = tmp_path / "films"
    for label, first in zip(CLASSES, (0, 100, 200), strict=True):
        names = [f"{first + patient:08d}_{number:03d}.png" for patient in range(6) for number in range(1 + patient % 3)]
        write_films(root / label, *names)
    manifest = make(root, tmp_path / "out")
    assert (manifest["images"], manifest["patients"]) == (36, 18)
    folds = folds_of_patients(tmp_path / "out")
    assert len(folds) == 18
    assert {len(where) for where in folds.values()} == {1}


def test_group_by_none_is_a_plain_stratified_split_that_leaks(write_films, tmp_path):
    root = tmp_path / "films"
    for label, first in zip(CLASSES, (0, 100, 200), strict=True):
        write_films(root / label, *(f"{first + film // 6:08d}_{film:03d}.png" for film in range(12)))
    assert "2 patients, fewer than 3 folds" in error_of(make, root, tmp_path / "out")
    manifest = make(root, tmp_path / "out", group_by="none")
    assert {tuple(counts.values()) for counts in manifest["per_fold"].values()} == {(4, 4, 4)}
    assert max(len(where) for where in folds_of_patients(tmp_path / "out").values()) > 1


def test_assigned_folds_keep_groups_and_differ_by_seed():
    labels = np.repeat([0, 1, 2], 40)
    patients = [f"{row // 2}" for row in range(120)]
    folds = np.asarray(assign_folds(labels, patients, CLASSES, folds=5, seed=0))
    assert (folds[::2] == folds[1::2]).all()
    assert np.bincount(folds * 3 + labels).tolist() == [8] * 15
    assert folds.tolist() == assign_folds(labels, patients, CLASSES, folds=5, seed=0)
    assert folds.tolist() != assign_folds(labels, patients, CLASSES, folds=5, seed=1)


def test_assigned_folds_without_patients_are_stratified():
    labels = np.asarray([0] * 11 + [1] * 23 + [2] * 7)
    folds = np.asarray(assign_folds(labels, None, CLASSES, folds=5, seed=3))
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def example(path, patient, film="", label="COVID-19"):
    return Example(path, label, patient, "s", image_key=film)


def test_chains_of_shared_films_and_patients_are_one_patient(tmp_path):
    def path(name):
        (tmp_path / name).write_bytes(name.encode())
        return tmp_path / name

    examples = [
        example(path("a"), "series:x", "film:1"),
        example(path("bb"), "ieee8023:7", "film:1"),
        example(path("ccc"), "ieee8023:7", "film:2"),
        example(path("dddd"), "series:y", "film:2"),
        example(path("eeeee"), "series:z", "film:3"),
        example(path("ffffff"), "file:q"),
        example(tmp_path / "missing", "file:r"),
    ]
    assert patients_of(examples, {}) == [*["ieee8023:7"] * 4, "series:z", "file:q", "file:r"]
    assert patients_of(examples, {}, [(1, 5)]) == [*["ieee8023:7"] * 4, "series:z", "ieee8023:7", "file:r"]


def test_copies_of_a_file_are_one_patient_and_are_counted(write_films, tmp_path):
    write_films(tmp_path, "a.png", "d.png")
    for name in "bc":
        shutil.copy(tmp_path / "a.png", tmp_path / f"{name}.png")
    for name in "ef":
        (tmp_path / f"{name}.png").write_bytes(b"")
    examples = [example(tmp_path / f"{name}.png", f"file:{name}") for name in "abcdef"]
    contents = compare(examples).digests
    assert patients_of(examples, contents) == [
        "file:a",
        "file:a",
        "file:a",
        "file:d",
        "file:e",
        "file:f",
    ]  # empty files are no copies
    assert sorted(contents) == [0, 1, 2]
    assert len(set(contents.values())) == 1


def test_film_that_two_collections_hold_is_in_one_fold(write_films, tmp_path):
    """ieee8023 and Ozturk by the same stem; a folder of one's own by the same bytes under another name."""
    cohen, ozturk, own = tmp_path / "cohen", tmp_path / "ozturk", tmp_path / "own"
    rows = ["patientid,finding,view,modality,filename"]
    for number in range(6):
        write_films(cohen / "images", f"case-n{number}xx.png")
        rows.append(f"{number // 2},COVID-19,PA,X-ray,case-n{number}xx.png")
        write_films(ozturk / "Covid-19", f"case-n{number}xx.jpg")  # re-encoded: other bytes
        write_films(ozturk / "No_findings", f"{number:08d}_000.png")
        write_films(ozturk / "Pneumonia", f"{100 + number:08d}_000.png")
        (own / "covid").mkdir(parents=True, exist_ok=True)
        shutil.copy(ozturk / "Covid-19" / f"case-n{number}xx.jpg", own / "covid" / f"{number}.dat.jpg")
    (cohen / "metadata.csv").write_text("\n".join(rows))
    manifest = make([cohen, ozturk, own], tmp_path / "out", duplicates="keep")
    assert manifest["images"] == 30
    assert manifest["patients"] == 3 + 12
    assert manifest["identical_files"] == 6
    folds = folds_of_patients(tmp_path / "out")
    assert {"ieee8023:0", "ieee8023:1", "ieee8023:2"} <= set(folds)
    assert {len(where) for where in folds.values()} == {1}
    films_of = Counter(record["patient"] for _, record in records_of(tmp_path / "out"))
    assert films_of[b"ieee8023:0"] == 6  # two films, three copies of each


# What cannot be prepared


def test_out_that_exists_is_left_alone(films, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    assert error_of(make, films, out) == f"{out} exists already; remove it or name another folder."
    assert names_in(out) == ["precious"]
    (tmp_path / "file").touch()
    assert "exists already" in error_of(make, films, tmp_path / "file")


def test_empty_folder_may_be_out(films, tmp_path):
    (tmp_path / "out").mkdir()
    assert make(films, tmp_path / "out")["images"] == 30
    assert len(Dataset(tmp_path / "out").source([0, 1, 2])) == 30


def test_working_folder_may_be_out_or_is_refused(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        make(films, Path())
    except UserError:
        assert names_in(tmp_path) == []
    else:
        assert (tmp_path / "manifest.json").is_file()


def test_out_below_a_file_cannot_be_written(films, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert error_of(make, films, out).startswith(f"{out} cannot be written (")
    out = tmp_path / "file" / "deeper" / "out"
    assert error_of(make, films, out).startswith(f"{out} cannot be written (")


def test_a_full_disk_is_said_with_what_mends_it(films, tmp_path, monkeypatch):
    def full(self, record):
        raise RuntimeError("UNKNOWN: File writer error; No space left on device")  # as ArrayRecord says it

    monkeypatch.setattr(writer.ArrayRecordWriter, "write", full)
    message = error_of(make, films, tmp_path / "out")
    assert "No space left on device" in message
    assert message.endswith("free some space, and give the command again.")
    assert names_in(tmp_path) == [".out.lock"] or names_in(tmp_path) == []


@pytest.mark.parametrize("group_by", ["patient", "none"])
def test_fewer_patients_than_folds_are_refused(write_films, tmp_path, group_by):
    root = three_classes(write_films, tmp_path / "films")
    what = "patients" if group_by == "patient" else "images"
    assert error_of(make, root, tmp_path / "out", folds=5, group_by=group_by) == (
        f"Class COVID-19 has 4 {what}, fewer than 5 folds; add images or use fewer --folds."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folds", [0, 1])
def test_a_single_fold_is_refused(films, tmp_path, folds):
    assert "folds" in error_of(make, films, tmp_path / "out", folds=folds)


def test_class_without_a_film_is_refused(write_films, tmp_path):
    root = write_films(tmp_path / "films", *(f"COVID-19/{number}.png" for number in range(4)))
    assert "There is no image of class No-Findings;" in error_of(make, root, tmp_path / "out", folds=2)


def test_no_film_of_any_asked_for_class_is_refused(write_films, tmp_path):
    root = write_films(tmp_path / "films", *(f"Pneumonia/{number}.png" for number in range(4)))
    two = Preprocess(32, classes=CLASSES[:2])
    assert "There is no image of class COVID-19;" in error_of(make, root, tmp_path / "out", folds=2, preprocess=two)


def test_class_of_which_no_film_is_readable_is_refused_and_nothing_stays(write_films, tmp_path):
    root = three_classes(write_films, tmp_path / "films")
    for path in (root / "Pneumonia").iterdir():
        path.write_bytes(b"")
    assert "No image of class Pneumonia could be read;" in error_of(make, root, tmp_path / "out", folds=2)
    assert names_in(tmp_path) == ["films"]


def test_fold_of_which_no_film_is_readable_does_not_make_a_dataset_that_cannot_be_opened(films, prepared, tmp_path):
    root = Path(shutil.copytree(films, tmp_path / "films"))
    for record in map_records(Dataset(prepared), 1):
        (root / CLASSES[record["label"]] / record["name"].decode()).write_bytes(record["name"])
    try:
        make(root, tmp_path / "out")
    except UserError:
        assert not (tmp_path / "out").exists()
    else:
        assert Dataset(tmp_path / "out").class_counts([1]).sum() == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_work_leaves_nothing_behind(films, tmp_path, kind):
    def interrupt(done, total):
        if done == 40:  # of 60: images are being written
            assert names_in(tmp_path) == [".out.lock", ".out.partial"]  # the folder it works in
            raise kind

    with pytest.raises(kind):
        prepare([films], tmp_path / "out", Options(SMALL), progress=interrupt)
    assert names_in(tmp_path) == []


def test_left_overs_of_a_killed_process_are_removed_and_a_living_one_is_left_alone(films, tmp_path):
    dead = tmp_path / ".out.partial"
    dead.mkdir()
    (dead / "half").write_bytes(b"half a dataset")
    with lock(tmp_path / ".out.lock", "busy"):  # as a process does that is at it
        assert "is being prepared by another command" in error_of(make, films, tmp_path / "out")
        assert (dead / "half").exists()
    make(films, tmp_path / "out")
    assert names_in(tmp_path) == ["out"]
    assert not (tmp_path / "out" / "half").exists()


def test_the_same_films_give_the_same_bytes_at_any_time(films, tmp_path):
    for name in ("a", "b"):
        make(films, tmp_path / name)
    each = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert each[0] == each[1]


# Opening


def test_dataset_that_is_not_there_or_is_none_says_how_to_make_one(tmp_path):
    missing = tmp_path / "missing"
    assert error_of(Dataset, missing) == (
        f"{missing} does not exist; make it with `covidjax prepare SOURCE --out {missing}`."
    )
    assert "is no prepared dataset; make one of it with `covidjax prepare" in error_of(Dataset, tmp_path)
    (tmp_path / "file").touch()
    assert "is no prepared dataset" in error_of(Dataset, tmp_path / "file")


def test_dataset_of_another_format_is_refused(damaged, edit_manifest):
    edit_manifest(damaged, format=1)
    assert error_of(Dataset, damaged) == f"{damaged} was prepared by another version of covidjax; prepare it again."


def test_manifest_that_tells_of_other_counts_is_damage(damaged, edit_manifest):
    manifest = Dataset(damaged).manifest
    edit_manifest(damaged, per_fold=manifest["per_fold"] | {"fold1": {"COVID-19": 1, "No-Findings": 1, "Pneumonia": 1}})
    assert error_of(Dataset, damaged).startswith(f"{damaged} is damaged (fold1 does not hold the records")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', "\udcff"])
def test_broken_manifest_is_damage(damaged, text):
    (damaged / "manifest.json").write_text(text, errors="surrogateescape")
    assert f"{damaged} is damaged (" in error_of(Dataset, damaged)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_broken_description_is_damage(damaged, name, content):
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    assert f"{damaged} is damaged (" in error_of(Dataset, damaged)


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_broken_records_are_damage(damaged, harm):
    shard = next(damaged.glob("*fold1*"))
    if harm == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: 0 if harm == "empty" else -1000])
    assert f"{damaged} is damaged (" in error_of(Dataset, damaged)


def test_split_holds_the_test_and_the_validation_fold_out(prepared):
    dataset = Dataset(prepared)
    assert dataset.split(0) == ([1, 2], [0], [])
    assert dataset.split(2) == ([0, 1], [2], [])
    assert dataset.split(1, 0) == ([2], [1], [0])


@pytest.mark.parametrize(
    ("test_fold", "val_fold", "part"),
    [
        (3, None, "has no test fold 3; choose one from 0 to 2."),
        (-1, None, "has no test fold -1; choose one from 0 to 2."),
        (0, 3, "has no validation fold 3; choose one from 0 to 2."),
        (0, -1, "has no validation fold -1; choose one from 0 to 2."),
        (1, 1, "Fold 1 cannot be both test and validation fold; choose another --val-fold."),
    ],
)
def test_split_by_folds_that_are_none_is_refused(prepared, test_fold, val_fold, part):
    assert part in error_of(Dataset(prepared).split, test_fold, val_fold)


def test_split_that_leaves_nothing_to_train_on_is_refused(films, tmp_path):
    make(films, tmp_path / "out", folds=2)
    assert "has only 2 folds, so none is left to train on" in error_of(Dataset(tmp_path / "out").split, 0, 1)


# The built-in sample


def test_sample_is_drawn_once_and_is_the_phantom(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = []
    dataset = sample_dataset(32, 60, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 60) for done in range(1, 61)]
    assert tmp_path in dataset.path.parents
    assert dataset.preprocess == SMALL
    assert (dataset.folds, dataset.manifest["patients"]) == (5, 30)
    assert dataset.class_counts(range(5)).tolist() == [20, 20, 20]
    assert {len(where) for where in folds_of_patients(dataset.path).values()} == {1}
    for record in map_records(dataset, 0):
        patient, index = record["name"].decode().rsplit("-", 1)
        film = synthetic.draw(int(index), size=32)
        np.testing.assert_array_equal(record["image"][..., 0], film.image)
        assert (record["label"], record["patient"].decode(), patient) == (film.label, film.patient, film.patient)

    monkeypatch.setattr(synthetic, "draw_images", lambda *_, **__: pytest.fail("drawn again"))
    assert sample_dataset(32, 60).fingerprint == dataset.fingerprint


def test_sample_version_is_raised_with_the_pixels():
    digest = sha256()
    for index in (0, 1, 2, 100):
        image = synthetic.draw(index, seed=1, size=96)
        digest.update(image.image.tobytes() + image.lungs.tobytes() + f"{image.label} {image.patient}".encode())
    assert (SAMPLE_VERSION, digest.hexdigest()) == (
        1,
        "0deb37a1095bf71b40d6cb9485cd525b4f583ff9283d85d0c35eb35f21691f79",
    ), "raise SAMPLE_VERSION, then put the new digest here"


def test_samples_of_other_size_number_and_seed_are_other_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (
        len(
            {
                sample_dataset(*of, seed=seed).path
                for of, seed in (((32, 30), 0), ((33, 30), 0), ((32, 36), 0), ((32, 30), 1))
            }
        )
        == 4
    )


# TensorFlow


def test_nothing_imports_tensorflow(films, tmp_path):
    code = f"""
import sys
from pathlib import Path
sys.modules["cv2"] = None  # TFDS takes it where it is installed; nothing needs it
from covidjax.config import Preprocess
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
prepare([Path({str(films)!r})], Path({str(tmp_path / "out")!r}), Options(Preprocess(image_size=32), folds=3))
assert loader.load_all(Dataset(Path({str(tmp_path / "out")!r})).source([0, 1, 2])).count == 30
loaded = [name for name, module in sys.modules.items() if module and name.split(".")[0] in ("tensorflow", "torch", "cv2")]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The real films


def test_real_collection_is_prepared_without_a_leak(shared_data, tmp_path):
    manifest = make(shared_data / "ozturk", tmp_path / "out", folds=5)
    assert (manifest["images"], manifest["patients"], manifest["skipped"]) == (1124, 769, [])
    assert manifest["per_class"] == {"COVID-19": 124, "No-Findings": 500, "Pneumonia": 500}
    assert {len(where) for where in folds_of_patients(tmp_path / "out").values()} == {1}
    for counts in manifest["per_fold"].values():
        assert 23 <= counts["COVID-19"] <= 27
        assert 95 <= counts["No-Findings"] <= 105
        assert 95 <= counts["Pneumonia"] <= 105


@pytest.mark.slow
def test_real_collections_that_overlap_are_merged_without_a_leak(shared_data, tmp_path):
    sources = [shared_data / "ozturk", shared_data / "ieee8023"]
    assert make(sources, tmp_path / "once", folds=5)["left_out"]["ieee8023"]["a copy of an image of ozturk"] == 64
    manifest = make(sources, tmp_path / "out", folds=5, duplicates="keep")
    assert (manifest["images"], manifest["skipped"]) == (1124 + 516, [])
    folds = defaultdict(set)
    for fold, record in records_of(tmp_path / "out"):
        folds[Path(record["name"].decode()).stem.lower()].add(fold)
    assert {len(where) for where in folds.values()} == {1}
    assert loader.load_all(Dataset(tmp_path / "out").source([0])).count == sum(manifest["per_fold"]["fold0"].values())
