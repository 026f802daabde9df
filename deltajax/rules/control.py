"""Control flow whose bodies can be seen through: loops of known length, and branches.

A loop is lowered turn by turn, so that what its turns do is done on tiles. Of a `cond` that is decided by a constant
one branch is lowered; else all are, and the results selected: no branch may be left out of a compiled step whose
tiles were found before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._program import Hidden, Kind, Program, Refused, Value

Lowered = Value | Hidden
Lower = Callable[[Program, Any, Sequence[Any], Sequence[Lowered]], list[Lowered]]

MOST_TURNS, MOST_EQUATIONS, MOST_BRANCHES = 64, 2000, 8


def _traced(program: Program, lower: Lower, function, ins: Sequence[Lowered]) -> list[Lowered]:
    """A function of jax written out on values."""
    specs = [_spec(v) for v in ins]
    jaxpr, constants, _ = _jaxpr.trace(function, *specs)
    return lower(program, jaxpr, constants, ins)


def _spec(value: Lowered) -> jax.ShapeDtypeStruct:
    if isinstance(value, Hidden):
        return jax.ShapeDtypeStruct(value.value.shape[1:], value.value.dtype)
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _folded(program: Program, value: Lowered) -> Lowered:
    """A constant scalar, such as a loop's counter, by its number."""
    if isinstance(value, Hidden) or value.shape != () or (number := program.constant(value)) is None:
        return value
    return program.given(number)


def _check(jaxpr, turns: int) -> None:
    if turns > MOST_TURNS or turns * len(jaxpr.eqns) > MOST_EQUATIONS:
        raise Refused(f"it has {turns} turns of {len(jaxpr.eqns)} equations, too many to be written out")


def scan(program: Program, eqn: _jaxpr.Eqn, ins: Sequence[Lowered], lower: Lower) -> list[Lowered]:
    p = eqn.params
    jaxpr, constants = _jaxpr.opened(p["jaxpr"])
    _check(jaxpr, p["length"])
    same, carried = _jaxpr.scan_counts(eqn)
    consts, carry, xs = list(ins[:same]), list(ins[same: same + carried]), ins[same + carried:]
    for value in xs:
        axes = value.axes if isinstance(value, Value) and value.kind is Kind.MAP else None
        if isinstance(value, Hidden) or (axes is not None and 0 in (axes.stream, axes.row, axes.col)):
            raise Refused("it runs along the picture")
    turns = range(p["length"])
    made: list[list[Lowered]] = [[] for _ in eqn.outvars[carried:]]
    for turn in reversed(turns) if p["reverse"] else turns:
        now = _traced(program, lower, lambda *xs, at=turn: [lax.index_in_dim(x, at, keepdims=False) for x in xs], xs)
        out = lower(program, jaxpr, constants, [*consts, *carry, *now])
        carry = [_folded(program, value) for value in out[:carried]]
        for column, value in zip(made, out[carried:], strict=True):
            column.append(value)
    stacked = []
    for column in made:
        column = column[::-1] if p["reverse"] else column
        stacked += _traced(program, lower, lambda *ys: [jnp.stack(ys)], column)
    return [*carry, *stacked]


def while_(program: Program, eqn: _jaxpr.Eqn, ins: Sequence[Lowered], lower: Lower) -> list[Lowered]:
    p = eqn.params
    going, going_constants = _jaxpr.opened(p["cond_jaxpr"])
    body, body_constants = _jaxpr.opened(p["body_jaxpr"])
    n, m = p["cond_nconsts"], p["body_nconsts"]
    known, consts, carry = ins[:n], ins[n: n + m], list(ins[n + m:])
    turn = 0
    while True:
        (goes_on,) = lower(program, going, going_constants, [*known, *carry])
        found = program.constant(goes_on) if isinstance(goes_on, Value) else None
        if found is None:
            raise Refused("the number of its turns is not known beforehand")
        if not found:
            return carry
        turn += 1
        _check(body, turn)
        carry = [_folded(program, v) for v in lower(program, body, body_constants, [*consts, *carry])]


def cond(program: Program, eqn: _jaxpr.Eqn, ins: Sequence[Lowered], lower: Lower) -> list[Lowered]:
    branches = [_jaxpr.opened(branch) for branch in eqn.params["branches"]]
    index, *operands = ins
    found = program.constant(index) if isinstance(index, Value) else None
    if found is not None:
        return lower(program, *branches[min(max(int(found), 0), len(branches) - 1)], operands)
    if len(branches) > MOST_BRANCHES:
        raise Refused(f"it has {len(branches)} branches")
    if any(jaxpr.effects for jaxpr, _ in branches):
        raise Refused("its branches have effects")
    results = [lower(program, *branch, operands) for branch in branches]

    def select(which, *cases):
        which = jnp.clip(which, 0, len(cases) - 1)
        return [lax.select_n(which if len(cases) > 2 else which.astype(bool), *cases)]

    return [_traced(program, lower, select, [index, *cases])[0] for cases in zip(*results, strict=True)]


SEEN_THROUGH: dict[str, Callable[..., list[Lowered]]] = {"scan": scan, "while": while_, "cond": cond}
