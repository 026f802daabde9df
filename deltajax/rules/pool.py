"""`reduce_window_{max,min,sum}`: pooling."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .._geometry import Window
from .._program import Form, Kind, Program, Refused, Value


def bounds(dtype) -> tuple[float | int, float | int]:
    """The least and the greatest value: what a maximum and a minimum start from."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf, np.inf
    if jnp.issubdtype(dtype, jnp.bool_):
        return False, True
    info = jnp.iinfo(dtype)
    return info.min, info.max


def window_reduction(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: every output is the maximum, minimum or sum over its window of rows, columns and channels."""
    value, *start = ins
    axes, p = value.axes, eqn.params
    if value.kind is not Kind.MAP or axes is None or len(start) > 1:
        raise Refused("it reduces several arrays, or starts with what depends on the frame")
    kind = eqn.primitive.name.removeprefix("reduce_window").removeprefix("_")
    ones = (1,) * len(value.shape)
    spread, dilation = p.get("base_dilation", ones), p.get("window_dilation", ones)
    every = [
        Window(p["window_dimensions"][a], p["window_strides"][a], *p["padding"][a], dilation=dilation[a],
               base_dilation=spread[a])
        for a in range(len(value.shape))
    ]
    if axes.stream is not None and not every[axes.stream].is_identity:
        raise Refused("it mixes the streams")
    rows, cols = every[axes.row], every[axes.col]
    aval = eqn.outvars[0].aval
    if start:
        first = program.constant(start[0])
        if first is None:
            raise Refused("what it starts with is not a constant")
        fill = first.item()
    else:
        fill = {"max": bounds(value.dtype)[0], "min": bounds(value.dtype)[1], "sum": 0}[kind]

    def apply(pads, tiles, *start):
        padding = [(0, 0), *p["padding"]]
        padding[axes.row + 1], padding[axes.col + 1] = pads
        return _jaxpr.bind(
            eqn, tiles, *start,
            window_dimensions=(1, *p["window_dimensions"]), window_strides=(1, *p["window_strides"]),
            padding=tuple(padding), base_dilation=(1, *spread), window_dilation=(1, *dilation),
        )

    over_picture = all(w.is_identity for a, w in enumerate(every) if a not in (axes.row, axes.col))
    label = f"{kind or 'other'} pool {rows.size}x{cols.size}" + (f" /{rows.stride}" if rows.stride > 1 else "")
    return program.tiles(
        label, ins, [(aval.shape, aval.dtype, axes)], apply, rows=rows, cols=cols, fill=fill,
        flops=float(math.prod(aval.shape) * math.prod(p["window_dimensions"])),
        form=Form("pool", (kind,)) if kind and over_picture else None,
    )


RULES = dict.fromkeys(
    ("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), window_reduction
)
