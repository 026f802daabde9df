"""A segment's operations on tile arrays: of some tiles, of whole pictures, and what masks reach through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from . import _masks
from ._age import Turn
from ._detect import Threshold, by_picture, holds, of_stream
from ._env import Env
from ._geometry import Span
from ._plan import Plan, Reading, TileSegment, leaves_picture
from ._program import Kind, Place, TileOp, Value
from ._tiles import Grid, Layout


def _crop(tiles: jax.Array, have: tuple[Span, Span], want: tuple[Span, Span], picture: tuple[int, int]) -> jax.Array:
    starts, limits = [0] * tiles.ndim, list(tiles.shape)
    for axis, had, wanted in zip(picture, have, want, strict=True):
        starts[axis] = wanted.offset - had.offset
        limits[axis] = starts[axis] + wanted.length
    return tiles if tuple(limits) == tiles.shape and not any(starts) else lax.slice(tiles, starts, limits)


def _fill_outside(tiles: jax.Array, value: Value, spans, origin, fill) -> jax.Array:
    """Replace what lies outside the picture by what a window finds there."""
    assert value.axes is not None
    inside = []
    for span, at, extent in zip(spans, origin, value.picture, strict=True):
        position = span.start(at)[:, None] + jnp.arange(span.length, dtype=jnp.int32)[None]
        inside.append((position >= 0) & (position < extent))
    keep = inside[0][:, :, None] & inside[1][:, None, :]
    keep = _masks.at(keep, tiles.ndim, value.axes.row + 1, value.axes.col + 1)
    return jnp.where(keep, tiles, jnp.asarray(fill, tiles.dtype))


def _compute(
    segment: TileSegment, reading: Reading, grid: Grid | None, values: dict[Value, Any], origin: tuple[Any, Any],
    clean: frozenset[Value],
) -> dict[Value, jax.Array]:
    """Run the segment's operations on tile arrays at `origin`; `clean` values are zero outside their picture."""
    values = dict(values)
    for op in segment.ops:
        operands = []
        for value, spans in zip(op.inputs, reading.inputs[op], strict=True):
            operand = values[value]
            if value.is_tiled:
                assert value.axes is not None
                picture = (value.axes.row + 1, value.axes.col + 1)
                operand = _crop(operand, reading.needs[value], spans, picture)
                known = op.fill == 0 and value in clean
                if op.fill is not None and value.kind is Kind.MAP and not known and leaves_picture(value, spans, grid):
                    operand = _fill_outside(operand, value, spans, origin, op.fill)
            operands.append(operand)
        how = _places(reading, op, origin) if op.placed else reading.pads[op]
        values.update(zip(op.outputs, op.apply(how, *operands), strict=True))
    return values


def _places(reading: Reading, op: TileOp, origin: tuple[Any, Any]) -> tuple[Place, Place]:
    made = next(v for v in op.outputs if v in reading.needs)
    rows, cols = (
        Place(result.start(at), source.start(at), result.length, result.num == result.offset == 0)
        for result, source, at in zip(reading.needs[made], reading.inputs[op][op.first_tiled], origin, strict=True)
    )
    return rows, cols


