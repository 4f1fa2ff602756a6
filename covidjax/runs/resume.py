"""Which run ``train --resume`` goes on with, and whether it may."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from covidjax.config import Config
from covidjax.errors import UsageError, UserError
from covidjax.files import explaining
from covidjax.runs import folder, load

LOG = logging.getLogger(__name__)


def new_folder(model: str) -> Path:
    """Make ``runs/<model>-<time>``, a folder of its own also for two commands of the same second.

    Raises:
      UserError: it cannot be made.
    """
    name = f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        run = Path("runs", name if number == 1 else f"{name}-{number}")
        with explaining(run, "name a folder for the run with --run", "made"), contextlib.suppress(FileExistsError):
            run.mkdir(parents=True)
            return run
    raise AssertionError  # the count has no end


def find(
    run: Path | None, settings: Config, flags: Collection[str], *, changed: bool, given: Collection[str] = ()
) -> tuple[Path, Config, bool]:
    """The run to resume, its settings, and whether it was begun at all.

    Args:
      run: its folder; the newest run under ``runs/`` if None.
      settings: what the command line amounts to.
      flags: names of the settings that options gave.
      changed: whether any setting was given, by an option, an override or a file.
      given: the names of those settings.

    Raises:
      UserError: nothing to resume, or other settings than the run was begun with.
    """
    run = run or load.newest_run(usable=False)
    if run is None:
        raise UserError("There is no run under runs/ to resume; name one with --run, or leave --resume out.")
    if not (run / folder.CONFIG).exists():
        if not changed:
            raise UsageError(f"{run} holds no run to resume; check its name, or give the settings of a new one.")
        LOG.warning("%s holds no run yet: it starts at the first step.", run)
        return run, settings, False
    saved = folder.read_run(run).config
    if "data.path" in flags:  # a dataset that was moved: its content is checked against the run
        saved = replace(saved, data=replace(saved.data, path=settings.data.path))
    elif not flags:
        settings = replace(settings, data=replace(settings.data, path=saved.data.path))
    if settings.data.val_fold is None:  # the dataset may have brought one, with its publisher's split
        settings = replace(settings, data=replace(settings.data, val_fold=saved.data.val_fold))
    if saved.train.init:  # the network's settings are those of the weights, but for what was given
        own = {key: getattr(settings.model, key) for _, _, key in (name.partition("model.") for name in given) if key}
        settings = replace(settings, model=replace(saved.model, **own))
    if changed and set(flags) != {"data.path"} and settings != saved:
        raise UsageError(f"{run} was begun with other settings; resume it without giving any, or start a new run.")
    return run, saved, True


def check_dataset(run: Path, settings: Config, fingerprint: str) -> None:
    """Raises UserError where a dataset is not the one that a run was begun with."""
    if fingerprint != folder.read_run(run).dataset:
        remedy = "give it back, or start a new run"
        raise UserError(f"{settings.data.path} is not the dataset that {run} was trained on; {remedy}.")
