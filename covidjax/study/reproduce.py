"""The study's experiments from films to results: datasets, runs, one JSON file; the pages are ``covidjax.page``'s.

Everything is kept under one folder: ``datasets/`` and ``runs/``, one of each for every experiment and protocol. What is
finished is not done again, and a run that was stopped goes on to the same bits as one that never was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import covidjax
from covidjax.config import Config, Preprocess
from covidjax.data.dataset import MANIFEST, Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.device import device_name
from covidjax.errors import UsageError, UserError
from covidjax.files import write_atomic
from covidjax.metrics import AnyMetrics, mean_and_sd
from covidjax.report import tables
from covidjax.runs import folder
from covidjax.runs.folder import Run
from covidjax.study.experiments import PROTOCOLS, Experiment, for_rehearsal
from covidjax.study.rehearsal import _draw
from covidjax.training.cross_validation import train_networks
from covidjax.training.loop import Interrupted, Progress, Result, train

SETTINGS, RESULTS, OUTCOME, PYTORCH = "settings.json", "results.json", "outcome.json", "pytorch.json"

COLLECTIONS, DATASETS = "collections", "datasets"
"""Folders of the synthetic collections, and of what was prepared of any."""


class Show(Protocol):
    """Told how the work goes on."""

    def say(self, line: str) -> None:
        """A line for the reader."""

    def counting(self, verb: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
        """What is told (done, total) of films."""
        ...

    def training(self, epochs: int) -> contextlib.AbstractContextManager[Callable[[str], Progress]]:
        """What makes the one to tell of a network's training, by its name."""
        ...

    def stop(self) -> bool:
        """Whether to save everything and stop."""
        ...


def reproduce(
    data: str, out: Path, experiments: Mapping[str, Experiment], epochs: int | None, show: Show, recipe: str = ""
) -> dict[str, Any]:
    """Prepare, train and test every experiment under both protocols.

    Args:
      data: a folder that holds the published collections as subfolders, or ``sample`` for synthetic ones.
      out: folder of everything that is made.
      experiments: which.
      epochs: what ``experiments`` were loaded with, so that a folder is known again.
      show: told how it goes on.
      recipe: the settings that they were loaded with, in words; likewise.

    Returns:
      What ``out/results.json`` holds.

    Raises:
      UserError: stopped; a collection that is not there; a folder that was begun with other data, epochs or settings.
    """
    sample = data == "sample"
    about = {"data": data if sample else Path(data).absolute().name, "epochs": epochs, "settings": recipe}
    _settle(out, about)
    root = Path(data)
    if sample:
        root = out / COLLECTIONS
        _draw(root)
        experiments = {name: for_rehearsal(experiment) for name, experiment in experiments.items()}
    for experiment in experiments.values():
        for source in experiment.films.sources:
            if not (root / source).is_dir():
                raise UsageError(
                    f"{experiment.number} needs {root / source}, which is missing; put the collection there, or choose "
                    "other tables with --only."
                )
    found = {}
    for name, experiment in experiments.items():
        protocols = {}
        for protocol in PROTOCOLS if experiment.films.sources else ():
            dataset = _dataset(experiment, protocol, root, out, show)
            outcome = _outcome(experiment, protocol, dataset, out, show)
            protocols[protocol] = {"dataset": _counts(dataset), **outcome}
        found[name] = {"number": experiment.number, "title": experiment.title, "about": experiment.about}
        found[name] |= {"study": asdict(experiment.study), "times_of": experiment.times_of, "protocols": protocols}
    results = {"about": _about(sample) | about, "experiments": found}
    if (out / PYTORCH).is_file():
        results["pytorch"] = json.loads((out / PYTORCH).read_text())
    _write(out / RESULTS, results)
    return results


