"""What surrounds a command: variables of the environment, streams, encodings, quotas, threads, the network, the disk."""

from __future__ import annotations

import contextlib
import csv
import json
import locale
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import COMMAND, TINY, run
from covidjax_cli import installation, process

import covidjax
from covidjax import device, environment, files
from covidjax.data.sample import sample_dataset
from covidjax.inference import runtimes
from covidjax.lungs import export
from covidjax.lungs.segmenter import open_segmenter

FLAGS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_DTYPE_BITS": "64",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DISABLE_JIT": "true",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEBUG_NANS": "1",
    "JAX_NO_EXECUTION": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}
"""Variables by which jax computes or checks programs otherwise."""

SMALL = ("--model", "cnn13", "--set", "model.width=2", "--epochs", "1", *TINY)


def command(*words: object, shell: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with variables of the environment and redirections of the shell."""
    line = ["sh", "-c", f'"$@" {shell}', "sh", *COMMAND, *map(str, words)]
    return subprocess.run(line, env=os.environ | variables, capture_output=True)


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


# Variables of jax and matplotlib


@pytest.fixture(scope="module")
def losses(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of the epoch of a small training, undisturbed."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert run("train", "--data", prepared, "--run", out, *SMALL).exit_code == 0
    return losses_of(out)


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["train"]["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_follows_its_settings_and_no_flags_of_jax(prepared: Path, tmp_path: Path, losses: list[float]):
    out = tmp_path / "run"
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = command("train", "--data", prepared, "--run", out, *SMALL, **FLAGS, **backend)
    assert done.returncode == 0, done.stderr.decode()
    assert losses_of(out) == losses
    assert {path.name for path in (out / "report").iterdir()} >= {"tables.txt", "curves.png", "confusion_matrix.png"}


@contextlib.contextmanager
def callers_flags() -> Iterator[None]:
    """A program that has set flags of jax for itself."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.disable_jit():
        yield
        assert jax.numpy.arange(3.0).dtype == np.float64, "what the program has set is as it was"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["darkcovidnet", "cnn13", "lung-unet"])
def test_library_trains_whatever_flags_its_caller_has_set(prepared: Path, tmp_path: Path, model: str):
    data = sample_dataset(32, 60, masks=True).path if model == "lung-unet" else prepared
    words = ("train", "--data", data, "--epochs", 1, "--model", model, *TINY)
    assert run(*words, "--run", tmp_path / "plain").exit_code == 0
    with callers_flags():
        assert run(*words, "--run", tmp_path / "flags").exit_code == 0
        assert run("evaluate", tmp_path / "flags").exit_code == 0
    assert losses_of(tmp_path / "flags") == losses_of(tmp_path / "plain")


@pytest.mark.parametrize("name", ["jax", "onnxruntime"])
def test_library_scores_whatever_flags_its_caller_has_set(
    trained: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    wanted(name)
    monkeypatch.setattr("covidjax.inference.onnx.cache_folder", lambda: tmp_path)  # it is converted anew
    paths = sorted(films.rglob("*.png"))[:4]
    expected = list(covidjax.load(trained, runtime="jax").score(paths))
    with callers_flags():
        rows = list(covidjax.load(trained, runtime=name).score(paths))
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(list(row.probabilities.values()), list(other.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "platforms"),
    [
        (("score",), "cuda"),
        (("score", "--runtime", "jax"), "rocm,cpu"),
        (("score", "--runtime", "jax"), "nonsense"),
        (("segment", "--out", "lungs"), "tpu"),
    ],
)
def test_device_that_is_not_there_is_named(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], platforms: str
):
    monkeypatch.chdir(tmp_path)
    film = next(films.rglob("*.png"))
    done = command(words[0], film, *words[1:], JAX_PLATFORMS=platforms)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.decode().splitlines() if line.startswith("Error: "))
    assert f"JAX_PLATFORMS={platforms} names a device that jax does not find here" in line
    assert line.endswith("; set JAX_PLATFORMS=cpu, or unset it.")
    assert b"Traceback" not in done.stderr


def test_training_on_a_device_that_is_not_there_leaves_no_run(prepared: Path, tmp_path: Path):
    done = command("train", "--data", prepared, "--run", tmp_path / "run", JAX_PLATFORMS="cuda")
    assert done.returncode == 1
    assert b"Error: JAX_PLATFORMS=cuda names a device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("platforms", ["", "cpu"])
