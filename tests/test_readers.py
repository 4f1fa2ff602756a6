"""Reading published collections: which films, of which class, of whom, and what was left out."""

import doctest
from collections import Counter
from pathlib import Path

import pytest

from covidjax.data import readers
from covidjax.data.folds import patients_of
from covidjax.data.readers import names
from covidjax.data.readers.ieee8023 import class_of_finding
from covidjax.errors import UserError
from covidjax.labels import class_of

HEADER = "patientid,finding,view,modality,filename\n"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def metadata(root, rows, header=HEADER):
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "metadata.csv").write_text(header + rows, encoding="utf-8")
    return root


def labels_of(collection):
    return {str(example.path.relative_to(collection.root)): example.label for example in collection.examples}


def message_of(root, layout="auto"):
    with pytest.raises(UserError) as caught:
        readers.read(root, layout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ozturk(root):
    return touch(root, "Covid-19/nejm-a.jpg", "No_findings/00000005_003.jpg", "Pneumonia/00000008_001.png")


def radiography(root):
    return touch(root, "COVID-19/COVID-19 (1).jpg", "NORMAL/NORMAL (1).jpg", "Viral Pneumonia/Viral Pneumonia (1).jpg")


# Any folder of one's own


def test_folder_takes_every_image_below_its_class_folders_in_order(tmp_path):
    root = touch(
        tmp_path / "mine",
        *("covid/b.PNG", "covid/a/2020/x.jpg", "covid/notes.txt", "covid/.hidden.png"),
        *("normal/c.tiff", "Viral_Pneumonia/d.webp", "ct/e.png", "ct/deep/f.png", "readme.md", "loose.png", ".DS_Store"),
    )
    found = readers.read(root)
    assert (found.layout, found.source, found.root) == ("folder", "mine", root)
    assert list(labels_of(found).items()) == [
        ("Viral_Pneumonia/d.webp", "Pneumonia"),
        ("covid/b.PNG", "COVID-19"),
        ("covid/a/2020/x.jpg", "COVID-19"),
        ("normal/c.tiff", "No-Findings"),
    ]
    assert {example.source for example in found.examples} == {"mine"}
    assert +found.left_out == {
        "not an image file, by its ending": 1,
        "folder 'ct' names no class": 2,
        "beside the class folders, so of no class": 2,
    }


def test_source_name_can_be_given(tmp_path):
    found = readers.read(touch(tmp_path, "covid/a.png"), source="ward")
    assert (found.source, found.examples[0].source) == ("ward", "ward")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *((name, "COVID-19") for name in ("COVID-19", "covid", "Covid_19", "covid 19", "SARS-CoV-2", "coronavirus")),
        *((name, "No-Findings") for name in ("No-Findings", "No_findings", "No Finding", "NORMAL", "healthy")),
        *((name, "Pneumonia") for name in ("Pneumonia", "PNEUMONIA", "Viral Pneumonia", "bacterial-pneumonia")),
        *((name, None) for name in ("", "non-covid", "abnormal", "Tuberculosis", "train")),
    ],
)
def test_folder_names_and_their_classes(name, label):
    assert class_of(name) == label


def test_equal_names_in_two_class_folders_are_two_patients(tmp_path):
    found = readers.read(touch(tmp_path, "covid/1.png", "normal/1.png", "normal/a/1.png"))
    assert len({example.patient for example in found.examples}) == 3


def test_published_names_tell_the_patient_in_a_folder_of_ones_own_too(tmp_path):
    found = readers.read(touch(tmp_path, "normal/00000005_003.png", "normal/a/00000005_004.png"))
    assert [example.patient for example in found.examples] == ["nih:00000005"] * 2


