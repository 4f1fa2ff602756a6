"""Which images are the same: by published names, by bytes, by look.

Published images are re-encoded, resized and renamed. So each gets a perceptual hash of 256 bits (``imagehash.phash``: which
of the lowest frequencies of its cosine transform are above their median), and two images whose hashes differ in at most
``MOST_BITS`` bits are taken for duplicates.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from PIL import Image

from covidjax.data.folds import components_of
from covidjax.data.readers.base import Example
from covidjax.errors import ImageError
from covidjax.images import stream
from covidjax.images.archives import Member, Source
from covidjax.images.formats import Limits
from covidjax.images.workers import DecodeJob

SIDE = 16
"""Of the square of frequencies that a hash is made of."""

MOST_BITS = 30
"""Among the 4,545 images of Ozturk's set, ieee8023 and the first Radiography Database, 459 pairs of two collections have
one published name. 341 of these differ in at most 26 bits, all but two in at most 6; the nearest two images of different
people differ in 38. In the other 118 pairs Ozturk's image was cut to the lungs; these differ in 58 to 140 bits, as
different images do, and only their names tell. 48 pairs of other names lie within 22 bits."""

AT_LEAST = 256
"""Pixels of a side that an image is decoded with. With half as many the same pairs differ in up to 12 bits and not 6."""

_CHUNK = 1024


def near_duplicates(
    paths: Sequence[Source],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits = Limits(),
) -> list[tuple[int, int]]:
    """Pairs of images that look the same, as rows of ``paths``, the smaller one first.

    Args:
      paths: files; one that cannot be read is no duplicate of anything.
      workers: processes that decode; one a core and one more if None.
      progress: called with (done, total) after each image.
      limits: what one file may take.
    """
    rows, hashes = [], []
    jobs = (partial(perceptual_hash, stream.load_source(path, limits), limits) for path in paths)
    for row, image_hash in enumerate(stream.map_in_order(jobs, workers=workers)):
        if image_hash is not None:
            rows.append(row)
            hashes.append(image_hash)
        if progress:
            progress(row + 1, len(paths))
    signs = np.where(np.reshape(hashes, (-1, SIDE**2)), 1, -1).astype(np.float32)
    pairs = []
    for start in range(0, len(signs), _CHUNK):
        # The product of two hashes of ±1 is the bits that agree less those that do not.
        different = (SIDE**2 - signs[start : start + _CHUNK] @ signs.T) / 2
        first, second = np.nonzero(different <= MOST_BITS)
        pairs += [(rows[a], rows[b]) for a, b in zip((first + start).tolist(), second.tolist(), strict=True) if a < b]
    return pairs


def perceptual_hash(path: Source, limits: Limits = Limits()) -> np.ndarray | None:
    """The hash of an image, bool ``[256]``, or None where it cannot be read."""
    import imagehash  # here: it takes half a second to import, and only merging needs it

    decoded = stream.decode_source(path, DecodeJob(at_least=AT_LEAST, limits=limits))
    return np.ravel(imagehash.phash(Image.fromarray(decoded.arrays[0]), hash_size=SIDE).hash) if decoded.arrays else None


def identical_files(examples: Sequence[Example], limits: Limits = Limits()) -> dict[int, str]:
    """Row → digest of the file's bytes, for files that share both size and digest; no other file is read."""
    sizes, digests = {}, {}
    for row, example in enumerate(examples):
        with contextlib.suppress(OSError):  # decoding will say what is wrong with it
            path = example.path
            sizes[row] = path.size if isinstance(path, Member) else path.stat().st_size
    for row in _repeated(sizes):
        with contextlib.suppress(OSError, ImageError):
            if sizes[row]:
                path = examples[row].path
                data = path.read(limits) if isinstance(path, Member) else path.read_bytes()
                digests[row] = hashlib.sha256(data).hexdigest()
    return {row: digests[row] for row in _repeated(digests)}


def _repeated(values: Mapping[int, object]) -> list[int]:
    """The rows whose value another row has too."""
    counts = Counter(values.values())
    return [row for row, value in values.items() if counts[value] > 1]


def duplicates_of_earlier_sources(
    examples: Sequence[Example], rows: Sequence[int], digests: Mapping[int, str], near_duplicates: Sequence[tuple[int, int]]
) -> dict[int, str]:
    """Each of those rows that is an image of an earlier source too → its first source; duplicates within a source stay."""
    place = {row: index for index, row in enumerate(rows)}
    pairs = [(place[a], place[b]) for a, b in near_duplicates if a in place and b in place]
    components = components_of([(examples[row].image_key, digests.get(row)) for row in rows], pairs)
    first: dict[int, str] = {}
    for row, component in zip(rows, components, strict=True):
        first.setdefault(component, examples[row].source)
    sources = {row: first[component] for row, component in zip(rows, components, strict=True)}
    return {row: source for row, source in sources.items() if source != examples[row].source}
