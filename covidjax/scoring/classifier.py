"""A trained classifier, which scores images: a stream of rows, one for every file."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from covidjax.errors import UserError
from covidjax.images import stream
from covidjax.images.archives import Source
from covidjax.images.decode import Invert
from covidjax.images.formats import Limits
from covidjax.images.stream import LoadedImage
from covidjax.inference.memory import MicroBatcher, PendingOutputs
from covidjax.inference.runtimes import Runtime, open_runtime
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.segmenter import Encoder, open_segmenter
from covidjax.runs import load
from covidjax.runs.folder import Run
from covidjax.runs.trust_file import Trust
from covidjax.scoring.row import Row
from covidjax.timing import Timing
from covidjax.trust.calibration import calibrate, temperature_of
from covidjax.trust.gate import Gate


class Classifier:
    """A trained run, ready to score images. Made by ``Classifier.load`` or ``covidjax.load``.

    Attributes:
      run: settings and preprocessing of the run.
      preprocess: the run's preprocessing.
      classes: class names, in the order of the probabilities.
      checkpoint: which weights of the run are used, in words.
      runtime: name and version of the runtime.
      segmenter: finds the lungs; None for a model that was trained on whole images.
      trust: what is known of how far the scores can be trusted, see ``runs.trust_file``.
    """

    def __init__(
        self,
        run: Run,
        runtime: Runtime,
        checkpoint: str,
        segmenter: lung_stream.Segmenter | None = None,
        trust: Trust = MappingProxyType({}),
        open_gate: Callable[[], tuple[Gate, Encoder]] | None = None,
    ):
        self.run, self.preprocess, self.classes = run, run.preprocess, run.preprocess.classes
        self.checkpoint, self.runtime, self.segmenter = checkpoint, runtime.title, segmenter
        self.trust, self._temperature = trust, temperature_of(trust)
        self._compute = MicroBatcher(runtime)
        self._open_gate = functools.cache(open_gate) if open_gate else None

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, device: str = "auto", runtime: str = "auto") -> Classifier:
        """Load a run, or a classifier in one file.

        Args:
          run: its folder, or the file.
          device: ``auto``, ``cpu`` or ``gpu``.
          runtime: ``jax``, ``openvino``, ``onnxruntime``, or ``auto``: the fastest that is installed for the device.

        Raises:
          UserError: no run, a damaged checkpoint, no such device, a runtime that is not installed.
        """
        path = Path(run)
        trained = load.read_run(path)
        if trained.config.model.is_segmenter:
            raise UserError(f"{path} finds lungs, not classes; use it with `covidjax segment --checkpoint {path}`.")
        loader = partial(load.load_run, path)
        opened = open_runtime(runtime, device, trained.config, trained.preprocess, digests=load.digests(path), load=loader)
        segmenter = None if trained.preprocess.lungs == "none" else open_segmenter(device, runtime)
        trust = load.trust(path)

        def open_gate() -> tuple[Gate, Encoder]:
            encoder = Encoder(device, runtime)
            return Gate(trust, encoder), encoder

        return cls(trained, opened, load.describe(path), segmenter, trust, open_gate)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B, S, S, 1]``, preprocessed → float32 ``[B, classes]``, each row adding up to 1; calibrated
        where the run is."""
        return calibrate(self._compute(images).result()[0], self._temperature)

    def score(
        self,
        paths: Iterable[Source],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        invert: Invert | None = None,
        gate: bool = True,
        limits: Limits = Limits(),
        timing: Timing | None = None,
    ) -> Iterator[Row]:
        """One row for every file, in order. Decoding runs ahead of the model in processes; memory is bounded.

        Args:
          paths: files, or a single one; folders and archives are not searched here, see ``find_images``.
          batch_size: images in one call of the model; the last batch is padded, so one shape is compiled. Where the device
            has not enough memory for it, it is halved until it has, which is logged.
          workers: decoding processes; one a core and one more if None.
          invert: whether negatives are turned into positives; as in training if None.
          gate: refuse what is no frontal chest X-ray, or unlike all that the model was trained on, see ``trust.gate``; else
            blank images alone.
          limits: what one file may take.
          timing: gets the stages ``decode``, ``lungs``, ``gate`` and ``model`` as the rows are taken.

        Raises:
          UserError: the device has not enough memory for a single image.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        timing = timing or Timing()
        batch_size = min(batch_size, 1 << max(len(paths) - 1, 0).bit_length())
        opened = self._open_gate() if gate and self._open_gate else None
        thumbnail = opened[1].size if opened and not self.segmenter else None
        images = self._read(paths, batch_size, thumbnail, invert=invert, workers=workers, limits=limits)
        started = ((group, self._start(group, batch_size, timing)) for group in _grouped(images, batch_size))
        # The rows of a batch come when the next one has been started: its result is computed while that is decoded.
        for (group, result), _ in itertools.pairwise(itertools.chain(started, [([], None)])):
            yield from self._rows(group, result, opened, batch_size, timing)

    def _read(
        self,
        paths: Sequence[Source],
        batch_size: int,
        thumbnail: int | None,
        *,
        invert: Invert | None,
        workers: int | None,
        limits: Limits,
    ) -> Iterator[LoadedImage]:
        preprocess = dataclasses.replace(self.preprocess, invert=invert or self.preprocess.invert)
        if self.segmenter:
            return lung_stream.read_lungs(paths, preprocess, self.segmenter, workers=workers, digest=False, limits=limits)
        # While the model is at a batch, the threads fill the next.
        ahead = max(stream.PREFETCH, batch_size)
        options: Any = {"workers": workers, "ahead": ahead, "digest": False, "limits": limits}
        return stream.read_images(paths, preprocess, thumbnail=thumbnail, **options)

    def _start(self, group: list[LoadedImage], batch_size: int, timing: Timing) -> PendingOutputs | None:
        """Start computing the probabilities of a group's readable images; None where there are none."""
        readable = [image.image for image in group if image.image is not None]
        timing.add_seconds("decode", sum(image.decode_seconds for image in group), len(group))
        if self.segmenter:
            timing.add_seconds("lungs", sum(image.lungs_seconds for image in group), len(readable))
        if not readable:
            return None
        start = time.perf_counter()
        batch = np.zeros((batch_size, *readable[0].shape), np.uint8)
        batch[: len(readable)] = readable
        result = self._compute(batch)
        timing.add("model", start, len(readable))
        return result

    def _rows(
        self,
        group: list[LoadedImage],
        result: PendingOutputs | None,
        opened: tuple[Gate, Encoder] | None,
        batch_size: int,
        timing: Timing,
    ) -> Iterator[Row]:
        start = time.perf_counter()
        scores, features = result.result() if result else (np.zeros((0, 0)), np.zeros((0, 0)))
        outputs = iter(calibrate(scores, self._temperature).tolist() if len(scores) else ())
        timing.add("model", start)
        refusals: Iterator[str] = itertools.repeat("")
        if opened and len(scores):
            readable = [image for image in group if image.image is not None]
            start = time.perf_counter()
            fixed = _fixed_features(readable, opened[1], batch_size)
            refusals = iter(opened[0].refusals(readable, fixed, features[: len(readable)]))
            timing.add("gate", start, len(readable))
        for image in group:
            if image.image is None:
                yield Row(path=image.path, status="error", error=image.error)
                continue
            probabilities = dict(zip(self.classes, next(outputs), strict=True))
            refusal = next(refusals)
            refused = image.refused or refusal
            row = Row(path=image.path, status="ok", warning=image.warning, lungs=image.lungs)
            if not all(map(math.isfinite, probabilities.values())):
                yield row._replace(status="error", error="the model gave no number: its weights are not finite")
            elif refused:
                warning = "; ".join(filter(None, (refused, image.warning)))
                yield row._replace(status="refused", warning=warning, probabilities=probabilities)
            else:
                best = max(probabilities, key=probabilities.__getitem__)
                yield row._replace(prediction=best, confidence=probabilities[best], probabilities=probabilities)


def _fixed_features(images: Sequence[LoadedImage], encoder: Encoder, batch_size: int) -> np.ndarray:
    """Features of whole images by the fixed network, float32 ``[N, F]``: those that came with the lungs, or of the
    thumbnails, in a batch of one size."""
    if all(image.features is not None for image in images):
        return np.stack([image.features for image in images if image.features is not None])
    thumbnails = np.zeros((batch_size, encoder.size, encoder.size, 1), np.uint8)
    thumbnails[: len(images), ..., 0] = [image.thumbnail for image in images if image.thumbnail is not None]
    return encoder(thumbnails)[: len(images)]


def _grouped(images: Iterator[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Groups of up to ``size`` readable images; the unreadable ones between them travel along, so order is kept."""
    group: list[LoadedImage] = []
    readable = 0
    for image in images:
        group.append(image)
        readable += image.image is not None
        # A long run of bad files must not pile up either.
        if readable == size or len(group) == 4 * size:
            yield group
            group, readable = [], 0
    if group:
        yield group
