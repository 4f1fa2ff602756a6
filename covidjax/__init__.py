"""covidjax: chest X-ray classifiers in JAX, trained fast and scored from the command line. Research software."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    import os

    from covidjax.score import Classifier

__version__ = "0.1.0"


def load(run: str | os.PathLike[str] | None = None, **options: typing.Any) -> Classifier:
    """Load a trained run, or the bundled classifier where none is named, for scoring:
    ``covidjax.load("runs/x").score(paths)``; see ``covidjax.score.Classifier.load``."""
    from covidjax import networks
    from covidjax.score import Classifier  # here, so that `import covidjax` imports no jax

    return Classifier.load(networks.BUNDLED if run is None else run, **options)
