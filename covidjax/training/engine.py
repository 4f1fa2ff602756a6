"""What the networks of a run share: device, network, images, and the compiled programs that take rows to steps."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from covidjax import device
from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.inference.forward import normalize
from covidjax.models import Network, Weights
from covidjax.models.layers import MOMENTUM
from covidjax.timing import Timing
from covidjax.training.step import State, StepInputs, initial_state, make_optimizer, make_step
from covidjax.training.tasks import make_task

SCAN_STEPS = 512
"""Steps that are one compiled scan on an accelerator, with no host work between them. On a CPU they are called one by
one: XLA's CPU backend computes a convolution inside a loop with scalar code, forty times slower."""

EVAL_BATCH = 128
"""Least batch of evaluation on an accelerator, where a smaller one takes as long."""

Steps = Callable[[State, StepInputs, np.ndarray], Iterator[tuple[State, int]]]
"""Takes the state through the steps whose rows ``[steps, batch]`` are given; yields it, with the number of steps done,
after every call of the device."""


class Engine:
    """Device, network, task, images and compiled programs, made once for all networks of a run.

    Args:
      config: of a single run, or of the whole of a cross-validation or an ensemble.
      dataset: of which all folds are held in memory where they fit.
      timing: told of loading and compiling.

    Attributes:
      examine: what is computed of held-out examples when training has ended; ``glance`` after every epoch.
      data: every image of the dataset, on the device unless that is a CPU; None where images are read batch by batch.
    """

    def __init__(self, config: Config, dataset: Dataset, timing: Timing):
        settings = config.train
        self.timing = timing
        self.where = device.start()
        self.dtype, self.scaled = device.precision(settings.precision, self.where)
        self.task = make_task(config, dataset)
        self.network = Network(config.model, dataset.preprocess, self.dtype)
        self.optimizer = functools.partial(make_optimizer, settings)
        self.averaging = settings.averaging
        self.examine, self.glance = self.task.examine(self.network), self.task.examine(self.network, once=True)
        self.source = dataset.source(range(dataset.folds))
        self.data: loader.Batch | None = None
        self.model, self.batch = config.model, settings.batch_size
        self.eval_batch = max(self.batch, EVAL_BATCH) if self.accelerated else self.batch
        self._steps: dict[int, Steps] = {}
        self._add_moved = jax.jit(self._moved)
        self._take = jax.jit(operator.getitem)  # on a device's arrays tenfold the speed of the plain one
        size = len(self.source) * dataset.preprocess.image_size**2 * (2 if dataset.masks else 1)
        if settings.cache == "device" or (settings.cache == "auto" and device.fits_in_memory(size, self.where)):
            start = time.perf_counter()
            self.data = loader.load_all(self.source)
            if self.accelerated:
                pixels = {"images": self.data.images, "masks": self.data.masks}
                self.data = self.data._replace(**jax.device_put(pixels, jax.devices()[0]))
            timing.add("load", start, len(self.source))

    @property
    def accelerated(self) -> bool:
        """Whether images lie on the device and steps are scanned there, without host work between them."""
        return self.where.platform != "cpu"

    def describe(self) -> str:
        """Device and precision, in words."""
        where = self.where
        name = f"CPU, {os.cpu_count()} cores" if where.platform == "cpu" else f"{where.device_kind} ({where.platform})"
        return f"{name}, {np.dtype(self.dtype).name}"

    def fresh(self, seed: int) -> State:
        """The state before the first step."""
        return initial_state(self.network.init(seed), self.optimizer(lambda count: count), self.scaled, self.averaging)

    def batches(self, rows: np.ndarray, size: int | None = None) -> Iterable[loader.Batch]:
        """Examples in order, in batches of a size or of that of evaluation, from memory where they lie there."""
        size = size or self.eval_batch
        if self.data is None:
            return loader.eval_batches(self.source, size, rows)
        return loader.cached_batches(self.data, size, rows, self._take if self.accelerated else operator.getitem)

    def refreshed(self, weights: Weights, rows: np.ndarray) -> Weights:
        """The weights with batch statistics that are the means over batches of these rows, without augmentation: those of
        training are of augmented images, which look otherwise than what is tested (Wu and Johnson 2021, "Rethinking 'Batch'
        in BatchNorm", section 3; Touvron et al. 2019, "Fixing the train-test resolution discrepancy")."""
        if not jax.tree.leaves(weights.batch_stats):
            return weights

        # On one device: there is little to do, and nothing to wait for another device with.
        mesh = device.mesh(1)
        params, stats = device.replicate(jax.device_get(weights), mesh)
        sums = jax.tree.map(jnp.zeros_like, stats)
        size = min(self.batch, len(rows))
        count = len(rows) // size  # what is left of them would be padded
        for batch in self.batches(rows[: count * size], size):
            sums = self._add_moved(sums, params, device.replicate(batch.images, mesh))
        return Weights(weights.params, jax.tree.map(lambda total: total / (MOMENTUM * count), jax.device_get(sums)))

    def _moved(self, sums: Any, params: Any, images: Any) -> Any:
        """The sums of batch statistics with those added that a batch moves zeros to."""
        zero = Weights(params, jax.tree.map(jnp.zeros_like, sums))
        moved = self.network.apply(zero, normalize(images, self.model.channels), train=True)[2]
        return jax.tree.map(jnp.add, sums, moved)

    def steps(self, batch: int) -> Steps:
        """The way from rows to steps for a size of batch: images on the device, in memory, or streamed."""
        if batch not in self._steps:
            mesh = device.mesh(batch)
            axis = device.AXIS if mesh.size > 1 else None
            step = make_step(self.network, self.task, self.optimizer, self.scaled, axis, self.averaging)
            compiled = functools.partial(self.compiled, mesh)
            if self.data is None:
                self._steps[batch] = _streamed(step, self.source, compiled, mesh)
            else:
                way = _scanned if self.accelerated else _one_by_one
                self._steps[batch] = way(step, self.data, compiled, mesh)
        return self._steps[batch]

    def compiled(self, mesh: Mesh, function: Callable[..., Any], *shares: P, donated: bool = True) -> Callable[..., Any]:
        """The jitted function of a state, which is donated, and other trees of arrays, of each of which every device of the
        mesh has the given share. Its compilations, one for each set of shapes, are timed."""
        whole = NamedSharding(mesh, P())
        jitted = jax.jit(
            device.shard(function, mesh, P(), *shares, result=P()),
            donate_argnums=0 if donated else (),
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


def _one_by_one(step: Callable[..., State], data: loader.Batch, compiled: Callable[..., Any], mesh: Mesh) -> Steps:
    call = compiled(step, P(), P(device.AXIS), P(device.AXIS))

    def steps(state: State, given: StepInputs, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        for row in rows:
            state = call(state, given, data.images[row], _rows(data.targets, row))
            yield state, 1

    return steps


def _rows(targets: Any, rows: Any) -> Any:
    return jax.tree.map(operator.itemgetter(rows), targets)


def _scanned(step: Callable[..., State], data: loader.Batch, compiled: Callable[..., Any], mesh: Mesh) -> Steps:
    images, targets = device.replicate((data.images, data.targets), mesh)

    def scan(state: State, given: StepInputs, images: jax.Array, targets: Any, rows: jax.Array) -> State:
        return jax.lax.scan(lambda s, row: (step(s, given, images[row], _rows(targets, row)), None), state, rows)[0]

    call = compiled(scan, P(), P(), P(), P(None, device.AXIS))

    def steps(state: State, given: StepInputs, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        for first in range(0, len(rows), SCAN_STEPS):
            part = rows[first : first + SCAN_STEPS]
            state = call(state, given, images, targets, part)
            yield state, len(part)

    return steps


def _streamed(step: Callable[..., State], source: loader.Source, compiled: Callable[..., Any], mesh: Mesh) -> Steps:
    call = compiled(step, P(), P(device.AXIS), P(device.AXIS))
    shares = NamedSharding(mesh, P(device.AXIS))

    def steps(state: State, given: StepInputs, rows: np.ndarray) -> Iterator[tuple[State, int]]:
        batches = (jax.device_put((batch.images, batch.targets), shares) for batch in loader.train_batches(source, rows))
        batch = next(batches, None)
        while batch:
            state = call(state, given, *batch)
            batch = next(batches, None)  # on its way to the device while that computes the step
            yield state, 1

    return steps
