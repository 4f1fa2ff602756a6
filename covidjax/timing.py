"""Seconds and images by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Timing:
    """Seconds by stage, and images handled where that makes sense."""

    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, since: float, images: int = 0) -> None:
        """Add the time since then to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - since
        if images:
            self.images[stage] = self.images.get(stage, 0) + images


class Stopwatch:
    """Times the steps of an epoch, without what compiling and saving took in it."""

    def __init__(self, timing: Timing):
        self._timing, self._images = timing, 0
        self._start, self._before = time.perf_counter(), self._aside()
        self.speed = 0.0

    def add(self, images: int) -> None:
        """So many more images have been trained on."""
        self._images += images
        self.speed = self._images / max(self._seconds(), 1e-9)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start - (self._aside() - self._before)

    def _aside(self) -> float:
        return sum(self._timing.seconds.get(stage, 0.0) for stage in ("compile", "checkpoint"))

    def done(self) -> None:
        """The epoch's steps have ended."""
        self.add(0)
        self._timing.add("train", time.perf_counter() - self._seconds(), self._images)
