"""``report.md`` and ``report.html`` of a reproduction: its tables beside the study's, its figures, what was counted."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from covidjax.data import readers
from covidjax.data.dataset import Dataset
from covidjax.lungs import geometry, overlay
from covidjax.lungs import stream as lung_stream
from covidjax.lungs.segmenter import open_segmenter
from covidjax.report import plots
from covidjax.report.plots import _bare, _figure, _save
from covidjax.study import report

EACH = 2
"""Films of each class of the original and segmented ones."""


def samples(path: Path, dataset: Dataset, each: int = 4) -> None:
    """Some films of each class as the network gets them, drawn at random, always the same ones."""
    source, random = dataset.source(range(dataset.folds)), np.random.default_rng(0)
    labels = np.empty(len(source), np.int32)
    images = np.empty((len(source), *source.shape), np.uint8)
    source.read(np.arange(len(source)), images, labels)
    classes = dataset.preprocess.classes
    figure, axes = _figure(6.4, 1.7 * len(classes), len(classes), each)
    for label, row in enumerate(axes):
        chosen = random.permutation(np.flatnonzero(labels == label))[:each]
        for axis, film in zip(row, chosen.tolist(), strict=False):
            axis.imshow(images[film, ..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set_xlabel(source.texts(film, "source")[0], fontsize=8)
        row[0].set_ylabel(classes[label])
    _bare(axes)
    _save(figure, path)


def segmented(path: Path, roots: Sequence[Path], classes: Sequence[str], segmenter: lung_stream.Segmenter) -> None:
    """Some films of each class, below each its lungs tinted with their box, below that what is cut out of it."""
    examples = [example for root in roots for example in readers.read(root).examples]
    random = np.random.default_rng(0)
    chosen = []
    for label in classes:
        mine = [example for example in examples if example.label == label]
        chosen += [mine[row] for row in random.permutation(len(mine))[:EACH].tolist()]
    figure, axes = _figure(7.2, 4.2, 3, len(chosen))
    films = lung_stream.segment_images([str(example.path) for example in chosen], segmenter)
    for column, (example, film) in enumerate(zip(chosen, films, strict=True)):
        if film.gray is None or film.lungs is None:
            continue
        axes[0, column].imshow(film.gray, cmap="gray", vmin=0, vmax=255)
        axes[1, column].imshow(np.asarray(overlay.render(film.gray, film.lungs, "overlay")))
        axes[2, column].imshow(geometry.frame_lungs(film.gray, film.lungs, "crop"), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(example.label, fontsize=8)
    for row, name in zip(axes, ("original", "lungs found", "cut out"), strict=True):
        row[0].set_ylabel(name, fontsize=8)
    _bare(axes)
    _save(figure, path)


SPLITS = {"random": "random split", "patient": "patients apart"}

FIGURES = "figures"


class Table(NamedTuple):
    """Cells of text; a row whose first cell is empty goes on with the one above."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: str = ""


class Picture(NamedTuple):
    """A figure beside the report."""

    file: str
    """Relative to the report."""
    caption: str


class Section(NamedTuple):
    """A heading and what stands below it; figures of a row stand side by side where there is room."""

    title: str
    paragraphs: list[str]
    tables: list[Table]
    pictures: list[list[Picture]]


