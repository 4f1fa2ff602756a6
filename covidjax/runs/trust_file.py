"""``trust.json`` of a run: what was found out when it was trained, by which its scores are judged later.

Each section is of the module of ``covidjax.trust`` that has its name, such as ``gate`` or ``operating_points``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.errors import UserError, one_line

FILE = "trust.json"

Trust = Mapping[str, Any]
"""Section → what JSON holds."""


def write(run: Path, **sections: Any) -> None:
    """Write some sections, whole or not at all; the others stay.

    Args:
      run: its folder, of several networks that of the whole.
      sections: by name.
    """
    files.write_atomic(run / FILE, json.dumps({**read(run), **sections}, indent=1, sort_keys=True) + "\n")


def read(run: Path) -> Trust:
    """All sections; none of a run of an earlier version.

    Raises:
      UserError: a damaged file.
    """
    try:
        return parse((run / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        remedy = "remove it, and the run is used without operating points, calibration and its own gate"
        raise UserError(f"{run / FILE} is damaged ({one_line(error)}); {remedy}.") from error


@contextlib.contextmanager
def reading(section: str, otherwise: str = "the run is used without it") -> Iterator[None]:
    """Says that a section is damaged where reading it fails; also a decorator of what reads it.

    Args:
      section: its name.
      otherwise: what comes of removing it.

    Raises:
      UserError: it is damaged.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        problem = f"The section {section} of the run's {FILE} is damaged ({what})"
        raise UserError(f"{problem}; remove it from there, and {otherwise}.") from error


def parse(text: str) -> Trust:
    """The sections of a file's text.

    Raises:
      ValueError: no JSON, or none of a table.
    """
    trust = json.loads(text)
    if not isinstance(trust, dict):
        raise ValueError("it holds no table")
    return trust
