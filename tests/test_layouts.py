"""`prepare` and `score` of data as people have it: any classes, tables, split trees, masks beside images, archives."""

from __future__ import annotations

import json
import shlex
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TINY, refused, run
from test_dicom import make, written
from test_tables import CHEXPERT, COVIDX, NIH, RSNA_CLASSES, RSNA_LABELS

from covidjax.data import readers, synthetic
from covidjax.data.dataset import Dataset
from covidjax.images.find import find_images
from covidjax.runs import load, weights_file


def prepare(out: Path, *words: object, folds: int = 2) -> dict[str, Any]:
    """The manifest of a dataset that is prepared."""
    result = run("prepare", *words, "--out", out, "--folds", folds, "--image-size", 32, "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)
    assert len(Dataset(out).source(range(manifest["folds"]))) == manifest["images"]
    return manifest


def numbered(folder: str, count: int, start: int = 1) -> list[str]:
    return [f"{folder}/{number}.png" for number in range(start, start + count)]


def packed(folder: Path, archive: Path) -> Path:
    """A folder as an archive that holds the folder itself, as publishers' archives do."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for file in files:
                opened.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as opened:
            for file in files:
                opened.add(file, str(file.relative_to(folder.parent)))
    return archive


# Classes


def test_folders_of_ones_own_are_the_classes_that_are_asked_for(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("TB", 4), *numbered("normal", 3), *numbered("other", 2))
    manifest = prepare(tmp_path / "data", source, "--classes", "TB,normal")
    assert manifest["classes"] == ["TB", "normal"]
    assert manifest["per_class"] == {"TB": 4, "normal": 3}
    assert manifest["left_out"]["set"] == {"folder 'other' names no class": 2}
    assert Dataset(tmp_path / "data").preprocess.classes == ("TB", "normal")


def test_four_classes_and_names_that_are_mapped(write_films, tmp_path: Path):
    folders = ("Lungenembolie", "COVID 19", "Bakteriell", "gesund", "Viral pneumonia")
    source = write_films(tmp_path / "set", *(name for folder in folders for name in numbered(folder, 3)))
    words = ("--classes", "PE,COVID-19,pneumonia,healthy", "--map", "Lungenembolie=PE")
    manifest = prepare(tmp_path / "data", source, *words, "--map", "Bakteriell=Pneumonia", "--map", "gesund=healthy")
    assert manifest["per_class"] == {"PE": 3, "COVID-19": 3, "pneumonia": 6, "healthy": 3}


def test_map_of_a_name_that_nothing_has_is_said(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("TB", 2), *numbered("normal", 2))
    notes = prepare(tmp_path / "data", source, "--classes", "TB,normal", "--map", "x=TB")["notes"]
    assert notes == ["set: --map names x, and nothing is called so; there are TB (2), normal (2)"]


def test_folders_of_unknown_names_are_listed_with_the_command_that_takes_them(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("T B", 4), *numbered("normal", 3))
    message = refused("prepare", source, "--out", tmp_path / "data", code=1)
    for part in ("T B (4) name no class", "--classes 'T B,normal'", "--map 'T B=CLASS'", "No-Findings (normal, healthy"):
        assert part in message
    source = write_films(tmp_path / "others", *numbered("A", 1), *numbered("B", 2))
    message = refused("prepare", source, "--out", tmp_path / "data", code=1)
    for part in ("no subfolder named after a class", "B (2), A (1)", "--classes A,B"):
        assert part in message


def test_unknown_folder_beside_known_ones_is_said(films: Path, write_films, tmp_path: Path):
    shutil.copytree(films, tmp_path / "films")
    write_films(tmp_path / "films", *numbered("Lung_Opacity", 2))
    result = run("prepare", tmp_path / "films", "--out", tmp_path / "data", "--image-size", 32)
    assert result.exit_code == 0
    assert "Lung_Opacity (2) name no class" in result.stderr
    assert "--map Lung_Opacity=CLASS" in result.stderr
    assert "folder 'Lung_Opacity' names no class" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--classes", "TB"), 2, "TB is one class only"),
        (("--classes", "TB,tb"), 2, "not all different"),
        (("--classes", "TB,Silicosis"), 1, "There is no image of class Silicosis; normal (1) name no class"),
        (("--classes", "TB,normal", "--map", "TB=Scar"), 2, "Scar is none of the classes TB, normal"),
        (("--map", "TB"), 2, "--map takes NAME=CLASS"),
        (("--masks", "--map", "a=b"), 2, "leave --classes and --lungs out"),
        (("--layout", "split"), 1, "has no folders train, val or test"),
        (("--layout", "nih"), 1, "has no table of layout nih"),
        (("--table", "gone.csv"), 2, "gone.csv does not exist"),
        (("--classes", "TB,normal", "--keep-split"), 1, "belongs to no part of a split"),
    ],
)
def test_what_cannot_be_prepared_is_said(write_films, tmp_path: Path, words: tuple[str, ...], code: int, part: str):
    source = write_films(tmp_path / "set", "TB/1.png", "normal/1.png")
    assert part in refused("prepare", source, "--out", tmp_path / "data", "--folds", 2, *words, code=code)
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_classes_flow_from_folders_to_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Prepare, train, evaluate, score with folders and with a table, and read the report, with classes of one's own."""
    classes = ("Silicosis", "TB", "normal", "肺炎 $ (viral) $")
    for index, image in enumerate(synthetic.draw_images(24, size=40, seed=3)):
        folder = tmp_path / "set" / classes[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        synthetic.Image.fromarray(image.image).save(folder / f"{index}.png")
    words = ("--classes", ",".join(classes))
    assert prepare(tmp_path / "data", tmp_path / "set", *words)["per_class"] == dict.fromkeys(classes, 6)
    trained = run("train", "--data", tmp_path / "data", "--run", tmp_path / "run", "--epochs", 1, "--cv", *TINY)
    assert trained.exit_code == 0, trained.output
    assert all(name in trained.stdout for name in classes)
    evaluated = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    assert list(evaluated["metrics"]["per_class"]) == list(classes)
    scored = json.loads(run("score", tmp_path / "set", "--checkpoint", tmp_path / "run", "--json").stdout)
    assert (scored["trained_on"], scored["metrics"]) == (24, None)
    monkeypatch.setattr(load, "trained_on", lambda _: set())
    scored = json.loads(run("score", tmp_path / "set", "--checkpoint", tmp_path / "run", "--json").stdout)
    assert {row["prediction"] for row in scored["rows"]} <= set(classes)
    assert set(scored["rows"][0]) >= {f"p_{name}" for name in classes}
    assert {name: values["support"] for name, values in scored["metrics"]["per_class"].items()} == dict.fromkeys(classes, 6)
    table = tmp_path / "truth.csv"
    lines = [f"{path.name},{path.parent.name.upper()}" for path in (tmp_path / "set").rglob("*.png")]
    table.write_text("file_name,Class\n" + "\n".join(lines))
    words = ("score", tmp_path / "set", "--checkpoint", tmp_path / "run", "--labels", table, "--json")
    assert json.loads(run(*words).stdout)["metrics"] == scored["metrics"]
    assert "TB" in (tmp_path / "run" / "report" / "tables.txt").read_text()
    loaded, file = load.load_run(tmp_path / "run"), tmp_path / "one.safetensors"
    weights_file.write(file, loaded.run, loaded.networks, "two folds", load.trained_on(tmp_path / "run"))
    words = ("score", tmp_path / "set", "--checkpoint", file, "--json")
    assert json.loads(run(*words).stdout)["metrics"]["classes"] == list(classes)


# Tables


def test_table_of_ones_own(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("x", 6), *numbered("y/z", 6), "unlisted.png")
    (tmp_path / "lists").mkdir()
    rows = [
        *(f"x\\{number}.png;TB;p{number // 2};PA" for number in range(1, 6)),
        "x/6.png;TB;p9;Lateral",
        *(f" {source}/y/z/{number}.png ;Normal;q{number};AP" for number in range(1, 5)),
        "y/z/5.png;Normal|TB;q5;AP",
        "y/z/6.png;Scar;q6;AP",
        "gone.png;TB;q6;AP",
    ]
    table = tmp_path / "lists" / "labels.csv"
    table.write_text("\ufeffFile_Name;Label;PatientID;View\n" + "\n".join(rows) + "\n", encoding="utf-16")
    manifest = prepare(tmp_path / "data", source, "--table", table, "--classes", "TB,Normal")
    assert manifest["per_class"] == {"TB": 5, "Normal": 4}
    assert manifest["patients"] == 3 + 4
    assert manifest["left_out"]["set"] == {
        "view Lateral": 1,
        "findings of two classes": 1,
        "no finding that names a class": 1,
        "not there, but listed in labels.csv": 1,
        "not listed in the table": 1,
    }
    assert manifest["undecided"] == [{"path": str(source / "y/z/5.png"), "source": "set", "label": "Normal|TB"}]
    assert manifest["sources"][0]["layout"] == "table"
    (example, *_) = readers.read(source, labels=table, names=readers.ClassNames(("TB", "Normal"))).examples
    assert (example.patient, example.view) == ("table:p0", "PA")


def test_one_table_of_two_sources_counts_a_row_once(write_films, tmp_path: Path):
    sources = [write_films(tmp_path / name, *numbered(name, 4)) for name in ("a", "b")]
    rows = [f"{name}/{number}.png,{('covid', 'normal')[number % 2]}" for name in "ab" for number in range(1, 6)]
    (tmp_path / "labels.csv").write_text("ImgPath,label\n" + "\n".join([*rows, "c/1.png,covid"]))
    left_out = prepare(tmp_path / "data", *sources, "--table", tmp_path / "labels.csv")["left_out"]
    assert left_out == {"a": {"not there, but listed in labels.csv": 3}, "b": {}}


def test_a_table_that_lacks_a_column_is_named(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("images", 2))
    (source / "list.csv").write_text("radiograph,what\n1.png,covid\n")
    message = refused("prepare", source, "--out", tmp_path / "data", code=1)
    assert (
        f"{source / 'list.csv'} has no column label, path; give it that header; its columns are radiograph, what" in message
    )
    assert "--classes" not in message


def test_a_part_of_a_split_without_classes_is_called_so(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("train/covid", 3), *numbered("train/normal", 3), *numbered("test", 2))
    assert prepare(tmp_path / "data", source)["left_out"]["set"] == {"folder 'test' holds no class folders": 2}


def test_table_within_the_folder_is_found(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("images", 8))
    lines = [f"images/{number}.png,{('TB', 'normal')[number % 2]},{number}" for number in range(1, 9)]
    (source / "metadata.csv").write_text("file_name,label,dataset\n" + "\n".join(lines))
    manifest = prepare(tmp_path / "data", source, "--classes", "TB,normal")
    assert (manifest["per_class"], manifest["sources"][0]["layout"]) == ({"TB": 4, "normal": 4}, "table")
    assert len(manifest["per_source"]) == 8


def test_split_that_a_table_states_is_kept(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("x", 12))
    lines = [f"x/{n}.png,{('covid', 'normal')[n % 2]},{('part 1', 'part 2', 'Testing')[n % 3]}" for n in range(1, 13)]
    (tmp_path / "labels.csv").write_text("path,label,Subset\n" + "\n".join(lines))
    manifest = prepare(tmp_path / "data", source, "--table", tmp_path / "labels.csv", "--keep-split")
    assert manifest["splits"] == {"fold0": "test", "fold1": "part 1", "fold2": "part 2"}
    assert all(sum(counts.values()) == 4 for counts in manifest["per_fold"].values())


def test_table_that_names_no_image_shows_one_path_of_each(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", "x/1.png")
    (tmp_path / "labels.csv").write_text("path,label\ny/2.png,normal\n")
    message = refused("prepare", source, "--table", tmp_path / "labels.csv", "--out", tmp_path / "data", code=1)
    assert "y/2.png" in message
    assert str(source / "x/1.png") in message


def test_two_labels_for_one_image_are_never_decided(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("x", 5))
    rows = ["1,covid", "2,covid", "3,normal", "4,normal", "5,covid", "5,normal", "4,effusion"]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(f"{row}" for row in rows))
    manifest = prepare(tmp_path / "data", source, "--table", tmp_path / "labels.csv")
    assert manifest["per_class"] == {"COVID-19": 2, "No-Findings": 2}
    assert manifest["left_out"]["set"] == {"findings of two classes": 1, "listed twice": 2}


def nih(root: Path, write_films) -> Path:
    lines = [*NIH.splitlines()]
    for number in range(20, 26):
        label = ("No Finding", "Pneumonia|Edema")[number % 2]
        lines.append(f"000000{number}_000.png,{label},0,{number},50,M,PA,2682,2749,0.143,0.143,")
    lines.append("00000099_000.png,No Finding,0,99,50,M,PA,2682,2749,0.143,0.143,")
    names = [line.split(",")[0] for line in lines[1:-1]]
    write_films(root, *(f"images_00{1 + index % 3}/images/{name}" for index, name in enumerate(names)))
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "test_list.txt").write_text("00000001_000.png\n00000013_005.png\n00000020_000.png\n00000021_000.png\n")
    return root


def test_nih_as_it_comes(write_films, tmp_path: Path):
    source = nih(tmp_path / "nih", write_films)
    manifest = prepare(tmp_path / "data", source)
    assert manifest["sources"][0]["layout"] == "nih"
    assert manifest["per_class"] == {"No-Findings": 4, "Pneumonia": 4}
    assert manifest["left_out"]["nih"] == {
        "no finding that names a class": 1,
        "not there, but listed in Data_Entry_2017.csv": 1,
    }
    assert any("Edema (3)" in note for note in manifest["notes"])
    rows = Dataset(tmp_path / "data").original_files() or []
    assert all(row["age"].isdigit() and row["sex"] in ("M", "F") and row["view"] in ("PA", "AP") for row in rows)
    own = prepare(tmp_path / "own", source, "--classes", "No Finding,Cardiomegaly,Effusion,Edema", "--keep-split")
    assert own["per_class"] == {"No Finding": 4, "Cardiomegaly": 1, "Effusion": 1, "Edema": 3}
    assert own["splits"] == {"fold0": "test", "fold1": "train"}
    assert sum(own["per_fold"]["fold0"].values()) == 4


def test_rsna_as_it_comes(tmp_path: Path):
    source = tmp_path / "rsna"
    (source / "stage_2_train_images").mkdir(parents=True)
    extra = [f"n{number},,,,,0" for number in range(3)] + [f"o{number},1,1,9,9,1" for number in range(2)]
    classes = [f"n{number},Normal" for number in range(3)] + [f"o{number},Lung Opacity" for number in range(2)]
    (source / "stage_2_train_labels.csv").write_text(RSNA_LABELS + "\n".join(extra))
    (source / "stage_2_detailed_class_info.csv").write_text(RSNA_CLASSES + "\n".join(classes))
    random = np.random.default_rng(0)
    for name in ("aaa", "bbb", "ccc", "n0", "n1", "n2", "o0", "o1"):
        pixels = random.integers(0, 256, (40, 40), np.uint8)
        (source / "stage_2_train_images" / f"{name}.dcm").write_bytes(written(make(pixels)))
    manifest = prepare(tmp_path / "data", source)
    assert (manifest["sources"][0]["layout"], manifest["per_class"]) == ("rsna", {"No-Findings": 4, "Pneumonia": 3})
    assert manifest["left_out"]["rsna"] == {"no finding that names a class": 1}
    words = ("--map", "Lung Opacity=opacity", "--map", "No Lung Opacity / Not Normal=other")
    table = source / "stage_2_train_labels.csv"
    own = prepare(tmp_path / "own", source, "--table", table, "--classes", "opacity,normal", *words[:2])
    assert own["per_class"] == {"opacity": 3, "normal": 4}


def chexpert(root: Path, write_films) -> Path:
    lines = [*CHEXPERT.splitlines()]
    for number in range(10, 16):
        values = ("1.0,,,", ",,1.0,")[number % 2]
        lines.append(f"CheXpert-v1.0-small/train/patient000{number}/study1/view1_frontal.jpg,F,60,Frontal,AP,{values}")
    valid = [lines[0]]
    for number in range(30, 32):
        values = ("1.0,0.0,0.0,0.0", "0.0,0.0,1.0,0.0")[number % 2]
        valid.append(f"CheXpert-v1.0-small/valid/patient000{number}/study1/view1_frontal.jpg,F,60,Frontal,AP,{values}")
    names = [line.split(",")[0].partition("/")[2] for line in [*lines[1:], *valid[1:]]]
    write_films(root, *names)
    (root / "train.csv").write_text("\n".join(lines))
    (root / "valid.csv").write_text("\n".join(valid))
    return root


def test_chexpert_as_it_comes(write_films, tmp_path: Path):
    source = chexpert(tmp_path / "renamed", write_films)
    manifest = prepare(tmp_path / "data", source, "--keep-split")
    assert manifest["sources"][0]["layout"] == "chexpert"
    assert manifest["per_class"] == {"No-Findings": 5, "Pneumonia": 5}
    assert manifest["splits"] == {"fold0": "val", "fold1": "train"}
    assert manifest["per_fold"]["fold0"] == {"No-Findings": 1, "Pneumonia": 1}
    assert manifest["patients"] == 10
    assert manifest["left_out"]["renamed"] == {
        "view Lateral": 1,
        "Pneumonia uncertain (-1)": 2,
        "no finding that names a class": 1,
    }


def test_a_class_that_images_have_with_others_only_is_not_said_to_be_missing(write_films, tmp_path: Path):
    source, out = chexpert(tmp_path / "renamed", write_films), tmp_path / "data"
    message = refused("prepare", source, "--out", out, "--classes", "Support Devices,No Finding,Pneumonia", code=1)
    assert message.startswith("1 images have Support Devices, and none of them can be taken")
    assert "name fewer --classes" in message
    message = refused("prepare", source, "--out", out, "--classes", "Edema,No Finding", code=1)
    assert message.startswith("There is no image of class Edema")
    table = tmp_path / "uncertain.csv"
    rows = [row.replace("1.0,,,1.0", ",,-1.0,").replace(",,0.0,1.0,", ",0.0,1.0,,") for row in CHEXPERT.splitlines()]
    table.write_text("\n".join(rows))
    message = refused("prepare", source, "--table", table, "--out", out, "--classes", "Pneumonia,Cardiomegaly", code=1)
    assert message.startswith("3 images have Pneumonia, and none")


def test_covidx_as_it_comes(write_films, tmp_path: Path):
    source = tmp_path / "covidx"
    lines = COVIDX.splitlines()
    lines += [f"{number} a{number}.png {('normal', 'COVID-19', 'pneumonia')[number % 3]} rsna" for number in range(9)]
    (source / "train").mkdir(parents=True)
    (source / "train.txt").write_text("\n".join(lines))
    (source / "test.txt").write_text(
        "".join(f"t{i} a{i}.png {('normal', 'COVID-19', 'pneumonia')[i]} rsna\n" for i in range(3))
    )
    names = ["SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg", "COVID (12).png", "abc-d.png"]
    write_films(source, *(f"train/{name}" for name in [*names, *(f"a{i}.png" for i in range(9))]))
    write_films(source, *(f"test/a{i}.png" for i in range(3)))
    manifest = prepare(tmp_path / "data", source)
    assert manifest["sources"][0]["layout"] == "covidx"
    assert manifest["per_class"] == {"COVID-19": 5, "No-Findings": 5, "Pneumonia": 5}
    kept = prepare(tmp_path / "kept", source, "--keep-split")
    assert {fold: sum(counts.values()) for fold, counts in kept["per_fold"].items()} == {"fold0": 3, "fold1": 12}


def test_published_tables_are_the_truth_for_score(trained: Path, write_films, tmp_path: Path):
    sources = {"train.csv": chexpert(tmp_path / "c", write_films), "Data_Entry_2017.csv": nih(tmp_path / "n", write_films)}
    for name, source in sources.items():
        result = run("score", source, "--checkpoint", trained, "--labels", source / name, "--gate", "off", "--json")
        assert result.exit_code == 0, result.output
        support = {label: row["support"] for label, row in json.loads(result.stdout)["metrics"]["per_class"].items()}
        assert support == {"COVID-19": 0, "No-Findings": 4, "Pneumonia": 4}


@pytest.mark.parametrize("name", ["absolute", "backslash", "blanks", "semicolon"])
@pytest.mark.parametrize("given", ["films", "absolute"])
def test_shared_case_labels_paths(trained: Path, shared_cases: Path, tmp_path: Path, monkeypatch, name: str, given: str):
    case = shared_cases / "labels-paths"
    labels = tmp_path / "labels.csv"
    labels.write_text((case / f"{name}.csv").read_text().replace("@HERE@", str(case)))
    monkeypatch.chdir(case)
    films = "films" if given == "films" else case / "films"
    result = run("score", films, "--checkpoint", trained, "--labels", labels)
    assert result.exit_code == 0, result.output
    assert "The truth is known of 2 of 2 images; the metrics are on 2." in result.stderr


def test_name_that_several_files_have_says_nothing_of_them(trained: Path, write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", "a/1.png", "b/1.png", "b/2.png")
    (tmp_path / "labels.csv").write_text("path,label\n1.png,normal\n2.png,covid\n")
    result = run("score", source, "--checkpoint", trained, "--labels", tmp_path / "labels.csv")
    assert "1 paths in" in result.stderr and "could be those of several files" in result.stderr
    assert "The truth is known of 1 of 3 images" in result.stderr


# The Radiography Database, and masks beside images


def radiography(root: Path, write_films) -> Path:
    for folder, stem in (
        ("COVID", "COVID"),
        ("Normal", "Normal"),
        ("Viral Pneumonia", "Viral Pneumonia"),
        ("Lung_Opacity",) * 2,
    ):
        names = [f"{stem}-{number}.png" for number in range(1, 5)]
        write_films(root, *(f"{folder}/{kind}/{name}" for kind in ("images", "masks") for name in names))
        (root / f"{folder}.metadata.xlsx").write_bytes(b"PK")
    (root / "README.md.txt").write_text("about")
    return root


def test_present_radiography_database(write_films, tmp_path: Path):
    source = radiography(tmp_path / "COVID-19_Radiography_Dataset", write_films)
    manifest = prepare(tmp_path / "data", source)
    assert manifest["sources"][0]["layout"] == "radiography"
    assert manifest["per_class"] == {"COVID-19": 4, "No-Findings": 4, "Pneumonia": 4}
    left_out = {"a lung mask beside its image": 16, "folder 'Lung_Opacity' names no class": 4}
    assert manifest["left_out"][source.name] == left_out
    mapped = prepare(tmp_path / "mapped", source, "--map", "Lung_Opacity=Pneumonia")
    assert mapped["per_class"] == {"COVID-19": 4, "No-Findings": 4, "Pneumonia": 8}
    four = prepare(tmp_path / "four", source, "--map", "lung opacity=Lung Opacity")
    assert four["per_class"] == {"COVID-19": 4, "No-Findings": 4, "Pneumonia": 4, "Lung Opacity": 4}
    masks = prepare(tmp_path / "masks", source, "--masks")
    assert (masks["per_class"], masks["masks"]) == ({"fields": 16}, True)


def test_shared_case_radiography_v2(shared_cases: Path, tmp_path: Path):
    source = shared_cases / "radiography-v2-masks" / "COVID-19_Radiography_Dataset"
    assert prepare(tmp_path / "data", source)["images"] == 18
    assert (len(find_images([source]).paths), find_images([source]).masks) == (18, 18)


def test_masks_beside_images_are_not_scored_nor_segmented(trained: Path, write_films, tmp_path: Path):
    source = radiography(tmp_path / "set", write_films)
    archive = packed(source, tmp_path / "set.zip")
    for given in (source, archive):
        result = run("score", given, "--checkpoint", trained, "--json")
        assert len(json.loads(result.stdout)["rows"]) == 16
        assert "Skipped 16 files (lung masks beside their images)." in result.stderr
    result = run("segment", source, "--out", tmp_path / "lungs")
    assert "Skipped 16 files (lung masks beside their images)." in result.stderr
    assert len([*(tmp_path / "lungs").rglob("*.png")]) == 16


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (["a/images/1.png", "a/masks/1.png", "a/masks/x.png"], 2),
        (["a/1.png", "a/masks/1.png", "a/Mask/1_mask.png"], 2),
        (["CXR_png/m_1.png", "ManualMask/leftMask/m_1.png", "ManualMask/rightMask/m_1.png"], 2),
        (["images/1.png", "lung_masks/2.png"], 1),
        (["masks/1.png", "photos/2.png"], 0),  # nothing says that these belong together
        (["masks/1.png", "masks/2.png"], 0),
        (["a/images/1.png", "a/lung masks/1.png", "a/infection masks/1.png"], 2),
        (["unmasked/1.png", "images/1.png"], 0),
        (["mask/1.png", "no mask/1.png"], 0),  # two classes
    ],
)
def test_what_is_taken_for_a_mask(write_films, tmp_path: Path, names: list[str], masks: int):
    found = find_images([write_films(tmp_path / "masks" / "set", *names)])
    assert (len(found.paths), found.masks) == (len(names) - masks, masks)


