"""The error that is there: in frames drawn at random the whole function is computed, and the output compared with it.

An output's receptive field is nearly the whole frame in every network that this package ships, so one tile of it is as
dear as all: an audit takes a whole frame, and leaves the others alone. The function itself is called, not the tiles: an
audit shares nothing with what it audits.

State of V calls, all leaves with a leading axis of V; `left` counts down to the next audit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree
from scipy.special import stdtrit

KEPT = 32  # errors remembered: the last ones
LEVEL = 0.95  # of all that is said with confidence

ErrorOf = Callable[[PyTree, PyTree], Array]


def output_error(dense: PyTree, output: PyTree) -> Array:
    """Root mean square of the difference over that of the dense output, of the worst of the output's arrays.

    Of arrays of whole numbers, the share of the entries that differ. NaN and infinity agree with themselves; where they
    disagree the error is infinite.
    """
    gaps = jax.tree.leaves(jax.tree.map(_gap, dense, output))
    return jnp.max(jnp.stack([jnp.zeros(()), *gaps]))


def _gap(dense: Array, output: Array) -> Array:
    if not jnp.issubdtype(dense.dtype, jnp.inexact):
        return jnp.mean((dense != output).astype(jnp.float32))
    same = (dense == output) | (jnp.isnan(dense) & jnp.isnan(output))
    gap = jnp.where(same, 0, jnp.abs(dense - output)).astype(jnp.float32)
    size = jnp.where(jnp.isfinite(dense), jnp.abs(dense), 0).astype(jnp.float32)
    gap, size = jnp.sqrt(jnp.mean(gap * gap)), jnp.sqrt(jnp.mean(size * size))
    error = jnp.where(gap == 0, 0.0, gap / size)
    return jnp.where(jnp.isfinite(error), error, jnp.inf)


@dataclasses.dataclass(frozen=True)
class Audit:
    """How often, and what an error is.

    Attributes:
        every: frames to one audit; in each run of so many, one is drawn.
        error_of: ``(dense output, output) -> error``, traceable.
    """

    every: int
    error_of: ErrorOf

    def initial(self) -> dict[str, Array]:
        """Nothing known. The first frame, which is exact, is not drawn unless all are."""
        place = min(1, self.every - 1) + jax.random.randint(jax.random.key(0), (1,), 0, max(1, self.every - 1))
        return {
            "place": place.astype(jnp.int32),
            "left": jnp.array(place, jnp.int32),  # a copy: a cache that is donated must not hold one array twice
            "count": jnp.zeros((1,), jnp.int32), "errors": jnp.full((1, KEPT), jnp.nan, jnp.float32),
        }

    def run(
        self, dense: Callable[[Array], PyTree], frames: Array, outputs: PyTree, state: dict[str, Array]
    ) -> tuple[dict[str, Array], Array]:
        """``(state, errors)`` after frames `[V, ...]` with outputs `[V, ...]`; the errors [V] are NaN without an audit.

        If it is the turn of one call, all are audited: under vmap there is one decision.
        """
        due = jnp.any(state["left"] <= 0)

        def look(frames: Array, outputs: PyTree) -> Array:
            return jax.vmap(self.error_of)(jax.vmap(dense)(frames), outputs).astype(jnp.float32)

        def pass_by(frames: Array, outputs: PyTree) -> Array:
            return jnp.full(frames.shape[:1], jnp.nan, jnp.float32)

        errors = lax.cond(due, look, pass_by, frames, outputs)
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
    """What the audits found; the mean and the bounds are over the last 32 of them.

    Attributes:
        count: audits so far.
        last: the error in the last one, NaN before the first.
        mean, low, high: the mean error of a frame, and its 95 % confidence interval (Student's, errors taken as
            independent); without bounds before the second audit.
        upper: 95 % of the frames have an error below it, if the audited frames are like the others: the larger one of
            Student's prediction bound and of the largest error found, which n audits make right for n in n + 1 frames
            whatever the errors' distribution. Infinite before the second audit.
    """

    count: Int[Array, "..."]
    last: Float[Array, "..."]
    mean: Float[Array, "..."]
    low: Float[Array, "..."]
    high: Float[Array, "..."]
    upper: Float[Array, "..."]


# For n audits, 0 to KEPT: the two-sided and the one-sided quantile with n - 1 degrees of freedom.
_FREEDOM = np.maximum(np.arange(KEPT + 1) - 1, 1)
_TWO_SIDED = stdtrit(_FREEDOM, (1 + LEVEL) / 2).astype(np.float32)
_ONE_SIDED = stdtrit(_FREEDOM, LEVEL).astype(np.float32)


def measure_audit(state: dict[str, Any]) -> AuditStats:
    """Of one call's state."""
    count, errors = state["count"][0], state["errors"][0]
    known = jnp.minimum(count, KEPT)
    number = jnp.maximum(known, 1).astype(jnp.float32)
    mean = jnp.nanmean(errors)
    spread = jnp.sqrt(jnp.nansum((errors - mean) ** 2) / jnp.maximum(number - 1, 1))
    spread = jnp.where((known < 2) | ~jnp.isfinite(mean), jnp.inf, spread)
    half = jnp.asarray(_TWO_SIDED)[known] * spread / jnp.sqrt(number)
    likely = mean + jnp.asarray(_ONE_SIDED)[known] * spread * jnp.sqrt(1 + 1 / number)
    upper = jnp.where(known < 2, jnp.inf, jnp.maximum(likely, jnp.nanmax(errors)))
    last = errors[(count - 1) % KEPT]
    return AuditStats(count, last, mean, jnp.maximum(mean - half, 0), mean + half, upper)
