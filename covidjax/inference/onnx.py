"""Networks as ONNX: converting them, and the cache of converted ones.

jax2onnx writes the network from pixels to probabilities as ONNX, and ONNX Runtime's own basic optimizations fold batch
normalization into the convolutions and take jax's channels-last order out of it, without which OpenVINO spends half its
time transposing arrays. The converted network is kept in the user's cache folder, so that the next scoring with the
same weights imports neither the converter nor jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from covidjax.config import ModelConfig, Preprocess
from covidjax.errors import UserError, one_line
from covidjax.files import cached

CACHED_MODELS = 16
"""Converted networks that are kept in the cache folder; the longest unused ones go."""

OPSET = 21

FORMAT = 2
"""Of the converted networks' outputs, to be raised when these change."""

OUTPUTS = ("probabilities", "features")
"""What a converted network gives, by name and in this order."""

_converting = threading.Lock()
"""Converting silences warnings and standard output, which all threads share."""


def import_onnxruntime() -> Any:
    """The package, which from 1.29 on reports to its maker over the network, and keeps a number for the machine in the
    user's cache, unless this variable is set before it is imported."""
    if not os.environ.get("ORT_DISABLE_TELEMETRY"):
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def cached_model(key: str, make: Callable[[], bytes]) -> bytes:
    """A converted network from the cache, or made anew and put there."""
    file = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx"
    with _converting:
        return cached(file, make, keep=CACHED_MODELS)


def cache_folder() -> Path:
    """The folder of the converted networks."""
    return platformdirs.user_cache_path("covidjax") / "models"


def convert(networks: Sequence[Any], model: ModelConfig, preprocess: Preprocess, outputs: Sequence[str] = OUTPUTS) -> bytes:
    """Trained networks as ONNX, from uint8 ``[B, S, S, 1]`` to float32 probabilities as ``forward.probabilities`` gives
    them and pooled features ``[B, F]``, by one graph, with any ``B``.

    Args:
      networks: ``models.Weights`` of each; of several the probabilities are the means.
      model: which network.
      preprocess: size of the images, and classes.
      outputs: those of ``OUTPUTS`` that are wanted; what leads to the others only is left out.

    Raises:
      UserError: something in the network that the converter cannot write.
    """
    import jax
    import jax.numpy as jnp

    from covidjax import device
    from covidjax.inference.forward import combine, make_forward, probabilities
    from covidjax.models import create_model

    forward = make_forward(create_model(model, preprocess, jnp.float32, plain=True), model)

    def predict(images: Any) -> Any:
        logits, features = combine([forward(weights, images) for weights in networks])
        computed = {"probabilities": probabilities(logits, model), "features": features}
        return tuple(computed[name] for name in outputs)

    side = preprocess.image_size
    try:
        with device.own_flags():
            return _to_onnx(predict, jax.ShapeDtypeStruct(("B", side, side, 1), jnp.uint8), outputs)
    # The converter answers what it does not know with errors of many kinds.
    except Exception as error:
        raise UserError(f"The network cannot be converted ({one_line(error)}); choose --runtime jax.") from error


def _to_onnx(predict: Callable[[Any], Any], images: Any, names: Sequence[str]) -> bytes:
    """A function of images, whose shape and dtype are given as ``jax.ShapeDtypeStruct``, as ONNX."""
    onnxruntime = import_onnxruntime()  # before the converter, which imports it too
    # No reader can act on the converter's remarks.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as folder,
    ):
        import jax2onnx

        options = {"opset": OPSET, "output_names": names, "return_mode": "file", "output_path": f"{folder}/plain.onnx"}
        jax2onnx.to_onnx(predict, [images], **options)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(f"{folder}/plain.onnx", options, providers=["CPUExecutionProvider"])
        return Path(folder, "folded.onnx").read_bytes()