def test_device_that_is_there_computes(films: Path, platforms: str):
    done = command("score", next(films.rglob("*.png")), "--runtime", "jax", JAX_PLATFORMS=platforms)
    assert done.returncode == 0, done.stderr.decode()


def test_value_that_jax_does_not_take_is_one_sentence(films: Path):
    done = command("score", next(films.rglob("*.png")), "--runtime", "jax", JAX_NUM_CPU_DEVICES="many")
    assert done.returncode == 1
    assert b"Error: jax does not take JAX_NUM_CPU_DEVICES=many; unset JAX_NUM_CPU_DEVICES" in done.stderr
    assert b"Traceback" not in done.stderr


def test_training_uses_as_many_devices_as_there_are_cores(prepared: Path, tmp_path: Path):
    script = f"""
import jax
from covidjax_cli.main import main
main({["train", "--data", str(prepared), "--run", str(tmp_path / "run"), *SMALL]!r}, standalone_mode=False)
print(jax.device_count())
"""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(environment.cores()), done.stderr


DRAW = """
import sys
from pathlib import Path
from covidjax.report import plots
plots.curves(Path(sys.argv[1]), [{"epoch": 1, "train": {"loss": 1.0, "accuracy": 0.5}}])
import matplotlib
print(matplotlib.rcParams["text.usetex"], dict.__getitem__(matplotlib.rcParams, "backend"))
"""


