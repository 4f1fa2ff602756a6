"""Scoring a folder, files to CSV, everything included: ``covidjax score`` and a PyTorch DataLoader loop.

Each is a command of its own and counted from its start to its end; beside it stands the pace of its loop alone, without
imports and loading of the model. Compiled programs are in the cache, as after the first time on a machine. Two kinds of
film: gray PNGs of 1024 × 1024 and gray JPEGs of 2000 × 2500. Decoding alone, by the same decoder with the same workers, is
what the machine can do at best. What the gate costs is told by the same commands without it, for whole images and where
lungs are cut out. The PyTorch loop is also run with Pillow's draft mode for JPEGs, which few know of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import data
from bench.harness import Options, only
from bench.machine import COVIDJAX, ROOT, environment, say
from bench.tables import Result, Row, Spread, Table, best, ratio
from covidjax.runs.load import BUNDLED

OURS, LOOP, DRAFT = "covidjax score", "PyTorch loop", "PyTorch loop, draft mode"
NO_GATE, LUNGS = "covidjax score --gate off", "covidjax score, lungs cut out"
LUNGS_NO_GATE = f"{LUNGS}, --gate off"
DECODE = "decoding alone"
INPUTS = {"png": "1024 × 1024 PNG", "jpeg": "2000 × 2500 JPEG"}


class Command:
    """A contender that is a whole command."""

    def __init__(self, name: str, words: Sequence[str]):
        self.name, self.words = name, list(words)
        self.process: list[float] = []
        self.loop: list[float] = []
        self.missing = ""

    def run(self, images: int) -> None:
        """Run it once, and keep its images/s."""
        if self.missing:
            return
        start = time.perf_counter()
        done = subprocess.run(self.words, capture_output=True, text=True, cwd=ROOT, env=environment())
        seconds = time.perf_counter() - start
        if done.returncode:
            self.missing = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            return
        summary = json.loads(done.stdout[done.stdout.index("{") :])
        inside = summary.get("loop") or {stage["stage"]: stage["seconds"] for stage in summary["timing"]}["wall"]
        scored = summary["images"] if "images" in summary else summary["files"] - summary["errors"]
        if scored != images:
            self.missing = f"handled {scored} of {images} films"
        else:
            self.process.append(images / seconds)
            self.loop.append(images / inside)


def contenders(folder: Path, run: Path, weights: Path, size: int, out: Path) -> list[Command]:
    """In the order of the turns."""
    ours = [*COVIDJAX, "score", str(folder), "--checkpoint", str(run), "--output", str(out / "ours.csv"), "--json"]
    loop = [sys.executable, "-m", "bench.peers.score_loop", str(folder), str(out / "loop.csv"), str(weights), str(size)]
    decode = [sys.executable, "-m", "bench.peers.decode", str(folder)]
    commands = [Command(OURS, ours)]
    offered = subprocess.run([*COVIDJAX, "score", "--help"], capture_output=True, text=True, env=environment()).stdout
    if "--runtime" in offered:
        commands.append(Command(f"{OURS} --runtime jax", [*ours, "--runtime", "jax"]))
    # The bundled classifier refuses synthetic X-rays, which takes as long.
    lungs = [str(BUNDLED) if word == str(run) else word for word in ours]
    commands += [Command(NO_GATE, [*ours, "--gate", "off"]), Command(LUNGS, lungs)]
    commands += [Command(LUNGS_NO_GATE, [*lungs, "--gate", "off"])]
    commands += [Command(LOOP, loop), Command(f"{DECODE}, loader", [*decode, "loader", str(size)])]
    commands += [Command(f"{DECODE}, processes", [*decode, "processes", str(size)])]
    if folder.name.startswith("films-jpeg"):
        commands.append(Command(DRAFT, [*loop, "draft"]))
    return commands


def measure(options: Options) -> Result:
    """images/s from files to CSV."""
    size = 32 if options.quick else 224
    run, weights = data.run(size), data.weights(size)
    tables: list[Table] = []
    figures: dict[str, float] = {}
    for kind, title in INPUTS.items():
        count, distinct, rounds = (6, 3, 1) if options.quick else ({"png": 900, "jpeg": 600}[kind], 60, 3)
        folder = data.films(kind, count, distinct)
        with tempfile.TemporaryDirectory() as out:
            few = data.films(kind, min(count, 64), distinct)
            for command in only(contenders(few, run, weights, size, Path(out)), options.only):
                command.run(min(count, 64))  # so that compiled programs and the files are in caches
            taking_part = only(contenders(folder, run, weights, size, Path(out)), options.only)
            for turn in range(rounds):
                for command in taking_part:
                    command.run(count)
                say(f"  {title}: turn {turn + 1} of {rounds}")
        whole, inner = [], []
        for command in taking_part:
            if command.missing:
                whole.append(Row(command.name, None, f"skipped: {command.missing[:120]}"))
                continue
            whole.append(Row(command.name, Spread.of(command.process), samples=command.process))
            inner.append(Row(command.name, Spread.of(command.loop), samples=command.loop))
        note = f"{count} files, {sum(file.stat().st_size for file in folder.iterdir()) / count / 1000:,.0f} kB on average."
        tables.append(Table(f"{title} to CSV, whole command", "images/s", whole, note, OURS))
        tables.append(Table(f"{title} to CSV, loop alone", "images/s", inner, "", OURS))
        ours = tables[-2].row(OURS)
        for name, pattern in ((f"score_{kind}_vs_loop", f"{LOOP}$"), (f"score_{kind}_vs_draft_loop", DRAFT)):
            if ours and (other := best(tables[-2], pattern)):
                figures[name] = ratio(ours.samples, other.samples).median
        for name, gated, free in (
            (f"score_{kind}_gate", OURS, NO_GATE),
            (f"score_{kind}_gate_lungs", LUNGS, LUNGS_NO_GATE),
        ):
            with_gate, without = tables[-2].row(gated), tables[-2].row(free)
            if with_gate and without:
                figures[name] = ratio(with_gate.samples, without.samples).median
        ceiling, ours = best(tables[-1], DECODE), tables[-1].row(OURS)
        if ours and ceiling:
            # Loop against loop: both leave out what starting Python and importing takes.
            figures[f"score_{kind}_vs_decoding"] = ratio(ours.samples, ceiling.samples).median
    return Result(tables, figures)


if __name__ == "__main__":
    from bench.harness import command

    command("score", measure, __doc__)()
