"""The ``covidjax`` command: a group whose subcommands are imported when they are used."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys

import click

from covidjax.errors import UsageError, UserError, printable

COMMANDS = ("sample", "download", "prepare", "train", "evaluate", "score", "segment", "reproduce", "doctor")


class _EchoHandler(logging.Handler):
    """Writes the library's log as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(record.getMessage()), err=True)


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for; turns expected failures into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"covidjax_cli.{cmd_name}"), cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show ✓ shows ? and goes on
                stream.reconfigure(errors="replace")
        log = logging.getLogger("covidjax")
        handler = _EchoHandler()
        log.addHandler(handler)
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except BrokenPipeError:
            # The reader of our output (head, less) has had enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)
            click.echo(f"Error: {where}{reason}; check the path, your rights and the space that is left.", err=True)
            ctx.exit(1)
        finally:
            log.removeHandler(handler)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="covidjax", prog_name="covidjax")
def main() -> None:
    """Train a COVID-19 / No-Findings / Pneumonia classifier on folders of chest X-rays, and score folders with it.

    Research software, not a diagnostic device.
    """
