"""Tiles in memory: the one file that knows how a map is stored, gathered and written.

*Stored*, a map of S streams is ``[S, ...]``: its own axes in their own order, the stream axis moved to the front (or
added), both picture axes widened by the *margins* that its readers' halos need. Margins stay zero for ever, so that
a gather never leaves the array and a zero-padded convolution finds its padding in place, on tiles and on the whole
picture alike. Where looking is free, on accelerators, there are none: what is read *outside* is zero all the same, and
a whole result is stored as it is, not copied to get margins.

A *tile array* is ``[K, ...]``: K tiles, then the map's own axes with the stream axis of length 1 and the picture
axes as long as the tile. So whatever an equation does to the map, it does to the tile array, one axis further right.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from . import _masks
from ._geometry import TileAxis


@dataclasses.dataclass(frozen=True)
class Axes:
    """Where a map's stream and picture axes are in its own shape; `stream` is None where there is none."""

    stream: int | None
    row: int
    col: int

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[self.row], shape[self.col]

    def channels(self, rank: int) -> tuple[int, ...]:
        return tuple(axis for axis in range(rank) if axis not in (self.stream, self.row, self.col))

    def moved(self, place: Callable[[int], int]) -> Axes:
        """Where they are after every axis went to `place(axis)`."""
        return Axes(None if self.stream is None else place(self.stream), place(self.row), place(self.col))

    def stored(self, axis: int) -> int:
        """Position of one of the map's own axes in storage."""
        if self.stream is None:
            return axis + 1
        return 0 if axis == self.stream else axis + (axis < self.stream)


# Nothing begins before its array; to provide for that is a third of what tracing a step takes.
slice_at = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
update_at = functools.partial(lax.dynamic_update_slice, allow_negative_indices=False)
index_at = functools.partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)

# Up to this many tiles are sliced out one by one: XLA's CPU gather copies element by element, a slice whole rows.
SLICES = 8

