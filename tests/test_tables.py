"""Tables as people have them: encodings, delimiters, headers, paths, and the published ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from covidjax.data.label_tables import NO_CLASS, SEVERAL, kind_of, read_labels, split_of
from covidjax.data.tables import PathIndex, is_frontal, read_table
from covidjax.errors import UsageError, UserError
from covidjax.labels import ClassNames, plain

ROWS = [("x/1.png", "Normal"), ("é/ü 2.png", "TB"), ("x/3, final.png", "Normal")]


def text(delimiter: str, header: tuple[str, str] = ("path", "label"), end: str = "\n") -> str:
    cells = [tuple(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in (header, *ROWS)]
    return end.join(delimiter.join(row) for row in cells) + end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_encoding_and_delimiter_gives_the_same_rows(tmp_path: Path, encoding: str, delimiter: str, end: str):
    path = tmp_path / "labels.csv"
    path.write_bytes(text(delimiter, end=end).encode(encoding))
    kind, rows = read_labels(path)
    assert (kind, [(row.path, row.label) for row in rows]) == ("table", ROWS)
    assert [row.number for row in rows] == [2, 3, 4]


@pytest.mark.parametrize("before", ["\n\n", "sep=;\n", "\ufeffsep=;\r\n"])
def test_what_spreadsheets_put_before_the_header_is_skipped(tmp_path: Path, before: str):
    path = tmp_path / "labels.csv"
    path.write_text(before + "path;label\nx.png;TB\n", encoding="utf-8")
    (row,) = read_labels(path)[1]
    assert (row.path, row.label) == ("x.png", "TB")


@pytest.mark.parametrize(
    "header",
    [
        *itertools.product(("path", "Path", " file_name ", "FileName", "Image Index", "image", "FILE"), ("label", "Class")),
        *itertools.product(("path",), ("Finding Labels", "diagnosis", "LABELS", "finding", "category")),
    ],
)
def test_headers_in_any_spelling(tmp_path: Path, header: tuple[str, str]):
    path = tmp_path / "labels.csv"
    path.write_text(text(",", header), encoding="utf-8")
    assert [(row.path, row.label) for row in read_labels(path)[1]] == ROWS


def test_every_column_that_is_known_is_read(tmp_path: Path):
    path = tmp_path / "labels.tsv"
    path.write_text(
        "Patient ID\tPath\tDataset\tSubset\tProjection\tLabel\tage\n7\ta.png\twest\tvalidation\tAP supine\tTB\t40\n"
        "8\tb.png\twest\t3\tlateral\tTB\n"
    )
    first, second = read_labels(path)[1]
    assert (first.patient, first.source, first.split, first.view, first.left_out) == ("7", "west", "val", "AP supine", "")
    assert (second.split, second.left_out) == ("3", "view lateral")


def test_delimiter_of_the_header_wins_over_what_is_more_frequent(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text("path;label;note\na.png;TB;one, two, three, four, five\nb.png;TB;six, seven, eight, nine\n")
    assert [row.label for row in read_labels(path)[1]] == ["TB", "TB"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a,b\n1,2\n", "has no column label, path; give it that header; its columns are a, b."),
        (b"path,b\n1,2\n", "has no column label;"),
        (b"", "has no column label, path; give it that header."),
        (b"\x00\x01\x02\xff" * 40, "is no text in UTF-8, UTF-16 or Windows-1252; save the table as CSV in UTF-8."),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00" * 20, "save the table as CSV in UTF-8."),
    ],
)
def test_what_is_no_table_is_said(tmp_path: Path, content: bytes, part: str):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_table_is_said(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        read_table(tmp_path / "gone.csv")


# Paths

FILES = ["set/a/1.png", "set/b/1.png", "set/b/2.PNG", "set/b/Ünï.png", "set/c d/3.dcm", "set/x/deep/4.jpg"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a/1.png", [0]),
        ("./b/1.png", [1]),
        ("b/../a/1.png", [0]),
        (" b\\1.png ", [1]),
        ("set\\b\\1.png", [1]),
        ("set/b/1.png", [1]),
        ('"b/1.png"', [1]),
        ("1.png", [0, 1]),
        ("2.png", [2]),
        ("B/2.png", [2]),
        ("b/Ünï.png", [3]),
        ("b/U\u0308ni\u0308.png", [3]),
        ("3.dcm", [4]),
        ("c d/3", [4]),
        ("3.png", [4]),
        ("4.jpeg", [5]),
        ("C:\\Users\\me\\set\\a\\1.png", [0]),
        ("/elsewhere/other name/x/deep/4.jpg", [5]),
        ("other/x/deep/4.jpg", [5]),
        ("deep/4.jpg", [5]),
        ("shallow/4.jpg", []),
        ("5.png", []),
        ("", []),
        ("..", []),
    ],
)
def test_files_that_paths_name(tmp_path: Path, path: str, found: list[int]):
    files = [tmp_path / file for file in FILES]
    assert PathIndex(files, [tmp_path / "set"], [path]).find(path, tmp_path / "set") == found


def test_whole_path_is_found_whichever_way_the_files_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for root in (Path("set"), tmp_path / "set"):
        index = PathIndex([root / "a/1.png", root / "b/1.png"], [root], [])
        for path in (tmp_path / "set/b/1.png", "set/b/1.png", "b/1.png"):
            assert index.find(str(path), "/elsewhere") == [1]
    assert PathIndex([tmp_path / "b/1.png"], [tmp_path], []).find("../b/1.png", tmp_path / "tables") == [0]


def test_file_that_the_table_names_itself_is_not_found_by_another_ending(tmp_path: Path):
    index = PathIndex([tmp_path / "1.jpg", tmp_path / "2.jpg"], [tmp_path], ["1.png", "1.jpg", "2.png"])
    assert [index.find(path, tmp_path) for path in ("1.png", "1.jpg", "2.png")] == [[], [0], [1]]


# Classes


def test_spellings_are_compared_without_case_and_punctuation():
    assert plain("Viral_Pneumonia") == plain("viral pneumonia ") == "viralpneumonia"
    assert plain("HIV+") != plain("HIV-")
    assert plain("肺炎") == "肺炎"


def test_classes_of_ones_own_are_understood_by_name_by_meaning_and_by_map():
    names = ClassNames(("TB", "normal"), {"scar": "tb", "Lung_Opacity": "TB"})
    for name in ("TB", "tb", "T.B.", "Tuberculosis", "scar", "lung opacity"):
        assert names.of(name) == "TB"
    for name in ("Normal", "No Finding", "healthy"):
        assert names.of(name) == "normal"
    assert names.of("COVID") == "COVID-19"  # not asked for, but known
    assert names.of("effusion") is None
    assert names.unmet == set()


def test_name_that_could_be_two_of_the_classes_is_none():
    names = ClassNames(("Viral Pneumonia", "Bacterial Pneumonia", "Normal"))
    assert [names.of(name) for name in ("viral_pneumonia", "Bacterial pneumonia", "pneumonia")] == [
        *("Viral Pneumonia", "Bacterial Pneumonia"),
        None,
    ]


def test_classes_that_are_found():
    names = ClassNames((), {"Lung_Opacity": "Lung Opacity", "x": "pneumonia"})
    assert names.classes == ("COVID-19", "No-Findings", "Pneumonia", "Lung Opacity")
    assert (names.of("x"), names.of("lung-opacity")) == ("Pneumonia", "Lung Opacity")


@pytest.mark.parametrize("classes", [("TB",), ("TB", "tb"), ("a", "b", "A")])
def test_classes_that_are_not_several_are_refused(classes: tuple[str, ...]):
    with pytest.raises(UsageError):
        ClassNames(classes)


def test_map_to_a_class_that_was_not_asked_for_is_refused():
    with pytest.raises(UsageError, match="Scar is none of the classes TB, normal"):
        ClassNames(("TB", "normal"), {"x": "Scar"})


# Published tables

NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    "00000001_000.png,Cardiomegaly|Pneumonia,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
    "00000013_005.png,No Finding,5,13,60,M,AP,3056,2544,0.139,0.139,\n"
    "00000014_000.png,Effusion,0,14,60,M,AP,3056,2544,0.139,0.139,\n"
)

CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Pneumonia,Support Devices\n"
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,F,68,Frontal,AP,1.0,,,1.0\n"
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,F,87,Frontal,PA,,0.0,1.0,\n"
    "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,F,87,Lateral,,,0.0,1.0,\n"
    "CheXpert-v1.0-small/train/patient00003/study1/view1_frontal.jpg,M,41,Frontal,AP,,1.0,-1.0,\n"
    "CheXpert-v1.0-small/train/patient00004/study1/view1_frontal.jpg,M,41,Frontal,AP,,-1.0,0.0,\n"
    "CheXpert-v1.0-small/train/patient00005/study1/view1_frontal.jpg,M,41,Frontal,AP,1.0,,-1.0,\n"
)

RSNA_LABELS = (
    "patientId,x,y,width,height,Target\naaa,,,,,0\nbbb,264.0,152.0,213.0,379.0,1\nbbb,562.0,152.0,256.0,453.0,1\n"
    "ccc,,,,,0\n"
)
RSNA_CLASSES = "patientId,class\naaa,No Lung Opacity / Not Normal\nbbb,Lung Opacity\nbbb,Lung Opacity\nccc,Normal\n"

COVIDX = (
    "3 SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg pneumonia cohen\n"
    "7 COVID (12).png COVID-19 sirm\nabc-d abc-d.png normal rsna\n"
)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_nih(tmp_path: Path):
    kind, rows = read_labels(write(tmp_path, Data_Entry_2017__csv=NIH) / "Data_Entry_2017.csv")
    assert kind == "nih"
    assert [row.decide(ClassNames()) for row in rows] == [("Pneumonia", ""), ("No-Findings", ""), (None, NO_CLASS)]
    assert [(row.path, row.patient, row.view) for row in rows][:2] == [
        ("00000001_000.png", "nih:00000001", "PA"),
        ("00000013_005.png", "nih:00000013", "AP"),
    ]
    two = ClassNames(("Cardiomegaly", "Pneumonia"))
    assert rows[0].decide(two) == (None, SEVERAL)
    assert rows[0].decide(ClassNames(("Cardiomegaly", "Effusion"))) == ("Cardiomegaly", "")


def test_chexpert_takes_frontal_images_and_leaves_uncertain_ones_out(tmp_path: Path):
    kind, rows = read_labels(write(tmp_path, train__csv=CHEXPERT) / "train.csv")
    assert kind == "chexpert"
    assert [row.decide(ClassNames()) for row in rows] == [
        ("No-Findings", ""),
        ("Pneumonia", ""),
        (None, "view Lateral"),
        (None, "Pneumonia uncertain (-1)"),
        (None, NO_CLASS),
        (None, "Pneumonia uncertain (-1)"),
    ]
    assert [row.decide(ClassNames(("Cardiomegaly", "No Finding")))[0] for row in rows] == [
        *("No Finding", "Pneumonia", None, "Cardiomegaly"),  # the second is of a class that was not asked for
        *(None, "No Finding"),
    ]
    assert (rows[1].patient, rows[1].view, rows[1].split) == ("chexpert:patient00002", "PA", "train")


@pytest.mark.parametrize("name", ["stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"])
def test_rsna_either_table_brings_the_other(tmp_path: Path, name: str):
    write(tmp_path, stage_2_train_labels__csv=RSNA_LABELS, stage_2_detailed_class_info__csv=RSNA_CLASSES)
    beside = {file.name: file for file in tmp_path.iterdir()}
    kind, rows = read_labels(tmp_path / name, beside)
    assert kind == "rsna"
    assert {row.path: row.decide(ClassNames())[0] for row in rows} == {
        "aaa": None,
        "bbb": "Pneumonia",
        "ccc": "No-Findings",
    }
    opacity = ClassNames(("Lung Opacity", "Normal", "other"), {"No Lung Opacity / Not Normal": "other"})
    assert [row.decide(opacity)[0] for row in rows] == ["other", "Lung Opacity", "Normal"]


def test_rsna_labels_alone_do_not_call_an_image_normal(tmp_path: Path):
    write(tmp_path, stage_2_train_labels__csv=RSNA_LABELS)
    rows = read_labels(tmp_path / "stage_2_train_labels.csv")[1]
    assert [row.decide(ClassNames())[0] for row in rows] == [None, "Pneumonia", None]
    mapped = ClassNames((), {"No Lung Opacity": "normal"})
    assert [row.decide(mapped)[0] for row in rows] == ["No-Findings", "Pneumonia", "No-Findings"]


def test_covidx(tmp_path: Path):
    kind, rows = read_labels(write(tmp_path, train__txt=COVIDX) / "train.txt")
    assert kind == "covidx"
    assert [(row.path, row.decide(ClassNames())[0], row.patient) for row in rows] == [
        ("SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg", "Pneumonia", "ieee8023:3"),
        ("COVID (12).png", "COVID-19", "covidx:sirm:7"),
        ("abc-d.png", "No-Findings", "rsna:abc-d"),
    ]
    assert {row.split for row in rows} == {"train"}


def test_covidx_negative_is_not_normal(tmp_path: Path):
    write(tmp_path, test_COVIDx9A__txt="1 a.png positive bimcv\n2 b.png negative bimcv\n")
    rows = read_labels(tmp_path / "test_COVIDx9A.txt")[1]
    assert [row.decide(ClassNames())[0] for row in rows] == ["COVID-19", None]
    assert [row.decide(ClassNames(("positive", "negative")))[0] for row in rows] == ["positive", "negative"]
    assert rows[1].decide(ClassNames((), {"negative": "No-Findings"}))[0] == "No-Findings"


def test_ieee8023_metadata_is_known_as_a_table_too(tmp_path: Path):
    write(tmp_path, metadata__csv="patientid,finding,view,modality,filename\n2,Pneumonia/Viral/SARS,AP erect,X-ray,a.png\n")
    kind, (row,) = read_labels(tmp_path / "metadata.csv")
    assert (kind, row.decide(ClassNames()), row.patient) == ("ieee8023", ("Pneumonia", ""), "ieee8023:2")


def test_kinds_are_told_by_their_columns(tmp_path: Path):
    own = write(tmp_path, own__csv="patientId,class,file_name\n1,TB,a.png\n") / "own.csv"
    assert kind_of(read_table(own)) == "table"


@pytest.mark.parametrize("view", ["PA", "AP", "AP Supine", "AP erect", "AP semi erect", "ap_portable", "Frontal", "pa "])
def test_frontal_views(view: str):
    assert is_frontal(view)


@pytest.mark.parametrize("view", ["", "?", "L", "Lateral", "LL", "Axial", "Coronal", "AP lateral decubitus", "apical"])
def test_other_views(view: str):
    assert not is_frontal(view)


def test_names_of_the_parts_of_a_split():
    names = {
        "train": "train",
        "Training": "train",
        "TRAIN_images": "train",
        "valid": "val",
        "Validation": "val",
        "val": "val",
    }
    assert {name: split_of(name) for name in names} == names
    assert [split_of(name) for name in ("test", "Testing", "test_COVIDx9A.txt", "tests", "trainee", "COVID")] == [
        *("test", "test", "test"),
        *("", "", ""),
    ]
