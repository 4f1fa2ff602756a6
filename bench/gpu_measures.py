"""The parts of ``bench.gpu``: each yields its results one after another, so that what was measured before a part is cut off
is kept. What computes is in ``bench.gpu_parts`` and ``bench.peers``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from bench import data
from bench.harness import Entry, compare_answers, only, turns
from bench.machine import ROOT, environment, gpu_name, say
from bench.peers import pytorch_entry
from bench.startup import BEGIN, EPOCH, until
from bench.tables import Result, Row, Table, against, best

OURS, OURS_GRAPHS = "covidjax", "covidjax, convolutions in graphs"

GRAPHS = "--xla_gpu_enable_command_buffer=+CONVOLUTION"
SINGLE = "--xla_gpu_graph_min_graph_size=1"
LOOP = "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"
UNTUNED = "--xla_gpu_experimental_enable_fusion_autotuner=false --xla_gpu_enable_triton_gemm=false"


class Variant(NamedTuple):
    """A way to compile the training step."""

    name: str
    flags: str
    unroll: int = 1
    tunes: bool = False
    """Whether autotuning comes to other results than without the flags; its time counts then."""


AS_IT_IS = Variant("as it is", "", tunes=True)
VARIANTS = (
    AS_IT_IS,
    Variant("convolutions in graphs", GRAPHS),
    Variant("convolutions in graphs, single kernels too", f"{GRAPHS} {SINGLE}"),
    Variant("the loop in a graph", f"{LOOP} {SINGLE}"),
    Variant("the loop in a graph, unrolled", f"{LOOP} {SINGLE} --xla_gpu_command_buffer_unroll_loops=true"),
    Variant("no autotuning, convolutions in graphs", f"--xla_gpu_autotune_level=0 {GRAPHS} {SINGLE}", tunes=True),
    Variant("no fusion autotuner, no products by Triton", UNTUNED, tunes=True),
    Variant("convolutions in graphs, four steps a round", f"{GRAPHS} {SINGLE}", unroll=4),
)


class Size:
    """The amount of work."""

    def __init__(self, small: bool):
        self.small = small
        self.folds, self.epochs = 5, 3 if small else 100
        self.batch, self.images, self.table5_images, self.table2_images = (
            (4, 60, 60, 60) if small else (32, 1308, 3991, 1124)
        )
        self.large, self.middle, self.table_pixels = (32, 48, 32) if small else (224, 144, 96)
        self.flag_pixels = (32,) if small else (64, 96, 224)
        self.steps = 4 if small else 32
        self.rounds, self.seconds = (2, 0.01) if small else (5, 0.3)
        # Of a contender, to get ready: compiling at 224² may take a card half of it, tiny inputs two busy cores as long.
        self.start_limit = 600.0 if small else 110.0
        self.copy, self.product = (2**20, 256) if small else (2**30, 8192)

    @property
    def all_pixels(self) -> list[int]:
        """Of networks whose steps are timed."""
        return sorted({self.large, self.middle, *self.flag_pixels}, reverse=True)

    def datasets(self, table2: Path | None) -> set[tuple[int, int]]:
        """Images and pixels of those that whole runs read."""
        wanted = {(self.images, self.large), (self.images, self.middle), (self.table5_images, self.table_pixels)}
        return wanted | (set() if table2 else {(self.table2_images, self.table_pixels)})


class Measures(NamedTuple):
    """What a part is given."""

    size: Size
    pattern: str | None
    """Of the contenders in turns those that match."""
    table2: Path | None
    figures: dict[str, float]
    """Of the parts before."""

    def dataset(self, images: int, pixels: int) -> str:
        return str(data.dataset(images, pixels, self.size.folds))

    def inputs(self, pixels: int) -> dict[str, str]:
        """A batch, and the run whose weights are used."""
        return {"batch": str(data.batch(self.size.batch, pixels)), "run": str(data.run(pixels))}

    def table2_dataset(self) -> str:
        return str(self.table2 or self.dataset(self.size.table2_images, self.size.table_pixels))


def pace(given: Measures) -> Iterator[Result]:
    """Training step and forward pass at the larger size, in turns with PyTorch."""
    train = [("bfloat16", "eager", True), ("bfloat16", "graph", True), ("float16", "graph", True)]
    train += [("bfloat16", "graph", False), ("float16", "eager", True), ("float32", "eager", True)]
    train += [("bfloat16", "eager", False), ("float32", "graph", True)]
    yield from _take_turns(given, given.size.large, "Train", train)
    yield from _take_turns(given, given.size.large, "Forward", train[:3])


def pace144(given: Measures) -> Iterator[Result]:
    """The same at the smaller size, with fewer contenders."""
    variants = [("bfloat16", "eager", True), ("bfloat16", "graph", True), ("float16", "graph", True)]
    variants += [("bfloat16", "graph", False)]
    yield from _take_turns(given, given.size.middle, "Train", variants)
    yield from _take_turns(given, given.size.middle, "Forward", variants[:2])


def compiled(given: Measures) -> Iterator[Result]:
    """The same for ``torch.compile``, with CUDA graphs and without."""
    modes = ("reduce-overhead", "default") if gpu_name() else ()
    variants = [("bfloat16", "graph", True), *(("bfloat16", mode, True) for mode in modes)]
    yield from _take_turns(given, given.size.large, "Train", variants, "_compiled")


def _take_turns(
    given: Measures, pixels: int, factory: str, variants: Sequence[tuple[str, str, bool]], ending: str = ""
) -> Iterator[Result]:
    size, first = given.size, {"first": 32} if factory == "Train" else {}
    inputs = given.inputs(pixels)
    torch = {"batch": inputs["batch"], "weights": str(data.weights(pixels))} | first
    ours = f"bench.peers.ours:{factory}", inputs | first
    if not gpu_name():  # CPUs without float16 take minutes for the little that there is to do
        variants = [variant for variant in variants if variant[:2] != ("float16", "eager")]
    entries = [
        Entry(OURS, *ours),
        Entry(OURS_GRAPHS, *ours, {"XLA_FLAGS": _flags(f"{GRAPHS} {SINGLE}")}),
        *(pytorch_entry(factory, torch, *variant) for variant in variants),
    ]
    if factory == "Forward":
        entries.pop(1)
    rows, answers = turns(
        only(entries, given.pattern),
        rounds=size.rounds,
        seconds=size.seconds,
        say=say,
        start_limit=given.size.start_limit,
    )
    compare_answers(rows, answers, OURS, "loss" if factory == "Train" else "probabilities")
    title = "Training step" if factory == "Train" else "Forward pass"
    table = Table(f"{title}, batch {size.batch}, {pixels} × {pixels}", "images/s", rows, gpu_name(), OURS)
    name, figures = factory.lower(), {}
    for theirs, pattern in (("eager", r"PyTorch \w+, eager"), ("best", "PyTorch")):
        figures |= against(table, OURS, pattern, f"{name}_vs_{theirs}{ending}_{pixels}")
        figures |= against(table, OURS_GRAPHS, pattern, f"{name}_graphs_vs_{theirs}{ending}_{pixels}")
    for figure, row in ((name, table.row(OURS)), (f"torch_{name}", best(table, "PyTorch"))):
        if row and row.value:
            figures[f"{figure}_images_per_second{ending}_{pixels}"] = row.value.median
    yield Result([table], figures)


def runs(given: Measures) -> Iterator[Result]:
    """The study's run at two sizes, and Table 5's, evaluation and checkpoints included."""
    size = given.size
    batch, epochs = f"train.batch_size={size.batch}", f"train.epochs={size.epochs}"
    table5 = ["model.name=cnn13", "model.width=8", "train.learning_rate=1e-3"]
    for name, images, pixels, settings in (
        (str(size.large), size.images, size.large, []),
        (str(size.middle), size.images, size.middle, []),
        ("table5", size.table5_images, size.table_pixels, table5),
    ):
        first, run = in_process("whole_run_twice", given.dataset(images, pixels), batch, epochs, *settings)
        seconds = run["seconds"]
        after_compiling = seconds["wall"] - seconds.get("compile", 0.0)
        compiling = first["seconds"]["wall"] - after_compiling
        figures = {f"run_seconds_{name}": after_compiling, f"run_compile_seconds_{name}": compiling}
        rows = [
            Row.of("first run", [first["seconds"]["wall"]], f"{compiling:.1f} s longer than without compilation"),
            Row.of("second run, its programs in the cache", [seconds["wall"]], f"test accuracy {run['accuracy']:.3f}"),
            Row.of("second run without compilation", [after_compiling]),
            *(Row.of(f"of it {stage}", [value]) for stage, value in seconds.items() if stage not in ("wall", "compile")),
        ]
        images_trained = run["steps"] * run["batch"]
        if "train" in seconds:
            figures[f"run_images_per_second_{name}"] = images_trained / seconds["train"]
        if torch := given.figures.get(f"torch_train_images_per_second_{name}"):
            note = "by the fastest of its ways: steps alone, without loading, augmentation, evaluation and checkpoints"
            rows.append(Row.of(f"{run['steps']} steps of PyTorch", [images_trained / torch], note))
            figures[f"run_vs_torch_{name}"] = images_trained / torch / after_compiling
        network = "CNN13, width 8" if name == "table5" else "DarkCovidNet"
        title = f"{network}, {size.epochs} epochs on {run['images']} images at {pixels} × {pixels}"
        note = (
            f"{run['device']}, {run['dtype']}; evaluation of {run['held_out']} images every epoch and checkpoints included."
        )
        yield Result([Table(title, "seconds", rows, note)], figures)


def flags(given: Measures) -> Iterator[Result]:
    """Training steps with augmentation, compiled in several ways; at the sizes after the first, the best of them alone.

    Ways that tune nothing anew use what was tuned for the first, so their seconds of compiling are not those of a cold
    start.
    """
    variants = list(VARIANTS)
    unknown = unknown_flags([variant.flags for variant in variants])
    for pixels in given.size.flag_pixels:
        with tempfile.TemporaryDirectory() as folder:
            table, answers = _compare_variants(given, pixels, [v for v in variants if v.flags not in unknown], Path(folder))
        table.rows += [Row(v.name, None, f"skipped: unknown flag: {v.flags}") for v in variants if v.flags in unknown]
        figures: dict[str, float] = {}
        if (today := table.row(AS_IT_IS.name)) and today.value:
            same = {row.name for row in table.rows if same_loss(answers, row.name)}
            ranked = sorted((row for row in table.rows if row.value and row.name in same), key=_median, reverse=True)
            figures = {f"flags_as_it_is_{pixels}": _median(today), f"flags_best_{pixels}": _median(ranked[0])}
            figures[f"flags_speedup_{pixels}"] = _median(ranked[0]) / _median(today)
            table.note += f"; best with the same losses: {ranked[0].name}"
            names = [row.name for row in ranked if row is not today][:2]
            variants = [v for v in VARIANTS if v is AS_IT_IS or v.name in names]
        yield Result([table], figures)


def _median(row: Row) -> float:
    assert row.value
    return row.value.median


def same_loss(answers: dict[str, list[float]], name: str, tolerance: float = 0.02) -> bool:
    """Whether the mean loss of the first steps is that of the first variant within its rounding, in bfloat16."""
    return bool(np.allclose(answers.get(name, np.nan), answers[AS_IT_IS.name], rtol=tolerance))


def _compare_variants(
    given: Measures, pixels: int, variants: Sequence[Variant], folder: Path
) -> tuple[Table, dict[str, list[float]]]:
    options = given.inputs(pixels) | {
        "augmented": True,
        "scanned": True,
        "steps": given.size.steps,
        "first": given.size.steps,
    }
    entries = []
    for number, variant in enumerate(variants):
        cache = folder / (str(number) if variant.tunes else "0")
        settings = {"XLA_FLAGS": _flags(variant.flags), "JAX_COMPILATION_CACHE_DIR": str(cache)}
        entry_options = options | {"unroll": variant.unroll}
        entries.append(
            Entry(variant.name, "bench.peers.ours:Train", entry_options, settings, variant.flags, not variant.tunes)
        )
    entries = only(entries, given.pattern)
    rows, answers = turns(
        entries, rounds=given.size.rounds, seconds=given.size.seconds, say=say, start_limit=given.size.start_limit
    )
    compare_answers(rows, answers, AS_IT_IS.name, "loss")
    title = f"Training step with augmentation, batch {given.size.batch}, {pixels} × {pixels}, by XLA's flags"
    return Table(title, "images/s", rows, gpu_name() or "CPU", AS_IT_IS.name), answers


def _flags(flags: str) -> str:
    return f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def unknown_flags(flags: Sequence[str]) -> set[str]:
    """Those that this version of XLA does not know or take: it ends every process that has one."""
    code = "import jax; jax.devices()"
    processes = {
        variant: subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(JAX_PLATFORMS="cpu", XLA_FLAGS=_flags(variant)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for variant in set(flags)
        if variant
    }
    return {variant for variant, process in processes.items() if process.wait()}


def start(given: Measures) -> Iterator[Result]:
    """``covidjax train`` to its first epoch, with caches that are empty, full, or hold what autotuning found alone."""
    pixels = given.size.large
    dataset = str(data.dataset(96, pixels, 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tries = [
            ("first start", "cold"),
            ("again", "warm"),
            ("with what autotuning found alone", "tuned"),
        ]
        for title, figure in tries:
            if figure == "tuned":
                for program in (folder / "covidjax" / "xla").glob("*-cache"):
                    program.unlink()
            words = ["train", "--data", dataset, "--epochs", "1", "--run", str(folder / figure)]
            begun, epoch = until(words, ["starting at step 1", "epoch 1/1"], folder)
            rows = [Row.of(BEGIN, [begun]), Row.of(EPOCH, [epoch])]
            figures = {f"{figure}_start": epoch, f"{figure}_start_compiling": epoch - begun}
            yield Result([Table(f"Start at {pixels} × {pixels}: {title}", "seconds", rows, gpu_name())], figures)


def float16(given: Measures) -> Iterator[Result]:
    """Whole runs in each precision, at the same time: their times are not measured."""
    words = f"train.epochs={given.size.epochs}", f"train.batch_size={given.size.batch}"
    precisions, dataset = ("float16", "float32", "bfloat16"), given.table2_dataset()
    found = in_processes(("whole_run", (dataset, *words, f"train.precision={choice}")) for choice in precisions)
    rows, figures = [], {}
    for choice, run in zip(precisions, found, strict=True):
        rows.append(Row.of(choice, [run["accuracy"]], f"training loss at the end {run['loss']:.4f}, {run['dtype']}"))
        figures[f"accuracy_{choice}"] = run["accuracy"]
    figures["float16_vs_float32"] = figures["accuracy_float16"] - figures["accuracy_float32"]
    note = f"{found[0]['device']}; {found[0]['images']} images, {given.size.epochs} epochs; float16 with loss scaling"
    yield Result([Table("Accuracy on the test fold", "share", rows, note)], figures)


def networks(given: Measures) -> Iterator[Result]:
    """A network for every fold of the dataset of Table 2, and what its 25 would take after them."""
    words = f"train.epochs={given.size.epochs}", f"train.batch_size={given.size.batch}"
    found = in_process("networks", given.table2_dataset(), *words)
    each = found["each"][1:]  # the first one compiles
    total = found["wall"] + (25 - len(found["each"])) * float(np.median(each))
    rows = [
        Row.of(f"{len(found['each'])} networks", [found["wall"]], f"accuracy {found['accuracy']:.3f}"),
        Row.of("a network after the first", each),
        Row.of("25 networks", [total], "worked out from these"),
        *(Row.of(f"of it {stage}", [value]) for stage, value in found["seconds"].items() if stage != "wall"),
    ]
    speed = found["images"]["train"] / found["seconds"]["train"]
    figures = {"seconds_per_network": float(np.median(each)), "seconds_of_25": total, "networks_images_per_second": speed}
    yield Result([Table("Cross-validation of Table 2", "seconds", rows, found["device"])], figures)


def compare_with_cpu(given: Measures) -> Iterator[Result]:
    """The GPU against the CPU from the same weights and pixels, all at the same time; small images, since what takes
    minutes is compiling. Without autotuning, which would change the order of sums alone."""
    inputs = given.inputs(given.size.flag_pixels[0])
    words = inputs["batch"], inputs["run"]
    untuned = {"XLA_FLAGS": _flags("--xla_gpu_autotune_level=0")}
    expected, *found = in_processes(
        [
            ("results", (*words, "cpu", "float32"), {"JAX_PLATFORMS": "cpu"}),
            ("results", (*words, "auto", "float32"), untuned),
            ("results", (*words, "auto", "auto"), untuned),
        ]
    )
    rows, figures = [], {}
    for (name, precision), results in zip((("float32", "float32"), ("automatic precision", "auto")), found, strict=True):
        note = f"{results['device']}, {results['dtype']}"
        for quantity in ("logits", "gradients", "losses"):
            difference = relative_difference(results[quantity], expected[quantity])
            figures[f"{quantity}_{precision}"] = difference
            rows.append(Row.of(f"{quantity}, {name}", [difference], note))
    note = "Norm of the difference over the norm, against float32 on this machine's CPU."
    yield Result([Table("The same results", "relative difference", rows, note)], figures)


def relative_difference(values: list[float], expected: list[float]) -> float:
    """Norm of the difference over the norm of the expected values."""
    a, b = np.asarray(values, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def limits(given: Measures) -> Iterator[Result]:
    """The card's own limits, measured, and the share of them that the training step takes (Williams et al. 2009)."""
    size, inputs = given.size, given.inputs(given.size.large)
    found = in_process("limits", inputs["batch"], inputs["run"], size.copy, size.product)
    rows = [
        Row.of("bandwidth, GB/s", found["bandwidth"], "a copy, bytes read and written"),
        Row.of("arithmetic, TFLOP/s", found["arithmetic"], f"a matrix product in {found['dtype']}"),
        Row.of("a step's arithmetic, GFLOP", [found["flops"] / 1e9], "by XLA's count"),
        Row.of("a step's traffic, GB", [found["bytes"] / 1e9], "by XLA's count"),
    ]
    figures = {"step_flops": found["flops"], "step_bytes": found["bytes"]}
    if images_per_second := given.figures.get(f"train_images_per_second_{size.large}"):
        seconds = size.batch / images_per_second
        memory = found["bytes"] / 1e9 / float(np.median(found["bandwidth"]))
        compute = found["flops"] / 1e12 / float(np.median(found["arithmetic"]))
        for name, least in (("bandwidth", memory), ("arithmetic", compute)):
            share = least / seconds
            figures[f"share_of_{name}"] = share
            note = f"{1e3 * least:.3g} ms at the limit of {1e3 * seconds:.3g} ms taken"
            rows.append(Row.of(f"share of {name}", [share], note))
    yield Result([Table("The card's limits and the step's share", "value", rows)], figures)


def in_process(function: str, *arguments: Any) -> Any:
    """Call a function of ``bench.gpu_parts`` in a process of its own."""
    return in_processes([(function, arguments)])[0]


def in_processes(calls: Any) -> list[Any]:
    """Call functions of ``bench.gpu_parts``, each in a process of its own, all at the same time.

    Args:
      calls: of each the function's name, its arguments and perhaps variables of the environment.
    """
    processes = []
    for function, arguments, *variables in calls:
        code = (
            f"import json; from bench import gpu_parts; print('RESULT' + json.dumps(gpu_parts.{function}(*{arguments!r})))"
        )
        settings = environment(XLA_PYTHON_CLIENT_PREALLOCATE="false", **(variables[0] if variables else {}))
        words = [sys.executable, "-c", code]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=settings))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise click.ClickException("A measurement failed; see above.")
    return [json.loads(output.rpartition("RESULT")[2]) for output in outputs]
