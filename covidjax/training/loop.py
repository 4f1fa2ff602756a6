"""Training a network: what it is trained on, its state, the loop, the result; ``fit`` reads from top to bottom.

A run that was stopped anywhere goes on from its last checkpoint to the same bits as one that never was: the order of
the images follows from the seed and the epoch, everything else from the state (see ``training.step``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from covidjax import device, metrics
from covidjax.config import Config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.inference.runtimes import choose_runtime, open_runtime
from covidjax.models import Weights, count_parameters
from covidjax.runs import folder, trust_file
from covidjax.runs.folder import Run
from covidjax.runs.recorder import Recorder
from covidjax.runs.starting import StartingPoint
from covidjax.runs.weights_record import WeightsRecord
from covidjax.timing import Stopwatch, Timing
from covidjax.training import probe
from covidjax.training.engine import Engine
from covidjax.training.features import Computed, Runtimes
from covidjax.training.plan import Plan, make_plan
from covidjax.training.predictions import Features, Predictions
from covidjax.training.run_trust import inherit
from covidjax.training.step import TrainState, from_checkpoint, to_checkpoint, with_weights, zero_sums
from covidjax.trust.calibration import temperature_of

PROGRESS_SECONDS = 0.2
"""Least time between two looks at the loss within an epoch."""


class Interrupted(UserError):
    """Training was asked to stop and saved its state first."""


class Progress(Protocol):
    """Told how the training of one network goes on."""

    def features(self, done: int, total: int) -> None:
        """Before a probe, now and then: of how many images the features are computed."""

    def begin(self, description: str, steps: int, metric: str) -> None:
        """Before the first step: what is trained on what, in words, how many steps an epoch has, and what beside the loss
        is told of them, such as ``accuracy``."""

    def step(self, epoch: int, step: int, loss: float, metric: float, images_per_second: float) -> None:
        """Now and then within an epoch, with the means of the epoch so far."""

    def epoch(self, record: dict[str, Any]) -> None:
        """After every epoch, and after a probe as epoch 0, with the line for ``metrics.jsonl``."""


class Result(NamedTuple):
    """What a finished run amounts to."""

    metrics: metrics.AnyMetrics
    """On the test fold."""
    checkpoint: str
    """Which checkpoint was tested: ``last``, or ``best`` by the validation fold."""
    history: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    timing: Timing
    """Of this call: what came before a resumption is not in it. The networks of one run share it."""
    parameters: int
    predictions: Predictions
    """Of the images of the test fold or source; calibrated where the run is."""
    held_out: dict[str, Predictions]
    """Without calibration, of all that was held out: ``test``, with a validation fold ``val``, and with a test source
    ``in_source``, the test fold of the sources that were trained on."""
    features: tuple[Features, Features] | None
    """Of a classifier: of some training images, and of some of the test fold."""
    left_out: str
    """Which images are not held out since the weights to start from were trained on them, in words; empty if none."""


@device.own_flags()
def train(
    config: Config,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
    starting: StartingPoint | None = None,
) -> Result:
    """Train a network on the training folds of a dataset and test it on its test fold.

    Args:
      config: all settings, of a single run.
      dataset: what to train on.
      run: a folder for ``config.toml``, ``metrics.jsonl`` and ``checkpoints/``.
      resume: go on from the run's last checkpoint; the settings must be those it was begun with.
      progress: told how it goes on.
      stop: asked after every call of the device; once it says so, the state is saved and Interrupted raised.
      starting: what ``train.init`` names, opened by ``runs.initial``.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, folds that there are not, a checkpoint that does not fit.
    """
    began = time.perf_counter()
    timing = Timing()
    device.start()
    plan = make_plan(config, dataset, starting.trained_on if starting else ())  # before there is a folder
    if not resume:
        create_run(run, config, dataset, starting)
    inherit(run, config, dataset.preprocess)
    with open_recorder(plan, run, timing) as recorder:
        result = fit(plan, Engine(config, dataset, timing, starting), recorder, progress, stop)
    timing.add("wall", began)
    return result


def create_run(run: Path, config: Config, dataset: Dataset, starting: StartingPoint | None) -> None:
    """Make the folder of a run, or of one of its networks, with all that is known before it is trained.

    Raises:
      ValueError: settings that start from weights which were not opened.
      UserError: see ``folder.create_run``.
    """
    if config.train.init and not starting:
        raise ValueError("train.init is set: open it by runs.initial, and give that as `starting`.")
    record, known = (starting.record, starting.trained_on) if starting else (WeightsRecord(), frozenset())
    folder.create_run(run, Run(config, dataset.preprocess, dataset.fingerprint, dataset.segmenter, record), known)


def open_recorder(plan: Plan, run: Path, timing: Timing, parent: Path | None = None) -> Recorder:
    """What writes down the training of a network into its folder; ``parent`` is the run that it is one of several of."""
    seconds = plan.config.train.checkpoint_seconds
    return Recorder(run, parent, keep_best="val" in plan.held_out, checkpoint_seconds=seconds, timing=timing)


def fit(plan: Plan, engine: Engine, recorder: Recorder, progress: Progress, stop: Callable[[], bool]) -> Result:
    """Train one network to its end, from wherever it is, and test it.

    Args:
      plan: what it is trained on.
      engine: what computes; networks of one run share it.
      recorder: where the log and the checkpoints go.
      progress: told how it goes on.
      stop: see ``train``.

    Raises:
      Interrupted: by ``stop``.
      UserError: diverged training, a checkpoint that does not fit.
    """
    steps, epochs = plan.steps, plan.config.train.epochs
    start = _start(plan, engine, recorder, progress, stop)
    state, inputs = device.replicate((start, plan.inputs), device.mesh(plan.batch_size))
    step = int(state.step)
    parameters = f"{count_parameters(state.weights):,} parameters"
    description = f"{engine.describe()}; {len(plan.train_rows)} training images, {steps} steps an epoch, {parameters}"
    if epochs:
        progress.begin(f"{description}; starting at step {step + 1}.", steps, engine.task.metric)
    take_steps = engine.train_steps(plan.batch_size)
    for epoch in range(step // steps, epochs):
        stopwatch, shown_at = Stopwatch(engine.timing), -np.inf
        for new_state, count in take_steps(state, inputs, plan.order(epoch)[step - epoch * steps :]):
            state, step = new_state, step + count
            stopwatch.add(count * plan.batch_size)
            # Asking for the loss waits for the device, so that is done now and then only.
            if time.perf_counter() - shown_at >= PROGRESS_SECONDS:
                progress.step(epoch + 1, step - epoch * steps, *_means(plan, state, recorder.of_network), stopwatch.speed)
                shown_at = time.perf_counter()
            stopping = stop()
            if (stopping or recorder.is_due()) and step % steps:
                recorder.save(step, state.weights, to_checkpoint(state), epoch)
                if stopping:
                    raise _interrupted(step, recorder)
        loss, metric = _means(plan, state, recorder.of_network)
        stopwatch.done()

        record = {"epoch": epoch + 1, "step": step, "learning_rate": float(plan.inputs.learning_rates[step - 1])}
        record["train"] = {"loss": loss, engine.task.metric: metric}
        record |= _evaluate_epoch(plan, engine, state.weights, step, recorder.of_network)
        progress.epoch(recorder.log(record, stopwatch.speed))

        state = state._replace(sums=zero_sums())
        key = engine.task.selection_key(record["val"]) if "val" in record else None
        better = key is not None and recorder.is_better(key)
        finished, stopping = epoch + 1 == epochs, stop()
        final = _final(plan, engine, state.weights) if better or finished else state.weights
        if key is not None and better:
            recorder.save_best(step, final, to_checkpoint(state), epoch + 1, key)
        if finished or stopping or recorder.is_due():
            recorder.save(step, final if finished else state.weights, to_checkpoint(state), epoch + 1)
        if stopping and not finished:
            raise _interrupted(step, recorder)
    return _test(plan, engine, recorder, progress, stop)


def _start(plan: Plan, engine: Engine, recorder: Recorder, progress: Progress, stop: Callable[[], bool]) -> TrainState:
    """The state to go on from: fresh, a probe's, or of the last checkpoint."""

    def expected() -> tuple[Any, Any]:
        template = engine.abstract_state()
        return template.weights, to_checkpoint(template)

    if saved := recorder.resume(expected):
        return from_checkpoint(saved.weights, saved.training)
    state = engine.init_state(plan.config.seed)
    trained_on = np.concatenate([plan.train_rows, plan.held_out.get("val", plan.train_rows[:0])])
    keys = {key for keys in loader.identities(plan.images, trained_on) for key in keys}
    folder.write_trained_on(recorder.run, keys | folder.read_initial_trained_on(recorder.run))
    if not plan.config.train.probe:
        return state
    computed = _backbone_features(plan, engine, recorder, state.weights, progress, stop)
    return _probe(plan, engine, recorder, progress, state, computed)


