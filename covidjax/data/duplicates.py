"""Whose film each is, and which films are the same: by published names, by bytes, by look.

Published films are re-encoded, resized and renamed. So each gets a perceptual hash of 256 bits (``imagehash.phash``: which
of the lowest frequencies of its cosine transform are above their median), and two films whose hashes differ in at most
``MOST_BITS`` bits are taken for copies.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from covidjax.data.folds import _components
from covidjax.data.readers.base import Example
from covidjax.images import stream
from covidjax.images.formats import Limits
from covidjax.images.workers import DecodeJob

SIDE = 16
"""Of the square of frequencies that a hash is made of."""

MOST_BITS = 30
"""Among the 4,545 films of Ozturk's set, ieee8023 and the first Radiography Database, 459 pairs of two collections have
one published name. 341 of these differ in at most 26 bits, all but two in at most 6; the nearest two films of different
people differ in 38. In the other 118 pairs Ozturk's film was cut to the lungs; these differ in 58 to 140 bits, as different
films do, and only their names tell. 48 pairs of other names lie within 22 bits."""

AT_LEAST = 256
"""Pixels of a side that a film is decoded with. With half as many the same copies differ in up to 12 bits and not 6."""

_CHUNK = 1024


def near_duplicates(
    paths: Sequence[Path],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    most: int = MOST_BITS,
    limits: Limits = Limits(),
) -> list[tuple[int, int]]:
    """Pairs of films that look like copies of each other, as rows of ``paths``, the smaller one first.

    Args:
      paths: files; what cannot be read is no copy of anything.
      workers: processes that decode; one a core if None.
      progress: told after each film.
      most: bits in which the hashes of two copies may differ.
      limits: what one file may take.
    """
    hashes = []
    jobs = (partial(perceptual_hash, path, limits) for path in paths)
    for done, found in enumerate(stream.map_in_order(jobs, workers=workers), 1):
        hashes.append(found)
        if progress:
            progress(done, len(paths))
    readable = np.asarray([row for row, found in enumerate(hashes) if found is not None], int)
    if not len(readable):
        return []
    signs = np.stack([np.where(hashes[row], 1, -1) for row in readable.tolist()]).astype(np.float32)
    pairs = []
    for first in range(0, len(signs), _CHUNK):
        # The product of two hashes of ±1 is the bits that agree less those that do not.
        different = (SIDE**2 - signs[first : first + _CHUNK] @ signs.T) / 2
        one, other = np.nonzero(different <= most)
        pairs += [(row, copy) for row, copy in zip((one + first).tolist(), other.tolist(), strict=True) if row < copy]
    return [(int(readable[row]), int(readable[copy])) for row, copy in pairs]


def perceptual_hash(path: Path, limits: Limits = Limits()) -> np.ndarray | None:
    """The hash of a film, bool ``[256]``, or None where it cannot be read."""
    import imagehash  # here: it takes half a second to import, and only merging needs it

    found = stream.decode_source(path, DecodeJob(at_least=AT_LEAST, limits=limits))
    return np.ravel(imagehash.phash(Image.fromarray(found.arrays[0]), hash_size=SIDE).hash) if found.arrays else None


def identical_files(examples: Sequence[Example]) -> dict[int, str]:
    """Row → digest of the file's bytes, for files that share both size and digest; no other file is read."""
    by_size = defaultdict(list)
    for row, example in enumerate(examples):
        try:
            by_size[example.path.stat().st_size].append(row)
        except OSError:
            continue  # decoding will say what is wrong with it
    digests = {}
    for size, rows in by_size.items():
        if size and len(rows) > 1:
            for row in rows:
                try:
                    digests[row] = hashlib.sha256(examples[row].path.read_bytes()).hexdigest()
                except OSError:
                    continue
    repeated = {digest for digest, count in Counter(digests.values()).items() if count > 1}
    return {row: digest for row, digest in digests.items() if digest in repeated}


def copies_of_earlier_sources(
    examples: Sequence[Example], rows: Sequence[int], contents: Mapping[int, str], alike: Sequence[tuple[int, int]]
) -> dict[int, str]:
    """Each of those rows that is a film of an earlier source too → its first source; copies within one source stay."""
    place = {row: at for at, row in enumerate(rows)}
    pairs = [(place[a], place[b]) for a, b in alike if a in place and b in place]
    components = _components(((examples[row].film, contents.get(row)) for row in rows), pairs)
    first: dict[int, str] = {}
    for row, component in zip(rows, components, strict=True):
        first.setdefault(component, examples[row].source)
    found = zip(rows, components, strict=True)
    return {row: first[component] for row, component in found if first[component] != examples[row].source}
