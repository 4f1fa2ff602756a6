"""What the commands share: options, where to print, and how progress is shown."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.errors import UsageError, UserError
from covidjax.images.formats import Limits
from covidjax_cli.process import printing, say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from covidjax.data.dataset import Dataset

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


LEAST_KNOWN = 0.9
"""The share of X-rays whose patient is known below which training warns."""


PATH = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def choice_option(name: str, values: Sequence[str], text: str = "", default: str | None = None) -> Decorator:
    """An option that takes one of several values, the first of them unless ``default`` says in words what happens."""
    if default:
        return click.option(name, type=click.Choice(values), help=f"{text}  [default: {default}]")
    return click.option(name, type=click.Choice(values), default=values[0], show_default=True, help=text)


def invert_option(default: str | None = None) -> Decorator:
    """``--invert``, which is ``auto`` unless ``default`` says in words what happens."""
    text = "auto turns negatives (bone dark, air bright) into positives."
    return choice_option("--invert", ("auto", "never"), text, default)


_RUNTIME = "What computes; auto is the fastest that is installed for the device."

paths_argument = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
workers_option = click.option(
    "--workers", type=click.IntRange(1), help="Decoding processes.  [default: one a core and one more]"
)
device_option = choice_option("--device", ("auto", "cpu", "gpu"))
runtime_option = choice_option("--runtime", ("auto", "jax", "openvino", "onnxruntime"), _RUNTIME)
strict_option = click.option("--strict", is_flag=True, help="Exit with 1 if any file could not be read.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def _prevalences(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Raises UsageError where a text is no list of shares between 0 and 1."""
    shares = []
    for text in value.split(",") if value is not None else ():
        try:
            shares.append(float(text))
        except ValueError:
            shares.append(math.nan)
        if not 0 < shares[-1] < 1:
            raise UsageError(f"--prevalence takes shares between 0 and 1, such as 0.01,0.1, not {text.strip() or value!r}.")
    return tuple(dict.fromkeys(shares))


prevalence_option = click.option(
    "--prevalence",
    "prevalences",
    metavar="P,...",
    callback=_prevalences,
    help="Tell PPV and NPV of each class also where this share of all has it, such as 0.01,0.1.",
)


def limits_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that bound what one file may take; the command gets them as ``limits``."""

    @functools.wraps(command)
    def limited(max_megapixels: float, max_megabytes: float, max_seconds: float, **options: Any) -> Any:
        return command(limits=Limits(max_megapixels, max_megabytes, max_seconds), **options)

    decorated: Any = limited
    for name, default, least, text in (
        ("--max-seconds", Limits.seconds, 0.1, "A file that takes longer to decode is an error."),
        ("--max-megabytes", Limits.megabytes, 0.001, "A file that is longer is an error, also within an archive."),
        ("--max-megapixels", Limits.megapixels, 0.001, "An image that has more is an error."),
    ):
        number = click.FloatRange(least, 1e6)
        decorated = click.option(name, type=number, metavar="N", default=default, show_default=True, help=text)(decorated)
    return decorated


def renamed(old: str, new: str) -> Decorator:
    """Refuse an option by its old name, and say the new one."""

    def refuse(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None:
            raise UsageError(f"The option {old} is now called {new}; use {new} {value}.")

    # Eager: before anything else that may be wrong is complained of.
    return click.option(old, hidden=True, expose_value=False, is_eager=True, callback=refuse)


def existing_paths(paths: Sequence[Path]) -> list[Path]:
    """The paths of a command, with those that are listed on standard input in the place of ``-``.

    Raises:
      UsageError: none of them exists.
    """
    from covidjax.images.find import paths_from_list

    listed: list[Path] = []
    for path in paths:
        listed += paths_from_list(sys.stdin.buffer.read()) if str(path) == "-" else [path]
    if not listed:
        raise UsageError("There is no path on standard input; list files or folders of images, one a line.")
    if not any(path.exists() for path in listed):
        raise UsageError(f"{listed[0]} does not exist; name a file or a folder of images.")
    return listed


def say_skipped(files: int, masks: int) -> None:
    """Say how many files were skipped, if any: those that are no images, and the lung masks beside images."""
    if files:
        say(f"Skipped {files} files (not images).")
    if masks:
        say(f"Skipped {masks} files (lung masks beside their images).")


def say_unknown_patients(dataset: Dataset) -> None:
    """Warn where whose X-rays they are is not known of enough of them for folds that can be relied on."""
    share = dataset.known_share
    if share is not None and share < LEAST_KNOWN and dataset.manifest["options"]["group_by"] != "none":
        say(
            f"Warning: patients are known of {math.floor(100 * share)} % of the X-rays only, so images of one may stand in "
            "several folds and held-out figures come out too good; see --patient-from and --patients of `covidjax prepare`."
        )


def show(parts: Iterable[RenderableType]) -> None:
    """Tables and lines on stdout; as wide as the terminal, or as what they hold where there is none."""
    from rich.console import Console

    from covidjax.report.tables import WIDE

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with printing():
        with console.capture() as text:  # by itself it would end the command where nobody reads any more
            for part in parts:
                console.print(part)
        click.echo(text.get(), nl=False)


def show_json(value: Any) -> None:
    """One JSON object on stdout."""
    with printing():
        click.echo(json.dumps(value, indent=2))


def show_summary(summary: Any, *, as_json: bool, strict: bool) -> None:
    """The tables or the JSON of a command, and its closing sentences.

    Raises:
      UserError: no file could be read, or ``strict`` and one could not.
    """
    if as_json:
        show_json(summary.as_dict())
    else:
        show(summary.tables())
    for sentence in summary.sentences():
        say(sentence)
    summary.check(strict)


def bar(column: str) -> Progress:
    """A progress bar on stderr with a text, the task's field of that name, at its end."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[" + column + "]}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM came; a second Ctrl-C breaks off at once."""
    stop_requested = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop_requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop_requested.set()

    handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_requested.is_set
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def counting(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A function of the images done and of all: it shows a bar on a terminal, and a line now and then elsewhere."""
    with bar("speed") if sys.stderr.isatty() else contextlib.nullcontext() as progress:
        task = progress.add_task(verb, total=None, speed="") if progress else None
        start = last_line = time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            speed = f"{done / max(now - start, 1e-6):,.0f} images/s"
            if progress and task is not None:
                progress.update(task, completed=done, total=total, speed=speed)
            elif now - last_line >= PLAIN_SECONDS:
                last_line = now
                say(f"{verb}: {done} of {total}, {speed}")

        yield count


@contextlib.contextmanager
def advancing(verb: str, total: int, hint: str = "") -> Iterator[Callable[[], None]]:
    """A function to be called after each file: it shows the progress, and raises UserError where the command was stopped,
    with a hint how to go on."""
    count = itertools.count(1)
    with stopping() as stopped, counting(verb) as progress:

        def advance() -> None:
            files = next(count)
            progress(files, total)
            if stopped() and files < total:
                raise UserError(f"Stopped after {files} of {total} files{hint}.")

        yield advance
