"""What is made of the names in several collections: the classes that there are, and what to say of other names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from covidjax.data.readers.base import Collection
from covidjax.errors import UsageError, UserError
from covidjax.labels import ClassNames, options_for, shown


def check_names(collections: Sequence[Collection], names: ClassNames) -> None:
    """Note in each collection which names stand for no class, and what would take them.

    Raises:
      UsageError: a name was mapped to a class, and nothing is called so.
    """
    if names.unmet:
        there = sum((collection.known_names + collection.unknown_names for collection in collections), Counter[str]())
        raise UsageError(f"--map names {min(names.unmet)}, and nothing is called so; there are {shown(there)}.")
    for collection in collections:
        if unknown := collection.unknown_names:
            taken = options_for(unknown, collection.known_names)
            collection.notes.append(f"{shown(unknown)} name no class and were left out; {taken}")


def found_classes(collections: Sequence[Collection], names: ClassNames) -> tuple[str, ...]:
    """The classes that there are images of.

    Raises:
      UserError: fewer than two.
    """
    labels = {example.label for collection in collections for example in collection.examples}
    classes = tuple(label for label in names.classes if label in labels)
    if len(classes) > 1:
        return classes
    unknown = sum((collection.unknown_names for collection in collections), Counter[str]())
    known = sum((collection.known_names for collection in collections), Counter[str]())
    if unknown:
        only, others = ", ".join(classes), f"{shown(unknown)} name no class"
        raise UserError(f"There are images of {only} only, and {others}: {options_for(unknown, known)}.")
    missing = next(label for label in names.classes if label not in classes)
    raise UserError(f"There is no image of class {missing}; add a source that has some, or prepare other --classes.")
