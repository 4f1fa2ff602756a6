"""How the training of a network is shown: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from covidjax_cli import common


class Lines:
    """Progress as plain lines: one an epoch, and one now and then within a long one."""

    def __init__(self, epochs: int, name: str):
        self._epochs, self._shown_at = epochs, time.monotonic()
        self._prefix = f"{name}, " if name else ""
        self._steps, self._metric = 0, ""

    def begin(self, description: str, steps: int, metric: str) -> None:
        self._steps, self._metric = steps, metric
        common.say(f"{self._prefix}{description}")

    def features(self, done: int, total: int) -> None:
        if time.monotonic() - self._shown_at >= common.PLAIN_SECONDS and done < total:
            self._shown_at = time.monotonic()
            common.say(f"{self._prefix}features of {done} of {total} images")

    def step(self, epoch: int, step: int, loss: float, metric: float, images_per_second: float) -> None:
        if time.monotonic() - self._shown_at >= common.PLAIN_SECONDS and step < self._steps:
            self._shown_at = time.monotonic()
            now = f"loss {loss:.3f}, {self._metric} {metric:.3f}, {images_per_second:,.1f} images/s"
            common.say(f"{self._prefix}epoch {epoch}/{self._epochs}, step {step}/{self._steps}: {now}")

    def epoch(self, record: dict[str, Any]) -> None:
        self._shown_at = time.monotonic()
        common.say(self._prefix + _epoch_line(record, self._epochs))


class Bar(Lines):
    """Progress as a bar over all steps of a network's training."""

    def __init__(self, epochs: int, name: str, bar: Any):
        super().__init__(epochs, name)
        self._bar = bar
        self._task = self._features = None

    def features(self, done: int, total: int) -> None:
        if self._features is None:
            self._features = self._bar.add_task(f"{self._prefix}features", total=total, now="")
        self._bar.update(self._features, completed=done)

    def step(self, epoch: int, step: int, loss: float, metric: float, images_per_second: float) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=self._steps * self._epochs, now="")
        now = f"loss {loss:.3f}  {self._metric} {metric:.3f}  {images_per_second:,.1f} images/s"
        done = (epoch - 1) * self._steps + step
        self._bar.update(self._task, completed=done, description=f"{self._prefix}epoch {epoch}/{self._epochs}", now=now)


@contextlib.contextmanager
def training_progress(epochs: int) -> Iterator[Callable[[str], Lines]]:
    """A function that gives the progress display of a network, by its name."""
    if not sys.stderr.isatty():
        yield partial(Lines, epochs)
        return
    with common.bar("now") as bar:
        yield lambda name: Bar(epochs, name, bar)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    parts = [
        f"{name} {' '.join(f'{figure} {value:.3f}' for figure, value in record[name].items())}"
        for name in ("train", "val", "test")
        if name in record
    ]
    if "probe" in record:
        from covidjax.training import probe

        return f"probe: {', '.join(parts)}; {probe.describe(record['probe'])}"
    return f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}, {record['images_per_second']:,.1f} images/s"
