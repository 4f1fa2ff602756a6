"""``covidjax evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from covidjax.errors import UserError
from covidjax_cli import common


@click.command(
    short_help="Metrics of a trained run on held-out images.",
    epilog="Example: covidjax evaluate runs/darkcovidnet-20261122-120000 --data data/other-hospital",
)
@click.argument("run", required=False, type=common.PATH)
@click.option("--data", metavar="DIR|sample", help="A prepared dataset.  [default: the test fold of the run's own]")
@click.option(
    "--operating-point",
    multiple=True,
    metavar="CLASS:METRIC=SHARE",
    help="Such as COVID-19:sensitivity=0.95, by a threshold of the validation fold.  [default: those of the run]",
)
@common.prevalence_option
@click.option("--out", type=common.PATH, help="Folder for a report as a run has it: report.html, figures, predictions.csv.")
@common.json_option
def evaluate(
    run: Path | None,
    data: str | None,
    operating_point: tuple[str, ...],
    prevalences: tuple[float, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Metrics of RUN (or the newest one under runs/, or else the bundled classifier) on images that it was not trained on.

    Of the dataset it was trained on the test fold is used, of any other one all images. Of a cross-validation every fold is
    used, each by the network that it was held out from; on other images, and of an ensemble, the mean probabilities count.
    """
    from covidjax.report import tables
    from covidjax.report.html import About
    from covidjax.report.trust_tables import operating_points_table
    from covidjax.runs import load
    from covidjax.training.evaluate import evaluate as evaluate_run

    path = run or load.newest_run() or (load.BUNDLED if data else None)
    if path is None:
        raise UserError(
            "There is no run under runs/; train one with `covidjax train`, name one, or name images for the bundled "
            "classifier with --data."
        )
    evaluation = evaluate_run(path, data, operating_points=operating_point, prevalences=prevalences)
    note = tables.SYNTHETIC if evaluation.synthetic else ""
    subject = "The bundled classifier" if path == load.BUNDLED else f"Run {path}"
    common.say(f"{subject} on {evaluation.description}.")
    for sentence in evaluation.notes:
        common.say(sentence)
    below = f"\n{note}" * bool(note)
    shown = [*tables.result_tables(evaluation.metrics, f"{path}{below}")]
    if points := evaluation.operating_points:
        shown.append(operating_points_table(points, f"Operating points{below}"))
    if out:
        evaluation.write_report(out, About(subject, note), shown)
    if as_json:
        about = {"run": str(path), "data": evaluation.description, "note": note}
        common.show_json({**about, "metrics": evaluation.metrics.as_dict(), "operating_points": points})
    else:
        common.show(shown)
    if out:
        common.say(f"Wrote {out}.")
