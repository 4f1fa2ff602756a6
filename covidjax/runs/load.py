"""A trained classifier, wherever it lies: in a run's folder, or in one file, as the one that the package carries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from covidjax.errors import UserError
from covidjax.runs import checkpoint, folder, weights_file
from covidjax.runs.folder import Run

if TYPE_CHECKING:
    from covidjax.models import Network, Weights


class Loaded(NamedTuple):
    """A trained run, ready to predict."""

    run: Run
    kind: str
    """See ``networks.Saved``."""
    step: int
    members: list[Weights]
    """One, or those of every fold of a cross-validation or every network of an ensemble."""
    network: Network

    @property
    def weights(self) -> Weights:
        """Of a single run."""
        return self.members[0]


def load_run(path: Path, device_name: str = "auto") -> Loaded:
    """Settings and weights of a run, or of all members of a cross-validation or an ensemble, or of what ``networks.save``
    wrote. The network computes in the precision that the run's settings give on this device.

    Raises:
      UserError: no run, no usable checkpoint in it, or no such device.
    """
    from covidjax import device
    from covidjax.models import Network

    run = settings(path)
    dtype, _ = device.precision(run.config.train.precision, device.start(device_name))
    network = Network(run.config.model, run.preprocess, dtype)
    return Loaded(run, *restore(path, network.abstract()), network)


BUNDLED = weights_file.FOLDER / "classifier.safetensors"
"""The one that the package carries; MODEL_CARD.md says what it is and what it is not."""


class Saved(NamedTuple):
    """The networks of a run or a file."""

    kind: str
    """``best``, chosen by the validation fold, or ``last``, of several networks the first one's; or ``file``."""
    step: int
    """Of training; 0 of a file."""
    members: list[Any]
    """``models.Weights`` in float32 of one network, or of every network whose mean probabilities count."""


def find(given: Path | None) -> Path:
    """What scores: what is given, else the newest run under ``runs/``, else what the package carries."""
    return given or checkpoint.newest_run(classifier=True) or BUNDLED


def is_file(path: Path) -> bool:
    """Whether one file is meant, not a run's folder. Of a bundled one that is missing, what reads it says so."""
    return path.is_file() or path == BUNDLED


def settings(path: Path) -> Run:
    """Settings and preprocessing.

    Raises:
      UserError: no run and no such file, or damaged ones.
    """
    return _read(path).run if is_file(path) else folder.read_run(path)


def described(path: Path) -> str:
    """What computes, in words, such as ``last checkpoint, step 120``."""
    return _read(path).described if is_file(path) else checkpoint.described(path)


def digests(path: Path) -> list[str]:
    """By which the networks are known again."""
    if is_file(path):
        return [hashlib.sha256(_read(path).data).hexdigest()]
    return [checkpoint.verify(folder, checkpoint.selected_kind(folder))[1] for folder in _folders(path)]


def seen(path: Path) -> set[str]:
    """What the films of training can be known by, see ``rundir.write_seen``."""
    if is_file(path):
        return set(_read(path).seen)
    return set().union(*map(folder.read_trained_on, _folders(path)))


def restore(path: Path, wanted: Any) -> Saved:
    """The weights: of a run's best checkpoint where a validation fold chose one, else of its last.

    Args:
      path: the run or the file.
      wanted: shapes of one network's weights, ``models.Network.abstract``.

    Raises:
      UserError: none that is whole, or of another network.
    """
    if is_file(path):
        file = _read(path)
        members = weights_file.unpack(path, file.data, {str(number): wanted for number in range(file.members)})
        return Saved("file", 0, list(members.values()))
    folders = _folders(path)
    saved = [checkpoint.restore(folder, checkpoint.selected_kind(folder), wanted) for folder in folders]
    return Saved(checkpoint.selected_kind(folders[0]), saved[0].step, [each.weights for each in saved])


def save(path: Path, run: Run, members: Sequence[Any], described: str, seen: Iterable[str]) -> None:
    """Write a classifier as one file, its weights rounded to float16.

    Args:
      path: the file.
      run: settings and preprocessing.
      members: ``models.Weights`` of each network.
      described: in words; what ``described`` answers.
      seen: what ``seen`` answers.
    """
    data = dataclasses.replace(run.config.data, path=Path(run.config.data.path).name)  # nobody else has that folder
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    about = {"run": run.text(), "members": str(len(members)), "described": described, "seen": json.dumps(sorted(seen))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights_file.pack({str(number): weights for number, weights in enumerate(members)}, about))


def _folders(path: Path) -> list[Path]:
    return folder.member_folders(path) or [path]


class _File(NamedTuple):
    """What ``save`` wrote."""

    data: bytes
    run: Run
    members: int
    described: str
    seen: list[str]


def _read(path: Path) -> _File:
    data, about = weights_file.read(path)
    if not {"run", "members", "described", "seen"} <= about.keys():
        raise UserError(f"{path} holds no classifier; name a run, or a file that `python -m bench.bundle` wrote.")
    try:
        members, seen = int(about["members"]), json.loads(about["seen"])
    except ValueError as error:
        raise weights_file.damaged(path, error) from error
    return _File(data, Run.parse(about["run"], str(path)), members, about["described"], seen)