# Patients


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("00000005_003.jpg", "nih:00000005"),
        ("person1000_virus_1681.jpeg", "kermany:person1000"),
        ("person1_bacteria_2.jpeg", "kermany:person1"),
        ("IM-0115-0001.jpeg", "kermany:IM-0115"),
        ("NORMAL2-IM-0013-0001.jpeg", "kermany:NORMAL2-IM-0013"),
        ("NORMAL2-IM-0013-0001-0002.jpeg", "kermany:NORMAL2-IM-0013"),
        ("covid-19-pneumonia-24-day12.jpg", "series:covid-19-pneumonia-24"),
        ("nejmc2001573_f1a.jpeg", "series:nejmc2001573"),
        ("41591_2020_819_Fig1_HTML.webp-day10.jpg", "series:41591_2020_819_fig1_html.webp"),
        ("1-s2.0-S0929664620300449-gr2_lrg-a.jpg", "series:1-s2.0-s0929664620300449"),
        ("16745_2_1.PNG", "series:16745"),
        ("scan12_1.png", "series:scan12_1"),  # the 2 is the patient's, unlike scan13_1
        ("patient-12-PA.png", "series:patient-12"),
        ("7AF6C1AF-D249-4BD2-8C26-449304105D03.jpg", "series:7af6c1af-d249-4bd2-8c26-449304105d03"),
        ("left.png", "series:left"),  # nothing would be left of it
        ("NORMAL (12).jpg", "series:normal (12)"),
    ],
)
def test_patient_told_by_a_file_name(name, patient):
    assert names.patient_of(name) == patient


def test_series_examples_in_the_documentation_hold():
    assert doctest.testmod(names) == (0, 1)


def test_film_name_is_the_same_whatever_ending_and_case():
    assert names.image_key("A b.PNG") == names.image_key("a B.jpeg") == "image:a b"


# Ozturk


def test_ozturk_is_told_and_read(tmp_path):
    found = readers.read(touch(ozturk(tmp_path), "original_sizes.csv"))
    assert found.layout == "ozturk"
    assert labels_of(found) == {
        "Covid-19/nejm-a.jpg": "COVID-19",
        "No_findings/00000005_003.jpg": "No-Findings",
        "Pneumonia/00000008_001.png": "Pneumonia",
    }
    assert [(example.patient, example.image_key) for example in found.examples] == [
        ("series:nejm", "image:nejm-a"),
        ("nih:00000005", "image:00000005_003"),
        ("nih:00000008", "image:00000008_001"),
    ]


# ieee8023


def test_ieee8023_takes_frontal_x_rays_of_the_three_classes_and_counts_the_rest(tmp_path):
    rows = [
        ("2", "COVID-19", "PA", "X-ray", "a.jpg"),
        ("2", '"COVID-19, ARDS"', "AP", "X-ray", "b.jpg"),
        ("3", "Pneumonia/Viral/SARS", "AP Supine", "X-ray", "c.png"),
        ("4", "No Finding", "PA", "X-ray", "d.png"),
        ("5", "Streptococcus", "PA", "X-ray", "e.png"),
        ("6", "COVID-19", "L", "X-ray", "lateral.png"),
        ("6", "COVID-19", "Axial", "CT", "ct.png"),
        ("7", "COVID-19", "", "X-ray", "unknown-view.png"),
        ("8", "todo", "PA", "X-ray", "todo.png"),
        ("8", "todo", "PA", "X-ray", "todo-2.png"),
        ("9", "", "PA", "X-ray", "no-finding.png"),
        ("10", "COVID-19", "PA", "", "no-modality.png"),
        ("11", "COVID-19", "PA", "X-ray", "missing.nii.gz"),
    ]
    root = metadata(tmp_path / "cohen", "".join(",".join(row) + "\n" for row in rows))
    touch(root, *(f"images/{row[4]}" for row in rows if row[4] != "missing.nii.gz"), "images/no-row.png", "images/x.txt")
    found = readers.read(root)
    assert (found.layout, found.source) == ("ieee8023", "cohen")
    assert [(e.path.name, e.label, e.patient, e.view, e.image_key) for e in found.examples] == [
        ("a.jpg", "COVID-19", "ieee8023:2", "PA", "image:a"),
        ("b.jpg", "COVID-19", "ieee8023:2", "AP", "image:b"),
        ("c.png", "Pneumonia", "ieee8023:3", "AP Supine", "image:c"),
        ("d.png", "No-Findings", "ieee8023:4", "PA", "image:d"),
        ("e.png", "Pneumonia", "ieee8023:5", "PA", "image:e"),
    ]
    assert +found.left_out == {
        "not an image file, by its ending": 1,
        "view L": 1,
        "modality CT": 1,
        "view not stated": 1,
        "finding todo": 2,
        "finding not stated": 1,
        "modality not stated": 1,
        "named in metadata.csv but not in images/": 1,
        "in images/ but not in metadata.csv": 1,
    }


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        ("COVID-19", "COVID-19"),
        ("COVID-19, ARDS", "COVID-19"),
        ("Pneumonia/Viral/COVID-19", "COVID-19"),
        ("Pneumonia/Viral/SARS", "Pneumonia"),
        ("Pneumonia", "Pneumonia"),
        ("SARS", "Pneumonia"),
        ("Klebsiella", "Pneumonia"),
        ("No Finding", "No-Findings"),
        *((other, None) for other in ("", "todo", "Unknown", "ARDS", "Tuberculosis", "No Finding, ARDS")),
    ],
)
def test_classes_of_findings(finding, label):
    assert class_of_finding(finding) == label


