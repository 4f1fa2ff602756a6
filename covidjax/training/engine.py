"""What computes in training: device, network, images, and the compiled programs that take rows to steps and to
predictions."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh, NamedSharding

from covidjax import device, environment
from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.inference.forward import normalize
from covidjax.models import Weights, create_model
from covidjax.models.layers import MOMENTUM
from covidjax.runs.starting import StartingPoint
from covidjax.timing import Timing
from covidjax.training.features import BackboneFeatures
from covidjax.training.optimizer import make_optimizer
from covidjax.training.predictions import Features, Predictions, predict
from covidjax.training.step import StepInputs, TrainState, create_train_state, make_train_step
from covidjax.training.tasks import Classification, make_task

SCAN_STEPS = 512
"""Steps that are one compiled scan on an accelerator, with no host work between them. On a CPU they are called one by
one: XLA's CPU backend computes a convolution inside a loop with scalar code, forty times slower."""

EVAL_BATCH = 128
"""Least batch of evaluation on an accelerator, where a smaller one takes as long."""

FEATURES = 1024
"""Images whose features tell of all."""

Steps = Callable[[TrainState, StepInputs, np.ndarray], Iterator[tuple[TrainState, int]]]
"""Takes the state through the steps whose rows ``[steps, batch]`` are given; yields it, with the number of steps done,
after every call of the device."""

Batches = Callable[[np.ndarray], Iterator[tuple[Any, Any]]]
"""From the rows ``[steps, batch]`` to the images and targets of each step."""


