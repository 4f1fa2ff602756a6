"""The study's experiments: TOML files that say which images, which settings, and what the study reports of them."""

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
"""How images are held out, and what ``prepare --group-by`` calls it: by a random split of the images, as in the study, or
by one of the patients."""


@dataclass(frozen=True)
class ImageSelection:
    """The images of an experiment; the names are those of ``covidjax.data.prepare.Options``."""

    sources: tuple[str, ...] = ()
    """Subfolders of the collections' folder."""
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    image_size: int = 224
    lungs: Literal["none", "crop", "mask"] = "none"


@dataclass(frozen=True)
class Reported:
    """What the study reports of an experiment; what it does not report is 0 or empty."""

    images: int = 0
    held_out: int = 0
    """How many of the images."""
    minutes: float = 0.0
    """Duration of training, on one V100."""
    accuracy: float = 0.0
    classes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Class → precision, recall, F1."""
    note: str = ""
    """A remark on these numbers."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table of the study: the content of its TOML file."""

    name: str
    """The file's: ``table1`` …"""
    settings: Config = field(default_factory=Config)
    title: str
    about: str
    films: ImageSelection = field(default_factory=ImageSelection)
    study: Reported = field(default_factory=Reported)
    times_of: tuple[str, ...] = ()
    """Of a table of times: the experiments that are timed. It has no images of its own."""

    @property
    def number(self) -> str:
        """What the table is called."""
        return f"Table {self.name.removeprefix('table')}"


def folder() -> Path:
    """The folder of the experiments, of the installed package or of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / "report"
    return installed if installed.is_dir() else package.parent / "configs" / "report"


def load(
    only: Sequence[str] = (), epochs: int | None = None, where: Path | None = None, recipe: Path | None = None
) -> dict[str, Experiment]:
    """The experiments by name.

    Args:
      only: names; all if empty. A table of times brings those that it times with it.
      epochs: instead of each one's own.
      where: folder of the TOML files, if not the package's.
      recipe: a TOML file of settings instead of the defaults, where an experiment has none of its own.

    Raises:
      UsageError: an unknown name, or an invalid file.
    """
    files = {path.stem: path for path in sorted((where or folder()).glob("*.toml"))}
    for name in only:
        if name not in files:
            raise UsageError(f"There is no experiment {name!r}; choose from {', '.join(files)}.")
    experiments = {name: _read(path, epochs, recipe) for name, path in files.items()}
    chosen = set(only or experiments)
    chosen |= {timed for name in chosen for timed in experiments[name].times_of}
    return {name: experiment for name, experiment in experiments.items() if name in chosen}


def _read(path: Path, epochs: int | None, recipe: Path | None) -> Experiment:
    table = read_toml(path)
    overrides = _flat(table.pop("settings", {}))
    if epochs is not None:
        overrides["train.epochs"] = epochs
    experiment: Experiment = from_table(Experiment, table | {"name": path.stem}, where=str(path))
    if bool(experiment.times_of) == bool(experiment.films.sources):
        raise UsageError(f"{path}: an experiment has either films.sources or times_of; give it one of them.")
    return dataclasses.replace(experiment, settings=load_config(recipe, (), overrides))


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
