"""Puts a trained run in the place of the bundled weights: ``python -m bench.bundle RUN``. What the file is worth, of
images that it has not seen, ``covidjax evaluate covidjax/weights/classifier.safetensors --data DATA`` says."""

from __future__ import annotations

from pathlib import Path

import click

from bench.calibrate import bundle
from covidjax.errors import UserError
from covidjax.lungs import segmenter
from covidjax.runs import folder, load, weights_file


@click.command(epilog="Example: python -m bench.bundle runs/mine")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--licence", default="", help="Of the weights.  [default: that of what RUN was started from]")
def main(run: Path, licence: str) -> None:
    """Put RUN in the place of the bundled weights: a classifier, calibrated on left-out sources or on its validation fold,
    or a lung segmenter."""
    try:
        settings = folder.read_run(run)
        if settings.config.model.is_segmenter:
            networks = load.load_run(run, "cpu").networks
            weights_file.write(segmenter.BUNDLED, settings, networks, "", folder.read_trained_on(run))
            return
        print(f"{load.BUNDLED}: {bundle(run, licence=licence)}")
    except UserError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
