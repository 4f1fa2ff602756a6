"""Draws one scored X-ray, a synthetic one: ``python -m bench.scored_picture RUN docs/scored.png``.

RUN was trained on the built-in sample, as ``demo/run`` of ``make demo`` is. The image is one that
``covidjax sample --seed 1`` writes: another seed than the built-in sample's, so another patient.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import covidjax
from covidjax.data import synthetic
from covidjax.labels import CLASSES
from covidjax.lungs import geometry, segmenter
from covidjax.report.drawing import Axes, Figure, FigureCanvasAgg
from covidjax.scoring.row import Row

INDEX, SEED = 2, 1
"""Which synthetic image is drawn."""

BLUE, GREY = "#2a78c8", "#b9c2cc"


def main(run: Path, path: Path) -> None:
    """Score the image with the run, find its lungs with the bundled segmenter, and write the picture."""
    drawn = synthetic.draw(INDEX, seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "xray.png")
        Image.fromarray(drawn.image).save(file)
        (row,) = covidjax.load(run, device="cpu").score([file])
    figure = Figure(figsize=(7.6, 3.6), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_image(left, drawn.image)
    _draw_probabilities(right, row)
    left.set_title(f"Synthetic X-ray, drawn as {CLASSES[drawn.label]}", fontsize=10)
    figure.supxlabel(
        "Scored by a network that was trained on other synthetic X-rays. Says nothing about patients.",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_image(axis: Axes, image: np.ndarray) -> None:
    """Draw an image uint8 ``[S, S]`` with the outline of its lungs."""
    model = segmenter.open_segmenter("cpu")
    small = Image.fromarray(image).resize((model.size, model.size), Image.Resampling.BILINEAR)
    lungs = geometry.find_lungs(model.segment(np.asarray(small)[None, ..., None])[0][0], *image.shape)
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    mask = Image.fromarray(lungs.mask.astype(np.float32)).resize(image.shape[::-1], Image.Resampling.BICUBIC)
    axis.contour(np.asarray(mask), levels=[0.5], colors=["#4db2ff"], linewidths=1.6)
    axis.set_axis_off()


def _draw_probabilities(axis: Axes, row: Row) -> None:
    """Draw the probability of each class as a bar, that of the prediction in colour."""
    classes, probabilities = list(row.probabilities), list(row.probabilities.values())
    colors = [BLUE if name == row.prediction else GREY for name in classes]
    bars = axis.barh(classes, probabilities, color=colors, height=0.55)
    axis.bar_label(bars, [f"{probability:.3f}" for probability in probabilities], padding=4, fontsize=10)
    axis.set(xlim=(0, 1.18), xticks=[0, 0.5, 1])
    axis.invert_yaxis()
    axis.set_title(f"Prediction: {row.prediction}", fontsize=10)
    axis.set_xlabel("probability", fontsize=9)
    axis.tick_params(labelsize=10, length=0)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
