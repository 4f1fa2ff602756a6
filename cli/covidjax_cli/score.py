"""``covidjax score``."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.errors import UsageError
from covidjax_cli import common

if TYPE_CHECKING:
    from covidjax.images.archives import Source
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.row import Row
    from covidjax.scoring.summary import ScoreSummary


@click.command(
    short_help="Score X-rays: one row for every file.",
    epilog="Example: covidjax score xrays/ --checkpoint runs/mine --output scores.csv",
)
@common.paths_argument
@click.option(
    "--checkpoint",
    type=common.PATH,
    help="A run, or a classifier's file.  [default: the newest run under runs/, else the bundled classifier]",
)
@click.option("--labels", type=common.PATH, help="The truth, for metrics: a table of paths and labels.")
@click.option("--output", type=common.PATH, help="File for the rows: .csv, .jsonl or .parquet.")
@click.option("--resume", is_flag=True, help="Go on with the rows that --output holds, whatever stopped their command.")
@click.option(
    "--by",
    type=click.Choice(("image", "study")),
    default="image",
    show_default=True,
    help="study: one row for all images of a StudyInstanceUID or, without DICOM, of a folder: their mean probabilities.",
)
@common.prevalence_option
@click.option("--batch-size", type=click.IntRange(1, 65536), default=32, show_default=True)
@click.option(
    "--abstain",
    type=float,
    metavar="RISK",
    help="Give no prediction where more than this share of answers is wrong elsewhere, such as 0.1.",
)
@common.workers_option
@common.limits_options
@common.device_option
@common.runtime_option
@common.invert_option(default="as in training")
@click.option(
    "--gate",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="on refuses what is no frontal chest X-ray, or unlike all training images; off blank images alone.",
)
@common.strict_option
@common.json_option
def score(
    paths: tuple[Path, ...],
    checkpoint: Path | None,
    labels: Path | None,
    output: Path | None,
    resume: bool,
    abstain: float | None,
    by: str,
    prevalences: tuple[float, ...],
    device: str,
    runtime: str,
    gate: str,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Score X-rays: files, and all images below folders and in ZIP and TAR archives; - for a list of paths on stdin.

    One row for every file, in order, whatever happened to it. Rows are on disk as they come; a command that was broken off
    goes on with --resume. Where the truth is known, from --labels or from subfolders named after classes, the metrics are
    printed too.
    """
    if resume and not output:
        raise UsageError("--resume goes on with the rows of a file; name it with --output.")

    from covidjax.images.find import find_images
    from covidjax.images.stream import workers_or_default
    from covidjax.images.workers import start
    from covidjax.runs import load
    from covidjax.scoring.classifier import Classifier
    from covidjax.scoring.ground_truth import labels_from_folders, labels_from_table
    from covidjax.scoring.output import check_suffix
    from covidjax.scoring.studies import RULE, group, label_of_study
    from covidjax.scoring.summary import SHOWN_ROWS, ScoreSummary
    from covidjax.trust.abstention import Abstention

    if output:
        check_suffix(output)  # before the time that loading takes
    images = find_images(common.existing_paths(paths))
    model = checkpoint or load.newest_run(classifier=True) or load.BUNDLED
    start(min(workers_or_default(options["workers"]), len(images.paths)))  # while the model is loaded
    classifier = Classifier.load(model, device=device, runtime=runtime)
    _say_model(classifier, model, chosen=bool(checkpoint))
    abstention = None if abstain is None else Abstention(classifier.trust, abstain, model)
    if abstention:
        common.say(abstention.sentence)
    common.say_skipped(images.skipped, images.masks)
    label_of, notes = labels_from_folders(images.roots, classifier.classes), []
    if labels:
        label_of, notes = labels_from_table(labels, classifier.classes, images)
    studies = None
    if by == "study":
        studies = group(images.paths, options["limits"])
        label_of = label_of_study(label_of, studies)
        common.say(f"{len(studies)} studies in {len(images.paths)} images: {RULE}.")
    for note in notes:
        common.say(f"Note: {note}.")
    summary = ScoreSummary(
        classifier=classifier,
        model=model,
        label_of=label_of,
        labels_given=bool(labels),
        output=output,
        max_rows=0 if output else math.inf if as_json else SHOWN_ROWS,
        images=images,
        studies=studies,
        prevalences=prevalences,
        limits=options["limits"],
    )
    least_confidence = abstention.least_confidence if abstention else 0.0
    options |= {"gate": gate == "on", "least_confidence": least_confidence}
    _score_images(summary, images.paths, resume=resume, **options)
    common.show_summary(summary, as_json=as_json, strict=strict)


