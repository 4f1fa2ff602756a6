"""All that is to be known of one GPU, in one command: right, fast, and how near to the card's limits.

It checks the GPU's logits, gradients and losses of some steps against the CPU's, in float32 and in the automatic precision;
measures forward pass and training step in turns with PyTorch; trains 100 epochs on 1,044 images at 224 × 224 with the real
``covidjax.train``, evaluation and checkpoints included, beside what PyTorch takes for as many steps; trains five folds at
once and one alone; and works out which share of the card's bandwidth and arithmetic the step takes. With --small it does
all that on tiny inputs, on a CPU too.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench import data
from bench.all import Asked, check, show_checks
from bench.harness import Entry, compare_answers, only, turns
from bench.machine import ROOT, environment, gpu_name, say
from bench.peers import pytorch_entries
from bench.tables import Log, Result, Row, Spread, Table, against, best, show, write

OURS = "covidjax"
STUDY_SECONDS = 18 * 60
"""What 100 epochs on 1,044 images took the study on a V100."""

ASKED = (
    Asked("logits_float32", "logits, GPU against CPU in float32, relative", most=1e-4),
    Asked("gradients_float32", "gradients, the same", most=1e-3),
    Asked("losses_float32", "losses of 5 steps, the same", most=1e-3),
    Asked("logits_auto", "logits in the automatic precision against the CPU's float32", most=0.05),
    Asked("losses_auto", "losses of 5 steps, the same", most=0.05),
    Asked("seconds_after_compilation", "100 epochs on 1,044 images, seconds without compilation", most=10.0),
    Asked("run_vs_torch", "the same work, times the best PyTorch", least=2.0),
    Asked("folds_vs_one", "five folds at once, times one", most=2.5),
)


class Size:
    """How much is done."""

    def __init__(self, small: bool):
        self.pixels, self.batch = (32, 4) if small else (224, 32)
        self.images, self.folds, self.epochs = (60, 5, 3) if small else (1308, 5, 100)
        self.fold_epochs = 3 if small else 20
        self.rounds, self.seconds = (2, 0.01) if small else (9, 1.0)
        self.copy, self.product = (2**20, 256) if small else (2**30, 8192)


def checked(size: Size) -> Result:
    """The GPU against the CPU: each in a process of its own, from the same weights and pixels."""
    options = [str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))]
    found = {}
    for name, device, precision in (
        ("CPU, float32", "cpu", "float32"),
        ("float32", "auto", "float32"),
        ("automatic precision", "auto", "auto"),
    ):
        found[name] = apart("bench.gpu", "answers", *options, device, precision)
        say(f"  {name}: {found[name]['device']}, {found[name]['dtype']}")
    wanted = found.pop("CPU, float32")
    rows, figures = [], {}
    for (name, values), short in zip(found.items(), ("float32", "auto"), strict=True):
        for what in ("logits", "gradients", "losses"):
            difference = apart_by(values[what], wanted[what])
            figures[f"{what}_{short}"] = difference
            note = f"{values['device']}, {values['dtype']}"
            rows.append(Row(f"{what}, {name}", Spread.of([difference]), note, [difference]))
    note = "Norm of the difference over the norm, against float32 on this machine's CPU."
    return Result([Table("The same results", "relative difference", rows, note)], figures)


def apart_by(found: list[float], wanted: list[float]) -> float:
    """Norm of the difference over the norm of what is wanted."""
    import numpy as np

    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def answers(batch: str, run: str, where: str, precision: Any) -> dict[str, Any]:
    """Logits of a batch, gradients of its loss, and the losses of five steps, on one device in one precision."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from bench.peers.ours import UNCHANGED, constant_given, read_batch
    from covidjax import device
    from covidjax.config import Config, TrainConfig
    from covidjax.inference.forward import normalize
    from covidjax.models import Network, Weights
    from covidjax.runs.load import load_run
    from covidjax.training.step import initial_state, learning_rate, make_optimizer, make_step
    from covidjax.training.tasks import Classification

    used = device.start(where)
    # TensorFloat32 would be compared with float32 here: what is asked is whether the programs are the same.
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    images, labels = read_batch(batch)
    loaded = load_run(Path(run), where)
    dtype, scaled = device.precision(precision, used)
    train = TrainConfig(learning_rate=1e-4, schedule="constant", batch_size=len(images), precision=precision)
    config = Config(augment=UNCHANGED, train=train)
    network = Network(config.model, loaded.run.preprocess, dtype)

    def loss(params: Any) -> jax.Array:
        logits = network.apply(Weights(params, loaded.weights.batch_stats), normalize(jnp.asarray(images)), train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    logits = jax.jit(lambda weights: network.apply(weights, normalize(jnp.asarray(images)))[0])(loaded.weights)
    gradients = jax.jit(jax.grad(loss))(loaded.weights.params)
    optimizer = functools.partial(make_optimizer, train)
    step = jax.jit(make_step(network, Classification(config), optimizer, scaled))
    given = constant_given(train.learning_rate, logits.shape[-1])
    state, losses, before = initial_state(loaded.weights, optimizer(learning_rate(train, 1)), scaled), [], 0.0
    for _ in range(5):
        state = step(state, given, images, labels)
        losses.append((float(state.totals.loss) - before) / len(images))
        before = float(state.totals.loss)
    return {
        "device": used.device_kind,
        "dtype": np.dtype(dtype).name,
        "logits": np.asarray(logits).ravel().tolist(),
        "gradients": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)]).tolist(),
        "losses": losses,
    }


