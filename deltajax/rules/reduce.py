"""Reductions: over channels on the tile; over the picture from partial results, one for each tile.

A sum over the picture is never updated by differences (they drift). It is a pooling window as large as its stride,
whose outputs, the partial results, are a small map in the cache; what changed of them is recomputed, and the sum
over all of them is taken afresh.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Form, Hidden, Kind, Program, Refused, Value
from .._tiles import Axes
from .pool import bounds
from .resample import strip

OVER = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "argmax": "max", "argmin": "min"}  # for `Form`
PARTIAL = 8  # side of the square whose partial result is one cached value


def _wide(dtype):
    """Partial sums of narrow floats are kept in float32, as XLA keeps the whole sum."""
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype


def side(extent: int) -> int:
    return min(PARTIAL, extent)


def over_channels(program: Program, eqn: _jaxpr.Eqn, ins: list[Value], gone: tuple[int, ...]):
    axes = ins[0].map_axes
    out_axes = axes.moved(lambda a: a - sum(g < a for g in gone))
    outs = [(var.aval.shape, var.aval.dtype, out_axes) for var in eqn.outvars]
    name, form = eqn.primitive.name, None
    if name in OVER:
        form = Form("choose" if name in ("argmax", "argmin") else "reduce", (OVER[name],))
    return program.tiles(name, ins, outs, _by_tile(eqn, ins), flops=float(math.prod(ins[0].shape)), form=form)


def _by_tile(eqn: _jaxpr.Eqn, ins: list[Value]):
    each = [0 if value.is_tiled else None for value in ins]
    return lambda pads, *xs: tuple(jax.vmap(lambda *ys: tuple(_jaxpr.bind(eqn, *ys)), each)(*xs))


def reduction(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: over channels, position by position; over the picture, from fresh partial results."""
    (value,) = ins
    axes, reduced = value.map_axes, tuple(eqn.params["axes"])
    if not {axes.stream, axes.row, axes.col} & set(reduced):
        return over_channels(program, eqn, ins, reduced)
    if not {axes.row, axes.col} <= set(reduced):
        return _one_axis(program, eqn, ins, reduced)
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
        form=Form("pool", (OVER[name],)) if name in OVER and not channels and dtype == value.dtype else None,
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


def _one_axis(program: Program, eqn: _jaxpr.Eqn, ins: list[Value], reduced: tuple[int, ...]):
    """One picture axis reduced, perhaps with channels, and the other kept: by whole rows of the picture."""
    value = ins[0]
    axes = value.map_axes
    if axes.stream in reduced:
        raise Refused("it mixes the streams")
    (along,) = {axes.row, axes.col} & set(reduced)
    whole = Window(value.shape[along], value.shape[along])

    def new(axis: int) -> int:
        return 0 if axis == along else 1 + axis - sum(r < axis for r in reduced)

    results = _by_tile(eqn, ins)

    outs = [((1, *var.aval.shape), var.aval.dtype, axes.moved(new)) for var in eqn.outvars]
    made = program.tiles(
        eqn.primitive.name, ins, outs, lambda pads, *xs: tuple(x[:, None] for x in results(pads, *xs)),
        flops=float(math.prod(value.shape)),
        rows=whole if along == axes.row else Window(), cols=whole if along == axes.col else Window(),
    )
    return tuple(map(Hidden, made))


def _split(x, axis: int, block: int):
    """``[.., n * block, ..] -> [.., n, block, ..]``"""
    return x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1:])


def choice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """`argmax` and `argmin`: over channels, or along one picture axis."""
    own, axes = ins[0].map_axes, tuple(eqn.params["axes"])
    if {own.row, own.col} & set(axes):
        return _one_axis(program, eqn, ins, axes)
    if own.stream in axes:
        raise Refused("it mixes the streams")
    return over_channels(program, eqn, ins, axes)


