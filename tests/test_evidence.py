"""The exact decomposition of logits into what each cell of the last map adds."""

from __future__ import annotations

import numpy as np
import pytest

from covidjax.config import ModelConfig, Preprocess
from covidjax.inference import evidence
from covidjax.models import create_model


@pytest.mark.parametrize(("name", "size", "channels"), [("darkcovidnet", 64, 1), ("darkcovidnet", 50, 3), ("cnn13", 64, 1)])
def test_the_sum_over_the_cells_is_the_logit(name: str, size: int, channels: int):
    model = ModelConfig(name=name, channels=channels)  # pyright: ignore[reportArgumentType]
    network = create_model(model, Preprocess(image_size=size), "float32")
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 1), np.uint8)
    found = evidence.decompose(network, network.init(0), images, model)
    cells, logits = np.asarray(found.cells), np.asarray(found.logits)
    assert cells.shape[0] == 4 and cells.shape[1] == cells.shape[2] and cells.shape[3] == 3
    np.testing.assert_allclose(cells.sum((1, 2)) + np.asarray(found.bias), logits, atol=1e-4)
    assert np.ptp(logits) > 0


def test_coverage_of_cells():
    plain, padded = ModelConfig(name="cnn13"), ModelConfig(name="darkcovidnet")
    mask = np.zeros((1, 224, 224), bool)
    mask[0, :32, 32:80] = True
    covered = evidence.coverage(mask, plain, 7)
    assert covered.shape == (1, 7, 7)
    assert covered[0, 0].tolist() == [0, 1, 0.5, 0, 0, 0, 0] and covered[0, 1:].sum() == 0
    # DarkCovidNet's map is 12 cells wide, of which 92 pixels before the image are padding.
    whole = evidence.coverage(np.ones((1, 224, 224), bool), padded, 12)
    assert whole[0, :, 5].tolist() == [0, 0, pytest.approx(4 / 32), *[1] * 6, pytest.approx(28 / 32), 0, 0]
    assert whole.sum() * 32**2 == pytest.approx(224**2)


@pytest.mark.slow
def test_the_place_of_a_cell_is_where_it_looks():
    """A spot that moves in the image moves what it changes as far."""
    model = ModelConfig(name="darkcovidnet")
    network = create_model(model, Preprocess(image_size=160), "float32")
    images = np.full((3, 160, 160, 1), 128, np.uint8)
    images[1, 32:48, 32:48] = images[2, 112:128, 112:128] = 255
    before, *after = np.asarray(evidence.decompose(network, network.init(0), images, model).cells)
    middles = evidence.first_cell("darkcovidnet", 160) + evidence.STEP * (np.arange(len(before)) + 0.5)
    changes = [np.abs(cells - before).sum((1, 2)) ** 2 for cells in after]
    first, second = ((change * middles).sum() / change.sum() for change in changes)
    assert 40 < second - first < 120 and abs((first + second) / 2 - 80) < 40
