"""Tables that say what images show, one's own and those of published collections, for ``prepare --table`` and ``score
--labels``: which image each row means, what was found on it, of whom it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from covidjax.data.tables import PathIndex, Table, is_frontal, read_table, read_text
from covidjax.errors import UserError
from covidjax.images.archives import Source
from covidjax.images.formats import SUFFIXES
from covidjax.labels import ClassNames

PNEUMONIA = frozenset(
    (
        *("Pneumonia", "Viral", "SARS", "MERS-CoV", "Influenza", "H1N1", "Varicella", "Herpes"),
        *("Bacterial", "Streptococcus", "Staphylococcus", "Klebsiella", "E.Coli", "Legionella", "Nocardia"),
        *("Mycoplasma", "Mycoplasma Bacterial Pneumonia", "Chlamydophila"),
        *("Fungal", "Pneumocystis", "Aspergillosis", "Lipoid", "Aspiration"),
    )
)
"""Findings of ieee8023 that are pneumonias other than COVID-19."""

OPACITY, NO_OPACITY = ("Lung Opacity", "Pneumonia"), ("No Lung Opacity",)
"""Findings of RSNA's ``Target``: what its challenge calls pneumonia; and what may be normal or not."""

SEVERAL, NO_CLASS = "findings of two classes", "no finding that names a class"
"""Why a row of a table has no class."""

RSNA = ("stage_2_detailed_class_info.csv", "stage_2_train_labels.csv")
"""RSNA's two tables, which belong together."""

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "holdout"),
}
"""What publishers call the parts of their split."""


def split_of(name: str) -> str:
    """``train``, ``val`` or ``test`` for a folder or a table that is called so or begins so; empty for any other."""
    words = re.split(r"[-_. ]", name.lower())
    return next((split for split, names in SPLITS.items() if words[0] in names), "")


def may_be(label: str) -> str:
    """Why an image has no class where one may or may not be there."""
    return f"{label} uncertain (-1)"


class Finding(NamedTuple):
    """Something that a row says of an image."""

    names: tuple[str, ...]
    """What it is called, the most particular name first."""
    uncertain: bool = False
    own_names: bool = False
    """Whether it is only what is mapped, or called, so: the usual meaning of the name is not what is meant."""

    def class_of(self, classes: ClassNames) -> str | None:
        """The class that it stands for, or None."""
        return next(filter(None, map(classes.own, self.names)), None) if self.own_names else classes.first(self.names)


@dataclass(frozen=True)
class LabelRow:
    """What a table says of one image."""

    table: str
    """Its file."""
    number: int
    """The line of the table."""
    path: str
    findings: tuple[Finding, ...]
    patient: str = ""
    """As the table has it, or with its collection before it, such as ``nih:00000013``."""
    source: str = ""
    split: str = ""
    view: str = ""
    age: str = ""
    """Whole years, see ``images.person``."""
    sex: str = ""
    left_out: str = ""
    """Why the image is none that is wanted, whatever was found on it."""
    published: bool = False
    """Whether the table is a published collection's, whose names mean the same image everywhere."""

    @property
    def label(self) -> str:
        """The findings as one text."""
        return "|".join(finding.names[0] for finding in self.findings if not finding.uncertain)

    def classes(self, names: ClassNames) -> list[str]:
        """The classes that the findings stand for; those that were asked for where there is any."""
        labels = {finding.class_of(names): None for finding in self.findings if not finding.uncertain}
        known = [label for label in labels if label]
        return [label for label in known if label in names.classes] or known[:1]

    def decide(self, names: ClassNames) -> tuple[str | None, str]:
        """The class of the image, or None and why it has none: it is not wanted, two classes were found on it, one may or
        may not be there, or nothing that names a class."""
        certain = self.classes(names)
        uncertain = {finding.class_of(names) for finding in self.findings if finding.uncertain} - {*certain, None}
        if self.left_out:
            return None, self.left_out
        if len(certain) > 1:
            return None, SEVERAL
        for label in names.classes:
            if label in uncertain:
                return None, may_be(label)
        return (certain[0], "") if certain else (None, NO_CLASS)


def decide(rows: Sequence[LabelRow], names: ClassNames) -> tuple[str | None, str]:
    """As ``LabelRow.decide``, of an image that has several rows, such as one a finding."""
    decisions = [row.decide(names) for row in rows]
    labels = list(dict.fromkeys(label for label, _ in decisions if label))
    against = [reason for label, reason in decisions if label is None and reason != NO_CLASS]
    if len(labels) > 1 or against:
        return None, against[0] if against else SEVERAL
    return (labels[0], "") if labels else (None, NO_CLASS)


