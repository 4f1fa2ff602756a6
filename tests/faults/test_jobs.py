"""Long jobs that are killed, stopped, left without room, or started twice. COVIDJAX_FAULT_KILLS says how often."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from commands import COMMAND, TINY, refused, run, start
from test_cli_score import newest, paths_below, with_one_before
from test_cli_train import compare_killed, wait_for

from covidjax.inference.memory import MicroBatcher
from covidjax.labels import CLASSES
from covidjax.runs import checkpoint, folder
from covidjax.scoring import row_formats
from covidjax.scoring.output import WRITERS, open_table
from covidjax.scoring.row import Row

KILLS = int(os.environ.get("COVIDJAX_FAULT_KILLS", "3"))
ENDINGS = [".csv", ".jsonl", ".parquet"]


def lines_of(path: Path) -> Path:
    """The file of the lines that become a table."""
    return WRITERS[path.suffix].lines_file(path)


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a table, which must be whole: also of one that is still being written."""
    if path.suffix == ".parquet" and path.exists():
        return pyarrow.parquet.read_table(path).to_pylist()
    text = lines_of(path).read_text()
    assert text.endswith("\n")
    if path.suffix != ".csv":
        return [json.loads(line) for line in text.splitlines()]
    found = list(csv.DictReader(text.splitlines()))
    assert all(None not in row.values() and None not in row for row in found)
    return found


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """The same rows; probabilities to the last of six decimals, since batches are cut otherwise after an interruption."""
    assert [row["path"] for row in one] == [row["path"] for row in other]
    for a, b in zip(one, other, strict=True):
        for key, value in a.items():
            if key == "confidence" or key.startswith("p_"):
                assert (value in ("", None)) == (b[key] in ("", None))
                assert value in ("", None) or float(value) == pytest.approx(float(b[key]), abs=3e-6)
            else:
                assert value == b[key]


@pytest.fixture
def many(films: Path, tmp_path: Path) -> Path:
    """A folder of 1,500 links to films, among them files that are none."""
    folder = tmp_path / "many"
    folder.mkdir()
    (tmp_path / "text.png").write_text("no film")
    originals = [*paths_below(films), str(tmp_path / "text.png")]
    for number in range(1500):
        (folder / f"{number:04}.png").symlink_to(originals[number % len(originals)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_scoring_resumes_to_the_same_rows(trained: Path, many: Path, tmp_path: Path, ending: str):
    chance = random.Random(7)
    words = ("score", many, "--checkpoint", trained, "--runtime", "jax", "--workers", 1, "--batch-size", 8)
    out = tmp_path / f"killed{ending}"
    assert run(*words, "--output", tmp_path / f"whole{ending}").exit_code == 0
    process = start(*words, "--output", out, cwd=tmp_path)
    wait_for(lambda: output_has(out, 10), process)
    seen = 0
    for kill in range(KILLS):
        # Mostly while rows are written, sometimes while the command starts or goes through the rows that are there.
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
        found = rows(out)
        assert len(found) >= seen
        seen = len(found)
        if kill == 1:  # as a power cut may leave it
            with lines_of(out).open("ab") as file:
                file.write(b'many/0007.png,"ok' if ending == ".csv" else b'{"path": "ma')
        process = start(*words, "--output", out, "--resume", cwd=tmp_path)
        if kill + 1 < KILLS:
            wait_for(partial(output_has, out, seen + 20), process, dies=True)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    same(rows(out), rows(tmp_path / f"whole{ending}"))
    assert not out.with_name(f".{out.name}.job").exists()
    assert not out.with_name(f".{out.name}.lock").exists()
    assert not out.with_name(f".{out.name}.jsonl").exists()
    finished = run(*words, "--output", out, "--resume")
    assert finished.exit_code == 0
    assert f"{out} has 1500 rows already; 0 files are left." in finished.stderr
    same(rows(out), rows(tmp_path / f"whole{ending}"))


def output_has(path: Path, count: int) -> bool:
    """Whether so many rows are there."""
    lines = lines_of(path)
    return lines.exists() and lines.read_bytes().count(b"\n") > count


def written_since(folder: Path, moment: float) -> bool:
    """Whether a fold is being written, and is not what a process before left."""
    with contextlib.suppress(FileNotFoundError):  # what was left is removed
        return any(file.stat().st_mtime > moment for file in folder.glob("*fold*"))
    return False


@pytest.mark.slow
def test_killed_prepare_gives_the_same_bytes_when_it_is_given_again(many: Path, films: Path, tmp_path: Path):
    source = tmp_path / "source"
    for number, path in enumerate(sorted(many.iterdir())[:600]):
        label = path.resolve().parent.name  # one image under two labels would be refused
        (source / label).mkdir(parents=True, exist_ok=True)
        (source / label / f"{number}.png").symlink_to(path.resolve())
    words = ("prepare", source, "--image-size", 256, "--folds", 3)
    assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    chance = random.Random(8)
    for _ in range(KILLS):
        begun = time.time()
        process = start(*words, "--out", tmp_path / "killed", cwd=tmp_path)
        wait_for(partial(written_since, tmp_path / ".killed.partial", begun), process, dies=True)
        time.sleep(chance.uniform(0, 1.5))
        process.kill()
        process.communicate()
        if (tmp_path / "killed").exists():  # it was too late
            shutil.rmtree(tmp_path / "killed")
    assert run(*words, "--out", tmp_path / "killed").exit_code == 0
    each = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "killed")]
    assert each[0] == each[1]
    assert not (tmp_path / ".killed.partial").exists()


