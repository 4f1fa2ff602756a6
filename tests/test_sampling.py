"""Which images an epoch draws, and how often."""

from __future__ import annotations

import numpy as np
import pytest

from covidjax.config import load_config
from covidjax.data.dataset import Dataset
from covidjax.data.sampling import MOST_DRAWS, balanced_weights, draw_epoch
from covidjax.training.plan import make_plan

LABELS = np.asarray([0] * 40 + [1] * 10 + [1] * 30 + [0] * 20)
SOURCES = ["here"] * 50 + ["there"] * 50
"""Cells of 40 and 10, 20 and 30 images."""


def test_every_class_of_every_source_is_drawn_equally_often():
    weights = balanced_weights(LABELS, SOURCES)
    assert weights.mean() == pytest.approx(1)
    for start, stop in ((0, 40), (40, 50), (50, 80), (80, 100)):
        assert weights[start:stop].sum() == pytest.approx(25)
        assert len(set(weights[start:stop])) == 1
    assert len(set(balanced_weights(LABELS[:40], SOURCES[:40]))) == 1


def test_images_of_small_cells_are_not_drawn_all_the_time():
    labels = np.asarray([0] * 1000 + [1] * 600 + [2] * 2)
    weights = balanced_weights(labels, ["one"] * len(labels))
    assert weights.mean() == pytest.approx(1)
    assert weights[-2:].tolist() == [MOST_DRAWS] * 2
    assert weights[:1000].sum() == pytest.approx(weights[1000:1600].sum())


def test_epochs_draw_images_as_often_as_their_weights_say():
    weights = balanced_weights(LABELS, SOURCES)
    drawn = np.zeros(100)
    for epoch in range(200):
        rows = draw_epoch(weights, 10, seed=3, epoch=epoch)
        assert rows.shape == (10, 10)
        assert rows.dtype == np.int32
        counts = np.bincount(rows.ravel(), minlength=100)
        assert (np.abs(counts - weights) < 1 + 1e-9).all()
        drawn += counts
    np.testing.assert_allclose(drawn / 200, weights, atol=0.15)


def test_epochs_follow_from_the_seed_and_their_number():
    weights = balanced_weights(LABELS, SOURCES)
    first = draw_epoch(weights, 32, seed=0, epoch=1)
    assert first.shape == (3, 32)
    np.testing.assert_array_equal(first, draw_epoch(weights, 32, seed=0, epoch=1))
    for other in (draw_epoch(weights, 32, seed=1, epoch=1), draw_epoch(weights, 32, seed=0, epoch=2)):
        assert (first != other).mean() > 0.5


def test_plan_draws_by_the_setting(prepared):
    dataset, plans = Dataset(prepared), {}
    for sampling in ("shuffle", "balanced"):
        settings = [f"train.sampling={sampling}", "train.class_weights=balanced", "train.batch_size=4"]
        plans[sampling] = make_plan(load_config(None, settings), dataset)
    assert plans["shuffle"].draws is None
    plan = plans["balanced"]
    assert plan.order(0).shape == plans["shuffle"].order(0).shape == (5, 4)
    assert set(plan.order(0).ravel()) <= set(plan.train_rows)
    # Balanced draws leave class weights nothing to do.
    np.testing.assert_allclose(plan.inputs.class_weights, 1, rtol=1e-6)
    labels = dataset.origins.labels[plan.train_rows]
    totals = np.bincount(labels, plan.weights(labels))
    np.testing.assert_allclose(totals, totals.mean(), rtol=1e-6)
