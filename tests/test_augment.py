"""Changes to training images: what each setting does, and that it does no more."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from PIL import Image

from covidjax import device
from covidjax.config import AugmentConfig, ModelConfig
from covidjax.data import synthetic
from covidjax.inference.forward import normalize, ten_crop
from covidjax.training.augment import _compress, _resample, _warp, augment, augment_with_masks

OFF = AugmentConfig(horizontal_flip=False, rotation=0, shift=0, zoom=0, brightness=0, contrast=0)
IMAGES = np.stack([synthetic.draw(index, size=32).image for index in range(8)])[..., None]


def only(**setting):
    return dataclasses.replace(OFF, **setting)


def augmented(config, images=IMAGES, seed=0):
    result = augment(jax.random.key(seed), jnp.asarray(images), config)
    assert result.dtype == jnp.float32
    assert result.shape == images.shape
    return np.asarray(result)


def warped(image, *, angle=0.0, scale: float | tuple[float, float] = 1.0, shift=(0.0, 0.0)):
    values = (jnp.asarray(value)[None] for value in (image, angle, np.atleast_1d(scale), shift))
    return np.asarray(_warp(*values)[0])


def point(row, column, size=9):
    image = np.zeros((size, size), np.float32)
    image[row, column] = 100
    return image


def test_all_off_changes_nothing():
    np.testing.assert_array_equal(augmented(OFF), IMAGES)


def test_flip_mirrors_some_images_left_to_right_and_leaves_the_others():
    images = np.repeat(IMAGES, 4, axis=0)
    found = augmented(only(horizontal_flip=True), images)
    same = (found == images).all((1, 2, 3))
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 4 < same.sum() < 28


def test_ten_views_are_shifted_and_mirrored():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)  # shifts of 2
    views = np.asarray(ten_crop(jnp.asarray(images))).reshape(2, 5, *images.shape)
    for film, five in zip((images, images[:, :, ::-1]), views, strict=True):
        np.testing.assert_array_equal(five[0], film)
        for view, (y, x) in zip(five[1:], ((-2, -2), (-2, 2), (2, -2), (2, 2)), strict=True):
            places = [np.clip(np.arange(64) + shift, 0, 63) for shift in (y, x)]  # outside repeats the edge
            np.testing.assert_array_equal(view, film[:, places[0]][:, :, places[1]])
    assert ten_crop(jnp.asarray(images[:, :8, :8])).shape == (20, 8, 8, 1)


def test_output_stays_in_range_and_finite_whatever_is_asked():
    wild = AugmentConfig(
        horizontal_flip=True,
        rotation=180,
        shift=0.9,
        zoom=3,
        aspect=3,
        brightness=2,
        contrast=5,
        gamma=9,
        blur=0.9,
        noise=1,
        resample=9,
        jpeg=1,
    )
    for images in (IMAGES, np.zeros_like(IMAGES), np.full_like(IMAGES, 255)):
        found = augmented(wild, images)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 255


@pytest.mark.parametrize(
    "name", ["rotation", "shift", "zoom", "aspect", "brightness", "contrast", "gamma", "blur", "noise"]
)
def test_each_setting_changes_every_image_by_a_draw_of_its_own(name):
    images = np.repeat(IMAGES[:1], 6, axis=0)
    found = augmented(only(**{name: getattr(AugmentConfig(), name) or 0.1}), images)
    assert not any((image == images[0]).all() for image in found)
    assert len({image.tobytes() for image in found}) == 6


def test_same_key_same_images_and_another_key_others():
    first = augmented(AugmentConfig())
    np.testing.assert_array_equal(first, augmented(AugmentConfig()))
    assert (first != augmented(AugmentConfig(), seed=1)).any((1, 2, 3)).all()


def test_compiled_it_gives_the_same():
    compiled = jax.jit(augment, static_argnums=2)(jax.random.key(0), jnp.asarray(IMAGES), AugmentConfig())
    np.testing.assert_allclose(compiled, augmented(AugmentConfig()), atol=0.05)


def test_one_setting_does_not_shift_the_draws_of_another():
    mirrored = augmented(only(horizontal_flip=True))
    both = augmented(only(horizontal_flip=True, brightness=1e-6))
    np.testing.assert_allclose(both, mirrored, atol=1e-3)


def test_warp_by_nothing_is_exact():
    for size in (9, 32):
        image = np.random.default_rng(0).integers(0, 256, (size, size)).astype(np.float32)
        np.testing.assert_array_equal(warped(image), image)


def test_warp_shifts_content_down_and_right():
    np.testing.assert_array_equal(warped(point(4, 4), shift=(2.0, 1.0)), point(6, 5))
    np.testing.assert_array_equal(warped(point(4, 4), shift=(-1.0, -3.0)), point(3, 1))


def test_warp_stretches_columns_and_rows_by_factors_of_their_own():
    np.testing.assert_array_equal(warped(point(4, 6), scale=(1.0, 2.0))[4], [0, 0, 0, 0, 0, 0, 0, 50, 100])
    np.testing.assert_array_equal(warped(point(4, 6), scale=(2.0, 1.0))[:, 6], [0, 0, 0, 50, 100, 50, 0, 0, 0])


def test_aspect_changes_the_ratio_of_width_to_height_and_not_the_area():
    disc = np.hypot(*(np.mgrid[:96, :96] - 47.5)) < 20
    ratios, areas = [], []
    images = np.repeat(np.where(disc, 200, 0).astype(np.uint8)[None, ..., None], 64, 0)
    for image in augmented(only(aspect=0.5), images)[..., 0]:
        shown = image > 100
        ratios.append(shown.any(0).sum() / shown.any(1).sum())
        areas.append(shown.sum() / disc.sum())
    assert 1 / 1.6 < min(ratios) < 0.75
    assert 1.3 < max(ratios) < 1.6
    np.testing.assert_allclose(areas, 1, atol=0.05)


def test_warp_by_half_a_pixel_averages_neighbours():
    found = warped(point(4, 4), shift=(0.0, 0.5))
    assert found[4, 4] == found[4, 5] == 50
    assert found.sum() == 100


def test_warp_repeats_the_edge_outside_the_film():
    ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    np.testing.assert_array_equal(warped(ramp, shift=(0.0, 3.0))[0], [0, 0, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(warped(ramp, shift=(0.0, -3.0))[0], [3, 4, 5, 6, 7, 7, 7, 7])


@pytest.mark.parametrize(("turn", "quarter"), [(np.pi / 2, {1, 3}), (np.pi, {2})])
def test_warp_rotates_about_the_centre(turn, quarter):
    image = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.float32)
    found = warped(image, angle=turn)
    assert any(np.allclose(found, np.rot90(image, times), atol=0.01) for times in quarter)


def test_warp_scales_about_the_centre():
    enlarged = warped(point(4, 6), scale=2.0)
    assert np.unravel_index(enlarged.argmax(), enlarged.shape) == (4, 8)  # twice as far from the middle
    assert enlarged.sum() > point(4, 6).sum()
    shrunk = warped(point(4, 8), scale=0.5)
    assert np.unravel_index(shrunk.argmax(), shrunk.shape) == (4, 6)


def test_rotation_stays_within_its_greatest_angle():
    line = np.zeros((33, 33, 1), np.uint8)
    line[16] = 200
    found = augmented(only(rotation=10), np.repeat(line[None], 64, axis=0))[..., 0]
    rise = np.abs(found[:, :, 28].argmax(1) - 16)  # 12 columns from the middle: 12 · tan 10° is 2.1
    assert rise.max() == 2
    assert len(set(found[:, :, 28].argmax(1).tolist())) > 2  # both ways


def test_shift_stays_within_its_share_of_the_side():
    image = np.zeros((33, 33, 1), np.uint8)
    image[16, 16] = 200
    found = augmented(only(shift=0.1), np.repeat(image[None], 64, axis=0))[..., 0]
    rows, columns = np.unravel_index(found.reshape(64, -1).argmax(1), (33, 33))
    assert 2 <= np.abs(rows - 16).max() <= 3
    assert 2 <= np.abs(columns - 16).max() <= 3
    assert (rows != columns).any()


def test_brightness_adds_one_number_to_all_pixels():
    middle = np.full((64, 4, 4, 1), 100, np.uint8)
    found = augmented(only(brightness=0.1), middle)
    added = found[:, 0, 0, 0] - 100
    np.testing.assert_array_equal(found, (100 + added)[:, None, None, None] * np.ones((1, 4, 4, 1), np.float32))
    assert -25.5 <= added.min() < -15
    assert 15 < added.max() <= 25.5


def test_contrast_stretches_about_the_middle_gray():
    images = np.full((64, 1, 2, 1), 0, np.uint8)
    images[:, 0, 0], images[:, 0, 1] = 27, 227
    found = augmented(only(contrast=0.25), images)[:, 0, :, 0]
    factor = (found[:, 1] - found[:, 0]) / 200
    assert 1 / 1.25 - 1e-4 <= factor.min() < 0.87
    assert 1.15 < factor.max() <= 1.25 + 1e-4
    np.testing.assert_allclose(found.mean(1), 127.5 + (127 - 127.5) * factor, rtol=1e-5)


def test_gamma_is_a_power_that_leaves_black_and_white():
    images = np.full((64, 1, 3, 1), 0, np.uint8)
    images[:, 0, 1], images[:, 0, 2] = 128, 255
    found = augmented(only(gamma=0.5), images)[:, 0, :, 0]
    np.testing.assert_allclose(found[:, [0, 2]], np.tile([0, 255], (64, 1)), atol=1e-3)
    power = np.log(found[:, 1] / 255) / np.log(128 / 255)
    assert 1 / 1.5 - 1e-4 <= power.min() < 0.75
    assert 1.35 < power.max() <= 1.5 + 1e-4


def test_blur_is_a_gaussian_of_at_most_its_share_of_the_side():
    image = np.zeros((33, 33, 1), np.uint8)
    image[16, 16] = 255
    found = augmented(only(blur=0.1), np.repeat(image[None], 64, axis=0))[..., 0] / 255
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=0.02)
    rows = np.arange(33) - 16
    deviations = np.sqrt((found.sum(2) * rows**2).sum(1))
    assert deviations.min() < 0.5
    assert 2.8 < deviations.max() <= 3.3
    flat = np.full((4, 16, 16, 1), 77, np.uint8)
    np.testing.assert_allclose(augmented(only(blur=0.2), flat), flat, atol=0.01)  # edges too


def test_noise_is_new_at_every_pixel_and_of_at_most_its_share_of_white():
    found = augmented(only(noise=0.1), np.full((64, 32, 32, 1), 128, np.uint8)) - 128
    deviations = found.std((1, 2, 3))
    assert deviations.min() < 3
    assert 22 < deviations.max() < 27
    np.testing.assert_allclose(found.mean((1, 2, 3)) / deviations, 0, atol=0.15)


def test_resampling_by_nothing_is_exact_and_keeps_flat_images_flat():
    images = jnp.asarray(IMAGES[:, :30, :30, 0], jnp.float32)
    np.testing.assert_allclose(_resample(images, jnp.ones(8)), images, atol=1e-3)
    for factor in (1.3, 2, 7, 100):
        np.testing.assert_allclose(_resample(jnp.full((1, 30, 30), 77.0), jnp.full(1, factor)), 77, atol=1e-3)


def test_resampling_leaves_so_many_pixels_as_the_factor_says():
    """As an antialiased bilinear resize to them, and one back."""
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (1, 32, 32)), jnp.float32)
    found = np.asarray(_resample(images, jnp.full(1, 2.0)))
    small = jax.image.resize(images, (1, 16, 16), "linear", antialias=True)
    wanted = jax.image.resize(small, (1, 32, 32), "linear")
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_resampling_stays_within_its_greatest_reduction():
    """A chessboard of cells of 8 pixels keeps its contrast where 16 of 32 are left, and loses it where 2 are."""
    board = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((8, 8))) * 200
    boards = np.repeat(board[None, ..., None], 64, axis=0).astype(np.uint8)
    most, far = (augmented(only(resample=reduction), boards).std((1, 2, 3)) for reduction in (1.0, 15.0))
    assert 75 < most.min() < 95 < most.max() <= 100
    assert far.min() < 20


@pytest.mark.parametrize("quality", [25, 50, 90])
def test_compression_is_what_a_jpeg_file_keeps(quality: int):
    image = synthetic.draw(3, size=64).image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    wanted = np.asarray(Image.open(file)).astype(float)
    found = np.asarray(_compress(jnp.asarray(image[None], jnp.float32), jnp.full(1, quality)))[0]
    difference = np.abs(found - wanted)  # pixels of the file are whole numbers
    assert difference.mean() < 0.7
    assert (difference > 2).mean() < 0.06  # of coefficients in the middle between two steps
    assert np.abs(found - image).mean() > 2 * difference.mean()


def test_compression_leaves_the_rest_beyond_whole_blocks():
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 19, 19)), jnp.float32)
    found = np.asarray(_compress(images, jnp.full(2, 30)))
    np.testing.assert_array_equal(found[:, 16:], images[:, 16:])
    np.testing.assert_array_equal(found[:, :, 16:], images[:, :, 16:])
    assert np.abs(found - images)[:, :16, :16].max() > 5
    assert _compress(images[:, :7, :7], jnp.full(2, 30)).shape == (2, 7, 7)


def test_jpeg_is_the_share_of_images_that_are_compressed():
    images = np.repeat(IMAGES, 8, axis=0)
    found = augmented(only(jpeg=0.5), images)
    untouched = (found == images).all((1, 2, 3))
    assert 16 < untouched.sum() < 48
    assert len({image.tobytes() for image in augmented(only(jpeg=1), images[::8].repeat(4, 0))}) > 24


def test_devices_share_the_draws_of_younger_settings():
    config = only(resample=1.0, jpeg=0.7)
    mesh = device.mesh(len(IMAGES))
    if mesh.size < 2:
        pytest.skip("one device")
    shared = device.shard(
        lambda key, images: augment(key, images, config, device.AXIS), mesh, P(), P(device.AXIS), result=P(device.AXIS)
    )
    found = jax.jit(shared)(jax.random.key(0), jnp.asarray(IMAGES))
    # A coefficient in the middle between two steps may go either way.
    assert np.mean(np.abs(np.asarray(found) - augmented(config)) > 0.05) < 0.01


def test_younger_settings_leave_the_draws_of_the_older_ones():
    before = augmented(AugmentConfig())
    after = augmented(dataclasses.replace(AugmentConfig(), resample=1e-6))
    np.testing.assert_allclose(after, before, atol=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalise_takes_black_to_minus_two_and_white_to_two(channels, dtype):
    images = np.asarray([0, 51, 255], dtype).reshape(3, 1, 1, 1)
    found = np.asarray(normalize(jnp.asarray(images), ModelConfig(channels=channels)))
    assert found.shape == (3, 1, 1, channels)
    assert found.dtype == np.float32
    for channel in range(channels):
        np.testing.assert_allclose(found[:, 0, 0, channel], [-2.0, -1.2, 2.0], rtol=1e-6)


def test_masks_move_with_their_images():
    """An image that is its own mask stays so, whatever is done to the two."""
    masks = np.stack([synthetic.draw(index, size=32).lungs for index in range(8)])[..., None].astype(np.uint8)
    images = masks * np.uint8(200)
    moving = only(horizontal_flip=True, rotation=25, shift=0.2, zoom=0.3)
    found, moved = augment_with_masks(jax.random.key(3), jnp.asarray(images), jnp.asarray(masks), moving)
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, np.asarray(found) >= 100)
    assert 0 < np.abs(np.asarray(moved) - masks).mean() < 0.5


def test_pairs_have_the_images_that_augment_gives_and_masks_no_exposure():
    masks = (IMAGES > 90).astype(np.uint8)
    config = AugmentConfig()
    found, _ = augment_with_masks(jax.random.key(1), jnp.asarray(IMAGES), jnp.asarray(masks), config)
    np.testing.assert_array_equal(found, augmented(config, seed=1))
    _, still = augment_with_masks(
        jax.random.key(1), jnp.asarray(IMAGES), jnp.asarray(masks), only(brightness=1, contrast=3)
    )
    np.testing.assert_array_equal(still, masks)
