"""Every setting and its default, once: frozen dataclasses, TOML files that hold only differences, ``key=value`` overrides.

A key that is not a field here is an error, in a file as on the command line. docs/settings.md is generated from this file.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from covidjax.errors import UsageError
from covidjax.labels import CLASSES
from covidjax.toml import from_table, parse_value, read_toml

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
"""Mean and standard deviation of a typical chest X-ray's gray, as shares of white; inputs are normalized by them."""

RENAMED = {
    "augment.flip": "augment.horizontal_flip",
    "model.views": "model.tta",
    "train.averaging": "train.ema_decay",
    "train.refresh": "train.recalibrate_batch_norm",
}
"""Settings of earlier versions and what they are called now; refused as settings, understood in the runs of those
versions."""

REMOVED = {"train.together": "networks are trained one after another, which is as fast"}
"""Settings of earlier versions that are gone, and why; understood likewise."""


class Range(NamedTuple):
    """The numbers that a setting takes."""

    least: float
    most: float = inf
    includes_least: bool = True
    includes_most: bool = True

    def __contains__(self, value: object) -> bool:
        low, high = typing.cast(float, value) - self.least, self.most - typing.cast(float, value)
        return (low > 0 or (low == 0 and self.includes_least)) and (high > 0 or (high == 0 and self.includes_most))

    def __str__(self) -> str:
        if self.includes_least and self.includes_most and self.most < inf:
            return f"from {self.least} to {self.most}"
        low = f"{'at least' if self.includes_least else 'above'} {self.least}"
        high = "" if self.includes_most else " and finite" if self.most == inf else f" and below {self.most}"
        return low + high


POSITIVE_INT = Range(1)
SHARE = Range(0, 1, includes_most=False)
FINITE = Range(0, includes_most=False)


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image before a model sees it: the same in ``prepare`` and in ``score``."""

    image_size: int = 224
    """Height and width in pixels after resizing."""
    lungs: Literal["none", "crop", "mask"] = "none"
    """What is done with the lungs: ``none`` keeps the whole image, ``crop`` a square around the box of both lungs,
    ``mask`` the box, black outside the lungs; see ``lungs.geometry.frame_lungs``."""
    classes: tuple[str, ...] = CLASSES
    """Class names, in the order of the labels; of images with lung masks, the kinds of mask."""
    invert: Literal["auto", "never"] = "auto"
    """``auto`` turns negatives into positives; ``never`` takes images as they are."""


@dataclass(frozen=True)
class DataConfig:
    path: str = "sample"
    """A prepared dataset, or ``sample`` for the built-in synthetic one."""
    test_fold: Annotated[int, Range(0)] = 0
    """The fold that is held out of training, for the final metrics only."""
    val_fold: int | None = None
    """A second fold that is held out, which chooses the best checkpoint."""
    test_source: str = ""
    """A source of the dataset that is the test set in place of the test fold. Images of its patients that other sources
    hold are left out; the test fold of the others is held out too, for the metrics at places that were trained on."""


@dataclass(frozen=True)
class ModelConfig:
    name: Literal[
        "darkcovidnet",
        "cnn13",
        "resnet50",
        "vgg16",
        "vgg16-bn",
        "inceptionv3",
        "densenet121",
        "efficientnet-lite0",
        "lung-unet",
    ] = "darkcovidnet"
    """The network: the study's two classifiers; backbones for weights of ``train.init``; and a lung segmenter for datasets
    of ``prepare --masks``."""
    channels: Literal[1, 3] = 1
    """Input channels; 3 repeats the gray image, as the paper did; for 1 the first kernel of ``train.init`` is summed."""
    width: Annotated[int, POSITIVE_INT] = 16
    """Channels of the first block of ``cnn13``; the last two have eight times as many."""
    dropout: Annotated[float, SHARE] = 0.5
    """Share of the last feature map of ``cnn13`` that is set to zero in training."""
    tta: Literal[1, 10] = 1
    """Test-time augmentation: 10 classifies an image by the mean logits of ten views of it, the image itself and the image
    shifted towards its four corners by a thirty-second of its side, and these mirrored. The forward pass takes ten times as
    long, and is JAX's on a CPU too. The metrics after each epoch of training are those of one view, the final ones of
    all."""
    pixel_mean: tuple[float, ...] = (PIXEL_MEAN,)
    """Mean of the pixels, as shares of white, one for all channels or one for each; ``train.init`` sets it to that of its
    weights."""
    pixel_std: tuple[float, ...] = (PIXEL_STD,)
    """Standard deviation of the pixels, likewise."""

    @property
    def is_segmenter(self) -> bool:
        """Whether the network finds lungs, not classes."""
        return self.name == "lung-unet"


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to each training image; 0 or ``false`` switches one off."""

    horizontal_flip: bool = True
    """Mirror left to right, half the time."""
    rotation: Annotated[float, Range(0, 180)] = 10.0
    """Greatest rotation, degrees either way."""
    shift: Annotated[float, SHARE] = 0.05
    """Greatest shift in each direction, as a share of the image's side."""
    zoom: Annotated[float, FINITE] = 0.1
    """Greatest change of scale either way: 0.1 is ×1/1.1 to ×1.1."""
    aspect: Annotated[float, FINITE] = 0.0
    """Greatest change of the ratio of width to height either way, likewise: some archives squash X-rays to squares."""
    brightness: Annotated[float, Range(0, 1)] = 0.1
    """Greatest change of brightness either way, as a share of full white."""
    contrast: Annotated[float, FINITE] = 0.1
    """Greatest change of contrast either way: 0.1 is ×1/1.1 to ×1.1."""
    gamma: Annotated[float, FINITE] = 0.0
    """Greatest change of gamma either way: 0.5 takes gray, as a share of white, to a power from 1/1.5 to 1.5. With ``blur``
    and ``noise`` it hides which machine and which archive an image comes from."""
    blur: Annotated[float, SHARE] = 0.0
    """Greatest standard deviation of a Gaussian blur, as a share of the image's side; an image's own is drawn from 0 up."""
    noise: Annotated[float, Range(0, 1)] = 0.0
    """Greatest standard deviation of Gaussian noise, as a share of full white; an image's own is drawn from 0 up."""
    resample: Annotated[float, FINITE] = 0.0
    """Greatest reduction by which an image is made smaller and larger again: 1 takes away up to half of its rows and
    columns. With ``jpeg`` it hides how an archive stored its images."""
    jpeg: Annotated[float, Range(0, 1)] = 0.0
    """Share of the images that are compressed as JPEG does it, by blocks of 8×8 pixels, at a quality from 20 to 95."""


