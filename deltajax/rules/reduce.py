"""Reductions: over channels on the tile; over the picture from partial results, one for each tile.

A sum over the picture is never updated by differences (they drift). It is a pooling window as large as its stride,
whose outputs, the partial results, are a small map in the cache; what changed of them is recomputed, and the sum
over all of them is taken afresh.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .._geometry import Window
from .._program import Program, Refused, Value
from .._tiles import Axes
from .pool import bounds

PARTIAL = 8  # side of the square whose partial result is one cached value


def _wide(dtype):
    """Partial sums of narrow floats are kept in float32, as XLA keeps the whole sum."""
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype


def side(extent: int) -> int:
    return min(PARTIAL, extent)


def over_channels(program: Program, eqn: _jaxpr.Eqn, value: Value, gone: tuple[int, ...]):
    axes = value.axes
    assert axes is not None
    out_axes = axes.moved(lambda a: a - sum(g < a for g in gone))

    def apply(pads, tiles):
        return jax.vmap(lambda tile: _jaxpr.bind(eqn, tile))(tiles)

    outs = [(var.aval.shape, var.aval.dtype, out_axes) for var in eqn.outvars]
    return program.tiles(eqn.primitive.name, [value], outs, apply, flops=float(math.prod(value.shape)))


def reduction(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: over channels, position by position; over the picture, from fresh partial results."""
    (value,) = ins
    axes, reduced = value.axes, tuple(eqn.params["axes"])
    assert axes is not None
    if not {axes.stream, axes.row, axes.col} & set(reduced):
        return over_channels(program, eqn, value, reduced)
    if not {axes.row, axes.col} <= set(reduced):
        raise Refused("it reduces one picture axis and keeps the other")
    name = eqn.primitive.name
    first = tuple(a for a in reduced if a != axes.stream)  # each stream has partial results of its own
    channels = tuple(a for a in first if a not in (axes.row, axes.col))
    height, width = (side(n) for n in value.picture)
    dtype = _wide(value.dtype) if name in ("reduce_sum", "reduce_prod") else value.dtype
    low, high = bounds(value.dtype) if not jnp.issubdtype(value.dtype, jnp.complexfloating) else (0, 0)
    neutral = {"reduce_sum": 0, "reduce_prod": 1, "reduce_max": low, "reduce_min": high,
               "reduce_and": True if jnp.issubdtype(dtype, bool) else -1, "reduce_or": 0, "reduce_xor": 0}[name]
    rows = Window(height, height, 0, -value.picture[0] % height)
    cols = Window(width, width, 0, -value.picture[1] % width)
    partial_axes = axes.moved(lambda a: a - sum(c < a for c in channels))
    shape = list(value.shape)
    shape[axes.row], shape[axes.col] = (w.outputs(n) for w, n in zip((rows, cols), value.picture, strict=True))
    shape = [n for a, n in enumerate(shape) if a not in channels]

    def collapse(x, over):
        return _jaxpr.bind(eqn, x, axes=tuple(over))[0]

    def apply(pads, tiles):
        row, col = axes.row + 1, axes.col + 1
        split = _split(_split(tiles.astype(dtype), max(row, col), width if col > row else height),
                       min(row, col), height if col > row else width)
        # The halves of the earlier axis push the later ones one further.
        inner = [min(row, col) + 1, max(row, col) + 2]
        others = [c + 1 + (c + 1 > min(row, col)) + (c + 1 > max(row, col)) for c in channels]
        return (collapse(split, inner + others),)

    (partial,) = program.tiles(
        f"partial {name.removeprefix('reduce_')} {height}x{width}", [value], [(shape, dtype, partial_axes)], apply,
        rows=rows, cols=cols, fill=neutral, heavy=True, flops=float(math.prod(value.shape)),
    )
    rest = [partial_axes.row, partial_axes.col]
    if axes.stream in reduced:
        assert partial_axes.stream is not None
        rest.append(partial_axes.stream)
    aval = eqn.outvars[0].aval
    return program.whole(
        f"{name.removeprefix('reduce_')} of partials", [partial], [(aval.shape, aval.dtype)],
        lambda x: (collapse(x, rest).astype(aval.dtype),), flops=float(math.prod(shape)),
    )


def _split(x, axis: int, block: int):
    """``[.., n * block, ..] -> [.., n, block, ..]``"""
    return x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1:])


