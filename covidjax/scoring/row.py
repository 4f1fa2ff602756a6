"""The row of scores of one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple


class Row(NamedTuple):
    """The scores of one file, or why there are none."""

    path: str
    status: str
    """``ok``; ``refused``: it was read, but is no frontal chest X-ray, or unlike all that the model was trained on;
    ``uncertain``: too little confidence, see ``abstained``; or
    ``error``."""
    prediction: str = ""
    """Class name; empty unless the status is ``ok``."""
    confidence: float | None = None
    """Probability of the prediction."""
    probabilities: Mapping[str, float] = MappingProxyType({})
    """By class name; empty on an error, and what the model said of what is refused or uncertain."""
    error: str = ""
    """The reason; empty where there is none."""
    warning: str = ""
    """Why the image is refused, or the row may be unreliable: it is no frontal chest X-ray, or was or may be a negative."""
    lungs: str = ""
    """``crop`` or ``mask`` where that was done, as in training, or why the image was kept whole; empty for a model that was
    trained on whole images."""
    images: int | None = None
    """Of a study, how many of its images have a prediction, which its probabilities are the means of."""

    def abstained(self, least_confidence: float) -> Row:
        """The row without its prediction if the confidence is below this."""
        if self.status != "ok" or self.confidence is None or self.confidence >= least_confidence:
            return self
        return self._replace(status="uncertain", prediction="", confidence=None)

    def cells(
        self, classes: Sequence[str], *, lungs: bool = False, thresholds: Mapping[str, float] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Cells by column: ``path,status,prediction,confidence,p_<class>…,error,warning``, ``lungs`` if asked for, and
        ``positive_<class>`` for each class that has a threshold: whether its probability is at least that."""
        positive = {
            f"positive_{name}": self.probabilities[name] >= threshold if self.probabilities else None
            for name, threshold in thresholds.items()
        }
        return {
            "path": self.path,
            "status": self.status,
            "prediction": self.prediction,
            "confidence": self.confidence,
            **{f"p_{name}": self.probabilities.get(name) for name in classes},
            "error": self.error,
            "warning": self.warning,
            **({} if self.images is None else {"images": self.images}),
            **({"lungs": self.lungs} if lungs else {}),
            **positive,
        }
