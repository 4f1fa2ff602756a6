"""What every benchmark needs: contenders in processes of their own that take turns, statistics, tables, the result file.

A contender is a function, named ``module:function``, that makes an object with ``images`` (how many one call handles) and
``run(calls)``, which returns when all calls are done. It may have ``answer()``, numbers by which the contenders are seen to
do the same work. Each lives in a process of its own, since the thread pools of PyTorch, XLA and OpenVINO disturb each
other, and while it waits for its turn it is stopped (SIGSTOP), so that no pool of threads can spin on a core that
another one is measured on.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import click
import numpy as np
import platformdirs

ROOT = Path(__file__).parents[1]
COVIDJAX = (sys.executable, "-c", "from covidjax_cli.main import main; main()")
"""The command as it is started from a shell, also where it is not installed."""

PACKAGES = (
    *(
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "pillow",
        "tensorflow-datasets",
        "array-record",
    ),
    *("torch", "keras", "onnx", "onnxruntime", "openvino"),
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
FAILED_START = 1800.0
"""Seconds after which a contender that does not get ready is given up: a compiler that hangs is no measurement."""


class Missing(Exception):
    """A contender that cannot take part here; the message is the reason, and stands in the table."""


class Contender(Protocol):
    """What a process of its own runs."""

    images: int

    def run(self, calls: int) -> None: ...


# Where things lie


def cache() -> Path:
    """The folder for films, datasets, weights and compiled programs; it may be deleted at any time."""
    folder = platformdirs.user_cache_path("covidjax") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(**more: str) -> dict[str, str]:
    """For a process: this checkout's code, and compiled programs kept where all benchmarks find them again."""
    paths = [str(ROOT), str(ROOT / "cli"), os.environ.get("PYTHONPATH", "")]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(cache() / "xla"), "TORCHINDUCTOR_CACHE_DIR": str(cache() / "inductor")}
    return os.environ | compiled | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


# Statistics


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(values))

    def text(self, digits: int | None = None) -> str:
        """``median (low–high)``."""
        return f"{number(self.median, digits)} ({number(self.low, digits)}–{number(self.high, digits)})"


def number(value: float, digits: int | None = None) -> str:
    """With three significant digits unless told how many decimals."""
    if digits is None:
        digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:,.{digits}f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs, turn by turn: what slows the whole machine down for a while slows down both of a pair."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


# Tables and results


@dataclass
class Row:
    """One contender, or one quantity."""

    name: str
    value: Spread | None
    """None where it could not take part."""
    note: str = ""
    samples: list[float] = field(default_factory=list)


@dataclass
class Table:
    """What one benchmark found, in one unit."""

    title: str
    unit: str
    rows: list[Row]
    note: str = ""
    reference: str = ""
    """The row that the others are compared with; empty for none."""

    def row(self, name: str) -> Row | None:
        """The row of that name that has a value."""
        return next((row for row in self.rows if row.name == name and row.value), None)

    def compared(self, row: Row) -> str:
        """How many times this row's the reference's value is."""
        reference = self.row(self.reference)
        if not reference or not row.value or row is reference:
            return ""
        return f"{ratio(reference.samples, row.samples).median:.2f} ×"


class Result(NamedTuple):
    """What a benchmark's ``measure`` returns: tables to show, and the numbers that are asked for by name."""

    tables: list[Table]
    figures: dict[str, float]


def best(table: Table, pattern: str) -> Row | None:
    """The row with the greatest median among those whose names match from their beginning."""
    found = [row for row in table.rows if row.value and re.match(pattern, row.name)]
    return max(found, key=lambda row: row.value.median if row.value else 0.0, default=None)


def against(table: Table, ours: str, theirs: str, name: str) -> dict[str, float]:
    """``{name: median ratio}`` of our row and the best of theirs; empty where one is missing."""
    row, other = table.row(ours), best(table, theirs)
    return {name: ratio(row.samples, other.samples).median} if row and other else {}


