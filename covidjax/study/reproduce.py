"""The study's experiments from images to results: datasets, runs, one JSON file; the report is ``covidjax.study.report``'s.

Everything is kept under one folder: ``datasets/`` and ``runs/``, one of each for every experiment and protocol. What is
finished is not done again, and a run that was stopped goes on to the same bits as one that never was.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from covidjax.config import Config, Preprocess
from covidjax.data.dataset import MANIFEST, Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.device import device_name
from covidjax.errors import UsageError, UserError
from covidjax.files import explaining, write_atomic
from covidjax.metrics import AnyMetrics, mean_and_sd
from covidjax.report import plots, tables
from covidjax.runs import folder
from covidjax.study.experiments import PROTOCOLS, Experiment, for_rehearsal
from covidjax.study.rehearsal import draw_collections
from covidjax.training.cross_validation import train_networks
from covidjax.training.loop import Interrupted, Progress, Result, train

SETTINGS, RESULTS, PYTORCH = "settings.json", "results.json", "pytorch.json"

RUN_RESULTS = ("result.json", "outcome.json")
"""The file of a run's result; the second name is that of earlier versions."""

COLLECTIONS, DATASETS = "collections", "datasets"
"""Folders of the synthetic collections, and of the prepared datasets."""


@dataclass
class Console:
    """How progress is shown, and when to stop."""

    say: Callable[[str], None]
    """Shows a line."""
    counting: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    """From a verb to a block's function of images (done, total)."""
    training: Callable[[int], AbstractContextManager[Callable[[str], Progress]]]
    """From a number of epochs to a block's function from a network's name to its ``Progress``."""
    stop: Callable[[], bool]
    """Whether to save everything and stop."""


def reproduce(
    data: str, out: Path, experiments: Mapping[str, Experiment], epochs: int | None, console: Console, recipe: str = ""
) -> dict[str, Any]:
    """Prepare, train and test every experiment under both protocols.

    Args:
      data: a folder that holds the published collections as subfolders, or ``sample`` for synthetic ones.
      out: folder of everything that is made.
      experiments: the experiments by name.
      epochs: the number that ``experiments`` were loaded with, by which the folder is recognized.
      console: shows how it goes on.
      recipe: the settings that ``experiments`` were loaded with, in words; likewise.

    Returns:
      The content of ``out/results.json``.

    Raises:
      UserError: stopped; a missing collection; a folder that was begun with other data, epochs or settings.
    """
    sample = data == "sample"
    settings = {"data": data if sample else Path(data).absolute().name, "epochs": epochs, "settings": recipe}
    _open_folder(out, settings)
    root = Path(data)
    if sample:
        root = out / COLLECTIONS
        draw_collections(root)
        experiments = {name: for_rehearsal(experiment) for name, experiment in experiments.items()}
    for experiment in experiments.values():
        for source in experiment.films.sources:
            if not (root / source).is_dir():
                raise UsageError(
                    f"{experiment.number} needs {root / source}, which is missing; put the collection there, or choose "
                    "other tables with --only."
                )
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    about = {
        "covidjax": importlib.metadata.version("covidjax"),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages},
        "device": device_name(),
        "note": tables.SYNTHETIC if sample else "",
        **settings,
    }
    results = {
        "about": about,
        "experiments": {name: _result(experiment, root, out, console) for name, experiment in experiments.items()},
    }
    if (out / PYTORCH).is_file():
        results["pytorch"] = json.loads((out / PYTORCH).read_text(encoding="utf-8"))
    _write(out / RESULTS, results)
    return results


