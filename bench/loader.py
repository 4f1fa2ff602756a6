"""The loader: images/s from a prepared dataset into batches, and training streamed beside training from memory.

The loader alone is timed over whole passes through the dataset, shuffled as an epoch is. The two ways of training are real
``covidjax train`` commands in turns, whose epochs (without compilation) are the samples.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import data
from bench.harness import Entry, Options, command, only, turns
from bench.machine import COVIDJAX, environment, say
from bench.tables import Result, Row, Spread, Table, ratio

SHUFFLED, IN_ORDER, AT_ONCE = "training batches, shuffled", "evaluation batches, in order", "everything at once"
STREAMED, IN_MEMORY = "streamed", "cache=device"


class Batches:
    """Passes through a dataset."""

    def __init__(self, dataset: str, kind: str, batch: int):
        from covidjax.data import loader
        from covidjax.data.dataset import Dataset

        opened = Dataset(Path(dataset))
        source = opened.source(list(range(opened.folds)))
        epoch = iter(range(10**9))

        def shuffled() -> int:
            rows = loader.epoch_rows(len(source), batch, seed=0, epoch=next(epoch))
            return sum(batch.count for batch in loader.train_batches(source, rows))

        ways = {
            SHUFFLED: shuffled,
            IN_ORDER: lambda: sum(batch.count for batch in loader.eval_batches(source, batch)),
            AT_ONCE: lambda: loader.load_all(source).count,
        }
        self._pass = ways[kind]
        self.images = self._pass()

    def run(self, calls: int) -> None:
        for _ in range(calls):
            assert self._pass() == self.images


def measure(options: Options) -> Result:
    """images/s of the loader, and of training through it."""
    size, images, rounds = (32, 96, 2) if options.quick else (224, 4000, 9)
    dataset = str(data.dataset(images, size))
    entries = [
        Entry(kind, "bench.loader:Batches", {"dataset": dataset, "kind": kind, "batch": 32})
        for kind in (SHUFFLED, IN_ORDER, AT_ONCE)
    ]
    rows, _ = turns(only(entries, options.only), rounds=rounds, seconds=0.01 if options.quick else 0.5, say=say)
    note = f"{images} images of {size} × {size}, batches of 32."
    tables = [Table("From the prepared dataset into batches", "images/s", rows, note)]
    figures: dict[str, float] = {}
    if row := tables[0].row(SHUFFLED):
        figures["loader_images_per_second"] = row.value.median if row.value else 0.0

    epochs, turns_each, films = (1, 1, 96) if options.quick else (3, 2, 400)
    source = data.dataset(films, size)
    speeds: dict[str, list[float]] = {IN_MEMORY: [], STREAMED: []}
    for _ in range(turns_each):
        for name, cache in ((IN_MEMORY, "device"), (STREAMED, "stream")):
            metrics = trained(source, epochs, f"train.cache={cache}")
            speeds[name] += [epoch["images_per_second"] for epoch in metrics["history"]]
            say(f"  {name}: {speeds[name][-1]:,.0f} images/s")
    rows = [Row(name, Spread.of(values), samples=values) for name, values in speeds.items()]
    note = f"`covidjax train` on {films} films, each epoch one sample."
    tables.append(Table("Training, by where the images are", "images/s", rows, note, STREAMED))
    figures["streamed_vs_device"] = ratio(speeds[STREAMED], speeds[IN_MEMORY]).median
    return Result(tables, figures)


def trained(dataset: Path, epochs: int, *settings: str, **variables: str) -> dict[str, Any]:
    """What ``covidjax train --json`` prints of a fresh run, with these settings and environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*COVIDJAX, "train", "--data", str(dataset), "--epochs", str(epochs), "--run", f"{folder}/run", "--json"]
        words += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment(**variables))
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[3:])} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    command("loader", measure, __doc__)()
