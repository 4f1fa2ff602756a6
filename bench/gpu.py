"""Everything about one GPU in one command: whether its results are right, how fast it is, and how near to its limits.

It checks the GPU's logits, gradients and losses of some steps against the CPU's, in float32 and in the automatic precision;
measures forward pass and training step in turns with PyTorch; trains 100 epochs on 1,044 images at 224 × 224 with the real
``covidjax.training``, evaluation and checkpoints included, beside what PyTorch takes for as many steps; and works out which
share of the card's bandwidth and arithmetic the step takes. With --small it does all that on tiny inputs, on a CPU too.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import data
from bench.harness import Entry, compare_answers, only, turns
from bench.machine import ROOT, environment, gpu_name, say
from bench.peers import pytorch_entries
from bench.tables import Log, Result, Row, Table, against, best, show, write
from bench.targets import Target, check, show_checks

OURS = "covidjax"
TARGETS = (
    Target("logits_float32", "logits, GPU against CPU in float32, relative", most=1e-4),
    Target("gradients_float32", "gradients, the same", most=1e-3),
    Target("losses_float32", "losses of 5 steps, the same", most=1e-3),
    Target("logits_auto", "logits in the automatic precision against the CPU's float32", most=0.05),
    Target("losses_auto", "losses of 5 steps, the same", most=0.05),
    Target("seconds_after_compilation", "100 epochs on 1,044 images, seconds without compilation", most=10.0),
    Target("run_vs_torch", "the same work, times the best PyTorch", least=2.0),
)


class Size:
    """The amount of work."""

    def __init__(self, small: bool):
        self.pixels, self.batch = (32, 4) if small else (224, 32)
        self.images, self.folds, self.epochs = (60, 5, 3) if small else (1308, 5, 100)
        self.rounds, self.seconds = (2, 0.01) if small else (9, 1.0)
        self.copy, self.product = (2**20, 256) if small else (2**30, 8192)


def compare_with_cpu(size: Size) -> Result:
    """The GPU against the CPU: each in a process of its own, from the same weights and pixels."""
    inputs = [str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))]
    expected = in_process("results", *inputs, "cpu", "float32")
    rows, figures = [], {}
    for name, precision in (("float32", "float32"), ("automatic precision", "auto")):
        results = in_process("results", *inputs, "auto", precision)
        note = f"{results['device']}, {results['dtype']}"
        say(f"  {name}: {note}")
        for quantity in ("logits", "gradients", "losses"):
            difference = relative_difference(results[quantity], expected[quantity])
            figures[f"{quantity}_{precision}"] = difference
            rows.append(Row.of(f"{quantity}, {name}", [difference], note))
    note = "Norm of the difference over the norm, against float32 on this machine's CPU."
    return Result([Table("The same results", "relative difference", rows, note)], figures)


def relative_difference(values: list[float], expected: list[float]) -> float:
    """Norm of the difference over the norm of the expected values."""
    a, b = np.asarray(values, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def time_run(size: Size, torch_images_per_second: float | None) -> Result:
    """The study's run, twice: the first fills the caches; and what PyTorch takes for its steps at the given speed."""
    dataset = data.dataset(size.images, size.pixels, size.folds)
    run: dict[str, Any] = {}
    for _ in range(2):
        run = in_process("whole_run", str(dataset), size.epochs, size.batch)
        say(f"  covidjax: {run['seconds']}")
    seconds = run["seconds"]
    compiling = seconds.get("compile", 0.0) + run["first_evaluation"]
    after_compiling = seconds["wall"] - compiling
    figures = {"seconds_after_compilation": after_compiling}
    rows = [
        Row.of("whole run", [seconds["wall"]], f"compilation {compiling:.1f} s, test accuracy {run['accuracy']:.3f}"),
        Row.of("whole run without compilation", [after_compiling]),
    ]
    rows += [Row.of(f"of it {stage}", [value]) for stage, value in seconds.items() if stage not in ("wall", "compile")]
    if torch_images_per_second:
        torch_seconds = run["steps"] * size.batch / torch_images_per_second
        note = "by the fastest of its ways: steps alone, without loading, augmentation, evaluation and checkpoints"
        rows.append(Row.of(f"{run['steps']} steps of PyTorch", [torch_seconds], note))
        figures["run_vs_torch"] = torch_seconds / after_compiling
    title = f"{size.epochs} epochs on {run['images']} images at {size.pixels} × {size.pixels}"
    held_out = size.images - run["images"]
    note = f"{run['device']}, {run['dtype']}; evaluation of {held_out} images every epoch and checkpoints included."
    return Result([Table(title, "seconds", rows, note)], figures)


