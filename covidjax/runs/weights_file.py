"""Trained networks in one safetensors file, with what it takes to use them: the format of the weights that the package
carries.

The arrays are float16. The header holds the run (``runs.folder.Run`` as TOML), the number of networks, a description,
and the keys by which the training images are known again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from covidjax.config import Config, ModelConfig, Preprocess
from covidjax.errors import UserError, one_line
from covidjax.runs import trust_file
from covidjax.runs.folder import Run
from covidjax.runs.trust_file import Trust

FOLDER = Path(__file__).parents[1] / "weights"
"""What the package carries."""


class WeightsFile(NamedTuple):
    """What a file holds."""

    data: bytes
    """The whole file."""
    run: Run
    networks: int
    description: str
    """What the networks are, in words."""
    trained_on: set[str]
    """Keys of the training images, see ``runs.folder.write_trained_on``."""
    prefixed: bool
    """Whether the names of the arrays begin with the number of their network."""
    trust: Trust
    """The sections of the run's ``trust.json``; none in a file of an earlier version."""
    licence: str
    """Of the weights; empty where the file does not state it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def write(
    path: Path,
    run: Run,
    networks: Sequence[Any],
    description: str,
    trained_on: Iterable[str],
    trust: Trust = MappingProxyType({}),
    licence: str = "",
) -> None:
    """Write the weights of trained networks, rounded to float16.

    Args:
      path: the file.
      run: settings and preprocessing.
      networks: ``models.Weights`` of each.
      description: in words.
      trained_on: keys of the training images.
      trust: the sections of the run's ``trust.json``.
      licence: of the weights; by default that of what they were started from.
    """
    run = _without_folders(run)
    tree = {str(number): weights for number, weights in enumerate(networks)}
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in _named_leaves(tree)}
    header = {"run": run.text(), "members": str(len(networks)), "described": description}
    header["seen"] = json.dumps(sorted(trained_on))
    if licence := licence or run.init.licence:
        header["licence"] = licence
    if trust:
        header["trust"] = json.dumps({name: _portable(section) for name, section in trust.items()}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.numpy.save(arrays, metadata=header | {"digest": _digest(arrays, header)}))


def _without_folders(run: Run) -> Run:
    """A run with the names alone of its dataset, of what it started from and of what calibrates it: nobody else has those
    folders."""
    config, init = run.config, run.config.train.init
    data = dataclasses.replace(config.data, path=Path(config.data.path).name)
    init = init if init.startswith("hub:") else Path(init).name
    train = dataclasses.replace(config.train, init=init, calibration=Path(config.train.calibration).name)
    return dataclasses.replace(run, config=dataclasses.replace(config, data=data, train=train))


def _portable(section: Any) -> Any:
    """A section of ``trust.json`` with the name of the run it came from in place of a path that nobody else has."""
    if isinstance(section, dict) and "run" in section:
        return {**section, "run": Path(section["run"]).name}
    return section


def read(path: Path) -> WeightsFile:
    """Read a file's header, and check its bytes.

    Raises:
      UserError: no file, a damaged one, or one that holds something else.
    """
    try:
        data = path.read_bytes()
        arrays = safetensors.numpy.load(data)
        with safetensors.safe_open(path, "np") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path} is not there; {_remedy(path)}.") from None
    # Damaged bytes are answered with errors of several kinds.
    except Exception as error:
        raise _damaged(path, one_line(error)) from error
    digest = header.pop("digest", None)  # files of older versions have none
    if digest not in {None, _digest(arrays, header)}:
        raise _damaged(path, "its digest is that of other bytes")
    try:
        if {"run", "members", "described", "seen"} <= header.keys():
            run, trained_on = Run.parse(header["run"], str(path)), set(json.loads(header["seen"]))
            trust = trust_file.parse(header.get("trust", "{}"))
            networks, licence = int(header["members"]), header.get("licence", "")
            about: Any = {"prefixed": True, "trust": trust, "licence": licence}
            return WeightsFile(data, run, networks, header["described"], trained_on, **about)
        if {"image_size", "masks", "patients"} <= header.keys():  # a segmenter of an earlier version
            preprocess = Preprocess(int(header["image_size"]), classes=tuple(header["masks"].split(",")))
            run = Run(Config(model=ModelConfig("lung-unet")), preprocess)
            return WeightsFile(data, run, 1, "", set(json.loads(header["patients"])), prefixed=False, trust={}, licence="")
    except ValueError as error:
        raise _damaged(path, one_line(error)) from error
    raise UserError(f"{path} holds no trained network; name a run, or a file that `python -m bench.bundle` wrote.")


def networks(path: Path, file: WeightsFile, expected: Any) -> list[Any]:
    """The weights of every network of a file, in float32.

    Args:
      path: for messages.
      file: what ``read`` gave.
      expected: the tree of one network's weights, of ``jax.ShapeDtypeStruct``.

    Raises:
      UserError: other arrays than are expected, or numbers that are not finite.
    """
    import jax

    tree = {str(number): expected for number in range(file.networks)} if file.prefixed else {"": expected}
    arrays = safetensors.numpy.load(file.data)
    leaves = _named_leaves(tree if file.prefixed else expected)
    if {name: leaf.shape for name, leaf in leaves} != {name: array.shape for name, array in arrays.items()}:
        raise _damaged(path, "its arrays are those of another network")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise _damaged(path, "it holds numbers that are not finite")
    values = [arrays[name].astype(np.float32) for name, _ in leaves]
    return list(jax.tree.unflatten(jax.tree.structure(tree), values).values())


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged or no file of weights ({reason}); {_remedy(path)}.")


def _remedy(path: Path) -> str:
    return "install covidjax again" if path.parent == FOLDER else "name another file, or a run's folder"


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    """SHA-256, hexadecimal, of all that a file holds."""
    shapes = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([dict(header), shapes], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by their place in the tree, such as ``0.params.stem1.conv.kernel``."""
    import jax

    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]
