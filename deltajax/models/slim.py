"""slim-320, a face detector of 260,188 parameters: 240x320 frame, 4,420 anchors on four maps.

Architecture and weights: `version-slim-320` of Linzaer's Ultra-Light-Fast-Generic-Face-Detector-1MB (MIT), in
vision/nn/mb_tiny.py, vision/ssd/mb_tiny_fd.py, vision/ssd/config/fd_config.py and vision/utils/box_utils.py.
The modules carry the authors' names ("base_net.3.0"), so their state dict maps onto the params name by name.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32, UInt8
from PIL import Image

from deltajax.draw import draw_boxes
from deltajax.models import VisionModel
from deltajax.models._published import Params, Published, shapes
from deltajax.models._state_dict import load_state_dict
from deltajax.models._torch_layers import conv, conv_norm

FRAME_SIZE = (240, 320)
ANCHOR_SIDES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))  # pixels, for strides 8, 16, 32, 64
ANCHORS = 4420
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
MIN_SCORE = 0.7  # as in the authors' demo programs
MAX_OVERLAP = 0.3
PUBLISHED = Published(
    "slim-320",
    "pass --weights version-slim-320.pth, published in models/pretrained of "
    "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB",
)

class Faces(NamedTuple):
    """Detected faces, best first: left, top, right, bottom in the picture's pixels, and scores in 0..1."""

    boxes: Float[np.ndarray, "faces 4"]
    scores: Float[np.ndarray, " faces"]


class Slim320(nn.Module):
    """The network with its decoding: uint8 RGB frames to scores and boxes.

    Returns "scores" [..., 4420, 2], the probabilities of background and face, and "boxes" [..., 4420, 4]:
    left, top, right, bottom as shares of the width and height. The order is the authors': map, row, column.
    """

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch 240 320 3"]) -> dict[str, Float32[Array, "*batch 4420 _"]]:
        batch = frame.shape[:-3]
        x = (frame.reshape(-1, *FRAME_SIZE, 3).astype(jnp.float32) - 127) / 128
        x = nn.relu(conv_norm("base_net.0.0", x, 16, kernel=3, stride=2))
        maps = []
        widths = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256)
        strides = (1, 2, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1)
        for number, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            channels = x.shape[-1]
            x = nn.relu(conv_norm(f"base_net.{number}.0", x, channels, kernel=3, stride=stride, groups=channels))
            x = nn.relu(conv_norm(f"base_net.{number}.3", x, width))
            if number in (7, 10, 12):
                maps.append(x)
        return detections(maps, batch)



def _separable(name: str, x: Array, width: int, stride: int = 1) -> Array:
    x = nn.relu(conv(f"{name}.0", x, x.shape[-1], stride=stride, groups=x.shape[-1]))
    return conv(f"{name}.2", x, width, kernel=1)


def detections(maps: list[Array], batch: tuple[int, ...]) -> dict[str, Float32[Array, "*batch 4420 _"]]:
    """The fourth map and the heads, as the authors' slim and RFB networks share them; what `Slim320` returns.

    Args:
        maps: [n, 30, 40, 64], [n, 15, 20, 128] and [n, 8, 10, 256].
        batch: the leading axes of the output, n numbers in all.
    """
    x = nn.relu(conv("extras.0.0", maps[-1], 64, kernel=1))
    maps = [*maps, nn.relu(_separable("extras.0.2", x, 256, stride=2))]
    logits, offsets = [], []
    for number, (x, sides) in enumerate(zip(maps, ANCHOR_SIDES, strict=True)):
        head = _separable if number < 3 else conv
        for kind, outputs, numbers in (("classification", logits, 2), ("regression", offsets, 4)):
            y = head(f"{kind}_headers.{number}", x, len(sides) * numbers)
            outputs.append(y.reshape(y.shape[0], -1, numbers))
    scores = nn.softmax(jnp.concatenate(logits, axis=1))
    boxes = decode(jnp.concatenate(offsets, axis=1))
    return {"scores": scores.reshape(*batch, ANCHORS, 2), "boxes": boxes.reshape(*batch, ANCHORS, 4)}


