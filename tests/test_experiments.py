"""The study's experiments as they are written down."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from covidjax.errors import UsageError
from covidjax.labels import CLASSES
from covidjax.study import experiments

ROOT = Path(__file__).parents[1]


def test_every_table_of_the_study_is_there():
    found = experiments.load()
    assert list(found) == ["table1", "table2", "table3", "table4", "table5"]
    assert [each.number for each in found.values()] == [f"Table {number}" for number in range(1, 6)]
    trained = {name: each for name, each in found.items() if name != "table4"}
    for name, each in trained.items():
        assert set(each.study.classes) == set(CLASSES), name
        for precision, recall, f1 in each.study.classes.values():
            assert 0.5 < precision <= 1, name
            # Written down right: F1 is the harmonic mean, within the rounding of the three.
            assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=0.011), name
        assert each.settings.train.epochs == 100
    assert {name: each.study.minutes for name, each in trained.items()} == {
        "table1": 18, "table2": 0, "table3": 6, "table5": 48,
    }  # fmt: skip
    assert trained["table2"].settings.train.cv
    assert trained["table5"].settings.model.name == "cnn13"
    # Table 3 is to take at most a third of Table 1's training time.
    sides = [trained[name].films.image_size for name in ("table3", "table1")]
    assert (sides[0] / sides[1]) ** 2 <= 1 / 3
    assert trained["table3"].films.limits == trained["table1"].films.limits


def test_a_table_of_times_brings_what_it_times():
    assert list(experiments.load(["table4"])) == ["table1", "table3", "table4", "table5"]
    found = experiments.load(["table2"], epochs=7)
    assert found["table2"].settings.train.epochs == 7


def test_recipe_stands_instead_of_the_defaults(tmp_path: Path):
    file = tmp_path / "recipe.toml"
    file.write_text("[train]\nlearning_rate = 0.5\nweight_decay = 0.25\n[augment]\nhorizontal_flip = false")
    found = experiments.load(recipe=file)
    assert {each.settings.train.weight_decay for each in found.values()} == {0.25}
    assert not any(each.settings.augment.horizontal_flip for each in found.values())
    # An experiment's own settings stay.
    assert {name: found[name].settings.train.learning_rate for name in ("table1", "table5")} == {
        "table1": 0.5,
        "table5": 1e-3,
    }
    assert found["table2"].settings.train.cv
    assert (
        experiments.describe_recipe(file)
        == "train.learning_rate 0.5, train.weight_decay 0.25, augment.horizontal_flip False"
    )
    file.write_text("[train]\nrate = 1")
    with pytest.raises(UsageError, match=r"unknown key train\.rate"):
        experiments.load(recipe=file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 'a'\nabout = 'b'", "either films.sources or times_of"),
        ("title = 'a'\nabout = 'b'\n[films]\nsources = ['x']\nsize = 3", "unknown key films.size"),
        ("title = 'a'\nabout = 'b'\n[films]\nsources = ['x']\nlimits = {a = 'many'}", "films.limits.a must be of type int"),
        ("title = 'a'\nabout = 'b'\n[films]\nsources = ['x']\nlimits = 3", "films.limits must be a table"),
        ("title = 'a'\nabout = 'b'\n[films]\nsources = ['x']\n[settings.train]\nepoch = 3", "unknown key train.epoch"),
        ("title = 'a'\nabout = 'b'\n[films]\nsources = ['x']\n[study]\nclasses = {a = ['b']}", "must be of type float"),
    ],
)
def test_file_that_is_not_right(tmp_path: Path, text: str, message: str):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        experiments.load(where=tmp_path)


def test_unknown_name():
    with pytest.raises(UsageError, match="There is no experiment 'table9'; choose from table1, table2"):
        experiments.load(["table9"])


def test_rehearsals_have_smaller_images():
    found = experiments.load()
    assert [experiments.for_rehearsal(found[name]).films.image_size for name in ("table1", "table3")] == [72, 32]
    small, table = experiments.for_rehearsal(found["table5"]), found["table5"]
    assert (small.settings, small.study, small.films.sources) == (table.settings, table.study, table.films.sources)


def test_wheel_holds_the_experiments_and_the_templates():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    ((source, target),) = build["force-include"].items()
    assert sorted((ROOT / source).iterdir()) == sorted(experiments.folder().iterdir())
    assert target == "covidjax/configs/report"
    assert {path.name for path in (ROOT / "covidjax" / "study" / "templates").iterdir()} == {"report.md", "report.html"}
