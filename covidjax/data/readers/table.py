"""Images that tables list: one's own, and those of NIH ChestX-ray14, RSNA, CheXpert and COVIDx as they were published."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from covidjax.data.label_tables import (
    RSNA,
    SEVERAL,
    LabelRow,
    decide,
    find_image,
    no_match,
    read_labels,
    split_of,
    tables_beside,
)
from covidjax.data.readers.base import NO_IMAGE, Collection, Example, Tree
from covidjax.data.readers.names import table_patient
from covidjax.data.tables import SUFFIXES_OF_TABLES, PathIndex, read_text
from covidjax.errors import UserError
from covidjax.images.archives import Member, Source


def tables_of(tree: Tree, layout: str) -> list[Source]:
    """The tables right in a folder that belong to a layout."""
    tables = {name: file for name, file in sorted(tree.files.items()) if name.lower().endswith(SUFFIXES_OF_TABLES)}
    if layout == "covidx":
        tables = {name: file for name, file in tables.items() if name.lower().endswith(".txt") and split_of(name)}
    if layout == "rsna":  # the one brings the other
        tables = {name: file for name, file in tables.items() if name in RSNA}
    found = [file for file in tables.values() if _kinds(tree).get(file) == layout]
    return found[:1] if layout == "rsna" else found


def may_list_images(tree: Tree) -> bool:
    """Whether a table lies right in a folder; a text is one only where it reads as a table of images."""
    named = {file: name.lower() for name, file in tree.files.items() if name.lower().endswith(SUFFIXES_OF_TABLES)}
    return any(not name.endswith(".txt") or file in _kinds(tree) for file, name in named.items())


def read_layout(collection: Collection, layout: str) -> None:
    """The images of a folder that its own tables list.

    Raises:
      UserError: no table of this layout is there, or several of one's own are, or as ``read_tables``.
    """
    tables = tables_of(collection.tree, layout)
    if not tables:
        raise UserError(f"{collection.root} has no table of layout {layout}; name the table with --table.")
    if layout == "table" and len(tables) > 1:
        named = " and ".join(os.fspath(table) for table in tables)
        raise UserError(f"{collection.root} has several tables, {named}; name one with --table.")
    read_tables(collection, tables)


@functools.lru_cache(maxsize=1)  # tables have up to a quarter of a million rows
def _kinds(tree: Tree) -> dict[Source, str]:
    """Whose each table right in a folder is; what cannot be read as a table of images is none."""
    kinds: dict[Source, str] = {}
    for name, file in tree.files.items():
        if name.lower().endswith(SUFFIXES_OF_TABLES):
            with contextlib.suppress(UserError):
                kind, rows = read_labels(file)
                if rows:
                    kinds[file] = kind
    return kinds


def problem_of(tree: Tree) -> str:
    """Why the first CSV file right in a folder is no table of images; empty where there is none."""
    for name, file in sorted(tree.files.items()):
        if name.lower().endswith(SUFFIXES_OF_TABLES) and not name.lower().endswith(".txt"):
            try:
                read_labels(file, tables_beside(file, tree.files))
            except UserError as error:
                return str(error).removesuffix(".")
    return ""


def not_there(table: str) -> str:
    """Why a row of a table has no image."""
    return f"not there, but listed in {Path(table).name}"


def read_tables(collection: Collection, tables: Sequence[Source]) -> None:
    """The images that tables list, which are found by the paths below the tables' folder or the collection's.

    Raises:
      UserError: a table that cannot be read or has no column that is needed, or whose paths name no image.
    """
    images = collection.list_images(collection.tree)
    read = [name for name in collection.tree.files if name.lower().endswith(SUFFIXES_OF_TABLES)]
    collection.left_out[NO_IMAGE] -= len(read)
    rows: list[LabelRow] = []
    for table in tables:
        kind, listed = read_labels(table, tables_beside(table, collection.tree.files))
        collection.layout = kind
        rows += listed
    index = PathIndex(images, [collection.root], (row.path for row in rows))
    rows_of: defaultdict[int, list[LabelRow]] = defaultdict(list)
    for row in rows:
        found = find_image(index, row)
        if len(found) == 1:
            rows_of[found[0]].append(row)
        elif found:
            collection.left_out[f"several files have the name that is in {Path(row.table).name}"] += 1
        else:
            collection.absent.add((row.table, row.number))
            collection.left_out[not_there(row.table)] += 1
    if not rows_of:
        raise no_match(tables, rows, images, str(collection.root))
    test = _nih_test_list(collection) if collection.layout == "nih" else set()
    for number, of_file in sorted(rows_of.items()):
        _add(collection, images[number], of_file, test)
    collection.left_out["not listed in the table"] += len(images) - len(rows_of)
    collection.left_out["listed twice"] += sum(len(of_file) - 1 for of_file in rows_of.values())


def _add(collection: Collection, path: Path | Member, rows: Sequence[LabelRow], test: set[str]) -> None:
    """Add an image by what its rows say, or count why not."""
    classes, row = collection.names, rows[0]
    label, reason = decide(rows, classes)
    for name in dict.fromkeys(finding.names[0] for row in rows for finding in row.findings if not finding.uncertain):
        known = any(finding.class_of(classes) for row in rows for finding in row.findings if finding.names[0] == name)
        (collection.known_names if known else collection.unknown_names)[name] += 1
    patient, split = row.patient, row.split
    if patient and not row.published:
        patient = table_patient(patient)
    if label is None:
        collection.left_out[reason] += 1
        if reason == SEVERAL:
            labels = " and ".join(dict.fromkeys(row.label for row in rows))
            patient = patient or collection.file_patient(path)
            collection.undecided.append(Example(path, labels, patient, collection.source))
        return
    name, source = path.name, row.source or collection.source
    if test:
        split = "test" if name in test else "train"
    # The name of every second file of CheXpert is view1_frontal.jpg.
    published = name if row.published and collection.layout != "chexpert" else None
    about = {"source": source, "view": row.view, "split": split, "age": row.age, "sex": row.sex}
    collection.add(path, label, published=published, patient=patient, **about)


def _nih_test_list(collection: Collection) -> set[str]:
    """The names of NIH's test_list.txt, where it is there."""
    file = collection.tree.files.get("test_list.txt")
    return {line.strip() for line in read_text(file).splitlines() if line.strip()} if file else set()
