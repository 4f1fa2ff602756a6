"""DICOM files of every kind against the film that they were made from."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.errors import BytesLengthException

from covidjax.data import synthetic
from covidjax.errors import ImageError
from covidjax.images import decode as images
from covidjax.images import dicom, dicom_display, dicom_pixels, values
from covidjax.images.find import walk
from covidjax.images.formats import Limits

FILM = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
)
"""Gray uint8 ``[40, 48]``, smooth."""

LARGEST = 10_000


def make(
    pixels: np.ndarray = FILM, bits: int | None = None, syntax: str = uid.ExplicitVRLittleEndian, **header: Any
) -> pydicom.Dataset:
    """A data set of these pixels, uncompressed, with more elements or others in its header."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.PatientName, dataset.PatientID = "Secret^Name", "secret-4711"
    dataset.Modality = "CR"
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim == 2 else pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    for name, value in header.items():
        setattr(dataset, name, value)
    return dataset


def compress(dataset: pydicom.Dataset, syntax: str, pixels: np.ndarray) -> None:
    """Store the pixels without loss in a compressed transfer syntax."""
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
        return
    if syntax == uid.JPEGLSLossless:
        frame = imagecodecs.jpegls_encode(pixels)
    else:
        frame = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k")
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset["PixelData"].is_undefined_length = True


def written(dataset: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decode(dataset: pydicom.Dataset) -> np.ndarray:
    return shown(dicom.read(written(dataset)))


def shown(dataset: pydicom.Dataset) -> np.ndarray:
    samples = dicom_pixels.samples(dataset, LARGEST)
    dicom_display.describe(samples, dataset)
    return values.to_gray(samples).pixels


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_lossless_transfer_syntaxes_give_the_exact_film(syntax, kind):
    deep = kind is np.uint16
    pixels = FILM.astype(kind) * 16 if deep else FILM
    # Shows a sixteenth of each value, so the film.
    window = {"WindowCenter": 127.5 * 16, "WindowWidth": 255.0 * 16, "VOILUTFunction": "LINEAR_EXACT"} if deep else {}
    if syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless):
        dataset = make(pixels, **window)
        compress(dataset, syntax, pixels)
    else:
        dataset = make(pixels, syntax=syntax, **window)
        if deep and syntax == uid.ExplicitVRBigEndian:
            dataset.PixelData = pixels.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(dataset), FILM)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000])
def test_lossy_transfer_syntaxes_give_nearly_the_film(syntax):
    file = io.BytesIO()
    if syntax == uid.JPEGBaseline8Bit:
        Image.fromarray(FILM).save(file, "JPEG", quality=95)
    else:
        Image.fromarray(FILM).save(file, "JPEG2000", no_jp2=True, quality_layers=[5], irreversible=True)
    dataset = make(PixelData=encapsulate([file.getvalue()]))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = True
    assert np.abs(decode(dataset).astype(int) - FILM).mean() < 2


def test_monochrome1_is_the_negative():
    np.testing.assert_array_equal(decode(make(PhotometricInterpretation="MONOCHROME1")), 255 - FILM)


