"""What a run relies on: how its predictions change where parts of its held-out images are blanked, and where its evidence
is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from covidjax import device
from covidjax.data import loader
from covidjax.data.dataset import Dataset
from covidjax.errors import UserError
from covidjax.inference import evidence, forward
from covidjax.lungs.stream import Segmenter
from covidjax.runs import folder, load
from covidjax.runs.load import LoadedRun
from covidjax.trust import audit_images, audit_lungs
from covidjax.trust.check import Check, Status

MOST = 1000
"""Images that are looked at, drawn at random: enough for two digits."""

CORNER = 1 / 8
"""Side of each blanked corner, as a share of the image's."""

GRAY = 128
"""What blanked parts are filled with: about zero after normalization, so that it adds nothing by itself."""

MOST_BY_CORNERS, MOST_BY_OUTSIDE = 0.05, 0.5
"""Shares of the predictions that may change where the corners are blanked, which hold no lung, and where everything outside
the lungs is, which any network may notice."""

BATCH = 32

NAME, TITLE = "reliance", "What the run relies on"


@device.own_flags()
def reliance(
    path: Path, dataset: Dataset, segmenter: Segmenter, tick: Callable[[int, int], object] = lambda done, total: None
) -> Check:
    """The check of a run on images of a dataset that it was not trained on.

    Args:
      path: the run, or a file of weights; of several networks those count that an image was held out from, by their mean.
      dataset: prepared as the run's own was.
      segmenter: finds the lungs.
      tick: called with the images done, and all of them.

    Raises:
      UserError: no run, a segmenter, or one that was trained on all images.
    """
    loaded = load.load_run(path)
    model = loaded.run.config.model
    if model.is_segmenter:
        raise UserError(f"{path} finds lungs, not classes; name a run of a classifier.")
    if dataset.preprocess.lungs == "mask":
        return Check(NAME, TITLE, "not applicable", "The images show the lungs alone, so nothing outside could be blanked.")
    source = dataset.source(range(dataset.folds))
    held_out = _held_out(path, loaded.networks, loader.identities(source))
    rows = np.flatnonzero(held_out.any(1))
    if not len(rows):
        raise UserError(f"{path} was trained on every image of {dataset.path}; name another dataset.")
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST])
    decompose = jax.jit(lambda weights, images: evidence.decompose(loaded.network, weights, images, model))
    run, parts = _Functions(loaded, forward.make_predict(loaded.network, model), decompose), []
    for batch_rows in np.split(rows, range(BATCH, len(rows), BATCH)):
        batch = next(loader.eval_batches(source, BATCH, batch_rows))
        parts.append(_look(run, batch.images[: len(batch_rows)], held_out[batch_rows], segmenter))
        tick(sum(map(len, parts)), len(rows))
    return _check(np.concatenate(parts), model.name)


def _held_out(path: Path, networks: list[Any], identities: list[tuple[str, ...]]) -> np.ndarray:
    """Which images each network was not trained on, bool ``[N, networks]``."""
    if load.is_file(path):
        known = [load.trained_on(path)] * len(networks)
    else:
        known = [folder.read_trained_on(member) for member in folder.network_folders(path)]
    return np.asarray([[not keys & set(of_image) for keys in known] for of_image in identities], bool).reshape(
        -1, len(networks)
    )


class _Functions(NamedTuple):
    """A run and what is computed of it, each compiled once."""

    loaded: LoadedRun
    predict: Callable[..., Any]
    decompose: Callable[..., Any]


