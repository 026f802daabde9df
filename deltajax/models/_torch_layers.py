"""torch's convolutions in Flax, and how the authors of its networks name what follows them."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

PAD_ONE: Any = ((1, 1), (1, 1))  # of a pool, on every side; Flax declares it as a string


def conv(
    name: str,
    x: Float[Array, "n h w c"],
    width: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
) -> Float[Array, "n h2 w2 width"]:
    """A convolution with torch's padding, half the dilated kernel on every side, whatever the stride."""
    return nn.Conv(
        width,
        (kernel, kernel),
        stride,
        padding=dilation * (kernel // 2),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=bias,
        name=name,
    )(x)


def conv_norm(
    name: str,
    x: Float[Array, "n h w c"],
    width: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    eps: float = 1e-5,
) -> Float[Array, "n h2 w2 width"]:
    """A convolution without a bias, and the batch norm that goes with its name."""
    x = conv(name, x, width, kernel, stride, groups, bias=False)
    return nn.BatchNorm(True, epsilon=eps, name=norm_name(name))(x)


def norm_name(conv: str) -> str:
    """The batch norm after a convolution: "bn1" beside "conv1", the next in number elsewhere."""
    path, dot, last = conv.rpartition(".")
    return path + dot + (last.replace("conv", "bn") if last.startswith("conv") else str(int(last) + 1))
