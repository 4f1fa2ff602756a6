from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from covidjax import device
from covidjax.config import Config, ModelConfig, Preprocess, TrainConfig, load_config
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.inference.forward import make_predict, normalize, ten_crop
from covidjax.labels import CLASSES
from covidjax.metrics import headline_metrics
from covidjax.models import Weights, create_model
from covidjax.runs import checkpoint, folder
from covidjax.runs.folder import Run
from covidjax.runs.load import load_run
from covidjax.training import engine, loop
from covidjax.training.loop import Interrupted
from covidjax.training.optimizer import learning_rate
from covidjax.training.predictions import predict
from covidjax.training.step import StepInputs, TrainState, class_weights, create_train_state, make_train_step, to_checkpoint
from covidjax.training.tasks import Classification


class Silent:
    """Progress that only remembers, and asks to stop after some steps."""

    def __init__(self, stop_after: int | None = None):
        self.steps, self.stop_after = 0, stop_after
        self.records: list[dict[str, Any]] = []

    def features(self, done: int, total: int) -> None:
        pass

    def begin(self, description: str, steps: int, metric: str) -> None:
        self.what, self.epoch_steps = description, steps

    def step(self, epoch: int, step: int, loss: float, metric: float, images_per_second: float) -> None:
        self.steps += 1

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def stop(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def run_training(
    dataset: Dataset, run: Path, *settings: str, resume: bool = False, stop_after: int | None = None
) -> tuple[loop.Result, Silent]:
    config = load_config(None, ["train.epochs=2", "train.batch_size=4", *settings])
    progress = Silent(stop_after)
    loop.PROGRESS_SECONDS = 0.0  # tell of every step, so that steps can be counted
    result = loop.train(config, dataset, run, resume=resume, progress=progress, stop=progress.stop)
    return result, progress


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset(prepared)


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    run_training(dataset, run)
    return run


@functools.cache
def shapes(ema_decay: float) -> TrainState:
    network, optimizer = create_model(ModelConfig(), Preprocess(image_size=32)), optax.adam(optax.constant_schedule(1.0))
    return jax.eval_shape(lambda: create_train_state(network.init(0), optimizer, loss_scaling=False, ema_decay=ema_decay))


def saved(run: Path, kind: str = "last") -> checkpoint.Saved:
    state = shapes(Run.load(run / "config.toml").config.train.ema_decay)
    return checkpoint.restore(run, kind, state.weights, to_checkpoint(state))


def assert_same_bits(first: checkpoint.Saved, second: checkpoint.Saved) -> None:
    assert first.step == second.step
    a, b = (jax.tree.leaves((each.weights, each.training)) for each in (first, second))
    assert len(a) == len(b) > 50
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def without_times(log: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def test_one_cycle_rises_to_the_peak_and_falls():
    rate = learning_rate(TrainConfig(learning_rate=3e-3), 100)
    assert float(np.asarray(rate(0))) == pytest.approx(3e-3 / 25, rel=1e-4)
    assert float(np.asarray(rate(30))) == pytest.approx(3e-3, rel=1e-4)
    assert float(np.asarray(rate(65))) == pytest.approx(1.5e-3, rel=0.05)
    assert float(np.asarray(rate(100))) < 1e-6
    constant = learning_rate(TrainConfig(learning_rate=3e-3, schedule="constant"), 100)
    assert float(np.asarray(constant(0))) == float(np.asarray(constant(99))) == pytest.approx(3e-3)


def test_class_weights():
    counts = np.array([100, 400, 500])
    assert class_weights(TrainConfig(), counts).tolist() == [1, 1, 1]
    balanced = class_weights(TrainConfig(class_weights="balanced"), counts)
    np.testing.assert_allclose(balanced, [1000 / 300, 1000 / 1200, 1000 / 1500], rtol=1e-6)


def no_augmentation(*settings: str) -> Config:
    off = ("horizontal_flip=false", "rotation=0", "shift=0", "zoom=0", "brightness=0", "contrast=0")
    return load_config(None, [*(f"augment.{each}" for each in off), *settings])


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 2], np.int32)


def given(importance: tuple[float, ...]) -> StepInputs:
    return StepInputs(np.uint32(0), np.full(8, 0.1, np.float32), np.asarray(importance, np.float32))


