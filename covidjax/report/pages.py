"""What every page is made with: jinja2 templates that escape what they are given, and files within the page."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def environment(package: str) -> Environment:
    """The templates of a package, in its folder ``templates``."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(data: bytes, kind: str) -> str:
    """A file's bytes as a URI, of a media type such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
