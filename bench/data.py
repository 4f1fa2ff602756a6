"""What the benchmarks measure on: films of hospital size, datasets, a trained run; made once, in the user's cache.

Films are drawn by ``covidjax.data.synthetic`` at 512 pixels, enlarged, and given noise until they have as many bytes a
pixel as published ones: NIH ChestX-ray8 1024² PNGs have 0.32 to 0.44, large JPEGs of ieee8023 0.09 to 0.18.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.harness import Missing
from bench.machine import COVIDJAX, ROOT, cache, environment, say

VERSION = "3"
"""To be raised when what is made below changes."""


class Kind(NamedTuple):
    """A kind of film files."""

    ending: str
    height: int
    width: int
    noise: float
    """Standard deviation, in gray values."""


KINDS = {
    "png": Kind(".png", 1024, 1024, 0.5),
    "jpeg": Kind(".jpg", 2500, 2000, 2.0),
    "small": Kind(".png", 256, 256, 0.5),
}


def _made(name: str, make: Callable[[Path], object]) -> Path:
    """What has that name in the cache, made first if it is not there; it appears whole or not at all."""
    folder = cache() / VERSION
    folder.mkdir(exist_ok=True)
    path = folder / name
    if not path.exists():
        say(f"Making {path} ...")
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(unfinished)
        make(unfinished)
        unfinished.rename(path)
    return path


def films(kind: str, count: int, distinct: int) -> Path:
    """A folder of that many files of a kind; only some are drawn, the others are hard links to them."""
    originals = _made(f"films-{kind}-{distinct}", partial(_draw, KINDS[kind], distinct))
    return _made(f"films-{kind}-{distinct}x{count}", partial(_link, sorted(originals.iterdir()), count))


def _draw(kind: Kind, count: int, out: Path) -> None:
    from covidjax.data import synthetic

    out.mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        film = Image.fromarray(synthetic.draw(index, seed=2, size=512).image)
        large = np.asarray(film.resize((kind.width, kind.height), Image.Resampling.BICUBIC), np.float32)
        noisy = large + kind.noise * rng.standard_normal(large.shape, dtype=np.float32) + 0.5
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(out / f"{index:05d}{kind.ending}", quality=90)


def _link(files: list[Path], count: int, out: Path) -> None:
    out.mkdir()
    for index in range(count):
        original = files[index % len(files)]
        os.link(original, out / f"{index:06d}{original.suffix}")


def dataset(images: int, size: int, folds: int = 5) -> Path:
    """A prepared dataset of synthetic films; from 600 on the same films come again."""
    return _made(f"dataset-{images}-{size}-{folds}", partial(_prepare, images, size, folds))


def _prepare(images: int, size: int, folds: int, out: Path) -> None:
    from covidjax.config import Preprocess
    from covidjax.data import synthetic
    from covidjax.data.readers.base import Example
    from covidjax.data.writer import create_dataset

    drawn = list(synthetic.draw_images(min(images, 600), size=size))
    with create_dataset(out, Preprocess(image_size=size), folds) as writer:
        for index in range(images):
            film = drawn[index % len(drawn)]
            name = f"{film.patient}-{index:06d}.png"
            digest = hashlib.sha256(name.encode()).hexdigest()
            label = synthetic.CLASSES[film.label]
            # By the patient, not the film: the class must not tell the fold.
            fold = index // 6 % folds
            writer.add(fold, Example(Path(name), label, film.patient, "synthetic"), film.image[..., None], digest)
        writer.close()


def run(size: int) -> Path:
    """A run of two short epochs: weights and batch statistics as training leaves them."""
    return _made(f"run-{size}", partial(_train, size))


def _train(size: int, out: Path) -> None:
    data = dataset(96, size, 3)
    command = [*COVIDJAX, "train", "--data", str(data), "--epochs", "2", "--run", str(out), "--set", "train.batch_size=16"]
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.run(command, env=environment(), stdout=nowhere, stderr=pipe, text=True)
    if process.returncode:
        raise RuntimeError(f"covidjax train failed: {process.stderr[-2000:]}")


def weights(size: int) -> Path:
    """The weights of ``run`` as an ``.npz`` file, for contenders without jax; names are like ``params/dense/kernel``."""
    source = run(size)
    return _made(f"weights-{size}.npz", lambda out: _apart("ours", "write_weights", str(source), str(out)))


def onnx(size: int, images: int) -> Path:
    """The same weights as an ONNX file, from uint8 pixels ``[images, 1, S, S]`` to probabilities.

    Raises:
      Missing: no PyTorch to write it.
    """
    if importlib.util.find_spec("torch") is None:
        raise Missing("no PyTorch to write the ONNX file with")
    source = weights(size)
    name = f"network-{size}-{images}.onnx"
    return _made(name, lambda out: _apart("pytorch", "write_onnx", str(source), size, images, str(out)))


def _apart(module: str, function: str, *arguments: str | int) -> None:
    """Call a function of ``bench.peers`` in a process of its own, so that jax and PyTorch stay out of this one."""
    code = f"from bench.peers import {module}; {module}.{function}(*{arguments!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment())


def batch(images: int, size: int) -> Path:
    """An ``.npz`` file with ``images``, uint8 ``[N, S, S, 1]``, and ``labels``, int32 ``[N]``."""

    def make(out: Path) -> None:
        from covidjax.data import synthetic

        drawn = list(synthetic.draw_images(images, seed=3, size=size))
        pixels = np.stack([film.image[..., None] for film in drawn])
        with out.open("wb") as file:
            np.savez(file, images=pixels, labels=np.asarray([film.label for film in drawn], np.int32))

    return _made(f"batch-{images}-{size}.npz", make)
