"""``report.md`` and ``report.html`` of a reproduction: its tables beside the study's, its figures, its counts."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group

from covidjax.data import readers
from covidjax.data.dataset import Dataset
from covidjax.data.loader import load_all
from covidjax.lungs import geometry, overlay, segmenter, stream
from covidjax.report import pages, plots, tables

SPLITS = {"random": "random split", "patient": "patients apart"}

FIGURES = "figures"

SAMPLES, SEGMENTED = 4, 2
"""Images of each class in Figure 1, and in Figure 5."""


class Table(NamedTuple):
    """Cells of text; a row whose first cell is empty goes on with the one above."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: str = ""

    @classmethod
    def padded(cls, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], below: str = "") -> Table:
        """A table whose rows are filled up with empty cells, or cut, to the number of columns."""
        return cls(columns, [(*row, *("",) * len(columns))[: len(columns)] for row in rows], below)


class Picture(NamedTuple):
    """A figure beside the report."""

    file: str
    """Relative to the report."""
    caption: str


class Section(NamedTuple):
    """A heading and its content; pictures of a row stand side by side where there is room."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Sequence[Picture]] = ()


def write(out: Path, data: Path, results: Mapping[str, Any], *, images: bool = True) -> None:
    """Draw the figures and write both reports.

    Args:
      out: folder of the reproduction.
      data: folder of the collections.
      results: the content of ``out/results.json``.
      images: whether to show any of the collections' images.
    """
    experiments = results["experiments"]
    datasets = [item["protocols"]["patient"]["dataset"] for item in experiments.values() if item["protocols"]]
    sections = [
        _times(experiment, results) if experiment["times_of"] else _experiment(out, name, experiment)
        for name, experiment in experiments.items()
    ]
    about = results["about"]
    facts = {
        "data": about["data"],
        "epochs": str(about["epochs"] or "as each experiment says"),
        "settings": about["settings"] or "the defaults, but for what each experiment says",
        "device": _devices(experiments.values()),
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    }
    if images:
        sections = [*_samples(out, datasets), *sections, *_lungs(out, data, datasets)]
    else:
        facts["left out"] = "Figures 1 and 5, which show images of the collections"
    environment = pages.environment("covidjax.study")
    environment.filters["embedded"] = lambda file: embedded(out / file)
    for name in ("report.md", "report.html"):
        text = environment.get_template(name).render(about=about, facts=facts, sections=sections)
        (out / name).write_text(text, encoding="utf-8")


def embedded(file: Path) -> str:
    """A file as a data URI."""
    return pages.data_uri(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "")


def summary(results: Mapping[str, Any]) -> Group:
    """The table for the terminal."""
    rows = []
    for experiment in results["experiments"].values():
        study_f1 = _macro_f1(experiment["study"])
        for protocol, result in experiment["protocols"].items():
            metrics, minutes = result["metrics"], sum(result["seconds"]) / 60
            numbers = (f"{metrics['accuracy']:.3f}", f"{metrics['macro']['f1']:.3f}", study_f1, f"{minutes:.1f}")
            rows.append((_name(experiment, ", "), protocol, result["dataset"]["images"], *numbers))
    columns = ("images", "accuracy", "macro F1", "study's macro F1", "minutes")
    return tables.titled("Reproduction", tables.text_table(("table", "split", *columns), rows, right=columns))


def _name(experiment: Mapping[str, Any], separator: str) -> str:
    return f"{experiment['number']}{separator}{experiment['title']}"


def _macro_f1(study: Mapping[str, Any]) -> str:
    """The study's; empty where it reports none."""
    f1 = [row[2] for row in study["classes"].values()]
    return f"{fmean(f1):.3f}" if f1 else ""


def _devices(experiments: Iterable[Mapping[str, Any]]) -> str:
    """The devices of training."""
    return ", ".join(sorted({result["device"] for item in experiments for result in item["protocols"].values()}))


def _experiment(out: Path, name: str, experiment: Mapping[str, Any]) -> Section:
    protocols, study = experiment["protocols"], experiment["study"]
    counts = [_counts(SPLITS[protocol], study, result) for protocol, result in protocols.items()]
    comparisons = [_overall(study, protocols), _by_class(study, protocols)]
    return Section(_name(experiment, ". "), [experiment["about"], *counts], comparisons, _pictures(out, name, experiment))