Margins = tuple[tuple[int, int], tuple[int, int]]
NONE: Margins = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one map is stored: its own shape (for one call of the function), dtype, axes and margins.

    Attributes:
        outside: how far windows leave what is stored; they find zeros there.
    """

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: Axes
    margins: Margins = NONE
    outside: Margins = NONE

    @property
    def streams(self) -> int:
        return 1 if self.axes.stream is None else self.shape[self.axes.stream]

    @property
    def picture(self) -> tuple[int, int]:
        return self.axes.picture(self.shape)

    @property
    def size(self) -> int:
        """Bytes, for one stream."""
        return math.prod(self.stored_shape(1)) * self.dtype.itemsize

    def stored_shape(self, streams: int) -> tuple[int, ...]:
        shape = [n for axis, n in enumerate(self.shape) if axis != self.axes.stream]
        shape = [streams, *shape]
        for axis, (low, high) in zip((self.axes.row, self.axes.col), self.margins, strict=True):
            shape[self.axes.stored(axis)] += low + high
        return tuple(shape)

    def _margin_config(self, sign: int):
        config = [(0, 0, 0)] * (len(self.shape) + (self.axes.stream is None))
        for axis, (low, high) in zip((self.axes.row, self.axes.col), self.margins, strict=True):
            config[self.axes.stored(axis)] = (sign * low, sign * high, 0)
        return config

    def store(self, value: Array) -> Array:
        """`[V, *shape]` (V calls) to storage with zero margins."""
        if self.axes.stream is not None:
            value = jnp.moveaxis(value, self.axes.stream + 1, 1)
            value = value.reshape(-1, *value.shape[2:])
        if self.margins == NONE:
            return value
        return lax.pad(value, jnp.zeros((), value.dtype), self._margin_config(1))

    def load(self, stored: Array) -> Array:
        """Storage to `[V, *shape]`."""
        value = stored
        if self.margins != NONE:
            value = lax.pad(value, jnp.zeros((), value.dtype), self._margin_config(-1))
        if self.axes.stream is None:
            return value
        value = value.reshape(-1, self.streams, *value.shape[1:])
        return jnp.moveaxis(value, 1, self.axes.stream + 1)

    def _starts(self, stream, y, x):
        starts: list[Any] = [np.int32(0)] * (len(self.shape) + (self.axes.stream is None))
        starts[0] = stream
        (above, _), (before, _) = self.margins
        starts[self.axes.stored(self.axes.row)] = y + above if above else y
        starts[self.axes.stored(self.axes.col)] = x + before if before else x
        return starts

    def _sizes(self, height: int, width: int) -> tuple[int, ...]:
        sizes = list(self.stored_shape(1))
        sizes[self.axes.stored(self.axes.row)] = height
        sizes[self.axes.stored(self.axes.col)] = width
        return tuple(sizes)

    def _as_tiles(self, slices: Array) -> Array:
        """`[K, ...]` without the stream axis to a tile array."""
        return slices if self.axes.stream is None else jnp.expand_dims(slices, self.axes.stream + 1)

    def gather(self, stored: Array, stream: Int[Array, "K"], y: Int[Array, "K"], x: Int[Array, "K"],
               height: int, width: int) -> Array:
        """The K windows of `height` x `width` at picture positions `(y, x)` as a tile array."""
        if self.outside != NONE:  # compilers for accelerators make of the margins a look at where an element lies
            wide = dataclasses.replace(self, margins=self.outside, outside=NONE)
            stored = lax.pad(stored, jnp.zeros((), stored.dtype), wide._margin_config(1))
            return wide.gather(stored, stream, y, x, height, width)
        sizes = self._sizes(height, width)

        def one(s, top, left):  # a fixed map has fewer streams: they repeat
            found = slice_at(stored, self._starts(lax.rem(s, np.int32(stored.shape[0])), top, left), sizes)
            return lax.squeeze(found, (0,))

        if len(stream) <= SLICES:
            places = zip(*(jnp.unstack(at) for at in (stream, y, x)), strict=True)
            return self._as_tiles(jnp.stack([one(*place) for place in places]))
        return self._as_tiles(jax.vmap(one)(stream, y, x))

    def window(self, stored: Array, y: int, x: int, height: int, width: int) -> Array:
        """The same window of every stream, at a static position, as a tile array with K = S."""
        row, col = self.axes.stored(self.axes.row), self.axes.stored(self.axes.col)
        if self.outside != NONE:
            config = [(0, 0, 0)] * stored.ndim
            config[row], config[col] = (-y, y + height - stored.shape[row], 0), (-x, x + width - stored.shape[col], 0)
            if config[row] == config[col] == (0, 0, 0):
                # As it is: reshaped there and back XLA takes it for another array than the one that is written, and
                # copies it.
                return self._as_tiles(stored)
            # A pad becomes part of a convolution that it stands next to: no axis may come between them.
            alone = tuple(axis for axis in range(1, stored.ndim) if axis not in (row, col) and stored.shape[axis] == 1)
            config = [sides for axis, sides in enumerate(config) if axis not in alone]
            wide = lax.pad(lax.squeeze(stored, alone), jnp.zeros((), stored.dtype), config)
            return self._as_tiles(lax.expand_dims(wide, alone))
        starts, limits = [0] * stored.ndim, list(stored.shape)
        starts[row], starts[col] = y + self.margins[0][0], x + self.margins[1][0]
        limits[row], limits[col] = starts[row] + height, starts[col] + width
        return self._as_tiles(lax.slice(stored, starts, limits))

    def store_whole(self, tiles: Array) -> Array:
        """A tile array whose tiles are whole pictures (K = S) to storage."""
        value = tiles if self.axes.stream is None else jnp.squeeze(tiles, self.axes.stream + 1)
        if self.margins == NONE:
            return value
        return lax.pad(value, jnp.zeros((), value.dtype), self._margin_config(1))

    def read(self, stored: Array, stream, y, x, height: int, width: int) -> Array:
        """One window, all of which is stored, as a tile array with K = 1."""
        return self._as_tiles(slice_at(stored, self._starts(stream, y, x), self._sizes(height, width)))

    def write(self, stored: Array, tile: Array, stream, y, x) -> Array:
        """Overwrite one window by a tile array with K = 1."""
        update = tile if self.axes.stream is None else jnp.squeeze(tile, self.axes.stream + 1)
        return update_at(stored, update, self._starts(stream, y, x))

    def scatter(self, stored: Array, tiles: Array, used: Bool[Array, "K"], stream: Int[Array, "K"], y: Int[Array, "K"],
                x: Int[Array, "K"], overlap: bool) -> Array:
        """Overwrite the windows at `(y, x)` of those tiles that are `used`, all at once.

        Where windows `overlap`, any of them may have the last word.
        """
        updates = tiles if self.axes.stream is None else jnp.squeeze(tiles, self.axes.stream + 1)
        row, col = self.axes.stored(self.axes.row), self.axes.stored(self.axes.col)
        at = _masks.placed((stream, y + self.margins[0][0], x + self.margins[1][0]), used)
        numbers = lax.ScatterDimensionNumbers(tuple(range(1, updates.ndim)), (0,), (0, row, col))
        return lax.scatter(stored, at, updates, numbers, unique_indices=not overlap, mode="drop")

    @property
    def tile_channels(self) -> tuple[int, ...]:
        """The axes of a tile array over which a position's channels lie (the stream axis, of length 1, with them)."""
        return tuple(a + 1 for a in range(len(self.shape)) if a not in (self.axes.row, self.axes.col))

    @property
    def tile_picture(self) -> tuple[int, int]:
        return self.axes.row + 1, self.axes.col + 1


