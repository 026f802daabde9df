"""Networks of timm for ImageNet's thousand classes as `VisionModel`s: what they have in common."""

from __future__ import annotations

import functools

from flax import linen as nn

from deltajax.models import VisionModel
from deltajax.models._classifier import classifier
from deltajax.models._published import Published, shapes
from deltajax.models._state_dict import load_state_dict
from deltajax.models.imagenet import CLASSES, SIDE, apply


def timm_model(name: str, network: nn.Module, repository: str) -> VisionModel:
    """`network` for frames of 224x224; a class goes by its number, for the names are not in the package.

    Args:
        name: what the command line calls it.
        network: uint8 RGB frames [..., height, width, 3] to logits [..., 1000]; its modules carry timm's names.
        repository: of its weights, among timm's on huggingface.co.
    """
    published = Published(
        name, f"pass --weights model.safetensors, published at https://huggingface.co/timm/{repository}"
    )
    return classifier(
        name,
        f"names a picture, 1,000 classes of ImageNet by their numbers, 224x224 (timm, {repository})",
        SIDE,
        CLASSES,
        functools.partial(apply, network),
        functools.partial(shapes, network, (SIDE, SIDE)),
        functools.partial(load_state_dict, network, (SIDE, SIDE), published),
    )
