"""Segments on accelerators: all tiles of a frame are gathered, computed and written at once.

A loop makes an accelerator wait for its predicate in each turn, and a bucket of a few tiles leaves most of it idle. So
a segment has one bucket in a frame. To ask how many tiles there are is a wait as well, and a long one for most
segments. So what the frame's mask *reaches* through all windows, which bounds every mask behind it, is followed first,
for a whole *run* of segments, and their tiles are listed together. Then *chunks* of the run, each of them worth one
question, have their buckets chosen together: the smallest rung of a ladder that holds what was found. What stays empty
of a bucket is computed in vain.

A run ends where values are compared, for there masks become smaller than what is reached: at a threshold, or where a
whole value becomes a map. Elsewhere nothing is compared: all that is reached counts as changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from . import _masks
from ._buckets import for_each_bucket, tile_lists
from ._compute import candidates, cleared, dense_path, position_mask, reached, threshold, tile_values, unchanged
from ._detect import Threshold, by_picture, holds
from ._env import Env
from ._ladder import Rung, ladder
from ._options import Options
from ._plan import Plan, Segment, TileSegment
from ._program import Kind, Value
from ._rates import dense_above, rates
from ._whole import reached_calls, run_whole

# Of the network's FLOPs: the share from which on a whole segment is worth the question whether it can be skipped.
WORTH_ASKING = 0.01

# In seconds, what a question costs; and how many times as long what it decides on takes densely.
QUESTION, WORTH = 60e-6, 8

UNBOUNDED = jnp.iinfo(jnp.int32).max


def runs(segments: Sequence[Segment], options: Options) -> Iterator[list[Segment]]:
    """Segments whose tiles are listed together."""
    run: list[Segment] = []
    for segment in segments:
        run.append(segment)
        if _compares(segment, options):
            yield run
            run = []
    if run:
        yield run


def chunks(run: Sequence[Segment], plan: Plan, streams: int) -> Iterator[list[Segment]]:
    """Segments whose buckets are chosen together."""
    chunk: list[Segment] = []
    for segment in run:
        chunk.append(segment)
        dense = sum(s.flops for s in chunk) * streams / plan.streams / rates(plan.program.on_cpu).dense_rate
        if dense >= WORTH * QUESTION:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _compares(segment: Segment, options: Options) -> bool:
    """Whether maps that it writes are compared with what is stored."""
    if not isinstance(segment, TileSegment):
        return any(value.is_tiled for value in segment.writes)
    # Against the previous frame, what is below the threshold becomes part of later results all the same.
    return holds(options.tau(segment.name)) or options.how.reference == "previous"


class _Reach:
    """What the masks in `env` reach in a run: tiles of every segment, and positions of all that they write.

    Attributes:
        env: with masks and flags that claim all that is reached.
    """

    def __init__(self, env: Env, run: Sequence[Segment], options: Options):
        self.env = env.copy()
        tiled = [segment for segment in run if isinstance(segment, TileSegment)]
        self._number = {segment: number for number, segment in enumerate(tiled)}  # of the list
        self._calls: dict[Segment, Bool[Array, "V"]] = {}
        for segment in run:
            if not isinstance(segment, TileSegment):
                calls = self._calls[segment] = reached_calls(self.env, segment)
                self.env.whole_flags.update((v, calls) for v in segment.writes if not v.is_tiled)
                continue
            for value, mask in reached(self.env, segment).items():
                self.env.masks[value], self.env.flags[value] = mask, jnp.any(mask, axis=(1, 2))
            self.env.claimed |= frozenset(segment.writes)
        if tiled:
            # Without a threshold nothing was held back, and nobody has a turn.
            turns = [env.turn if holds(options.tau(segment.name)) else None for segment in tiled]
            self._tiles, self._first, self._counts = tile_lists(candidates(self.env, tiled, turns))
            self._totals = jnp.sum(self._counts, axis=1, dtype=jnp.int32)

    def counts(self, segment: Segment) -> Int[Array, "S"]:
        """How many tiles are reached in each stream; of a whole segment, whether one is in any, 1 or 0."""
        if isinstance(segment, TileSegment):
            return self._counts[self._number[segment]]
        return jnp.broadcast_to(self.total(segment), (self.env.streams,))

    def total(self, segment: Segment) -> Int[Array, ""]:
        """How many in all streams together."""
        if isinstance(segment, TileSegment):
            return self._totals[self._number[segment]]
        return jnp.any(self._calls[segment]).astype(jnp.int32)

    def tiles(self, segment: TileSegment, size: int) -> tuple[Int[Array, "size"], Int[Array, ""]]:
        """The numbers of up to `size` of them, the last one repeated; and how many there are."""
        count = self.total(segment)
        slots = jnp.minimum(jnp.arange(size, dtype=jnp.int32), jnp.maximum(count - 1, 0))
        return self._tiles[self._first[self._number[segment]] + slots], count


def _write_tiles(
    env: Env, segment: TileSegment, options: Options, numbers: Int[Array, "K"], used: Bool[Array, "K"], state
):
    """The results of the tiles that are `used`: where they changed, if that is to be found out."""
    grid = segment.grid
    stream, y, x = grid.origin(numbers)
    least = threshold(env, grid, numbers, stream, options.tau(segment.name))
    if isinstance(least, jax.Array) and least.ndim:
        least = least[:, None, None]
    after = []
    for value, new, (stored, masks, flags) in zip(
        segment.writes, tile_values(env, segment, numbers), state, strict=True
    ):
        layout = env.plan.layouts[value]
        if _compares(segment, options):
            old = layout.gather(stored, stream, y, x, *grid.tile)
            # A fresh cache holds nothing to compare with: all of it is new.
            mask = position_mask(layout, new, old, least, options.how.norm) | env.fresh[stream][:, None, None]
            new = jnp.where(_masks.at(mask, new.ndim, *layout.tile_picture), new, old)
            masks = _masks.unite_tiles(masks, mask, used, (stream, y, x), overlap=grid.ragged)
            flags = flags | jnp.any(masks, axis=(1, 2))
        after.append((layout.scatter(stored, new, used, stream, y, x, overlap=grid.ragged), masks, flags))
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


def _run_tiles(env: Env, segment: TileSegment, options: Options, reach: _Reach, size: int | None):
    """What it writes: in a bucket of that size, or whole."""
    before = env.found(segment.writes)
    if size is None:
        tau = options.tau(segment.name)
        return dense_path(env, segment, tau, options.how.norm, _hold_small)(before)
    slots = jnp.arange(options.bucket or size, dtype=jnp.int32)

    def write(numbers, used, state):
        return _write_tiles(env, segment, options, numbers, slots < used, state)

    numbers, count = reach.tiles(segment, size)
    if options.bucket is None:
        return write(numbers, count, cleared(before))
    return for_each_bucket(numbers, count, (options.bucket,), write, cleared(before))


def _most(segment: Segment, plan: Plan, streams: int, options: Options) -> int:
    """The number of tiles above which a segment is done densely; a whole one has none."""
    return dense_above(segment, streams, plan.program, options.dense_share) if isinstance(segment, TileSegment) else 0


def _rungs(plan: Plan, chunk: Sequence[Segment], streams: int, options: Options) -> list[Rung]:
    """What a chunk's buckets are chosen from, the smallest first; the last one holds everything."""
    most = [_most(segment, plan, streams, options) for segment in chunk]
    rungs = ladder(chunk, streams, plan.streams, most)
    if options.bucket is None:
        return rungs
    return [tuple(n if n > 0 else None for n in most), rungs[-1]]  # loops hold any number


