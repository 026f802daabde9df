"""The error that is there: in frames drawn at random the output is computed afresh, and compared.

All of it, by the function itself: such an audit shares nothing with what it audits. Or some of its tiles, each from the
part of the frame that it depends on: that pays where an output's receptive field is a small part of the frame.

State of V calls, all leaves with a leading axis of V; `left` counts down to the next audit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree
from scipy.special import nctdtrit, ndtri, stdtrit

from ._compute import afresh
from ._plan import Plan, cone
from ._program import Kind, Value

KEPT = 64  # errors remembered: the last ones
LEVEL = 0.95  # of all that is said with confidence
FEWEST = 19  # audits without which nothing is said of a single frame: the largest of n errors is right in n of n + 1

ErrorOf = Callable[[PyTree, PyTree], Array]


def output_error(dense: PyTree, output: PyTree) -> Array:
    """Root mean square of the difference over that of the dense output, of the worst of the output's arrays:
    `tuning.metrics.output_error`, traceable.

    Of arrays of whole numbers, the share of the entries that differ. NaN and infinity agree with themselves; where they
    disagree the error is infinite.
    """
    gaps = jax.tree.leaves(jax.tree.map(_gap, dense, output))
    return jnp.max(jnp.stack([jnp.zeros(()), *gaps]))


def _gap(dense: Array, output: Array) -> Array:
    dense, output = dense.reshape(1, -1), output.reshape(1, -1)
    return _relative(dense, output, dense)[0]


def _relative(new: Array, old: Array, whole: Array) -> Array:
    """`[V]`: how far `new` and `old` are apart, relative to the size of `whole`; all `[V, n]`."""
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.mean((new != old).astype(jnp.float32), axis=1)
    same = (new == old) | (jnp.isnan(new) & jnp.isnan(old))
    gap = jnp.where(same, 0, jnp.abs(new - old)).astype(jnp.float32)
    size = jnp.where(jnp.isfinite(whole), jnp.abs(whole), 0).astype(jnp.float32)
    gap, size = (jnp.sqrt(jnp.mean(x * x, axis=1)) for x in (gap, size))
    error = jnp.where(gap == 0, 0.0, gap / size)
    return jnp.where(jnp.isfinite(error), error, jnp.inf)


@dataclasses.dataclass(frozen=True)
class Audit:
    """How often, and what an error is.

    Attributes:
        every: frames to one audit; in each run of so many, one is drawn.
        error_of: ``(dense output, output) -> error``, traceable.
        tiles: how many tiles of every output in an audit; None: all of it.
    """

    every: int
    error_of: ErrorOf
    tiles: int | None = None

    def of_whole(self, fn: Callable[[Array], PyTree], frames: Array, outputs: PyTree) -> Array:
        """The errors [V] of outputs `[V, ...]` for frames `[V, ...]`."""
        errors = jax.vmap(self.error_of)(jax.vmap(fn)(frames), outputs)
        if jnp.shape(errors) != frames.shape[:1]:
            raise ValueError(f"`audit_error` must return one number, not an array of shape {jnp.shape(errors)[1:]}.")
        return errors

    def of_tiles(
        self, plan: Plan, fixed: Mapping[Value, Array], frames: Array, outputs: Sequence[Array], count: Array
    ) -> Array:
        """The same from tiles drawn by `count`: their root mean square difference, relative to the whole output's."""
        assert self.tiles is not None
        calls = frames.shape[0]
        errors = [jnp.zeros((calls,), jnp.float32)]
        for place, (value, output) in enumerate(zip(plan.outputs, outputs, strict=True)):
            if value.kind is Kind.FIXED:
                continue
            segment, layouts = cone(plan, value)
            per_call = segment.grid.per_stream * plan.streams
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), count[0]), place)
            drawn = jax.random.randint(key, (calls, self.tiles), 0, per_call, jnp.int32)
            numbers = (drawn + per_call * jnp.arange(calls, dtype=jnp.int32)[:, None]).reshape(-1)
            new = afresh(plan, segment, layouts, fixed, frames, numbers)
            layout = value.layout()
            old = layout.gather(layout.store(output), *segment.grid.origin(numbers), *segment.grid.tile)
            errors.append(_relative(new.reshape(calls, -1), old.reshape(calls, -1), output.reshape(calls, -1)))
        return jnp.max(jnp.stack(errors), axis=0)

    def initial(self) -> dict[str, Array]:
        """Nothing known. The first frame, which is exact, is not drawn unless all are."""
        place = min(1, self.every - 1) + jax.random.randint(jax.random.key(0), (1,), 0, max(1, self.every - 1))
        return {
            "place": place.astype(jnp.int32),
            "left": jnp.array(place, jnp.int32),  # a copy: a cache that is donated must not hold one array twice
            "count": jnp.zeros((1,), jnp.int32), "errors": jnp.full((1, KEPT), jnp.nan, jnp.float32),
        }

    def run(self, look: Callable[[Array], Array], state: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        """``(state, errors)`` after a frame; the errors [V], of ``look(count)``, are NaN without an audit.

        If it is the turn of one call, all are audited: under vmap there is one decision.
        """
        due = jnp.any(state["left"] <= 0)

        def pass_by(count: Array) -> Array:
            return jnp.full(count.shape, jnp.nan, jnp.float32)

        errors = lax.cond(due, lambda count: look(count).astype(jnp.float32), pass_by, state["count"])
        errors = jnp.where(due & jnp.isnan(errors), jnp.inf, errors)
        count, place = state["count"], state["place"]
        here = jnp.arange(KEPT)[None] == (count % KEPT)[:, None]
        drawn = jax.vmap(lambda n: jax.random.randint(jax.random.fold_in(jax.random.key(0), n + 1), (), 0, self.every))
        following = drawn(count).astype(jnp.int32)
        after = {
            "place": jnp.where(due, following, place),
            "left": jnp.where(due, self.every - place + following, state["left"]) - 1,
            # Half of its range back before it overflows: a multiple of KEPT, which tells where the next one is kept.
            "count": jnp.where(count >= 2**30, count - 2**29, count) + due.astype(jnp.int32),
            "errors": jnp.where(due & here, errors[:, None], state["errors"]),
        }
        return after, errors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AuditStats:
    """What the audits found; the mean and the bounds are over the last 64 of them.

    Attributes:
        count: audits so far.
        last: the error in the last one, NaN before the first.
        mean, low, high: the mean error of a frame, and its 95 % confidence interval (Student's, errors taken as
            independent); without bounds before the second audit.
        upper: 95 % of the frames have an error below it, if the audited frames are like the others: the largest one of
            the errors found, which n audits make right for n in n + 1 frames whatever their distribution, and of the
            limits below which, with 95 % confidence, 95 % of a normal distribution lie, for them and for their
            logarithms. Infinite before the 19th audit: fewer cannot say it of 95 %.
    """

    count: Int[Array, "..."]
    last: Float[Array, "..."]
    mean: Float[Array, "..."]
    low: Float[Array, "..."]
    high: Float[Array, "..."]
    upper: Float[Array, "..."]


# For n audits, 0 to KEPT, in standard deviations: how far from the errors' mean its confidence interval ends, and the
# one-sided tolerance limit (from the noncentral t distribution).
_COUNT = np.maximum(np.arange(KEPT + 1), 2)
_MEAN_WITHIN = (stdtrit(_COUNT - 1, (1 + LEVEL) / 2) / np.sqrt(_COUNT)).astype(np.float32)
_MOST_WITHIN = (nctdtrit(_COUNT - 1, ndtri(LEVEL) * np.sqrt(_COUNT), LEVEL) / np.sqrt(_COUNT)).astype(np.float32)


def measure_audit(state: dict[str, Any]) -> AuditStats:
    """Of one call's state."""
    count, errors = state["count"][0], state["errors"][0]
    known = jnp.minimum(count, KEPT)
    number = jnp.maximum(known, 1).astype(jnp.float32)
    mean = jnp.nanmean(errors)
    endless = ~jnp.isfinite(mean)

    def deviation(values: Array) -> Array:
        return jnp.sqrt(jnp.nansum((values - jnp.nanmean(values)) ** 2) / jnp.maximum(number - 1, 1))

    half = jnp.where(endless | (known < 2), jnp.inf, jnp.asarray(_MEAN_WITHIN)[known] * deviation(errors))
    most, far = jnp.nanmax(errors), jnp.asarray(_MOST_WITHIN)[known]
    logs = jnp.log(jnp.maximum(errors, 1e-3 * most))  # an error of 0 is as good as a small one
    likely = jnp.maximum(mean + far * deviation(errors), jnp.exp(jnp.nanmean(logs) + far * deviation(logs)))
    upper = jnp.where(endless | (known < FEWEST), jnp.inf, jnp.where(most == 0, 0.0, jnp.maximum(most, likely)))
    last = errors[(count - 1) % KEPT]
    return AuditStats(count, last, mean, jnp.maximum(mean - half, 0), mean + half, upper)