def test_metadata_without_a_needed_column_names_it(tmp_path):
    root = metadata(tmp_path, "2,COVID-19,X-ray,a.jpg\n", "patientid,finding,modality,filename\n")
    assert "has no column view;" in message_of(root)
    assert "has no column filename, finding, modality, patientid, view; give it that header" in message_of(
        metadata(tmp_path, "", "")
    )


def test_metadata_row_that_is_cut_off_stops_nothing(tmp_path):
    root = touch(metadata(tmp_path, "2,COVID-19,PA,X-ray,a.jpg\n3\n"), "images/a.jpg")
    assert len(readers.read(root).examples) == 1


def test_metadata_saved_by_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path):
    root = touch(metadata(tmp_path, "2,COVID-19,PA,X-ray,a.jpg\n", "\ufeff" + HEADER), "images/a.jpg")
    assert len(readers.read(root).examples) == 1


def test_metadata_in_another_encoding_is_a_user_error(tmp_path):
    root = metadata(tmp_path, "")
    (root / "metadata.csv").write_bytes(HEADER.encode() + b"2,COVID-19,PA,X-ray,caf\xe9.jpg\n")
    assert "metadata.csv" in message_of(root)


# The Radiography Database


def test_radiography_without_origins_tells_files_apart(tmp_path):
    found = readers.read(radiography(tmp_path))
    assert found.layout == "radiography"
    assert labels_of(found) == {
        "COVID-19/COVID-19 (1).jpg": "COVID-19",
        "NORMAL/NORMAL (1).jpg": "No-Findings",
        "Viral Pneumonia/Viral Pneumonia (1).jpg": "Pneumonia",
    }
    assert len({example.patient for example in found.examples}) == 3
    assert {example.image_key for example in found.examples} == {""}


def test_radiography_with_origins_knows_whose_film_each_is(tmp_path):
    root = radiography(tmp_path)
    (root / "origin.csv").write_text(
        "class,file,origin_file\n"
        "COVID-19,COVID-19 (1).jpg,covid-19-pneumonia-24-day12.jpg\n"
        "NORMAL,NORMAL (1).jpg,IM-0115-0001.jpeg\n"
        "Viral Pneumonia,Viral Pneumonia (1).jpg,person1000_virus_1681.jpeg\n"
    )
    assert [(example.patient, example.image_key) for example in readers.read(root).examples] == [
        ("series:covid-19-pneumonia-24", "image:covid-19-pneumonia-24-day12"),
        ("kermany:IM-0115", "image:im-0115-0001"),
        ("kermany:person1000", "image:person1000_virus_1681"),
    ]


def test_origins_without_the_needed_columns_are_a_user_error(tmp_path):
    root = radiography(tmp_path)
    (root / "origin.csv").write_text("a,b\n1,2\n")
    assert "origin.csv" in message_of(root)


@pytest.mark.parametrize("folders", [("COVID-19", "NORMAL", "Viral Pneumonia"), ("Covid-19", "No_findings", "Pneumonia")])
def test_ones_own_films_in_folders_named_as_a_collection_are_not_one_patient(tmp_path, folders):
    # Numbered from 1 in each folder: what is published about no name must not join people of different classes.
    root = touch(tmp_path, *(f"{folder}/{number}.png" for folder in folders for number in (1, 2)))
    examples = readers.read(root).examples
    assert len(set(patients_of(examples, {}))) == 6


