"""FastestDet, a detector of 244,490 parameters for the 80 classes of COCO: 352x352 frame, 22x22 cells.

Architecture and weights: dog-qiuqiu's FastestDet (BSD-3-Clause), in module/detector.py, module/shufflenetv2.py,
module/custom_layers.py, and utils/tool.py for what the output means. The backbone is that of Ma et al.,
"ShuffleNet V2", arXiv 1807.11164. The modules carry the authors' names ("backbone.stage2.0.branch_main.3"), so their
state dict maps onto the params name by name.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.draw import draw_boxes
from deltajax.models import VisionModel
from deltajax.models._published import Params, Published, shapes
from deltajax.models._resize import sample
from deltajax.models._state_dict import load_state_dict
from deltajax.models._torch_layers import PAD_ONE, conv_norm
from deltajax.models.slim import keep_best

FRAME_SIZE = (352, 352)
STRIDE = 32  # of the coarsest map: the sides of a frame are multiples of it
MIN_SCORE = 0.65  # as in the authors' demo program
MAX_OVERLAP = 0.45
NAMES = (
    "person,bicycle,car,motorbike,aeroplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,"
    "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,sofa,potted plant,bed,dining table,toilet,tv monitor,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")
PUBLISHED = Published(
    "fastestdet",
    "pass --weights weight_AP05:0.253207_280-epoch.pth, published in weights of "
    "https://github.com/dog-qiuqiu/FastestDet",
)


class Objects(NamedTuple):
    """Detected objects, best first: left, top, right, bottom in the picture's pixels, scores in 0..1, COCO names."""

    boxes: Float[np.ndarray, "objects 4"]
    scores: Float[np.ndarray, " objects"]
    names: list[str]


