"""``covidjax reproduce``."""

from __future__ import annotations

from pathlib import Path

import click

from covidjax_cli import common


@click.command(
    short_help="The study's tables and figures, made again.",
    epilog="Example: covidjax reproduce --data collections/ --out reproduction/",
)
@click.option(
    "--data",
    required=True,
    metavar="DIR|sample",
    help="Folder that holds the collections as ozturk/, ieee8023/ and radiography/; or sample, for synthetic ones.",
)
@click.option("--out", required=True, type=common.PATH, help="Folder of everything that is made.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of each experiment's own.")
@click.option(
    "--config",
    type=common.PATH,
    help="TOML settings instead of the defaults, where an experiment has none of its own, such as configs/best.toml.",
)
@click.option("--only", metavar="NAMES", help="Some of the tables, such as table1,table3.  [default: all]")
@click.option(
    "--no-films", is_flag=True, help="A report without Figures 1 and 5: their X-rays may not be yours to pass on."
)
@common.json_option
def reproduce(
    data: str, out: Path, epochs: int | None, config: Path | None, only: str | None, no_films: bool, as_json: bool
) -> None:
    """Train and test every experiment of the study on the published collections, under its own protocol, a random split of
    the images, and with all images of a patient kept together.

    Writes report.html, report.md, figures/ and results.json. What is finished is kept: the same command goes on where it
    was stopped.
    """
    from covidjax.study import experiments, report
    from covidjax.study import reproduce as study
    from covidjax_cli.progress import training_progress

    names = [name.strip() for name in only.split(",") if name.strip()] if only else []
    chosen = experiments.load(names, epochs, recipe=config)
    recipe = experiments.describe_recipe(config) if config else ""
    sample = data == "sample"
    if sample:
        common.say("The built-in synthetic images; no figure from them says anything about patients.")
    with common.stopping() as stop:
        console = study.Console(say=common.say, counting=common.counting, training=training_progress, stop=stop)
        results = study.reproduce(data, out, chosen, epochs, console, recipe)
    common.say("Drawing the figures.")
    report.write(out, out / study.COLLECTIONS if sample else Path(data), results, images=not no_films)
    if as_json:
        common.show_json(results)
    else:
        common.show([report.summary(results)])
    common.say(f"Wrote {out}/report.html.")
