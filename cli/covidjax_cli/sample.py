"""``covidjax sample``."""

from __future__ import annotations

from pathlib import Path

import click

from covidjax_cli import common


@click.command(
    short_help="Write synthetic X-rays to try the commands on.",
    epilog="Example: covidjax sample xrays/ --images 60 --seed 1",
)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--images", default=600, show_default=True, type=click.IntRange(min=1), help="Number of images.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Another seed, other patients.")
@click.option("--size", metavar="PIXELS", default=224, show_default=True, type=click.IntRange(min=32), help="Of each side.")
def sample(folder: Path, images: int, seed: int, size: int) -> None:
    """Write synthetic chest X-rays as PNG files to DIR, one subfolder for each class.

    They are drawn from formulas and random numbers: no result on them says anything about patients.
    """
    from covidjax.data import synthetic

    synthetic.write_images(folder, images, seed=seed, size=size)
    common.say(f"Wrote {images} synthetic images to {folder}: no result on them says anything about patients.")
