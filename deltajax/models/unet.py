"""U-Net, a network of 31,037,698 parameters that names each pixel of a picture of any size; here: car or not.

Architecture and names: milesial's Pytorch-UNet (GPL-3.0; the code here is our own), in unet/unet_model.py and
unet/unet_parts.py, after Ronneberger et al., "U-Net", arXiv 1505.04597. The weights were trained on the Carvana image
masking challenge. Modules carry the author's names ("down1.maxpool_conv.1.double_conv.3"), so the state dict maps onto
the params name by name.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.draw import draw_classes
from deltajax.models import VisionModel
from deltajax.models._published import Params, Published, shapes
from deltajax.models._state_dict import params_from_state_dict
from deltajax.models.espnet import interpret

HALVINGS = 4
CLASSES = {"background": (0, 0, 0), "car": (0, 0, 142)}  # and the colours that they are drawn in
PUBLISHED = Published(
    "unet",
    "pass --weights unet_carvana_scale0.5_epoch2.pth, published in releases of "
    "https://github.com/milesial/Pytorch-UNet",
)


class UNet(nn.Module):
    """The network: uint8 RGB frames of any size from 16x16 on to logits [..., height, width, classes].

    Attributes:
        classes: that a pixel may have.
        bilinear: whether maps are enlarged by interpolation, with half the channels, or by a transposed convolution.
        width: channels of the first map; 64 in all published weights.

    Raises:
        ValueError: a side of the frame is shorter than 16.
    """

    classes: int = len(CLASSES)
    bilinear: bool = False
    width: int = 64

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch height width _"]:
        *batch, height, width, _ = frame.shape
        if min(height, width) < 2**HALVINGS:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be at least {2**HALVINGS}")
        x = frame.reshape(-1, height, width, 3).astype(jnp.float32) / 255
        widths = [self.width << level for level in range(HALVINGS + 1)]
        maps = [DoubleConv(widths[0], name="inc.double_conv")(x)]
        narrowed = 2 if self.bilinear else 1
        widths[-1] //= narrowed
        for level in range(1, HALVINGS + 1):
            x = nn.max_pool(maps[-1], (2, 2), (2, 2))
            maps.append(DoubleConv(widths[level], name=f"down{level}.maxpool_conv.1.double_conv")(x))
        x = maps.pop()
        for level in range(1, HALVINGS + 1):
            skip = maps.pop()
            last = level == HALVINGS
            x = Up(skip.shape[-1] // (1 if last else narrowed), self.bilinear, name=f"up{level}")(x, skip)
        x = nn.Conv(self.classes, (1, 1), name="outc.conv")(x)
        return x.reshape(*batch, height, width, self.classes)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with batch norm and relu; `middle` channels between them (`width` if 0)."""

    width: int
    middle: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "n h w _"]) -> Float[Array, "n h w width"]:
        for index, width in ((0, self.middle or self.width), (3, self.width)):
            x = nn.Conv(width, (3, 3), padding=1, use_bias=False, name=f"{index}")(x)
            x = nn.relu(nn.BatchNorm(True, epsilon=1e-5, name=f"{index + 1}")(x))
        return x


class Up(nn.Module):
    """Twice as large, padded with zeros to the size of `skip`, joined to it behind its channels, and convolved."""

    width: int
    bilinear: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], skip: Float[Array, "n h2 w2 c2"]) -> Float[Array, "n h2 w2 width"]:
        if self.bilinear:
            x = doubled(x)
        else:
            x = nn.ConvTranspose(
                x.shape[-1] // 2, (2, 2), (2, 2), padding="VALID", transpose_kernel=True, name="up"
            )(x)
        rows, columns = skip.shape[1] - x.shape[1], skip.shape[2] - x.shape[2]
        x = jnp.pad(x, ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))
        x = jnp.concatenate([skip, x], axis=-1)
        middle = x.shape[-1] // 2 if self.bilinear else self.width
        return DoubleConv(self.width, middle, name="conv.double_conv")(x)


def doubled(x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
    """Twice as large, bilinear, the corners staying where they are: torch's `Upsample` with `align_corners=True`."""
    sides = np.array(x.shape[1:3])
    # Centre i of the result lies at i * (side - 1) / (2 * side - 1) of x; a side of one pixel is repeated.
    scale = (2 * sides - 1) / np.maximum(sides - 1, 0.5)
    shape = (x.shape[0], *(2 * sides).tolist(), x.shape[3])
    scale, shift = jnp.array(scale, x.dtype), jnp.array((1 - scale) / 2, x.dtype)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, "linear", antialias=False)


def apply(params: Params, frame: UInt8[Array, "*batch height width 3"]) -> UInt8[Array, "*batch height width"]:
    """The number of each pixel's likelier class, in the order of `CLASSES`; what `deltajax.incremental` takes.

    Which of the two networks it is, with transposed convolutions or bilinear, the params tell.
    """
    logits = jnp.asarray(UNet(bilinear="up" not in params["params"]["up1"]).apply(params, frame))
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def load(path: Path | None) -> Params:
    """The params from the author's file, or from a .safetensors file with the names of its state dict.

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    weights = PUBLISHED.read(path)
    wanted = shapes(UNet(bilinear="up1.up.weight" not in weights), (2**HALVINGS, 2**HALVINGS))
    return params_from_state_dict(weights, wanted, PUBLISHED, str(path))


def prepare(rgb: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """The picture as it is: the network takes every size."""
    return rgb


def draw(
    rgb: UInt8[np.ndarray, "height width 3"], classes: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with each pixel in its class's colour, and the names of the classes."""
    return draw_classes(rgb, classes, CLASSES)


MODEL = VisionModel(
    name="unet",
    summary="car or not for each pixel, any size (milesial's U-Net, trained on Carvana)",
    frame_size=None,
    apply=apply,
    shapes=functools.partial(shapes, UNet(), (2**HALVINGS, 2**HALVINGS)),
    prepare=prepare,
    load=load,
    interpret=interpret,
    draw=draw,
)
