"""Figures of a classifier's probabilities: ROC, precision–recall, reliability, risk–coverage and decision curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covidjax.report.drawing import DEFAULT_STYLE, Axes
from covidjax.report.plots import new_figure, save_figure

BINS = 10
"""Of equally many images, as many as the calibration error has."""

MOST_CURVES = 10
"""Curves in one panel."""

PANELS_PER_ROW = 3

THRESHOLDS = np.linspace(0.01, 0.99, 99)
"""Of decision curves."""


class HeldOut(NamedTuple):
    """What a classifier says of images whose class is known."""

    classes: Sequence[str]
    labels: np.ndarray
    """int ``[N]``, true classes."""
    probabilities: np.ndarray
    """float ``[N, classes]``."""
    sources: Sequence[str]
    """Of each image, ``[N]``; empty where it is not known."""

    def of_class(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each image is of the class, bool ``[N]``, and the class's probabilities."""
        return self.labels == number, self.probabilities[:, number]

    def top(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each prediction is right, bool ``[N]``, and its confidence."""
        return self.labels == self.probabilities.argmax(-1), self.probabilities.max(-1)


FIGURES = {
    "roc.png": "ROC curves of each class against the rest, with the areas under them (AUROC).",
    "precision_recall.png": (
        "Precision–recall curves of each class against the rest, with average precision (AUPRC). Dotted: the precision of "
        "guessing, which is the class's share of the images."
    ),
    "reliability.png": (
        "Reliability: the share of images that are of the class (or of predictions that are right) over the mean "
        "probability, in bins of equally many images, which the small numbers count. On the diagonal, probabilities are "
        "what they say."
    ),
    "risk_coverage.png": (
        "Risk–coverage: the share of errors among the most confident images, over the share of images that are accepted, "
        "with the areas under the curves (AURC)."
    ),
    "decision_curve.png": (
        "Decision curves: the net benefit of acting above a threshold probability (true positives minus false positives "
        "weighed by the odds of the threshold, per image), beside that of acting always and never."
    ),
}
"""What ``draw`` writes, with captions."""

ELSEWHERE = {
    "elsewhere.png": (
        "Left: the accuracy on each source that a network was not trained on, and of the same network on unseen patients "
        "of its own sources. Right: the mean confidence there, without calibration and by a temperature fitted on the "
        "other sources, beside the accuracy that it should be."
    )
}
"""What ``draw_elsewhere`` writes, with its caption."""


@DEFAULT_STYLE
def draw(folder: Path, held_out: HeldOut, note: str = "") -> None:
    """Write ``FIGURES``.

    Args:
      folder: where to.
      held_out: at least one image.
      note: stands above each figure, such as that the images are synthetic.
    """
    panels: dict[str, Callable[[HeldOut], dict[str, Callable[[Axes], None]]]] = {
        "roc.png": lambda images: {"": lambda axis: _roc(axis, images)},
        "precision_recall.png": lambda images: {"": lambda axis: _precision_recall(axis, images)},
        "reliability.png": _reliabilities,
        "risk_coverage.png": lambda images: {"": lambda axis: _risk_coverage(axis, images)},
        "decision_curve.png": _decision_curves,
    }
    for name, make in panels.items():
        parts = make(held_out)
        columns = 2 if len(parts) == 4 else min(len(parts), PANELS_PER_ROW)
        rows = -(-len(parts) // columns)
        size = (4.6, 4.2) if len(parts) == 1 else (3.2 * columns, 3.2 * rows)
        figure, axes = new_figure(*size, rows, columns)
        for axis in axes.ravel()[len(parts) :]:
            axis.set_axis_off()
        for axis, (title, draw_panel) in zip(axes.ravel(), parts.items(), strict=False):
            draw_panel(axis)
            axis.set_title(title, fontsize=9, parse_math=False)
            axis.grid(alpha=0.3)
        save_figure(figure, folder / name, note)


@DEFAULT_STYLE
def draw_elsewhere(folder: Path, gap: Mapping[str, Any], calibration: Mapping[str, Any], note: str = "") -> None:
    """Write ``ELSEWHERE``.

    Args:
      folder: where to.
      gap: of each of ``sources`` the ``accuracy``, ``left_out`` and ``in_source``, see ``trust.generalisation``.
      calibration: of each of ``elsewhere``'s ``sources`` ``accuracy``, ``confidence`` and ``raw_confidence``, see
        ``trust.calibration``.
      note: stands above the figure.
    """
    names = list(gap["sources"])
    figure, axes = new_figure(7.2, 1.3 + 0.32 * len(names), 1, 2)
    accuracy = [gap["sources"][name]["accuracy"] for name in names]
    calibrated = [calibration["elsewhere"]["sources"][name] for name in names]
    there = [of_source["left_out"] for of_source in accuracy]
    home = [np.nan if of_source["in_source"] is None else of_source["in_source"] for of_source in accuracy]
    raw, fitted = ([of_source[key] for of_source in calibrated] for key in ("raw_confidence", "confidence"))
    panels = (
        ("accuracy", [(home, "C0", "at home"), (there, "C3", "left out")]),
        ("mean confidence", [(raw, "C1", "as it is"), (fitted, "C2", "calibrated"), (there, "C3", "accuracy there")]),
    )
    rows = np.arange(len(names))[::-1]
    for axis, (label, series) in zip(axes[0], panels, strict=True):
        ends = np.stack([values for values, *_ in series])
        axis.hlines(rows, np.nanmin(ends, 0), np.nanmax(ends, 0), color="lightgray", zorder=0)
        for values, color, legend in series:
            axis.scatter(values, rows, color=color, s=22, label=legend)
        axis.set(xlabel=label, xlim=(-0.02, 1.02), ylim=(-0.6, len(names) - 0.4), yticks=rows)
        axis.set_yticklabels(names if axis is axes[0, 0] else [""] * len(names), fontsize=8, parse_math=False)
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    save_figure(figure, folder / next(iter(ELSEWHERE)), note)


def _present(images: HeldOut) -> dict[str, int]:
    """Classes that some images are of and some are not: others have no curve."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return {name: k for k, name in enumerate(images.classes) if 0 < counts[k] < len(images.labels)}


def _roc(axis: Axes, images: HeldOut) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    for name, number in list(_present(images).items())[:MOST_CURVES]:
        true, scores = images.of_class(number)
        false_rate, true_rate, _ = roc_curve(true, scores)
        axis.plot(false_rate, true_rate, label=f"{name} {roc_auc_score(true, scores):.3f}")
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _legend(axis, loc="lower right")


def _precision_recall(axis: Axes, images: HeldOut) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    for name, number in list(_present(images).items())[:MOST_CURVES]:
        true, scores = images.of_class(number)
        precision, recall, _ = precision_recall_curve(true, scores)
        label = f"{name} {average_precision_score(true, scores):.3f}"
        (line,) = axis.step(recall, precision, where="post", label=label)
        axis.axhline(true.mean(), color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _legend(axis, loc="lower left")


def _reliabilities(images: HeldOut) -> dict[str, Callable[[Axes], None]]:
    pairs = {"confidence of the prediction": images.top()}
    pairs |= {name: images.of_class(number) for name, number in _present(images).items()}
    return {title: lambda axis, pair=pair: _reliability(axis, *pair) for title, pair in pairs.items()}


def _reliability(axis: Axes, true: np.ndarray, scores: np.ndarray) -> None:
    edges = np.percentile(scores, np.linspace(0, 100, BINS + 1))
    bins = np.searchsorted(edges[1:-1], scores)  # as scikit-learn's calibration_curve has them
    counts = np.bincount(bins)
    used = counts > 0
    mean, share = (np.bincount(bins, values)[used] / counts[used] for values in (scores, true))
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    axis.plot(mean, share, marker="o", markersize=4)
    for x, y, count in zip(mean, share, counts[used], strict=True):
        axis.annotate(str(count), (x, y), xytext=(0, 5), textcoords="offset points", fontsize=6, ha="center")
    axis.set(xlabel="mean probability", ylabel="share", xlim=(-0.03, 1.03), ylim=(-0.03, 1.08))


def _risk_coverage(axis: Axes, images: HeldOut) -> None:
    right, confidence = images.top()
    sources = np.asarray(images.sources)
    names = sorted(set(images.sources) - {""})
    parts = {"all": np.ones(len(right), bool)}
    if 1 < len(names) < MOST_CURVES:
        parts |= {name: sources == name for name in names}
    highest = 0.02
    for name, rows in parts.items():
        coverage, risk = risk_coverage(right[rows], confidence[rows])
        highest = max(highest, risk[coverage >= 0.1].max())  # of fewer images it goes up and down
        area = (np.diff(coverage, prepend=0) * risk).sum()
        style: dict[str, Any] = {"linewidth": 2, "color": "black"} if name == "all" else {"linewidth": 1}
        axis.plot(coverage, risk, label=f"{name} {area:.3f}", **style)
    axis.set(xlabel="coverage: share of images accepted", ylabel="risk: share of errors among them", xlim=(0, 1.01))
    axis.set_ylim(-0.02 * highest, min(1.1 * highest, 1.01))
    _legend(axis, loc="best")


def risk_coverage(right: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk at each confidence as the threshold, from the highest down, ``[thresholds]``.

    Args:
      right: bool ``[N]``, whether the prediction is right.
      confidence: float ``[N]``.
    """
    values, counts = np.unique(-confidence, return_counts=True)
    hits = np.bincount(np.searchsorted(values, -confidence), right, len(values)).cumsum()
    accepted = counts.cumsum()
    return accepted / len(right), 1 - hits / accepted


def _decision_curves(images: HeldOut) -> dict[str, Callable[[Axes], None]]:
    only = int(images.labels[0])
    present = _present(images) or {images.classes[only]: only}
    pairs = {name: images.of_class(number) for name, number in present.items()}
    return {title: lambda axis, pair=pair: _decision_curve(axis, *pair) for title, pair in pairs.items()}


def _decision_curve(axis: Axes, true: np.ndarray, scores: np.ndarray) -> None:
    axis.plot(THRESHOLDS, net_benefit(true, scores, THRESHOLDS), label="model")
    axis.plot(THRESHOLDS, net_benefit(true, np.ones_like(scores), THRESHOLDS), color="gray", linewidth=1, label="always")
    axis.axhline(0, color="black", linewidth=1, linestyle=":", label="never")
    share = float(true.mean())
    axis.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.15 * share, 1.1 * share))
    _legend(axis, loc="upper right")


def net_benefit(true: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit of acting where the score is at least the threshold (Vickers and Elkin 2006, "Decision curve analysis: a
    novel method for evaluating prediction models"), ``[thresholds]``.

    Args:
      true: bool ``[N]``.
      scores: float ``[N]``.
      thresholds: above 0 and below 1.
    """
    order = np.argsort(scores)
    positive = np.append(0, np.cumsum(true[order]))
    below = np.searchsorted(scores[order], thresholds)  # images with a smaller score
    hits = positive[-1] - positive[below]
    false = len(true) - below - hits
    return (hits - false * thresholds / (1 - thresholds)) / len(true)


def _legend(axis: Axes, **place: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        for text in axis.legend(fontsize=7, **place).get_texts():
            text.set_parse_math(False)  # classes and sources may be called as they like
