"""Shape moves; those along the picture are windows of one tap, or cut it into blocks (`resample`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._geometry import BROADCAST, Window
from .._program import Hidden, Kind, Program, Refused, Value
from .._tiles import Axes
from .elementwise import expand
from .resample import merge_axis, split_axis, transposed


def broadcast_in_dim(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, aval = value.axes, eqn.outvars[0].aval
    dims = tuple(map(int, eqn.params["broadcast_dimensions"]))
    assert axes is not None
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
                         rows=rows, cols=cols, placed=True, broadcast=dims)


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
    (value,) = ins
    new = eqn.outvars[0].aval.shape
    if eqn.params.get("dimensions") is not None:
        value = transposed(program, value, eqn.params["dimensions"])
    for attempt in (_reshape_channels, _reshape_picture, _reshape_hiding, _unflattened):
        try:
            return (attempt(program, value, new),)
        except Refused:
            continue
    return _flatten(program, eqn, value)


def _reshape_hiding(program: Program, value: Value, new: tuple[int, ...]) -> Hidden:
    """A reshape that drops a picture axis of length 1."""
    axes = value.axes
    assert axes is not None
    ones = [a for a in (axes.row, axes.col) if value.shape[a] == 1]
    if len(ones) != 1:
        raise Refused("it merges or splits the picture")
    made = _reshape_channels(program, _first(program, value, ones[0]), (1, *new))
    assert made.axes is not None
    if 0 not in (made.axes.row, made.axes.col):
        raise Refused("it merges or splits the picture")
    return Hidden(made)


def _unflattened(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    """Tokens laid out as a picture again: copied, and compared with what was held there."""
    axes = value.axes
    assert axes is not None
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
    axes, old = value.axes, value.shape
    assert axes is not None
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
    row, col = (place(a, taken) for a in (axes.row, axes.col))
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
                         lambda pads, tiles: (jax.vmap(one)(tiles),))[0]


def _reshape_picture(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    """A reshape that cuts a picture axis into blocks, or lengthens it by the channels that follow it."""
    axes = value.axes
    assert axes is not None
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
        assert value.axes is not None
        if axis not in (value.axes.row, value.axes.col) or axis + 1 in (value.axes.row, value.axes.col):
            raise Refused("it merges the picture with what lies before it")
        value = merge_axis(program, value, axis)
    return value


def _merge_one(program: Program, value: Value, new: tuple[int, ...]) -> Value:
    axes, old = value.axes, value.shape
    assert axes is not None
    for axis in (axes.row, axes.col):
        if axis + 1 < len(old) and axis + 1 not in (axes.stream, axes.row, axes.col) and (
            (*old[:axis], old[axis] * old[axis + 1], *old[axis + 2:]) == new
        ):
            return merge_axis(program, value, axis)
    raise Refused("it merges or splits the picture")


def _flatten(program: Program, eqn: _jaxpr.Eqn, value: Value):
    """A reshape that merges the picture: whole, but a dense layer after it reads the map itself."""
    axes, aval = value.axes, eqn.outvars[0].aval
    assert axes is not None
    old, new = value.shape, aval.shape
    low, high = min(axes.row, axes.col), max(axes.row, axes.col)
    # The narrowest range of axes around the picture that became one: axes of length 1 beside it stay out.
    for first, last in sorted(itertools.product(range(low + 1), range(high, len(old))), key=lambda r: r[1] - r[0]):
        if axes.stream is not None and first <= axes.stream <= last:
            continue
        for out, n in enumerate(new):
            ends = (old[:first], old[last + 1:]), (new[:out], new[out + 1:])
            outer, after = ([tuple(k for k in part if k > 1) for part in end] for end in ends)
            if n == math.prod(old[first: last + 1]) and outer == after:
                return program.whole("reshape", [value], [(new, aval.dtype)], lambda x: (x.reshape(new),),
                                     flattened=(first, last, out), refusal="it merges the picture")
    raise Refused("it merges or splits the picture")


def squeeze(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    return (dropped(program, ins[0], tuple(map(int, eqn.params["dimensions"]))),)


def dropped(program: Program, value: Value, gone: tuple[int, ...]) -> Value | Hidden:
    """A map without some axes of length 1; one of the picture's is hidden, and without both the value is whole."""
    axes = value.axes
    assert axes is not None
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
    axes = value.axes
    assert axes is not None

    def new(axis):
        return axis - sum(g < axis for g in gone)

    stream = None if axes.stream is None or axes.stream in gone else new(axes.stream)
    shape = tuple(n for a, n in enumerate(value.shape) if a not in gone)
    return program.tiles("squeeze", [value], [(shape, value.dtype, Axes(stream, new(axes.row), new(axes.col)))],
                         lambda pads, tiles: (lax.squeeze(tiles, [g + 1 for g in gone]),))[0]


