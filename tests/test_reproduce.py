"""``covidjax reproduce``: images to report, once and again, stopped and gone on with."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from PIL import Image
from test_train import Silent

from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.runs.folder import Run
from covidjax.study import experiments, rehearsal, report, reproduce

SMALL = """
title = "Small"
about = "A small one."
[films]
sources = ["ozturk", "ieee8023"]
only = {{ ieee8023 = ["COVID-19"] }}
limits = {{ "COVID-19" = 9 }}
image_size = 64
{more}
[settings.model]
name = "cnn13"
width = 2
[settings.train]
epochs = 2
batch_size = 8
cv = {cv}
ensemble = {ensemble}
[study]
images = 30
minutes = 3
classes = {{ "COVID-19" = [0.5, 0.5, 0.5], "No-Findings" = [0.6, 0.6, 0.6], "Pneumonia" = [0.7, 0.7, 0.7] }}
"""


class Quiet(reproduce.Console):
    """Says nothing; stops after so many epochs of all networks."""

    def __init__(self, stop_after: int | None = None):
        networks: list[Silent] = []

        def progress(name: str) -> Silent:
            networks.append(Silent())
            return networks[-1]

        super().__init__(
            say=lambda line: None,
            counting=lambda verb: contextlib.nullcontext(lambda done, total: None),
            training=lambda epochs: contextlib.nullcontext(progress),
            stop=lambda: stop_after is not None and sum(len(network.records) for network in networks) >= stop_after,
        )


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "COLLECTION_IMAGES", 30)
        yield


def loaded(folder: Path, cv: bool = False, ensemble: int = 1, more: str = "") -> dict[str, experiments.Experiment]:
    folder.mkdir(exist_ok=True)
    (folder / "table1.toml").write_text(SMALL.format(cv=str(cv).lower(), ensemble=ensemble, more=more))
    (folder / "table4.toml").write_text('title = "Times"\nabout = "When."\ntimes_of = ["table1"]')
    return experiments.load(where=folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished reproduction and its results."""
    folder = tmp_path_factory.mktemp("reproduction")
    results = reproduce.reproduce("sample", folder / "out", loaded(folder / "configs"), 2, Quiet())
    report.write(folder / "out", folder / "out" / "collections", results)
    return folder / "out", results


def figures(results: dict[str, Any]) -> Any:
    """Without times."""
    return {
        split: (found["metrics"], [{k: v for k, v in each.items() if k != "seconds"} for each in found["history"]])
        for split, found in results["experiments"]["table1"]["protocols"].items()
    }


def test_both_protocols_are_trained_and_counted(done: tuple[Path, dict[str, Any]]):
    out, results = done
    assert json.loads((out / "results.json").read_text())["experiments"].keys() == {"table1", "table4"}
    protocols = results["experiments"]["table1"]["protocols"]
    assert list(protocols) == ["random", "patient"]
    for split, found in protocols.items():
        dataset = found["dataset"]
        # Ten COVID-19 images of either collection, of which two are the same, and at most nine.
        assert dataset["per_class"] == {"COVID-19": 9, "No-Findings": 10, "Pneumonia": 10}
        assert dataset["copies_dropped"] == {"ieee8023": 2}
        assert dataset["image_size"] == 32
        assert found["metrics"]["macro"]["support"] == sum(dataset["per_fold"]["fold0"].values())
        assert len(found["history"]) == 2
        opened = Dataset(out / "datasets" / f"table1-{split}")
        assert opened.manifest["options"]["group_by"] == {"random": "none", "patient": "patient"}[split]
    assert "Synthetic" in results["about"]["note"]


def test_finished_work_is_kept(done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, results = done
    for name in ("train", "train_networks", "prepare"):
        monkeypatch.setattr(reproduce, name, None)
    again = reproduce.reproduce("sample", out, loaded(tmp_path), 2, Quiet())
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(results))
    # A run of an earlier version, whose file had another name.
    file = out / "runs" / "table1-random" / "result.json"
    file.rename(file.with_name("outcome.json"))
    again = reproduce.reproduce("sample", out, loaded(tmp_path), 2, Quiet())
    file.with_name("outcome.json").rename(file)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(results))


