"""Negatives are told from X-rays, whatever page they lie on, and nothing else is taken for one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from bench.pages import LAYOUTS, PARTS, framed, margins, one_margin
from bench.polarity import augment, fit, scores_of
from covidjax.data import synthetic
from covidjax.images import decode, polarity
from covidjax.images.find import walk

NEGATIVE, UNSURE = polarity.REMARKS["negative"], polarity.REMARKS["unsure"]
OPPOSITE = {"positive": "negative", "negative": "positive", "unsure": "unsure"}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [Image.fromarray(synthetic.draw(index, size=128).image) for index in range(12)]


def test_phantoms_are_positives_and_their_negatives_are_not(drawn: list[Image.Image]):
    for film in drawn:
        assert polarity.judge(film) == "positive"
        assert polarity.judge(ImageOps.invert(film)) == "negative"


@pytest.mark.parametrize("name", LAYOUTS)
def test_polarity_is_that_of_the_film_within_its_page(drawn: list[Image.Image], name: str):
    rng = np.random.default_rng(0)
    positives = [polarity.judge(LAYOUTS[name](film, rng)) for film in drawn]
    negatives = [polarity.judge(LAYOUTS[name](ImageOps.invert(film), rng)) for film in drawn]
    assert "negative" not in positives
    assert "positive" not in negatives
    assert (positives + negatives).count("unsure") <= 2


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_chest_are_never_wrong(drawn: list[Image.Image], name: str):
    rng = np.random.default_rng(0)
    found = [polarity.judge(PARTS[name](film, rng)) for film in drawn]
    assert "negative" not in found
    assert name == "a quarter" or found.count("unsure") <= 2


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_an_image_and_its_negative_are_judged_alike(data: st.DataObject):
    """Exactly: any pixels, any size, X-rays on any page."""
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    if data.draw(st.booleans()):
        width, height = (data.draw(st.integers(32, 300)) for _ in range(2))
        coarse = Image.fromarray(rng.integers(0, 256, (data.draw(st.integers(1, 9)), 7), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    else:
        image = augment(Image.fromarray(synthetic.draw(seed % 1000, size=96).image), rng)
        image = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](image, rng)
    inverted = ImageOps.invert(image)
    assert polarity.score(inverted) == -polarity.score(image)
    assert polarity.judge(inverted) == OPPOSITE[polarity.judge(image)]
    assert polarity.content_box(inverted) == polarity.content_box(image)


@settings(max_examples=60, deadline=None, database=None)
@given(
    border=st.tuples(*[st.integers(0, 90)] * 4), page=st.integers(0, 255), seed=st.integers(0, 40), scale=st.integers(1, 5)
)
def test_content_box_is_the_film(border: tuple[int, int, int, int], page: int, seed: int, scale: int):
    blocks = np.random.default_rng(seed).integers(0, 2, (12, 12)).astype(bool)
    for line in (blocks[0], blocks[-1], blocks[:, 0], blocks[:, -1]):  # one of nearly one gray may be a page
        line[1:-1:2] = ~line[2:-1:2]
    film = np.kron(np.where(blocks, (page + 60) % 256, (page + 150) % 256), np.ones((8, 8))).astype(np.uint8)
    image = ImageOps.expand(Image.fromarray(film), border, page)
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    expected = border[0], border[1], border[0] + 96, border[1] + 96
    found = polarity.content_box(image)
    cell = max(image.size) / 64
    assert np.abs(np.subtract(found, np.multiply(expected, scale))).max() <= cell


def test_text_and_frames_are_no_part_of_the_film(drawn: list[Image.Image]):
    film = drawn[0]
    page = LAYOUTS["portrait page with text"](film, np.random.default_rng(0))
    left, upper, right, lower = polarity.content_box(page)
    assert abs(right - left - film.width) <= 8
    assert abs(lower - upper - film.height) <= 8
    box = polarity.content_box(framed((0.2, 0), (0.1, 255))(film, np.random.default_rng(0)))
    assert abs(box[2] - box[0] - film.width) <= 8


@pytest.mark.parametrize("kind", ["black", "gray", "white", "noise", "gradient", "small film", "text"])
def test_what_is_no_film_is_left_alone(kind: str, drawn: list[Image.Image]):
    rng = np.random.default_rng(0)
    image = {
        "black": lambda: Image.new("L", (64, 64), 0),
        "gray": lambda: Image.new("L", (64, 64), 77),
        "white": lambda: Image.new("L", (300, 200), 255),
        "noise": lambda: Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)),
        "gradient": lambda: Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))),
        "small film": lambda: ImageOps.expand(drawn[0], 600, 255),
        "text": lambda: LAYOUTS["portrait page with text"](Image.new("L", (200, 200), 255), rng),
    }[kind]()
    assert polarity.judge(image) == "unsure"
    assert polarity.judge(ImageOps.invert(image)) == "unsure"


@pytest.mark.parametrize("layout", [margins(0), margins(255), margins(20, 90), one_margin(0), one_margin(255)])
def test_a_negative_becomes_the_film_on_a_dark_page(drawn: list[Image.Image], layout: Any):
    for index, film in enumerate(drawn):
        page = layout(ImageOps.invert(film), np.random.default_rng(index))
        place = layout(Image.new("L", film.size, 255), np.random.default_rng(index))
        away = np.abs(np.asarray(place, np.int16) - 255) > 128 if np.asarray(place).min() < 128 else None
        turned = np.asarray(polarity.to_positive(page))
        if away is None:  # a white page and everything on it is inverted
            np.testing.assert_array_equal(turned, 255 - np.asarray(page))
        else:
            assert (turned[away] < 128).mean() > 0.98
            inside = ~away
            assert (turned[inside] == 255 - np.asarray(page)[inside]).mean() > 0.96


def test_fit_finds_weights_that_tell_films_from_negatives_and_are_unsure_of_others():
    rng = np.random.default_rng(0)
    films, others = rng.normal(size=(2, 400, 256)).astype(np.float32)
    films[:, :32] += 1
    weights = fit(films, others, epochs=60)
    assert (scores_of(weights, films) > 0).all()
    assert np.abs(scores_of(weights, rng.normal(size=(200, 256)))).mean() < scores_of(weights, films).mean() / 2


def test_reading_warns_of_what_it_turned_and_of_what_it_could_not_judge(drawn: list[Image.Image]):
    film = drawn[0]
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)  # no chest, and not flat either
    noise = Image.fromarray(noise).resize(film.size)
    for image, warning in ((film, ""), (ImageOps.invert(film), NEGATIVE), (noise, UNSURE)):
        assert decode.read_resized(png(image), 64).warning == warning
        assert decode.read_resized(png(image), 64, invert="never").warning == ""


def test_films_on_white_pages_are_left_as_they_are(shared_data):
    paths = sorted((shared_data.parent / "cases" / "film-on-white-page").glob("*.png"))
    assert paths
    for path in paths:
        found = decode.read_reduced(path)
        assert found.warning == ""
        np.testing.assert_array_equal(found.pixels, np.asarray(Image.open(path).convert("L")))


def test_half_a_chest_is_judged(shared_data):
    film = Image.open(shared_data.parent / "cases" / "8bit-rescale-slope-minus1" / "film.png").convert("L")
    assert polarity.judge(film) == "positive"
    assert polarity.judge(ImageOps.invert(film)) == "negative"


def test_twins_of_which_one_claims_to_be_a_negative(shared_data):
    twins = [shared_data / "dicom" / f"cr_pa_mono{kind}_jpeg8.dcm" for kind in (1, 2)]
    scores = [polarity.score(Image.fromarray(decode.read(path, invert="never"))) for path in twins]
    assert scores[0] < -polarity.SURE < polarity.SURE < scores[1]
    for size in (112, 224):
        one, other = (decode.read_resized(path, size) for path in twins)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert (one.warning, other.warning) == (NEGATIVE, "")


def real_films(shared_data, most: int) -> list[Image.Image]:
    folders = ("ozturk", "ieee8023/images", "radiography", "radiography-v4", "lungs/cxr")
    paths = [walk(shared_data / folder).images for folder in folders]
    chosen = [images[len(images) * index // most] for images in paths for index in range(most // len(folders))]
    return [Image.fromarray(decode.read_reduced(path, 256, invert="never").pixels) for path in chosen]


@pytest.mark.parametrize(
    ("most", "names"),
    [(60, ["white page 16:9", "black margins"]), pytest.param(250, list(LAYOUTS), marks=pytest.mark.slow)],
)
def test_real_films_on_pages_are_not_wrong_without_a_warning(shared_data, most: int, names: list[str]):
    """The bundled weights were fitted to these films, not to these pages; held-out films are ``bench.polarity``'s."""
    films, rng = real_films(shared_data, most), np.random.default_rng(0)
    as_they_are = [polarity.judge(film) for film in films]
    assert as_they_are.count("negative") == 0
    assert as_they_are.count("unsure") <= 0.02 * len(films)
    for name in names:
        found = [polarity.judge(LAYOUTS[name](film, rng)) for film in films]
        turned = [polarity.judge(LAYOUTS[name](ImageOps.invert(film), rng)) for film in films]
        assert found.count("negative") + turned.count("positive") <= 0.01 * len(films), name
        assert found.count("unsure") + turned.count("unsure") <= 0.1 * len(found + turned), name  # of both ways


