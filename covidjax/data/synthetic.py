"""Synthetic frontal chest X-rays with lung masks: sample data that needs no download and no patient.

Every image is drawn from formulas and random numbers, so that the training kit can be tried and tested anywhere.
The opacities are caricatures of the textbook signs (bilateral peripheral ground-glass opacity for COVID-19, lobar
consolidation in one lung for pneumonia). **No number measured on these images says anything about patients.**

The class shows inside the lungs only. Thorax, pose, exposure, noise and the side marker come from random streams
that never see the label, and every pixel outside the lung mask is the same whichever class is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from covidjax.labels import CLASSES

_IMAGES_PER_PATIENT = 2

_RIGHT, _LEFT = -1, 1  # the patient's right lung lies on the left of a frontal image, at negative u

_GLYPHS = {
    _RIGHT: np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], np.float32),
    _LEFT: np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32),
}


class SyntheticImage(NamedTuple):
    """One synthetic image.

    image: uint8 [S, S], grey values; dense tissue is bright and air is dark, as on a usual X-ray.
    lungs: bool [S, S], True inside either lung field (the part not hidden by heart, mediastinum or diaphragm).
    label: index into `CLASSES`.
    patient: whose image it is; two images of one patient share anatomy and disease, so split by this.
    """

    image: np.ndarray
    lungs: np.ndarray
    label: int
    patient: str


def draw(index: int, *, seed: int = 0, size: int = 224) -> SyntheticImage:
    """Draw image number `index`; it depends on (index, seed, size) and on nothing else.

    The class is ``index % 3``. Images ``index`` and ``index + 3`` show the same patient when ``index % 6 < 3``.
    `size` is the side of the square image in pixels. Raises ValueError unless index >= 0, seed >= 0 and size >= 32
    are integers.
    """
    index, seed, size = _integer("index", index, 0), _integer("seed", seed, 0), _integer("size", size, 32)
    classes = len(CLASSES)
    label = index % classes
    number = index // (classes * _IMAGES_PER_PATIENT) * classes + label
    image, lungs = _draw_labelled(number, index, label, seed, size)
    return SyntheticImage(image, lungs, label, f"phantom-{seed}-{number:05d}")


def draw_images(count: int = 600, *, seed: int = 0, size: int = 224) -> Iterator[SyntheticImage]:
    """Iterate over images 0 to count - 1; a multiple of 6 gives equal classes and two images of every patient.

    Raises ValueError, before the first image, unless count >= 0, seed >= 0 and size >= 32 are integers.
    """
    count, seed, size = _integer("count", count, 0), _integer("seed", seed, 0), _integer("size", size, 32)
    return (draw(index, seed=seed, size=size) for index in range(count))


def _integer(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def _draw_labelled(number: int, index: int, label: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (uint8 [S, S]) and lung mask (bool [S, S]) of one image; the tests also call it with other labels."""
    # Separate streams: what the disease draws must not shift what anatomy, exposure and noise draw, else the
    # class would leak into them.
    body = np.random.default_rng([seed, 0, number])
    view = np.random.default_rng([seed, 1, index])
    disease = np.random.default_rng([seed, 2, number])
    change = np.random.default_rng([seed, 3, index])

    u, v, to_pixels = _pose(body, view, size)
    density, depth = _thorax(body, u, v, to_pixels)
    opacity = _opacity(label, disease, change, u, v)
    density = density + opacity * _step(depth / 0.02)  # zero at the edge of the lung: no trace of it outside
    return _expose(view, density), depth > 0


# Geometry. (u, v) are coordinates fixed to the patient: u across (0 at the spine), v down (0 at mid-thorax), both
# about -1 to 1 over the image. Lengths below are in these units.


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    # Freeing one large block makes glibc keep freed memory instead of handing every image-sized array back to the
    # system at once; drawing then takes a third less time. With another allocator this does nothing.
    np.empty(2**24, np.uint8)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return axis[None, :], axis[:, None]