class OneStep:
    """A compiled step without augmentation, and the state before it."""

    def __init__(self, importance: tuple[float, ...] = (1, 1, 1), dtype: Any = jnp.float32, *settings: str):
        config = no_augmentation(*settings)
        scaled = dtype == jnp.float16
        self.network = create_model(config.model, Preprocess(image_size=32), dtype)
        options: Any = {"loss_scaling": scaled, "ema_decay": config.train.ema_decay}
        self.before = create_train_state(self.network.init(0), optax.sgd(optax.constant_schedule(0.1)), **options)
        self._given, task = given(importance), Classification(config)
        self._step = jax.jit(make_train_step(self.network, task.inputs, task.losses, optax.sgd, **options))

    def after(self, scale: float = 1.0, before: TrainState | None = None) -> TrainState:
        state = before or self.before._replace(loss_scale=self.before.loss_scale._replace(value=jnp.float32(scale)))
        return self._step(state, self._given, IMAGES, LABELS)


@pytest.mark.parametrize("model", [(), pytest.param(("model.name=cnn13", "model.width=2"), marks=pytest.mark.slow)])
def test_two_devices_come_to_the_state_of_one(model: tuple[str, ...]):
    device.start()
    mesh = device.mesh(len(IMAGES))
    assert mesh.size == 2
    # With augmentation: the draws must be shared out too.
    config = load_config(None, [*model, "train.class_weights=balanced"])
    network = create_model(config.model, Preprocess(image_size=32))
    task, arguments = Classification(config), (given((0.5, 1.0, 3.0)), IMAGES, LABELS)
    before = create_train_state(network.init(0), optax.sgd(optax.constant_schedule(0.1)), loss_scaling=False)
    make = functools.partial(make_train_step, network, task.inputs, task.losses, optax.sgd, loss_scaling=False)
    alone = jax.jit(make())(before, *arguments)
    step = make(axis=device.AXIS)
    share = P(device.AXIS)
    shared = jax.jit(device.shard(step, mesh, P(), P(), share, share, result=P()))(before, *arguments)
    assert float(shared.sums.loss) == pytest.approx(float(alone.sums.loss), rel=1e-5)
    assert int(shared.sums.metric) == int(alone.sums.metric)
    assert int(shared.sums.images) == len(IMAGES)
    for a, b in zip(jax.tree.leaves(shared.weights), jax.tree.leaves(alone.weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def dense_of(state: Any) -> np.ndarray:
    return np.asarray(state.weights.params["dense"]["kernel"])


def test_loss_is_weighted_and_smoothed_cross_entropy():
    importance = np.array([0.5, 1.0, 3.0])
    step = OneStep(tuple(importance), jnp.float32, "train.label_smoothing=0.1")
    after = step.after()
    inputs = jnp.asarray((IMAGES.astype(np.float32) / 255 - 0.5) / 0.25)
    apply = jax.jit(functools.partial(step.network.apply, train=True))
    logits = np.asarray(apply(step.before.weights, inputs)[0], np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.eye(3)[LABELS] * 0.9 + 0.1 / 3
    losses = -(targets * log_probabilities).sum(1)
    expected = (losses * importance[LABELS]).sum() / importance[LABELS].sum()
    assert float(after.sums.loss) / 8 == pytest.approx(expected, rel=1e-5)
    assert int(after.sums.metric) == (logits.argmax(1) == LABELS).sum()
    assert int(after.sums.images) == 8
    assert int(after.step) == 1


def test_moving_average_of_the_weights():
    """The steps are those that are taken without it, and the mean follows them, the first ones closer."""
    plain, mean = OneStep(), OneStep((1, 1, 1), jnp.float32, "train.ema_decay=0.15")
    expected: Any = plain.before.weights
    states, averaged = [plain.after()], [mean.after()]
    for _ in range(2):
        states.append(plain.after(before=states[-1]))
        averaged.append(mean.after(before=averaged[-1]))
    for decay, state, found in zip((1 / 10, 0.15, 0.15), states, averaged, strict=True):
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.weights)
        for one, other in ((found.raw_weights, state.weights), (found.weights, expected)):
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), one, other)
    assert np.abs(dense_of(averaged[-1]) - dense_of(states[-1])).max() > 1e-5


