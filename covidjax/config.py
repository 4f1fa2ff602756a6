"""Every default of the project, once: frozen dataclasses, TOML files that hold only differences, ``key=value`` overrides.

A key that is not a field here is an error, in a file as on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

import tomli_w

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")

MASKS = ("fields", "lungs")
"""What lung masks show. ``fields``: the lungs as far as heart and diaphragm do not hide them (Montgomery, Shenzhen, the
phantoms). ``lungs``: also what lies behind the heart (V7 Labs' masks of ieee8023). A network learns each as an output of
its own, from the films that have it."""


class UserError(Exception):
    """An expected failure. The message is one sentence that says what is wrong and what to do about it."""


class UsageError(UserError):
    """Something that was asked for cannot be: a setting that does not exist, a value of the wrong kind, a missing path."""


class RadiographError(UserError):
    """A film that cannot be read; the message says why."""


def printable(text: str) -> str:
    """Text that any terminal and any file takes: bytes of a file's name that are no UTF-8 stand as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_LONGEST_TOML = 2**14
"""Most bytes of a file of settings: of a key with 50,000 dots tomllib makes a minute and a half."""


@dataclass(frozen=True)
class Preprocess:
    """What is done to a film before a model sees it: the same in ``prepare`` and in ``score``."""

    image_size: int = 224
    """Height and width in pixels after resizing."""
    lungs: Literal["none", "crop", "mask"] = "none"
    """What is done with the lungs: ``none`` keeps the whole film, ``crop`` a square around the box of both lungs,
    ``mask`` the box, black outside the lungs; see ``lungs.framed``."""
    classes: tuple[str, ...] = CLASSES
    """Class names, in the order of the labels; of films with lung masks, the kinds of mask."""
    invert: Literal["auto", "never"] = "auto"
    """``auto`` turns negatives into positives; ``never`` takes films as they are."""


@dataclass(frozen=True)
class Limits:
    """What one file may take; a file that takes more is an error of that file."""

    megapixels: float = 200.0
    """The largest detectors give some 20; more than ten times that is a mistake or a bomb."""
    megabytes: float = 512.0
    """Of the file, and of what a compressed file or archive holds of it; 200 megapixels of 16 bits are 400."""
    seconds: float = 60.0
    """For reading, decoding and resizing."""

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)


@dataclass(frozen=True)
class DataConfig:
    path: str = "sample"
    """A prepared dataset, or ``sample`` for the built-in synthetic one."""
    test_fold: int = 0
    """The fold that is held out of training."""
    val_fold: int | None = None
    """A second fold held out of training, which chooses the best checkpoint."""


