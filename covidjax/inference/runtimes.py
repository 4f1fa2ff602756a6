"""What computes the probabilities and features of a trained run: JAX, or OpenVINO or ONNX Runtime from the same weights.

On CPUs both are faster than XLA.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from covidjax import environment
from covidjax.config import Config, Preprocess
from covidjax.errors import UsageError, UserError
from covidjax.inference import onnx

TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "jax": "JAX"}
"""The runtimes, on a CPU the fastest first."""

RUNTIMES = ("auto", "jax", "openvino", "onnxruntime")


class Runtime(Protocol):
    """Computes probabilities and features; for several threads too."""

    title: str
    """For the reader, with the version."""

    def __call__(self, images: np.ndarray) -> Sequence[Any]:
        """uint8 ``[B, S, S, 1]``, preprocessed → the outputs that were asked for, in their order: probabilities float32
        ``[B, classes]``, each row adding up to 1, or of a segmenter ``[B, S, S]``; and features float32 ``[B, F]``, see
        ``forward.Outputs``. They may still be computing until ``np.asarray`` is taken of them. Every new ``B`` is compiled
        once."""
        ...


def open_runtime(
    name: str,
    device: str,
    config: Config,
    preprocess: Preprocess,
    *,
    digests: Sequence[str],
    load: Callable[[str], Any],
    outputs: Sequence[str] = onnx.OUTPUTS,
) -> Runtime:
    """Make a trained run ready to compute.

    Args:
      name: one of ``RUNTIMES``; ``auto`` is jax on a GPU, and on a CPU the first that is installed of OpenVINO, ONNX
        Runtime and jax, which is their order of speed.
      device: ``auto``, ``cpu`` or ``gpu``.
      config: settings of the run.
      preprocess: of the run.
      digests: of the run's weights, by which its converted network is known again.
      load: device → ``runs.load.LoadedRun``; called only where no converted network is cached.
      outputs: those of ``onnx.OUTPUTS`` that are wanted.

    Raises:
      UserError: no such device, a runtime that is not installed, a network that cannot be converted.
    """
    name = choose_runtime(name, device, config.train.precision, config.model.tta)
    if name == "jax":
        return Jax(load(device), outputs)
    versions = [importlib.metadata.version(package) for package in ("covidjax", "jax2onnx", "onnxruntime")]
    key = json.dumps([digests, asdict(config.model), asdict(preprocess), onnx.OPSET, onnx.FORMAT, outputs, versions])
    model = onnx.cached_model(key, lambda: onnx.convert(load("cpu").networks, config.model, preprocess, outputs))
    return OpenVino(model) if name == "openvino" else OnnxRuntime(model)


def is_installed(name: str) -> bool:
    """Whether a runtime and what it needs are there; nothing is imported."""
    return name == "jax" or all(importlib.util.find_spec(package) for package in (name, "jax2onnx"))


def choose_runtime(name: str, device: str, precision: str, tta: int = 1) -> str:
    """The runtime that is meant by one of ``RUNTIMES`` on a device, for a run with these settings ``train.precision`` and
    ``model.tta``.

    Raises:
      UsageError: a runtime that there is not, or that cannot compute this run.
      UserError: a runtime that is not installed.
    """
    if name not in RUNTIMES:
        raise UsageError(f"There is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}.")
    if name == "auto":
        # Another precision was asked for in training: only jax computes with the very same rounding.
        if device == "gpu" or precision not in ("auto", "float32") or tta > 1 or (device == "auto" and has_gpu()):
            return "jax"
        return next(filter(is_installed, TITLES))
    if name != "jax" and device == "gpu":
        raise UsageError(f"{TITLES[name]} is used on CPUs only; choose --runtime jax, or another --device.")
    if name != "jax" and tta > 1:
        # The converter takes ten times a batch of any size for the batch itself.
        problem = f"{TITLES[name]} takes one view of an image, and the run has model.tta {tta}"
        raise UsageError(f"{problem}; choose --runtime jax.")
    if not is_installed(name):
        raise UserError(f"{TITLES[name]} is not installed; run `pip install 'covidjax[{name}]'`, or choose --runtime auto.")
    return name


def has_gpu() -> bool:
    """Whether jax finds a GPU. Without one of its plugins it cannot, and is not imported to be asked.

    Raises:
      UserError: the user wants another device of jax, by its variables of the environment, which is not there.
    """
    plugins = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
    chosen = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or "cpu"
    if not plugins and chosen == "cpu":
        return False
    from covidjax import device

    return device.start().platform == "gpu"


class Jax:
    """The network as it was trained, in the precision of its settings, on the device that jax was started on."""

    def __init__(self, loaded: Any, outputs: Sequence[str]):
        import jax

        from covidjax.inference.forward import make_features, make_predict, probabilities

        model = loaded.run.config.model
        self.title = f"{TITLES['jax']} {jax.__version__}"
        self._predict = make_predict(loaded.network, model)
        self._probabilities = jax.jit(lambda logits: probabilities(logits, model))
        self._features = make_features(loaded.network, model) if tuple(outputs) == ("features",) else None
        self._weights = loaded.networks

    def __call__(self, images: np.ndarray) -> Sequence[Any]:
        from covidjax import device

        with device.own_flags():
            # They move with the first batch, and where one of another size is shared by other devices.
            self._weights = device.replicate(self._weights, device.mesh(len(images)))
            if self._features:
                return (self._features(self._weights[0], images),)
            logits, features = self._predict.outputs(self._weights, images)
            return self._probabilities(logits), features


def import_openvino() -> Any:
    """The package, which tells its maker over the network when it is imported, unless this package of it is not there."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    import openvino

    return openvino


class OpenVino:
    """A converted network in float32. In bfloat16, which OpenVINO would choose of itself where the CPU has it, the
    probabilities of a trained DarkCovidNet differ by up to 0.01, ten times what is allowed."""

    def __init__(self, model: bytes):
        openvino = import_openvino()
        self.title = f"{TITLES['openvino']} {openvino.__version__.split('-')[0]}"
        self._core = openvino.Core()
        self._model = self._core.read_model(io.BytesIO(model))
        self._requests: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        """A request computes one batch at a time, with all cores: other threads wait for their turn."""

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with self._lock:
            return self._infer(images)

    def _infer(self, images: np.ndarray) -> Sequence[np.ndarray]:
        if images.shape not in self._requests:
            self._model.reshape(list(images.shape))
            threads = environment.cores()
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            compiled = self._core.compile_model(self._model, "CPU", settings)
            self._requests[images.shape] = compiled.create_infer_request()
        outputs = self._requests[images.shape].infer([images])
        return [array.copy() for array in outputs.values()]  # the next batch overwrites the request's own buffers


class OnnxRuntime:
    """A converted network in float32."""

    def __init__(self, model: bytes):
        onnxruntime = onnx.import_onnxruntime()
        self.title = f"{TITLES['onnxruntime']} {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = environment.cores()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: images})