@pytest.mark.slow
def test_killed_training_comes_to_the_same_bits(prepared: Path, tmp_path: Path):
    compare_killed(prepared, tmp_path, kills=KILLS, epochs=max(6, 2 * KILLS), seed=9)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_scoring_says_how_to_go_on(trained: Path, many: Path, tmp_path: Path, number: int):
    out = tmp_path / "rows.csv"
    words = ("score", many, "--checkpoint", trained, "--runtime", "jax", "--workers", 1, "--output", out, "--batch-size", 8)
    process = start(*words, cwd=tmp_path)
    wait_for(lambda: output_has(out, 10), process)
    message = refused(*words, code=1)
    assert message == f"{out} is being written by another command; wait for it, or name another file."
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    done = len(rows(out))
    assert f"Error: Stopped after {done} of 1500 files; go on with the same command and --resume" in errors
    assert "Traceback" not in errors
    assert refused(*words, code=1) == (
        f"{out} holds the rows of a job that was interrupted; go on with --resume, or remove it."
    )
    assert "was begun with another options" in refused(*words, "--resume", "--max-seconds", 9, code=1)


# A full disk: no file may grow beyond a limit, which Python answers as it answers ENOSPC.


def limited(most: int, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n{COMMAND[-1]}"
    command = [sys.executable, "-c", code, *map(str, words)]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cwd.parent / "compiled")}  # programs do not fit either
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=env)


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0], done.stderr
    return errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_full_disk_keeps_the_rows_that_are_there(trained: Path, many: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"rows{ending}"
    words = ("score", many, "--checkpoint", trained, "--runtime", "jax", "--output", out)
    message = one_sentence(limited(20_000, *words, cwd=tmp_path))
    assert f"{out} cannot be written (File too large)" in message
    found = rows(out)
    assert len(found) > 50
    done = run(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert [row["path"] for row in rows(out)] == sorted(str(path) for path in many.iterdir())


def test_full_disk_while_preparing_leaves_nothing(films: Path, tmp_path: Path):
    done = limited(100_000, "prepare", films, "--out", tmp_path / "out", "--folds", 3, cwd=tmp_path)
    assert f"Error: {tmp_path / 'out'} cannot be written" in one_sentence(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_disk_while_saving_a_checkpoint_is_one_sentence(prepared: Path, tmp_path: Path):
    words = ("train", "--data", prepared, "--epochs", 2, "--run", tmp_path / "run", *TINY)
    message = one_sentence(limited(200_000, *words, cwd=tmp_path))
    assert "cannot be written" in message
    assert "--resume" in message
    assert run("train", "--resume", "--run", tmp_path / "run").exit_code == 0


def test_output_whose_folder_vanished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_formats, "SYNC_SECONDS", 0.0)
    cells = Row("a.png", "error", error="no image").cells(CLASSES)
    for ending in ENDINGS:
        folder = tmp_path / ending
        folder.mkdir()
        with pytest.raises(Exception) as caught, open_table(folder / f"rows{ending}", list(cells)) as writer:
            writer.write(cells)
            shutil.rmtree(folder)
            writer.write(cells)
        assert str(caught.value).startswith(f"{folder / f'rows{ending}'} cannot be written (No such file or directory)")


def test_output_of_another_model_does_not_go_on(trained: Path, films: Path, tmp_path: Path):
    out = tmp_path / "rows.csv"
    cells = Row(paths_below(films)[0], "error", error="no image").cells(CLASSES)
    with pytest.raises(ZeroDivisionError), open_table(out, list(cells), facts={"model": "another"}) as writer:
        writer.write(cells)
        raise ZeroDivisionError
    words = ("score", films, "--checkpoint", trained, "--runtime", "jax", "--output", out, "--resume")
    assert "was begun with another model, segmenter, options" in refused(*words, code=1)
    (tmp_path / ".rows.csv.job").unlink()
    for _ in range(2):  # what was refused once is refused again
        assert "is finished, and 29 files have no row in it" in refused(*words, code=1)
    out.write_text("path,status\n")
    assert "has other columns than the rows of this job" in refused(*words, code=1)


# Checkpoints, and the device's memory


def test_damaged_checkpoint_trains_again_from_the_one_before(trained: Path, prepared: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    last = newest(with_one_before(copied))
    file = max((last / "training").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))
    assert checkpoint.verify(copied, "last")[0] == 1
    with folder.lock(copied):
        checkpoint.CheckpointWriter(copied, "last", keep=2).close()
    assert checkpoint.steps(copied, "last") == [1]  # the other one's step comes again


def test_checkpoint_cut_off_before_its_digests_were_noted(trained: Path, films: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    last = newest(with_one_before(copied))
    (last / "sha256.json").unlink()
    for file in (last / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = run("score", films, "--checkpoint", copied, "--runtime", "jax")
    assert result.exit_code == 0, result.output
    assert "The checkpoint before it is used, step 1." in result.stderr


@pytest.mark.parametrize("late", [False, True])
def test_batches_are_halved_until_they_fit(late: bool, caplog: pytest.LogCaptureFixture):
    """Where the device says so at once, and where it does when the result is asked for."""
    sizes = []

    class Late:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    def compute(images: np.ndarray) -> Any:
        sizes.append(len(images))
        if len(images) > 8:
            return (Late(), images) if late else (np.asarray(Late()), images)
        return images[:, 0, 0].astype(np.float32), images

    sparing = MicroBatcher(compute)
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    for _ in range(2):
        first, second = sparing(images).result()
        np.testing.assert_array_equal(first[:, 0], np.arange(30))
        np.testing.assert_array_equal(second, images)
    assert sizes == [30, 15, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
    assert caplog.messages == ["The device has not enough memory for batches of 30 images; they have 7 from now on."]
