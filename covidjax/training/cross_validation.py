"""Several networks of one run: the folds or sources of a cross-validation, the seeds of an ensemble, or both, one after
another."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from covidjax import device, metrics
from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import check_source, holdout_name, source_names
from covidjax.inference.forward import ensemble_mean
from covidjax.runs import folder
from covidjax.runs.starting import StartingPoint
from covidjax.timing import Timing
from covidjax.training.engine import Engine
from covidjax.training.loop import Progress, Result, create_run, fit, open_recorder
from covidjax.training.plan import make_plan
from covidjax.training.predictions import Predictions, concatenate
from covidjax.training.run_trust import HeldOut, inherit, temperature_at_home


class CrossValidation(NamedTuple):
    """What a cross-validation or an ensemble amounts to."""

    networks: dict[str, Result]
    """By the name of its folder."""
    folds: dict[str, metrics.AnyMetrics]
    """On each test fold or test source, by its network, or by the mean probabilities of its networks."""
    predictions: dict[str, Predictions]
    """Of each test fold or test source, likewise; calibrated where the run is."""
    held_out: HeldOut
    """Without calibration."""
    metrics: metrics.AnyMetrics
    """On the images of all of them."""
    timing: Timing
    """Of this call."""


def network_configs(config: Config, folds: int, sources: Sequence[str] = ()) -> dict[str, Config]:
    """The settings of each network of a cross-validation or an ensemble, by the name of its folder; empty for a single run.

    Args:
      config: of the whole; of a validation fold its distance from the test fold is kept, round and round the folds.
      folds: of the dataset.
      sources: of the dataset, each of which is left out once with ``train.cv_by`` "source".
    """
    train, data = dataclasses.replace(config.train, cv=False, ensemble=1), config.data
    held_out, seeds = {"": data}, {"": config.seed}
    if config.train.cv and config.train.cv_by == "source":
        by_folder = _source_folders(sources).items()
        held_out = {name: dataclasses.replace(data, test_source=source) for name, source in by_folder}
    elif config.train.cv:
        apart = None if data.val_fold is None else data.val_fold - data.test_fold
        val_folds = [None if apart is None else (fold + apart) % folds for fold in range(folds)]
        held_out = {
            f"fold{fold}": dataclasses.replace(data, test_fold=fold, val_fold=val) for fold, val in enumerate(val_folds)
        }
    if config.train.ensemble > 1:
        seeds = {f"member{number}": (config.seed + number) % 2**32 for number in range(config.train.ensemble)}
    configs = {
        "-".join(filter(None, (fold, member))): dataclasses.replace(config, seed=seed, data=data, train=train)
        for fold, data in held_out.items()
        for member, seed in seeds.items()
    }
    return configs if len(configs) > 1 else {}


def configs_of(config: Config, dataset: Dataset) -> dict[str, Config]:
    """``network_configs`` of a run on this dataset.

    Raises:
      UserError: a single source to be left out.
    """
    sources = source_names(dataset)
    if config.train.cv and config.train.cv_by == "source":
        check_source(dataset, sources[0])
    return network_configs(config, dataset.folds, sources)


def _source_folders(sources: Sequence[str]) -> dict[str, str]:
    """The source by the name of its network's folder: what of the source's name any file system takes, none twice."""
    folders: dict[str, str] = {}
    for source in sources:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")[:60].lower() or "unnamed"
        names = (f"source-{slug}" + f"-{number}" * (number > 1) for number in itertools.count(1))
        folders[next(name for name in names if name not in folders)] = source
    return folders


@device.own_flags()
def train_networks(
    config: Config,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    progress: Callable[[str], Progress],
    stop: Callable[[], bool] = lambda: False,
    starting: StartingPoint | None = None,
) -> CrossValidation:
    """Train every network of a cross-validation or an ensemble, each in a folder of its own that is a run by itself.

    Args:
      config: with ``train.cv`` or ``train.ensemble``.
      dataset: what to train on.
      run: a folder for ``config.toml`` and the networks' folders, ``fold0`` …, ``source-NAME`` …, ``member0`` … or
        ``fold0-member0`` ….
      resume: go on from the last checkpoints; what has been trained to its end is only tested again.
      progress: the one to tell, by what the network is called, such as ``fold 2/5``.
      stop, starting: as for ``loop.train``; every network starts from the same weights.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, folds that there are not, a checkpoint that does not fit.
    """
    began, timing = time.perf_counter(), Timing()
    device.start()
    known = starting.trained_on if starting else ()
    plans = {name: make_plan(network, dataset, known) for name, network in configs_of(config, dataset).items()}
    if not resume:
        create_run(run, config, dataset, starting)
    kinds = [config.train.cv_by] * config.train.cv + ["member"] * (config.train.ensemble > 1)
    kind = "network" if len(kinds) > 1 else kinds[0]
    with folder.lock(run):
        inherit(run, config, dataset.preprocess)
        for name, plan in plans.items():
            if not (run / name / folder.CONFIG).exists():
                create_run(run / name, plan.config, dataset, starting)
            inherit(run / name, plan.config, dataset.preprocess)
        engine = Engine(config, dataset, timing, starting)
        results = {}
        for number, (name, plan) in enumerate(plans.items(), 1):
            with open_recorder(plan, run / name, timing, run) as recorder:
                shown = progress(f"{kind} {number}/{len(plans)}")
                results[name] = fit(plan, engine, recorder, shown, stop)
    timing.add("wall", began)
    held_out = _held_out({name: plan.config for name, plan in plans.items()}, results)
    predictions = dict(held_out["test"])
    if not dataset.masks:
        temperature = temperature_at_home(run, config)
        predictions = {fold: each.calibrated(temperature) for fold, each in predictions.items()}
    measure = functools.partial(engine.task.measure, classes=engine.classes)
    return CrossValidation(
        networks=results,
        folds={fold: measure(of_fold) for fold, of_fold in predictions.items()},
        predictions=predictions,
        held_out=held_out,
        metrics=measure(concatenate(list(predictions.values()))),
        timing=timing,
    )


def _held_out(configs: Mapping[str, Config], results: Mapping[str, Result]) -> HeldOut:
    """What all networks said of what they hold out, by kind and by fold or source."""
    found = {}
    for kind in ("test", "val", "in_source"):
        chosen = [name for name, result in results.items() if kind in result.held_out]
        found[kind] = predictions_by_fold(
            [configs[name] for name in chosen], [results[name].held_out[kind] for name in chosen]
        )
    return found


def predictions_by_fold(configs: Sequence[Config], networks: Sequence[Predictions]) -> dict[str, Predictions]:
    """What networks predict of their test folds, by fold, or of their test sources, by source: of several networks the mean
    probabilities."""
    by_fold: dict[str, list[Predictions]] = {}
    for config, predictions in zip(configs, networks, strict=True):
        by_fold.setdefault(holdout_name(config.data), []).append(predictions)
    return {fold: ensemble(predictions) for fold, predictions in by_fold.items()}


def ensemble(networks: Sequence[Predictions]) -> Predictions:
    """Predictions of the same examples by several classifiers: the logarithms of their mean probabilities."""
    if len(networks) == 1:
        return networks[0]
    logits = np.stack([network.outputs for network in networks])
    return networks[0]._replace(outputs=np.asarray(ensemble_mean(logits)))
