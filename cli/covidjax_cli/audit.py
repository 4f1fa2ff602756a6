"""``covidjax audit``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from covidjax.errors import UsageError, UserError
from covidjax.files import explaining
from covidjax_cli import common
from covidjax_cli.process import printing

MARKS = {"pass": "PASS", "fail": "FAIL", "not applicable": "–"}


@click.command(
    short_help="Look for what misleads a network in a dataset.",
    epilog="Example: covidjax audit data/mine --run runs/darkcovidnet-20261122-120000 --out audit/",
)
@click.argument("data", metavar="DATA|sample")
@click.option("--run", type=common.PATH, help="A run, to see whether it looks at the lungs of its held-out images.")
@click.option("--out", required=True, type=common.PATH, help="Folder for audit.html and audit.json.")
@common.device_option
@common.runtime_option
@common.json_option
@click.pass_context
def audit(context: click.Context, data: str, run: Path | None, out: Path, device: str, runtime: str, as_json: bool) -> None:
    """Look for what misleads a network in DATA, a prepared dataset: whether source, border, what lies outside the lungs,
    the file, or age, sex and projection tell the class, and which images are there twice, across folds or under two labels.

    With --run, also how much the run's predictions change where all but the lungs, or the corners, are blanked, and where
    on the image their evidence lies. One sentence a check; exit 1 if one fails."""
    from covidjax.data.sample import open_dataset
    from covidjax.lungs.segmenter import open_segmenter
    from covidjax.runs import load
    from covidjax.trust import audit_report
    from covidjax.trust.audit import audit as audit_dataset
    from covidjax.trust.reliance import reliance

    preprocess = load.read_run(run).preprocess if run else None
    dataset = open_dataset(data, preprocess)
    if dataset.masks:
        raise UsageError(f"{data} holds images with lung masks and no classes; name a dataset of classes.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the audit.")
    segmenter = open_segmenter(device, runtime)
    with explaining(out):  # before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    with common.stopping() as stop:
        shown: set[str] = set()

        def tick(what: str, done: int, total: int) -> None:
            if stop():
                raise UserError("Stopped; nothing was written, so give the same command again.")
            if what not in shown:
                shown.add(what)
                common.say(f"{what} …")

        of_run = partial(tick, "Looking at the run")
        # First, since it may be that nothing of the dataset is held out of it.
        relies = [reliance(run, dataset, segmenter, of_run)] if run else []
        checks = [*audit_dataset(dataset, segmenter, tick), *relies]
    audit_report.write(out, dataset, checks, str(run) if run else None)
    if as_json:
        common.show_json(audit_report.as_dict(dataset, checks, str(run) if run else None))
    else:
        with printing():
            for check in checks:
                click.echo(f"{MARKS[check.status]:4} {check.title}: {check.sentence}")
    common.say(audit_report.verdict(checks))
    common.say(f"Wrote {out / audit_report.HTML} and {audit_report.JSON}.")
    if any(check.status == "fail" for check in checks):
        context.exit(1)
