"""Boxes of both lungs of gray films in memory: covidjax's segmenter, and lungs-finder (PyPI) with OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def read(paths: list[str]) -> list[np.ndarray]:
    """Gray uint8 ``[H, W]``, larger films are not among them."""
    return [np.asarray(Image.open(path).convert("L")) for path in paths]


class Ours:
    """As ``covidjax segment`` finds them, without decoding and writing.

    Args:
      paths: films.
      runtime: as for ``--runtime``.
    """

    def __init__(self, paths: list[str], runtime: str = "auto"):
        from bench.harness import Missing
        from covidjax.errors import UserError
        from covidjax.lungs import segmenter

        self._films = read(paths)
        self.images = len(paths)
        try:
            self._segmenter = segmenter.open_segmenter("cpu", runtime)
        except UserError as error:
            raise Missing(str(error)) from error
        self.note = f"{self._segmenter.title}, {Path(segmenter.BUNDLED).stat().st_size / 1e6:.2f} MB"

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self._boxes()

    def answer(self) -> list[float]:
        """Left, top, right, bottom of each film, four times -1 where there is none."""
        return [float(side) for box in self._boxes() for side in box]

    def _boxes(self) -> list[tuple[int, int, int, int]]:
        from covidjax.images import decode
        from covidjax.lungs import geometry
        from covidjax.lungs import stream as lung_stream

        boxes = []
        for start in range(0, len(self._films), lung_stream.BATCH_SIZE):
            films = self._films[start : start + lung_stream.BATCH_SIZE]
            batch = np.zeros((lung_stream.BATCH_SIZE, self._segmenter.size, self._segmenter.size, 1), np.uint8)
            for image, film in zip(batch, films, strict=False):
                image[..., 0] = decode.resize(film, self._segmenter.size)
            for mask, film in zip(self._segmenter.segment(batch)[0], films, strict=False):
                lungs = geometry.find_lungs(mask, *film.shape)
                boxes.append((-1, -1, -1, -1) if lungs.flag else lungs.box)
        return boxes


class LungsFinder:
    """lungs-finder's ``get_lungs``: HOG detectors, then Haar and LBP cascades where those find nothing.

    Args:
      paths: films.
    """

    def __init__(self, paths: list[str]):
        from bench.harness import Missing

        try:
            import cv2  # pyright: ignore[reportMissingImports]
            import lungs_finder  # pyright: ignore[reportMissingImports]
        except (ImportError, AttributeError) as error:  # AttributeError: OpenCV 5 has no HOG detector any more
            raise Missing(f"lungs-finder is not to be had: {error}") from error
        self._get_lungs = lungs_finder.get_lungs
        self._films = read(paths)
        self.images = len(paths)
        self.note = f"OpenCV {cv2.__version__}"

    def run(self, calls: int) -> None:
        for _ in range(calls):
            for film in self._films:
                self._get_lungs(film)

    def answer(self) -> list[float]:
        """As ``Ours.answer``; the crop is a view of the film, so its address tells where it was."""
        sides: list[float] = []
        for film in self._films:
            crop = self._get_lungs(film)
            if crop is None or not crop.size:
                sides += [-1.0] * 4
                continue
            top, left = divmod(crop.ctypes.data - film.ctypes.data, film.strides[0])
            sides += [float(left), float(top), float(left + crop.shape[1]), float(top + crop.shape[0])]
        return sides
