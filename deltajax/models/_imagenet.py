"""What networks trained on ImageNet's thousand classes have in common: normalisation, resize, load, a label."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float32, UInt8

from deltajax.models import VisionModel
from deltajax.models._classifier import classifier
from deltajax.models._state_dict import Params, params_from_state_dict
from deltajax.models._weight_files import read_weights

SIDE = 224
CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G and B, in 0..1


def imagenet_classifier(name: str, summary: str, network: nn.Module, hint: str) -> VisionModel:
    """`network`, whose modules carry the names of its authors' state dict, as a `VisionModel` for 224x224 frames.

    A class goes by its number among the thousand of ILSVRC 2012: their names are not in the package.

    Args:
        name, summary: as in `VisionModel`.
        network: uint8 RGB frames [..., height, width, 3] to logits [..., 1000].
        hint: which weight file to give, and where it is published.
    """

    def apply(params: Params, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch 1000"]:
        return network.apply(params, frame)  # pyright: ignore[reportReturnType]

    def load(path: Path | None) -> Params:
        if path is None:
            raise ValueError(f"the weights of {name} are not in the package; {hint}")
        frame = jax.ShapeDtypeStruct((SIDE, SIDE, 3), jnp.uint8)
        wanted = jax.eval_shape(network.init, jax.random.key(0), frame)
        return params_from_state_dict(read_weights(path), wanted, name, str(path), hint)

    classes = [f"ImageNet class {number}" for number in range(CLASSES)]
    return classifier(name, summary, SIDE, classes, apply, load)