def _backbone_features(
    plan: Plan, engine: Engine, recorder: Recorder, weights: Weights, progress: Progress, stop: Callable[[], bool]
) -> Computed:
    """The features of all images of the dataset."""

    def shown(done: int, total: int) -> None:
        progress.features(done, total)
        if stop():
            remedy = f"begin again with `covidjax train --resume --run {recorder.parent}`"
            raise Interrupted(f"Stopped before the features of all images were computed; {remedy}.")

    runtimes = Runtimes(choose_runtime, open_runtime)
    return engine.backbone.of(weights, runtimes, accelerated=engine.accelerated, progress=shown)


def _probe(
    plan: Plan, engine: Engine, recorder: Recorder, progress: Progress, state: TrainState, computed: Computed
) -> TrainState:
    """The state with the last layer that a probe finds, which is logged and saved as epoch 0."""
    start, rows, origins = time.perf_counter(), plan.train_rows, plan.origins
    assert origins
    labels, patients = origins.labels[rows], [origins.patients[row] for row in rows]
    fitted = probe.fit(
        computed.features[rows], labels, patients, plan.weights(labels), len(engine.classes), seed=plan.config.seed
    )
    state = with_weights(state, Weights(state.weights.params | {"dense": fitted.layer()}, state.weights.batch_stats))
    engine.timing.add("probe", start)
    record: dict[str, Any] = {"epoch": 0, "step": 0, "learning_rate": 0.0}
    record["probe"] = fitted.facts(computed.by, computed.seconds, time.perf_counter() - start)
    for name, part in ({"train": rows} | plan.held_out).items():
        predictions = engine.predict(state.weights, part, tta=False, features=computed.features)
        record[name] = engine.task.summarize(predictions.outputs, predictions.labels)
    progress.epoch(recorder.log(record, len(computed.features) / max(computed.seconds, 1e-3)))
    key = engine.task.selection_key(record["val"]) if "val" in record else None
    if key is not None and recorder.is_better(key):
        recorder.save_best(0, state.weights, to_checkpoint(state), 0, key)
    recorder.save(0, state.weights, to_checkpoint(state), 0)
    return state


