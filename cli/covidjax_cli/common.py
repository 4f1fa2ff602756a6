"""What the commands share: where to print, and how progress is shown."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.errors import UsageError, printable
from covidjax.images.formats import Limits

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


def limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that bound what one file may take; the command gets them as ``limits``."""

    def bounded(max_megapixels: float, max_megabytes: float, max_seconds: float, **given: Any) -> Any:
        return command(limits=Limits(max_megapixels, max_megabytes, max_seconds), **given)

    usual = Limits()
    wrapped: Any = functools.wraps(command)(bounded)
    for name, value, least, what in (
        ("--max-seconds", usual.seconds, 0.1, "A file that takes longer to decode is an error."),
        ("--max-megabytes", usual.megabytes, 0.001, "A file that is longer is an error, also within an archive."),
        ("--max-megapixels", usual.megapixels, 0.001, "A film that has more is an error."),
    ):
        kind = click.FloatRange(least, 1e6)
        option: Any = click.option(name, type=kind, metavar="N", default=value, show_default=True, help=what)
        wrapped = option(wrapped)
    return wrapped


WORKERS = click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one a core and one more]")


def given_paths(paths: Sequence[Path]) -> list[Path]:
    """The paths of a command, with those that are listed on standard input in the place of ``-``.

    Raises:
      UsageError: none of them exists.
    """
    from covidjax.images.find import paths_from_list

    found: list[Path] = []
    for path in paths:
        found += paths_from_list(sys.stdin.buffer.read()) if str(path) == "-" else [path]
    if not found:
        raise UsageError("There is no path on standard input; list files or folders of films, one a line.")
    missing = next((path for path in found if not path.exists()), None)
    if missing and not any(path.exists() for path in found):
        raise UsageError(f"{missing} does not exist; name a file or a folder of films.")
    return found


def say(text: str) -> None:
    """A line for the reader, on stderr: stdout is for results."""
    click.echo(printable(text), err=True)


def show(parts: Iterable[RenderableType]) -> None:
    """Tables and lines on stdout; as wide as the terminal, or as what they hold where there is none."""
    from rich.console import Console

    from covidjax.report.tables import WIDE

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for part in parts:
        console.print(part)


def show_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2))


def bar(*columns: str) -> Progress:
    """A progress bar on stderr with the given text columns at its end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = [TextColumn("{task.fields[" + name + "]}") for name in columns]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *texts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class Counter:
    """Told (done, total); shows a bar on a terminal and a line now and then elsewhere."""

    def __init__(self, verb: str, progress: Progress | None):
        self._verb, self._progress = verb, progress
        self._task = progress.add_task(verb, total=None, speed="") if progress else None
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        speed = f"{done / max(now - self._start, 1e-6):,.0f} images/s"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, speed=speed)
        elif now - self._said >= PLAIN_SECONDS:
            self._said = now
            say(f"{self._verb}: {done} of {total}, {speed}")


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Says whether Ctrl-C or SIGTERM came; a second Ctrl-C breaks off at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def counting(verb: str) -> Iterator[Counter]:
    """A Counter for the time of the block."""
    if sys.stderr.isatty():
        with bar("speed") as progress:
            yield Counter(verb, progress)
    else:
        yield Counter(verb, None)
