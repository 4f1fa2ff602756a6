"""Lung masks, crops and overlays of images as PNG files: a stream of rows, one for every file."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from covidjax.files import LONGEST_NAME, explaining, write_atomic
from covidjax.images import archives, stream
from covidjax.images.formats import Limits
from covidjax.images.workers import DecodeJob
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.overlay import OutputType, render

GOOD = "good"
"""The quality of plausible lungs; of others it is the reason."""

OWN_FAULTS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""Errors of the system that lie with a file's own name, or with what has that name already: others can be written."""

COLUMNS = ("path", "status", "file", "left", "top", "right", "bottom", "area", "quality", "error", "warning")


class SegmentationRow(NamedTuple):
    """The lungs on one image, or why the file could not be read."""

    path: str
    status: str
    """``ok`` or ``error``."""
    file: str = ""
    """The PNG, relative to the folder of the results; empty on an error."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of both lungs with a margin, in pixels of the image; the whole image where the mask is
    implausible."""
    area: float | None = None
    """The mask's share of the image."""
    quality: str = ""
    """``good``, or why the mask is implausible, or the image no X-ray."""
    error: str = ""
    """Why the file could not be read; empty where it was."""
    warning: str = ""
    """Why the image is no frontal chest X-ray, or that it was or may be a negative."""
    decode_seconds: float = 0.0
    lungs_seconds: float = 0.0
    write_seconds: float = 0.0

    def cells(self) -> dict[str, Any]:
        """The output columns, ``COLUMNS``."""
        box = zip(("left", "top", "right", "bottom"), self.box or (None,) * 4, strict=True)
        cells = {**self._asdict(), **dict(box)}
        return {name: cells[name] for name in COLUMNS}


def export_images(
    paths: Sequence[archives.Source],
    names: Sequence[str],
    out: Path,
    output_type: OutputType,
    segmenter: lung_stream.Segmenter,
    *,
    workers: int | None = None,
    limits: Limits = Limits(),
) -> Iterator[SegmentationRow]:
    """Write a PNG for every readable file, and give a row for every file, in order.

    Args:
      paths: files.
      names: of their PNGs, relative to ``out``; see ``output_names``.
      out: folder of the results.
      output_type: ``mask``, white lungs on black at the image's size; ``crop``, the image within the box; ``overlay``, the
        whole image with the lungs tinted and the box drawn.
      segmenter: what computes the masks.
      workers: processes that decode, and threads that write; one a core and one more each if None.
      limits: what one file may take.

    Raises:
      UserError: a PNG that cannot be written for another reason than its name, of which its row tells.
    """
    images = lung_stream.segment_images(paths, segmenter, DecodeJob(limits=limits), workers=workers)
    jobs = (partial(_write_png, image, name, out, output_type) for image, name in zip(images, names, strict=True))
    return stream.map_in_order(jobs, workers=workers, ahead=lung_stream.BATCH_SIZE)


def _write_png(image: lung_stream.SegmentedImage, name: str, out: Path, output_type: OutputType) -> SegmentationRow:
    row = SegmentationRow(path=image.path, status="error", warning=image.warning, decode_seconds=image.decode_seconds)
    if image.gray is None or image.lungs is None:
        return row._replace(error=image.error)
    start = time.perf_counter()
    file = out / name
    png = render(image.gray, image.lungs, output_type)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Little compression: the usual level takes several times longer than everything else.
        write_atomic(file, lambda opened: png.save(opened, "PNG", compress_level=1), sync=False)
    except OSError as error:
        if error.errno in OWN_FAULTS:
            return row._replace(error=f"its {output_type} cannot be written as {name} ({error.strerror})")
        with explaining(file):
            raise
    return row._replace(
        status="ok",
        file=name,
        box=image.lungs.box,
        area=image.lungs.share,
        quality=image.refused or image.lungs.flag or GOOD,
        lungs_seconds=image.lungs_seconds,
        write_seconds=time.perf_counter() - start,
    )


def output_names(paths: Sequence[archives.Source], roots: Sequence[Path]) -> list[str]:
    """A name for every file's PNG: its path below the first root that holds it, or its own name, ending in ``.png``. Where
    two would have the same, the later one keeps its own ending before that, or gets a number. Of a name that would be too
    long a digest stands for the end."""
    taken: set[str] = set()
    names = []
    for path in map(Path, paths):
        root = next((root for root in roots if root in path.parents), None)
        relative = path.relative_to(root) if root else Path(path.name)
        numbered = (f"{relative.stem}-{number}" for number in itertools.count(2))
        stems = itertools.chain([relative.with_suffix("").name, relative.name], numbered)
        candidates = (os.fspath(relative.with_name(_png_name(stem))) for stem in stems)
        # Lower case: names differ also where upper and lower case are one.
        name = next(name for name in candidates if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def _png_name(stem: str) -> str:
    """The name of a PNG file, of which no more than file systems take."""
    encoded = os.fsencode(stem)
    if len(encoded) + len(".png") > LONGEST_NAME:
        digest = f"~{hashlib.sha256(encoded).hexdigest()[:16]}"
        # Cut between two characters.
        stem = encoded[: LONGEST_NAME - len(digest) - len(".png")].decode("utf-8", "ignore") + digest
    return f"{stem}.png"
