"""Boxes, crops and blanked films from the phantom's own masks, handed in in place of a network's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from covidjax.config import Preprocess
from covidjax.data import loader, synthetic
from covidjax.data.dataset import Dataset
from covidjax.data.prepare import Options, prepare
from covidjax.images import decode
from covidjax.images.workers import DecodeJob
from covidjax.lungs import geometry
from covidjax.lungs import stream as lung_stream

SIZE = 64


class Perfect:
    """Knows the true masks of the phantoms, and sees nothing on any other film."""

    size = SIZE
    title = "perfect masks"
    digest = "0" * 64

    def __init__(self, films):
        self._masks = {film.image.tobytes(): film.lungs for film in films}
        self.batches = []

    def segment(self, images):
        self.batches.append(len(images))
        nothing = np.zeros((SIZE, SIZE), bool)
        masks = [self._masks.get(image.tobytes(), nothing) for image in images]
        return np.stack(masks).astype(np.float32), np.zeros((len(images), 5), np.float32)

    def __call__(self, images):
        return self.segment(images)[0]


@pytest.fixture(scope="module")
def films():
    return [synthetic.draw(index, size=SIZE) for index in range(18)]


def blank(*boxes, size=SIZE):
    """A mask of rectangles, (top, bottom, left, right)."""
    mask = np.zeros((size, size), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


TWO = ((10, 50, 8, 28), (12, 48, 36, 56))


def test_box_is_that_of_both_lungs_with_the_stated_margin():
    found = geometry.find_lungs(blank(*TWO).astype(float), 640, 320)
    assert found.flag == ""
    # 48 of 64 columns and 40 of 64 rows; 3 % of the width on either side, 8 % of the height at either end.
    width, height = 48 / 64 * 320, 40 / 64 * 640
    left, top, right, bottom = 8 * 5 - 0.03 * width, 100 - 0.08 * height, 56 * 5 + 0.03 * width, 500 + 0.08 * height
    assert found.box == (round(left), round(top), round(right), round(bottom))
    assert found.share == (40 * 20 + 36 * 20) / SIZE**2


def test_box_ends_at_the_edge_of_the_film():
    found = geometry.find_lungs(blank((0, 64, 1, 22), (4, 60, 42, 63)).astype(float), 100, 100)
    assert found.flag == ""
    assert found.box == (0, 0, 100, 100)


def test_only_the_two_largest_pieces_count_and_their_holes_are_filled():
    mask = blank(*TWO, (60, 63, 1, 4))
    mask[20:24, 12:16] = False
    found = geometry.find_lungs(mask.astype(float), SIZE, SIZE)
    np.testing.assert_array_equal(found.mask, blank(*TWO))


@pytest.mark.parametrize(
    ("mask", "flag"),
    [
        (blank(), "no lungs"),
        (blank((30, 36, 20, 28), (30, 36, 34, 42)), "lungs too small"),
        (blank((2, 62, 1, 31), (2, 62, 33, 63)), "lungs too large"),
        (blank((10, 50, 8, 28)), "one lung"),
        (blank((10, 50, 8, 28), (20, 24, 40, 44)), "one lung"),
        (blank((0, 40, 0, 26), (0, 40, 38, 64)), "lungs out of frame"),
        (np.ones((SIZE, SIZE), bool), "lungs too large"),
    ],
)
def test_implausible_masks_are_flagged_and_leave_the_film_whole(mask, flag):
    found = geometry.find_lungs(mask.astype(float), 50, 70)
    assert found.flag == flag
    assert found.box == (0, 0, 70, 50)
    film = np.random.default_rng(0).integers(1, 255, (50, 70), np.uint8)
    for what in ("crop", "mask"):
        np.testing.assert_array_equal(geometry.crop_to_box(film, found, what), film)


def test_a_mask_without_a_clear_outline_is_flagged():
    mask = blank(*TWO).astype(float)
    assert geometry.find_lungs(np.where(mask > 0, 0.79, 0.1), SIZE, SIZE).flag == "outline unsure"
    assert geometry.find_lungs(np.where(mask > 0, 0.81, 0.1), SIZE, SIZE).flag == ""


def test_lungs_that_touch_are_still_two():
    assert geometry.find_lungs(blank(*TWO, (20, 22, 28, 36)).astype(float), SIZE, SIZE).flag == ""


def test_every_phantom_has_plausible_lungs_inside_its_box(films):
    for film in films:
        found = geometry.find_lungs(film.lungs.astype(np.float32), SIZE, SIZE)
        assert found.flag == ""
        left, top, right, bottom = found.box
        outside = film.lungs.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        rows, columns = np.flatnonzero(film.lungs.any(1)), np.flatnonzero(film.lungs.any(0))
        assert abs((bottom - top) / np.ptp(rows) - 1.16) < 0.06
        assert abs((right - left) / np.ptp(columns) - 1.06) < 0.06


def test_crop_is_the_box_of_the_film_and_mask_is_black_outside_the_dilated_lungs(films):
    for film in films[:6]:
        found = geometry.find_lungs(film.lungs.astype(np.float32), SIZE, SIZE)
        left, top, right, bottom = found.box
        np.testing.assert_array_equal(geometry.crop_to_box(film.image, found, "crop"), film.image[top:bottom, left:right])
        masked = geometry.crop_to_box(film.image, found, "mask")
        near = film.lungs.copy()  # one pixel of 64 up, down, left and right
        near[1:] |= film.lungs[:-1]
        near[:-1] |= film.lungs[1:]
        near[:, 1:] |= film.lungs[:, :-1]
        near[:, :-1] |= film.lungs[:, 1:]
        np.testing.assert_array_equal(masked, np.where(near, film.image, 0)[top:bottom, left:right])


def test_mask_is_enlarged_to_the_films_own_scale(films):
    film = films[0]
    found = geometry.find_lungs(film.lungs.astype(np.float32), 4 * SIZE, 4 * SIZE)
    inside = geometry.visible_pixels(found, 4 * SIZE, 4 * SIZE)
    left, top, right, bottom = found.box
    assert inside.shape == (bottom - top, right - left)
    coarse = film.lungs.repeat(4, 0).repeat(4, 1)[top:bottom, left:right]
    assert inside[coarse].mean() > 0.999
    assert 0 < (inside & ~coarse).sum() / coarse.sum() < 0.4


def test_square_keeps_the_aspect_between_equal_black_bars():
    film = np.full((30, 50), 7, np.uint8)
    found = geometry.pad_to_square(film)
    assert found.shape == (50, 50)
    np.testing.assert_array_equal(found[10:40], film)
    assert not found[:10].any() and not found[40:].any()
    np.testing.assert_array_equal(geometry.pad_to_square(film.T), found.T)


@pytest.mark.parametrize(
    ("box", "height", "width", "rows", "columns"),
    [
        ((40, 30, 60, 70), 100, 120, (22, 78), (22, 78)),  # 40 × 1.4 around the middle (50, 50)
        ((0, 30, 30, 70), 100, 120, (22, 78), (0, 56)),  # moved into the film from the left
        ((90, 60, 120, 100), 100, 120, (44, 100), (64, 120)),  # and from the right and from below
        ((2, 10, 38, 90), 100, 40, (0, 100), (0, 40)),  # wider than the film: black on both sides
    ],
)
def test_classifier_sees_a_square_window_around_the_box(box, height, width, rows, columns):
    film = np.random.default_rng(1).integers(1, 255, (height, width), np.uint8)
    found = geometry.Lungs(box, 0.3, "", np.ones((SIZE, SIZE), bool))
    window = film[slice(*rows), slice(*columns)]
    np.testing.assert_array_equal(geometry.frame_lungs(film, found, "crop"), geometry.pad_to_square(window))
    np.testing.assert_array_equal(
        geometry.frame_lungs(film, found, "mask"), geometry.pad_to_square(geometry.crop_to_box(film, found, "mask"))
    )
    np.testing.assert_array_equal(
        geometry.frame_lungs(film, found._replace(box=(0, 0, width, height), flag="one lung"), "crop"),
        geometry.pad_to_square(film),
    )


def test_files_come_back_in_order_whatever_is_wrong_with_them(films, tmp_path):
    paths = []
    for index, film in enumerate(films):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(film.image).save(paths[-1])
    (tmp_path / "bad.png").write_text("no film")
    Image.fromarray(films[0].image[::-1]).save(tmp_path / "down.png")
    paths[3:3] = [tmp_path / "bad.png", tmp_path / "none.png"]
    paths.append(tmp_path / "down.png")
    segmenter = Perfect(films)
    found = list(lung_stream.read_lungs(paths, Preprocess(32, "crop"), segmenter, workers=2))
    assert [film.path for film in found] == list(map(str, paths))
    assert set(segmenter.batches) == {lung_stream.BATCH_SIZE}
    assert [film.lungs for film in found] == ["crop"] * 3 + ["", ""] + ["crop"] * 15 + ["whole film: no lungs"]
    assert [bool(film.error) for film in found] == [False] * 3 + [True, True] + [False] * 16
    for film, path in zip(found, paths, strict=True):
        if film.lungs == "crop":
            true = films[int(path.stem)]
            part = geometry.frame_lungs(true.image, geometry.find_lungs(true.lungs.astype(float), SIZE, SIZE), "crop")
            assert film.image is not None
            np.testing.assert_array_equal(film.image[..., 0], decode.resize(part, 32))
            assert len(film.sha256) == 64
    last = found[-1].image
    assert last is not None
    np.testing.assert_array_equal(last[..., 0], decode.resize(films[0].image[::-1], 32))


def test_films_above_four_times_the_size_are_reduced_before_they_wait(films, tmp_path):
    film = films[0].image.repeat(8, 0).repeat(8, 1)
    Image.fromarray(film).save(tmp_path / "large.png")
    (found,) = lung_stream.segment_images([tmp_path / "large.png"], Perfect(films), DecodeJob(at_least=SIZE))
    np.testing.assert_array_equal(found.gray, films[0].image)
    assert found.lungs is not None
    assert found.lungs.flag == ""


@pytest.mark.parametrize("what", ["crop", "mask"])
def test_prepare_writes_the_lungs_and_counts_the_films_without(films, tmp_path, what):
    for index, film in enumerate(films):
        path = tmp_path / "in" / synthetic.CLASSES[film.label] / f"{film.patient}-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film.image if index else film.image[::-1]).save(path)
    options = Options(Preprocess(32, what), folds=3)
    prepare([tmp_path / "in"], tmp_path / "out", options, segmenter=Perfect(films))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["lungs"] == what
    assert (manifest["lungs_by"], manifest["segmenter"]) == ("perfect masks", Perfect.digest)
    (whole,) = manifest["whole_films"]
    assert whole["path"].endswith(f"{films[0].patient}-0.png")
    assert whole["reason"] == "whole film: no lungs"
    dataset = Dataset(tmp_path / "out")
    assert dataset.preprocess == Preprocess(32, what)
    source = dataset.source(range(3))
    batch = loader.load_all(source)
    for row in range(len(source)):
        index = int(source.texts(row, "name")[0].removesuffix(".png").rpartition("-")[2])
        if index:
            film = films[index]
            part = geometry.frame_lungs(film.image, geometry.find_lungs(film.lungs.astype(float), SIZE, SIZE), what)
            np.testing.assert_array_equal(batch.images[row, ..., 0], decode.resize(part, 32))
