"""``covidjax segment``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from covidjax.errors import UsageError
from covidjax.files import explaining
from covidjax_cli import common


@click.command(
    short_help="Find the lungs on X-rays.",
    epilog="Example: covidjax segment xrays/ --out lungs/ --output-type overlay",
)
@common.paths_argument
@click.option("--out", required=True, type=common.PATH, help="Folder for the PNG files and lungs.csv.")
@common.choice_option(
    "--output-type",
    ("mask", "crop", "overlay"),
    "mask: white lungs on black; crop: the box of both; overlay: the X-ray with lungs and box drawn in.",
)
@common.renamed("--what", "--output-type")
@click.option("--checkpoint", metavar="RUN", type=common.PATH, help="A run of lung-unet.  [default: bundled]")
@common.workers_option
@common.limits_options
@common.device_option
@common.runtime_option
@common.strict_option
@common.json_option
def segment(
    paths: tuple[Path, ...],
    out: Path,
    output_type: Any,
    checkpoint: Path | None,
    device: str,
    runtime: str,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the lungs on X-rays: files, and all images below folders and in ZIP and TAR archives; - for a list on stdin.

    One PNG for every image, under its path below the folder that was named, and OUT/lungs.csv with a row for every file:
    the box of both lungs in pixels, the mask's share of the image, its quality (good, or why the mask is implausible), and
    a warning where the file tells that it is no frontal chest X-ray.
    """
    existing = common.existing_paths(paths)
    for path in existing:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{out} lies in {path}, whose images are read; name a folder elsewhere.")

    from covidjax.images.find import find_images
    from covidjax.lungs.export import COLUMNS, export_images, output_names
    from covidjax.lungs.segmenter import open_segmenter
    from covidjax.scoring.output import open_table
    from covidjax.scoring.summary import SegmentSummary

    images = find_images(existing)
    segmenter = open_segmenter(device, runtime, checkpoint)
    common.say(f"Segmenter: {segmenter.title}.")
    common.say_skipped(images.skipped, images.masks)
    with explaining(out, verb="made"):
        out.mkdir(parents=True, exist_ok=True)
    csv, summary = out / "lungs.csv", SegmentSummary(output=out)
    hint = f"; {csv} has their rows"
    with open_table(csv, COLUMNS) as table, common.advancing("Segmenting", len(images.paths), hint) as advance:
        names = output_names(images.paths, images.roots)
        for row in export_images(images.paths, names, out, output_type, segmenter, **options):
            table.write(row.cells())
            summary.add(row)
            advance()
    summary.stop()
    common.show_summary(summary, as_json=as_json, strict=strict)
