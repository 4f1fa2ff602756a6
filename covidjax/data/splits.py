"""The split that a collection was published with, kept as the folds of a dataset."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence

from covidjax.data.readers.base import Example
from covidjax.errors import UserError

_ORDER = {"test": 0, "val": 1, "train": 3}


def keep_split(examples: Sequence[Example]) -> tuple[list[str], list[int], str]:
    """The parts of the publisher's split in the order of their folds, ``test`` first and ``train`` last; the fold of each
    image; and a warning where patients stand in several parts, else an empty text.

    Raises:
      UserError: an image of no part, or one part only.
    """
    splits = sorted({example.split for example in examples}, key=lambda split: (_ORDER.get(split, 2), split))
    if "" in splits:
        path = next(os.fspath(example.path) for example in examples if not example.split)
        raise UserError(f"{path} belongs to no part of a split (train, val or test); leave --keep-split out.")
    if len(splits) < 2:
        raise UserError(f"All images belong to {splits[0]}, which is no split; leave --keep-split out.")
    return splits, [splits.index(example.split) for example in examples], _straddling(examples)


def _straddling(examples: Sequence[Example]) -> str:
    parts, images = defaultdict(set), Counter[str]()
    for example in examples:
        parts[example.patient].add(example.split)
        images[example.patient] += 1
    several = [patient for patient, of_patient in parts.items() if len(of_patient) > 1]
    if not several:
        return ""
    return (
        f"{len(several)} patients ({sum(images[patient] for patient in several)} images) stand in several parts of the "
        "publisher's split, so held-out figures come out too good; without --keep-split each patient is in one fold"
    )
