"""The gate on X-rays and on other pictures, and its bundled classifier fitted: ``python -m bench.gate DATA``.

DATA is the folder of the collections that ``bench.gate_data`` names. Everything is by classifiers that saw nothing of what
they are tried on: five folds by patient and by picture, then each source of X-rays left out with all its patients, then
each kind of picture left out. The threshold of each is chosen on a part of what it is fitted to. ``--fit`` writes the
weights that the package carries.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save
from scipy.stats import binomtest
from sklearn.utils.extmath import randomized_svd

from bench.gate_data import CHEST, SOURCES, Pictures, collect
from bench.machine import cache
from covidjax.lungs.segmenter import BUNDLED, Encoder
from covidjax.runs import load
from covidjax.trust import gate
from covidjax.trust.gate import KindClassifier

COMPONENTS = 48
"""Principal components that the classifier sees. With 320 it tells the kinds a little better, and takes the X-rays of
children, where it has seen none, for something else."""
HIDDEN, NETWORKS, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING, NOISE = 128, 4, 12, 256, 2e-3, 1e-2, 0.05, 0.3
REFUSED = 0.0025
"""Share of the X-rays held out of fitting that the threshold refuses, by a network alone."""

HARD, HARD_WEIGHT = ("ct", "ct_mr_medpix", "lateral", "photo", "drawn slice of lungs"), 4.0

CT, BODY, SCREEN = "a CT or MR slice", "another part of the body", "a page or a screen"
WORDS = {
    CHEST: "a frontal chest X-ray",
    "lateral": "a lateral chest X-ray",
    "ct": CT,
    "ct_mr_medpix": CT,
    "drawn slice": CT,
    "drawn slice of lungs": CT,
    "hand": BODY,
    "knee": BODY,
    "drawn limb": BODY,
    "drawn body part": BODY,
    "drawn ultrasound": "an ultrasound image",
    "photo": "a photograph",
    "shapes": "a photograph",
    "texture": "a photograph",
    "gradient": "a drawing",
    "phantom": "a drawing",
    "text": SCREEN,
    "screen": SCREEN,
    "chart": SCREEN,
    "page with X-rays": SCREEN,
    "upside down": "an X-ray that is upside down",
    "turned by 90 degrees": "an X-ray that lies on its side",
    "several X-rays": "several X-rays in one image",
    "part of a chest": "a part of a chest",
}
"""Kind → what the gate says that an image looks like."""

ALIKE = (
    ["ct", "ct_mr_medpix", "drawn slice", "drawn slice of lungs"],
    ["photo", "shapes", "texture"],
    ["text", "screen", "chart"],
)
"""Kinds that are left out together, since who has seen one has seen the others."""


class Examples(NamedTuple):
    """Pictures as the classifier gets them."""

    features: np.ndarray
    """float16 ``[N, F]``."""
    labels: np.ndarray
    """int ``[N]``, numbers of kinds."""
    folds: np.ndarray
    """int ``[N]``, by groups."""
    pictures: Pictures
    names: list[str]
    """Of the kinds; the first is a frontal X-ray of the chest."""


def read_examples(data: Path) -> Examples:
    """All pictures and their features, made once, in the user's cache."""
    digest = zlib.crc32(b"".join(Path(__file__).with_name(f"gate_{name}.py").read_bytes() for name in ("data", "pictures")))
    stored = cache() / f"gate-{digest:08x}-{load.digests(BUNDLED)[0][:8]}.npz"
    if not stored.exists():
        pictures = collect(data)
        encoder = Encoder("cpu")
        pixels = pictures.pixels[..., None]
        features = np.concatenate([encoder(pixels[start : start + 64]) for start in range(0, len(pixels), 64)])
        np.savez(stored, features=features.astype(np.float16), **pictures._asdict())
    with np.load(stored) as arrays:
        pictures = Pictures(*(arrays[name] for name in Pictures._fields))
        features = arrays["features"]
    names = [CHEST, *sorted(set(pictures.kinds.tolist()) - {CHEST})]
    labels = np.array([names.index(kind) for kind in pictures.kinds])
    folds = np.array([zlib.crc32(group.encode()) % 5 for group in pictures.groups])
    return Examples(features, labels, folds, pictures, names)


