"""The values of a step while it runs: what segments read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._age import Turn
from ._plan import Plan
from ._program import Value

State = dict[str, Any]


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
    pool: tuple[jax.Array, ...] = ()  # maps and masks that have no array of their own
    claimed: frozenset[Value] = frozenset()  # whose masks count whatever their flags say

    @classmethod
    def of(
        cls, plan: Plan, calls: int, fixed: dict[Value, jax.Array], state: State, max_age: int | None = None
    ) -> Env:
        """What a state holds, before the step changes it."""

        def named(values, name: str) -> dict[Value, jax.Array]:
            return dict(zip(values, state[name], strict=True))

        def columns(values, name: str) -> dict[Value, jax.Array]:
            return {value: state[name][:, number] for number, value in enumerate(values)}

        return cls(
            plan, calls, state["age"] == 0, fixed, named(plan.own, "maps"), named(plan.own, "masks"),
            columns(plan.maps, "flags"), named(plan.wholes, "wholes"), columns(plan.wholes, "whole_flags"),
            None if max_age is None else Turn(max_age, state["age"]), state.get("pool", ()),
        )

    @property
    def streams(self) -> int:
        return self.calls * self.plan.streams

    def map(self, value: Value) -> jax.Array:
        """One map, as it is stored."""
        number = self.plan.pooled.get(value)
        return self.maps[value] if number is None else self.plan.pool.map(self.pool[0], number)

    def mask(self, value: Value) -> jax.Array:
        if value in self.claimed:
            return self.masks[value]
        number = self.plan.pooled.get(value)
        mask = self.masks[value] if number is None else self.plan.pool.mask(self.pool[1], number)
        return mask & self.flags[value][:, None, None]

    def found(self, values: Sequence[Value]) -> tuple[tuple[jax.Array, ...], ...]:
        """Of each, in an array of its own, what it is, where it changed and whether: of a whole value without where."""
        return tuple(
            (self.maps[v], self.masks[v], self.flags[v]) if v.is_tiled else (self.wholes[v], self.whole_flags[v])
            for v in values
        )

    def put(self, values: Sequence[Value], found: Sequence[tuple[jax.Array, ...]]) -> None:
        """What `found` gives is so from now on."""
        for value, parts in zip(values, found, strict=True):
            if value.is_tiled:
                self.maps[value], self.masks[value], self.flags[value] = parts
            else:
                self.wholes[value], self.whole_flags[value] = parts

    def copy(self) -> Env:
        """Another one, in which values can be put."""
        return dataclasses.replace(
            self, maps=dict(self.maps), masks=dict(self.masks), flags=dict(self.flags), wholes=dict(self.wholes),
            whole_flags=dict(self.whole_flags),
        )

    def by_call(self, flags: jax.Array) -> jax.Array:
        """[S] to [V]."""
        return jnp.any(flags.reshape(self.calls, self.plan.streams), axis=1)

    def by_stream(self, flags: jax.Array) -> jax.Array:
        """[V] to [S]."""
        return jnp.repeat(flags, self.plan.streams, total_repeat_length=self.streams)
