"""`conv_general_dilated` in all its forms: stride, padding, dilations (transposed), groups, any layout."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Hidden, Kind, Program, Refused, Value
from .._tiles import Axes


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def windows(eqn, picture: tuple[int, int]) -> tuple[Window, Window]:
    """The windows of the two spatial dimensions that `picture` (indices into them) names."""
    p = eqn.params
    kernel = eqn.invars[1].aval.shape
    size = [kernel[axis] for axis in p["dimension_numbers"].rhs_spec[2:]]
    rows, cols = (
        Window(size[i], p["window_strides"][i], *p["padding"][i], dilation=p["rhs_dilation"][i],
               base_dilation=p["lhs_dilation"][i])
        for i in picture
    )
    return rows, cols


def flops(eqn) -> float:
    """Two for each multiply and add that meets an input; those that meet the spread's holes do not count."""
    p = eqn.params
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    taps = math.prod(kernel) / kernel[p["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * taps / math.prod(p["lhs_dilation"])


def lifted(program: Program, eqn: _jaxpr.Eqn, ins: list[Value | Hidden]) -> list[Value | Hidden]:
    """A whole picture begins a map again."""
    lhs, numbers = ins[0], eqn.params["dimension_numbers"]
    batch, _, *spatial = numbers.lhs_spec
    if not isinstance(lhs, Value) or lhs.kind is not Kind.WHOLE or len(spatial) != 2:
        return ins
    stream = batch if program.streams > 1 or lhs.shape[batch] == 1 else None
    if math.prod(lhs.shape[a] for a in spatial) < SMALLEST or (
        stream is not None and lhs.shape[batch] != program.streams
    ):
        return ins
    return [program.lift(lhs, Axes(stream, *spatial)), *ins[1:]]


SMALLEST = 16  # of a picture that is worth its tiles


def convolution(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: tile and halo, convolved without padding, give the tile of the convolution."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    lhs, rhs = ins
    if len(numbers.lhs_spec) != 4:
        raise Refused(f"it has {len(numbers.lhs_spec) - 2} spatial dimensions, not 2")
    if p["batch_group_count"] != 1:
        raise Refused("it has batch groups")
    if rhs.kind is not Kind.FIXED:
        raise Refused("its kernel depends on the frame")
    batch, feature, *spatial = numbers.lhs_spec
    axes = lhs.axes
    if lhs.kind is not Kind.MAP or axes is None:
        raise Refused("it reads whole values")
    if {axes.row, axes.col} != set(spatial):
        raise Refused("it does not slide over both picture axes")
    if axes.stream is not None and axes.stream != batch:
        raise Refused("it mixes the streams")
    order = (spatial.index(axes.row), spatial.index(axes.col))
    rows, cols = windows(eqn, order)
    out_axes = Axes(
        None if axes.stream is None else numbers.out_spec[0],
        numbers.out_spec[2 + order[0]], numbers.out_spec[2 + order[1]],
    )
    aval = eqn.outvars[0].aval
    label = f"conv {rows.size}x{cols.size}"
    if (rows.stride, cols.stride) != (1, 1):
        label += f" /{rows.stride}" if rows.stride == cols.stride else f" /{rows.stride}x{cols.stride}"
    if (rows.base_dilation, cols.base_dilation) != (1, 1):
        label += f" up {rows.base_dilation}"
    if (rows.dilation, cols.dilation) != (1, 1):
        label += f" dilated {rows.dilation}"
    if p["feature_group_count"] > 1:
        label += f" {p['feature_group_count']} groups"
    out_spec = numbers.out_spec
    groups = p["feature_group_count"]
    depthwise = groups > 1 and groups == lhs.shape[feature] == aval.shape[out_spec[1]]
    same_layout = (batch, feature, *spatial) == tuple(out_spec)

    def one(tile, kernel, pads):
        padding = [(0, 0), (0, 0)]
        padding[order[0]], padding[order[1]] = pads
        crop = None
        if _on_cpu() and padding == [(0, 0), (0, 0)] and max(rows.size, cols.size) > 1:
            # XLA's CPU convolution is up to twice as fast with some padding as with none (measured, jax 0.10.2):
            # then a batch of tiles, or a single one, runs at the speed of the whole picture on one core.
            padding[order[0]] = (0, 1)
            crop = dataclasses.replace(rows, pad_lo=0, pad_hi=0).outputs(tile.shape[axes.row])
        out = lax.conv_general_dilated(
            tile, kernel, p["window_strides"], padding, p["lhs_dilation"], p["rhs_dilation"], numbers,
            groups, precision=p["precision"], preferred_element_type=p["preferred_element_type"],
        )
        return out if crop is None else lax.slice_in_dim(out, 0, crop, axis=out_spec[2 + order[0]])

    def taps(tiles, kernel):
        """A depthwise convolution as one multiply and add for each tap.

        XLA's CPU convolution takes some 70 times as long for it (measured, jax 0.10.2).
        """
        narrow = jnp.issubdtype(tiles.dtype, jnp.floating) and jnp.finfo(tiles.dtype).bits < 32
        wide = jnp.float32 if narrow else aval.dtype
        height, width = ((tiles.shape[axis + 1] - w.extent) // w.stride + 1
                         for axis, w in ((axes.row, rows), (axes.col, cols)))
        kernel = jnp.transpose(kernel, (*(numbers.rhs_spec[2 + i] for i in order), *numbers.rhs_spec[:2]))
        shape = [1] * tiles.ndim
        shape[feature + 1] = groups
        total = None
        for i in range(rows.size):
            for j in range(cols.size):
                part = tiles
                for axis, w, tap, count in ((axes.row, rows, i, height), (axes.col, cols, j, width)):
                    first = tap * w.dilation
                    part = lax.slice_in_dim(part, first, first + (count - 1) * w.stride + 1, w.stride, axis + 1)
                term = part.astype(wide) * kernel[i, j].reshape(shape).astype(wide)
                total = term if total is None else total + term
        assert total is not None
        return total.astype(aval.dtype)

    spread = rows.base_dilation > 1 or cols.base_dilation > 1

    def apply(pads, tiles, kernel):
        if _on_cpu() and depthwise and same_layout and pads == ((0, 0), (0, 0)) and not spread:
            return (taps(tiles, kernel),)
        return (jax.vmap(lambda tile: one(tile, kernel, pads))(tiles),)

    return program.tiles(
        label, [lhs, rhs], [(aval.shape, aval.dtype, out_axes)], apply, rows=rows, cols=cols, fill=0,
        flops=flops(eqn), heavy=True,
    )


RULES = {"conv_general_dilated": convolution}
LIFTS = {"conv_general_dilated": lifted}