class FastestDet(nn.Module):
    """The network with its decoding: uint8 RGB frames to one candidate for each cell of 16x16 pixels.

    Returns "objectness" [..., rows, columns] and "classes" [..., rows, columns, 80], both probabilities, and "boxes"
    [..., rows, columns, 4]: left, top, right, bottom as shares of the width and height.

    Attributes:
        repeats: blocks in each stage of the backbone; the authors' weights are for 4, 8, 4.

    Raises:
        ValueError: a side of the frame is no multiple of 32.
    """

    repeats: tuple[int, int, int] = (4, 8, 4)

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> dict[str, Float32[Array, "..."]]:
        *batch, height, width, _ = frame.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be multiples of {STRIDE}")
        # The authors read pictures with OpenCV, whose channels are blue, green, red.
        x = frame.reshape(-1, height, width, 3)[..., ::-1].astype(jnp.float32) / 255
        x = nn.relu(conv_norm("backbone.first_conv.0", x, 24, kernel=3, stride=2))
        x = nn.max_pool(x, (3, 3), (2, 2), PAD_ONE)
        maps = []
        for stage, (blocks, width) in enumerate(zip(self.repeats, (48, 96, 192), strict=True), start=2):
            x = self._halving(f"backbone.stage{stage}.0", x, width)
            for number in range(1, blocks):
                x = self._shuffling(f"backbone.stage{stage}.{number}", x)
            maps.append(x)
        fine, middle, coarse = maps
        fine = nn.avg_pool(fine, (3, 3), (2, 2), PAD_ONE)
        coarse = coarse.repeat(2, axis=1).repeat(2, axis=2)
        x = self._pyramid(jnp.concatenate([fine, middle, coarse], axis=-1))
        x = nn.relu(conv_norm("detect_head.conv1x1.conv1x1.0", x, 96))
        found = {
            "objectness": nn.sigmoid(self._head("obj", x, 1))[..., 0],
            "classes": nn.softmax(self._head("cls", x, len(NAMES))),
            "boxes": decode(self._head("reg", x, 4)),
        }
        return {name: array.reshape(*batch, *array.shape[1:]) for name, array in found.items()}

    def _depthwise(self, name: str, x: Array, kernel: int, stride: int = 1) -> Array:
        return conv_norm(name, x, x.shape[-1], kernel, stride, groups=x.shape[-1])

    def _branch(self, name: str, x: Array, width: int, stride: int) -> Array:
        x = nn.relu(conv_norm(f"{name}.branch_main.0", x, width))
        x = self._depthwise(f"{name}.branch_main.3", x, 3, stride)
        return nn.relu(conv_norm(f"{name}.branch_main.5", x, width))

    def _halving(self, name: str, x: Array, width: int) -> Array:
        """Half the picture, `width` channels: two branches beside each other."""
        side = self._depthwise(f"{name}.branch_proj.0", x, 3, stride=2)
        side = nn.relu(conv_norm(f"{name}.branch_proj.2", side, x.shape[-1]))
        return jnp.concatenate([side, self._branch(name, x, width - x.shape[-1], stride=2)], axis=-1)

    def _shuffling(self, name: str, x: Array) -> Array:
        """The even channels stay as they are, the odd ones go through the branch."""
        return jnp.concatenate(
            [x[..., 0::2], self._branch(name, x[..., 1::2], x.shape[-1] // 2, stride=1)], axis=-1
        )

    def _pyramid(self, x: Array) -> Array:
        """Spatial pyramid: one, two and three depthwise 5x5 convolutions beside each other."""
        x = nn.relu(conv_norm("SPP.Conv1x1.conv1x1.0", x, 96))
        scales = []
        for depth in (1, 2, 3):
            y = x
            for number in range(depth):
                y = nn.relu(self._depthwise(f"SPP.S{depth}.{3 * number}", y, 5))
            scales.append(y)
        return nn.relu(x + conv_norm("SPP.output.0", jnp.concatenate(scales, axis=-1), 96))

    def _head(self, name: str, x: Array, width: int) -> Array:
        x = nn.relu(self._depthwise(f"detect_head.{name}_layers.conv5x5.0", x, 5))
        return conv_norm(f"detect_head.{name}_layers.conv5x5.3", x, width)


def decode(offsets: Float[Array, "*batch rows columns 4"]) -> Float[Array, "*batch rows columns 4"]:
    """Corners as shares of the frame, from the centre's offset in cells and the logits of the size (`handle_preds`)."""
    rows, columns = offsets.shape[-3:-1]
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    cells = np.stack([x, y], axis=-1).astype(np.float32)
    centre = (jnp.tanh(offsets[..., :2]) + cells) / np.array([columns, rows], np.float32)
    half = nn.sigmoid(offsets[..., 2:]) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def apply(params: Params, frame: UInt8[Array, "*batch height width 3"]) -> dict[str, Float32[Array, "..."]]:
    """`FastestDet` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return FastestDet().apply(params, frame)  # pyright: ignore[reportReturnType]


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "352 352 3"]:
    """Resizes to 352x352 as the authors do, without regard to the aspect."""
    return sample(rgb, FRAME_SIZE)


def interpret(output: dict[str, Float[np.ndarray, "..."]], size: tuple[int, int]) -> Objects:
    """Objects with a score of at least .65, none overlapping a better one of its class by more than .45.

    The score is ``objectness ** .6 * probability ** .4``, the overlap intersection over union (`handle_preds`).

    Args:
        output: what `apply` returned for one frame.
        size: (height, width) of the picture that the boxes are for.
    """
    classes = output["classes"].reshape(-1, len(NAMES))
    scores = output["objectness"].reshape(-1) ** 0.6 * classes.max(axis=-1) ** 0.4
    likely = np.flatnonzero(scores >= MIN_SCORE)
    scores, classes = scores[likely], classes[likely].argmax(axis=-1)
    boxes = output["boxes"].reshape(-1, 4)[likely] * np.tile(size[::-1], 2)
    kept = []
    for which in np.unique(classes):
        of_class = np.flatnonzero(classes == which)
        kept += of_class[keep_best(boxes[of_class], scores[of_class], MAX_OVERLAP)].tolist()
    kept.sort(key=lambda number: -scores[number])
    return Objects(boxes[kept], scores[kept], [NAMES[classes[number]] for number in kept])


def draw(rgb: UInt8[np.ndarray, "height width 3"], objects: Objects) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with a box around each object, its name and its score."""
    labels = [f"{name} {score:.2f}" for name, score in zip(objects.names, objects.scores, strict=True)]
    return draw_boxes(rgb, objects.boxes, labels)


MODEL = VisionModel(
    name="fastestdet",
    summary="objects of the 80 COCO classes, 352x352 (dog-qiuqiu's FastestDet)",
    frame_size=FRAME_SIZE,
    apply=apply,
    shapes=functools.partial(shapes, FastestDet(), FRAME_SIZE),
    prepare=prepare,
    load=functools.partial(load_state_dict, FastestDet(), FRAME_SIZE, PUBLISHED),
    interpret=interpret,
    draw=draw,
)
