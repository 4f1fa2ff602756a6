"""Which images are the same: by their bytes or by their look.

Images are re-encoded, resized and renamed. So each gets a perceptual hash of 256 bits (``imagehash.phash``: which of the
lowest frequencies of its cosine transform are above their median), and two images of different sources whose hashes differ
in at most ``MOST_BITS`` bits, and whose thumbnails agree, are taken for duplicates, two of one source or of two classes if
the hashes differ in at most ``SAME_BITS``. A name alone makes no duplicate.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from covidjax.data.folds import components_of
from covidjax.data.readers.base import Example
from covidjax.errors import UserError
from covidjax.images import stream
from covidjax.images.archives import Source
from covidjax.images.formats import Limits
from covidjax.images.workers import DecodeJob

SIDE = 16
"""Of the square of frequencies that a hash is made of."""

MOST_BITS = 30
"""Among the 4,545 images of Ozturk's set, ieee8023 and the first Radiography Database, 459 pairs of two collections have
one published name. 341 of these differ in at most 26 bits, all but two in at most 6; the nearest two images of different
people differ in 38. In the other 118 pairs Ozturk's image was cut to the lungs; these differ in 58 to 140 bits, as
different images do, and only their names tell. 48 pairs of other names lie within 22 bits."""

SAME_BITS = 14
"""Of two images of one source, whose pairs grow with the square of its images, or under two labels, which is a grave thing
to say. In those three collections 13 pairs of one source are the same X-ray under two patients' names, 12 of
them within 14 bits. Of 6,000 synthetic X-rays, which are more alike than real ones, no two people's differ in less than 18
bits, and 1,463 pairs in at most 30."""

THUMBNAIL = 32
"""Pixels of a side."""

AGREEING = 0.98
"""Least correlation of the thumbnails of two images of different sources whose hashes differ in more than ``SAME_BITS``: of
the real duplicates none has less than 0.981, of the 1,463 pairs of different synthetic X-rays 43 have more."""

AT_LEAST = 256
"""Pixels of a side that an image is decoded with. With half as many the same pairs differ in up to 12 bits and not 6."""

MOST_SHOWN = 5
"""Images under several labels that an error lists."""

_BLOCK = 2**25
"""Pairs that are compared at a time: 128 MiB."""

Pairs = Mapping[tuple[int, int], int]
"""Two rows, the smaller one first → bits in which their hashes differ."""


class Fingerprints(NamedTuple):
    """What images are compared by."""

    digests: dict[int, str]
    """Row → SHA-256 of the file's bytes, where another file has the same."""
    pairs: Pairs
    """Images that look the same."""

    @property
    def same(self) -> list[tuple[int, int]]:
        """The pairs that surely are the same image."""
        return [pair for pair, bits in self.pairs.items() if bits <= SAME_BITS]


def compare(
    examples: Sequence[Example],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits = Limits(),
) -> Fingerprints:
    """Decode every image and find those that are the same.

    Args:
      examples: images; one that cannot be read is no duplicate of anything.
      workers: processes that decode; one a core and one more if None.
      progress: called with (done, total) after each image.
      limits: what one file may take.
    """
    rows, hashes, thumbnails, digests = [], [], [], {}
    paths = (stream.load_source(example.path, limits) for example in examples)
    jobs = (partial(_fingerprint, path, limits) for path in paths)
    for row, fingerprint in enumerate(stream.map_in_order(jobs, workers=workers)):
        if fingerprint:
            rows.append(row)
            digests[row], image_hash, thumbnail = fingerprint
            hashes.append(image_hash)
            thumbnails.append(thumbnail)
        if progress:
            progress(row + 1, len(examples))
    counts = Counter(digests.values())
    same = {row: digest for row, digest in digests.items() if counts[digest] > 1}
    return Fingerprints(same, _pairs(examples, rows, np.reshape(hashes, (-1, SIDE**2)).astype(bool), thumbnails))