def write(out: Path, data: Path, results: Mapping[str, Any], *, films: bool = True) -> None:
    """Draw the figures and write both reports.

    Args:
      out: folder of the reproduction.
      data: folder of the collections.
      results: what ``out/results.json`` holds.
      films: whether to show any.
    """
    found = results["experiments"]
    sections = [_samples(out, found) if films else None]
    for name, each in found.items():
        sections.append(_times(each, results) if each["times_of"] else _experiment(out, name, each))
    sections.append(_lungs(out, data, found) if films else None)
    about = results["about"]
    facts = [
        ("data", about["data"]),
        ("epochs", str(about["epochs"] or "as each experiment says")),
        ("settings", about["settings"] or "the defaults, but for what each experiment says"),
        ("device", ", ".join(_devices(found.values()))),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
    ]
    if not films:
        facts.append(("left out", "Figures 1 and 5, which show films of the collections"))
    context = {
        "covidjax": about["covidjax"],
        "note": about["note"],
        "facts": facts,
        "sections": [section for section in sections if section],
    }
    environment = Environment(
        loader=PackageLoader("covidjax.study"),
        autoescape=lambda name: bool(name and name.endswith(".html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = lambda file: embedded(out / file)
    for name in ("report.md", "report.html"):
        (out / name).write_text(environment.get_template(name).render(context))


def embedded(file: Path) -> str:
    """A file as a data URI."""
    kind = mimetypes.guess_type(file.name)[0]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _experiment(out: Path, name: str, each: Mapping[str, Any]) -> Section:
    protocols, study = each["protocols"], each["study"]
    paragraphs = [each["about"], *(_films(SPLITS[split], study, found) for split, found in protocols.items())]
    pictures = [_pictures(out, name, each["number"], "confusion", protocols), _pictures(out, name, "", "curves", protocols)]
    if any("members" in found for found in protocols.values()):
        pictures.insert(1, _pictures(out, name, each["number"], "folds", protocols))
    tables = [_whole(study, protocols), _by_class(study, protocols)]
    return Section(f"{each['number']}. {each['title']}", paragraphs, tables, pictures)


def _films(split: str, study: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How many films there were, beside the study's, and what became of others."""
    dataset = found["dataset"]
    images, wanted = dataset["images"], study["images"]
    classes = ", ".join(f"{count} {name}" for name, count in dataset["per_class"].items())
    text = f"{split.capitalize()}: {images:,} films of {dataset['patients']:,} patients ({classes})"
    if wanted and images != wanted:
        text += f", {abs(wanted - images):,} {'fewer' if images < wanted else 'more'} than the study's {wanted:,}"
    held_out = found["metrics"]["macro"]["support"]
    text += f"; {held_out:,} held out" + f", the study {study['held_out']:,}" * bool(study["held_out"]) + "."
    if dataset["copies_dropped"]:
        copies = ", ".join(f"{count} of {source}" for source, count in dataset["copies_dropped"].items())
        text += f" Copies of films of another collection were left out: {copies}."
    if dataset["unreadable"]:
        text += f" {dataset['unreadable']} files could not be read."
    if dataset["whole_films"]:
        text += f" Of {dataset['whole_films']} films no plausible lungs were found, and they stayed whole."
    return text + f" Trained on {found['device']}."


def _devices(experiments: Iterable[Mapping[str, Any]]) -> list[str]:
    """What trained them."""
    return sorted({found["device"] for each in experiments for found in each["protocols"].values()})


def _whole(study: Mapping[str, Any], protocols: Mapping[str, Any]) -> Table:
    """Accuracy and macro F1: the study's, and of each protocol."""
    f1 = [row[2] for row in study["classes"].values()]
    known = {"accuracy": study["accuracy"], "macro F1": fmean(f1) if f1 else 0}
    several = any("spread" in found for found in protocols.values())
    rows: list[tuple[str, ...]] = []
    for name, value in known.items():
        reported = f"{value:.3f}" if value else "—"
        # The accuracy of a cross-validation is reported as the mean over its folds.
        if several and name == "accuracy":
            rows.append((name, "study", "", "", reported))
        else:
            rows.append((name, "study", reported, "", *("",) * several))
        for split, found in protocols.items():
            metrics, over = found["metrics"], found["metrics"]["bootstrap"]
            if name == "accuracy":
                figure, interval, key = metrics["accuracy"], over["accuracy"] if over else metrics["interval"], "accuracy"
            else:
                figure, interval, key = metrics["macro"]["f1"], over["macro"][2] if over else None, "f1"
            mean = found["spread"][key] if several else {}
            folds = (f"{mean['mean']:.3f} ± {mean['sd']:.3f}",) if several else ()
            rows.append(("", SPLITS[split], f"{figure:.3f}", _interval(interval) if interval else "", *folds))
            if several and "alone" in found:
                mean = found["alone"]["spread"][key]
                one = f"{SPLITS[split]}, one network alone, mean ± sd of {found['alone']['networks']}"
                rows.append(("", one, "", "", f"{mean['mean']:.3f} ± {mean['sd']:.3f}"))
    below = "95 %: interval of the figure before it, by resampling patients." + f" {study['note']}." * bool(study["note"])
    return Table(("", "", "all films" if several else "", "95 %", *("mean ± sd of folds",) * several), rows, below)


def _by_class(study: Mapping[str, Any], protocols: Mapping[str, Any]) -> Table:
    """Precision, recall and F1 of each class: the study's, and of each protocol."""
    rows: list[tuple[str, ...]] = []
    for label in next(iter(protocols.values()))["metrics"]["classes"]:
        mine = study["classes"].get(label, ())
        rows.append((label, "study", *(f"{value:.2f}" for value in mine)))
        for split, found in protocols.items():
            row, over = found["metrics"]["per_class"][label], found["metrics"]["bootstrap"]
            figures_of = (f"{row[figure]:.3f}" for figure in ("precision", "recall", "f1"))
            rows.append(("", SPLITS[split], *figures_of, _interval(over["per_class"][label][2]) if over else ""))
    columns = ("", "", "precision", "recall", "F1", "95 %")
    return Table(columns, [row + ("",) * (len(columns) - len(row)) for row in rows])


def _interval(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.3f}–{high:.3f}"


def _times(each: Mapping[str, Any], results: Mapping[str, Any]) -> Section:
    """Minutes of training beside the study's and PyTorch's."""
    timed = results.get("pytorch", {})
    rows = []
    for name in each["times_of"]:
        other = results["experiments"][name]
        first = True
        for split, found in other["protocols"].items():
            minutes = f"{sum(found['seconds']) / 60:.1f}"
            peer = timed.get("experiments", {}).get(name)
            cells = (f"{peer['minutes']:.1f}" if peer else "—", f"{found['images_per_second']:,.0f}")
            study = f"{other['study']['minutes']:.0f}" if first else ""
            rows.append((f"{other['number']}, {other['title']}" if first else "", SPLITS[split], study, minutes, *cells))
            first = False
    devices = _devices(results["experiments"][name] for name in each["times_of"])
    if timed:
        below = f"PyTorch {timed['version']} on {timed['device']}: {timed['how']}"
    else:
        below = "PyTorch was not timed: python -m bench.study, in a checkout with the extra peers, does that."
    here = f"Minutes of training; here on {', '.join(devices)}, to the end of the last epoch, with compiling and tests."
    below = f"{here} {below}"
    columns = ("", "", "study", "here", "PyTorch", "images/s here")
    return Section(f"{each['number']}. {each['title']}", [each["about"]], [Table(columns, rows, below)], [])


def _pictures(out: Path, name: str, number: str, kind: str, protocols: Mapping[str, Any]) -> list[Picture]:
    pictures = []
    for split, found in protocols.items():
        file = f"{FIGURES}/{name}-{split}-{kind}.svg"
        if kind == "confusion":
            plots.confusion(out / file, found["metrics"])
            caption = f"Figure 3, {number}: confusion matrix, {SPLITS[split]}, {found['metrics']['macro']['support']} films"
        elif kind == "folds":
            plots.fold_confusions(out / file, found["members"])
            caption = f"Figure 3, {number}: each fold with its accuracy, {SPLITS[split]}"
        else:
            plots.curves(out / file, found["history"])
            several = "members" in found
            caption = f"Figure 4: loss and accuracy, {SPLITS[split]}" + ", means over the networks" * several
        pictures.append(Picture(file, caption))
    return pictures


def _samples(out: Path, found: Mapping[str, Any]) -> Section | None:
    """Figure 1, of the experiment with the most films among those with whole films."""
    whole = [each["protocols"]["patient"]["dataset"] for each in found.values() if each["protocols"]]
    whole = [dataset for dataset in whole if dataset["lungs"] == "none"]
    if not whole:
        return None
    file = f"{FIGURES}/figure1.png"
    dataset = max(whole, key=lambda dataset: dataset["images"])
    report.samples(out / file, Dataset(out / dataset["path"]))
    return Section("Films", [], [], [[Picture(file, "Figure 1: films of each class, with the collection of each")]])


def _lungs(out: Path, data: Path, found: Mapping[str, Any]) -> Section | None:
    """Figure 5, of the experiment with lungs."""
    for each in found.values():
        dataset = each["protocols"].get("patient", {}).get("dataset", {"lungs": "none"})
        if dataset["lungs"] != "none":
            file = f"{FIGURES}/figure5.png"
            roots = [data / source for source in dataset["per_source"]]
            report.segmented(out / file, roots, tuple(dataset["per_class"]), open_segmenter())
            return Section(
                "Lungs", [], [], [[Picture(file, "Figure 5: films, the lungs found on them, and what is cut out")]]
            )
    return None
