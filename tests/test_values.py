"""Stored values to gray: every kind of header against the image that it was made from, and against dcmtk."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from test_dicom import make, written

from covidjax.data import synthetic
from covidjax.errors import ImageError
from covidjax.images import decode

FILM = synthetic.draw(5, size=96).image[:80]  # 80 high, 96 wide
"""Gray uint8 ``[80, 96]``."""

few = settings(max_examples=60, deadline=None, derandomize=True, print_blob=False)


def read(dataset: pydicom.Dataset) -> decode.DecodedImage:
    return decode.read_reduced(written(dataset), invert="never")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return np.rint((values - values.min()) * 255 / (values.max() - values.min()))


def table(first: int, bits: int, entries: bytes | list[int], count: int) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [count % 2**16, first % 2**16, bits])
    item.add_new("LUTData", "OW", entries)
    return pydicom.Sequence([item])


@st.composite
def headers(draw: st.DrawFn) -> tuple[pydicom.Dataset, str]:
    """A data set of the film with bits, sign, rescaling, window or table drawn, and how dcmtk is told to show it."""
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(st.integers(8, allocated))
    high = draw(st.integers(stored - 1, allocated - 1))
    signed = draw(st.booleans())
    values = FILM.astype(np.int64) << (stored - 8)
    values = values - 2 ** (stored - 1) if signed else values
    words = ((values % 2**stored) << (high + 1 - stored)).astype(f"u{allocated // 8}")
    if draw(st.booleans()):  # other bits of a word may hold anything, overlays in old files
        other = np.random.default_rng(0).integers(0, 2**allocated, words.shape).astype(words.dtype)
        mask = (2**stored - 1) << (high + 1 - stored)
        words = (words & words.dtype.type(mask)) | (other & words.dtype.type(2**allocated - 1 - mask))
    dataset = make(words, bits=stored, HighBit=high, PixelRepresentation=int(signed))
    ends = np.asarray([values.min(), values.max()], float)
    kind = draw(st.sampled_from(["none", "slope", "table"]))
    if kind == "slope":
        slope, intercept = draw(st.sampled_from([-1.0, 1.0, 2.0, -3.0])), draw(st.integers(-2000, 2000))
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
        ends = np.sort(ends * slope + intercept)
    elif kind == "table":
        least, most = int(values.min()), int(values.max())
        entries = (np.arange(least, most + 1) - least) * 3 + 7
        bits = int(entries.max()).bit_length()
        dataset.ModalityLUTSequence = table(least, min(max(bits, 8), 16), entries.astype("<u2").tobytes(), len(entries))
        dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
        ends = np.asarray([entries.min(), entries.max()], float)
        if entries.max() >= 2**16:
            del dataset.ModalityLUTSequence
            ends = np.asarray([least, most], float)
    show = "+Wm"
    if draw(st.booleans()):
        width = (ends[1] - ends[0]) * draw(st.sampled_from([0.4, 0.8, 1.5])) + 2
        dataset.WindowCenter, dataset.WindowWidth = round(float(ends.mean()), 1), round(float(width), 1)
        dataset.VOILUTFunction = draw(st.sampled_from(["LINEAR", "SIGMOID"]))
        show = "+Wi 1"
    dataset.PhotometricInterpretation = draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))
    shape = draw(st.sampled_from(["", "IDENTITY", "INVERSE"]))
    if shape:
        dataset.PresentationLUTShape = shape
    return dataset, show


def by_dcmtk(data: bytes, folder: Path, *options: str) -> np.ndarray | None:
    """The image as dcmtk shows it; None where it does not."""
    (folder / "film.dcm").write_bytes(data)
    command = ["dcm2pnm", "-q", "+op", *options, str(folder / "film.dcm"), str(folder / "film.pgm")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    return np.asarray(Image.open(io.BytesIO((folder / "film.pgm").read_bytes())).convert("L"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("dcm2pnm"):
        pytest.skip("dcm2pnm (dcmtk) is not installed")
    return tmp_path_factory.mktemp("dcmtk")


@few
@given(headers())
def test_headers_are_shown_as_dcmtk_shows_them(folder: Path, drawn: tuple[pydicom.Dataset, str]):
    dataset, show = drawn
    theirs = by_dcmtk(written(dataset), folder, *show.split())
    ours = read(dataset).pixels
    assert theirs is not None
    assert correlation(ours, theirs) > 0.99


def deep() -> np.ndarray:
    """The film in 12 bits, uint16."""
    return FILM.astype(np.uint16) * 16


@few
@given(
    bits=st.integers(8, 16),
    more=st.integers(0, 4),
    packing=st.sampled_from(["words", "numbers", "bytes"]),
    offset=st.integers(-3000, 3000),
    wrapped=st.booleans(),
)
def test_lookup_tables_however_written(bits: int, more: int, packing: str, offset: int, wrapped: bool):
    entries = np.arange(4096) * (2**bits - 1) // 4095
    if packing == "bytes":
        entries, bits = entries >> (bits - 8), 8
    data = {"words": entries.astype("<u2").tobytes(), "bytes": entries.astype(np.uint8).tobytes()}.get(packing)
    rescaling: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": offset}
    lookup = table(offset, min(bits + more, 16), data or b"", 4096)
    if packing == "numbers":
        del lookup[0].LUTData
        lookup[0].add_new("LUTData", "US", entries.tolist())
    if wrapped:  # the first value as the other kind of number, signed or not
        del lookup[0].LUTDescriptor
        lookup[0].add_new(
            "LUTDescriptor", "SS" if offset >= 0 else "US", [4096, offset % 2**16 if offset < 0 else offset, 16]
        )
    image = read(make(deep(), bits=12, VOILUTSequence=lookup, **rescaling))
    assert np.abs(image.pixels.astype(int) - FILM).max() <= 2
    assert image.warning == ""


@few
@given(
    declared=st.sampled_from([8, 16]),
    packing=st.sampled_from(["low", "high", "both", "bytes"]),
    first=st.integers(0, 40),
    little=st.booleans(),
)
def test_palettes_however_written(declared: int, packing: str, first: int, little: bool):
    order = "<u2" if little else ">u2"
    levels = np.arange(256, dtype=np.uint16)
    if packing == "bytes":
        data = levels.astype(np.uint8).tobytes()
    elif packing == "high" and declared == 16:
        data = (levels * 256 + 255).astype(order).tobytes()
    else:
        data = (levels * {"low": 1, "high": 256, "both": 257}[packing]).astype(order).tobytes()
    syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    words = (FILM // 2 + first).astype(np.uint8)
    dataset = make(words, PhotometricInterpretation="PALETTE COLOR", syntax=syntax)
    if packing == "bytes" and not little:
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()  # within words the first entry is the low byte
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, first, declared])
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", data)
    assert np.abs(read(dataset).pixels.astype(int) - FILM // 2).max() <= 1


@pytest.mark.parametrize(("kind", "bits"), [("u1", 8), ("<u2", 8), ("<u2", 16)])
def test_segmented_palette(kind: str, bits: int):
    most = 2**bits - 1
    # Some entries one by one, a line from there, and the first segments once more: two times the same 128 levels.
    levels = [0, 2, 0, most // 127 * 1, 1, 126, most]
    repeat = [2, 2, 0, 0] if kind == "<u2" else [2, 2, 0, 0, 0, 0]
    film = FILM // 2 + 128 * (np.arange(96) % 2).astype(np.uint8)  # by both halves of the palette
    dataset = make(film, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        dataset.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", np.asarray(levels + repeat, kind).tobytes())
    assert np.abs(read(dataset).pixels.astype(int) - (FILM // 2) * (255 / 127)).max() <= 3


@pytest.mark.parametrize(
    ("header", "unusable"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 0}, "WindowCenter or WindowWidth"),
        ({"WindowCenter": 2000, "WindowWidth": -100}, "WindowCenter or WindowWidth"),
        ({"WindowCenter": 2000}, "WindowCenter or WindowWidth"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope or RescaleIntercept"),
        ({"PixelAspectRatio": [0, 1]}, "PixelAspectRatio or PixelSpacing"),
        ({"PixelSpacing": [0.1, 100]}, "PixelAspectRatio or PixelSpacing"),
        ({"VOILUTSequence": table(0, 16, b"\0\1" * 100, 4096)}, "VOILUTSequence"),
        ({"ModalityLUTSequence": table(0, 16, b"", 4096)}, "ModalityLUTSequence"),
    ],
)
def test_elements_that_cannot_be_used_are_left_out_with_a_warning(header: dict[str, Any], unusable: str):
    image = read(make(deep(), bits=12, **header))
    assert np.abs(image.pixels - stretched(FILM)).max() <= 1
    assert image.warning == f"its {unusable} cannot be used and is left out"


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": "1", "RescaleIntercept": ""},
        {"WindowCenter": "", "WindowWidth": ""},
        {"PixelAspectRatio": "", "PixelSpacing": [0, 0]},
        {"VOILUTSequence": pydicom.Sequence()},
        {"PresentationLUTShape": ""},
    ],
)
def test_empty_elements_say_nothing(header: dict[str, Any]):
    image = read(make(deep(), bits=12, **header))
    assert np.abs(image.pixels - stretched(FILM)).max() <= 1
    assert image.warning == ""


def test_unknown_function_of_a_window_is_linear():
    header: dict[str, Any] = {"WindowCenter": 2000.0, "WindowWidth": 3000.0}
    image = read(make(deep(), bits=12, VOILUTFunction="CUBIC", **header))
    np.testing.assert_array_equal(image.pixels, read(make(deep(), bits=12, **header)).pixels)
    assert image.warning == "its VOILUTFunction cannot be used and is left out"


def test_narrow_window_of_small_values_is_applied():
    header = {"RescaleSlope": 1 / 4080, "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 0.9}
    expected = np.clip((FILM / 255 - 0.5) / 0.9 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(read(make(deep(), bits=12, **header)).pixels, expected, atol=1)


def test_window_beside_all_values_is_left_out():
    image = read(make(deep(), bits=12, WindowCenter=30000, WindowWidth=10))
    assert np.abs(image.pixels - stretched(FILM)).max() <= 1
    assert image.warning == "its window shows nothing of it and is left out"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_full_range_of_8_bits_and_own_range_of_more(kind: str, signed: bool):
    values = (FILM // 2 + 20).astype(np.uint8) if kind == "uint8" else (FILM // 2 + 20).astype(np.uint16) * 7
    if signed:
        values = (values.astype(np.int32) - (128 if kind == "uint8" else 0)).astype(kind[1:])
    pixels = read(make(values)).pixels
    expected = FILM // 2 + 20 if kind == "uint8" else stretched(FILM // 2)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@few
@given(bits=st.integers(9, 16))
def test_colour_is_shown_by_its_bits(bits: int):
    values = (FILM.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    image = read(make(np.stack([values] * 3, -1), bits=bits))
    assert np.abs(image.pixels.astype(int) - FILM).max() <= 1


@pytest.mark.parametrize("element", ["PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"])
@pytest.mark.parametrize("taller", [True, False])
def test_pixels_become_square(element: str, taller: bool):
    stored = FILM[::2] if taller else FILM[:, ::2]
    dataset = make(np.ascontiguousarray(stored))
    setattr(dataset, element, [2, 1] if taller else [1, 2])
    image = read(dataset)
    assert image.pixels.shape == FILM.shape
    assert correlation(image.pixels, FILM) > 0.98
    assert (image.info.width, image.info.height) == stored.shape[::-1]


def test_padding_of_whatever_sign_is_black():
    values = deep().astype(np.int16) - 2048
    values[:5] = -2000
    dataset = make(values, bits=16)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert not read(dataset).pixels[:5].any()
    assert correlation(read(dataset).pixels[5:], FILM[5:]) > 0.999


def test_floats_are_stretched():
    dataset = make(FILM)
    del dataset.PixelData
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = (FILM.astype("<f4") / 1000 - 3).tobytes()
    assert np.abs(read(dataset).pixels - stretched(FILM)).max() <= 1


@few
@given(
    share=st.floats(0, 0.015),
    value=st.sampled_from([65535, 60000, 30000]),
    shape=st.sampled_from(["dots", "row", "marker", "frame"]),
    channels=st.sampled_from([1, 3]),
)
def test_what_lies_far_outside_does_not_set_the_brightness(share: float, value: int, shape: str, channels: int):
    values = np.asarray(Image.fromarray(FILM).resize((384, 320))).astype(np.uint16) * 16
    plain = decode.read(encoded_png(values))
    spoilt, count = values.copy(), max(1, int(share * values.size))
    if shape == "dots":
        spoilt.ravel()[np.random.default_rng(1).permutation(values.size)[:count]] = value
    elif shape == "row":
        spoilt[200] = value
    elif shape == "marker":
        side = max(1, int(count**0.5))
        spoilt[10 : 10 + side, 20 : 20 + side] = value
    else:
        spoilt[0] = spoilt[-1] = value
        spoilt[:, 0] = spoilt[:, -1] = value
    pixels = decode.read(encoded_png(np.stack([spoilt] * 3, -1) if channels == 3 else spoilt))
    same = spoilt == values
    assert np.abs(pixels[same].astype(int) - plain[same]).max() <= 3
    assert (pixels[~same] == 255).all()


def encoded_png(values: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.png_encode(values))


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("noise", [0, 2])
def test_next_to_no_contrast_is_refused(kind: str, value: int, noise: int):
    random = np.random.default_rng(0).integers(-noise, noise + 1, (200, 160))
    values = np.clip(value * (1 if kind == "uint8" else 257) + random, 0, np.iinfo(kind).max).astype(kind)
    assert decode.read_reduced(encoded_png(values)).refused == "next to no contrast"
    assert decode.read_reduced(written(make(values))).refused == "next to no contrast"


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_faint_image_is_not_refused(kind: str):
    values = (FILM.astype(float) / 5 + 90).astype(np.uint8) if kind == "uint8" else FILM.astype(np.uint16) + 3000
    assert decode.read_reduced(encoded_png(values)).refused == ""


def lossless(words: np.ndarray, syntax: str, bits: int) -> bytes:
    """Words as a codestream of so many bits."""
    import imagecodecs

    if syntax == uid.JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(words))
    if syntax == uid.JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(words, level=0, codecformat="j2k", bitspersample=bits))
    return bytes(imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=bits))


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.RLELossless])
@pytest.mark.parametrize("kind", ["high", "overlay", "signed", "signed high"])
def test_bits_lie_where_the_header_says_in_compressed_frames_too(syntax: str, kind: str):
    values = deep().astype(np.int64) + 3
    stored = (values - 2048) % 4096 if "signed" in kind else values
    words = (stored << 4 | 5 if "high" in kind else stored).astype(np.uint16)
    if kind == "overlay":
        words[::7] |= 0x8000
    dataset = make(words, bits=12, HighBit=15 if "high" in kind else 11, PixelRepresentation=int("signed" in kind))
    dataset.WindowCenter, dataset.WindowWidth = (0 if "signed" in kind else 2048), 4096
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    else:
        dataset.PixelData = encapsulate([lossless(words, syntax, 16)])
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        dataset["PixelData"].is_undefined_length = True
    image = read(dataset)
    assert np.abs(image.pixels.astype(int) - FILM).max() <= 1
    assert image.warning == ""


@pytest.mark.parametrize(
    ("pixels", "header"),
    [
        (np.stack([FILM] * 3, -1), {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}),
        (FILM.astype(np.uint16) * 16, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
        (FILM, {"Rows": 40}),
        (FILM, {"Rows": 64, "Columns": 96}),
        (FILM, {"Columns": 80}),
        (FILM, {"Rows": 120}),
    ],
)
def test_pixels_that_the_header_does_not_fit(pixels: np.ndarray, header: dict[str, Any]):
    with pytest.raises(ImageError, match="bytes of pixels, where its header says"):
        read(make(pixels, **header))


@pytest.mark.parametrize("kind", ["frame", "marker", "salt", "dead rows", "background"])
@pytest.mark.parametrize("share", [0.03, 0.2])
def test_up_to_a_third_of_the_pixels_may_lie_far_from_the_others(kind: str, share: float):
    values = np.asarray(Image.fromarray(FILM).resize((256, 256))).astype(np.uint16) * 16 + 20000
    far = np.zeros(values.shape, bool)
    if kind == "frame":
        width = round(256 * share / 4)
        far[:width] = far[-width:] = True
        far[:, :width] = far[:, -width:] = True
    elif kind == "marker":
        far[: round(256 * share**0.5), : round(256 * share**0.5)] = True
    elif kind == "salt":
        far = np.random.default_rng(0).random(values.shape) < share
    else:
        far[: round(256 * share)] = True
    low = kind in ("dead rows", "background")
    spoilt = np.where(far, 0 if low else 65535, values).astype(np.uint16)
    image = decode.read_reduced(encoded_png(spoilt), invert="never")
    # The rest may be less of the X-ray, and so of a smaller range.
    rest = values[~far].astype(float)
    expected = np.clip((values - rest.min()) * 255 / (rest.max() - rest.min()), 0, 255)
    assert np.abs(image.pixels[~far] - expected[~far]).mean() < 4
    assert (image.pixels[far] == (0 if low else 255)).all()
    assert image.refused == ""


def test_colours_that_the_header_calls_gray_are_gray():
    colour = np.stack([FILM, FILM // 2, FILM // 4], -1)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    image = read(make(colour, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(image.pixels.astype(int) - (255 - expected.astype(int))).max() <= 1


@pytest.mark.parametrize("bits", [1, 2])
def test_few_bits_are_not_flat(bits: int):
    values = (FILM.astype(int) * 2**bits // 256).astype(np.uint8)
    dataset = make(values, bits=bits)
    if bits == 1:
        dataset.PixelData = np.packbits(values.ravel(), bitorder="little").tobytes()
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
    assert read(dataset).refused == ""
    assert np.unique(read(dataset).pixels).tolist() == [0, 255] if bits == 1 else [0, 85, 170, 255]


def test_a_later_table_or_spacing_is_taken_where_the_first_cannot_be_used():
    good = table(0, 16, (np.arange(4096)[::-1] * 16).astype("<u2").tobytes(), 4096)
    bad = table(0, 16, b"\0\1", 4096)
    dataset = make(deep(), bits=12, VOILUTSequence=pydicom.Sequence([bad[0], good[0]]))
    assert correlation(read(dataset).pixels, 255 - FILM) > 0.999
    dataset = make(FILM[::2].copy(), PixelSpacing=[0.1, 100], ImagerPixelSpacing=[0.2, 0.1])
    assert read(dataset).pixels.shape == FILM.shape
    assert read(dataset).warning == ""


def test_8_bits_with_a_window_of_12_are_shown_as_they_are():
    data = encapsulate([encoded_jpeg(FILM)])
    dataset = make(deep(), bits=12, WindowCenter=2048, WindowWidth=4096, PixelData=data)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset["PixelData"].is_undefined_length = True
    assert correlation(read(dataset).pixels, FILM) > 0.99
    assert read(dataset).pixels.max() > 200


def encoded_jpeg(values: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(values, 95))