def kind_of(table: Table) -> str:
    """Whose table it is, by its columns: a layout's name, or ``table`` for one of one's own."""
    for kind, columns in _KINDS.items():
        if all(table.column(*alternatives.split("/")) for alternatives in columns):
            return "table" if kind == "rsna" and table.role("path") else kind
    return "table"


_KINDS = {
    "nih": ("imageindex", "findinglabels"),
    "chexpert": ("path", "frontallateral"),
    "ieee8023": ("filename", "finding", "view", "modality", "patientid"),
    "rsna": ("patientid", "target/class"),
}


def read_labels(source: Source, beside: Mapping[str, Source] = {}) -> tuple[str, list[LabelRow]]:
    """What a table says, and whose it is: ``nih``, ``rsna``, ``chexpert``, ``covidx``, ``ieee8023`` or ``table``.

    Args:
      source: the table.
      beside: RSNA's tables in its folder, by name.

    Raises:
      UserError: it cannot be read, or has no column of paths or labels.
    """
    name = PurePosixPath(os.fspath(source)).name
    if name.lower().endswith(".txt") and (rows := _covidx(source)):
        return "covidx", rows
    table = read_table(source)
    kind = kind_of(table)
    if kind == "rsna":
        return kind, _rsna(table, beside)
    return kind, [*_READERS.get(kind, _own)(table)]


def _own(table: Table) -> Iterator[LabelRow]:
    """One's own: a path, and a label or several parted by ``|``."""
    path, label = table.role("path"), table.role("label")
    if path is None or label is None:
        raise table.lacks([name for name, column in (("label", label), ("path", path)) if column is None])
    others = [table.role(role) for role in ("patient", "source", "split", "view")]
    for number, row in zip(table.numbers, table.rows, strict=True):
        patient, source, split, view = (row[column] if column else "" for column in others)
        left_out = f"view {view}" if view and not is_frontal(view) else ""
        found, split = _several(row[label]), split_of(split) or split
        person = table.person(row)
        yield LabelRow(table.path, number, row[path], found, patient, source, split, view, **person, left_out=left_out)


def _several(label: str) -> tuple[Finding, ...]:
    """The findings of a label: ``A|B`` is two."""
    return tuple(Finding((part.strip(),)) for part in label.split("|") if part.strip())


def _nih(table: Table) -> Iterator[LabelRow]:
    """NIH ChestX-ray14's Data_Entry_2017.csv."""
    path, label = table.require("Image Index", "Finding Labels")
    patient, view = table.column("patientid"), table.column("viewposition")
    for number, row in zip(table.numbers, table.rows, strict=True):
        # As its file names have it.
        key = f"nih:{row[patient].zfill(8)}" if patient and row[patient] else ""
        about = table.path, number, row[path], _several(row[label]), key
        yield LabelRow(*about, view=row[view] if view else "", **table.person(row), published=True)


def _chexpert(table: Table) -> Iterator[LabelRow]:
    """CheXpert's train.csv and valid.csv: a column a finding, 1 if it is there, 0 if not, -1 if that is uncertain."""
    path, side = table.require("Path", "Frontal/Lateral")
    projection = table.column("appa")
    about = {path, side, projection, table.column("sex"), table.column("age")}
    findings = [column for column in table.columns if column not in about and column]
    split = split_of(PurePosixPath(table.path).name)
    for number, row in zip(table.numbers, table.rows, strict=True):
        values = {column: _number(row[column]) for column in findings}
        found = [Finding((column,), value == -1) for column, value in values.items() if value in (1, -1)]
        patient = next((part for part in row[path].replace("\\", "/").split("/") if part.startswith("patient")), "")
        lateral = not is_frontal(row[side])
        view = row[side] if lateral or not projection or not row[projection] else row[projection]
        yield LabelRow(
            *(table.path, number, row[path], tuple(found), f"chexpert:{patient}" if patient else ""),
            split=split,
            view=view,
            **table.person(row),
            left_out=f"view {view or 'not stated'}" if lateral else "",
            published=True,
        )


def ieee8023_rows(table: Table) -> Iterator[LabelRow]:
    """metadata.csv of ieee8023."""
    columns = table.require("filename", "finding", "view", "modality", "patientid")
    for number, row in zip(table.numbers, table.rows, strict=True):
        path, finding, view, modality, patient = (row[column] for column in columns)
        left_out = ""
        if modality.lower() not in ("x-ray", "xray"):
            left_out = f"modality {modality or 'not stated'}"
        elif not is_frontal(view):
            left_out = f"view {view or 'not stated'}"
        names = tuple(filter(None, (finding, class_of_finding(finding))))
        found = (Finding(names),) if names else ()
        yield LabelRow(
            *(table.path, number, path, found, f"ieee8023:{patient}" if patient else ""),
            view=view,
            **table.person(row),
            left_out=left_out,
            published=True,
        )


