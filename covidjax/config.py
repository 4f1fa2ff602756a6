"""Every default of the project, once: frozen dataclasses, TOML files that hold only differences, ``key=value`` overrides.

A key that is not a field here is an error, in a file as on the command line.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

from covidjax.errors import UsageError
from covidjax.labels import CLASSES
from covidjax.toml import _value, from_table, read_toml


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
    config = from_table(Config, table, where=str(file) if file else "--set")
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