def bucket_sizes(plan: Plan, segment: TileSegment, options: Options) -> tuple[int, ...]:
    """Those that there are for one segment by itself."""
    if options.bucket is not None:
        return (options.bucket,)
    return tuple(size for (size,) in _rungs(plan, [segment], plan.streams, options) if size)


def _anything(env: Env, segments: Sequence[Segment], options: Options) -> Bool[Array, ""]:
    """Whether they have anything to do."""
    made = {value for segment in segments for value in segment.writes}
    flags = {}
    for segment in segments:
        for value in (*segment.reads, *(segment.wholes if isinstance(segment, TileSegment) else ())):
            if value.kind is not Kind.FIXED and value not in made:
                flags[value] = env.flags[value] if value.is_tiled else env.by_stream(env.whole_flags[value])
    turn = env.turn is not None and any(holds(options.tau(segment.name)) for segment in segments)
    always = options.dense_share is not None and options.dense_share < 0
    return jnp.any(jnp.stack([env.fresh, *flags.values()])) | turn | always


def _run_chunk(env: Env, chunk: Sequence[Segment], options: Options, reach: _Reach) -> Int[Array, "S chunk"]:
    """By the smallest rung that holds what is reached."""
    values = [value for segment in chunk for value in segment.writes]
    # What is not compared is known before, and need not go through the switch: all that is reached is marked.
    claims = {
        value: (reach.env.masks[value], reach.counts(segment) > 0)
        for segment in chunk if isinstance(segment, TileSegment) and not _compares(segment, options)
        for value in segment.writes
    }

    def packed(values: Sequence[Value], found):
        return tuple(parts[:1] if v in claims else parts for v, parts in zip(values, found, strict=True))

    def put(env: Env, values: Sequence[Value], state) -> None:
        env.put(values, [(*parts, *claims.get(v, ())) for v, parts in zip(values, state, strict=True)])

    def path(rung: Rung):
        def climbed(state):
            now = env.copy()
            put(now, values, state)
            for segment, size in zip(chunk, rung, strict=True):
                if isinstance(segment, TileSegment):
                    after = _run_tiles(now, segment, options, reach, size)
                else:
                    asked = segment.flops > WORTH_ASKING * env.plan.flops
                    after, _ = run_whole(now, segment, now.found(segment.writes), asked)
                put(now, segment.writes, packed(segment.writes, after))
            return packed(values, now.found(values))

        return climbed

    def skip(state):
        return tuple(old if v in claims else unchanged([old])[0] for v, old in zip(values, state, strict=True))

    rungs = _rungs(env.plan, chunk, env.streams, options)
    # Not even none is few enough where all is to be done densely in any case.
    nothing = [min(0, _most(segment, env.plan, env.streams, options)) for segment in chunk]
    sizes = [nothing, *([UNBOUNDED if size is None else size for size in rung] for rung in rungs)]
    counts = jnp.stack([reach.counts(segment) for segment in chunk])
    found = jnp.stack([reach.total(segment) for segment in chunk])
    lowest = jnp.sum(jnp.any(found[None] > jnp.asarray(sizes, jnp.int32), axis=1), dtype=jnp.int32)
    put(env, values, lax.switch(lowest, [skip, *map(path, rungs)], packed(values, env.found(values))))
    total = [[s.grid.per_stream if isinstance(s, TileSegment) and size is None else 0
              for s, size in zip(chunk, rung, strict=True)] for rung in ((0,) * len(chunk), *rungs)]
    return jnp.maximum(counts, jnp.asarray(total, jnp.int32)[lowest][:, None]).T


