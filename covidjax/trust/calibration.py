"""One temperature for all probabilities (Guo et al. 2017, "On calibration of modern neural networks", section 4.2), fitted
on sources that the networks were not trained on: so that the mean confidence at a new place is near the accuracy there.

It is the temperature of the least log loss, each left-out source counting the same. Bringing the mean confidence over the
sources to their mean accuracy was tried instead: of sources that neither network nor temperature had seen it missed the
accuracy further, since a source where networks do well lets them be too sure where they do badly, which the log loss does
not. ``nested`` fits without each source in turn; only its figures are of sources that are new to the temperature too.

Section ``calibration`` of ``trust.json``::

    {"temperature": T,                     what probabilities are calibrated by
     "run": PATH,                          the leave-one-source-out run that it is of
     "elsewhere": {"temperature": T,
                   "accuracy", "confidence", "ece", and without calibration "raw_confidence", "raw_ece": means over sources,
                   "sources": {SOURCE: {"images", "accuracy", "temperature": fitted without it, "confidence", "ece",
                                        "raw_confidence", "raw_ece", "in_source_ece": by the temperature in-source}}},
     "in_source": {"temperature": T, "accuracy", "confidence", "ece", "raw_confidence", "raw_ece",
                   "elsewhere_ece": by the temperature for elsewhere} or null}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covidjax.runs import trust_file
from covidjax.trust.metrics import calibration_error
from covidjax.trust.predictions import PredictionTable, Tables

LEAST, MOST = 0.05, 100.0
"""Of temperatures; at the greatest all classes are nearly equally probable."""


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities ``[…, classes]`` to the power 1 / temperature, adding up to 1 again: the softmax of the logits over the
    temperature. The dtype stays."""
    if temperature == 1:
        return probabilities
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(float)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(probabilities.dtype)


def fit(tables: Sequence[PredictionTable]) -> float:
    """The temperature of the least log loss, each table counting the same."""
    from scipy.optimize import minimize_scalar  # here: scoring does without

    def loss(log_temperature: float) -> float:
        return float(np.mean([_log_loss(table, np.exp(log_temperature)) for table in tables]))

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def nested(left_out: Tables) -> dict[str, float]:
    """For each source the temperature fitted on all others; 1 where there is no other."""
    others = {name: [table for other, table in left_out.items() if other != name] for name in left_out}
    return {name: fit(tables) if tables else 1.0 for name, tables in others.items()}


def section(left_out: Tables, in_source: Tables, run: str) -> dict[str, Any]:
    """The section of ``trust.json``.

    Args:
      left_out: of each source, by the network that was trained without it.
      in_source: by the same names, of held-out images of the sources that the network was trained on.
      run: the run's folder.
    """
    home = list(in_source.values())
    temperature, own = fit(list(left_out.values())), fit(home) if home else None
    sources = {}
    for name, without in nested(left_out).items():
        table = left_out[name]
        of_source = {"images": len(table), "temperature": without, **_figures([table], without)}
        of_source["in_source_ece"] = None if own is None else _ece(table, own)
        sources[name] = of_source
    means: dict[str, float | None] = {
        figure: float(np.mean([of_source[figure] for of_source in sources.values()]))
        for figure in ("accuracy", "confidence", "ece", "raw_confidence", "raw_ece")
    }
    own_eces = [of_source["in_source_ece"] for of_source in sources.values()]
    means["in_source_ece"] = None if own is None else float(np.mean(own_eces))
    at_home = None
    if own is not None:
        elsewhere_ece = float(np.mean([_ece(table, temperature) for table in home]))
        at_home = {"temperature": own, **_figures(home, own), "elsewhere_ece": elsewhere_ece}
    elsewhere = {"temperature": temperature, **means, "sources": sources}
    return {"temperature": temperature, "run": run, "elsewhere": elsewhere, "in_source": at_home}


@trust_file.reading("calibration")
def temperature_of(trust: Mapping[str, Any]) -> float:
    """What the probabilities of a run are calibrated by; 1 where it has no calibration.

    Raises:
      UserError: a damaged section.
    """
    temperature = float((trust.get("calibration") or {}).get("temperature", 1.0))
    if not 0 < temperature < np.inf:
        raise ValueError(f"a temperature of {temperature:g}")
    return temperature


@trust_file.reading("calibration")
def sentence(trust: Mapping[str, Any]) -> str:
    """That probabilities are calibrated, for the reader; empty where they are not."""
    temperature = temperature_of(trust)
    if temperature == 1:
        return ""
    sources = len(trust["calibration"]["elsewhere"]["sources"])
    text = f"Probabilities are calibrated for elsewhere (T = {temperature:.3f}, fitted on {sources} left-out sources)"
    if temperature > 0.99 * MOST:
        text += ", where its probabilities were no better than guesses: all classes get nearly the same"
    return f"{text}."


def _figures(tables: Sequence[PredictionTable], temperature: float) -> dict[str, float]:
    """Means over the tables, without and with a temperature."""
    figures = {
        "accuracy": [_accuracy(table) for table in tables],
        "confidence": [_confidence(table, temperature) for table in tables],
        "ece": [_ece(table, temperature) for table in tables],
        "raw_confidence": [_confidence(table, 1) for table in tables],
        "raw_ece": [_ece(table, 1) for table in tables],
    }
    return {name: float(np.mean(values)) for name, values in figures.items()}


def _accuracy(table: PredictionTable) -> float:
    return float((table.predictions == table.labels).mean())


def _confidence(table: PredictionTable, temperature: float) -> float:
    return float(calibrate(table.probabilities, temperature).max(-1).mean())


def _ece(table: PredictionTable, temperature: float) -> float:
    return calibration_error(table.with_probabilities(calibrate(table.probabilities, temperature)))


def _log_loss(table: PredictionTable, temperature: float) -> float:
    own = calibrate(table.probabilities, temperature)[np.arange(len(table)), table.labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())
