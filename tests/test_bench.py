from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bench import all as every
from bench import data, gpu, gpu_measures, growth, harness, lungs, machine, startup, tables, targets
from bench.harness import ContenderProcess, Entry
from bench.peers import pytorch_entries, pytorch_entry
from bench.tables import Log, Result, Row, Spread, Table

ROOT = Path(__file__).parents[1]
STORED = sorted((ROOT / "bench" / "results").glob("2*.json"))


def test_spread_is_median_and_quartiles():
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3, 2, 4, 5)
    assert Spread.of([7]) == Spread(7, 7, 7, 1)
    assert Spread(1234.5, 0.01234, 12.3, 3).text() == "1,234 (0.0123–12.3)"


def test_ratio_pairs_turn_with_turn():
    """A machine that slows down in the middle changes neither."""
    assert tables.ratio([10, 5, 10], [5, 2.5, 5]) == Spread(2, 2, 2, 3)


def table(**samples: list[float]) -> Table:
    rows = [Row(name, Spread.of(values), samples=values) for name, values in samples.items()]
    return Table("Title", "images/s", [*rows, Row("Keras", None, "skipped: none here")], "A note.", "ours")


def test_ratios_are_against_the_best_of_those_that_match():
    found = table(ours=[6.0, 6.0], torch_a=[2.0, 2.0], torch_b=[3.0, 3.0], other=[9.0, 9.0])
    assert tables.against(found, "ours", "torch", "r") == {"r": 2.0}
    assert tables.against(found, "ours", "Keras", "r") == {}
    assert tables.against(found, "Keras", "torch", "r") == {}


def test_tables_for_the_page_and_for_the_file_say_all(capsys: pytest.CaptureFixture[str]):
    found = table(ours=[6.0, 6.0], torch=[2.0, 2.0])
    page = tables.markdown([found])
    assert "| ours | 6.00 (6.00–6.00) |  |  |" in page
    assert "| torch | 2.00 (2.00–2.00) | 3.00 × |  |" in page
    assert "| Keras | — |  | skipped: none here |" in page
    tables.show([found])
    assert "skipped: none here" in capsys.readouterr().out
    result = Result([found], {"r": 2.0})
    assert tables.from_json(json.loads(json.dumps(tables.as_json(result)))) == result


def test_contenders_take_turns(tmp_path: Path):
    diary = tmp_path / "diary"
    entries = [
        Entry("one", "tests.contenders:Diary", {"name": "one", "diary": str(diary)}, note="a note"),
        Entry("absent", "tests.contenders:absent"),
        Entry("broken", "tests.contenders:broken"),
        Entry("ended", "tests.contenders:ended"),
        Entry("unknown", "no_such_module:Thing"),
        Entry("another", "tests.contenders:Diary", {"name": "another", "diary": str(diary)}),
    ]
    said: list[str] = []
    rows, answers = harness.turns(entries, rounds=3, seconds=0.06, say=said.append)
    assert [row.name for row in rows] == [entry.name for entry in entries]
    reasons = {row.name: row.note for row in rows if row.value is None}
    assert reasons == {
        "absent": "skipped: it is not installed",
        "broken": "skipped: ZeroDivisionError: no number",
        "ended": "skipped: ended with exit code 3",
        "unknown": "skipped: No module named 'no_such_module'",
    }
    # Three calls of 20 ms a turn and 4 images a call: 200 images/s at most, less what the pipe takes.
    first = rows[0].value
    assert first
    assert first.count == 3
    assert 50 < first.median <= 200
    assert rows[0].note.startswith("a note; process ")
    lines = [line.split() for line in diary.read_text().splitlines()]
    counted = lines[6:]  # after one call when it was made, and two to warm up, each
    assert [name for name, _ in counted] == ["one", "another"] * 3
    assert all(2 <= int(calls) <= 3 for _, calls in counted)
    harness.compare_answers(rows, answers, "one", "loss")
    assert rows[-1].note.endswith("; loss within 0.004")
    assert "loss" not in rows[0].note


