"""Everything about one GPU in one command, for a machine that is lent for minutes: parts in the order of their importance.

``pace`` takes turns with PyTorch, eager and by CUDA graphs, at 224 × 224, and ``pace144`` at 144; ``runs`` trains for 100
epochs with evaluation and checkpoints at both sizes, and the run of Table 5; ``flags`` tries XLA's settings for CUDA graphs
and autotuning; ``start`` starts ``covidjax train`` with and without what earlier starts keep; ``float16`` trains to the end
with loss scaling, beside float32; ``networks`` trains a network for every fold, as Table 2 has five of; ``check`` compares
logits, gradients and losses with the CPU's; ``limits`` works out the share of the card's bandwidth and arithmetic that a
step takes; ``compiled`` adds ``torch.compile``. Each part is a process of its own that is ended at its time limit; what it
has measured by then is in OUT/gpu.json, and a part that fails costs no other. With --small all of it is tiny and runs on a
CPU too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench import gpu_measures
from bench.gpu_measures import Measures, Size
from bench.machine import ROOT, environment, machine, say, versions
from bench.tables import Result, as_json, show, write
from bench.targets import Target, check, show_checks

TARGETS = (
    *(
        Target(f"train_vs_eager_{size}", f"training step at {size}², times PyTorch's eager", least=2.0)
        for size in (224, 144)
    ),
    *(Target(f"train_vs_best_{size}", f"training step at {size}², times PyTorch's best", least=1.2) for size in (224, 144)),
    *(
        Target(f"run_seconds_{size}", f"100 epochs at {size}² without compilation, seconds", most=10.0)
        for size in (224, 144)
    ),
    *(Target(f"flags_best_{size}", f"images/s at {size}² by the best flags", least=1.3 * 24_000) for size in (64, 96)),
    Target("cold_start", "first start of train, seconds to an epoch", most=10.0),
    Target("warm_start", "another start, the same", most=2.0),
    Target("float16_vs_float32", "final accuracy in float16 less that in float32", least=-0.03),
    Target("logits_float32", "logits, GPU against CPU in float32, relative", most=1e-4),
    Target("gradients_float32", "gradients, the same", most=1e-3),
    Target("losses_float32", "losses of 5 steps, the same", most=1e-3),
    Target("logits_auto", "logits in the automatic precision against the CPU's float32", most=0.05),
    Target("losses_auto", "losses of 5 steps, the same", most=0.05),
)

PARTS = {
    "pace": (gpu_measures.pace, 200),
    "runs": (gpu_measures.runs, 170),
    "flags": (gpu_measures.flags, 220),
    "start": (gpu_measures.start, 120),
    "float16": (gpu_measures.float16, 80),
    "networks": (gpu_measures.networks, 70),
    "pace144": (gpu_measures.pace144, 90),
    "check": (gpu_measures.compare_with_cpu, 60),
    "limits": (gpu_measures.limits, 60),
    "compiled": (gpu_measures.compiled, 150),
}
"""What measures each part, and the seconds after which it is ended."""

SLOW = 600.0
"""The same for each with tiny inputs, which two cores that others use too may be slow with."""

LEAST = 15.0
"""Seconds that must be left for a part to begin."""


def make_inputs(size: Size, table2: Path | None, limit: float) -> None:
    """Datasets, weights and batches, all at the same time and on the CPU: what a card is lent for is not this."""
    calls = [f"data.weights({pixels}); data.batch({size.batch}, {pixels})" for pixels in size.all_pixels]
    calls += [f"data.dataset({images}, {pixels}, {size.folds})" for images, pixels in size.datasets(table2)]
    settings = environment(JAX_PLATFORMS="cpu")
    processes = [
        subprocess.Popen([sys.executable, "-c", f"from bench import data; {call}"], cwd=ROOT, env=settings)
        for call in calls
    ]
    end = time.monotonic() + limit
    try:
        for process, call in zip(processes, calls, strict=True):
            if process.wait(max(0.0, end - time.monotonic())):
                say(f"  not made: {call}")
    except subprocess.TimeoutExpired:
        say("  not all was made in time; parts make what they miss.")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def stored(out: Path) -> dict[str, Any]:
    """The content of the result file, or that of a new one."""
    file = out / "gpu.json"
    if file.exists():
        return json.loads(file.read_text())
    return {
        "command": shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "benchmarks": {},
    }


def figures_of(content: dict[str, Any]) -> dict[str, float]:
    """All figures of a result file's content."""
    return {name: value for part in content["benchmarks"].values() for name, value in part["figures"].items()}


