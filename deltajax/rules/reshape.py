"""Axes that are added, dropped, exchanged, split and merged; where the picture's are, as blocks or as tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
from jax import lax

from .. import _jaxpr
from .._geometry import BROADCAST, Window
from .._program import Flattened, Form, Hidden, Program, Refused, Value
from .._tiles import Axes
from .resample import merge_axis, split_axis, transposed


def broadcast_in_dim(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, aval = value.map_axes, eqn.outvars[0].aval
    dims = tuple(eqn.params["broadcast_dimensions"])
    out_axes = Axes(None if axes.stream is None else dims[axes.stream], dims[axes.row], dims[axes.col])
    if axes.stream is not None and aval.shape[out_axes.stream] != value.shape[axes.stream]:
        raise Refused("it widens the streams")
    rows, cols = (Window() if n == m else BROADCAST
                  for n, m in zip(value.picture, out_axes.picture(aval.shape), strict=True))

    def apply(places, tiles):
        shape = [tiles.shape[0], *aval.shape]
        shape[out_axes.row + 1], shape[out_axes.col + 1] = places[0].length, places[1].length
        if out_axes.stream is not None:
            shape[out_axes.stream + 1] = 1
        return (lax.broadcast_in_dim(tiles, shape, (0, *(d + 1 for d in dims))),)

    return program.tiles("broadcast_in_dim", [value], [(aval.shape, aval.dtype, out_axes)], apply,
                         rows=rows, cols=cols, placed=True, broadcast=dims, form=Form("same"))


def _survivors(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, int]:
    """Which axes a reshape leaves as they are: ``{old axis: new axis}``, for axes longer than 1."""
    before = {math.prod(new[:axis]): axis for axis in reversed(range(len(new))) if new[axis] > 1}
    kept = {}
    for axis, n in enumerate(old):
        match = before.get(math.prod(old[:axis]))
        if n > 1 and match is not None and new[match] == n:
            kept[axis] = match
    return kept


def reshape(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Splitting and merging axes, also of the picture; where both become one, `dot_general` can read the map itself."""
    (source,) = ins
    new, order = eqn.outvars[0].aval.shape, eqn.params.get("dimensions")
    value = source if order is None else transposed(program, source, order)
    for attempt in (_reshape_channels, _reshape_picture, _reshape_hiding, _unflattened):
        try:
            return (attempt(program, value, new),)
        except Refused:
            continue
    return _flatten(program, source, tuple(order or range(len(source.shape))), new)


def _reshape_hiding(program: Program, value: Value, new: tuple[int, ...]) -> Hidden:
    """A reshape that drops a picture axis of length 1."""
    axes = value.map_axes
    ones = [a for a in (axes.row, axes.col) if value.shape[a] == 1]
    if len(ones) != 1:
        raise Refused("it merges or splits the picture")
    made = _reshape_channels(program, _first(program, value, ones[0]), (1, *new))
    if 0 not in (made.map_axes.row, made.map_axes.col):
        raise Refused("it merges or splits the picture")
    return Hidden(made)


