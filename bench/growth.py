"""Growth: what happens to time and memory when there is more data. All commands are real ones, at 64 × 64.

Epoch time for three sizes of dataset; the loss on two devices, which are two of the CPU, beside that on one; peak memory
of ``covidjax score`` and ``covidjax prepare`` for few and many files: the greatest sum of the resident sets of the
command and its children, looked at every 50 ms.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench import data
from bench.harness import Options, command
from bench.loader import trained
from bench.machine import COVIDJAX, environment, say
from bench.tables import Result, Row, Spread, Table


def peak_memory(words: Sequence[str]) -> float:
    """MiB that a command and its children take at most together.

    Raises:
      RuntimeError: the command failed.
    """
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
    family, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        try:
            for member in (family, *family.children(recursive=True)):
                total += member.memory_info().rss
        except psutil.NoSuchProcess:
            total = 0  # one ended while it was looked at: what it was cannot be known any more
        most = max(most, total)
        time.sleep(0.05)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words[3:])} failed: {errors[-500:]}")
    return most / 2**20


def measure(options: Options) -> Result:
    """Seconds and MiB."""
    size = 32 if options.quick else 64
    tables, figures = [], {}

    counts = (48, 96) if options.quick else (1250, 2500, 5000)
    rows, per_image = [], {}
    for images in counts:
        metrics = trained(data.dataset(images, size), 1 if options.quick else 4)
        trained_on = metrics["history"][0]["step"] * 32
        seconds = [trained_on / epoch["images_per_second"] for epoch in metrics["history"]]
        note = f"{1e6 * min(seconds) / trained_on:,.0f} µs an image"
        rows.append(Row(f"{trained_on} images", Spread.of(seconds), note, seconds))
        per_image[images] = min(seconds) / trained_on
        say(f"  {trained_on} images: {min(seconds):.2f} s an epoch")
    tables.append(Table(f"An epoch of training at {size} × {size}", "seconds", rows))
    figures["epoch_time_growth"] = per_image[counts[-1]] / per_image[counts[0]]

    rows, losses = [], []
    for devices in (1, 2):
        settings = ("train.schedule=constant", "train.learning_rate=1e-6")  # so small that rounding is not amplified
        metrics = trained(data.dataset(counts[0], size), 1, *settings, JAX_NUM_CPU_DEVICES=str(devices))
        losses.append(metrics["history"][0]["train"]["loss"])
        rows.append(
            Row(f"{devices} device{'s' * (devices > 1)}", Spread.of([losses[-1]]), f"{losses[-1]:.6f}", [losses[-1]])
        )
    tables.append(Table("Mean loss of an epoch", "loss", rows))
    figures["two_devices_loss"] = abs(losses[1] / losses[0] - 1)
    say(f"  one and two devices: losses differ by {figures['two_devices_loss']:.1e}")

    run = data.run(size)
    with tempfile.TemporaryDirectory() as out:  # unmeasured: the first scoring with a run converts its network
        words = ["score", str(data.films("small", 12, 12)), "--checkpoint", str(run), "--output", f"{out}/rows.csv"]
        peak_memory([*COVIDJAX, *words])
    for what, few, many in (("score", 500, 20_000), ("prepare", 500, 5_000)):
        rows, peaks = [], []
        for count in (12, 36) if options.quick else (few, many):
            folder = data.films("small", count, 12 if options.quick else 60)
            with tempfile.TemporaryDirectory() as out:
                if what == "score":
                    words = ["score", str(folder), "--checkpoint", str(run), "--output", f"{out}/rows.csv"]
                else:
                    words = ["prepare", str(classed(folder, Path(out))), "--out", f"{out}/data", "--folds", "2"]
                peaks.append(peak_memory([*COVIDJAX, *words]))
            rows.append(Row(f"{count:,} files", Spread.of([peaks[-1]]), samples=[peaks[-1]]))
            say(f"  {what}, {count} files: {peaks[-1]:,.0f} MiB")
        tables.append(Table(f"Peak memory of covidjax {what}", "MiB", rows))
        figures[f"{what}_memory_growth"] = peaks[1] / peaks[0]
    return Result(tables, figures)


def classed(folder: Path, out: Path) -> Path:
    """The films of a folder dealt out to one subfolder a class, as links."""
    films = sorted(folder.iterdir())
    for number, name in enumerate(("COVID-19", "No-Findings", "Pneumonia")):
        (out / "films" / name).mkdir(parents=True)
        for film in films[number::3]:
            (out / "films" / name / film.name).symlink_to(film)
    return out / "films"


if __name__ == "__main__":
    command("growth", measure, __doc__)()