def _counts(split: str, study: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A sentence on how many images there were, beside the study's, and what became of others."""
    dataset = result["dataset"]
    images, study_images, held_out = dataset["images"], study["images"], result["metrics"]["macro"]["support"]
    classes = ", ".join(f"{count} {name}" for name, count in dataset["per_class"].items())
    text = f"{split.capitalize()}: {images:,} images of {dataset['patients']:,} patients ({classes})"
    if study_images and images != study_images:
        more = "fewer" if images < study_images else "more"
        text += f", {abs(study_images - images):,} {more} than the study's {study_images:,}"
    text += f"; {held_out:,} held out" + f", the study {study['held_out']:,}" * bool(study["held_out"]) + "."
    if dataset["copies_dropped"]:
        duplicates = ", ".join(f"{count} of {source}" for source, count in dataset["copies_dropped"].items())
        text += f" Skipped duplicates of images of another collection: {duplicates}."
    if dataset["unreadable"]:
        text += f" {dataset['unreadable']} files could not be read."
    if dataset["whole_films"]:
        text += f" In {dataset['whole_films']} images no plausible lungs were found, and they stayed whole."
    return text + f" Trained on {result['device']}."


def _overall(study: Mapping[str, Any], protocols: Mapping[str, Any]) -> Table:
    """Accuracy and macro F1: the study's, and of each protocol."""
    several = any("spread" in result for result in protocols.values())
    accuracy = f"{study['accuracy']:.3f}" if study["accuracy"] else ""
    rows = []
    for key, name, reported in (("accuracy", "accuracy", accuracy), ("f1", "macro F1", _macro_f1(study))):
        # The accuracy of a cross-validation is reported as the mean over its folds.
        rows.append((name, "study", *("", "") * (several and key == "accuracy"), reported or "—"))
        for protocol, result in protocols.items():
            metrics, bootstrap, split = result["metrics"], result["metrics"]["bootstrap"], SPLITS[protocol]
            if key == "accuracy":
                value, interval = metrics["accuracy"], bootstrap["accuracy"] if bootstrap else metrics["interval"]
            else:
                value, interval = metrics["macro"]["f1"], bootstrap["macro"][2] if bootstrap else None
            mean = _mean_and_sd(result["spread"][key]) if several else ""
            rows.append(("", split, f"{value:.3f}", tables.interval_text(interval), mean))
            if "alone" in result:
                networks, mean = result["alone"]["networks"], _mean_and_sd(result["alone"]["spread"][key])
                rows.append(("", f"{split}, one network alone, mean ± sd of {networks}", "", "", mean))
    columns = ("", "", "all images" if several else "", "95 %", *("mean ± sd of folds",) * several)
    below = "95 %: interval of the figure before it, by resampling patients." + f" {study['note']}." * bool(study["note"])
    return Table.padded(columns, rows, below)


def _mean_and_sd(spread: Mapping[str, float]) -> str:
    return f"{spread['mean']:.3f} ± {spread['sd']:.3f}"


def _by_class(study: Mapping[str, Any], protocols: Mapping[str, Any]) -> Table:
    """Precision, recall and F1 of each class: the study's, and of each protocol."""
    rows = []
    for label in next(iter(protocols.values()))["metrics"]["classes"]:
        rows.append((label, "study", *(f"{value:.2f}" for value in study["classes"].get(label, ()))))
        for protocol, result in protocols.items():
            scores, bootstrap = result["metrics"]["per_class"][label], result["metrics"]["bootstrap"]
            values = (f"{scores[key]:.3f}" for key in ("precision", "recall", "f1"))
            interval = bootstrap["per_class"][label][2] if bootstrap else None
            rows.append(("", SPLITS[protocol], *values, tables.interval_text(interval)))
    return Table.padded(("", "", "precision", "recall", "F1", "95 %"), rows)


def _pictures(out: Path, name: str, experiment: Mapping[str, Any]) -> list[list[Picture]]:
    """Draw the confusion matrices of all images and of the folds, and the curves, each as one row."""
    number, confusions, folds, curves = experiment["number"], [], [], []
    for protocol, result in experiment["protocols"].items():
        start, split, metrics = f"{FIGURES}/{name}-{protocol}", SPLITS[protocol], result["metrics"]
        caption = f"Figure 3, {number}: confusion matrix, {split}, {metrics['macro']['support']} images"
        confusions.append(Picture(f"{start}-confusion.svg", caption))
        plots.confusion_matrices(out / confusions[-1].file, {"": metrics})
        caption = f"Figure 4: loss and accuracy, {split}"
        if "members" in result:
            folds.append(Picture(f"{start}-folds.svg", f"Figure 3, {number}: each fold with its accuracy, {split}"))
            panels = {f"{fold}: {member['accuracy']:.3f}": member for fold, member in result["members"].items()}
            plots.confusion_matrices(out / folds[-1].file, panels)
            caption += ", means over the networks"
        curves.append(Picture(f"{start}-curves.svg", caption))
        plots.curves(out / curves[-1].file, result["history"])
    return list(filter(None, (confusions, folds, curves)))


def _times(experiment: Mapping[str, Any], results: Mapping[str, Any]) -> Section:
    """Minutes of training beside the study's and PyTorch's."""
    pytorch = results.get("pytorch", {"experiments": {}})
    timed = {name: results["experiments"][name] for name in experiment["times_of"]}
    rows = []
    for name, item in timed.items():
        label, study = _name(item, ", "), f"{item['study']['minutes']:.0f}"
        peer = f"{pytorch['experiments'][name]['minutes']:.1f}" if name in pytorch["experiments"] else "—"
        for protocol, result in item["protocols"].items():
            here, speed = f"{sum(result['seconds']) / 60:.1f}", f"{result['images_per_second']:,.0f}"
            rows.append((label, SPLITS[protocol], study, here, peer, speed))
            label = study = ""
    devices = _devices(timed.values())
    below = f"Minutes of training; here on {devices}, to the end of the last epoch, with compiling and tests. "
    if "pytorch" in results:
        below += f"PyTorch {pytorch['version']} on {pytorch['device']}: {pytorch['how']}"
    else:
        below += "PyTorch was not timed: python -m bench.study, in a checkout with the extra peers, does that."
    table = Table(("", "", "study", "here", "PyTorch", "images/s here"), rows, below)
    return Section(_name(experiment, ". "), [experiment["about"]], [table])


def _samples(out: Path, datasets: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Figure 1: some images of each class as the network gets them, of the largest dataset of whole images; always the same
    ones."""
    whole = [dataset for dataset in datasets if dataset["lungs"] == "none"]
    if not whole:
        return []
    dataset = Dataset(out / max(whole, key=lambda dataset: dataset["images"])["path"])
    source, classes, random = dataset.source(range(dataset.folds)), dataset.preprocess.classes, np.random.default_rng(0)
    batch, rows = load_all(source), []
    for label in range(len(classes)):
        chosen = random.permutation(np.flatnonzero(batch.labels == label))[:SAMPLES].tolist()
        rows.append([plots.Tile(batch.images[row, ..., 0], source.texts(row, "source")[0]) for row in chosen])
    picture = Picture(f"{FIGURES}/figure1.png", "Figure 1: images of each class, with the collection of each")
    plots.image_grid(out / picture.file, rows, classes)
    return [Section("Images", pictures=[[picture]])]


def _lungs(out: Path, data: Path, datasets: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Figure 5: some images of each class of a dataset with lungs, below each its lungs tinted, below that the crop."""
    dataset = next((dataset for dataset in datasets if dataset["lungs"] != "none"), None)
    if dataset is None:
        return []
    examples = [example for source in dataset["per_source"] for example in readers.read(data / source).examples]
    Random(0).shuffle(examples)
    chosen, columns = [], []
    for label in dataset["per_class"]:
        chosen += [example for example in examples if example.label == label][:SEGMENTED]
    segmented = stream.segment_images([str(example.path) for example in chosen], segmenter.open_segmenter())
    for example, image in zip(chosen, segmented, strict=True):
        if image.gray is not None and image.lungs is not None:
            tinted = np.asarray(overlay.render(image.gray, image.lungs, "overlay"))
            crop = geometry.frame_lungs(image.gray, image.lungs, "crop")
            columns.append((plots.Tile(image.gray, example.label), plots.Tile(tinted), plots.Tile(crop)))
    picture = Picture(f"{FIGURES}/figure5.png", "Figure 5: images, the lungs found in them, and the crops")
    plots.image_grid(out / picture.file, list(zip(*columns, strict=True)), ("original", "lungs", "crop"))
    return [Section("Lungs", pictures=[[picture]])]
