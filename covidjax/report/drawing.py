"""matplotlib by its objects alone, in its own default style: what a notebook's or a user's environment says of backends and
looks does not matter to figures that go to files."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from covidjax.errors import UserError, one_line

# Importing matplotlib fails where this names a backend that is not here, and files need none. What it names is set
# afterwards, for the figures of a program that imports covidjax.
_backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
try:
    from matplotlib import rcParams, style
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ValueError as error:
    problem = f"matplotlib cannot read its settings ({one_line(error)})"
    raise UserError(f"{problem}; mend or remove the file matplotlibrc, here or in the folder of your settings.") from error
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
if _backend:
    with contextlib.suppress(ValueError):
        rcParams["backend"] = _backend

__all__ = ["DEFAULT_STYLE", "Axes", "Figure", "FigureCanvasAgg"]

DEFAULT_STYLE: Any = style.context(["default", {"svg.hashsalt": "covidjax"}])
"""Decorates what draws. Names in SVG are not random: the same results make the same file."""
