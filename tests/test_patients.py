"""Whose X-ray each is: DICOM headers, folders, expressions, tables, names; the key; and that no number is written."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import stat
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from commands import refused, run
from PIL import Image
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from covidjax.config import Preprocess
from covidjax.data import patients
from covidjax.data.dataset import Dataset
from covidjax.data.patient_key import PatientKey
from covidjax.data.prepare import Options, prepare
from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example, Tree
from covidjax.data.written import Numbers
from covidjax.errors import UsageError, UserError
from covidjax.images.person import age_of
from covidjax.labels import CLASSES

SMALL = Preprocess(image_size=32)
KEY = b"a key of thirty-two bytes, or so"


def header(number: str = "", seed: int = 0, **elements: str) -> FileDataset:
    """An X-ray of noise, no two alike by their seed, of the patient with that number."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200102", "030405", "1", ""
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.PatientName = 1, 1, "Doe^Jane"
    dataset.Modality, dataset.PatientID = "DX", number
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = 48, 40
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.random.default_rng(seed).integers(0, 256, (48, 40), np.uint8).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def export(root: Path, *, patients: int = 18, images: int = 3, first_seed: int = 0) -> Path:
    """A PACS export: per class so many patients a third of them, whose files all have the same names."""
    for patient in range(patients):
        for image in range(images):
            number = f"MRN{patient:05d}"
            path = root / CLASSES[patient % 3] / f"PA{patient:06d}" / f"ST{image:06d}" / "IM-0001-0001.dcm"
            save(header(number, first_seed + patient * images + image), path)
    return root


def dicomdir(root: Path, *, patients: int = 18, images: int = 3) -> Path:
    """The same as a disc has it in each class folder: files without endings, beside an index."""
    for patient in range(patients):
        disc = root / CLASSES[patient % 3]
        for image in range(images):
            path = disc / "DICOM" / f"PT{patient // 3:06d}" / "ST000000" / f"SE{image:06d}" / "IM000000"
            save(header(f"MRN{patient:05d}", patient * images + image), path)
        index = header()
        index.file_meta.MediaStorageSOPClassUID = index.SOPClassUID = MediaStorageDirectoryStorage
        del index.PixelData
        save(index, disc / "DICOMDIR")
    return root


def records(dataset: Path) -> list[tuple[int, str, str]]:
    """Fold, patient and name of every image."""
    opened, found = Dataset(dataset), []
    for fold in range(opened.folds):
        source = opened.source([fold])
        found += [(fold, *source.texts(row, "patient", "name")) for row in range(len(source))]
    return found


def folds_of(dataset: Path) -> dict[str, set[int]]:
    folds = defaultdict(set)
    for fold, patient, _ in records(dataset):
        folds[patient].add(fold)
    return folds


def collection(root: Path, *names_of_files: str, source: str = "ward", layout: str = "folder") -> Collection:
    """A collection of files that need not be there."""
    made = Collection(root, layout, source, Tree(root, [], []))
    for name in names_of_files:
        label = name.partition("/")[0]
        made.examples.append(Example(root / name, label, names.file_patient(source, Path(name)), source))
    return made


@pytest.fixture
def key(tmp_path: Path) -> PatientKey:
    (tmp_path / "key").write_bytes(KEY)
    return PatientKey(tmp_path / "key")


# PACS exports


@pytest.mark.parametrize("make", [export, dicomdir])
def test_patients_of_a_pacs_export_are_told_by_their_headers(make, tmp_path: Path):
    result = run("prepare", make(tmp_path / "pacs"), "--out", tmp_path / "out", "--image-size", 32)
    assert result.exit_code == 0, result.output
    assert "Patients are known of 54 of 54 X-rays (100 %)." in result.stderr
    assert "Wrote 54 images of 18 patients in 5 folds" in result.stderr
    folds = folds_of(tmp_path / "out")
    assert len(folds) == 18
    assert {len(where) for where in folds.values()} == {1}


