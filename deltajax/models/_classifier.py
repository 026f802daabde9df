"""What networks that name a picture have in common, as a `VisionModel`: resize, load, softmax, a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from deltajax.draw import draw_boxes
from deltajax.models import VisionModel
from deltajax.models._published import Params

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's R, G and B, in 0..1


class Named(NamedTuple):
    """The likeliest class of a picture, and its probability in 0..1."""

    name: str
    probability: float


def classifier(
    name: str,
    summary: str,
    side: int,
    classes: Sequence[str],
    apply: Callable[[Params, Array], Array],
    shapes: Callable[[], Params],
    load: Callable[[Path | None], Params],
) -> VisionModel:
    """A network that takes a square frame and returns the logits of `classes`.

    Args:
        name, summary, apply, shapes, load: as in `VisionModel`.
        side: of the frame, in pixels; pictures are resized to it without regard to the aspect.
        classes: their names, in the order of the logits.
    """

    def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "side side 3"]:
        if rgb.shape == (side, side, 3):
            return rgb
        return np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR))

    def interpret(output: Float[np.ndarray, " classes"], size: tuple[int, int]) -> Named:
        shares = probabilities(output)
        return Named(classes[int(shares.argmax())], float(shares.max()))

    return VisionModel(name, summary, (side, side), apply, shapes, prepare, load, interpret, draw)


def normalised(frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "n h w 3"]:
    """RGB as torchvision's networks take it: less ImageNet's mean, by its deviation; the leading axes as one."""
    x = frame.reshape(-1, *frame.shape[-3:]).astype(jnp.float32) / 255
    return (x - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)


def probabilities(logits: Float[Any, "*batch classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Softmax, in float64."""
    exponents = np.asarray(logits, np.float64)
    shares = np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def draw(rgb: UInt8[np.ndarray, "height width 3"], found: Named) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture in a frame, with the class and its probability in the upper left corner."""
    height, width = rgb.shape[:2]
    return draw_boxes(rgb, np.array([[0, 0, width - 1, height - 1]]), [f"{found.name} {found.probability:.0%}"])
