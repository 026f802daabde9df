"""The derivatives of max and min pooling: `select_and_scatter_add` backwards, `select_and_gather_add` forwards."""

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
    if axes.stream is not None and Window(sizes[axes.stream], strides[axes.stream], *padding[axes.stream]) != Window():
        raise Refused("it mixes the streams")
    gradient, operand = ins
    around = [(sizes[a] - 1,) * 2 + (0,) if a in picture else (0, 0, 0) for a in range(len(sizes))]
    gradient, fill = _as_map(program, gradient, axes), _never_selected(eqn, operand)
    wide = _as_wide_map(program, operand, axes, around, fill)
    each = [], []
    for a in picture:
        low = sizes[a] - 1 - padding[a][0]
        high = aval.shape[a] + sizes[a] - 2 - (gradient.shape[a] - 1) * strides[a] - low
        each[0].append(Window(sizes[a], 1, low, high, base_dilation=strides[a]))
        each[1].append(Window(2 * sizes[a] - 1))

    def apply(pads, gradients, tiles):
        """`pads`: from the edge of the tile to its first window, and from the last one to the edge."""
        beyond, back = ([(0, 0, 0)] * tiles.ndim for _ in range(2))
        local = [(0, 0), *((0, 0) if a in picture else pad for a, pad in enumerate(padding))]
        for a, (low, high) in zip(picture, pads, strict=True):
            beyond[a + 1], back[a + 1] = (-low, -high, 0), (low - sizes[a] + 1, high - sizes[a] + 1, 0)
        (found,) = _jaxpr.bind(
            eqn, gradients, lax.pad(tiles, jnp.asarray(fill, tiles.dtype), beyond), window_dimensions=(1, *sizes),
            window_strides=(1, *strides), padding=tuple(local),
        )
        return (lax.pad(found, jnp.zeros((), found.dtype), back),)

    return program.tiles(
        f"unpool {sizes[axes.row]}x{sizes[axes.col]}", [gradient, wide], [(aval.shape, aval.dtype, axes)], apply,
        each=tuple((rows, cols) for rows, cols in each), fill=0, flops=float(math.prod(aval.shape) * math.prod(sizes)),
    )


def select_and_gather_add(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: the tangent of what is selected in each window; of a margin that is never selected it is 0."""
    p, aval = eqn.params, eqn.outvars[0].aval
    axes = next(v for v in ins if v.kind is Kind.MAP).map_axes
    tangent, operand = ins
    every = [Window(size, stride, dilation=dilation) for size, stride, dilation in zip(
        p["window_dimensions"], p["window_strides"], p["window_dilation"], strict=True)]
    margins = [(*pad, n - 1) for pad, n in zip(p["padding"], p["base_dilation"], strict=True)]
    if axes.stream is not None and (every[axes.stream], margins[axes.stream]) != (Window(), (0, 0, 0)):
        raise Refused("it mixes the streams")
    wide = [_as_wide_map(program, tangent, axes, margins, 0),
            _as_wide_map(program, operand, axes, margins, _never_selected(eqn, operand))]

    def apply(pads, *tiles):
        return _jaxpr.bind(
            eqn, *tiles, **{name: (1, *p[name]) for name in ("window_dimensions", "window_strides", "window_dilation")},
            base_dilation=(1,) * tiles[0].ndim, padding=((0, 0),) * tiles[0].ndim,
        )

    rows, cols = every[axes.row], every[axes.col]
    return program.tiles(
        f"tangent pool {rows.size}x{cols.size}", wide, [(aval.shape, aval.dtype, axes)], apply, rows=rows, cols=cols,
        flops=float(math.prod(aval.shape) * math.prod(p["window_dimensions"])),
    )


def _never_selected(eqn: _jaxpr.Eqn, operand: Value) -> float | int:
    least, most = bounds(operand.dtype)
    return least if eqn.params["select_prim"] is lax.ge_p else most


def _as_map(program: Program, value: Value, axes: Axes) -> Value:
    if value.kind is Kind.MAP:
        return program.turned(value, axes)
    return program.lift(value, axes) if value.kind is Kind.WHOLE else program.fixed_map(value, axes)


def _as_wide_map(program: Program, value: Value, axes: Axes, margins, fill: float | int) -> Value:
    if value.kind is Kind.MAP:
        return padded(program, program.turned(value, axes), margins, fill)
    shape = [n + low + high + max(0, n - 1) * inner for n, (low, high, inner) in zip(value.shape, margins, strict=True)]
    (wide,) = program.whole("pad", [value], [(shape, value.dtype)],
                            lambda x: (lax.pad(x, jnp.asarray(fill, x.dtype), margins),))
    return _as_map(program, wide, axes)


RULES = {"select_and_scatter_add": select_and_scatter_add, "select_and_gather_add": select_and_gather_add}
