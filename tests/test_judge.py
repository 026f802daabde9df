"""An outside judge: JAX's own list of primitive harnesses, written to judge jax2tf and export.

Each case becomes a function of one frame: its largest array. Of the others, indices and single numbers are constants,
as in any network, and the rest are params. The picture is on those axes for which the fewest operations fall back, for
the list says nothing of pictures. `init`, then `step` on other input, must equal the function itself, whether its
primitive has a rule or falls back. The list is private to JAX; where it is missing, these tests are skipped.

``python tests/test_judge.py`` prints the table of all cases by family, from `explain` alone.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import assert_close

import deltajax as dj

harnesses = pytest.importorskip("jax._src.internal_test_util.test_harnesses")

# Families of vision networks; the rest is linear algebra, random numbers, scatters and 64-bit arithmetic.
FAMILIES = {
    "convolution": ("conv_general_dilated",),
    "dot": ("dot_general",),
    "window": ("reduce_window_max", "reduce_window_min", "reduce_window_add", "reduce_window_mul",
               "select_and_scatter_add", "select_and_gather_add"),
    "indices": ("gather", "dynamic_slice", "dynamic_update_slice", "slice", "rev"),
    "shape": ("pad", "reshape", "broadcast_in_dim", "transpose", "concatenate", "squeeze", "convert_element_type"),
    "reduction": ("argmin", "argmax", "cummin", "cummax", "cumsum", "cumprod", "sort", "top_k", "reduce", "reduce_max",
                  "reduce_min", "reduce_sum", "reduce_prod", "reduce_and", "reduce_or"),
    "elementwise": tuple("""
        integer_pow select_n min max sign reduce_precision div clamp rem eq ne ge gt le lt add mul sub stop_gradient neg
        add_any and or xor pow abs round atan2 nextafter acosh asinh atanh acos atan asin cos cosh exp expm1 log log1p
        rsqrt sin sinh sqrt tan tanh logistic ceil erf erfc erf_inv floor is_finite lgamma digamma cbrt
    """.split()),
}
FAMILY = {name: family for family, names in FAMILIES.items() for name in names}
SAMPLE = 61  # of the cases, one in so many is in the fast suite
PARTS = 8


def cases():
    """The harnesses of these families."""
    return [h for h in harnesses.all_harnesses if h.group_name in FAMILY and h.dtype != np.complex128]


def frame_of(arguments) -> int | None:
    """The argument that is the frame: the largest array of a real type, of rank 2 to 4."""
    fits = [
        (x.size, -i) for i, x in enumerate(arguments)
        if hasattr(x, "shape") and 2 <= x.ndim <= 4 and x.size > 1 and (
            jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer))
    ]
    return -max(fits)[1] if fits else None


@dataclasses.dataclass
class Case:
    """A harness as a function of params and frame, and its transformation."""

    fn: Callable
    params: list
    frame: jax.Array
    inc: dj.Incremental

    @property
    def fallbacks(self) -> list[str]:
        return [s.reason for s in self.inc.explain(self.params, self.frame).segments if s.how == "dense"]


AXES = ((-2, -1), (-3, -2), (-3, -1), (-4, -3), (-4, -2), (-4, -1))


def case(harness) -> Case | None:
    """The harness with the picture on the axes that suit it; None if it has no picture."""
    rng = np.random.RandomState(0)  # what the list was written for
    arguments = [jnp.asarray(x) for x in harness.dyn_args_maker(rng)]
    which = frame_of(arguments)
    if which is None:
        return None
    rest = [x for i, x in enumerate(arguments) if i != which]
    fixed = [jnp.issubdtype(x.dtype, jnp.integer) or x.size == 1 for x in rest]

    def fn(params, frame):
        given = [x if constant else p for x, p, constant in zip(rest, params, fixed, strict=True)]
        given.insert(which, frame)
        return harness.dyn_fun(*given)

    params = [None if constant else x for x, constant in zip(rest, fixed, strict=True)]
    frame = arguments[which]
    found = []
    for axes in AXES:
        if -min(axes) <= frame.ndim:
            found.append(Case(fn, params, frame, dj.incremental(fn, spatial_axes=axes)))
            if not found[-1].fallbacks:
                return found[-1]
    return min(found, key=lambda c: len(c.fallbacks))


def judge(harness) -> str:
    """``"rule"``, ``"fallback"`` or ``"no picture"``; an AssertionError where the step is not the function."""
    found = case(harness)
    if found is None:
        return "no picture"
    fn, params, first, inc = found.fn, found.params, found.frame, found.inc
    other = first.at[..., first.shape[-2] // 2, :].set(jnp.roll(first[..., first.shape[-2] // 2, :], 1, -1))
    step, full = (jax.jit(f) for f in (inc.step, fn))
    cache, _ = inc.init(params, first)
    for frame in (first, other):
        output, cache, _ = step(params, cache, None, frame)
        for got, want in zip(jax.tree.leaves(output), jax.tree.leaves(full(params, frame)), strict=True):
            narrow = jnp.issubdtype(want.dtype, jnp.inexact) and jnp.finfo(want.dtype).bits < 32
            exact = not jnp.issubdtype(want.dtype, jnp.inexact)
            assert_close(got, want, 0 if exact else 0.02 if narrow else 1e-5, harness.fullname)
    return "fallback" if found.fallbacks else "rule"


def verdicts(chosen) -> dict[str, collections.Counter]:
    """By family, how many cases ended how; fails on the first wrong one."""
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for harness in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[FAMILY[harness.group_name]][judge(harness)] += 1
    return found


def test_a_sample_is_right():
    found = verdicts(cases()[::SAMPLE])
    assert set(found) == set(FAMILIES)
    assert sum(f["rule"] for f in found.values()) > 12


@pytest.mark.parametrize(
    "part", [pytest.param(n, marks=pytest.mark.exhaustive if n else pytest.mark.slow) for n in range(PARTS)]
)
def test_all_are_right(part):
    verdicts(cases()[part::PARTS])


def by_rule() -> tuple[dict[str, collections.Counter], collections.Counter]:
    """All cases by family, and why which fall back; nothing is run."""
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    reasons: collections.Counter = collections.Counter()
    for harness in cases():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = case(harness)
        kind = "no picture" if one is None else "fallback" if one.fallbacks else "rule"
        found[FAMILY[harness.group_name]][kind] += 1
        if one is not None:
            reasons.update({reason.split(", at ")[0] for reason in one.fallbacks})
    return found, reasons


@pytest.mark.slow
def test_most_are_done_by_rule():
    found, _ = by_rule()
    total = sum(found.values(), collections.Counter())
    assert total["rule"] + total["fallback"] > 1300
    assert total["rule"] >= 0.95 * (total["rule"] + total["fallback"])


if __name__ == "__main__":
    table, why = by_rule()
    print("| family | by rule | fallback | no picture |\n|---|---|---|---|")
    for family, counts in [*table.items(), ("all", sum(table.values(), collections.Counter()))]:
        print(f"| {family} | {counts['rule']} | {counts['fallback']} | {counts['no picture']} |")
    for reason, count in why.most_common():
        print(f"* {count}: {reason}")