def test_a_zipped_export_has_the_same_patients(tmp_path: Path, key: PatientKey):
    root = export(tmp_path / "pacs", patients=6)
    with zipfile.ZipFile(tmp_path / "pacs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.dcm")):
            archive.write(path, path.relative_to(root))
    tree = Tree.open(tmp_path / "pacs.zip")
    zipped = Collection(tmp_path / "pacs.zip", "folder", "pacs", tree)
    zipped.examples = [Example(member, "COVID-19", "file:x", "pacs") for member in tree.images]
    plain = collection(root, *(str(path.relative_to(root)) for path in sorted(root.rglob("*.dcm"))), source="pacs")
    told = [Counter(example.patient for example in patients.identify([which], key=key)) for which in (zipped, plain)]
    assert told[0] == told[1]
    assert sorted(told[0].values()) == [3] * 6


def test_of_two_exports_with_the_same_names_nothing_is_dropped(tmp_path: Path):
    """Numbers too: without an issuer, one number in two exports is of two people."""
    sources = [export(tmp_path / name, first_seed=seed) for name, seed in (("one", 0), ("two", 1000))]
    manifest = prepare(sources, tmp_path / "out", Options(SMALL))
    assert (manifest["images"], manifest["patients"], manifest["patients_known"]) == (108, 36, 108)
    assert manifest["left_out"] == {"one": {}, "two": {}}


def test_of_two_exports_of_jpegs_with_the_same_names_nothing_is_dropped(write_films, tmp_path: Path):
    for root in ("one", "two"):
        for label in CLASSES:
            write_films(tmp_path / root / label, *(f"IM-{series:04d}-0001.jpg" for series in range(1, 11)))
    result = run("prepare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out", "--image-size", 32)
    assert "Patients are known of 0 of 60 X-rays (0 %)." in result.stderr
    assert "Wrote 60 images of 60 patients" in result.stderr


def test_no_number_and_no_key_is_written(tmp_path: Path):
    source = export(tmp_path / "pacs", patients=9)
    (tmp_path / "key").write_bytes(KEY)
    prepare([source], tmp_path / "out", Options(SMALL, folds=3), patient_key=tmp_path / "key")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert b"MRN0" not in content and b"Doe" not in content and KEY not in content, file
    assert all(patient.startswith("patient:") for _, patient, _ in records(tmp_path / "out"))


def named_by_number(root: Path) -> Path:
    """Files and folders that are called as their patients, in the spellings of several systems; one damaged, one plain."""
    for label in CLASSES[:2]:
        for index in range(6):
            number = f"SECRET-{label[0]}{index // 2}"
            dataset = header(number, index + 10 * (label == CLASSES[0]))
            plain = number.replace("-", "")
            for place in (
                (f"{number}_{index}.dcm", f"{plain.lower()}/{index}") if index % 2 else (f"{plain}/{number}/x.dcm",)
            ):
                save(dataset, root / label / place)
    whole = (root / "COVID-19" / "SECRETC0" / "SECRET-C0" / "x.dcm").read_bytes()
    (root / "COVID-19" / "SECRET-C0_9.dcm").write_bytes(whole[:140])
    Image.fromarray(np.random.default_rng(99).integers(0, 256, (40, 40), np.uint8)).save(root / "COVID-19" / "as it is.png")
    return root


def test_no_number_is_written_within_a_name(tmp_path: Path):
    source = named_by_number(tmp_path / "pacs")
    (tmp_path / "key").write_bytes(KEY)
    prepare([source], tmp_path / "out", Options(SMALL, folds=2, infer_classes=True), patient_key=tmp_path / "key")
    for file in (tmp_path / "out").iterdir():
        assert b"secret" not in file.read_bytes().lower(), file
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]
    written = {name: patient for _, patient, name in records(tmp_path / "out")}
    assert written["as it is.png"] == "file:pacs/COVID-19/as it is"
    (start,) = {
        name[:8]
        for name in written
        if name.endswith("_1.dcm") and written[name] == PatientKey(tmp_path / "key").hash("source pacs", "SECRET-C0")
    }
    assert [entry["path"] for entry in skipped] == [str(source / "COVID-19" / f"{start}_9.dcm")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("COVID-19/MRN-00123_0.png", "COVID-19/01234567_0.png"),
        ("COVID-19/mrn00123/MRN_00123.png", "COVID-19/01234567/01234567.png"),
        ("COVID-19/MRN-0/0123.png", "COVID-19/MRN-0/0123.png"),
        ("COVID-19/12.png", "COVID-19/12.png"),
    ],
)
def test_a_number_is_found_in_a_path_however_it_is_spelled(path: str, expected: str):
    numbers = {"MRN-00123": "patient:key:0123456789abcdef", "12": "patient:key:fedcba9876543210"}
    assert Numbers([numbers]).without(path, numbers) == expected


