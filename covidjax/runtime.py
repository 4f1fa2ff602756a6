"""What computes the probabilities of a trained run: JAX, or OpenVINO or ONNX Runtime from the same weights.

On CPUs both are ahead of XLA. jax2onnx writes the network from pixels to probabilities as ONNX, and ONNX Runtime's own
basic optimisations fold batch normalisation into the convolutions and take jax's channels-last order out of it, without
which OpenVINO spends half its time turning arrays over. The outcome is kept in the user's cache folder, so that the next
scoring with the same weights imports neither the converter nor jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import platformdirs

from covidjax import networks
from covidjax.config import Run, UsageError, UserError

CHOICES = ("auto", "jax", "openvino", "onnxruntime")
KEPT = 16
"""Converted networks that are kept in the cache folder; the longest unused ones go."""

TITLES = {"jax": "JAX", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
_FASTEST_ON_CPU = ("openvino", "onnxruntime")
_NEEDED = {"openvino": ("openvino", "jax2onnx"), "onnxruntime": ("onnxruntime", "jax2onnx")}
_OPSET = 21


class Runtime(Protocol):
    """Computes probabilities."""

    title: str
    """For the reader, with the version."""

    def __call__(self, images: np.ndarray) -> Any:
        """uint8 ``[B, S, S, 1]``, preprocessed → float32 ``[B, classes]``, each row adding up to 1; what comes back may
        still be computing until ``np.asarray`` is taken of it. Every new ``B`` is compiled once."""
        ...


class Opened(NamedTuple):
    """A trained run, ready to compute."""

    run: Run
    described: str
    """What of the run computes, such as ``last checkpoint, step 120``."""
    runtime: Runtime


def open_run(path: Path, device: str = "auto", name: str = "auto") -> Opened:
    """Make a trained run ready.

    Args:
      path: its folder, or what ``networks.save`` wrote; of a cross-validation or an ensemble the probabilities are the
        means of all its networks'.
      device: ``auto``, ``cpu`` or ``gpu``.
      name: one of ``CHOICES``; ``auto`` is jax on a GPU, and on a CPU the first that is installed of OpenVINO, ONNX
        Runtime and jax, which is their order of speed.

    Raises:
      UserError: no run, a damaged checkpoint, no such device, or a runtime that is not installed.
    """
    run = networks.settings(path)
    if run.config.model.name == "lung-unet":
        raise UserError(f"{path} finds lungs, not classes; use it with `covidjax segment --checkpoint {path}`.")
    name = choose(name, device, run.config.train.precision, run.config.model.views)
    if name == "jax":
        from covidjax.trained import load_run

        loaded = load_run(path, device)
        return Opened(loaded.run, networks.described(path), Jax(loaded))
    model = _converted(path, run)
    return Opened(run, networks.described(path), OpenVino(model) if name == "openvino" else OnnxRuntime(model))


def installed(name: str) -> bool:
    """Whether a runtime and what it needs are there; nothing is imported."""
    return all(importlib.util.find_spec(package) for package in _NEEDED.get(name, ()))


def choose(name: str, device: str, precision: str, views: int = 1) -> str:
    """The runtime that is meant by one of ``CHOICES`` on a device, for a run of the given ``train.precision`` and
    ``model.views``."""
    if name not in CHOICES:
        raise UsageError(f"There is no runtime {name!r}; choose one of {', '.join(CHOICES)}.")
    if name == "auto":
        # Another precision was asked for in training: only jax computes with the very same rounding.
        if device == "gpu" or precision not in ("auto", "float32") or views > 1 or (device == "auto" and has_gpu()):
            return "jax"
        return next((each for each in _FASTEST_ON_CPU if installed(each)), "jax")
    if name != "jax" and device == "gpu":
        raise UsageError(f"{TITLES[name]} is used on CPUs only; choose --runtime jax, or another --device.")
    if name != "jax" and views > 1:
        # The converter takes ten times a batch of any size for the batch itself.
        raise UsageError(
            f"{TITLES[name]} takes one view of a film, and the run has model.views {views}; choose --runtime jax."
        )
    if not installed(name):
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

        from covidjax.trained import make_predict

        self.title = f"{TITLES['jax']} {jax.__version__}"
        self._predict = make_predict(loaded.network, loaded.run.config.model)
        self._softmax = jax.jit(jax.nn.softmax)
        self._weights = loaded.members

    def __call__(self, images: np.ndarray) -> Any:
        from covidjax import device

        # They move with the first batch, and where one of another size is shared by other devices.
        self._weights = device.on_all(self._weights, device.mesh(len(images)))
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


def _converted(path: Path, run: Run) -> bytes:
    """The run as ONNX, from the cache or made anew and put there."""
    weights = networks.digests(path)
    versions = [importlib.metadata.version(package) for package in ("covidjax", "jax2onnx", "onnxruntime")]
    key = json.dumps([weights, asdict(run.config.model), asdict(run.preprocess), _OPSET, versions])
    return kept(key, lambda: convert(path))


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """A converted network from the cache, or made anew and put there."""
    file = cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx"
    with contextlib.suppress(OSError):
        kept = file.read_bytes()
        if hashlib.sha256(kept[32:]).digest() == kept[:32]:
            os.utime(file)
            return kept[32:]
    model = make()
    # A cache that cannot be written costs the next scoring some seconds, and nothing else.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial-{os.getpid()}")
        partial.write_bytes(hashlib.sha256(model).digest() + model)
        partial.replace(file)
        for old in sorted(file.parent.glob("*.onnx"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return model


def cache() -> Path:
    """The folder of the converted networks."""
    return platformdirs.user_cache_path("covidjax") / "models"


def convert(path: Path) -> bytes:
    """A trained run as ONNX, from uint8 ``[B, S, S, 1]`` to float32 probabilities ``[B, classes]``, with any ``B``.

    Raises:
      UserError: no usable run, or a network that the converter cannot write.
    """
    import jax
    import jax.numpy as jnp

    from covidjax.models import Network
    from covidjax.trained import load_run, make_forward

    loaded = load_run(path, "cpu")
    config, size = loaded.run.config, loaded.run.preprocess.image_size
    forward = make_forward(Network(config.model, loaded.run.preprocess, jnp.float32, plain=True), config.model)

    def predict(images: jax.Array) -> jax.Array:
        each = [jax.nn.softmax(forward(weights, images)) for weights in loaded.members]
        return sum(each[1:], each[0]) / len(each) if len(each) > 1 else each[0]

    try:
        return to_onnx(predict, size)
    except UserError as error:
        raise UserError(f"{path} cannot be converted ({error}); choose --runtime jax.") from error


def to_onnx(predict: Callable[[Any], Any], size: int) -> bytes:
    """A function of uint8 images ``[B, size, size, 1]`` as ONNX, with any ``B``.

    Raises:
      UserError: something in it that the converter cannot write; the message says what.
    """
    import jax
    import jax.numpy as jnp
    import onnxruntime

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        import jax2onnx

        try:
            images = jax.ShapeDtypeStruct(("B", size, size, 1), jnp.uint8)
            jax2onnx.to_onnx(predict, [images], opset=_OPSET, return_mode="file", output_path=f"{folder}/plain.onnx")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = f"{folder}/folded.onnx"
            onnxruntime.InferenceSession(f"{folder}/plain.onnx", options, providers=["CPUExecutionProvider"])
        # The converter answers what it does not know with errors of many kinds.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(reason) from error
        return Path(folder, "folded.onnx").read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's remarks, which no reader can act on."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
