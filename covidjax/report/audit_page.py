"""The page of an audit: one file, which knows no data and no models."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from covidjax.errors import printable
from covidjax.report import pages


class Section(NamedTuple):
    """What the page shows of a check."""

    name: str
    title: str
    status: str
    sentence: str
    meaning: str
    """What it is good for, in plain words."""
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    pictures: Sequence[tuple[str, np.ndarray]]
    """Captions and uint8 ``[H, W]`` or ``[H, W, 3]``."""


def render(about: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The page as HTML, with its pictures in it.

    Args:
      about: ``dataset``, ``images``, ``size``, ``lungs``, ``classes``, ``covidjax``, ``note`` and ``verdict``.
      sections: one a check.
    """
    shown = [
        section._replace(pictures=[(printable(caption), _data_uri(image)) for caption, image in section.pictures])
        for section in sections
    ]
    return pages.environment("covidjax.report").get_template("audit.html").render(about=about, checks=shown)


def _data_uri(image: np.ndarray) -> str:
    """An X-ray as JPEG, a coloured map as PNG."""
    text = io.BytesIO()
    kind = "PNG" if image.ndim == 3 else "JPEG"
    Image.fromarray(image).save(text, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return pages.data_uri(text.getvalue(), f"image/{kind.lower()}")
