"""What a step found and computed, read off its cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._audit import AuditStats, measure_audit
from ._compute import reached
from ._env import Env
from ._plan import Plan, TileSegment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentStats:
    """One segment in the last step; sums over all streams. Scalars; more where steps were scanned or mapped."""

    name: str = dataclasses.field(metadata={"static": True})
    tiles_issued: Int[Array, "..."]
    tiles_total: Int[Array, "..."]
    flops_issued: Float[Array, "..."]
    flops_useful: Float[Array, "..."]
    flops_dense: Float[Array, "..."]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """The last step; sums over all streams. Scalars; more where steps were scanned or mapped.

    Attributes:
        frame_density: share of the frame's pixels that changed, in [0, 1].
        tiles_issued, tiles_total: tiles of work computed, and how many a dense frame has (whole segments, which
            have no tiles, count in neither).
        flops_issued: floating-point operations of the tiles computed, halos of fused operations included.
        flops_useful: those that positions reached by the change need.
        flops_dense: those of the dense function.
        cache_bytes: size of the cache.
        segments: one `SegmentStats` for each segment of `explain`.
        whole_frames: of how many streams everything was computed: in a fresh cache, after a cut, or for `max_error`.
        audit: what the audits found; None without `audit`.
        level: with `max_error`, by how many octaves all thresholds lie above those it began with.
    """

    frame_density: Float[Array, "..."]
    tiles_issued: Int[Array, "..."]
    tiles_total: Int[Array, "..."]
    flops_issued: Float[Array, "..."]
    flops_useful: Float[Array, "..."]
    flops_dense: Float[Array, "..."]
    whole_frames: Int[Array, "..."]
    cache_bytes: int = dataclasses.field(metadata={"static": True})
    segments: tuple[SegmentStats, ...] = ()
    audit: AuditStats | None = None
    level: Float[Array, "..."] | None = None


def measure(plan: Plan, cache: dict[str, Any]) -> Stats:
    """The statistics of the step that made `cache`."""
    streams = plan.streams
    env = dataclasses.replace(Env.of(plan, 1, {}, cache), fresh=cache["age"] == 1)
    rows = []
    for number, segment in enumerate(plan.segments):
        issued = jnp.sum(cache["issued"][:, number])
        dense = jnp.float32(segment.flops)
        if isinstance(segment, TileSegment):
            total = segment.grid.per_stream * streams
            # XLA's dense path has no halos.
            every = (issued == total) & (segment.native is None)
            flops = jnp.where(every, dense, issued.astype(jnp.float32) * segment.flops_per_tile)
            density = [jnp.mean(mask.astype(jnp.float32)) for mask in reached(env, segment).values()]
            useful = dense * jnp.max(jnp.stack(density))
        else:
            issued, total = jnp.zeros((), jnp.int32), 0
            flops = useful = jnp.where(jnp.any(cache["issued"][:, number] > 0), dense, 0)
        rows.append(SegmentStats(segment.name, issued, jnp.int32(total), flops, useful, dense))

    def add(name, dtype):
        return jnp.sum(jnp.stack([jnp.zeros((), dtype), *(getattr(row, name) for row in rows)]), dtype=dtype)

    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    return Stats(
        jnp.mean(env.mask(plan.frame).astype(jnp.float32)), add("tiles_issued", jnp.int32),
        add("tiles_total", jnp.int32), add("flops_issued", jnp.float32), add("flops_useful", jnp.float32),
        add("flops_dense", jnp.float32), jnp.sum(cache["age"] == 1, dtype=jnp.int32), size, tuple(rows),
        measure_audit(cache["audit"]) if "audit" in cache else None,
        cache["control"]["level"][0] if "control" in cache else None,
    )