def test_folder_of_masks_that_is_named_itself_is_read(write_films, tmp_path: Path):
    write_films(tmp_path, "images/1.png", "masks/1.png")
    assert len(find_images([tmp_path / "masks"]).paths) == 1


def test_shared_case_ieee8023_views(shared_cases: Path, tmp_path: Path):
    assert prepare(tmp_path / "data", shared_cases / "ieee8023-ap-erect" / "set")["images"] == 36


@pytest.mark.slow
def test_real_radiography_database(shared_data: Path, tmp_path: Path):
    manifest = prepare(tmp_path / "data", shared_data / "radiography-v4", folds=5)
    assert manifest["per_class"] == {"COVID-19": 1723, "No-Findings": 1723}


def test_real_radiography_database_is_listed(shared_data: Path):
    found = readers.read(shared_data / "radiography-v4")
    assert found.layout == "radiography"
    assert Counter(example.label for example in found.examples) == {"COVID-19": 1723, "No-Findings": 1723}


# Split trees


def kermany(root: Path, write_films, parts: tuple[str, str, str] = ("train", "val", "test")) -> Path:
    for number, part in enumerate(parts):
        for patient in range(4 if number == 0 else 2):
            name = 100 * number + patient
            write_films(root, f"{part}/NORMAL/IM-{name:04d}-0001.png", f"{part}/PNEUMONIA/person{name}_virus_{name}.png")
    write_films(root, f"{parts[2]}/PNEUMONIA/person1_bacteria_5.png")  # stands in train too
    return root


