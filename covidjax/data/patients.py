"""Whose X-ray each is: by a table, by DICOM headers, by folders, by an expression, or by the names of published files.

A number that a hospital gave to a patient is hashed (see ``patient_key``) and goes no further: where it stands in the path
of an image, the dataset has a hash in its place (see ``written``).
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

from covidjax.data.patient_key import PatientKey
from covidjax.data.readers import names
from covidjax.data.readers.base import Collection, Example
from covidjax.data.tables import PathIndex, read_table
from covidjax.data.written import Numbers
from covidjax.errors import UsageError, UserError
from covidjax.images import dicom, stream
from covidjax.images.archives import LoadedMember, Member, Source, folder_name
from covidjax.images.formats import Limits, is_dicom

WAYS = ("auto", "dicom", "folder", "name")
"""What tells the patient; anything else is a regular expression."""

OWN = ("folder", "split", "table")
"""Layouts of whoever's X-rays; others are of published collections."""

MANY = 20
"""X-rays. A number that more than so many of a source carry, and more than half of its DICOM files, is no patient's: an
anonymiser put it there. ``ALL`` suffice where every file carries it."""

ALL = 5

_NO_NUMBER = frozenset(
    (
        *(
            "anon",
            "deidentified",
            "unknown",
            "unspecified",
            "undefined",
            "none",
            "null",
            "na",
            "nan",
            "noid",
            "nopatientid",
        ),
        *("patient", "patientid", "patid", "id", "mrn", "test", "default", "removed", "redacted", "hidden", "empty"),
    )
)
"""What stands in a header where there is no number, letters and digits alone."""

_IDS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
_LAST_ID = 0x0020000D
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_HEAD = 2**20
"""Bytes of a deflated file in which the ids are looked for, and most bytes that they are inflated to."""


class HeaderIds(NamedTuple):
    """What a DICOM header says of whose X-ray it is; empty where it says nothing that can be used."""

    patient: str
    issuer: str
    study: str


class Identity(NamedTuple):
    """The patient of an image."""

    patient: str
    """Key."""
    numbers: dict[str, str]
    """What hospitals call the patient → the key that this is hashed to."""


def check_way(way: str) -> None:
    """See that ``way`` is one of ``WAYS`` or a regular expression.

    Raises:
      UsageError: it is neither, or the expression does not have one group.
    """
    if way in WAYS:
        return
    choices = f"use one of {', '.join(WAYS)}, or an expression with one group, such as '(P[0-9]+)/'"
    try:
        groups = re.compile(way).groups
    except re.error as error:
        raise UsageError(f"--patient-from {way!r} is no regular expression ({error}); {choices}.") from None
    if groups != 1:
        raise UsageError(f"--patient-from {way!r} has {groups or 'no'} groups; {choices}.")


def identify(
    collections: Sequence[Collection],
    way: str = "auto",
    *,
    table: Path | None = None,
    key: PatientKey | None = None,
    limits: Limits = Limits(),
    tick: Callable[[], object] = lambda: None,
) -> list[Example]:
    """The examples of all collections, each with its patient.

    Args:
      collections: as their readers made them; what a user should know is added to their notes.
      way: one of ``WAYS``, or a regular expression with one group, which is searched in the path below the source.
      table: CSV with the columns ``path`` and ``patient``, which wins over ``way``.
      key: hashes the hospitals' numbers; the user's own if None.
      limits: what a file in an archive may take.
      tick: called now and then.

    Raises:
      UsageError: see ``check_way``.
      UserError: a table that names none of the images or gives one two patients, a way that tells no patient, a key that
        cannot be read or made.
    """
    check_way(way)
    key = key or PatientKey()
    listed = numbers_of_table(table, collections) if table else {}
    identified, known = [], 0
    for collection in collections:
        count = len(collection.examples)
        everything = dataclasses.replace(collection, examples=collection.examples + collection.undecided)
        identities = _by_way(everything, way, key, limits, tick)
        for row, example in enumerate(everything.examples):
            if number := listed.get(os.fspath(example.path)):
                patient = key.hash(_issuer(example.source), number)
                identities[row] = Identity(patient, identities[row].numbers | {number: patient})
        examples = _written(everything, identities)
        collection.undecided[:] = examples[count:]
        identified += examples[:count]
        known += sum(names.is_known(example.patient) for example in examples[:count])
    if way != "auto" and not known and identified:
        path = os.fspath(identified[0].path)
        raise UserError(
            f"--patient-from {way} tells the patient of none of the images, such as {path}; leave it out, or list the "
            "patients in a table for --patients."
        )
    return identified


