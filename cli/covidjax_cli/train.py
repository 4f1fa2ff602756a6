"""``covidjax train``."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from covidjax.config import Config, ModelConfig, load_config
from covidjax.errors import UsageError, UserError
from covidjax.runs.folder import Run
from covidjax_cli import common

if TYPE_CHECKING:
    from covidjax.data.dataset import Dataset
    from covidjax.timing import Timing
    from covidjax.training.loop import Result

    Shown = tuple[list[Any], dict[str, Any]]

DEFAULTS = Config()
MODELS = get_args(get_type_hints(ModelConfig)["name"])


@click.command(
    short_help="Train a network on a dataset.",
    epilog="Example: covidjax train --model darkcovidnet --data data/mine --epochs 50",
)
@click.option(
    "--model",
    type=click.Choice(MODELS),
    help=f"The network; lung-unet learns lung masks.  [default: {DEFAULTS.model.name}]",
)
@click.option("--data", metavar="DIR|sample", help="A prepared dataset.  [default: sample, built in and synthetic]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings that differ from the defaults.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, such as train.batch_size=64.")
@click.option(
    "--epochs", type=click.IntRange(1), help=f"Passes over the training images.  [default: {DEFAULTS.train.epochs}]"
)
@click.option("--test-fold", type=click.IntRange(0), help=f"The held-out fold.  [default: {DEFAULTS.data.test_fold}]")
@click.option("--val-fold", type=click.IntRange(0), help="A training fold to hold out for choosing the best checkpoint.")
@click.option("--cv", is_flag=True, help="Train a network for every fold as the test fold, and report over all films.")
@click.option("--run", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/<model>-<time>]")
@click.option("--resume", is_flag=True, help="Go on where --run, or else the newest run under runs/, stopped.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help=f"[default: {DEFAULTS.seed}]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of tables.")
def train(
    model: str | None,
    data: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    epochs: int | None,
    test_fold: int | None,
    val_fold: int | None,
    cv: bool,
    run: Path | None,
    resume: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Train a network on all folds but the held-out ones, and test it on the test fold.

    Writes config.toml, metrics.jsonl, checkpoints/ and report/ into the run's folder. Ctrl-C saves first; --resume goes on
    to the same result as if nothing had happened.

    With --cv, or an ensemble by --set train.ensemble=N, or both, every network has such a folder within the run's, fold0
    …, member0 … or fold0-member0 …, and report/ has what they amount to.
    """
    flags = {
        "model.name": model,
        "data.path": data if data in (None, "sample") else str(Path(data).absolute()),
        "train.epochs": epochs,
        "data.test_fold": test_fold,
        "data.val_fold": val_fold,
        "train.cv": cv or None,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, overrides, given)
    if resume:
        run, settings, resume = _begun(run, settings, given, bool(given or overrides or config))
    sample = settings.data.path == "sample"
    if sample:
        chosen = "Training" if data or resume else "No --data given: training"
        common.say(f"{chosen} on the built-in sample of synthetic films; no figure from it says anything about patients.")

    from covidjax.data.sample import open_dataset
    from covidjax.report import tables
    from covidjax.training.tasks import make_task

    segments = settings.model.name == "lung-unet"
    dataset = open_dataset(settings.data.path, masks=segments)
    make_task(settings, dataset)  # says whether they fit before there is a folder
    if run and resume and dataset.fingerprint != Run.load(run / "config.toml").dataset:
        raise UserError(
            f"{settings.data.path} is not the dataset that {run} was trained on; give it back, or start a new run."
        )
    run = run or _fresh_folder(settings.model.name)
    common.say(f"Run: {run}")
    note = tables.SYNTHETIC if sample else ""
    several = settings.train.cv or settings.train.ensemble > 1
    parts, summary = (_train_members if several else _train_one)(settings, dataset, run, resume, note)
    if as_json:
        common.show_json(summary)
    else:
        common.show(parts)
    use = "find lungs with `covidjax segment FOLDER --out DIR" if segments else "score films with `covidjax score FOLDER"
    common.say(f"Wrote {run}/report; {use} --checkpoint {run}`.")