@pytest.mark.parametrize(
    "parts", [("train", "val", "test"), ("Train", "valid", "Test"), ("training", "Validation", "testing")]
)
def test_split_tree_is_merged_unless_it_is_kept(write_films, tmp_path: Path, parts: tuple[str, str, str]):
    source = kermany(tmp_path / "chest_xray", write_films, parts)
    merged = prepare(tmp_path / "merged", source)
    assert merged["sources"][0]["layout"] == "split"
    assert (merged["per_class"], merged["folds"]) == ({"No-Findings": 8, "Pneumonia": 9}, 2)
    assert merged["patients"] == 16
    kept = prepare(tmp_path / "kept", source, "--keep-split", folds=5)
    assert kept["splits"] == {"fold0": "test", "fold1": "val", "fold2": "train"}
    assert kept["per_fold"] == {
        "fold0": {"No-Findings": 2, "Pneumonia": 3},
        "fold1": {"No-Findings": 2, "Pneumonia": 2},
        "fold2": {"No-Findings": 4, "Pneumonia": 4},
    }
    assert any(note.startswith("chest_xray: 1 patients (2 images) stand in several parts") for note in kept["notes"])
    assert not any("stand in several parts" in note for note in merged["notes"])


@pytest.mark.slow
def test_training_on_a_kept_split_tests_on_its_test_and_validates_on_its_val(write_films, tmp_path: Path):
    prepare(tmp_path / "data", kermany(tmp_path / "set", write_films), "--keep-split")
    words = ("train", "--data", tmp_path / "data", "--run", tmp_path / "run", "--epochs", 1, *TINY)
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    assert "The publisher's split: tested on its test and validated on its val." in result.stderr
    summary = json.loads(result.stdout)
    assert summary["checkpoint"] == "best"
    assert sum(row["support"] for row in summary["metrics"]["per_class"].values()) == 5
    assert run(*words, "--resume").exit_code == 0