def _say_model(classifier: Classifier, model: Path, *, chosen: bool) -> None:
    from covidjax.runs import load
    from covidjax.trust.calibration import sentence as calibration_sentence
    from covidjax.trust.operating_points import sentence as operating_points_sentence

    bundled = "the bundled one" if chosen else "no trained classifier under runs/, so the bundled one"
    name = bundled if model == load.BUNDLED else f"{'file' if load.is_file(model) else 'run'} {model}"
    common.say(f"Model: {name}, {classifier.run.config.model.name}, {classifier.checkpoint}, on {classifier.runtime}.")
    init, licence = classifier.run.init, load.licence(model)
    own = f"Licence of the trained weights: {licence}." if licence != init.licence else ""
    trust = (calibration_sentence(classifier.trust), operating_points_sentence(classifier.trust))
    for sentence in filter(None, (init.sentence, own, *trust)):
        common.say(sentence)
    if not chosen and model != load.BUNDLED and classifier.run.config.data.path == "sample":
        common.say(
            "This newest run under runs/ was trained on the built-in sample of synthetic images: its scores say nothing "
            "about patients; name another with --checkpoint."
        )
    if classifier.segmenter:
        common.say(f"Lungs: {classifier.preprocess.lungs}, as in training, by {classifier.segmenter.title}.")
        if classifier.segmenter.digest != classifier.run.segmenter:
            common.say("These are other lung masks than the run was trained with: its weights came with another version.")


def _score_images(
    summary: ScoreSummary, paths: Sequence[Source], *, resume: bool, least_confidence: float, **options: Any
) -> None:
    """Score the images that have no row yet; those below the least confidence are uncertain. The options are those of
    ``Classifier.score``."""
    from covidjax.runs import load
    from covidjax.scoring.output import open_table, paths_without_rows
    from covidjax.trust.calibration import sentence as calibration_sentence
    from covidjax.trust.operating_points import thresholds_of

    classifier, output, hint = summary.classifier, summary.output, ""
    left = paths if summary.studies is None else list(summary.studies)
    with contextlib.ExitStack() as stack:
        table = None
        if output:
            facts = {
                "model": load.digests(summary.model),
                "segmenter": classifier.segmenter.digest if classifier.segmenter else "",
                "options": {
                    "invert": options["invert"] or classifier.preprocess.invert,
                    "gate": options["gate"],
                    "limits": asdict(options["limits"]),
                    "least_confidence": str(least_confidence),
                },
                "trust": [calibration_sentence(classifier.trust), *map(str, thresholds_of(classifier.trust).items())],
            } | ({"by": "study"} if summary.studies is not None else {})
            table = stack.enter_context(open_table(output, summary.columns, facts=facts, resume=resume))
            for previous in table.previous_rows:
                summary.add(previous, show=False)
            left = paths_without_rows(left, table)
            if table.previous_rows:
                files = "files" if summary.studies is None else "studies"
                common.say(f"{output} has {summary.files} rows already; {len(left)} {files} are left.")
            hint = f"; go on with the same command and --resume, {output} has the rows so far"
        advance = stack.enter_context(common.advancing("Scoring", len(left), hint))
        for row in _rows(summary, left, **options):
            row = row.abstained(least_confidence)
            start = time.perf_counter()
            if table:
                table.write(summary.cells(row))
            summary.timing.add("write", start, 1)
            summary.add(row)
            advance()
    summary.stop()


def _rows(summary: ScoreSummary, left: Sequence[Source], **options: Any) -> Iterator[Row]:
    """The rows of some images, or of some studies by their names."""
    from covidjax.scoring.studies import merge_rows

    score = partial(summary.classifier.score, timing=summary.timing, **options)
    if summary.studies is None:
        return score(left)
    studies = {name: summary.studies[name] for name in (os.fspath(study) for study in left)}
    return merge_rows(score([image for images in studies.values() for image in images]), studies)
