"""Convolutions and pools over any number of picture axes; pictures are [batch, channels, *sides]."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._operator import Operator


class _Axis(NamedTuple):
    """A window along one axis: `size` taps `dilation` apart, a new one every `stride`, pads before and after."""

    length: int
    size: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def reach(self) -> int:
        return (self.size - 1) * self.dilation + 1


def _axes(lengths: Sequence[int], sizes, strides, dilations, pads, auto_pad: str) -> list[_Axis]:
    rank = len(lengths)
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    axes = []
    for n, size, stride, dilation, before, after in zip(
        lengths, sizes, strides, dilations, pads[:rank], pads[rank:], strict=True
    ):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):  # as many results as -(-n // stride)
            total = max((-(-n // stride) - 1) * stride + (size - 1) * dilation + 1 - n, 0)
            before, after = total // 2, total - total // 2
            if auto_pad == "SAME_LOWER":
                before, after = after, before
        elif auto_pad == "VALID":
            before, after = 0, 0
        axes.append(_Axis(n, size, stride, dilation, before, after))
    return axes


def _biased(y, bias):
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _conv(
    x, kernel, bias=None, /, *,
    auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
):
    axes = _axes(x.shape[2:], kernel.shape[2:], strides, dilations, pads, auto_pad)
    y = lax.conv_general_dilated(
        x, kernel, [a.stride for a in axes], [(a.before, a.after) for a in axes],
        rhs_dilation=[a.dilation for a in axes], feature_group_count=group,
    )
    return _biased(y, bias)


def _conv_transpose(
    x, kernel, bias=None, /, *,
    auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None, output_shape=None,
    pads=None, strides=None,
):
    """A convolution of the picture with `stride - 1` zeros between its pixels; the kernel is [in, out / group, ..].

    Where the output's shape is given, or is the input's times the stride (auto_pad), the pads follow from it.
    """
    rank = x.ndim - 2
    axes = _axes(x.shape[2:], kernel.shape[2:], strides, dilations, pads, "NOTSET")
    more = output_padding or [0] * rank
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [a.length * a.stride for a in axes]
    padding = []
    for number, a in enumerate(axes):
        before, after = a.before, a.after
        if output_shape is not None:
            total = a.stride * (a.length - 1) + more[number] + a.reach - output_shape[-rank:][number]
            small, large = total // 2, total - total // 2
            before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        elif auto_pad == "VALID":
            before, after = 0, 0
        padding.append((a.reach - 1 - before, a.reach - 1 - after + more[number]))
    groups = kernel.reshape(group, kernel.shape[0] // group, *kernel.shape[1:])  # [group, in, out, ..]
    flipped = jnp.flip(jnp.swapaxes(groups, 1, 2), range(3, 3 + rank))
    y = lax.conv_general_dilated(
        x, flipped.reshape(-1, *flipped.shape[2:]), [1] * rank, padding,
        lhs_dilation=[a.stride for a in axes], rhs_dilation=[a.dilation for a in axes], feature_group_count=group,
    )
    return _biased(y, bias)


def _rounded_up(a: _Axis) -> _Axis:
    """ceil_mode: one window more where some pixels are left over, unless it would begin behind the picture."""
    count = -(-(a.length + a.before + a.after - a.reach) // a.stride) + 1
    if (count - 1) * a.stride >= a.length + a.before:
        count -= 1
    return a._replace(after=max(a.after, (count - 1) * a.stride + a.reach - a.length - a.before))


def _pooled(x, init, combine, axes: Sequence[_Axis]):
    ones = (1, 1)
    return lax.reduce_window(
        x, init, combine, (*ones, *(a.size for a in axes)), (*ones, *(a.stride for a in axes)),
        [(0, 0), (0, 0), *((a.before, a.after) for a in axes)],
        window_dilation=(*ones, *(a.dilation for a in axes)),
    )


def _max_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, pads=None, storage_order=0, strides=None,
    outputs,
):
    if outputs > 1:
        raise NotImplementedError("the positions of the maxima, its second result")
    axes = _axes(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    least = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.iinfo(x.dtype).min
    return _pooled(x, np.array(least, x.dtype), lax.max, [_rounded_up(a) for a in axes] if ceil_mode else axes)


def _average_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, pads=None, strides=None
):
    """The sum over the number of taps inside the picture, or inside the picture and its pads (count_include_pad)."""
    axes = _axes(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    counts = np.ones((), np.float64)
    windows = [_rounded_up(a) for a in axes] if ceil_mode else axes
    for a, window in zip(axes, windows, strict=True):
        results = (window.length + window.before + window.after - a.reach) // a.stride + 1
        at = a.stride * np.arange(results)[:, None] + a.dilation * np.arange(a.size)
        low, high = (0, a.before + a.length + a.after) if count_include_pad else (a.before, a.before + a.length)
        counts = counts[..., None] * ((at >= low) & (at < high)).sum(axis=1)
    total = _pooled(x, np.array(0, x.dtype), lax.add, windows)
    return total / (counts if np.ptp(counts) else counts.flat[0]).astype(x.dtype)


def _over_picture(reduce, x):
    return reduce(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _local_response_norm(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    """Each value over a power of the mean square of `size` channels around it (Krizhevsky 2012, section 3.3)."""
    around = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
    window = (1, size, *[1] * (x.ndim - 2))
    squares = lax.reduce_window(x * x, np.array(0, x.dtype), lax.add, window, [1] * x.ndim, around)
    return x / (bias + alpha / size * squares) ** beta


def _depth_to_space(x, *, blocksize, mode="DCR"):
    n, channels, height, width = x.shape
    c = channels // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, blocksize, blocksize, c, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c, blocksize, blocksize, height, width).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c, height * blocksize, width * blocksize)


def _space_to_depth(x, *, blocksize, mode="DCR"):
    n, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    x = x.reshape(n, channels, rows, blocksize, columns, blocksize)
    x = x.transpose(0, 3, 5, 1, 2, 4) if mode == "DCR" else x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(n, channels * blocksize**2, rows, columns)


OPERATORS = {
    "AveragePool": Operator(_average_pool),
    "Conv": Operator(_conv),
    "ConvTranspose": Operator(_conv_transpose),
    "DepthToSpace": Operator(_depth_to_space),
    "GlobalAveragePool": Operator(functools.partial(_over_picture, jnp.mean)),
    "GlobalMaxPool": Operator(functools.partial(_over_picture, jnp.max)),
    "LRN": Operator(_local_response_norm),
    "MaxPool": Operator(_max_pool),
    "SpaceToDepth": Operator(_space_to_depth),
}