def test_split_tree_of_other_classes_below_a_folder_of_its_own(write_films, tmp_path: Path):
    parts = [f"{part}/{label}" for part in ("train", "test") for label in ("TB", "normal")]
    write_films(tmp_path / "set" / "inner", *(name for part in parts for name in numbered(part, 2)))
    manifest = prepare(tmp_path / "data", tmp_path / "set", "--classes", "TB,normal", "--keep-split")
    assert manifest["per_class"] == {"TB": 4, "normal": 4}
    message = refused("prepare", tmp_path / "set", "--out", tmp_path / "more", code=1)
    assert "TB (4) name no class" in message


# Archives


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archive_is_as_good_as_its_folder(write_films, tmp_path: Path, ending: str):
    source = write_films(tmp_path / "set", *numbered("TB/a", 4), *numbered("TB", 4), *numbered("normal", 4))
    (source / "normal" / "notes.txt").write_text("")
    shutil.copy(source / "TB" / "1.png", source / "TB" / "9.png")
    archive = packed(source, tmp_path / f"set{ending}")
    words = ("--classes", "TB,normal")
    folder, packed_one = prepare(tmp_path / "a", source, *words), prepare(tmp_path / "b", archive, *words)
    for key in ("per_class", "patients", "images", "identical_files"):
        assert packed_one[key] == folder[key], key
    assert (packed_one["identical_files"], packed_one["per_class"]) == (1, {"TB": 9, "normal": 4})
    assert list(packed_one["left_out"].values()) == [{"not an image file, by its ending": 1}]
    digests = [{Dataset(tmp_path / name).source([0, 1]).texts(row, "sha256") for row in range(13)} for name in "ab"]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("inner", ["x", "tb", "covid", "train"])
