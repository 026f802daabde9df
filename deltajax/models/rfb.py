"""RFB-320, slim-320 with a receptive field block as its seventh: 276,292 parameters, the same frame and anchors.

Architecture and weights: `version-RFB-320` of Linzaer's Ultra-Light-Fast-Generic-Face-Detector-1MB (MIT), in
vision/nn/mb_tiny_RFB.py and vision/ssd/mb_tiny_RFB_fd.py; the block is that of Liu et al., "Receptive Field Block Net
for Accurate and Fast Object Detection", arXiv 1711.07767. Layers carry the authors' names; batch norms are folded
into the convolutions when the weights are read. Frame, anchors, heads and results are those of `deltajax.models.slim`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.models import VisionModel
from deltajax.models._folding import Layer, fold_layers
from deltajax.models._published import Params, Published, shapes
from deltajax.models._state_dict import flax_layout
from deltajax.models._torch_layers import conv, norm_name
from deltajax.models.slim import FRAME_SIZE, detections, draw, interpret, prepare

EPS = 1e-5  # of batch norm
PUBLISHED = Published(
    "rfb-320",
    "pass --weights version-RFB-320.pth, published in models/pretrained of "
    "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB",
)


class RFB320(nn.Module):
    """The network with its decoding: uint8 RGB frames to scores and boxes, as `slim.Slim320` returns them."""

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch 240 320 3"]) -> dict[str, Float32[Array, "*batch 4420 _"]]:
        x = (frame.reshape(-1, *FRAME_SIZE, 3).astype(jnp.float32) - 127) / 128
        x = nn.relu(conv("base_net.0.0", x, 16, stride=2))
        maps = []
        widths = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256)
        strides = (1, 2, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1)
        for number, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            name = f"base_net.{number}"
            if number == 7:
                x = receptive_fields(name, x)
            else:
                x = nn.relu(conv(f"{name}.0", x, x.shape[-1], stride=stride, groups=x.shape[-1]))
                x = nn.relu(conv(f"{name}.3", x, width, kernel=1))
            if number in (7, 10, 12):
                maps.append(x)
        return detections(maps, frame.shape[:-3])


def receptive_fields(name: str, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Three narrow branches that end in dilations 2, 3 and 5, joined and added to x: `BasicRFB` with scale 1."""
    thin = x.shape[-1] // 8
    branches = [
        branch(f"{name}.branch0", x, (thin, 2 * thin, 2 * thin), dilation=2),
        branch(f"{name}.branch1", x, (thin, 2 * thin, 2 * thin), dilation=3),
        branch(f"{name}.branch2", x, (thin, thin // 2 * 3, 2 * thin, 2 * thin), dilation=5),
    ]
    joined = conv(f"{name}.ConvLinear.conv", jnp.concatenate(branches, axis=-1), x.shape[-1], kernel=1)
    return nn.relu(joined + conv(f"{name}.shortcut.conv", x, x.shape[-1], kernel=1))


def branch(name: str, x: Array, widths: tuple[int, ...], dilation: int) -> Float[Array, "n h w last_width"]:
    """A 1x1 convolution, then 3x3, the last one dilated; relu neither after the first nor after the last."""
    first, *middle, last = widths
    x = conv(f"{name}.0.conv", x, first, kernel=1)
    for number, width in enumerate(middle, start=1):
        x = nn.relu(conv(f"{name}.{number}.conv", x, width))
    return conv(f"{name}.{len(widths) - 1}.conv", x, last, dilation=dilation)


def layers(names: Iterable[str]) -> dict[str, Layer]:
    """What the authors' state dict calls the arrays of each layer: batch norms in the base net, biases outside."""
    norms = ("weight", "bias", "running_mean", "running_var")
    return {
        name: Layer(f"{name}.weight", norm=tuple(f"{norm_name(name)}.{leaf}" for leaf in norms))
        if name.startswith("base_net.")
        else Layer(f"{name}.weight", f"{name}.bias")
        for name in names
    }


def apply(
    params: Params, frame: UInt8[Array, "*batch 240 320 3"]
) -> dict[str, Float32[Array, "*batch 4420 _"]]:
    """`RFB320` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return RFB320().apply(params, frame)  # pyright: ignore[reportReturnType]


def load(path: Path | None) -> Params:
    """The params from the authors' file, or from a .safetensors file with the names of their state dict.

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    wanted = shapes(RFB320(), FRAME_SIZE)["params"]
    return fold_layers(flax_layout(PUBLISHED.read(path)), layers(wanted), wanted, EPS, PUBLISHED, str(path))


MODEL = VisionModel(
    name="rfb-320",
    summary="faces, 240x320 (Linzaer's Ultra-Light-Fast-Generic-Face-Detector-1MB, RFB)",
    frame_size=FRAME_SIZE,
    apply=apply,
    shapes=functools.partial(shapes, RFB320(), FRAME_SIZE),
    prepare=prepare,
    load=load,
    interpret=interpret,
    draw=draw,
)
