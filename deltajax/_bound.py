"""A bound on the output's error, known without the frame: interval arithmetic around the held frame.

Law: for every frame that the cache may have come from (``|frame - held| <= tau`` in each value, which every norm over
channels, cells and fields implies), ``|output - fn(params, frame)| <= bound``, value by value, up to rounding.

The function itself is interpreted once, from the interval ``[held - tau, held + tau]``: what comes out holds
``fn(params, frame)`` for all those frames, and the output of the last step is in the cache. So thresholds inside
(`taus`) need no gains of layers: what they held back is in that output already. A dead ReLU stops an error here, as
it does in the network; a product of Lipschitz constants would not see it.

It is a worst case. One linear layer is exact (the centre goes through the kernel, the radius through its absolute
value); a value that meets itself again (two layers in a row, ``x * sigmoid(x)``, a mean taken off) counts as two that
know nothing of each other, so the bound grows with every layer, and nothing follows from it about the usual error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _jaxpr
from ._channels_last import in_own_order
from ._env import Env
from ._options import Options
from ._plan import Plan
from ._program import Kind
from .rules.pool import bounds


@dataclasses.dataclass(frozen=True)
class Interval:
    """All arrays from `lo` to `hi`, value by value; where the two are one object, it is known and costs half."""

    lo: Any
    hi: Any

    @property
    def known(self) -> bool:
        return self.lo is self.hi

    @property
    def middle(self) -> Any:
        return self.lo if self.known else self.lo / 2 + self.hi / 2

    @property
    def radius(self) -> Any:
        return jnp.maximum(self.hi - self.middle, self.middle - self.lo)

    def each(self, function: Callable[[Any], Any]) -> Interval:
        lo = function(self.lo)
        return Interval(lo, lo if self.known else function(self.hi))


# What a rule makes of an equation and the intervals that it reads; None where it does not know.
Rule = Callable[..., "Interval | Sequence[Interval] | None"]


def _certain(x: Any) -> Interval:
    return Interval(x, x)


def _extremes(dtype) -> tuple[Any, Any]:
    low, high = bounds(dtype)
    return np.asarray(low, dtype), np.asarray(high, dtype)


def _anything(where: Any, found: Interval) -> Interval:
    """`found`, but all values that the dtype has at the positions `where`."""
    low, high = _extremes(found.lo.dtype)
    return Interval(jnp.where(where, low, found.lo), jnp.where(where, high, found.hi))


def _hull(*candidates: Any) -> Interval:
    return Interval(functools.reduce(jnp.minimum, candidates), functools.reduce(jnp.maximum, candidates))


def _has_zero(x: Interval) -> Any:
    return (x.lo <= 0) & (x.hi >= 0)


# ---------------------------------------------------------------------------------------------------- rules


def rising(eqn, *ins: Interval) -> list[Interval]:
    """What never falls where an operand rises, data movement included: ends go to ends."""
    low = _jaxpr.bind(eqn, *(x.lo for x in ins))
    high = _jaxpr.bind(eqn, *(x.hi for x in ins))
    return [Interval(*ends) for ends in zip(low, high, strict=True)]


def falling(eqn, x: Interval) -> list[Interval]:
    return rising(eqn, Interval(x.hi, x.lo))


def even(eqn, x: Interval, copies: int = 1) -> Interval:
    """``f(x) = f(-x)``, rising from 0 on; x comes as so many operands."""

    def function(x):
        return _jaxpr.bind(eqn, *[x] * copies)[0]

    found = _hull(function(x.lo), function(x.hi))
    return Interval(jnp.where(_has_zero(x), function(jnp.zeros_like(x.lo)), found.lo), found.hi)


def wave(eqn, x: Interval) -> Interval:
    """`sin` and `cos`: within [-1, 1], and no steeper than 1."""
    (centre,) = _jaxpr.bind(eqn, x.middle)
    return Interval(jnp.maximum(centre - x.radius, -1), jnp.minimum(centre + x.radius, 1))


def only(*places: int, rule: Rule = rising) -> Rule:
    """`rule` where all operands but those at `places` (indices, say) are known."""
    return lambda eqn, *ins: rule(eqn, *ins) if all(x.known for i, x in enumerate(ins) if i not in places) else None


def _leaves(wide: Interval, dtype) -> Any:
    """Where values in float32 may lie outside an integer type."""
    low, high = (float(end) for end in _extremes(dtype))
    if jnp.iinfo(dtype).bits > 16:  # float32 itself rounds
        low, high = low * (1 - 2**-12), high * (1 - 2**-12)
    return ~((wide.lo >= low) & (wide.hi <= high))


def truths(rule: Rule) -> Rule:
    return lambda eqn, *ins: rule(eqn, *ins) if ins[0].lo.dtype == np.bool_ else None


def numbers(rule: Rule) -> Rule:
    """A rule of arithmetic; integers that might wrap around are anything."""

    def guarded(eqn, *ins: Interval):
        found, dtype = rule(eqn, *ins), eqn.outvars[0].aval.dtype
        if not jnp.issubdtype(dtype, jnp.integer):
            return found
        wide = rule(eqn, *(x.each(lambda a: a.astype(jnp.float32)) for x in ins))
        found, wide = (x if isinstance(x, Interval) else next(iter(x or ())) for x in (found, wide))
        return _anything(_leaves(wide, dtype), found)

    return guarded


def difference(eqn, a: Interval, b: Interval) -> list[Interval]:
    return rising(eqn, a, Interval(b.hi, b.lo))


def corners(eqn, a: Interval, b: Interval) -> Interval:
    """What is monotone in each operand as long as the other stays: the extremes lie in the corners."""
    ends = [[x.lo] if x.known else [x.lo, x.hi] for x in (a, b)]
    return _hull(*(_jaxpr.bind(eqn, x, y)[0] for x in ends[0] for y in ends[1]))


def times(eqn, a: Interval, b: Interval) -> Interval:
    return even(eqn, a, 2) if eqn.invars[0] is eqn.invars[1] else corners(eqn, a, b)


def quotient(eqn, a: Interval, b: Interval) -> Interval:
    found = corners(eqn, a, b)
    return _anything(_has_zero(b), found)


def integer_power(eqn, x: Interval) -> Interval | list[Interval]:
    exponent = eqn.params["y"]
    if exponent > 0:
        return rising(eqn, x) if exponent % 2 else even(eqn, x)
    (ends,) = rising(eqn, x)
    return _anything(_has_zero(x), _hull(ends.lo, ends.hi))


def power(eqn, x: Interval, y: Interval) -> Interval:
    found = corners(eqn, x, y)
    return _anything(~(x.lo >= 0), found)


def product(eqn, a: Interval, b: Interval) -> Interval | None:
    """Convolutions and dot products. Law: ``|ab - mid(a) mid(b)| <= rad(a) (|mid(b)| + rad(b)) + |mid(a)| rad(b)``.

    Exact where one of them is known.
    """
    if not all(jnp.issubdtype(x.lo.dtype, jnp.floating) for x in (a, b)):
        return None
    (centre,) = _jaxpr.bind(eqn, a.middle, b.middle)
    radius = jnp.zeros_like(centre)
    if not a.known:
        size = jnp.abs(b.middle) if b.known else jnp.abs(b.middle) + b.radius
        radius += _jaxpr.bind(eqn, a.radius, size)[0]
    if not b.known:
        radius += _jaxpr.bind(eqn, jnp.abs(a.middle), b.radius)[0]
    return Interval(centre - radius, centre + radius)


def less(or_equal: bool, swapped: bool) -> Rule:
    below = jnp.less_equal if or_equal else jnp.less

    def rule(eqn, a: Interval, b: Interval) -> Interval:
        a, b = (b, a) if swapped else (a, b)
        return Interval(below(a.hi, b.lo), below(a.lo, b.hi))

    return rule


def equal(eqn, a: Interval, b: Interval) -> Interval:
    known = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
    return Interval(known, (a.lo <= b.hi) & (b.lo <= a.hi))


def unequal(eqn, a: Interval, b: Interval) -> Interval:
    same = equal(eqn, a, b)
    return Interval(~same.hi, ~same.lo)


def finite(eqn, x: Interval) -> Interval:
    known = jnp.isfinite(x.lo) & jnp.isfinite(x.hi)
    return Interval(known, jnp.ones_like(known))


def convert(eqn, x: Interval) -> Interval | list[Interval]:
    dtype = eqn.params["new_dtype"]
    if dtype == np.bool_:
        return Interval(~_has_zero(x), (x.lo != 0) | (x.hi != 0))
    ends = rising(eqn, x)
    if not jnp.issubdtype(dtype, jnp.integer) or x.lo.dtype == np.bool_:
        return ends
    return _anything(_leaves(x.each(lambda a: a.astype(jnp.float32)), dtype), ends[0])


def select(eqn, which: Interval, *cases: Interval) -> Interval:
    """The hull of the cases that may be chosen."""
    low, high = _extremes(cases[0].lo.dtype)
    first, last = (x.astype(jnp.int32) for x in (which.lo, which.hi))
    possible = [(first <= number) & (last >= number) for number in range(len(cases))]
    return Interval(
        functools.reduce(jnp.minimum, [jnp.where(p, x.lo, high) for p, x in zip(possible, cases, strict=True)]),
        functools.reduce(jnp.maximum, [jnp.where(p, x.hi, low) for p, x in zip(possible, cases, strict=True)]),
    )


def index(eqn, x: Interval) -> Interval:
    """`argmax` and `argmin`: from the first place that may hold the extreme to the last."""
    (axis,) = eqn.params["axes"]
    if eqn.primitive.name == "argmax":
        possible = x.hi >= jnp.max(x.lo, axis, keepdims=True)
    else:
        possible = x.lo <= jnp.min(x.hi, axis, keepdims=True)
    places = lax.broadcasted_iota(eqn.params["index_dtype"], x.lo.shape, axis)
    last = np.asarray(x.lo.shape[axis] - 1, places.dtype)
    return Interval(jnp.min(jnp.where(possible, places, last), axis),
                    jnp.max(jnp.where(possible, places, np.zeros_like(last)), axis))


def top(eqn, x: Interval) -> list[Interval]:
    ends, places = rising(eqn, x)
    last = x.lo.shape[eqn.params.get("axis", -1)] - 1
    return [ends, Interval(jnp.zeros_like(places.lo), jnp.full_like(places.lo, last))]


def sort(eqn, *ins: Interval) -> list[Interval] | None:
    return rising(eqn, *ins) if len(ins) == 1 else None


def branches(eqn, which: Interval, *operands: Interval) -> list[Interval]:
    found = [interpret(*_jaxpr.opened(branch), operands) for branch in eqn.params["branches"]]
    last = np.int32(len(found) - 1)
    which = which.each(lambda x: jnp.clip(x.astype(jnp.int32), 0, last))
    return [select(eqn, which, *cases) for cases in zip(*found, strict=True)]


def loop(eqn, *ins: Interval) -> list[Interval]:
    """`scan`, over both ends. What is known before all turns (a counter) is found by assuming it until it fails."""
    p = eqn.params
    jaxpr, constants = _jaxpr.opened(p["jaxpr"])
    n, m = _jaxpr.scan_counts(eqn)
    consts, carry, xs = ins[:n], ins[n: n + m], ins[n + m:]
    known = [x.known for x in carry]

    def ends(x: Interval, both: bool):
        return (x.lo, x.hi) if both or not x.known else (x.lo,)

    def turn(carry, xs, after=None):
        values = [Interval(pair[0], pair[-1]) for pair in (*carry, *xs)]
        made = interpret(jaxpr, constants, [*consts, *values])
        if after is not None:
            after[:] = [x.known for x in made[:m]]
        return (tuple(ends(x, not k) for x, k in zip(made[:m], known, strict=True)),
                tuple(ends(x, False) for x in made[m:]))

    columns = tuple(ends(x, False) for x in xs)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), columns)
    while True:
        start = tuple(ends(x, not k) for x, k in zip(carry, known, strict=True))
        after: list[bool] = []
        jax.eval_shape(functools.partial(turn, after=after), start, one)
        still = [a and k for a, k in zip(after, known, strict=True)]
        if still == known:
            break
        known = still
    found = lax.scan(turn, start, columns, p["length"], p["reverse"])
    return [Interval(pair[0], pair[-1]) for part in found for pair in part]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "broadcast_in_dim broadcast_to clamp concatenate copy cummax cummin device_put max min name "
        "optimization_barrier pad reduce_max reduce_min reduce_precision reduce_window_max reduce_window_min reshape "
        "rev slice split squeeze stack stop_gradient tile transpose unstack".split(), rising),
    **dict.fromkeys(
        "acosh asin asinh atan atanh cbrt ceil cumlogsumexp erf erf_inv exp exp2 expm1 floor log log1p logistic round "
        "sign sinh sqrt tanh".split(), rising),
    **dict.fromkeys("acos erfc not rsqrt".split(), falling),
    **dict.fromkeys(["add", "add_any", "cumsum", "reduce_sum", "reduce_window_sum"], numbers(rising)),
    **dict.fromkeys(["and", "or", "reduce_and", "reduce_or"], truths(rising)),
    **dict.fromkeys(["conv_general_dilated", "dot_general"], product),
    **dict.fromkeys(["gather", "dynamic_slice"], only(0)),
    **dict.fromkeys(["argmax", "argmin"], index),
    "abs": numbers(even), "square": numbers(even), "cosh": even, "neg": numbers(falling), "sin": wave, "cos": wave,
    "sub": numbers(difference), "mul": numbers(times), "div": numbers(quotient),
    "integer_pow": numbers(integer_power), "pow": power,
    "lt": less(False, False), "le": less(True, False), "gt": less(False, True), "ge": less(True, True),
    "eq": equal, "ne": unequal, "xor": truths(unequal), "is_finite": finite,
    "convert_element_type": convert, "select_n": select, "sort": sort, "top_k": top,
    "dynamic_update_slice": only(0, 1), "scatter": only(0, 2), "scatter-add": only(0, 2, rule=numbers(rising)),
    "scan": loop, "cond": branches,
}


# ---------------------------------------------------------------------------------------------------- softmax


class _Makers(dict[Any, Any]):
    """The equation that made each variable."""

    def of(self, atom: Any, name: str) -> Any:
        """That of a primitive of this name, or None."""
        eqn = None if isinstance(atom, _jaxpr.Literal) else self.get(atom)
        return eqn if eqn is not None and eqn.primitive.name == name else None

    def is_same(self, atom: Any, axis: int) -> bool:
        """Whether an array is the same all along an axis, as its shape shows or the broadcast that made it."""
        spread = self.of(atom, "broadcast_in_dim")
        return math.prod(atom.aval.shape) == 1 or atom.aval.shape[axis] == 1 or (
            spread is not None and axis not in spread.params["broadcast_dimensions"])


def _softmax_of(makers: _Makers, eqn) -> tuple[Any, int] | None:
    """Of ``e / sum(e)`` with ``e = exp(x - shift)``: x and the axis. Whatever the shift is, it falls out."""
    if eqn.primitive.name != "div":
        return None
    share, below = eqn.invars
    total = makers.of(below, "broadcast_in_dim")
    total = total and makers.of(total.invars[0], "reduce_sum")
    exp = makers.of(share, "exp")
    shifted = exp and makers.of(exp.invars[0], "sub")
    if not total or not shifted or total.invars[0] is not share or len(total.params["axes"]) != 1:
        return None
    (axis,), (x, shift) = total.params["axes"], shifted.invars
    if x.aval.shape != share.aval.shape or not makers.is_same(shift, axis) or not makers.is_same(below, axis):
        return None
    return x, axis


def softmax(x: Interval, axis: int) -> Interval:
    """Exact: a share is least where its own value is least and all others are greatest."""
    shift = jnp.max(x.hi, axis, keepdims=True)
    low, high = jnp.exp(x.lo - shift), jnp.exp(x.hi - shift)

    def others(e):  # from both sides: the sum less its largest term is nothing but rounding
        count = e.shape[axis]
        edge = jnp.zeros_like(lax.slice_in_dim(e, 0, 1, axis=axis))
        before = lax.slice_in_dim(lax.cumsum(e, axis), 0, count - 1, axis=axis)
        after = lax.slice_in_dim(lax.cumsum(e, axis, reverse=True), 1, count, axis=axis)
        return jnp.concatenate([edge, before], axis) + jnp.concatenate([after, edge], axis)

    least, most = low / (low + others(high)), high / (high + others(low))
    return Interval(jnp.where(jnp.isnan(least), 0, least), jnp.where(jnp.isnan(most), 1, most))


# ---------------------------------------------------------------------------------------------------- the function


def interpret(jaxpr, constants, arguments: Sequence[Interval]) -> list[Interval]:
    """What comes out, for everything that may go in."""
    env: dict[Any, Interval] = dict(zip(jaxpr.constvars, map(_certain, constants), strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    makers = _Makers()

    def read(atom) -> Interval:
        return _certain(_jaxpr.value(atom)) if isinstance(atom, _jaxpr.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        ins, inner = [read(atom) for atom in eqn.invars], _jaxpr.wrapped(eqn)
        makers.update((var, eqn) for var in eqn.outvars)
        if inner is not None:
            outs = interpret(*inner, ins)
        elif all(x.known for x in ins):
            outs = map(_certain, _jaxpr.bind(eqn, *(x.lo for x in ins)))
        elif (found := _softmax_of(makers, eqn)) is not None:
            outs = [softmax(read(found[0]), found[1])]
        else:
            outs = _interpret_one(_jaxpr.plain(eqn), ins)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _interpret_one(eqn, ins: Sequence[Interval]) -> list[Interval]:
    rule = RULES.get(eqn.primitive.name)
    found = None
    if rule is not None and all(_is_ordered(atom.aval.dtype) for atom in (*eqn.invars, *eqn.outvars)):
        found = rule(eqn, *(x.each(jnp.asarray) for x in ins))
    if found is None:
        return [_unknown(var.aval) for var in eqn.outvars]
    return [_sound(x) for x in ([found] if isinstance(found, Interval) else found)]


def _is_ordered(dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _unknown(aval) -> Interval:
    if not _is_ordered(aval.dtype):  # complex: no rule reads it
        return Interval(-np.inf, np.inf)
    return Interval(*(jnp.full(aval.shape, end, aval.dtype) for end in _extremes(aval.dtype)))


def _sound(x: Interval) -> Interval:
    """NaN comes of infinite ends, or of what has no value there: then it may be anything."""
    if x.known or not jnp.issubdtype(x.lo.dtype, jnp.floating):
        return x
    return _anything(jnp.isnan(x.lo) | jnp.isnan(x.hi), x)


def _frames(held: jax.Array, tau: Any) -> Interval:
    """Every frame that would have been held back, within what the dtype can say."""
    if jnp.issubdtype(held.dtype, jnp.floating):
        tau = jnp.asarray(tau, held.dtype)
        return _sound(Interval(held - tau, held + tau))
    low, high = (int(end) for end in _extremes(held.dtype))
    steps = min(math.floor(min(tau, high)), high)
    if steps == high:
        return _anything(True, _certain(held))
    return Interval(jnp.where(held < low + steps, low, held - steps).astype(held.dtype),
                    jnp.where(held > high - steps, high, held + steps).astype(held.dtype))


def error_bound(fn, plan: Plan, options: Options, params: Any, cache: dict[str, Any]) -> Any:
    """See `Incremental.error_bound`."""
    state = {name: part for name, part in cache.items() if name != "fixed"}
    env = Env.of(plan, 1, {}, state)
    fresh = jnp.any(env.fresh)  # it has no output yet
    held = plan.layouts[plan.frame].load(env.maps[plan.frame])[0]
    how = options.how
    tau = how.tau if how.large is None else how.large
    exact = tau == 0 and not any(tau > 0 for tau in options.taus.values())
    truth: Sequence[Interval] = ()
    if not exact:
        # Of the previous frame as the reference, all is kept: only what the step did not recompute is unknown.
        frames = _certain(held) if tau == 0 or how.reference == "previous" else _frames(held, tau)
        jaxpr, constants, _ = _jaxpr.trace(fn, params, jax.ShapeDtypeStruct(held.shape, held.dtype))
        truth = interpret(jaxpr, constants, [*map(_certain, jax.tree.leaves(params)), frames])
    found = []
    for number, value in enumerate(plan.outputs):
        order = plan.orders[number]
        bound = in_own_order(jnp.zeros((1, *value.shape), _real(value.dtype)), order)[0]
        if not exact and value.kind is not Kind.FIXED:
            made = plan.layouts[value].load(env.map(value)) if value.kind is Kind.MAP else env.wholes[value]
            bound = _distance(in_own_order(made, order)[0], truth[number]).astype(bound.dtype)
        found.append(jnp.where(fresh, jnp.inf, bound))
    return plan.out_tree.unflatten(found)


def _real(dtype) -> Any:
    return jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32


def _distance(made: jax.Array, truth: Interval) -> jax.Array:
    """The farthest that the truth may be."""
    if jnp.issubdtype(made.dtype, jnp.complexfloating):
        far = jnp.where(truth.lo == truth.hi, jnp.abs(made - truth.lo), jnp.inf)
    else:
        at, low, high = (x.astype(_real(made.dtype)) for x in map(jnp.asarray, (made, truth.lo, truth.hi)))
        far = jnp.where((low == at) & (at == high), 0, jnp.maximum(at - low, high - at))
    return jnp.where(jnp.isnan(far), jnp.inf, far)
