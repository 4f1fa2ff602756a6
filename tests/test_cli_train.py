from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, refused, run, start
from PIL import Image
from test_train import assert_same_bits, saved, without_times

from covidjax.data import synthetic
from covidjax.runs import checkpoint, folder

OFTEN = (*TINY, "--set", "train.checkpoint_seconds=0.3")


def test_run_folder_holds_config_metrics_checkpoints_and_report(trained: Path, prepared: Path):
    config = (trained / "config.toml").read_text()
    assert f'path = "{prepared}"' in config
    assert "epochs = 2" in config
    assert "image_size = 32" in config
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert checkpoint.steps(trained, "last")
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(trained / "report" / name) as picture:
            assert min(picture.size) > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert "macro mean" in (trained / "report" / "tables.txt").read_text()
    claim = (trained / "report" / "claim.md").read_text()
    assert "## CLAIM 2024" in claim and "## TRIPOD+AI" in claim and claim.count("for the author") > 20
    accuracy = json.loads((trained / "report" / "metrics.json").read_text())["accuracy"]
    for text in (f"accuracy {accuracy:.3f} (", "10 COVID-19", "15 patients", "2 epochs", "32 × 32 pixels", "parameters"):
        assert text in claim
    assert json.loads((trained / "report" / "metrics.json").read_text())["macro"]["support"] > 0


def test_train_json(prepared: Path, tmp_path: Path):
    result = run("train", "--data", prepared, "--epochs", 2, "--run", tmp_path / "run", "--json", *TINY)
    found = json.loads(result.stdout)
    assert found["parameters"] > 1_000_000
    assert len(found["history"]) == 2
    assert found["note"] == ""
    assert set(found["seconds"]) >= {"compile", "load", "train", "evaluate", "wall"}


@pytest.mark.slow
def test_sample_is_said_to_be_synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from covidjax.data import sample

    draw = sample.sample_dataset
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample, "sample_dataset", lambda size, masks: draw(32, 60, masks=masks))
    result = run("train", "--epochs", 1, "--run", tmp_path / "run", *TINY)
    assert result.exit_code == 0, result.output
    first, *_ = result.stderr.splitlines()
    assert "No --data given" in first
    assert "synthetic" in first
    assert "say nothing about patients" in result.stdout
    assert "say nothing about patients" in (tmp_path / "run" / "report" / "tables.txt").read_text()
    result = run("evaluate", tmp_path / "run")
    assert "say nothing about patients" in result.stdout


def test_evaluate_repeats_the_test_fold_and_takes_all_of_another_dataset(trained: Path, prepared: Path, tmp_path: Path):
    from covidjax.config import Preprocess
    from covidjax.data.prepare import Options, prepare

    result = run("evaluate", trained, "--json")
    found = json.loads(result.stdout)
    report = json.loads((trained / "report" / "metrics.json").read_text())
    assert found["metrics"] == {key: report[key] for key in found["metrics"]}
    assert "test fold 0" in found["data"]
    # The same films in other folds: of this dataset only those are used that were not trained on.
    films = Path(json.loads((prepared / "manifest.json").read_text())["sources"][0]["path"])
    prepare([films], tmp_path / "other", Options(Preprocess(image_size=32), folds=2, seed=9))
    found = json.loads(run("evaluate", trained, "--data", tmp_path / "other", "--json").stdout)
    assert found["metrics"] == {key: report[key] for key in found["metrics"]}
    trained_on = 30 - found["metrics"]["macro"]["support"]
    assert found["data"] == f"{tmp_path / 'other'}, without {trained_on} images of the run's training"
    synthetic.write_images(tmp_path / "new", 12, seed=5, size=64)
    prepare([tmp_path / "new"], tmp_path / "unseen", Options(Preprocess(image_size=32), folds=2))
    found = json.loads(run("evaluate", trained, "--data", tmp_path / "unseen", "--json").stdout)
    assert found["data"] == f"all of {tmp_path / 'unseen'}"
    assert found["metrics"]["macro"]["support"] == 12
    shown = run("evaluate", trained).stdout
    assert "macro mean" in shown
    assert "Confusion matrix" in shown


def test_finished_run_resumes_to_its_result(trained: Path):
    before = saved(trained)
    result = run("train", "--resume", "--run", trained)
    assert result.exit_code == 0, result.output
    assert "macro mean" in result.stdout
    assert_same_bits(before, saved(trained))


