"""Scoring films: a trained classifier, and a stream of rows, one for every file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covidjax import archives, lungs, reading
from covidjax.collections.base import read_table, walk
from covidjax.collections.folder import class_of
from covidjax.config import Limits, Preprocess, Run, UserError
from covidjax.radiograph import SUFFIXES, Invert
from covidjax.reading import Source
from covidjax.runtime import Opened, open_run
from covidjax.segmenter import open_segmenter

LOG = logging.getLogger(__name__)


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
      classes: class names, in the order of the probabilities.
      run: settings and preprocessing of the run.
      runtime: what computes, with its version.
      segmenter: what finds the lungs, or None for a model that was trained on whole films.
    """

    def __init__(self, opened: Opened, segmenter: lungs.Segmenter | None = None):
        self.run: Run = opened.run
        self.preprocess: Preprocess = opened.run.preprocess
        self.classes = self.preprocess.classes
        self.checkpoint = opened.described
        self.runtime = opened.runtime.title
        self._runtime = opened.runtime
        self.segmenter = segmenter

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
        opened = open_run(Path(run), device, runtime)
        return cls(opened, None if opened.run.preprocess.lungs == "none" else open_segmenter(device, runtime))

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
        ahead = max(reading.AHEAD, batch_size)
        if self.segmenter:
            segmenter = Sparing(self.segmenter, self.segmenter.size, self.segmenter.title, self.segmenter.digest)
            stream = lungs.films(paths, preprocess, segmenter, workers=workers, digest=False, limits=limits)
        else:
            stream = reading.films(paths, preprocess, workers=workers, ahead=ahead, digest=False, limits=limits)
        runtime = Sparing(self._runtime, size, self.runtime)
        waiting: list[tuple[list[reading.Film], Any]] = []
        for films in _grouped(stream, batch_size):
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

    def _rows(self, films: list[reading.Film], result: Any, timing: Timing) -> Iterator[Row]:
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
                yield Row(film.path, "error", "", None, {}, reason, film.remark, film.lungs)
                continue
            best = max(probabilities, key=probabilities.__getitem__)
            yield Row(film.path, "ok", best, probabilities[best], probabilities, "", film.remark, film.lungs)


