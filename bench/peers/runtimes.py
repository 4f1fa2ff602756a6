"""ONNX Runtime and OpenVINO, driven by hand on the ONNX file that PyTorch wrote of the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.machine import cores
from covidjax.inference.onnx import import_onnxruntime
from covidjax.inference.runtimes import import_openvino


def _pixels(batch: str) -> np.ndarray:
    with np.load(batch) as stored:
        return np.ascontiguousarray(stored["images"].transpose(0, 3, 1, 2))


class OnnxRuntime:
    """One session, one thread a core."""

    def __init__(self, batch: str, model: str):
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._pixels = _pixels(batch)
        self.images = len(self._pixels)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._session.run(None, {"pixels": self._pixels})

    def answer(self) -> list[float]:
        """Probabilities."""
        outputs: Any = self._session.run(None, {"pixels": self._pixels})[0]
        return outputs.ravel().tolist()


class OpenVino:
    """Compiled for latency (one batch on all cores) or for throughput (several batches at once).

    Args:
      batch: file of images.
      model: ONNX file.
      precision: the inference precision that is hinted, ``f32`` or ``bf16``.
      hint: ``LATENCY`` or ``THROUGHPUT``.
    """

    def __init__(self, batch: str, model: str, precision: str, hint: str):
        core = import_openvino().Core()
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": cores()}
        compiled = core.compile_model(model, "CPU", settings)
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests = [compiled.create_infer_request() for _ in range(count)]
        self._pixels = _pixels(batch)
        self.images = len(self._pixels) * len(self._requests)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.note = "" if used == precision else f"computes in {used}"

    def run(self, calls: int) -> None:
        for _ in range(calls):
            for request in self._requests:
                request.start_async({"pixels": self._pixels}, share_inputs=True)
            for request in self._requests:
                request.wait()

    def answer(self) -> list[float]:
        """Probabilities."""
        self.run(1)
        return self._requests[0].get_output_tensor(0).data.ravel().tolist()
