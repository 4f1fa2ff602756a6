"""Training from settings to a report: the tables, the JSON and the ``report/`` folder of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.metrics import mean_and_sd, mean_history
from covidjax.report import run_report, tables
from covidjax.timing import Timing
from covidjax.training import claim, mask_report
from covidjax.training.cross_validation import network_configs, train_networks
from covidjax.training.loop import Progress, Result, train

Summary = tuple[list[Any], dict[str, Any]]
"""Tables for the terminal, and what ``--json`` prints."""


def train_and_report(
    config: Config, dataset: Dataset, run: Path, note: str, *, progress: Callable[[str], Progress], **options: Any
) -> Summary:
    """Train a single run, a cross-validation or an ensemble, and write its reports.

    Args:
      config: all settings.
      dataset: what to train on.
      run: its folder.
      note: stands in every table and figure, such as that the images are synthetic.
      progress: the one to tell, by the network's name, which is empty for a single run.
      options: ``resume`` and ``stop`` of ``loop.train``.

    Raises:
      UserError: see ``loop.train``.
    """
    if config.train.cv or config.train.ensemble > 1:
        return _train_several(config, dataset, run, note, progress=progress, **options)
    result = train(config, dataset, run, progress=progress(""), **options)
    parts = [*_result_tables(result, config, note), _timing_table(result.timing)]
    _write(run, dataset, config, result, parts, note)
    return parts, _as_dict(run, result, note)


def _train_several(config: Config, dataset: Dataset, run: Path, note: str, **options: Any) -> Summary:
    whole = train_networks(config, dataset, run, **options)
    for name, network in network_configs(config, dataset.folds).items():
        result = whole.networks[name]
        _write(run / name, dataset, network, result, _result_tables(result, network, note), note)
    alone = {name: result.metrics for name, result in whole.networks.items()}
    below, several = f"\n{note}" * bool(note), config.train.ensemble > 1
    parts = []
    if config.train.cv:
        title = f"All folds, every image by the network{'s' * several} that it was held out from"
        parts.append(tables.networks_table(whole.folds, "Folds" + ", mean probabilities" * several + below))
    else:
        title = f"Test fold {config.data.test_fold}, mean probabilities of the networks"
    if several:
        parts.append(tables.networks_table(alone, "Networks, each alone" + below))
    parts += [*tables.result_tables(whole.metrics, title + below), _timing_table(whole.timing)]
    spread = mean_and_sd(list((whole.folds if config.train.cv else alone).values()))
    details = {
        "spread": {name: figure._asdict() for name, figure in spread.items()},
        "folds": {name: metrics.as_dict() for name, metrics in whole.folds.items()},
        "members": {name: _as_dict(run / name, result, note) for name, result in whole.networks.items()},
    }
    history = mean_history([result.history for result in whole.networks.values()])
    run_report.write(run / "report", whole.metrics, history, parts, note, details)
    claim.write(run / "report", config, dataset, whole.metrics.as_dict(), next(iter(whole.networks.values())), note)
    summary = {"run": str(run), "note": note, "metrics": whole.metrics.as_dict(), **details}
    return parts, summary | {"seconds": whole.timing.seconds, "images": whole.timing.images}


def _write(run: Path, dataset: Dataset, config: Config, result: Result, parts: list[Any], note: str) -> None:
    """Write the report of one network."""
    run_report.write(run / "report", result.metrics, result.history, parts, note)
    claim.write(run / "report", config, dataset, result.metrics.as_dict(), result, note)
    if dataset.masks:
        mask_report.write(run / "report", run, dataset, config.data.test_fold, result.predictions.outputs, note)


def _result_tables(result: Result, config: Config, note: str) -> list[Any]:
    title = f"Test fold {config.data.test_fold}, {result.checkpoint} checkpoint" + f"\n{note}" * bool(note)
    return list(tables.result_tables(result.metrics, title))


def _timing_table(timing: Timing) -> Any:
    return tables.timing_table(timing.stages(), "checkpoint: time that training waited for it")


def _as_dict(run: Path, result: Result, note: str) -> dict[str, Any]:
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
