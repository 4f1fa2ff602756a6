"""Training from settings to a report: the tables, the JSON and the ``report/`` folder of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.data.holdout import hold_out
from covidjax.metrics import mean_and_sd
from covidjax.report import plots, tables
from covidjax.report.html import About
from covidjax.runs import folder
from covidjax.timing import Timing
from covidjax.training import claim, mask_report, probe, reports, run_trust
from covidjax.training.cross_validation import configs_of, train_networks
from covidjax.training.gate import write_gates
from covidjax.training.loop import Progress, Result, train
from covidjax.training.predictions import concatenate
from covidjax.training.run_trust import Findings, HeldOut

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
      options: ``resume``, ``stop`` and ``starting`` of ``loop.train``.

    Raises:
      UserError: see ``loop.train``.
    """
    if config.train.cv or config.train.ensemble > 1:
        return _train_several(config, dataset, run, note, progress=progress, **options)
    result = train(config, dataset, run, progress=progress(""), **options)
    write_gates(run, {"": result}, dataset)
    found = _finish(run, dataset, config, {kind: {"": each} for kind, each in result.held_out.items()}, note)
    parts = [*_result_tables(result, config, note), *found.tables, _timing_table(result.timing)]
    _write(run, dataset, config, result, parts, note, more=found.details, alone=True)
    return parts, _as_dict(run, result, note) | found.details


def _train_several(config: Config, dataset: Dataset, run: Path, note: str, **options: Any) -> Summary:
    whole = train_networks(config, dataset, run, **options)
    for name, network in configs_of(config, dataset).items():
        result = whole.networks[name]
        _write(run / name, dataset, network, result, _result_tables(result, network, note), note, more={}, alone=False)
    write_gates(run, whole.networks, dataset)
    alone = {name: result.metrics for name, result in whole.networks.items()}
    below, several = f"\n{note}" * bool(note), config.train.ensemble > 1
    parts = []
    if config.train.cv:
        kinds = f"{config.train.cv_by}s"
        title = f"All {kinds}, every image by the network{'s' * several} that it was held out from"
        parts.append(tables.networks_table(whole.folds, kinds.capitalize() + ", mean probabilities" * several + below))
    else:
        held_out = f"Source {source}" if (source := config.data.test_source) else f"Test fold {config.data.test_fold}"
        title = f"{held_out}, mean probabilities of the networks"
    if several:
        parts.append(tables.networks_table(alone, "Networks, each alone" + below))
    found = _finish(run, dataset, config, whole.held_out, note)
    parts += [*tables.result_tables(whole.metrics, title + below), *found.tables, _timing_table(whole.timing)]
    spread = mean_and_sd(list((whole.folds if config.train.cv else alone).values()))
    details = {
        "spread": {name: figure._asdict() for name, figure in spread.items()},
        "folds": {name: metrics.as_dict() for name, metrics in whole.folds.items()},
        "members": {name: _as_dict(run / name, result, note) for name, result in whole.networks.items()},
        **found.details,
    }
    history = plots.mean_history([result.history for result in whole.networks.values()])
    left_out = list(dict.fromkeys(result.left_out for result in whole.networks.values() if result.left_out))
    about = _about(run, dataset, title, note, left_out)
    held_out = concatenate(list(whole.predictions.values()))
    reports.write(
        run / "report", whole.metrics, held_out, dataset, about=about, tables=parts, history=history, more=details
    )
    one = next(iter(whole.networks.values()))._replace(left_out=" ".join(left_out))
    claim.write(run / "report", folder.read_run(run), dataset, whole.metrics.as_dict(), one, note)
    summary = {"run": str(run), "note": note, "metrics": whole.metrics.as_dict(), **details, **_init(run, left_out)}
    return parts, summary | {"seconds": whole.timing.seconds, "images": whole.timing.images}


def _finish(run: Path, dataset: Dataset, config: Config, held_out: HeldOut, note: str) -> Findings:
    """What the run learns of how far it can be trusted."""
    if dataset.masks:
        return Findings([], {})
    return run_trust.finish(run, config, dataset.preprocess.classes, held_out, f"\n{note}" * bool(note))


def _write(
    run: Path,
    dataset: Dataset,
    config: Config,
    result: Result,
    parts: list[Any],
    note: str,
    *,
    more: Mapping[str, Any],
    alone: bool,
) -> None:
    """Write the report of one network: of one of several the page and its figures are those of all."""
    report, title = run / "report", _title(result, config)
    reports.write(
        report,
        result.metrics,
        result.predictions,
        dataset,
        about=_about(run, dataset, title, note, [result.left_out], _probe_of(result)),
        tables=parts,
        history=result.history,
        more=more,
        page=alone,
    )
    claim.write(report, folder.read_run(run), dataset, result.metrics.as_dict(), result, note)
    if not dataset.masks:
        run_trust.write_validation(run, result.held_out, dataset.preprocess.classes)
    else:
        held_out = hold_out(dataset, config.data, folder.read_initial_trained_on(run)).test
        mask_report.write(report, run, dataset, held_out, result.predictions.outputs, note)


def _result_tables(result: Result, config: Config, note: str) -> list[Any]:
    return list(tables.result_tables(result.metrics, _title(result, config) + f"\n{note}" * bool(note)))


def _title(result: Result, config: Config) -> str:
    held_out = f"Source {source}" if (source := config.data.test_source) else f"Test fold {config.data.test_fold}"
    return f"{held_out}, {result.checkpoint} checkpoint"


def _about(
    run: Path, dataset: Dataset, title: str, note: str, left_out: Sequence[str], probes: Mapping[str, Any] | None = None
) -> About:
    settings = folder.read_run(run)
    pixels, lungs = settings.preprocess.image_size, settings.preprocess.lungs
    images = f"images of {pixels} pixels, {'whole' if lungs == 'none' else f'lungs {lungs}'}"
    model = f"{settings.config.model.name}, trained on {dataset.path.name}; {images}."
    began = [f"It began with a probe: {probe.describe(each)}." for each in (probes or {}).values()]
    facts = [model, settings.init.sentence, *began, f"{title}.", *left_out]
    return About(f"Run {run.name}", note, [*filter(None, facts)], settings.text())


def _init(run: Path, left_out: Sequence[str]) -> dict[str, Any]:
    """For JSON, of a run that started from other weights."""
    init = folder.read_run(run).init
    return {"init": {**dataclasses.asdict(init), "left_out": [*filter(None, left_out)]}} if init.source else {}


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
        **_init(run, [result.left_out]),
        **_probe_of(result),
    }


def _probe_of(result: Result) -> dict[str, Any]:
    """What the log says of the probe that training began with, if it did."""
    return {name: record[name] for name in ("probe",) for record in result.history[:1] if name in record}
