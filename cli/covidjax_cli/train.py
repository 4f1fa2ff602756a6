"""``covidjax train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from covidjax.config import Config, ModelConfig, given_settings, load_config
from covidjax.errors import UsageError
from covidjax_cli import common

DEFAULTS = Config()
MODELS = click.Choice(get_args(get_type_hints(ModelConfig)["name"]))

SETTINGS = {
    "model": "model.name",
    "init": "train.init",
    "data": "data.path",
    "cv": "train.cv",
    "by": "train.cv_by",
    "freeze": "train.freeze",
    "probe": "train.probe",
    "operating_point": "train.operating_points",
    "seed": "seed",
}
SETTINGS |= {"epochs": "train.epochs", "test_fold": "data.test_fold", "val_fold": "data.val_fold"}
"""The setting that each of these options gives."""


@click.command(
    short_help="Train a network on a dataset.",
    epilog="Example: covidjax train --model darkcovidnet --data data/mine --epochs 50",
)
@click.option(
    "--model",
    type=MODELS,
    help=f"The network; lung-unet learns lung masks.  [default: that of --init, or else {DEFAULTS.model.name}]",
)
@click.option(
    "--init",
    metavar="FILE|RUN|bundled|hub:REPO@REVISION",
    help="Weights to start from: published ones as safetensors, a run or a file of covidjax, the bundled classifier.",
)
@click.option("--data", metavar="DIR|sample", help="A prepared dataset.  [default: sample, built in and synthetic]")
@click.option("--config", type=common.PATH, help="TOML file with settings that differ from the defaults.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, such as train.batch_size=64.")
@click.option(
    "--epochs",
    type=click.IntRange(0),
    help=f"Passes over the training images.  [default: {DEFAULTS.train.epochs}, with --probe 0]",
)
@click.option(
    "--freeze", type=click.Choice(("none", "backbone")), help="Leave the backbone's weights as they are.  [default: none]"
)
@click.option(
    "--probe",
    is_flag=True,
    default=None,
    help="Fit the last layer to the backbone's features, in seconds; --epochs then train all layers from there.",
)
@click.option("--test-fold", type=click.IntRange(0), help=f"The held-out fold.  [default: {DEFAULTS.data.test_fold}]")
@click.option("--val-fold", type=click.IntRange(0), help="A training fold to hold out for choosing the best checkpoint.")
@click.option(
    "--cv", is_flag=True, default=None, help="Train a network for every fold as the test fold, and report over all images."
)
@click.option(
    "--by",
    type=click.Choice(("fold", "source")),
    help="With --cv: hold out each fold in turn, or each source of the dataset.  [default: fold]",
)
@click.option(
    "--operating-point",
    multiple=True,
    metavar="CLASS:METRIC=SHARE",
    help="A threshold that reaches a sensitivity or a specificity on the validation fold: COVID-19:sensitivity=0.95.",
)
@click.option("--run", type=common.PATH, help="Folder of the run.  [default: runs/<model>-<time>]")
@click.option("--resume", is_flag=True, help="Go on where --run, or else the newest run under runs/, stopped.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help=f"[default: {DEFAULTS.seed}]")
@common.json_option
def train(
    config: Path | None, overrides: tuple[str, ...], run: Path | None, resume: bool, as_json: bool, **options: Any
) -> None:
    """Train a network on all folds but the held-out ones, and test it on the test fold.

    Writes config.toml, metrics.jsonl, checkpoints/ and report/ into the run's folder. Ctrl-C saves first; --resume goes on
    to the same result as if nothing had happened.

    With --cv, or an ensemble by --set train.ensemble=N, or both, every network has such a folder within the run's, fold0
    …, member0 … or fold0-member0 …, and report/ has what they amount to. With --cv --by source each source of the dataset
    is left out once, by the network in source-NAME: what to expect at a place that no image was trained on.
    """
    flags = {SETTINGS[name]: value for name, value in options.items() if value not in (None, ())}
    if flags.get("data.path", "sample") != "sample":
        flags["data.path"] = str(Path(flags["data.path"]).absolute())
    from covidjax.runs import initial
    from covidjax.runs import resume as resuming

    settings, given = load_config(config, overrides, flags), given_settings(config, overrides, flags)
    if settings.train.init:
        settings = replace(settings, train=replace(settings.train, init=initial.absolute(settings.train.init)))
    if settings.train.calibration:
        absolute = str(Path(settings.train.calibration).absolute())
        settings = replace(settings, train=replace(settings.train, calibration=absolute))
    if "train.cv_by" in flags and not (settings.train.cv or resume):
        raise UsageError("--by says what a cross-validation holds out; give --cv too.")

    if resume:
        changed = bool(flags or overrides or config)
        run, settings, resume = resuming.find(run, settings, flags, changed=changed, given=given)
    sample = settings.data.path == "sample"
    if sample:
        begun = "Training" if "data.path" in flags or resume else "No --data given: training"
        common.say(f"{begun} on the built-in sample of synthetic images; no figure from it says anything about patients.")

    from covidjax.data.holdout import classes_of_one_source
    from covidjax.data.sample import open_dataset
    from covidjax.models import create_model
    from covidjax.report import tables
    from covidjax.training import run_trust
    from covidjax.training.summary import train_and_report
    from covidjax.training.tasks import make_task
    from covidjax_cli.progress import training_progress

    starting = None
    if settings.train.init and run and resume:
        starting = initial.resume(run)
    elif settings.train.init:
        starting = initial.open_source(settings.train.init)
        settings = initial.adapt(settings, given, starting)
    dataset = open_dataset(settings.data.path, masks=settings.model.is_segmenter)
    common.say_unknown_patients(dataset)
    if settings.data.val_fold is None and settings.data.test_fold == dataset.splits.get("test") and not settings.train.cv:
        val_fold = dataset.splits.get("val")
        settings = replace(settings, data=replace(settings.data, val_fold=val_fold))
        validated = " and validated on its val" if val_fold is not None else ""
        common.say(f"The publisher's split: tested on its test{validated}.")
    make_task(settings, dataset)  # says whether they fit before there is a folder
    run_trust.check(settings, dataset, starting.trained_on if starting else ())
    network = create_model(settings.model, dataset.preprocess)  # says whether images of this size go
    if starting and not resume:
        for sentence in initial.notes(starting, settings, dataset.preprocess, network):
            common.say(sentence)
    if settings.train.cv and settings.train.cv_by == "source":
        for name, source in classes_of_one_source(dataset).items():
            common.say(f"Only {source} has {name}: the network that leaves {source} out is trained without any {name}.")
    if run and resume:
        resuming.check_dataset(run, settings, dataset.fingerprint)
    run = run or resuming.new_folder(settings.model.name)
    common.say(f"Run: {run}")
    note = tables.SYNTHETIC if sample else ""
    with common.stopping() as stop, training_progress(settings.train.epochs) as progress:
        more = {"resume": resume, "stop": stop, "starting": starting}
        parts, summary = train_and_report(settings, dataset, run, note, progress=progress, **more)
    if as_json:
        common.show_json(summary)
    else:
        common.show(parts)
    use = "score images with `covidjax score FOLDER"
    if settings.model.is_segmenter:
        use = "find lungs with `covidjax segment FOLDER --out DIR"
    common.say(f"Wrote {run}/report; {use} --checkpoint {run}`.")
