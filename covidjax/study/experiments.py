"""The study's experiments: TOML files that say which films, which settings, and what the study found with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from covidjax.config import Config, load_config
from covidjax.errors import UsageError
from covidjax.toml import from_table, read_toml

PROTOCOLS = {"random": "none", "patient": "patient"}
"""How films are held out, and what ``prepare --group-by`` calls it: by a random split of the images, as in the study, or of
the patients."""


@dataclass(frozen=True)
class ImageSelection:
    """What a dataset is prepared from; the names are those of ``covidjax.prepare.Options``."""

    sources: tuple[str, ...] = ()
    """Subfolders of the data's folder."""
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    image_size: int = 224
    lungs: Literal["none", "crop", "mask"] = "none"


@dataclass(frozen=True)
class Reported:
    """What the study reports of an experiment; what it does not report is 0 or empty."""

    images: int = 0
    held_out: int = 0
    """Of the images."""
    minutes: float = 0.0
    """Of training, on one V100."""
    accuracy: float = 0.0
    classes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Class → precision, recall, F1."""
    note: str = ""
    """What else is to be known of these figures."""


@dataclass(frozen=True)
class Experiment:
    """One table of the study."""

    name: str
    """Of its file: ``table1`` …"""
    title: str
    about: str
    films: ImageSelection
    settings: Config
    study: Reported
    times_of: tuple[str, ...] = ()
    """Of a table of times: the experiments that are timed. It has no films of its own."""

    @property
    def number(self) -> str:
        """What the table is called."""
        return f"Table {self.name.removeprefix('table')}"


@dataclass(frozen=True)
class _File:
    title: str
    about: str
    films: ImageSelection = field(default_factory=ImageSelection)
    study: Reported = field(default_factory=Reported)
    times_of: tuple[str, ...] = ()


def folder() -> Path:
    """The folder of the experiments, of the installed package or of the checkout."""
    here = Path(__file__).parents[1]
    installed = here / "configs" / "report"
    return installed if installed.is_dir() else here.parent / "configs" / "report"


def load(
    only: Sequence[str] = (), epochs: int | None = None, where: Path | None = None, recipe: Path | None = None
) -> dict[str, Experiment]:
    """The experiments by name.

    Args:
      only: names; all if empty. A table of times brings those that it times with it.
      epochs: instead of each one's own.
      where: folder of the TOML files, if not the package's.
      recipe: a TOML file of settings that stand instead of the defaults, where an experiment has none of its own.

    Raises:
      UsageError: a name that there is not, or a file that is not right.
    """
    files = {path.stem: path for path in sorted((where or folder()).glob("*.toml"))}
    for name in only:
        if name not in files:
            raise UsageError(f"There is no experiment {name!r}; choose from {', '.join(files)}.")
    found = {name: _read(name, path, epochs, recipe) for name, path in files.items()}
    wanted = set(only or found)
    wanted |= {timed for name in wanted for timed in found[name].times_of}
    return {name: experiment for name, experiment in found.items() if name in wanted}


def _read(name: str, path: Path, epochs: int | None, recipe: Path | None) -> Experiment:
    table = read_toml(path)
    values = _flat(table.pop("settings", {}))
    if epochs is not None:
        values["train.epochs"] = epochs
    settings = load_config(recipe, (), values)
    file: _File = from_table(_File, table, where=str(path))
    if bool(file.times_of) == bool(file.films.sources):
        raise UsageError(f"{path}: an experiment has either films.sources or times_of; give it one of them.")
    return Experiment(name, file.title, file.about, file.films, settings, file.study, file.times_of)


def describe_recipe(recipe: Path) -> str:
    """The settings of a recipe, in words."""
    return ", ".join(f"{key} {value}" for key, value in _flat(read_toml(recipe)).items())


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def for_rehearsal(experiment: Experiment) -> Experiment:
    """The experiment with images of half the side, for a quick rehearsal."""
    films = experiment.films
    return dataclasses.replace(experiment, films=dataclasses.replace(films, image_size=max(films.image_size // 2, 32)))
