"""Segments on a CPU: loops over small buckets of tiles, each tile written by itself, so that XLA does it in place."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from . import _masks
from ._buckets import choose_path, cores, for_each_bucket, tile_list
from ._compute import candidates, cleared, dense_path, position_mask, threshold, tile_values
from ._detect import Threshold, holds, of_stream
from ._env import Env
from ._geometry import TileAxis, choose_tile
from ._plan import TileSegment
from ._program import Value
from ._rates import dense_above
from ._tiles import NONE, Grid, Layout, index_at, slice_at, update_at

# Of one bucket: enough to hide a loop's overhead and little enough not to waste slots; and enough for two cores.
BUCKET_FLOPS, SHARED_FLOPS = 20e6, 75e6
BUCKET_POSITIONS, BUCKET_TILES, BUCKET_BYTES = 1024, 8, 2**20


def bucket_sizes(segment: TileSegment, wanted: int | None) -> tuple[int, ...]:
    """Tiles in a bucket, larger sizes first.

    Few where a tile is much work or large, for the last bucket is seldom full. Only larger buckets use a second core:
    they come first where there is one.
    """
    if wanted is not None:
        return (wanted,)
    height, width = segment.grid.tile
    most = min(BUCKET_TILES, max(1, BUCKET_POSITIONS // (height * width)), max(1, BUCKET_BYTES // _tile_bytes(segment)))
    per_tile = max(segment.flops_per_tile, 1.0)
    small = int(min(most, max(1, round(BUCKET_FLOPS / per_tile))))
    large = int(min(BUCKET_TILES, round(SHARED_FLOPS / per_tile)))
    if large >= 2 * small and large * per_tile >= 0.4 * SHARED_FLOPS and cores() > 1:
        return large, small
    return (small,)


def _tile_bytes(segment: TileSegment) -> int:
    """What is gathered for one tile; much of it where every place has a kernel of its own."""
    total = 1
    for value in segment.reads:
        assert value.axes is not None
        rows, cols = segment.tile.needs[value]
        channels = math.prod(value.shape[a] for a in value.axes.channels(len(value.shape)))
        total += rows.length * cols.length * channels * value.dtype.itemsize
    return total


def _update(env: Env, layout: Layout, grid: Grid, at, new: jax.Array, tau: Threshold, norm: str, stored, masks, flags):
    """Write one tile (K = 1) where it changed. The write depends on what it overwrites, so XLA does it in place."""
    stream, y, x = at
    height, width = grid.tile
    old = layout.read(stored, stream, y, x, height, width)
    # A fresh cache holds nothing to compare with: all of it is new.
    mask = position_mask(layout, new, old, tau, norm) | env.fresh[stream]
    # Without the barrier XLA compares again for the flag, after the write, on a copy of all that is stored.
    mask = lax.optimization_barrier(mask)
    keep = _masks.at(mask, new.ndim, *layout.tile_picture)
    stored = layout.write(stored, jnp.where(keep, new, old), stream, y, x)
    if grid.ragged:  # tiles overlap: the later one must not unset what the earlier one found
        mask = mask | slice_at(masks, (stream, y, x), (1, height, width))
    masks = update_at(masks, mask, (stream, y, x))
    flag = jnp.any(mask)[None] | slice_at(flags, (stream,), (1,))
    return stored, masks, update_at(flags, flag, (stream,))


def _tile_path(env: Env, segment: TileSegment, buckets: tuple[int, ...], tau: Threshold, norm: str, tiles):
    plan, grid = env.plan, segment.grid

    def one_bucket(numbers, used, state):
        stream, y, x = grid.origin(numbers)
        results = tile_values(env, segment, numbers)

        def write(k, state):
            number, *at = (index_at(parts, k) for parts in (numbers, stream, y, x))
            least = threshold(env, grid, number, at[0], tau)
            after = []
            for value, result, old in zip(segment.writes, results, state, strict=True):
                new = index_at(result, k, keepdims=True)
                after.append(_update(env, plan.layouts[value], grid, at, new, least, norm, *old))
            return tuple(after)

        return lax.fori_loop(0, used, write, state)

    def path(count, state):
        return for_each_bucket(tiles, count, buckets, one_bucket, cleared(state))

    return path


COMPARED = 64  # side of the tiles in which whole results are compared with what is stored


def _hold_small(env: Env, segment: TileSegment, values: dict[Value, jax.Array], tau: Threshold, norm: str, state):
    """Write whole results where they changed by more than `tau`: by tiles, for only that is done in place.

    The tiles are larger than those of work, of which there may be thousands.
    """
    picture = segment.writes[0].picture
    grid = Grid(*(TileAxis(n, choose_tile(n, COMPARED)) for n in picture))
    turn = None if env.turn is None else env.turn.positions(segment.grid)

    def write(number, state):
        at = grid.origin(number)
        least = of_stream(tau, at[0])
        if turn is not None:
            least = jnp.where(slice_at(turn, at, (1, *grid.tile)), 0.0, least)
        after = []
        for value, old in zip(segment.writes, state, strict=True):
            layout = env.plan.layouts[value]
            plain = dataclasses.replace(layout, margins=NONE)
            new = plain.read(plain.store_whole(values[value]), *at, *grid.tile)
            after.append(_update(env, layout, grid, at, new, least, norm, *old))
        return tuple(after)

    return lax.fori_loop(0, grid.per_stream * env.streams, write, cleared(state))


def run_tiles(
    env: Env, segment: TileSegment, bucket: int | None, share: float | None, tau: Threshold, norm: str, state
):
    """``(state, issued [S])`` of one segment."""
    grid, buckets = segment.grid, bucket_sizes(segment, bucket)
    inputs = [env.flags[v] for v in segment.maps]
    inputs += [env.by_stream(env.whole_flags[v]) for v in segment.wholes]
    turn = env.turn if holds(tau) else None  # without a threshold nothing was held back
    anything = jnp.any(jnp.stack([env.fresh, *inputs])) | (turn is not None)

    def work(state):
        (found,) = candidates(env, [segment], [turn])
        tiles, count = tile_list(found)
        above = dense_above(segment, env.streams, env.plan.program, share)
        state = choose_path(
            count, above, _tile_path(env, segment, buckets, tau, norm, tiles),
            dense_path(env, segment, tau, norm, _hold_small), state, dense_reads_state=holds(tau),
        )
        issued = jnp.sum(found, axis=(1, 2), dtype=jnp.int32)
        return state, jnp.where(count > above, grid.per_stream, issued)

    def skip(state):
        return tuple((s, m, jnp.zeros_like(f)) for s, m, f in state), jnp.zeros((env.streams,), jnp.int32)

    return lax.cond(anything, work, skip, state)
