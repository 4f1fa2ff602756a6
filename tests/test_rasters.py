"""Files that are no DICOM: every kind written from a known image, and damage that must not pass in silence."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from test_dicom import make, written

from covidjax.data import synthetic
from covidjax.errors import ImageError
from covidjax.images import decode
from covidjax.images.find import walk
from covidjax.images.formats import kind_of

FILM = np.ascontiguousarray(synthetic.draw(5, size=160).image[:128])  # 128 high, 160 wide
"""Gray uint8 ``[128, 160]``."""

few = settings(max_examples=60, deadline=None, derandomize=True, print_blob=False)


def read(data: bytes) -> decode.DecodedImage:
    return decode.read_reduced(data, invert="never")


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return np.rint((values - values.min()) * 255 / (values.max() - values.min()))


def distance(pixels: np.ndarray, expected: np.ndarray) -> float:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    return float(np.abs(pixels - expected.astype(float)).mean())


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


@few
@given(
    kind=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]),
    white=st.booleans(),
    order=st.sampled_from(["<", ">"]),
    compression=st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"]),
    tile=st.sampled_from([None, (32, 48)]),
    channels=st.sampled_from([1, 2, 3, 4]),
    planar=st.booleans(),
    big=st.booleans(),
)
def test_tiff_of_every_kind(kind, white, order, compression, tile, channels, planar, big):
    values = FILM.astype(np.int64)
    levels = np.iinfo(kind) if "int" in kind else None
    if levels and kind.startswith("u"):
        values = values * (levels.max // 255)
    elif levels:
        values = values * ((levels.max - levels.min) // 255) + levels.min
    values = values.astype(kind)
    array = values
    options: dict[str, Any] = {"photometric": "miniswhite" if white else "minisblack"}
    if channels > 1:
        opaque = np.full_like(values, levels.max if levels else 1)
        array = np.stack([*[values] * (channels - 1 + channels % 2), *[opaque] * (1 - channels % 2)], 0)
        options = {"photometric": "rgb" if channels > 2 else options["photometric"]}
        options["planarconfig"] = "separate" if planar else "contig"
        if channels % 2 == 0:
            options["extrasamples"] = ["unassalpha"]
        array = array if planar else np.moveaxis(array, 0, -1)
    data = tiff(np.ascontiguousarray(array), byteorder=order, compression=compression, tile=tile, bigtiff=big, **options)
    image = read(data)
    expected = stretched(FILM) if kind not in ("uint8", "int8") else FILM.astype(float)
    if options["photometric"] == "miniswhite":
        expected = 255 - expected
    if channels in (2, 4) and kind.startswith("int"):
        return  # what opaque means of signed values nobody says
    assert distance(image.pixels, expected) < 1
    assert (image.format, image.warning) == ("TIFF", "")


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_tiff_of_odd_bits(bits: int):
    values = FILM.astype(np.uint32) * (2**bits - 1) // 255
    packed = np.packbits(values[..., None] >> np.arange(bits)[::-1] & 1).tobytes()
    header = tiff(np.zeros((128, 160 * bits // 8), np.uint8))
    with tifffile.TiffFile(io.BytesIO(header)) as file:
        page: Any = file.pages[0]
        offset, tags = page.dataoffsets[0], page.tags
        data = bytearray(header)
        data[offset:] = packed
        struct.pack_into("<H", data, tags[258].valueoffset, bits)
        struct.pack_into("<H", data, tags[256].valueoffset, 160)
    image = read(bytes(data))
    expected = stretched(FILM) if bits > 8 else np.rint(values * (255 / (2**bits - 1)))
    assert distance(image.pixels, expected) < 1
    assert image.info.bits == bits


def test_tiff_palette():
    ramp = np.arange(256, dtype=np.uint16)[::-1] * 257
    data = tiff(FILM, photometric="palette", colormap=np.stack([ramp] * 3))
    assert distance(read(data).pixels, 255 - FILM) < 1


def test_the_largest_page_of_several_is_read_with_a_warning():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in (FILM[::4, ::4], FILM, FILM[::2, ::2]):
            writer.write(np.ascontiguousarray(page), metadata=None)
    image = read(file.getvalue())
    np.testing.assert_array_equal(image.pixels, FILM)
    assert image.warning == "3 pages, of which the largest is read"


def test_a_reduced_copy_of_the_image_is_no_page():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(FILM, metadata=None)
        writer.write(np.ascontiguousarray(FILM[::4, ::4]), subfiletype=1, metadata=None)
    assert read(file.getvalue()).warning == ""


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_tiff_is_read_as_imagemagick_reads_it(tmp_path: Path, photometric: str, kind: str):
    convert = shutil.which("convert")
    if not convert:
        pytest.skip("convert (ImageMagick) is not installed")
    values = FILM.astype(kind) * (257 if kind == "uint16" else 1)
    (tmp_path / "film.tif").write_bytes(tiff(values, photometric=photometric))
    subprocess.run([convert, "-quiet", tmp_path / "film.tif", "-depth", "8", tmp_path / "film.pgm"], check=True)
    theirs = np.asarray(Image.open(tmp_path / "film.pgm"))
    ours = decode.read(tmp_path / "film.tif", invert="never")
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


@few
@given(
    colour=st.sampled_from(["gray", "alpha", "rgb", "rgba"]),
    bits=st.sampled_from([8, 16]),
    depth=st.integers(9, 16),
    level=st.integers(0, 9),
)
def test_png_of_every_kind(colour: str, bits: int, depth: int, level: int):
    gray = FILM if bits == 8 else (FILM.astype(np.uint32) * (2**depth - 1) // 255).astype(np.uint16)
    opaque = np.full_like(gray, 2**bits - 1)
    array = {"gray": gray, "alpha": np.stack([gray, opaque], -1), "rgb": np.stack([gray] * 3, -1)}.get(colour)
    array = np.stack([gray, gray, gray, opaque], -1) if array is None else array
    image = read(bytes(imagecodecs.png_encode(array, level=level)))
    assert distance(image.pixels, FILM if bits == 8 else stretched(FILM)) < 1
    assert (image.format, image.info.bits, image.warning) == ("PNG", bits, "")


@few
@given(
    bits=st.integers(8, 16),
    channels=st.sampled_from([1, 3]),
    wrapped=st.booleans(),
    signed=st.booleans(),
    level=st.sampled_from([0, 40]),
)
def test_jpeg_2000_of_all_bits(bits: int, channels: int, wrapped: bool, signed: bool, level: int):
    values = (FILM.astype(np.int64) * (2**bits - 1) // 255).astype(np.uint16 if bits > 8 else np.uint8)
    if signed:
        values = (values.astype(np.int64) - 2 ** (bits - 1)).astype(np.int16 if bits > 8 else np.int8)
    array = np.stack([values] * channels, -1) if channels > 1 else values
    codec = "jp2" if wrapped else "j2k"
    data = imagecodecs.jpeg2k_encode(array, level=level, codecformat=codec, bitspersample=bits, reversible=not level)
    image = read(bytes(data))
    assert distance(image.pixels, FILM if bits == 8 else stretched(FILM)) < (1 if not level else 5)
    assert (image.format, image.info.bits, image.warning) == ("JPEG 2000", bits, "")
    if not (wrapped or signed) and channels == 1 and not level:  # the same codestream within DICOM, and by GDCM
        dataset = make(values, bits=bits, PixelData=encapsulate([bytes(data)]))
        dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
        dataset["PixelData"].is_undefined_length = True
        np.testing.assert_array_equal(read(written(dataset)).pixels, image.pixels)
        gdcm = dataset.pixel_array if bits in (8, 12, 16) else values
        np.testing.assert_array_equal(gdcm, values)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("lossless", [False, True])
def test_jpeg_of_more_bits_and_lossless(bits: int, lossless: bool):
    values = FILM if bits == 8 else FILM.astype(np.uint16) * 16
    options: dict[str, Any] = {"lossless": True} if lossless else {"level": 95}
    data = bytes(imagecodecs.jpeg8_encode(values, bitspersample=bits, **options))
    expected = FILM if bits == 8 else stretched(FILM)
    assert distance(read(data).pixels, expected) < (1 if lossless else 5)
    dataset = make(values, bits=bits, PixelData=encapsulate([data]))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1 if lossless else uid.JPEGExtended12Bit
    dataset["PixelData"].is_undefined_length = True
    assert distance(read(written(dataset)).pixels, expected) < (1 if lossless else 5)
    for damaged in (data[: len(data) // 2], data[: len(data) // 2] + bytes(len(data) // 2)):
        with pytest.raises(ImageError, match="damaged"):
            read(damaged)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(kind: str, turned: int):
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("L"))
    assert distance(read(file.getvalue()).pixels, expected) < 1


def test_jpeg_that_a_header_calls_gray_is_read_by_its_brightness():
    colour = np.stack([FILM, FILM // 2, FILM // 4], -1)
    data = bytes(imagecodecs.jpeg8_encode(colour, 95))
    dataset = make(FILM, PixelData=encapsulate([data]))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset["PixelData"].is_undefined_length = True
    assert distance(read(written(dataset)).pixels, np.asarray(Image.fromarray(colour).convert("L"))) < 4


def test_image_of_another_size_than_its_header_says():
    data = bytes(imagecodecs.jpeg8_encode(FILM, 95))
    dataset = make(FILM, PixelData=encapsulate([data]), Rows=100)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="a header of 160×100 pixels, an image of 160×128"):
        read(written(dataset))


def encoded(kind: str) -> bytes:
    """The film in a format, or as DICOM in a transfer syntax."""
    noisy = np.clip(FILM.astype(int) + np.random.default_rng(0).integers(-9, 10, FILM.shape), 1, 255).astype(np.uint8)
    if kind.startswith("tiff"):
        return tiff(noisy, compression={"lzw": "lzw", "zlib": "zlib", "jpeg": "jpeg"}.get(kind[5:]))
    if kind.startswith("dicom"):
        frames = {
            "jpeg": imagecodecs.jpeg8_encode(noisy, 90),
            "jpegls": imagecodecs.jpegls_encode(noisy),
            "jpeg2000": imagecodecs.jpeg2k_encode(noisy, codecformat="j2k", level=0),
        }
        syntaxes = {"jpeg": uid.JPEGBaseline8Bit, "jpegls": uid.JPEGLSLossless, "jpeg2000": uid.JPEG2000Lossless}
        frame = frames.get(kind[6:])
        if frame is None:
            dataset = make(noisy)
            if kind == "dicom-rle":
                dataset.compress(uid.RLELossless)
            return written(dataset)
        dataset = make(noisy, PixelData=encapsulate([bytes(frame)]))
        dataset.file_meta.TransferSyntaxUID = syntaxes[kind[6:]]
        dataset["PixelData"].is_undefined_length = True
        return written(dataset)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, kind.split("-")[0], **({"lossless": True} if kind == "WEBP-lossless" else {}))
    return file.getvalue()


KINDS = [
    *("PNG", "JPEG", "JPEG2000", "WEBP", "WEBP-lossless", "GIF", "BMP", "PPM"),
    *("tiff", "tiff-lzw", "tiff-zlib", "tiff-jpeg"),
    *("dicom", "dicom-rle", "dicom-jpeg", "dicom-jpegls", "dicom-jpeg2000"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.71, 0.9])
def test_half_a_file_is_never_a_silent_image(kind: str, share: float):
    data = encoded(kind)
    assert read(data).warning == ""
    at = int(len(data) * share)
    for damaged in (data[:at], data[:at] + bytes(len(data) - at)):
        speaks(damaged)


def speaks(damaged: bytes) -> None:
    """There is an error or a warning."""
    try:
        assert read(damaged).warning != ""
    except ImageError as error:
        assert str(error)


def uncompressed() -> dict[str, bytes]:
    small = np.clip(FILM, 1, 255).astype(np.uint16)
    colour = np.stack([np.clip(FILM, 1, 255)] * 3, -1)
    planes = make(colour, PlanarConfiguration=1, PixelData=np.moveaxis(colour, -1, 0).tobytes())
    floats = make(FILM, BitsAllocated=32)
    del floats.PixelData
    floats.FloatPixelData = (small.astype("<f4") / 7).tobytes()
    wide = make(small.astype(np.uint32))
    file = io.BytesIO()
    Image.fromarray(np.dstack([colour, np.full_like(FILM, 255)])).save(file, "BMP")
    return {
        "8 bits in words": written(make(small, bits=8)),
        "32 bits": written(wide),
        "floats": written(floats),
        "planes": written(planes),
        "TIFF words": tiff(small),
        "TIFF 32 bits": tiff(small.astype(np.uint32)),
        "TIFF planes": tiff(np.moveaxis(colour, -1, 0).copy(), photometric="rgb", planarconfig="separate"),
        "TIFF tiles": tiff(np.clip(FILM, 1, 255), tile=(32, 32)),
        "BMP of 32 bits": file.getvalue(),
        "PGM of 16 bits": b"P5 160 128 65535\n" + small.astype(">u2").tobytes(),
        "PPM of 16 bits": b"P6 160 128 65535\n" + np.stack([small] * 3, -1).astype(">u2").tobytes(),
    }


@pytest.mark.parametrize("kind", uncompressed())
@pytest.mark.parametrize("share", [0.25, 0.4, 0.6, 0.8])
def test_zeros_at_the_end_of_uncompressed_pixels(kind: str, share: float):
    data = uncompressed()[kind]
    assert read(data).warning == ""
    for at in (int(len(data) * share), int(len(data) * share) // 512 * 512):
        speaks(data[:at] + bytes(len(data) - at))


@pytest.mark.parametrize("kind", [*KINDS, *uncompressed()])
def test_holes_of_whole_sectors(kind: str):
    data = encoded(kind) if kind in KINDS else uncompressed()[kind]
    for first in range(1024, len(data) - 2048, max(len(data) // 5 // 512 * 512, 512)):
        before, after = data[:first], data[first + 1024 :]
        if any(before[-16:]) and any(after[:16]):
            speaks(before + bytes(1024) + after)


def test_black_margins_of_compressed_images_are_no_damage():
    wide = np.asarray(Image.fromarray(FILM).resize((1280, 1024))).copy()
    wide[:100] = wide[-150:] = 0
    for kind, options in (("WEBP", {}), ("WEBP", {"lossless": True}), ("JPEG", {}), ("GIF", {}), ("JPEG2000", {})):
        file = io.BytesIO()
        Image.fromarray(wide).save(file, kind, **options)
        assert read(file.getvalue()).warning == ""
    for compression in ("lzw", "zlib", "packbits", "lerc", "zstd"):
        assert read(tiff(wide, compression=compression)).warning == ""
    dataset = make(wide)
    dataset.compress(uid.RLELossless)
    assert read(written(dataset)).warning == ""


def test_padding_after_the_runs_of_a_frame():
    dataset = make(FILM)
    dataset.compress(uid.RLELossless)
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame + bytes(64)])
    np.testing.assert_array_equal(read(written(dataset)).pixels, FILM)
    dataset.PixelData = encapsulate([frame[:300] + b"\xff" * 200 + frame[500:]])
    with pytest.raises(ImageError, match="its runs do not make up the image"):
        read(written(dataset))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("greatest", [255, 4095, 65535])
def test_portable_maps_of_all_depths(channels: int, greatest: int):
    values = FILM.astype(np.uint32) * min(greatest, 4095) // 255
    kind = ">u2" if greatest > 255 else "u1"
    stacked = np.stack([values] * channels, -1).astype(kind)
    data = f"P{6 if channels == 3 else 5}\n# one\n# two\n160 128\n{greatest}\n".encode() + stacked.tobytes()
    assert kind_of(data[:132]) == "PNM"
    image = read(data)
    assert distance(image.pixels, FILM if greatest == 255 else stretched(FILM)) < 1
    with pytest.raises(ImageError, match="truncated"):
        read(data[:-1])


def test_slices_in_one_page_are_no_image():
    slices = np.stack([FILM] * 64)
    file = io.BytesIO()
    tifffile.imwrite(file, slices, volumetric=True, tile=(16, 16, 16), metadata=None)
    with pytest.raises(ImageError, match="which no X-ray has"):
        read(file.getvalue())


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_every_flipped_bit_of_a_png_is_found(place: int):
    data = bytearray(encoded("PNG"))
    at = 8 + place * (len(data) - 9) // 100
    data[at] ^= 4
    with pytest.raises(ImageError):
        read(bytes(data))


def test_damage_of_what_a_png_can_do_without_is_a_warning():
    data = encoded("PNG")
    text = struct.pack(">I", 7) + b"tEXt" + b"a\0bcdef" + struct.pack(">I", zlib.crc32(b"tEXta\0bcdef") ^ 1)
    image = read(data[:33] + text + data[33:])
    assert image.warning == "the checksum of its tEXt chunk is wrong"


def test_bytes_between_the_parts_of_a_jpeg_are_a_warning():
    data = encoded("JPEG")
    image = read(data[:-2] + b"\x12\x34\x56" + data[-2:])
    assert image.warning.startswith("damaged in places: Corrupt JPEG data:")


def test_black_edges_are_no_damage():
    edged = FILM.copy()
    edged[100:] = 0
    edged[:12] = 0
    edged[:, 140:] = 0
    for kind in ("BMP", "PPM"):
        file = io.BytesIO()
        Image.fromarray(edged).save(file, kind)
        assert read(file.getvalue()).warning == ""
    assert read(written(make(edged))).warning == ""
    assert read(tiff(edged)).warning == ""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "-" not in kind])
def test_files_of_any_name_that_begin_as_images_are_found(tmp_path: Path, kind: str):
    data = encoded(kind)
    names = {"PPM": "PNM", "WEBP": "WebP", "JPEG2000": "JPEG 2000", "tiff": "TIFF", "dicom": "DICOM"}
    assert kind_of(data[:132]) == names.get(kind, kind)
    for name in ("film", "film.jfif", "film.png_", "1.2.840.1", "film.bak"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("BM, P5 and II are no images; RIFF is none either." * 9)
    (tmp_path / "table.csv").write_text("path,label\n")
    found = walk(tmp_path)
    assert len(found.images) == 5
    assert found.skipped == 2
    assert all(decode.read(path, invert="never").shape == FILM.shape for path in found.images)
