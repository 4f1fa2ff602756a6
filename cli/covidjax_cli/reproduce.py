"""``covidjax reproduce``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax_cli import common

if TYPE_CHECKING:
    from covidjax.training.loop import Progress


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
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of everything that is made.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of each experiment's own.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="TOML settings instead of the defaults, where an experiment has none of its own, such as configs/best.toml.",
)
@click.option("--only", metavar="NAMES", help="Some of the tables, such as table1,table3.  [default: all]")
@click.option("--no-films", is_flag=True, help="A report without Figures 1 and 5, whose films may not be yours to pass on.")
@common.json_option
def reproduce(
    data: str, out: Path, epochs: int | None, config: Path | None, only: str | None, no_films: bool, as_json: bool
) -> None:
    """Train and test every experiment of the study on the published collections, under its own protocol, a random split of
    the images, and with all films of a patient kept together.

    Writes report.html, report.md, figures/ and results.json. What is finished is kept: the same command goes on where it
    was stopped.
    """
    from covidjax.study import experiments, report
    from covidjax.study import reproduce as study

    names = [name.strip() for name in only.split(",") if name.strip()] if only else []
    chosen = experiments.load(names, epochs, recipe=config)
    if data == "sample":
        common.say("The built-in synthetic films; no figure from them says anything about patients.")
    with common.stopping() as stop:
        recipe = experiments.describe_recipe(config) if config else ""
        results = study.reproduce(data, out, chosen, epochs, _Show(stop), recipe)
    common.say("Drawing the figures.")
    report.write(out, out / study.COLLECTIONS if data == "sample" else Path(data), results, films=not no_films)
    if as_json:
        common.show_json(results)
    else:
        common.show(_tables(results))
    common.say(f"Wrote {out}/report.html.")


class _Show:
    """Tells the terminal; ``covidjax.reproduce.Show``."""

    def __init__(self, stop: Callable[[], bool]):
        self.stop = stop

    def say(self, line: str) -> None:
        common.say(line)

    def counting(self, verb: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
        return common.counting(verb)

    def training(self, epochs: int) -> contextlib.AbstractContextManager[Callable[[str], Progress]]:
        from covidjax_cli.progress import training_progress

        return training_progress(epochs)


def _tables(results: dict[str, Any]) -> list[Any]:
    from covidjax.report import tables

    rows = []
    for each in results["experiments"].values():
        f1 = [row[2] for row in each["study"]["classes"].values()]
        study = f"{sum(f1) / len(f1):.3f}" if f1 else ""
        for split, found in each["protocols"].items():
            metrics, minutes = found["metrics"], sum(found["seconds"]) / 60
            figures = f"{metrics['accuracy']:.3f}", f"{metrics['macro']['f1']:.3f}", study, f"{minutes:.1f}"
            rows.append((f"{each['number']}, {each['title']}", split, found["dataset"]["images"], *figures))
    numbers = ("films", "accuracy", "macro F1", "study's macro F1", "minutes")
    return [tables.titled("Reproduction", tables.text_table(("table", "split", *numbers), rows, right=numbers))]
