"""``claim.md`` of a run's report: the items of two reporting guidelines that the tool knows, filled in; the rest is the
author's.

CLAIM 2024 (Tejani et al., "Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update", Radiology:
Artificial Intelligence 6, 2024) and TRIPOD+AI (Collins et al., BMJ 385, 2024, e078378)."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from covidjax.config import Config
from covidjax.data.dataset import Dataset
from covidjax.errors import printable
from covidjax.files import write_atomic
from covidjax.runs.folder import Run
from covidjax.training.run_trust import is_by_source

FILE, AUTHOR = "claim.md", "*for the author*"

PACKAGES = ("covidjax", "jax", "flax", "optax", "numpy", "scikit-learn", "scipy")

CLAIM: tuple[tuple[str, str, str], ...] = (
    ("1", "Title: identification as a study of AI, and its kind", ""),
    ("2", "Structured abstract", ""),
    ("3", "Background, intended use and role", ""),
    ("4", "Aims, objectives, hypotheses", ""),
    ("5", "Prospective or retrospective", ""),
    ("6", "Study goal", ""),
    ("7", "Data sources", "sources"),
    ("8", "Inclusion and exclusion criteria", "excluded"),
    ("9", "Data preprocessing", "preprocessing"),
    ("10", "Selection of data subsets", "subsets"),
    ("11", "De-identification", "privacy"),
    ("12", "Missing data", "missing"),
    ("13", "Image acquisition protocol", ""),
    ("14", "Definition of the reference standard", "labels"),
    ("15", "Rationale for the reference standard", ""),
    ("16", "Source of the reference standard's annotations", ""),
    ("17", "Annotation of the test set", ""),
    ("18", "Variability of annotators", ""),
    ("19", "How data were assigned to partitions", "partition"),
    ("20", "Level at which partitions are disjoint", "disjoint"),
    ("21", "Intended sample size", ""),
    ("22", "Model", "model"),
    ("23", "Software", "software"),
    ("24", "Initialization of parameters", "initialization"),
    ("25", "Training", "training"),
    ("26", "Selection of the final model", "selection"),
    ("27", "Ensembling", "ensemble"),
    ("28", "Metrics of performance", "metrics"),
    ("29", "Significance and uncertainty", "uncertainty"),
    ("30", "Robustness or sensitivity analysis", "audit"),
    ("31", "Explainability", "audit"),
    ("32", "Evaluation on internal data", "internal"),
    ("33", "Testing on external data", "external"),
    ("34", "Registration of a trial", ""),
    ("35", "Numbers of patients or examinations included and excluded", "numbers"),
    ("36", "Demographic and clinical characteristics of each partition", "people"),
    ("37", "Performance and its uncertainty", "performance"),
    ("38", "Diagnostic performance and its precision", "by class"),
    ("39", "Analysis of incorrect results", "errors"),
    ("40", "Limitations", ""),
    ("41", "Implications for practice, intended use", ""),
    ("42", "Full protocol or technical details", "details"),
    ("43", "Availability of software, model and data", "availability"),
    ("44", "Funding, role of funders", ""),
)
"""Number, what is asked, and the fact that answers it, if the tool knows one."""

TRIPOD: tuple[tuple[str, str, str], ...] = (
    ("1–2", "Title and abstract", ""),
    ("3a–c", "Healthcare context, target population and purpose, inequalities", ""),
    ("4", "Objectives", ""),
    ("5a", "Sources of data", "sources"),
    ("5b", "Dates of the data", ""),
    ("6a–c", "Setting, eligibility, treatments", ""),
    ("7", "Data preparation", "preprocessing"),
    ("8a–c", "Outcome, its assessment, blinding", "labels"),
    ("9a–c", "Predictors", "predictors"),
    ("10", "Sample size", "numbers"),
    ("11", "Missing data", "missing"),
    ("12a", "How data were used for development and evaluation", "partition"),
    ("12b", "Handling of predictors", "preprocessing"),
    ("12c", "Type of model, building, hyperparameters, internal validation", "training"),
    ("12d", "Heterogeneity across clusters", ""),
    ("12e", "Measures and plots of performance", "metrics"),
    ("12f–g", "Model updating, how predictions are calculated", "prediction"),
    ("13", "Class imbalance", "imbalance"),
    ("14", "Fairness", ""),
    ("15", "Output of the model", "output"),
    ("16", "Differences between development and evaluation data", "external"),
    ("17", "Ethical approval", ""),
    ("18a–d", "Funding, conflicts, protocol, registration", ""),
    ("18e–f", "Sharing of data and code", "availability"),
    ("19", "Patient and public involvement", ""),
    ("20a", "Flow of participants", "numbers"),
    ("20b–c", "Characteristics of participants", "people"),
    ("21", "Participants and outcomes in each analysis", "partition"),
    ("22", "Full details of the model", "details"),
    ("23a", "Performance with intervals", "performance"),
    ("23b", "Heterogeneity of performance", ""),
    ("24", "Results of updating", ""),
    ("25–26", "Interpretation, limitations", ""),
    ("27a–c", "Usability: poor input, users, next steps", "input"),
)


class Tested(Protocol):
    """What is known of a network that was tested, such as ``loop.Result``."""

    @property
    def checkpoint(self) -> str:
        """Which one was tested."""
        ...

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        ...

    @property
    def left_out(self) -> str:
        """Which images were not held out, in words."""
        ...


def write(folder: Path, run: Run, dataset: Dataset, metrics: Mapping[str, Any], network: Tested, note: str = "") -> None:
    """Write ``claim.md``.

    Args:
      folder: the run's report.
      run: its settings, and what it was started from.
      dataset: what it was trained on.
      metrics: of the held-out images, as ``metrics.json`` has them.
      network: what was tested.
      note: such as that the images are synthetic.
    """
    facts = _facts(run, dataset, metrics, network)
    lines = ["# Reporting checklist", "", *([f"**{note}**", ""] if note else [])]
    lines += ["What covidjax knows of this run is filled in; check it, and complete it where it says so.", ""]
    for title, items in (("CLAIM 2024", CLAIM), ("TRIPOD+AI", TRIPOD)):
        lines += [f"## {title}", "", "| item | asked for | this run |", "| --- | --- | --- |"]
        for number, asked, key in items:
            known = facts[key] if key else ""
            lines.append(f"| {number} | {asked} | {_cell(known) or AUTHOR} |")
        lines.append("")
    write_atomic(folder / FILE, "\n".join(lines))


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("\n", " ")


def _facts(run: Run, dataset: Dataset, metrics: Mapping[str, Any], network: Tested) -> dict[str, str]:
    facts = _data_facts(run.config, dataset) | _model_facts(run.config, network) | _result_facts(run.config, metrics)
    facts["partition"] += f" {network.left_out}" * bool(network.left_out)
    if run.init.source:
        facts["initialization"] = f"{run.init.sentence} New layers: drawn at random, seed {run.config.seed}."
    return facts


def _data_facts(config: Config, dataset: Dataset) -> dict[str, str]:
    manifest = dataset.manifest
    options: Mapping[str, Any] = manifest.get("options", {})
    per_source = "; ".join(
        f"{source}: {', '.join(f'{count} {label}' for label, count in counts.items())}"
        for source, counts in manifest["per_source"].items()
    )
    excluded: Mapping[str, Mapping[str, int]] = manifest.get("left_out", {})
    left_out = sum(sum(reasons.values()) for reasons in excluded.values())
    unread, preprocess = len(manifest.get("skipped", ())), dataset.preprocess
    reasons = "; ".join(f"{source}: {count} ({reason})" for source, of in excluded.items() for reason, count in of.items())
    lungs = {"none": "whole image", "crop": "square around the lungs", "mask": "box of the lungs, black outside"}[
        preprocess.lungs
    ]
    grouped = options.get("group_by", "patient") == "patient"
    known = manifest.get("patients_known")
    per_fold = "; ".join(f"{fold}: {sum(counts.values())}" for fold, counts in manifest["per_fold"].items())
    return {
        "sources": f"{per_source}. Where, when and by whom they were taken: {AUTHOR}.",
        "excluded": f"{left_out} files left out{f' ({reasons})' if reasons else ''}; {unread} could not be read. "
        f"Criteria: {AUTHOR}.",
        "preprocessing": f"gray, 8 bits, {lungs}, {preprocess.image_size} × {preprocess.image_size} pixels; negatives: "
        f"{preprocess.invert}; normalized by fixed constants.",
        "subsets": f"at most {options['limit_per_class']} images a class, drawn at random."
        if options.get("limit_per_class")
        else "all images of the classes.",
        "privacy": "patients' numbers are replaced by keyed hashes; no birth dates are kept; ages above 89 are 90.",
        "missing": f"{unread} unreadable images left out; patients known of "
        f"{known if known is not None else 'an unknown number'} "
        f"of {manifest['images']} images, each of the others taken for a patient of its own.",
        "labels": f"classes {', '.join(dataset.preprocess.classes)} by folder or table. How they were found: {AUTHOR}.",
        "predictors": "the pixels of one frontal X-ray alone.",
        "partition": f"{dataset.folds} folds, stratified by class, seed {options.get('seed', 0)} ({per_fold}); "
        f"{_used(config)}.",
        "disjoint": "patient: all images of a patient, and all copies of an image, are in one fold."
        if grouped
        else "image: images of a patient may be in several folds, so figures are too good.",
        "numbers": f"{manifest['images']} images of {manifest['patients']} patients; {left_out + unread} files excluded.",
        "people": _people(dataset),
        "external": _external(config),
    }


def _used(config: Config) -> str:
    if config.data.test_source:
        return f"source {config.data.test_source} held out for testing, with its patients' images in other sources"
    if is_by_source(config):
        return "a network for each source held out in turn, with its patients' images in other sources"
    if config.train.cv:
        return "a network for each part held out in turn, every image tested by the one that it was held out from"
    validated = f", fold {config.data.val_fold} for validation" if config.data.val_fold is not None else ""
    return f"fold {config.data.test_fold} held out for testing{validated}"


def _external(config: Config) -> str:
    other = f"`covidjax evaluate RUN --data OTHER` gives the figures of another collection; which: {AUTHOR}."
    if config.data.test_source or is_by_source(config):
        return (
            "sources that the network had not seen: the figures here, for each in `report/metrics.json`. Beyond: " + other
        )
    return other


def _people(dataset: Dataset) -> str:
    """Ages and sexes where they are stated."""
    rows = dataset.original_files() or []
    ages = [float(row["age"]) for row in rows if row.get("age")]
    sexes = [row["sex"] for row in rows if row.get("sex")]
    if not ages and not sexes:
        return ""
    parts = []
    if ages:
        low, middle, high = np.percentile(ages, (25, 50, 75))
        parts.append(
            f"age {middle:.0f} years (quartiles {low:.0f} and {high:.0f}), stated of {len(ages)} of {len(rows)} images"
        )
    if sexes:
        parts.append(f"{sexes.count('F')} images of women, {sexes.count('M')} of men, stated of {len(sexes)}")
    return f"{'; '.join(parts)}. By partition, and clinical: {AUTHOR}."


def _model_facts(config: Config, network: Tested) -> dict[str, str]:
    train, augment = config.train, config.augment
    changes = ", ".join(f"{name} {value}" for name, value in vars(augment).items() if value)
    several = f"{train.ensemble} networks of consecutive seeds" if train.ensemble > 1 else "one network"
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]

    return {
        "model": f"{config.model.name}, {network.parameters:,} parameters, {config.model.channels} input channel(s); "
        "docs and source of covidjax describe every layer.",
        "software": f"Python {platform.python_version()}, {', '.join(versions)}; on {jax.devices()[0].device_kind}.",
        "initialization": f"drawn at random, seed {config.seed}.",
        "training": "a logistic regression on the features of the backbone as the last layer, then "
        * train.probe
        + f"{train.epochs} epochs, batches of {train.batch_size}, learning rate {train.learning_rate} "
        f"({train.schedule}), "
        f"weight decay {train.weight_decay}, label smoothing {train.label_smoothing}, precision {train.precision}; "
        f"random changes: "
        f"{changes or 'none'}. All settings: `config.toml`.",
        "selection": f"{network.checkpoint} checkpoint"
        + (
            ", chosen by the validation fold." if network.checkpoint == "best" else "; nothing was chosen by the test fold."
        ),
        "ensemble": f"{several}{', for each part held out' if train.cv else ''}"
        f"{'; mean probabilities' if train.cv or train.ensemble > 1 else ''}.",
        "imbalance": f"class weights: {train.class_weights}; sampling: {train.sampling}.",
        "prediction": _prediction(config),
        "output": "a probability for each class, adding up to 1.",
        "details": "`config.toml`, `report/metrics.json`, `report/predictions.csv` and the checkpoints of this run.",
        "availability": f"covidjax, Apache-2.0; the run can be repeated from its settings. Model and data: {AUTHOR}.",
        "audit": f"`covidjax audit DATA --run RUN` tells what changes where the lungs' surroundings are blanked; "
        f"its result: {AUTHOR}.",
        "input": f"`covidjax score` refuses or warns of what is no frontal chest X-ray. The rest: {AUTHOR}.",
    }


def _prediction(config: Config) -> str:
    """How a class comes of the logits."""
    divided, train = "", config.train
    if is_by_source(config):
        divided = ", divided at scoring by a temperature fitted on the left-out sources (`trust.json`); figures without it"
    elif train.calibration:
        divided = f", divided by the temperature of {Path(train.calibration).name}, fitted on its left-out sources"
    points = f"; thresholds of the validation fold: {', '.join(train.operating_points)}" if train.operating_points else ""
    return f"softmax of the logits{divided}; the class of the greatest probability{points}."


def _result_facts(config: Config, metrics: Mapping[str, Any]) -> dict[str, str]:
    bootstrap = metrics.get("bootstrap")
    over = (
        f"95 % intervals by resampling {bootstrap['patients']} patients {bootstrap['resamples']} times" if bootstrap else ""
    )
    if "accuracy" not in metrics:
        overall = metrics["overall"]
        told = f"mean Dice {overall['dice']:.3f}{_interval(overall.get('interval'))}, mean IoU {overall['iou']:.3f}"
        return {
            **dict.fromkeys(("performance", "by class"), f"{told}; each kind in `report/metrics.json`."),
            "metrics": "Dice coefficient and intersection over union.",
            "uncertainty": "95 % intervals by resampling patients; no test of significance.",
            "internal": f"{_used(config)}: {told}.",
            "errors": f"`report/` has pictures of held-out images. Analysis: {AUTHOR}.",
        }
    interval = bootstrap["accuracy"] if bootstrap else metrics["interval"]
    accuracy = f"accuracy {metrics['accuracy']:.3f}{_interval(interval)}"
    by_class = "; ".join(
        f"{label}: {', '.join(_figures(scores, bootstrap and bootstrap['per_class'][label]))}, {scores['support']} images"
        for label, scores in metrics["per_class"].items()
    )
    macro = ", ".join(_figures(metrics["macro"], bootstrap and bootstrap["macro"]))
    measured = ", ".join(name.replace("_", " ") for name, value in metrics["macro"].items() if isinstance(value, float))
    return {
        "performance": f"{accuracy}; means over the classes: {macro}. Calibration: `report/metrics.json`.",
        "by class": f"{by_class}.",
        "metrics": f"accuracy, {measured}, of each class and their means; confusion matrix.",
        "uncertainty": f"{over or '95 % score interval of the accuracy (Wilson)'}; no test of significance.",
        "internal": f"{_used(config)}: {accuracy}.",
        "errors": f"the confusion matrix, and every held-out image in `report/predictions.csv`. Analysis: {AUTHOR}.",
    }


def _figures(scores: Mapping[str, Any], former: Any) -> list[str]:
    """Each metric of a class with its interval."""
    intervals: Mapping[str, Any] = scores.get("intervals") or dict(
        zip(("precision", "recall", "f1"), former or (), strict=False)
    )
    return [
        f"{name.replace('_', ' ')} {value:.3f}{_interval(intervals.get(name))}"
        for name, value in scores.items()
        if isinstance(value, float)
    ]


def _interval(interval: Any) -> str:
    return f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else ""
