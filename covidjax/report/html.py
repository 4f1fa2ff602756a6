"""``report.html``: all tables and figures of a classifier's report in one file, which needs no other and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from covidjax.errors import printable
from covidjax.files import write_atomic
from covidjax.report import pages
from covidjax.report.metric_tables import TableData

FILE = "report.html"


class About(NamedTuple):
    """What stands in a report beside its numbers."""

    title: str
    note: str = ""
    """What the reader has to know first, such as that the images are synthetic."""
    facts: Sequence[str] = ()
    """Sentences on the run and on the images."""
    settings: str = ""
    """Of the run, as TOML."""


def write(folder: Path, about: About, tables: Sequence[TableData], figures: Mapping[str, str]) -> None:
    """Write ``report.html``.

    Args:
      folder: where to, and where the figures lie.
      about: what it tells of.
      tables: from top to bottom.
      figures: PNG files of the folder and their captions; those that are not there are left out.
    """
    inlined = [
        {"caption": caption, "uri": pages.data_uri((folder / name).read_bytes(), "image/png")}
        for name, caption in figures.items()
        if (folder / name).is_file()
    ]
    # Bytes of a name that are no UTF-8 are escaped.
    shown = [table._replace(rows=[[*map(printable, row)] for row in table.rows]) for table in tables]
    page = (
        pages.environment("covidjax.report")
        .get_template("report.html")
        .render(
            title=printable(about.title),
            note=about.note,
            facts=[*map(printable, about.facts)],
            settings=printable(about.settings),
            version=version("covidjax"),
            tables=shown,
            figures=inlined,
        )
    )
    write_atomic(folder / FILE, page)