def _unflattened(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    """Tokens laid out as a picture again: copied, and compared with what was held there."""
    axes = value.map_axes
    long = [a for a in (axes.row, axes.col) if value.shape[a] > 1]
    if len(long) != 1 or axes.stream not in (None, 0):
        raise Refused("it merges or splits the picture")
    start, n = math.prod(value.shape[: long[0]]), value.shape[long[0]]
    for row in range(len(new) - 1):
        if new[row] > 1 and math.prod(new[:row]) == start and new[row] * new[row + 1] == n:
            if axes.stream == 0 and (row == 0 or new[0] != value.shape[0]):
                break
            (whole,) = program.whole("reshape", [value], [(new, value.dtype)], lambda x: (x.reshape(new),))
            return program.lift(whole, Axes(axes.stream, row, row + 1))
    raise Refused("it merges or splits the picture")


def _first(program: Program, value: Value, axis: int) -> Value:
    """The map with `axis` before all others."""
    return transposed(program, value, [axis, *(a for a in range(len(value.shape)) if a != axis)])


def _reshape_channels(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    """A reshape that leaves both picture axes and the streams as they are."""
    axes, old = value.map_axes, value.shape
    if old == new:
        return value
    kept = _survivors(old, new)

    def place(axis: int, taken: set[int]) -> int:
        if axis in kept:
            return kept[axis]
        if old[axis] != 1:
            raise Refused("it merges or splits the picture")
        # An axis of length 1 may stay anywhere among the axes of length 1 at its place.
        before = math.prod(old[:axis])
        for out, n in enumerate(new):
            if n == 1 and math.prod(new[:out]) == before and out not in taken:
                taken.add(out)
                return out
        raise Refused("it drops a picture axis of length 1")

    taken: set[int] = set()
    # In their order: of both lengths 1 a tile may still have more, of what lies outside.
    places = {a: place(a, taken) for a in sorted((axes.row, axes.col))}
    row, col = places[axes.row], places[axes.col]
    stream = None
    if axes.stream is not None:
        try:
            stream = place(axes.stream, taken)
        except Refused:
            if old[axes.stream] != 1:
                raise
    out_axes = Axes(stream, row, col)

    def one(tile):
        shape = list(new)
        shape[row], shape[col] = axes.picture(tile.shape)
        if stream is not None:
            shape[stream] = 1
        return tile.reshape(shape)

    return program.tiles("reshape", [value], [(new, value.dtype, out_axes)],
                         lambda pads, tiles: (jax.vmap(one)(tiles),), form=Form("same"))[0]


def _reshape_picture(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    """A reshape that cuts a picture axis into blocks, or lengthens it by the channels that follow it."""
    axes = value.map_axes
    cuts = sorted({math.prod(shape[:i]) for shape in (value.shape, new) for i in range(len(shape) + 1)})
    if any(b % a for a, b in itertools.pairwise(cuts)) or axes.stream not in (None, 0) or 1 in value.picture:
        return _merge_one(program, value, new)
    ends = []  # of the picture axes after their cuts, as products of all lengths before them
    for which in ("row", "col"):
        axis = getattr(value.axes, which)
        start = math.prod(value.shape[:axis])
        blocks = next(cut for cut in cuts if cut > start) // start
        if blocks < value.shape[axis]:
            value = split_axis(program, value, axis, blocks)
        ends.append((start, start * blocks))
    middle: list[int] = []
    merged: list[int] = []  # axes of `middle` to be lengthened by the next
    for out, n in enumerate(new):
        start = math.prod(new[:out])
        blocks = next((end // begin for begin, end in ends if begin == start and n > 1), n)
        if blocks < n:
            merged.append(len(middle))
            middle += [blocks, n // blocks]
        else:
            middle.append(n)
    value = _reshape_channels(program, value, tuple(middle))
    for axis in reversed(merged):
        picture = (value.map_axes.row, value.map_axes.col)
        if axis not in picture or axis + 1 in picture:
            raise Refused("it merges the picture with what lies before it")
        value = merge_axis(program, value, axis)
    return value


def _merge_one(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    axes, old = value.map_axes, value.shape
    for axis in (axes.row, axes.col):
        if axis + 1 < len(old) and axis + 1 not in (axes.stream, axes.row, axes.col) and (
            (*old[:axis], old[axis] * old[axis + 1], *old[axis + 2:]) == new
        ):
            return merge_axis(program, value, axis)
    raise Refused("it merges or splits the picture")


def _flatten(program: Program, value: Value, order: Sequence[int], new: tuple[int, ...]):
    """A reshape, of axes in that order, that merges the picture: whole, but a dense layer after it reads the map."""
    axes, old = value.map_axes, tuple(value.shape[axis] for axis in order)
    first, last, out = _merged(old, new, [order.index(a) for a in (axes.row, axes.col)],
                               None if axes.stream is None else order.index(axes.stream))
    merged = tuple(order[first: last + 1])
    if [*order[:first], *sorted(merged), *order[last + 1:]] != list(range(len(old))):  # others are turned as well
        value, order, merged = transposed(program, value, order), range(len(old)), tuple(range(first, last + 1))
    turn = None if list(order) == sorted(order) else tuple(order)
    return program.whole("reshape", [value], [(new, value.dtype)], lambda x: (lax.reshape(x, new, turn),),
                         flattened=Flattened(first, last, out, merged), refusal="it merges the picture")


def _merged(
    old: tuple[int, ...], new: tuple[int, ...], picture: Sequence[int], stream: int | None
) -> tuple[int, int, int]:
    """The narrowest range of axes around the picture that became one, and which: lengths of 1 beside it stay out."""
    ranges = itertools.product(range(min(picture) + 1), range(max(picture), len(old)))
    for first, last in sorted(ranges, key=lambda r: r[1] - r[0]):
        if stream is not None and first <= stream <= last:
            continue
        for out, n in enumerate(new):
            ends = (old[:first], old[last + 1:]), (new[:out], new[out + 1:])
            outer, after = ([tuple(k for k in part if k > 1) for part in end] for end in ends)
            if n == math.prod(old[first: last + 1]) and outer == after:
                return first, last, out
    raise Refused("it merges or splits the picture")


def squeeze(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    return (dropped(program, ins[0], tuple(eqn.params["dimensions"])),)


def dropped(program: Program, value: Value, gone: tuple[int, ...]) -> Value | Hidden:
    """A map without some axes of length 1; one of the picture's is hidden, and without both the value is whole."""
    axes = value.map_axes
    picture = [a for a in (axes.row, axes.col) if a in gone]
    if not picture:
        return squeezed(program, value, gone)
    if len(picture) == 2:
        shape = tuple(n for a, n in enumerate(value.shape) if a not in gone)
        return program.whole("squeeze", [value], [(shape, value.dtype)], lambda x: (lax.squeeze(x, gone),))[0]
    (axis,) = picture
    value, rest = _first(program, value, axis), tuple(g + (g < axis) for g in gone if g != axis)
    return Hidden(squeezed(program, value, rest) if rest else value)


def squeezed(program: Program, value: Value, gone: tuple[int, ...]) -> Value:
    axes = value.map_axes

    def new(axis):
        return axis - sum(g < axis for g in gone)

    stream = None if axes.stream is None or axes.stream in gone else new(axes.stream)
    shape = tuple(n for a, n in enumerate(value.shape) if a not in gone)
    return program.tiles("squeeze", [value], [(shape, value.dtype, Axes(stream, new(axes.row), new(axes.col)))],
                         lambda pads, tiles: (lax.squeeze(tiles, [g + 1 for g in gone]),), form=Form("same"))[0]


def transpose(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    return (transposed(program, ins[0], eqn.params["permutation"]),)


RULES = {"broadcast_in_dim": broadcast_in_dim, "reshape": reshape, "squeeze": squeeze, "transpose": transpose}
