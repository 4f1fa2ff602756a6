"""The training step of DarkCovidNet: covidjax, PyTorch and Keras, batch 32 at 224 × 224.

Every contender starts from the same weights and takes the same batch of uint8 pixels. Timed are normalisation, forward
pass, loss, backward pass and Adam, without augmentation, which the peers leave to their loaders; covidjax with its own
augmentation, part of its step, stands in a row of its own. ``loss within`` is how far the mean loss of the first three
steps is from that of covidjax.
"""

from __future__ import annotations

from bench import data
from bench.harness import Entry, Options, command, compare_answers, only, turns
from bench.machine import cache, say
from bench.peers import pytorch_entries
from bench.tables import Result, Table, against

OURS, AUGMENTED = "covidjax", "covidjax, with augmentation"
FLOAT32, BFLOAT16 = "PyTorch float32", "PyTorch bfloat16"


def measure(options: Options) -> Result:
    """images/s of a training step."""
    size, images = (32, 4) if options.quick else (224, 32)
    batch, run, weights = str(data.batch(images, size)), str(data.run(size)), str(data.weights(size))
    compiled = () if options.quick else ("default",)  # minutes of compiling; the quick forward pass shows that it works
    entries = [
        Entry(OURS, "bench.peers.ours:Train", {"batch": batch, "run": run, "first": 3}),
        Entry(AUGMENTED, "bench.peers.ours:Train", {"batch": batch, "run": run, "augmented": True}),
        *pytorch_entries("Train", {"batch": batch, "weights": weights, "first": 3}, ("float32", "bfloat16"), compiled),
        *(
            Entry(
                f"Keras, {name}",
                "bench.peers.keras_peer:Train",
                {"batch": batch, "weights": weights, "first": 3},
                {"KERAS_BACKEND": backend, "KERAS_HOME": str(cache() / "keras")},
                note="fit",
            )
            for name, backend in (("JAX backend", "jax"), ("torch backend", "torch"))
        ),
    ]
    rounds, seconds = (2, 0.01) if options.quick else (9, 1.0)
    rows, answers = turns(only(entries, options.only), rounds=rounds, seconds=seconds, say=say)
    answers.pop(AUGMENTED, None)
    compare_answers(rows, answers, OURS, "loss")
    title = f"Training step, batch {images}, {size} × {size}"
    table = Table(title, "images/s", rows, "Full steps with Adam; peers without augmentation.", OURS)
    figures = against(table, OURS, FLOAT32, "train_vs_torch_float32") | against(
        table, OURS, BFLOAT16, "train_vs_torch_bfloat16"
    )
    return Result([table], figures)


if __name__ == "__main__":
    command("train", measure, __doc__)()