def trained(size: Size, torch_images_per_second: float | None) -> Result:
    """The study's run, twice: the first fills the caches; and what PyTorch takes for its steps at the given speed."""
    dataset = data.dataset(size.images, size.pixels, size.folds)
    rows: list[Row] = []
    figures: dict[str, float] = {}
    found: dict[str, Any] = {}
    for _ in range(2):
        found = apart("bench.gpu", "study", str(dataset), size.epochs, size.batch)
        say(f"  covidjax: {found['seconds']}")
    seconds = found["seconds"]
    compiling = seconds.get("compile", 0.0) + found["first_evaluation"]
    after = seconds["wall"] - compiling
    for name, value in (
        ("whole run", seconds["wall"]),
        ("whole run without compilation", after),
        *((f"of it {stage}", value) for stage, value in seconds.items() if stage not in ("wall", "compile")),
    ):
        rows.append(Row(name, Spread.of([value]), samples=[value]))
    rows[0].note = f"compilation {compiling:.1f} s, test accuracy {found['accuracy']:.3f}"
    figures["seconds_after_compilation"] = after
    if torch_images_per_second:
        steps = found["steps"]
        theirs = steps * size.batch / torch_images_per_second
        note = "by the fastest of its ways: steps alone, without loading, augmentation, evaluation and checkpoints"
        rows.append(Row(f"{steps} steps of PyTorch", Spread.of([theirs]), note, [theirs]))
        figures["run_vs_torch"] = theirs / after
    title = f"{size.epochs} epochs on {found['images']} images at {size.pixels} × {size.pixels}"
    held_out = size.images - found["images"]
    note = f"{found['device']}, {found['dtype']}; evaluation of {held_out} images every epoch and checkpoints included."
    return Result([Table(title, "seconds", rows, note)], figures)


def study(dataset: str, epochs: int, batch: int) -> dict[str, Any]:
    """A run of ``covidjax.train`` with default settings but the number of epochs and the batch."""
    import jax
    import numpy as np

    from covidjax import device
    from covidjax.config import Config, DataConfig, TrainConfig
    from covidjax.data.dataset import Dataset
    from covidjax.metrics import headline_metrics
    from covidjax.training.loop import train

    class Watch:
        """Takes the seconds of each epoch's evaluation, of which the first has its compilation in it."""

        def begin(self, what: str, steps: int, score: str) -> None:
            self.steps, self.stepped, self.evaluations = steps, 0.0, []

        def step(self, epoch: int, step: int, loss: float, score: float, images_per_second: float) -> None:
            self.stepped = time.perf_counter()

        def epoch(self, record: dict[str, Any]) -> None:
            self.evaluations.append(time.perf_counter() - self.stepped)

    config = Config(data=DataConfig(path=dataset), train=TrainConfig(epochs=epochs, batch_size=batch))
    watch = Watch()
    opened = Dataset(Path(dataset))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(config, opened, Path(folder, "run"), progress=watch)
        wall = time.perf_counter() - start
    timing = result.timing
    seconds = {name: round(value, 3) for name, value in timing.seconds.items()} | {"wall": round(wall, 3)}
    used = jax.devices()[0]
    return {
        "seconds": seconds,
        "first_evaluation": max(0.0, watch.evaluations[0] - float(np.median(watch.evaluations[1:]))),
        "steps": watch.steps * epochs,
        "images": sum(int(opened.class_counts([fold]).sum()) for fold in range(1, opened.folds)),
        "accuracy": headline_metrics(result.metrics)["accuracy"],
        "device": used.device_kind,
        "dtype": np.dtype(device.precision(config.train.precision, used)[0]).name,
    }


