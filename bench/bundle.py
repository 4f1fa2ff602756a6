"""Puts a trained run in the place of the bundled weights: ``python -m bench.bundle RUN``."""

from __future__ import annotations

import re
from pathlib import Path

import click
import rich

from covidjax.errors import UserError
from covidjax.lungs import segmenter
from covidjax.report.tables import confusion_table, metrics_table
from covidjax.runs import folder, load
from covidjax.training.calibrate import bundle, figures


@click.command(epilog="Example: python -m bench.bundle runs/mine")
@click.argument("run", type=click.Path(path_type=Path))
def main(run: Path) -> None:
    """Put RUN in the place of the bundled weights: a classifier, calibrated on its validation fold, whose figures are
    printed, or a lung segmenter."""
    try:
        if folder.read_run(run).config.model.name == "lung-unet":
            patients = sorted(key for key in folder.read_trained_on(run) if not re.fullmatch("[0-9a-f]{64}", key))
            segmenter.save(segmenter.BUNDLED, *segmenter._trained(run), patients)
            return
        print(bundle(run))
        for name, found in figures(load.BUNDLED, load.settings(run).config.data.path).items():
            rich.print(metrics_table(found, name), confusion_table(found))
    except UserError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
