"""BlazeFace, the front camera's face detector of 101,390 parameters: 128x128 frame, 896 anchors on two maps.

Architecture: Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", arXiv 1907.05047,
in the simpler form that MediaPipe ships. Weights: hollance/BlazeFace-PyTorch (Apache-2.0), blazeface.pth, converted
there from MediaPipe's; decoding and suppression follow its blazeface.py. Layers carry its names.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.draw import draw_boxes
from deltajax.models import VisionModel
from deltajax.models._folding import Layer, fold_layers
from deltajax.models._published import Params, Published, shapes
from deltajax.models._resize import sample
from deltajax.models._state_dict import flax_layout
from deltajax.models.slim import overlapping

SIDE = 128
MAPS = ((16, 2), (8, 6))  # rows and columns, anchors at each position
ANCHORS = 896
POINTS = 6  # right eye, left eye, nose, mouth, right ear, left ear, as the person has them
MIN_SCORE = 0.75  # as the authors set them for the front model
MAX_OVERLAP = 0.3
PUBLISHED = Published(
    "blazeface", "pass --weights blazeface.pth, published in https://github.com/hollance/BlazeFace-PyTorch"
)


class Faces(NamedTuple):
    """Detected faces, best first; boxes are left, top, right, bottom, points x, y, in the picture's pixels."""

    boxes: Float[np.ndarray, "faces 4"]
    points: Float[np.ndarray, "faces 6 2"]
    scores: Float[np.ndarray, " faces"]


class BlazeFace(nn.Module):
    """The network with its decoding: uint8 RGB frames to one candidate for each anchor.

    Returns "scores" [..., 896], the probabilities of a face, and "corners" [..., 896, 16]: left, top, right, bottom,
    then x, y of the six points, as shares of the frame's side. The order is the authors': map, row, column.
    """

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch 128 128 3"]) -> dict[str, Float32[Array, "*batch 896 ..."]]:
        batch = frame.shape[:-3]
        x = frame.reshape(-1, SIDE, SIDE, 3).astype(jnp.float32) / 127.5 - 1
        x = nn.relu(_conv("backbone1.0", x, 24, kernel=5, stride=2))
        for number, width in enumerate((24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88), start=2):
            x = block(f"backbone1.{number}", x, width, stride=2 if number in (4, 7) else 1)
        fine = x
        for number in range(5):
            x = block(f"backbone2.{number}", x, 96, stride=2 if number == 0 else 1)
        logits, offsets = [], []
        # The authors number the heads by the strides of the maps: 8 pixels and 16.
        for stride, y, (side, anchors_each) in zip((8, 16), (fine, x), MAPS, strict=True):
            count = side * side * anchors_each
            logits.append(_conv(f"classifier_{stride}", y, anchors_each, kernel=1).reshape(-1, count))
            offsets.append(_conv(f"regressor_{stride}", y, 16 * anchors_each, kernel=1).reshape(-1, count, 16))
        scores = nn.sigmoid(jnp.concatenate(logits, axis=1))
        corners = decode(jnp.concatenate(offsets, axis=1))
        return {"scores": scores.reshape(*batch, ANCHORS), "corners": corners.reshape(*batch, ANCHORS, 16)}


def block(name: str, x: Float[Array, "n h w c"], width: int, stride: int = 1) -> Float[Array, "n h2 w2 width"]:
    """`BlazeBlock`: relu(separable convolution + x), x filled to `width` with zeros, and at stride 2 pooled to half."""
    y = _conv(f"{name}.convs.0", x, x.shape[-1], stride=stride, groups=x.shape[-1])
    y = _conv(f"{name}.convs.1", y, width, kernel=1)
    if stride == 2:
        # XLA:CPU (jax 0.10.2) would fuse this with the convolutions around it and the zero channels of an earlier
        # block into one YNNPACK call, whose result is wrong; the rounding, to float32 as it is, keeps them apart.
        x = nn.max_pool(lax.reduce_precision(x, 8, 23), (2, 2), (2, 2))
    return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1]))))


