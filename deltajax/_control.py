"""Thresholds that follow the audits, so that few frames have an error above the one allowed.

All thresholds rise and fall together, by a *level* in octaves; that of the frame half as fast, for an octave too many
does more harm there. After every audit the level moves as in adaptive conformal inference (Gibbs and Candes, "Adaptive
conformal inference under distribution shift", NeurIPS 2021, equation 2): down by 1 - SHARE if the error was above the
one allowed, else up by SHARE.

Law: of T audits at most SHARE * T + HIGHEST - LOWEST + 1 find an error above the one allowed, whatever the clip does,
if none does at the lowest level: each of them lowers the level by 1 - SHARE, every other one raises it by SHARE, and it
cannot leave its range. Before the first of them the level rises faster, as long as the error is less than half of what
is allowed.

An audit that finds too large an error also has the next frame computed whole, so that nothing too old stays behind.

State of V calls, leading axis V: `level`; `found`: whether an error was ever too large; `units`: for thresholds that
were not given, one standard deviation of the frame and of every segment's result, measured when all was computed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._env import Env, State
from ._options import Options
from ._plan import Plan, thresholded

SHARE = 0.05  # of the audits that may find an error above the one allowed
LOWEST, HIGHEST = -16.0, 8.0  # octaves
FIRST_RISE = 0.5  # octaves, until an error was too large
START = -2.0  # octaves, for thresholds that were not given
FRAME_UNIT, SEGMENT_UNIT = 1 / 16, 1 / 8  # of a standard deviation, at level 0


@dataclasses.dataclass(frozen=True)
class Control:
    """What is allowed, and whether the thresholds at level 0 are those of the options or found from the data."""

    max_error: float
    find_units: bool

    def initial(self, plan: Plan) -> dict[str, Array]:
        state = {
            "level": jnp.full((1,), START if self.find_units else 0.0, jnp.float32), "found": jnp.zeros((1,), bool),
        }
        if self.find_units:
            state["units"] = jnp.zeros((1, 1 + len(thresholded(plan))), jnp.float32)
        return state

    def options(self, plan: Plan, options: Options, state: dict[str, Array]) -> Options:
        """The options with the thresholds of this frame, one for each stream."""
        up = jnp.exp2(state["level"])
        if self.find_units:
            each = jnp.asarray([[FRAME_UNIT, *[SEGMENT_UNIT] * (state["units"].shape[1] - 1)]], jnp.float32)
            units = state["units"] * each
            tau = units[:, 0]
            taus = {segment.name: units[:, 1 + i] for i, segment in enumerate(thresholded(plan))}
        else:
            tau, taus = options.how.tau, options.taus

        def for_streams(tau: Any, up: Array) -> Array:
            return jnp.repeat(tau * up, plan.streams)

        how = dataclasses.replace(options.how, tau=for_streams(tau, jnp.sqrt(up)))
        return dataclasses.replace(options, how=how, taus={k: for_streams(v, up) for k, v in taus.items()})

    def after(
        self, plan: Plan, control: dict[str, Array], errors: Array, state: State
    ) -> tuple[dict[str, Array], Array]:
        """``(control, age)`` after a frame whose audit found `errors` [V] (NaN without an audit), and left `state`."""
        audited, bad = ~jnp.isnan(errors), errors > self.max_error
        first = ~control["found"] & ~bad & (errors < self.max_error / 2)
        move = jnp.where(bad, SHARE - 1, jnp.where(first, FIRST_RISE, SHARE))
        level = jnp.clip(control["level"] + jnp.where(audited, move, 0), LOWEST, HIGHEST)
        after = {"level": level, "found": control["found"] | bad}
        if self.find_units:
            after["units"] = self._units(plan, control["units"], state)
        whole = jnp.repeat(bad, plan.streams, total_repeat_length=state["age"].shape[0])
        return after, jnp.where(whole, 0, state["age"])

    def _units(self, plan: Plan, units: Array, state: State) -> Array:
        """Measured anew for the calls of which everything was computed in this frame."""
        calls = units.shape[0]
        values = [plan.frame, *(segment.writes[0] for segment in thresholded(plan))]

        def measured(state: State) -> Array:
            env, found = Env.of(plan, calls, {}, state), []
            for value in values:
                array = plan.layouts[value].load(env.map(value)).astype(jnp.float32)
                found.append(jnp.std(array.reshape(calls, -1), axis=1))
            found = jnp.stack(found, axis=1)
            return jnp.where(jnp.isfinite(found), found, 0)

        fresh = jnp.any((state["age"] == 1).reshape(calls, -1), axis=1)
        new = lax.cond(jnp.any(fresh), measured, lambda _: units, state)
        return jnp.where(fresh[:, None], new, units)
