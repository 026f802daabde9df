"""The frame against the held frame: what changed, and what is held from now on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from . import _masks
from ._age import Turn
from ._buckets import choose_path, for_each_bucket, tile_list
from ._geometry import Span, TileAxis, choose_tile
from ._tiles import NONE, Grid, Layout, slice_at

# An array is a threshold that the compiled step is given: one for all streams, or one for each. It does what a number
# does, 0 included, but always takes the ways of a threshold above 0.
Threshold = float | jax.Array


def holds(tau: Threshold) -> bool:
    """Whether values may have to be held back."""
    return isinstance(tau, jax.Array) or tau > 0


def of_stream(tau: Threshold, stream: jax.Array) -> Threshold:
    """The threshold of one stream."""
    return tau[stream] if isinstance(tau, jax.Array) and tau.ndim else tau


def by_picture(tau: Threshold) -> Threshold:
    """In a shape that goes with `[S, H, W]`."""
    return tau.reshape(-1, 1, 1) if isinstance(tau, jax.Array) else tau


@dataclasses.dataclass(frozen=True)
class Detection:
    """How the frame is compared with the held frame; see `incremental`."""

    tau: Threshold
    norm: str
    cell: int
    field: int
    reference: str
    trust: bool = False
    scene_cut: float | None = None
    stand: int = 1
    large: float | None = None


def pictures(layout: Layout, stored: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new frame and the held one, as tiles of the size of the picture."""
    plain = dataclasses.replace(layout, margins=NONE)
    new = plain.window(plain.store(frame), 0, 0, *layout.picture)
    return new, layout.window(stored, 0, 0, *layout.picture)


def find(layout: Layout, how: Detection, new: jax.Array, old: jax.Array) -> jax.Array:
    """`[S, H, W]`: where the frame differs from the held one."""
    turned = layout.axes.row > layout.axes.col
    found = _masks.changed(new, old, layout.tile_channels, by_picture(how.tau), how.norm, how.cell, how.field)
    return found.swapaxes(1, 2) if turned else found


def _standing(
    layout: Layout, how: Detection, new: jax.Array, old: jax.Array, stood: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``(changed, stood)``: what differs, if it is large or did so in enough frames in a row; and in how many it did,
    int8 `[S, H, W]`, 0 where it counts as a change from now on."""
    found = find(layout, how, new, old)
    stood = jnp.where(found, stood + 1, 0).astype(stood.dtype)
    changed = (stood >= how.stand) | find(layout, dataclasses.replace(how, tau=how.large), new, old)
    return changed, jnp.where(changed, 0, stood).astype(stood.dtype)


def is_cut(new: jax.Array, old: jax.Array, above: float) -> jax.Array:
    """`[S]`: whether the frame shows another scene than the held one; never, where it has NaN."""
    gap = jnp.abs(new.astype(jnp.float32) - old.astype(jnp.float32))
    return jnp.mean(gap, axis=tuple(range(1, gap.ndim))) > above


def detect(
    layout: Layout, how: Detection, stored: jax.Array, frame: jax.Array, given: jax.Array | None, fresh: jax.Array,
    turn: Turn | None = None, stood: jax.Array | None = None, at_once: bool = False,
):
    """``(held, mask, flags, fresh, stood)``: find what changed, unite it with the given mask, hold the new values.

    Args:
        stored: the held frame in storage form; `frame`: `[V, *shape]`; `given`: mask of positions `[S, H, W]`.
        fresh: `[S]`: for which nothing is held yet. That comes back with the streams whose scene was cut.
        turn: the tiles whose turn it is to be compared exactly.
        stood: in how many frames each position has differed, where a change has to stand.
        at_once: write the picture in one go: for accelerators.
    """
    plain = dataclasses.replace(layout, margins=NONE)
    new, old = pictures(layout, stored, frame)
    rows, cols = (TileAxis(n, choose_tile(n, 32)) for n in layout.picture)
    grid = Grid(rows, cols)
    mask = jnp.zeros((), bool) if given is None else given
    if given is None or not how.trust:
        if stood is None:
            found = find(layout, how, new, old)
        else:
            found, stood = _standing(layout, how, new, old, stood)
        mask = mask | found
        if turn is not None and holds(how.tau):
            exact = find(layout, dataclasses.replace(how, tau=0.0, cell=1, field=1), new, old)
            mask = mask | (turn.positions(grid) & (exact | (how.reference == "previous")))
    if how.scene_cut is not None:
        fresh = fresh | is_cut(new, old, how.scene_cut)
    mask = mask | fresh[:, None, None]
    if how.reference == "previous":
        return layout.store(frame), mask, jnp.any(mask, axis=(1, 2)), fresh, stood
    if at_once:
        if how.trust or holds(how.tau):  # else what is not marked is equal
            new = jnp.where(_masks.at(mask, new.ndim, *layout.tile_picture), new, old)
        return layout.store_whole(new), mask, jnp.any(mask, axis=(1, 2)), fresh, stood
    candidates = _masks.tiles_reached(mask, *((a, Span(1, 1, 0, a.tile)) for a in (rows, cols)))
    flags = jnp.any(candidates, axis=(1, 2))

    def some(stored, tiles, count):
        def one(numbers, used, stored):
            stream, y, x = (at[0] for at in grid.origin(numbers))
            tile = plain.read(plain.store(frame), stream, y, x, *grid.tile)
            held = layout.read(stored, stream, y, x, *grid.tile)
            here = slice_at(mask, (stream, y, x), (1, *grid.tile))
            keep = _masks.at(here, tile.ndim, *layout.tile_picture)
            return layout.write(stored, jnp.where(keep, tile, held), stream, y, x)

        return for_each_bucket(tiles, count, (1,), one, stored)

    def work(stored):
        tiles, count = tile_list(candidates)
        if how.trust or holds(how.tau):
            return some(stored, tiles, count)
        # What is not marked is equal: the whole frame may be written, without reading what was held.
        above = grid.per_stream * flags.size // 2
        return choose_path(
            count, above, lambda count, s: some(s, tiles, count), lambda _: layout.store_whole(new), stored
        )

    return lax.cond(jnp.any(flags), work, lambda stored: stored, stored), mask, flags, fresh, stood
