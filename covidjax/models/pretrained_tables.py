"""What torchvision, timm and others call the layers of the backbones whose weights they publish.

A table says for every layer of ours what the publisher calls it, and names what only one side has; all else follows from
the kinds of layers, see ``pretrained``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from covidjax.models import densenet121, efficientnet_lite0, resnet50, vgg16


class Table(NamedTuple):
    """One publisher's names."""

    layers: Mapping[str, str]
    """From our name of a layer, such as ``stages.0.0.expand.conv``, to theirs, such as ``blocks.0.0.conv_pw``."""
    first: str = "stem.conv"
    """Ours, the layer that sees the image."""
    unpublished: tuple[str, ...] = ()
    """Ours that the publisher has none of; zeros."""
    unused: tuple[str, ...] = ()
    """Theirs that no layer of ours takes."""


def resnet50_torchvision() -> Table:
    """torchvision's ``resnet50``, and timm's ``resnet50`` with the tag ``tv_in1k`` and many others."""
    table = {"stem.conv": "conv1", "stem.norm": "bn1", "dense": "fc"}
    for stage, count in enumerate(resnet50.BLOCKS):
        for block in range(count):
            ours, theirs = f"stages.{stage}.{block}", f"layer{stage + 1}.{block}"
            for number, unit in enumerate(("reduce", "conv", "expand"), 1):
                table |= {f"{ours}.{unit}.conv": f"{theirs}.conv{number}", f"{ours}.{unit}.norm": f"{theirs}.bn{number}"}
            if not block:
                table |= {
                    f"{ours}.shortcut.conv": f"{theirs}.downsample.0",
                    f"{ours}.shortcut.norm": f"{theirs}.downsample.1",
                }
    return Table(table)


def _vgg16(batch_norm: bool, dense: tuple[str, str, str], *, is_whole: bool) -> Table:
    """The thirteen convolutions with the paper's dense layers, or without, since our own has other inputs."""
    table: dict[str, str] = {}
    place = 0
    for block, count in enumerate(vgg16.BLOCKS):
        for unit in range(count):
            table[f"blocks.{block}.{unit}.conv"] = f"features.{place}"
            if batch_norm:
                table[f"blocks.{block}.{unit}.norm"] = f"features.{place + 1}"
            place += 3 if batch_norm else 2
        place += 1  # the pooling
    if is_whole:
        return Table(table | dict(zip(("hidden.0", "hidden.1", "dense"), dense, strict=True)), "blocks.0.0.conv")
    return Table(table, "blocks.0.0.conv", unpublished=("dense",), unused=dense)


def _vgg16_tables(batch_norm: bool) -> tuple[Callable[[], Table], ...]:
    """torchvision's ``vgg16`` or ``vgg16_bn``, and timm's, which have its dense layers as convolutions."""
    names = ("classifier.0", "classifier.3", "classifier.6"), ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
    return tuple(
        lambda dense=dense, is_whole=is_whole: _vgg16(batch_norm, dense, is_whole=is_whole)
        for dense in names
        for is_whole in (True, False)
    )


MIXED_A = ("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
MIXED_B = ("branch3x3",), MIXED_A[2]
MIXED_C = ("branch1x1",), tuple(f"branch7x7_{n}" for n in (1, 2, 3)), tuple(f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5))
MIXED_D = ("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{n}" for n in (1, 2, 3, 4))
MIXED = (
    (("5b", MIXED_A), ("5c", MIXED_A), ("5d", MIXED_A)),
    (("6a", MIXED_B), *((name, MIXED_C) for name in ("6b", "6c", "6d", "6e"))),
    (("7a", MIXED_D),),
)
"""Of each block of Inception-v3, stage by stage: its name, and those of the units of its chains."""

EXPANDED = {
    "narrow.units.0": "branch1x1",
    "single.units.0": "branch3x3_1",
    "double.units.0": "branch3x3dbl_1",
    "double.units.1": "branch3x3dbl_2",
    "ends.0.units.0": "branch3x3_2a",
    "ends.1.units.0": "branch3x3_2b",
    "ends.2.units.0": "branch3x3dbl_3a",
    "ends.3.units.0": "branch3x3dbl_3b",
    "pool.units.0": "branch_pool",
}
"""Of its last two."""

AUXILIARY = tuple(f"AuxLogits.{layer}" for layer in ("conv0.conv", "conv0.bn", "conv1.conv", "conv1.bn", "fc"))
"""Its second classifier, which is of use in training from scratch only."""