def _train_one(settings: Config, dataset: Dataset, run: Path, resume: bool, note: str) -> Shown:
    """Train a single run and write its report; tables and JSON to show."""
    from covidjax.training.loop import train as train_network

    with common.stopping() as stop, progress_of(settings.train.epochs) as progress:
        result = train_network(settings, dataset, run, resume=resume, progress=progress(""), stop=stop)
    parts = [*_tables(result, settings, note), _timing(result.timing)]
    _write(run, dataset, settings, result, parts, note)
    return parts, _summary(run, result, note)


def _train_members(settings: Config, dataset: Dataset, run: Path, resume: bool, note: str) -> Shown:
    """Train the networks of a cross-validation or an ensemble and write their reports; tables and JSON to show."""
    from covidjax.metrics import mean_and_sd, mean_history
    from covidjax.report import run_report, tables
    from covidjax.training.cross_validation import network_configs, train_networks

    with common.stopping() as stop, progress_of(settings.train.epochs) as progress:
        joint = train_networks(settings, dataset, run, resume=resume, progress=progress, say=common.say, stop=stop)
    configs = network_configs(settings, dataset.folds)
    for name, result in joint.networks.items():
        _write(run / name, dataset, configs[name], result, _tables(result, configs[name], note), note)
    each = {name: result.metrics for name, result in joint.networks.items()}
    below = f"\n{note}" * bool(note)
    several = settings.train.ensemble > 1
    shown = []
    if settings.train.cv:
        title = f"All folds, every film by the network{'s' * several} that it was held out from"
        shown.append(tables.networks_table(joint.folds, "Folds" + ", mean probabilities" * several + below))
    else:
        title = f"Test fold {settings.data.test_fold}, mean probabilities of the networks"
    if several:
        shown.append(tables.networks_table(each, "Networks, each alone" + below))
    shown += [*tables.result_tables(joint.metrics, title + below), _timing(joint.timing)]
    parts = joint.folds if settings.train.cv else each
    over_all = {
        "spread": {name: figure._asdict() for name, figure in mean_and_sd(list(parts.values())).items()},
        "folds": {name: metrics.as_dict() for name, metrics in joint.folds.items()},
        "members": {name: _summary(run / name, result, note) for name, result in joint.networks.items()},
    }
    history = mean_history([result.history for result in joint.networks.values()])
    run_report.write(run / "report", joint.metrics, history, shown, note, over_all)
    timing = {"seconds": joint.timing.seconds, "images": joint.timing.images}
    return shown, {"run": str(run), "note": note, "metrics": joint.metrics.as_dict(), **over_all, **timing}


def _write(run: Path, dataset: Dataset, settings: Config, result: Result, parts: list[Any], note: str) -> None:
    """Write the report of one network."""
    from covidjax.report import run_report

    run_report.write(run / "report", result.metrics, result.history, parts, note)
    if dataset.masks:
        from covidjax.training import mask_report

        mask_report.write(run / "report", run, dataset, settings.data.test_fold, result.examined.found, note)


def _fresh_folder(model: str) -> Path:
    """``runs/<model>-<time>``, made here so that two commands of the same second do not share it."""
    name = f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); name a folder for the run with --run.") from error
        return folder
    raise AssertionError  # the count has no end