class Engine:
    """Device, network, task, images and compiled programs, made once for all networks of a run.

    Args:
      config: of a single run, or of the whole of a cross-validation or an ensemble.
      dataset: of which all folds are held in memory where they fit.
      timing: told of loading and compiling.
      starting: what the networks start from; None for weights drawn at random.

    Attributes:
      task: what is learned.
      network: the network without weights, in the precision of the settings.
      classes: of the dataset.
      backbone: features of all images by the backbone of weights.
    """

    def __init__(self, config: Config, dataset: Dataset, timing: Timing, starting: StartingPoint | None = None):
        self.timing, self._config, self._starting = timing, config, starting
        self.classes = dataset.preprocess.classes
        self._device = device.start()
        self._dtype, self._loss_scaling = device.precision(config.train.precision, self._device)
        self.task = make_task(config, dataset)
        self.network = create_model(config.model, dataset.preprocess, self._dtype)
        self.backbone = BackboneFeatures(config, dataset, self.network, timing)
        self._optimizer = functools.partial(make_optimizer, config.train, head=self.network.head)
        self._eval_steps = {tta: self.task.eval_step(self.network, tta=tta) for tta in (True, False)}
        self._source = dataset.source(range(dataset.folds))
        self._data: loader.Batch | None = None
        """Every image, on the device unless that is a CPU; None where images are read batch by batch."""
        self._train_steps: dict[int, Steps] = {}
        self._jitted_add = jax.jit(self._add_batch_stats)
        self._take = jax.jit(operator.getitem)  # on a device's arrays tenfold the speed of the plain one
        size = len(self._source) * dataset.preprocess.image_size**2 * (2 if dataset.masks else 1)
        cache = config.train.cache
        fits = cache == "device" or (cache == "auto" and device.fits_in_memory(size, self._device))
        if fits and config.train.epochs:  # a probe alone mostly needs none
            start = time.perf_counter()
            self._data = loader.load_all(self._source)
            if self.accelerated:
                pixels = {"images": self._data.images, "masks": self._data.masks}
                self._data = self._data._replace(**jax.device_put(pixels, jax.devices()[0]))
            timing.add("load", start, len(self._source))

    @property
    def accelerated(self) -> bool:
        """Whether images lie on the device and steps are scanned there, without host work between them."""
        return self._device.platform != "cpu"

    def describe(self) -> str:
        """Device and precision, in words."""
        kind, platform = self._device.device_kind, self._device.platform
        name = f"CPU, {environment.cores()} cores" if platform == "cpu" else f"{kind} ({platform})"
        return f"{name}, {np.dtype(self._dtype).name}"

    def init_state(self, seed: int) -> TrainState:
        """The state before the first step.

        Raises:
          ValueError: settings that start from weights which were not opened.
          UserError: weights to start from that cannot be read, or do not fit.
        """
        if self._config.train.init and not self._starting:
            raise ValueError("train.init is set: open it by runs.initial, and give that as `starting`.")
        weights = self.network.init(seed)
        if self._starting:
            weights = self._starting.load().put_into(self.network, weights, self.classes)
        return self._state_of(weights)

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of a state."""
        return jax.eval_shape(lambda: self._state_of(self.network.init(0)))

    def _state_of(self, weights: Weights) -> TrainState:
        optimizer, decay = self._optimizer(lambda count: count), self._config.train.ema_decay
        return create_train_state(weights, optimizer, loss_scaling=self._loss_scaling, ema_decay=decay)

    def predict(
        self, weights: Weights, rows: np.ndarray, *, tta: bool = True, features: np.ndarray | None = None
    ) -> Predictions:
        """Outputs for some rows of the dataset, int ``[N]``; without ``tta`` of one view of each image. Of features of all
        images by the backbone of these weights, float32 ``[N, F]``, if they are given, only the last layer is computed."""
        if features is not None and (not tta or self._config.model.tta == 1):
            dense = jax.device_get(weights.params["dense"])
            outputs = features[rows] @ dense["kernel"] + dense["bias"]
            labels = loader.labels(self._source, rows)
        else:
            outputs, labels = predict(self._eval_steps[tta], weights, self._batches(rows, self._eval_batch))
        return Predictions(outputs, labels, *(loader.origins(self._source, rows) if tta else ([],)))

    def features(self, weights: Weights, rows: np.ndarray, features: np.ndarray | None = None) -> Features:
        """Pooled features of a classifier for some rows of the dataset, int ``[N]``, or for so many of them that they tell
        of all; of those of all images, where they are known."""
        assert isinstance(self.task, Classification)
        if len(rows) > FEATURES:
            rows = np.sort(np.random.default_rng(0).choice(rows, FEATURES, replace=False))
        if features is not None and self._config.model.tta == 1:
            return Features(rows, features[rows])
        forward, batches = self.task.predict(self.network), self._batches(rows, self._eval_batch)
        features, _ = predict(lambda each, batch: forward.outputs(each, batch.images).features, weights, batches)
        return Features(rows, features)

    @property
    def _eval_batch(self) -> int:
        batch_size = self._config.train.batch_size
        return max(batch_size, EVAL_BATCH) if self.accelerated else batch_size

    def _batches(self, rows: np.ndarray, size: int) -> Iterable[loader.Batch]:
        """Examples in order, from memory where they lie there."""
        if self._data is None:
            return loader.eval_batches(self._source, size, rows)
        return loader.cached_batches(self._data, size, rows, self._take if self.accelerated else operator.getitem)

    def recalibrate_batch_norm(self, weights: Weights, rows: np.ndarray) -> Weights:
        """The weights with batch statistics that are the means over batches of these rows, without augmentation: those of
        training are of augmented images, which look otherwise than what is tested (Wu and Johnson 2021, "Rethinking 'Batch'
        in BatchNorm", section 3; Touvron et al. 2019, "Fixing the train-test resolution discrepancy")."""
        if not jax.tree.leaves(weights.batch_stats):
            return weights
        # On one device: there is little to do, and nothing to wait for another device with.
        mesh = device.mesh(1)
        params, stats = device.replicate(jax.device_get(weights), mesh)
        sums = jax.tree.map(jnp.zeros_like, stats)
        size = min(self._config.train.batch_size, len(rows))
        count = len(rows) // size  # what is left of them would be padded
        for batch in self._batches(rows[: count * size], size):
            sums = self._jitted_add(sums, params, device.replicate(batch.images, mesh))
        return Weights(weights.params, jax.tree.map(lambda total: total / (MOMENTUM * count), jax.device_get(sums)))

    def _add_batch_stats(self, sums: Any, params: Any, images: Any) -> Any:
        """The sums of batch statistics with those added that a batch moves zeros to."""
        zero = Weights(params, jax.tree.map(jnp.zeros_like, sums))
        _, _, moved = self.network.apply(zero, normalize(images, self._config.model), train=True)
        return jax.tree.map(jnp.add, sums, moved)

    def train_steps(self, batch_size: int) -> Steps:
        """The way from rows to steps for a size of batch: images on the device, in memory, or streamed."""
        if batch_size not in self._train_steps:
            mesh = device.mesh(batch_size)
            step = make_train_step(
                self.network,
                self.task.inputs,
                self.task.losses,
                self._optimizer,
                loss_scaling=self._loss_scaling,
                axis=device.AXIS if mesh.size > 1 else None,
                ema_decay=self._config.train.ema_decay,
                freeze_batch_norm=self._config.train.freeze_batch_norm or self._config.train.freeze == "backbone",
                freeze_backbone=self._config.train.freeze == "backbone",
            )
            compiled = functools.partial(self._compiled, mesh)
            if self._data and self.accelerated:
                self._train_steps[batch_size] = _scanned(step, self._data, compiled, mesh)
            else:
                self._train_steps[batch_size] = _one_by_one(step, functools.partial(self._train_batches, mesh), compiled)
        return self._train_steps[batch_size]

    def _train_batches(self, mesh: Mesh, rows: np.ndarray) -> Iterator[tuple[Any, Any]]:
        """Images and targets of each step, whose rows of the dataset are ``[steps, batch]``."""
        if self._data:
            data = self._data
            return ((data.images[row], _rows(data.targets, row)) for row in rows)
        shares, batches = NamedSharding(mesh, P(device.AXIS)), loader.train_batches(self._source, rows)
        return (jax.device_put((batch.images, batch.targets), shares) for batch in batches)

    def _compiled(self, mesh: Mesh, function: Callable[..., Any], *shares: P) -> Callable[..., Any]:
        """The jitted function of a state, which is donated, and other trees of arrays, of each of which every device of the
        mesh has the given share. Its compilations, one for each set of shapes, are timed."""
        whole = NamedSharding(mesh, P())
        jitted = jax.jit(
            device.shard(function, mesh, P(), *shares, result=P()),
            donate_argnums=0,
            in_shardings=(whole, *(NamedSharding(mesh, share) for share in shares)),
            out_shardings=whole,
        )
        programs: dict[Any, Callable[..., Any]] = {}

        def call(state: Any, *arrays: Any) -> Any:
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arrays))
            if shapes not in programs:
                start = time.perf_counter()
                programs[shapes] = jitted.lower(state, *arrays).compile()
                self.timing.add("compile", start)
            return programs[shapes](state, *arrays)

        return call