LINE = 64  # elements: where a map begins in a pool


@dataclasses.dataclass(frozen=True)
class Pool:
    """Maps of float32 side by side in one array `[S, n]`, and their masks in another: every array that a call of the
    step is handed costs it some microseconds. What of a map is in bfloat16 lies two by two in the place of one."""

    layouts: tuple[Layout, ...]

    @functools.cached_property
    def begins(self) -> tuple[int, ...]:
        """Where in the array each map begins; behind them, where it ends."""
        return _side_by_side(-(-layout.size // 4) for layout in self.layouts)

    @functools.cached_property
    def mask_begins(self) -> tuple[int, ...]:
        return _side_by_side(math.prod(layout.picture) for layout in self.layouts)

    def map(self, maps: Array, number: int) -> Array:
        """One of the maps, stored."""
        layout = self.layouts[number]
        shape = layout.stored_shape(maps.shape[0])
        if layout.dtype == jnp.float32:
            return _part(maps, self.begins[number], shape)
        two = _part(maps, self.begins[number], (maps.shape[0], layout.size // 4))
        return lax.bitcast_convert_type(two, layout.dtype).reshape(shape)

    def mask(self, masks: Array, number: int) -> Array:
        return _part(masks, self.mask_begins[number], (masks.shape[0], *self.layouts[number].picture))


def _side_by_side(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(itertools.accumulate((-(-n // LINE) * LINE for n in sizes), initial=0))


def _part(array: Array, begin: int, shape: tuple[int, ...]) -> Array:
    return lax.slice_in_dim(array, begin, begin + math.prod(shape[1:]), axis=1).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of a picture; tiles of all streams have one flat numbering, stream by stream, row by row."""

    rows: TileAxis
    cols: TileAxis

    @property
    def per_stream(self) -> int:
        return self.rows.count * self.cols.count

    @property
    def ragged(self) -> bool:
        return self.rows.ragged or self.cols.ragged

    @property
    def tile(self) -> tuple[int, int]:
        return self.rows.tile, self.cols.tile

    def origin(self, index: Int[Array, " *K"]) -> tuple[Array, Array, Array]:
        """Stream, row and column of the tiles' first positions."""
        tiles, columns = np.int32(self.per_stream), np.int32(self.cols.count)
        within = lax.rem(index, tiles)
        return (
            lax.div(index, tiles),
            self.rows.origin(lax.div(within, columns), jnp.minimum),
            self.cols.origin(lax.rem(within, columns), jnp.minimum),
        )

