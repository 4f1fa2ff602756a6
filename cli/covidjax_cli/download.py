"""``covidjax download``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from covidjax.errors import UsageError, UserError
from covidjax_cli import common

if TYPE_CHECKING:
    from covidjax.data.download import Published


@click.command(
    short_help="Fetch a published collection of X-rays.",
    epilog="Example: covidjax download ozturk --to collections/ozturk",
)
@click.argument("name", required=False)
@click.option("--to", type=common.PATH, metavar="DIR", help="Folder that the X-rays are unpacked into.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence without being asked.")
@click.option("--list", "listed", is_flag=True, help="List the collections, with their licences.")
def download(name: str | None, to: Path | None, accept_licence: bool, listed: bool) -> None:
    """Fetch a published collection of X-rays, check it and unpack it into DIR.

    An interrupted download goes on where it stopped when the same command is given again. Of collections that only their
    owners give out, the steps to get them are printed. No other command uses the network.
    """
    from covidjax.data import download as library

    if listed:
        for published in library.published().values():
            owner, kaggle = "given out by its owner only", "from Kaggle" if published.kaggle else "from the network"
            click.echo(f"{published.name}: {published.title}, {owner if published.steps else kaggle}")
            click.echo(f"    licence: {published.licence}")
        return
    if not name:
        raise UsageError("No collection is named; give one of those that `covidjax download --list` shows.")
    collection = library.find(name)
    common.say(f"{collection.name}: {collection.title}\nLicence: {collection.licence}.\nCite: {collection.citation}.")
    if collection.steps:
        click.echo(f"{collection.name} is given out by its owner only:")
        for number, step in enumerate(collection.steps, 1):
            click.echo(f"{number}. {step}")
        _say_how_to_go_on(collection, Path("FOLDER"))
        return
    if not to:
        raise UsageError("No folder is named; give one with --to DIR.")
    _accept(accept_licence)
    with _progress() as progress:
        receipt = library.download(collection, to, progress=progress)
    if digest := receipt.get("sha256"):
        known = "as expected" if receipt["known_before"] else "recorded here for the first time"
        common.say(f"{receipt['bytes']:,} bytes, SHA-256 {digest} ({known}; it stands in {to / library.RECEIPT}).")
    if refused := receipt.get("refused"):
        common.say(f"Left out {refused} members of the archive that are links or would lie outside of {to}.")
    common.say(f"Wrote {to}.")
    _say_how_to_go_on(collection, to)


def _accept(accepted: bool) -> None:
    """Ask for the licence.

    Raises:
      UsageError: nobody can be asked.
      UserError: it was not accepted.
    """
    if accepted:
        return
    if not _can_ask():
        raise UsageError("The licence has to be accepted, and nobody can be asked here; add --accept-licence to accept it.")
    if not click.confirm("Do you accept this licence?", err=True):
        raise UserError("The licence was not accepted, so nothing was downloaded; --accept-licence accepts it.")


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _say_how_to_go_on(collection: Published, to: Path) -> None:
    if collection.note:
        common.say(f"Note: {collection.note}.")
    if collection.layout:
        common.say(f"Make a dataset of it with `covidjax prepare {to} --layout {collection.layout} --out NAME`.")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A function of the bytes done and of all, 0 where that is not known: a line now and then, on a terminal always the
    same."""
    last, terminal = time.monotonic(), sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= (0.2 if terminal else common.PLAIN_SECONDS):
            last = now
            of = f" of {total / 1e6:,.1f}" if total else ""
            text = f"Downloading: {done / 1e6:,.1f}{of} MB"
            click.echo(f"\r{text}" if terminal else text, nl=not terminal, err=True)

    yield show
    if terminal:
        click.echo("\r\033[K", nl=False, err=True)
