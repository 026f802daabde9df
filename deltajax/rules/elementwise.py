"""Elementwise primitives: every position on its own, any number of operands, broadcast against each other."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from .. import _jaxpr
from .._program import Form, Kind, Program, Refused, Value

NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp
clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
igamma_grad_a igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not
optimization_barrier or polygamma population_count pow pvary real reduce_precision regularized_incomplete_beta rem
round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor zeta
""".split()


def common_map(ins: list[Value]) -> Value:
    """The map among the operands whose picture is the largest: the others must fit to it."""
    return max((v for v in ins if v.kind is Kind.MAP), key=lambda v: math.prod(v.picture))


def expand(operands, kinds: list[Kind], tiled: list[bool]):
    """Give all operands the form of tile arrays, so that they broadcast: fixed ones a leading axis, scalars all."""
    rank = max(jnp.ndim(x) for x in operands)

    def one(x, kind: Kind, is_tiled: bool):
        if kind is Kind.WHOLE and jnp.ndim(x) == 1:  # a scalar for each tile
            return x.reshape(-1, *(1,) * (rank - 1))
        return x if kind is not Kind.FIXED or is_tiled or jnp.ndim(x) == 0 else jnp.expand_dims(x, 0)

    return [one(*parts) for parts in zip(operands, kinds, tiled, strict=True)]


def elementwise(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: ``out[p] = f(in_1[p], in_2[p], ...)`` for every position p, channel by channel."""
    if eqn.primitive.name == "bitcast_convert_type" and len(eqn.outvars[0].aval.shape) != len(ins[0].shape):
        raise Refused("it changes the rank")
    like = common_map(ins)
    shape = eqn.outvars[0].aval.shape
    if len(shape) == len(like.shape) and like.map_axes.picture(shape) != like.picture:  # a row meets a column
        like = Value(shape, like.dtype, Kind.MAP, like.axes)
    operands = [program.operand(value, like) for value in ins]
    kinds, tiled = [v.kind for v in operands], [v.is_tiled for v in operands]
    outs = [(var.aval.shape, var.aval.dtype, like.axes) for var in eqn.outvars]
    if len(outs) != 1 and len(outs) != len(ins):
        raise Refused("it has several results")
    if any(like.map_axes.picture(shape) != like.picture for shape, _, _ in outs):
        raise Refused("its operands' pictures differ")

    def apply(pads, *xs):
        xs = expand(xs, kinds, tiled)
        if len(outs) > 1:
            return _jaxpr.bind(eqn, *xs)
        shape = jnp.broadcast_shapes(*(jnp.shape(x) for x in xs))
        return _jaxpr.bind(eqn, *(lax.broadcast_in_dim(x, shape, tuple(range(len(shape) - jnp.ndim(x), len(shape))))
                                  for x in map(jnp.asarray, xs)))

    return program.tiles(eqn.primitive.name, operands, outs, apply,
                         flops=float(math.prod(outs[0][0])),
                         form=Form("elementwise", (eqn.primitive.name, eqn.params)) if len(outs) == 1 else None)


RULES = dict.fromkeys(NAMES, elementwise)
