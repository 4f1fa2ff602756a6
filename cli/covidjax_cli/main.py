"""The ``covidjax`` command: a group whose subcommands are imported when they are used."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from typing import Any

import click

from covidjax.errors import UsageError, UserError
from covidjax.files import MORE_SPACE, NO_SPACE
from covidjax_cli import process

COMMANDS = ("sample", "download", "prepare", "audit", "train", "evaluate", "score", "segment", "reproduce", "doctor")


class _EchoHandler(logging.Handler):
    """Writes the library's log as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        process.say(record.getMessage())


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for; turns expected failures into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"covidjax_cli.{cmd_name}"), cmd_name)

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        own_process = args is None  # rather than that of a program which calls this
        if own_process:
            process.prepare()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show ✓ shows ? and goes on
                stream.reconfigure(errors="replace")
        try:
            with process.printing():  # help and version
                return super().main(args, *rest, **options)
        except UserError as error:  # what a command fails with ends in invoke
            process.say(f"Error: {error}")
            sys.exit(1)
        except SystemExit as end:
            if own_process and end.code:
                process.leave(int(end.code))
            raise

    def invoke(self, ctx: click.Context) -> object:
        log = logging.getLogger("covidjax")
        handler = _EchoHandler()
        log.addHandler(handler)
        try:
            return super().invoke(ctx)
        except UserError as error:
            return _fail(ctx, str(error), 2 if isinstance(error, UsageError) else 1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(ctx, f"{where}{error.strerror or error}; {_remedy(error)}.")
        except ValueError as error:
            if not (name := process.refused_variable(error)):
                raise
            return _fail(ctx, f"jax does not take {name}={os.environ.get(name)}; unset {name}, or give it another value.")
        finally:
            log.removeHandler(handler)


def _fail(ctx: click.Context, sentence: str, code: int = 1) -> None:
    process.say(f"Error: {sentence}")
    ctx.exit(code)


def _remedy(error: OSError) -> str:
    """What mends an error of the system."""
    if error.errno in NO_SPACE:
        return MORE_SPACE
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "see that you may read or write there, or name another place"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        return "end other programs, or raise the system's limits (ulimit)"
    return "check the path"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="covidjax", prog_name="covidjax")
def main() -> None:
    """Train a COVID-19 / No-Findings / Pneumonia classifier on folders of chest X-rays, and score folders with it.

    Research software, not a diagnostic device.
    """
