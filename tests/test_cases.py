"""Files that were read wrongly once, each as its maker meant it, and real DICOM beside dcmtk's rendering."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from commands import run
from PIL import Image

from covidjax.errors import ImageError
from covidjax.images import decode


@pytest.fixture(scope="module")
def cases() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"cases are wanted in {folder}, which is missing")
    return folder


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("8bit-rescale-slope-minus1/slope.dcm", 128),
        ("8bit-rescale-slope-minus1/modality_lut.dcm", 128),
        ("highbit15-stored12/input.dcm", 137),
        ("jp2-rgb-12bit-white/input.jp2", 137),
        ("jpeg-extended-12bit/input.dcm", 137),
        ("mono2-header-colour-jpeg/input.dcm", 141),
        ("palette-8bit-in-words/input.dcm", 141),
        ("rescale-empty/both_empty.dcm", 141),
        ("rgb-16bit-with-12bit-values/rgb16.dcm", 141),
        ("rgb-16bit-with-12bit-values/rgb16.png", 137),
        ("rgb-16bit-with-12bit-values/la16.png", 137),
        ("tiff-uint32/input.tif", 137),
        ("voilut-8bit-entries/input.dcm", 91),
        ("window-unusable/width0.dcm", 137),
        ("window-unusable/width0_9.dcm", None),
        ("window-unusable/function_unknown.dcm", None),
        ("rescale-empty/intercept_empty.dcm", None),
        ("tiff-whiteiszero-16bit/input.tif", None),
        ("8bit-rescale-slope-minus1/twelve.dcm", None),
    ],
)
def test_brightness(cases: Path, name: str, mean: float | None):
    film = decode.read(cases / Path(name).parent / "film.png").astype(float)
    image = decode.read_reduced(str(cases / name))
    assert np.corrcoef(image.pixels.ravel(), film.ravel())[0, 1] > 0.98
    assert mean is None or abs(image.pixels.mean() - mean) <= 2
    assert "negative" not in image.warning


def test_white_stays_white(cases: Path):
    film = decode.read(cases / "jp2-rgb-12bit-white" / "film.png")
    pixels = decode.read(cases / "jp2-rgb-12bit-white" / "input.jp2")
    assert (pixels[film == 255] == 255).all()


def test_shape_of_the_presentation_is_followed(cases: Path):
    film = decode.read(cases / "presentation-lut-shape" / "film.png")
    for name, inverse in (("mono1_identity", False), ("mono2_inverse", True)):
        image = decode.read_reduced(str(cases / "presentation-lut-shape" / f"{name}.dcm"), invert="never")
        expected = 255 - film if inverse else film
        assert abs(image.pixels.mean() - expected.mean()) <= 2
        assert "PresentationLUTShape" in image.warning


def test_torn_png_is_an_error(cases: Path):
    with pytest.raises(ImageError, match="checksum of its IDAT chunk"):
        decode.read(cases / "png-damaged-idat" / "second_half_zeros.png")


def rows(paths: list[Path], folder: Path) -> dict[str, dict[str, str]]:
    """By file name, as the bundled classifier scores them."""
    out = folder / "scores.csv"
    result = run("score", *paths, "--checkpoint", bundled(), "--output", out)
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def bundled() -> Path:
    from covidjax.runs import load

    return load.BUNDLED


def close(a: dict[str, str], b: dict[str, str]) -> bool:
    return all(abs(float(a[name]) - float(b[name])) <= 0.03 for name in a if name.startswith("p_"))


@pytest.mark.parametrize("case", ["highbit15-stored12", "palette-8bit-in-words", "tiff-uint32", "voilut-8bit-entries"])
def test_scores_are_those_of_the_film(cases: Path, tmp_path: Path, case: str):
    film, given = rows(sorted((cases / case).glob("*.*")), tmp_path).values()
    assert close(film, given)


def test_pixels_that_are_no_squares(cases: Path, tmp_path: Path):
    folder = cases / "pixel-aspect-2-1"
    scored = rows([folder / "film.png", folder / "par.dcm", folder / "ips.dcm"], tmp_path)
    for name in ("par.dcm", "ips.dcm"):
        assert scored[name]["prediction"] == scored["film.png"]["prediction"]
        assert close(scored[name], scored["film.png"])
    result = run("segment", folder / "par.dcm", "--output-type", "crop", "--out", tmp_path / "lungs")
    assert result.exit_code == 0, result.output
    assert decode.read(tmp_path / "lungs" / "par.png", invert="never").shape == (464, 484)


def test_images_without_contrast_are_refused(tmp_path: Path):
    for name, value in (("black", 0), ("gray", 130), ("white", 255)):
        Image.new("L", (200, 160), value).save(tmp_path / f"{name}.png")
    result = run("score", tmp_path, "--checkpoint", bundled(), "--json", "--strict")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["files"], told["ok"], told["refused"], told["errors"]) == (3, 0, 3, 0)
    for row in told["rows"]:
        assert (row["status"], row["prediction"], row["confidence"]) == ("refused", "", None)
        assert row["warning"] == "next to no contrast"
        assert row["p_COVID-19"] is not None
    assert "3 refused" in result.stderr


def by_dcmtk(path: Path, out: Path) -> np.ndarray | None:
    """A DICOM file as dcmtk shows it, by its window or the range of its values; None where it does not."""
    for program in ("dcmj2pnm", "dcml2pnm"):  # JPEG, JPEG-LS
        for options in (["+Wi", "1"], ["+Wm"]):
            command = [program, "-q", "+op", *options, path, out]
            if not subprocess.run(command, capture_output=True, check=False).returncode:
                return np.asarray(Image.open(io.BytesIO(out.read_bytes())).convert("L"))
    return None


def test_real_dicom_beside_dcmtk(shared_data: Path, tmp_path: Path):
    if not shutil.which("dcmj2pnm"):
        pytest.skip("dcmj2pnm (dcmtk) is not installed")
    shown = []
    for path in sorted((shared_data / "dicom").glob("*.dcm")):
        ours = decode.read(path, invert="never")
        theirs = by_dcmtk(path, tmp_path / "theirs.pgm")
        if theirs is None:  # JPEG 2000
            continue
        assert theirs.shape == ours.shape
        if (pydicom.dcmread(path).get("PatientOrientation") or "L")[0] == "R":  # dcmtk turns no image upright
            theirs = theirs[:, ::-1]
        correlation = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
        assert correlation > 0.99, (path.name, correlation)
        shown.append(path.name)
    assert len(shown) >= 7, shown
