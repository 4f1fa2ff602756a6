"""``report.html``: all tables and figures of a classifier's report in one file, which needs no other and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from covidjax.errors import printable
from covidjax.files import write_atomic
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
    environment = Environment(
        loader=PackageLoader("covidjax.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inlined = [
        {"caption": caption, "data": base64.b64encode((folder / name).read_bytes()).decode()}
        for name, caption in figures.items()
        if (folder / name).is_file()
    ]
    # Bytes of a name that are no UTF-8 are escaped.
    shown = [table._replace(rows=[[*map(printable, row)] for row in table.rows]) for table in tables]
    page = environment.get_template("report.html").render(
        title=printable(about.title),
        note=about.note,
        facts=[*map(printable, about.facts)],
        settings=printable(about.settings),
        version=version("covidjax"),
        tables=shown,
        figures=inlined,
    )
    write_atomic(folder / FILE, page)