def test_folder_of_an_archive_may_be_called_as_a_class(write_films, tmp_path: Path, inner: str):
    source = write_films(tmp_path / inner, *numbered("TB", 4), *numbered("normal", 4))
    archive = packed(source, tmp_path / "set.zip")
    assert prepare(tmp_path / "data", archive, "--classes", "TB,normal")["per_class"] == {"TB": 4, "normal": 4}


def test_a_zip_archive_whose_folders_are_parted_by_backslashes(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("TB", 4), *numbered("normal", 4))
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr("set\\TB\\", b"")
        for file in sorted(source.rglob("*.png")):
            archive.writestr(str(file.relative_to(tmp_path)).replace("/", "\\"), file.read_bytes())
    manifest = prepare(tmp_path / "data", tmp_path / "old.zip", "--classes", "TB,normal")
    assert manifest["per_class"] == {"TB": 4, "normal": 4}
    assert manifest["left_out"] == {"old.zip": {}}


@pytest.mark.parametrize("ending", ["", ".zip", ".tar"])
def test_a_licence_beside_the_folder_of_a_collection_changes_nothing(write_films, tmp_path: Path, ending: str):
    names = [
        name
        for part in ("train", "val", "test")
        for label in ("covid", "normal")
        for name in numbered(f"{part}/{label}", 2)
    ]
    write_films(tmp_path / "set" / "chest_xray", *names)
    for name in ("README.txt", "LICENSE", "readme.md"):
        (tmp_path / "set" / name).write_text("Images: CC BY 4.0\nhttps://example.org/a, b\n")
    source = packed(tmp_path / "set", tmp_path / f"all{ending}") if ending else tmp_path / "set"
    manifest = prepare(tmp_path / "data", source)
    assert (manifest["images"], manifest["sources"][0]["layout"]) == (12, "split")