def folded(size: Size) -> Result:
    """Five folds at once against one of them, evaluation and checkpoints included."""
    dataset = data.dataset(size.images, size.pixels, size.folds)
    found = apart("bench.gpu", "folds", str(dataset), size.fold_epochs, size.batch)
    one, five = found["one"], found["five"]
    rows = [
        Row("one fold", Spread.of([one]), samples=[one]),
        Row(f"{size.folds} folds at once", Spread.of([five]), f"{five / one:.2f} times one", [five]),
    ]
    note = f"{found['device']}; without the first epoch, which has the compilation in it."
    title = f"{size.fold_epochs - 1} epochs at {size.pixels} × {size.pixels}, batch {size.batch}"
    return Result([Table(title, "seconds", rows, note)], {"folds_vs_one": five / one})


def folds(dataset: str, epochs: int, batch: int) -> dict[str, Any]:
    """Seconds from the end of the first epoch to that of the last, of one fold alone and of all at once."""
    import jax

    from covidjax.config import Config, DataConfig, TrainConfig
    from covidjax.data.dataset import Dataset
    from covidjax.training.cross_validation import train_networks
    from covidjax.training.loop import train

    class Watch:
        """Remembers when each epoch of any network ended."""

        def __init__(self) -> None:
            self.ended: list[float] = []

        def begin(self, what: str, steps: int, score: str) -> None:
            pass

        def step(self, epoch: int, step: int, loss: float, score: float, images_per_second: float) -> None:
            pass

        def epoch(self, record: dict[str, Any]) -> None:
            self.ended.append(time.perf_counter())

    opened = Dataset(Path(dataset))
    alone, together = Watch(), Watch()
    settings = DataConfig(path=dataset)
    with tempfile.TemporaryDirectory() as folder:
        single = Config(data=settings, train=TrainConfig(epochs=epochs, batch_size=batch))
        train(single, opened, Path(folder, "one"), progress=alone)
        several = Config(data=settings, train=TrainConfig(epochs=epochs, batch_size=batch, cv=True, together="yes"))
        lines: list[str] = []
        train_networks(several, opened, Path(folder, "five"), progress=lambda name: together, say=lines.append)
    if lines:
        raise RuntimeError(lines[0])  # another way than the one to be measured
    return {
        "device": jax.devices()[0].device_kind,
        "one": alone.ended[-1] - alone.ended[0],
        "five": together.ended[-1] - together.ended[opened.folds - 1],
    }


def paced(size: Size, pattern: str | None) -> Result:
    """Training step and forward pass, in turns with PyTorch; of the contenders those whose names match."""
    batch, run = str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))
    tables, figures = [], {}
    for factory, title in (("Train", "Training step"), ("Forward", "Forward pass")):
        first = {"first": 32} if factory == "Train" else {}
        peers = pytorch_entries(factory, torch_options(size) | first, torch_precisions(), torch_modes())
        entries = [Entry(OURS, f"bench.peers.ours:{factory}", {"batch": batch, "run": run} | first)]
        rows, answered = turns(only([*entries, *peers], pattern), rounds=size.rounds, seconds=size.seconds, say=say)
        compare_answers(rows, answered, OURS, "loss" if factory == "Train" else "probabilities")
        table = Table(f"{title}, batch {size.batch}, {size.pixels} × {size.pixels}", "images/s", rows, reference=OURS)
        tables.append(table)
        figures |= against(table, OURS, "PyTorch", f"{factory.lower()}_vs_torch")
        figures |= against(table, OURS, "PyTorch float32", f"{factory.lower()}_vs_torch_float32")
        for whose, row in ((factory.lower(), table.row(OURS)), (f"torch_{factory.lower()}", best(table, "PyTorch"))):
            if row and row.value:
                figures[f"{whose}_images_per_second"] = row.value.median
    return Result(tables, figures)


def limited(size: Size, images_per_second: float | None) -> Result:
    """The card's own limits, measured, and the share of them that the training step takes (Williams et al. 2009)."""
    batch, run = str(data.batch(size.batch, size.pixels)), str(data.run(size.pixels))
    found = apart("bench.gpu", "limits", batch, run, size.copy, size.product)
    product = f"a matrix product in {found['dtype']}"
    rows = [
        Row("bandwidth, GB/s", Spread.of(found["bandwidth"]), "a copy, bytes read and written", found["bandwidth"]),
        Row(
            "arithmetic, TFLOP/s",
            Spread.of(found["arithmetic"]),
            product,
            found["arithmetic"],
        ),
        Row("a step's arithmetic, GFLOP", Spread.of([found["flops"] / 1e9]), "by XLA's count", [found["flops"] / 1e9]),
        Row("a step's traffic, GB", Spread.of([found["bytes"] / 1e9]), "by XLA's count", [found["bytes"] / 1e9]),
    ]
    figures = {"step_flops": found["flops"], "step_bytes": found["bytes"]}
    if images_per_second:
        seconds = size.batch / images_per_second
        memory = found["bytes"] / 1e9 / rows[0].value.median  # type: ignore[union-attr]
        compute = found["flops"] / 1e12 / rows[1].value.median  # type: ignore[union-attr]
        for name, least in (("bandwidth", memory), ("arithmetic", compute)):
            share = least / seconds
            figures[f"share_of_{name}"] = share
            note = f"{1e3 * least:.3g} ms at the limit of {1e3 * seconds:.3g} ms taken"
            rows.append(Row(f"share of {name}", Spread.of([share]), note, [share]))
    return Result([Table("The card's limits and the step's share", "value", rows)], figures)