def _open_folder(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that it was begun with the same settings."""
    file = out / SETTINGS
    with explaining(out):
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if any(out.iterdir()):
                raise UserError(f"{out} holds other files; name a new or an empty folder with --out.")
            _write(file, settings)
    begun = json.loads(file.read_text(encoding="utf-8"))
    if begun != settings:
        words = ", ".join(f"{key} {value}" for key, value in begun.items() if value)
        raise UsageError(f"{out} was begun with {words}; give the same again, or name another folder with --out.")


def _write(file: Path, content: Any) -> None:
    write_atomic(file, json.dumps(content, indent=2, allow_nan=False))


def _result(experiment: Experiment, root: Path, out: Path, console: Console) -> dict[str, Any]:
    """An experiment beside what the study reports, and its datasets and metrics under each protocol."""
    protocols = {}
    for protocol in PROTOCOLS if experiment.films.sources else ():
        dataset = _prepare(experiment, protocol, root, out, console)
        protocols[protocol] = {"dataset": _counts(dataset), **_train(experiment, protocol, dataset, out, console)}
    about = {key: getattr(experiment, key) for key in ("number", "title", "about", "times_of")}
    return about | {"study": asdict(experiment.study), "protocols": protocols}


def _prepare(experiment: Experiment, protocol: str, root: Path, out: Path, console: Console) -> Dataset:
    """Prepare an experiment's dataset, unless it is there already."""
    path, films = out / DATASETS / f"{experiment.name}-{protocol}", experiment.films
    preprocess = Preprocess(films.image_size, films.lungs)
    options = Options(preprocess, group_by=PROTOCOLS[protocol], only=films.only, limits_by_class=films.limits)
    if not (path / MANIFEST).exists():
        with console.counting(f"{experiment.number}, {protocol} split: preparing images") as count:

            def progress(done: int, total: int) -> None:
                count(done, total)
                if console.stop():
                    raise UserError("Stopped; give the same command again to go on.")

            prepare([root / source for source in films.sources], path, options, progress=progress)
    dataset = Dataset(path)
    begun = asdict(Options()) | dataset.manifest["options"]  # an earlier version may not have had them all
    if json.loads(json.dumps(begun)) != json.loads(json.dumps(asdict(options))):
        raise UserError(f"{path} was prepared by another version of this experiment; remove it, or name another --out.")
    return dataset


def _counts(dataset: Dataset) -> dict[str, Any]:
    """What the report says of a dataset."""
    manifest = dataset.manifest
    keys = ("images", "patients", "per_class", "per_source", "per_fold", "image_size", "lungs", "fingerprint")
    duplicates = manifest.get("duplicates_dropped", {})  # datasets of earlier versions do not count them
    return {key: manifest[key] for key in keys} | {
        "path": f"{DATASETS}/{dataset.path.name}",
        "copies_dropped": {source: count for source, count in duplicates.items() if count},
        "unreadable": len(manifest["skipped"]),
        "whole_films": len(manifest.get("whole_films", [])),
    }


def _train(experiment: Experiment, protocol: str, dataset: Dataset, out: Path, console: Console) -> dict[str, Any]:
    """The result of a run: from its file, or by training it to its end."""
    run = out / "runs" / f"{experiment.name}-{protocol}"
    path = str(dataset.path.absolute())
    settings = replace(experiment.settings, data=replace(experiment.settings.data, path=path))
    begun = (run / folder.CONFIG).exists()
    if begun:
        saved = folder.Run.load(run / folder.CONFIG)
        saved_settings = replace(saved.config, data=replace(saved.config.data, path=path))
        if saved_settings != settings or saved.dataset != dataset.fingerprint:
            raise UserError(f"{run} was trained by another version of this experiment; remove it, or name another --out.")
    files = [run / name for name in RUN_RESULTS]
    if not any(file.exists() for file in files):
        title = f"{experiment.number}, {protocol} split"
        console.say(f"{title}: {dataset.manifest['images']} images; run {run}")
        try:
            result = _train_run(settings, dataset, run, title, console, resume=begun)
        except Interrupted:
            raise UserError("Stopped, with everything saved; give the same command again to go on.") from None
        _write(files[0], result)
    # Read also where it was just written: with lists and not tuples, as the next call reads it.
    return json.loads(next(file for file in files if file.exists()).read_text(encoding="utf-8"))


def _train_run(
    settings: Config, dataset: Dataset, run: Path, title: str, console: Console, *, resume: bool
) -> dict[str, Any]:
    """Train the network, or the networks, of a run."""
    folds, ensemble = settings.train.cv, settings.train.ensemble > 1
    with console.training(settings.train.epochs) as progress:
        if not folds and not ensemble:
            result = train(settings, dataset, run, resume=resume, progress=progress(title), stop=console.stop)
            return {"metrics": result.metrics.as_dict(), **_training([result])}
        by_name = lambda name: progress(f"{title}, {name}")  # noqa: E731
        joint = train_networks(settings, dataset, run, resume=resume, progress=by_name, stop=console.stop)
    networks = {name: result.metrics for name, result in joint.networks.items()}
    members = joint.folds if folds else networks
    return {
        "metrics": joint.metrics.as_dict(),
        "members": {name: metrics.as_dict() for name, metrics in members.items()},
        "spread": _spread(members),
        **({"alone": {"networks": len(networks), "spread": _spread(networks)}} if ensemble else {}),
        **_training(list(joint.networks.values())),
    }


def _spread(networks: Mapping[str, AnyMetrics]) -> dict[str, Any]:
    return {name: spread._asdict() for name, spread in mean_and_sd(list(networks.values())).items()}


def _training(networks: Sequence[Result]) -> dict[str, Any]:
    """Parameters, curves (their means over several networks), device and time of training."""
    histories = [network.history for network in networks]
    return {
        "parameters": networks[0].parameters,
        "history": plots.mean_history(histories),
        "device": device_name(),
        "images_per_second": median(record["images_per_second"] for history in histories for record in history),
        # To the end of the last epoch, with compiling and with testing after each.
        "seconds": [history[-1]["seconds"] for history in histories],
    }
