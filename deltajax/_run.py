"""One step of a plan: detect, then segment by segment what the masks reach.

State of V calls with S streams in all (S = V x the streams inside one call), all leaves with a leading axis of S or V:

* `age` int32 [S]: frames since everything was computed, which it is at 0: in a fresh cache. Set it to 0 to have the
  next frame computed whole.
* `maps`, `masks`, `flags`: stored maps, their change masks [S, h, w], and whether anything changed [S]. A mask
  counts only where its flag is set: what did not run leaves an old mask behind.
* `wholes`, `whole_flags`: whole values [V, ...] and whether they changed [V].
* `issued` int32 [S, segments]: tiles computed.
* `stood` int8 [S, h, w], only where a change has to stand: in how many frames in a row the frame differed there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import _masks, native
from ._age import Turn, older
from ._buckets import choose_path, cores, for_each_bucket, tile_list
from ._detect import Detection, Threshold, by_picture, detect, holds, of_stream
from ._geometry import Span, TileAxis, choose_tile
from ._plan import Plan, Reading, TileSegment, WholeSegment, leaves_picture
from ._program import Kind, Place, TileOp, Value
from ._rates import rates
from ._tiles import Grid, Layout

State = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """How a plan is run; see `incremental`."""

    how: Detection
    taus: Mapping[str, Threshold]
    bucket: int | None
    dense_share: float | None
    max_age: int | None

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


# Above this share the dense path is at least as fast however much work a tile is; below this share, or this number
# (what one changed pixel can reach), it is not worth asking.
MOST_TILES, LEAST_TILES, FEW_TILES = 0.6, 0.25, 4


def dense_above(segment: TileSegment, streams: int, inner: int, share: float | None) -> int:
    """The number of tiles above which the segment is done densely: soon, where a tile is little work.

    Of `streams` streams, `inner` of them in one call of the function.
    """
    total = segment.grid.per_stream * streams
    if share is None:
        known = rates()
        tile = segment.flops_per_tile / known.tile_rate + known.tile_overhead
        dense = segment.flops / known.dense_rate / inner
        share = min(MOST_TILES, max(LEAST_TILES, dense / (segment.grid.per_stream * tile)))
        return min(max(FEW_TILES, int(share * total)), total - 1)  # all of them are never better done as tiles
    return int(share * total)


def initial_state(plan: Plan, how: Detection) -> State:
    streams = plan.streams
    stood = {"stood": jnp.zeros((streams, *plan.frame.picture), jnp.int8)} if how.stand > 1 else {}
    return {
        **stood,
        "age": jnp.zeros((streams,), jnp.int32),
        "maps": tuple(jnp.zeros(plan.layouts[v].stored_shape(streams), v.dtype) for v in plan.maps),
        "masks": tuple(jnp.zeros((streams, *v.picture), bool) for v in plan.maps),
        "flags": tuple(jnp.zeros((streams,), bool) for _ in plan.maps),
        "wholes": tuple(jnp.zeros((1, *v.shape), v.dtype) for v in plan.wholes),
        "whole_flags": tuple(jnp.zeros((1,), bool) for _ in plan.wholes),
        "issued": jnp.zeros((streams, len(plan.segments)), jnp.int32),
    }


@dataclasses.dataclass
class Env:
    """The values of this step so far."""

    plan: Plan
    calls: int
    fresh: jax.Array  # [S]
    fixed: dict[Value, jax.Array]
    maps: dict[Value, jax.Array]
    masks: dict[Value, jax.Array]
    flags: dict[Value, jax.Array]
    wholes: dict[Value, jax.Array]
    whole_flags: dict[Value, jax.Array]
    turn: Turn | None = None

    @classmethod
    def of(
        cls, plan: Plan, calls: int, fixed: dict[Value, jax.Array], state: State, max_age: int | None = None
    ) -> Env:
        """What a state holds, before the step changes it."""

        def named(values, name: str) -> dict[Value, jax.Array]:
            return dict(zip(values, state[name], strict=True))

        return cls(
            plan, calls, state["age"] == 0, fixed, named(plan.maps, "maps"), named(plan.maps, "masks"),
            named(plan.maps, "flags"), named(plan.wholes, "wholes"), named(plan.wholes, "whole_flags"),
            None if max_age is None else Turn(max_age, state["age"]),
        )

    @property
    def streams(self) -> int:
        return self.calls * self.plan.streams

    def mask(self, value: Value) -> jax.Array:
        return self.masks[value] & self.flags[value][:, None, None]

    def by_call(self, flags: jax.Array) -> jax.Array:
        """[S] to [V]."""
        return jnp.any(flags.reshape(self.calls, self.plan.streams), axis=1)

    def by_stream(self, flags: jax.Array) -> jax.Array:
        """[V] to [S]."""
        return jnp.repeat(flags, self.plan.streams, total_repeat_length=self.streams)


# ---------------------------------------------------------------------------------------------------- tiles


def _crop(tiles: jax.Array, have: tuple[Span, Span], want: tuple[Span, Span], picture: tuple[int, int]) -> jax.Array:
    starts, limits = [0] * tiles.ndim, list(tiles.shape)
    for axis, had, wanted in zip(picture, have, want, strict=True):
        starts[axis] = wanted.offset - had.offset
        limits[axis] = starts[axis] + wanted.length
    return lax.slice(tiles, starts, limits)


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


def _position_mask(layout: Layout, new: jax.Array, old: jax.Array, tau: Threshold, norm: str) -> jax.Array:
    """`[K, h, w]`: where tile arrays differ, by more than `tau` or one for each position `[K, h, w]`."""
    turned = layout.axes.row > layout.axes.col
    if turned and isinstance(tau, jax.Array) and tau.ndim == 3:
        tau = tau.swapaxes(1, 2)
    mask = _masks.changed(new, old, layout.tile_channels, tau, norm)
    return mask.swapaxes(1, 2) if turned else mask


def _threshold(env: Env, grid: Grid, number: jax.Array, stream: jax.Array, tau: Threshold) -> Threshold:
    """Of one tile: in its turn nothing is held back."""
    if not holds(tau):
        return tau
    tau = of_stream(tau, stream)
    return tau if env.turn is None else jnp.where(env.turn.has(grid, number, stream), 0.0, tau)


def _update(env: Env, layout: Layout, grid: Grid, at, new: jax.Array, tau: Threshold, norm: str, stored, masks, flags):
    """Write one tile (K = 1) where it changed. The write depends on what it overwrites, so XLA does it in place."""
    stream, y, x = at
    height, width = grid.tile
    old = layout.read(stored, stream, y, x, height, width)
    # A fresh cache holds nothing to compare with: all of it is new.
    mask = _position_mask(layout, new, old, tau, norm) | env.fresh[stream]
    # Without the barrier XLA compares again for the flag, after the write, on a copy of all that is stored.
    mask = lax.optimization_barrier(mask)
    keep = _masks.at(mask, new.ndim, *layout.tile_picture)
    stored = layout.write(stored, jnp.where(keep, new, old), stream, y, x)
    if grid.ragged:  # tiles overlap: the later one must not unset what the earlier one found
        mask = mask | lax.dynamic_slice(masks, (stream, y, x), (1, height, width))
    masks = lax.dynamic_update_slice(masks, mask, (stream, y, x))
    flag = jnp.any(mask)[None] | lax.dynamic_slice(flags, (stream,), (1,))
    return stored, masks, lax.dynamic_update_slice(flags, flag, (stream,))


def _cleared(state):
    """The masks and flags of the last step taken back."""
    return tuple((stored, jnp.zeros_like(masks), jnp.zeros_like(flags)) for stored, masks, flags in state)


def _clean(segment: TileSegment, plan: Plan) -> frozenset[Value]:
    return frozenset(v for v in segment.reads if v in plan.layouts)


def _tile_path(env: Env, segment: TileSegment, buckets: tuple[int, ...], tau: Threshold, norm: str, tiles):
    plan, grid = env.plan, segment.grid

    def one_bucket(numbers, used, state):
        stream, y, x = grid.origin(numbers)
        values = _others(env, segment, stream)
        for value in segment.reads:
            rows, cols = segment.tile.needs[value]
            stored = env.fixed[value] if value.kind is Kind.FIXED else env.maps[value]
            values[value] = plan.layouts[value].gather(
                stored, stream, rows.start(y), cols.start(x), rows.length, cols.length
            )
        values = _compute(segment, segment.tile, grid, values, (y, x), _clean(segment, plan))
        results = [values[v] for v in segment.writes]

        def write(k, state):
            at = (stream[k], y[k], x[k])
            least = _threshold(env, grid, numbers[k], stream[k], tau)
            after = []
            for value, result, old in zip(segment.writes, results, state, strict=True):
                new = lax.dynamic_slice_in_dim(result, k, 1)
                after.append(_update(env, plan.layouts[value], grid, at, new, least, norm, *old))
            return tuple(after)

        return lax.fori_loop(0, used, write, state)

    def path(count, state):
        return for_each_bucket(tiles, count, buckets, one_bucket, _cleared(state))

    return path


def _dense_values(env: Env, segment: TileSegment) -> dict[Value, jax.Array]:
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
    for op in segment.ops:
        picture = op.outputs[0].picture
        found = jnp.broadcast_to(env.fresh[:, None, None], (env.streams, *picture))
        for value, windows in zip(op.inputs, op.windows(), strict=True):
            if value in masks:
                found |= _masks.reach(masks[value], *windows, picture)
            elif value.kind is Kind.WHOLE:
                found |= env.by_stream(env.whole_flags[value])[:, None, None]
        masks.update((v, found) for v in op.outputs)
    return {v: masks[v] for v in segment.writes}


def _dense_path(env: Env, segment: TileSegment, tau: Threshold, norm: str):
    def path(state):
        values = _dense_values(env, segment)
        if holds(tau):
            state = _hold_small(env, segment, values, tau, norm, state)
            return state if not isinstance(tau, jax.Array) else _reached_at_zero(env, segment, tau, state)
        masks = reached(env, segment)
        return tuple(
            (env.plan.layouts[v].store_whole(values[v]), masks[v], jnp.any(masks[v], axis=(1, 2)))
            for v in segment.writes
        )

    return path


COMPARED = 64  # side of the tiles in which whole results are compared with what is stored


def _hold_small(env: Env, segment: TileSegment, values: dict[Value, jax.Array], tau: Threshold, norm: str, state):
    """Write whole results where they changed by more than `tau`: by tiles, for only that is done in place.

    The tiles are larger than those of work, of which there may be thousands.
    """
    picture = segment.writes[0].picture
    grid, cleared = Grid(*(TileAxis(n, choose_tile(n, COMPARED)) for n in picture)), _cleared(state)
    turn = None if env.turn is None else env.turn.positions(segment.grid)

    def write(number, state):
        at = grid.origin(number)
        least = of_stream(tau, at[0])
        if turn is not None:
            least = jnp.where(lax.dynamic_slice(turn, at, (1, *grid.tile)), 0.0, least)
        after = []
        for value, old in zip(segment.writes, state, strict=True):
            layout = env.plan.layouts[value]
            plain = dataclasses.replace(layout, margins=((0, 0), (0, 0)))
            new = plain.read(plain.store_whole(values[value]), *at, *grid.tile)
            after.append(_update(env, layout, grid, at, new, least, norm, *old))
        return tuple(after)

    return lax.fori_loop(0, grid.per_stream * env.streams, write, cleared)


def _reached_at_zero(env: Env, segment: TileSegment, tau: jax.Array, state):
    """The masks that the dense path gives at `tau` 0, where it does not compare."""
    masks = reached(env, segment)
    above = by_picture(tau) > 0
    masks = [jnp.where(above, mask, masks[v]) for v, (_, mask, _) in zip(segment.writes, state, strict=True)]
    return tuple((stored, mask, jnp.any(mask, axis=(1, 2))) for (stored, *_), mask in zip(state, masks, strict=True))


def _run_tiles(
    env: Env, segment: TileSegment, buckets: tuple[int, ...], share: float | None, tau: Threshold, norm: str, state
):
    """``(state, issued [S])`` of one segment."""
    grid = segment.grid
    inputs = [env.flags[v] for v in segment.maps]
    inputs += [env.by_stream(env.whole_flags[v]) for v in segment.wholes]
    turn = env.turn if holds(tau) else None  # without a threshold nothing was held back
    anything = jnp.any(jnp.stack([env.fresh, *inputs])) | (turn is not None)

    def work(state):
        candidates = jnp.broadcast_to(
            env.fresh[:, None, None], (env.streams, grid.rows.count, grid.cols.count)
        )
        for value in segment.maps:
            rows, cols = segment.tile.needs[value]
            candidates |= _masks.tiles_reached(env.mask(value), (grid.rows, rows), (grid.cols, cols))
        for value in segment.wholes:
            candidates |= env.by_stream(env.whole_flags[value])[:, None, None]
        if turn is not None:
            candidates |= turn.tiles(grid)
        tiles, count = tile_list(candidates)
        above = dense_above(segment, env.streams, env.plan.streams, share)
        state = choose_path(
            count, above, _tile_path(env, segment, buckets, tau, norm, tiles),
            _dense_path(env, segment, tau, norm), state, dense_reads_state=holds(tau),
        )
        issued = jnp.sum(candidates, axis=(1, 2), dtype=jnp.int32)
        return state, jnp.where(count > above, grid.per_stream, issued)

    def skip(state):
        return tuple((s, m, jnp.zeros_like(f)) for s, m, f in state), jnp.zeros((env.streams,), jnp.int32)

    return lax.cond(anything, work, skip, state)


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


# ---------------------------------------------------------------------------------------------------- whole


def _run_whole(env: Env, segment: WholeSegment, state):
    """Recompute everything in the segment if anything that it reads changed."""
    plan = env.plan
    flags = [env.by_call(env.fresh)]
    flags += [env.by_call(env.flags[v]) for v in segment.reads if v.kind is Kind.MAP]
    flags += [env.whole_flags[v] for v in segment.reads if v.kind is Kind.WHOLE]
    anything = jnp.any(jnp.stack(flags))
    moving = [v for v in segment.reads if v.kind is not Kind.FIXED]

    def one_call(*arrays):
        values: dict[Value, Any] = dict(zip(moving, arrays, strict=True))
        values.update((v, env.fixed[v]) for v in segment.reads if v.kind is Kind.FIXED)
        for op in segment.ops:
            values.update(zip(op.outputs, op.apply(*(values[v] for v in op.inputs)), strict=True))
        return [values[v] for v in segment.writes]

    def work(state):
        arrays = [plan.layouts[v].load(env.maps[v]) if v.kind is Kind.MAP else env.wholes[v] for v in moving]
        if env.calls == 1:
            results = [jnp.asarray(x)[None] for x in one_call(*(a[0] for a in arrays))]
        else:
            results = jax.vmap(one_call)(*arrays)
        after = []
        for value, new, old in zip(segment.writes, results, state, strict=True):
            if value.is_tiled:
                layout = plan.layouts[value]
                tiles = layout.window(layout.store(new), 0, 0, *layout.picture)
                before = layout.window(old[0], 0, 0, *layout.picture)
                mask = _position_mask(layout, tiles, before, 0.0, "linf") | env.fresh[:, None, None]
                after.append((layout.store(new), mask, jnp.any(mask, axis=(1, 2))))
            else:
                differs = jnp.any((new != old[0]).reshape(env.calls, -1), axis=1)
                after.append((new, differs | env.by_call(env.fresh)))
        return tuple(after)

    def skip(state):
        return tuple((*old[:-1], jnp.zeros_like(old[-1])) for old in state)

    return lax.cond(anything, work, skip, state), anything


# ---------------------------------------------------------------------------------------------------- the step


def _run_native(env: Env, segment: TileSegment, options: Options, state):
    tau = options.taus.get(segment.name, 0.0)
    turn = env.turn if holds(tau) else None
    arrays: dict[native.Part, dict[Value, jax.Array]] = {
        "stored": env.maps | {v: env.fixed[v] for v in segment.reads if v.kind is Kind.FIXED}, "mask": env.masks,
        "flag": env.flags, "fixed": env.fixed, "gate": env.wholes, "gate flag": env.whole_flags,
    }
    due = None if turn is None else turn.tiles(segment.grid)
    return native.run(segment, arrays, env.fresh, tau, options.how.norm, due, state)


def run_segment(env: Env, segment: TileSegment | WholeSegment, options: Options) -> jax.Array:
    """Bring what the segment writes in `env` up to date; how many tiles that took, `[S]` (of a whole segment 1)."""
    before = tuple(
        (env.maps[v], env.masks[v], env.flags[v]) if v.is_tiled else (env.wholes[v], env.whole_flags[v])
        for v in segment.writes
    )
    if isinstance(segment, TileSegment) and segment.native is not None:
        after, issued = _run_native(env, segment, options, before)
    elif isinstance(segment, TileSegment):
        sizes, tau = bucket_sizes(segment, options.bucket), options.taus.get(segment.name, 0.0)
        after, issued = _run_tiles(env, segment, sizes, options.dense_share, tau, options.how.norm, before)
    else:
        after, ran = _run_whole(env, segment, before)
        issued = jnp.broadcast_to(ran, (env.streams,)).astype(jnp.int32)
    for value, new in zip(segment.writes, after, strict=True):
        if value.is_tiled:
            env.maps[value], env.masks[value], env.flags[value] = new
        else:
            env.wholes[value], env.whole_flags[value] = new
    return issued


def run_step(
    plan: Plan, options: Options, fixed: dict[Value, jax.Array], state: State, given: jax.Array | None,
    frame: jax.Array,
) -> tuple[list[jax.Array], State, list[jax.Array]]:
    """``(outputs [V, ...], state, masks)`` for frames `[V, *shape]`."""
    calls = frame.shape[0]
    env = Env.of(plan, calls, fixed, state, options.max_age)
    source = plan.frame
    env.maps[source], env.masks[source], env.flags[source], env.fresh, stood = detect(
        plan.layouts[source], options.how, env.maps[source], frame, given, env.fresh, env.turn, state.get("stood")
    )
    issued = [run_segment(env, segment, options) for segment in plan.segments]
    outputs, masks = [], []
    for value in plan.outputs:
        if value.kind is Kind.MAP:
            outputs.append(plan.layouts[value].load(env.maps[value]))
            masks.append(env.mask(value))
        elif value.kind is Kind.WHOLE:
            outputs.append(env.wholes[value])
            masks.append(env.whole_flags[value])
        else:
            array = jnp.asarray(fixed[value])
            outputs.append(jnp.broadcast_to(array, (calls, *array.shape)))
            masks.append(env.by_call(env.fresh))
    after_state = {
        "age": older(jnp.where(env.fresh, 0, state["age"])),
        "maps": tuple(env.maps[v] for v in plan.maps),
        "masks": tuple(env.masks[v] for v in plan.maps),
        "flags": tuple(env.flags[v] for v in plan.maps),
        "wholes": tuple(env.wholes[v] for v in plan.wholes),
        "whole_flags": tuple(env.whole_flags[v] for v in plan.wholes),
        "issued": jnp.stack(issued, axis=1) if issued else state["issued"],
    }
    if stood is not None:
        after_state["stood"] = stood
    return outputs, after_state, masks