def _together(env: Env, run: Sequence[Segment], options: Options) -> Int[Array, "S run"]:
    """One run of segments."""
    reach = _Reach(env, run, options)
    issued = [_run_chunk(env, chunk, options, reach) for chunk in chunks(run, env.plan, env.streams)]
    return jnp.concatenate(issued, axis=1)


def _if_anything(
    env: Env, segments: Sequence[Segment], options: Options, work: Callable[[Env], Int[Array, "S segments"]]
) -> Int[Array, "S segments"]:
    """`work`, if there is anything to do: one question for all of them."""
    values = [value for segment in segments for value in segment.writes]
    tiled = [value for value in values if value.is_tiled]

    def packed(found):
        return tuple(parts[:2] for parts in found)

    def do(state):
        now = env.copy()
        now.put(values, state)
        issued = work(now)
        # Columns of one array: a kernel, not one for each.
        flags = jnp.stack([now.flags[v] for v in tiled], axis=1) if tiled else jnp.zeros((env.streams, 0), bool)
        return packed(now.found(values)), flags, issued

    def skip(state):
        shape = env.streams, len(segments)
        return packed(unchanged(state)), jnp.zeros((env.streams, len(tiled)), bool), jnp.zeros(shape, jnp.int32)

    after, flags, issued = lax.cond(_anything(env, segments, options), do, skip, env.found(values))
    flag = {value: flags[:, number] for number, value in enumerate(tiled)}
    env.put(values, [(*parts, flag[v]) if v in flag else parts for v, parts in zip(values, after, strict=True)])
    return issued


def run(env: Env, segments: Sequence[Segment], options: Options) -> Int[Array, "S segments"]:
    """Bring what they write in `env` up to date; how many tiles that took (of a whole segment 1)."""
    def work(env: Env) -> Int[Array, "S segments"]:
        issued = []
        for number, run in enumerate(runs(segments, options)):
            together = functools.partial(_together, run=run, options=options)
            # For the first run the question has been asked already, and one segment asks for itself.
            asked = number and len(run) > 1
            issued.append(_if_anything(env, run, options, together) if asked else together(env))
        return jnp.concatenate(issued, axis=1)

    return work(env) if len(segments) == 1 else _if_anything(env, segments, options, work)
