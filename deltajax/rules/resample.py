"""Moves along the picture that are read off constants: resizes, takes, and reshapes that split or merge an axis.

Whatever depends on neither params nor frame is known at trace time. So a matrix on a picture axis is seen to be
banded (`jax.image.resize`, pooling written as a matrix product), and an index array to be local (upsampling, rolls
by a little, patches): each output then has a window of inputs, and the operation is done on tiles, each with its own
part of the matrix or of the indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._geometry import Window, reading_window, whole_axis
from .._program import Form, Kind, Place, Program, Refused, TileOp, Value
from .._tiles import Axes

# A window that holds more of the axis than this share makes tiles read nearly everything.
LOCAL = 0.5
SMALL = 16  # an axis this short is read whole without loss
MOST_TAPS = 32  # of a matrix that is done tap by tap


def local_window(first: np.ndarray, last: np.ndarray, inputs: int) -> Window:
    """The window of an axis on which output `o` reads ``first[o] .. last[o]``; refused where it is no local one."""
    window = reading_window(first.tolist(), last.tolist(), inputs)
    if inputs > SMALL and window.size / window.base_dilation > max(LOCAL * inputs, 2):
        raise Refused("each of its results reads from all over the picture")
    return window


def strip(program: Program, label: str, ins: list[Value], along: int, outs, function, **more) -> tuple[Value, ...]:
    """An operation that mixes one picture axis and treats the other position by position: on whole strips.

    Args:
        along: the axis of the first map among `ins` that is mixed.
        outs: ``(shape, dtype, axes)`` of the results; on the mixed axis their lengths may be others.
        function: ``(None, *tiles) -> tiles``, of all of the axis.
    """
    value = next(v for v in ins if v.kind is Kind.MAP)
    is_row = along == value.map_axes.row

    def apply(places, *tiles):
        results, place = function(None, *tiles), places[0 if is_row else 1]
        if place.all and place.length == _length(outs[0], is_row):
            return results
        parts = []
        for result, out in zip(results, outs, strict=True):
            axis = out[2].row if is_row else out[2].col
            parts.append(_take(result, positions(place, _length(out, is_row)), axis))
        return tuple(parts)

    return program.tiles(label, ins, outs, apply, **_windows(along, value.map_axes, whole_axis(value.shape[along])),
                         placed=True, **more)


def _length(out, is_row: bool) -> int:
    shape, _, axes = out
    return shape[axes.row if is_row else axes.col]


def transposed(program: Program, value: Value, order: Sequence[int]) -> Value:
    axes, order = value.map_axes, list(map(int, order))
    shape = tuple(value.shape[a] for a in order)
    return program.tiles("transpose", [value], [(shape, value.dtype, axes.moved(order.index))],
                         lambda pads, tiles: (tiles.transpose(0, *(a + 1 for a in order)),),
                         form=Form("transpose", (tuple(order),)))[0]


def _windows(axis: int, axes: Axes, window: Window) -> dict[str, Window]:
    """`window` on the picture axis `axis`, nothing on the other."""
    return {"rows": window if axis == axes.row else Window(), "cols": window if axis == axes.col else Window()}


def _taken(axis: int, axes: Axes, places: tuple[Place, Place]) -> Place:
    return places[0] if axis == axes.row else places[1]


def positions(place: Place, outputs: int):
    """The results' own positions, `[K, length]`; those outside, which nothing uses, stand at the edge."""
    at = jnp.asarray(place.result)[:, None] + jnp.arange(place.length, dtype=jnp.int32)[None]
    return jnp.clip(at, 0, outputs - 1)


def _within(numbers, place: Place, extent: int):
    """For each tile, `numbers[o]` at its own results `o`, counted from its first input: `[K, length]`."""
    found = jnp.asarray(numbers, jnp.int32)[positions(place, len(numbers))]
    return jnp.clip(found - jnp.asarray(place.source)[:, None], 0, extent - 1)


