"""ResNets for CIFAR-10: ResNet-20 and ResNet-56 of 32x32 frames, and MLPerf Tiny's ResNet-8.

ResNet-20 and -56: akamaster/pytorch_resnet_cifar10 (BSD-2-Clause), resnet.py and pretrained_models/, after He et al.,
"Deep Residual Learning for Image Recognition", section 4.2, with their parameter-free shortcut (option A).
ResNet-8: mlcommons/tiny (Apache-2.0), benchmark/training/image_classification, keras_model.py and trained_models/.
Layers carry the authors' names; batch norms are folded into the convolutions when the weights are read.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.datasets.cifar10 import CLASSES
from deltajax.models._classifier import classifier, normalised
from deltajax.models._folding import Layer, fold_layers
from deltajax.models._published import Params, Published, shapes
from deltajax.models._state_dict import flax_layout
from deltajax.models._torch_layers import conv, norm_name

SIDE = 32
WIDTHS = (16, 32, 64)  # channels of the three stages
TORCH_EPS, KERAS_EPS = 1e-5, 1e-3  # of batch norm


class ResNet(nn.Module):
    """Logits of the ten classes, from uint8 RGB frames: ResNet-20 with 3 blocks, ResNet-56 with 9.

    The frame may have any size: the last pooling is over all of it.

    Attributes:
        blocks: of two convolutions each, in each of the three stages.
    """

    blocks: int

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 10"]:
        x = nn.relu(conv("conv1", normalised(frame), WIDTHS[0]))
        for stage, width in enumerate(WIDTHS, start=1):
            for block in range(self.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                y = nn.relu(conv(f"layer{stage}.{block}.conv1", x, width, stride=stride))
                y = conv(f"layer{stage}.{block}.conv2", y, width)
                x = nn.relu(y + (x if stride == 1 else shortcut(x)))
        logits = nn.Dense(len(CLASSES), name="linear")(x.mean(axis=(1, 2)))
        return logits.reshape(*frame.shape[:-3], len(CLASSES))

    def layers(self) -> dict[str, Layer]:
        """What the authors' state dicts call the arrays, "module." left out."""
        stages = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(self.blocks)]
        names = ["conv1", *(f"{block}.conv{number}" for block in stages for number in (1, 2))]
        norms = ("weight", "bias", "running_mean", "running_var")
        return {
            name: Layer(f"{name}.weight", norm=tuple(f"{norm_name(name)}.{leaf}" for leaf in norms))
            for name in names
        } | {"linear": Layer("linear.weight", "linear.bias")}


class ResNet8(nn.Module):
    """Logits of the ten classes, from uint8 RGB frames of any size, which are not scaled; no softmax."""

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 10"]:
        x = frame.reshape(-1, *frame.shape[-3:]).astype(jnp.float32)
        x = nn.relu(_conv("conv2d", x, WIDTHS[0]))
        y = nn.relu(_conv("conv2d_1", x, WIDTHS[0]))
        x = nn.relu(x + _conv("conv2d_2", y, WIDTHS[0]))
        for number, width in ((3, WIDTHS[1]), (6, WIDTHS[2])):
            y = nn.relu(_conv(f"conv2d_{number}", x, width, stride=2))
            y = _conv(f"conv2d_{number + 1}", y, width)
            x = nn.relu(y + _conv(f"conv2d_{number + 2}", x, width, kernel=1, stride=2))
        logits = nn.Dense(len(CLASSES), name="dense")(x.mean(axis=(1, 2)))
        return logits.reshape(*frame.shape[:-3], len(CLASSES))

    def layers(self) -> dict[str, Layer]:
        """What Keras calls the arrays; the 1x1 convolutions of the shortcuts (5 and 8) have no batch norm."""
        norms = dict(zip((0, 1, 2, 3, 4, 6, 7), range(7), strict=True))
        return {
            numbered("conv2d", conv): Layer(
                f"{numbered('conv2d', conv)}/kernel",
                f"{numbered('conv2d', conv)}/bias",
                keras_norm(norms[conv]) if conv in norms else (),
            )
            for conv in range(9)
        } | {"dense": Layer("dense/kernel", "dense/bias")}


def _conv(name: str, x: Array, width: int, kernel: int = 3, stride: int = 1) -> Float32[Array, "n h w width"]:
    """With Keras' padding: at stride 2 what is left over goes below and to the right."""
    return nn.Conv(width, (kernel, kernel), stride, name=name)(x)


def shortcut(x: Float[Array, "n h w c"]) -> Float[Array, "n h/2 w/2 2*c"]:
    """Every second pixel, and as many channels of zeros on either side as make twice the channels."""
    channels = x.shape[-1]
    return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (channels // 2, channels // 2)))


def numbered(name: str, number: int) -> str:
    """Keras' names: conv2d, conv2d_1, conv2d_2 and so on."""
    return f"{name}_{number}" if number else name


def keras_norm(number: int) -> tuple[str, ...]:
    """The arrays of Keras' batch norm of that number, in the order of `Layer.norm`."""
    name = numbered("batch_normalization", number)
    return tuple(f"{name}/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance"))


def apply(network: nn.Module, params: Params, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 10"]:
    """A network as a function; `functools.partial` of its first argument is what `deltajax.incremental` takes."""
    return network.apply(params, frame)  # pyright: ignore[reportReturnType]


def load(network: ResNet | ResNet8, published: Published, path: Path | None) -> Params:
    """The params from the authors' file, or from a .safetensors file with the same names, those of ResNet-20 and
    ResNet-56 with or without "module." in front.

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    arrays, eps = published.read(path), KERAS_EPS
    if isinstance(network, ResNet):
        arrays = {name.removeprefix("module."): array for name, array in flax_layout(arrays).items()}
        eps = TORCH_EPS
    wanted = shapes(network, (SIDE, SIDE))["params"]
    return fold_layers(arrays, network.layers(), wanted, eps, published, str(path))


def _model(name: str, network: ResNet | ResNet8, source: str):
    return classifier(
        name,
        f"names a 32x32 picture, ten classes of CIFAR-10 ({source.split(' ')[-1]})",
        SIDE,
        CLASSES,
        functools.partial(apply, network),
        functools.partial(shapes, network, (SIDE, SIDE)),
        functools.partial(load, network, Published(name, f"pass --weights {source}")),
    )


_AKAMASTER = "published in pretrained_models of https://github.com/akamaster/pytorch_resnet_cifar10"
RESNET20 = _model("resnet20", ResNet(3), f"resnet20-12fca82f.th, {_AKAMASTER}")
RESNET56 = _model("resnet56", ResNet(9), f"resnet56-4bfd9763.th, {_AKAMASTER}")
RESNET8 = _model(
    "resnet8",
    ResNet8(),
    "pretrainedResnet.h5, published in benchmark/training/image_classification/trained_models of "
    "https://github.com/mlcommons/tiny",
)
