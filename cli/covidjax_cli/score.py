"""``covidjax score``."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.errors import UsageError
from covidjax.images.formats import Limits
from covidjax_cli import common

if TYPE_CHECKING:
    from covidjax.images.archives import Source
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.row_formats import TableWriter
    from covidjax.scoring.summary import ScoreSummary


@click.command(
    short_help="Score X-rays: one row for every file.",
    epilog="Example: covidjax score xrays/ --checkpoint runs/mine --output scores.csv",
)
@common.paths_argument
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A run, or a classifier's file.  [default: the newest run under runs/, else the bundled classifier]",
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="CSV with the columns path and label: the truth, for metrics."
)
@click.option("--output", type=click.Path(path_type=Path), help="File for the rows: .csv, .jsonl or .parquet.")
@click.option("--resume", is_flag=True, help="Go on with the rows that --output holds, whatever stopped their command.")
@click.option("--batch-size", type=click.IntRange(1, 65536), default=32, show_default=True)
@common.workers_option
@common.limits_options
@common.device_option
@common.runtime_option
@common.invert_option(default=None)
@common.strict_option
@common.json_option
def score(
    paths: tuple[Path, ...],
    checkpoint: Path | None,
    labels: Path | None,
    output: Path | None,
    resume: bool,
    batch_size: int,
    workers: int | None,
    limits: Limits,
    device: str,
    runtime: str,
    invert: Any,
    strict: bool,
    as_json: bool,
) -> None:
    """Score X-rays: files, and all images below folders and in ZIP and TAR archives; - for a list of paths on stdin.

    One row for every file, in order, whatever happened to it. Rows are on disk as they come; a command that was broken off
    goes on with --resume. Where the truth is known, from --labels or from subfolders
    named after classes, the metrics are printed too.
    """
    if resume and not output:
        raise UsageError("--resume goes on with the rows of a file; name it with --output.")

    from covidjax.images.find import find_images
    from covidjax.images.stream import workers_or_default
    from covidjax.images.workers import start
    from covidjax.runs import load
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.ground_truth import labels_from_csv, labels_from_folders
    from covidjax.scoring.output import check_suffix
    from covidjax.scoring.summary import SHOWN_ROWS, ScoreSummary

    if output:
        check_suffix(output)  # before the time that loading takes
    images = find_images(common.existing_paths(paths))
    model = load.find(checkpoint)
    start(min(workers_or_default(workers), len(images.paths)))  # while the model is loaded
    classifier = Classifier.load(model, device=device, runtime=runtime)
    _say_model(classifier, model, chosen=bool(checkpoint))
    common.say_skipped(images.passed_over)
    summary = ScoreSummary(
        classifier,
        model,
        labels_from_csv(labels, classifier.classes) if labels else labels_from_folders(images.roots),
        labels_given=bool(labels),
        output=output,
        max_rows=0 if output else math.inf if as_json else SHOWN_ROWS,
    )
    facts = {"invert": invert or classifier.preprocess.invert, "limits": asdict(limits)}
    with _open_output(output, classifier, model, options=facts, resume=resume) as table:
        _score_images(
            classifier, images.paths, table, summary, batch_size=batch_size, workers=workers, invert=invert, limits=limits
        )
    common.show_summary(summary, as_json=as_json, strict=strict)


def _say_model(classifier: Classifier, model: Path, *, chosen: bool) -> None:
    from covidjax.runs import load

    bundled = "the bundled one" if chosen else "no trained classifier under runs/, so the bundled one"
    name = bundled if model == load.BUNDLED else f"{'file' if load.is_file(model) else 'run'} {model}"
    common.say(f"Model: {name}, {classifier.run.config.model.name}, {classifier.checkpoint}, on {classifier.runtime}.")
    if classifier.segmenter:
        common.say(f"Lungs: {classifier.preprocess.lungs}, as in training, by {classifier.segmenter.title}.")
        if classifier.segmenter.digest != classifier.run.segmenter:
            common.say("These are other lung masks than the run was trained with: its weights came with another version.")


def _open_output(
    output: Path | None, classifier: Classifier, model: Path, *, options: dict[str, Any], resume: bool
) -> contextlib.AbstractContextManager[TableWriter | None]:
    """The table of the rows, or None where no output file is named."""
    if not output:
        return contextlib.nullcontext()
    from covidjax.runs import load
    from covidjax.scoring.output import open_table
    from covidjax.scoring.row import columns

    facts = {
        "model": load.digests(model),
        "segmenter": classifier.segmenter.digest if classifier.segmenter else "",
        "options": options,
    }
    return open_table(output, columns(classifier.classes, lungs=bool(classifier.segmenter)), facts=facts, resume=resume)


def _score_images(
    classifier: Classifier, paths: Sequence[Source], table: TableWriter | None, summary: ScoreSummary, **options: Any
) -> None:
    """Score the images that have no row in the table yet."""
    from covidjax.scoring.output import paths_without_rows

    hint = ""
    if table:
        for previous in table.previous_rows:
            summary.add(previous, show=False)
        hint = f"; go on with the same command and --resume, {table.path} has the rows so far"
        paths = paths_without_rows(paths, table)
        if table.previous_rows:
            common.say(f"{table.path} has {len(table.previous_rows)} rows already; {len(paths)} files are left.")
    timing = summary.timing
    with common.advancing("Scoring", len(paths), hint) as advance:
        for row in classifier.score(paths, timing=timing, **options):
            start = time.perf_counter()
            if table:
                table.write(row.cells(classifier.classes, lungs=bool(classifier.segmenter)))
            timing.add("write", start, 1)
            summary.add(row)
            advance()
    summary.stop()