def principal_components(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """From features ``[N, F]`` to their components: a matrix ``[F, COMPONENTS]`` and a bias, of about deviation 1."""
    some = np.random.default_rng(seed).permutation(len(features))[:5000]
    sample = features[some].astype(np.float32)
    mean, scale = sample.mean(0), sample.std(0) + 1e-3
    iterations: Any = 3
    _, lengths, rows = randomized_svd((sample - mean) / scale, COMPONENTS, n_iter=iterations, random_state=seed)
    matrix = rows.T / (lengths / np.sqrt(len(sample)) + 0.3) / scale[:, None]
    return matrix.astype(np.float32), (-mean @ matrix).astype(np.float32)


def fit_network(
    inputs: np.ndarray, labels: np.ndarray, kinds: int, hard: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    """One hidden layer and a softmax of inputs ``[N, COMPONENTS]``. X-rays of the chest weigh as much as all else,
    of which the kinds that look most like them weigh more."""
    rng, counts = np.random.default_rng(seed), np.bincount(labels, minlength=kinds)
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0)
    weights[hard] *= HARD_WEIGHT
    weights[1:] *= 0.5 / (weights[1:] * counts[1:]).sum()
    weights[0] = 0.5 / counts[0]
    sample_weight = jnp.asarray(weights * len(labels), jnp.float32)
    keys = jax.random.split(jax.random.key(seed))
    network = {
        "hidden": jax.random.normal(keys[0], (inputs.shape[1], HIDDEN)) * inputs.shape[1] ** -0.5,
        "hidden_bias": jnp.zeros(HIDDEN),
        "output": jax.random.normal(keys[1], (HIDDEN, kinds)) * HIDDEN**-0.5,
        "output_bias": jnp.zeros(kinds),
    }
    steps = EPOCHS * len(labels) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY)

    @jax.jit
    def step(network: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        def loss(network: Any) -> jax.Array:
            hidden = jax.nn.relu(inputs @ network["hidden"] + network["hidden_bias"])
            targets = optax.smooth_labels(jax.nn.one_hot(labels, kinds), SMOOTHING)
            losses = optax.softmax_cross_entropy(hidden @ network["output"] + network["output_bias"], targets)
            return (sample_weight[labels] * losses).mean()

        updates, state = optimizer.update(jax.grad(loss)(network), state, network)
        return optax.apply_updates(network, updates), state

    state = optimizer.init(network)
    for _ in range(steps):
        rows = rng.integers(len(labels), size=BATCH)
        noise = rng.normal(0, NOISE, (BATCH, inputs.shape[1])).astype(np.float32)
        network, state = step(network, state, inputs[rows] + noise, labels[rows])
    return {name: np.asarray(array) for name, array in network.items()}


def fit(examples: Examples, chosen: np.ndarray, seed: int = 0) -> KindClassifier:
    """The classifier fitted to some rows: each network to all but a part of the groups, on whose X-rays it says what the
    threshold is to be."""
    names, groups = examples.names, examples.pictures.groups[chosen]
    parts = np.array([zlib.crc32(b"part" + group.encode()) % NETWORKS for group in groups])
    matrix, bias = principal_components(examples.features[chosen], seed)
    inputs, labels = examples.features[chosen].astype(np.float32) @ matrix + bias, examples.labels[chosen]
    xrays = (labels == 0) & examples.pictures.plain[chosen]
    hard = [number for number, name in enumerate(names) if name in HARD]
    networks, held_out = [], []
    for part in range(NETWORKS):
        rows = parts != part
        network = fit_network(inputs[rows], labels[rows], len(names), hard, seed + part)
        networks.append(network)
        alone = classifier_of([network], matrix, bias, names)
        held_out.append(alone.probabilities(examples.features[chosen[~rows & xrays]].astype(np.float32))[:, 0])
    threshold = float(np.quantile(np.concatenate(held_out), REFUSED))
    return classifier_of(networks, matrix, bias, names)._replace(threshold=threshold)


def classifier_of(
    networks: Sequence[dict[str, np.ndarray]], matrix: np.ndarray, bias: np.ndarray, names: Sequence[str]
) -> KindClassifier:
    """The mean of networks' logits is the logits of one network with the hidden units of all of them."""
    hidden, hidden_bias = (np.concatenate([each[name] for each in networks], -1) for name in ("hidden", "hidden_bias"))
    output = np.concatenate([each["output"] for each in networks]) / len(networks)
    output_bias = np.mean([each["output_bias"] for each in networks], 0)
    return KindClassifier(matrix, bias, hidden, hidden_bias, output, output_bias, [WORDS[name] for name in names], 0.0, "")


def chest_probability(classifier: KindClassifier, examples: Examples, rows: np.ndarray) -> np.ndarray:
    return classifier.probabilities(examples.features[rows].astype(np.float32))[:, 0]


def refused(classifier: KindClassifier, examples: Examples, rows: np.ndarray) -> np.ndarray:
    """Which of some rows are refused, bool ``[N]``."""
    return chest_probability(classifier, examples, rows) < classifier.threshold


def say(name: str, answers: np.ndarray, note: str = "") -> None:
    """A line of a table: the share refused, with Wilson's interval."""
    count, total = int(answers.sum()), len(answers)
    low, high = binomtest(count, total).proportion_ci(0.95, "wilson")
    print(
        f"{name:28} {total:6} {count:6} {100 * count / total:8.2f} %  ({100 * low:.1f}–{100 * high:.1f}) {note}", flush=True
    )


def head(title: str) -> None:
    print(f"\n{title:28} {'images':>6} {'refused':>6}", flush=True)


def try_folds(examples: Examples) -> None:
    """Five folds by group: pictures as they are in their files, or as they were made."""
    answers = np.zeros(len(examples.labels), bool)
    for fold in range(5):
        tried = np.flatnonzero(examples.folds == fold)
        answers[tried] = refused(fit(examples, np.flatnonzero(examples.folds != fold)), examples, tried)
    pictures, plain = examples.pictures, examples.pictures.plain
    head("other pictures, five folds")
    easy = np.isin(pictures.kinds, ["photo", "hand", "knee", "ct_mr_medpix"])
    say("photo, hand, knee, CT/MR", answers[plain & easy], "wanted: at least 99")
    for name in examples.names[1:]:
        say(
            name,
            answers[plain & (pictures.kinds == name)]
            if (plain & (pictures.kinds == name)).any()
            else answers[pictures.kinds == name],
        )
    head("X-rays, five folds")
    for source in SOURCES:
        say(source, answers[plain & (pictures.kinds == CHEST) & (pictures.sources == source)])
    say("changed X-rays", answers[~plain & (pictures.kinds == CHEST)])


def try_sources(examples: Examples) -> None:
    """Each source of X-rays left out, with the X-rays of its patients and their copies in the others."""
    head("X-rays of a source left out")
    for source in SOURCES:
        of_source = examples.pictures.sources == source
        known = np.isin(examples.pictures.groups, list(groups_like(examples, of_source)))
        tried = np.flatnonzero(of_source & examples.pictures.plain & (examples.labels == 0))
        say(source, refused(fit(examples, np.flatnonzero(~of_source & ~known)), examples, tried), "wanted: at most 2")


def groups_like(examples: Examples, of_source: np.ndarray) -> set[str]:
    """The patients of a source, and those of X-rays of others that look the same."""
    pictures = examples.pictures
    chests = (examples.labels == 0) & pictures.plain
    small = pictures.pixels[chests].reshape(-1, 16, 8, 16, 8).mean((2, 4)).reshape(-1, 256)
    small = (small - small.mean(1, keepdims=True)) / np.maximum(small.std(1, keepdims=True), 1e-3)
    ours, groups = of_source[chests], pictures.groups[chests]
    alike = np.zeros(len(ours), bool)
    for start in range(0, int(ours.sum()), 500):
        alike |= (small @ small[ours][start : start + 500].T > 0.985 * 256).any(1)
    return set(groups[ours | alike].tolist())


def try_kinds(examples: Examples) -> None:
    """Each kind of other pictures left out: what nobody has shown the gate."""
    head("kinds left out")
    together = [*ALIKE, *([name] for name in examples.names[1:] if not any(name in kinds for kinds in ALIKE))]
    for kinds in together:
        of_kinds = np.isin(examples.pictures.kinds, kinds)
        classifier = fit(examples, np.flatnonzero(~of_kinds))
        for kind in kinds:
            rows = np.flatnonzero(examples.pictures.kinds == kind)
            plain = rows[examples.pictures.plain[rows]]
            say(kind, refused(classifier, examples, plain if len(plain) else rows))


def write(classifier: KindClassifier, path: Path) -> None:
    """Write the weights, as float16."""
    arrays = {name: getattr(classifier, name).astype(np.float16) for name in gate.ARRAYS}
    header = {"kinds": json.dumps(classifier.kinds), "threshold": f"{classifier.threshold:.4f}"}
    path.write_bytes(save(arrays, header | {"segmenter": load.digests(BUNDLED)[0]}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write the weights if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the collections")
    parser.add_argument("--fit", action="store_true", help="write the weights that the package carries, and try nothing")
    options = parser.parse_args(arguments)
    examples = read_examples(options.data)
    print(f"{len(examples.labels)} pictures of {len(examples.names)} kinds")
    if options.fit:
        classifier = fit(examples, np.arange(len(examples.labels)))
        write(classifier, gate.WEIGHTS)
        print(f"wrote {gate.WEIGHTS.name}, threshold {classifier.threshold:.3f}")
        return
    try_folds(examples)
    try_sources(examples)
    try_kinds(examples)


if __name__ == "__main__":
    main()