def test_no_number_of_a_table_is_written_within_a_path(write_films, tmp_path: Path):
    root = write_films(tmp_path / "set", *(f"x/SECRET{number}_{view}.png" for number in range(5) for view in "ab"))
    rows = [
        f"x/SECRET{number}_{view}.png,{('covid', 'normal')[number % 2]},SECRET{number}"
        for number in range(4)
        for view in "ab"
    ]
    rows += ["x/SECRET4_a.png,covid|normal,SECRET4", "x/SECRET4_b.png,covid|normal,"]
    (tmp_path / "labels.csv").write_text("path,label,patient\n" + "\n".join(rows))
    result = run("prepare", root, "--table", tmp_path / "labels.csv", "--out", tmp_path / "out", "--folds", 2)
    assert result.exit_code == 0, result.output
    for file in (tmp_path / "out").iterdir():
        assert b"SECRET" not in file.read_bytes(), file
    undecided = json.loads((tmp_path / "out" / "manifest.json").read_text())["undecided"]
    assert len(undecided) == 2


def test_folds_do_not_depend_on_the_key_and_hashes_do(tmp_path: Path):
    source, made = export(tmp_path / "pacs"), []
    for number in range(2):
        (tmp_path / f"key{number}").write_bytes(KEY + bytes([number]))
        key_file, out = tmp_path / f"key{number}", tmp_path / f"out{number}"
        made.append(prepare([source], out, Options(SMALL), patient_key=key_file)["fingerprint"])
    assert made[0] == made[1]
    assert not folds_of(tmp_path / "out0").keys() & folds_of(tmp_path / "out1").keys()


# What a header says


@pytest.mark.parametrize(
    "number", ["", " ", "0", "0000", "-", "?", "N/A", "ANONYMOUS", "Anonymized", "unknown", "XXXXXX", "No ID", "Patient_ID"]
)
def test_a_placeholder_is_no_number(tmp_path: Path, number: str):
    assert patients.read_ids(save(header(number), tmp_path / "a.dcm")).patient == ""


@pytest.mark.parametrize("number", ["1", "0012", "MRN-7", "ANON0007", "Ümläut-4", "患者7", "patient 12"])
def test_a_number_is_read_without_its_padding(tmp_path: Path, number: str):
    dataset = header(IssuerOfPatientID=" Ward ", SpecificCharacterSet="ISO_IR 192")
    dataset.PatientID = f" {number} "
    ids = patients.read_ids(save(dataset, tmp_path / "a"))
    assert ids[:2] == (number, "Ward")
    assert ids.study == dataset.StudyInstanceUID


def test_a_header_is_read_however_the_file_is_written(tmp_path: Path):
    dataset = header("MRN7")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = save(dataset, tmp_path / "deflated")
    bare = Header()
    bare.update(header("MRN7"))
    pydicom.dcmwrite(tmp_path / "bare", bare, implicit_vr=True, little_endian=True)
    assert [patients.read_ids(path).patient for path in (deflated, tmp_path / "bare")] == ["MRN7", "MRN7"]


def test_what_cannot_be_read_says_nothing(tmp_path: Path):
    whole = save(header("MRN7"), tmp_path / "a.dcm").read_bytes()
    paths = [tmp_path / "missing", tmp_path, tmp_path / "pipe", tmp_path / "text.dcm", tmp_path / "cut.dcm"]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "cut.dcm").write_bytes(whole[:140])
    assert [patients.read_ids(path) for path in paths] == [("", "", "")] * 5
    for length in range(132, len(whole), 97):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        assert patients.read_ids(tmp_path / "cut.dcm").patient in ("", "MRN7", "MRN7"[:3])


def headers(root: Path, rows: list[dict[str, str]], *, source: str = "ward") -> Collection:
    for index, row in enumerate(rows):
        save(header(row.pop("number", ""), index, **row), root / "COVID-19" / f"{index}.dcm")
    return collection(root, *(f"COVID-19/{index}.dcm" for index in range(len(rows))), source=source)


def told(which: Collection, key: PatientKey, way: str = "auto") -> list[str]:
    return [example.patient for example in patients.identify([which], way, key=key)]


