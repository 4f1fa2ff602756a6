"""Scoring films: a trained classifier, and a stream of rows, one for every file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covidjax.errors import UserError
from covidjax.images import stream
from covidjax.images.archives import Source
from covidjax.images.decode import Invert
from covidjax.images.formats import Limits
from covidjax.inference.memory import MicroBatcher
from covidjax.inference.runtimes import Runtime, open_runtime
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.segmenter import open_segmenter
from covidjax.runs import load
from covidjax.runs.folder import Run


class Row(NamedTuple):
    """What became of one file."""

    path: str
    status: str
    """``ok`` or ``error``."""
    prediction: str
    """Class name; empty on an error."""
    confidence: float | None
    """Probability of the prediction."""
    probabilities: dict[str, float]
    """By class name; empty on an error."""
    error: str
    """The reason; empty where there is none."""
    warning: str = ""
    """What speaks against relying on the row: a film that is no frontal chest film, or was a negative."""
    lungs: str = ""
    """``crop`` or ``mask`` where that was done, as in training, or why the film was kept whole; empty for a model that was
    trained on whole films."""

    def cells(self, classes: Sequence[str], *, lungs: bool = False) -> dict[str, Any]:
        """The output columns, ``path,status,prediction,confidence,p_<class>…,error,warning``, and ``lungs`` if wanted."""
        return {
            "path": self.path,
            "status": self.status,
            "prediction": self.prediction,
            "confidence": self.confidence,
            **{f"p_{name}": self.probabilities.get(name) for name in classes},
            "error": self.error,
            "warning": self.warning,
            **({"lungs": self.lungs} if lungs else {}),
        }


class Timing:
    """Seconds by stage of a scoring run. Decoding goes on beside the model, on several threads, whose times are added up;
    so the stages do not add up to the wall time."""

    def __init__(self) -> None:
        self.decode = self.lungs = self.model = self.write = 0.0
        self.files = self.films = 0
        self._start = time.perf_counter()
        self.wall = 0.0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Counts the time of the block as writing."""
        start = time.perf_counter()
        yield
        self.write += time.perf_counter() - start

    def stop(self) -> None:
        """Take the wall time."""
        self.wall = time.perf_counter() - self._start

    def stages(self) -> list[tuple[str, float, int]]:
        """(stage, seconds, images); ``lungs`` only where they were looked for."""
        return [
            ("decode", self.decode, self.files),
            *([("lungs", self.lungs, self.films)] if self.lungs else []),
            ("model", self.model, self.films),
            ("write", self.write, self.files),
            ("wall", self.wall, self.files),
        ]


class Classifier:
    """A trained run, ready to score films. Made by ``Classifier.load`` or ``covidjax.load``.

    Attributes:
      checkpoint: which of the run's weights compute, in words.
      classes: class names, in the order of the probabilities.
      run: settings and preprocessing of the run.
      runtime: what computes, with its version.
      segmenter: what finds the lungs, or None for a model that was trained on whole films.
    """

    def __init__(self, run: Run, runtime: Runtime, checkpoint: str, segmenter: lung_stream.Segmenter | None = None):
        self.run, self.preprocess, self.classes = run, run.preprocess, run.preprocess.classes
        self.checkpoint, self.runtime, self.segmenter = checkpoint, runtime.title, segmenter
        self._runtime = runtime

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
        computes = open_runtime(
            runtime, device, trained.config, trained.preprocess, digests=load.digests(path), load=loader
        )
        segmenter = None if trained.preprocess.lungs == "none" else open_segmenter(device, runtime)
        return cls(trained, computes, load.describe(path), segmenter)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B, S, S, 1]``, preprocessed → float32 ``[B, classes]``, each row adding up to 1."""
        return np.asarray(self._runtime(images))

    def score(
        self,
        paths: Iterable[Source],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        invert: Invert | None = None,
        limits: Limits = Limits(),
        timing: Timing | None = None,
    ) -> Iterator[Row]:
        """One row for every file, in order. Decoding runs ahead of the model in processes; memory is bounded.

        Args:
          paths: files, or a single one; folders and archives are not searched here, see ``find_films``.
          batch_size: images in one call of the model; the last batch is padded, so one shape is compiled. Where the device
            has not enough memory for it, it is halved until it has, which is logged.
          workers: decoding processes; one a core and one more if None.
          invert: whether negatives are turned into positives; as in training if None.
          limits: what one file may take.
          timing: filled in as the rows are taken.

        Raises:
          UserError: the device has not enough memory for a single image.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        timing = timing or Timing()
        paths = list(paths)
        batch_size = min(batch_size, 1 << max(len(paths) - 1, 0).bit_length())
        preprocess = dataclasses.replace(self.preprocess, invert=invert or self.preprocess.invert)
        size = preprocess.image_size
        # While the model is at a batch, the threads fill the next.
        ahead = max(stream.PREFETCH, batch_size)
        if self.segmenter:
            segmenter = MicroBatcher(self.segmenter, self.segmenter.size, self.segmenter.title, self.segmenter.digest)
            found = lung_stream.read_lungs(paths, preprocess, segmenter, workers=workers, digest=False, limits=limits)
        else:
            found = stream.read_images(paths, preprocess, workers=workers, ahead=ahead, digest=False, limits=limits)
        runtime = MicroBatcher(self._runtime, size, self.runtime)
        waiting: list[tuple[list[stream.LoadedImage], Any]] = []
        for films in _grouped(found, batch_size):
            timing.files += len(films)
            timing.decode += sum(film.decode_seconds for film in films)
            timing.lungs += sum(film.lungs_seconds for film in films)
            images = [film.image for film in films if film.image is not None]
            result = None
            if images:
                start = time.perf_counter()
                batch = np.zeros((batch_size, size, size, 1), np.uint8)
                batch[: len(images)] = images
                result = runtime(batch)
                timing.model += time.perf_counter() - start
                timing.films += len(images)
            waiting.append((films, result))
            # The rows of the batch before: its result was computed while this one was decoded.
            if len(waiting) > 1:
                yield from self._rows(*waiting.pop(0), timing)
        for films, result in waiting:
            yield from self._rows(films, result, timing)

    def _rows(self, films: list[stream.LoadedImage], result: Any, timing: Timing) -> Iterator[Row]:
        start = time.perf_counter()
        values = iter(()) if result is None else iter(np.asarray(result).tolist())
        timing.model += time.perf_counter() - start
        for film in films:
            if film.image is None:
                yield Row(film.path, "error", "", None, {}, film.error)
                continue
            probabilities = dict(zip(self.classes, next(values), strict=True))
            if not all(map(math.isfinite, probabilities.values())):
                reason = "the model gave no number: its weights are not finite"
                yield Row(film.path, "error", "", None, {}, reason, film.warning, film.lungs)
                continue
            best = max(probabilities, key=probabilities.__getitem__)
            yield Row(film.path, "ok", best, probabilities[best], probabilities, "", film.warning, film.lungs)


def _grouped(films: Iterator[stream.LoadedImage], size: int) -> Iterator[list[stream.LoadedImage]]:
    """Groups of up to ``size`` readable films; the unreadable ones between them travel along, so order is kept."""
    group: list[stream.LoadedImage] = []
    readable = 0
    for film in films:
        group.append(film)
        readable += film.image is not None
        # A long run of bad files must not pile up either.
        if readable == size or len(group) == 4 * size:
            yield group
            group, readable = [], 0
    if group:
        yield group