def test_a_contender_that_ends_between_turns_leaves_the_others_theirs(tmp_path: Path):
    entries = [
        Entry(name, f"tests.contenders:{kind}", {"name": name, "diary": str(tmp_path / "diary")}, together=name != "one")
        for name, kind in (("leaving", "leaving"), ("one", "Diary"), ("two", "Diary"))
    ]
    rows, answers = harness.turns(entries, rounds=3, seconds=0.01)
    assert [row.name for row in rows] == ["leaving", "one", "two"]
    assert [len(row.samples) for row in rows] == [0, 3, 3]
    assert rows[0].note == "skipped: ended with exit code 3"
    assert set(answers) == {"one", "two"}


def test_a_contender_that_does_not_get_ready_is_given_up(tmp_path: Path):
    entry = Entry("one", "tests.contenders:Diary", {"name": "one", "diary": str(tmp_path / "diary")})
    rows, _ = harness.turns([entry], rounds=1, seconds=0.01, start_limit=0.001)
    assert rows[0].note == "skipped: given up after 0 s"


def test_a_waiting_contender_is_stopped_and_ends_with_its_parent(tmp_path: Path):
    script = f"""
import json, os, signal, sys
from bench.harness import Entry, ContenderProcess
options = {{"name": "one", "diary": {str(tmp_path / "diary")!r}}}
contender = ContenderProcess(Entry("one", "tests.contenders:Diary", options))
contender.start()
print(contender._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=machine.environment()
    )
    process = Path("/proc", done.stdout.strip())
    deadline = time.monotonic() + 10
    while process.exists() and time.monotonic() < deadline and " Z " not in (process / "stat").read_text():
        time.sleep(0.05)
    assert not process.exists() or " Z " in (process / "stat").read_text()

    contender = ContenderProcess(Entry("one", "tests.contenders:Diary", {"name": "one", "diary": str(tmp_path / "diary")}))
    contender.start()
    try:
        stat = Path("/proc", contender.note.removeprefix("process "), "stat")
        deadline = time.monotonic() + 10
        while stat.read_text().split()[2] != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stat.read_text().split()[2] == "T"
        assert contender.turn(2) >= 0.02
    finally:
        contender.end()


def test_checks_compare_with_what_is_asked_and_miss_nothing():
    asked = (
        targets.Target("speed", "speed", least=1.3),
        targets.Target("time", "time", most=4),
        targets.Target("gone", "gone", least=0),
    )
    found = targets.check({"speed": 1.29, "time": 4.0}, asked)
    assert [line.ok for line in found] == [False, True, False]
    assert [line.target for line in found] == ["≥ 1.3", "≤ 4", "≥ 0"]
    assert found[2].value is None


def test_page_is_rewritten_between_its_marks(tmp_path: Path):
    log = Log("python -m bench.all")
    log.measure("train", lambda: Result([table(ours=[6.0])], {"train_vs_torch_float32": 1.5}))
    stored = json.loads(json.dumps(log.content()))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- end of bench -->\nafter\n")
    for _ in range(2):
        every.rewrite_page(page, stored)
        text = page.read_text()
        assert text.startswith("before\n<!-- bench -->\n`python -m bench.all` on ")
        assert text.endswith("<!-- end of bench -->\nafter\n")
        assert "old" not in text
        assert text.count("| ours | 6.00") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- bench -->"):
        every.rewrite_page(page, stored)
    assert stored["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert stored["versions"]["numpy"] == np.__version__
    assert len(stored["benchmarks"]["train"]["load_average_before"]) == 3


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.name)
def test_stored_results_can_be_read_and_checked(file: Path):
    stored = json.loads(file.read_text())
    assert not stored["quick"]
    for benchmark in stored["benchmarks"].values():
        assert tables.from_json(benchmark).tables
    assert CliRunner().invoke(every.main, ["--check", "--result", str(file)]).exit_code in (0, 1)


def test_page_shows_the_newest_result():
    newest = every.newest()
    if newest is None:
        pytest.skip("no result of a whole run is stored yet")
    assert every.page_text(json.loads(newest.read_text())) in every.PAGE.read_text()


@pytest.mark.parametrize(("kind", "low", "high"), [("png", 0.3, 0.5), ("jpeg", 0.09, 0.18)])
def test_films_are_as_large_as_published_ones(
    kind: str, low: float, high: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = data.films(kind, 3, 1)
    files = sorted(folder.iterdir())
    assert len(files) == 3
    assert {file.stat().st_ino for file in files} == {files[0].stat().st_ino}
    made = data.KINDS[kind]
    assert low < files[0].stat().st_size / made.height / made.width < high
    assert data.films(kind, 3, 1) == folder


def test_memory_of_a_command_counts_its_children():
    child = "import sys; held = bytearray(100 * 2**20); sys.stdin.read(1); import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], input=b'x')"
    found = growth.peak_memory([sys.executable, "-c", parent])
    assert 100 < found < 200
    with pytest.raises(RuntimeError, match="failed"):
        growth.peak_memory([sys.executable, "-c", "raise SystemExit(1)"])


def test_start_up_is_timed_to_a_line(tmp_path: Path):
    (seconds,) = startup.until(["--help"], [], tmp_path)
    assert 0 < seconds < 10
    with pytest.raises(RuntimeError, match=r"score .* failed: Error: "):
        startup.until(["score", str(tmp_path / "none.png")], ["1 of 1"], tmp_path)


def run(module: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, capture_output=True, text=True, env=machine.environment()
    )
    assert done.returncode == 0, done.stderr


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed; pip install 'covidjax[peers]'")


@pytest.mark.slow
def test_every_benchmark_runs_on_tiny_inputs(tmp_path: Path):
    needs("torch", "onnx", "psutil")
    out = tmp_path / "quick.json"
    run("bench.all", "--quick", "--out", str(out))
    stored = json.loads(out.read_text())
    assert set(stored["benchmarks"]) == set(every.BENCHMARKS)
    found = {name: tables.from_json(value) for name, value in stored["benchmarks"].items()}
    # Same weights, same pixels: in float32 nobody's loss or probabilities are far from ours.
    for name in ("train", "forward"):
        exact = [row for row in found[name].tables[0].rows if row.value and ("float32" in row.name or "Keras" in row.name)]
        apart = [float(row.note.rpartition("within ")[2]) for row in exact]
        assert apart
        assert max(apart) < 1e-3, (name, apart)
    missing = {line.figure for line in every.TARGETS} - set(every.figures_of(stored))
    allowed = {"runtime_vs_openvino_bfloat16", "runtime_vs_openvino_best"}
    # What the bench of lungs finds depends on films and on a peer that tests do without.
    if not lungs.films()[0]:
        allowed |= {line.figure for line in every.TARGETS if line.figure.startswith("lungs_")}
    elif not find_spec("lungs_finder"):
        allowed |= {"lungs_vs_lungs_finder"}
    assert missing <= allowed


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path):
    needs("torch")
    run("bench.gpu", "--small", "--out", str(tmp_path))
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["state"] for name, part in stored["benchmarks"].items()} == dict.fromkeys(gpu.PARTS, "complete")
    figures = gpu.figures_of(stored)
    size = gpu_measures.Size(True)
    for large in ("224", "144", "64", "96"):
        stand_in = {"224": size.large, "144": size.middle}.get(large, size.flag_pixels[0])
        asked = [line.figure.replace(large, str(stand_in)) for line in gpu.TARGETS if line.figure.endswith(large)]
        assert asked
        assert set(asked) <= set(figures)
    assert {line.figure for line in gpu.TARGETS if not line.figure[-1].isdigit()} <= set(figures)
    if not machine.gpu_name():  # the same device on both sides
        assert max(figures[f"{what}_float32"] for what in ("logits", "gradients", "losses")) < 1e-5
        graphed = [row for row in stored["benchmarks"]["pace"]["tables"][0]["rows"] if "graph," in row["name"]]
        assert {row["note"] for row in graphed} == {"skipped: CUDA graphs need a GPU"}
    assert figures["share_of_bandwidth"] > 0
    ways = stored["benchmarks"]["flags"]["tables"][0]["rows"]
    assert len(ways) == len(gpu_measures.VARIANTS)
    assert all(row["value"] or "unknown flag" in row["note"] for row in ways)


def test_part_of_the_gpu_benchmark_ends_at_its_limit_and_costs_no_other(tmp_path: Path):
    gpu.store(tmp_path, "pace", Result([table(ours=[6.0])], {"speed": 2.0}), state="complete")
    began = time.monotonic()
    gpu.measure_apart("limits", tmp_path, ["--small", "--out", str(tmp_path)], 0.2)
    assert time.monotonic() - began < 60
    gpu.measure_apart("check", tmp_path, ["--no-such-option"], 60)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored["benchmarks"]["pace"]["state"] == "complete"
    assert stored["benchmarks"]["limits"]["state"] == "cut off after 0 s"
    assert stored["benchmarks"]["check"]["state"] == "failed with exit code 2"
    assert gpu.figures_of(stored) == {"speed": 2.0}


def test_gpu_benchmark_leaves_out_flags_that_xla_does_not_know():
    wrong = ["--xla_gpu_no_such_flag=1", "--xla_gpu_enable_command_buffer=+NONE_SUCH"]
    found = gpu_measures.unknown_flags(["", *wrong, gpu_measures.GRAPHS])
    assert set(wrong) <= found
    assert "" not in found


def test_best_flags_are_among_those_with_the_same_loss():
    answers = {gpu_measures.AS_IT_IS.name: [1.0], "near": [1.01], "far": [1.1], "lost": [float("nan")]}
    assert [name for name in (*answers, "absent") if gpu_measures.same_loss(answers, name)] == ["as it is", "near"]


def test_ways_of_pytorch_have_the_names_of_the_tables():
    entries = pytorch_entries("Train", {}, ("float32",), ("default", "reduce-overhead"))
    assert [entry.name for entry in entries] == [
        "PyTorch float32, eager",
        "PyTorch float32, eager, channels-last",
        "PyTorch float32, compiled, channels-last",
        "PyTorch float32, compiled (reduce-overhead), channels-last",
    ]
    graphed = pytorch_entry("Train", {}, "float16", "graph", True)
    assert graphed.name == "PyTorch float16, graph, channels-last"
    assert graphed.options == {"precision": "float16", "channels_last": True, "compiled": "", "graphed": True}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_steps_in_a_graph_are_those_of_eager_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str):
    """All but CUDA's own part: capturing is replaced by calling the function again, with gradients that are its own."""
    needs("torch")
    import torch

    from bench.peers import pytorch

    rng = np.random.default_rng(0)
    batch = tmp_path / "batch.npz"
    np.savez(batch, images=rng.integers(0, 256, (4, 32, 32, 1), np.uint8), labels=np.arange(4, dtype=np.int32) % 3)
    options = {"batch": str(batch), "weights": "", "precision": precision, "channels_last": True, "compiled": ""}

    def losses(graphed: bool) -> list[float]:
        torch.manual_seed(0)
        contender = pytorch.Train(**options, graphed=graphed)
        return [contender.answer()[0] for _ in range(3)]

    with pytest.raises(harness.Missing, match="CUDA graphs need a GPU"):
        pytorch.Train(**options, graphed=True)

    def capture(self: Any, function: Any, warm_up: Any) -> Any:
        for _ in range(3):
            warm_up()

        def replay() -> Any:
            self.before_capture()
            return function()

        return replay

    monkeypatch.setattr(pytorch.Train, "capture", capture)
    np.testing.assert_allclose(losses(graphed=True), losses(graphed=False), rtol=1e-3)


def test_boxes_of_lungs_are_measured_against_drawn_ones():
    import doctest

    assert doctest.testmod(lungs).failed == 0
    drawn = [np.asarray([[10.0, 10.0, 40.0, 90.0], [60.0, 10.0, 90.0, 90.0]])]
    assert lungs.quality(np.asarray([[10, 10, 90, 90]]), drawn) == (1.0, 0.0, 0.0)
    assert lungs.quality(np.asarray([[0, 0, 100, 100]]), drawn) == (0.64, 0.0, 0.0)
    assert lungs.quality(np.asarray([[20, 10, 90, 90]]), drawn) == (0.875, 1.0, 0.0)


def test_training_time_is_that_of_the_fastest_way():
    from bench import study
    from bench.tables import Row, Spread, Table

    def row(name: str, *speeds: float) -> Row:
        return Row(name, Spread.of(speeds) if speeds else None, "", list(speeds))

    table = Table("", "images/s", [row("slow", 10, 11, 12), row("fast", 19, 20, 40), row("skipped")])
    assert study.minutes(table, 2400) == (2.0, "fast")
