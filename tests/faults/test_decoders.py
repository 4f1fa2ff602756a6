"""Whatever is in a file, it costs its own row and nothing else. COVIDJAX_FAULT_FILES says how many files are mutated."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from commands import run
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from test_cli_score import rows_of
from test_dicom import compress, make, written

from covidjax.config import Preprocess
from covidjax.data import synthetic
from covidjax.errors import UserError
from covidjax.images import stream, workers
from covidjax.images.formats import Limits
from covidjax.images.workers import DecodeJob

FILES = int(os.environ.get("COVIDJAX_FAULT_FILES", "400"))
GRAY = synthetic.draw(3, size=64).image
SMALL = Preprocess(image_size=32)


def encoded(film: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(film).save(file, kind, **options)
    return file.getvalue()


def compressed(syntax: str) -> bytes:
    dataset = make(GRAY)
    compress(dataset, syntax, GRAY)
    return written(dataset)


def wrapped(syntax: str, kind: str, **options: Any) -> bytes:
    dataset = make(GRAY, PixelData=encapsulate([encoded(GRAY, kind, **options)]))
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def tiff(film: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, film, metadata=None, **options)
    return file.getvalue()


DEEP = GRAY.astype(np.uint16) * 257
FORMATS: dict[str, Callable[[], bytes]] = {
    "gray.png": lambda: encoded(GRAY, "PNG"),
    "deep.png": lambda: encoded(DEEP, "PNG"),
    "colour.png": lambda: encoded(np.stack([GRAY] * 3, -1), "PNG"),
    "gray.jpg": lambda: encoded(GRAY, "JPEG"),
    "progressive.jpg": lambda: encoded(np.stack([GRAY] * 3, -1), "JPEG", progressive=True),
    "film.jp2": lambda: encoded(GRAY, "JPEG2000"),
    "film.bmp": lambda: encoded(GRAY, "BMP"),
    "film.webp": lambda: encoded(GRAY, "WEBP"),
    "film.gif": lambda: encoded(GRAY, "GIF"),
    "raw.tif": lambda: encoded(DEEP, "TIFF"),
    "lzw.tif": lambda: encoded(GRAY, "TIFF", compression="tiff_lzw"),
    "deflated.tif": lambda: encoded(GRAY, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tif": lambda: encoded(GRAY, "TIFF", compression="jpeg"),
    "raw.dcm": lambda: written(make(GRAY, WindowCenter=100, WindowWidth=200)),
    "deep.dcm": lambda: written(make(DEEP)),
    "deflated.dcm": lambda: written(make(GRAY, syntax=uid.DeflatedExplicitVRLittleEndian)),
    "rle.dcm": lambda: compressed(uid.RLELossless),
    "jpegls.dcm": lambda: compressed(uid.JPEGLSLossless),
    "jpeg2000.dcm": lambda: compressed(uid.JPEG2000Lossless),
    "film.pgm": lambda: encoded(GRAY, "PPM"),
    "tiled.tif": lambda: tiff(DEEP, tile=(32, 32), compression="zlib", photometric="miniswhite"),
    "planes.tif": lambda: tiff(np.stack([GRAY] * 3), photometric="rgb", planarconfig="separate"),
    "deep.jp2": lambda: bytes(imagecodecs.jpeg2k_encode(DEEP, level=0)),
    "deep.jpg": lambda: bytes(imagecodecs.jpeg8_encode(DEEP >> 4, 95, bitspersample=12)),
    "lossless.jpg": lambda: bytes(imagecodecs.jpeg8_encode(GRAY, lossless=True)),
    "film.jls": lambda: bytes(imagecodecs.jpegls_encode(GRAY)),
    "jpeg.dcm": lambda: wrapped(uid.JPEGBaseline8Bit, "JPEG"),
}


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Bits flipped, bytes overwritten in the header, a piece cut out, doubled or blanked, the end cut off."""
    changed = bytearray(data)
    kind = random.integers(6)
    if kind == 0:
        for place in random.integers(0, len(changed), random.integers(1, 30)):
            changed[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del changed[int(random.integers(1, len(changed))) :]
    elif kind == 2:
        for place in random.integers(0, min(len(changed), 400), random.integers(1, 6)):
            changed[place] = int(random.choice(np.asarray([0, 1, 0x7F, 0x80, 0xFF])))
    else:
        start = int(random.integers(len(changed)))
        piece = changed[start : start + int(random.integers(1, 200))]
        changed[start : start + len(piece)] = (b"", piece * 2, bytes(len(piece)))[kind - 3]
    return bytes(changed)


def memory() -> dict[int, int]:
    """Bytes of memory of this process and of each decoder."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {process.pid: process.memory_info().rss for process in processes}


@pytest.mark.slow
def test_mutated_files_give_a_row_each_and_memory_stays_flat(trained: Path, tmp_path: Path):
    random = np.random.default_rng(int(os.environ.get("COVIDJAX_FAULT_SEED", "0")))
    originals = {name: make() for name, make in FORMATS.items()}
    names = list(originals)

    def mutate(folder: Path, count: int) -> Path:
        folder.mkdir()
        for index in range(count):
            name = names[index % len(names)]
            (folder / f"{index:05}-{name}").write_bytes(mutated(originals[name], random))
        return folder

    def score(folder: Path) -> list[dict[str, str]]:
        out = folder.with_suffix(".csv")
        words = ("score", folder, "--checkpoint", trained, "--output", out, "--max-seconds", 20, "--runtime", "jax")
        result = run(*words)
        assert result.exit_code == 0, result.output
        return rows_of(out)

    score(mutate(tmp_path / "first", 100))  # every decoder has been loaded
    before = memory()
    rows = score(mutate(tmp_path / "films", FILES))
    assert [Path(row["path"]).name for row in rows] == sorted(path.name for path in (tmp_path / "films").iterdir())
    for row in rows:
        assert (row["status"] == "error") == (row["error"] != "") == (row["p_COVID-19"] == ""), row
        assert (row["status"] == "ok") == (row["prediction"] != ""), row
    assert 0.1 < sum(row["status"] == "ok" for row in rows) / FILES < 0.9  # both ways were tried
    grown = {pid: size - before[pid] for pid, size in memory().items() if pid in before}
    assert all(size < 150 * 2**20 for size in grown.values()), grown


@pytest.mark.parametrize("name", FORMATS)
def test_originals_are_read(name: str):
    found = workers.decode(FORMATS[name](), DecodeJob(32))
    assert found.error == ""
    assert found.arrays[0].shape == (32, 32)


def idle() -> Any:
    """A decoder that waits for its next job, which it will be given."""
    assert workers.decode(encoded(GRAY, "PNG"), DecodeJob(32)).error == ""
    return workers._idle[-1]._process


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.png"
    path.write_bytes(encoded(GRAY, "PNG"))
    return path


def test_decoder_that_hangs_is_given_up(film: Path):
    process = idle()
    process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    found = workers.decode(film, DecodeJob(32, limits=Limits(seconds=0.5)))
    assert found.error == "not decoded within 0.5 seconds"
    assert time.monotonic() - start < 10
    assert process.returncode == -signal.SIGKILL
    assert workers.decode(film, DecodeJob(32)).error == ""


def test_decoder_ends_itself_where_nobody_waits_for_it(film: Path, monkeypatch: pytest.MonkeyPatch):
    """As where the command was killed while a decoder hangs: the alarm is set before the work begins."""
    process = idle()
    monkeypatch.setattr(workers, "GRACE", 1000.0)  # of this process, not the decoder's
    os.mkfifo(film.parent / "pipe")
    with (film.parent / "large.bmp").open("wb") as file:
        file.write(encoded(np.zeros((32, 32), np.uint8), "BMP")[:14])
        file.write(struct.pack("<IiiHHIIiiII", 40, 13000, 13000, 1, 24, 0, 0, 0, 0, 0, 0))
        file.truncate(13000 * 13000 * 3 + 54)
    found = workers.decode(film.parent / "large.bmp", DecodeJob(32, limits=Limits(seconds=-1.99, megabytes=1000)))
    assert found.error == "damaged: its decoder crashed (SIGALRM)"
    process.wait(10)


def test_decoder_that_was_killed_by_somebody_is_replaced(film: Path):
    idle().kill()
    assert workers.decode(film, DecodeJob(32)).error == ""


def test_file_that_crashes_its_decoder_is_an_error(film: Path):
    process = idle()
    process.send_signal(signal.SIGSTOP)  # so that it is at the job when it crashes
    found = []
    waiting = threading.Thread(target=lambda: found.append(workers.decode(film, DecodeJob(32))))
    waiting.start()
    time.sleep(0.2)
    process.send_signal(signal.SIGSEGV)
    process.send_signal(signal.SIGCONT)
    waiting.join(20)
    assert found[0].error == "damaged: its decoder crashed (SIGSEGV)"


@pytest.mark.slow
def test_job_goes_on_while_decoders_are_killed(film: Path):
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.5):
            for process in psutil.Process().children():
                # One that is starting is left alone: on a busy machine none would ever get to its work.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "covidjax.images.workers" in " ".join(process.cmdline()) and time.time() - process.create_time() > 1:
                        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = list(stream.read_images([film] * 2000, SMALL, workers=2))
    finally:
        stop.set()
        killer.join()
    assert len(found) == 2000
    assert {each.error for each in found} <= {"", "damaged: its decoder crashed (SIGKILL)"}  # killed twice at one file
    assert sum(each.error == "" for each in found) > 1900


def test_names_are_those_of_the_folder_that_this_process_is_in(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    idle()  # a decoder that was started elsewhere
    monkeypatch.chdir(tmp_path)
    assert workers.decode(film.name, DecodeJob(32)).error == ""


def test_decoder_that_cannot_be_started_is_one_sentence(film: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    workers.stop()
    monkeypatch.setattr(workers.subprocess, "Popen", full)
    with pytest.raises(UserError, match=r"could not be started \(Resource temporarily unavailable\)"):
        workers.decode(film, DecodeJob(32))


def test_limits_are_options(trained: Path, tmp_path: Path):
    folder = tmp_path / "films"
    folder.mkdir()
    for side in (64, 200, 300):
        (folder / f"{side}.bmp").write_bytes(encoded(np.zeros((side, side), np.uint8), "BMP"))
    words = ("score", folder, "--checkpoint", trained, "--max-megapixels", 0.05, "--runtime", "jax")
    result = run(*words, "--max-megabytes", 0.08, "--output", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    assert [row["error"] for row in rows_of(tmp_path / "rows.csv")] == [
        "",  # 200.bmp
        "longer than 0.08 MB, which no X-ray is",
        "",
    ]
    assert run(*words, "--output", tmp_path / "rows.csv").exit_code == 0
    assert rows_of(tmp_path / "rows.csv")[1]["error"] == "more than 0.05 megapixels, which no X-ray has"


@pytest.mark.parametrize("syntax", ["file", pytest.param(uid.JPEG2000Lossless, marks=pytest.mark.slow)])
def test_bomb_of_jpeg_2000_is_refused(syntax: str):
    """A codestream that claims 60,000 × 60,000 pixels; in a DICOM file, whose own header claims 64 × 64."""
    data = bytearray(encoded(GRAY, "JPEG2000", no_jp2=True) if syntax == "file" else compressed(syntax))
    start = data.index(b"\xff\x4f\xff\x51") + 8
    for at in (start, start + 16):  # image and tile
        data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    begun = time.monotonic()
    found = workers.decode(bytes(data), DecodeJob(32, limits=Limits(seconds=20)))
    assert found.error
    assert time.monotonic() - begun < 25
    assert workers.decode(FORMATS["gray.png"](), DecodeJob(32)).error == ""
