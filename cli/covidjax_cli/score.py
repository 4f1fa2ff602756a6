"""``covidjax score``."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.errors import UsageError, UserError
from covidjax.images.formats import Limits
from covidjax_cli import common

if TYPE_CHECKING:
    from rich.console import RenderableType

    from covidjax.images.archives import Source
    from covidjax.metrics import Metrics
    from covidjax.scoring.classifier import Row
    from covidjax.scoring.output import PreviousRow, RowWriter

SHOWN = 50
"""Rows that are printed where no output file is named."""


@click.command(
    short_help="Score films: one row for every file.",
    epilog="Example: covidjax score xrays/ --checkpoint runs/mine --output scores.csv",
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
@common.WORKERS
@common.limits
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "jax", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What computes; auto is the fastest that is installed for the device.",
)
@click.option(
    "--invert",
    type=click.Choice(["auto", "never"]),
    help="auto turns negatives (bone dark, air bright) into positives.  [default: as in training]",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if any file could not be read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
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
    """Score films: files, and all images below folders and in ZIP and TAR archives; - for a list of paths on stdin.

    One row for every file, in order, whatever happened to it. Rows are on disk as they come; a command that was broken off
    goes on with --resume. Where the truth is known, from --labels or from subfolders
    named after classes, the metrics are printed too.
    """
    given = common.given_paths(paths)

    if resume and not output:
        raise UsageError("--resume goes on with the rows of a file; name it with --output.")

    from covidjax.images.find import find_images
    from covidjax.images.stream import workers_or_default
    from covidjax.images.workers import start
    from covidjax.runs import load
    from covidjax.scoring.classifier import Classifier, Timing
    from covidjax.scoring.ground_truth import labels_from_csv, labels_from_folders
    from covidjax.scoring.output import check_suffix, open_output

    if output:
        check_suffix(output)  # before the time that loading takes
    run = load.default_run(checkpoint)
    found = find_images(given)
    start(min(workers_or_default(workers), len(found.paths)))  # while the model is loaded
    classifier = Classifier.load(run, device=device, runtime=runtime)
    bundled = "the bundled one" if checkpoint else "no trained classifier under runs/, so the bundled one"
    what = bundled if run == load.BUNDLED else f"{'file' if load.is_file(run) else 'run'} {run}"
    common.say(f"Model: {what}, {classifier.run.config.model.name}, {classifier.checkpoint}, on {classifier.runtime}.")
    if found.skipped:
        common.say(f"{found.skipped} other files passed over: not images, by their ending.")
    classes = classifier.classes
    wanted = classifier.preprocess.lungs
    if classifier.segmenter:
        common.say(f"Lungs: {wanted}, as in training, by {classifier.segmenter.title}.")
        if classifier.segmenter.digest != classifier.run.segmenter:
            common.say("These are other lung masks than the run was trained with: its weights came with another version.")
    truth = labels_from_csv(labels, classes) if labels else labels_from_folders(found.roots)
    synthetic = classifier.run.config.data.path == "sample"

    timing = Timing()
    shown: list[Row] = []
    errors: list[Row] = []
    known: list[tuple[int, int]] = []
    good = labelled = warned = whole = 0

    def count(row: Row | PreviousRow) -> None:
        nonlocal good, labelled, warned, whole
        good += row.status == "ok"
        warned += bool(row.warning)
        whole += row.status == "ok" and row.lungs != wanted and wanted != "none"
        label = truth(row.path)
        labelled += label is not None
        if label in classes and row.status == "ok":
            known.append((classes.index(label), classes.index(row.prediction)))

    wanted_paths, earlier = found.paths, 0
    with contextlib.ExitStack() as stack:
        writer = None
        if output:
            segmenter = classifier.segmenter.digest if classifier.segmenter else ""
            options = {"invert": invert or classifier.preprocess.invert, "limits": asdict(limits)}
            facts = {"model": load.digests(run), "segmenter": segmenter, "options": options}
            lungs = wanted != "none"
            writer = stack.enter_context(open_output(output, classes, lungs=lungs, facts=facts, resume=resume))
            earlier = len(writer.earlier)
            if resume:
                wanted_paths = _left(found.paths, writer, output)
            for row in writer.earlier:
                count(row)
        stop = stack.enter_context(common.stopping())
        progress = stack.enter_context(common.counting("Scoring"))
        rows = classifier.score(
            wanted_paths, batch_size=batch_size, workers=workers, invert=invert, limits=limits, timing=timing
        )
        for done, row in enumerate(rows, 1):
            count(row)
            if writer:
                with timing.writing():
                    writer.write(row)
            if not writer and (as_json or len(shown) < SHOWN):
                shown.append(row)
            elif row.status != "ok" and len(errors) < SHOWN:
                errors.append(row)
            progress(done, len(wanted_paths))
            if stop() and done < len(wanted_paths):
                again = f"; go on with the same command and --resume, {output} has {earlier + done} rows" if output else ""
                raise UserError(f"Stopped after {done} of {len(wanted_paths)} files{again}.")
    timing.stop()

    from covidjax.report import tables  # now: tables need what the first row did not

    total = earlier + len(wanted_paths)
    measured = None
    if known:
        from covidjax import metrics

        true, predicted = zip(*known, strict=True)
        measured = metrics.classification_metrics(true, predicted, classes)
    note = tables.TRAINED_ON_SYNTHETIC if synthetic else ""
    if as_json:
        result = {
            "model": str(run),
            "note": note,
            "files": total,
            "ok": good,
            "errors": total - good,
            "warnings": warned,
            **({"whole_films": whole} if wanted != "none" else {}),
            "timing": [dict(zip(("stage", "seconds", "images"), stage, strict=True)) for stage in timing.stages()],
            "metrics": measured.as_dict() if measured else None,
        }
        common.show_json(
            result
            | (
                {"output": str(output)}
                if output
                else {"rows": [row.cells(classes, lungs=wanted != "none") for row in shown]}
            )
        )
    else:
        common.show(_tables(shown, errors, total, timing, measured, note))
    if labels or 0 < len(known) < good:
        other = labelled - len(known)
        why = f", {other} of them unreadable or of a class that the model has not" if other else ""
        common.say(f"The truth is known of {labelled} of {total} films{why}; the metrics are on {len(known)}.")
    where = f" Wrote {output}." if output else " --output FILE.csv keeps the rows." if total > SHOWN and not as_json else ""
    common.say(f"{good} of {total} films scored, {total - good} could not be read.{where}")
    if warned:
        common.say(f"{warned} of them with a warning; see the column of that name.")
    if whole:
        common.say(f"On {whole} of them no plausible lungs were found; they were scored whole, as their rows tell.")
    if not good:
        raise UserError("No film could be read; see the reasons above.")
    if strict and good < total:
        raise UserError(f"{total - good} of {total} files could not be read, and --strict was given; see the error rows.")


def _left(paths: list[Source], writer: RowWriter, output: Path) -> list[Source]:
    """The paths that have no row yet. A path that was given twice has two."""
    there = Counter(row.path for row in writer.earlier)
    left = []
    for path in paths:
        key = writer.key(os.fspath(path))
        if there[key]:
            there[key] -= 1
        else:
            left.append(path)
    if left and writer.finished:
        raise UserError(f"{output} is finished, and {len(left)} files have no row in it; score them into another --output.")
    common.say(f"{output} has {len(writer.earlier)} rows already; {len(left)} files are left.")
    return left


def _tables(
    shown: list[Row], errors: list[Row], total: int, timing: Any, measured: Metrics | None, note: str
) -> list[RenderableType]:
    from covidjax.report import tables

    parts: list[RenderableType] = []
    for title, rows, more in (("Films", shown, total - len(shown)), ("Could not be read", errors, 0)):
        if rows:
            parts.append(_rows_table(title, rows, f"and {more} more" if more else ""))
    threads = "decode: all threads added up; it goes on beside the model"
    parts.append(tables.timing_table(timing.stages(), threads))
    if measured:
        title = "Metrics" + f"\n{note}" * bool(note)
        parts += [tables.metrics_table(measured, title), tables.confusion_table(measured)]
    return parts


def _rows_table(title: str, rows: list[Row], below: str) -> RenderableType:
    """Rows by their paths without what these share: the files' own names are what tells them apart."""
    from covidjax.report import tables

    parents = [str(Path(row.path).parent) for row in rows]
    alike = len({Path(parent).is_absolute() for parent in parents}) == 1
    base = os.path.commonpath(parents) if alike else ""
    lungs = any(row.lungs for row in rows)
    cells = [
        (
            os.path.relpath(row.path, base) if base else row.path,
            row.prediction,
            "" if row.confidence is None else f"{row.confidence:.3f}",
            *([row.lungs] if lungs else []),
            row.error or row.warning,
        )
        for row in rows
    ]
    columns = ("path", "prediction", "confidence", *(["lungs"] if lungs else []), "error or warning")
    table = tables.text_table(columns, cells, right=("confidence",))
    return tables.titled(title + f" in {base}" * bool(base), table, below)
