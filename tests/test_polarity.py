"""Negatives are told from films, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from bench.polarity import fit
from covidjax.data import synthetic
from covidjax.images import decode, polarity


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [Image.fromarray(synthetic.draw(index, size=64).image) for index in range(12)]


def test_phantoms_are_no_negatives_and_their_negatives_are(drawn: list[Image.Image]):
    for film in drawn:
        assert polarity.score(film) == pytest.approx(-polarity.score(ImageOps.invert(film)), abs=0.02)  # resizing rounds
        assert not polarity.is_negative(film)
    assert all(polarity.is_negative(ImageOps.invert(film)) for film in drawn)


@pytest.mark.parametrize("kind", ["gray", "noise", "gradient"])
def test_what_is_no_film_is_left_alone(kind: str):
    pixels = {
        "gray": np.full((64, 64), 77, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8),
        "gradient": np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)),
    }[kind]
    assert not polarity.is_negative(Image.fromarray(pixels))


def test_fit_finds_weights_that_tell_films_from_negatives():
    films = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    films[:, :9] += 2
    weights = fit(films)
    assert (films @ weights > 0).all()
    assert weights[:9].mean() > np.abs(weights[9:]).mean()


def test_twins_of_which_one_claims_to_be_a_negative(shared_data):
    twins = [shared_data / "dicom" / f"cr_pa_mono{kind}_jpeg8.dcm" for kind in (1, 2)]
    scores = [polarity.score(Image.fromarray(decode.read(path, invert="never"))) for path in twins]
    assert scores[0] < -polarity.SURE < polarity.SURE < scores[1]
    for size in (112, 224):
        one, other = (decode.read_resized(path, size) for path in twins)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert (one.warning, other.warning) == ("a negative, turned into a positive", "")