@pytest.mark.parametrize(("page", "ink"), [(255, 0), (0, 255), (230, 60)])
def test_a_page_full_of_text_says_nothing(shared_data, page: int, ink: int):
    def on_page(film: Image.Image) -> Image.Image:
        width, height = film.size
        sheet = Image.new("L", (round(1.4 * width), 2 * height), page)
        draw = ImageDraw.Draw(sheet)
        for line in range(18):
            draw.text((0.1 * width, 1.35 * height + 12 * line), "the lungs are clear on both sides " * 3, fill=ink)
        sheet.paste(film, (round(0.2 * width), round(0.15 * height)))
        return sheet

    for film in real_films(shared_data, 60):
        assert polarity.judge(on_page(film)) != "negative"
        assert polarity.judge(on_page(ImageOps.invert(film))) != "positive"


def test_hands_knees_and_photographs_are_mostly_not_turned(shared_data):
    for kind in ("hand", "knee", "ct", "ct_mr_medpix", "photo", "lateral"):
        paths = walk(shared_data / "not-chest" / kind).images[::4]
        found = [decode.read_reduced(path, 256).warning for path in paths]
        assert sum(NEGATIVE in warning for warning in found) <= 0.15 * len(found), kind


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_parts_are_those_of_scipy(seed: int, share: float):
    mask = np.random.default_rng(seed).random((20, 23)) < share
    parts, count = polarity._parts(mask)
    expected, many = scipy.ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    assert count == many
    # The same parts, whatever their numbers.
    pairs = set(zip(parts.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == count + bool((~mask).any())
