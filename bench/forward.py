"""The forward pass: covidjax, PyTorch, Keras, ONNX Runtime and OpenVINO, batch 32 at 224 × 224.

From uint8 pixels to logits or probabilities, the same weights everywhere: the ONNX file is PyTorch's export of them.
``probabilities within`` is the greatest difference from those of covidjax.
"""

from __future__ import annotations

from bench import data
from bench.harness import Entry, Missing, Options, command, compare_answers, only, turns
from bench.machine import cache, say
from bench.peers import pytorch_entries
from bench.tables import Result, Row, Table, against

OURS = "covidjax, jitted"
RUNTIMES = ("jax", "onnxruntime", "openvino")


def measure(options: Options) -> Result:
    """images/s of a forward pass."""
    size, images = (32, 4) if options.quick else (224, 32)
    batch, run, weights = str(data.batch(images, size)), str(data.run(size)), str(data.weights(size))
    common = {"batch": batch, "weights": weights}
    entries = [
        Entry(OURS, "bench.peers.ours:Forward", {"batch": batch, "run": run}),
        *(
            Entry(f"covidjax --runtime {name}", "bench.peers.ours:Runtime", {"batch": batch, "run": run, "runtime": name})
            for name in RUNTIMES
        ),
        *pytorch_entries("Forward", common, ("float32", "bfloat16"), ("default",)),
        *(
            Entry(
                f"Keras, {name}",
                "bench.peers.keras_peer:Forward",
                common,
                {"KERAS_BACKEND": backend, "KERAS_HOME": str(cache() / "keras")},
                note="predict",
            )
            for name, backend in (("JAX backend", "jax"), ("torch backend", "torch"))
        ),
    ]
    absent: list[Row] = []
    try:
        model = str(data.onnx(size, images))
    except Missing as reason:
        absent = [Row(name, None, f"skipped: {reason}") for name in ("ONNX Runtime", "OpenVINO")]
    else:
        by_hand = {"batch": batch, "model": model}
        entries.append(Entry("ONNX Runtime float32", "bench.peers.runtimes:OnnxRuntime", by_hand))
        entries += [
            Entry(
                f"OpenVINO {name}, {hint.lower()}",
                "bench.peers.runtimes:OpenVino",
                by_hand | {"precision": precision, "hint": hint},
            )
            for name, precision in (("float32", "f32"), ("bfloat16", "bf16"))
            for hint in ("LATENCY", "THROUGHPUT")
        ]
    rounds, seconds = (2, 0.01) if options.quick else (9, 0.7)
    rows, answers = turns(only(entries, options.only), rounds=rounds, seconds=seconds, say=say)
    compare_answers(rows, answers, OURS, "probabilities")
    table = Table(f"Forward pass, batch {images}, {size} × {size}", "images/s", rows + absent, reference=OURS)
    runtime = next((name for name in ("openvino", "onnxruntime") if table.row(f"covidjax --runtime {name}")), "jax")
    figures = against(table, OURS, "PyTorch float32", "forward_vs_torch_float32")
    figures |= against(table, f"covidjax --runtime {runtime}", "OpenVINO bfloat16", "runtime_vs_openvino_bfloat16")
    figures |= against(table, f"covidjax --runtime {runtime}", "OpenVINO", "runtime_vs_openvino_best")
    return Result([table], figures)


if __name__ == "__main__":
    command("forward", measure, __doc__)()
