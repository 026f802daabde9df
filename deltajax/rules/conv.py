"""`conv_general_dilated` in all its forms: stride, padding, dilations (transposed), groups, any layout."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._buckets import cores
from .._geometry import Window
from .._program import Form, Hidden, Kind, Program, Refused, Value
from .._tiles import Axes
from . import sliding


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


# XLA's CPU convolution is shared out among the cores by the width and the channels of its result. So tiles of few
# channels are laid side by side in one long strip, a few rows of each (measured, jax 0.10.2, two cores: four tiles of
# 16x16 with 64 channels take .65 of the time). What is computed between two tiles is lost; many channels are shared
# out anyway.
STRIP, STRIP_WASTE, SHARED_CHANNELS, SHARED_POSITIONS = 13_000, 1.2, 128, 4096

TALL = 32  # rows, of which one more is no loss

SMALLEST = 16  # of a picture that is worth its tiles


def convolution(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: tile and halo, convolved without padding, give the tile of the convolution."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    lhs, rhs = ins
    if p["batch_group_count"] != 1:
        raise Refused("it has batch groups")
    if rhs.kind is not Kind.FIXED:
        raise Refused("its kernel depends on the frame")
    batch, feature, *spatial = numbers.lhs_spec
    axes = lhs.axes
    if lhs.kind is not Kind.MAP or axes is None:
        raise Refused("it reads whole values")
    if {axes.row, axes.col} != set(spatial):
        return sliding.convolution(program, eqn, ins, flops(eqn))
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
    on_cpu = program.on_cpu

    def one(tile, kernel, pads):
        padding = [(0, 0), (0, 0)]
        padding[order[0]], padding[order[1]] = pads
        height = (tile.shape[axes.row] - rows.extent) // rows.stride + 1
        longer = on_cpu and pads == ((0, 0), (0, 0)) and rows.base_dilation == 1 and height >= TALL
        if longer:
            # Without any padding XLA's CPU convolution takes a quarter longer (measured, jax 0.10.2).
            padding[order[0]] = (0, rows.stride)
        out = lax.conv_general_dilated(
            tile, kernel, p["window_strides"], padding, p["lhs_dilation"], p["rhs_dilation"], numbers,
            groups, precision=p["precision"], preferred_element_type=p["preferred_element_type"],
        )
        return lax.slice_in_dim(out, 0, height, axis=out_axes.row) if longer else out

    def results(shape) -> tuple[int, int]:
        """Rows and columns of the results of unpadded tiles."""
        height, width = ((shape[axis + 1] - w.extent) // w.stride + 1
                         for axis, w in ((axes.row, rows), (axes.col, cols)))
        return height, width

    def taps(tiles, kernel):
        """A depthwise convolution as one multiply and add for each tap.

        XLA's CPU convolution takes some 70 times as long for it (measured, jax 0.10.2).
        """
        narrow = jnp.issubdtype(tiles.dtype, jnp.floating) and jnp.finfo(tiles.dtype).bits < 32
        wide = jnp.float32 if narrow else aval.dtype
        height, width = results(tiles.shape)
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

    def strip_rows(shape) -> int:
        """How many rows of each tile lie side by side in the strip; 0 where tiles are convolved as they are."""
        count, (height, width) = shape[0], results(shape)
        features, pitch = aval.shape[out_spec[1]], -(-shape[axes.col + 1] // cols.stride)
        if not (on_cpu and cores() > 1) or spread or groups > 1 or features >= SHARED_CHANNELS or (
            count * height * width > SHARED_POSITIONS or pitch > STRIP_WASTE * width
        ):
            return 0
        return next((
            each for each in range(height, 0, -1)
            if height % each == 0 and count * height // each * pitch * features >= STRIP
        ), 0)

    def in_strip(tiles, kernel, each: int):
        height, width = results(tiles.shape)
        pitch = -(-tiles.shape[axes.col + 1] // cols.stride)
        config = [(0, 0, 0)] * (tiles.ndim - 1)
        config[axes.col] = (0, pitch * cols.stride - tiles.shape[axes.col + 1], 0)
        tiles = lax.pad(tiles, jnp.zeros((), tiles.dtype), [(0, 0, 0), *config])
        parts = [
            lax.slice_in_dim(tile, row * rows.stride, (row + each - 1) * rows.stride + rows.extent, axis=axes.row)
            for tile in tiles for row in range(0, height, each)
        ]
        # At the seams it reads two tiles at once: nobody reads those results.
        strip = one(jnp.concatenate(parts, axis=axes.col), kernel, ((0, 0), (0, cols.extent - cols.stride)))
        at = out_axes.col
        found = strip.reshape(*strip.shape[:at], len(parts), pitch, *strip.shape[at + 1:])
        found = jnp.moveaxis(lax.slice_in_dim(found, 0, width, axis=at + 1), at, 0)
        found = jnp.moveaxis(found.reshape(len(tiles), height // each, *found.shape[1:]), 1, out_axes.row + 1)
        shape = list(found.shape)
        shape[out_axes.row + 1: out_axes.row + 3] = [height]
        return found.reshape(shape)

    def apply(pads, tiles, kernel):
        if on_cpu and depthwise and same_layout and pads == ((0, 0), (0, 0)) and not spread:
            return (taps(tiles, kernel),)
        if pads == ((0, 0), (0, 0)) and (each := strip_rows(tiles.shape)):
            return (in_strip(tiles, kernel, each),)
        return (jax.vmap(lambda tile: one(tile, kernel, pads))(tiles),)

    return program.tiles(
        label, [lhs, rhs], [(aval.shape, aval.dtype, out_axes)], apply, rows=rows, cols=cols, fill=0,
        flops=flops(eqn), heavy=True, form=Form("convolution", (
            (*(numbers.rhs_spec[2 + i] for i in order), numbers.rhs_spec[1], numbers.rhs_spec[0]), groups)),
    )


RULES = {"conv_general_dilated": convolution}
LIFTS = {"conv_general_dilated": lifted}
