"""Contenders for the tests of the benchmarks' turns: small, and telling of themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.harness import Missing


class Diary:
    """Writes its name down at every call."""

    def __init__(self, name: str, diary: str):
        self.images, self._name, self._diary = 4, name, Path(diary)
        self.note = f"process {os.getpid()}"
        print("a library's own words, which are not messages")

    def run(self, calls: int) -> None:
        with self._diary.open("a") as file:
            file.write(f"{self._name} {calls}\n")
        time.sleep(0.02 * calls)

    def answer(self) -> list[float]:
        return [1.0, 2.0 + len(self._name) / 1000]


def leaving(**options: str) -> Diary:
    """Ends in its fourth turn."""
    contender = Diary(**options)
    runs = 0

    def run(calls: int) -> None:
        nonlocal runs
        runs += 1
        if runs > 4:  # one when it was made, two to warm up
            os._exit(3)

    contender.run = run
    return contender


def absent() -> None:
    """Cannot take part."""
    raise Missing("it is not installed")


def broken() -> None:
    """Fails."""
    raise ZeroDivisionError("no\nnumber")


def ended() -> None:
    """Takes its process with it."""
    os._exit(3)
