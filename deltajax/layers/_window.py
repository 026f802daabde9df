"""Layers that slide a window: what changed at a position changes the results whose windows hold it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ._layer import Layer, Options

Pair = int | tuple[int, int]
Padding = str | int | tuple[tuple[int, int], tuple[int, int]]


def conv(
    *, strides: Pair = 1, padding: Padding = "SAME", dilation: Pair = 1, input_dilation: Pair = 1,
    groups: int = 1, activation: Callable[[Array], Array] | None = None, **options: Unpack[Options],
) -> Layer:
    """Convolution, bias and activation in one.

    Law: `lax.conv_general_dilated` of what changed; the mask is dilated through the window, padding included,
    so that no result goes stale. (The paper's own `conv2d`, its figure 9, does not pad the change map with
    the frame: at padding 1 a change moves past the results that read it.)

    Params: ``{"kernel": [h, w, C // groups, features], "bias": [features]}`` as in Flax; the bias may be
    missing.

    Args:
        strides: rows and columns between two windows.
        padding: ``"SAME"``, ``"VALID"``, a number for all sides, or ``((top, bottom), (left, right))``.
        dilation: rows and columns between two taps of the kernel.
        input_dilation: rows and columns between two inputs, zeros between them.
        groups: parts into which channels are divided, each with its own kernels; C makes it depthwise.
        activation: a function of each value, done on the same tiles.

    Raises:
        ValueError: an argument is out of its range, or `params` or `x` does not fit; the message names it.
    """
    stride, taps, pads = _pair("strides", strides), _pair("dilation", dilation), _padding(padding)
    spread = _pair("input_dilation", input_dilation)
    if isinstance(pads, str) and spread != (1, 1):
        raise ValueError(f"`padding` (={padding!r}) must be numbers where `input_dilation` is {spread}.")
    _whole_number("groups", groups)

    def op(x, kernel, numbers):
        return lax.conv_general_dilated(x, kernel, stride, pads, spread, taps, numbers, groups)

    return _convolution("conv", op, groups, activation, options)


def conv_transpose(
    *, strides: Pair = 1, padding: Padding = "SAME", dilation: Pair = 1,
    activation: Callable[[Array], Array] | None = None, **options: Unpack[Options],
) -> Layer:
    """`lax.conv_transpose` (that of Flax), bias and activation in one: `strides` times as many rows and
    columns.

    Law, params and errors as of `conv`.
    """
    stride, taps, pads = _pair("strides", strides), _pair("dilation", dilation), _padding(padding)

    def op(x, kernel, numbers):
        return lax.conv_transpose(x, kernel, stride, pads, taps, numbers)

    return _convolution("conv_transpose", op, 1, activation, options)


def max_pool(
    window: Pair = 2, *, strides: Pair | None = None, padding: Padding = "VALID", **options: Unpack[Options]
) -> Layer:
    """The largest value of each window, channel by channel; `params` is not read.

    Args:
        window: rows and columns of a window.
        strides: rows and columns between two windows; None for windows side by side.
        padding: as of `conv`; what lies outside is less than everything.
    """
    def fn(_, x):
        least = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return lax.reduce_window(x, np.asarray(least, x.dtype), lax.max, *shape(x))

    shape = _windows(window, strides, padding, options)
    return Layer("max_pool", fn, options)


def avg_pool(
    window: Pair = 2, *, strides: Pair | None = None, padding: Padding = "VALID", count_padding: bool = True,
    **options: Unpack[Options],
) -> Layer:
    """The mean of each window, channel by channel, in the dtype of `x`; `params` is not read.

    Args:
        window, strides, padding: as of `max_pool`; what lies outside is 0.
        count_padding: whether what lies outside counts in the mean, as it does in Flax unless told otherwise.
    """
    def fn(_, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"`x` of layer 'avg_pool' has dtype {x.dtype}; make it a float with astype.")
        dims, steps, pads = shape(x)
        zero = np.zeros((), x.dtype)
        total = lax.reduce_window(x, zero, lax.add, dims, steps, pads)
        if count_padding:
            return total / np.asarray(math.prod(dims), x.dtype)
        inside = [n if d > 1 else 1 for n, d in zip(x.shape, dims, strict=True)]
        return total / lax.reduce_window(np.ones(inside, x.dtype), zero, lax.add, dims, steps, pads)

    shape = _windows(window, strides, padding, options)
    return Layer("avg_pool", fn, options)


def _convolution(name: str, op, groups: int, activation, options: Options) -> Layer:
    channels_first = options.get("spatial_axes", (-3, -2)) == (-2, -1)
    numbers = ("NCHW", "HWIO", "NCHW") if channels_first else ("NHWC", "HWIO", "NHWC")

    def fn(params: PyTree, x: Array) -> Array:
        kernel, bias = kernel_and_bias(name, params, x, 4, "[h, w, C // groups, features]")
        channels = x.shape[-3 if channels_first else -1]
        if channels != kernel.shape[2] * groups:
            raise ValueError(
                f"`x` of layer {name!r} has {channels} channels, but params['kernel'] of shape "
                f"{tuple(kernel.shape)} with {groups} groups takes {kernel.shape[2] * groups}."
            )
        if kernel.shape[3] % groups:
            raise ValueError(f"`groups` (={groups}) must divide the kernel's {kernel.shape[3]} features.")
        y = op(x if x.ndim == 4 else jnp.expand_dims(x, 0), kernel, numbers)
        y = y if x.ndim == 4 else lax.squeeze(y, (0,))
        if bias is not None:
            channel = y.ndim - (3 if channels_first else 1)
            y = y + jnp.expand_dims(bias, [axis for axis in range(y.ndim) if axis != channel])
        return y if activation is None else activation(y)

    spatial = options.get("spatial_axes", (-3, -2))
    if spatial not in ((-3, -2), (-2, -1)):
        raise ValueError(f"`spatial_axes` (={spatial}) of layer {name!r} must be (-3, -2) or (-2, -1).")
    return Layer(name, fn, options)


def kernel_and_bias(name: str, params: Any, x: Array, rank: int, form: str) -> tuple[Array, Array | None]:
    """The two arrays of a layer's params, checked; `x` is what meets them."""
    if not hasattr(params, "keys") or "kernel" not in params:
        found = list(params) if hasattr(params, "keys") else type(params).__name__
        raise ValueError(f"`params` (={found}) of layer {name!r} must be a dict with a 'kernel' {form}.")
    kernel, bias = params["kernel"], params.get("bias")
    if len(kernel.shape) != rank:
        raise ValueError(f"params['kernel'] {tuple(kernel.shape)} of layer {name!r} must be of shape {form}.")
    if kernel.dtype != x.dtype:
        raise ValueError(
            f"`x` of layer {name!r} has dtype {x.dtype}, params['kernel'] {kernel.dtype}; make them one."
        )
    if bias is not None and tuple(bias.shape) != (kernel.shape[-1],):
        raise ValueError(
            f"params['bias'] {tuple(bias.shape)} of layer {name!r} must have shape {(kernel.shape[-1],)}: "
            "the features of params['kernel']."
        )
    return kernel, bias


def _windows(window: Pair, strides: Pair | None, padding: Padding, options: Options):
    """How to slide over a map: a function of `x` that gives what `reduce_window` wants."""
    size = _pair("window", window)
    step = size if strides is None else _pair("strides", strides)
    pads = _padding(padding)
    row, col = options.get("spatial_axes", (-3, -2))

    def spread(x, values, other):
        full = [other] * x.ndim
        full[row], full[col] = values
        return tuple(full)

    def shape(x):
        dims, steps = spread(x, size, 1), spread(x, step, 1)
        if isinstance(pads, str):
            return dims, steps, tuple(lax.padtype_to_pads(x.shape, dims, steps, pads))
        return dims, steps, spread(x, pads, (0, 0))

    return shape


def _whole_number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a whole number >= 1.")
    return value


def _pair(name: str, value: Pair) -> tuple[int, int]:
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"`{name}` (={value!r}) must be one number, or two: rows and columns.")
    return _whole_number(name, both[0]), _whole_number(name, both[1])


def _padding(value: Padding) -> str | tuple[tuple[int, int], tuple[int, int]]:
    if value in ("SAME", "VALID", "SAME_LOWER"):
        return value  # pyright: ignore[reportReturnType]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return (value, value), (value, value)
    if isinstance(value, (tuple, list)) and np.shape(value) == (2, 2) and np.asarray(value).dtype.kind == "i":
        (top, bottom), (left, right) = value
        return (top, bottom), (left, right)
    raise ValueError(
        f"`padding` (={value!r}) must be 'SAME', 'VALID', a number >= 0, or ((top, bottom), (left, right))."
    )
