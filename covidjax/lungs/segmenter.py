"""The lung segmenter, bundled or of a run: its weights, and what computes it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.config import ModelConfig, Preprocess
from covidjax.errors import UserError
from covidjax.inference.onnx import cached_model, to_onnx
from covidjax.inference.runtimes import OnnxRuntime, OpenVino, choose_runtime
from covidjax.runs import folder, weights_file

BUNDLED = weights_file.FOLDER / "lung_unet.safetensors"

MODEL = ModelConfig("lung-unet")


class LoadedSegmenter:
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


def open_segmenter(device: str = "auto", runtime: str = "auto", weights: Path | None = None) -> LoadedSegmenter:
    """Make the bundled segmenter ready.

    Args:
      device: ``auto``, ``cpu`` or ``gpu``.
      runtime: as for ``runtime.open_run``.
      weights: what ``save`` wrote, or a run of ``covidjax train``, in place of the bundled ones.

    Raises:
      UserError: no weights, damaged ones, no such device, or a runtime that is not installed.
    """
    path = weights or BUNDLED
    data, preprocess = _of_run(path) if weights and not path.is_file() else read(path)
    digest = hashlib.sha256(data).hexdigest()
    name = choose_runtime(runtime, device, "float32")
    if name == "jax":
        compute, version = _with_jax(path, data, preprocess, device), f"JAX {sys.modules['jax'].__version__}"
    else:
        versions = [importlib.metadata.version(package) for package in ("covidjax", "jax2onnx", "onnxruntime")]
        key = json.dumps(["segmenter", digest, versions])
        model = cached_model(key, lambda: _convert(path, data, preprocess))
        compute = OpenVino(model) if name == "openvino" else OnnxRuntime(model)
        version = compute.title
    return LoadedSegmenter(preprocess.image_size, f"{path.stem} at {preprocess.image_size}² on {version}", digest, compute)


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
    about = {"image_size": str(preprocess.image_size), "masks": ",".join(preprocess.classes)}
    return weights_file.pack(weights, about | {"patients": json.dumps(list(patients))}, dtype)


def _of_run(path: Path) -> tuple[bytes, Preprocess]:
    """The weights of a run as ``save`` writes them, but in float32."""
    weights, preprocess = _trained(path)
    return _packed(weights, preprocess, np.float32), preprocess


def _trained(path: Path) -> tuple[Any, Preprocess]:
    run = folder.read_run(path)
    if run.config.model.name != "lung-unet":
        raise UserError(f"{path} finds classes, not lungs; name a run of `covidjax train --model lung-unet`.")
    if members := folder.member_folders(path):
        raise UserError(f"{path} holds {len(members)} segmenters; name one of them, such as {members[0]}.")
    from covidjax.models import Network
    from covidjax.runs import checkpoint

    network = Network(run.config.model, run.preprocess)
    return checkpoint.restore(path, checkpoint.selected_kind(path), network.abstract()).weights, run.preprocess


def patients(path: Path = BUNDLED) -> frozenset[str]:
    """Keys of the patients whose films the weights were trained on."""
    return frozenset(json.loads(weights_file.read(path)[1]["patients"]))


def load(path: Path, data: bytes, preprocess: Preprocess) -> Any:
    """``models.Weights`` in float32 of what ``save`` wrote.

    Raises:
      UserError: other arrays than the network has, or numbers that are not finite.
    """
    from covidjax.models import Network

    return weights_file.unpack(path, data, Network(MODEL, preprocess).abstract())


def read(path: Path) -> tuple[bytes, Preprocess]:
    """The bytes that ``save`` wrote, and the size and kinds of mask that they are for.

    Raises:
      UserError: no file, or a damaged one.
    """
    data, about = weights_file.read(path)
    if not {"image_size", "masks", "patients"} <= about.keys():
        raise UserError(f"{path} holds no lung segmenter; name a run of `covidjax train --model lung-unet`.")
    try:
        return data, Preprocess(int(about["image_size"]), classes=tuple(about["masks"].split(",")))
    except ValueError as error:
        raise weights_file.damaged(path, error) from error


def _probabilities(preprocess: Preprocess, *, plain: bool) -> Callable[[Any, Any], Any]:
    """The forward pass from weights and pixels to the widest mask, to be jitted or converted."""
    import jax

    from covidjax.inference.forward import normalize
    from covidjax.models import Network

    network = Network(MODEL, preprocess, plain=plain)
    return lambda weights, images: jax.nn.sigmoid(network.apply(weights, normalize(images))[0][..., -1])


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
            program = jax.jit(device.shard(forward, mesh, P(), share, result=share))
            programs[len(images)] = program, device.replicate(weights, mesh), NamedSharding(mesh, share)
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
