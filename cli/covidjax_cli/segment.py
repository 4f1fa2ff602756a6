"""``covidjax segment``."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from covidjax.errors import UsageError, UserError
from covidjax.images.formats import Limits
from covidjax_cli import common


@click.command(short_help="Find the lungs on films.", epilog="Example: covidjax segment xrays/ --out lungs/ --what overlay")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the PNG files and lungs.csv.")
@click.option(
    "--what",
    type=click.Choice(["mask", "crop", "overlay"]),
    default="mask",
    show_default=True,
    help="mask: white lungs on black; crop: the box of both; overlay: the film with lungs and box drawn in.",
)
@click.option(
    "--checkpoint", metavar="RUN", type=click.Path(path_type=Path), help="A run of lung-unet.  [default: bundled]"
)
@common.WORKERS
@common.limits
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "jax", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What computes; auto is the fastest that is installed for the device.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if any file could not be read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def segment(
    paths: tuple[Path, ...],
    out: Path,
    what: Any,
    checkpoint: Path | None,
    workers: int | None,
    limits: Limits,
    device: str,
    runtime: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Find the lungs on films: files, and all images below folders and in ZIP and TAR archives; - for a list on stdin.

    One PNG for every film, under its path below the folder that was named, and OUT/lungs.csv with a row for every file: the
    box of both lungs in pixels, the mask's share of the film, its quality (good, or why the mask is implausible), and a
    warning where the file tells that it is no frontal chest film.
    """
    given = common.given_paths(paths)
    for path in given:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{out} lies in {path}, whose films are read; name a folder elsewhere.")

    from covidjax.images.find import find_images
    from covidjax.inference.memory import MicroBatcher
    from covidjax.lungs.export import COLUMNS, GOOD, output_names
    from covidjax.lungs.export import export_images as run
    from covidjax.lungs.segmenter import open_segmenter
    from covidjax.report import tables
    from covidjax.scoring.output import open_table

    found = find_images(given)
    segmenter = open_segmenter(device, runtime, checkpoint)
    common.say(f"Segmenter: {segmenter.title}.")
    if found.skipped:
        common.say(f"{found.skipped} other files passed over: not images, by their ending.")
    total, start = len(found.paths), time.perf_counter()
    quality, errors = Counter[str](), Counter[str]()
    decode = lungs = write = 0.0
    warned = 0
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out} cannot be made ({error.strerror}); name a folder that you may write to.") from error
        table = stack.enter_context(open_table(out / "lungs.csv", COLUMNS))
        stop = stack.enter_context(common.stopping())
        progress = stack.enter_context(common.counting("Segmenting"))
        names = output_names(found.paths, found.roots)
        sparing = MicroBatcher(segmenter, segmenter.size, segmenter.title, segmenter.digest)
        rows = run(found.paths, names, out, what, sparing, workers=workers, limits=limits)
        for done, row in enumerate(rows, 1):
            table.write(row.cells())
            decode, lungs, write = decode + row.decode_seconds, lungs + row.lungs_seconds, write + row.write_seconds
            (quality if row.status == "ok" else errors)[row.quality or row.error] += 1
            warned += bool(row.warning)
            progress(done, total)
            if stop() and done < total:
                raise UserError(f"Stopped after {done} of {total} files; {out / 'lungs.csv'} has their rows.")
    good = quality.total()
    wall = time.perf_counter() - start
    stages = [("decode", decode, total), ("lungs", lungs, good), ("write", write, good), ("wall", wall, total)]
    if as_json:
        timing = [dict(zip(("stage", "seconds", "images"), stage, strict=True)) for stage in stages]
        result = {
            "files": total,
            "ok": good,
            "errors": total - good,
            "warnings": warned,
            "quality": dict(quality),
            "timing": timing,
        }
        common.show_json(result | {"output": str(out)})
    else:
        parts = [tables.titled("Lungs", tables.text_table(("quality", "films"), quality.most_common(), right=("films",)))]
        if errors:
            reasons = tables.text_table(("reason", "files"), errors.most_common(), right=("files",))
            parts.append(tables.titled("Could not be read", reasons))
        parts.append(tables.timing_table(stages, "decode, write: all threads added up"))
        common.show(parts)
    common.say(f"{quality[GOOD]} of {total} films have plausible lungs, {total - good} could not be read. Wrote {out}.")
    if warned:
        common.say(f"{warned} of them with a warning; see the column of that name.")
    if not good:
        raise UserError("No film could be read; lungs.csv has the reasons.")
    if strict and good < total:
        raise UserError(f"{total - good} of {total} files could not be read, and --strict was given; see lungs.csv.")
