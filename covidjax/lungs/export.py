"""Lung masks, crops and pictures of films as PNG files: a stream of rows, one for every file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from covidjax.errors import UserError
from covidjax.files import write_atomic
from covidjax.images import archives, stream
from covidjax.images.formats import Limits
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.overlay import OutputType, render

GOOD = "good"
"""The quality of plausible lungs; of others it is the reason."""

COLUMNS = ("path", "status", "file", "left", "top", "right", "bottom", "area", "quality", "error", "warning")


class SegmentationRow(NamedTuple):
    """What became of one file."""

    path: str
    status: str
    """``ok`` or ``error``."""
    file: str
    """The PNG, relative to the folder of the results; empty on an error."""
    box: tuple[int, int, int, int] | None
    """Left, top, right and bottom of both lungs with a margin, in pixels of the film; the whole film where the mask is
    implausible."""
    area: float | None
    """The mask's share of the film."""
    quality: str
    """``good``, or why the mask is implausible."""
    error: str
    warning: str = ""
    """What speaks against a frontal chest film, or that it was a negative, as in ``score.Row``."""
    decode_seconds: float = 0.0
    lungs_seconds: float = 0.0
    write_seconds: float = 0.0

    def cells(self) -> dict[str, Any]:
        """The output columns, ``COLUMNS``."""
        box = self.box or (None,) * 4
        return dict(zip(COLUMNS, (*self[:3], *box, self.area, self.quality, self.error, self.warning), strict=True))


def export_images(
    paths: Sequence[archives.Source],
    names: Sequence[str],
    out: Path,
    what: OutputType,
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
      what: ``mask``, white lungs on black at the film's size; ``crop``, the film within the box; ``overlay``, the whole
        film with the lungs tinted and the box drawn.
      segmenter: what computes the masks.
      workers: processes that decode, and threads that write; one a core and one more each if None.
      limits: what one file may take.

    Raises:
      UserError: a PNG that cannot be written.
    """
    found = lung_stream.segment_images(paths, segmenter, workers=workers, limits=limits)
    jobs = (partial(_written, film, name, out, what) for film, name in zip(found, names, strict=True))
    return stream.map_in_order(jobs, workers=workers, ahead=lung_stream.BATCH_SIZE)


def _written(film: lung_stream.SegmentedImage, name: str, out: Path, what: OutputType) -> SegmentationRow:
    if film.gray is None or film.lungs is None:
        return SegmentationRow(film.path, "error", "", None, None, "", film.error, film.warning, film.decode_seconds)
    start = time.perf_counter()
    file = out / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Little compression: the usual level takes several times longer than everything else.
        image = render(film.gray, film.lungs, what)
        write_atomic(file, lambda opened: image.save(opened, "PNG", compress_level=1), sync=False)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{file} cannot be written ({reason}); name a folder that you may write to.") from error
    found, seconds = film.lungs, time.perf_counter() - start
    quality = found.flag or GOOD
    times = film.decode_seconds, film.lungs_seconds, seconds
    return SegmentationRow(film.path, "ok", name, found.box, found.share, quality, "", film.warning, *times)


def output_names(paths: Sequence[archives.Source], roots: Sequence[Path]) -> list[str]:
    """A name for every file's PNG: its path below the first root that holds it, or its own name, ending in ``.png``. Where
    two would have the same, the later one keeps its own ending before that, or gets a number."""
    taken: set[str] = set()
    names = []
    for path in map(Path, paths):
        root = next((root for root in roots if root in path.parents), None)
        relative = path.relative_to(root) if root else Path(path.name)
        wanted = [relative.with_suffix(".png"), relative.with_name(relative.name + ".png")]
        numbered = (relative.with_name(f"{relative.stem}-{number}.png") for number in range(2, len(paths) + 3))
        name = next(os.fspath(each) for each in (*wanted, *numbered) if os.fspath(each).lower() not in taken)
        taken.add(name.lower())  # so that they differ also where upper and lower case are one
        names.append(name)
    return names