class Sparing:
    """Computes batches of images, and in smaller ones where the device has not enough memory, from then on.

    Args:
      compute: uint8 ``[B, S, S, 1]`` → an array ``[B, …]``, which may still be computing.
      size: S.
      title: what computes, for the reader.
      digest: of its weights, where it is a segmenter.
    """

    def __init__(self, compute: Callable[[np.ndarray], Any], size: int, title: str, digest: str = ""):
        self._compute, self.size, self.title, self.digest = compute, size, title, digest
        self._most: int | None = None

    def __call__(self, images: np.ndarray) -> Any:
        if self._most is None:
            # What cannot be had is told when the result is asked for at the latest.
            with contextlib.suppress(_OutOfMemory), _memory():
                return _Result(self, images, self._compute(images))
        return self.parts(images)

    def parts(self, images: np.ndarray) -> np.ndarray:
        """Compute a batch in parts that fit."""
        most = self._most or max(len(images) // 2, 1)
        while True:
            try:
                with _memory():
                    parts = [images[at : at + most] for at in range(0, len(images), most)]
                    padding = np.zeros((most * len(parts) - len(images), *images.shape[1:]), np.uint8)
                    parts[-1] = np.concatenate([parts[-1], padding])  # so that one shape is compiled
                    found = np.concatenate([np.asarray(self._compute(part)) for part in parts])[: len(images)]
            except _OutOfMemory as error:
                if most == 1:
                    raise UserError(
                        "The device has not enough memory for a single image; free some, or choose --device cpu."
                    ) from error
                most //= 2
                continue
            if self._most is None:
                said = "The device has not enough memory for batches of %d images; they have %d from now on."
                LOG.warning(said, len(images), most)
            self._most = most
            return found


class _Result:
    """A batch that is being computed."""

    def __init__(self, sparing: Sparing, images: np.ndarray, result: Any):
        self._sparing, self._images, self._result = sparing, images, result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            with _memory():
                return np.asarray(self._result, dtype)
        except _OutOfMemory:
            return self._sparing.parts(self._images).astype(dtype or np.float32)


class _OutOfMemory(Exception):
    """By whatever the runtime calls it."""


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise _OutOfMemory from error
        raise


def _grouped(films: Iterator[reading.Film], size: int) -> Iterator[list[reading.Film]]:
    """Groups of up to ``size`` readable films; the unreadable ones between them travel along, so order is kept."""
    group: list[reading.Film] = []
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


class Found(NamedTuple):
    """What ``find_films`` found."""

    paths: list[Source]
    passed_over: int
    """Files in folders and archives that are no images, by their ending."""
    roots: list[Path]
    """The given paths that are folders or archives."""


def find_films(paths: Sequence[Path]) -> Found:
    """All films below the given folders, sorted by name, those in archives, given or below the folders, in their own order,
    and every other given path as it is, in the order given. A folder or an archive that cannot be read stands for itself.

    Raises:
      UserError: nothing found.
    """
    found: list[Source] = []
    passed_over = 0
    roots = []
    for path in paths:
        inside, unreadable = [path], []
        if path.is_dir():
            roots.append(path)
            inside, others, unreadable = walk(path, archives=True)
            passed_over += others
        elif archives.is_archive(path) and path.is_file():
            roots.append(path)
        for file in inside:
            if not (archives.is_archive(file) and file.is_file()):
                found.append(os.fspath(file))
                continue
            members = archives.members(os.fspath(file))
            found += members.films
            passed_over += members.others
            if members.fault:
                found.append(archives.Loaded(os.fspath(file), None, members.fault))
        for folder, reason in unreadable:
            found.append(archives.Loaded(os.fspath(folder), None, f"a folder that cannot be read: {reason}"))
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        named = ", ".join(map(str, paths[:5])) + ", …" * (len(paths) > 5)
        raise UserError(f"There is no film in {named}; files ending in {endings} are looked for.")
    return Found(found, passed_over, roots)


def listed(text: bytes) -> list[Path]:
    """The paths of a list, one a line, or ended by NUL bytes where there is any: as ``find`` prints them."""
    end = b"\0" if b"\0" in text else b"\n"
    return [Path(os.fsdecode(name)) for name in text.split(end) if name]


Truth = Callable[[str], str | None]
"""Path → class name, or None where it is not known."""


def truth_from_folders(roots: Sequence[Path]) -> Truth:
    """The class that the nearest folder above a film is named after (``Covid-19``, ``NORMAL``, …), if any is, among those
    below a given root: what the root lies in, a project called covid perhaps, says nothing of its films."""

    def look_up(path: str) -> str | None:
        for root in roots:
            if Path(path).is_relative_to(root):
                folders = Path(path).relative_to(root).parts[:-1]
                return next((label for name in reversed(folders) if (label := class_of(name))), None)
        return None

    return look_up


def truth_from_csv(file: Path, classes: Sequence[str]) -> Truth:
    """Looks a film's class up in a table with the columns ``path`` and ``label``, by its path or by its file name alone.

    Raises:
      UserError: no such file or columns, a label that is none of the model's classes, one name with two labels.
    """
    labels: dict[str, str] = {}
    for number, row in enumerate(read_table(file, "path", "label"), 2):
        label = class_of(row["label"])
        if label is None or label not in classes:
            known = ", ".join(classes)
            raise UserError(f"{file}, row {number}: {row['label']!r} is no class of the model; use one of {known}.")
        if labels.setdefault(row["path"], label) != label:
            raise UserError(f"{file} gives {row['path']} two labels; remove one.")
    labels = {os.path.normpath(path): label for path, label in labels.items()}
    return lambda path: labels.get(os.path.normpath(path)) or labels.get(Path(path).name)
