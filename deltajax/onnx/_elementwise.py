"""Operators that work on every position by itself; operands are broadcast against each other as in numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ._operator import Operator


def _operands_only(function: Callable) -> Operator:
    """An operator without attributes; hides the keywords that JAX's functions have."""
    return Operator(lambda *operands: function(*operands))


def _folded(function: Callable) -> Operator:
    """A function of two operands for any number of them, from the left."""
    return Operator(lambda *operands: functools.reduce(function, operands))


def _mean(*xs):
    return functools.reduce(jnp.add, xs) / len(xs)


def _divide(x, y):
    """Of whole numbers: rounded towards zero."""
    return jnp.divide(x, y) if jnp.issubdtype(x.dtype, jnp.inexact) else lax.div(*jnp.broadcast_arrays(x, y))


def _power(x, y):
    return jnp.power(x, y).astype(x.dtype)


def _mod(x, y, *, fmod=0):
    return (jnp.fmod if fmod else jnp.mod)(x, y)


def _clip(x, low=None, high=None, /, *, min=None, max=None):
    """The bounds are attributes before opset 11, operands since."""
    return jnp.clip(x, min if low is None else low, max if high is None else high)


def _leaky_relu(x, *, alpha=0.01):
    return jnp.where(x >= 0, x, alpha * x)


def _prelu(x, slope):
    return jnp.where(x >= 0, x, slope * x)


def _thresholded_relu(x, *, alpha=1.0):
    return jnp.where(x > alpha, x, jnp.zeros_like(x))


def _elu(x, *, alpha=1.0):
    return jax.nn.elu(x, alpha)


def _celu(x, *, alpha=1.0):
    return jax.nn.celu(x, alpha)


def _selu(x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return gamma * jax.nn.elu(x, alpha)


def _hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    return jnp.clip(alpha * x + beta, 0, 1)


def _hard_swish(x):
    return x * jnp.clip(x / 6 + 0.5, 0, 1)


def _gelu(x, *, approximate="none"):
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _swish(x, *, alpha=1.0):
    return x * jax.nn.sigmoid(alpha * x)


def _mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def _is_infinite(x, *, detect_negative=1, detect_positive=1):
    return (jnp.isposinf(x) & bool(detect_positive)) | (jnp.isneginf(x) & bool(detect_negative))


def _cast(x, *, to, saturate=1, round_mode="up"):
    """`saturate` and `round_mode` are about 8-bit floats, which are refused."""
    return x.astype(jax.dtypes.canonicalize_dtype(to))


def _cast_like(x, like, *, saturate=1, round_mode="up"):
    return x.astype(like.dtype)


OPERATORS = {
    "Abs": _operands_only(jnp.abs),
    "Acos": _operands_only(jnp.arccos),
    "Acosh": _operands_only(jnp.arccosh),
    "Add": _operands_only(jnp.add),
    "And": _operands_only(jnp.logical_and),
    "Asin": _operands_only(jnp.arcsin),
    "Asinh": _operands_only(jnp.arcsinh),
    "Atan": _operands_only(jnp.arctan),
    "Atanh": _operands_only(jnp.arctanh),
    "Cast": Operator(_cast),
    "CastLike": Operator(_cast_like),
    "Ceil": _operands_only(jnp.ceil),
    "Celu": Operator(_celu),
    "Clip": Operator(_clip),
    "Cos": _operands_only(jnp.cos),
    "Cosh": _operands_only(jnp.cosh),
    "Div": _operands_only(_divide),
    "Elu": Operator(_elu),
    "Equal": _operands_only(jnp.equal),
    "Erf": _operands_only(lax.erf),
    "Exp": _operands_only(jnp.exp),
    "Floor": _operands_only(jnp.floor),
    "Gelu": Operator(_gelu),
    "Greater": _operands_only(jnp.greater),
    "GreaterOrEqual": _operands_only(jnp.greater_equal),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": _operands_only(_hard_swish),
    "IsInf": Operator(_is_infinite),
    "IsNaN": _operands_only(jnp.isnan),
    "LeakyRelu": Operator(_leaky_relu),
    "Less": _operands_only(jnp.less),
    "LessOrEqual": _operands_only(jnp.less_equal),
    "Log": _operands_only(jnp.log),
    "Max": _folded(jnp.maximum),
    "Mean": _operands_only(_mean),
    "Min": _folded(jnp.minimum),
    "Mish": _operands_only(_mish),
    "Mod": Operator(_mod),
    "Mul": _operands_only(jnp.multiply),
    "Neg": _operands_only(jnp.negative),
    "Not": _operands_only(jnp.logical_not),
    "Or": _operands_only(jnp.logical_or),
    "PRelu": _operands_only(_prelu),
    "Pow": _operands_only(_power),
    "Reciprocal": _operands_only(jnp.reciprocal),
    "Relu": _operands_only(jax.nn.relu),
    "Round": _operands_only(jnp.round),
    "Selu": Operator(_selu),
    "Sigmoid": _operands_only(jax.nn.sigmoid),
    "Sign": _operands_only(jnp.sign),
    "Sin": _operands_only(jnp.sin),
    "Sinh": _operands_only(jnp.sinh),
    "Softplus": _operands_only(jax.nn.softplus),
    "Softsign": _operands_only(jax.nn.soft_sign),
    "Sqrt": _operands_only(jnp.sqrt),
    "Sub": _operands_only(jnp.subtract),
    "Sum": _folded(jnp.add),
    "Swish": Operator(_swish),
    "Tan": _operands_only(jnp.tan),
    "Tanh": _operands_only(jnp.tanh),
    "ThresholdedRelu": Operator(_thresholded_relu),
    "Where": _operands_only(jnp.where),
    "Xor": _operands_only(jnp.logical_xor),
}
