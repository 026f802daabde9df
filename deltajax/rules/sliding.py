"""Convolutions that slide over one picture axis alone, or over further axes besides the picture's."""

from __future__ import annotations

import jax
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Program, Refused, Value
from .._tiles import Axes


def convolution(program: Program, eqn: _jaxpr.Eqn, ins: list[Value], flops: float):
    """Law: a picture axis is slid over, or a batch whose members are convolved each on its own.

    So a 1-D convolution runs along the rows of a picture, or over tokens; and a 3-D one over a picture with depths.
    """
    p, (value, _), aval = eqn.params, ins, eqn.outvars[0].aval
    numbers, axes = p["dimension_numbers"], value.map_axes
    batch, _, *spatial = numbers.lhs_spec
    if axes.stream not in (None, batch):
        raise Refused("it mixes the streams")
    over = [spatial.index(a) if a in spatial else None for a in (axes.row, axes.col)]
    if any(i is None and a != batch for i, a in zip(over, (axes.row, axes.col), strict=True)):
        raise Refused("its channels are a picture axis")
    rows, cols = (
        Window() if i is None else Window(
            eqn.invars[1].aval.shape[numbers.rhs_spec[2 + i]], p["window_strides"][i], *p["padding"][i],
            dilation=p["rhs_dilation"][i], base_dilation=p["lhs_dilation"][i])
        for i in over
    )
    row, col = (numbers.out_spec[0 if i is None else 2 + i] for i in over)

    def apply(pads, tiles, kernel):
        padding = list(p["padding"])
        for i, pad in zip(over, pads, strict=True):
            if i is not None:
                padding[i] = pad
        return (jax.vmap(lambda tile: lax.conv_general_dilated(
            tile, kernel, p["window_strides"], padding, p["lhs_dilation"], p["rhs_dilation"], numbers,
            p["feature_group_count"], precision=p["precision"], preferred_element_type=p["preferred_element_type"],
        ))(tiles),)

    stream = None if axes.stream is None else numbers.out_spec[0]
    return program.tiles(f"conv {rows.size}x{cols.size} in {len(spatial)} axes", ins,
                         [(aval.shape, aval.dtype, Axes(stream, row, col))], apply, rows=rows, cols=cols, fill=0,
                         flops=flops, heavy=True)