@dataclass(frozen=True)
class ModelConfig:
    name: Literal["darkcovidnet", "cnn13", "lung-unet"] = "darkcovidnet"
    """A classifier, or the lung segmenter."""
    channels: Literal[1, 3] = 1
    """Input channels; 3 repeats the gray image, as the paper did."""
    width: int = 16
    """Channels of the first block of ``cnn13``; the last two have eight times as many."""
    dropout: float = 0.5
    """Share of the last map of ``cnn13`` that is set to zero in training."""
    views: Literal[1, 10] = 1
    """Of a film that is classified: itself, or ten, mirrored and shifted, whose mean logits count."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to each training image; 0 or ``false`` switches one off."""

    flip: bool = True
    """Mirror left to right, half the time."""
    rotation: float = 10.0
    """Greatest rotation, degrees either way."""
    shift: float = 0.05
    """Greatest shift in each direction, as a share of the image's side."""
    zoom: float = 0.1
    """Greatest change of scale either way: 0.1 is ×1/1.1 to ×1.1."""
    brightness: float = 0.1
    """Greatest change of brightness either way, as a share of full white."""
    contrast: float = 0.1
    """Greatest change of contrast either way: 0.1 is ×1/1.1 to ×1.1."""


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 3e-3
    """The peak of the one-cycle schedule, or the constant rate."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    label_smoothing: float = 0.0
    averaging: float = 0.0
    """Decay, per step, of the running mean of the weights that is tested and used; 0 uses the weights as they are."""
    refresh: bool = False
    """Take the batch statistics of the weights that are kept anew, from the training images as they are in testing."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs each class's loss by the inverse of its share of the training images."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache: Literal["auto", "device", "stream"] = "auto"
    """``device`` keeps the training images in the device's memory; ``stream`` reads them batch by batch."""
    checkpoint_seconds: float = 10.0
    """Least time between two checkpoints, also within an epoch; the last epoch always saves one."""
    cv: bool = False
    """Train a network for every fold of the dataset, which is that one's test fold."""
    ensemble: int = 1
    """Train so many networks, with seeds one after another from ``seed``, or with ``cv`` so many for every fold; their mean
    probabilities count."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Whether the networks of ``cv`` or ``ensemble`` are trained as one program; ``auto`` is ``no``, which is as fast or
    faster."""


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def members(config: Config, folds: int) -> dict[str, Config]:
    """The settings of each network of a cross-validation or an ensemble, by the name of its folder; empty for a single run.

    Args:
      config: of the whole; of a validation fold its distance from the test fold is kept, round and round the folds.
      folds: of the dataset.
    """
    train, data = dataclasses.replace(config.train, cv=False, ensemble=1), config.data
    held_out, seeds = {"": data}, {"": config.seed}
    if config.train.cv:
        apart = None if data.val_fold is None else data.val_fold - data.test_fold
        val_folds = [None if apart is None else (fold + apart) % folds for fold in range(folds)]
        held_out = {
            f"fold{fold}": dataclasses.replace(data, test_fold=fold, val_fold=val) for fold, val in enumerate(val_folds)
        }
    if config.train.ensemble > 1:
        seeds = {f"member{number}": (config.seed + number) % 2**32 for number in range(config.train.ensemble)}
    each = {
        "-".join(filter(None, (fold, member))): dataclasses.replace(config, seed=seed, data=films, train=train)
        for fold, films in held_out.items()
        for member, seed in seeds.items()
    }
    return each if len(each) > 1 else {}


@dataclass(frozen=True)
class Run:
    """What ``config.toml`` of a run holds: its settings and the preprocessing of the dataset it was trained on."""

    config: Config
    preprocess: Preprocess
    dataset: str = ""
    """Fingerprint of the dataset, so that its held-out fold is known again."""
    segmenter: str = ""
    """Digest of the weights that found the lungs in the dataset; empty for whole films."""

    def save(self, path: Path) -> None:
        """Write as TOML, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(self.text())
        partial.replace(path)

    def text(self) -> str:
        """As TOML; ``None`` is an absent key."""
        return tomli_w.dumps(_without_none(dataclasses.asdict(self)))

    @classmethod
    def parse(cls, text: str, where: str) -> Run:
        """What ``text`` gave. Raises UserError where it is damaged; ``where`` names its file."""
        try:
            return build(cls, tomllib.loads(text), where=where)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{where} is damaged ({error}); put back the file as it was written.") from error

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what ``save`` wrote. Raises UserError where the file is missing or damaged."""
        if not path.is_file():
            raise UserError(f"{path.parent} is not a run: it has no {path.name}; name a folder that `covidjax train` made.")
        return build(cls, read_toml(path), where=str(path))


def load_config(
    file: Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] = types.MappingProxyType({})
) -> Config:
    """Defaults, changed by a TOML file, changed by ``section.key=value`` overrides (values as in TOML, or bare text),
    changed by values for ``section.key`` names.

    Raises:
      UsageError: an unknown key, a value of the wrong kind, a file that is not TOML.
    """
    table: dict[str, Any] = read_toml(file) if file else {}
    changes: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, such as train.epochs=20, not {override!r}.")
        changes.append((key.strip(), _value(text.strip())))
    for key, value in (*changes, *values.items()):
        *sections, name = key.split(".")
        target = table
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"{key} is no setting: {section} has no keys below it.")
        target[name] = value
    config = build(Config, table, where=str(file) if file else "--set")
    _check(config)
    return config