def _conv(name: str, x: Array, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Array:
    """A convolution with TFLite's padding: at stride 2 there is one more row below than above, and so on the right."""
    return nn.Conv(width, (kernel, kernel), stride, padding="SAME", feature_group_count=groups, name=name)(x)


@functools.cache
def anchors() -> Float32[np.ndarray, "896 2"]:
    """Centre x and y of each anchor, as shares of the frame; all are as large as the frame (`SsdAnchorsCalculator`)."""
    of_maps = []
    for side, anchors_each in MAPS:
        centres = (np.arange(side) + 0.5) / side
        y, x, _ = np.meshgrid(centres, centres, np.arange(anchors_each), indexing="ij")
        of_maps.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(of_maps).astype(np.float32)


def decode(offsets: Float[Array, "*batch 896 16"]) -> Float[Array, "*batch 896 16"]:
    """Centre, size and points in pixels from the anchors' centres to corners and points in shares (`_decode_boxes`)."""
    shares = offsets / SIDE
    centre, half = anchors() + shares[..., :2], shares[..., 2:4] / 2
    points = np.tile(anchors(), POINTS) + shares[..., 4:]
    return jnp.concatenate([centre - half, centre + half, points], axis=-1)


def apply(
    params: Params, frame: UInt8[Array, "*batch 128 128 3"]
) -> dict[str, Float32[Array, "*batch 896 ..."]]:
    """`BlazeFace` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return BlazeFace().apply(params, frame)  # pyright: ignore[reportReturnType]


def load(path: Path | None) -> Params:
    """The params from the authors' file, or from a .safetensors file with the names of their state dict.

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    wanted = shapes(BlazeFace(), (SIDE, SIDE))["params"]
    layers = {name: Layer(f"{name}.weight", f"{name}.bias") for name in wanted}
    return fold_layers(flax_layout(PUBLISHED.read(path)), layers, wanted, 0, PUBLISHED, str(path))


class Place(NamedTuple):
    """Where a picture lies in the square frame, in pixels of the frame."""

    top: int
    left: int
    rows: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The same, of the frame's rows and columns."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)


def place(size: tuple[int, int]) -> Place:
    """The largest place of a picture's (height, width) in the frame that keeps its aspect, in the middle."""
    rows, columns = (max(1, round(SIDE * side / max(size))) for side in size)
    return Place((SIDE - rows) // 2, (SIDE - columns) // 2, rows, columns)


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "128 128 3"]:
    """Fits the whole picture into the frame, between black bars, as MediaPipe's face detection does.

    A square cut out of the middle would show faces larger, but would be blind at the sides.
    """
    there = place((rgb.shape[0], rgb.shape[1]))
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    frame[there.slices] = sample(rgb, (there.rows, there.columns))
    return frame


def interpret(output: dict[str, Float[np.ndarray, "896 ..."]], size: tuple[int, int]) -> Faces:
    """Faces with a score of at least .75, blended by `blend` where they overlap by more than .3.

    Args:
        output: what `apply` returned for one frame.
        size: (height, width) of the picture that the boxes and points are for.
    """
    scores = np.asarray(output["scores"])
    likely = np.flatnonzero(scores >= MIN_SCORE)
    top, left, rows, columns = place(size)
    scale = np.array([size[1] / columns, size[0] / rows])
    pixels = (SIDE * np.asarray(output["corners"])[likely].reshape(-1, 2 + POINTS, 2) - (left, top)) * scale
    faces, scores = blend(pixels.reshape(-1, 4 + 2 * POINTS), scores[likely], MAX_OVERLAP)
    return Faces(faces[:, :4], faces[:, 4:].reshape(-1, POINTS, 2), scores)


def blend(
    faces: Float[np.ndarray, "candidates numbers"], scores: Float[np.ndarray, " candidates"], max_overlap: float
) -> tuple[Float[np.ndarray, "faces numbers"], Float[np.ndarray, " faces"]]:
    """Weighted suppression (arXiv 1907.05047, section 4): what overlaps the best is averaged with it, not dropped.

    Args:
        faces: left, top, right, bottom and any further numbers, which are averaged with the weight of the scores.
        scores: higher is better; a face gets the plain mean of its candidates', as in blazeface.py.
        max_overlap: the largest intersection over union that two candidates of different faces may have.

    Returns:
        Faces and their scores, by their best candidates, best first.
    """
    rest = np.argsort(-scores, kind="stable")
    blended, means = np.zeros((0, faces.shape[1])), np.zeros(0)
    while rest.size:
        same = overlapping(faces[rest[0], :4], faces[rest, :4], max_overlap)
        same[0] = True  # a box without area does not overlap even itself
        blended = np.vstack([blended, np.average(faces[rest[same]], axis=0, weights=scores[rest[same]])])
        means = np.append(means, scores[rest[same]].mean())
        rest = rest[~same]
    return blended, means


def draw(rgb: UInt8[np.ndarray, "height width 3"], faces: Faces) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with a box around each face, its score, and a small square around each of its points."""
    points, reach = faces.points.reshape(-1, 2), min(rgb.shape[:2]) / 160
    marked = draw_boxes(rgb, np.hstack([points - reach, points + reach]))
    return draw_boxes(marked, faces.boxes, [f"{score:.2f}" for score in faces.scores])


MODEL = VisionModel(
    name="blazeface",
    summary="faces with six points each, 128x128 (Google MediaPipe's BlazeFace, front camera)",
    frame_size=(SIDE, SIDE),
    apply=apply,
    shapes=functools.partial(shapes, BlazeFace(), (SIDE, SIDE)),
    prepare=prepare,
    load=load,
    interpret=interpret,
    draw=draw,
    place=lambda size: place(size).slices,
)