# Which layout, and what is wrong


def test_layouts_are_told_by_what_lies_in_the_folder(tmp_path):
    assert readers.detect(ozturk(tmp_path / "a")) == "ozturk"
    assert readers.detect(radiography(tmp_path / "b")) == "radiography"
    assert readers.detect(metadata(tmp_path / "c", "")) == "ieee8023"
    assert readers.detect(touch(tmp_path / "d", "covid/a.png")) == "folder"


def test_layout_that_is_named_is_taken(tmp_path):
    root = ozturk(tmp_path)
    assert readers.read(root, "folder").layout == "folder"
    assert readers.read(root, "ozturk").layout == "ozturk"


@pytest.mark.parametrize(
    ("layout", "missing"), [("ozturk", "Covid-19"), ("radiography", "COVID-19"), ("ieee8023", "images")]
)
def test_layout_that_does_not_fit_names_what_is_missing(tmp_path, layout, missing):
    message = message_of(touch(tmp_path, "covid/a.png"), layout)
    assert f"is not laid out as {layout}: it has no {missing};" in message


def test_unknown_layout_is_a_user_error(tmp_path):
    assert "layout" in message_of(touch(tmp_path, "covid/a.png"), "kaggle")


def test_empty_folder_is_said(tmp_path):
    assert message_of(tmp_path).startswith(f"{tmp_path} is empty;")
    (tmp_path / ".DS_Store").touch()
    assert message_of(tmp_path).startswith(f"{tmp_path} is empty;")


def test_folder_with_no_class_in_it_is_said(tmp_path):
    message = message_of(touch(tmp_path, "ct/a.png", "b.png"))
    assert "no subfolder named after a class (COVID-19, No-Findings, Pneumonia)" in message
    assert "holds no image of a known class" in message_of(tmp_path, "folder")


@pytest.mark.parametrize("layout", ["folder", "ozturk"])
def test_class_folder_without_an_image_is_said(tmp_path, layout):
    root = ozturk(tmp_path)
    (root / "Pneumonia" / "00000008_001.png").rename(root / "Pneumonia" / "notes.txt")
    assert message_of(root, layout).startswith(f"{root / 'Pneumonia'} holds no image;")


def test_metadata_that_gives_no_film_is_said(tmp_path):
    assert "holds no image of a known class" in message_of(metadata(tmp_path, "2,COVID-19,PA,X-ray,a.jpg\n"))


@pytest.mark.parametrize("layout", ["auto", "folder", "ozturk"])
def test_folder_that_is_not_there_or_no_folder_is_a_user_error(tmp_path, layout):
    assert "missing" in message_of(tmp_path / "missing", layout)
    (tmp_path / "file").touch()
    assert "file" in message_of(tmp_path / "file", layout)


# The real ones


@pytest.mark.parametrize(
    ("name", "counts", "left_out"),
    [
        ("ozturk", {"COVID-19": 124, "No-Findings": 500, "Pneumonia": 500}, {}),
        (
            "ieee8023",
            {"COVID-19": 423, "No-Findings": 13, "Pneumonia": 80},
            {
                "finding todo": 50,
                "finding ARDS": 4,
                "finding Unknown": 1,
                "view not stated": 33,
                "view ?": 1,
                "in images/ but not in metadata.csv": 4,
            },
        ),
        ("radiography", {"COVID-19": 219, "No-Findings": 1341, "Pneumonia": 1345}, {}),
    ],
)
def test_real_collection_is_told_and_counted(shared_data, name, counts, left_out):
    found = readers.read(shared_data / name)
    assert found.layout == name
    assert Counter(example.label for example in found.examples) == counts
    assert +found.left_out == left_out


def test_real_patients_have_several_films_and_classes_are_not_joined(shared_data):
    examples = readers.read(shared_data / "ozturk").examples
    films_of = Counter(example.patient for example in examples)
    assert len(films_of) == 770
    assert all(Path(e.path).name.startswith(e.patient[4:]) for e in examples if e.patient.startswith("nih:"))
    joined = {e.patient for e in examples if e.label == "COVID-19"} & {e.patient for e in examples if e.label != "COVID-19"}
    assert not joined
