"""Finds and names bright digits in a picture of any size: a fully convolutional network of eight layers.

    16 /2, 32 /2, 32, 64 /2, 64, 64, 64 (each 3x3 with bias and relu), 15 (1x1)        1.6 GFLOP at 512x512

One output position for every 8x8 pixels, which sees 79x79 pixels around it. The shipped weights come from
`python -m train.digits`, whose head states what they reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ..scenes import Digit
from . import VisionModel
from ._weights import read_params, read_shipped

STRIDE = 8
BACKGROUND = 10  # the class after the ten digits
BOX_UNIT = 32.0  # pixels; the network gives distances in these
MIN_SCORE = 0.4
LAYERS = ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (64, 1))  # (features, stride)
COLOURS = (  # of the digits 0 to 9
    *((255, 99, 97), (255, 166, 77), (255, 214, 92), (186, 220, 88), (94, 211, 133)),
    *((72, 207, 201), (89, 178, 255), (137, 143, 255), (198, 133, 255), (255, 128, 191)),
)


class DigitFinder(nn.Module):
    """For each position: logits of 0 to 9 and background, then distances to the sides of the digit's box.

    Every convolution pads by one whatever its stride, so position (i, j) looks at pixel (8 i, 8 j).
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*batch h w 3"]) -> Float[Array, "*batch h//8 w//8 15"]:
        for i, (features, stride) in enumerate(LAYERS, 1):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride, padding=1, name=f"conv{i}")(x))
        return nn.Conv(BACKGROUND + 5, (1, 1), name="head")(x)


class Found(NamedTuple):
    """A digit that was found, how sure the network is (0..1), and its box in pixels."""

    name: int
    score: float
    top: float
    left: float
    bottom: float
    right: float


def init_params(key: Array) -> dict[str, Any]:
    """Random parameters, `{"conv1": {"kernel", "bias"}, ..., "conv7", "head"}`, float32."""
    variables: Any = DigitFinder().init(key, jnp.zeros((STRIDE, STRIDE, 3)))
    return variables["params"]


def apply(params: dict[str, Any], frame: UInt8[Array, "*batch h w 3"]) -> Float[Array, "*batch h//8 w//8 15"]:
    """`DigitFinder` as a function of `(params, frame)`; the frame is RGB bytes: `tau` is in grey levels."""
    x = frame.astype(jnp.float32) / 64 - 1
    return DigitFinder().apply({"params": params}, x)  # pyright: ignore[reportReturnType]


def prepare(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture itself: the network takes any size."""
    return rgb


def shapes() -> dict[str, Any]:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(lambda: init_params(jax.random.key(0)))


def load(path: Path | None = None) -> dict[str, Any]:
    """The trained parameters, float32 (shipped as float16); see `read_params` for the errors.

    Args:
      path: a safetensors file written by `python -m train.digits`; None for the shipped one.
    """
    like = shapes()
    return read_shipped("digits.safetensors", like) if path is None else read_params(path, like)


def probabilities(output: Float[np.ndarray, "i j 15"]) -> Float[np.ndarray, "i j 11"]:
    """Softmax over the ten digits and background."""
    logits = np.asarray(output)[..., : BACKGROUND + 1].astype(np.float64)
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def interpret(output: Float[np.ndarray, "i j 15"], size: tuple[int, int]) -> list[Found]:
    """Digits from the network's output, the surest first.

    Positions that are rather a digit than background vote: the surest of them takes along all whose boxes
    share more than half of the smaller one with its own; what they name together is the digit's name.

    Args:
      output: for positions (i, j).
      size: (height, width) of the picture; boxes are cut off there.
    """
    output = np.asarray(output)
    shares = probabilities(output)
    sure = 1 - shares[..., BACKGROUND]
    i, j = np.nonzero(sure > 0.5)
    sure, shares = sure[i, j], shares[i, j, :BACKGROUND]
    reach = output[i, j, BACKGROUND + 1 :] * BOX_UNIT
    centre = np.stack([i, j], -1) * STRIDE
    boxes = np.concatenate([centre - reach[:, :2], centre + reach[:, 2:]], -1)  # top, left, bottom, right
    boxes = np.clip(boxes, 0, [*size, *size])
    found = []
    left = np.argsort(-sure, kind="stable")
    while len(left):
        same = _shared(boxes[left[0]], boxes[left]) > 0.5
        same[0] = True
        voters, left = left[same], left[~same]
        votes = shares[voters].sum(0)
        box = np.average(boxes[voters], axis=0, weights=sure[voters])
        name = int(votes.argmax())
        if len(voters) > 1 and votes[name] > MIN_SCORE * len(voters):  # a lone position is a speck
            found.append(Found(name, float(votes[name] / len(voters)), *map(float, box)))
    return sorted(found, key=lambda digit: -digit.score)


def rightly_named(found: Sequence[Found], there: Sequence[Digit]) -> int:
    """How many of the digits `there` were found: of the same name, middles within a quarter of the side."""
    left = list(there)
    for report in found:
        for digit in left:
            side = max(digit.bottom - digit.top, digit.right - digit.left)
            dy = (report.top + report.bottom - digit.top - digit.bottom) / 2
            dx = (report.left + report.right - digit.left - digit.right) / 2
            if digit.name == report.name and np.hypot(dy, dx) < side / 4:
                left.remove(digit)
                break
    return len(there) - len(left)


def draw(rgb: UInt8[np.ndarray, "h w 3"], result: list[Found]) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the picture with a box and a label around each digit."""
    image = Image.fromarray(rgb)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    for digit in result:
        colour = COLOURS[digit.name]
        top, left, bottom, right = digit.top - 5, digit.left - 5, digit.bottom + 4, digit.right + 4
        pen.rounded_rectangle((left, top, right, bottom), radius=5, outline=colour, width=2)
        label = f"{digit.name}  {digit.score:.0%}"
        width = pen.textlength(label, font=font) + 10
        above = top - 20 if top >= 20 else bottom
        pen.rounded_rectangle((left, above, left + width, above + 20), radius=4, fill=colour)
        pen.text((left + 5, above + 10), label, fill=(18, 20, 24), font=font, anchor="lm")
    return np.asarray(image)


def _shared(box: Float[np.ndarray, " 4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Area that two boxes share, relative to the smaller of them."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1)
    return np.prod(np.maximum(sides, 0), -1) / np.maximum(np.minimum(areas, np.prod(box[2:] - box[:2])), 1e-9)


MODEL = VisionModel(
    name="digits",
    summary="finds and names bright digits; any size; 1.6 GFLOP at 512x512",
    frame_size=None,
    apply=apply,
    shapes=shapes,
    prepare=prepare,
    load=load,
    interpret=interpret,
    draw=draw,
)