def show(tables: Sequence[Table]) -> None:
    """Print tables on stdout."""
    from rich.console import Console
    from rich.table import Table as Rich

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in tables:
        drawn = Rich(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        drawn.add_column("")
        drawn.add_column(f"{table.unit}, median (quartiles)", justify="right")
        drawn.add_column(f"{table.reference} is" if table.reference else "", justify="right")
        drawn.add_column("remarks")
        for row in table.rows:
            drawn.add_row(row.name, row.value.text() if row.value else "—", table.compared(row), row.note)
        console.print(drawn)


def markdown(tables: Sequence[Table]) -> str:
    """The same for a page."""
    parts = []
    for table in tables:
        lines = [f"{table.title}, {table.unit}:", ""]
        lines += [f"| | median (quartiles) | {table.reference} is | remarks |", "| --- | ---: | ---: | --- |"]
        for row in table.rows:
            value = row.value.text() if row.value else "—"
            lines.append(f"| {row.name} | {value} | {table.compared(row)} | {row.note} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def as_json(result: Result) -> dict[str, Any]:
    """For the result file."""
    return {"tables": [asdict(table) for table in result.tables], "figures": result.figures}


def from_json(stored: dict[str, Any]) -> Result:
    """What ``as_json`` made."""

    def row(value: dict[str, Any]) -> Row:
        spread = Spread(**value["value"]) if value["value"] else None
        return Row(value["name"], spread, value["note"], value["samples"])

    tables = [Table(**table | {"rows": [row(value) for value in table["rows"]]}) for table in stored["tables"]]
    return Result(tables, stored["figures"])


# The machine


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What is measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", info, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": cores(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in known],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def gpu_name() -> str:
    """The first NVIDIA card, or nothing."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.splitlines()[0].strip()
    return ""


def versions() -> dict[str, str]:
    """Of what takes part, where it is installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


class Log:
    """Collects the content of a result file. Each benchmark is noted with its time and the load average before and after:
    a machine that others were busy on shows."""

    def __init__(self, command: str):
        self._command = command
        self._benchmarks: dict[str, Any] = {}

    def measure(self, name: str, measure: Callable[[], Result]) -> Result:
        """Run a benchmark and keep what it found."""
        when, before = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()
        start = time.perf_counter()
        result = measure()
        self._benchmarks[name] = as_json(result) | {
            "when": when,
            "seconds": round(time.perf_counter() - start, 1),
            "load_average_before": list(before),
            "load_average_after": list(os.getloadavg()),
        }
        return result

    def content(self) -> dict[str, Any]:
        """For the file."""
        when = max(found["when"] for found in self._benchmarks.values())
        return {
            "command": self._command,
            "when": when,
            "machine": machine(),
            "versions": versions(),
            "benchmarks": self._benchmarks,
        }


def write(file: Path, content: dict[str, Any]) -> None:
    """A result file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    say(f"Wrote {os.path.relpath(file)}.")


# Contenders that take turns


@dataclass(frozen=True)
class Entry:
    """A contender by name."""

    name: str
    factory: str
    """``module:function``."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""


class Player:
    """A contender in its own process.

    Raises:
      Missing: it cannot take part; the message says why.
    """

    def __init__(self, entry: Entry):
        self.entry = entry
        # Nobody takes a whole card for itself: the others are on it too.
        settings = environment(XLA_PYTHON_CLIENT_PREALLOCATE="false", **entry.environment)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.harness", entry.factory, json.dumps(entry.options), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=settings,
            cwd=ROOT,
        )
        try:
            ready = self._hear(FAILED_START)
        except BaseException:
            self.end()
            raise
        if "missing" in ready:
            self.end()
            raise Missing(ready["missing"])
        self.images: int = ready["images"]
        self.answer: list[float] | None = ready["answer"]
        self.note: str = ready["note"]
        self._rest()

    def turn(self, calls: int) -> float:
        """Seconds a call."""
        self._process.send_signal(signal.SIGCONT)
        self._say({"run": calls})
        seconds = self._hear(FAILED_START)["seconds"]
        self._rest()
        return seconds / calls

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):  # a message that nobody took any more
                pipe.close()

    def _rest(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _hear(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout
        # A watchdog, since a pipe has no time limit of its own.
        with _watchdog(self._process, seconds):
            line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Missing(f"ended with exit code {self._process.returncode}")
        return json.loads(line)


@contextlib.contextmanager
def _watchdog(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    from threading import Timer

    timer = Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def turns(
    entries: Sequence[Entry], *, rounds: int, seconds: float, say: Callable[[str], None] = lambda text: None
) -> tuple[list[Row], dict[str, list[float]]]:
    """Let contenders take turns, A B C A B C …

    Args:
      entries: who takes part, in the order of the turns.
      rounds: turns each; each turn is one sample.
      seconds: about how long a turn is to last; at least one call.
      say: told what happens.

    Returns:
      Rows in images/s, in the order of the entries, and the answers of those that gave one.
    """
    players: dict[str, Player] = {}
    missing: dict[str, str] = {}
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {entry.name: [] for entry in entries}
    try:
        for entry in entries:
            started = time.perf_counter()
            try:
                player = players[entry.name] = Player(entry)
                # Twice before anything counts: the first call may still compile, or build its pools of threads.
                player.turn(1)
                calls[entry.name] = max(1, round(seconds / max(player.turn(1), 1e-6)))
                say(f"  {entry.name}: ready after {time.perf_counter() - started:.0f} s")
            except Missing as reason:
                missing[entry.name] = str(reason)
                if entry.name in players:
                    players.pop(entry.name).end()
                say(f"  {entry.name}: left out, {reason}")
        for _ in range(rounds):
            for name, player in players.items():
                samples[name].append(player.images / player.turn(calls[name]))
    finally:
        for player in players.values():
            player.end()
    rows = []
    for entry in entries:
        if entry.name in missing:
            rows.append(Row(entry.name, None, f"left out: {missing[entry.name]}"))
        else:
            note = "; ".join(filter(None, (entry.note, players[entry.name].note)))
            rows.append(Row(entry.name, Spread.of(samples[entry.name]), note, samples[entry.name]))
    return rows, {name: player.answer for name, player in players.items() if player.answer is not None}


def compare_answers(rows: Sequence[Row], answers: dict[str, list[float]], reference: str, what: str) -> None:
    """Note with each contender how far its answer is from the reference's: evidence that it does the same work."""
    if reference not in answers:
        return
    wanted = np.asarray(answers[reference])
    for row in rows:
        if row.name in answers and row.name != reference:
            apart = float(np.abs(np.asarray(answers[row.name]) - wanted).max())
            row.note = "; ".join(filter(None, (row.note, f"{what} within {apart:.1g}")))


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def only(entries: Sequence[N], pattern: str | None) -> list[N]:
    """Those whose name contains a match of the pattern."""
    return [entry for entry in entries if pattern is None or re.search(pattern, entry.name)]


# Commands


class Options(NamedTuple):
    """What every benchmark is told."""

    quick: bool = False
    """Tiny inputs: shows that everything runs, measures nothing."""
    only: str | None = None


def say(text: str) -> None:
    """Progress, on stderr."""
    click.echo(text, err=True)


def command(name: str, measure: Callable[[Options], Result], doc: str | None) -> click.Command:
    """``python -m bench.NAME``."""

    @click.command(help=doc)
    @click.option("--quick", is_flag=True, help="Tiny inputs: shows that everything runs, measures nothing.")
    @click.option("--only", metavar="REGEX", help="Only the contenders whose names match.")
    @click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the result.")
    def run(quick: bool, only: str | None, out: Path | None) -> None:
        log = Log(f"python -m bench.{name}")
        result = log.measure(name, lambda: measure(Options(quick, only)))
        show(result.tables)
        for key, value in result.figures.items():
            click.echo(f"{key} = {value:.4g}")
        if out:
            write(out, log.content())

    return run


# A contender's own process


def _serve(factory: str, options: dict[str, Any], parent: int) -> None:
    # A stopped process does not notice that its parent is gone; the kernel ends it then (PR_SET_PDEATHSIG is 1).
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            return
    # The pipe is kept for messages: whatever a library prints goes to stderr.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    module, _, function = factory.partition(":")
    try:
        contender = getattr(importlib.import_module(module), function)(**options)
        found = contender.answer() if hasattr(contender, "answer") else None
        contender.run(1)
    except (Missing, ImportError) as reason:
        answer({"missing": str(reason)})
        return
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer({"missing": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
        return
    answer({"images": contender.images, "answer": found, "note": getattr(contender, "note", "")})
    for line in sys.stdin:
        calls = json.loads(line)["run"]
        start = time.perf_counter()
        contender.run(calls)
        answer({"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    from bench import harness  # not __main__'s own Missing, which no contender knows

    harness._serve(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
