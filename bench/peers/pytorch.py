"""PyTorch as a contender: the twin network with the same weights, by the means that PyTorch's own tuning guide names
(https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html): one thread a core, inference mode, gradients set to
None, fused Adam, channels-last, autocast, CUDA graphs, ``torch.compile``."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.harness import Missing
from bench.machine import cores
from bench.peers.arrays import Arrays
from bench.peers.twin import Twin, cnn13

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Network:
    """``weights`` is a file of DarkCovidNet's; without one the named ``model`` starts from PyTorch's own."""

    def __init__(
        self,
        batch: str,
        weights: str,
        precision: str,
        channels_last: bool,
        compiled: str,
        graphed: bool = False,
        model: str = "darkcovidnet",
        width: int = 16,
    ):
        torch.set_num_threads(cores())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        elif compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise Missing("torch.compile needs a C++ compiler")
        with np.load(batch) as stored:
            images, labels = stored["images"], stored["labels"]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.pixels = pixels.to(self.device, memory_format=layout)
        self.labels = torch.from_numpy(labels).long().to(self.device)
        shape = images.shape[1], images.shape[3], 3
        network: Any = cnn13(*shape, width) if model == "cnn13" else Twin(*shape)
        if weights:
            network.load(Arrays(weights))
        self.model: Any = network.to(self.device, memory_format=layout)
        self.layout, self.dtype = layout, PRECISIONS[precision]
        self.compiled, self.graphed = compiled, graphed
        self.images = len(images)

    def autocast(self) -> Any:
        # The cache of cast weights would be filled outside of a graph and used in it.
        cached = not self.graphed
        return (
            torch.autocast(self.device.type, self.dtype, cache_enabled=cached) if self.dtype else contextlib.nullcontext()
        )

    def compile(self, function: Any) -> Any:
        return torch.compile(function, mode=self.compiled) if self.compiled else function

    def inputs(self) -> torch.Tensor:
        """The batch, as ``covidjax.inference.forward.normalize`` makes it: timed on every side."""
        return ((self.pixels.float() / 255 - 0.5) / 0.25).contiguous(memory_format=self.layout)

    def capture(self, function: Callable[[], torch.Tensor], warm_up: Callable[[], object]) -> Callable[[], torch.Tensor]:
        """The function as a CUDA graph, after the calls on a stream of their own that the manual asks for
        (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs); its result is overwritten by every replay."""
        if self.device.type != "cuda":
            raise Missing("CUDA graphs need a GPU")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                warm_up()
        torch.cuda.current_stream().wait_stream(stream)
        self.before_capture()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def before_capture(self) -> None:
        """What is to be done between warming up and capturing."""

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Train(_Network):
    """Full steps: normalisation, forward, backward, Adam. ``first`` is how many steps ``answer`` takes the mean of."""

    def __init__(self, *, first: int = 1, **options: Any):
        super().__init__(**options)
        self._first = first
        self.model.train()
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True, capturable=self.graphed)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._loss = self.compile(self._loss_of)
        self._step = self._graphed_step() if self.graphed else self._eager_step

    def _loss_of(self) -> torch.Tensor:
        with self.autocast():
            logits = self.model(self.inputs())
        return torch.nn.functional.cross_entropy(logits.float(), self.labels)

    def _eager_step(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward()
        self._update()
        return loss

    def _backward(self) -> torch.Tensor:
        loss = self._loss()
        self._scaler.scale(loss).backward()
        return loss.detach()

    def _update(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _graphed_step(self) -> Callable[[], torch.Tensor]:
        """The whole step as one graph; with a loss scale, as the manual says, all but the optimizer."""
        before, scale = {name: value.clone() for name, value in self.model.state_dict().items()}, self._scaler.get_scale()

        def whole() -> torch.Tensor:
            loss = self._backward()
            self._update()
            return loss

        replay = self.capture(self._backward if self._scaler.is_enabled() else whole, self._eager_step)
        # As if no step had been taken yet.
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(before[name])
            for state in self._optimizer.state.values():
                for value in state.values():
                    value.zero_()
        if self._scaler.is_enabled():
            self._scaler.update(scale)

        def step() -> torch.Tensor:
            loss = replay()
            self._update()
            return loss

        return step if self._scaler.is_enabled() else replay

    def before_capture(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)  # the graph makes gradients of its own, in the same place every time

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._step()
        self.wait()

    def answer(self) -> list[float]:
        """Mean loss of the first steps."""
        return [float(np.mean([self._step().item() for _ in range(self._first)]))]


class Forward(_Network):
    """From uint8 pixels to logits."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.model.eval()
        self._logits = self.compile(self._logits_of)
        if self.graphed:
            with torch.inference_mode():
                self._logits = self.capture(self._logits_of, self._logits_of)

    def _logits_of(self) -> torch.Tensor:
        with self.autocast():
            return self.model(self.inputs())

    @torch.inference_mode()
    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._logits()
        self.wait()

    @torch.inference_mode()
    def answer(self) -> list[float]:
        """Probabilities."""
        return torch.softmax(self._logits().float(), 1).ravel().tolist()


class _FromPixels(torch.nn.Module):
    def __init__(self, network: Twin):
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network((pixels.float() / 255 - 0.5) / 0.25), 1)


def write_onnx(weights: str, size: int, batch: int, out: str) -> None:
    """The network, from uint8 pixels ``[B, 1, S, S]`` to probabilities, as an ONNX file of one batch size."""
    network = Twin(size, 1, 3)
    network.load(Arrays(weights))
    pixels = torch.zeros(batch, 1, size, size, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The exporter that is new since PyTorch 2.9 needs further packages; for this network the older one will do.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _FromPixels(network).eval(), (pixels,), out, dynamo=False, opset_version=17, input_names=["pixels"]
        )