def _pairs(examples: Sequence[Example], rows: Sequence[int], hashes: np.ndarray, thumbnails: Sequence[np.ndarray]) -> Pairs:
    """The pairs that look the same. Of many images of one hash, source and label each is paired with the first only."""
    first: dict[tuple[bytes, str, str], int] = {}
    pairs = {}
    for index, row in enumerate(rows):
        key = (hashes[index].tobytes(), examples[row].source, examples[row].label)
        if first.setdefault(key, index) != index:
            pairs[rows[first[key]], row] = 0
    distinct = list(first.values())
    for (a, b), bits in alike(hashes[distinct]).items():
        pair = rows[distinct[a]], rows[distinct[b]]
        apart = examples[pair[0]].source != examples[pair[1]].source
        if bits <= SAME_BITS or (apart and _correlation(thumbnails[distinct[a]], thumbnails[distinct[b]]) >= AGREEING):
            pairs[pair] = bits
    return pairs


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = (thumbnail - thumbnail.mean() for thumbnail in (first.astype(np.float32), second.astype(np.float32)))
    return float((first * second).sum() / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-6))


def alike(hashes: np.ndarray) -> Pairs:
    """The pairs of hashes, bool ``[N, 256]``, that differ in at most ``MOST_BITS`` bits. It takes time as N²: a minute on
    two cores for 100,000."""
    signs = np.where(hashes, 1, -1).astype(np.float32)
    pairs, start = {}, 0
    while start < len(signs):
        stop = start + max(1, _BLOCK // (len(signs) - start))
        # The product of two hashes of ±1 is the bits that agree less those that do not.
        agree = signs[start:stop] @ signs[start:].T
        for a, b in zip(*np.nonzero(agree >= SIDE**2 - 2 * MOST_BITS), strict=True):
            if a < b:
                pairs[start + int(a), start + int(b)] = int(SIDE**2 - agree[a, b]) // 2
        start = stop
    return pairs


def _fingerprint(path: Source, limits: Limits) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The file's digest, its image's hash and a thumbnail, uint8 ``[32, 32]``; None where it cannot be read."""
    import imagehash  # here: it takes half a second to import, and only preparing needs it

    decoded = stream.decode_source(path, DecodeJob(at_least=AT_LEAST, digest=True, limits=limits))
    if not decoded.arrays:
        return None
    image = Image.fromarray(decoded.arrays[0])
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))
    return decoded.sha256, np.ravel(imagehash.phash(image, hash_size=SIDE).hash), thumbnail


def duplicates_of_earlier_sources(
    examples: Sequence[Example], rows: Sequence[int], fingerprints: Fingerprints
) -> dict[int, str]:
    """Each of those rows that is an image of an earlier source too → its first source; duplicates within a source stay, and
    so does what only resembles an image of another class."""
    pairs = [
        (a, b) for (a, b), bits in fingerprints.pairs.items() if bits <= SAME_BITS or examples[a].label == examples[b].label
    ]
    first: dict[int, str] = {}
    components = _components(rows, fingerprints.digests, pairs)
    for row, component in components.items():
        first.setdefault(component, examples[row].source)
    sources = {row: first[component] for row, component in components.items()}
    return {row: source for row, source in sources.items() if source != examples[row].source}


def contradictions(examples: Sequence[Example], rows: Sequence[int], fingerprints: Fingerprints) -> list[list[int]]:
    """Those of the rows that hold one image under several labels: the rows of each such image."""
    groups = defaultdict(list)
    for row, component in _components(rows, fingerprints.digests, fingerprints.same).items():
        groups[component].append(row)
    return [group for group in groups.values() if len({examples[row].label for row in group}) > 1]


def refuse(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> UserError:
    """The error of images that stand under several labels."""
    shown = []
    for group in groups[:MOST_SHOWN]:
        of_label = {examples[row].label: os.fspath(examples[row].path) for row in reversed(group)}  # the first of each
        shown.append("; ".join(f"{path} ({label})" for label, path in sorted(of_label.items())))
    listed = " | ".join(shown) + " | …" * (len(groups) > MOST_SHOWN)
    number = "1 image stands" if len(groups) == 1 else f"{len(groups)} images stand"
    return UserError(
        f"{number} under several labels: {listed}; correct the labels, or give --duplicates drop to leave all their copies "
        "out, or --duplicates keep to take them all."
    )


def _components(rows: Sequence[int], digests: Mapping[int, str], pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The connected component of each of those rows."""
    place = {row: index for index, row in enumerate(rows)}
    inner = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
    return dict(zip(rows, components_of([(digests.get(row),) for row in rows], inner), strict=True))
