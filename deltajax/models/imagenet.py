"""Networks of torchvision for the 1,000 classes of ImageNet: ResNet-18 and -50, MobileNetV2 and V3, EfficientNet-B0.

Architectures and weights: torchvision (BSD-3-Clause), models/resnet.py, mobilenetv2.py, mobilenetv3.py and
efficientnet.py, after He et al., arXiv 1512.03385 (with the stride of a bottleneck in its 3x3 convolution), Sandler et
al., 1801.04381, Howard et al., 1905.02244, and Tan and Le, 1905.11946. The modules carry torchvision's names
("layer3.0.downsample.0"), so any of its weight files for the network maps onto the params name by name. Dropout and
stochastic depth do nothing in inference and are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.models import VisionModel
from deltajax.models._classifier import classifier, normalised
from deltajax.models._published import Params, Published, shapes
from deltajax.models._state_dict import load_state_dict
from deltajax.models._torch_layers import PAD_ONE, conv, conv_norm

SIDE = 224  # that the weights were trained for; the networks take any
CLASSES = tuple(f"class {number}" for number in range(1000))


class Block(NamedTuple):
    """An inverted residual block: widen, depthwise convolution, squeeze-and-excite, narrow.

    Attributes:
        kernel: of the depthwise convolution.
        expanded: channels within.
        width: channels that go out.
        stride: of the depthwise convolution.
        act: activation.
        squeezed: channels that excite; 0 where there is no squeeze-and-excite.
    """

    kernel: int
    expanded: int
    width: int
    stride: int
    act: Callable[[Array], Array]
    squeezed: int = 0


class Style(NamedTuple):
    """How the blocks of one network differ from those of another.

    Attributes:
        eps: of batch norm.
        narrow: what follows a block's number of its last convolution in the name.
        inner: activation of squeeze-and-excite.
        gate: from what excites to a factor in 0..1.
    """

    eps: float = 1e-5
    narrow: str = ".0"
    inner: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid


V2, V3, B0 = Style(narrow=""), Style(eps=1e-3, gate=nn.hard_sigmoid), Style(inner=nn.silu)
# Kernel, expansion, width, number of blocks, stride of the first.
V2_STAGES = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 3, 2), (3, 6, 64, 4, 2), (3, 6, 96, 3, 1), (3, 6, 160, 3, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip
B0_STAGES = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip
V3_BLOCKS = (
    Block(3, 16, 16, 1, nn.relu),
    Block(3, 64, 24, 2, nn.relu),
    Block(3, 72, 24, 1, nn.relu),
    Block(5, 72, 40, 2, nn.relu, 24),
    *[Block(5, 120, 40, 1, nn.relu, 32)] * 2,
    Block(3, 240, 80, 2, nn.hard_swish),
    Block(3, 200, 80, 1, nn.hard_swish),
    *[Block(3, 184, 80, 1, nn.hard_swish)] * 2,
    Block(3, 480, 112, 1, nn.hard_swish, 120),
    Block(3, 672, 112, 1, nn.hard_swish, 168),
    Block(5, 672, 160, 2, nn.hard_swish, 168),
    *[Block(5, 960, 160, 1, nn.hard_swish, 240)] * 2,
)


class ResNet(nn.Module):
    """Logits of the classes, from uint8 RGB frames of any size.

    Attributes:
        repeats: blocks in each of the stages.
        expansion: 1 for blocks of two 3x3 convolutions; 4 for bottlenecks, which go out with four times the channels.
    """

    repeats: tuple[int, ...]
    expansion: int

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 1000"]:
        x = nn.relu(conv_norm("conv1", normalised(frame), 64, kernel=7, stride=2))
        x = nn.max_pool(x, (3, 3), (2, 2), PAD_ONE)
        for stage, repeats in enumerate(self.repeats):
            for number in range(repeats):
                x = self._block(f"layer{stage + 1}.{number}", x, 64 << stage, 2 if stage > number == 0 else 1)
        return _logits("fc", x.mean(axis=(1, 2)), frame)

    def _block(self, name: str, x: Array, narrow: int, stride: int) -> Array:
        width = narrow * self.expansion
        if self.expansion == 1:
            y = nn.relu(conv_norm(f"{name}.conv1", x, narrow, kernel=3, stride=stride))
            y = conv_norm(f"{name}.conv2", y, width, kernel=3)
        else:
            y = nn.relu(conv_norm(f"{name}.conv1", x, narrow))
            y = nn.relu(conv_norm(f"{name}.conv2", y, narrow, kernel=3, stride=stride))
            y = conv_norm(f"{name}.conv3", y, width)
        if stride > 1 or x.shape[-1] != width:
            x = conv_norm(f"{name}.downsample.0", x, width, stride=stride)
        return nn.relu(y + x)


class MobileNetV2(nn.Module):
    """Logits of the classes, from uint8 RGB frames of any size.

    Attributes:
        stages: as `V2_STAGES`, which the weights are for.
    """

    stages: tuple[tuple[int, ...], ...] = V2_STAGES

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 1000"]:
        x = nn.relu6(conv_norm("features.0.0", normalised(frame), 32, kernel=3, stride=2))
        number = 1
        for kernel, expansion, width, repeats, stride in self.stages:
            for repeat in range(repeats):
                block = Block(kernel, expansion * x.shape[-1], width, 1 if repeat else stride, nn.relu6)
                x = inverted(f"features.{number}.conv", x, block, V2)
                number += 1
        x = nn.relu6(conv_norm(f"features.{number}.0", x, 1280))
        return _logits("classifier.1", x.mean(axis=(1, 2)), frame)


class MobileNetV3(nn.Module):
    """Logits of the classes, from uint8 RGB frames of any size: the "large" one.

    Attributes:
        blocks: as `V3_BLOCKS`, which the weights are for.
    """

    blocks: tuple[Block, ...] = V3_BLOCKS

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 1000"]:
        x = nn.hard_swish(conv_norm("features.0.0", normalised(frame), 16, kernel=3, stride=2, eps=V3.eps))
        for number, block in enumerate(self.blocks, start=1):
            x = inverted(f"features.{number}.block", x, block, V3)
        x = nn.hard_swish(conv_norm(f"features.{len(self.blocks) + 1}.0", x, 6 * x.shape[-1], eps=V3.eps))
        x = nn.hard_swish(nn.Dense(1280, name="classifier.0")(x.mean(axis=(1, 2))))
        return _logits("classifier.3", x, frame)


class EfficientNet(nn.Module):
    """Logits of the classes, from uint8 RGB frames of any size: B0.

    Attributes:
        stages: as `B0_STAGES`, which the weights are for.
    """

    stages: tuple[tuple[int, ...], ...] = B0_STAGES

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 1000"]:
        x = nn.silu(conv_norm("features.0.0", normalised(frame), 32, kernel=3, stride=2))
        for number, (kernel, expansion, width, repeats, stride) in enumerate(self.stages, start=1):
            for repeat in range(repeats):
                channels = x.shape[-1]
                block = Block(
                    kernel, expansion * channels, width, 1 if repeat else stride, nn.silu, channels // 4
                )
                x = inverted(f"features.{number}.{repeat}.block", x, block, B0)
        x = nn.silu(conv_norm(f"features.{len(self.stages) + 1}.0", x, 1280))
        return _logits("classifier.1", x.mean(axis=(1, 2)), frame)


def inverted(name: str, x: Float[Array, "n h w c"], block: Block, style: Style) -> Float[Array, "n h2 w2 width"]:
    """Inverted residual block, whose convolutions torchvision numbers through; see `Block`."""
    y, number = x, 0
    if block.expanded != x.shape[-1]:
        y = block.act(conv_norm(f"{name}.0.0", y, block.expanded, eps=style.eps))
        number += 1
    y = conv_norm(f"{name}.{number}.0", y, block.expanded, block.kernel, block.stride, block.expanded, style.eps)
    y = block.act(y)
    if block.squeezed:
        number += 1
        z = style.inner(conv(f"{name}.{number}.fc1", y.mean(axis=(1, 2), keepdims=True), block.squeezed, kernel=1))
        y = y * style.gate(conv(f"{name}.{number}.fc2", z, block.expanded, kernel=1))
    y = conv_norm(f"{name}.{number + 1}{style.narrow}", y, block.width, eps=style.eps)
    return x + y if block.stride == 1 and x.shape[-1] == block.width else y


def _logits(name: str, x: Float[Array, "n c"], frame: Array) -> Float32[Array, "*batch 1000"]:
    return nn.Dense(len(CLASSES), name=name)(x).reshape(*frame.shape[:-3], len(CLASSES))


def apply(network: nn.Module, params: Params, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 1000"]:
    """A network as a function; `functools.partial` of its first argument is what `deltajax.incremental` takes."""
    return network.apply(params, frame)  # pyright: ignore[reportReturnType]


def imagenet_model(name: str, network: nn.Module, origin: str, weights: str) -> VisionModel:
    """`network` for frames of 224x224; a class goes by its number, for the names are not in the package.

    Args:
        name: what the command line calls it.
        network: uint8 RGB frames [..., height, width, 3] to logits [..., 1000]; its modules carry the authors' names.
        origin: whose it is, and what they call the weights.
        weights: address of their file.
    """
    file = weights.rpartition("/")[2]
    published = Published(name, f"pass --weights {file}, published at {weights}")
    return classifier(
        name,
        f"names a picture, 1,000 classes of ImageNet by their numbers, 224x224 ({origin})",
        SIDE,
        CLASSES,
        functools.partial(apply, network),
        functools.partial(shapes, network, (SIDE, SIDE)),
        functools.partial(load_state_dict, network, (SIDE, SIDE), published),
    )


def _torchvision(name: str, network: nn.Module, file: str) -> VisionModel:
    return imagenet_model(name, network, f"torchvision, {file}", f"https://download.pytorch.org/models/{file}")


RESNET18 = _torchvision("resnet18", ResNet((2, 2, 2, 2), 1), "resnet18-f37072fd.pth")
RESNET50 = _torchvision("resnet50", ResNet((3, 4, 6, 3), 4), "resnet50-0676ba61.pth")
MOBILENETV2 = _torchvision("mobilenetv2", MobileNetV2(), "mobilenet_v2-b0353104.pth")
MOBILENETV3 = _torchvision("mobilenetv3", MobileNetV3(), "mobilenet_v3_large-8738ca79.pth")
EFFICIENTNET_B0 = _torchvision("efficientnet-b0", EfficientNet(), "efficientnet_b0_rwightman-7f5810bc.pth")