def test_deep_pixels_without_a_window_are_stretched_over_their_range():
    deep = FILM.astype(np.uint16) * 15 + 100
    low, high = int(FILM.min()), int(FILM.max())
    wanted = np.rint((FILM.astype(float) - low) * 255 / (high - low))
    np.testing.assert_array_equal(decode(make(deep, bits=12)), wanted)
    # Padding far from the film is black and does not take part in the stretching.
    padded = deep.copy()
    padded[:3] = 0
    shown = decode(make(padded, bits=12, PixelPaddingValue=0))
    assert not shown[:3].any()
    rest = FILM[3:].astype(float)
    np.testing.assert_array_equal(shown[3:], np.rint((rest - rest.min()) * 255 / (rest.max() - rest.min())))
    negative = decode(make(padded, bits=12, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"))
    assert not negative[:3].any()
    np.testing.assert_array_equal(negative[3:], 255 - shown[3:])


@pytest.mark.parametrize("signed", [False, True])
def test_window_is_applied_after_rescaling(signed: bool):
    values = FILM.astype(np.int16) - 100 if signed else FILM.astype(np.uint16)
    slope, intercept = 2.0, 50.0
    rescaled = values * slope + intercept
    center, width = float(np.median(rescaled)), 120.0
    dataset = make(values, bits=12, RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
    dataset.WindowCenter, dataset.WindowWidth = [center, 0.0], [width, 1.0]  # of several windows the first
    # PS3.3, C.11.2.1.2.1
    wanted = np.clip(((rescaled - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    np.testing.assert_allclose(decode(dataset), wanted, atol=0.51)


def test_sigmoid_window():
    dataset = make(WindowCenter=120.0, WindowWidth=60.0, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(decode(dataset), 255 / (1 + np.exp(-4 * (FILM - 120.0) / 60)), atol=0.51)


def test_lookup_table_is_applied():
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 16]
    entries = (np.arange(256, dtype=np.uint32)[::-1] * 257).astype(np.uint16)
    table.add_new("LUTData", "OW", entries.tobytes())
    dataset = make(VOILUTSequence=pydicom.Sequence([table]))
    np.testing.assert_array_equal(decode(dataset), 255 - FILM)


def test_bits_above_those_stored_do_not_count():
    dirty = FILM.astype(np.uint16) | 0xF000
    np.testing.assert_array_equal(decode(make(dirty, bits=8)), FILM)


def test_colour_is_its_brightness():
    colour = np.stack([FILM, FILM // 2, FILM // 4], -1)
    wanted = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    assert np.abs(decode(make(colour)) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (["L", "F"], FILM),
        (["R", "F"], FILM[:, ::-1]),
        (["L", "H"], FILM[::-1]),
        (["F", "L"], FILM.T),
        (["H", "R"], FILM[::-1, ::-1].T),
        (["A", "F"], FILM),
        ([], FILM),
    ],
)
def test_film_is_turned_upright(orientation: list[str], stored: np.ndarray):
    dataset = make(np.ascontiguousarray(stored), PatientOrientation=orientation)
    np.testing.assert_array_equal(decode(dataset), FILM)


def test_data_set_without_preamble_and_a_file_of_any_name_are_read(tmp_path):
    data = written(make())
    bare = io.BytesIO()
    dataset = make()
    del dataset.file_meta
    dataset.save_as(bare, implicit_vr=True, little_endian=True)
    for content in (data, bare.getvalue()):
        path = tmp_path / "1.2.840.4711"
        path.write_bytes(content)
        np.testing.assert_array_equal(images.read(path), FILM)


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (make(NumberOfFrames=3, PixelData=FILM.tobytes() * 3), "3 frames"),
        (make(Rows=200, Columns=200), "megapixels"),
        (make(Rows=0), "no size"),
        (make(PixelData=FILM.tobytes()[:100]), "100 bytes of pixels"),
        (make(FILM[:20]), "at least 32×32"),
    ],
)
def test_what_is_no_film_is_refused_with_the_reason(dataset, reason):
    with pytest.raises(ImageError, match=reason):
        images.read(written(dataset), limits=Limits(megapixels=LARGEST / 1e6))


def test_report_without_an_image_is_refused():
    dataset = make()
    del dataset.PixelData
    with pytest.raises(ImageError, match="without an image"):
        decode(dataset)


def test_deflated_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(dicom, "LARGEST_DEFLATED", 1000)
    with pytest.raises(ImageError, match="inflated"):
        decode(make(syntax=uid.DeflatedExplicitVRLittleEndian))


@pytest.mark.parametrize(
    ("header", "warning", "sure"),
    [
        ({}, "", False),
        ({"BodyPartExamined": "CHEST", "ViewPosition": "PA"}, "", False),
        ({"Modality": "CT"}, "modality CT, no plain X-ray", True),
        ({"Modality": "OT"}, "modality OT, no plain X-ray", False),
        ({"Modality": "SC", "ViewPosition": "LL"}, "modality SC, no plain X-ray; lateral view", True),
        ({"ViewPosition": "LL"}, "lateral view", True),
        (
            {"Modality": "DX", "ViewPosition": "LATERAL", "BodyPartExamined": "KNEE"},
            "lateral view; body part KNEE, not the chest",
            True,
        ),
        ({"BodyPartExamined": "Secret^Name"}, "body part unknown, not the chest", False),
    ],
)
def test_warnings(header: dict[str, Any], warning: str, sure: bool):
    assert dicom.warning_of(dicom.read(written(make(**header)))) == (warning, sure)


def test_no_message_tells_the_patient(recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture):
    data = bytearray(
        written(make(WindowCenter=1, WindowWidth=9, VOILUTFunction="Secret^Name", BodyPartExamined="Secret^Name"))
    )
    caplog.clear()  # what pydicom says of writing it
    recwarn.clear()
    generator = np.random.default_rng(1)
    for _ in range(300):
        mutated = data.copy()
        for place in generator.integers(132, len(data), 4):
            mutated[place] = generator.integers(256)
        try:
            dataset = dicom.read(bytes(mutated))
            assert "ecret" not in dicom.warning_of(dataset)[0]
            images.read(bytes(mutated))
        except ImageError as error:
            assert "ecret" not in str(error)
    assert "ecret" not in caplog.text
    assert not any("ecret" in str(warning.message) for warning in recwarn)


def test_no_message_repeats_what_a_header_holds(monkeypatch: pytest.MonkeyPatch):
    def damaged(*_: Any) -> None:
        raise BytesLengthException("Instead received b'Secret'")

    monkeypatch.setattr(dicom_pixels, "samples", damaged)
    with pytest.raises(ImageError, match=r"^damaged: a value of the header cannot be read$"):
        images.read(written(make()))


def test_real_films(shared_data):
    names = ("cr_mono1_j2k_15bit", "cr_mono1_jpegls_15bit", "cr_pa_mono1_jpeg8", "cr_pa_mono2_jpeg8", "dx_mono1_raw")
    read = {f"{name}.dcm": images.read(shared_data / "dicom" / f"{name}.dcm") for name in names}
    shapes = {name: pixels.shape for name, pixels in read.items()}
    assert shapes["cr_mono1_j2k_15bit.dcm"] == shapes["cr_mono1_jpegls_15bit.dcm"] == (1955, 1841)
    # One film in two compressions that lose a little.
    pair = [read[name].astype(int) for name in ("cr_mono1_j2k_15bit.dcm", "cr_mono1_jpegls_15bit.dcm")]
    assert np.abs(pair[0] - pair[1]).max() <= 3
    for name in ("cr_mono1_j2k_15bit.dcm", "cr_pa_mono2_jpeg8.dcm"):  # the lungs are darker than what lies between them
        height, width = read[name].shape
        middle = read[name][height // 3 : height // 2]
        assert middle[:, width // 2].mean() > max(middle[:, width // 4].mean(), middle[:, 3 * width // 4].mean()) + 20


def test_warnings_come_with_the_image():
    found = images.read_resized(written(make(Modality="CT")), 32, invert="never")  # of these pixels, polarity is unsure
    assert found.warning == "modality CT, no plain X-ray"
    assert found.pixels.shape == (32, 32)


def test_folder_gives_dicom_files_of_any_name_but_not_their_index(tmp_path):
    for name in ("1.2.840.1", "IM0001", "film.dcm", "DICOMDIR"):
        (tmp_path / name).write_bytes(written(make()))
    (tmp_path / "notes").write_text("no film")
    found = walk(tmp_path)
    assert [path.name for path in found.images] == ["1.2.840.1", "IM0001", "film.dcm"]
    assert found.skipped == 2


def test_compression_that_nobody_knows_is_said():
    dataset = make(PixelData=encapsulate([b"some other codestream"]))
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset["PixelData"].is_undefined_length = True
    data = written(dataset)
    with pytest.raises(ImageError, match="transfer syntax JPEG 2000 Image Compression"):
        images.read(data)
    unknown = b"1.2.840.10008.1.2.4.99"
    with pytest.raises(ImageError, match=r"damaged DICOM: its (compression|pixels)"):
        images.read(data.replace(uid.JPEG2000Lossless.encode(), unknown))


def test_codestream_is_told_by_its_own_beginning():
    dataset = make()
    compress(dataset, uid.JPEGLSLossless, FILM)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit  # as some gateways relabel files
    np.testing.assert_array_equal(decode(dataset), FILM)


def test_what_a_lossy_compression_adds_beyond_the_bits_is_clipped_and_not_wrapped():
    values = FILM.astype(np.uint16) * 4
    values[10:30, 10:30] = 1023
    values[20:22] = 1040  # more than ten bits hold, which a mask would make dark
    frame = imagecodecs.jpeg8_encode(values, 98, bitspersample=12)
    dataset = make(values, bits=10, WindowCenter=512, WindowWidth=1024, PixelData=encapsulate([bytes(frame)]))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGExtended12Bit
    dataset["PixelData"].is_undefined_length = True
    assert decode(dataset)[20:22].min() > 240


def test_luma_is_the_brightness_of_what_is_stored_as_such():
    colour = np.stack([FILM, 255 - FILM, FILM // 2], -1)
    stored = np.asarray(Image.fromarray(colour).convert("YCbCr"))
    dataset = make(stored, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(decode(dataset), stored[..., 0])


def test_what_the_header_calls_no_chest_is_not_taken_for_a_negative():
    film = np.asarray(Image.fromarray(255 - synthetic.draw(0, size=96).image))
    assert images.read_reduced(written(make(film))).warning == "a negative, turned into a positive"
    hand = images.read_reduced(written(make(film, BodyPartExamined="HAND")))
    assert hand.warning == "body part HAND, not the chest"
    np.testing.assert_array_equal(hand.pixels, film)
