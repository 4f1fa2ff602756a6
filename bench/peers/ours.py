"""covidjax as a contender, by the functions that its own commands use."""

from __future__ import annotations

import functools
import inspect
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bench.harness import Missing
from covidjax import device
from covidjax.config import AugmentConfig, Config, TrainConfig
from covidjax.inference.forward import make_predict
from covidjax.models import create_model
from covidjax.runs.load import load_run
from covidjax.scoring.classifier import Classifier
from covidjax.training.optimizer import make_optimizer
from covidjax.training.step import StepInputs, TrainState, create_train_state, make_train_step
from covidjax.training.tasks import Classification

ACCELERATED_STEPS = 32
"""Steps in one compiled scan off the CPU, as many as an epoch of the study's 1,044 images has."""

UNCHANGED = AugmentConfig(horizontal_flip=False, rotation=0, shift=0, zoom=0, brightness=0, contrast=0)


def read_batch(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[B, S, S, 1]`` and labels int32 ``[B]``."""
    with np.load(file) as stored:
        return stored["images"], stored["labels"]


def write_weights(run: str, out: str) -> None:
    """A run's weights as ``.npz``, one array a leaf, named by its path."""
    arrays: dict[str, np.ndarray] = {}

    def put(prefix: str, tree: Any) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                put(f"{prefix}/{key}", value)
        else:
            arrays[prefix] = np.asarray(tree)

    loaded = load_run(Path(run))
    put("params", loaded.weights.params)
    put("batch_stats", loaded.weights.batch_stats)
    with open(out, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


class Train:
    """Steps of training as ``covidjax train`` takes them: on a CPU one by one, elsewhere a scan of several.

    Args:
      batch: file of images and labels.
      run: whose weights to start from.
      augmented: with the default augmentation, or with none, as the peers'.
      precision: as in the settings.
      first: of how many steps ``answer`` takes the mean.
      scanned: a scan of several steps on a CPU too.
      steps: of the scan.
      unroll: of these in one round of its loop.
    """

    def __init__(
        self,
        batch: str,
        run: str,
        augmented: bool = False,
        precision: Any = "auto",
        first: int = 1,
        scanned: bool = False,
        steps: int = ACCELERATED_STEPS,
        unroll: int = 1,
    ):
        where = device.start()
        images, labels = read_batch(batch)
        loaded = load_run(Path(run))
        train = TrainConfig(learning_rate=1e-3, schedule="constant", batch_size=len(images), precision=precision)
        config = Config(augment=AugmentConfig() if augmented else UNCHANGED, train=train)
        dtype, scaled = device.precision(precision, where)
        network = create_model(config.model, loaded.run.preprocess, dtype)
        optimizer = functools.partial(make_optimizer, train)
        accelerated = scanned or where.platform != "cpu"
        mesh = device.mesh(1 if accelerated else len(images))
        axis = device.AXIS if mesh.size > 1 else None
        task = Classification(config)
        step = make_train_step(network, task.inputs, task.losses, optimizer, loss_scaling=scaled, axis=axis)
        state = create_train_state(loaded.weights, optimizer(optax.constant_schedule(0.0)), loss_scaling=scaled)
        inputs = constant_inputs(1e-3, len(loaded.run.preprocess.classes))
        self._state, inputs = device.replicate((state, inputs), mesh)
        began = time.perf_counter()
        if accelerated:
            self._call = compiled_scan(step, self._state, inputs, images, labels, steps, unroll)
        else:
            self._call, steps = compiled(step, inputs, images, labels), 1
        self._first = max(1, first // steps)
        self.images = steps * len(images)
        self.note = f"{np.dtype(dtype).name}, augmented" if augmented else np.dtype(dtype).name
        if accelerated:
            self.note += f", compiled in {time.perf_counter() - began:.1f} s"

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._state = self._call(self._state)
        jax.block_until_ready(self._state)

    def answer(self) -> list[float]:
        """Mean loss of the first steps."""
        self.run(self._first)
        return [float(self._state.sums.loss) / int(self._state.sums.images)]


def constant_inputs(rate: float, classes: int) -> StepInputs:
    """What a step is given: seed 0, a constant learning rate, equal weights of the classes."""
    return StepInputs(np.uint32(0), np.full(1024, rate, np.float32), np.ones(classes, np.float32))


def compiled(step: Any, inputs: StepInputs, images: np.ndarray, labels: np.ndarray) -> Any:
    """The way from a step to the program that ``covidjax.training`` runs on a CPU. With ``compiled_scan`` the one place to
    follow a change there."""
    share, mesh = P(device.AXIS), device.mesh(len(images))
    images_there, labels_there = jax.device_put((images, labels), NamedSharding(mesh, share))
    jitted = jax.jit(device.shard(step, mesh, P(), P(), share, share, result=P()), donate_argnums=0)
    return lambda state: jitted(state, inputs, images_there, labels_there)


def compiled_scan(
    step: Any, state: TrainState, inputs: StepInputs, images: np.ndarray, labels: np.ndarray, steps: int, unroll: int
) -> Any:
    """The same for an accelerator: so many steps a call."""
    kept_images, kept_labels = jax.device_put((images, labels))
    rows = np.tile(np.arange(len(images), dtype=np.int32), (steps, 1))

    def scan(state: TrainState, inputs: StepInputs, images: jax.Array, labels: jax.Array, rows: jax.Array) -> TrainState:
        def body(state: TrainState, row: jax.Array) -> tuple[TrainState, None]:
            return step(state, inputs, images[row], labels[row]), None

        return jax.lax.scan(body, state, rows, unroll=unroll)[0]

    program = jax.jit(scan, donate_argnums=0).lower(state, inputs, kept_images, kept_labels, rows).compile()
    return lambda state: program(state, inputs, kept_images, kept_labels, rows)


class Forward:
    """The jitted Flax network, from uint8 pixels to logits."""

    def __init__(self, batch: str, run: str):
        where = device.start()
        images, _ = read_batch(batch)
        loaded = load_run(Path(run))
        self._predict = make_predict(loaded.network, loaded.run.config.model)
        self._weights = loaded.weights
        self._images: Any = images if where.platform == "cpu" else jax.device_put(images)
        self.images = len(images)

    def run(self, calls: int) -> None:
        results = [self._predict(self._weights, self._images) for _ in range(calls)]
        jax.block_until_ready(results)

    def answer(self) -> list[float]:
        """Probabilities."""
        return np.asarray(jax.nn.softmax(self._predict(self._weights, self._images))).ravel().tolist()


class Runtime:
    """``Classifier.probabilities`` with one of the runtimes of ``covidjax score``."""

    def __init__(self, batch: str, run: str, runtime: str):
        if "runtime" not in inspect.signature(Classifier.load).parameters:
            raise Missing("this covidjax has no choice of runtimes")
        self._images, _ = read_batch(batch)
        load: Any = Classifier.load
        self._classifier: Classifier = load(Path(run), runtime=runtime)
        self.images = len(self._images)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._classifier.probabilities(self._images)

    def answer(self) -> list[float]:
        """Probabilities."""
        return self._classifier.probabilities(self._images).ravel().tolist()