def limits(batch: str, run: str, copied: int, side: int) -> dict[str, Any]:
    """GB/s of a copy of that many floats, TFLOP/s of a square product, and what XLA counts in a training step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bench.peers.ours import constant_given, read_batch
    from covidjax import device
    from covidjax.config import Config, TrainConfig
    from covidjax.models import Network
    from covidjax.runs.load import load_run
    from covidjax.training.step import initial_state, learning_rate, make_optimizer, make_step
    from covidjax.training.tasks import Classification

    used = device.start()
    dtype, scaled = device.precision("auto", used)

    def timed(function: Any, *arguments: Any) -> list[float]:
        jax.block_until_ready(function(*arguments))
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            jax.block_until_ready([function(*arguments) for _ in range(5)])
            seconds.append((time.perf_counter() - start) / 5)
        return seconds

    floats = jnp.ones(copied, jnp.float32)
    bandwidth = [2 * floats.nbytes / s / 1e9 for s in timed(jax.jit(lambda x: x + 1), floats)]
    floats.delete()
    # Random numbers: zeros flip no bits, and a card that draws less power runs faster.
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    arithmetic = [2 * side**3 / s / 1e12 for s in timed(jax.jit(lambda x: x @ x), square)]

    images, labels = read_batch(batch)
    loaded = load_run(Path(run))
    train = TrainConfig(batch_size=len(images))
    network = Network(Config().model, loaded.run.preprocess, dtype)
    optimizer = functools.partial(make_optimizer, train)
    step = make_step(network, Classification(Config(train=train)), optimizer, scaled)
    state, given = initial_state(loaded.weights, optimizer(learning_rate(train, 100)), scaled), constant_given(1e-3, 3)
    cost: Any = jax.jit(step, donate_argnums=0).lower(state, given, images, labels).compile().cost_analysis()
    return {
        "bandwidth": bandwidth,
        "arithmetic": arithmetic,
        "dtype": np.dtype(dtype).name,
        "flops": float(cost["flops"]),
        "bytes": float(cost["bytes accessed"]),
    }


def torch_options(size: Size) -> dict[str, Any]:
    """Batch and weights for PyTorch."""
    return {"batch": str(data.batch(size.batch, size.pixels)), "weights": str(data.weights(size.pixels))}


def torch_precisions() -> tuple[str, ...]:
    """Those to try on this device; none without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return ()
    return ("float32", "bfloat16", "float16") if gpu_name() else ("float32", "bfloat16")


def torch_modes() -> tuple[str, ...]:
    """``torch.compile``'s mode on a card: with CUDA graphs, without which steps as short as these wait for the host. A CPU
    has the other benchmarks for that."""
    return ("reduce-overhead",) if gpu_name() else ()


def apart(module: str, function: str, *arguments: Any) -> Any:
    """What a function returns, called in a process of its own."""
    code = f"import json; from {module} import {function}; print('RESULT' + json.dumps({function}(*{arguments!r})))"
    settings = environment(XLA_PYTHON_CLIENT_PREALLOCATE="false")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=settings)
    if done.returncode:
        raise click.ClickException(f"{module}.{function} failed; see above.")
    return json.loads(done.stdout.rpartition("RESULT")[2])


PARTS = ("check", "pace", "study", "folds", "limits")


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
        "check": lambda: checked(size),
        "pace": lambda: paced(size, pattern),
        "study": lambda: trained(size, figures.get("torch_train_images_per_second")),
        "folds": lambda: folded(size),
        "limits": lambda: limited(size, figures.get("train_images_per_second")),
    }
    for part in PARTS:
        if not parts or part in parts:
            say(f"bench.gpu: {part}")
            result = log.measure(part, measures[part])
            figures.update(result.figures)
            show(result.tables)
            write(out / "gpu.json", log.content() | {"quick": small})  # after each: a machine may be taken away
    show_checks(check(figures, ASKED))


if __name__ == "__main__":
    main()