def class_of_finding(finding: str) -> str | None:
    """The class of a ``finding`` of ieee8023, in the spelling of 2020 (``COVID-19, ARDS``) or the later one
    (``Pneumonia/Viral/SARS``).

    Returns None for what is no pneumonia, or nothing yet (``ARDS``, ``Tuberculosis``, ``todo``).
    """
    parts = [part.strip() for part in finding.replace("/", ",").split(",")]
    if "COVID-19" in parts:
        return "COVID-19"
    if parts == ["No Finding"]:
        return "No-Findings"
    return "Pneumonia" if parts[0] in PNEUMONIA else None


def _rsna(table: Table, beside: Mapping[str, Source]) -> list[LabelRow]:
    """RSNA's stage_2_train_labels.csv (a row a box, ``Target``) and stage_2_detailed_class_info.csv (``class``), either of
    which is completed by the other: together they tell normal images from others without an opacity."""
    (patient,) = table.require("patientId")
    others = map(read_table, beside.values())
    tables = [
        table,
        *(other for other in others if other.path != table.path and kind_of(other) == "rsna"),
    ]
    findings: dict[str, dict[tuple[str, ...], None]] = {}
    numbers: dict[str, int] = {}
    for part in tables:
        key, detail, target = part.column("patientid"), part.column("class"), part.column("target")
        for number, row in zip(part.numbers, part.rows, strict=True):
            names: tuple[str, ...] = ()
            if detail and row[detail]:
                names = OPACITY if row[detail] == OPACITY[0] else (row[detail],)
            elif target and row[target]:
                names = OPACITY if _number(row[target]) == 1 else NO_OPACITY
            image = row[key or patient]
            findings.setdefault(image, {})[names] = None
            numbers.setdefault(image, number)
    rows = []
    for image, named in findings.items():
        if len(named) > 1:
            named.pop(NO_OPACITY, None)  # the detailed class says more
        found = tuple(Finding(names) for names in named if names)
        rows.append(LabelRow(table.path, numbers[image], image, found, f"rsna:{image}", published=True))
    return rows


def _number(text: str) -> float | None:
    """A number of a table, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _covidx(source: Source) -> list[LabelRow]:
    """COVIDx's train.txt and its like: ``patientid filename class [source]``, parted by blanks, without a header; no row if
    it is none. ``positive`` and ``negative`` of its later versions mean COVID-19 and anything else."""
    name, rows = os.fspath(source), []
    split = split_of(PurePosixPath(name).name)
    for number, line in enumerate(read_text(source).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        ends = [index for index, word in enumerate(words) if index and PurePosixPath(word.lower()).suffix in SUFFIXES]
        if not ends or not 1 <= len(words) - ends[-1] - 1 <= 2:
            return []
        path, (label, *origin) = " ".join(words[1 : ends[-1] + 1]), words[ends[-1] + 1 :]
        # Numbers of patients of one of its sources are no others' numbers.
        collection = {"cohen": "ieee8023", "rsna": "rsna"}.get("".join(origin), ":".join(("covidx", *origin)))
        names = (label, "COVID-19") if label == "positive" else (label,)
        finding = Finding(names, own_names=label == "negative")
        rows.append(LabelRow(name, number, path, (finding,), f"{collection}:{words[0]}", split=split, published=True))
    return rows


_READERS = {"nih": _nih, "chexpert": _chexpert, "ieee8023": ieee8023_rows}


def tables_beside(table: Source, files: Mapping[str, Source]) -> dict[str, Source]:
    """RSNA's tables beside a table, by name, where they are there.

    Args:
      table: of a folder, or of an archive, whose other files are ``files`` then.
      files: by name.
    """
    folder = Path(table).parent
    if not folder.is_dir():
        return {name: files[name] for name in RSNA if name in files}
    return {name: folder / name for name in RSNA if (folder / name).is_file()}


def find_image(index: PathIndex, row: LabelRow) -> list[int]:
    """The files that a row may mean, see ``PathIndex.find``; COVIDx's lie in a folder that is called as the table."""
    folder = Path(row.table).parent
    if row.split and row.published and len(found := index.find(f"{row.split}/{row.path}", folder)) == 1:
        return found
    return index.find(row.path, folder)


def no_match(tables: Sequence[Source], rows: Sequence[LabelRow], images: Sequence[Source], where: str) -> UserError:
    """The error of tables that list none of the images."""
    named = " and ".join(os.fspath(table) for table in tables)
    if not rows:
        return UserError(f"{named} lists no image; name a table that has a row for each.")
    if not images:
        return UserError(
            f"{where} holds no image of a known class: it holds none at all, and {named} lists {rows[0].path}."
        )
    return UserError(
        f"No path in {named} names an image of {where}: it lists, for example, {rows[0].path}, and there is "
        f"{os.fspath(images[0])}; write the paths as they are from {where} or from the table's folder."
    )
