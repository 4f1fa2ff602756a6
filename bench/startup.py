"""Start-up: seconds from a command to its first word, row, step or epoch.

``first time`` has an empty cache of compiled programs, as after installation; ``again`` has what that left. The dataset is
there already and the file system's cache is warm.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import data
from bench.harness import Options, command
from bench.machine import COVIDJAX, environment, say
from bench.tables import Result, Row, Spread, Table

HELP, SCORE, BEGIN, EPOCH = (
    "--help",
    "score one film, to its row",
    "train, to its first line",
    "train, to an epoch of 2 steps",
)


def until(words: Sequence[str], lines: Sequence[str], cache: Path) -> list[float]:
    """Seconds until a command prints a line with each of the texts (or, for none, until it ends), with its own caches in a
    folder. The command is left to end.

    Raises:
      RuntimeError: it ended badly, or without one of those lines.
    """
    settings = environment(XDG_CACHE_HOME=str(cache))
    del settings["JAX_COMPILATION_CACHE_DIR"]
    start = time.perf_counter()
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen([*COVIDJAX, *words], stdout=nowhere, stderr=pipe, text=True, env=settings)
    assert process.stderr
    seconds: dict[str, float] = {}
    errors = []
    with process.stderr:
        for text in process.stderr:
            errors.append(text)
            for line in lines:
                if line in text:
                    seconds.setdefault(line, time.perf_counter() - start)
    process.wait()
    if process.returncode or len(seconds) < len(lines):
        raise RuntimeError(f"covidjax {' '.join(words)} failed: {''.join(errors)[-500:]}")
    return [seconds[line] for line in lines] or [time.perf_counter() - start]


def measure(options: Options) -> Result:
    """Seconds."""
    size, rounds = (32, 1) if options.quick else (224, 3)
    run, dataset = data.run(size), data.dataset(96, size, 3)
    film = min(data.films("small", 6, 6).iterdir())
    seconds: dict[str, list[float]] = {HELP: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for _ in range(1 if options.quick else 5):
                seconds[HELP] += until(["--help"], [], Path(folder))
            for when in ("first time", "again"):
                score = ["score", str(film), "--checkpoint", str(run), "--output", f"{folder}/rows.csv"]
                train = ["train", "--data", str(dataset), "--epochs", "1", "--run", f"{folder}/run-{turn}-{when}"]
                for words, wanted in (
                    (score, {SCORE: "of 1 images scored"}),
                    (train, {BEGIN: "starting at step 1", EPOCH: "epoch 1/1"}),
                ):
                    taken = until(words, list(wanted.values()), Path(folder, f"{turn}-{words[0]}"))
                    for what, value in zip(wanted, taken, strict=True):
                        seconds.setdefault(f"{what}, {when}", []).append(value)
            say(f"  turn {turn + 1} of {rounds}")
    rows = [Row(name, Spread.of(values), samples=values) for name, values in seconds.items()]
    figures = {
        "score_again_seconds": Spread.of(seconds[f"{SCORE}, again"]).median,
        "help_seconds": Spread.of(seconds[HELP]).median,
    }
    return Result([Table("Start-up", "seconds", rows)], figures)


if __name__ == "__main__":
    command("startup", measure, __doc__)()
