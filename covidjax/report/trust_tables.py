"""Tables of what a run is worth elsewhere: the generalisation gap, calibration and operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group

from covidjax.report.metric_tables import interval_text, number_text
from covidjax.report.tables import text_table, titled

METRICS = {"accuracy": "accuracy", "f1": "macro F1", "auroc": "macro AUROC", "ece": "ECE"}


def gap_table(gap: Mapping[str, Any], title: str) -> Group:
    """Metrics on each left-out source and on the networks' own sources, see ``trust.generalisation``."""
    rows = []
    for source, figures in (*gap["sources"].items(), ("mean", gap["mean"])):
        for metric, figure in figures.items():
            numbers = (number_text(figure[name]) for name in ("left_out", "in_source", "gap"))
            rows.append((source, METRICS[metric], *numbers, interval_text(figure["interval"]) or "–"))
    numbers = ("left out", "own sources", "gap", "95 % interval")
    below = "Own sources: held-out patients of the sources that the same network was trained on. Before calibration."
    return titled(title, text_table(("source", "metric", *numbers), rows, right=numbers), below)


def calibration_table(section: Mapping[str, Any], title: str) -> Group:
    """Confidence and accuracy on each left-out source without and with a temperature fitted on the others, see
    ``trust.calibration``."""
    elsewhere, home = section["elsewhere"], section["in_source"]
    figures = ("accuracy", "raw_confidence", "raw_ece", "temperature", "confidence", "ece", "in_source_ece")
    rows = [
        (name, source["images"], *(number_text(source[figure]) for figure in figures))
        for name, source in elsewhere["sources"].items()
    ]
    rows.append(
        ("mean", "", *(number_text(elsewhere.get(figure)) if figure != "temperature" else "" for figure in figures))
    )
    numbers = (
        "images",
        "accuracy",
        "confidence",
        "ECE",
        "T of the others",
        "calibrated",
        "calibrated ECE",
        "ECE by T in-source",
    )
    below = f"All sources together: T = {section['temperature']:.3f}, which evaluate and score use."
    if home:
        ece = f"ECE {home['raw_ece']:.3f} without, {home['ece']:.3f} with it"
        away = f"{home['elsewhere_ece']:.3f} with T for elsewhere"
        below += f" In-source T = {home['temperature']:.3f}: on own sources {ece}, {away}."
    return titled(title, text_table(("left out", *numbers), rows, right=numbers), below)


def operating_points_table(points: Sequence[Mapping[str, Any]], title: str) -> Group:
    """Each operating point with what it amounts to on some images, see ``trust.operating_points``."""
    names: Sequence[str] = ("sensitivity", "specificity", "ppv", "npv")
    rows = []
    for point in points:
        figures = (point["figures"].get(name) for name in names)
        threshold = "–" if point["threshold"] is None else f"{point['threshold']:.4f}"
        rows.append((point["class"], f"{point['metric']} {point['target']:g}", threshold, *map(_with_interval, figures)))
    columns = ("threshold", "sensitivity", "specificity", "PPV", "NPV")
    few = [f"{point['class']}:{point['metric']}={point['target']:g}" for point in points if point.get("few")]
    below = f"The validation fold has too few images to tell the target from 1: {', '.join(few)}." if few else ""
    return titled(title, text_table(("class", "wanted", *columns), rows, right=columns), below)


def _with_interval(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return "–"
    interval = interval_text(figure["interval"])
    return f"{figure['value']:.3f}" + f" ({interval})" * bool(interval)