def _whole_operand(env: Env, value: Value, op: TileOp, stream: jax.Array) -> jax.Array:
    """A whole operand for the tiles of these streams: ``[K, ...]``."""
    array, axes = env.wholes[value], op.outputs[0].axes
    inner = env.plan.streams
    assert axes is not None
    if value.shape == () or inner == 1 or axes.stream is None or value.shape[axes.stream] == 1:
        return array[stream // inner]
    array = jnp.moveaxis(array, axes.stream + 1, 1)
    array = array.reshape(-1, *array.shape[2:])[stream]
    return jnp.expand_dims(array, axes.stream + 1)


def _others(env: Env, segment: TileSegment, stream: jax.Array) -> dict[Value, Any]:
    found: dict[Value, Any] = {}
    for op in segment.ops:
        for value in op.inputs:
            if value in segment.others and value not in found:
                if value.kind is Kind.FIXED:
                    found[value] = env.fixed[value]
                else:
                    found[value] = _whole_operand(env, value, op, stream)
    return found


def position_mask(layout: Layout, new: jax.Array, old: jax.Array, tau: Threshold, norm: str) -> jax.Array:
    """`[K, h, w]`: where tile arrays differ, by more than `tau` or one for each position `[K, h, w]`."""
    turned = layout.axes.row > layout.axes.col
    if turned and isinstance(tau, jax.Array) and tau.ndim == 3:
        tau = tau.swapaxes(1, 2)
    mask = _masks.changed(new, old, layout.tile_channels, tau, norm)
    return mask.swapaxes(1, 2) if turned else mask


def threshold(
    env: Env, grid: Grid, numbers: Int[Array, " *K"], stream: Int[Array, " *K"], tau: Threshold
) -> Threshold:
    """Of these tiles: in its turn nothing of a tile is held back."""
    if not holds(tau):
        return tau
    tau = of_stream(tau, stream)
    return tau if env.turn is None else jnp.where(env.turn.has(grid, numbers, stream), 0.0, tau)


def candidates(
    env: Env, segments: Sequence[TileSegment], turns: Sequence[Turn | None]
) -> list[Bool[Array, "S _ _"]]:
    """The tiles of each segment that have to be computed: what changed reaches them, or it is their turn."""
    asked = []
    for segment in segments:
        for value in segment.maps:
            rows, cols = segment.tile.needs[value]
            asked.append((env.mask(value), (segment.grid.rows, rows), (segment.grid.cols, cols)))
    reached = iter(_masks.tiles_reached_each(asked))
    every = []
    for segment, turn in zip(segments, turns, strict=True):
        grid = segment.grid
        found = jnp.broadcast_to(env.fresh[:, None, None], (env.streams, grid.rows.count, grid.cols.count))
        for _ in segment.maps:
            found |= next(reached)
        for value in segment.wholes:
            found |= env.by_stream(env.whole_flags[value])[:, None, None]
        every.append(found if turn is None else found | turn.tiles(grid))
    return every


def _clean(segment: TileSegment, plan: Plan) -> frozenset[Value]:
    return frozenset(v for v in segment.reads if v in plan.layouts)


def tile_values(env: Env, segment: TileSegment, numbers: Int[Array, "K"]) -> list[jax.Array]:
    """What the segment writes, of the tiles of these numbers."""
    plan, grid = env.plan, segment.grid
    stream, y, x = grid.origin(numbers)
    values = _others(env, segment, stream)
    for value in segment.reads:
        rows, cols = segment.tile.needs[value]
        stored = env.fixed[value] if value.kind is Kind.FIXED else env.maps[value]
        values[value] = plan.layouts[value].gather(
            stored, stream, rows.start(y), cols.start(x), rows.length, cols.length
        )
    values = _compute(segment, segment.tile, grid, values, (y, x), _clean(segment, plan))
    return [values[v] for v in segment.writes]


def dense_values(env: Env, segment: TileSegment) -> dict[Value, jax.Array]:
    """Every picture as one tile per stream, through the same operations."""
    plan, streams = env.plan, env.streams
    stream, zero = jnp.arange(streams), jnp.zeros((streams,), jnp.int32)
    values = _others(env, segment, stream)
    for value in segment.reads:
        rows, cols = segment.whole.needs[value]
        stored = env.fixed[value] if value.kind is Kind.FIXED else env.maps[value]
        found = plan.layouts[value].window(stored, rows.start(0), cols.start(0), rows.length, cols.length)
        if found.shape[0] != streams:
            found = jnp.tile(found, (streams // found.shape[0],) + (1,) * (found.ndim - 1))
        values[value] = found
    return _compute(segment, segment.whole, None, values, (zero, zero), _clean(segment, plan))


def reached(env: Env, segment: TileSegment) -> dict[Value, jax.Array]:
    """Position by position, what the masks of the segment's inputs reach of its results."""
    masks: dict[Value, Any] = {v: env.mask(v) for v in segment.maps}
    fresh = jnp.expand_dims(env.fresh, (1, 2))
    for op in segment.ops:
        picture = op.outputs[0].picture
        found = fresh
        for value, windows in zip(op.inputs, op.windows(), strict=True):
            if value in masks:
                found = found | _masks.reach(masks[value], *windows, picture)
            elif value.kind is Kind.WHOLE:
                found = found | jnp.expand_dims(env.by_stream(env.whole_flags[value]), (1, 2))
        masks.update((v, jnp.broadcast_to(found, (env.streams, *picture))) for v in op.outputs)
    return {v: masks[v] for v in segment.writes}


def cleared(state):
    """The masks and flags of the last step taken back."""
    return tuple((stored, jnp.zeros_like(masks), jnp.zeros_like(flags)) for stored, masks, flags in state)


def unchanged(state):
    """As it is, and marked so: a mask counts only where its flag is set."""
    return tuple((*old[:-1], jnp.zeros_like(old[-1])) for old in state)


def dense_path(env: Env, segment: TileSegment, tau: Threshold, norm: str, hold_small: Callable[..., Any]):
    """``state -> state``: all of the segment computed.

    Args:
        hold_small: ``(env, segment, values, tau, norm, state) -> state``, writes where they differ by more than `tau`.
    """

    def path(state):
        values = dense_values(env, segment)
        if holds(tau):
            state = hold_small(env, segment, values, tau, norm, state)
            return state if not isinstance(tau, jax.Array) else _reached_at_zero(env, segment, tau, state)
        masks = reached(env, segment)
        return tuple(
            (env.plan.layouts[v].store_whole(values[v]), masks[v], jnp.any(masks[v], axis=(1, 2)))
            for v in segment.writes
        )

    return path


def _reached_at_zero(env: Env, segment: TileSegment, tau: jax.Array, state):
    """The masks that the dense path gives at `tau` 0, where it does not compare."""
    masks = reached(env, segment)
    above = by_picture(tau) > 0
    masks = [jnp.where(above, mask, masks[v]) for v, (_, mask, _) in zip(segment.writes, state, strict=True)]
    return tuple((stored, mask, jnp.any(mask, axis=(1, 2))) for (stored, *_), mask in zip(state, masks, strict=True))


def afresh(
    plan: Plan, segment: TileSegment, layouts: Mapping[Value, Layout], fixed: Mapping[Value, jax.Array],
    frame: jax.Array, numbers: jax.Array,
) -> jax.Array:
    """The tiles of those numbers of what a cone writes, computed from the frame alone; see `_plan.cone`."""
    stream, y, x = segment.grid.origin(numbers)
    values: dict[Value, Any] = {v: fixed[v] for v in segment.others}
    for value in segment.reads:
        layout, (rows, cols) = layouts[value], segment.tile.needs[value]
        array = frame if value is plan.frame else plan.layouts[value].load(fixed[value])
        values[value] = layout.gather(layout.store(array), stream, rows.start(y), cols.start(x), rows.length,
                                      cols.length)
    return _compute(segment, segment.tile, segment.grid, values, (y, x), frozenset(layouts))[segment.writes[0]]
