"""Fits the weights of ``covidjax.images.polarity``, and prints how they do on patients they were not fitted to.

``python -m bench.polarity FOLDER... --others FOLDER...``: folders of frontal chest X-rays, one a source, and of images of
other things, one a kind, of which the weights learn to be unsure. They are fitted to parts of X-rays, turned, of other
contrast and with rests of margins, never to the pages of ``bench.pages``, on which they are tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageDraw, ImageOps
from safetensors.numpy import save_file
from scipy.stats import binomtest

from bench.pages import LAYOUTS, PARTS, Layout
from covidjax.data import synthetic
from covidjax.data.folds import components_of
from covidjax.data.readers.names import patient_of
from covidjax.images import decode, polarity
from covidjax.images.find import walk

HIDDEN, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 10, 256, 2e-3, 1e-3
VARIANTS = 6
"""Augmented copies of an X-ray that are fitted to."""
OTHERS_WEIGHT = 0.3
"""Of being sure of something else, against being wrong of an X-ray."""
ALIKE = 0.99
"""Correlation of the features of two copies of an X-ray. Those of people of different sources come to 0.96."""
PHANTOMS = 400
"""Synthetic X-rays that are fitted to besides, so that the built-in sample is judged as well."""
TRIED = 250
"""X-rays on each page, as positives and as negatives."""

SIDE, VIEWS = polarity.SIDE, 3
Weights = dict[str, np.ndarray]
"""``hidden`` float32 ``[SIDE · SIDE, HIDDEN]``, ``output`` float32 ``[HIDDEN]``."""


class Films(NamedTuple):
    """X-rays in mode ``L``, where they come from, which belong to one patient, and what they are fitted by."""

    images: list[Image.Image]
    sources: np.ndarray
    patients: np.ndarray
    inputs: np.ndarray
    """float32 ``[N, VARIANTS + 1, VIEWS, F]``: of the X-ray as it is, and augmented."""


def read_films(folders: Sequence[Path]) -> Films:
    """All images below the folders; patients by published names, and by looks where a collection renamed its images."""
    paths = [(path, "/".join(folder.parts[-2:])) for folder in folders for path in walk(folder).images]
    images = [read(path) for path, _ in paths]
    inputs = variants(images, VARIANTS)
    plain = inputs[:, 0, 0]
    alike = np.triu(plain @ plain.T > ALIKE * inputs.shape[-1], 1)
    patients = components_of(
        [[patient_of(path.name)] for path, _ in paths], [(int(one), int(other)) for one, other in np.argwhere(alike)]
    )
    return Films(images, np.array([source for _, source in paths]), np.array(patients), inputs)


def read(path: Path) -> Image.Image:
    """As it is in the file, at 256 pixels a side or somewhat more."""
    return Image.fromarray(decode.read_reduced(path, 256, invert="never").pixels)


def augment(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of an X-ray, turned, of another contrast, collimated and with rests of a margin, each with some chance."""

    def any_gray() -> int:
        return (0, 255, int(rng.integers(256)))[rng.integers(3)]

    if rng.random() < 0.05:
        film = film.transpose(Image.Transpose.ROTATE_90 if rng.random() < 0.5 else Image.Transpose.FLIP_TOP_BOTTOM)
    cut = rng.uniform(0, 0.12, 4)
    if rng.random() < 0.3:
        side = rng.integers(4)
        cut[side] = rng.uniform(0.2, 0.5)
        if rng.random() < 0.5:
            cut[(side + 1) % 4] = rng.uniform(0.2, 0.5)
    width, height = film.size
    film = film.crop((int(width * cut[0]), int(height * cut[1]), int(width * (1 - cut[2])), int(height * (1 - cut[3]))))
    if rng.random() < 0.4:
        expand, angle = bool(rng.random() < 0.5), float(rng.uniform(-12, 12))
        film = film.rotate(angle, Image.Resampling.BILINEAR, expand=expand, fillcolor=any_gray())
    if rng.random() < 0.3:
        gamma = np.exp(rng.uniform(-0.6, 0.6))
        film = film.point([round(255 * (value / 255) ** gamma) for value in range(256)])
    width, height = film.size
    if rng.random() < 0.5:
        left, upper, right, lower = rng.uniform(-0.02, 0.08, 4).clip(0)
        border = (int(width * left), int(height * upper), int(width * right), int(height * lower))
        film = ImageOps.expand(film, border, any_gray())
    if rng.random() < 0.2:
        mask = Image.new("L", film.size, 0)
        left, upper, right, lower = rng.uniform(-0.15, 0.02, 4)
        box = [width * left, height * upper, width * (1 - right), height * (1 - lower)]
        draw = ImageDraw.Draw(mask)
        draw.ellipse(box, fill=255) if rng.random() < 0.5 else draw.rounded_rectangle(box, 0.2 * width, fill=255)
        film = Image.composite(film, Image.new("L", film.size, int(rng.choice([0, 255]))), mask)
    return ImageOps.mirror(film) if rng.random() < 0.5 else film


