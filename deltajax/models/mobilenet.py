"""MobileNetV1 at a quarter of its width: is there a person on a 96x96 frame ("visual wake words")?

Architecture and weights: mlcommons/tiny (Apache-2.0), benchmark/training/visual_wake_words, vww_model.py and
trained_models/vww_96.h5, after Howard et al., "MobileNets", arXiv 1704.04861. Layers carry the names that Keras gave
them; batch norms are folded into the convolutions when the weights are read.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float32, UInt8

from deltajax.models._classifier import classifier
from deltajax.models._folding import Layer, fold_layers
from deltajax.models._published import Params, Published, shapes
from deltajax.models.resnet import KERAS_EPS, keras_norm, numbered

SIDE = 96
CLASSES = ("no person", "person")
FIRST_WIDTH = 8
# Channels after each pair of a depthwise and a pointwise convolution, and the stride of the depthwise one.
PAIRS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
PUBLISHED = Published(
    "mobilenet-vww",
    "pass --weights vww_96.h5, published in benchmark/training/visual_wake_words/trained_models of "
    "https://github.com/mlcommons/tiny",
)


class MobileNet(nn.Module):
    """Logits of `CLASSES`, from uint8 RGB frames of any size; the authors' softmax is left out."""

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 2"]:
        x = frame.reshape(-1, *frame.shape[-3:]).astype(jnp.float32) / 255
        x = nn.relu(nn.Conv(FIRST_WIDTH, (3, 3), 2, name="conv2d")(x))
        for pair, (width, stride) in enumerate(PAIRS):
            groups = x.shape[-1]
            depthwise = nn.Conv(
                groups, (3, 3), stride, feature_group_count=groups, name=numbered("depthwise_conv2d", pair)
            )
            pointwise = nn.Conv(width, (1, 1), name=numbered("conv2d", pair + 1))
            x = nn.relu(pointwise(nn.relu(depthwise(x))))
        logits = nn.Dense(len(CLASSES), name="dense")(x.mean(axis=(1, 2)))
        return logits.reshape(*frame.shape[:-3], len(CLASSES))


def layers() -> dict[str, Layer]:
    """What Keras calls the arrays: a batch norm after each convolution, numbered through."""
    pairs = range(len(PAIRS))
    convs = [("depthwise_conv2d", "depthwise_kernel", pair, 2 * pair + 1) for pair in pairs]
    convs += [("conv2d", "kernel", number, 2 * number) for number in range(len(PAIRS) + 1)]
    return {
        numbered(kind, number): Layer(
            f"{numbered(kind, number)}/{kernel}", f"{numbered(kind, number)}/bias", keras_norm(norm)
        )
        for kind, kernel, number, norm in convs
    } | {"dense": Layer("dense/kernel", "dense/bias")}


def apply(params: Params, frame: UInt8[Array, "*batch h w 3"]) -> Float32[Array, "*batch 2"]:
    """`MobileNet` as a function of its params and a frame, the form that `deltajax.incremental` takes."""
    return MobileNet().apply(params, frame)  # pyright: ignore[reportReturnType]


def load(path: Path | None) -> Params:
    """The params from the authors' .h5 file, or from a .safetensors file with names such as "conv2d/kernel".

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    # Keras keeps depthwise kernels as [rows, columns, channels, 1], Flax as [rows, columns, 1, channels].
    arrays = {
        name: array.swapaxes(2, 3) if name.endswith("depthwise_kernel") and array.ndim == 4 else array
        for name, array in PUBLISHED.read(path).items()
    }
    wanted = shapes(MobileNet(), (SIDE, SIDE))["params"]
    return fold_layers(arrays, layers(), wanted, KERAS_EPS, PUBLISHED, str(path))


MODEL = classifier(
    "mobilenet-vww",
    "is there a person? 96x96 (https://github.com/mlcommons/tiny, visual wake words)",
    SIDE,
    CLASSES,
    apply,
    functools.partial(shapes, MobileNet(), (SIDE, SIDE)),
    load,
)
