"""Seconds and images by stage."""

from __future__ import annotations

import time
from typing import NamedTuple


class Stage(NamedTuple):
    """One stage of a command."""

    stage: str
    seconds: float
    images: int
    """Images handled; 0 where counting them makes no sense."""


class Timing:
    """Seconds and images by stage.

    Stages that run at the same time, on several threads perhaps, each count their own seconds; the sum then exceeds the
    wall time.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.images: dict[str, int] = {}

    def add(self, stage: str, since: float, images: int = 0) -> None:
        """Add the time since ``since``, a value of ``time.perf_counter``, to a stage."""
        self.add_seconds(stage, time.perf_counter() - since, images)

    def add_seconds(self, stage: str, seconds: float, images: int = 0) -> None:
        """Add seconds, measured elsewhere, to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if images:
            self.images[stage] = self.images.get(stage, 0) + images

    def stages(self) -> list[Stage]:
        """Every stage, in the order in which they were first named."""
        return [Stage(stage, seconds, self.images.get(stage, 0)) for stage, seconds in self.seconds.items()]


class Stopwatch:
    """Times the training steps of an epoch, without what compiling and saving take in it."""

    def __init__(self, timing: Timing):
        self._timing, self._images = timing, 0
        # As if the epoch had begun later by the seconds that were spent on other stages before it.
        self._start = time.perf_counter() - self._other_stages()
        self.speed = 0.0
        """Images per second."""

    def add(self, images: int) -> None:
        """Count images that have been trained on."""
        self._images += images
        self.speed = self._images / max(self._seconds(), 1e-9)

    def done(self) -> None:
        """Add the epoch, whose steps have ended, to the timing."""
        self.add(0)
        self._timing.add_seconds("train", self._seconds(), self._images)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start - self._other_stages()

    def _other_stages(self) -> float:
        return sum(self._timing.seconds.get(stage, 0.0) for stage in ("compile", "checkpoint"))
