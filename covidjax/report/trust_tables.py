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
    rows = []
    for source, figures in (*elsewhere["sources"].items(), ("mean", elsewhere)):
        confidence, ece = (f"{figures[f'raw_{name}']:.3f} → {figures[name]:.3f}" for name in ("confidence", "ece"))
        temperature = f"{figures['temperature']:.2f}" if source != "mean" else ""
        own = number_text(figures["in_source_ece"])
        rows.append(
            (source, figures.get("images", ""), number_text(figures["accuracy"]), temperature, confidence, ece, own)
        )
    numbers = ("images", "accuracy", "T", "confidence", "ECE", "ECE at home's T")
    below = (
        f"T: fitted on the other sources. By that of all sources, T = {section['temperature']:.2f}, evaluate and score "
        "calibrate probabilities."
    )
    if home:
        ece = f"ECE {home['raw_ece']:.3f} → {home['ece']:.3f}, by T for elsewhere {home['elsewhere_ece']:.3f}"
        below += f"\nAt home, on held-out patients of the networks' own sources: T = {home['temperature']:.2f}, {ece}."
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
