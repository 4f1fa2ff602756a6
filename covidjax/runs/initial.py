"""What ``train --init`` names: published weights, a file of the hub, an earlier run, a file of ours, the bundled one.

Nothing is ever unpickled: published weights are safetensors, and what they were trained on is said by their record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from covidjax.config import Config, ModelConfig, Preprocess, check
from covidjax.errors import UsageError, UserError, one_line
from covidjax.runs import folder, hub, load
from covidjax.runs.starting import Initial, StartingPoint
from covidjax.runs.weights_record import PAGE, WeightsRecord, beside, from_header

if TYPE_CHECKING:
    from covidjax.models import Network

LOG = logging.getLogger(__name__)

BUNDLED = "bundled"

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".zip", ".tar", ".npz", ".h5")
"""Endings of what is not read; safetensors are told by their first bytes."""

MOST_HEADER = 10**8
"""Most bytes of a safetensors header, as the format has it."""

PIXELS = (0.0, 1.0)
"""The range of ours before mean and standard deviation."""

ARCHITECTURE = ("name", "channels", "width", "pixel_mean", "pixel_std")
"""Settings of the model that weights of ours are bound to."""

TOLERANCE = 1e-3
"""Of a mean or a standard deviation that was given and is that of the weights."""


def absolute(text: str) -> str:
    """What ``train.init`` is kept as: paths of files and runs without regard to the folder that one is in."""
    return text if text in ("", BUNDLED) or text.startswith(hub.PREFIX) else str(Path(text).absolute())


def open_source(text: str) -> StartingPoint:
    """Open what ``train.init`` names; the weights themselves are read by its ``load``.

    Raises:
      UserError: nothing of the kind, one that is no safetensors, or weights without a record, of a network that there is
        not, or of other pixels.
    """
    if text.startswith(hub.PREFIX):
        fetched = hub.fetch(text)
        return _open_published(fetched.weights, fetched.source, fetched.licence)
    if text == BUNDLED:
        return _open_ours(load.BUNDLED, BUNDLED)
    path = Path(text)
    if path.is_dir():
        return _open_ours(path, path.name)
    if not path.exists():
        others = "a file of safetensors, a run, hub:REPO@REVISION or bundled"
        raise UsageError(f"{path} does not exist; --init takes {others}.")
    header = _header(path)
    if {"run", "members"} <= header.keys() or {"masks", "patients"} <= header.keys():
        return _open_ours(path, path.name)
    return _open_published(path, path.name)


def resume(run: Path) -> StartingPoint:
    """What a run was started from. It is read only where no checkpoint goes on from it, and must be the same then."""
    saved = folder.read_run(run)
    text = saved.init.source if saved.init.source.startswith(hub.PREFIX) else saved.config.train.init

    def reopen() -> Initial:
        point = open_source(text)
        if point.record.sha256 != saved.init.sha256:
            raise UserError(f"{text} is no longer what {run} was started from; put it back, or start a new run.")
        return point.load()

    return StartingPoint(saved.init, folder.read_initial_trained_on(run), functools.cache(reopen))


def adapt(settings: Config, given: Collection[str], point: StartingPoint) -> Config:
    """The settings of a run that starts from some weights: network, mean and standard deviation are theirs.

    Args:
      settings: of the user.
      given: names of the settings that the user gave, see ``config.given_settings``.
      point: what is started from.

    Raises:
      UsageError: settings that the weights contradict.
    """
    record, model = point.record, settings.model
    if "model.name" in given and model.name != record.model:
        named = f"{record.source} holds weights of {record.model}, not of {model.name}"
        raise UsageError(f"{named}; leave --model out, or start from other weights.")
    theirs = point.run.config.model if point.run else _published_model(model, record)
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(ModelConfig):
        ours, their = getattr(model, field.name), getattr(theirs, field.name)
        if f"model.{field.name}" not in given or _same(ours, their):
            continue
        if field.name in ARCHITECTURE:
            raise UsageError(f"model.{field.name} is {their} in {record.source}, not {ours}; leave it out.")
        kept[field.name] = ours
    adapted = dataclasses.replace(settings, model=dataclasses.replace(theirs, **kept))
    check(adapted)
    return adapted


def _published_model(model: ModelConfig, record: WeightsRecord) -> ModelConfig:
    """Settings of a network that starts from published weights."""
    if record.channels not in {1, 3} or record.channels < model.channels:
        have = f"{record.source} takes images of {record.channels} channel{'s' * (record.channels != 1)}"
        raise UsageError(f"{have}, and the network {model.channels}; set model.channels=1, or start from other weights.")
    mean, std = record.mean, record.std
    if model.channels == 1:
        mean, std = ((round(float(np.mean(values)), 6),) for values in (mean, std))
    return dataclasses.replace(model, name=record.model, pixel_mean=mean, pixel_std=std)


def _same(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, tuple):
        return ours == theirs
    return len({len(ours), len(theirs)} - {1}) < 2 and bool(np.allclose(ours, theirs, rtol=0, atol=TOLERANCE))


def notes(point: StartingPoint, settings: Config, preprocess: Preprocess, network: Network) -> list[str]:
    """What is said of the weights before training.

    Args:
      point: what is started from.
      settings: adapted to it.
      preprocess: of the dataset.
      network: of these settings.

    Raises:
      UserError: weights that cannot be read, or that do not fit.
    """
    record, initial = point.record, point.load()
    said = [record.sentence]
    for name, values in (("mean", record.mean), ("std", record.std)):
        if len(set(values)) > 1 and settings.model.channels == 1:
            numbers = ", ".join(f"{value:g}" for value in values)
            said.append(f"Its {name} differs between channels ({numbers}); gray images are normalized by its average.")
    if record.image_size != preprocess.image_size:
        said.append(f"It was trained on images of {record.image_size} pixels; the dataset's have {preprocess.image_size}.")
    if point.run and point.run.preprocess.lungs != preprocess.lungs:
        theirs = point.run.preprocess.lungs
        said.append(f"It was trained on images with --lungs {theirs}; the dataset's have --lungs {preprocess.lungs}.")
    initial.put_into(network, network.abstract(), preprocess.classes)
    if initial.keeps_head(network, preprocess.classes):
        said.append("Its classes are the dataset's, so that its last layers are started from too.")
    elif point.run:
        said.append("Its last layers are drawn anew: they are of other classes, or of images of another size.")
    return said


def _open_ours(path: Path, source: str) -> StartingPoint:
    """A run, or a file of ours, of one network."""
    run = load.read_run(path)
    if not load.is_file(path):
        if members := folder.member_folders(path):
            raise UserError(f"{path} holds {len(members)} networks; name one of them, such as {members[0]}.")
        if progress := folder.unfinished(path):
            LOG.warning("%s is unfinished (%s); its last checkpoint is started from.", path, progress)
    record = WeightsRecord(
        source=source,
        sha256=load.digests(path)[0],
        model=run.config.model.name,
        licence=load.licence(path) or "see its card" * (path.parent == load.BUNDLED.parent),
        origin=f"that started from {run.init.source}" if run.init.source else "",
        image_size=run.preprocess.image_size,
        channels=run.config.model.channels,
        mean=run.config.model.pixel_mean,
        std=run.config.model.pixel_std,
        input_range=PIXELS,
    )

    def read() -> Initial:
        import jax

        networks = load.load_run(path).networks
        if len(networks) > 1:
            raise UserError(f"{path} holds {len(networks)} networks; start from a file or a run of one.")
        return Initial(jax.device_get(networks[0]), run.preprocess.classes, str(path))

    return StartingPoint(record, frozenset(load.trained_on(path)), functools.cache(read), run)


def _open_published(path: Path, source: str, licence: str = "") -> StartingPoint:
    """Somebody else's weights in a file of safetensors.

    Args:
      path: the file.
      source: what it is called in the run.
      licence: what holds where the record does not say.
    """
    from covidjax.models.pretrained import TABLES

    record = from_header(_header(path), str(path)) or beside(path)
    if record is None:
        remedy = f"convert it as {PAGE} shows, or put timm's config.json of it beside it"
        raise UserError(f"{path} does not say how its images are prepared, of which network and licence it is; {remedy}.")
    if record.model not in TABLES:
        known = ", ".join(TABLES)
        raise UserError(f"{source} holds weights of {record.model}; weights are read of {known}.")
    if record.input_range != PIXELS:
        low, high = record.input_range
        remedy = "give its record the mean and std of pixels from 0 to 1, and input_range [0, 1], if that is the same"
        raise UserError(f"{source} takes pixels from {low:g} to {high:g}, and ours are from 0 to 1; {remedy}.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = dataclasses.replace(record, source=source, sha256=digest, licence=record.licence or licence)
    return StartingPoint(record, frozenset(), functools.cache(lambda: _read_published(path, record)))


def _read_published(path: Path, record: WeightsRecord) -> Initial:
    """Raises UserError where the arrays are not those of the network."""
    from covidjax.models import create_model
    from covidjax.models.pretrained import published_classes, to_weights

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise UserError(f"{path} has changed since it was opened; give the command again.")
    try:
        arrays = safetensors.numpy.load(data)
    except KeyError as error:
        raise UserError(f"{path} holds numbers of the kind {error}, which NumPy lacks; save it in float32.") from error
    # Damaged bytes are answered with errors of several kinds.
    except Exception as error:
        raise _damaged(path, one_line(error)) from error
    classes = tuple(str(number) for number in range(published_classes(record.model, arrays)))
    model: Any = ModelConfig(name=record.model, channels=record.channels)  # pyright: ignore[reportArgumentType]
    expected = create_model(model, Preprocess(classes=classes)).abstract()
    return Initial(to_weights(record.model, arrays, expected, str(path)), (), str(path))


def _header(path: Path) -> dict[str, str]:
    """The texts in the header of a file of safetensors.

    Raises:
      UserError: a pickle, or a damaged file.
    """
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > MOST_HEADER:
        if path.suffix.lower() in PICKLES or start.startswith((b"PK", b"\x80")):
            why = "is no file of safetensors, and may run code when it is read"
            raise UserError(f"{path} {why}, so it is not; convert it once in your own PyTorch, as {PAGE} shows.")
        raise _damaged(path, "it does not begin as one")
    try:
        with safetensors.safe_open(path, "np") as file:
            return file.metadata() or {}
    except Exception as error:
        raise _damaged(path, one_line(error)) from error


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged or no file of safetensors ({reason}); name another.")
