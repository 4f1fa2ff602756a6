"""covidjax: chest X-ray classifiers in JAX, trained fast and scored from the command line. Research software."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    import os

    from covidjax.scoring.classifier import Classifier

__version__ = "0.1.0"


def load(run: str | os.PathLike[str] | None = None, **options: typing.Any) -> Classifier:
    """Load a trained run, or the bundled classifier where none is named, for scoring:
    ``covidjax.load("runs/x").score(paths)``; see ``covidjax.scoring.classifier.Classifier.load``."""
    from covidjax.runs.load import BUNDLED
    from covidjax.scoring.classifier import Classifier  # here, so that `import covidjax` imports no jax

    return Classifier.load(BUNDLED if run is None else run, **options)
