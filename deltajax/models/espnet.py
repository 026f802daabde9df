"""ESPNet, a network of 364,569 parameters that names each pixel of a street scene: one of Cityscapes' classes.

Architecture and weights: `ESPNet(20, 2, 8)` of sacmehta's ESPNet (MIT), in test/Model.py, with the preparation of
test/VisualizeResults.py; Mehta et al., "ESPNet", arXiv 1803.06815. The weights were trained on Cityscapes, whose
pictures are for non-commercial use. The modules carry the authors' names ("encoder.level2.0.d16.conv"), so their state
dict maps onto the params name by name.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float32, UInt8
from PIL import Image

from deltajax.draw import draw_classes
from deltajax.models import VisionModel
from deltajax.models._published import Params, Published, shapes
from deltajax.models._resize import sample
from deltajax.models._state_dict import load_state_dict
from deltajax.models._torch_layers import PAD_ONE, conv

FRAME_SIZE = (512, 1024)  # on half of it, which is four times as fast, these weights find no road any more
STRIDE = 8  # of the coarsest map: the sides of a frame are multiples of it
# Of blue, green and red over the training pictures, in grey levels; the authors divide by 255 after that, too.
MEAN = (72.3923111, 82.90893555, 73.15840149)
DEVIATION = (45.3192215, 46.15289307, 44.91483307)
CLASSES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
    "other": (0, 0, 0),
}  # and the colours of the Cityscapes data set, in the order of its training numbers
PUBLISHED = Published(
    "espnet",
    "pass --weights espnet_p_2_q_8.pth, published in pretrained/decoder of https://github.com/sacmehta/ESPNet",
)


class EspNet(nn.Module):
    """The network: uint8 RGB frames to logits [..., height, width, 20].

    Attributes:
        shallow, deep: how many pyramids at a quarter and at an eighth of the frame's sides (the authors' p and q).

    Raises:
        ValueError: a side of the frame is no multiple of 8.
    """

    shallow: int = 2
    deep: int = 8

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch height width 20"]:
        *batch, height, width, _ = frame.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be multiples of {STRIDE}")
        # The authors read pictures with OpenCV, whose channels are blue, green, red.
        x = frame.reshape(-1, height, width, 3)[..., ::-1].astype(jnp.float32)
        x = (x - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32) / 255
        half = _halved(x)
        quarter = _halved(half)
        first = _norm_act("encoder.level1", _conv("encoder.level1", x, 16, kernel=3, stride=2))
        x = _norm_act("encoder.b1", jnp.concatenate([first, half], axis=-1))
        x = second = _norm_act("encoder.level2_0", _pyramid("encoder.level2_0", x, 64, stride=2))
        for number in range(self.shallow):
            x = _residual(f"encoder.level2.{number}", x)
        middle = _norm_act("encoder.b2", jnp.concatenate([x, second, quarter], axis=-1))
        x = third = _norm_act("encoder.level3_0", _pyramid("encoder.level3_0", middle, 128, stride=2))
        for number in range(self.deep):
            x = _residual(f"encoder.level3.{number}", x)
        x = _norm_act("encoder.b3", jnp.concatenate([third, x], axis=-1))
        x = _doubled("up_l3.0", _norm("br", _conv("encoder.classifier", x, len(CLASSES))))
        x = jnp.concatenate([_conv("level3_C", middle, len(CLASSES)), x], axis=-1)
        x = _norm_act("combine_l2_l3.0", x)
        x = _norm_act("combine_l2_l3.1.bn", _pyramid("combine_l2_l3.1", x, len(CLASSES)))
        x = _norm_act("up_l2.1", _doubled("up_l2.0", x))
        x = _norm_act("conv", _conv("conv", jnp.concatenate([x, first], axis=-1), len(CLASSES), kernel=3))
        return _doubled("classifier", x).reshape(*batch, height, width, len(CLASSES))


class _PReLU(nn.Module):
    """A slope of its own for each channel (Flax has one for all)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.where(x > 0, x, x * self.param("slope", nn.initializers.constant(0.25), x.shape[-1:]))


def _conv(name: str, x: Array, width: int, kernel: int = 1, stride: int = 1, dilation: int = 1) -> Array:
    return conv(f"{name}.conv", x, width, kernel, stride, dilation=dilation, bias=False)


def _norm(name: str, x: Array) -> Array:
    return nn.BatchNorm(True, epsilon=1e-3, name=name)(x)


def _norm_act(name: str, x: Array) -> Array:
    return _PReLU(name=f"{name}.act")(_norm(f"{name}.bn", x))


def _halved(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (2, 2), PAD_ONE)


def _doubled(name: str, x: Array) -> Array:
    """torch's ConvTranspose2d(kernel_size=2, stride=2): each position becomes a square of four."""
    return nn.ConvTranspose(
        x.shape[-1], (2, 2), (2, 2), padding="VALID", use_bias=False, transpose_kernel=True, name=name
    )(x)


def _pyramid(name: str, x: Array, width: int, stride: int = 1) -> Array:
    """Spatial pyramid of dilated convolutions (section 3): reduce, split, transform, add up and merge.

    Each dilation but the first is added to the smaller ones, which removes the grid that dilation leaves.
    """
    narrow = width // 5
    x = _conv(f"{name}.c1", x, narrow, kernel=3 if stride > 1 else 1, stride=stride)
    merged = [_conv(f"{name}.d1", x, width - 4 * narrow, kernel=3)]
    total = None
    for dilation in (2, 4, 8, 16):
        part = _conv(f"{name}.d{dilation}", x, narrow, kernel=3, dilation=dilation)
        total = part if total is None else total + part
        merged.append(total)
    return jnp.concatenate(merged, axis=-1)


def _residual(name: str, x: Array) -> Array:
    return _norm_act(f"{name}.bn", x + _pyramid(name, x, x.shape[-1]))


def apply(params: Params, frame: UInt8[Array, "*batch height width 3"]) -> UInt8[Array, "*batch height width"]:
    """The number of each pixel's likeliest class, in the order of `CLASSES`; what `deltajax.incremental` takes.

    The numbers and not the logits, which are 80 times as large and would have to be copied for every frame. Where the
    two best logits are equal but for rounding, a step may name the one and the whole network the other: 3 pixels in 22
    frames of a dash-cam clip.
    """
    logits = jnp.asarray(EspNet().apply(params, frame))
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "512 1024 3"]:
    """Resizes to 512x1024 as the authors do, without regard to the aspect."""
    return sample(rgb, FRAME_SIZE)


def interpret(
    output: UInt8[np.ndarray, "rows columns"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """The class of each pixel of the picture, that of the nearest position.

    Args:
        output: what `apply` returned for one frame.
        size: (height, width) of the picture.
    """
    height, width = size
    return np.asarray(Image.fromarray(np.asarray(output)).resize((width, height), Image.Resampling.NEAREST))


def draw(
    rgb: UInt8[np.ndarray, "height width 3"], classes: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with each pixel in its class's colour, and the names of the classes."""
    return draw_classes(rgb, classes, CLASSES)


MODEL = VisionModel(
    name="espnet",
    summary="a class for each pixel of a street, 512x1024 (sacmehta's ESPNet, trained on Cityscapes)",
    frame_size=FRAME_SIZE,
    apply=apply,
    shapes=functools.partial(shapes, EspNet(), FRAME_SIZE),
    prepare=prepare,
    load=functools.partial(load_state_dict, EspNet(), FRAME_SIZE, PUBLISHED),
    interpret=interpret,
    draw=draw,
)
