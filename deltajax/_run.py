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

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from . import _at_once, _by_bucket, native
from ._age import Turn, older
from ._detect import Detection, detect, holds
from ._env import Env, State
from ._options import Options
from ._plan import Plan, Segment, TileSegment, is_native
from ._program import Kind, Value
from ._whole import run_whole


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
    taus = [options.tau(segment.name) for segment in segments]
    dues = [
        env.turn.tiles(segment.grid) if env.turn is not None and holds(tau) else None
        for segment, tau in zip(segments, taus, strict=True)
    ]
    return native.run(env, segments, taus, options.how.norm, dues)


def _run_alone(env: Env, segment: Segment, options: Options) -> jax.Array:
    before = env.found(segment.writes)
    if isinstance(segment, TileSegment):
        tau = options.tau(segment.name)
        after, issued = _by_bucket.run_tiles(
            env, segment, options.bucket, options.dense_share, tau, options.how.norm, before
        )
    else:
        after, ran = run_whole(env, segment, before)
        issued = jnp.broadcast_to(ran, (env.streams,)).astype(jnp.int32)
    env.put(segment.writes, after)
    return issued


def run_segments(env: Env, segments: Sequence[Segment], options: Options) -> jax.Array:
    """Bring what they write in `env` up to date; how many tiles that took, `[S, segments]` (of a whole segment 1)."""
    issued = []
    for alike, together in itertools.groupby(segments, is_native):
        if alike:
            issued.append(_run_native(env, [segment for segment in together if is_native(segment)], options))
        elif options.at_once:
            issued.append(_at_once.run(env, list(together), options))
        else:
            issued += [_run_alone(env, segment, options)[:, None] for segment in together]
    return jnp.concatenate(issued, axis=1)


def _columns(arrays: list[jax.Array], before: jax.Array) -> jax.Array:
    return jnp.stack(arrays, axis=1) if arrays else before


def run_step(
    plan: Plan, options: Options, fixed: dict[Value, jax.Array], state: State, given: jax.Array | None,
    frame: jax.Array,
) -> tuple[list[jax.Array], State, list[jax.Array]]:
    """``(outputs [V, ...], state, masks)`` for frames `[V, *shape]`; outputs lie as in the plan (`Plan.returned`)."""
    calls = frame.shape[0]
    env = Env.of(plan, calls, fixed, state, options.max_age)
    source = plan.frame
    env.maps[source], env.masks[source], env.flags[source], env.fresh, stood = detect_frame(
        plan, options, env.maps[source], frame, given, env.fresh, env.turn, state.get("stood"),
    )
    issued = run_segments(env, plan.segments, options) if plan.segments else state["issued"]
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
        "issued": issued,
    }
    if stood is not None:
        after_state["stood"] = stood
    if env.pool:
        after_state["pool"] = env.pool
    return outputs, after_state, masks
