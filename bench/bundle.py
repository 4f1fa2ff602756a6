"""Puts a trained run in the place of the bundled weights: ``python -m bench.bundle RUN``."""

from __future__ import annotations

from pathlib import Path

import click
import rich

from bench.calibrate import bundle, test_metrics
from covidjax.errors import UserError
from covidjax.lungs import segmenter
from covidjax.report.tables import result_tables
from covidjax.runs import folder, load, weights_file


@click.command(epilog="Example: python -m bench.bundle runs/mine")
@click.argument("run", type=click.Path(path_type=Path))
def main(run: Path) -> None:
    """Put RUN in the place of the bundled weights: a classifier, calibrated on its validation fold, whose figures are
    printed, or a lung segmenter."""
    try:
        settings = folder.read_run(run)
        if settings.config.model.is_segmenter:
            networks = load.load_run(run, "cpu").networks
            weights_file.write(segmenter.BUNDLED, settings, networks, "", folder.read_trained_on(run))
            return
        print(bundle(run))
        rich.print(*result_tables(test_metrics(load.BUNDLED, settings.config.data.path), "The bundled file"))
    except UserError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
