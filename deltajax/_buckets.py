"""From candidate tiles to loops over fixed-size buckets, and the choice between skip, tiles and dense."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tile_list(candidates: Bool[Array, "S ny nx"]) -> tuple[Int[Array, "N"], Int[Array, ""]]:
    """The numbers of the candidate tiles in ascending order, then filler; and how many they are.

    One flat list for all streams, so that quiet streams leave their share to busy ones.
    """
    flat = candidates.reshape(-1)
    number = jnp.arange(flat.size, dtype=jnp.int32)
    return jnp.sort(jnp.where(flat, number, flat.size)), jnp.sum(flat, dtype=jnp.int32)


BLOCK = 128  # candidates that are counted together


def tile_lists(
    candidates: Sequence[Bool[Array, "S _ _"]],
) -> tuple[Int[Array, "N"], Int[Array, "K"], Int[Array, "K S"]]:
    """`tile_list` of K grids, for accelerators, where a sort is dozens of kernels: counts by blocks, then one scatter.

    Returns:
        ``(tiles, first, counts)``: the lists one behind the other, then filler; where each begins; how many tiles of
        each stream are in it.
    """
    flat = jnp.concatenate([found.reshape(-1) for found in candidates])
    number = jnp.concatenate([jnp.arange(found.size, dtype=jnp.int32) for found in candidates])
    sums = _running_sum(flat.astype(jnp.int32))
    tiles = jnp.zeros_like(number).at[jnp.where(flat, sums - 1, flat.size)].set(
        number, mode="drop", unique_indices=True
    )
    streams = len(candidates[0])
    ends = np.cumsum(np.repeat([found.size // streams for found in candidates], streams))
    after = sums[ends - 1]
    before = jnp.concatenate([jnp.zeros((1,), jnp.int32), after[:-1]])
    return tiles, before[::streams], (after - before).reshape(-1, streams)


def _running_sum(x: Int[Array, "n"]) -> Int[Array, "n"]:
    """Of each block by itself, with more additions than needed, in one kernel; then of the blocks, in the same way."""
    if x.size <= BLOCK:
        return lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, (x.size,), (1,), ((x.size - 1, 0),))
    blocks = -(-x.size // BLOCK)
    parts = jnp.pad(x, (0, blocks * BLOCK - x.size)).reshape(blocks, BLOCK)
    within = lax.reduce_window(parts, jnp.zeros((), x.dtype), lax.add, (1, BLOCK), (1, 1), ((0, 0), (BLOCK - 1, 0)))
    totals = within[:, -1]
    return (within + (_running_sum(totals) - totals)[:, None]).reshape(-1)[: x.size]


def for_each_bucket(
    tiles: Int[Array, "N"], count: Int[Array, ""], sizes: tuple[int, ...],
    body: Callable[[Int[Array, "B"], Int[Array, ""], Any], Any], state: Any,
) -> Any:
    """``state = body(numbers, used, state)`` for every bucket, largest first.

    A larger size is taken as long as more than half of such a bucket is left to do. The last bucket repeats its
    last tile in unused slots; `used` tells how many are to be written. Any number of tiles is right: the loops go on.
    """
    done = jnp.zeros((), jnp.int32)
    for size in sizes:
        rest = count - done
        turns = (rest + size - 1) // size if size == sizes[-1] else (rest + size - 1 - size // 2) // size

        def one(i, carry, size=size, first=done):
            start = first + i * size
            at = jnp.minimum(start + jnp.arange(size, dtype=jnp.int32), count - 1)
            return body(tiles[at], jnp.minimum(size, count - start), carry)

        state = lax.fori_loop(0, turns, one, state)
        done = jnp.minimum(count, done + turns * size)
    return state


def choose_path(
    count: Int[Array, ""], dense_above: int, tiles: Callable[[Any, Any], Any], dense: Callable[[Any], Any], state: Any,
    *, dense_reads_state: bool = False,
) -> Any:
    """``tiles(count, state)``, or ``dense(state)`` where more than `dense_above` tiles are to be done.

    Args:
        dense_reads_state: whether the dense path updates the state rather than replace it. XLA would then copy the
            state for a branch; a loop of at most one turn is done in place.
    """
    if dense_reads_state:
        is_dense = count > dense_above
        state = tiles(jnp.where(is_dense, 0, count), state)
        return lax.fori_loop(0, is_dense.astype(jnp.int32), lambda _, state: dense(state), state)
    return lax.cond(count > dense_above, dense, lambda state: tiles(count, state), state)
