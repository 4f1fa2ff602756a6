"""``covidjax prepare``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
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


LAYOUTS = (
    *("auto", "folder", "split", "table", "ozturk", "ieee8023", "radiography"),
    *("covidx", "nih", "rsna", "chexpert", "lungs"),
)


def parse_classes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The classes that ``--classes`` names; none where it is not given."""
    if value in ("2", "3"):
        return CLASSES[: int(value)]
    return tuple(filter(None, map(str.strip, (value or "").split(","))))


def parse_mapping(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """What every ``--map NAME=CLASS`` says.

    Raises:
      UsageError: one that is not of that form.
    """
    pairs = [value.rpartition("=") for value in values]
    for value, (name, _, label) in zip(values, pairs, strict=True):
        if not name.strip() or not label.strip():
            raise UsageError(f"--map takes NAME=CLASS, such as --map Lung_Opacity=Pneumonia, not {value!r}.")
    return {name.strip(): label.strip() for name, _, label in pairs}


@click.command(
    short_help="Turn folders of X-rays into a dataset.", epilog="Example: covidjax prepare xrays/ --out data/mine"
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=common.PATH)
@click.option("--out", required=True, type=common.PATH, help="Folder of the dataset; must not exist yet.")
@common.choice_option("--layout", LAYOUTS, "How SOURCE is laid out; auto tells by what lies in it.")
@click.option("--masks", is_flag=True, help="Take images with lung masks, for a segmenter, and not classes.")
@click.option(
    "--table", type=common.PATH, help="What the images are, by their paths, in place of folders: a CSV file of any kind."
)
@click.option(
    "--classes",
    metavar="A,B,...",
    callback=parse_classes,
    help="The classes, as the folders or labels are called; 3 is COVID-19,No-Findings,Pneumonia, 2 leaves the last out."
    "  [default: those of the three that there are]",
)
@click.option(
    "--map",
    "mapping",
    metavar="NAME=CLASS",
    multiple=True,
    callback=parse_mapping,
    help="What is called NAME (a folder, a label, a finding) is of CLASS; may be given several times.",
)
@click.option("--keep-split", is_flag=True, help="Keep the publisher's train, val and test, a fold for each.")
@click.option("--image-size", type=click.IntRange(32, 2048), default=Preprocess().image_size, show_default=True)
@common.choice_option(
    "--lungs",
    ("none", "crop", "mask"),
    "crop: a square around both lungs; mask: their box, black outside them; none: the whole image.",
)
@common.invert_option()
@common.choice_option(
    "--group-by",
    ("patient", "none"),
    "patient: all images of one in the same fold; none: a random split, which leaks between folds.",
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--limit-per-class", type=click.IntRange(1), metavar="N", help="At most N images a class, drawn at random.")
@common.choice_option(
    "--duplicates",
    ("refuse", "drop", "keep"),
    "Of an image that several sources hold, keep takes all, as one patient's, and else the first source's only. One under "
    "several labels is refused, or left out (drop), or taken (keep).",
)
@click.option(
    "--patient-from",
    metavar="auto|dicom|folder|name|REGEX",
    default="auto",
    show_default=True,
    help="What tells the patient: DICOM PatientID, the folder below the class folder, the name it was published under, or "
    "an expression with one group, searched in the path below SOURCE. auto: PatientID, or else a published name.",
)
@click.option("--patients", metavar="CSV", type=common.PATH, help="Table with the columns path and patient, which wins.")
@click.option(
    "--patient-key",
    metavar="FILE",
    type=common.PATH,
    help="Secret key that patients' numbers are hashed with.  [default: the user's own, made when first needed]",
)
@common.renamed("--copies", "--duplicates")
@common.workers_option
@common.limits_options
@common.json_option
def prepare(
    sources: tuple[Path, ...],
    out: Path,
    masks: bool,
    classes: tuple[str, ...],
    image_size: int,
    lungs: Any,
    invert: Any,
    workers: int | None,
    limits: Limits,
    patients: Path | None,
    patient_key: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn folders of chest X-rays into a dataset for training.

    Every SOURCE is a folder with one subfolder of images for each class, also within train, val and test, a folder of
    images that --table lists, a published collection, or a ZIP or TAR archive of one; several are merged into one dataset.
    A file that cannot be read is listed, with its reason, and stops nothing.
    """
    if masks and (lungs != "none" or classes or options["mapping"] or options["table"] or options["keep_split"]):
        raise UsageError(
            "--masks is for a segmenter, which has no classes and no lungs yet; "
            "leave --classes and --lungs out, and --map, --table and --keep-split too."
        )

    from covidjax.data.prepare import Options
    from covidjax.data.prepare import prepare as run

    preprocess = Preprocess(image_size, lungs, classes or CLASSES, invert)
    options["infer_classes"] = not classes
    with common.stopping() as stop, common.counting("Decoding") as count:

        def progress(done: int, total: int) -> None:
            count(done, total)
            if stop():
                raise UserError(f"Stopped; nothing was left at {out}, so give the same command again.")

        chosen = Options(preprocess, masks=masks, limits=limits, **options)
        manifest = run(sources, out, chosen, workers=workers, patients=patients, patient_key=patient_key, progress=progress)
    for source in manifest["sources"]:
        common.say(f"{source['path']}: layout {source['layout']}")
    if not masks:
        common.say(f"Classes: {', '.join(manifest['classes'])}.")
    for fold, split in manifest["splits"].items():
        common.say(f"{fold} is the publisher's {split}.")
    for note in manifest["notes"]:
        common.say(f"Note: {note}.")
    if lungs != "none":
        whole, total = len(manifest["whole_films"]), manifest["images"]
        common.say(f"Lungs: {total - whole} images of {total}, by {manifest['lungs_by']}; {whole} were kept whole.")
    if manifest["options"]["group_by"] == "none":
        common.say("Random split: images of one patient stand in several folds, so held-out figures come out too good.")
    if manifest["contradictions"]:
        done = "left out" if manifest["options"]["duplicates"] == "drop" else "taken"
        common.say(f"Same image under several labels: {len(manifest['contradictions'])} files, {done}; see manifest.json.")
    if as_json:
        common.show_json(manifest)
    else:
        common.show(_tables(manifest))
    known, images = manifest["patients_known"], manifest["images"]
    common.say(f"Patients are known of {known} of {images} X-rays ({math.floor(100 * known / images)} %).")
    common.say(
        f"Wrote {manifest['images']} images of {manifest['patients']} patients in {manifest['folds']} folds to {out}."
    )


def _tables(manifest: dict[str, Any]) -> list[RenderableType]:
    from covidjax.report import tables

    parts: list[RenderableType] = []

    def add(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], below: str = "", numbers: int = 1) -> None:
        """Add a table, unless it is empty; its last columns are ``numbers``."""
        if rows:
            right = columns[-numbers:] if numbers else ()
            parts.append(tables.titled(title, tables.text_table(columns, rows, right=right), below))

    classes = manifest["classes"]
    counts = [*manifest["per_source"].items(), *manifest["per_fold"].items(), ("all", manifest["per_class"])]
    rows = [(name, *(row.get(label, 0) for label in classes), sum(row.values())) for name, row in counts]
    add("Images", ("source or fold", *classes, "all"), rows, numbers=len(classes) + 1)
    reasons = [(source, *item) for source, left_out in manifest["left_out"].items() for item in left_out.items()]
    add("Skipped", ("source", "reason", "files"), reasons)
    unread = [(entry["path"], entry["reason"]) for entry in manifest["skipped"]]
    more = f"and {len(unread) - 20} more, in manifest.json" if len(unread) > 20 else ""
    add("Could not be read", ("file", "reason"), unread[:20], more, numbers=0)
    undecided = [(entry["path"], entry["label"]) for entry in manifest["undecided"]]
    more = f"and {len(undecided) - 20} more, in manifest.json" if len(undecided) > 20 else ""
    add("Findings of two classes, left out", ("file", "findings"), undecided[:20], more, numbers=0)
    remarks = Counter(entry["remark"] for entry in manifest["remarks"]).most_common()
    add("Remarks", ("remark", "images"), remarks, "the images are named in manifest.json")
    whole = Counter((entry["source"], entry["reason"]) for entry in manifest.get("whole_films", []))
    add("Kept whole", ("source", "reason", "images"), [(*key, count) for key, count in whole.items()])
    return parts
