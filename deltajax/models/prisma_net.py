"""Prisma-Net, a network of 923,057 parameters that cuts a person out of a picture, 256x256.

Architecture and weights: `prisma_nchw.onnx` of anilsathyan7's Portrait-Segmentation (MIT), in models/prisma_seg; a
U-Net of residual blocks of depthwise convolutions, batch norms folded, described there under "Prisma-Net". Layers
carry the names of the file's initialisers but for the pointwise kernels, which are only numbered there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from deltajax.draw import cut_out
from deltajax.models import VisionModel
from deltajax.models._published import Params, Published, shapes
from deltajax.models._resize import sample
from deltajax.models._state_dict import params_from_state_dict

FRAME_SIZE = (256, 256)
STRIDE = 16  # of the coarsest map: the sides of a frame are multiples of it
WIDTHS = (8, 32, 64, 128, 128)  # of the maps, each half as high and wide as the one before
ENCODER_BLOCKS = (1, 1, 1, 2, 6)
DECODER_BLOCKS = (3, 3, 3, 3)
BEHIND: Any = ((0, 1), (0, 1))  # stride 2 as in TensorFlow; Flax declares paddings as a string
TRANSPOSED: Any = ((2, 1), (2, 1))  # the same the other way round: each side doubles
# The file's W9 and B9 are the pointwise kernel and bias of separable_conv2d_93, and so on to W and B of _138.
_NUMBERS = """
9 5 17 13 25 21 37 32 34 29 45 42 44 40 43 38 41 35 39 33 36 31 30 26 28 24 27 23 22 18 20 16 19 15 14 10 12 8 11 7 6
2 4 1 3
""".split()
SEPARABLE = dict(zip([*_NUMBERS, ""], range(93, 139), strict=True))
PUBLISHED = Published(
    "prisma-net",
    "pass --weights prisma_nchw.onnx, published in models/prisma_seg of "
    "https://github.com/anilsathyan7/Portrait-Segmentation",
)


class PrismaNet(nn.Module):
    """The network: uint8 RGB frames to how much of each pixel is a person's, in 0..1, [..., height, width].

    Raises:
        ValueError: a side of the frame is no multiple of 16.
    """

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch height width"]:
        *batch, height, width, _ = frame.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be multiples of {STRIDE}")
        x = frame.reshape(-1, height, width, 3).astype(jnp.float32) / 255
        numbers = iter(SEPARABLE.values())

        def block(x: Array) -> Array:
            y = x
            for _ in range(2):
                y = _separable(f"separable_conv2d_{next(numbers)}", nn.relu(y))
            return x + y

        maps = []
        for number, (channels, blocks) in enumerate(zip(WIDTHS, ENCODER_BLOCKS, strict=True), start=11):
            stride, padding = (2, BEHIND) if maps else (1, 1)
            x = nn.Conv(channels, (3, 3), stride, padding, name=f"conv2d_{number}")(x)
            for _ in range(blocks):
                x = block(x)
            maps.append(x)
        for number, (skip, blocks) in enumerate(zip(maps[-2::-1], DECODER_BLOCKS, strict=True), start=11):
            x = _doubled(f"conv2d_transpose_{number}", x, skip.shape[-1]) + skip
            for _ in range(blocks):
                x = block(x)
        # One by one: as a transposed convolution, which it is called in the file, it would be the same.
        x = nn.ConvTranspose(1, (1, 1), transpose_kernel=True, name="conv2d_transpose_15")(x)
        return nn.sigmoid(x).reshape(*batch, height, width)


def _separable(name: str, x: Array) -> Array:
    channels = x.shape[-1]
    x = nn.Conv(
        channels, (3, 3), padding=1, feature_group_count=channels, use_bias=False, name=f"{name}.depthwise"
    )(x)
    return nn.Conv(channels, (1, 1), name=f"{name}.pointwise")(x)


def _doubled(name: str, x: Array, width: int) -> Array:
    return nn.ConvTranspose(width, (3, 3), (2, 2), padding=TRANSPOSED, transpose_kernel=True, name=name)(x)


def apply(
    params: Params, frame: UInt8[Array, "*batch height width 3"]
) -> Float32[Array, "*batch height width"]:
    """`PrismaNet` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return PrismaNet().apply(params, frame)  # pyright: ignore[reportReturnType]


def load(path: Path | None) -> Params:
    """The params from the authors' file, or from a .safetensors file with the names of its initialisers.

    Raises:
        ValueError: no path (the package has no copy), no such file, the weights of another network, or an .onnx file
            without the package onnx.
    """
    weights = {_module_leaf(name): array for name, array in PUBLISHED.read(path).items()}
    return params_from_state_dict(weights, shapes(PrismaNet(), FRAME_SIZE), PUBLISHED, str(path))


def _module_leaf(name: str) -> str:
    """``W9`` becomes ``separable_conv2d_93.pointwise.weight``; a name of another network stays as it is."""
    if name[:1] in ("W", "B") and name[1:] in SEPARABLE:
        return f"separable_conv2d_{SEPARABLE[name[1:]]}.pointwise.{'weight' if name[0] == 'W' else 'bias'}"
    for ending, leaf in (
        ("/depthwise_kernel:0", ".depthwise.weight"), ("/kernel:0", ".weight"), ("/bias:0", ".bias")
    ):
        if name.endswith(ending):
            return name.removesuffix(ending) + leaf
    return name


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "256 256 3"]:
    """Resizes to 256x256 as the authors do, without regard to the aspect."""
    return sample(rgb, FRAME_SIZE)


def interpret(
    output: Float[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Float32[np.ndarray, "height width"]:
    """How much of each pixel of the picture is a person's, in 0..1; bilinear between the positions.

    Args:
        output: what `apply` returned for one frame.
        size: (height, width) of the picture.
    """
    height, width = size
    return np.asarray(Image.fromarray(np.asarray(output)).resize((width, height), Image.Resampling.BILINEAR))


MODEL = VisionModel(
    name="prisma-net",
    summary="cuts a person out, 256x256 (anilsathyan7's Portrait-Segmentation)",
    frame_size=FRAME_SIZE,
    apply=apply,
    shapes=functools.partial(shapes, PrismaNet(), FRAME_SIZE),
    prepare=prepare,
    load=load,
    interpret=interpret,
    draw=cut_out,
)