def _written(collection: Collection, identities: Sequence[Identity]) -> list[Example]:
    """The examples of a collection, each with its patient and the path that is written."""
    numbers, examples = Numbers(of_image.numbers for of_image in identities), []
    for example, (patient, own) in zip(collection.examples, identities, strict=True):
        below = _below(collection, example).as_posix()
        written = numbers.without(below, own)
        if written != below:
            if names.is_one_file(patient):
                patient = names.file_patient(collection.source, PurePath(written))
            example = dataclasses.replace(example, written=os.fspath(collection.root / written))
        examples.append(dataclasses.replace(example, patient=patient))
    return examples


def _by_way(
    collection: Collection, way: str, key: PatientKey, limits: Limits, tick: Callable[[], object]
) -> list[Identity]:
    """The patient of each image of a collection."""
    if way in ("auto", "dicom"):
        return _by_header(collection, way, key, limits, tick)
    identities = []
    by_names = _patients_by_name(collection) if way == "name" else [None] * len(collection.examples)
    for example, patient in zip(collection.examples, by_names, strict=True):
        path, issuer = _below(collection, example), _issuer(example.source)
        number = None
        if way == "name" and not patient and (patient := names.published_patient(path.name)) and collection.layout in OWN:
            patient = key.hash(issuer, patient)  # the system of another hospital gives the same name to another patient
        elif way == "folder":
            number = _folder(collection, example.label, path)
        elif way != "name" and (match := re.search(way, path.as_posix())):
            number = match[1]
        if number:
            patient = key.hash(issuer, number)
        known = (number, names.number_in_table(example.patient))
        numbers = {number: key.hash(issuer, number) for number in known if number}
        identities.append(Identity(patient or names.file_patient(collection.source, path), numbers))
    return identities


def _patients_by_name(collection: Collection) -> list[str | None]:
    return names.patients_of_collection((example.path.name, example.label) for example in collection.examples)


def _by_header(
    collection: Collection, way: str, key: PatientKey, limits: Limits, tick: Callable[[], object]
) -> list[Identity]:
    """By DICOM headers; with ``auto`` also by what the reader of the collection knows."""
    headers: list[HeaderIds] = []
    jobs = (partial(read_ids, stream.load_source(example.path, limits), limits) for example in collection.examples)
    for header in stream.map_in_order(jobs):
        headers.append(header)
        tick()
    shared = _shared([(header.issuer, header.patient) for header in headers if header.patient])
    shared_studies = _shared([header.study for header in headers if header.study])
    if shared:
        collection.notes.append(
            f"{sum((header.issuer, header.patient) == shared for header in headers)} of {len(headers)} X-rays carry one "
            "PatientID, which an anonymiser may have left there: it is taken for none; say whose they are with --patients, "
            "or --patient-from folder"
        )
    issuers = {header.issuer for header in headers if header.issuer}
    # Some devices leave out who issued the number, which is the same then.
    default = issuers.pop() if len(issuers) == 1 else ""
    by_names = _patients_by_name(collection)
    identities = []
    for example, header, by_name in zip(collection.examples, headers, by_names, strict=True):
        patient = example.patient
        in_table = names.number_in_table(patient)
        if way == "dicom":
            patient = names.file_patient(collection.source, _below(collection, example))
        elif names.is_one_file(patient):
            patient = by_name or patient
        number, issuer, numbers = names.number_in_table(patient), _issuer(example.source), {}
        published = names.is_published(patient) and collection.layout not in OWN
        if not published and header.patient and (header.issuer, header.patient) != shared:
            of_header = f"issuer {header.issuer or default}" if header.issuer or default else issuer
            numbers[header.patient] = key.hash(of_header, header.patient)
            if not number:
                patient = numbers[header.patient]
        if in_table:  # also where the header wins
            numbers[in_table] = key.hash(_issuer(example.source), in_table)
        if number:
            patient = numbers[number]
        elif not numbers and names.is_one_file(patient) and header.study and header.study != shared_studies:
            patient = key.hash("study", header.study, study=True)
        identities.append(Identity(patient, numbers))
    return identities


def _issuer(source: str) -> str:
    """Stands for who gave a number where nothing says it: the same number in two sources is of two people."""
    return f"source {source}"


