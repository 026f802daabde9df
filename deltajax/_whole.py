"""Segments on whole arrays: recomputed when anything that they read changed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ._compute import position_mask, unchanged
from ._env import Env
from ._plan import WholeSegment
from ._program import Kind, Value


def reached_calls(env: Env, segment: WholeSegment) -> Bool[Array, "V"]:
    """The calls in which anything that the segment reads changed."""
    flags = [env.by_call(env.fresh)]
    flags += [env.by_call(env.flags[v]) for v in segment.reads if v.kind is Kind.MAP]
    flags += [env.whole_flags[v] for v in segment.reads if v.kind is Kind.WHOLE]
    return jnp.any(jnp.stack(flags), axis=0)


def run_whole(env: Env, segment: WholeSegment, state, asked: bool = True):
    """``(state, whether)``: where anything that it reads changed in any call, and whether it did.

    Args:
        asked: whether to wait for the answer; else it is computed in any case.
    """
    plan, anything = env.plan, jnp.any(reached_calls(env, segment))
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

    if not asked:
        return work(state), anything
    return lax.cond(anything, work, unchanged, state), anything
