"""The lung segmenter, bundled or of a run: its weights, and what computes it.

``python -m covidjax.segmenter RUN`` makes the weights of a run of ``covidjax train --model lung-unet`` the bundled ones.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from covidjax import rundir
from covidjax.config import ModelConfig, Preprocess, UserError
from covidjax.runtime import OnnxRuntime, OpenVino, choose, kept, to_onnx

BUNDLED = Path(__file__).parent / "weights" / "lung_unet.safetensors"
MODEL = ModelConfig("lung-unet")


class Opened:
    """A segmenter, ready to compute; what ``covidjax.lungs`` takes.

    Attributes:
      size: height and width of its images in pixels.
      title: for the reader, with the runtime's version.
      digest: of its weights, hexadecimal.
    """

    def __init__(self, size: int, title: str, digest: str, compute: Callable[[np.ndarray], Any]):
        self.size, self.title, self.digest, self._compute = size, title, digest, compute

    def __call__(self, images: np.ndarray) -> Any:
        """uint8 ``[B, N, N, 1]`` → float32 ``[B, N, N]``, the probability that a pixel belongs to the lungs."""
        return self._compute(images)


def open_segmenter(device: str = "auto", runtime: str = "auto", weights: Path | None = None) -> Opened:
    """Make the bundled segmenter ready.

    Args:
      device: ``auto``, ``cpu`` or ``gpu``.
      runtime: as for ``runtime.open_run``.
      weights: what ``save`` wrote, or a run of ``covidjax train``, in place of the bundled ones.

    Raises:
      UserError: no weights, damaged ones, no such device, or a runtime that is not installed.
    """
    path = weights or BUNDLED
    data, preprocess = _of_run(path) if weights and not path.is_file() else _read(path)
    digest = hashlib.sha256(data).hexdigest()
    name = choose(runtime, device, "float32")
    if name == "jax":
        compute, version = _with_jax(path, data, preprocess, device), f"JAX {sys.modules['jax'].__version__}"
    else:
        versions = [importlib.metadata.version(package) for package in ("covidjax", "jax2onnx", "onnxruntime")]
        key = json.dumps(["segmenter", digest, versions])
        model = kept(key, lambda: _convert(path, data, preprocess))
        compute = OpenVino(model) if name == "openvino" else OnnxRuntime(model)
        version = compute.title
    return Opened(preprocess.image_size, f"{path.stem} at {preprocess.image_size}² on {version}", digest, compute)


def save(path: Path, weights: Any, preprocess: Preprocess, patients: Sequence[str] = ()) -> None:
    """Write the weights of a lung-unet as safetensors, rounded to float16, with what it takes to use them.

    Args:
      path: the file.
      weights: ``models.Weights``.
      preprocess: size of the images and, as classes, the kinds of mask, the widest last.
      patients: keys of those whose films were trained on, so that anybody can tell what is held out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_packed(weights, preprocess, np.float16, patients))


def _packed(weights: Any, preprocess: Preprocess, dtype: type, patients: Sequence[str] = ()) -> bytes:
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in _named(weights)}
    about = {"image_size": str(preprocess.image_size), "masks": ",".join(preprocess.classes)}
    about["patients"] = json.dumps(list(patients))
    return safetensors.numpy.save(arrays, metadata=about)


def _of_run(path: Path) -> tuple[bytes, Preprocess]:
    """The weights of a run as ``save`` writes them, but in float32."""
    weights, preprocess = _trained(path)
    return _packed(weights, preprocess, np.float32), preprocess


def _trained(path: Path) -> tuple[Any, Preprocess]:
    run = rundir.settings(path)
    if run.config.model.name != "lung-unet":
        raise UserError(f"{path} finds classes, not lungs; name a run of `covidjax train --model lung-unet`.")
    if members := rundir.members(path):
        raise UserError(f"{path} holds {len(members)} segmenters; name one of them, such as {members[0]}.")
    from covidjax import checkpoint
    from covidjax.models import Network

    network = Network(run.config.model, run.preprocess)
    return checkpoint.restore(path, checkpoint.chosen(path), network.abstract()).weights, run.preprocess


def patients(path: Path = BUNDLED) -> frozenset[str]:
    """Keys of the patients whose films the weights were trained on."""
    _read(path)  # says what is wrong with it
    with safetensors.safe_open(path, "np") as file:
        return frozenset(json.loads(file.metadata()["patients"]))


def load(path: Path, data: bytes, preprocess: Preprocess) -> Any:
    """``models.Weights`` in float32 of what ``save`` wrote.

    Raises:
      UserError: other arrays than the network has, or numbers that are not finite.
    """
    import jax

    from covidjax.models import Network

    arrays = safetensors.numpy.load(data)
    wanted = Network(MODEL, preprocess).abstract()
    named = _named(wanted)
    if {name: leaf.shape for name, leaf in named} != {name: array.shape for name, array in arrays.items()}:
        raise UserError(f"{path} holds no weights of this lung-unet; install covidjax again.")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"{path} is damaged: it holds numbers that are not finite; install covidjax again.")
    leaves = [arrays[name].astype(np.float32) for name, _ in named]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by their place in the tree, such as ``params.down.0.first.conv.kernel``."""
    import jax

    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _read(path: Path) -> tuple[bytes, Preprocess]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"The weights of the lung segmenter, {path.name}, are not in this installation.") from None
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata()
        return data, Preprocess(int(about["image_size"]), classes=tuple(about["masks"].split(",")))
    # Damaged bytes are answered with errors of several kinds.
    except Exception as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); install covidjax again.") from error


def _probabilities(preprocess: Preprocess, *, plain: bool) -> Callable[[Any, Any], Any]:
    """The forward pass from weights and pixels to the widest mask, to be jitted or converted."""
    import jax

    from covidjax.augment import normalise
    from covidjax.models import Network

    network = Network(MODEL, preprocess, plain=plain)
    return lambda weights, images: jax.nn.sigmoid(network.apply(weights, normalise(images))[0][..., -1])


def _with_jax(path: Path, data: bytes, preprocess: Preprocess, name: str) -> Callable[[np.ndarray], Any]:
    from covidjax import device

    device.start(name)
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    forward = _probabilities(preprocess, plain=False)
    weights = load(path, data, preprocess)
    share = P(device.AXIS)
    programs: dict[int, tuple[Any, Any, Any]] = {}

    def compute(images: np.ndarray) -> Any:
        if len(images) not in programs:
            mesh = device.mesh(len(images))
            program = jax.jit(device.split(forward, mesh, P(), share, result=share))
            programs[len(images)] = program, device.on_all(weights, mesh), NamedSharding(mesh, share)
        program, placed, sharding = programs[len(images)]
        return program(placed, jax.device_put(images, sharding))

    return compute


def _convert(path: Path, data: bytes, preprocess: Preprocess) -> bytes:
    from covidjax import device

    device.start("cpu")
    forward = _probabilities(preprocess, plain=True)
    weights = load(path, data, preprocess)
    try:
        return to_onnx(lambda images: forward(weights, images), preprocess.image_size)
    except UserError as error:
        raise UserError(f"{path} cannot be converted ({error}); choose --runtime jax.") from error


if __name__ == "__main__":
    run = Path(sys.argv[1])
    save(BUNDLED, *_trained(run), sorted(key for key in rundir.read_seen(run) if ":" in key))
