"""`select_and_scatter_add`: the gradient of max and min pooling."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Kind, Program, Refused, Value
from .._tiles import Axes
from .pool import bounds
from .slices import padded


def select_and_scatter_add(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: every position is the sum of the gradients of those windows in which it is selected.

    So it reads the gradients of all windows that it is in, as a transposed convolution does, and all that these
    windows hold.
    """
    p, aval = eqn.params, eqn.outvars[0].aval
    axes = next(v for v in ins if v.kind is Kind.MAP).map_axes
    sizes, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    picture = (axes.row, axes.col)
    if any(Window(sizes[a], strides[a], *padding[a]) != Window() for a in range(len(sizes)) if a not in picture):
        raise Refused("it pools streams or channels")
    gradient, operand = (_as_map(program, value, axes) for value in ins)
    around = [(sizes[a] - 1,) * 2 + (0,) if a in picture else (0, 0, 0) for a in range(len(sizes))]
    least, most = bounds(operand.dtype)
    fill = least if p["select_prim"] is lax.ge_p else most
    wide = padded(program, operand, around, fill)  # where there are no gradients there is nothing to be selected
    each = [], []
    for a in picture:
        low = sizes[a] - 1 - padding[a][0]
        high = aval.shape[a] + sizes[a] - 2 - (gradient.shape[a] - 1) * strides[a] - low
        each[0].append(Window(sizes[a], 1, low, high, base_dilation=strides[a]))
        each[1].append(Window(2 * sizes[a] - 1))

    def apply(pads, gradients, tiles):
        """`pads`: from the edge of the tile to its first window, and from the last one to the edge."""
        beyond, back = ([(0, 0, 0)] * tiles.ndim for _ in range(2))
        for a, (low, high) in zip(picture, pads, strict=True):
            beyond[a + 1], back[a + 1] = (-low, -high, 0), (low - sizes[a] + 1, high - sizes[a] + 1, 0)
        (found,) = _jaxpr.bind(
            eqn, gradients, lax.pad(tiles, jnp.asarray(fill, tiles.dtype), beyond), window_dimensions=(1, *sizes),
            window_strides=(1, *strides), padding=((0, 0),) * tiles.ndim,
        )
        return (lax.pad(found, jnp.zeros((), found.dtype), back),)

    return program.tiles(
        f"unpool {sizes[axes.row]}x{sizes[axes.col]}", [gradient, wide], [(aval.shape, aval.dtype, axes)], apply,
        each=tuple((rows, cols) for rows, cols in each), fill=0, flops=float(math.prod(aval.shape) * math.prod(sizes)),
    )


def _as_map(program: Program, value: Value, axes: Axes) -> Value:
    if value.kind is Kind.MAP:
        return program.turned(value, axes)
    return program.lift(value, axes) if value.kind is Kind.WHOLE else program.fixed_map(value, axes)


RULES = {"select_and_scatter_add": select_and_scatter_add}