def _begun(run: Path | None, settings: Config, given: dict[str, Any], changed: bool) -> tuple[Path, Config, bool]:
    """The run to resume, its settings, and whether it was begun at all.

    Raises:
      UserError: nothing to resume, or other settings than the run was begun with.
    """
    if run is None:
        runs = sorted(Path("runs").glob("*/config.toml"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise UserError("There is no run under runs/ to resume; name one with --run, or leave --resume out.")
        run = runs[-1].parent
    if not (run / "config.toml").exists():
        if not changed:
            raise UsageError(f"{run} holds no run to resume; check its name, or give the settings of a new one.")
        common.say(f"{run} holds no run yet: it starts at the first step.")
        return run, settings, False
    begun = Run.load(run / "config.toml").config
    if "data.path" in given:  # a dataset that was moved: its content is checked against the run
        begun = replace(begun, data=replace(begun.data, path=settings.data.path))
    elif set(given) <= {"data.path"}:
        settings = replace(settings, data=replace(settings.data, path=begun.data.path))
    if changed and set(given) != {"data.path"} and settings != begun:
        raise UsageError(f"{run} was begun with other settings; resume it without giving any, or start a new run.")
    return run, begun, True


class _Lines:
    """Progress as plain lines: one an epoch, and one now and then within a long one."""

    def __init__(self, epochs: int, name: str):
        self._epochs, self._said = epochs, time.monotonic()
        self._of = f"{name}, " if name else ""
        self._steps, self._score = 0, ""

    def begin(self, what: str, steps: int, score: str) -> None:
        self._steps, self._score = steps, score
        common.say(f"{self._of}{what}")

    def step(self, epoch: int, step: int, loss: float, score: float, images_per_second: float) -> None:
        if time.monotonic() - self._said >= common.PLAIN_SECONDS and step < self._steps:
            self._said = time.monotonic()
            now = f"loss {loss:.3f}, {self._score} {score:.3f}, {images_per_second:,.1f} images/s"
            common.say(f"{self._of}epoch {epoch}/{self._epochs}, step {step}/{self._steps}: {now}")

    def epoch(self, record: dict[str, Any]) -> None:
        self._said = time.monotonic()
        common.say(self._of + _epoch_line(record, self._epochs))


class _Bar(_Lines):
    """Progress as a bar over all steps of a network's training."""

    def __init__(self, epochs: int, name: str, bar: Any):
        super().__init__(epochs, name)
        self._bar = bar
        self._task = None

    def step(self, epoch: int, step: int, loss: float, score: float, images_per_second: float) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=self._steps * self._epochs, now="")
        now = f"loss {loss:.3f}  {self._score} {score:.3f}  {images_per_second:,.1f} images/s"
        done = (epoch - 1) * self._steps + step
        self._bar.update(self._task, completed=done, description=f"{self._of}epoch {epoch}/{self._epochs}", now=now)


@contextlib.contextmanager
def progress_of(epochs: int) -> Iterator[Callable[[str], _Lines]]:
    """What makes the one to tell of a network, by its name."""
    if not sys.stderr.isatty():
        yield partial(_Lines, epochs)
        return
    with common.bar("now") as bar:
        yield lambda name: _Bar(epochs, name, bar)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    parts = [
        f"{name} {' '.join(f'{figure} {value:.3f}' for figure, value in record[name].items())}"
        for name in ("train", "val", "test")
        if name in record
    ]
    return f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}, {record['images_per_second']:,.1f} images/s"


def _tables(result: Result, settings: Config, note: str) -> list[Any]:
    from covidjax.report import tables

    title = f"Test fold {settings.data.test_fold}, {result.checkpoint} checkpoint" + f"\n{note}" * bool(note)
    return tables.result_tables(result.metrics, title)


def _timing(timing: Timing) -> Any:
    from covidjax.report import tables

    stages = [(name, seconds, timing.images.get(name, 0)) for name, seconds in timing.seconds.items()]
    return tables.timing_table(stages, "checkpoint: time that training waited for it")


def _summary(run: Path, result: Result, note: str) -> dict[str, Any]:
    return {
        "run": str(run),
        "note": note,
        "checkpoint": result.checkpoint,
        "parameters": result.parameters,
        "metrics": result.metrics.as_dict(),
        "seconds": result.timing.seconds,
        "images": result.timing.images,
        "history": result.history,
    }