@dataclass(frozen=True)
class TrainConfig:
    epochs: Annotated[int, Range(0)] = 100
    """Passes over the training images; with ``train.probe`` 0 unless set, which leaves it at the probe."""
    init: str = ""
    """Weights to start from: a file of safetensors, ``hub:REPO@REVISION``, a run, or ``bundled``."""
    freeze: Literal["none", "backbone"] = "none"
    """``backbone`` trains the layers that belong to the classes, and leaves the others, with their batch statistics, as
    they are."""
    probe: bool = False
    """Begin with a logistic regression on the features of ``train.init``'s backbone, which become the last layer. The
    strength of its regularization is chosen by cross-validation over the patients of the training images. ``train.epochs``
    then train on from there."""
    backbone_rate: Annotated[float, Range(0, 1)] = 1.0
    """Learning rate of the backbone, as a share of that of the layers that belong to the classes."""
    freeze_batch_norm: bool = False
    """Normalize by the batch statistics of ``train.init`` and leave them as they are."""
    batch_size: Annotated[int, POSITIVE_INT] = 32
    """Images a step; the incomplete last batch of an epoch is left out."""
    learning_rate: Annotated[float, Range(0, includes_least=False, includes_most=False)] = 3e-3
    """The peak of the one-cycle schedule, or the constant rate."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """How the learning rate changes from step to step."""
    weight_decay: Annotated[float, FINITE] = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of each target that is spread over all classes."""
    ema_decay: Annotated[float, SHARE] = 0.0
    """Decay, per step, of the exponential moving average of the weights, which is what is tested and used; 0 uses the
    weights as they are."""
    recalibrate_batch_norm: bool = False
    """Compute the batch statistics of the weights that are kept anew when training has ended, from the training images
    without augmentation: as images are when they are tested."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weights each class's loss by the inverse of its share of the training images."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``shuffle`` draws every training image once an epoch. ``balanced`` draws as many, but those of each class of each
    source equally often; an image at most ten times, on average. A probe takes both ways as weights of the images."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of convolutions and activations; float16 has loss scaling, ``auto`` chooses by the device."""
    cache: Literal["auto", "device", "stream"] = "auto"
    """``device`` keeps the training images in the device's memory, ``stream`` reads them batch by batch; on a CPU both
    give the same bits."""
    checkpoint_seconds: Annotated[float, Range(0)] = 10.0
    """Least time between two checkpoints, also within an epoch; the last epoch always saves one."""
    cv: bool = False
    """Train a network for every fold of the dataset as its test fold. A validation fold keeps its distance from the
    test fold: with ``data.test_fold`` 0 and ``data.val_fold`` 1 it is the next fold each time, after the last one the
    first."""
    cv_by: Literal["fold", "source"] = "fold"
    """``source`` makes a cross-validation train a network for every source of the dataset as its ``data.test_source``;
    test and validation fold then stay the same, and are of the other sources."""
    operating_points: tuple[str, ...] = ()
    """Such as ``["COVID-19:sensitivity=0.95"]``: thresholds that reach a sensitivity or a specificity on the validation
    fold, which are kept in the run and used by ``evaluate`` and ``score``."""
    calibration: str = ""
    """A run of ``train --cv --by source`` on the same data, whose calibration for places that were not trained on, and
    whose risk–coverage curve for ``score --abstain``, this run takes over."""
    ensemble: Annotated[int, POSITIVE_INT] = 1
    """Train so many networks on the same folds, with consecutive seeds from ``seed``; with ``train.cv`` so many for
    every fold. Their mean probabilities count."""


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Of weights, order and augmentation: the same seed on the same machine gives the same bits."""
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
      UsageError: an unknown or renamed key, a value of the wrong kind or out of range, a file that is not TOML.
    """
    table = _given_table(file, overrides, values)
    where = str(file) if file else "--set"
    for section, name in _former_settings(table):
        key = f"{section}.{name}"
        now = f"is called {RENAMED[key]} now; write that" if key in RENAMED else f"is gone: {REMOVED[key]}; leave it out"
        raise UsageError(f"{where}: {key} {now}.")
    if isinstance(train := table.get("train"), dict) and train.get("probe") is True:
        train.setdefault("epochs", 0)
    config: Config = from_table(Config, table, where=where)
    check(config)
    return config