@functools.cache
def anchors() -> Float32[np.ndarray, "4420 4"]:
    """Centre x, centre y, width, height of each anchor, as shares of the frame (`generate_priors`)."""
    height, width = FRAME_SIZE
    of_maps = []
    for sides, stride in zip(ANCHOR_SIDES, (8, 16, 32, 64), strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, side = np.meshgrid(
            (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, sides, indexing="ij"
        )
        of_maps.append(np.stack([x, y, side / width, side / height], axis=-1).reshape(-1, 4))
    return np.concatenate(of_maps).clip(0, 1).astype(np.float32)


def decode(offsets: Float[Array, "*batch 4420 4"]) -> Float[Array, "*batch 4420 4"]:
    """Offsets from the anchors to corners (`convert_locations_to_boxes`, `center_form_to_corner_form`)."""
    centre, size = anchors()[:, :2], anchors()[:, 2:]
    centre = centre + offsets[..., :2] * CENTRE_VARIANCE * size
    half = jnp.exp(offsets[..., 2:] * SIZE_VARIANCE) * size / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def apply(
    params: Params, frame: UInt8[Array, "*batch 240 320 3"]
) -> dict[str, Float32[Array, "*batch 4420 _"]]:
    """`Slim320` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return Slim320().apply(params, frame)  # pyright: ignore[reportReturnType]


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "240 320 3"]:
    """Resizes to 240x320 as the authors do, without regard to the aspect; bilinear."""
    height, width = FRAME_SIZE
    if rgb.shape == (height, width, 3):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def interpret(output: dict[str, Float[np.ndarray, "4420 _"]], size: tuple[int, int]) -> Faces:
    """Faces with a score of at least .7, of which none covers a better one (intersection over union <= .3).

    Args:
        output: what `apply` returned for one frame.
        size: (height, width) of the picture that the boxes are for.
    """
    scores = np.asarray(output["scores"])[:, 1]
    likely = np.flatnonzero(scores >= MIN_SCORE)
    boxes = np.asarray(output["boxes"])[likely] * np.tile(size[::-1], 2)
    kept = keep_best(boxes, scores[likely], MAX_OVERLAP)
    return Faces(boxes[kept], scores[likely][kept])


def keep_best(
    boxes: Float[np.ndarray, "boxes 4"], scores: Float[np.ndarray, " boxes"], max_overlap: float
) -> list[int]:
    """Greedy non-maximum suppression: the best box stays, what overlaps it goes, and so on with the rest.

    Args:
        boxes: left, top, right, bottom.
        scores: higher is better.
        max_overlap: the largest intersection over union that two kept boxes may have.

    Returns:
        Indices into `boxes`, best first.
    """
    kept = []
    rest = np.argsort(-scores, kind="stable")
    while rest.size:
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        rest = rest[~overlapping(boxes[best], boxes[rest], max_overlap)]
    return kept


def overlapping(
    box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "boxes 4"], max_overlap: float
) -> Bool[np.ndarray, " boxes"]:
    """Which boxes have an intersection over union with `box` of more than `max_overlap`; none without area."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    return shared > max_overlap * ((box[2:] - box[:2]).clip(0).prod() + areas - shared)


def draw(rgb: UInt8[np.ndarray, "height width 3"], faces: Faces) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with a box around each face and its score."""
    return draw_boxes(rgb, faces.boxes, [f"{score:.2f}" for score in faces.scores])


MODEL = VisionModel(
    name="slim-320",
    summary="faces, 240x320 (Linzaer's Ultra-Light-Fast-Generic-Face-Detector-1MB, slim)",
    frame_size=FRAME_SIZE,
    apply=apply,
    shapes=functools.partial(shapes, Slim320(), FRAME_SIZE),
    prepare=prepare,
    load=functools.partial(load_state_dict, Slim320(), FRAME_SIZE, PUBLISHED),
    interpret=interpret,
    draw=draw,
)
