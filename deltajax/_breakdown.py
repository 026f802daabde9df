"""`deltajax bench --breakdown`: where the time of a step goes, segment by segment, each measured by itself."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from . import _at_once, _by_bucket
from ._compute import reached
from ._env import Env
from ._incremental import Incremental
from ._options import Options
from ._plan import Plan, Segment, TileSegment, is_native
from ._program import Kind, Value
from ._run import detect_frame, run_segments

FRAMES, WARM = 12, 2


@dataclasses.dataclass(frozen=True)
class SegmentTime:
    """One segment, medians over frames.

    Attributes:
        dense_ms: its dense path, on all of the picture.
        step_ms: what a step does, which is tiles, the dense path, or nothing.
        issued, useful: FLOPs, as shares of the segment's own dense ones.
    """

    name: str
    tile: str
    buckets: str
    dense_ms: float
    step_ms: float
    issued: float
    useful: float


class _Part:
    """One segment as a compiled function of the values that it reads and writes."""

    def __init__(self, plan: Plan, segment: Segment, inc: Incremental, dense: bool):
        options = dataclasses.replace(inc.options, dense_share=-1.0 if dense else inc.options.dense_share)
        others = segment.beside if isinstance(segment, TileSegment) else []
        self.reads: list[Value] = [v for v in (*segment.reads, *others) if v not in segment.writes]
        self.writes = segment.writes

        def part(fresh, reads, writes):
            # Where nothing has a dense path of its own, everything is new to it.
            env = Env(plan, 1, fresh | (dense and is_native(segment)), {}, {}, {}, {}, {}, {})
            for value, found in (*zip(self.reads, reads, strict=True), *zip(self.writes, writes, strict=True)):
                _put(env, value, found)
            issued = run_segments(env, [segment], options)
            return [_get(env, v) for v in self.writes], issued

        self.call = jax.jit(part, donate_argnums=2)

        def useful(fresh, reads):
            env = Env(plan, 1, fresh, {}, {}, {}, {}, {}, {})
            for value, found in zip(self.reads, reads, strict=True):
                _put(env, value, found)
            assert isinstance(segment, TileSegment)
            return jnp.max(jnp.stack([jnp.mean(m.astype(jnp.float32)) for m in reached(env, segment).values()]))

        self._useful = jax.jit(useful)

    def __call__(self, env: Env, *, keep: bool) -> tuple[float, int]:
        """Milliseconds and tiles issued; `keep` for the result to go back to `env`."""
        writes = [_get(env, v) for v in self.writes]
        if not keep:
            writes = jax.tree.map(jnp.copy, writes)
        arguments = jax.block_until_ready((env.fresh, [_get(env, v) for v in self.reads], writes))
        start = time.perf_counter()
        after, issued = jax.block_until_ready(self.call(*arguments))
        took = 1e3 * (time.perf_counter() - start)
        if keep:
            for value, new in zip(self.writes, after, strict=True):
                _put(env, value, new)
        return took, int(np.sum(issued))

    def useful(self, env: Env) -> float:
        """The share of the results that what changed reaches."""
        return float(self._useful(env.fresh, [_get(env, v) for v in self.reads]))


def _put(env: Env, value: Value, found: Any) -> None:
    if value.kind is Kind.FIXED:
        env.fixed[value] = found
    else:
        env.put([value], [found])


def _get(env: Env, value: Value) -> Any:
    return env.fixed[value] if value.kind is Kind.FIXED else env.found([value])[0]


def breakdown(
    inc: Incremental, params: Any, frames: Iterator[np.ndarray], tick: Callable[[], None] = lambda: None
) -> list[SegmentTime]:
    """Every segment on FRAMES frames, its dense path and its step in turns, each a call of its own.

    So every row holds the cost of a call (some 50 microseconds), and the rows add up to more than the step.
    """
    first = jnp.asarray(next(frames))
    # Each segment is called with maps of its own.
    inc = dataclasses.replace(inc, options=dataclasses.replace(inc.options, pool=False), _plans={}, _measures={})
    plan = inc.plan(params, first)
    cache, _ = inc.init(params, first)
    fixed = dict(zip(plan.fixed, plan.evaluate_fixed(jax.tree.leaves(params)), strict=True))
    detection = jax.jit(
        lambda held, frame, fresh: detect_frame(plan, inc.options, held, frame[None], None, fresh)
    )
    parts = [
        (segment, _Part(plan, segment, inc, dense=False), _Part(plan, segment, inc, dense=True))
        for segment in plan.segments
    ]
    env = Env.of(plan, 1, fixed, cache)
    times: dict[str, list[tuple[float, float, float, float]]] = {segment.name: [] for segment in plan.segments}
    for number in range(1 + WARM + FRAMES):
        frame = first if number == 0 else jnp.asarray(next(frames))
        env.maps[plan.frame], env.masks[plan.frame], env.flags[plan.frame], env.fresh, _ = detection(
            env.maps[plan.frame], frame, env.fresh
        )
        for segment, step, dense in parts:
            dense_ms, _ = dense(env, keep=False)
            step_ms, issued = step(env, keep=True)
            if number > WARM:
                times[segment.name].append((dense_ms, step_ms, *_shares(env, segment, step, issued)))
        env.fresh = jnp.zeros_like(env.fresh)
        tick()
    rows = []
    for segment in plan.segments:
        tile, buckets = "", ""
        if isinstance(segment, TileSegment):
            tile = "x".join(map(str, segment.grid.tile))
            buckets = "" if is_native(segment) else ", ".join(map(str, _bucket_sizes(plan, segment, inc.options)))
        medians = (statistics.median(column) for column in zip(*times[segment.name], strict=True))
        rows.append(SegmentTime(segment.name, tile, buckets, *medians))
    return rows


def _bucket_sizes(plan: Plan, segment: TileSegment, options: Options) -> tuple[int, ...]:
    if options.at_once:
        return _at_once.bucket_sizes(plan, segment, options)
    return _by_bucket.bucket_sizes(segment, options.bucket)


def _shares(env: Env, segment: Segment, part: _Part, issued: int) -> tuple[float, float]:
    """Of a segment's dense FLOPs, what was issued and what changed positions need."""
    if not isinstance(segment, TileSegment):
        return float(issued > 0), float(issued > 0)
    # XLA's dense path has no halos.
    every = issued == segment.grid.per_stream * env.streams and segment.native is None
    return 1.0 if every else issued * segment.flops_per_tile / max(segment.flops, 1.0), part.useful(env)


def table(rows: list[SegmentTime], title: str) -> Table:
    """All rows and their sum; `of ideal`: what the issued FLOPs would take at the dense path's rate, over the time."""
    made = Table(title=title)
    for heading in ("segment", "tile", "buckets", "dense", "step", "issued", "useful", "issued / useful", "of ideal"):
        made.add_column(heading, justify="left" if heading == "segment" else "right", no_wrap=True)
    for r in (*rows, _sum(rows)):
        made.add_row(
            r.name, r.tile, r.buckets, f"{r.dense_ms:.2f}", f"{r.step_ms:.2f}", f"{100 * r.issued:.1f} %",
            f"{100 * r.useful:.1f} %", f"{r.issued / r.useful:.2f}" if r.useful else "-",
            f"{r.issued * r.dense_ms / r.step_ms:.2f}" if r.issued else "-",
        )
    return made


def _sum(rows: list[SegmentTime]) -> SegmentTime:
    """All segments; their shares weighted by their dense time."""
    dense = sum(r.dense_ms for r in rows)
    issued, useful = (sum(getattr(r, name) * r.dense_ms for r in rows) / dense for name in ("issued", "useful"))
    return SegmentTime("all", "", "", dense, sum(r.step_ms for r in rows), issued, useful)
