"""`gather` whose constant indices go over several axes at once: fixed warps, points, patches around points."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._geometry import Window, whole_axis
from .._program import Hidden, Program, Refused, Value
from .._tiles import Axes
from .resample import local_window, positions
from .slices import select

Starts = dict[int, np.ndarray]  # of the axes that are indexed: where each result begins, `[*batch]`


@dataclasses.dataclass(frozen=True)
class _Side:
    """What is read of one picture axis of the operand.

    `out` is the axis of the result that goes along it, `index` the same among the axes of the indices: there is none
    where the result keeps the operand's own axis (`kept`), and neither where the axis is lost.
    """

    out: int | None
    index: int | None
    window: Window

    @property
    def kept(self) -> bool:
        return self.out is not None and self.index is None


def along(starts: Starts, axis: int | None) -> list[int]:
    """The axes of the indices that move what is read of `axis`."""
    at = starts.get(-1 if axis is None else axis, np.zeros((), int))
    return [k for k in range(at.ndim) if at.shape[k] > 1 and (at != at.take([0], k)).any()]


def warped(program: Program, eqn: _jaxpr.Eqn, value: Value, starts: Starts, outside: np.ndarray | None):
    """Law: every result is what begins at its own constant place, moved inside or, if part of it lies there, `outside`.

    Where neighbours read what lies near each other, along either axis, this is done on tiles of their own; along an
    axis where they do not, a tile reads all of it.
    """
    axes, aval, p = value.map_axes, eqn.outvars[0].aval, eqn.params
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if axes.stream is not None and (along(starts, axes.stream) or sizes[axes.stream] != value.shape[axes.stream]):
        raise Refused("it mixes the streams")
    whole = [a for a in range(len(sizes)) if a not in numbers.collapsed_slice_dims]
    offset = dict(zip(whole, numbers.offset_dims, strict=True))
    batch = [d for d in range(len(aval.shape)) if d not in numbers.offset_dims]
    inside = {a: np.clip(at, 0, value.shape[a] - sizes[a]) for a, at in starts.items()}
    sides = [_side(value.shape[a], sizes[a], inside.get(a), offset.get(a), batch, index)
             for a, index in zip((axes.row, axes.col), _leading(starts, axes), strict=True)]
    lost = sum(side.out is None for side in sides)
    if lost == 2:
        raise Refused("its indices leave nothing of the picture")
    row, col = (0 if side.out is None else side.out + lost for side in sides)
    out = (1,) * lost + aval.shape, value.dtype, Axes(
        None if axes.stream is None else offset[axes.stream] + lost, row, col)
    table = np.stack([inside[axis] for axis in numbers.start_index_map], -1)
    ones = (1,) * (table.ndim - 1)

    def of_axis(numbers, k: int):
        """`[K or 1, n]`, along an axis of the indices."""
        return numbers.reshape(len(numbers), *(-1 if i == k else 1 for i in range(table.ndim - 1)))

    def apply(places, tiles):
        size = [1 if a == axes.stream else n for a, n in enumerate(sizes)]
        chosen = [of_axis(jnp.arange(n)[None], k) for k, n in enumerate(table.shape[:-1])]
        for side, place in zip(sides, places, strict=True):
            if side.index is not None:
                chosen[side.index] = of_axis(positions(place, table.shape[side.index]), side.index)
        at = jnp.asarray(table, jnp.int32).at[tuple(chosen)].get(mode="promise_in_bounds")
        at = jnp.broadcast_to(at, (tiles.shape[0], *at.shape[1:]))
        for axis, side, place in zip((axes.row, axes.col), sides, places, strict=True):
            if side.kept:
                size[axis] = tiles.shape[axis + 1]
            if axis in starts:
                which, first = numbers.start_index_map.index(axis), jnp.asarray(place.source).reshape(-1, *ones)
                at = at.at[..., which].add(-first)
        # Of what is kept the tile is the slice; and results outside the picture, which nothing uses, stay in the tile.
        found = jax.vmap(lambda tile, at: lax.gather(tile, at, numbers, tuple(size), mode="clip"))(tiles, at)
        return (found[:, None] if lost else found,)

    (made,) = program.tiles("warp", [value], [out], apply, rows=sides[0].window, cols=sides[1].window, placed=True)
    own = np.all([inside[a] == at for a, at in starts.items()], axis=0)
    if outside is not None and not own.all():
        own = own.reshape([own.shape[batch.index(d)] if d in batch else 1 for d in range(len(aval.shape))])
        made = select(program, own[None] if lost else own, made, program.given(outside), like=made)
    return (Hidden(made) if lost else made,)


def _leading(starts: Starts, axes: Axes) -> tuple[int | None, int | None]:
    """For rows and columns, the axis of the indices that is to be the result's: the longest, each another one."""
    rows, cols = along(starts, axes.row), along(starts, axes.col)

    def longest(found: list[int]) -> list[int]:
        shape = next(iter(starts.values())).shape
        return sorted(found, key=lambda k: -shape[k])

    if not rows or not cols:
        return next(iter(longest(rows)), None), next(iter(longest(cols)), None)
    first, *second = sorted(longest(list({*rows, *cols}))[:2])
    if not second:
        return None, first
    return (second[0], first) if rows == second or cols == [first] else (first, second[0])


def _side(n: int, size: int, at: np.ndarray | None, offset: int | None, batch: list[int], index: int | None) -> _Side:
    at = np.zeros((), int) if at is None else at
    if index is None and offset is not None and (at == at.flat[0]).all():
        return _Side(offset, None, Window(1, 1, -int(at.flat[0]), int(at.flat[0]) + size - n))
    others = tuple(k for k in range(at.ndim) if k != index)
    first, last = (np.atleast_1d(x) for x in (at.min(others), at.max(others) + size - 1))
    try:
        window = local_window(first, last, n)
    except Refused:
        window = whole_axis(n)
    return _Side(None if index is None else batch[index], index, window)


