"""What weights say of themselves: the record in a safetensors header, or timm's ``config.json`` beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covidjax.errors import UserError, one_line

REQUIRED = ("model", "mean", "std", "input_range", "channels", "image_size", "licence", "source")
"""Keys of the record in a header; lists and numbers as JSON has them."""

PAGE = "docs/transfer.md"

TIMM_MODELS = {
    "resnet50": "resnet50",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16-bn",
    "inception_v3": "inceptionv3",
    "densenet121": "densenet121",
    "tf_efficientnet_lite0": "efficientnet-lite0",
}
"""From timm's names to ours. Its ``efficientnet_lite0`` pads otherwise, and is another network."""

NOT_STATED = "not stated"


@dataclass(frozen=True)
class WeightsRecord:
    """What the training of a run started from, and how its images are to be prepared; all empty for one from scratch."""

    source: str = ""
    """The file's or the run's name, ``bundled``, or ``hub:REPO@COMMIT``."""
    sha256: str = ""
    """Of the file, hexadecimal; of a run's checkpoint its digest."""
    model: str = ""
    licence: str = ""
    origin: str = ""
    """Where the weights come from, in the words of whoever published or converted them."""
    image_size: int = 0
    """Of the images that they were trained on, in pixels."""
    channels: int = 0
    mean: tuple[float, ...] = ()
    """Of the pixels, one for each channel or one for all."""
    std: tuple[float, ...] = ()
    input_range: tuple[float, ...] = ()
    """Of the pixels before mean and standard deviation."""

    @property
    def sentence(self) -> str:
        """What was started from, in words; empty where a run started from nothing."""
        if not self.source:
            return ""
        origin = f" ({self.origin})" if self.origin else ""
        size = f"{self.image_size} pixels, {self.channels} channel{'s' * (self.channels != 1)}"
        facts = f"{size}, licence {self.licence or NOT_STATED}, SHA-256 {self.sha256[:12]}…"
        return f"Started from weights of {self.model}, {self.source}{origin}: {facts}."


def from_header(header: Mapping[str, str], where: str) -> WeightsRecord | None:
    """The record that a conversion wrote into a safetensors header; None where there is none.

    Args:
      header: its texts.
      where: the file, for messages.

    Raises:
      UserError: a part of a record, or values of another kind.
    """
    if not {"model", "mean", "std", "input_range"} & header.keys():
        return None
    missing = [key for key in REQUIRED if not header.get(key, "").strip()]
    if missing:
        raise _damaged(f"the header of {where}", f"it has no {missing[0]}")
    try:
        values = {key: json.loads(header[key]) for key in ("mean", "std", "input_range", "channels", "image_size")}
        return _record(values | {key: header[key].strip() for key in ("model", "licence")}, origin=header["source"].strip())
    except (ValueError, TypeError) as error:
        raise _damaged(f"the header of {where}", one_line(error)) from error


def from_timm(text: str, where: str) -> WeightsRecord | None:
    """The record of timm's ``config.json``, whose pixels are always from 0 to 1; None where the file is of another kind.

    Args:
      text: the file's.
      where: the file, for messages.

    Raises:
      UserError: values of another kind.
    """
    try:
        config = json.loads(text)
        if not isinstance(config, dict) or not isinstance(pretrained := config.get("pretrained_cfg", config), dict):
            return None
        if "architecture" not in config or not {"mean", "std", "input_size"} <= pretrained.keys():
            return None
        channels, height, width = pretrained["input_size"]
        architecture = str(config["architecture"]).partition(".")[0]
        values = {"model": TIMM_MODELS.get(architecture, architecture), "channels": channels, "input_range": [0, 1]}
        values |= {"mean": pretrained["mean"], "std": pretrained["std"], "image_size": max(height, width)}
        tag, url = pretrained.get("tag"), pretrained.get("origin_url")
        origin = ", ".join(filter(None, (f"timm {architecture}" + f".{tag}" * bool(tag), url)))
        return _record(values | {"licence": str(pretrained.get("license") or "")}, origin=origin)
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(where, one_line(error)) from error


def beside(weights: Path) -> WeightsRecord | None:
    """The record of timm's ``config.json`` beside a file of weights, if there is one."""
    try:
        text = (weights.parent / "config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return from_timm(text, str(weights.parent / "config.json"))


def _record(values: Mapping[str, Any], origin: str) -> WeightsRecord:
    """Raises ValueError where a value is of another kind, TypeError likewise."""
    channels, size = (int(values[key]) for key in ("channels", "image_size"))
    lists = {key: tuple(map(float, values[key])) for key in ("mean", "std", "input_range")}
    for key in ("mean", "std"):
        if len(lists[key]) not in {1, channels} or not all(map(math.isfinite, lists[key])):
            raise ValueError(f"{key} must have a number for each of {channels} channels")
    if min(lists["std"]) <= 0 or channels < 1 or size < 1 or len(lists["input_range"]) != 2:
        raise ValueError("std, channels and image_size must be above 0, and input_range must be two numbers")
    return WeightsRecord(
        model=str(values["model"]),
        licence=str(values["licence"]),
        origin=origin,
        image_size=size,
        channels=channels,
        mean=lists["mean"],
        std=lists["std"],
        input_range=lists["input_range"],
    )


def _damaged(where: str, reason: str) -> UserError:
    return UserError(f"The record in {where} is damaged ({reason}); write the file again as {PAGE} shows.")
