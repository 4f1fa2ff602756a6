"""The networks by name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from covidjax.config import ModelConfig, Preprocess
from covidjax.errors import UsageError
from covidjax.models.cnn13 import CNN13
from covidjax.models.darkcovidnet import DarkCovidNet
from covidjax.models.densenet121 import DenseNet121
from covidjax.models.efficientnet_lite0 import EfficientNetLite0
from covidjax.models.inceptionv3 import InceptionV3
from covidjax.models.lung_unet import LungUNet
from covidjax.models.network import Network, Weights, count_parameters
from covidjax.models.resnet50 import ResNet50
from covidjax.models.vgg16 import VGG16, VGG16BN

__all__ = ["MODELS", "Network", "Weights", "count_parameters", "create_model"]

MODELS = {
    "darkcovidnet": DarkCovidNet,
    "cnn13": CNN13,
    "resnet50": ResNet50,
    "vgg16": VGG16,
    "vgg16-bn": VGG16BN,
    "inceptionv3": InceptionV3,
    "densenet121": DenseNet121,
    "efficientnet-lite0": EfficientNetLite0,
    "lung-unet": LungUNet,
}


def create_model(
    model: ModelConfig, preprocess: Preprocess, dtype: DTypeLike = jnp.float32, *, plain: bool = False
) -> Network:
    """A network by its settings.

    Args:
      model: which, and with how many input channels.
      preprocess: image size and classes.
      dtype: of convolutions and activations.
      plain: see ``Network``.

    Raises:
      UsageError: images of a size that the network does not take.
    """
    kind: Any = MODELS[model.name]
    shape = (preprocess.image_size, model.channels, len(preprocess.classes))
    options = {"width": model.width, "rate": model.dropout} if kind is CNN13 else {}

    def make(key: Array) -> nnx.Module:
        return kind(*shape, **options, dtype=dtype, rngs=nnx.Rngs(params=key))

    try:
        return Network(make, kind.features, kind.head, plain=plain)
    except ValueError as error:
        raise UsageError(
            f"{error} Prepare the images in another size by --image-size, or choose another --model."
        ) from error