def given_settings(
    file: Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] = types.MappingProxyType({})
) -> frozenset[str]:
    """The names of the settings that these give, whatever their values; the arguments are those of ``load_config``."""
    table = _given_table(file, overrides, values)
    sections = ({f"{name}.{key}" for key in of} if isinstance(of, Mapping) else {name} for name, of in table.items())
    return frozenset().union(*sections)


def _given_table(file: Path | None, overrides: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, section by section, not yet checked."""
    table: dict[str, Any] = read_toml(file) if file else {}
    changes: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, such as train.epochs=20, not {override!r}.")
        changes.append((key.strip(), parse_value(text.strip())))
    for key, value in (*changes, *values.items()):
        *sections, name = key.split(".")
        target = table
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"{key} is no setting: {section} has no keys below it.")
        target[name] = value
    return table


def modernize(table: dict[str, Any]) -> None:
    """Give the settings in a run's table, as an earlier version wrote it, the names they have now."""
    for section, name in list(_former_settings(table)):
        value = table[section].pop(name)
        if new_name := RENAMED.get(f"{section}.{name}"):
            table[section][new_name.partition(".")[2]] = value


def _former_settings(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in (*RENAMED, *REMOVED):
        section, _, name = key.partition(".")
        if isinstance(table.get(section), dict) and name in table[section]:
            yield section, name


def check(config: Config) -> None:
    """Raises UsageError where values are out of range, or settings do not go together."""
    for name, value, allowed in _ranges(config):
        if allowed and value not in allowed:
            raise UsageError(f"{name} must be {allowed}.")
    model = config.model
    for name, numbers in (("pixel_mean", model.pixel_mean), ("pixel_std", model.pixel_std)):
        if len(numbers) not in {1, model.channels} or not all(map(isfinite, numbers)):
            raise UsageError(f"model.{name} must be one number, or one for each of {model.channels} channels.")
    if min(model.pixel_std) <= 0:
        raise UsageError("model.pixel_std must be above 0.")
    if model.is_segmenter and config.train.ensemble > 1:
        raise UsageError("An ensemble of segmenters is not to be had; leave train.ensemble out.")
    if model.is_segmenter and model.channels != 1:
        raise UsageError("lung-unet takes gray images; leave model.channels at 1.")
    if model.is_segmenter and model.tta != 1:
        raise UsageError("lung-unet looks at an image once; leave model.tta at 1.")
    if config.train.cv and config.data.test_source:
        raise UsageError("A cross-validation chooses what it holds out; leave data.test_source out, or train.cv.")
    if config.train.calibration and config.train.cv and config.train.cv_by == "source":
        raise UsageError("Leaving out each source gives a calibration of its own; leave train.calibration out.")
    if model.is_segmenter and (config.train.calibration or config.train.operating_points):
        raise UsageError("lung-unet has no classes; leave train.operating_points and train.calibration out.")
    for name in ("width", "dropout"):
        if model.name != "cnn13" and getattr(model, name) != getattr(ModelConfig(), name):
            raise UsageError(f"model.{name} is of cnn13 alone, and the model is {model.name}; leave it out.")
    _check_start(config.train)


def _check_start(train: TrainConfig) -> None:
    frozen = {"train.freeze": train.freeze == "backbone", "train.freeze_batch_norm": train.freeze_batch_norm}
    freezing = next((name for name, is_set in frozen.items() if is_set), "")
    if not train.init and (building := "train.probe" if train.probe else freezing):
        raise UsageError(f"{building} builds on given weights, and fresh ones know nothing; name some with train.init.")
    if not train.epochs and not train.probe:
        raise UsageError("train.epochs must be at least 1.")
    if train.recalibrate_batch_norm and freezing:
        raise UsageError(f"{freezing} leaves the batch statistics as they are; leave train.recalibrate_batch_norm out.")
    if train.recalibrate_batch_norm and not train.epochs:
        raise UsageError("A probe alone leaves the batch statistics as they are; leave train.recalibrate_batch_norm out.")


def _ranges(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range | None]]:
    """Name, value and range of every setting."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _ranges(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, next(iter(getattr(hint, "__metadata__", ())), None)