def _look(run: _Functions, images: np.ndarray, held_out: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    """Of each image: whether its lungs are plausible; change of the predicted class's probability and whether another class
    is predicted, with all but the lungs blanked, with the corners blanked; shares of the positive evidence and of the cells
    that lie outside the lungs: float ``[B, 7]``."""
    size = images.shape[1]
    masks, plausible = audit_lungs.find_masks(images[..., 0], segmenter)
    shown = audit_images.dilate(masks)
    lungs = np.stack([np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)) for mask in shown])
    side = max(round(size * CORNER), 1)
    corners = np.zeros((size, size), bool)
    for down in (slice(side), slice(-side, None)):
        for across in (slice(side), slice(-side, None)):
            corners[down, across] = True
    versions = [images, *(np.where(part[..., None], np.uint8(GRAY), images) for part in (~lungs, corners[None]))]
    before, *after = (_probabilities(run, version, held_out) for version in versions)
    predicted, every = before.argmax(1), np.arange(len(images))
    columns = [plausible]
    for probabilities in after:
        columns.append(np.abs(probabilities[every, predicted] - before[every, predicted]))
        columns.append(probabilities.argmax(1) != predicted)
    return np.stack([*columns, *_evidence(run, images, held_out, predicted, lungs)], 1).astype(float)


def _padded(images: np.ndarray) -> np.ndarray:
    """A batch of the usual size, so that one program serves all."""
    return np.concatenate([images, np.zeros((BATCH - len(images), *images.shape[1:]), images.dtype)])


def _probabilities(run: _Functions, images: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Mean probabilities of the networks that each image was held out from, float ``[B, classes]``."""
    total, model = 0, run.loaded.run.config.model
    for number, weights in enumerate(run.loaded.networks):
        outputs = np.asarray(forward.probabilities(run.predict(weights, _padded(images)), model))[: len(images)]
        total = total + outputs * held_out[:, number, None]
    return np.asarray(total) / held_out.sum(1, keepdims=True)


def _evidence(
    run: _Functions, images: np.ndarray, held_out: np.ndarray, predicted: np.ndarray, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The shares of the positive evidence for the predicted class, and of the cells, that lie outside the lungs, each float
    ``[B]``; of several networks the mean evidence."""
    total, model = 0, run.loaded.run.config.model
    for number, weights in enumerate(run.loaded.networks):
        cells = np.asarray(run.decompose(weights, _padded(images)).cells)[: len(images)]
        total = total + cells * held_out[:, number, None, None, None]
    cells = np.asarray(total)[np.arange(len(images)), :, :, predicted]
    positive, inside = np.maximum(cells, 0), evidence.coverage(lungs, model, cells.shape[1])
    outside = (positive * (1 - inside)).sum((1, 2)) / np.maximum(positive.sum((1, 2)), 1e-9)
    return outside, 1 - inside.mean((1, 2))


def _check(rows: np.ndarray, model: str) -> Check:
    plausible = rows[:, 0] > 0
    if not plausible.any():
        return Check(NAME, TITLE, "not applicable", f"Lungs were found on none of {len(rows)} held-out images.")
    outside_change, outside_other = rows[plausible, 1].mean(), rows[plausible, 2].mean()
    corner_change, corner_other = rows[:, 3].mean(), rows[:, 4].mean()
    outside, cells = rows[plausible, 5].mean(), rows[plausible, 6].mean()
    figures = {
        "held-out images": len(rows),
        "of these with plausible lungs": int(plausible.sum()),
        "all but the lungs blanked: mean change of the probability": float(outside_change),
        "all but the lungs blanked: share of other predictions": float(outside_other),
        "corners blanked: mean change of the probability": float(corner_change),
        "corners blanked: share of other predictions": float(corner_other),
        "share of the positive evidence outside the lungs": float(outside),
        "share of the cells of the last map outside the lungs": float(cells),
    }
    status: Status = "fail" if corner_other > MOST_BY_CORNERS or outside_other > MOST_BY_OUTSIDE else "pass"
    by_lungs = (
        f"{outside_other:.0%} of {plausible.sum()} held-out images (its probability by {outside_change:.2f} on average)"
    )
    by_corners = f"{corner_other:.0%} of {len(rows)} (by {corner_change:.2f})"
    sentence = (
        f"Blanking all but the lungs changes the prediction on {by_lungs}, blanking the corners on {by_corners}; "
        f"{outside:.0%} of the positive evidence lies outside the lungs, where {cells:.0%} of {model}'s last map is."
    )
    details = {"figures": figures, "fails_above": {"corners": MOST_BY_CORNERS, "outside": MOST_BY_OUTSIDE}, "gray": GRAY}
    return Check(NAME, TITLE, status, sentence, details)