def _pose(body: np.random.Generator, view: np.random.Generator, size: int):
    """Patient coordinates u, v (float32 [S, S]) of the pixels, and the function that maps (u, v) back to pixels."""
    build, aspect = body.uniform(0.93, 1.05), body.uniform(0.94, 1.06)
    scale = build * view.uniform(0.95, 1.04)
    angle = math.radians(view.uniform(-4, 4))
    right, down = view.uniform(-0.06, 0.06), view.uniform(-0.05, 0.05)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ np.diag(
        [scale * aspect, scale / aspect]
    )
    inverse = np.linalg.inv(matrix).astype(np.float32)
    x, y = _grid(size)
    x, y = x - right, y - down

    def to_pixels(points: np.ndarray) -> np.ndarray:
        return (points @ matrix.T + (right, down) + 1) * (size / 2)

    return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y, to_pixels


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 (x <= 0) to 1 (x >= 1)."""
    x = np.minimum(np.maximum(x, 0), 1)
    y = x * -2  # in place from here: this is the drawing's innermost loop
    y += 3
    y *= x
    y *= x
    return y


def _bump(x: np.ndarray, y: np.ndarray | float = 0.0) -> np.ndarray:
    """Gaussian bump, 1 at the origin and 1/e at distance 1."""
    return np.exp(-(x * x) - y * y)


def _clouds(rng: np.random.Generator, cells: int, shape: tuple[int, int]) -> np.ndarray:
    """Smooth random texture, float32 `shape`, mean 0 and spread about 1, drawn coarsely and enlarged for speed."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _thorax(body: np.random.Generator, u: np.ndarray, v: np.ndarray, to_pixels) -> tuple[np.ndarray, np.ndarray]:
    """A healthy thorax: density (float32 [S, S], about 0 to 1) and depth inside the lung fields (> 0 inside)."""
    across = np.abs(u)
    is_left = (u > 0).astype(np.float32)

    # Heart (tilted ellipse, apex towards the patient's left) and mediastinum with the aortic knob.
    heart_size, tilt = body.uniform(0.9, 1.1), body.uniform(0.4, 0.7)
    hu, hv = u - body.uniform(0.07, 0.12), np.minimum(v - body.uniform(0.28, 0.34), 0.1)  # rests on the diaphragm
    along, over = hu * math.cos(tilt) + hv * math.sin(tilt), hv * math.cos(tilt) - hu * math.sin(tilt)
    heart = (1 - np.sqrt((along / 0.38) ** 2 + (over / 0.28) ** 2) / heart_size) * 0.28
    knob = body.uniform(0.04, 0.08) * is_left * _bump((v + 0.30) / 0.09)
    mediastinum = body.uniform(0.12, 0.16) + 0.08 * _step(-v - 0.3) + 0.04 * _step(v) + knob - across

    # Lungs: blunt ellipses cut off by the domes of the diaphragm and by heart and mediastinum. The right lung is
    # wider, its dome stands higher; the dome falls towards the costophrenic angle.
    width, apex, bluntness = body.uniform(0.31, 0.35), body.uniform(0.75, 0.82), body.uniform(2.2, 2.7)
    half = width * (1 + 0.16 * v) * (1 - body.uniform(0.03, 0.08) * is_left)
    ring = np.abs((across - 0.09 - half) / half) ** bluntness + np.abs((v - 0.12) / (apex + 0.12)) ** bluntness
    level, drop = body.uniform(0.38, 0.50) + body.uniform(0.03, 0.09) * is_left, body.uniform(0.13, 0.23)
    dome = level + drop * np.maximum((across - 0.34) / 0.38, -0.3) ** 2 - v
    inner = -np.maximum(heart, mediastinum)
    angle = 0.7 * (dome + inner) - 0.04  # fat blunts the cardiophrenic angle; the costophrenic angle stays sharp
    depth = np.minimum(np.minimum((1 - ring) * (width / bluntness), dome), np.minimum(inner, angle))

    # Soft tissue: neck and shoulders above, the chest wall at the sides, liver and stomach below the diaphragm.
    shoulder = v + 0.98 - body.uniform(0.30, 0.40) * _step((across - 0.2) / 0.7)
    wall = body.uniform(0.88, 0.96) + 0.10 * v * v + 0.25 * _step(-(v + 0.3) / 0.3) - across
    outline = _step(np.minimum(shoulder, wall) / 0.06 + 0.5)
    density = 0.52 + 0.05 * v - 0.20 * _step((across - 0.55) / 0.5)
    breast = body.uniform(0, 0.05)
    density += breast * _bump((across - 0.45) / 0.30, (v - 0.38) / 0.30) * _step((0.62 - v) / 0.1)
    organs = np.maximum(0.11 * _step(mediastinum / 0.09 + 0.5), 0.15 * _step(heart / 0.16 + 0.3))
    density += np.maximum(organs, 0.16 * _step(-dome / 0.16 + 0.2))  # no outline of the heart inside the liver
    density -= 0.08 * _bump(u / 0.055) * _step((-0.22 - v) / 0.08)  # trachea
    air = _step(depth / 0.035 + 0.35)
    density -= body.uniform(0.34, 0.40) * air
    density += body.uniform(0.12, 0.18) * air * _vessels(body, to_pixels, u.shape)

    # Bones. Posterior ribs run out and down from the spine, anterior ends run in and down from the chest wall.
    spacing, phase, droop = body.uniform(0.145, 0.17), body.uniform(0, 1), body.uniform(0.30, 0.45)
    cage = _step((1.35 - ring) / 0.22) * _step((across - 0.06) / 0.08) * _step((0.72 - v) / 0.3)
    posterior = np.cos(2 * np.pi * ((v - droop * (across - 0.30) ** 2 * np.sign(across - 0.30) * 2) / spacing + phase))
    anterior = np.cos(2 * np.pi * ((v + body.uniform(0.5, 0.7) * across) / (spacing * 1.15) + phase))
    ribs = _step((posterior + 0.25) / 0.5) * (0.75 + 0.25 * _bump((posterior - 0.1) / 0.25))
    density += body.uniform(0.05, 0.08) * cage * ribs
    density += 0.03 * cage * _step((anterior - 0.1) / 0.5) * _step((across - 0.3) / 0.2)
    vertebrae = 0.6 + 0.4 * _step(np.cos(2 * np.pi * v / (spacing * 0.95)) + 0.8)
    density += 0.07 * vertebrae * _step((0.095 - across) / 0.025)
    collar = v - (body.uniform(-0.60, -0.50) - body.uniform(0.15, 0.3) * across + 0.03 * np.sin(7 * across))
    clavicle = _step((0.05 - np.abs(collar)) / 0.025) * _step((across - 0.08) / 0.06) * _step((0.80 - across) / 0.06)
    density += 0.13 * clavicle
    return (np.maximum(density, 0.05) * outline).astype(np.float32), depth


