"""What the segmentation task computes, against sums by hand and scikit-learn; its measures and tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, log_loss

from covidjax import metrics
from covidjax.config import AugmentConfig, Config, ModelConfig, load_config
from covidjax.data.dataset import Dataset
from covidjax.errors import UsageError
from covidjax.report import tables
from covidjax.training.predictions import Predictions
from covidjax.training.tasks import Classification, Segmentation, _overlap, make_task

MASKED = Config(model=ModelConfig("lung-unet"), augment=AugmentConfig(contrast=0, brightness=0))


def test_overlap_by_other_means():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 8, 8, 2)).astype(np.float32)
    masks = (random.random((3, 8, 8, 1)) < 0.4).astype(np.float32)
    kinds = np.array([1, 0, 1])
    found = np.stack(_overlap(jnp.asarray(logits), jnp.asarray(kinds), jnp.asarray(masks)), -1)
    for row, kind in enumerate(kinds.tolist()):
        own, true = logits[row, ..., kind].ravel(), masks[row].ravel()
        soft = 1 / (1 + np.exp(-own))
        dice_loss = 1 - (2 * (soft * true).sum() + 1) / (soft.sum() + true.sum() + 1)
        expected = (log_loss(true, soft) + dice_loss, f1_score(true, own > 0), jaccard_score(true, own > 0))
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_empty_mask_found_empty_is_right():
    logits, masks = jnp.full((1, 4, 4, 1), -9.0), jnp.zeros((1, 4, 4, 1))
    _, dice, iou = _overlap(logits, jnp.zeros(1, int), masks)
    assert (float(dice[0]), float(iou[0])) == (1, 1)
    _, dice, iou = _overlap(-logits, jnp.zeros(1, int), masks)
    assert (float(dice[0]), float(iou[0])) == (0, 0)


def test_images_and_masks_move_together():
    """Images that are their own masks are still so after augmentation."""
    masks = np.zeros((4, 32, 32, 1), np.uint8)
    masks[:, 8:20, 10:25] = 1
    targets = jnp.zeros(4, int), jnp.asarray(masks)
    inputs, (kinds, moved) = Segmentation(MASKED).inputs(jax.random.key(1), jnp.asarray(masks * 255), targets, None)
    whole = (np.asarray(inputs) * 0.25 + 0.5) >= 0.5
    np.testing.assert_array_equal(whole, np.asarray(moved) == 1)
    assert not np.array_equal(np.asarray(moved), masks)
    assert kinds.shape == (4,)


def test_only_the_films_own_kind_of_mask_counts():
    task = Segmentation(MASKED)
    masks = jnp.ones((1, 4, 4, 1))
    first = jnp.stack([jnp.zeros((1, 4, 4)), jnp.full((1, 4, 4), 7.0)], -1)
    second = first.at[..., 1].set(-7.0)
    for kind, same in ((0, True), (1, False)):
        targets = jnp.array([kind]), masks
        a, b = (task.losses(logits, targets, jnp.ones(2)) for logits in (first, second))
        assert (float(a.loss[0]) == float(b.loss[0])) == same
    assert task.losses(first, (jnp.array([1]), masks), jnp.array([1.0, 3.0])).sample_weight.tolist() == [3]


def test_measures_and_table_of_masks():
    found = np.array([[0.1, 0.9, 0.8], [0.2, 0.7, 0.5], [0.3, 1.0, 1.0], [0.2, 0.8, 0.6]])
    examined = Predictions(found, np.array([0, 0, 1, 0]), ["a", "a", "b", "c"])
    task = Segmentation(MASKED)
    assert task.summarize(found, examined.labels) == pytest.approx({"loss": 0.2, "dice": 0.85})
    assert task.selection_key({"loss": 0.2, "dice": 0.85}) == (0.85, -0.2)
    measured = task.measure(examined, ("fields", "lungs"))
    fields, lungs = measured.per_class["fields"], measured.per_class["lungs"]
    assert (fields.dice, fields.median, fields.least, fields.iou) == pytest.approx((0.8, 0.8, 0.7, 1.9 / 3))
    assert (fields.films, fields.patients, lungs.films, lungs.interval) == (3, 2, 1, None)
    assert fields.interval == pytest.approx((0.8, 0.8))  # either patient's mean
    low, high = measured.overall.interval or (1, 0)
    assert 0.8 <= low < measured.overall.dice < high <= 1
    assert metrics.headline_metrics(measured) == pytest.approx({"dice": 0.85, "iou": 0.725})
    text = tables.as_text(tables.result_tables(measured, "Masks"))
    for cell in ("mean Dice", "fields", "lungs", "all", "0.850", "0.725"):
        assert cell in text


def test_kinds_without_films_are_left_out():
    examined = Predictions(np.ones((2, 3)), np.array([1, 1]), ["a", "b"])
    assert list(Segmentation(MASKED).measure(examined, ("fields", "lungs")).per_class) == ["lungs"]
    with pytest.raises(ValueError, match="no masks"):
        Segmentation(MASKED).measure(Predictions(np.ones((0, 3)), np.ones(0, int), []), ("fields",))


def test_task_follows_model_and_dataset(prepared):
    dataset = Dataset(prepared)
    assert isinstance(make_task(Config(), dataset), Classification)
    with pytest.raises(UsageError, match="has no lung masks"):
        make_task(MASKED, dataset)


@pytest.mark.parametrize("setting", ["train.ensemble=2", "model.channels=3", "model.tta=10"])
def test_settings_that_no_segmenter_has(setting):
    with pytest.raises(UsageError):
        load_config(None, ["model.name=lung-unet", setting])