def _means(plan: Plan, state: TrainState, network: str) -> tuple[float, float]:
    """Loss and metric of the epoch so far.

    Raises:
      UserError: the loss is no longer finite.
    """
    sums, first_bad_step = jax.device_get((state.sums, state.first_bad_step))
    if first_bad_step >= 0:
        raise _diverged(plan, int(first_bad_step), network)
    return float(sums.loss) / int(sums.images), float(sums.metric) / int(sums.images)


def _evaluate_epoch(plan: Plan, engine: Engine, weights: Weights, step: int, network: str) -> dict[str, dict[str, float]]:
    """Loss and metric of the held-out folds.

    Raises:
      UserError: a loss that is not finite.
    """
    start = time.perf_counter()
    summaries = {}
    for name, rows in plan.held_out.items():
        predictions = engine.predict(weights, rows, tta=False)
        summaries[name] = engine.task.summarize(predictions.outputs, predictions.labels)
    engine.timing.add("evaluate", start, sum(map(len, plan.held_out.values())))
    if not all(np.isfinite(summary["loss"]) for summary in summaries.values()):
        raise _diverged(plan, step - 1, network)
    return summaries


def _final(plan: Plan, engine: Engine, weights: Weights) -> Weights:
    """The weights that are to be used, not trained on."""
    if not plan.config.train.recalibrate_batch_norm:
        return weights
    return engine.recalibrate_batch_norm(weights, plan.order(0).ravel())  # as mixed as the batches of training


def _test(plan: Plan, engine: Engine, recorder: Recorder, progress: Progress, stop: Callable[[], bool]) -> Result:
    """What a finished network says of its test fold."""
    kind, weights = recorder.final_weights(engine.network.abstract())
    known = None
    if not plan.config.train.epochs:  # a probe, whose backbone's features are known
        known = _backbone_features(plan, engine, recorder, weights, progress, stop).features
    start = time.perf_counter()
    held_out = plan.held_out | ({"in_source": plan.in_source} if len(plan.in_source) else {})
    raw = {name: engine.predict(weights, rows, features=known) for name, rows in held_out.items()}
    engine.timing.add("evaluate", start, sum(map(len, held_out.values())))
    predictions = raw["test"].calibrated(temperature_of(trust_file.read(recorder.run)))
    features = None
    if not plan.config.model.is_segmenter:
        parts = plan.train_rows, plan.held_out["test"]
        features = engine.features(weights, parts[0], known), engine.features(weights, parts[1], known)
    return Result(
        metrics=engine.task.measure(predictions, engine.classes),
        checkpoint=kind,
        history=folder.read_log(recorder.run),
        timing=engine.timing,
        parameters=count_parameters(weights),
        predictions=predictions,
        held_out=raw,
        features=features,
        left_out=plan.left_out,
    )


def _interrupted(step: int, recorder: Recorder) -> Interrupted:
    remedy = f"go on with `covidjax train --resume --run {recorder.parent}`"
    return Interrupted(f"Stopped, with everything saved at step {step}{recorder.of_network}; {remedy}.")


def _diverged(plan: Plan, step: int, network: str) -> UserError:
    where = f"step {step + 1}, where the learning rate was {float(plan.inputs.learning_rates[step]):.3g}"
    remedy = "train again with a smaller one, such as --set train.learning_rate=1e-3"
    return UserError(f"The loss{network} became NaN or infinite at {where}; {remedy}.")
