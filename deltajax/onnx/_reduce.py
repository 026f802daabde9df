"""Sums and the like over axes, normalisations, and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._operator import Operator


def _reduction(function: Callable) -> Operator:
    """`function(x, axis, keepdims)` as an operator; the axes are an attribute in older opsets, an operand in newer."""

    def apply(x, given=None, /, *, axes=None, keepdims=1, noop_with_empty_axes=0):
        chosen = axes if given is None else given.tolist()
        if not chosen:
            chosen = () if noop_with_empty_axes else range(x.ndim)
        return function(x, axis=tuple(chosen), keepdims=bool(keepdims)).astype(x.dtype)

    return Operator(apply, static=(1,))


def _sum_of(inner: Callable, outer: Callable = lambda total: total) -> Operator:
    return _reduction(lambda x, axis, keepdims: outer(jnp.sum(inner(x), axis=axis, keepdims=keepdims)))


def _extreme(function: Callable, sign: int) -> Operator:
    """Of nothing at all: the value that changes no other."""

    def apply(x, axis, keepdims):
        if x.size:
            return function(x, axis=axis, keepdims=keepdims)
        if x.dtype == bool:
            bound = sign > 0
        elif jnp.issubdtype(x.dtype, jnp.inexact):
            bound = sign * np.inf
        else:
            bound = jnp.iinfo(x.dtype).max if sign > 0 else jnp.iinfo(x.dtype).min
        return function(x, axis=axis, keepdims=keepdims, initial=bound)

    return _reduction(apply)


def _log_sum_exp(x, axis, keepdims):
    return jax.nn.logsumexp(x, axis=axis, keepdims=keepdims)


def _position_of(function: Callable) -> Operator:
    def apply(x, *, axis=0, keepdims=1, select_last_index=0):
        found = function(jnp.flip(x, axis) if select_last_index else x, axis=axis, keepdims=bool(keepdims))
        return x.shape[axis] - 1 - found if select_last_index else found

    return Operator(apply)


def _normalised_exponents(function: Callable) -> Operator:
    """Over one axis; before opset 13 over that axis and all behind it."""

    def apply(x, *, axis=None, opset):
        if opset >= 13:
            return function(x, axis=-1 if axis is None else axis)
        first = 1 if axis is None else axis
        return function(x, axis=tuple(range(first % x.ndim, x.ndim)))

    return Operator(apply)


def _per_channel(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _batch_norm(x, scale, bias, mean, variance, *, epsilon=1e-5, momentum=0.9, spatial=1, training_mode=0):
    if training_mode or not spatial:
        raise NotImplementedError(f"training_mode={training_mode}, spatial={spatial}; export the network in eval mode")
    gain = scale * lax.rsqrt(variance + epsilon)
    y = (x - _per_channel(mean, x)) * _per_channel(gain, x) + _per_channel(bias, x)
    return y.astype(x.dtype)


def _standardised(x, axes, epsilon):
    """`x` with mean 0 and variance 1 over `axes`, the mean, and one over the deviation."""
    mean = x.mean(axes, keepdims=True)
    scale = lax.rsqrt(jnp.square(x - mean).mean(axes, keepdims=True) + epsilon)
    return (x - mean) * scale, mean, scale


def _instance_norm(x, scale, bias, *, epsilon=1e-5):
    y, _, _ = _standardised(x, tuple(range(2, x.ndim)), epsilon)
    return y * _per_channel(scale, x) + _per_channel(bias, x)


def _layer_norm(x, scale, bias=None, /, *, axis=-1, epsilon=1e-5, stash_type=1, outputs):
    y, mean, deviation = _standardised(x.astype(jnp.float32), tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = y.astype(x.dtype) * scale
    return (y if bias is None else y + bias, mean, deviation)[:outputs]


def _rms_norm(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    wide = x.astype(jnp.float32)
    power = jnp.square(wide).mean(tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    return (wide * lax.rsqrt(power + epsilon)).astype(x.dtype) * scale


def _group_norm(x, scale, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    """As of opset 21; ONNX itself has withdrawn the one before, whose scale was per group."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    y, _, _ = _standardised(groups, (2,), epsilon)
    return y.reshape(x.shape) * _per_channel(scale, x) + _per_channel(bias, x)


def _mean_variance_norm(x, *, axes=(0, 2, 3)):
    return _standardised(x, tuple(axes), 1e-9)[0]


def _lp_norm(x, *, axis=-1, p=2):
    size = jnp.linalg.norm(x, p, axis, keepdims=True)
    return jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size))


def _gemm(a, b, c=None, /, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    y = jnp.matmul(a.T if transA else a, b.T if transB else b)
    y = y if alpha == 1 else (alpha * y).astype(y.dtype)
    return y if c is None else y + (c if beta == 1 else (beta * c).astype(y.dtype))


def _einsum(*operands, equation):
    return jnp.einsum(equation, *operands)


def _cumulative_sum(x, axis, *, exclusive=0, reverse=0):
    axis = int(axis)
    x = jnp.flip(x, axis) if reverse else x
    y = jnp.cumsum(x, axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return jnp.flip(y, axis) if reverse else y


OPERATORS = {
    "ArgMax": _position_of(jnp.argmax),
    "ArgMin": _position_of(jnp.argmin),
    "BatchNormalization": Operator(_batch_norm),
    "CumSum": Operator(_cumulative_sum, static=(1,)),
    "Einsum": Operator(_einsum),
    "Gemm": Operator(_gemm),
    "GroupNormalization": Operator(_group_norm),
    "InstanceNormalization": Operator(_instance_norm),
    "LayerNormalization": Operator(_layer_norm),
    "LogSoftmax": _normalised_exponents(jax.nn.log_softmax),
    "LpNormalization": Operator(_lp_norm),
    "MatMul": Operator(lambda a, b: jnp.matmul(a, b)),
    "MeanVarianceNormalization": Operator(_mean_variance_norm),
    "RMSNormalization": Operator(_rms_norm),
    "ReduceL1": _sum_of(jnp.abs),
    "ReduceL2": _sum_of(jnp.square, jnp.sqrt),
    "ReduceLogSum": _sum_of(lambda x: x, jnp.log),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _extreme(jnp.max, -1),
    "ReduceMean": _reduction(jnp.mean),
    "ReduceMin": _extreme(jnp.min, 1),
    "ReduceProd": _reduction(jnp.prod),
    "ReduceSum": _sum_of(lambda x: x),
    "ReduceSumSquare": _sum_of(jnp.square),
    "Softmax": _normalised_exponents(jax.nn.softmax),
}
