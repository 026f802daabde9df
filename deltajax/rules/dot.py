"""`dot_general`: over channels on the tile; over the picture by partial products or along whole rows; of two maps.

A map of tokens has one picture axis; the other is of length 1, among its own axes or hidden. The product of two such
maps (attention's scores) has a picture of rows and columns: changed rows and changed columns of it are recomputed. The
product with such a picture (attention's mean of values) reads whole rows of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .._geometry import BROADCAST, Window, whole_axis
from .._program import Form, Hidden, Kind, Program, Refused, Value
from .._tiles import Axes
from .reduce import partial_dot
from .resample import banded_dot, strip, transposed

FEWEST_TOKENS = 16  # of an array without a picture that a dense layer is done on token by token


def flops(eqn: _jaxpr.Eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)


@dataclasses.dataclass(frozen=True)
class _Side:
    """One operand's axes, and where they are in the result."""

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    free: tuple[int, ...]
    first: int  # of its free axes in the result

    def out(self, axis: int) -> int:
        return self.batch.index(axis) if axis in self.batch else self.first + self.free.index(axis)


def _sides(eqn: _jaxpr.Eqn, ranks: Sequence[int]) -> tuple[_Side, _Side]:
    contracted, batch = eqn.params["dimension_numbers"]
    free = [tuple(a for a in range(rank) if a not in c and a not in b)
            for rank, c, b in zip(ranks, contracted, batch, strict=True)]
    first = len(batch[0])
    left, right = (
        _Side(tuple(c), tuple(b), f, at)
        for c, b, f, at in zip(contracted, batch, free, (first, first + len(free[0])), strict=True)
    )
    return left, right


def lifted(program: Program, eqn: _jaxpr.Eqn, ins: list[Value | Hidden]) -> list[Value | Hidden]:
    """A whole operand that meets params in many positions begins a map again, of tokens."""
    ins, sides = list(ins), _sides(eqn, [v.aval.ndim for v in eqn.invars])
    for i, value in enumerate(ins):
        other, side = ins[1 - i], sides[i]
        if not isinstance(value, Value) or value.kind is not Kind.WHOLE or not isinstance(other, Value):
            continue
        streams = program.streams
        stream = side.free[0] if streams > 1 and side.free and value.shape[side.free[0]] == streams else None
        tokens = [a for a in side.free if a != stream and value.shape[a] >= FEWEST_TOKENS]
        if other.kind is not Kind.FIXED or not tokens or (streams > 1 and stream is None) or _is_flat(value, side):
            continue
        row = max(tokens, key=value.shape.__getitem__)
        _is_followed(value)
        ones = [a for a in range(len(value.shape)) if a != stream and value.shape[a] == 1]
        if ones:
            ins[i] = program.lift(value, Axes(stream, row, ones[0]))
        else:
            wide = program.whole("expand", [value], [((1, *value.shape), value.dtype)], lambda x: (x[None],))[0]
            ins[i] = Hidden(program.lift(wide, Axes(None if stream is None else stream + 1, row + 1, 0)))
    return ins


def _is_followed(value: Value) -> None:
    """The flattening that a whole value comes from is no end of the tiles, now that they begin again."""
    if value.kind is Kind.WHOLE and value.op is not None:
        if value.op.label == "reshape":
            value.op.refusal = None
        for source in value.op.inputs:
            _is_followed(source)


def _is_flat(value: Value, side: _Side) -> bool:
    return value.op is not None and value.op.flattened is not None and side.contracted == (value.op.flattened.out,)


