"""``covidjax prepare``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covidjax.config import Preprocess
from covidjax.errors import UsageError, UserError
from covidjax.images.formats import Limits
from covidjax.labels import CLASSES
from covidjax_cli import common

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command(
    short_help="Turn folders of X-rays into a dataset.", epilog="Example: covidjax prepare xrays/ --out data/mine"
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the dataset; must not exist yet.")
@click.option(
    "--layout",
    type=click.Choice(["auto", "folder", "ozturk", "ieee8023", "radiography", "lungs"]),
    default="auto",
    show_default=True,
    help="How SOURCE is laid out; auto tells by what lies in it.",
)
@click.option("--masks", is_flag=True, help="Take films with lung masks, for a segmenter, and not classes.")
@click.option("--classes", type=click.Choice(["3", "2"]), default="3", show_default=True, help="2 leaves Pneumonia out.")
@click.option("--image-size", type=click.IntRange(32, 2048), default=Preprocess().image_size, show_default=True)
@click.option(
    "--lungs",
    type=click.Choice(["none", "crop", "mask"]),
    default="none",
    show_default=True,
    help="crop: a square around both lungs; mask: their box, black outside them; none: the whole film.",
)
@common.invert_option()
@click.option(
    "--group-by",
    type=click.Choice(["patient", "none"]),
    default="patient",
    show_default=True,
    help="patient: all films of one in the same fold; none: a random split, which leaks between folds.",
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--limit-per-class", type=click.IntRange(1), metavar="N", help="At most N films a class, drawn at random.")
@click.option(
    "--copies",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    show_default=True,
    help="Of a film that several sources hold, take the first source's only, or all as one patient's.",
)
@common.workers_option
@common.limits_options
@common.json_option
def prepare(
    sources: tuple[Path, ...],
    out: Path,
    layout: str,
    masks: bool,
    classes: str,
    image_size: int,
    lungs: Any,
    invert: Any,
    group_by: str,
    folds: int,
    seed: int,
    limit_per_class: int | None,
    copies: Any,
    workers: int | None,
    limits: Limits,
    as_json: bool,
) -> None:
    """Turn folders of chest X-rays into a dataset for training.

    Every SOURCE is a folder with one subfolder of images for each class, or a published collection; several are merged
    into one dataset. A file that cannot be read is listed, with its reason, and stops nothing.
    """
    if masks and (lungs != "none" or classes != "3"):
        raise UsageError(
            "--masks is for a segmenter, which has no classes and no lungs yet; leave --classes and --lungs out."
        )

    from covidjax.data.prepare import Options
    from covidjax.data.prepare import prepare as run

    options = Options(
        Preprocess(image_size, lungs, CLASSES[: int(classes)], invert),
        *(layout, group_by, folds, seed, limit_per_class, copies),
        masks=masks,
        limits=limits,
    )
    with common.stopping() as stop, common.counting("Decoding") as count:

        def progress(done: int, total: int) -> None:
            count(done, total)
            if stop():
                raise UserError(f"Stopped; nothing was left at {out}, so give the same command again.")

        manifest = run(sources, out, options, workers=workers, progress=progress)
    for source in manifest["sources"]:
        common.say(f"{source['path']}: layout {source['layout']}")
    for note in manifest["notes"]:
        common.say(f"Note: {note}.")
    if lungs != "none":
        whole, total = len(manifest["whole_films"]), manifest["images"]
        common.say(f"Lungs: {total - whole} films of {total}, by {manifest['lungs_by']}; {whole} were kept whole.")
    if group_by == "none":
        common.say("Random split: films of one patient stand in several folds, so held-out figures come out too good.")
    if as_json:
        common.show_json(manifest)
    else:
        common.show(_tables(manifest))
    common.say(
        f"Wrote {manifest['images']} images of {manifest['patients']} patients in {manifest['folds']} folds to {out}."
    )


def _tables(manifest: dict[str, Any]) -> list[RenderableType]:
    from covidjax.report import tables

    classes = manifest["classes"]
    named = [*manifest["per_source"].items(), *manifest["per_fold"].items(), ("all", manifest["per_class"])]
    counts = [(name, *(row.get(label, 0) for label in classes), sum(row.values())) for name, row in named]
    columns = ("source or fold", *classes, "all")
    parts: list[RenderableType] = [tables.titled("Images", tables.text_table(columns, counts, right=columns[1:]))]
    reasons = [(source, *item) for source, found in manifest["left_out"].items() for item in found.items()]
    if reasons:
        table = tables.text_table(("source", "reason", "files"), reasons, right=("files",))
        parts.append(tables.titled("Left out", table))
    if manifest["skipped"]:
        shown = [(entry["path"], entry["reason"]) for entry in manifest["skipped"][:20]]
        more = len(manifest["skipped"]) - len(shown)
        below = f"and {more} more, in manifest.json" if more else ""
        parts.append(tables.titled("Could not be read", tables.text_table(("file", "reason"), shown), below))
    if remarks := Counter(entry["remark"] for entry in manifest["remarks"]):
        table = tables.text_table(("remark", "films"), remarks.most_common(), right=("films",))
        parts.append(tables.titled("Remarks", table, "the films are named in manifest.json"))
    if manifest.get("whole_films"):
        counted = Counter((entry["source"], entry["reason"]) for entry in manifest["whole_films"])
        rows = [(*key, count) for key, count in counted.items()]
        parts.append(tables.titled("Kept whole", tables.text_table(("source", "reason", "films"), rows, right=("films",))))
    return parts