def time_steps(size: Size, pattern: str | None) -> Result:
    """Training step and forward pass, in turns with PyTorch; of the contenders those whose names match."""
    batch, run = str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))
    tables, figures = [], {}
    for factory, title in (("Train", "Training step"), ("Forward", "Forward pass")):
        first = {"first": 32} if factory == "Train" else {}
        peers = pytorch_entries(factory, torch_options(size) | first, torch_precisions(), torch_modes())
        entries = [Entry(OURS, f"bench.peers.ours:{factory}", {"batch": batch, "run": run} | first)]
        rows, answers = turns(only([*entries, *peers], pattern), rounds=size.rounds, seconds=size.seconds, say=say)
        compare_answers(rows, answers, OURS, "loss" if factory == "Train" else "probabilities")
        table = Table(f"{title}, batch {size.batch}, {size.pixels} × {size.pixels}", "images/s", rows, reference=OURS)
        tables.append(table)
        name = factory.lower()
        figures |= against(table, OURS, "PyTorch", f"{name}_vs_torch")
        figures |= against(table, OURS, "PyTorch float32", f"{name}_vs_torch_float32")
        for figure, row in ((name, table.row(OURS)), (f"torch_{name}", best(table, "PyTorch"))):
            if row and row.value:
                figures[f"{figure}_images_per_second"] = row.value.median
    return Result(tables, figures)


def measure_limits(size: Size, images_per_second: float | None) -> Result:
    """The card's own limits, measured, and the share of them that the training step takes (Williams et al. 2009)."""
    batch, run = str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))
    limits = in_process("limits", batch, run, size.copy, size.product)
    rows = [
        Row.of("bandwidth, GB/s", limits["bandwidth"], "a copy, bytes read and written"),
        Row.of("arithmetic, TFLOP/s", limits["arithmetic"], f"a matrix product in {limits['dtype']}"),
        Row.of("a step's arithmetic, GFLOP", [limits["flops"] / 1e9], "by XLA's count"),
        Row.of("a step's traffic, GB", [limits["bytes"] / 1e9], "by XLA's count"),
    ]
    figures = {"step_flops": limits["flops"], "step_bytes": limits["bytes"]}
    if images_per_second:
        seconds = size.batch / images_per_second
        memory = limits["bytes"] / 1e9 / float(np.median(limits["bandwidth"]))
        compute = limits["flops"] / 1e12 / float(np.median(limits["arithmetic"]))
        for name, least in (("bandwidth", memory), ("arithmetic", compute)):
            share = least / seconds
            figures[f"share_of_{name}"] = share
            note = f"{1e3 * least:.3g} ms at the limit of {1e3 * seconds:.3g} ms taken"
            rows.append(Row.of(f"share of {name}", [share], note))
    return Result([Table("The card's limits and the step's share", "value", rows)], figures)


def torch_options(size: Size) -> dict[str, Any]:
    """Batch and weights for PyTorch."""
    return {"batch": str(data.batch(size.batch, size.pixels)), "weights": str(data.weights(size.pixels))}


def torch_precisions() -> tuple[str, ...]:
    """The precisions to try on this device; none without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return ()
    return ("float32", "bfloat16", "float16") if gpu_name() else ("float32", "bfloat16")


def torch_modes() -> tuple[str, ...]:
    """``torch.compile``'s mode on a card: with CUDA graphs, without which steps as short as these wait for the host. A CPU
    has the other benchmarks for that."""
    return ("reduce-overhead",) if gpu_name() else ()


def in_process(function: str, *arguments: Any) -> Any:
    """Call a function of ``bench.gpu_parts`` in a process of its own."""
    code = f"import json; from bench import gpu_parts; print('RESULT' + json.dumps(gpu_parts.{function}(*{arguments!r})))"
    settings = environment(XLA_PYTHON_CLIENT_PREALLOCATE="false")
    process = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=settings)
    if process.returncode:
        raise click.ClickException(f"{function} failed; see above.")
    return json.loads(process.stdout.rpartition("RESULT")[2])


PARTS = ("check", "pace", "study", "limits")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for gpu.json.")
@click.option("--small", is_flag=True, help="Tiny inputs: shows that everything runs, on a CPU too.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only this; several times for several.")
@click.option("--only", "pattern", metavar="REGEX", help="Of the contenders in turns those whose names match.")
def main(out: Path, small: bool, parts: tuple[str, ...], pattern: str | None) -> None:
    """Everything of one GPU."""
    size = Size(small)
    chosen = [f"--part={part}" for part in parts] + [f"--only={pattern}"] * bool(pattern)
    log = Log(shlex.join(["python", "-m", "bench.gpu", *["--small"] * small, *chosen]))
    figures: dict[str, float] = {}
    measures: dict[str, Callable[[], Result]] = {
        "check": lambda: compare_with_cpu(size),
        "pace": lambda: time_steps(size, pattern),
        "study": lambda: time_run(size, figures.get("torch_train_images_per_second")),
        "limits": lambda: measure_limits(size, figures.get("train_images_per_second")),
    }
    for part in PARTS:
        if not parts or part in parts:
            say(f"bench.gpu: {part}")
            result = log.measure(part, measures[part])
            figures.update(result.figures)
            show(result.tables)
            write(out / "gpu.json", log.content() | {"quick": small})  # after each: a machine may be taken away
    show_checks(check(figures, TARGETS))


if __name__ == "__main__":
    main()