def dot_general(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    lhs, rhs = ins
    sides = _sides(eqn, [len(v.shape) for v in ins])
    if lhs.kind is Kind.MAP and rhs.kind is Kind.MAP:
        return _of_maps(program, eqn, ins, sides)
    if not sides[0].batch and (flat := _after_flatten(program, eqn, lhs, rhs, sides)) is not None:
        return flat
    which = 0 if lhs.kind is Kind.MAP else 1
    value, other, side = ins[which], ins[1 - which], sides[which]
    if value.kind is not Kind.MAP:
        raise Refused("it reads whole values")
    axes = value.map_axes
    if other.kind is Kind.WHOLE and program.streams > 1:
        raise Refused("both its operands depend on the frame, of several streams")
    if axes.stream in side.contracted:
        raise Refused("it contracts the streams")
    summed = [a for a in (axes.row, axes.col) if a in side.contracted]
    if len(summed) == 2:
        return _over_picture(program, eqn, ins, which, sides)
    if summed:
        return _along_picture(program, eqn, ins, which, sides, summed[0])
    if any(a in side.batch and value.shape[a] > 1 for a in (axes.row, axes.col)):
        if other.kind is not Kind.FIXED or axes.stream is not None:
            raise Refused("its matrices go with part of the picture")
        found = _counterpart(program, other, axes, side, sides[1 - which])
        ins = [value, found] if which == 0 else [found, value]
        return (_together if all(a in side.batch or value.shape[a] == 1 for a in (axes.row, axes.col))
                else _shared)(program, eqn, ins, sides)
    beside = sides[1 - which]
    form = None if side.batch else Form("dense", (which, side.contracted, beside.contracted, beside.free))
    return program.tiles("dot", ins, [_out(eqn, axes.moved(side.out))], _bound(eqn, ins), flops=flops(eqn), heavy=True,
                         form=form)


def _out(eqn: _jaxpr.Eqn, axes: Axes):
    aval = eqn.outvars[0].aval
    return aval.shape, aval.dtype, axes


def _bound(eqn: _jaxpr.Eqn, ins: Sequence[Value]):
    """The product, tile by tile."""
    each = [0 if v.is_tiled or v.kind is Kind.WHOLE else None for v in ins]
    return lambda pads, *xs: tuple(jax.vmap(lambda *ys: _jaxpr.bind(eqn, *ys), each)(*xs))


def _counterpart(program: Program, other: Value, axes: Axes, side: _Side, others: _Side) -> Value:
    """Fixed matrices, one for each position of a map with these axes, or for each of its rows: a fixed map."""
    places = {a: others.batch[side.batch.index(a)] for a in (axes.row, axes.col) if a in side.batch}
    for axis in (axes.row, axes.col):
        if axis not in places:  # any of its axes will do
            left = [a for a in range(len(other.shape)) if a not in places.values()]
            if not left:
                raise Refused("its matrices go with part of the picture")
            places[axis] = min(left, key=lambda a: other.shape[a])
    return program.fixed_map(other, Axes(None, places[axes.row], places[axes.col]))


# ---------------------------------------------------------------------------------------------------- the picture


def _along_picture(program: Program, eqn, ins: list[Value], which: int, sides, along: int):
    """One picture axis contracted, and the other kept."""
    value, other, side = ins[which], ins[1 - which], sides[which]
    axes = value.map_axes
    inner = sides[1 - which].contracted[side.contracted.index(along)]
    if len(side.contracted) == 1 and not side.batch and other.kind is Kind.FIXED and len(other.shape) == 2:
        if program.constant(other) is not None:
            try:
                return banded_dot(program, eqn, value, other, along, inner, which == 0)
            except Refused:
                pass
        # The result's own axis is the picture's again: a resize to a map, not a list of channels.
        new = sides[1 - which].out(sides[1 - which].free[0])
        out = _out(eqn, axes.moved(lambda a: new if a == along else side.out(a)))
        return strip(program, "matrix", ins, along, [out], _bound(eqn, ins), flops=flops(eqn), heavy=True)
    kept = axes.row if along == axes.col else axes.col
    if kept in side.batch and value.shape[kept] > 1:
        if other.kind is not Kind.FIXED or axes.stream is not None:
            raise Refused("its matrices go with part of the picture")
        found = _counterpart(program, other, axes, side, sides[1 - which])
        return _shared(program, eqn, [value, found] if which == 0 else [found, value], sides)
    whole = Window(value.shape[along], value.shape[along])
    return _hiding(program, eqn, ins, sides[which].out(kept),
                   None if axes.stream is None else side.out(axes.stream), along == axes.row,
                   rows=whole if along == axes.row else Window(), cols=whole if along == axes.col else Window())


def _hiding(program: Program, eqn, ins, kept: int, stream: int | None, is_row: bool, **windows):
    """The product with one picture axis left, `kept` in the result; `is_row` is the contracted one."""
    shape, dtype, _ = _out(eqn, Axes(None, 0, 0))
    axes = Axes(None if stream is None else stream + 1, *((0, kept + 1) if is_row else (kept + 1, 0)))
    product = _bound(eqn, ins)
    return (Hidden(program.tiles(
        "dot", ins, [((1, *shape), dtype, axes)], lambda pads, *xs: (product(pads, *xs)[0][:, None],),
        flops=flops(eqn), heavy=True, **windows,
    )[0]),)


def _over_picture(program: Program, eqn, ins: list[Value], which: int, sides):
    """Both picture axes contracted, with fixed matrices: partial products, added up afresh."""
    value, other = ins[which], ins[1 - which]
    side, others = sides[which], sides[1 - which]
    if side.batch or other.kind is not Kind.FIXED:
        raise Refused("it contracts the picture")
    order = (*side.free, *side.contracted)
    source = transposed(program, value, order)
    rest = tuple(other.shape[a] for a in others.free)
    merged = math.prod(other.shape[a] for a in others.contracted)
    (kernel,) = program.whole(
        "kernel", [other], [((merged, *rest), other.dtype)],
        lambda w: (w.transpose(*others.contracted, *others.free).reshape(merged, *rest),),
    )
    found = partial_dot(program, eqn, source, len(side.free), len(order) - 1, kernel)
    if which == 0:
        return found
    n, aval = len(side.free), eqn.outvars[0].aval
    return program.whole("transpose", found, [(aval.shape, aval.dtype)],
                         lambda x: (x.transpose(*range(n, x.ndim), *range(n)),))


def _after_flatten(program, eqn, lhs: Value, rhs: Value, sides):
    """`reshape` to one axis, then contraction of just that axis with a fixed kernel."""
    op, (left, right) = lhs.op, (side.contracted for side in sides)
    if rhs.kind is not Kind.FIXED or lhs.kind is not Kind.WHOLE or op is None or op.flattened is None:
        return None
    flat, (source,) = op.flattened, op.inputs
    if left != (flat.out,) or len(right) != 1:
        return None
    kept = [n for axis, n in enumerate(source.shape) if not flat.first <= axis <= flat.last]
    if kept != [n for axis, n in enumerate(lhs.shape) if axis != flat.out]:
        return None  # axes of length 1 were added or dropped beside the merged one
    terms, rest = rhs.shape[right[0]], [n for axis, n in enumerate(rhs.shape) if axis != right[0]]

    def in_order_of_source(w):
        w = jnp.moveaxis(w, right[0], 0).reshape(*(source.shape[a] for a in flat.order), *rest)
        w = jnp.moveaxis(w, range(len(flat.order)), [a - flat.first for a in flat.order])
        return (w.reshape(terms, *rest),)

    (kernel,) = program.whole("kernel", [rhs], [((terms, *rest), rhs.dtype)], in_order_of_source)
    return partial_dot(program, eqn, source, flat.first, flat.last, kernel)


# ---------------------------------------------------------------------------------------------------- two maps


def _of_maps(program: Program, eqn, ins: list[Value], sides):
    """Both depend on the frame: position by position, every row with every column, or along a picture axis."""
    for value, side in zip(ins, sides, strict=True):
        if value.map_axes.stream is not None and value.map_axes.stream not in side.batch:
            raise Refused("it mixes the streams")
    if len({v.map_axes.stream is None for v in ins}) > 1:
        raise Refused("one of its operands has streams, the other none")
    stream = None if ins[0].map_axes.stream is None else sides[0].out(ins[0].map_axes.stream)
    long = [[a for a in (v.map_axes.row, v.map_axes.col) if v.shape[a] > 1] for v in ins]
    if all(a in side.batch for axes, side in zip(long, sides, strict=True) for a in axes):
        return _together(program, eqn, ins, sides)
    if any(a in side.batch for axes, side in zip(long, sides, strict=True) for a in axes):
        return _shared(program, eqn, ins, sides)
    summed = [[a for a in axes if a in side.contracted] for axes, side in zip(long, sides, strict=True)]
    if not any(summed) and all(len(axes) <= 1 for axes in long):
        return _outer(program, eqn, ins, sides, stream)
    for which in (0, 1):
        picture, tokens = long[which], long[1 - which]
        if len(tokens) <= 1 and len(summed[which]) == 1 and len(picture) == 2 and summed[1 - which] == tokens:
            return _rows_by_tokens(program, eqn, ins, which, sides, summed[which][0], tokens[0], stream)
    raise Refused("it contracts the picture of both its operands")


def _together(program: Program, eqn, ins: list[Value], sides):
    """Law: ``out[p] = lhs[p] . rhs[p]`` for every position p."""
    left, right = ins
    for a, b in ((left.map_axes.row, right.map_axes.row), (left.map_axes.col, right.map_axes.col)):
        if left.shape[a] != right.shape[b] or (left.shape[a] > 1 and sides[0].out(a) != sides[1].out(b)):
            raise Refused("its operands' pictures differ")
    placed = [a for a in (left.map_axes.row, left.map_axes.col) if a in sides[0].contracted]
    if placed:
        raise Refused("it drops a picture axis of length 1")
    return program.tiles("dot", ins, [_out(eqn, left.map_axes.moved(sides[0].out))], _bound(eqn, ins), flops=flops(eqn),
                         heavy=True)


def _shared(program: Program, eqn, ins: list[Value], sides):
    """Law: ``out[r] = lhs[r] . rhs[r]`` for every row r of both, each of all that the other has there.

    Attention along rows. The positions of one operand stay the result's; the other's row is read whole.
    """
    shared, rest = [], []
    for value, side in zip(ins, sides, strict=True):
        axes = value.map_axes
        both = [a for a in (axes.row, axes.col) if a in side.batch and value.shape[a] > 1]
        if len(both) != 1:
            raise Refused("its operands share their pictures in part")
        shared += both
        rest.append(axes.col if both[0] == axes.row else axes.row)
    if sides[0].out(shared[0]) != sides[1].out(shared[1]):
        raise Refused("its operands share their pictures in part")
    is_row = shared[0] == ins[0].map_axes.row
    if (shared[1] == ins[1].map_axes.row) != is_row:
        axes = ins[1].map_axes
        if ins[1].kind is not Kind.MAP:
            raise Refused("its matrices go with part of the picture")
        ins = [ins[0], program.turned(ins[1], Axes(axes.stream, axes.col, axes.row))]
    streams = [v.map_axes.stream for v in ins]
    stream = None if streams[0] is None else sides[0].out(streams[0])
    keeps = [value.kind is Kind.MAP and rest[i] in sides[i].free for i, value in enumerate(ins)]

    def windows(along: Window) -> tuple[Window, Window]:
        return (Window(), along) if is_row else (along, Window())

    if not any(keeps):  # the rows are contracted
        each = tuple(windows(Window(v.shape[a], v.shape[a])) for v, a in zip(ins, rest, strict=True))
        return _hiding(program, eqn, ins, sides[0].out(shared[0]), stream, not is_row, each=each)
    kept = keeps.index(True)
    each = tuple(windows(Window() if i == kept else whole_axis(v.shape[a]))
                 for i, (v, a) in enumerate(zip(ins, rest, strict=True)))
    row, col = sides[kept].out(shared[kept]), sides[kept].out(rest[kept])
    return program.tiles("dot", ins, [_out(eqn, Axes(stream, *((row, col) if is_row else (col, row))))],
                         _bound(eqn, ins), flops=flops(eqn), heavy=True, each=each)


def _outer(program: Program, eqn, ins: list[Value], sides, stream: int | None):
    """Law: ``out[i, j] = lhs[i] . rhs[j]``: attention's scores, of N tokens by M."""
    places = []
    for which, (value, side) in enumerate(zip(ins, sides, strict=True)):
        axes = value.map_axes
        along = axes.row if value.shape[axes.row] > 1 else axes.col
        other = axes.col if along == axes.row else axes.row
        if along not in side.free:
            raise Refused("it drops a picture axis of length 1")
        wanted = Axes(axes.stream, along, other) if which == 0 else Axes(axes.stream, other, along)
        ins[which] = program.turned(value, wanted)
        places.append(side.out(along))
    return program.tiles(
        "outer dot", ins, [_out(eqn, Axes(stream, *places))], _bound(eqn, ins), flops=flops(eqn), heavy=True,
        each=((Window(), BROADCAST), (BROADCAST, Window())),
    )


def _rows_by_tokens(program: Program, eqn, ins: list[Value], which: int, sides, along: int, token: int, stream):
    """Law: ``out[i] = sum_j picture[i, j] tokens[j]``: attention's weighted mean of values."""
    ins = list(ins)
    picture, tokens = ins[which], ins[1 - which]
    is_row = along == picture.map_axes.row
    kept = picture.map_axes.col if is_row else picture.map_axes.row
    if (token == tokens.map_axes.row) != is_row:
        axes = tokens.map_axes
        ins[1 - which] = program.turned(tokens, Axes(axes.stream, axes.col, axes.row))
    whole = Window(picture.shape[along], picture.shape[along])
    windows = {which: (whole, Window()) if is_row else (Window(), whole),
               1 - which: (whole, BROADCAST) if is_row else (BROADCAST, whole)}
    return _hiding(program, eqn, ins, sides[which].out(kept), stream, is_row, each=(windows[0], windows[1]))


RULES = {"dot_general": dot_general}
LIFTS = {"dot_general": lifted}
