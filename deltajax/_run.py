"""One step of a plan: detect, then segment by segment what the masks reach.

State of V calls with S streams in all (S = V x the streams inside one call), all leaves with a leading axis of S or V:

* `age` int32 [S]: frames since everything was computed, which it is at 0: in a fresh cache. Set it to 0 to have the
  next frame computed whole.
* `maps`, `masks`, `flags`: stored maps, their change masks [S, h, w], and whether anything changed in each [S, maps]. A
  mask counts only where its flag is set: what did not run leaves an old mask behind.
* `pool`, only where there are such: maps and masks that lie side by side in one array each; see `_tiles.Pool`.
* `wholes`, `whole_flags`: whole values [V, ...] and whether they changed [V, wholes].
* `issued` int32 [S, segments]: tiles computed.
* `stood` int8 [S, h, w], only where a change has to stand: in how many frames in a row the frame differed there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import _at_once, _by_bucket, native
from ._age import Turn, older
from ._compute import position_mask
from ._detect import Detection, Threshold, detect, holds
from ._env import Env, State
from ._plan import Plan, TileSegment, WholeSegment, is_native
from ._program import Kind, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """How a plan is run; see `incremental`.

    Attributes:
        platform: that steps are laid out for; None for JAX's default.
        native: whether kernels of deltajax's own do what they can.
        bfloat16: whether their products are of bfloat16, where the processor has it.
        pool: whether maps that only they touch lie in one array; else every map has one of its own.
    """

    how: Detection
    taus: Mapping[str, Threshold]
    bucket: int | None
    dense_share: float | None
    max_age: int | None
    platform: str | None
    native: bool
    bfloat16: bool
    pool: bool

    @property
    def at_once(self) -> bool:
        """Whether all tiles of a frame are done at once."""
        return (self.platform or jax.default_backend()) != "cpu"


def initial_state(plan: Plan, how: Detection) -> State:
    streams = plan.streams
    more: State = {"stood": jnp.zeros((streams, *plan.frame.picture), jnp.int8)} if how.stand > 1 else {}
    if plan.pooled:
        size, mask_size = plan.pool.begins[-1], plan.pool.mask_begins[-1]
        more["pool"] = jnp.zeros((streams, size), jnp.float32), jnp.zeros((streams, mask_size), bool)
    return {
        **more,
        "age": jnp.zeros((streams,), jnp.int32),
        "maps": tuple(jnp.zeros(plan.layouts[v].stored_shape(streams), v.dtype) for v in plan.own),
        "masks": tuple(jnp.zeros((streams, *v.picture), bool) for v in plan.own),
        "flags": jnp.zeros((streams, len(plan.maps)), bool),
        "wholes": tuple(jnp.zeros((1, *v.shape), v.dtype) for v in plan.wholes),
        "whole_flags": jnp.zeros((1, len(plan.wholes)), bool),
        "issued": jnp.zeros((streams, len(plan.segments)), jnp.int32),
    }


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
        arrays = [plan.layouts[v].load(env.map(v)) if v.kind is Kind.MAP else env.wholes[v] for v in moving]
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
                mask = position_mask(layout, tiles, before, 0.0, "linf") | env.fresh[:, None, None]
                after.append((layout.store(new), mask, jnp.any(mask, axis=(1, 2))))
            else:
                differs = jnp.any((new != old[0]).reshape(env.calls, -1), axis=1)
                after.append((new, differs | env.by_call(env.fresh)))
        return tuple(after)

    def skip(state):
        return tuple((*old[:-1], jnp.zeros_like(old[-1])) for old in state)

    return lax.cond(anything, work, skip, state), anything


# ---------------------------------------------------------------------------------------------------- the step


def detect_frame(
    plan: Plan, options: Options, stored: jax.Array, frame: jax.Array, given: jax.Array | None, fresh: jax.Array,
    turn: Turn | None = None, stood: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """``(held, mask, flags, fresh, stood)``; see `_detect.detect`."""
    layout, how = plan.layouts[plan.frame], options.how
    if options.native and turn is None and native.detects(layout, how):
        return *native.detect(layout, how, stored, frame, given, fresh), fresh, stood
    return detect(layout, how, stored, frame, given, fresh, turn, stood, at_once=options.at_once)


def _run_native(env: Env, segments: Sequence[TileSegment], options: Options) -> jax.Array:
    """All of them in one call; tiles computed, `[S, segments]`."""
    taus = [options.taus.get(segment.name, 0.0) for segment in segments]
    dues = [
        env.turn.tiles(segment.grid) if env.turn is not None and holds(tau) else None
        for segment, tau in zip(segments, taus, strict=True)
    ]
    return native.run(env, segments, taus, options.how.norm, dues)


def run_segment(env: Env, segment: TileSegment | WholeSegment, options: Options) -> jax.Array:
    """Bring what the segment writes in `env` up to date; how many tiles that took, `[S]` (of a whole segment 1)."""
    if is_native(segment):
        return _run_native(env, [segment], options)[:, 0]
    before = tuple(
        (env.maps[v], env.masks[v], env.flags[v]) if v.is_tiled else (env.wholes[v], env.whole_flags[v])
        for v in segment.writes
    )
    if isinstance(segment, TileSegment):
        tau, way = options.taus.get(segment.name, 0.0), _at_once if options.at_once else _by_bucket
        after, issued = way.run_tiles(env, segment, options.bucket, options.dense_share, tau, options.how.norm, before)
    else:
        after, ran = _run_whole(env, segment, before)
        issued = jnp.broadcast_to(ran, (env.streams,)).astype(jnp.int32)
    for value, new in zip(segment.writes, after, strict=True):
        if value.is_tiled:
            env.maps[value], env.masks[value], env.flags[value] = new
        else:
            env.wholes[value], env.whole_flags[value] = new
    return issued


def _columns(arrays: list[jax.Array], before: jax.Array) -> jax.Array:
    return jnp.stack(arrays, axis=1) if arrays else before


def run_step(
    plan: Plan, options: Options, fixed: dict[Value, jax.Array], state: State, given: jax.Array | None,
    frame: jax.Array,
) -> tuple[list[jax.Array], State, list[jax.Array]]:
    """``(outputs [V, ...], state, masks)`` for frames `[V, *shape]`."""
    calls = frame.shape[0]
    env = Env.of(plan, calls, fixed, state, options.max_age)
    source = plan.frame
    env.maps[source], env.masks[source], env.flags[source], env.fresh, stood = detect_frame(
        plan, options, env.maps[source], frame, given, env.fresh, env.turn, state.get("stood"),
    )
    issued = []
    for _, together in itertools.groupby(plan.segments, is_native):
        segments = list(together)
        natives = [segment for segment in segments if is_native(segment)]
        if natives:
            issued.append(_run_native(env, natives, options))
        else:
            issued += [run_segment(env, segment, options)[:, None] for segment in segments]
    outputs, masks = [], []
    for value in plan.outputs:
        if value.kind is Kind.MAP:
            outputs.append(plan.layouts[value].load(env.map(value)))
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
        "maps": tuple(env.maps[v] for v in plan.own),
        "masks": tuple(env.masks[v] for v in plan.own),
        "flags": _columns([env.flags[v] for v in plan.maps], state["flags"]),
        "wholes": tuple(env.wholes[v] for v in plan.wholes),
        "whole_flags": _columns([env.whole_flags[v] for v in plan.wholes], state["whole_flags"]),
        "issued": jnp.concatenate([state["issued"][:, :0], *issued], axis=1),
    }
    if stood is not None:
        after_state["stood"] = stood
    if env.pool:
        after_state["pool"] = env.pool
    return outputs, after_state, masks
