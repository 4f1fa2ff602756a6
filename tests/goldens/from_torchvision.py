"""Writes torchvision.json: what torchvision's networks answer with the weights and images of ``formula.py``.

    python -m venv --system-site-packages tv             # in an environment that has PyTorch 2.13
    tv/bin/pip install --no-deps torchvision==0.28.0
    tv/bin/python tests/goldens/from_torchvision.py

The networks compute in float64. torchvision wants operators for object detection registered when it is imported, which
its CPU-only wheel may not bring; they are stubs here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import formula
import numpy as np
import torch

OUT = Path(__file__).with_name("torchvision.json")


def import_torchvision() -> Any:
    """The package, with stubs for the operators that it misses."""
    library = torch.library.Library("torchvision", "DEF")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(signature)
    return importlib.import_module("torchvision")


def build(torchvision: Any, name: str) -> Any:
    """One of our networks as torchvision has it, with the formula's weights, in float64."""
    options = {"init_weights": False} if name.startswith(("vgg", "inception")) else {}
    network = getattr(torchvision.models, formula.TORCHVISION[name])(num_classes=formula.CLASSES, **options)
    state = network.state_dict()
    state |= {key: torch.tensor(v) for key, v in formula.arrays({k: tuple(v.shape) for k, v in state.items()}).items()}
    network.load_state_dict(state)
    return network.double().eval()


def answers(network: Any, images: np.ndarray, *, is_vgg: bool) -> dict[str, list[float]]:
    """Logits, and of a VGG, whose dense layers we leave out, the first means of the last map."""
    pixels = torch.tensor(images.transpose(0, 3, 1, 2)).double()
    with torch.no_grad():
        found = {"logits": network(pixels)[0].tolist()}
        if is_vgg:
            found["features"] = network.features(pixels).mean((2, 3))[0, : formula.CLASSES].tolist()
    return found


def main() -> None:
    torchvision = import_torchvision()
    goldens = {}
    for name, sizes in formula.SIZES.items():
        network = build(torchvision, name)
        is_vgg = name.startswith("vgg")
        goldens[name] = {size: answers(network, formula.image(size), is_vgg=is_vgg) for size in sizes}
        print(name, {size: np.round(found["logits"][:4], 3).tolist() for size, found in goldens[name].items()})
    rounded = json.loads(json.dumps(goldens), parse_float=lambda text: float(f"{float(text):.8g}"))
    lines = ",\n".join(f'  "{name}": {json.dumps(found)}' for name, found in rounded.items())
    OUT.write_text(f'{{\n "torchvision": "{torchvision.__version__}",\n "answers": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main()
