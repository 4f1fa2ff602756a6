"""The pictures that ``bench.gate`` fits and tries the gate on: read, changed, made and drawn, at the gate's own size."""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench import gate_pictures as pictures
from covidjax.data.readers.names import patient_of
from covidjax.errors import ImageError
from covidjax.images import decode
from covidjax.images.find import walk
from covidjax.lungs.geometry import Lungs, find_lungs
from covidjax.lungs.segmenter import LoadedSegmenter, open_segmenter

SIZE = 128
"""Height and width of what the gate's network sees, in pixels."""

CHEST = "chest"
DRAWN_LUNGS = "drawn slice of lungs"
SOURCES = {
    "ozturk": ("ozturk",),
    "ieee8023": ("ieee8023/images",),
    "radiography": ("radiography",),
    "lungs": ("lungs/cxr",),
    "radiography-v4": ("radiography-v4/COVID", "radiography-v4/Normal"),
}
"""Frontal X-rays of the chest, by source."""
OTHERS = ("ct", "ct_mr_medpix", "hand", "knee", "lateral", "photo")
"""Folders of ``not-chest``."""

MOST = 1200
"""Images of a source that are fitted to; the others are tried only."""
CHANGED = {"chest": 2, "lateral": 100, "ct": 90, "photo": 50, "ct_mr_medpix": 50, "hand": 30, "knee": 30}
"""Changed copies of an image of each kind."""
MADE, DRAWN = 2200, 400
"""Pictures of each kind that are made of X-rays, and drawn."""


class Pictures(NamedTuple):
    """Pictures, and what is known of each."""

    pixels: np.ndarray
    """uint8 ``[N, SIZE, SIZE]``."""
    kinds: np.ndarray
    """str ``[N]``."""
    sources: np.ndarray
    """str ``[N]``; of X-rays of the chest, and of what was made of them."""
    groups: np.ndarray
    """str ``[N]``: of one patient, or made of one picture."""
    plain: np.ndarray
    """bool ``[N]``: as it is in its file, or drawn to be tried."""
    paths: np.ndarray
    """str ``[N]``; empty where there is no file."""


def read(path: Path) -> Image.Image | None:
    """As it is in the file, upright, negatives turned, at 256 pixels a side or somewhat more."""
    try:
        return Image.fromarray(decode.read_reduced(path, 256).pixels)
    except ImageError:
        return None


def frontal(folder: Path) -> list[tuple[Path, str]]:
    """The frontal X-rays of ieee8023 with their patients, by its table."""
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    views = {"PA", "AP", "AP Supine", "AP Erect"}
    paths = [(folder / "images" / row["filename"], f"ieee8023:{row['patientid']}") for row in rows if row["view"] in views]
    return [(path, patient) for path, patient in paths if path.exists()]


def files(data: Path) -> list[tuple[str, str, str, Path]]:
    """Kind, source, group and path of every file."""
    found: list[tuple[str, str, str, Path]] = []
    for source, folders in SOURCES.items():
        if source == "ieee8023":
            found += [(CHEST, source, patient, path) for path, patient in frontal(data / source)]
            continue
        for folder in folders:
            found += [(CHEST, source, patient_of(path.name), path) for path in walk(data / folder).images]
    for kind in OTHERS:
        found += [(kind, "", f"{kind}:{patient_of(path.name)}", path) for path in walk(data / "not-chest" / kind).images]
    return found


def small(image: Image.Image) -> np.ndarray:
    return decode.resize(np.asarray(image.convert("L")), SIZE)


@functools.cache
def segmenter() -> LoadedSegmenter:
    return open_segmenter("cpu")


def lungs_of(image: Image.Image) -> Lungs:
    """The lungs by the bundled segmenter."""
    return find_lungs(segmenter().segment(small(image)[None, ..., None])[0][0], SIZE, SIZE)


def collect(data: Path, seed: int = 0) -> Pictures:
    """All pictures: every file as it is, and changed, made and drawn ones.

    Args:
      data: the folder of the collections.
      seed: of the changes.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[np.ndarray, str, str, str, bool, str]] = []
    chests: dict[str, list[tuple[Image.Image, str]]] = {source: [] for source in SOURCES}
    chosen = chosen_files(files(data), rng)
    for kind, source, group, path, fitted in chosen:
        image = read(path)
        if image is None:
            continue
        rows.append((small(image), kind, source, group, True, str(path)))
        change = pictures.chest if kind == CHEST else pictures.other
        for _ in range(CHANGED[kind] if fitted else 0):
            rows.append((small(change(image, rng)), kind, source, group, False, ""))
        if kind == CHEST and fitted:
            chests[source].append((image, group))
            lungs = lungs_of(image)
            if lungs.flag:
                continue
            left, top, right, bottom = (side / SIZE for side in lungs.box)
            child = pictures.childlike(image, (left, top, right, bottom), rng)
            rows.append((small(child), kind, source, group, False, ""))
            if rng.random() < 0.4:
                drawn = pictures.other(pictures.slice_of_lungs(lungs.mask, rng), rng)
                rows.append((small(drawn), DRAWN_LUNGS, source, group, False, ""))
    for kind, make in pictures.MADE_OF_CHESTS.items():
        for number in range(MADE):
            source = list(chests)[number % len(chests)]
            films = [chests[source][row] for row in rng.integers(len(chests[source]), size=6)]
            image = make([film for film, _ in films], rng)
            image = pictures.worn(pictures.regrayed(image, rng), rng) if rng.random() < 0.6 else image
            rows.append((small(image), kind, source, films[0][1], number < MADE // 4, ""))
    for kind, draw in pictures.DRAWN.items():
        for number in range(DRAWN):
            image = draw(rng)
            plain = number < DRAWN // 4
            rows.append((small(image if plain else pictures.other(image, rng)), kind, "", f"{kind}:{number}", plain, ""))
    pixels, *texts = zip(*rows, strict=True)
    kinds, sources, groups, plain, paths = map(np.array, texts)
    return Pictures(np.stack(pixels), kinds, sources, groups, plain, paths)


def chosen_files(
    found: Sequence[tuple[str, str, str, Path]], rng: np.random.Generator
) -> list[tuple[str, str, str, Path, bool]]:
    """The files, and whether each is fitted to: of each source at most ``MOST``, drawn at random."""
    fitted = np.ones(len(found), bool)
    for source in SOURCES:
        rows = np.flatnonzero([of == source for _, of, _, _ in found])
        fitted[rng.permutation(rows)[MOST:]] = False
    return [(*file, bool(use)) for file, use in zip(found, fitted, strict=True)]