def test_config_file_and_overrides_reach_the_run(prepared: Path, tmp_path: Path):
    (tmp_path / "mine.toml").write_text('[train]\nepochs = 9\nbatch_size = 9\ncache = "stream"\n')
    words = ("--data", prepared, "--config", tmp_path / "mine.toml", "--epochs", 2, "--run", tmp_path / "run", *TINY)
    assert run("train", *words).exit_code == 0
    config = (tmp_path / "run" / "config.toml").read_text()
    for line in ("epochs = 2", 'cache = "stream"', "batch_size = 4"):
        assert line in config


def stopped_by(number: int, prepared: Path, folder: Path) -> int:
    """Send a signal to a training of 12 epochs after the second; the step that it saved."""
    process = start("train", "--data", prepared, "--run", "run", "--epochs", 12, *TINY, cwd=folder)
    log = folder / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    step = checkpoint.steps(folder / "run", "last")[-1]
    assert f"Error: Stopped, with everything saved at step {step};" in errors
    assert "Traceback" not in errors
    return step


@pytest.mark.slow
def test_ctrl_c_saves_first(prepared: Path, tmp_path: Path):
    stopped_by(signal.SIGINT, prepared, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_first_and_resume_goes_on_to_the_same_bits(prepared: Path, tmp_path: Path):
    step = stopped_by(signal.SIGTERM, prepared, tmp_path)
    resumed = run("train", "--resume", "--run", tmp_path / "run")
    assert resumed.exit_code == 0, resumed.output
    assert f"starting at step {step + 1}." in resumed.stderr
    whole = run("train", "--data", prepared, "--run", tmp_path / "whole", "--epochs", 12, *TINY)
    assert whole.exit_code == 0, whole.output
    assert_same_bits(saved(tmp_path / "whole"), saved(tmp_path / "run"))


def test_two_trainings_do_not_share_a_folder(
    trained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from covidjax.runs.resume import new_folder

    with folder.lock(trained):
        message = refused("train", "--resume", "--run", trained, code=1)
    assert message == f"{trained} is being trained by another process; wait for it, or name another folder."
    monkeypatch.chdir(tmp_path)
    assert len({new_folder("net") for _ in range(5)}) == 5


def test_moved_dataset_is_named_again(trained: Path, prepared: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(prepared, tmp_path / "moved")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(prepared), "/nowhere"))
    assert "/nowhere does not exist" in refused("train", "--resume", "--run", tmp_path / "run", code=2)
    result = run("train", "--resume", "--run", tmp_path / "run", "--data", tmp_path / "moved")
    assert result.exit_code == 0, result.output


def test_relative_data_path_is_stored_whole(prepared: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(prepared.parent)
    result = run("train", "--data", prepared.name, "--epochs", 2, "--run", tmp_path / "run", *TINY)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", "run").exit_code == 0


def kill_and_resume(prepared: Path, folder: Path, kills: int, epochs: int, seed: int) -> None:
    """Kill a training again and again at random moments, each time going on with --resume, until it ends by itself."""
    chance = random.Random(seed)
    words = ("train", "--data", prepared, "--run", "run", "--epochs", epochs, *OFTEN)
    started = time.monotonic()
    process = start(*words, cwd=folder)
    wait_for(lambda: (folder / "run" / "config.toml").exists(), process)
    span = 2 * (time.monotonic() - started)
    process.kill()
    process.communicate()
    for _ in range(kills - 1):
        process = start("train", "--resume", "--run", "run", cwd=folder)
        time.sleep(chance.uniform(0, span))
        process.kill()
        process.communicate()
    process = start("train", "--resume", "--run", "run", cwd=folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def compare_killed(prepared: Path, folder: Path, kills: int, epochs: int, seed: int) -> None:
    whole = folder / "whole"
    assert run("train", "--data", prepared, "--run", whole, "--epochs", epochs, *OFTEN).exit_code == 0
    kill_and_resume(prepared, folder, kills, epochs, seed)
    assert_same_bits(saved(whole), saved(folder / "run"))
    assert without_times(whole / "metrics.jsonl") == without_times(folder / "run" / "metrics.jsonl")
    report = [json.loads((each / "report" / "metrics.json").read_text()) for each in (whole, folder / "run")]
    assert report[0] == report[1]
    seconds = [json.loads(line)["seconds"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)  # the clock goes on where it stopped


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_bits(prepared: Path, tmp_path: Path):
    compare_killed(prepared, tmp_path, kills=2, epochs=6, seed=0)


@pytest.mark.slow
def test_training_killed_ten_times_resumes_to_the_same_bits(prepared: Path, tmp_path: Path):
    compare_killed(prepared, tmp_path, kills=10, epochs=40, seed=1)


def wait_for(condition, process, seconds: float = 90.0, dies: bool = False) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if dies and process.poll() is not None:
            return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# Bad input


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--data", "nowhere"), 2, "nowhere does not exist; make it with `covidjax prepare SOURCE --out "),
        (("--set", "train.epoch=3"), 2, "unknown key train.epoch; did you mean train.epochs?"),
        (("--set", "epochs"), 2, "--set takes key=value"),
        (("--set", "train.epochs=many"), 2, "train.epochs must be of type int, not 'many'"),
        (("--config", "nowhere.toml"), 2, "nowhere.toml cannot be read"),
        (("--test-fold", "3"), 2, "has no test fold 3; choose one from 0 to 2"),
        (("--test-fold", "1", "--val-fold", "1"), 2, "cannot be both test and validation fold"),
    ],
)
def test_wrong_settings(prepared: Path, tmp_path: Path, words: tuple[str, ...], code: int, part: str):
    data = () if "--data" in words else ("--data", prepared)
    assert part in refused("train", *data, "--run", tmp_path / "run", *words, code=code)


def test_unknown_key_in_a_config_file(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nlerning_rate = 1\n")
    message = refused("train", "--config", file, code=2)
    assert message == f"{file}: unknown key train.lerning_rate; did you mean train.learning_rate?"


def test_run_folder_in_use(trained: Path, prepared: Path):
    message = refused("train", "--data", prepared, "--run", trained, code=1)
    assert message == f"{trained} holds a run already; go on with --resume, or name another folder with --run."


def test_resume_with_other_settings(trained: Path):
    message = refused("train", "--resume", "--run", trained, "--epochs", 50, code=2)
    assert "was begun with other settings" in message


def test_resume_with_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "no run under runs/ to resume" in refused("train", "--resume", code=1)
    assert "typo holds no run to resume; check its name" in refused("train", "--resume", "--run", "typo", code=2)
    assert "no run under runs/" in refused("evaluate", code=1)


def test_resume_on_a_changed_dataset(trained: Path, prepared: Path, tmp_path: Path):
    from covidjax.config import Preprocess
    from covidjax.data.prepare import Options, prepare

    films = Path(json.loads((prepared / "manifest.json").read_text())["sources"][0]["path"])
    prepare([films], tmp_path / "data", Options(Preprocess(image_size=32), folds=3, seed=5))
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(prepared), str(tmp_path / "data")))
    assert "is not the dataset that" in refused("train", "--resume", "--run", tmp_path / "run", code=1)
    assert "is no longer the dataset that" in refused("evaluate", tmp_path / "run", code=1)


def test_dataset_prepared_with_other_options(trained: Path, prepared: Path, tmp_path: Path):
    from covidjax.config import Preprocess
    from covidjax.data.prepare import Options, prepare

    films = Path(json.loads((prepared / "manifest.json").read_text())["sources"][0]["path"])
    prepare([films], tmp_path / "data", Options(Preprocess(image_size=40), folds=3))
    message = refused("evaluate", trained, "--data", tmp_path / "data", code=1)
    assert "was prepared with --image-size 40" in message
    assert "trained on --image-size 32" in message


def test_evaluation_where_some_classes_have_no_image(trained: Path, write_films, tmp_path: Path):
    write_films(tmp_path / "xrays", *(f"{name}/{number}.png" for number in range(6) for name in ("Pneumonia", "COVID-19")))
    words = ("--classes", "COVID-19,Pneumonia", "--image-size", "32", "--folds", "3")
    assert run("prepare", tmp_path / "xrays", *words, "--out", tmp_path / "data").exit_code == 0
    result = run("evaluate", trained, "--data", tmp_path / "data", "--out", tmp_path / "report", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["metrics"]
    assert {name: each["support"] for name, each in found["per_class"].items()} == {
        "COVID-19": 6,
        "No-Findings": 0,
        "Pneumonia": 6,
    }
    assert found["per_class"]["No-Findings"]["recall"] is None


def test_raw_folder_instead_of_a_dataset(tmp_path: Path):
    assert "is no prepared dataset; make one of it with `covidjax prepare" in refused("train", "--data", tmp_path, code=2)


def test_run_folder_that_cannot_be_written(prepared: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    message = refused("train", "--data", prepared, "--run", tmp_path / "file" / "run", code=1)
    assert "cannot be written" in message


def test_diverged_training(prepared: Path, tmp_path: Path):
    words = ("--set", "train.learning_rate=1e30", "--set", "train.schedule=constant", "--epochs", 3)
    message = refused("train", "--data", prepared, "--run", tmp_path / "run", *words, code=1)
    assert "NaN or infinite at step" in message
    assert "learning rate was 1e+30" in message