def inceptionv3_torchvision() -> Table:
    """torchvision's ``inception_v3``, and timm's."""
    stem = ("Conv2d_1a_3x3",), ("Conv2d_2a_3x3", "Conv2d_2b_3x3"), ("Conv2d_3b_1x1", "Conv2d_4a_3x3")
    units = {f"stem.{i}.units.{j}": name for i, chain in enumerate(stem) for j, name in enumerate(chain)}
    for stage, blocks in enumerate(MIXED):
        for block, (name, chains) in enumerate(blocks):
            ours, theirs = f"stages.{stage}.{block}", f"Mixed_{name}"
            for i, chain in enumerate(chains):
                units |= {f"{ours}.chains.{i}.units.{j}": f"{theirs}.{unit}" for j, unit in enumerate(chain)}
            if chains in (MIXED_A, MIXED_C):
                units[f"{ours}.pool.units.0"] = f"{theirs}.branch_pool"
    for block, name in enumerate(("7b", "7c"), 1):
        units |= {f"stages.2.{block}.{ours}": f"Mixed_{name}.{theirs}" for ours, theirs in EXPANDED.items()}
    parts = {"conv": "conv", "norm": "bn"}
    table = {f"{ours}.{part}": f"{unit}.{name}" for ours, unit in units.items() for part, name in parts.items()}
    return Table(table | {"dense": "fc"}, "stem.0.units.0.conv", unused=AUXILIARY)


def _densenet121(dot: str) -> Table:
    table = {"stem.conv": "features.conv0", "stem.norm": "features.norm0", "norm": "features.norm5", "dense": "classifier"}
    layers = {"norm": f"norm{dot}1", "reduce.conv": f"conv{dot}1", "reduce.norm": f"norm{dot}2", "conv": f"conv{dot}2"}
    for block, count in enumerate(densenet121.LAYERS):
        for layer in range(count):
            ours, theirs = f"blocks.{block}.{layer}", f"features.denseblock{block + 1}.denselayer{layer + 1}"
            table |= {f"{ours}.{part}": f"{theirs}.{name}" for part, name in layers.items()}
        if block + 1 < len(densenet121.LAYERS):
            ours, theirs = f"transitions.{block}", f"features.transition{block + 1}"
            table |= {f"{ours}.norm": f"{theirs}.norm", f"{ours}.conv": f"{theirs}.conv"}
    return Table(table)


def densenet121_torchvision() -> Table:
    """torchvision's ``densenet121``, and timm's."""
    return _densenet121("")


def densenet121_torchvision_file() -> Table:
    """The file that torchvision downloads, whose names are older than its layers'."""
    return _densenet121(".")


def efficientnet_lite0_timm() -> Table:
    """timm's ``tf_efficientnet_lite0``."""
    table = {
        "stem.conv": "conv_stem",
        "stem.norm": "bn1",
        "last.conv": "conv_head",
        "last.norm": "bn2",
        "dense": "classifier",
    }
    for number, stage in enumerate(efficientnet_lite0.STAGES):
        layers = {"depthwise": "conv_dw", "norm": "bn1", "project.conv": "conv_pw", "project.norm": "bn2"}
        if stage.expansion > 1:
            layers = {"expand.conv": "conv_pw", "expand.norm": "bn1", "depthwise": "conv_dw", "norm": "bn2"}
            layers |= {"project.conv": "conv_pwl", "project.norm": "bn3"}
        for block in range(stage.blocks):
            table |= {f"stages.{number}.{block}.{ours}": f"blocks.{number}.{block}.{name}" for ours, name in layers.items()}
    return Table(table)


def efficientnet_lite0_lukemelas() -> Table:
    """The names of ``efficientnet_lite_pytorch``, after lukemelas' EfficientNet-PyTorch."""
    table = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "last.conv": "_conv_head", "last.norm": "_bn1", "dense": "_fc"}
    layers = {"depthwise": "_depthwise_conv", "norm": "_bn1", "project.conv": "_project_conv", "project.norm": "_bn2"}
    expand = {"expand.conv": "_expand_conv", "expand.norm": "_bn0"}
    count = 0
    for number, stage in enumerate(efficientnet_lite0.STAGES):
        for block in range(stage.blocks):
            own = layers | (expand if stage.expansion > 1 else {})
            table |= {f"stages.{number}.{block}.{ours}": f"_blocks.{count}.{name}" for ours, name in own.items()}
            count += 1
    return Table(table)


TABLES: Mapping[str, tuple[Callable[[], Table], ...]] = {
    "resnet50": (resnet50_torchvision,),
    "vgg16": _vgg16_tables(False),
    "vgg16-bn": _vgg16_tables(True),
    "inceptionv3": (inceptionv3_torchvision,),
    "densenet121": (densenet121_torchvision, densenet121_torchvision_file),
    "efficientnet-lite0": (efficientnet_lite0_timm, efficientnet_lite0_lukemelas),
}
"""Of every backbone the tables of those who publish weights of it."""