def _take(tiles, local, axis: int):
    """`tiles[k, .., local[k], ..]` on the picture axis `axis`."""
    return jax.vmap(lambda tile, at: jnp.take(tile, at, axis, mode="clip"))(tiles, local)


# ---------------------------------------------------------------------------------------------------- matrices


def banded_dot(
    program: Program, eqn: _jaxpr.Eqn, value: Value, matrix: Value, contracted: int, along: int, is_left: bool
):
    """Law: ``out[.., o, ..] = sum_i matrix[i, o] value[.., i, ..]`` for a constant matrix on one picture axis.

    Args:
        contracted, along: the axes of `value` and of `matrix` that meet.
        is_left: whether `value` is the left operand; the result has its axes first.
    """
    axes, aval = value.map_axes, eqn.outvars[0].aval
    constant = program.constant(matrix) if len(matrix.shape) == 2 else None
    if constant is None:
        raise Refused("it contracts the picture with what is no constant matrix")
    band = np.moveaxis(constant, along, 1)  # [outputs, inputs]
    outputs, inputs = band.shape
    used = band != 0
    middle = np.arange(outputs) * inputs // outputs  # for what reads nothing
    first = np.where(used.any(1), used.argmax(1), middle)
    last = np.where(used.any(1), inputs - 1 - used[:, ::-1].argmax(1), middle)
    window = local_window(first, last, inputs)
    taps = int((last - first).max()) + 1
    if taps > MOST_TAPS:
        raise Refused(f"each of its results adds {taps} positions")
    at = np.minimum(first[:, None] + np.arange(taps), inputs - 1)
    weights = np.where(first[:, None] + np.arange(taps) <= last[:, None], np.take_along_axis(band, at, 1), 0)
    rank = len(value.shape)
    narrow = jnp.issubdtype(aval.dtype, jnp.floating) and jnp.finfo(aval.dtype).bits < 32
    wide = jnp.float32 if narrow else aval.dtype

    def new(axis: int) -> int:
        if axis == contracted:
            return rank - 1 if is_left else 0
        return axis - (axis > contracted) + (not is_left)

    def apply(places, tiles):
        """Tap by tap, in the same order on a tile and on the picture: so both round alike."""
        place, total = _taken(contracted, axes, places), None
        shape = [1] * tiles.ndim
        shape[0], shape[contracted + 1] = -1, place.length
        for tap in range(taps):
            part = _take(tiles, _within(at[:, tap], place, tiles.shape[contracted + 1]), contracted)
            weight = jnp.asarray(weights[:, tap], wide)[positions(place, outputs)].reshape(shape)
            term = part.astype(wide) * weight
            total = term if total is None else total + term
        assert total is not None
        return (jnp.moveaxis(total.astype(aval.dtype), contracted + 1, new(contracted) + 1),)

    return program.tiles(
        f"matrix {inputs} to {outputs}", [value], [(aval.shape, aval.dtype, axes.moved(new))], apply,
        **_windows(contracted, axes, window), fill=0, placed=True, flops=2.0 * math.prod(aval.shape) * inputs,
        form=Form("band", (int(contracted != axes.row), first, weights)),
    )


# ---------------------------------------------------------------------------------------------------- indices


def take(program: Program, value: Value, numbers: np.ndarray, axis: int, form: Form | None = None) -> Value:
    """``out[.., o, ..] = value[.., numbers[o], ..]`` on one picture axis; all numbers are inside."""
    axes = value.map_axes
    shape = list(value.shape)
    shape[axis] = len(numbers)
    try:
        window = local_window(numbers, numbers, value.shape[axis])
    except Refused:
        return strip(program, f"take {value.shape[axis]} to {len(numbers)}", [value], axis,
                     [(shape, value.dtype, axes)],
                     lambda pads, tiles: (jnp.take(tiles, jnp.asarray(numbers), axis + 1),))[0]

    def apply(places, tiles):
        local = _within(numbers, _taken(axis, axes, places), tiles.shape[axis + 1])
        return (_take(tiles, local, axis),)

    return program.tiles(
        f"take {value.shape[axis]} to {len(numbers)}", [value], [(shape, value.dtype, axes)], apply,
        **_windows(axis, axes, window), placed=True,
        form=form or Form("band", (int(axis != axes.row), numbers, np.ones((len(numbers), 1)))),
    )[0]


