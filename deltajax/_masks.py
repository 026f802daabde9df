"""Change masks: one boolean for each position of a map, `[S, H, W]` for S streams.

A mask is *sound* when every position that changed is set. All functions here keep it sound and, for a single
operation, exact: a position is set only if its receptive field holds a set position.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ._geometry import Span, TileAxis, Window


def _union(parts):
    return functools.reduce(operator.or_, parts)


def _fit(mask: Array, axis: int, lo: int, hi: int) -> Array:
    """Pad (or, where negative, crop) one axis with unset positions."""
    config = [(0, 0, 0)] * mask.ndim
    config[axis] = (lo, hi, 0)
    return lax.pad(mask, jnp.zeros((), bool), config)


def _reach_axis(mask: Array, axis: int, window: Window, count: int) -> Array:
    if window.is_identity and mask.shape[axis] == count:
        return mask
    if window.stride == 0:
        read = lax.slice_in_dim(mask, -window.pad_lo, window.extent - window.pad_lo, window.dilation, axis)
        shape = [count if a == axis else n for a, n in enumerate(mask.shape)]
        return jnp.broadcast_to(jnp.any(read, axis=axis, keepdims=True), shape)
    if window.base_dilation > 1:
        config = [(0, 0, 0)] * mask.ndim
        config[axis] = (0, 0, window.base_dilation - 1)
        mask = lax.pad(mask, jnp.zeros((), bool), config)
    needed = (count - 1) * window.stride + window.extent
    mask = _fit(mask, axis, window.pad_lo, needed - window.pad_lo - mask.shape[axis])
    length = (count - 1) * window.stride + 1
    if window.size > 16 and window.dilation == 1 and window.stride >= window.size:
        blocks = lax.reduce_window(  # one long window for each output: no overlap to share
            mask, False, lax.bitwise_or,
            tuple(window.size if a == axis else 1 for a in range(mask.ndim)),
            tuple(window.stride if a == axis else 1 for a in range(mask.ndim)), "VALID",
        )
        return lax.slice_in_dim(blocks, 0, count, axis=axis)
    return _union(
        lax.slice_in_dim(mask, tap, tap + length, window.stride, axis)
        for tap in range(0, window.extent, window.dilation)
    )


def reach(mask: Bool[Array, "S h w"], rows: Window, cols: Window, shape: tuple[int, int]) -> Bool[Array, "S H W"]:
    """The outputs of a window operation that read a set position; exact."""
    return _reach_axis(_reach_axis(mask, 1, rows, shape[0]), 2, cols, shape[1])


def _tiles_axis(mask: Array, axis: int, tiles: TileAxis, span: Span) -> Array:
    """Which tiles' spans hold a set position, on one axis."""
    step = tiles.tile * span.num // span.den
    if tiles.count == 1:
        return jnp.any(mask, axis=axis, keepdims=True)
    if span.num == 0:
        first, last = max(0, span.offset), min(mask.shape[axis], span.offset + span.length)
        read = jnp.any(lax.slice_in_dim(mask, first, last, axis=axis), axis=axis, keepdims=True)
        return jnp.broadcast_to(read, [tiles.count if a == axis else n for a, n in enumerate(mask.shape)])
    # Tile t reads [t * step + offset, + length): whole blocks of `step`, then what is left of the length.
    blocks, rest = divmod(span.length, step)
    needed = (tiles.count - 1 + blocks + bool(rest)) * step
    mask = _fit(mask, axis, -span.offset, needed + span.offset - mask.shape[axis])
    split = mask.reshape(*mask.shape[:axis], needed // step, step, *mask.shape[axis + 1:])
    parts = []
    if blocks:
        whole = jnp.any(split, axis=axis + 1)
        parts += [lax.slice_in_dim(whole, b, b + tiles.count, axis=axis) for b in range(blocks)]
    if rest:
        head = jnp.any(lax.slice_in_dim(split, 0, rest, axis=axis + 1), axis=axis + 1)
        parts.append(lax.slice_in_dim(head, blocks, blocks + tiles.count, axis=axis))
    return _union(parts)


def tiles_reached(
    mask: Bool[Array, "S h w"], rows: tuple[TileAxis, Span], cols: tuple[TileAxis, Span]
) -> Bool[Array, "S ny nx"]:
    """The tiles whose spans hold a set position; exact but for the last, moved tile of a ragged axis.

    There the unmoved span is meant: what the moved tile overlaps belongs to its neighbour.
    """
    return _tiles_axis(_tiles_axis(mask, 1, *rows), 2, *cols)


def tiles_reached_each(
    asked: Sequence[tuple[Bool[Array, "S _ _"], tuple[TileAxis, Span], tuple[TileAxis, Span]]],
) -> list[Bool[Array, "S _ _"]]:
    """`tiles_reached` of each; what is alike at once: on an accelerator a kernel costs more than what it does."""
    alike: dict[Any, list[int]] = {}
    for number, (mask, rows, cols) in enumerate(asked):
        alike.setdefault((mask.shape, rows, cols), []).append(number)
    found: dict[int, Array] = {}
    for (shape, rows, cols), numbers in alike.items():
        masks = [asked[number][0] for number in numbers]
        tiles = tiles_reached(masks[0] if len(masks) == 1 else jnp.concatenate(masks), rows, cols)
        found.update((number, tiles[n * shape[0]: (n + 1) * shape[0]]) for n, number in enumerate(numbers))
    return [found[number] for number in range(len(asked))]


def _by_cell(values: Array, channels: tuple[int, ...], cell: int, join: Callable[..., Array]) -> Array:
    """`[S, rows, cols]`: the `join` (`jnp.any`, `jnp.sum`) of all channels of all positions of a cell.

    The last of the axes that go are joined last and as one: before them XLA joins whole rows, vector by vector.
    """
    padding, split, axes = [], [], []
    for axis, size in enumerate(values.shape):
        if axis == 0 or axis in channels:
            padding.append((0, 0, 0))
            axes += [len(split)] if axis else []
            split.append(size)
        else:
            padding.append((0, -size % cell, 0))
            axes.append(len(split) + 1)
            split += [-(-size // cell), cell]
    values = lax.pad(values, jnp.zeros((), values.dtype), padding).reshape(split)
    last = next(n for n in range(len(split), 0, -1) if n - 1 not in axes)
    before = tuple(axis for axis in axes if axis < last)
    kept = last - len(before)
    values = join(values, axis=before)
    return join(values.reshape(*values.shape[:kept], math.prod(values.shape[kept:])), axis=-1)


def _wide(dtype: Any) -> Any:
    """In what differences are computed."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32 else jnp.float32


def _norms(
    new: Array, old: Array, channels: tuple[int, ...], norm: str, cell: int, field: int
) -> Float[Array, "S rows cols"]:
    """The l1 or l2 norms of the differences in cells."""
    terms = math.prod(new.shape[axis] for axis in channels) * cell**2 * field**2
    # In whole numbers, where their sum has room: that is faster, and exact.
    whole = new.dtype in (jnp.uint8, jnp.int8) and terms * 255**2 < 2**31
    wide = jnp.int32 if whole else _wide(new.dtype)
    gap = new.astype(wide) - old.astype(wide)
    gap = gap * gap if norm == "l2" else jnp.abs(gap)
    if field > 1:
        half = ((0, 0), (field // 2, field // 2), (field // 2, field // 2))
        gap, channels = _by_cell(gap, channels, 1, jnp.sum), ()
        gap = lax.reduce_window(gap, jnp.zeros((), wide), lax.add, (1, field, field), (1, 1, 1), half)
    size = _by_cell(gap, channels, cell, jnp.sum).astype(_wide(new.dtype))
    return jnp.sqrt(size) if norm == "l2" else size


def changed(
    new: Array, old: Array, channels: tuple[int, ...], tau: float | Array, norm: str = "linf", cell: int = 1,
    field: int = 1,
) -> Bool[Array, "S H W"]:
    """Where `new` differs from `old` by more than `tau`; NaN and (for `tau` > 0) infinity always differ.

    Args:
        new, old: `[S, ...]` with two picture axes left after `channels` are reduced, any dtype.
        channels: the axes over which the norm is taken at each position.
        tau: threshold in the units of `new`; 0 compares exactly (zeros of either sign are equal). An array is one
            whose value is not known yet, or one for each stream or position (in a shape that goes with `[S, H, W]`).
        norm: ``"l1"``, ``"l2"`` or ``"linf"``.
        cell: side of the square cells that change as one, in positions.
        field: side (odd) of the neighbourhood, centred on each position, over which the norm is taken.
    """
    height, width = (n for axis, n in enumerate(new.shape) if axis and axis not in channels)
    if not isinstance(tau, jax.Array) and tau == 0:
        differs = new != old
    elif norm == "linf":
        wide = _wide(new.dtype)
        limit = jnp.expand_dims(tau, channels) if isinstance(tau, jax.Array) and tau.ndim else tau
        differs = ~(jnp.abs(new.astype(wide) - old.astype(wide)) <= limit)
    else:
        return spread(~(_norms(new, old, channels, norm, cell, field) <= tau), cell, (height, width))
    if field > 1:
        window = Window(size=field, pad_lo=field // 2, pad_hi=field // 2)
        differs = reach(_by_cell(differs, channels, 1, jnp.any), window, window, (height, width))
        channels = ()
    return spread(_by_cell(differs, channels, cell, jnp.any), cell, (height, width))


def spread(cells: Bool[Array, "S h w"], cell: int, shape: tuple[int, int]) -> Bool[Array, "S H W"]:
    """Cells of `cell` x `cell` positions to positions."""
    if cell == 1:
        return cells
    streams, rows, cols = cells.shape
    wide = jnp.broadcast_to(cells[:, :, None, :, None], (streams, rows, cell, cols, cell))
    return wide.reshape(streams, rows * cell, cols * cell)[:, : shape[0], : shape[1]]


def unite_tiles(
    mask: Bool[Array, "S H W"], tiles: Bool[Array, "K h w"], used: Bool[Array, "K"],
    at: tuple[Int[Array, "K"], Int[Array, "K"], Int[Array, "K"]], overlap: bool,
) -> Bool[Array, "S H W"]:
    """The union with the masks of the tiles that are `used`, at ``(stream, y, x)``; one that has no position set there.

    Args:
        overlap: whether tiles may.
    """
    numbers = lax.ScatterDimensionNumbers((1, 2), (0,), (0, 1, 2))
    write = lax.scatter_max if overlap else lax.scatter
    return write(mask, placed(at, used), tiles, numbers, unique_indices=not overlap, mode="drop")


def placed(at: tuple[Array, ...], used: Bool[Array, "K"]) -> Int[Array, "K 3"]:
    """The indices of windows for a scatter that drops those that are not `used`."""
    return jnp.stack([jnp.where(used, at[0], jnp.iinfo(jnp.int32).max), *at[1:]], axis=1)


def at(tile_mask: jax.Array, rank: int, row: int, col: int) -> jax.Array:
    """`[K, h, w]` shaped to select in a tile array of `rank` axes (the first is K) with its picture axes there."""
    shape = [1] * rank
    shape[0], shape[row], shape[col] = tile_mask.shape
    if row > col:
        tile_mask = tile_mask.swapaxes(1, 2)
    return tile_mask.reshape(shape)
