"""``covidjax doctor``."""

from __future__ import annotations

import click

from covidjax.errors import UserError
from covidjax_cli import common


@click.command(short_help="What is installed, what is wrong, what mends it.", epilog="Example: covidjax doctor")
@common.json_option
def doctor(as_json: bool) -> None:
    """What is installed, which devices there are, what is wrong, and the command that mends it.

    Exits with 1 if anything is wrong.
    """
    from covidjax.report import tables
    from covidjax_cli.installation import examine

    findings = examine()
    if as_json:
        common.show_json([finding._asdict() for finding in findings])
    else:
        common.show([tables.text_table(("state", "what", "found", "remedy"), findings)])
    wrong = sum(finding.state == "wrong" for finding in findings)
    if wrong:
        raise UserError(f"{wrong} of {len(findings)} things are wrong; the last column says what mends them.")