def _repeated(value: Value, axis: int) -> Value | None:
    """What a map is a broadcast of, if that put the axis after `axis` there and no more."""
    if not isinstance(value.op, TileOp) or value.op.broadcast is None:
        return None
    (core,), others = value.op.inputs, tuple(a for a in range(len(value.shape)) if a != axis + 1)
    same = value.op.broadcast == others and core.shape == tuple(value.shape[a] for a in others)
    return core if same and core.kind is Kind.MAP else None


def reverse(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Along the picture it is a take."""
    (value,) = ins
    axes, dimensions = value.map_axes, eqn.params["dimensions"]
    if axes.stream in dimensions:
        raise Refused("it turns the streams round")
    turned = [a for a in dimensions if a in (axes.row, axes.col)]
    for axis in turned:
        value = take(program, value, np.arange(value.shape[axis])[::-1], axis)
    rest = tuple(a + 1 for a in dimensions if a not in turned)
    if not rest:
        return (value,)
    return program.tiles("rev", [value], [(value.shape, value.dtype, axes)], lambda pads, x: (lax.rev(x, rest),),
                         form=Form("rev", (tuple(a - 1 for a in rest),)))


# ---------------------------------------------------------------------------------------------------- reshapes


def split_axis(program: Program, value: Value, axis: int, blocks: int) -> Value:
    """`[.., n, ..]` to `[.., blocks, n / blocks, ..]`; the blocks are the picture: space to depth, windows, patches."""
    axes, size = value.map_axes, value.shape[axis] // blocks
    shape = (*value.shape[:axis], blocks, size, *value.shape[axis + 1:])

    def apply(pads, tiles):
        n = tiles.shape[axis + 1]
        return (tiles.reshape(*tiles.shape[: axis + 1], n // size, size, *tiles.shape[axis + 2:]),)

    return program.tiles(
        f"split by {size}", [value], [(shape, value.dtype, axes.moved(lambda a: a + (a > axis)))], apply,
        **_windows(axis, axes, Window(size, size)),
    )[0]


def merge_axis(program: Program, value: Value, axis: int) -> Value:
    """`[.., n, k, ..]` to `[.., n * k, ..]` where `axis` is the picture's and the next is a channel: depth to space."""
    axes, times = value.map_axes, value.shape[axis + 1]
    outputs = value.shape[axis] * times
    shape = (*value.shape[:axis], outputs, *value.shape[axis + 2:])
    number = np.arange(outputs) // times
    core = _repeated(value, axis)
    if core is not None:  # every position several times: `jnp.repeat`, the nearest one of a smaller picture
        return take(program, core, number, axis, Form("repeat", (int(axis != axes.row), times)))
    window = local_window(number, number, value.shape[axis])

    def apply(places, tiles):
        place, extent = _taken(axis, axes, places), tiles.shape[axis + 1]
        flat = tiles.reshape(*tiles.shape[: axis + 1], extent * times, *tiles.shape[axis + 3:])
        start = jnp.asarray(place.result) - jnp.asarray(place.source) * times
        at = start[:, None] + jnp.arange(place.length, dtype=jnp.int32)[None]
        return (_take(flat, at, axis),)

    return program.tiles(
        f"merge {times}", [value], [(shape, value.dtype, axes.moved(lambda a: a - (a > axis)))], apply,
        **_windows(axis, axes, window), placed=True,
    )[0]


RULES = {"rev": reverse}