def scrambled(film: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Clouds with the spectrum of an X-ray."""
    pixels = np.asarray(film, np.float32) - np.mean(np.asarray(film))
    phases = np.angle(np.fft.fft2(rng.normal(size=pixels.shape)))
    clouds = np.fft.ifft2(np.abs(np.fft.fft2(pixels)) * np.exp(1j * phases)).real
    return Image.fromarray(np.clip(clouds / max(clouds.std(), 1e-3) * 60 + 128, 0, 255).astype(np.uint8))


def variants(images: Sequence[Image.Image], count: int, change: Callable[..., Image.Image] = augment) -> np.ndarray:
    """Features float32 ``[N, count + 1, VIEWS, F]`` of images and of changed copies; zeros for lacking views."""
    rng = np.random.default_rng(0)
    rows = np.zeros((len(images), count + 1, VIEWS, SIDE * SIDE), np.float32)
    for row, image in zip(rows, images, strict=True):
        for copy, changed in zip(row, (image, *(change(image, rng) for _ in range(count))), strict=True):
            features = polarity.features(changed)
            copy[: len(features)] = features
    return rows


def scores_of(weights: Any, inputs: Any) -> Any:
    """Scores ``[...]`` of views ``[..., F]``."""
    return jnp.tanh(inputs @ weights["hidden"]) @ weights["output"]


def score(weights: Weights, image: Image.Image) -> float:
    """As ``polarity.score``, by weights that are not the bundled ones."""
    return polarity.score_of(polarity.features(image), weights["hidden"], weights["output"])


def fit(positives: np.ndarray, others: np.ndarray, *, epochs: int = EPOCHS, seed: int = 0) -> Weights:
    """Weights that tell the rows of ``[N, F]`` from their negatives, and are unsure of the rows of ``[M, F]``."""
    rng = np.random.default_rng(seed)
    inputs = positives.shape[1]
    weights = {
        "hidden": jnp.asarray(rng.normal(0, inputs**-0.5, (inputs, HIDDEN)), jnp.float32),
        "output": jnp.asarray(rng.normal(0, 1, HIDDEN), jnp.float32),
    }
    steps = epochs * 2 * len(positives) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY)
    state = optimizer.init(weights)

    @jax.jit
    def step(weights: Any, state: Any, positives: jax.Array, others: jax.Array) -> Any:
        def loss(weights: Any) -> jax.Array:
            wrong = jax.nn.softplus(-scores_of(weights, positives)).mean()
            score = scores_of(weights, others)
            return wrong + OTHERS_WEIGHT * (jax.nn.softplus(score) + jax.nn.softplus(-score)).mean() / 2

        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    for _ in range(steps):
        batch = mirrored(positives[rng.integers(len(positives), size=BATCH)], rng)
        batch = batch + rng.normal(0, 0.1, batch.shape).astype(np.float32)
        weights, state = step(weights, state, batch, mixed(others[rng.integers(len(others), size=BATCH // 2)], rng))
    return {name: np.asarray(value) for name, value in weights.items()}


def mirrored(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the rows with left and right exchanged."""
    square = rows.reshape(len(rows), SIDE, SIDE)
    return np.where(rng.random((len(rows), 1, 1)) < 0.5, square, square[:, :, ::-1]).reshape(rows.shape)


def mixed(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by right angles, and half of them mixed with one another."""
    turned = np.rot90(mirrored(rows, rng).reshape(len(rows), SIDE, SIDE), int(rng.integers(4)), (1, 2)).reshape(rows.shape)
    share = rng.random((len(rows), 1)) * (rng.random((len(rows), 1)) < 0.5)
    turned = (1 - share) * turned + share * rng.permutation(turned) * rng.choice([-1, 1], (len(rows), 1))
    return (turned / np.maximum(turned.std(axis=1, keepdims=True), 1e-3)).astype(np.float32)


def say(name: str, scores: np.ndarray) -> None:
    """A line of a table, for scores of positives; negatives' have changed their sign."""
    wrong, unsure = int((scores <= -polarity.SURE).sum()), int((np.abs(scores) < polarity.SURE).sum())
    low, high = binomtest(wrong, scores.size).proportion_ci(0.95, "wilson")
    interval = f"{100 * wrong / scores.size:5.2f} % ({100 * low:.2f}–{100 * high:.2f})"
    print(f"{name:30} {scores.size:5}  {interval:22} {100 * unsure / scores.size:6.2f} %", flush=True)


def try_held_out(films: Films, others: Films, phantoms: np.ndarray, clouds: np.ndarray) -> None:
    """Five folds by patient: X-rays as they are, on pages and in parts, and images of other things; then sources."""
    folds, other_folds = (
        np.random.default_rng(0).integers(5, size=len(each.images))[each.patients] for each in (films, others)
    )
    fitted = [
        fit(flat(films.inputs[folds != fold, :, 0], phantoms), flat(others.inputs[other_folds != fold], clouds))
        for fold in range(5)
    ]

    def on_pages(rows: np.ndarray, layout: Layout, weights: Sequence[Weights]) -> np.ndarray:
        rng, scores = np.random.default_rng(1), []
        for row in rows.tolist():
            film, fitted = films.images[row], weights[int(folds[row])]
            scores.append(score(fitted, layout(film, rng)))
            scores.append(-score(fitted, layout(ImageOps.invert(film), rng)))
        return np.array(scores)

    print(f"{'held-out patients':30} {'images':>6}  {'wrong, no warning':22} {'warned':>8}")
    for each, each_folds in ((films, folds), (others, other_folds)):
        plain = np.array([score(fitted[fold], image) for fold, image in zip(each_folds, each.images, strict=True)])
        say("X-rays as they are" if each is films else "other things, turned", plain)
        for source in np.unique(each.sources):
            say(f"  {source}", plain[each.sources == source])
    tried = np.random.default_rng(2).permutation(len(films.images))[:TRIED]
    for name, layout in (LAYOUTS | PARTS).items():
        say(name, on_pages(tried, layout, fitted))
    print("\nheld-out sources, and no patient of theirs in another")
    for source in np.unique(films.sources):
        there = films.sources == source
        train = ~np.isin(films.patients, films.patients[there])
        weights = fit(flat(films.inputs[train, :, 0], phantoms), flat(others.inputs, clouds))
        say(f"  {source}", np.array([score(weights, films.images[row]) for row in np.flatnonzero(there)]))
        rows = np.random.default_rng(3).permutation(np.flatnonzero(there))[:TRIED]
        for name in ("white page 16:9", "black margins"):
            say(f"    {name}", on_pages(rows, LAYOUTS[name], [weights] * 5))


def flat(*arrays: np.ndarray) -> np.ndarray:
    """All views of ``[..., F]`` as the rows of ``[N, F]``."""
    rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
    return rows[rows.any(axis=1)]


def main() -> None:
    """Print the tables, and write the weights of all X-rays into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="frontal chest X-rays, one folder a source")
    parser.add_argument("--others", nargs="+", type=Path, required=True, help="images of other things, one folder a kind")
    arguments = parser.parse_args()
    films = read_films(arguments.folders)
    others = read_films(arguments.others)
    clouds = variants(films.images[::8], 2, scrambled)[:, 1:]
    drawn = [Image.fromarray(synthetic.draw(index, seed=1, size=128).image) for index in range(PHANTOMS)]
    phantoms = variants(drawn, VARIANTS)[:, :, 0]
    try_held_out(films, others, phantoms, clouds)
    save_file(fit(flat(films.inputs[:, :, 0], phantoms), flat(others.inputs, clouds)), polarity.WEIGHTS)
    print(f"wrote {polarity.WEIGHTS.name}")


if __name__ == "__main__":
    main()
