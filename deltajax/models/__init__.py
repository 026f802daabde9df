"""Networks that `deltajax run` knows by name; a module of this package that has one calls it `MODEL`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree, UInt8

_MODULES = {
    "blazeface": "deltajax.models.blazeface",
    "convnext-t": "deltajax.models.convnext",
    "digits": "deltajax.models.digits",
    "efficientnet-b0": "deltajax.models.imagenet:EFFICIENTNET_B0",
    "espnet": "deltajax.models.espnet",
    "fastestdet": "deltajax.models.fastestdet",
    "hrnet-w32": "deltajax.models.hrnet",
    "mobilenet-vww": "deltajax.models.mobilenet",
    "mobilenetv2": "deltajax.models.imagenet:MOBILENETV2",
    "mobilenetv3": "deltajax.models.imagenet:MOBILENETV3",
    "prisma-net": "deltajax.models.prisma_net",
    "resnet18": "deltajax.models.imagenet:RESNET18",
    "resnet20": "deltajax.models.resnet:RESNET20",
    "resnet50": "deltajax.models.imagenet:RESNET50",
    "resnet56": "deltajax.models.resnet:RESNET56",
    "resnet8": "deltajax.models.resnet:RESNET8",
    "rfb-320": "deltajax.models.rfb",
    "slim-320": "deltajax.models.slim",
    "unet": "deltajax.models.unet",
    "vit-s": "deltajax.models.vit",
}


@dataclass(frozen=True)
class VisionModel:
    """A network together with what it takes to run it on pictures of any size and to show what it found.

    `apply` takes the frame as uint8 RGB, as it comes out of a decoder, and normalises it itself: so `tau` is
    in grey levels, and the normalisation is part of the first segment that runs on tiles.

    Attributes:
        name: what the command line calls it.
        summary: what it does, in one line.
        frame_size: (height, width) that the network takes, `None` if it takes the source's own.
        apply: (params, uint8 frame [height, width, 3]) -> output, a pytree. Pure JAX.
        shapes: () -> the params as `jax.ShapeDtypeStruct`s, as `load` returns them; all that `explain` has to know.
        prepare: uint8 RGB picture of any size -> uint8 frame of the network's size.
        load: weight file, or `None` for the weights in the package -> params. Raises `ValueError` if the file
            holds another network's weights, or if none are in the package.
        interpret: (output in numpy, (height, width) of the picture) -> result, in the picture's pixels.
        draw: (picture, result) -> a copy of the picture with the result drawn on it.
        place: (height, width) of a picture -> the rows and columns of the frame that it fills; all of them if left out.
    """

    name: str
    summary: str
    frame_size: tuple[int, int] | None
    apply: Callable[[PyTree, Any], PyTree]
    shapes: Callable[[], PyTree]
    prepare: Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "rows columns 3"]]
    load: Callable[[Path | None], PyTree]
    interpret: Callable[[PyTree, tuple[int, int]], Any]
    draw: Callable[[UInt8[np.ndarray, "height width 3"], Any], UInt8[np.ndarray, "height width 3"]]
    place: Callable[[tuple[int, int]], tuple[slice, slice]] = lambda size: (slice(None), slice(None))


def model_names() -> list[str]:
    """The names that `get_model` knows, in alphabetical order."""
    return sorted(_MODULES)


def get_model(name: str) -> VisionModel:
    """The model of that name; its module is imported only now.

    Raises:
        ValueError: no model has that name; the message lists those there are.
    """
    if name not in _MODULES:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(model_names())}")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or "MODEL")
