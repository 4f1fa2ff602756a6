"""``covidjax evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from covidjax.errors import UserError
from covidjax_cli import common


@click.command(
    short_help="Metrics of a trained run on held-out films.",
    epilog="Example: covidjax evaluate runs/darkcovidnet-20261122-120000 --data data/other-hospital",
)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--data", metavar="DIR|sample", help="A prepared dataset.  [default: the test fold of the run's own]")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON instead of tables.")
def evaluate(run: Path | None, data: str | None, as_json: bool) -> None:
    """Metrics of RUN (or the newest one under runs/, or else the bundled classifier) on films that it was not trained on.

    Of the dataset it was trained on the test fold is used, of any other one all films. Of a cross-validation every fold is
    used, each by the network that it was held out from; on other films, and of an ensemble, the mean probabilities count.
    """
    from covidjax.report import tables
    from covidjax.runs import load
    from covidjax.runs.checkpoint import newest_run
    from covidjax.training.evaluate import evaluate as evaluate_run

    chosen = run or newest_run() or (load.BUNDLED if data else None)
    if chosen is None:
        raise UserError(
            "There is no run under runs/; train one with `covidjax train`, name one, or name films for the bundled "
            "classifier with --data."
        )
    found = evaluate_run(chosen, data)
    note = tables.SYNTHETIC if found.synthetic else ""
    what = "The bundled classifier" if chosen == load.BUNDLED else f"Run {chosen}"
    common.say(f"{what} on {found.described}.")
    if as_json:
        about = {"run": str(chosen), "data": found.described, "note": note}
        common.show_json({**about, "metrics": found.metrics.as_dict()})
        return
    title = f"{chosen}" + f"\n{note}" * bool(note)
    common.show(tables.result_tables(found.metrics, title))
