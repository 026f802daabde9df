"""The paper's own networks: one receptive field after the other (Borji, arXiv 2407.01782, figures 3, 8 and 9).

CNN2 computes every receptive field; CNN3 only those whose change map sums to more than a threshold, and hands its own
change map on. Both are `lax.fori_loop`s over positions, all output channels at once, so that their ratio is that of
the work that CNN3 skips. Nobody should run a network like this; `incremental` is the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deltajax.models.simple_cnn import FRAME_SHAPE

Map = Float[Array, "h w"]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cnn3:
    """CNN3 of figure 9. Law: with ``tau=0``, no defects and zero-padded maps, its logits are those of `cnn2`.

    Attributes:
        tau: a receptive field of the frame is computed where its |difference| sums to more than this (footnote 4).
        map_not_padded: the paper's defect: windows of the padded input look into a change map without padding, so
            each looks one row and one column too far down and right, and what changed is partly left as it was.
        tau_in_depth: the paper's defect: deeper layers compare the *number* of changed units with `tau` as well, so
            that at ``tau >= 1`` a single changed unit has nothing computed.
        held: compare with the frame that was last used, pixel by pixel, instead of the previous one. Not in the paper.
    """

    tau: float = 0.0
    map_not_padded: bool = False
    tau_in_depth: bool = False
    held: bool = False

    def init(self) -> dict[str, Array]:
        """Zero outputs (footnote 1); the first frame is compared with nothing, its map is all ones."""
        rows, cols, _ = FRAME_SHAPE
        shapes = {"conv1": (rows, cols, 32), "pool1": (rows // 2, cols // 2, 32),
                  "conv2": (rows // 2, cols // 2, 64), "pool2": (rows // 4, cols // 4, 64)}
        return {"frame": jnp.zeros(FRAME_SHAPE), "seen": jnp.zeros((), bool),
                **{name: jnp.zeros(shape) for name, shape in shapes.items()}}

    def step(
        self, params: Params, cache: dict[str, Array], frame: Float[Array, "64 64 1"]
    ) -> tuple[Float[Array, " 10"], dict[str, Array], dict[str, Map]]:
        """One frame: ``(logits, cache, maps)``; the maps are those of figure 5, by layer, `frame` first."""
        change = jnp.where(cache["seen"], jnp.abs(frame - cache["frame"])[..., 0], 1.0)
        first = jnp.where(cache["seen"], self.tau, 0.0)  # all of the first frame is computed
        deep = first if self.tau_in_depth else 0.0
        new, maps = {"seen": jnp.ones((), bool), "frame": frame}, {"frame": change}
        if self.held:  # every receptive field that reads a pixel taken over is computed, or it would lag for ever
            used = lax.reduce_window(change, 0.0, lax.add, (3, 3), (1, 1), "SAME") > first
            new["frame"] = jnp.where(used[..., None], frame, cache["frame"])
            change, first = used.astype(jnp.float32), 0.0
        x, padded = new["frame"], not self.map_not_padded
        for number, tau in (("1", first), ("2", deep)):
            new[f"conv{number}"], change = conv(params[f"conv{number}"], x, cache[f"conv{number}"], change, tau, padded)
            maps[f"conv{number}"] = change
            x = jax.nn.relu(new[f"conv{number}"])
            new[f"pool{number}"], change = max_pool(x, cache[f"pool{number}"], change, deep)
            maps[f"pool{number}"] = change
            x = new[f"pool{number}"]
        return _head(params, x), new, maps


def cnn2(params: Params, frame: Float[Array, "64 64 1"]) -> Float[Array, " 10"]:
    """CNN2 of figure 8: every receptive field in turn. Its logits are those of `simple_cnn.apply`."""
    x = frame
    for name in ("conv1", "conv2"):
        rows, cols, _ = x.shape
        kernel = params[name]["kernel"]
        x = jax.nn.relu(conv(params[name], x, jnp.zeros((rows, cols, kernel.shape[-1])))[0])
        x = max_pool(x, jnp.zeros((rows // 2, cols // 2, kernel.shape[-1])))[0]
    return _head(params, x)


def conv(
    params: Params, x: Float[Array, "h w c"], previous: Float[Array, "h w d"], change: Map | None = None,
    tau: Array | float = 0.0, map_padded: bool = True,
) -> tuple[Float[Array, "h w d"], Map]:
    """The 3x3 convolution with padding 1, field after field, over `previous`; ``(y, change map)``.

    Args:
        change: computed where its 3x3 sums to more than `tau`; None computes all.
        map_padded: False for the paper's `map_not_padded`.
    """
    kernel, bias = params["kernel"], params["bias"]
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    if change is not None:
        change = jnp.pad(change, ((1, 1), (1, 1)) if map_padded else ((0, 2), (0, 2)))

    def field(row, col):
        patch = lax.dynamic_slice(padded, (row, col, 0), (3, 3, x.shape[-1]))
        return patch.reshape(-1) @ kernel.reshape(-1, kernel.shape[-1]) + bias

    return _each(previous, field, change, (3, 1), tau)


def max_pool(
    x: Float[Array, "h w c"], previous: Float[Array, "h//2 w//2 c"], change: Map | None = None,
    tau: Array | float = 0.0,
) -> tuple[Float[Array, "h//2 w//2 c"], Map]:
    """The largest of each 2x2, window after window; as `conv`."""

    def field(row, col):
        return lax.dynamic_slice(x, (2 * row, 2 * col, 0), (2, 2, x.shape[-1])).max((0, 1))

    return _each(previous, field, change, (2, 2), tau)


def _each(
    previous: Float[Array, "h w d"], field: Callable[[Array, Array], Float[Array, " d"]], change: Map | None,
    window: tuple[int, int], tau: Array | float,
) -> tuple[Float[Array, "h w d"], Map]:
    """`previous` with `field(row, col)` wherever the change in its window of (size, stride) sums to more than `tau`.

    The windows' sums are taken beforehand and the loop runs over those to be computed: a test inside the loop would
    cost XLA as much as the receptive field that it skips.
    """
    rows, cols, _ = previous.shape
    size, stride = window

    def one(number, y):
        row, col = number // cols, number % cols
        return lax.dynamic_update_slice(y, field(row, col)[None, None], (row, col, 0))

    if change is None:
        return lax.fori_loop(0, rows * cols, one, previous), jnp.ones((rows, cols))
    sums = lax.reduce_window(change, 0.0, lax.add, (size, size), (stride, stride), "VALID")
    found = sums > tau

    def some(y):
        (numbers,) = jnp.nonzero(found.reshape(-1), size=rows * cols)
        return lax.fori_loop(0, jnp.sum(found), lambda i, y: one(numbers[i], y), y)

    return lax.cond(found.any(), some, lambda y: y, previous), found.astype(jnp.float32)


def _head(params: Params, x: Float[Array, "16 16 64"]) -> Float[Array, " 10"]:
    x = jax.nn.relu(x.reshape(-1) @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return x @ params["fc2"]["kernel"] + params["fc2"]["bias"]