def transpose(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    return (transposed(program, ins[0], eqn.params["permutation"]),)


def slice_(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    p = eqn.params
    return sliced(program, ins[0], *(tuple(map(int, p[name])) for name in ("start_indices", "limit_indices")),
                   tuple(map(int, p["strides"] or (1,) * len(ins[0].shape))))


def sliced(program: Program, value: Value, starts: tuple[int, ...], limits: tuple[int, ...], strides: tuple[int, ...]):
    """Along the picture a slice is a window of one tap with negative padding."""
    axes = value.axes
    assert axes is not None
    shape = tuple(-(-(b - a) // s) for a, b, s in zip(starts, limits, strides, strict=True))
    if axes.stream is not None and shape[axes.stream] != value.shape[axes.stream]:
        raise Refused("it picks streams")
    rows, cols = (Window(1, strides[a], -starts[a], limits[a] - value.shape[a]) for a in (axes.row, axes.col))

    def apply(pads, tiles):
        begin, end, step = ([fill, *given] for fill, given in ((0, starts), (tiles.shape[0], limits), (1, strides)))
        for axis in (axes.stream, axes.row, axes.col):
            if axis is not None:
                begin[axis + 1], end[axis + 1] = 0, tiles.shape[axis + 1]
        return (lax.slice(tiles, begin, end, step),)

    return program.tiles("slice", [value], [(shape, value.dtype, axes)], apply, rows=rows, cols=cols)


def _starts(program: Program, indices: list[Value], shape, sizes) -> tuple[int, ...]:
    """Constant starts, kept inside as `dynamic_slice` does."""
    found = [program.constant(index) for index in indices]
    if any(index is None for index in found):
        raise Refused("its position is not a constant")
    return tuple(min(max(int(i), 0), n - m) for i, n, m in zip(found, shape, sizes, strict=True))  # type: ignore[arg-type]


def dynamic_slice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    value, *indices = ins
    if value.kind is not Kind.MAP:
        raise Refused("its position depends on the frame")
    sizes = tuple(map(int, eqn.params["slice_sizes"]))
    starts = _starts(program, indices, value.shape, sizes)
    return sliced(program, value, starts, tuple(a + n for a, n in zip(starts, sizes, strict=True)), (1,) * len(starts))


def dynamic_update_slice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """The update padded to the whole, where it lies; the operand elsewhere."""
    value, update, *indices = ins
    if value.kind is not Kind.MAP and update.kind is not Kind.MAP:
        raise Refused("its position depends on the frame")
    return _replaced(program, value, update, _starts(program, indices, value.shape, update.shape))


def _replaced(program: Program, value: Value, update: Value, starts: Sequence[int]):
    axes = (value if value.kind is Kind.MAP else update).axes
    assert axes is not None
    config = [(a, n - a - m, 0) for a, n, m in zip(starts, value.shape, update.shape, strict=True)]
    if axes.stream is not None and config[axes.stream] != (0, 0, 0):
        raise Refused("it replaces some of the streams")
    if update.kind is Kind.MAP:
        wide = _padded(program, program.turned(update, axes), config, 0)
    else:
        (wide,) = program.whole("pad", [update], [(value.shape, update.dtype)],
                                lambda x: (lax.pad(x, jnp.zeros((), x.dtype), config),))
    if value.kind is Kind.MAP:
        value = program.turned(value, axes)
    like = wide if update.kind is Kind.MAP else value
    return (select(program, _inside(value.shape, config), wide, value, like),)


def scatter(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """One update at a constant place, as `x.at[2:5, 3].set(y)` makes it."""
    value, indices, update = ins
    p = eqn.params
    numbers, mode = p["dimension_numbers"], p["mode"]
    at = program.constant(indices)
    if at is None or at.ndim != 1 or numbers.operand_batching_dims:
        raise Refused("it replaces several parts, or its position is not a constant")
    inserted = tuple(map(int, numbers.inserted_window_dims))
    order = list(numbers.update_window_dims)
    if order != sorted(order) or update.kind is Kind.MAP:
        raise Refused("what it puts there depends on the frame")
    sizes = list(update.shape)
    for axis in inserted:
        sizes.insert(axis, 1)
    starts = [0] * len(value.shape)
    for axis, start in zip(numbers.scatter_dims_to_operand_dims, at, strict=True):
        starts[axis] = int(start)
    inside = [min(max(s, 0), n - m) for s, n, m in zip(starts, value.shape, sizes, strict=True)]
    if inside != starts and mode != lax.GatherScatterMode.CLIP:
        return (value,)  # it is left out
    (wide,) = program.whole("expand", [update], [(sizes, update.dtype)], lambda x: (lax.expand_dims(x, inserted),))
    return _replaced(program, value, wide, inside)


def _inside(shape: tuple[int, ...], config) -> np.ndarray:
    """Where a padded array has values of its own; of length 1 on the axes that are not padded."""
    found = np.ones([1] * len(shape), bool)
    for axis, (n, (low, high, inner)) in enumerate(zip(shape, config, strict=True)):
        at = np.arange(n) - low
        own = (at >= 0) & (at < n - low - high) & (at % (inner + 1) == 0)
        if not own.all():
            found = found & own.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return found


def select(program: Program, own: np.ndarray, value: Value, other: Value, like: Value) -> Value:
    """`value` where it is its `own`, `other` elsewhere."""
    which, *cases = (program.operand(v, like) for v in (program.given(own), value, other))
    kinds, tiled = [v.kind for v in (which, *cases)], [v.is_tiled for v in (which, *cases)]
    return program.tiles("select", [which, *cases], [(like.shape, like.dtype, like.axes)],
                         lambda pads, *xs: (jnp.where(*expand(xs, kinds, tiled)),))[0]


def pad(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Along the picture a pad is a window of one tap that finds the padding value outside."""
    value, filler = ins
    if value.kind is not Kind.MAP:
        raise Refused("its padding value depends on the frame")
    axes = value.axes
    config = [tuple(map(int, sides)) for sides in eqn.params["padding_config"]]
    assert axes is not None
    if axes.stream is not None and config[axes.stream] != (0, 0, 0):
        raise Refused("it pads the streams")
    constant = program.constant(filler)
    if constant is not None:
        return (_padded(program, value, config, constant.item()),)
    made = _padded(program, value, config, 0)
    return (select(program, _inside(made.shape, config), made, filler, like=made),)


def _padded(program: Program, value: Value, config: list[tuple[int, int, int]], fill: float | int) -> Value:
    axes = value.axes
    assert axes is not None
    shape = tuple(low + high + n + max(0, n - 1) * inner
                  for n, (low, high, inner) in zip(value.shape, config, strict=True))
    rows, cols = (Window(1, 1, config[a][0], config[a][1], 1, config[a][2] + 1) for a in (axes.row, axes.col))

    def apply(pads, tiles):
        local = [(0, 0, 0), *config]
        for axis, (low, high) in zip((axes.row, axes.col), pads, strict=True):
            local[axis + 1] = (low, high, config[axis][2])
        return (lax.pad(tiles, jnp.asarray(fill, tiles.dtype), local),)

    return program.tiles("pad", [value], [(shape, value.dtype, axes)], apply, rows=rows, cols=cols, fill=fill)[0]


def concatenate(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Along channels; along the picture, every part is padded to the whole and picked by position."""
    return _concatenate(program, ins, int(eqn.params["dimension"]), eqn.outvars[0].aval)


def _concatenate(program: Program, ins: list[Value], along: int, aval):
    like = next(v for v in ins if v.kind is Kind.MAP)
    axes = like.axes
    assert axes is not None
    if along == axes.stream:
        raise Refused("it joins streams")
    if along in (axes.row, axes.col):
        return _join(program, ins, along, axes, aval)
    shape = list(like.shape)
    operands = []
    for value in ins:
        shape[along] = value.shape[along]
        if value.kind is not Kind.MAP and len(value.shape) == len(shape):
            value = _spread(program, value, axes, tuple(shape))
        operands.append(program.operand(value, like))

    def apply(pads, *tiles):
        picture = tiles[next(i for i, v in enumerate(operands) if v.kind is Kind.MAP)].shape
        parts = []
        for tile, value in zip(tiles, operands, strict=True):
            if value.kind is Kind.FIXED and not value.is_tiled:
                tile = tile[None]
            target = list(picture)
            target[along + 1] = tile.shape[along + 1]
            parts.append(jnp.broadcast_to(tile, target))
        return (jnp.concatenate(parts, along + 1),)

    return program.tiles("concatenate", operands, [(aval.shape, aval.dtype, axes)], apply)


def stack(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Every part with a new channel axis, then joined along it."""
    along, parts = eqn.params["axis"], []
    for value in ins:
        shape = (*value.shape[:along], 1, *value.shape[along:])
        if value.kind is Kind.MAP:
            axes = value.axes
            assert axes is not None
            parts += program.tiles("expand", [value], [(shape, value.dtype, axes.moved(lambda a: a + (a >= along)))],
                                   lambda pads, tiles: (jnp.expand_dims(tiles, along + 1),))
        else:
            parts += program.whole("expand", [value], [(shape, value.dtype)], lambda x: (jnp.expand_dims(x, along),))
    return _concatenate(program, parts, along, eqn.outvars[0].aval)


def unstack(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, along = value.axes, eqn.params["axis"]
    assert axes is not None
    if along in (axes.stream, axes.row, axes.col):
        raise Refused("it parts the picture or the streams")
    left = axes.moved(lambda a: a - (a > along))
    outs = [(var.aval.shape, var.aval.dtype, left) for var in eqn.outvars]
    return program.tiles("unstack", [value], outs, lambda pads, tiles: _jaxpr.bind(eqn, tiles, axis=along + 1))


def _spread(program: Program, value: Value, axes: Axes, shape: tuple[int, ...]) -> Value:
    """Undo nothing where the value fits already; a concatenation broadcasts nothing by itself."""
    if value.shape != shape:
        raise Refused(f"its operands' pictures differ: {value.shape} and {shape}")
    return value


def _fixed_part(program: Program, value: Value, low: int, high: int, along: int, axes: Axes) -> Value:
    """Something fixed in its place in a joined picture, such as a class token."""
    edges = [(low, high) if a == along else (0, 0) for a in range(len(value.shape))]
    shape = [n + sum(edge) for n, edge in zip(value.shape, edges, strict=True)]
    (wide,) = program.whole("pad", [value], [(shape, value.dtype)], lambda x: (jnp.pad(x, edges),))
    return program.fixed_map(wide, axes)


def _join(program: Program, ins: list[Value], along: int, axes: Axes, aval):
    start, parts = 0, []
    for value in ins:
        low, high = start, aval.shape[along] - start - value.shape[along]
        start += value.shape[along]
        if value.kind is Kind.FIXED:
            parts.append(_fixed_part(program, value, low, high, along, axes))
            continue
        if value.kind is not Kind.MAP:
            value = program.lift(value, axes)
        value = program.turned(value, axes)
        config = [(0, 0, 0)] * (len(aval.shape) + 1)
        rows = Window(1, 1, low, high) if along == axes.row else Window()
        cols = Window(1, 1, low, high) if along == axes.col else Window()

        def widen(pads, tiles, config=config):
            local = list(config)
            local[axes.row + 1], local[axes.col + 1] = (*pads[0], 0), (*pads[1], 0)
            return (lax.pad(tiles, jnp.zeros((), tiles.dtype), local),)

        parts.append(program.tiles("pad", [value], [(aval.shape, aval.dtype, axes)], widen,
                                   rows=rows, cols=cols, fill=0)[0])
    number = np.zeros([aval.shape[a] if a == along else 1 for a in range(len(aval.shape))], np.int32)
    edges = np.cumsum([v.shape[along] for v in ins])
    index = np.searchsorted(edges, np.arange(aval.shape[along]), side="right").astype(np.int32)
    which = program.operand(program.given(index.reshape(number.shape)), next(p for p in parts if p.kind is Kind.MAP))

    def pick(pads, which, *tiles):
        out = tiles[0]
        for i, tile in enumerate(tiles[1:], 1):
            out = jnp.where(which == i, tile, out)
        return (out,)

    return program.tiles("concatenate", [which, *parts], [(aval.shape, aval.dtype, axes)], pick)


def split(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, along, at = value.axes, eqn.params["axis"], 0
    assert axes is not None
    if along == axes.stream:
        raise Refused("it parts the streams")
    made = []
    for size in map(int, eqn.params["sizes"]):
        starts = [0] * len(value.shape)
        limits = list(value.shape)
        starts[along], limits[along] = at, at + size
        at += size
        made += sliced(program, value, tuple(starts), tuple(limits), (1,) * len(starts))
    return tuple(made)


RULES = {
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "squeeze": squeeze,
    "transpose": transpose,
    "slice": slice_,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter,
    "pad": pad,
    "concatenate": concatenate,
    "stack": stack,
    "unstack": unstack,
    "split": split,
}