def computed(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """`reduce` with a computation of the user's own, over channels or along one picture axis."""
    maps, starts, axes = ins[: len(ins) // 2], ins[len(ins) // 2:], tuple(eqn.params["dimensions"])
    like = next((v.axes for v in maps if v.kind is Kind.MAP), None)
    if like is None or any(v.kind is not Kind.FIXED for v in starts):
        raise Refused("it starts with what depends on the frame")
    maps = [program.fixed_map(v, like) if v.kind is Kind.FIXED else v for v in maps]
    if any(v.axes != like for v in maps):
        raise Refused("its operands' pictures differ")
    ins = [*maps, *starts]
    if {like.row, like.col} <= set(axes) or like.stream in axes:
        raise Refused("it reduces all of the picture by a computation of its own")
    return (_one_axis if {like.row, like.col} & set(axes) else over_channels)(program, eqn, ins, axes)


def running(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """`cumsum` and its kin, `sort`, `top_k`: along one axis, of the channels or of the picture."""
    axes = ins[0].map_axes
    along = eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"]
    if along == axes.stream:
        raise Refused("it mixes the streams")
    if any(value.axes != axes or value.picture != ins[0].picture for value in ins):
        raise Refused("its operands' pictures differ")

    apply = _by_tile(eqn, ins)
    outs = [(var.aval.shape, var.aval.dtype, axes) for var in eqn.outvars]
    if along in (axes.row, axes.col):
        return strip(program, eqn.primitive.name, ins, along, outs, apply, flops=float(math.prod(ins[0].shape)))
    return program.tiles(eqn.primitive.name, ins, outs, apply, flops=float(math.prod(ins[0].shape)))


# Multiply-adds in one partial product of a dense layer: enough to hide what a tile costs beside them.
PARTIAL_PRODUCT = 2**17


def partial_dot(program: Program, eqn: _jaxpr.Eqn, source: Value, first: int, last: int, kernel: Value):
    """A dense layer over flattened positions: partial products by square, added up afresh.

    `source` is the map before flattening; its axes `first` to `last` were merged and are contracted with the first
    axis of `kernel`. A square of positions with all their channels becomes one position, whose kernel lies in one
    piece in memory: reading the kernel is most of the work.
    """
    axes, aval = source.map_axes, eqn.outvars[0].aval
    rank, merged, rest = len(source.shape), source.shape[first: last + 1], kernel.shape[1:]
    height, width = _squares(source, math.prod(merged) * math.prod(rest))
    rows = Window(height, height, 0, -source.picture[0] % height)
    cols = Window(width, width, 0, -source.picture[1] % width)
    down, across = (w.outputs(n) for w, n in zip((rows, cols), source.picture, strict=True))
    keep = [a for a in range(rank) if not first <= a <= last]  # batch axes, the stream among them
    stream = None if axes.stream is None else keep.index(axes.stream)
    place = Axes(stream, len(keep), len(keep) + 1)
    batch = [source.shape[a] for a in keep]
    inner = [a for a in range(first, last + 1) if a not in (axes.row, axes.col)]
    terms = height * width * math.prod(source.shape[a] for a in inner)

    def squares(x, row: int, col: int, before: list[int], channels: list[int]):
        """`[.., row, col, ..]` to `[*before, rows / height, cols / width, one square, *what is left]`."""
        low, high = min(row, col), max(row, col)
        sizes = (height, width) if row < col else (width, height)
        x = _split(_split(x, high, sizes[1]), low, sizes[0])

        def at(axis: int) -> int:
            return axis + (axis > low) + (axis > high)

        picked = [*map(at, before), at(row), at(col), at(row) + 1, at(col) + 1, *map(at, channels)]
        left = [a for a in range(x.ndim) if a not in picked]
        x = x.transpose(*picked, *left)
        n = len(before)
        return x.reshape(*x.shape[: n + 2], terms, *x.shape[n + 4 + len(channels):])

    def blocks(w):
        row, col = axes.row - first, axes.col - first
        w = w.reshape(*merged, *rest)
        edges = [(0, 0)] * w.ndim
        edges[row], edges[col] = (0, rows.pad_hi), (0, cols.pad_hi)
        return (squares(jnp.pad(w, edges), row, col, [], [a - first for a in inner]),)

    def gather(pads, tiles):
        before = [0, *(a + 1 for a in keep)]
        return (squares(tiles, axes.row + 1, axes.col + 1, before, [a + 1 for a in inner]),)

    def product(pads, x, w):
        """`[k, *batch, i, j, terms]` by `[k, i, j, terms, *rest]`."""
        n = len(keep)
        contract, together = ((n + 3,), (3,)), ((0, n + 1, n + 2), (0, 1, 2))
        out = lax.dot_general(x, w, (contract, together), precision=eqn.params["precision"],
                              preferred_element_type=dtype)
        return (out.transpose(0, *range(3, 3 + n), 1, 2, *range(3 + n, out.ndim)),)

    dtype = eqn.params["preferred_element_type"] or _wide(source.dtype)
    dtype = _wide(jnp.dtype(dtype))
    kernels = program.whole("blocks", [kernel], [((down, across, terms, *rest), kernel.dtype)], blocks)[0]
    (square,) = program.tiles(
        f"squares {height}x{width}", [source], [((*batch, down, across, terms), source.dtype, place)], gather,
        rows=rows, cols=cols, fill=0,
    )
    (partial,) = program.tiles(
        f"partial dense {height}x{width}", [square, program.fixed_map(kernels, Axes(None, 0, 1))],
        [((*batch, down, across, *rest), dtype, place)], product, heavy=True,
        flops=2.0 * math.prod(source.shape) * math.prod(rest),
    )
    return program.whole(
        "sum of partials", [partial], [(aval.shape, aval.dtype)],
        lambda x: (jnp.sum(x, axis=(place.row, place.col)).astype(aval.dtype),),
        flops=float(math.prod(partial.shape)),
    )


def _squares(source: Value, products: int) -> tuple[int, int]:
    """Sides of a square of positions that is one partial product of a dense layer with that many in all."""
    height, width = source.picture
    wished = math.isqrt(max(1, PARTIAL_PRODUCT * height * width // max(1, products)))
    size = min(PARTIAL, 1 << max(0, wished.bit_length() - 1))
    return min(size, height), min(size, width)


RULES = {
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
                     "reduce_xor"), reduction),
    **dict.fromkeys(("argmax", "argmin"), choice),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k"), running),
    "reduce": computed,
}