def choice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """`argmax` and `argmin` over channels."""
    (value,) = ins
    assert value.axes is not None
    axes = tuple(eqn.params["axes"])
    if {value.axes.stream, value.axes.row, value.axes.col} & set(axes):
        raise Refused("it chooses among positions, not among channels")
    return over_channels(program, eqn, value, axes)


def running(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """`cumsum` and its kin, `sort`: along one axis, here a channel axis."""
    axes = ins[0].axes
    assert axes is not None
    along = eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"]
    if along in (axes.stream, axes.row, axes.col):
        raise Refused("it runs along the picture, not along channels")
    if any(value.axes != axes or value.picture != ins[0].picture for value in ins):
        raise Refused("its operands' pictures differ")

    def apply(pads, *tiles):
        return jax.vmap(lambda *tile: _jaxpr.bind(eqn, *tile))(*tiles)

    outs = [(var.aval.shape, var.aval.dtype, axes) for var in eqn.outvars]
    return program.tiles(eqn.primitive.name, ins, outs, apply, flops=float(math.prod(ins[0].shape)))


def partial_dot(program: Program, eqn: _jaxpr.Eqn, source: Value, first: int, last: int, kernel: Value):
    """A dense layer over flattened positions: partial products by tile, added up afresh.

    `source` is the map before flattening; its axes `first` to `last` were merged and are contracted with the first
    axis of `kernel`.
    """
    axes, aval = source.axes, eqn.outvars[0].aval
    assert axes is not None
    merged = source.shape[first: last + 1]
    rest = kernel.shape[1:]
    height, width = (side(n) for n in source.picture)
    rows = Window(height, height, 0, -source.picture[0] % height)
    cols = Window(width, width, 0, -source.picture[1] % width)
    count = [w.outputs(n) for w, n in zip((rows, cols), source.picture, strict=True)]
    keep = [a for a in range(len(source.shape)) if not first <= a <= last]  # batch axes, the stream among them
    spatial_first = axes.row < axes.col
    shape = [source.shape[a] for a in keep] + count + list(rest)
    stream = None if axes.stream is None else keep.index(axes.stream)
    partial_axes = Axes(stream, len(keep), len(keep) + 1)
    dtype = eqn.params["preferred_element_type"] or _wide(source.dtype)
    dtype = _wide(jnp.dtype(dtype))
    spread = program.whole("unflatten", [kernel], [((*merged, *rest), kernel.dtype)],
                           lambda w: (w.reshape(*merged, *rest),))[0]
    weights = program.fixed_map(spread, Axes(None, axes.row - first, axes.col - first))

    def apply(pads, tiles, kernels):
        def split(x, row, col):
            low, high = min(row, col), max(row, col)
            sizes = (height, width) if spatial_first else (width, height)
            return _split(_split(x, high, sizes[1]), low, sizes[0])

        x = split(tiles, axes.row + 1, axes.col + 1)
        w = split(kernels, axes.row - first + 1, axes.col - first + 1)
        # Letters: k tiles; a, t rows; b, u columns; then batch, merged channels, outputs.
        letters = iter("cdefghijlmnopqrsvwxyz")
        name = {axes.row: "at", axes.col: "bu"}
        for axis in range(len(source.shape)):
            name.setdefault(axis, next(letters))
        left = "k" + "".join(name[a] for a in range(len(source.shape)))
        outs = "".join(next(letters) for _ in rest)
        right = "k" + "".join(name[a] for a in range(first, last + 1)) + outs
        result = "k" + "".join(name[a] for a in keep) + "ab" + outs
        return (jnp.einsum(f"{left},{right}->{result}", x, w, precision=eqn.params["precision"],
                           preferred_element_type=dtype),)

    (partial,) = program.tiles(
        f"partial dense {height}x{width}", [source, weights], [(shape, dtype, partial_axes)], apply,
        rows=rows, cols=cols, fill=0, heavy=True, flops=2.0 * math.prod(source.shape) * math.prod(rest),
    )
    return program.whole(
        "sum of partials", [partial], [(aval.shape, aval.dtype)],
        lambda x: (jnp.sum(x, axis=(partial_axes.row, partial_axes.col)).astype(aval.dtype),),
        flops=float(math.prod(shape)),
    )


RULES = {
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
                     "reduce_xor"), reduction),
    **dict.fromkeys(("argmax", "argmin"), choice),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"), running),
}

