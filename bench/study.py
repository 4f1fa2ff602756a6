"""The training of the study's tables in PyTorch, for the table of times of ``covidjax reproduce``.

``python -m bench.study FOLDER`` reads the results of ``covidjax reproduce --out FOLDER`` and times steps of the same
networks, with batches and images as large, by every way that PyTorch offers, each in a process of its own.
FOLDER/pytorch.json gets what the fastest would take for as many steps as the experiments have; ``covidjax reproduce`` with
that folder shows it.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.harness import Entry, only, turns
from bench.machine import cache, say
from bench.peers import pytorch_entries
from bench.tables import Table, show
from covidjax.device import device_name
from covidjax.runs.folder import Run
from covidjax.study.reproduce import PYTORCH, RESULTS

SECONDS, ROUNDS = 3.0, 3
"""Of a turn, and turns of each way."""


def entries(model: str, width: int, size: int, batch: int, accelerated: bool) -> list[Entry]:
    """PyTorch's ways to train a network, on random pixels."""
    file = cache() / f"study-{size}-{batch}.npz"
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, size, size, 1), np.uint8)
    np.savez(file, images=images, labels=np.arange(batch, dtype=np.int32) % 3)
    precisions = ("float32", "float16", "bfloat16") if accelerated else ("float32",)
    options = {"batch": str(file), "weights": "", "model": model, "width": width}
    return pytorch_entries("Train", options, precisions, ("reduce-overhead" if accelerated else "default",))


def minutes(table: Table, images: int) -> tuple[float, str]:
    """What the fastest way takes for so many images, and its name."""
    rows = [row for row in table.rows if row.value]
    best = max(rows, key=lambda row: row.value.median if row.value else 0.0)
    assert best.value
    return images / best.value.median / 60, best.name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--only", "pattern", metavar="REGEX", help="Of PyTorch's ways those whose names match.")
def main(folder: Path, pattern: str | None) -> None:
    """Time the training of a reproduction's experiments in PyTorch."""
    import torch

    results = json.loads((folder / RESULTS).read_text())
    accelerated = torch.cuda.is_available()
    names = [name for experiment in results["experiments"].values() for name in experiment["times_of"]]
    device = torch.cuda.get_device_name() if accelerated else device_name()
    timed: dict[str, Any] = {}
    for name in names:
        run = folder / "runs" / f"{name}-random"
        settings = Run.load(run / "config.toml")
        counts = results["experiments"][name]["protocols"]["random"]["dataset"]["per_fold"]
        held_out = f"fold{settings.config.data.test_fold}"
        training = sum(sum(fold.values()) for key, fold in counts.items() if key != held_out)
        batch = min(settings.config.train.batch_size, training)
        size = settings.preprocess.image_size
        model = settings.config.model
        say(f"{name}: {model.name}, {size} × {size}, batch {batch}")
        ways = only(entries(model.name, model.width, size, batch, accelerated), pattern)
        rows, _ = turns(ways, rounds=ROUNDS, seconds=SECONDS, say=say)
        table = Table(f"{name}, training step", "images/s", rows)
        show([table])
        duration, way = minutes(table, training // batch * batch * settings.config.train.epochs)
        timed[name] = {
            "minutes": duration,
            "way": way,
            "images_per_second": {r.name: r.samples for r in table.rows if r.value},
        }
        how = (
            f"forward pass, backward pass and Adam by the fastest of {len(ways)} ways, times the number of steps; without "
            "augmentation, loading, testing and compiling."
        )
        content = {"version": importlib.metadata.version("torch"), "device": device, "how": how, "experiments": timed}
        (folder / PYTORCH).write_text(json.dumps(content, indent=2))  # after each: a machine may be taken away
    say(f"Wrote {folder / PYTORCH}; covidjax reproduce with the same options shows it.")


if __name__ == "__main__":
    main()