def test_an_issuer_tells_hospitals_apart_and_joins_their_exports(tmp_path: Path, key: PatientKey):
    rows = [{"number": "1", "IssuerOfPatientID": issuer} for issuer in ("A", "B")]
    first, second = told(headers(tmp_path / "x", rows), key)
    assert first != second
    again = told(headers(tmp_path / "y", [{"number": "1", "IssuerOfPatientID": "A"}], source="other"), key)
    assert again == [first]


def test_a_device_that_leaves_the_issuer_out_makes_no_second_patient(tmp_path: Path, key: PatientKey):
    rows = [{"number": "1", "IssuerOfPatientID": "A"}, {"number": "1"}, {"number": "2"}]
    first, second, third = told(headers(tmp_path / "x", rows), key)
    assert first == second != third


def test_one_number_for_everybody_is_nobodys_and_the_note_says_what_to_do(tmp_path: Path, key: PatientKey):
    which = headers(tmp_path / "x", [{"number": "EXPORT7"} for _ in range(12)])
    assert not any(map(names.is_known, told(which, key)))
    assert len(set(told(which, key))) == 12
    assert which.notes[0].startswith("12 of 12 X-rays carry one PatientID")
    assert "--patient-from folder" in which.notes[0]
    mixed = headers(tmp_path / "y", [{"number": "EXPORT7"} for _ in range(30)] + [{"number": f"P{n}"} for n in range(10)])
    assert sum(map(names.is_known, told(mixed, key))) == 10
    few = headers(tmp_path / "z", [{"number": "P1"} for _ in range(4)])
    assert len(set(told(few, key))) == 1


def test_without_a_number_the_images_of_a_study_stay_together(tmp_path: Path, key: PatientKey):
    study = generate_uid()
    rows = [{"StudyInstanceUID": study}, {"StudyInstanceUID": study}, {}]
    first, second, third = told(headers(tmp_path / "x", rows), key)
    assert first == second != third
    assert not any(map(names.is_known, (first, third)))


# Names


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["COVID-19/IM-0001-0001.jpg", "COVID-19/IM-0001-0002.jpg"], [False, False]),
        (["COVID-19/IM-0001-0001.jpg", "Pneumonia/person1_virus_6.jpeg"], [True, True]),
        (["normal/IM-0001-0001.jpg", "normal/NORMAL2-IM-0001-0001.jpeg"], [True, True]),
        (["normal/IM-0001-0001.jpg", "normal/person1_virus_6.jpeg"], [False, True]),
        ([*(f"normal/IM-{number:04d}-0001.jpg" for number in range(10)), "x/person1_virus_6.jpeg"], [*[False] * 10, True]),
        (["COVID-19/00000013_001.png", "COVID-19/20200131_001.png"], [True, False]),
        (["COVID-19/MCUCXR_0001_0.png", "COVID-19/person7_front.png"], [True, False]),
        (["COVID-19/phantom-0-00001-00002.png", "COVID-19/1.png"], [True, False]),
    ],
)
def test_a_name_tells_the_patient_where_it_is_unmistakable(tmp_path: Path, key: PatientKey, files, expected):
    which = collection(tmp_path, *files)
    assert [names.is_known(patient) for patient in told(which, key)] == expected


def test_every_published_pattern_counts_where_it_is_asked_for(tmp_path: Path, key: PatientKey):
    which = collection(tmp_path, "COVID-19/IM-0001-0001.jpg", "COVID-19/a/IM-0001-0002.jpg", "COVID-19/x.jpg")
    one, two, three = told(which, key, "name")
    assert one == two and names.is_known(one) and three == "file:ward/COVID-19/x"
    other = collection(tmp_path, "COVID-19/IM-0001-0001.jpg", source="other")
    assert told(other, key, "name") != [one]  # another hospital's
    published = collection(tmp_path, "COVID-19/IM-0001-0001.jpg", "Pneumonia/person1_virus_6.jpeg", layout="radiography")
    assert told(published, key, "name") == ["kermany:IM-0001", "kermany:person1"]


# Folders and expressions


