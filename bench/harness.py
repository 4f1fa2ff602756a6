"""Contenders in processes of their own that take turns, and the command of a benchmark.

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
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple, Protocol, TypeVar

import click
import numpy as np

from bench.machine import ROOT, environment
from bench.tables import Log, Result, Row, show, write

FAILED_START = 1800.0
"""Seconds after which a contender that does not get ready is given up: a compiler that hangs is no measurement."""


class Missing(Exception):
    """A contender that cannot take part here; the message is the reason, and stands in the table."""


class Contender(Protocol):
    """An object that a process of its own runs."""

    images: int

    def run(self, calls: int) -> None: ...


@dataclass(frozen=True)
class Entry:
    """A contender by name."""

    name: str
    factory: str
    """``module:function``."""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""
    together: bool = False
    """Whether it may get ready at the same time as others that may; they do so after those that may not."""


class ContenderProcess:
    """A contender in its own process, which imports what it needs at once and is made by ``start``: imports take most of
    the time of a short measurement, and can go on at the same time."""

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

    def start(self, limit: float = FAILED_START) -> None:
        """Make the contender and wait until it is ready, for so many seconds.

        Raises:
          Missing: it cannot take part; the message says why.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and said why
                self._send({"start": True})
            ready = self._receive(limit)
        except BaseException:
            self.end()
            raise
        if "missing" in ready:
            self.end()
            raise Missing(ready["missing"])
        self.images: int = ready["images"]
        self.answer: list[float] | None = ready["answer"]
        self.note: str = ready["note"]
        self._pause()

    def turn(self, calls: int) -> float:
        """Seconds a call."""
        self._process.send_signal(signal.SIGCONT)
        self._send({"run": calls})
        seconds = self._receive(FAILED_START)["seconds"]
        self._pause()
        return seconds / calls

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):  # a message that nobody took any more
                pipe.close()

    def _pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout
        # A watchdog, since a pipe has no time limit of its own.
        with _watchdog(self._process, seconds) as timer:
            line = self._process.stdout.readline()
            late = timer.finished.is_set()
        if not line:
            if late:
                raise Missing(f"given up after {seconds:.0f} s")
            self._process.wait()
            raise Missing(f"ended with exit code {self._process.returncode}")
        return json.loads(line)


@contextlib.contextmanager
def _watchdog(process: subprocess.Popen[str], seconds: float) -> Iterator[Timer]:
    timer = Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def turns(
    entries: Sequence[Entry],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None] = lambda text: None,
    start_limit: float = FAILED_START,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Let contenders take turns, A B C A B C …

    Args:
      entries: who takes part, in the order of the turns.
      rounds: turns each; each turn is one sample.
      seconds: about how long a turn is to last; at least one call.
      say: told what happens.
      start_limit: seconds that a contender may take to get ready.

    Returns:
      Rows in images/s, in the order of the entries, and the answers of those that gave one.
    """
    importing = {entry.name: ContenderProcess(entry) for entry in entries}
    processes: dict[str, ContenderProcess] = {}
    missing: dict[str, str] = {}
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {entry.name: [] for entry in entries}

    def start(entry: Entry) -> None:
        started = time.perf_counter()
        try:
            importing[entry.name].start(start_limit)
            say(f"  {entry.name}: ready after {time.perf_counter() - started:.0f} s")
        except Missing as reason:
            missing[entry.name] = str(reason)
            say(f"  {entry.name}: skipped, {reason}")

    try:
        for entry in entries:
            if not entry.together:
                start(entry)
        with ThreadPoolExecutor() as pool:
            list(pool.map(start, [entry for entry in entries if entry.together]))
        for name, process in importing.items():
            if name in missing:
                continue
            try:
                # Twice before anything counts: the first call may still compile, or build its pools of threads.
                process.turn(1)
                calls[name] = max(1, round(seconds / max(process.turn(1), 1e-6)))
                processes[name] = process
            except Missing as reason:
                missing[name] = str(reason)
                process.end()
                say(f"  {name}: skipped, {reason}")
        for _ in range(rounds):
            for name, process in list(processes.items()):
                try:
                    samples[name].append(process.images / process.turn(calls[name]))
                except Missing as reason:  # it ended; the others go on
                    missing[name] = str(reason)
                    processes.pop(name).end()
    finally:
        for process in importing.values():
            process.end()
    rows = []
    for entry in entries:
        if entry.name in missing:
            rows.append(Row(entry.name, None, f"skipped: {missing[entry.name]}"))
        else:
            note = "; ".join(filter(None, (entry.note, processes[entry.name].note)))
            rows.append(Row.of(entry.name, samples[entry.name], note))
    return rows, {name: process.answer for name, process in processes.items() if process.answer is not None}


def compare_answers(rows: Sequence[Row], answers: dict[str, list[float]], reference: str, quantity: str) -> None:
    """Note with each contender how far its answer is from the reference's: evidence that it does the same work."""
    if reference not in answers:
        return
    expected = np.asarray(answers[reference])
    for row in rows:
        if row.name in answers and row.name != reference:
            difference = float(np.abs(np.asarray(answers[row.name]) - expected).max())
            row.note = "; ".join(filter(None, (row.note, f"{quantity} within {difference:.1g}")))


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def only(entries: Sequence[N], pattern: str | None) -> list[N]:
    """The entries whose name contains a match of the pattern."""
    return [entry for entry in entries if pattern is None or re.search(pattern, entry.name)]


class Options(NamedTuple):
    """The options of every benchmark."""

    quick: bool = False
    """Tiny inputs: shows that everything runs, measures nothing."""
    only: str | None = None


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


def _serve(factory: str, options: dict[str, Any], parent: int) -> None:
    # A stopped process does not notice that its parent is gone; the kernel ends it then (PR_SET_PDEATHSIG is 1).
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            return
    # The pipe is kept for messages: whatever a library prints goes to stderr.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    module, _, function = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        sys.stdin.readline()  # its turn to be made
        contender = make(**options)
        numbers = contender.answer() if hasattr(contender, "answer") else None
        contender.run(1)
    except (Missing, ImportError) as reason:
        send({"missing": str(reason)})
        return
    except Exception as error:
        import traceback

        traceback.print_exc()
        send({"missing": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
        return
    send({"images": contender.images, "answer": numbers, "note": getattr(contender, "note", "")})
    for line in sys.stdin:
        calls = json.loads(line)["run"]
        start = time.perf_counter()
        contender.run(calls)
        send({"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    from bench import harness  # not __main__'s own Missing, which no contender knows

    harness._serve(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
