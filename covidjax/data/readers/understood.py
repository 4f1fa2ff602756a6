"""What is made of the names in several collections: the classes that there are, and what to say of other names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from covidjax.data.label_tables import may_be
from covidjax.data.readers.base import Collection
from covidjax.data.readers.table import not_there
from covidjax.errors import UserError
from covidjax.labels import ClassNames, options_for, shown


def check_names(collections: Sequence[Collection], names: ClassNames) -> None:
    """Note in the collections which names stand for no class, and what would take them; and which were mapped to a class
    while nothing is called so."""
    if names.unmet:
        there = sum((collection.known_names + collection.unknown_names for collection in collections), Counter[str]())
        unmet = ", ".join(sorted(names.unmet))
        collections[0].notes.append(f"--map names {unmet}, and nothing is called so; there are {shown(there)}")
    for collection in collections:
        if unknown := collection.unknown_names:
            taken = options_for(unknown, collection.known_names)
            collection.notes.append(f"{shown(unknown)} name no class, so images of nothing else were left out; {taken}")


def count_absent_once(collections: Sequence[Collection]) -> None:
    """Of one table of several collections, count the rows whose image is in none of them, and only once."""
    nowhere = set.intersection(*(collection.absent for collection in collections))
    for index, collection in enumerate(collections):
        for table, number in collection.absent:
            collection.left_out[not_there(table)] -= index > 0 or (table, number) not in nowhere


def classes_with_images(collections: Sequence[Collection], names: ClassNames) -> tuple[str, ...]:
    """The classes: those that were asked for, or those that there are images of.

    Raises:
      UserError: one that was asked for has no image, or fewer than two have any.
    """
    labels = {example.label for collection in collections for example in collection.examples}
    present = tuple(label for label in names.classes if label in labels)
    missing = [label for label in names.classes if label not in labels]
    if not missing or (len(present) > 1 and not names.asked):
        return present
    unknown = sum((collection.unknown_names for collection in collections), Counter[str]())
    known = sum((collection.known_names for collection in collections), Counter[str]())
    if names.asked:  # what is a class for others
        unknown += Counter({name: count for name, count in known.items() if names.of(name) not in names.classes})
    remedy = "add a source that has some, or prepare other --classes"
    if unknown and not names.asked:
        only = f"There are images of {present[0]} only" if present else "There is no image of a known class"
        raise UserError(f"{only}, and {shown(unknown)} name no class; {options_for(unknown, known)}.")
    if had := sum(_had(collection, names, missing[0]) for collection in collections):
        raise UserError(
            f"{had} images have {missing[0]}, and none of them can be taken, as each has a finding of another class too, "
            "or an uncertain one, or is no frontal X-ray; name fewer --classes, or join some with --map NAME=CLASS."
        )
    if unknown:
        remedy = f"{shown(unknown)} name no class: {options_for(unknown)}"
    raise UserError(f"There is no image of class {missing[0]}; {remedy}.")


def _had(collection: Collection, names: ClassNames, label: str) -> int:
    """How many images a class has of which none was taken."""
    certain = sum(count for name, count in collection.known_names.items() if names.of(name) == label)
    return certain + collection.left_out[may_be(label)]
