"""The process of a command, made ready before anything else: its standard streams, its text encoding and its variables of
the environment. Nothing of this happens to a program that imports covidjax."""

from __future__ import annotations

import codecs
import contextlib
import errno
import locale
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

import click

from covidjax.errors import UserError, printable

STREAMS = ("stdin", "stdout", "stderr")

JAX_KEPT = re.compile(
    r"JAX_(PLATFORMS|PLATFORM_NAME|NUM_CPU_DEVICES|\w+_VISIBLE_DEVICES|PJRT_\w+|CPU_\w+|(ENABLE_)?COMPILATION_CACHE\w*"
    r"|PERSISTENT_CACHE_\w+|SKIP_CUDA_\w+|LOG_\w+|LOGGING_LEVEL|TRACEBACK_\w+)"
)
"""Variables that say where jax computes, what it keeps, and what it tells. All others change what is computed or how
strictly programs are checked, and a command's results follow from its own options and settings alone."""

closed_streams: list[str] = []
"""Standard streams that were closed when the command started."""

set_aside: dict[str, str] = {}
"""Variables of the environment that a command does not follow, with their values."""


def prepare() -> None:
    """Make this process, which belongs to a command, ready."""
    _open_closed_streams()
    _use_utf8()
    # What fails in a background task fails the command too, and is told there in one sentence.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    for name in [name for name in os.environ if name.startswith("JAX_") and not JAX_KEPT.fullmatch(name)]:
        set_aside[name] = os.environ.pop(name)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before ONNX Runtime is imported, which would report to its maker otherwise


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed, as cron and daemons leave them: otherwise the next file or socket
    gets its number, and what is meant for a terminal is written there."""
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            closed_streams.append(name)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: names of files and what stands in files are
    UTF-8 whatever a terminal shows."""
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":  # as it is in UTF-8 mode
        return
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding or "utf-8")  # the terminal's
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def leave(code: int) -> None:
    """End the process now where a thread would keep it from ending: after a checkpoint that could not be written, threads
    of the storage library wait ten minutes for what never comes."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                _discard(number)
        os._exit(code)


def refused_variable(error: ValueError) -> str | None:
    """The variable of the environment whose value jax does not take, where that is what an error says."""
    match = re.search(r"JAX flag (jax_\w+)|environment '(JAX_\w+)'", str(error))
    return (match[1] or match[2]).upper() if match else None


def say(text: str) -> None:
    """A line for the reader, on stderr: stdout is for results. Where nobody can read it, work goes on."""
    try:
        click.echo(printable(text), err=True)
    except OSError:
        _discard(2)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print results to stdout. A reader who has had enough of them, such as ``head``, stops nothing.

    Raises:
      UserError: they cannot be written.
    """
    try:
        yield
    except OSError as error:
        _discard(1)
        if error.errno != errno.EPIPE:
            remedy = "the work is done, only its results could not be printed; send them elsewhere"
            raise UserError(f"Standard output cannot be written ({error.strerror}): {remedy}.") from error


def _discard(number: int) -> None:
    """Have what is written to a standard stream from here on, and what waits in its buffer, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