def store(out: Path, part: str, result: Result | None, **facts: Any) -> None:
    """Write what a part has measured so far, or how it ended, into the result file; the rest of it stays."""
    content = stored(out)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    kept = content["benchmarks"].setdefault(part, {"tables": [], "figures": {}, "when": now})
    kept |= (as_json(result) if result else {}) | facts
    content["when"] = now
    write(out / "gpu.json", content)


def measure_here(part: str, out: Path, measures: Measures) -> None:
    """Measure one part in this process; after each of its measurements all so far are written down."""
    total = Result([], {})
    for result in PARTS[part][0](measures):
        total = Result([*total.tables, *result.tables], total.figures | result.figures)
        show(result.tables)
        store(out, part, total, state="begun")


def measure_apart(part: str, out: Path, words: list[str], limit: float) -> None:
    """Measure one part in a process of its own, which is ended with all of its children after so many seconds."""
    start, load = time.monotonic(), os.getloadavg()
    store(out, part, None, state="begun", limit=limit)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.gpu", "--inside", part, *words], cwd=ROOT, env=environment(), process_group=0
    )
    try:
        code = process.wait(limit)
        state = f"failed with exit code {code}" if code else "complete"
    except subprocess.TimeoutExpired:
        state = f"cut off after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the children that it left, stopped ones too
        process.wait()
    seconds = round(time.monotonic() - start, 1)
    store(out, part, None, state=state, seconds=seconds, load_average_before=load, load_average_after=os.getloadavg())
    say(f"bench.gpu: {part} {state} ({seconds:.0f} s)")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for gpu.json.")
@click.option("--small", is_flag=True, help="Tiny inputs: shows that everything runs, on a CPU too.")
@click.option(
    "--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Only this; several times for several."
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=3600.0, help="For all parts; those left over are not begun."
)
@click.option(
    "--table2",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The prepared dataset of Table 2, for networks and float16.  [default: a synthetic one of its size]",
)
@click.option("--only", "pattern", metavar="REGEX", help="Of the contenders in turns those whose names match.")
@click.option("--inside", type=click.Choice(list(PARTS)), hidden=True)
def main(
    out: Path,
    small: bool,
    parts: tuple[str, ...],
    seconds: float,
    table2: Path | None,
    pattern: str | None,
    inside: str | None,
) -> None:
    """Everything of one GPU."""
    out, size = out.absolute(), Size(small)
    table2 = table2.absolute() if table2 else None
    if inside:
        measures = Measures(size, pattern, table2, figures_of(stored(out)))
        measure_here(inside, out, measures)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended too
    end = time.monotonic() + seconds
    say("bench.gpu: inputs")
    make_inputs(size, table2, min(90.0, seconds))
    say(f"  {seconds - (end - time.monotonic()):.0f} s")
    words = ["--out", str(out), *["--small"] * small]
    words += [f"--table2={table2}"] * bool(table2) + [f"--only={pattern}"] * bool(pattern)
    for part in parts or PARTS:
        left = end - time.monotonic()
        if left < LEAST:
            store(out, part, None, state="not begun: no time was left")
            continue
        say(f"bench.gpu: {part}")
        measure_apart(part, out, words, min(left, SLOW if small else PARTS[part][1]))
    write(out / "gpu.json", stored(out) | {"quick": small})
    show_checks(check(figures_of(stored(out)), TARGETS))


if __name__ == "__main__":
    main()