def test_a_licence_beside_a_published_collection_changes_nothing(shared_cases, tmp_path: Path):
    manifest = prepare(tmp_path / "data", packed(shared_cases / "ieee8023-ap-erect", tmp_path / "all.zip"))
    assert manifest["sources"][0]["layout"] == "ieee8023"


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_folders_within_an_archive_are_sources_as_the_error_names_them(write_films, tmp_path: Path, ending: str):
    write_films(tmp_path / "set" / "a b", *numbered("TB", 3), *numbered("normal", 3))
    write_films(
        tmp_path / "set" / "c",
        *(f"{part}/{label}/{n}.png" for part in ("train", "test") for label in ("TB", "normal") for n in (1, 2)),
    )
    archive = packed(tmp_path / "set", tmp_path / f"all{ending}")
    words = ("--classes", "TB,normal")
    message = refused("prepare", archive, "--out", tmp_path / "data", *words, code=1)
    assert "class folders deeper" in message
    sources = shlex.split(message.partition("as a source: ")[2].removesuffix("."))
    assert sources == [f"{archive}/set/a b", f"{archive}/set/c"]
    manifest = prepare(tmp_path / "data", *sources, *words)
    assert (manifest["images"], [source["layout"] for source in manifest["sources"]]) == (14, ["folder", "split"])
    assert "does not exist" in refused("prepare", f"{archive}/other", "--out", tmp_path / "other", *words, code=2)


