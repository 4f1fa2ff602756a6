"""Rows of scores on disk: what is written is what is read back."""

import csv
import json
import os

import pyarrow.parquet
import pytest

from covidjax.errors import UserError
from covidjax.scoring.output import open_table
from covidjax.scoring.row import Row
from covidjax.scoring.row_formats import ParquetWriter

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")
COLUMNS = ["path", "status", "prediction", "confidence", "p_COVID-19", "p_No-Findings", "p_Pneumonia", "error", "warning"]
GOOD = Row(
    path="a/b.png",
    status="ok",
    prediction="Pneumonia",
    confidence=0.625,
    probabilities={"COVID-19": 0.25, "No-Findings": 0.125, "Pneumonia": 0.625},
    warning="lateral view",
)
BAD = Row("c.png", "error", error="damaged: cut off, twice")
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def good(path):
    return GOOD._replace(path=path)


def test_columns_are_the_documented_ones():
    assert list(GOOD.cells(CLASSES)) == COLUMNS
    assert list(GOOD.cells(CLASSES, lungs=True)) == [*COLUMNS, "lungs"]


def written(path, *rows):
    with open_table(path, COLUMNS) as writer:
        for row in rows:
            writer.write(row.cells(CLASSES))
    return path


def read_csv(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_parquet(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_csv_holds_the_documented_columns_and_one_line_a_file(tmp_path):
    assert written(tmp_path / "rows.csv", GOOD, BAD).read_text() == (
        "path,status,prediction,confidence,p_COVID-19,p_No-Findings,p_Pneumonia,error,warning\n"
        "a/b.png,ok,Pneumonia,0.625,0.25,0.125,0.625,,lateral view\n"
        'c.png,error,,,,,,"damaged: cut off, twice",\n'
    )


@pytest.mark.parametrize(("ending", "read"), [(".jsonl", read_jsonl), (".parquet", read_parquet)])
def test_jsonl_and_parquet_round_trip_with_the_documented_columns(tmp_path, ending, read):
    first, second = read(written(tmp_path / f"rows{ending}", GOOD, BAD))
    assert list(first) == list(second) == COLUMNS
    assert list(first.values()) == ["a/b.png", "ok", "Pneumonia", 0.625, 0.25, 0.125, 0.625, "", "lateral view"]
    assert list(second.values()) == ["c.png", "error", "", None, None, None, None, "damaged: cut off, twice", ""]


def test_parquet_keeps_its_types_where_no_row_has_a_number(tmp_path):
    schema = pyarrow.parquet.read_schema(written(tmp_path / "rows.parquet", BAD))
    assert [str(kind) for kind in schema.types] == ["string"] * 3 + ["float"] * 4 + ["string"] * 2


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_text_formats_round_probabilities_to_six_decimals(tmp_path, ending):
    third = 1 / 3
    row = Row("a", "ok", "COVID-19", third, probabilities=dict.fromkeys(CLASSES, third))
    text = written(tmp_path / f"rows{ending}", row).read_text()
    assert text.count("0.333333") == 4
    assert "0.3333333" not in text


@pytest.mark.parametrize(
    ("ending", "read"),
    [(".csv", lambda path: read_csv(path)[1:]), (".jsonl", read_jsonl), (".parquet", read_parquet)],
)
def test_no_rows_give_a_readable_file(tmp_path, ending, read):
    assert read(written(tmp_path / f"rows{ending}")) == []


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_file_that_is_there_is_replaced_and_case_of_the_ending_is_free(tmp_path, ending):
    path = tmp_path / f"rows{ending.upper()}"
    path.write_text("something longer than what comes " * 1000)
    written(path, GOOD)
    assert b"something" not in path.read_bytes()


def test_parquet_goes_on_from_the_rows_of_a_killed_process(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(ParquetWriter, "close", lambda writer: writer._file.close())  # as where the process is killed
        with pytest.raises(ZeroDivisionError), open_table(path, COLUMNS, facts={"model": "a"}) as writer:
            for name in ("a", "b", "c"):
                writer.write(good(name).cells(CLASSES))
            raise ZeroDivisionError
    assert not path.exists()
    interrupted = r"\.rows\.parquet\.jsonl holds the rows of a job that was interrupted"
    with pytest.raises(UserError, match=interrupted), open_table(path, COLUMNS, facts={"model": "a"}):
        pass
    with open_table(path, COLUMNS, facts={"model": "a"}, resume=True) as writer:
        writer.write(good("d").cells(CLASSES))
    assert [row["path"] for row in read_parquet(path)] == ["a", "b", "c", "d"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_finished_table_is_not_changed_by_a_resumed_command(tmp_path, ending):
    path = written(tmp_path / f"rows{ending}", GOOD, BAD)
    content = path.read_bytes()
    with open_table(path, COLUMNS, facts={"model": "a"}, resume=True) as writer:
        assert writer.finished
        assert [row.path for row in writer.previous_rows] == ["a/b.png", "c.png"]
    with pytest.raises(UserError, match="has other columns than"), open_table(path, COLUMNS[:-1], resume=True):
        pass
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_writes_groups_as_they_fill_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ParquetWriter, "GROUP", 4)
    path = written(tmp_path / "rows.parquet", *(good(str(number)) for number in range(10)))
    assert [row["path"] for row in read_parquet(path)] == [str(number) for number in range(10)]
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3


@pytest.mark.parametrize(
    "name", ["a,b.png", 'say "x".png', "two\nlines.png", "carriage\rreturn.png", "ä 像.png", "'=1+1.png"]
)
def test_odd_names_survive_every_format(tmp_path, name):
    rows = good(name), BAD
    assert [row[0] for row in read_csv(written(tmp_path / "rows.csv", *rows))] == ["path", name, "c.png"]
    assert [row["path"] for row in read_jsonl(written(tmp_path / "rows.jsonl", *rows))] == [name, "c.png"]
    assert [row["path"] for row in read_parquet(written(tmp_path / "rows.parquet", *rows))] == [name, "c.png"]


def test_name_that_is_no_utf8_survives_as_far_as_the_format_can(tmp_path):
    path = written(tmp_path / "rows.csv", good(NOT_UTF8))
    assert b"\ncaf\xe9.png,ok," in path.read_bytes()
    assert read_csv(path)[1][0] == NOT_UTF8
    assert read_jsonl(written(tmp_path / "rows.jsonl", good(NOT_UTF8)))[0]["path"] == NOT_UTF8
    assert read_parquet(written(tmp_path / "rows.parquet", good(NOT_UTF8)))[0]["path"] == "caf\\xe9.png"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_rows_written_before_the_work_broke_off_are_kept(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    with pytest.raises(ZeroDivisionError), open_table(path, COLUMNS) as writer:
        writer.write(GOOD.cells(CLASSES))
        raise ZeroDivisionError
    count = {".csv": lambda: len(read_csv(path)) - 1, ".jsonl": lambda: len(read_jsonl(path))}
    assert count.get(ending, lambda: len(read_parquet(path)))() == 1


@pytest.mark.parametrize("name", ["rows.txt", "rows", ".csv", "rows.csv.gz"])
def test_unknown_ending_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"has none of the endings \.csv, \.jsonl, \.parquet"):
        written(tmp_path / name, GOOD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("below", "reason"), [("missing", "No such file or directory"), ("file", "Not a directory")])
def test_place_that_cannot_be_written_is_a_user_error(tmp_path, ending, below, reason):
    (tmp_path / "file").touch()
    path = tmp_path / below / f"rows{ending}"
    with pytest.raises(UserError) as caught:
        written(path, GOOD)
    assert str(caught.value).startswith(f"{path} cannot be written (")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_full_disk_is_a_user_error(ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    partial = tmp_path / f".rows.parquet.partial-{os.getpid()}"
    (partial if ending == ".parquet" else path).symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        written(path, *[GOOD] * 3000)
