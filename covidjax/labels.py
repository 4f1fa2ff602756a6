"""The classes, the kinds of lung mask, and the names that people give to classes."""

from __future__ import annotations

import re
import shlex
import types
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from covidjax.errors import UsageError

CLASSES = ("COVID-19", "No-Findings", "Pneumonia")
"""The classes of whoever names none: the study's."""

MASK_KINDS = ("fields", "lungs")
"""What lung masks show. ``fields``: the lungs as far as heart and diaphragm do not hide them (Montgomery, Shenzhen, the
Radiography Database, the synthetic images). ``lungs``: also what lies behind the heart (V7 Labs' masks of ieee8023). A
network learns each as an output of its own, from the images that have it."""

_ALIASES = {
    "COVID-19": ("covid", "covid19", "coronavirus", "sarscov2", "covidpositive", "covid19positive"),
    "No-Findings": ("nofinding", "nofindings", "normal", "healthy", "clear", "negative"),
    "Pneumonia": ("pneumonia", "viralpneumonia", "bacterialpneumonia", "otherpneumonia"),
    "Tuberculosis": ("tb", "tuberculosis"),
}
"""Names without case and punctuation that mean the same. Only those of ``CLASSES`` are understood unasked."""

MOST_NAMES = 12
"""That a message lists."""

UNDERSTOOD = "COVID-19 (covid, coronavirus, …), No-Findings (normal, healthy, …), Pneumonia (viral pneumonia, …)"
"""The names that are understood unasked, for messages."""


def plain(name: str) -> str:
    """A name without case, blanks and punctuation, by which spellings are compared; ``HIV+`` and ``HIV-`` stay two."""
    text = unicodedata.normalize("NFKC", name).strip().casefold()
    text = re.sub(r"(?<=\w)\+$", "positive", re.sub(r"(?<=\w)-$", "negative", text))
    return re.sub(r"[\W_]+", "", text) or text


def _meaning(key: str) -> str | None:
    return next((label for label, names in _ALIASES.items() if key in names), None)


def class_of(folder: str) -> str | None:
    """The class of ``CLASSES`` that a folder or a label stands for (``Covid-19``, ``covid``, ``NORMAL``, …), or None."""
    meaning = _meaning(plain(folder))
    return meaning if meaning in CLASSES else None


class ClassNames:
    """Which class the name of a folder, a label or a finding stands for.

    Attributes:
      asked: whether the classes were named; else those of them count of which there are images.
      classes: the classes, in the order of the labels.
      unmet: names of the mapping that nothing was called so far.
    """

    def __init__(self, classes: Sequence[str] = (), mapping: Mapping[str, str] = types.MappingProxyType({})):
        """Classes, and names that are mapped to them.

        Args:
          classes: at least two, or none: then ``CLASSES``, and whatever else the mapping names.
          mapping: name → class.

        Raises:
          UsageError: one class only, two that differ in case or punctuation only, a mapping to none of them.
        """
        self.asked = bool(classes)
        self.classes = tuple(classes) or CLASSES
        if len(self.classes) < 2:
            only = ", ".join(self.classes)
            raise UsageError(f"{only} is one class only; name at least two, such as {only},normal.")
        self._mapped: dict[str, str] = {}
        self.unmet: set[str] = set()
        self._check()
        for name, label in mapping.items():
            known = self.of(label) or label
            if known not in self.classes:
                if self.asked:
                    raise UsageError(f"--map {name}={label}: {label} is none of the classes {', '.join(self.classes)}.")
                self.classes = (*self.classes, label)
            self._mapped[plain(name)] = known
        self.unmet = set(mapping)
        self._check()

    def _check(self) -> None:
        """Look the classes up by their names without case and punctuation."""
        self._own = {plain(label): label for label in self.classes}
        if any("," in label for label in self.classes):
            raise UsageError(f"A class has a comma in its name: {'; '.join(self.classes)}; name it without one.")
        if not all(self._own) or len(self._own) < len(self.classes):
            raise UsageError(f"The classes {', '.join(self.classes)} are not all different and named; give each a name.")

    def own(self, name: str) -> str | None:
        """The class that a name was mapped to, or that is called so but for case and punctuation; None if neither."""
        key = plain(name)
        if key in self._mapped:
            self.unmet = {other for other in self.unmet if plain(other) != key}
            return self._mapped[key]
        return self._own.get(key)

    def of(self, name: str) -> str | None:
        """The class that a name stands for: as in ``own``, or by its meaning (``healthy`` is ``normal``). It may be one of
        ``CLASSES`` that was not asked for; None for a name that says nothing, or could be two of the classes."""
        mapped = self.own(name)
        if mapped or not (meaning := _meaning(plain(name))):
            return mapped
        same = [label for label in self.classes if _meaning(plain(label)) == meaning]
        if not same:
            return meaning if meaning in CLASSES else None
        return same[0] if len(same) == 1 else None

    def first(self, names: Iterable[str]) -> str | None:
        """The class that the first of several names of one thing stands for that stands for any."""
        return next((label for name in names if (label := self.of(name))), None)


def shown(names: Mapping[str, int]) -> str:
    """Names with their numbers of images, for messages: the most frequent first."""
    ordered = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return ", ".join(f"{name} ({count})" for name, count in ordered[:MOST_NAMES]) + more


def as_option(classes: Iterable[str]) -> str:
    """Classes as ``--classes`` takes them."""
    return shlex.quote(",".join(classes))


def options_for(unknown: Iterable[str], known: Iterable[str] = ()) -> str:
    """What would take names that stand for no class, for messages.

    Args:
      unknown: these names.
      known: other names beside them, which stand for classes.
    """
    names = list(dict.fromkeys([*unknown, *known]))
    may_be_classes = 2 <= len(names) <= MOST_NAMES and not any("," in name for name in names)
    classes = as_option(names) if may_be_classes else "A,B"
    mapped = f"--map {shlex.quote(names[0] + '=CLASS')}"
    return f"--classes {classes} takes names as they are, {mapped} takes one for a class; {UNDERSTOOD} are understood"