def _one_by_one(step: Callable[..., TrainState], batches: Batches, compiled: Callable[..., Any]) -> Steps:
    call = compiled(step, P(), P(device.AXIS), P(device.AXIS))

    def steps(state: TrainState, inputs: StepInputs, rows: np.ndarray) -> Iterator[tuple[TrainState, int]]:
        ahead = batches(rows)
        batch = next(ahead, None)
        while batch:
            state = call(state, inputs, *batch)
            batch = next(ahead, None)  # read, and on its way to the device, while that computes the step
            yield state, 1

    return steps


def _rows(targets: Any, rows: Any) -> Any:
    return jax.tree.map(operator.itemgetter(rows), targets)


def _scanned(step: Callable[..., TrainState], data: loader.Batch, compiled: Callable[..., Any], mesh: Mesh) -> Steps:
    images, targets = device.replicate((data.images, data.targets), mesh)

    def scan(state: TrainState, inputs: StepInputs, images: jax.Array, targets: Any, rows: jax.Array) -> TrainState:
        return jax.lax.scan(lambda s, row: (step(s, inputs, images[row], _rows(targets, row)), None), state, rows)[0]

    call = compiled(scan, P(), P(), P(), P(None, device.AXIS))

    def steps(state: TrainState, inputs: StepInputs, rows: np.ndarray) -> Iterator[tuple[TrainState, int]]:
        for first in range(0, len(rows), SCAN_STEPS):
            part = rows[first : first + SCAN_STEPS]
            state = call(state, inputs, images, targets, part)
            yield state, len(part)

    return steps