def test_the_folder_below_the_class_folder_names_the_patient(tmp_path: Path, key: PatientKey):
    files = ["COVID-19/P1/a.png", "COVID-19/P1/b.png", "normal/P1/c.png", "normal/P2/a.png", "normal/a.png"]
    one, two, three, four, five = told(collection(tmp_path, *files), key, "folder")
    assert one == two == three != four
    assert five == "file:ward/normal/a"
    assert "P1" not in one


def test_folders_of_studies_and_series_make_no_other_patients(tmp_path: Path, key: PatientKey):
    files = ["train/COVID-19/P1/SE1/a.png", "test/COVID-19/P2/SE1/a.png", "train/COVID-19/P1/SE2/b.png"]
    one, two, three = told(collection(tmp_path, *files, layout="split"), key, "folder")
    assert one == three != two


def test_an_expression_finds_the_patient_in_the_path_below_the_source(tmp_path: Path, key: PatientKey):
    files = ["COVID-19/pat_12_x.png", "Pneumonia/y/pat_12.png", "Pneumonia/pat_13.png", "Pneumonia/z.png"]
    one, two, three, four = told(collection(tmp_path / "pat_99", *files), key, r"pat_(\d+)")
    assert one == two != three
    assert not names.is_known(four)


@pytest.mark.parametrize(
    ("way", "part"),
    [("(", "no regular expression"), ("dicm", "has no groups"), (r"(a)(b)", "has 2 groups"), ("", "has no groups")],
)
def test_what_is_no_way_to_tell_the_patient_is_refused(way: str, part: str, films: Path, tmp_path: Path):
    message = refused("prepare", films, "--out", tmp_path / "out", "--patient-from", way, code=2)
    assert part in message and "auto, dicom, folder, name" in message


@pytest.mark.parametrize("way", ["dicom", "folder", "name", r"patient(\d+)"])
def test_a_way_that_tells_no_patient_is_an_error_that_shows_a_path(way: str, write_films, tmp_path: Path):
    root = write_films(tmp_path / "films", *(f"{label}/{number}.png" for label in CLASSES for number in range(5)))
    message = refused("prepare", root, "--out", tmp_path / "out", "--patient-from", way, code=1)
    assert message.startswith(f"--patient-from {way} tells the patient of none of the images, such as {root}")


# Tables


def table(folder: Path, *rows: str, head: str = "path,patient") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "patients.csv").write_text("\n".join([head, *rows]))
    return folder / "patients.csv"


@pytest.mark.parametrize(
    "form",
    [
        "{root}/COVID-19/a/1.png",
        "COVID-19/a/1.png",
        r"COVID-19\a\1.png",
        "./COVID-19/a/1.png",
        " xrays/COVID-19/a/1.png ",
        "1.png",
    ],
)
def test_a_table_names_images_as_people_write_their_paths(form: str, tmp_path: Path, key: PatientKey):
    root = tmp_path / "xrays"
    which = collection(root, "COVID-19/a/1.png", "COVID-19/b/2.png")
    file = table(tmp_path / "lists", f"{form.format(root=root)},MRN1")
    first, second = (example.patient for example in patients.identify([which], table=file, key=key))
    assert names.is_known(first) and "MRN1" not in first
    assert not names.is_known(second)


def test_a_table_beside_the_images_wins_over_their_headers(tmp_path: Path, key: PatientKey):
    which = headers(tmp_path / "x", [{"number": "1"}, {"number": "1"}, {"number": "2"}])
    file = table(tmp_path / "x", "COVID-19/0.dcm,7", "COVID-19/2.dcm,", "COVID-19/9.dcm,8")
    first, second, third = (example.patient for example in patients.identify([which], table=file, key=key))
    assert len({first, second, third}) == 3
    assert which.notes == ["1 rows of patients.csv name no image that was found"]


def test_a_bare_name_that_two_images_have_names_neither(tmp_path: Path, key: PatientKey):
    which = collection(tmp_path / "xrays", "COVID-19/a/1.png", "COVID-19/b/1.png", "COVID-19/b/2.png")
    file = table(tmp_path, "1.png,X", "2.png,Y")
    found = [names.is_known(example.patient) for example in patients.identify([which], table=file, key=key)]
    assert found == [False, False, True]