def _vessels(body: np.random.Generator, to_pixels, shape: tuple[int, int]) -> np.ndarray:
    """Branching hilar vessels, float32 [S, S], 0 to 1: lines that wander outwards from each hilum and thin out."""
    picture = Image.new("L", (shape[1], shape[0]), 0)
    pen = ImageDraw.Draw(picture)
    for side in (_RIGHT, _LEFT):
        for heading in np.linspace(-1.25, 1.35, 11) + body.uniform(-0.1, 0.1, 11):
            turns = heading + np.cumsum(body.normal(0, 0.22, 6))
            steps = body.uniform(0.06, 0.10) * np.stack([side * np.cos(turns), np.sin(turns)], 1)
            points = to_pixels(np.concatenate([[[side * 0.17, -0.04]], steps]).cumsum(0)).ravel().tolist()
            for part in range(6):
                thickness = max(1, round(shape[0] * (0.022 - 0.003 * part)))
                pen.line(points[2 * part : 2 * part + 4], fill=230 - 30 * part, width=thickness)
    third = max(8, shape[0] // 3)  # shrinking and enlarging softens the lines at little cost
    soft = picture.resize((third, third), Image.Resampling.BOX).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(soft, np.float32) / 255


def _opacity(
    label: int, disease: np.random.Generator, change: np.random.Generator, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Density that the disease adds, float32 [S, S]; the caller confines it to the lungs."""
    total = np.zeros_like(u)
    if CLASSES[label] == "COVID-19":
        # Patchy soft-edged ground glass in both lungs, near the chest wall, most of it in the lower zones.
        severity = disease.uniform(0.14, 0.26)
        for side in (_RIGHT, _LEFT):
            for patch in range(disease.integers(3, 6)):
                middle = (0.32, 0.42) if patch == 0 else (-0.15, 0.45)
                cu, cv = side * disease.uniform(0.55, 0.70), disease.uniform(*middle)
                cu, cv = cu + change.normal(0, 0.015), cv + change.normal(0, 0.015)
                wide, tall = disease.uniform(0.11, 0.18), disease.uniform(0.12, 0.22)
                strength = severity * disease.uniform(0.8, 1.2) * change.uniform(0.9, 1.1)
                total += strength * _bump((u - cu) / wide, (v - cv) / tall)
        grain = 1 + 0.22 * _clouds(change, 26, u.shape)
        return 0.30 * np.tanh(total / 0.30) * np.maximum(grain, 0)  # overlapping patches stay below consolidation
    if CLASSES[label] == "Pneumonia":
        # One dense, fairly sharp-edged consolidation in the upper, middle or lower zone of one lung.
        side, zone = int(disease.choice((_RIGHT, _LEFT))), float(disease.choice((-0.40, 0.0, 0.32)))
        cu, cv = side * disease.uniform(0.38, 0.56), zone + disease.uniform(-0.06, 0.06)
        cu, cv = cu + change.normal(0, 0.015), cv + change.normal(0, 0.015)
        wide, tall = disease.uniform(0.26, 0.40), disease.uniform(0.22, 0.34)
        strength = disease.uniform(0.22, 0.36) * change.uniform(0.9, 1.1)
        rim = np.sqrt(((u - cu) / wide) ** 2 + ((v - cv) / tall) ** 2) + 0.13 * _clouds(disease, 11, u.shape)
        return strength * _step((1.2 - rim) / 0.5) * (1 + 0.08 * _clouds(change, 26, u.shape))
    return total


def _expose(view: np.random.Generator, density: np.ndarray) -> np.ndarray:
    """Turn density into an image, uint8 [S, S]: shading, contrast curve, exposure, quantum noise, side marker."""
    shape, size = density.shape, density.shape[0]
    x, y = _grid(size)
    # Exposure varies far more than any opacity changes the mean grey, so that brightness does not tell the class.
    gamma, contrast, offset = view.uniform(0.75, 1.35), view.uniform(0.80, 1.12), view.uniform(-0.06, 0.14)
    tilt_x, tilt_y = view.uniform(-0.04, 0.04), view.uniform(-0.04, 0.04)
    vignette = view.uniform(0, 0.12) * (view.random() < 0.4)
    image = contrast * density**gamma + offset + 0.012 * _clouds(view, 10, shape)
    image = image + tilt_x * x + tilt_y * y - vignette * (x * x + y * y) / 2

    # Fewer quanta reach the detector behind dense tissue, so noise grows with density; neighbours share some of it.
    noise = view.standard_normal((size + 1, size + 1), dtype=np.float32)
    noise = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 2
    image += view.uniform(0.008, 0.022) * np.sqrt(0.3 + density) * noise

    # The letter names the patient's side; whether there is one, and in which corner, is chance.
    if view.random() < 0.7:
        side, top = view.choice((_RIGHT, _LEFT)), view.random() < 0.7
        glyph = np.kron(_GLYPHS[int(side)], np.ones((max(1, size // 90),) * 2, np.float32))
        margin = int(view.uniform(0.03, 0.07) * size)
        row = margin if top else size - margin - glyph.shape[0]
        column = margin if side == _RIGHT else size - margin - glyph.shape[1]
        corner = image[row : row + glyph.shape[0], column : column + glyph.shape[1]]
        np.maximum(corner, view.uniform(0.8, 1.0) * glyph, out=corner)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_images(out: Path, count: int, *, seed: int = 0, size: int = 224) -> None:
    """Write images 0 to count - 1 to ``out/<class>/phantom-<seed>-<patient>-<index>.png``.

    Raises:
      ValueError: see ``draw_images``.
      OSError: a file cannot be written.
    """
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
    for index, drawn in enumerate(draw_images(count, seed=seed, size=size)):
        Image.fromarray(drawn.image).save(out / CLASSES[drawn.label] / f"{drawn.patient}-{index:05d}.png")
