"""Segments on accelerators: all tiles of a frame are gathered, computed and written at once.

A loop makes an accelerator wait for its predicate in each turn, and a bucket of a few tiles leaves most of it idle. So
a segment has one bucket in a frame, of the smallest of a few sizes that holds all its tiles: a ladder. What stays empty
of it is computed in vain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from . import _masks
from ._buckets import for_each_bucket, tile_list_at_once
from ._compute import candidates, cleared, dense_path, position_mask, threshold, tile_values
from ._detect import Threshold, by_picture, holds
from ._env import Env
from ._plan import TileSegment
from ._program import Value
from ._rates import dense_above

# Of the ladder: how many sizes at most, the smallest, and how many times as large the next is.
RUNGS, FEWEST, APART = 5, 32, 2


def ladder(most: int) -> tuple[int, ...]:
    """Bucket sizes in ascending order, the last one holds `most` tiles."""
    sizes = [most]
    while len(sizes) < RUNGS and sizes[0] > FEWEST:
        sizes.insert(0, max(FEWEST, -(-sizes[0] // APART)))
    return tuple(sizes)


def bucket_sizes(wanted: int | None, above: int) -> tuple[int, ...]:
    """Tiles in a bucket, smaller sizes first, where more than `above` tiles are done densely."""
    return (wanted,) if wanted is not None else ladder(max(above, 1))


def _write(
    env: Env, segment: TileSegment, numbers: Int[Array, "K"], used: Bool[Array, "K"], results: list[jax.Array],
    tau: Threshold, norm: str, state,
):
    """The results of the tiles that are `used`, where they changed."""
    grid = segment.grid
    stream, y, x = grid.origin(numbers)
    least = threshold(env, grid, numbers, stream, tau)
    if isinstance(least, jax.Array) and least.ndim:
        least = least[:, None, None]
    after = []
    for value, new, (stored, masks, flags) in zip(segment.writes, results, state, strict=True):
        layout = env.plan.layouts[value]
        old = layout.gather(stored, stream, y, x, *grid.tile)
        # A fresh cache holds nothing to compare with: all of it is new.
        mask = position_mask(layout, new, old, least, norm) | env.fresh[stream][:, None, None]
        keep = _masks.at(mask, new.ndim, *layout.tile_picture)
        stored = layout.scatter(stored, jnp.where(keep, new, old), used, stream, y, x, overlap=grid.ragged)
        masks = _masks.unite_tiles(masks, mask, used, (stream, y, x), overlap=grid.ragged)
        after.append((stored, masks, flags | jnp.any(masks, axis=(1, 2))))
    return tuple(after)


def _hold_small(env: Env, segment: TileSegment, values: dict[Value, jax.Array], tau: Threshold, norm: str, state):
    """Write whole results where they changed by more than `tau`."""
    least: Threshold = by_picture(tau)
    if env.turn is not None:
        least = jnp.where(env.turn.positions(segment.grid), 0.0, least)
    after = []
    for value, (stored, _, _) in zip(segment.writes, state, strict=True):
        layout = env.plan.layouts[value]
        old = layout.window(stored, 0, 0, *layout.picture)
        mask = position_mask(layout, values[value], old, least, norm) | env.fresh[:, None, None]
        keep = _masks.at(mask, old.ndim, *layout.tile_picture)
        stored = layout.store_whole(jnp.where(keep, values[value], old))
        after.append((stored, mask, jnp.any(mask, axis=(1, 2))))
    return tuple(after)


def run_tiles(
    env: Env, segment: TileSegment, bucket: int | None, share: float | None, tau: Threshold, norm: str, state
):
    """``(state, issued [S])`` of one segment."""
    grid = segment.grid
    found = candidates(env, segment, env.turn if holds(tau) else None)  # without a threshold nothing was held back
    tiles, count = tile_list_at_once(found)
    above = dense_above(segment, env.streams, env.plan.streams, share)

    def one_bucket(numbers, used, state):
        results, slots = tile_values(env, segment, numbers), jnp.arange(len(numbers), dtype=jnp.int32)
        return _write(env, segment, numbers, slots < used, results, tau, norm, state)

    def rung(size: int):  # it holds them all
        at = jnp.minimum(jnp.arange(size, dtype=jnp.int32), count - 1)
        return lambda state: one_bucket(tiles[at], count, cleared(state))

    def skip(state):
        return tuple((stored, masks, jnp.zeros_like(flags)) for stored, masks, flags in state)

    sizes = bucket_sizes(bucket, above)
    if bucket is None:
        paths = [rung(size) for size in sizes]
    else:
        paths = [lambda state: for_each_bucket(tiles, count, sizes, one_bucket, cleared(state))]
    paths = [skip, *paths, dense_path(env, segment, tau, norm, _hold_small)]
    lowest = jnp.sum(count > jnp.asarray((0, *sizes[:-1]), jnp.int32), dtype=jnp.int32)
    state = lax.switch(jnp.where(count > above, len(paths) - 1, lowest), paths, state)
    return state, jnp.where(count > above, grid.per_stream, jnp.sum(found, axis=(1, 2), dtype=jnp.int32))
