"""Every benchmark in one run: a JSON file in bench/results, tables, and those of docs/performance.md.

With --check nothing is measured: the newest result of a whole run (or the one named) is compared with the targets.
"""

from __future__ import annotations

import functools
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench import faults, forward, growth, loader, lungs, score, startup, train
from bench.harness import Options
from bench.machine import ROOT, machine, say
from bench.tables import Log, from_json, markdown, show, write
from bench.targets import Target, check, show_checks

MODULES = (train, forward, score, faults, loader, startup, growth, lungs)
BENCHMARKS = {module.__name__.removeprefix("bench."): module for module in MODULES}
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
MARKS = ("<!-- bench -->", "<!-- end of bench -->")
ON_PAGE = ("train", "forward", "score")


TARGETS = (
    Target("train_vs_torch_float32", "training step, times the best float32 PyTorch", least=1.3),
    Target("train_vs_torch_bfloat16", "training step, times the best bfloat16 PyTorch (an aim)", least=1.0),
    Target("forward_vs_torch_float32", "forward pass, jitted, times the best float32 PyTorch", least=1.0),
    Target("runtime_vs_openvino_bfloat16", "forward pass, fastest runtime, times OpenVINO bfloat16 by hand", least=1.0),
    # Without bfloat16 in the processor OpenVINO is faster in float32: that is then what there is to be level with.
    Target("runtime_vs_openvino_best", "the same, times the fastest OpenVINO by hand", least=1.0),
    Target("score_jpeg_vs_loop", "scoring large JPEGs, times the PyTorch loop", least=1.5),
    Target("score_png_vs_loop", "scoring 1024² PNGs, times the PyTorch loop", least=1.3),
    Target("score_jpeg_vs_decoding", "scoring large JPEGs, share of the pace of decoding alone", least=0.85),
    Target("score_png_vs_decoding", "scoring 1024² PNGs, share of the pace of decoding alone", least=0.85),
    Target("score_png_gate", "scoring 1024² PNGs, pace with the gate, times without", least=0.9),
    Target("score_jpeg_gate", "scoring large JPEGs, the same", least=0.9),
    Target("score_png_gate_lungs", "scoring 1024² PNGs with lungs cut out, the same", least=0.97),
    Target("score_jpeg_gate_lungs", "scoring large JPEGs with lungs cut out, the same", least=0.97),
    Target("score_with_bad_files", "scoring 20,000 files, 5 % of them bad, times without bad ones", least=0.95),
    Target("score_wrong_error_rows", "error rows that are not those of the bad files", most=0),
    Target("loader_images_per_second", "loader, images/s", least=10_000),
    Target("streamed_vs_device", "streamed training, times cache=device", least=0.95),
    Target("score_again_seconds", "first row of one image, second time, seconds", most=4.0),
    Target("score_memory_growth", "peak memory, 20,000 files over 500", most=1.2),
    Target("epoch_time_growth", "epoch time an image, 4 times the images over 1", most=1.1),
    Target("two_devices_loss", "loss of an epoch on two devices, relative difference to one", most=1e-3),
    Target("prepare_memory_growth", "peak memory of prepare, 5,000 files over 500", most=1.2),
    Target("lungs_dice_fields", "lung masks, mean Dice on held-out images of Montgomery and Shenzhen", least=0.955),
    Target("lungs_dice_lungs", "lung masks, mean Dice on held-out images of ieee8023", least=0.90),
    Target("lungs_vs_lungs_finder", "box of both lungs, images/s, times lungs-finder", least=5.0),
    Target("lungs_iou", "box of both lungs, mean IoU with radiologists' boxes", least=0.89),
    Target("lungs_clipped", "the same, share of images that lose over a tenth", most=0.04),
    Target("lungs_missing", "the same, share of images without a box", most=0.005),
)


def page_text(stored: dict[str, Any]) -> str:
    """The text between the page's marks."""
    where = stored["machine"]
    flags = ", ".join(where["cpu_flags"])
    names = ("jax", "torch", "keras", "onnxruntime", "openvino")
    used = ", ".join(f"{name} {stored['versions'][name]}" for name in names if name in stored["versions"])
    device = where["gpu"] or f"{where['cores']} cores of {where['cpu']} ({flags})"
    intro = f"`{stored['command']}` on {device}, {stored['when'][:10]}; {used}. Medians and quartiles, contenders in turns."
    tables = [
        table
        for name in ON_PAGE
        if name in stored["benchmarks"]
        for table in from_json(stored["benchmarks"][name]).tables
        if not table.title.endswith("loop alone")
    ]
    return f"{intro}\n\n{markdown(tables)}"


def rewrite_page(page: Path, stored: dict[str, Any]) -> None:
    """Put the tables between the marks of a page.

    Raises:
      ValueError: the page has no marks.
    """
    first, last = MARKS
    before, mark, rest = page.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not mark or not end:
        raise ValueError(f"{page} has no {first} … {last}.")
    page.write_text(f"{before}{first}\n{page_text(stored)}\n{last}{after}")


def result_name() -> str:
    """``<date>-<processor or card>.json``."""
    where = machine()
    name = where["gpu"] or where["cpu"]
    return f"{datetime.now(UTC):%Y%m%d-%H%M}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def newest() -> Path | None:
    """The latest result of a whole run: their names begin with the time."""
    return max(RESULTS.glob("2*.json"), default=None)


def figures_of(stored: dict[str, Any]) -> dict[str, float]:
    """All figures of a result file's content."""
    return {name: value for result in stored["benchmarks"].values() for name, value in result["figures"].items()}


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="Tiny inputs, nothing written but --out: shows that everything runs.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.  [default: in bench/results]")
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path, exists=True), help="Result to put NAMES into.")
@click.option("--check", "only_check", is_flag=True, help="Measure nothing: hold a result against what is asked for.")
@click.option("--result", type=click.Path(dir_okay=False, path_type=Path, exists=True), help="The result for --check.")
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    quick: bool,
    out: Path | None,
    into: Path | None,
    only_check: bool,
    result: Path | None,
) -> None:
    """Run the benchmarks named, or all."""
    if only_check:
        file = result or newest()
        if file is None:
            raise click.UsageError("there is no result in bench/results; run `python -m bench.all` first.")
        click.echo(f"{os.path.relpath(file)}:")
        checks = check(figures_of(json.loads(file.read_text())), TARGETS)
        show_checks(checks)
        context.exit(0 if all(line.ok for line in checks) else 1)
    log = Log("python -m bench.all")
    for name in names or BENCHMARKS:
        say(f"bench.{name}")
        show(log.measure(name, functools.partial(BENCHMARKS[name].measure, Options(quick))).tables)
    stored = log.content() | {"quick": quick}
    if into:  # a run in pieces, for a machine that others wait for
        stored["benchmarks"] = json.loads(into.read_text())["benchmarks"] | stored["benchmarks"]
        out = out or into
    if out or not quick:
        write(out or RESULTS / result_name(), stored)
    if not quick:
        rewrite_page(PAGE, stored)
    show_checks(check(figures_of(stored), TARGETS))


if __name__ == "__main__":
    main()
