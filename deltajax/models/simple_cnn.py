"""SimpleCNN, the network of the source paper: names the digit on a 64x64 frame.

    conv 32 3x3, relu, max pool 2, conv 64 3x3, relu, max pool 2, flatten, dense 128, relu, dense 10

The shipped weights come from `python -m train.mnist`, whose head states what they reach.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from ._weights import read_params, read_shipped

FRAME_SHAPE = (64, 64, 1)
DIGIT = 28
MARGIN = (FRAME_SHAPE[0] - DIGIT) // 2  # a centred digit may move this far and stay whole


def max_pool(x: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h//2 w//2 c"]:
    """The largest of each 2x2."""
    return nn.max_pool(x, (2, 2), strides=(2, 2))


class SimpleCNN(nn.Module):
    """Logits of the ten digits; a frame is float in 0..1, white ink on black, one channel.

    Every convolution pads by one, so each pooling halves the size: 64 -> 32 -> 16.

    Attributes:
      pool: takes the largest of each 2x2; training gives one whose gradient is cheap on a CPU.
    """

    pool: Callable[[Array], Array] = max_pool

    @nn.compact
    def __call__(self, x: Float[Array, "*batch 64 64 1"]) -> Float[Array, "*batch 10"]:
        for name, features in (("conv1", 32), ("conv2", 64)):
            x = nn.relu(nn.Conv(features, (3, 3), padding=1, name=name)(x))
            x = self.pool(x)
        x = x.reshape(*x.shape[:-3], -1)
        x = nn.relu(nn.Dense(128, name="fc1")(x))
        return nn.Dense(10, name="fc2")(x)


def init_params(key: Array) -> dict[str, Any]:
    """Random parameters, `{"conv1": {"kernel", "bias"}, "conv2", "fc1", "fc2"}`, float32."""
    variables: Any = SimpleCNN().init(key, jnp.zeros(FRAME_SHAPE))
    return variables["params"]


def apply(
    params: dict[str, Any], frame: Float[Array, "*batch 64 64 1"], pool: Callable[[Array], Array] = max_pool
) -> Float[Array, "*batch 10"]:
    """`SimpleCNN` as a function of `(params, frame)`, the form that `incremental` takes."""
    return SimpleCNN(pool).apply({"params": params}, frame)  # pyright: ignore[reportReturnType]


def place(
    digits: UInt8[Array, "n 28 28"], shift: Int[Array, "n 2"] | Int[np.ndarray, "n 2"]
) -> Float[Array, "n 64 64 1"]:
    """MNIST digits on black frames, in 0..1, moved from the centre by `shift` (down, right) pixels, -18..18."""

    def one(digit: UInt8[Array, "28 28"], by: Int[Array, " 2"]) -> Float[Array, "64 64 1"]:
        frame = jnp.zeros(FRAME_SHAPE)
        ink = digit[..., None].astype(jnp.float32) / 255
        return jax.lax.dynamic_update_slice(frame, ink, (MARGIN + by[0], MARGIN + by[1], 0))

    return jax.vmap(one)(digits, jnp.asarray(shift))


def load_params(path: Path | None = None) -> dict[str, Any]:
    """The trained parameters, float32 (shipped as float16); see `read_params` for the errors.

    Args:
      path: a safetensors file written by `python -m train.mnist`; None for the shipped one.
    """
    like = jax.eval_shape(lambda: init_params(jax.random.key(0)))
    return read_shipped("simple_cnn.safetensors", like) if path is None else read_params(path, like)
