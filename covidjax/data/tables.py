"""Tables as people have them: any common encoding and delimiter, any spelling of headers, and the files they name."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covidjax.errors import ImageError, UsageError, UserError
from covidjax.images.archives import LoadedMember, Member, Source
from covidjax.images.formats import SUFFIXES, Limits
from covidjax.images.person import age_of, sex_of
from covidjax.labels import plain

SUFFIXES_OF_TABLES = (".csv", ".tsv", ".txt")

COLUMNS = {
    "path": (
        "path",
        "filepath",
        "filepaths",
        "imagepath",
        "imagepaths",
        "imgpath",
        "filename",
        "imagefilename",
        "file",
        "image",
        "img",
        "imageindex",
        "imagename",
        "imageid",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "classname",
        "finding",
        "findings",
        "findinglabels",
        "diagnosis",
        "category",
        "target",
    ),
    "patient": ("patient", "patientid", "patientnumber", "subject", "subjectid", "personid"),
    "source": ("source", "dataset", "collection", "hospital", "site"),
    "split": ("split", "subset", "partition", "set"),
    "view": ("view", "viewposition", "projection"),
    "age": ("age", "patientage", "ageyears", "ageatstudy"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
}
"""What columns are called, without case and punctuation: the first that a table has is taken."""

_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Table:
    """The rows of a table."""

    path: str
    """Its file, for messages."""
    columns: tuple[str, ...]
    """As its header spells them."""
    rows: list[dict[str, str]]
    """By column, without blanks around a value; what a row lacks is empty."""
    numbers: list[int]
    """The line of the file that each row ends on."""

    def column(self, *names: str) -> str | None:
        """The column that is called by the first of some names, given without case and punctuation, or None."""
        spelled = {plain(column): column for column in reversed(self.columns)}
        return next((spelled[name] for name in names if name in spelled), None)

    def role(self, role: str) -> str | None:
        """The column that says what ``COLUMNS`` calls so, or None."""
        return self.column(*COLUMNS[role])

    def person(self, row: Mapping[str, str]) -> dict[str, Any]:
        """``age`` and ``sex`` by a row, as ``images.person`` spells them; empty where the table does not state them."""
        age, sex = (row[column] if (column := self.role(role)) else "" for role in ("age", "sex"))
        return {"age": age_of(age), "sex": sex_of(sex)}

    def require(self, *names: str) -> list[str]:
        """The columns of these names.

        Raises:
          UserError: one is missing.
        """
        columns = {name: self.column(plain(name)) for name in names}
        if missing := sorted(name for name, column in columns.items() if column is None):
            raise self.lacks(missing)
        return [column for column in columns.values() if column]

    def lacks(self, missing: Sequence[str]) -> UserError:
        """The error of a table without some columns."""
        columns = f"; its columns are {', '.join(self.columns[:20])}" if self.columns else ""
        return UserError(f"{self.path} has no column {', '.join(missing)}; give it that header{columns}.")


def read_table(source: Source) -> Table:
    """A table from a file, or from a member of an archive.

    Raises:
      UserError: it cannot be read.
    """
    name, text = os.fspath(source), read_text(source)
    lines = text.splitlines(keepends=True)
    skipped = 0
    delimiter = None
    while lines and (not lines[0].strip() or lines[0].lower().startswith("sep=")):
        if lines[0].strip():  # spreadsheets say so what parts the cells
            delimiter = lines[0].rstrip("\r\n")[4:5]
        lines, skipped = lines[1:], skipped + 1
    if not lines:
        return Table(name, (), [], [])
    try:
        reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=delimiter or _delimiter(lines))
        columns = tuple(cell.strip() for cell in next(reader))
        rows, numbers = [], []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                values = [*(cell.strip() for cell in cells), *[""] * len(columns)]
                rows.append(dict(zip(columns, values, strict=False)))
                numbers.append(skipped + reader.line_num)
    except csv.Error as error:
        raise UserError(f"{name} cannot be read as a table ({error}); save it as CSV in UTF-8.") from error
    return Table(name, columns, rows, numbers)


def _delimiter(lines: Sequence[str]) -> str:
    """What parts the cells: what splits the header into the most columns that are known, then what splits the first lines
    into the same number of cells, and then what splits them into the most."""
    known = {name for names in COLUMNS.values() for name in names}

    def fit(delimiter: str) -> tuple[int, bool, int]:
        counts = [len(cells) for cells in csv.reader(lines[:20], delimiter=delimiter) if cells]
        header = next(csv.reader(lines[:1], delimiter=delimiter))
        return sum(plain(cell) in known for cell in header), len(set(counts)) == 1, len(header)

    return max((",", ";", "\t", "|"), key=fit)


def read_text(source: Source) -> str:
    """The text of a file: UTF-8 or UTF-16 by its byte order mark, else UTF-8, else Windows' Western European (cp1252).

    Raises:
      UserError: it cannot be read, or is no text.
    """
    try:
        data = source.read(Limits()) if isinstance(source, Member | LoadedMember) else Path(source).read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{os.fspath(source)} does not exist; name a table, such as a CSV file.") from None
    except (OSError, ImageError) as error:
        raise UserError(f"{os.fspath(source)} cannot be read ({error}); name a table, such as a CSV file.") from error
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark: every second byte of ASCII text is 0
        zeros = data[first:400:2]
        if not encoding and zeros and zeros.count(0) > 0.9 * len(zeros):
            encoding = name
    for candidate in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = data.decode(candidate)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"{os.fspath(source)} is no text in UTF-8, UTF-16 or Windows-1252; save the table as CSV in UTF-8.")


class PathIndex:
    """Finds the files that the paths of a table name."""

    def __init__(self, files: Sequence[Source], roots: Sequence[Path], listed: Iterable[str]):
        """Index some files.

        Args:
          files: files, and members of archives.
          roots: folders or archives that they lie in; paths may be relative to one of them.
          listed: every path of the table: a file that one of them names is not found by another ending.
        """
        self._listed = {_key(re.split(r"[/\\\\]", path.strip())[-1]) for path in listed}
        paths = [os.path.abspath(path) for path in files]  # noqa: PTH100
        self._roots = [os.path.abspath(root) for root in roots]  # noqa: PTH100
        self._paths, self._keys = paths, [_without_ending(path) for path in paths]
        # Dictionaries, not searches: in CheXpert every second of 200,000 files has the same name.
        self._whole, self._below = defaultdict(list), defaultdict(list)
        self._tails: dict[int, defaultdict[str, list[int]]] = {}
        for row, (path, key) in enumerate(zip(paths, self._keys, strict=True)):
            self._whole[key].append(row)
            for root in self._roots:
                if path.startswith(root + "/"):
                    self._below[_without_ending(path[len(root) + 1 :])].append(row)

    def find(self, text: str, folder: str | os.PathLike[str]) -> list[int]:
        """The files that a path of a table may name: one where it is clear, several where it could be any of them.

        A file is found by its whole path (from the table's folder, from a root, from the working folder), else by the end
        of its path that is the table's, else by its path below a root that is the end of the table's: the folders above a
        collection are called otherwise on another machine. Blanks around a path, backslashes, upper and lower case,
        composed characters and another ending, or none, make no difference where nothing fits better.

        Args:
          text: the path.
          folder: the table's.
        """
        for path in dict.fromkeys((text, text.strip(), text.strip().strip("'\"").replace("\\", "/"))):
            if path and (rows := self._find(os.path.normpath(path), os.path.abspath(folder))):  # noqa: PTH100
                return rows
        return []

    def _find(self, path: str, folder: str) -> list[int]:
        name = _key(path.rpartition("/")[2])
        stages = [rows for rows in self._stages(path, folder) if rows]
        for rows in stages:
            same_name = [row for row in rows if self._name(row) == name]
            if same_name:
                return [row for row in same_name if self._paths[row].endswith(path)] or same_name
        # A name without an ending, or of an image that was converted and has another one now.
        others = ([row for row in rows if self._name(row) not in self._listed] for rows in stages)
        return next(filter(None, others), [])

    def _stages(self, path: str, folder: str) -> Iterator[list[int]]:
        """The files that a path may name whatever their endings, those that fit best first."""
        for base in (folder, *self._roots, os.getcwd()):  # noqa: PTH109
            yield self._whole.get(_without_ending(os.path.normpath(os.path.join(base, path))), [])
        parts = _without_ending(path).strip("/").split("/")
        yield self._ending_with(len(parts)).get("/".join(parts), [])
        for start in range(len(parts)):
            yield self._below.get("/".join(parts[start:]), [])

    def _ending_with(self, length: int) -> Mapping[str, list[int]]:
        """The files by the last parts of their paths, so many."""
        if length not in self._tails:
            self._tails[length] = defaultdict(list)
            for row, key in enumerate(self._keys):
                self._tails[length]["/".join(key.split("/")[-length:])].append(row)
        return self._tails[length]

    def _name(self, row: int) -> str:
        return _key(self._paths[row].rpartition("/")[2])


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _stem(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if stem and f"{dot}{ending}" in SUFFIXES else name


def _without_ending(path: str) -> str:
    return _stem(_key(path))


def word_set(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def is_frontal(view: str) -> bool:
    """Whether a projection is frontal, in any spelling: ``PA``, ``AP Supine``, ``AP semi erect``, ``Frontal``, …"""
    words = word_set(view)
    frontal = {"pa", "ap", "frontal", "posteroanterior", "anteroposterior"}
    return bool(words & frontal) and not words & {"l", "ll", "rl", "lat", "lateral", "ct", "axial", "coronal", "oblique"}