def _settle(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or know it again."""
    file = out / SETTINGS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if any(out.iterdir()):
                raise UserError(f"{out} holds other files; name a new or an empty folder with --out.")
            _write(file, settings)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name a folder that you may write to.") from error
    begun = json.loads(file.read_text())
    if begun != settings:
        told = ", ".join(f"{key} {value}" for key, value in begun.items() if value)
        raise UsageError(f"{out} was begun with {told}; give the same again, or name another folder with --out.")


def _write(file: Path, content: Any) -> None:
    """As JSON, whole or not at all."""
    write_atomic(file, json.dumps(content, indent=2, allow_nan=False))


def _options(experiment: Experiment, protocol: str) -> Options:
    films = experiment.films
    options = Options(Preprocess(films.image_size, films.lungs), group_by=PROTOCOLS[protocol])
    return dataclasses.replace(options, only=films.only, limits_by_class=films.limits)


def _dataset(experiment: Experiment, protocol: str, root: Path, out: Path, show: Show) -> Dataset:
    """Prepared, unless it is there already."""
    path = out / DATASETS / f"{experiment.name}-{protocol}"
    options = _options(experiment, protocol)
    if not (path / MANIFEST).exists():
        with show.counting(f"{experiment.number}, {protocol} split: preparing films") as count:

            def progress(done: int, total: int) -> None:
                count(done, total)
                if show.stop():
                    raise UserError("Stopped; give the same command again to go on.")

            prepare([root / source for source in experiment.films.sources], path, options, progress=progress)
    dataset = Dataset(path)
    if dataset.manifest["options"] != json.loads(json.dumps(asdict(options))):
        raise UserError(f"{path} was prepared by another version of this experiment; remove it, or name another --out.")
    return dataset


def _outcome(experiment: Experiment, protocol: str, dataset: Dataset, out: Path, show: Show) -> dict[str, Any]:
    """What a run came to: from its file, or trained to its end."""
    run = out / "runs" / f"{experiment.name}-{protocol}"
    path = str(dataset.path.absolute())
    settings = dataclasses.replace(experiment.settings, data=dataclasses.replace(experiment.settings.data, path=path))
    begun = (run / folder.CONFIG).exists()
    if begun:
        saved = Run.load(run / folder.CONFIG)
        same = dataclasses.replace(saved.config, data=dataclasses.replace(saved.config.data, path=path)) == settings
        if not same or saved.dataset != dataset.fingerprint:
            raise UserError(f"{run} was trained by another version of this experiment; remove it, or name another --out.")
    if (run / OUTCOME).exists():
        return json.loads((run / OUTCOME).read_text())
    title = f"{experiment.number}, {protocol} split"
    show.say(f"{title}: {dataset.manifest['images']} films; run {run}")
    try:
        with show.training(settings.train.epochs) as progress:
            train_it = _several if settings.train.cv or settings.train.ensemble > 1 else _single
            outcome = train_it(settings, dataset, run, begun, title, progress, show)
    except Interrupted:
        raise UserError("Stopped, with everything saved; give the same command again to go on.") from None
    _write(run / OUTCOME, outcome)
    return json.loads((run / OUTCOME).read_text())  # as the next call will find it


def _single(
    settings: Config, dataset: Dataset, run: Path, resume: bool, title: str, progress: Callable[[str], Progress], show: Show
) -> dict[str, Any]:
    result = train(settings, dataset, run, resume=resume, progress=progress(title), stop=show.stop)
    return {"metrics": result.metrics.as_dict(), **_trained({"": result})}


def _several(
    settings: Config, dataset: Dataset, run: Path, resume: bool, title: str, progress: Callable[[str], Progress], show: Show
) -> dict[str, Any]:
    named = lambda name: progress(f"{title}, {name}")  # noqa: E731
    joint = train_networks(settings, dataset, run, resume=resume, progress=named, stop=show.stop)
    each = {name: result.metrics for name, result in joint.networks.items()}
    parts = joint.folds if settings.train.cv else each
    found = {
        "metrics": joint.metrics.as_dict(),
        "members": {name: metrics.as_dict() for name, metrics in parts.items()},
        "spread": _spread(parts),
    }
    if settings.train.ensemble > 1:
        found["alone"] = {"networks": len(each), "spread": _spread(each)}
    return found | _trained(joint.networks)


def _spread(found: Mapping[str, AnyMetrics]) -> dict[str, Any]:
    return {name: figure._asdict() for name, figure in mean_and_sd(list(found.values())).items()}


def _trained(members: Mapping[str, Result]) -> dict[str, Any]:
    """What is to be told of training: parameters, curves (their means over several networks), time."""
    histories = [result.history for result in members.values()]
    speeds = [record["images_per_second"] for history in histories for record in history]
    seconds = [history[-1]["seconds"] for history in histories]
    return {
        "parameters": next(iter(members.values())).parameters,
        "history": tables.mean_history(histories),
        "device": device_name(),
        "images_per_second": median(speeds),
        # To the end of the last epoch, with compiling and with testing after each. Networks trained together share a clock.
        "seconds": seconds,
    }


def _counts(dataset: Dataset) -> dict[str, Any]:
    """What the report says of a dataset."""
    manifest = dataset.manifest
    copies = {
        source: sum(count for reason, count in reasons.items() if reason.startswith("a copy of"))
        for source, reasons in manifest["left_out"].items()
    }
    keys = ("images", "patients", "per_class", "per_source", "per_fold", "image_size", "lungs", "fingerprint")
    whole = len(manifest.get("whole_films", []))
    return {key: manifest[key] for key in keys} | {
        "path": f"{DATASETS}/{dataset.path.name}",
        "copies_dropped": {source: count for source, count in copies.items() if count},
        "unreadable": len(manifest["skipped"]),
        "whole_films": whole,
    }


def _about(sample: bool) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "covidjax": covidjax.__version__,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages},
        "device": device_name(),
        "note": tables.SYNTHETIC if sample else "",
    }
