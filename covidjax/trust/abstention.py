"""When to decline an answer: the risk–coverage curve of left-out sources (Geifman and El-Yaniv 2017, "Selective
classification for deep neural networks"), with each source counting the same.

Section ``risk_coverage`` of ``trust.json``::

    {"confidence": [...], "risk": [...], "coverage": [...], "sources": N, "images": N, "run": PATH}

Each point says: of the images with at least this (calibrated) confidence, which are this share of all, this share was
wrong. Points go from the most confident images to all images. Only such points are kept between which the share of errors
falls with confidence, the blocks of an isotonic regression (Barlow et al. 1972, "Statistical inference under order
restrictions"), so risk grows with coverage and a few errors among the most confident images do not decide alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from covidjax.errors import UsageError
from covidjax.runs import trust_file
from covidjax.trust.predictions import Tables

REMEDY = (
    "train a network for each left-out source with `covidjax train --cv --by source` and use that run, or name it to a "
    "run of the same data by the setting train.calibration"
)


def section(left_out: Tables, run: str) -> dict[str, Any]:
    """The section of ``trust.json``.

    Args:
      left_out: of each source, by a network that has not seen it, all calibrated by the temperature that ``score`` uses.
      run: the run's folder.
    """
    from sklearn.isotonic import IsotonicRegression  # here: scoring does without

    confidence = np.concatenate([table.probabilities.max(-1) for table in left_out.values()])
    wrong = np.concatenate([table.predictions != table.labels for table in left_out.values()]).astype(float)
    weight = np.concatenate([np.full(len(table), 1 / len(table) / len(left_out)) for table in left_out.values()])
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong, weight = confidence[order], wrong[order], weight[order]
    fitted = IsotonicRegression(increasing=False).fit(confidence, wrong, sample_weight=weight).predict(confidence)
    ends = np.append(np.flatnonzero(np.diff(fitted)), len(fitted) - 1)
    coverage = np.cumsum(weight)[ends]
    risk = np.cumsum(weight * wrong)[ends] / coverage
    facts = {"sources": len(left_out), "images": len(confidence), "run": run}
    return {"confidence": confidence[ends].tolist(), "risk": risk.tolist(), "coverage": coverage.tolist(), **facts}


class Abstention:
    """A least confidence, below which an answer is declined.

    Args:
      trust: of a run.
      risk: the share of errors that is taken, between 0 and 1.
      name: the run, for messages.

    Attributes:
      least_confidence: infinite where even the most confident answers are wrong more often.
      sentence: what is done, for the reader.

    Raises:
      UsageError: no such risk, or a run that has no curve.
      UserError: a damaged one.
    """

    def __init__(self, trust: Mapping[str, Any], risk: float, name: object):
        if not 0 <= risk < 1:
            raise UsageError(f"--abstain takes a share of errors of at least 0 and below 1, such as 0.1, not {risk:g}.")
        curve = trust.get("risk_coverage")
        if not curve:
            raise UsageError(f"{name} does not know how often it is wrong at places that it has not seen; {REMEDY}.")
        with trust_file.reading("risk_coverage", "score without --abstain"):
            figures = (map(float, curve[name]) for name in ("risk", "confidence", "coverage"))
            points = list(zip(*figures, strict=True))
            where = f"on the {int(curve['sources'])} left-out sources"
            if not points:
                raise ValueError("it is empty")
        accepted = [point for point in points if point[0] <= risk]
        if not accepted:
            least, _, coverage = points[0]
            self.least_confidence = float("inf")
            most = f"even the most confident {coverage:.1%} of answers were wrong in {least:.1%}"
            self.sentence = f"Every answer is uncertain at a risk of {risk:g}: {where} {most}."
            return
        wrong, self.least_confidence, coverage = accepted[-1]
        above = f"the {coverage:.1%}" if coverage >= 0.001 else "the less than 0.1%"
        shares = f"of {above} of answers above that {wrong:.1%} were wrong {where}"
        self.sentence = f"Answers below a confidence of {self.least_confidence:.3f} are uncertain: {shares}."