@pytest.mark.slow
def test_scaled_float16_step():
    """An overflowing step is left out and the scale halved; one that does not overflow is the float32 step."""
    half = OneStep((1, 1, 1), jnp.float16)
    overflowed = half.after(scale=2.0**24)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), half.before.weights, overflowed.weights)
    assert all(jax.tree.leaves(same))
    assert float(overflowed.loss_scale.value) == 2.0**23
    assert int(overflowed.first_bad_step) == -1
    good = half.after(scale=1024.0)
    assert float(good.loss_scale.value) == 1024.0
    exact = OneStep()
    moved = [dense_of(state) - dense_of(exact.before) for state in (good, exact.after())]
    assert np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(moved[1]) < 0.05


def test_result_and_files(dataset: Dataset, finished: Path):
    found = saved(finished)
    folds = dataset.split(0)
    images = int(dataset.class_counts(folds[0]).sum())
    steps = 2 * (images // 4)
    assert found.step == steps
    records = without_times(finished / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "step", "learning_rate", "train", "test"}
    assert (finished / "config.toml").is_file()


@pytest.mark.slow
def test_it_learns(dataset: Dataset, tmp_path: Path):
    # Learning the training images by heart needs working gradients, statistics and schedule all together.
    settings = ["train.epochs=40", "train.batch_size=8", "augment.rotation=0", "augment.shift=0", "augment.zoom=0"]
    result, progress = run_training(dataset, tmp_path / "run", *settings)
    assert progress.records[-1]["train"]["accuracy"] >= 0.9
    assert progress.records[-1]["train"]["loss"] < 0.5 * progress.records[0]["train"]["loss"]
    assert result.timing.seconds.keys() >= {"load", "compile", "train", "evaluate", "checkpoint", "wall"}


def test_streaming_gives_the_same_bits(dataset: Dataset, finished: Path, tmp_path: Path):
    run_training(dataset, tmp_path / "run", "train.cache=stream")
    assert_same_bits(saved(finished), saved(tmp_path / "run"))
    assert without_times(finished / "metrics.jsonl") == without_times(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.slow
def test_scan_over_steps_gives_the_same_result(dataset: Dataset, finished: Path, tmp_path: Path, monkeypatch):
    # The accelerators' way, taken on the CPU: the same sums in another program, so equal within rounding.
    monkeypatch.setattr(engine.Engine, "accelerated", True)
    monkeypatch.setattr(engine, "SCAN_STEPS", 3)
    _, progress = run_training(
        dataset, tmp_path / "run", "train.epochs=1", "train.schedule=constant", "train.learning_rate=1e-4"
    )
    scanned = progress.records
    assert progress.steps == -(-progress.epoch_steps // 3)
    monkeypatch.undo()
    _, progress = run_training(
        dataset, tmp_path / "other", "train.epochs=1", "train.schedule=constant", "train.learning_rate=1e-4"
    )
    assert progress.steps == progress.epoch_steps
    assert scanned[0]["train"]["loss"] == pytest.approx(progress.records[0]["train"]["loss"], rel=1e-3)
    assert scanned[0]["test"]["loss"] == pytest.approx(progress.records[0]["test"]["loss"], rel=1e-2)


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_stopped_anywhere_resumes_to_the_same_bits(dataset: Dataset, finished: Path, tmp_path: Path, steps: int):
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="--resume --run"):
        run_training(dataset, run, stop_after=steps)
    assert checkpoint.steps(run, "last")[-1] == steps
    run_training(dataset, run, resume=True)
    assert_same_bits(saved(finished), saved(run))
    assert without_times(finished / "metrics.jsonl") == without_times(run / "metrics.jsonl")


def test_tta_counts_when_training_has_ended(dataset: Dataset, tmp_path: Path):
    """Epochs are tested by one view, and the finished network by the mean logits of ten."""
    result, _ = run_training(dataset, tmp_path / "run", "train.epochs=4", "train.learning_rate=0.01", "model.tta=10")
    loaded = load_run(tmp_path / "run")
    data = loader.load_all(dataset.source([0]))
    predict = make_predict(loaded.network, ModelConfig())
    views = np.asarray(ten_crop(jnp.asarray(data.images))).reshape(10, *data.images.shape)
    logits = [np.asarray(predict(loaded.weights, view)) for view in views]
    assert np.std(logits, 0).max() > 1e-2
    np.testing.assert_allclose(result.predictions.outputs, np.mean(logits, 0), rtol=1e-4, atol=1e-4)
    task = Classification(loaded.run.config)
    assert result.history[-1]["test"]["loss"] == pytest.approx(task.summarize(logits[0], data.labels)["loss"], rel=1e-4)


@pytest.mark.slow
def test_recalibrated_statistics_are_of_images_without_augmentation(dataset: Dataset, tmp_path: Path):
    run, plain = tmp_path / "run", tmp_path / "plain"
    settings = ("train.epochs=3", "train.learning_rate=0.01")
    run_training(dataset, plain, *settings)
    result, _ = run_training(dataset, run, *settings, "train.recalibrate_batch_norm=true")
    refreshed, before = saved(run), saved(plain)
    jax.tree.map(np.testing.assert_array_equal, refreshed.weights.params, before.weights.params)
    images = loader.load_all(dataset.source(dataset.split(0)[0])).images
    rows = loader.epoch_rows(len(images), 4, seed=0, epoch=0)
    network = create_model(ModelConfig(), Preprocess(image_size=32))
    inputs = [normalize(jnp.asarray(images[row])) for row in rows]
    moved = [network.apply(before.weights, each, train=True)[2]["stem1"]["norm"]["mean"] for each in inputs]
    old = np.asarray(before.weights.batch_stats["stem1"]["norm"]["mean"])
    expected = np.mean([(np.asarray(new) - 0.9 * old) / 0.1 for new in moved], 0)
    found = refreshed.weights.batch_stats["stem1"]["norm"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found - old).max() > 1e-3
    tested, _ = predict(
        Classification(Config()).eval_step(network), load_run(run).weights, loader.eval_batches(dataset.source([0]), 4)
    )
    np.testing.assert_allclose(result.predictions.outputs, tested, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_best_checkpoint_is_recalibrated_and_the_last_is_what_training_goes_on_from(dataset: Dataset, tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = ("data.val_fold=1", "train.recalibrate_batch_norm=true")
    _, progress = run_training(dataset, whole, *settings)
    with pytest.raises(Interrupted):
        run_training(dataset, stopped, *settings, stop_after=progress.epoch_steps)
    best, last = saved(stopped, "best"), saved(stopped)
    assert best.step == last.step == progress.epoch_steps
    jax.tree.map(np.testing.assert_array_equal, best.weights.params, last.weights.params)
    means = [each.weights.batch_stats["stem1"]["norm"]["mean"] for each in (best, last)]
    assert np.abs(means[0] - means[1]).max() > 1e-3
    run_training(dataset, stopped, *settings, resume=True)
    assert_same_bits(saved(whole), saved(stopped))
    assert_same_bits(saved(whole, "best"), saved(stopped, "best"))


@pytest.mark.slow
def test_moving_average_is_resumed_tested_and_used(dataset: Dataset, tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result, progress = run_training(dataset, whole, "train.ema_decay=0.9")
    with pytest.raises(Interrupted):
        run_training(dataset, stopped, "train.ema_decay=0.9", stop_after=3)
    run_training(dataset, stopped, "train.ema_decay=0.9", resume=True)
    assert_same_bits(saved(whole), saved(stopped))
    assert without_times(whole / "metrics.jsonl") == without_times(stopped / "metrics.jsonl")
    assert headline_metrics(result.metrics)["accuracy"] == pytest.approx(progress.records[-1]["test"]["accuracy"])
    kernels = [each["dense"]["kernel"] for each in (saved(whole).weights.params, saved(whole).training["newest"].params)]
    assert not np.array_equal(*kernels)
    np.testing.assert_array_equal(load_run(whole).weights.params["dense"]["kernel"], kernels[0])


def test_half_written_log_lines_come_again(dataset: Dataset, finished: Path, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_training(dataset, run, stop_after=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    run_training(dataset, run, resume=True)
    assert without_times(finished / "metrics.jsonl") == without_times(run / "metrics.jsonl")


@pytest.mark.slow
def test_other_seed_other_bits(dataset: Dataset, finished: Path, tmp_path: Path):
    run_training(dataset, tmp_path / "run", "seed=1")
    kernels = [saved(run).weights.params["stem1"]["conv"]["kernel"] for run in (finished, tmp_path / "run")]
    assert not np.array_equal(*kernels)


def test_validation_fold_chooses_the_best(dataset: Dataset, tmp_path: Path):
    run = tmp_path / "run"
    settings = ["data.val_fold=1", "train.epochs=5", "train.learning_rate=0.02"]
    result, progress = run_training(dataset, run, *settings)
    folds = dataset.split(0, 1)
    assert folds == ([2], [0], [1])
    assert f"{dataset.class_counts([2]).sum()} training images" in progress.what
    merits = [(record["val"]["accuracy"], -record["val"]["loss"]) for record in progress.records]
    best = progress.records[merits.index(max(merits))]
    assert saved(run, "best").step == best["step"]
    assert result.checkpoint == "best"
    assert headline_metrics(result.metrics)["accuracy"] == pytest.approx(best["test"]["accuracy"])
    resumed, _ = run_training(dataset, run, *settings, resume=True)
    assert resumed.metrics == result.metrics


def test_divergence_names_step_and_learning_rate(dataset: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match=r"NaN or infinite at step \d+, where the learning rate was 1e\+30; train again"):
        run_training(dataset, tmp_path / "run", "train.learning_rate=1e30", "train.schedule=constant")


def test_weights_that_break_in_the_last_step(dataset: Dataset, tmp_path: Path):
    settings = ("train.learning_rate=1e30", "train.schedule=constant", "train.epochs=1", "train.batch_size=1000")
    with pytest.raises(UserError, match=r"NaN or infinite at step 1, where the learning rate was 1e\+30"):
        run_training(dataset, tmp_path / "run", *settings)
    assert checkpoint.steps(tmp_path / "run", "last") == []


def test_checkpoint_of_another_device_is_restored_here(finished: Path, tmp_path: Path):
    """A run of a GPU is scored on a CPU: only the name of the device differs in what orbax wrote."""
    run = shutil.copytree(finished, tmp_path / "run")
    changed = 0
    for file in (run / "checkpoints").rglob("_sharding"):
        changed += file.read_text().count("cpu:0")
        file.write_text(file.read_text().replace("cpu:0", "cuda:0"))
    for seal in (run / "checkpoints").rglob("sha256.json"):
        seal.unlink()
    assert changed > 0
    assert_same_bits(saved(finished), saved(run))


def test_folder_of_something_else_is_left_alone(dataset: Dataset, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "important.pt").write_text("precious")
    with pytest.raises(UserError, match="holds other files, such as checkpoints; name a new or an empty folder"):
        run_training(dataset, tmp_path)
    assert (tmp_path / "checkpoints" / "important.pt").read_text() == "precious"


def test_log_with_broken_and_missing_lines(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"epoch": 3}\n{"epo\n{"epoch": 4}\n{"epoch": 5}\n')
    folder.truncate_log(tmp_path, 4)
    assert log.read_text() == '{"epoch": 3}\n{"epoch": 4}\n'


@pytest.mark.slow
def test_batch_larger_than_the_dataset(dataset: Dataset, tmp_path: Path):
    _, progress = run_training(dataset, tmp_path / "run", "train.batch_size=1000", "train.epochs=1")
    assert progress.epoch_steps == 1


def test_checkpoint_of_other_shapes_is_refused(finished: Path):
    other = create_model(ModelConfig(), Preprocess(image_size=64, classes=CLASSES[:2])).abstract()
    with pytest.raises(UserError, match="of another network"):
        checkpoint.restore(finished, "last", other)


def test_predictions_ignore_padding(dataset: Dataset, finished: Path):
    loaded = load_run(finished)
    eval_step = Classification(loaded.run.config).eval_step(loaded.network)
    source = dataset.source([0])
    weights = Weights(*loaded.weights)
    whole, labels = predict(eval_step, weights, loader.eval_batches(source, len(source)))
    parts, same = predict(eval_step, weights, loader.eval_batches(source, 4))
    assert labels.tolist() == same.tolist()
    assert len(whole) == len(source)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)