def test_archives_below_a_folder_and_two_sources_of_which_one_is_an_archive(write_films, tmp_path: Path):
    for label in ("TB", "normal"):
        write_films(tmp_path / label, *numbered("x", 4))
        (tmp_path / "set").mkdir(exist_ok=True)
        packed(tmp_path / label, tmp_path / "set" / f"{label}.zip")
    write_films(tmp_path / "more", "TB/1.png", "normal/1.png")
    shutil.copy(tmp_path / "TB" / "x" / "1.png", tmp_path / "more" / "TB" / "same.png")
    manifest = prepare(tmp_path / "data", tmp_path / "set", tmp_path / "more", "--classes", "TB,normal")
    assert manifest["per_source"] == {"set": {"TB": 4, "normal": 4}, "more": {"TB": 1, "normal": 1}}
    assert manifest["left_out"]["more"] == {"a copy of an image of set": 1}


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_tables_within_archives(write_films, tmp_path: Path, ending: str):
    archive = packed(chexpert(tmp_path / "CheXpert-v1.0-small", write_films), tmp_path / f"c{ending}")
    manifest = prepare(tmp_path / "data", archive)
    assert (manifest["sources"][0]["layout"], manifest["images"]) == ("chexpert", 10)
    archive = packed(nih(tmp_path / "nih", write_films), tmp_path / f"n{ending}")
    assert prepare(tmp_path / "more", archive)["per_class"] == {"No-Findings": 4, "Pneumonia": 4}


def test_damaged_archive_among_others_is_counted(write_films, tmp_path: Path):
    source = write_films(tmp_path / "set", *numbered("covid", 3), *numbered("normal", 3))
    (source / "covid" / "more.zip").write_bytes(b"PK\x03\x04 no archive")
    (source / "lost.tar").write_bytes(b"no archive")
    left_out = prepare(tmp_path / "data", source)["left_out"]["set"]
    assert [reason.split(":")[0] for reason in left_out] == [f"in {source}/covid/more.zip", f"in {source}/lost.tar"]


def test_damaged_archive_is_said(tmp_path: Path):
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 no archive")
    message = refused("prepare", tmp_path / "set.zip", "--out", tmp_path / "data", code=1)
    assert f"{tmp_path / 'set.zip'} cannot be read: damaged archive" in message
