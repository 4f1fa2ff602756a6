"""The lung segmenter, bundled or of a run, ready to compute."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.errors import UserError
from covidjax.inference.memory import MicroBatcher
from covidjax.inference.runtimes import open_runtime
from covidjax.runs import folder, load, weights_file

BUNDLED = weights_file.FOLDER / "lung_unet.safetensors"
"""The segmenter that the package carries; lung_unet.md beside it says what it is."""


class LoadedSegmenter:
    """A segmenter, ready to compute; a ``lungs.stream.Segmenter``.

    Args:
      path: a file of weights, or a run's folder.
      device: ``auto``, ``cpu`` or ``gpu``.
      runtime: see ``inference.runtimes.open_runtime``.

    Attributes:
      size: height and width of its images in pixels.
      title: for the reader, with the runtime's version.
      digest: of its weights, hexadecimal.
    """

    def __init__(self, path: Path, device: str, runtime: str):
        run, digests = load.read_run(path), load.digests(path)
        loader = partial(load.load_run, path)
        opened = open_runtime(runtime, device, run.config, run.preprocess, digests=digests, load=loader)
        self._compute = MicroBatcher(opened)
        self.size, self.digest = run.preprocess.image_size, digests[0]
        self.title = f"{path.stem} at {self.size}² on {opened.title}"

    def segment(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``[B, N, N, 1]`` → float32 ``[B, N, N]``, the probability that a pixel belongs to the lungs, and the pooled
        features of the encoder, float32 ``[B, F]``."""
        masks, features = self._compute(images).result()
        return masks, features


class Encoder:
    """The encoder of the bundled segmenter: the one network whose features are the same for every run.

    Args:
      device: ``auto``, ``cpu`` or ``gpu``.
      runtime: see ``inference.runtimes.open_runtime``.

    Attributes:
      size: height and width N of its images in pixels.
    """

    def __init__(self, device: str = "auto", runtime: str = "auto"):
        self._run, self._device, self._runtime = load.read_run(BUNDLED), device, runtime
        self.size = self._run.preprocess.image_size

    @functools.cached_property
    def _compute(self) -> MicroBatcher:
        """Opened when it is wanted, which it seldom is where a segmenter gives the features."""
        run, digests = self._run, load.digests(BUNDLED)
        options: Any = {"digests": digests, "load": partial(load.load_run, BUNDLED), "outputs": ("features",)}
        return MicroBatcher(open_runtime(self._runtime, self._device, run.config, run.preprocess, **options))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B, N, N, 1]`` → the features of ``LoadedSegmenter.segment``, float32 ``[B, F]``."""
        return self._compute(images).result()[0]


def open_segmenter(device: str = "auto", runtime: str = "auto", weights: Path | None = None) -> LoadedSegmenter:
    """Make the bundled segmenter ready.

    Args:
      device: ``auto``, ``cpu`` or ``gpu``.
      runtime: see ``inference.runtimes.open_runtime``.
      weights: a file of weights, or a run of ``covidjax train``, in place of the bundled ones.

    Raises:
      UserError: no weights, damaged ones, those of a classifier, no such device, or a runtime that is not installed.
    """
    path = weights or BUNDLED
    if not load.read_run(path).config.model.is_segmenter:
        raise UserError(f"{path} finds classes, not lungs; name a run of `covidjax train --model lung-unet`.")
    if not load.is_file(path) and (members := folder.member_folders(path)):
        raise UserError(f"{path} holds {len(members)} segmenters; name one of them, such as {members[0]}.")
    return LoadedSegmenter(path, device, runtime)
