"""`dot_general`: over channels (a 1x1 convolution) on the tile; over flattened positions by partial products."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .._program import Kind, Program, Refused, Value
from .reduce import partial_dot
from .resample import banded_dot


def flops(eqn: _jaxpr.Eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)


def dot_general(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    lhs, rhs = ins
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    if left_batch or right_batch:
        raise Refused("it has batch dimensions")
    flat = _after_flatten(program, eqn, lhs, rhs, tuple(left), tuple(right))
    if flat is not None:
        return flat
    value, other, contracted = (lhs, rhs, left) if lhs.kind is Kind.MAP else (rhs, lhs, right)
    if value.kind is not Kind.MAP:
        raise Refused("it reads whole values")
    if other.kind is not Kind.FIXED:
        raise Refused("both its operands depend on the frame")
    axes, aval = value.axes, eqn.outvars[0].aval
    assert axes is not None
    if {axes.stream, axes.row, axes.col} & set(contracted):
        if len(contracted) != 1 or axes.stream in contracted:
            raise Refused("it contracts the picture")
        along = right[0] if value is lhs else left[0]
        return banded_dot(program, eqn, value, other, contracted[0], along, value is lhs)
    before = 0 if value is lhs else len(lhs.shape) - len(left)

    def new(axis):
        return before + axis - sum(c < axis for c in contracted)

    out_axes = axes.moved(new)

    def apply(pads, *operands):
        if value is lhs:
            return jax.vmap(lambda tile: _jaxpr.bind(eqn, tile, operands[1]))(operands[0])
        return jax.vmap(lambda tile: _jaxpr.bind(eqn, operands[0], tile))(operands[1])

    return program.tiles("dot", [lhs, rhs], [(aval.shape, aval.dtype, out_axes)], apply, flops=flops(eqn),
                         heavy=True)


def _after_flatten(program, eqn, lhs: Value, rhs: Value, left, right):
    """`reshape` to one axis, then contraction of just that axis with a fixed kernel."""
    op = lhs.op
    if rhs.kind is not Kind.FIXED or lhs.kind is not Kind.WHOLE or op is None or op.flattened is None:
        return None
    first, last, out = op.flattened
    (source,) = op.inputs
    if left != (out,) or len(right) != 1:
        return None
    kept = [n for axis, n in enumerate(source.shape) if not first <= axis <= last]
    if kept != [n for axis, n in enumerate(lhs.shape) if axis != out]:
        return None  # axes of length 1 were added or dropped beside the merged one
    kernel = program.whole("kernel", [rhs], [((rhs.shape[right[0]], *(n for a, n in enumerate(rhs.shape)
                                                                     if a != right[0])), rhs.dtype)],
                           lambda w: (jnp.moveaxis(w, right[0], 0),))[0]
    return partial_dot(program, eqn, source, first, last, kernel)


RULES = {"dot_general": dot_general}