def _shared(values: Sequence[Hashable]) -> Any:
    """The value that too many of these are for it to be one patient's or one study's, or None."""
    value, count = next(iter(Counter(values).most_common(1)), (None, 0))
    return value if (count > MANY and 2 * count > len(values)) or (count > ALL and count == len(values)) else None


def _below(collection: Collection, example: Example) -> PurePath:
    return PurePath(os.path.relpath(os.fspath(example.path), collection.root))


def _folder(collection: Collection, label: str, path: PurePath) -> str | None:
    """The first folder below the class folder, since below a patient's lie those of studies and series; None where the
    image lies in the class folder itself."""
    parts = [part for part in path.parts[:-1] if part.lower() != "images"]
    classes = [place for place, part in enumerate(parts) if collection.names.of(folder_name(part)) or part == label]
    first = classes[-1] + 1 if classes else int(collection.layout in OWN)
    return next(iter(parts[first:]), None)


# Tables


def numbers_of_table(table: Path, collections: Sequence[Collection]) -> dict[str, str]:
    """Path of an image → patient's number, by a table with a path and a patient in each row, see ``data.tables``.

    Raises:
      UserError: it has no such columns, none of its paths is an image's, or one image has two patients.
    """
    rows = read_table(table)
    path_column, patient_column = rows.role("path"), rows.role("patient")
    if not path_column or not patient_column:
        raise rows.lacks([name for name, column in (("path", path_column), ("patient", patient_column)) if not column])
    paths = [example.path for collection in collections for example in collection.examples]
    index = PathIndex(paths, [collection.root for collection in collections], (row[path_column] for row in rows.rows))
    numbers: dict[str, str] = {}
    unused = 0
    for line, row in zip(rows.numbers, rows.rows, strict=True):
        found = index.find(row[path_column], table.absolute().parent)
        unused += len(found) != 1
        if len(found) == 1 and (number := row[patient_column]):
            path = os.fspath(paths[found[0]])
            if numbers.setdefault(path, number) != number:
                raise UserError(f"{table}, row {line}: {path} has two patients; remove one.")
    if not numbers and paths:
        listed = rows.rows[0][path_column] if rows.rows else "no row"
        raise UserError(
            f"{table} names none of the images: it has {listed}, an image is {os.fspath(paths[0])}; paths are relative to "
            "the table's folder or to SOURCE."
        )
    if unused:
        collections[0].notes.append(f"{unused} rows of {table.name} name no image that was found")
    return numbers


# DICOM headers


def read_ids(source: Source, limits: Limits = Limits()) -> HeaderIds:
    """What the header of a file says of whose X-ray it is. Never raises for its faults; what is no DICOM says nothing."""
    with suppress(Exception):  # of a damaged file pydicom raises nearly anything
        if isinstance(source, Member | LoadedMember):
            return _ids(io.BytesIO(source.read(limits)))
        if Path(source).is_file():  # opening a pipe would wait for ever
            with Path(source).open("rb") as file:
                return _ids(file)
    return HeaderIds("", "", "")


def _ids(file: IO[bytes]) -> HeaderIds:
    head = file.read(1024)
    if not is_dicom(head):
        return HeaderIds("", "", "")
    quiet: Any = dicom.load_pydicom()  # its warnings would quote the header
    reader = quiet.filereader
    options: Any = {
        "stop_when": _beyond,
        "specific_tags": [quiet.tag.Tag(name) for name in (*_IDS, "SpecificCharacterSet")],
    }
    if head[128:132] == b"DICM" and _DEFLATED in head[132:]:
        file.seek(144 + struct.unpack("<I", head[140:144])[0])
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(_HEAD), _HEAD)
        header = reader.read_dataset(io.BytesIO(inflated), False, True, **options)
    else:
        file.seek(0)
        header = reader.read_partial(file, force=True, **options)
    patient, issuer, study = (str(header.get(name) or "").strip(" \0\t\r\n") for name in _IDS)
    return HeaderIds(patient if _is_number(patient) else "", issuer, study)


def _beyond(tag: int, representation: object, length: int) -> bool:
    return tag > _LAST_ID


def _is_number(text: str) -> bool:
    """Whether a PatientID may be a patient's, and no placeholder."""
    plain = re.sub(r"[\W_]", "", text).casefold()
    same = len(set(plain)) <= 1 and plain[:1] in ("", "0", "x")
    return not (same or plain in _NO_NUMBER or (plain.startswith("anonym") and plain.isalpha()))