def _check(config: Config) -> None:
    train = config.train
    for name, good, wanted in (
        ("model.width", config.model.width >= 1, "at least 1"),
        ("model.dropout", 0 <= config.model.dropout < 1, "at least 0 and below 1"),
        ("train.epochs", train.epochs >= 1, "at least 1"),
        ("train.batch_size", train.batch_size >= 1, "at least 1"),
        ("train.learning_rate", 0 < train.learning_rate < inf, "above 0 and finite"),
        ("train.weight_decay", 0 <= train.weight_decay < inf, "at least 0 and finite"),
        ("train.checkpoint_seconds", train.checkpoint_seconds >= 0, "at least 0"),
        ("train.ensemble", train.ensemble >= 1, "at least 1"),
        ("train.averaging", 0 <= train.averaging < 1, "at least 0 and below 1"),
        ("train.label_smoothing", 0 <= train.label_smoothing < 1, "at least 0 and below 1"),
        ("data.test_fold", config.data.test_fold >= 0, "at least 0"),
        ("augment.shift", 0 <= config.augment.shift < 1, "at least 0 and below 1"),
        ("augment.rotation", 0 <= config.augment.rotation <= 180, "from 0 to 180"),
        ("augment.zoom", 0 <= config.augment.zoom < inf, "at least 0 and finite"),
        ("augment.brightness", 0 <= config.augment.brightness <= 1, "from 0 to 1"),
        ("augment.contrast", 0 <= config.augment.contrast < inf, "at least 0 and finite"),
        ("seed", 0 <= config.seed < 2**32, "from 0 to 4294967295"),
    ):
        if not good:
            raise UsageError(f"{name} must be {wanted}.")
    if config.model.name == "lung-unet" and train.ensemble > 1:
        raise UsageError("An ensemble of segmenters is not to be had; leave train.ensemble out.")
    if config.model.name == "lung-unet" and config.model.channels != 1:
        raise UsageError("lung-unet takes gray images; leave model.channels at 1.")
    if config.model.name == "lung-unet" and config.model.views != 1:
        raise UsageError("lung-unet looks at a film once; leave model.views at 1.")
    for name in ("width", "dropout"):
        if config.model.name != "cnn13" and getattr(config.model, name) != getattr(ModelConfig(), name):
            raise UsageError(f"model.{name} is of cnn13 alone, and the model is {config.model.name}; leave it out.")


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError where it cannot be read or is no TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_TOML + 1)
        if len(data) > _LONGEST_TOML:
            raise UsageError(f"{path} is longer than any settings are; check its name.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check its name.") from error
    except RecursionError:
        raise UsageError(f"{path} is not valid TOML: it is nested too deeply; mend or remove that line.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}; mend or remove that line.") from error


def build(kind: type, table: Mapping[str, Any], *, where: str, prefix: str = "") -> Any:
    """Make a dataclass from a TOML table, section by section, checking every key and every value's type.

    Args:
      kind: the dataclass; its fields are dataclasses, texts, numbers, literals, ``tuple[T, ...]`` or ``dict[str, T]``.
      table: as ``read_toml`` gives it.
      where: the file, for messages.
      prefix: of the keys, for messages.

    Raises:
      UsageError: an unknown key, or a value of the wrong kind.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        name = prefix + key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(prefix + h for h in hints)}."
            raise UsageError(f"{where}: unknown key {name}; {known}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {name} is a section, not a value; set a key below it, such as {name}.…")
            values[key] = build(typing.cast(type, hint), value, where=where, prefix=f"{name}.")
        else:
            values[key] = _typed(hint, value, f"{where}: {name}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise UserError(f"{where} is damaged: it has no [{prefix}{name}]; put back the file as it was written.")
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in hint.__args__ if arm is not type(None))
        if value in (None, "none"):
            return None
    if typing.get_origin(hint) is Literal:
        if value not in hint.__args__ or type(value) not in {type(arm) for arm in hint.__args__}:
            raise UsageError(f"{name} must be one of {', '.join(map(str, hint.__args__))}, not {value!r}.")
        return value
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} must be a table, not {value!r}.")
        return {key: _typed(hint.__args__[1], item, f"{name}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is tuple:
        item_hint = hint.__args__[0]
        if not isinstance(value, list | tuple) or (item_hint is str and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{name} must be a list of {'names' if item_hint is str else 'numbers'}, not {value!r}.")
        return tuple(_typed(item_hint, item, f"each of {name}") for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{name} must be of type {hint.__name__}, not {value!r}.")
    return value
