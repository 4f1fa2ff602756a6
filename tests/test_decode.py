"""Decoding: every colour mode to the same gray, upright, and a reason for what cannot be decoded."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from covidjax.data import synthetic
from covidjax.errors import ImageError
from covidjax.images import decode, rasters

GRAY = np.asarray(synthetic.draw(0, size=96).image[:80])  # 80 high, 96 wide: a wrong orientation shows


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width, height, *, depth=8, colour=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def reason(source, **options):
    with pytest.raises(ImageError) as caught:
        decode.read(source, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def distance(a, b):
    assert a.dtype == b.dtype == np.uint8
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def in_mode(mode):
    return Image.fromarray(GRAY).convert(mode)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_8_bit_mode_is_read_as_its_exact_gray(mode):
    image = in_mode(mode)
    assert image.mode == mode
    found = decode.read(encoded(image))
    assert found.shape == (80, 96)
    assert distance(found, GRAY) <= (0 if mode != "P" else 4)  # a palette of few grays rounds


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_every_mode_is_read_as_nearly_its_gray(mode):
    found = decode.read(encoded(in_mode(mode), "JPEG", quality=95))
    assert distance(found, GRAY) < 4


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_announced_formats_are_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert distance(decode.read(encoded(in_mode("RGB"), kind, **options)), GRAY) < 1


def test_one_bit_png_becomes_black_and_white():
    bits = Image.fromarray(GRAY > 100)
    assert bits.mode == "1"
    np.testing.assert_array_equal(decode.read(encoded(bits)), np.where(GRAY > 100, 255, 0).astype(np.uint8))


def test_colour_is_weighted_as_luma():
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    assert decode.read(encoded(red))[0, 0] == 76  # 0.299 · 255


def test_gray_palette_is_looked_up():
    image = Image.fromarray(GRAY // 16)
    image.putpalette([value for level in range(256) for value in (level * 16 % 256,) * 3])
    assert image.mode == "P"
    np.testing.assert_array_equal(decode.read(encoded(image)), GRAY // 16 * 16)


def test_transparent_palette_entry_becomes_black():
    levels = np.full((40, 40), 1, np.uint8)
    levels[:20] = 2
    image = Image.fromarray(levels)
    image.putpalette([0, 0, 0, 200, 200, 200, 90, 90, 90])
    found = decode.read(encoded(image, transparency=1), invert="never")
    assert (found[:20] == 90).all()
    assert (found[20:] == 0).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_over_black(mode):
    image = Image.new("L", (40, 40), 200).convert(mode)
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    found = decode.read(encoded(image))
    assert (found[:10] == 0).all()
    np.testing.assert_allclose(found[10:20], 100, atol=1)
    assert (found[20:] == 200).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_colour_of_a_png_becomes_black(mode):
    image = Image.new("L", (40, 40), 200)
    image.paste(60, (0, 0, 40, 20))
    colour = 200 if mode == "L" else (200, 200, 200)
    found = decode.read(encoded(image.convert(mode), transparency=colour), invert="never")
    assert (found[:20] == 60).all()
    assert (found[20:] == 0).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_pixels_are_stretched_from_least_to_greatest(kind):
    deep = (1000 + GRAY.astype(np.uint16) * 12).astype(np.uint16)
    image = Image.fromarray(deep)
    assert image.mode == "I;16"
    low, high = int(GRAY.min()), int(GRAY.max())
    expected = np.rint((GRAY.astype(float) - low) / (high - low) * 255)
    np.testing.assert_allclose(decode.read(encoded(image, kind)), expected, atol=1)


def test_16_bit_film_of_one_value_is_black_and_no_warning():
    assert (decode.read(encoded(Image.fromarray(np.full((40, 40), 5000, np.uint16)))) == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(kind, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode.read(encoded(in_mode("L"), kind, exif=exif))
    assert distance(found, np.rot90(GRAY, turns)) < 4


@pytest.mark.parametrize("as_type", [str, os.fspath, lambda path: path, lambda path: path.read_bytes()])
def test_path_text_and_bytes_are_all_taken(tmp_path, as_type):
    path = tmp_path / "film.any-ending"
    path.write_bytes(encoded(in_mode("L")))
    np.testing.assert_array_equal(decode.read(as_type(path)), GRAY)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("at_least", "shape"),
    [
        (None, (800, 960)),
        (401, (800, 960)),  # half would be 400
        (400, (400, 480)),
        (224, (400, 480)),
        (100, (100, 120)),
        (30, (100, 120)),  # an eighth is the smallest
    ],
)
def test_large_jpeg_is_decoded_at_the_smallest_size_that_suffices(mode, at_least, shape):
    large = Image.fromarray(GRAY).resize((960, 800), Image.Resampling.BICUBIC)
    found = decode.read(encoded(large.convert(mode), "JPEG", quality=90), at_least=at_least)
    assert found.shape == shape
    assert found.dtype == np.uint8


def test_jpeg_decoded_small_is_after_resizing_the_full_one():
    large = Image.fromarray(GRAY).resize((960, 800), Image.Resampling.BICUBIC)
    data = encoded(large.convert("RGB"), "JPEG", quality=90)
    small = decode.resize(decode.read(data, at_least=128), 64)
    assert distance(small, decode.resize(decode.read(data), 64)) < 1.5


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "I;16"), ("JPEG", "L"), ("JPEG", "RGB")])
@pytest.mark.parametrize("size", [64, 350])
def test_read_resized_is_read_and_resize(kind: str, mode: str, size: int):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900), np.uint8))
    if mode == "I;16":
        large = Image.fromarray(np.asarray(large).astype(np.uint16) * 100)
    data = encoded(large if mode in ("L", "I;16") else large.convert(mode), kind)
    expected = decode.resize(decode.read(data, at_least=2 * size), size)
    np.testing.assert_array_equal(decode.read_resized(data, size).pixels, expected)


def test_turned_jpeg_decoded_small_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(GRAY).resize((960, 800))
    assert decode.read(encoded(large, "JPEG", exif=exif), at_least=400).shape == (480, 400)


def test_png_is_not_decoded_smaller():
    assert decode.read(encoded(in_mode("L")), at_least=8).shape == (80, 96)


def test_missing_empty_folder_and_unnameable_files_are_told_apart(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    assert reason(tmp_path / "no.png") == "no such file"
    assert reason(tmp_path) == "this is a folder, not an image"
    assert reason(empty) == reason(b"") == "the file is empty (0 bytes)"
    assert reason(empty / "below.png") == "cannot be opened: Not a directory"
    assert reason(tmp_path / ("x" * 300 + ".png")) == "cannot be opened: File name too long"


def test_path_with_a_null_byte_is_a_bad_film_not_a_crash():
    assert reason("a\0b.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file_is_damaged(kind, share):
    data = encoded(in_mode("L"), kind)
    assert reason(data[: int(len(data) * share)]).startswith("damaged: ")


@pytest.mark.parametrize(
    "data",
    [
        b"This is no image, whatever its name says.\n" * 10,
        np.random.default_rng(0).bytes(4096),
        b"\0",
    ],
    ids=["text", "random", "one byte"],
)
def test_what_is_no_image_is_called_so(tmp_path, data):
    path = tmp_path / "film.png"
    path.write_bytes(data)
    known = "DICOM, PNG, JPEG, JPEG-LS, JPEG 2000, BMP, TIFF, WebP, GIF, PNM"
    assert reason(path) == f"not an image in a known format ({known})"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"])
def test_a_beginning_alone_is_damaged(data):
    assert reason(data) == "damaged: truncated"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (31, 500), (500, 31)])
def test_film_below_32_pixels_is_refused(width, height):
    message = reason(encoded(Image.new("L", (width, height))))
    assert message == f"{width}×{height} pixels; an X-ray has at least 32×32"


def test_film_of_32_pixels_is_read():
    assert decode.read(encoded(Image.new("L", (32, 32), 7))).tolist() == [[7] * 32] * 32


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (200_001, 1000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch, width, height):
    monkeypatch.setattr(rasters.imagecodecs, "png_decode", lambda data: pytest.fail("went on to decode"))
    start = time.perf_counter()
    assert reason(png_header(width, height)) == "more than 200 megapixels, which no X-ray has"
    assert time.perf_counter() - start < 0.5


def test_large_but_possible_size_is_not_taken_for_a_bomb():
    # 190 megapixels of one bit: the pixels are missing, which is what must be said, not the size.
    assert reason(png_header(19_000, 10_000, depth=1)).startswith("damaged: ")


def test_mutated_files_give_pixels_or_a_reason_and_nothing_else():
    random = np.random.default_rng(20)
    film = in_mode("RGB").resize((48, 40))
    originals = [encoded(film, "PNG", compress_level=0), encoded(film, "PNG"), encoded(film, "JPEG", exif=Image.Exif())]
    outcomes = set()
    for turn in range(150):
        data = bytearray(originals[turn % 3])
        for _ in range(random.integers(1, 8)):
            data[random.integers(len(data))] = random.integers(256)
        if random.random() < 0.3:
            start = int(random.integers(len(data)))
            del data[start : start + int(random.integers(1, 40))]
        try:
            found = decode.read(bytes(data), at_least=32)
        except ImageError as error:
            assert str(error)
            outcomes.add("reason")
        else:
            assert found.dtype == np.uint8
            assert found.ndim == 2
            outcomes.add("pixels")
    assert outcomes == {"pixels", "reason"}  # both ways were tried


def test_resize_gives_a_square_of_the_asked_size_and_keeps_the_gray():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (128, 1))
    found = decode.resize(ramp, 64)
    assert found.shape == (64, 64)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, np.tile(np.arange(64) * 4 + 1.5, (64, 1)), atol=1.5)


def test_resize_averages_rather_than_drops_pixels():
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(decode.resize(stripes, 32), 100, atol=3)


def test_resize_enlarges_and_leaves_the_right_size_alone():
    assert (decode.resize(np.full((32, 40), 9, np.uint8), 64) == 9).all()
    square = GRAY[:64, :64]
    np.testing.assert_array_equal(decode.resize(square, 64), square)


def test_untouched_originals_are_all_read(shared_data):
    paths = sorted((shared_data / "ozturk-originals").glob("*/*"))[::4]
    assert paths
    for path in paths:
        found = decode.read(path, at_least=448)
        assert found.dtype == np.uint8
        assert min(found.shape) >= 200
        assert found.std() > 10


def test_negative_is_turned_and_says_so_unless_told_otherwise():
    negative = encoded(Image.fromarray(255 - synthetic.draw(0, size=64).image), "PNG")
    film = synthetic.draw(0, size=64).image
    np.testing.assert_array_equal(decode.read(negative), film)
    np.testing.assert_array_equal(decode.read(negative, invert="never"), 255 - film)
    found = decode.read_resized(negative, 64)
    np.testing.assert_array_equal(found.pixels, film)
    assert found.warning == "a negative, turned into a positive"
    assert decode.read_resized(negative, 64, invert="never").warning == ""


@pytest.mark.parametrize("size", [32, 50, 112])
def test_a_film_and_its_negative_are_resized_to_the_same_pixels(size):
    film = synthetic.draw(0, size=256).image
    found, turned = (decode.read_resized(encoded(Image.fromarray(each), "PNG"), size) for each in (film, 255 - film))
    assert turned.warning
    np.testing.assert_array_equal(turned.pixels, found.pixels)