def draw(file: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", DRAW, str(file)]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path))), **variables}
    return subprocess.run(line, cwd=file.parent, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg", "module://no.such", ""]
)
def test_figures_need_no_backend(tmp_path: Path, backend: str):
    done = draw(tmp_path / "curves.png", MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert backend != "TkAgg" or done.stdout.split()[1].lower() == "tkagg", "a program's own figures get what it wants"


def test_figures_do_not_follow_a_users_style(tmp_path: Path):
    assert draw(tmp_path / "plain.png").returncode == 0
    style = "text.usetex: True\nfigure.facecolor: red\nsavefig.bbox: tight\nbackend: nonsense\n"
    (tmp_path / "matplotlibrc").write_text(style)
    done = draw(tmp_path / "curves.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "True", "a program's own figures follow it"
    assert (tmp_path / "curves.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


# Standard streams and encodings


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(trained: Path, films: Path, tmp_path: Path, closed: str):
    out = tmp_path / "scores.csv"
    done = command("score", films, "--checkpoint", trained, "--output", out, shell=closed)
    assert done.returncode == 0, done.stderr.decode()
    assert [row["status"] for row in rows_of(out)] == ["ok"] * 30
    assert b"Traceback" not in done.stderr


def test_training_without_streams_writes_its_report(prepared: Path, tmp_path: Path):
    done = command("train", "--data", prepared, "--run", tmp_path / "run", *SMALL, shell="<&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "run" / "report" / "metrics.json").exists()


def test_library_decodes_where_streams_are_closed(films: Path, tmp_path: Path):
    script = """
import sys
from covidjax.config import Preprocess
from covidjax.images import stream
images = stream.read_images(sys.argv[2:], Preprocess(image_size=32), workers=1)
open(sys.argv[1], "w").write("".join(image.error or "ok" for image in images))
"""
    words = [sys.executable, "-c", script, str(tmp_path / "said"), str(next(films.rglob("*.png")))]
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], check=True)
    assert (tmp_path / "said").read_text() == "ok"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_results_that_cannot_be_printed_are_one_sentence(
    trained: Path, films: Path, tmp_path: Path, words: tuple[str, ...]
):
    out = tmp_path / "scores.csv"
    done = command("score", films, "--checkpoint", trained, "--output", out, *words, shell=">/dev/full")
    assert done.returncode == 1
    assert b"Error: Standard output cannot be written (No space left on device)" in done.stderr
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert len(rows_of(out)) == 30
    done = command("--help", shell=">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: Standard output cannot be written")


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&1 | true"])
def test_lines_that_nobody_reads_stop_nothing(trained: Path, films: Path, tmp_path: Path, shell: str):
    out, code = tmp_path / "scores.csv", tmp_path / "code"
    line = f'{{ "$@"; echo $? >"$CODE"; }} {shell}'
    words = [*COMMAND, "score", str(films), "--checkpoint", str(trained), "--output", str(out)]
    subprocess.run(["sh", "-c", line, "sh", *words], env=os.environ | {"CODE": str(code)}, capture_output=True)
    assert code.read_text() == "0\n"
    assert len(rows_of(out)) == 30


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "variables",
    [ASCII, {"PYTHONIOENCODING": "latin-1"}],
    ids=["ascii", "latin-1"],
)
def test_names_are_what_they_are_in_every_locale(trained: Path, films: Path, tmp_path: Path, variables: dict[str, str]):
    names = ["Röntgen²", "胸部", os.fsdecode(b"bytes\xff")]
    folder, out = tmp_path / "Aufnahmen Ü", tmp_path / "Tabelle ß.csv"
    folder.mkdir()
    for name, film in zip(names, sorted(films.rglob("*.png")), strict=False):
        shutil.copy(film, folder / f"{name}.png")
    done = command("score", folder, "--checkpoint", trained, "--output", out, **variables)
    assert done.returncode == 0, done.stderr
    assert {Path(row["path"]).stem for row in rows_of(out)} == set(names)
    assert {row["status"] for row in rows_of(out)} == {"ok"}
    done = command("score", folder, "--checkpoint", trained, **variables)  # prints them
    assert done.returncode == 0, done.stderr
    # Where ASCII is all that is said to be shown, click shows the names' own bytes.
    assert "Röntgen²".encode("utf-8" if variables == ASCII else "latin-1") in done.stdout


@pytest.mark.slow
def test_training_in_a_locale_without_utf8(prepared: Path, tmp_path: Path):
    out = tmp_path / "Läufe" / "é"
    done = command("train", "--data", prepared, "--run", out, *SMALL, **ASCII)
    assert done.returncode == 0, done.stderr
    assert "│" in (out / "report" / "tables.txt").read_text(encoding="utf-8")
    assert command("evaluate", out, **ASCII).returncode == 0


# Cores and memory


@pytest.fixture
def control_groups(tmp_path: Path) -> Callable[..., Path]:
    """A function that describes a process: its /proc/self/cgroup, what is mounted (root, kind, options), and files."""

    def describe(group: str, mounts: dict[str, tuple[str, str, str]], contents: dict[str, str]) -> Path:
        lines = [
            f"30 1 0:26 {root} {tmp_path / point} rw,nosuid shared:9 - {kind} {kind} rw,{options}"
            for point, (root, kind, options) in mounts.items()
        ]
        (tmp_path / "mountinfo").write_text("\n".join(["29 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]) + "\n")
        (tmp_path / "cgroup").write_text(group)
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return describe


V2 = {"fs": ("/", "cgroup2", "nsdelegate")}
V1 = {"fs/cpu": ("/docker/abc", "cgroup", "cpu,cpuacct"), "fs/memory": ("/docker/abc", "cgroup", "memory")}


@pytest.mark.parametrize(
    ("group", "mounts", "contents", "quota", "limit"),
    [
        ("0::/\n", V2, {"fs/cpu.max": "150000 100000\n", "fs/memory.max": "1073741824\n"}, 1.5, 2**30),
        ("0::/a/b\n", V2, {"fs/a/b/cpu.max": "max 100000\n", "fs/a/cpu.max": "50000 100000\n"}, 0.5, None),
        ("0::/a\n", V2, {"fs/a/cpu.max": "400000 100000\n", "fs/cpu.max": "100000 100000\n"}, 1.0, None),
        (
            "0::/elsewhere/x\n",
            {"fs": ("/mine", "cgroup2", "")},
            {"fs/memory.max": "max", "fs/cpu.max": "5000 10000"},
            0.5,
            None,
        ),
        ("0::/\n", V2, {"fs/cpu.max": "nonsense", "fs/memory.max": "9223372036854771712"}, None, None),
        (
            *("5:cpuacct,cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n", V1),
            {"fs/cpu/cpu.cfs_quota_us": "250000", "fs/cpu/cpu.cfs_period_us": "100000"},
            *(2.5, None),
        ),
        (
            *("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n", V1),
            {
                "fs/cpu/cpu.cfs_quota_us": "-1",
                "fs/cpu/cpu.cfs_period_us": "100000",
                "fs/memory/memory.limit_in_bytes": "536870912",
            },
            *(None, 2**29),
        ),
        ("", {}, {}, None, None),
    ],
)
def test_quota_and_limit_of_control_groups(
    control_groups: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    mounts: dict[str, tuple[str, str, str]],
    contents: dict[str, str],
    quota: float | None,
    limit: int | None,
):
    proc = control_groups(group, mounts, contents)
    assert environment.core_quota(proc) == quota
    assert environment.memory_limit(proc) == limit
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert environment.cores(proc) == {None: 8, 0.5: 1, 1.0: 1, 1.5: 2, 2.5: 3}[quota]
    cores, memory = installation.machine(proc)
    assert (quota is not None) == ("the control group's quota" in cores.detail)
    assert (limit is not None) == ("the control group's limit" in memory.detail)
    assert memory.state == ("note" if limit else "ok")


def test_no_description_of_the_process_is_no_limit(tmp_path: Path):
    assert environment.core_quota(tmp_path) is None
    assert environment.memory_limit(tmp_path / "none") is None
    assert environment.cores(tmp_path) == len(os.sched_getaffinity(0))


def test_everything_that_counts_cores_follows_the_quota(monkeypatch: pytest.MonkeyPatch, trained: Path):
    monkeypatch.setattr(environment, "core_quota", lambda *_: 1.0)
    monkeypatch.setattr(environment, "memory_limit", lambda *_: 2**20)
    from covidjax.images import stream

    assert stream.workers_or_default(None) == 2
    assert device.device_name().startswith("1 cores of ")
    assert not device.fits_in_memory(2**19, jax.devices()[0])
    wanted("onnxruntime")
    import onnxruntime

    options = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, opts, **rest: options.append(opts) or session(model, opts, **rest)
    )
    covidjax.load(trained, runtime="onnxruntime")
    assert options[-1].intra_op_num_threads == 1


# Threads


def wanted(name: str) -> None:
    if not runtimes.is_installed(name):
        pytest.skip(f"{name} is not installed")


def in_threads(work: Callable[[], object], count: int = 4) -> list[object]:
    """What the same work in several threads at once comes to."""
    results: list[object] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("name", ["jax", "openvino", "onnxruntime"])
def test_threads_share_a_classifier(films: Path, name: str):
    """The bundled one, whose lungs are found by a segmenter."""
    wanted(name)
    classifier, paths = covidjax.load(runtime=name), sorted(films.rglob("*.png"))
    expected = list(classifier.score(paths))
    assert in_threads(lambda: list(classifier.score(paths))) == [expected] * 4
    segmenter = open_segmenter(runtime=name)
    images = np.random.default_rng(0).integers(0, 256, (3, segmenter.size, segmenter.size, 1), np.uint8)
    masks, _ = segmenter.segment(images)
    for result in in_threads(lambda: segmenter.segment(images)[0].copy()):
        np.testing.assert_array_equal(np.asarray(result), masks)


def test_threads_convert_one_network(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted("onnxruntime")
    monkeypatch.setattr("covidjax.inference.onnx.cache_folder", lambda: tmp_path)
    before = sys.stdout
    titles = in_threads(lambda: covidjax.load(trained, runtime="onnxruntime").runtime)
    assert sys.stdout is before
    assert [str(title).partition(" ")[0] for title in titles] == ["ONNX"] * 4
    assert len(list(tmp_path.glob("*.onnx"))) == 1


# The network

WATCHED = """
import os, sys
def watch(event, arguments):
    names = ("connect", "getaddrinfo", "gethostbyname", "sendto", "sendmsg")
    if event in [f"socket.{name}" for name in names]:
        os.write(2, f"NETWORK {event} {arguments}\\n".encode())
sys.addaudithook(watch)
from covidjax_cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_no_command_reaches_the_network_by_any_library(films: Path, tmp_path: Path):
    for words in COMMANDS_OF_ALL_KINDS:
        trace = tmp_path / "trace"
        line = ["strace", "-f", "-o", str(trace), "-e", "trace=connect,sendto,sendmsg"]
        done = every_kind([*line, *COMMAND], words, films, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "AF_INET" not in trace.read_text(errors="replace")
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"covidjax", "matplotlib"}


COMMANDS_OF_ALL_KINDS = [
    "prepare {films} --out data --image-size 32 --folds 3 --lungs crop",
    "train --data data --run run --epochs 1 --model cnn13 --set model.width=2 --set train.batch_size=4",
    "score {films} --runtime onnxruntime",
    "evaluate run",
    "score {films} --checkpoint run --runtime jax",
    "score {films} --runtime openvino",
    "segment {films} --out lungs",
    "doctor",
]


def every_kind(line: list[str], words: str, films: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder / "home")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    line = [*line, *words.format(films=films).split()]
    return subprocess.run(line, cwd=folder, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize("commands", [slice(2, 3), pytest.param(slice(0, 3), marks=pytest.mark.slow)], ids=["score", "all"])
def test_no_command_asks_for_the_network(films: Path, tmp_path: Path, commands: slice):
    wanted("openvino")
    (tmp_path / "home").mkdir()
    for words in COMMANDS_OF_ALL_KINDS[commands]:
        done = every_kind([sys.executable, "-c", WATCHED], words, films, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "NETWORK" not in done.stderr
    # Neither a number for this machine nor a store of what would be sent.
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"covidjax", "matplotlib"}
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_telemetry_is_off_before_onnxruntime_is_imported(trained: Path, monkeypatch: pytest.MonkeyPatch):
    wanted("onnxruntime")
    from covidjax.inference import onnx

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    onnx.import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")  # a program's own wish is its own
    onnx.import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a disk of so many bytes or files."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=300k", "nr_inodes=10"])
def test_full_disk_in_training_is_one_sentence_and_training_goes_on(
    prepared: Path, small_disk: Callable[[str], Path], options: str, losses: list[float]
):
    out = small_disk(options) / "run"
    saving = ("--set", "train.checkpoint_seconds=0")
    done = command("train", "--data", prepared, "--run", out, *SMALL, *saving)
    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert [line for line in errors if line.startswith("Error: ")] == errors[-1:]
    assert errors[-1].endswith("cannot be written (No space left on device); free some space, then go on with --resume.")
    assert "Traceback" not in done.stderr.decode() and "Task exception" not in done.stderr.decode()
    subprocess.run(["mount", "-o", "remount,size=100m,nr_inodes=10000", str(out.parent)], check=True)
    done = command("train", "--resume", "--run", out)
    assert done.returncode == 0, done.stderr
    assert losses_of(out) == losses


@pytest.mark.parametrize(
    ("number", "remedy"),
    [("ENOSPC", "free some space"), ("EDQUOT", "free some space"), ("EACCES", "see that you may"), ("EIO", "mend that")],
)
def test_remedy_fits_the_fault_of_a_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, remedy: str
):
    import errno

    from covidjax.errors import UserError
    from covidjax.runs import checkpoint

    writer = checkpoint.CheckpointWriter(tmp_path, "last", keep=1)
    text = os.strerror(getattr(errno, number))

    def fails(*_: object, **__: object) -> None:
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing \"a\": Failed: [OS error: {text}] [source locations='x.cc']")

    monkeypatch.setattr(writer._manager, "save", fails)
    with pytest.raises(UserError) as caught:
        writer.save(1, {"a": np.ones(1)}, {}, {})
    assert f"; {remedy}" in str(caught.value) and str(caught.value).endswith(", then go on with --resume.")
    writer.close()


def test_remedy_of_a_full_disk_is_space(tmp_path: Path):
    import errno

    from covidjax.errors import UserError

    for number, remedy in ((errno.ENOSPC, files.MORE_SPACE), (errno.EACCES, "name a folder that you may write to")):
        with pytest.raises(UserError, match=remedy), files.explaining(tmp_path):
            raise OSError(number, os.strerror(number))


# Long names


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "ü" * 125 + ".csv", "short.csv"])
def test_every_legal_name_is_written(tmp_path: Path, name: str):
    files.write_atomic(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    hidden = {files.hidden_name(name, suffix) for suffix in (".job", ".lock", ".partial-123456")}
    assert len(hidden) == 3
    assert all(each.startswith(".") and len(os.fsencode(each)) <= 255 for each in hidden)
    assert files.hidden_name("short.csv", ".job") == ".short.csv.job"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_table_of_the_longest_name(trained: Path, films: Path, tmp_path: Path, ending: str):
    out = tmp_path / ("t" * (255 - len(ending)) + ending)
    done = run("score", films, "--checkpoint", trained, "--output", out)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_lungs_of_files_with_the_longest_names(films: Path, tmp_path: Path):
    film = next(films.rglob("*.png"))
    names = ["a.png", "y" * 251 + ".png", "y" * 251 + ".bmp", "ü" * 125 + ".tiff", "z" * 240 + ".png", "z.png"]
    folder, out = tmp_path / "films", tmp_path / "out"
    folder.mkdir()
    for name in names:
        shutil.copy(film, folder / name)
    done = run("segment", folder, "--out", out)
    assert done.exit_code == 0, done.output
    rows = rows_of(out / "lungs.csv")
    assert sorted(Path(row["path"]).name for row in rows) == sorted(names)
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["file"] for row in rows}) == len(names)
    assert all((out / row["file"]).stat().st_size for row in rows)


def test_one_png_that_cannot_be_written_stops_no_other(films: Path, tmp_path: Path, write_films: Callable[..., Path]):
    folder, out = write_films(tmp_path / "films", "a.png", "b/c.png", "d.png"), tmp_path / "out"
    out.mkdir()
    (out / "b").write_text("no folder")
    done = run("segment", folder, "--out", out)
    assert done.exit_code == 0, done.output
    rows = {Path(row["path"]).name: row for row in rows_of(out / "lungs.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {"a.png": "ok", "c.png": "error", "d.png": "ok"}
    assert rows["c.png"]["error"].startswith("its mask cannot be written as b/c.png (")


def test_names_of_pngs_stay_distinct_where_they_are_cut():
    names = export.output_names([Path(f"{'x' * 252}{end}") for end in ("a", "b", "a.p")], [])
    assert len(set(names)) == 3
    assert all(name.endswith(".png") and len(name.encode()) <= 255 for name in names)


# The doctor


def test_doctor_knows_the_environment(tmp_path: Path):
    variables = FLAGS | {"MPLBACKEND": "nonsense", "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "latin-1"}
    done = command("doctor", "--json", shell="<&-", XDG_CACHE_HOME=str(tmp_path), **variables)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stderr
    assert {name: found[name]["state"] for name in FLAGS} == dict.fromkeys(FLAGS, "note")
    assert found["JAX_ENABLE_X64"]["detail"].startswith("1: ")
    assert found["MPLBACKEND"]["state"] == found["JAX_PLATFORMS"]["state"] == "ok"
    assert found["cores"]["detail"].startswith(f"{environment.cores()} of ")
    assert "GiB" in found["memory"]["detail"]
    assert found["telemetry"]["detail"].startswith("off")
    assert (found["encoding"]["state"], found["encoding"]["remedy"]) == ("note", "export PYTHONIOENCODING=utf-8")
    assert found["streams"]["detail"].startswith("stdin closed")


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        (("JAX_PLATFORMS", "cuda"), "set JAX_PLATFORMS=cpu, or unset it"),
        (("JAX_NUM_CPU_DEVICES", "x"), "unset JAX_NUM_CPU_DEVICES"),
    ],
)
def test_doctor_names_the_variable_that_is_wrong(variable: tuple[str, str], remedy: str):
    done = command("doctor", "--json", **dict([variable]))
    assert done.returncode == 1
    (wrong,) = (finding for finding in json.loads(done.stdout) if finding["state"] == "wrong")
    assert wrong["what"] == "devices"
    assert "=".join(variable) in wrong["detail"]
    assert wrong["remedy"] == remedy


def test_library_leaves_its_process_alone(trained: Path, films: Path):
    """Only the command's own process is made ready: neither streams nor variables of a program that imports covidjax."""
    before = dict(os.environ)
    assert run("score", films, "--checkpoint", trained, "--runtime", "jax").exit_code == 0
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    assert changed <= {"ORT_DISABLE_TELEMETRY", "PJRT_NPROC"}
    assert process.set_aside == {} and process.closed_streams == []
    assert locale.getencoding()
