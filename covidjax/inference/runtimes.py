"""What computes the probabilities of a trained run: JAX, or OpenVINO or ONNX Runtime from the same weights.

On CPUs both are ahead of XLA. jax2onnx writes the network from pixels to probabilities as ONNX, and ONNX Runtime's own
basic optimisations fold batch normalisation into the convolutions and take jax's channels-last order out of it, without
which OpenVINO spends half its time turning arrays over. The outcome is kept in the user's cache folder, so that the next
scoring with the same weights imports neither the converter nor jax.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import sys
from typing import Any, Protocol

import numpy as np

from covidjax.errors import UsageError, UserError

RUNTIMES = ("auto", "jax", "openvino", "onnxruntime")

TITLES = {"jax": "JAX", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

_FASTEST_ON_CPU = ("openvino", "onnxruntime")

_NEEDED = {"openvino": ("openvino", "jax2onnx"), "onnxruntime": ("onnxruntime", "jax2onnx")}


class Runtime(Protocol):
    """Computes probabilities."""

    title: str
    """For the reader, with the version."""

    def __call__(self, images: np.ndarray) -> Any:
        """uint8 ``[B, S, S, 1]``, preprocessed → float32 ``[B, classes]``, each row adding up to 1; what comes back may
        still be computing until ``np.asarray`` is taken of it. Every new ``B`` is compiled once."""
        ...


def is_installed(name: str) -> bool:
    """Whether a runtime and what it needs are there; nothing is imported."""
    return all(importlib.util.find_spec(package) for package in _NEEDED.get(name, ()))


def choose_runtime(name: str, device: str, precision: str, views: int = 1) -> str:
    """The runtime that is meant by one of ``RUNTIMES`` on a device, for a run of the given ``train.precision`` and
    ``model.views``."""
    if name not in RUNTIMES:
        raise UsageError(f"There is no runtime {name!r}; choose one of {', '.join(RUNTIMES)}.")
    if name == "auto":
        # Another precision was asked for in training: only jax computes with the very same rounding.
        if device == "gpu" or precision not in ("auto", "float32") or views > 1 or (device == "auto" and has_gpu()):
            return "jax"
        return next((each for each in _FASTEST_ON_CPU if is_installed(each)), "jax")
    if name != "jax" and device == "gpu":
        raise UsageError(f"{TITLES[name]} is used on CPUs only; choose --runtime jax, or another --device.")
    if name != "jax" and views > 1:
        # The converter takes ten times a batch of any size for the batch itself.
        raise UsageError(
            f"{TITLES[name]} takes one view of a film, and the run has model.views {views}; choose --runtime jax."
        )
    if not is_installed(name):
        raise UserError(f"{TITLES[name]} is not installed; run `pip install 'covidjax[{name}]'`, or choose --runtime auto.")
    return name


def has_gpu() -> bool:
    """Whether jax finds a GPU. Without one of its plugins it cannot, and is not imported to be asked."""
    if not importlib.util.find_spec("jax_plugins") and not importlib.metadata.entry_points(group="jax_plugins"):
        return False
    from covidjax import device

    return device.start().platform == "gpu"


class Jax:
    """The network as it was trained, in the precision of its settings, on the device that jax was started on."""

    def __init__(self, loaded: Any):
        import jax

        from covidjax.inference.forward import make_predict

        self.title = f"{TITLES['jax']} {jax.__version__}"
        self._predict = make_predict(loaded.network, loaded.run.config.model)
        self._softmax = jax.jit(jax.nn.softmax)
        self._weights = loaded.members

    def __call__(self, images: np.ndarray) -> Any:
        from covidjax import device

        # They move with the first batch, and where one of another size is shared by other devices.
        self._weights = device.replicate(self._weights, device.mesh(len(images)))
        return self._softmax(self._predict(self._weights, images))


class OpenVino:
    """A converted network in float32. In bfloat16, which OpenVINO would choose of itself where the CPU has it, the
    probabilities of a trained DarkCovidNet differ by up to 0.01, ten times what is allowed."""

    def __init__(self, model: bytes):
        # Importing openvino tells its maker over the network, unless this package of it is not to be had.
        sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
        import openvino

        self.title = f"{TITLES['openvino']} {openvino.__version__.split('-')[0]}"
        self._core = openvino.Core()
        self._model = self._core.read_model(io.BytesIO(model))
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        request = self._compiled.get(images.shape)
        if request is None:
            self._model.reshape(list(images.shape))
            threads = len(os.sched_getaffinity(0))
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            request = self._core.compile_model(self._model, "CPU", settings).create_infer_request()
            self._compiled[images.shape] = request
        return request.infer([images])[0].copy()  # its own buffer is written again by the next batch


class OnnxRuntime:
    """A converted network in float32."""

    def __init__(self, model: bytes):
        import onnxruntime

        self.title = f"{TITLES['onnxruntime']} {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: images})[0])