def test_a_table_that_fits_nothing_shows_a_path_of_each(films: Path, tmp_path: Path):
    file = table(tmp_path, "wards/1.png,X")
    message = refused("prepare", films, "--out", tmp_path / "out", "--patients", file, code=1)
    assert "wards/1.png" in message and "COVID-19/phantom-0-00000-00000.png" in message
    file = table(tmp_path, "phantom-0-00000-00000.png,X", "COVID-19/phantom-0-00000-00000.png,Y")
    message = refused("prepare", films, "--out", tmp_path / "out", "--patients", file, code=1)
    assert "row 3: " in message and message.endswith("phantom-0-00000-00000.png has two patients; remove one.")
    file = table(tmp_path, "1.png,X", head="a,patient")
    assert "has no column path" in refused("prepare", films, "--out", tmp_path / "out", "--patients", file, code=1)


# The key


def test_the_users_key_is_made_once_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    file = tmp_path / "data" / "covidjax" / "patient.key"
    before = os.umask(0)  # nothing but the key itself sees to its rights
    try:
        first = PatientKey().hash("A", "1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_bytes()) == 32
    assert [path.name for path in file.parent.iterdir()] == ["patient.key"]
    assert PatientKey().hash("A", "1") == first
    assert len({PatientKey().hash(*pair) for pair in (("A", "1"), ("A", "2"), ("B", "1"), ("A1", ""))}) == 4


def test_no_key_is_made_where_no_number_is_hashed_or_nothing_is_to_be_written(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    prepare([films], tmp_path / "out", Options(SMALL, folds=3))
    in_memory = PatientKey(keep=False)
    assert in_memory.hash("A", "1") == in_memory.hash("A", "1") != PatientKey(keep=False).hash("A", "1")
    assert not (tmp_path / "data").exists()
    kept = PatientKey().hash("A", "1")
    assert PatientKey(keep=False).hash("A", "1") == kept


def test_a_hash_is_hmac_sha256_with_the_key(key: PatientKey):
    digest = hmac.new(KEY, b"ward\x00MRN1", hashlib.sha256).hexdigest()
    assert key.hash("ward", "MRN1").endswith(f":{digest}")


@pytest.mark.parametrize(
    ("content", "code", "part"), [(None, 2, "key does not exist; name a file"), (b"short\n", 1, "has 5 bytes, too few")]
)
def test_a_key_that_cannot_be_used_is_said(content: bytes | None, code: int, part: str, tmp_path: Path):
    if content:
        (tmp_path / "key").write_bytes(content)
    words = ("prepare", export(tmp_path / "pacs", patients=6), "--out", tmp_path / "out", "--folds", 2)
    assert part in refused(*words, "--patient-key", tmp_path / "key", code=code)
    assert not (tmp_path / "out").exists()


def test_a_home_that_cannot_be_written_to_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    words = ("prepare", export(tmp_path / "pacs", patients=6), "--out", tmp_path / "out", "--folds", 2)
    message = refused(*words, code=1)
    assert "patient.key cannot be written" in message and "--patient-key" in message


# What is said of it


@pytest.mark.slow
def test_training_warns_where_patients_are_not_known(write_films, prepared: Path, tmp_path: Path):
    root = write_films(tmp_path / "films", *(f"{label}/{number}.png" for label in CLASSES for number in range(6)))
    out = tmp_path / "data"
    assert "known of 0 of 18" in run("prepare", root, "--out", out, "--image-size", 32, "--folds", 3).stderr
    words = ("train", "--epochs", 1, "--set", "train.batch_size=4", "--model", "darkcovidnet", "--json")
    result = run(*words, "--data", out, "--run", tmp_path / "run")
    assert "Warning: patients are known of 0 % of the X-rays only" in result.stderr
    result = run(*words, "--data", prepared, "--run", tmp_path / "known")
    assert "patients are known" not in result.stderr


def test_evaluation_says_where_patients_cannot_be_compared(trained: Path, tmp_path: Path):
    """And where they can, leaves them out."""
    source = export(tmp_path / "pacs", patients=9)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(KEY + name.encode())
    data, keys = tmp_path / "data", {name: PatientKey(tmp_path / name) for name in ("one", "two")}
    prepare([source], data, Options(SMALL, folds=3), patient_key=tmp_path / "one")
    said = {}
    for name, made in keys.items():
        copy = Path(shutil.copytree(trained, tmp_path / f"run-{name}"))
        with (copy / "trained_on.txt").open("a") as file:
            file.write(f"{made.hash('source pacs', 'MRN00004')}\n")
        said[name] = run("evaluate", copy, "--data", data).output
    assert "without 3 images" in said["one"] and "another key" not in said["one"]
    assert "hashed with another key" in said["two"] and "without" not in said["two"]


def test_a_dataset_of_an_earlier_version_says_nothing_of_either(prepared: Path, tmp_path: Path):
    old = Path(shutil.copytree(prepared, tmp_path / "old"))
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["patients_known"], manifest["bytes"]["images.csv"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (old / "images.csv").unlink()
    assert (Dataset(old).known_share, Dataset(old).original_files()) == (None, None)


def test_the_original_files_are_recorded_in_the_order_of_the_records(tmp_path: Path):
    kinds = {"a.png": ("L", (50, 40)), "b.jpg": ("RGB", (60, 44)), "c.tif": ("I;16", (70, 48)), "d.png": ("1", (64, 64))}
    number = 0
    for label in CLASSES:
        for name, (mode, size) in kinds.items():
            number += 1
            (tmp_path / "films" / label).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, size[::-1], np.uint8)
            image = (
                Image.fromarray(noise.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(noise).convert(mode)
            )
            image.save(tmp_path / "films" / label / name)
        save(header("", number), tmp_path / "films" / label / "e.dcm")
    prepare([tmp_path / "films"], tmp_path / "out", Options(SMALL, folds=2))
    rows = Dataset(tmp_path / "out").original_files()
    assert rows is not None and len(rows) == 15
    assert [(int(row["fold"]), row["name"]) for row in rows] == [
        (fold, name) for fold, _, name in records(tmp_path / "out")
    ]
    facts = {row["name"]: (row["width"], row["height"], row["bits"], row["format"]) for row in rows}
    assert facts == {
        "a.png": ("50", "40", "8", "PNG"),
        "b.jpg": ("60", "44", "8", "JPEG"),
        "c.tif": ("70", "48", "16", "TIFF"),
        "d.png": ("64", "64", "1", "PNG"),
        "e.dcm": ("40", "48", "8", "DICOM"),
    }


def test_age_sex_and_projection_are_recorded_and_whoever_is_old_is_90(tmp_path: Path):
    people = {"a": ("045Y", "F", "PA"), "b": ("093Y", "M", "AP"), "c": ("018M", "o", ""), "d": ("", "", "Doe^Jane?")}
    for number, label in enumerate(CLASSES):
        for name, (age, sex, view) in people.items():
            about = {"PatientAge": age, "PatientSex": sex, "ViewPosition": view, "PatientBirthDate": "19300102"}
            save(header("", 10 * number + ord(name), **about), tmp_path / "films" / label / f"{name}.dcm")
    prepare([tmp_path / "films"], tmp_path / "out", Options(SMALL, folds=2))
    rows = Dataset(tmp_path / "out").original_files() or []
    found = {row["name"]: (row["age"], row["sex"], row["view"]) for row in rows}
    assert found == {
        "a.dcm": ("45", "F", "PA"),
        "b.dcm": ("90", "M", "AP"),
        "c.dcm": ("1", "O", ""),
        "d.dcm": ("", "", "unknown"),
    }
    assert all(len(row.pop("sha256")) == 64 for row in rows)  # a digest has any four digits now and then
    text = json.dumps(rows)
    assert "1930" not in text and "93" not in {row["age"] for row in rows} and "Doe" not in text


@pytest.mark.parametrize(
    ("text", "age"),
    [
        *[("45", "45"), ("45.7", "45"), ("058Y", "58"), ("90", "90"), ("101", "90"), ("006M", "0"), ("35 years", "35")],
        *[("", ""), ("nan", ""), ("-3", ""), ("20200131", ""), ("412", ""), ("forty", "")],
    ],
)
def test_ages_in_any_spelling(text: str, age: str):
    assert age_of(text) == age


def test_an_unreadable_way_is_told_before_any_file_is_read(tmp_path: Path):
    with pytest.raises(UsageError, match="no regular expression"):
        prepare([tmp_path / "missing"], tmp_path / "out", Options(SMALL, patient_from="("))
    with pytest.raises(UserError, match="exists already"):
        prepare([tmp_path / "missing"], Path(__file__), Options(SMALL))
