"""File names and paths as a dataset has them: a hash in place of a patient's number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

SHORTEST = 3
"""Letters and digits of a number that is replaced: shorter ones stand in names by chance."""

MOST_WORDS = 6
"""Of a number that a damaged file's path is searched for."""

HASH = 8
"""Digits of its hash that stand for it."""


class Numbers:
    """The numbers of the patients of a source, kept in memory only.

    Args:
      numbers: number → key that it was hashed to, of each image.
    """

    def __init__(self, numbers: Iterable[Mapping[str, str]]):
        self._known = {_plain(number): (number, key) for of_image in numbers for number, key in of_image.items()}

    def without(self, path: str, numbers: Mapping[str, str]) -> str:
        """A path with the first digits of its hash in place of each number, whatever the case of its letters and whatever
        parts its letters from its digits; a path without a number as it is.

        Args:
          path: with ``/`` between its parts, below the source.
          numbers: those of the image. A damaged file tells none, so one of any other image is replaced too where it stands
            in the path in words of its own.
        """
        replaced = dict(numbers)
        if self._known and not replaced:
            replaced = dict(self._known[words] for words in _words(path) if words in self._known)
        plain = _plain(path)
        replaced = {
            number: key for number, key in replaced.items() if len(_plain(number)) >= SHORTEST and _plain(number) in plain
        }
        if not replaced:
            return path
        longest_first = sorted(replaced, key=len, reverse=True)
        hashes = [replaced[number].rpartition(":")[2][:HASH] for number in longest_first]
        pattern = "|".join(f"({_pattern(number)})" for number in longest_first)
        text = unicodedata.normalize("NFC", path)
        written = re.sub(pattern, lambda match: hashes[(match.lastindex or 1) - 1], text, flags=re.IGNORECASE)
        return path if written == text else written


def _words(path: str) -> Iterator[str]:
    """The words of each part of a path, and words that stand beside each other, as ``_plain`` makes them."""
    for part in path.split("/"):
        words = [_plain(word) for word in re.split(r"[\W_]+", part)]
        for start in range(len(words)):
            yield from ("".join(words[start:end]) for end in range(start + 1, min(start + MOST_WORDS, len(words)) + 1))


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFC", text)).casefold()


def _pattern(number: str) -> str:
    """Finds a number in a path, in one part of it unless the number has several."""
    runs = re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFC", number))
    between = r"[\W_]*" if "/" in number else r"(?:[^\w/]|_)*"
    return between.join(map(re.escape, runs))
