"""Compressed images to stored values, for files and for the frames of DICOM alike, and whether files are whole.

Each decoder refuses what it cannot decode to the end: half an image never looks like a whole one. What a crash, a full
disk or a copy that was broken off left out of a file is often there as zeros. Before a codestream's end mark they are
damage. Elsewhere they may belong to the image, a black edge perhaps, so they are a warning, and only where they lie as an
image's own hardly do.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from typing import Any, NamedTuple

import imagecodecs
import numpy as np

from covidjax.errors import ImageError, one_line

J2K, JP2 = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"
"""First bytes of a JPEG 2000 codestream, and of a file that holds one."""

TRUNCATED = "damaged: truncated"

ZEROS = 16
"""Bytes of zeros at the end of compressed data, before whatever marks its end, that are damage."""

SECTOR = 512
"""Bytes that disks and copies write at least; what was not written begins at a multiple of it."""

LARGE = 0.1
"""Share of the pixels that are zeros at the end where no X-ray is black, as a rule, but at the other edge too. Compressed
data does not end in half as many, whatever the image."""

BESIDE = 16
"""Bytes before and after zeros of a file that are not all zeros too, if a sector is missing there."""

_END_OF_IMAGE = b"\xff\xd9"
"""Of JPEG, JPEG-LS and JPEG 2000."""

_JPEG_LS = 0xF7
_SIZE_MARKERS = frozenset((*range(0xC0, 0xD0), _JPEG_LS)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))


class Header(NamedTuple):
    """What a codestream says of itself."""

    height: int
    width: int
    bits: int
    """Of a value."""
    kind: str
    """``JPEG``, ``JPEG-LS``, ``JPEG 2000``, …"""
    baseline: bool = False
    """Whether it is a JPEG of 8 bits that loses detail: nearly all are."""


class Image(NamedTuple):
    """A decoded codestream."""

    values: np.ndarray
    """``[H, W]`` or ``[H, W, C]``."""
    warnings: list[str]


def header(data: bytes) -> Header:
    """The header of a codestream of JPEG, JPEG-LS or JPEG 2000, told by its first bytes.

    Raises:
      ImageError: it is damaged.
      NotImplementedError: it is none of these.
    """
    if not data.startswith((b"\xff\xd8", J2K, JP2)):
        raise NotImplementedError("neither JPEG nor JPEG 2000")
    try:
        return _jpeg_header(data) if data[:2] == b"\xff\xd8" else _jpeg2000_header(data)
    except (struct.error, IndexError, ValueError):
        raise ImageError(TRUNCATED) from None


def _jpeg_header(data: bytes) -> Header:
    place = 2
    while True:
        # As libjpeg does: whatever lies before a marker is skipped, of which it warns.
        place = data.index(b"\xff", place)
        marker = data[place + 1]
        if marker in _SIZE_MARKERS:
            bits, height, width = struct.unpack_from(">BHH", data, place + 4)
            if marker == _JPEG_LS:
                return Header(height, width, bits, "JPEG-LS")
            lossless = marker % 4 == 3
            return Header(height, width, bits, "JPEG", baseline=bits == 8 and not lossless)
        # A marker may be filled up with bytes of 255; one of zeros is none.
        place += 1 if marker in (0x00, 0xFF) else 2
        if marker not in _WITHOUT_LENGTH:
            place += struct.unpack_from(">H", data, place)[0]


def _jpeg2000_header(data: bytes) -> Header:
    start = data.find(J2K)
    if start < 0:
        raise ImageError("damaged: it holds no JPEG 2000 image")
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    return Header(bottom - top, right - left, (data[start + 42] & 0x7F) + 1, "JPEG 2000")


def decode(data: bytes, header: Header, at_least: int | None = None) -> Image:
    """Decode a codestream of JPEG of any bits, JPEG-LS or JPEG 2000.

    Args:
      data: the codestream, or a file of JPEG or JPEG 2000.
      header: its own.
      at_least: a side in pixels that suffices, see ``decode.read``.

    Raises:
      ImageError: damaged.
      ValueError, RuntimeError: the decoder declined it.
    """
    if header.baseline:
        return _baseline_jpeg(data, header, at_least)
    if header.kind == "JPEG":
        check_compressed(data)
        if data.rfind(_END_OF_IMAGE) < data.rfind(b"\xff\xda"):
            raise ImageError(TRUNCATED)
        return Image(imagecodecs.jpeg8_decode(data), [])  # by its name only: also of 12 bits, and lossless of 16
    if header.kind == "JPEG-LS":
        return Image(imagecodecs.jpegls_decode(data), [])
    check_compressed(data)
    return Image(_jpeg2000(data), [])


def decode_rle(frame: bytes, kind: np.dtype[Any], count: int) -> np.ndarray:
    """Decode a frame of DICOM's run-length encoding (PS3.5, G).

    Args:
      frame: its bytes, which may be padded with zeros.
      kind: of a value.
      count: values of all channels.

    Returns:
      The values ``[count]``, channel after channel.

    Raises:
      ImageError: it gives another number of values.
    """
    bare = frame.rstrip(b"\0")
    # Runs may end in zeros too, of which there are few.
    for data in (frame, *(bare + bytes(zeros) for zeros in range(4))):
        with contextlib.suppress(RuntimeError, ValueError):
            decoded = imagecodecs.dicomrle_decode(data, kind)
            if len(decoded) == count * kind.itemsize:
                return np.frombuffer(decoded, kind)
    raise ImageError("damaged: its runs do not make up the image")


def _baseline_jpeg(data: bytes, header: Header, at_least: int | None) -> Image:
    """Brightness alone: of most JPEGs it is stored apart from the colours, which need not be decoded."""
    from simplejpeg import decode_jpeg

    size: dict[str, Any] = {}
    if at_least:
        # An eighth, a quarter or a half, which libjpeg computes fast.
        factor = next((factor for factor in (8, 4, 2) if min(header.height, header.width) // factor >= at_least), 1)
        size = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)} if factor > 1 else {}
    warnings = []
    try:
        gray = decode_jpeg(data, "GRAY", **size)
    except ValueError as error:
        if "Premature end" in str(error):
            raise ImageError(TRUNCATED) from error
        # Bytes between two parts that belong to neither: whatever wrote them, the parts themselves are whole.
        if "extraneous bytes" not in str(error):
            if "Corrupt JPEG data" in str(error):
                raise ImageError(f"damaged: {one_line(error)}") from error
            raise
        gray = decode_jpeg(data, "GRAY", strict=False, **size)
        warnings.append(f"damaged in places: {one_line(error)}")
    return Image(gray[..., 0], warnings)


def _jpeg2000(data: bytes) -> np.ndarray:
    values = imagecodecs.jpeg2k_decode(data, numthreads=1)  # high throughput too
    # Of luma and two differences the luma is the brightness (ISO 15444-1, I.5.3.3).
    enumerated = data[: data.find(J2K)].find(b"colr\x01")
    if values.ndim == 3 and enumerated >= 0 and data[enumerated + 7 : enumerated + 11] == struct.pack(">I", 18):
        values = values[..., 0]
    return values


# Whether a file is whole


def check_png(data: bytes) -> list[str]:
    """Check every chunk's sum (PNG, section 5.3). Returns warnings: of what the image does not need.

    Raises:
      ImageError: a chunk that the image needs is damaged or missing.
    """
    place, warnings = 8, []
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            label = name.decode() if name.isalpha() else "unknown"
            if name[:1].isupper() or not name.isalpha():
                raise ImageError(f"damaged: the checksum of its {label} chunk is wrong")
            warnings.append(f"the checksum of its {label} chunk is wrong")
        if name == b"IEND":
            return warnings
        place = end + 4
    raise ImageError(TRUNCATED)


def check_compressed(data: bytes | memoryview) -> None:
    """Check that a codestream does not end in zeros before its end mark.

    Raises:
      ImageError: it does.
    """
    zeros = _zeros_at_end(data)
    if zeros >= ZEROS and data[-zeros - 2 : -zeros] != _END_OF_IMAGE:
        raise ImageError(f"damaged: its last {zeros} bytes are zeros")


def _zeros_at_end(data: bytes | memoryview) -> int:
    return len(data) - len(bytes(data).rstrip(b"\0"))


def tail_warning(data: bytes | memoryview) -> str:
    """A warning where compressed data that has no end mark ends in more zeros than it does by itself; else nothing."""
    zeros = _zeros_at_end(data)
    many = zeros >= max(ZEROS, LARGE * len(data) / 2)
    return f"its last {zeros} bytes are zeros: the file may be cut off" if many else ""


def webp_warning(data: bytes) -> str:
    """``tail_warning`` for the chunks of a WebP file that hold the image."""
    place, warning = 12, ""
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        if name in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            warning = warning or tail_warning(memoryview(data)[place + 8 : place + 8 + length])
        elif not name.strip().isalnum():
            return "a part of it is no part of such a file"
        place += 8 + length + length % 2
    return warning


def holes_warning(data: bytes) -> str:
    """A warning where whole sectors of a disk are zeros amid other bytes, as in a file that was not written whole; else
    nothing. An image's own zeros begin and end at a sector only by chance."""
    sectors = len(data) // SECTOR
    empty = ~np.frombuffer(data, np.uint64, sectors * (SECTOR // 8)).reshape(sectors, -1).any(1)
    if not empty.any():
        return ""
    # Where a run of empty sectors begins, and where the sector after it does.
    edges = np.diff(empty.astype(np.int8), prepend=0, append=0)
    for first, last in zip(np.flatnonzero(edges == 1) * SECTOR, np.flatnonzero(edges == -1) * SECTOR, strict=True):
        before, after = data[max(first - BESIDE, 0) : first], data[last : last + BESIDE]
        if any(before) and (any(after) or last + SECTOR > len(data)):
            return f"{last - first} bytes amid it are zeros: it may not have been written whole"
    return ""


def zeros_warning(pixels: np.ndarray, offset: int) -> str:
    """A warning where uncompressed pixels end in zeros as those of a torn file do, and hardly an edge of an image does:
    below pixels that are not zero they begin amidst a row or at a multiple of a disk's sector, or take a large part where
    there is no such edge above; else nothing.

    Args:
      pixels: numbers ``[rows, values]``, in the order in which they are stored.
      offset: bytes of the file before them.
    """
    rows = pixels != 0
    height, width = rows.shape
    filled = np.flatnonzero(rows.any(1))
    if not len(filled) or filled[-1] < 1:
        return ""
    last = int(filled[-1])
    tear = int(np.flatnonzero(rows[last])[-1]) + 1  # the column of the first zero
    missing = (height - 1 - last) * width + width - tear
    if missing < 4 * width:
        return ""
    above = np.count_nonzero(rows[last - 1, tear:]) if tear < width else np.count_nonzero(rows[last])
    abrupt = above > 0.5 * (width - tear or width)
    amidst = width // 16 < tear < width - width // 16
    at_sector = (offset + (last * width + tear) * pixels.itemsize) % SECTOR == 0
    large = missing > LARGE * rows.size and filled[0] == 0 and np.count_nonzero(rows[last - 1]) > 0.9 * width
    if abrupt and (amidst or at_sector or large):
        return f"its last {100 * missing / rows.size:.0f} % are zeros: the file may be cut off"
    return ""