def test_folder_of_other_settings_is_refused(done: tuple[Path, dict[str, Any]], tmp_path: Path):
    out, _ = done
    with pytest.raises(UserError, match="was begun with data sample, epochs 2; give the same again"):
        reproduce.reproduce("sample", out, loaded(tmp_path), 3, Quiet())
    with pytest.raises(UserError, match="was begun with data sample, epochs 2; give the same again"):
        reproduce.reproduce("sample", out, loaded(tmp_path), 2, Quiet(), "train.ema_decay 0.9")
    with pytest.raises(UserError, match="prepared by another version of this experiment"):
        reproduce.reproduce("sample", out, loaded(tmp_path, more='lungs = "crop"'), 2, Quiet())
    with pytest.raises(UserError, match="trained by another version of this experiment"):
        reproduce.reproduce("sample", out, loaded(tmp_path, cv=True), 2, Quiet())
    (tmp_path / "mine" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files; name a new or an empty folder"):
        reproduce.reproduce("sample", tmp_path / "mine", {}, None, Quiet())


def test_missing_collection_is_named(tmp_path: Path):
    (tmp_path / "data" / "ozturk").mkdir(parents=True)
    words = ("reproduce", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert "Table 1 needs" in refused(*words, code=2)
    assert "no experiment 'table7'" in refused(*words, "--only", "table7", code=2)


def test_page_holds_everything_and_needs_nothing_else(done: tuple[Path, dict[str, Any]]):
    out, results = done
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    images = re.findall(r'<img src="([^"]{20})', html)
    assert len(images) == 1 + 2 + 2
    assert all(image.startswith("data:image/") for image in images)
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "http" not in re.sub(r'"data:[^"]*"', "", html)
    accuracy = results["experiments"]["table1"]["protocols"]["patient"]["metrics"]["accuracy"]
    for text in ("Synthetic sample", "Table 1. Small", "Table 4. Times", "patients apart", f"{accuracy:.3f}"):
        assert text in html
        assert text in markdown
    assert "Random split: 29 images of " in markdown
    assert "1 fewer than the study&#39;s 30" in html
    assert "1 fewer than the study's 30" in markdown
    assert "2 of ieee8023" in markdown
    assert "| macro F1 | study | 0.600 |  |" in markdown
    assert "| accuracy | study | — |  |" in markdown
    assert "| Pneumonia | study | 0.70 | 0.70 | 0.70 |  |" in markdown
    for file in re.findall(r"\]\(([^)]*)\)", markdown):
        assert (out / file).stat().st_size > 1000
    assert "PyTorch was not timed" in markdown
    timed = {"version": "9.9", "device": "a card", "how": "by steps.", "experiments": {"table1": {"minutes": 1.25}}}
    report.write(out, out / "collections", results | {"pytorch": timed})
    assert re.search(r"random split \| 3 \| \d\.\d \| 1.2 \|", (out / "report.md").read_text())
    report.write(out, out / "collections", results)


def test_page_without_images(done: tuple[Path, dict[str, Any]], tmp_path: Path):
    out, results = done
    report.write(tmp_path, out / "collections", results, images=False)
    assert not (tmp_path / "figures" / "figure1.png").exists()
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "image/png" not in text
        assert "Figures 1 and 5, which show images" in text
        assert "Figure 3" in text


def test_every_device_that_trained_is_named(done: tuple[Path, dict[str, Any]], tmp_path: Path):
    out, results = done
    results = copy.deepcopy(results)
    here = results["about"]["device"]
    results["experiments"]["table1"]["protocols"]["patient"]["device"] = "Another card"
    report.write(tmp_path, out / "collections", results, images=False)
    text = (tmp_path / "report.md").read_text()
    assert f"| device | {', '.join(sorted(['Another card', here]))} |" in text
    assert re.search(rf"Random split: .* Trained on {re.escape(here)}\.\n", text)
    assert re.search(r"Patients apart: .* Trained on Another card\.\n", text)


def test_same_results_are_the_same_page(done: tuple[Path, dict[str, Any]]):
    out, results = done
    before = (out / "report.html").read_bytes()
    report.write(out, out / "collections", results)
    assert (out / "report.html").read_bytes() == before


@pytest.mark.slow
def test_stopped_it_goes_on_to_the_same_figures(done: tuple[Path, dict[str, Any]], tmp_path: Path):
    out, chosen = tmp_path / "out", loaded(tmp_path / "configs")
    # Within the first run, before the second dataset, within the second run.
    for told in ("Stopped, with everything saved; give", "Stopped; give", "Stopped, with everything saved; give"):
        with pytest.raises(UserError, match=f"{told} the same command again"):
            reproduce.reproduce("sample", out, chosen, 2, Quiet(stop_after=1))
    results = reproduce.reproduce("sample", out, chosen, 2, Quiet())
    wanted, found = figures(done[1]), figures(results)
    assert found == wanted


@pytest.mark.slow
def test_folds_and_lungs_stand_in_the_page(tmp_path: Path):
    from covidjax.lungs.segmenter import BUNDLED

    if not BUNDLED.exists():
        pytest.skip("the bundled weights of the segmenter are missing")
    out, chosen = tmp_path / "out", loaded(tmp_path / "configs", cv=True, ensemble=2, more='lungs = "crop"')
    results = reproduce.reproduce("sample", out, chosen, 2, Quiet())
    report.write(out, out / "collections", results)
    found = results["experiments"]["table1"]["protocols"]["random"]
    assert list(found["members"]) == [f"fold{number}" for number in range(5)]
    assert found["metrics"]["macro"]["support"] == found["dataset"]["images"]
    assert found["alone"]["networks"] == len(found["seconds"]) == 10
    markdown = (out / "report.md").read_text()
    alone = found["alone"]["spread"]["accuracy"]
    row = f"random split, one network alone, mean ± sd of 10 |  |  | {alone['mean']:.3f} ± {alone['sd']:.3f} |"
    for text in ("mean ± sd of folds", "each fold with its accuracy", "Figure 5: images, the lungs", row):
        assert text in markdown


@pytest.mark.slow
def test_page_on_a_phone_and_on_a_screen(done: tuple[Path, dict[str, Any]], tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("chromium is not installed")
    for width in (390, 1200):
        shot = tmp_path / f"{width}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},3000"]
        address = (done[0] / "report.html").as_uri()
        subprocess.run([browser, *options, f"--screenshot={shot}", address], check=True, capture_output=True, timeout=120)
        pixels = np.asarray(Image.open(shot).convert("L"))
        assert pixels.shape == (3000, width)
        # The page's margin stays free on both sides: nothing is wider than the window.
        assert (pixels[:, -12:] == 255).all()
        assert (pixels[:, :12] == 255).all()
        written = np.flatnonzero((pixels < 128).any(1))
        assert written[0] < 100 < 2000 < written[-1]


@pytest.mark.slow
def test_command_on_the_sample(tmp_path: Path):
    recipe = Path(__file__).parents[1] / "configs" / "best.toml"
    words = ("reproduce", "--data", "sample", "--out", tmp_path / "out", "--epochs", 1, "--only", "table3")
    words += ("--config", recipe)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "Table 3, DarkCovidNet on segmented lungs" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    found = json.loads(run(*words, "--json").stdout)
    assert found["experiments"]["table3"]["protocols"]["patient"]["dataset"]["lungs"] == "crop"
    assert "model.tta 10, train.weight_decay 0.05" in found["about"]["settings"]
    assert found["about"]["settings"] in (tmp_path / "out" / "report.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    assert Run.load(tmp_path / "out" / "runs" / "table3-random" / "config.toml").config.model.tta == 10
