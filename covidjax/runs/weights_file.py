"""Weights in one safetensors file, with what it takes to use them: how the package carries networks that are trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from covidjax.errors import UserError

FOLDER = Path(__file__).parents[1] / "weights"
"""What the package carries."""


def pack(weights: Any, about: Mapping[str, str], dtype: Any = np.float16) -> bytes:
    """The bytes of a file.

    Args:
      weights: any tree of arrays.
      about: texts by name, kept beside them, with a digest of all.
      dtype: what the arrays are rounded to.
    """
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in _named(weights)}
    return safetensors.numpy.save(arrays, metadata={**about, "digest": _digest(arrays, about)})


def read(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of a file and the texts in it.

    Raises:
      UserError: no file, or a damaged one.
    """
    try:
        data = path.read_bytes()
        arrays = safetensors.numpy.load(data)
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path} is not there; {_remedy(path)}.") from None
    # Damaged bytes are answered with errors of several kinds.
    except Exception as error:
        raise damaged(path, error) from error
    digest = about.pop("digest", None)  # files of older versions have none
    if digest not in {None, _digest(arrays, about)}:
        raise damaged(path, "its digest is that of other bytes")
    return data, about


def damaged(path: Path, error: object) -> UserError:
    """What is said of a file that cannot be used."""
    return UserError(f"{path} is damaged or no file of weights ({' '.join(str(error).split())[:200]}); {_remedy(path)}.")


def _remedy(path: Path) -> str:
    return "install covidjax again" if path.parent == FOLDER else "name another file, or a run's folder"


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    """SHA-256, hexadecimal, of all that a file holds."""
    shapes = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    found = hashlib.sha256(json.dumps([dict(about), shapes], sort_keys=True).encode())
    for name in sorted(arrays):
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def unpack(path: Path, data: bytes, wanted: Any) -> Any:
    """The tree of a file in float32.

    Args:
      path: for messages.
      data: the file's bytes.
      wanted: the same tree of ``jax.ShapeDtypeStruct``.

    Raises:
      UserError: other arrays than are wanted, or numbers that are not finite.
    """
    import jax

    arrays = safetensors.numpy.load(data)
    named = _named(wanted)
    if {name: leaf.shape for name, leaf in named} != {name: array.shape for name, array in arrays.items()}:
        raise damaged(path, "its arrays are those of another network")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise damaged(path, "it holds numbers that are not finite")
    leaves = [arrays[name].astype(np.float32) for name, _ in named]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by their place in the tree, such as ``params.down.0.first.conv.kernel``."""
    import jax

    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]
