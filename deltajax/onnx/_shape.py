"""Operators that move values and compute shapes. Shapes are static: what they depend on comes as numpy arrays."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._operator import Operator


def _concat(*xs, axis):
    return jnp.concatenate(xs, axis)


def _split(x, sizes=None, /, *, axis=0, num_outputs=None, split=None, outputs):
    """Parts of the given sizes (an attribute before opset 13), or as even as can be, the last one smaller."""
    length = x.shape[axis]
    given = split if sizes is None else sizes.tolist()
    each = -(-length // outputs)
    ends = np.cumsum(given) if given is not None else np.minimum(each * np.arange(1, outputs + 1), length)
    starts = [0, *ends[:-1].tolist()]
    return tuple(lax.slice_in_dim(x, a, b, axis=axis) for a, b in zip(starts, ends.tolist(), strict=True))


def _slice(x, first=None, last=None, along=None, every=None, /, *, starts=None, ends=None, axes=None):
    """As in numpy; the bounds are attributes before opset 10."""
    starts, ends, axes = (
        attribute if operand is None else operand.tolist()
        for operand, attribute in ((first, starts), (last, ends), (along, axes))
    )
    assert starts is not None and ends is not None
    steps = [1] * len(starts) if every is None else every.tolist()
    for axis, start, end, step in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True):
        which = range(*slice(start, end, step).indices(x.shape[axis]))
        if step < 0:
            x, which = lax.rev(x, (axis % x.ndim,)), [x.shape[axis] - 1 - i for i in which]
        stop = which[-1] + 1 if which else 0
        x = lax.slice_in_dim(x, which[0] if which else 0, stop, abs(step), axis)
    return x


def _pad(x, around=None, fill=None, along=None, /, *, mode="constant", pads=None, value=0.0):
    """Negative pads crop. Pads and fill are attributes before opset 11."""
    pads = pads if around is None else around.tolist()
    assert pads is not None
    axes = range(x.ndim) if along is None else along.tolist()
    widths = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        widths[axis] = (before, after)
    if mode == "constant":
        fill = jnp.asarray(value if fill is None else fill, x.dtype).reshape(())
        return lax.pad(x, fill, [(before, after, 0) for before, after in widths])
    for axis, (before, after) in enumerate(widths):
        x = lax.slice_in_dim(x, max(-before, 0), x.shape[axis] - max(-after, 0), axis=axis)
    return jnp.pad(x, [(max(before, 0), max(after, 0)) for before, after in widths], mode)


def _reshape(x, shape, *, allowzero=0):
    """0 stands for the input's own length there (unless `allowzero`), -1 for what is left."""
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape.tolist())])


def _transpose(x, *, perm=None):
    return jnp.transpose(x, perm)


def _flatten(x, *, axis=1):
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def _squeeze(x, given=None, /, *, axes=None):
    chosen = axes if given is None else given.tolist()
    return jnp.squeeze(x, None if chosen is None else tuple(chosen))


def _unsqueeze(x, given=None, /, *, axes=None):
    axes = axes if given is None else given.tolist()
    assert axes is not None
    return jnp.expand_dims(x, axes)


def _expand(x, shape):
    return jnp.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _tile(x, repeats):
    return jnp.tile(x, repeats.tolist())


def _gather(x, indices, *, axis=0):
    length = x.shape[axis]
    if not isinstance(indices, np.ndarray):
        return jnp.take(x, jnp.where(indices < 0, indices + length, indices), axis, mode="clip")
    if indices.ndim == 0:
        return lax.index_in_dim(x, int(indices), axis, keepdims=False)
    return jnp.take(x, indices % length, axis, mode="clip")


def _scatter_nd(x, positions, values, *, reduction="none"):
    at = jnp.asarray(x).at[tuple(jnp.moveaxis(positions, -1, 0))]
    return {"none": at.set, "add": at.add, "mul": at.multiply, "max": at.max, "min": at.min}[reduction](values)


def _shape(x, *, start=0, end=None):
    return np.array(x.shape[start:end], np.int64)


def _size(x):
    return np.array(x.size, np.int64)


def _constant(*, value=None, value_float=None, value_floats=None, value_int=None, value_ints=None):
    if value is not None:
        return value
    floats = value_floats if value_float is None else value_float
    return np.array(value_ints if value_int is None else value_int, np.int64) if floats is None else np.float32(floats)


def _constant_of_shape(shape, *, value=None):
    return np.full(shape.tolist(), np.float32(0) if value is None else value[0])


def _identity(x):
    return x


def _dropout(x, rate=None, training=None, /, *, ratio=0.5, seed=0, outputs):
    if training is not None and training.any():
        raise NotImplementedError("training_mode=1; export the network in eval mode")
    return (x, jnp.ones(x.shape, bool))[:outputs]


def _top_k(x, count=None, /, *, k=None, axis=-1, largest=1, sorted=1):
    """Values and positions; of equal values the first. The number is an attribute before opset 10."""
    k = k if count is None else int(count.item())
    assert k is not None
    rows = jnp.moveaxis(x, axis, -1)
    sinking = ~rows if jnp.issubdtype(x.dtype, jnp.unsignedinteger) else -rows
    _, at = lax.top_k(rows if largest else sinking, k)
    return tuple(jnp.moveaxis(y, -1, axis) for y in (jnp.take_along_axis(rows, at, -1), at))


def _range(start, limit, delta):
    return np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype)


def _triangle(x, diagonal=None, /, *, upper=1):
    return (jnp.triu if upper else jnp.tril)(x, 0 if diagonal is None else int(diagonal))


OPERATORS = {
    "Concat": Operator(_concat),
    "Constant": Operator(_constant),
    "ConstantOfShape": Operator(_constant_of_shape, static=(0,)),
    "Dropout": Operator(_dropout, static=(2,)),
    "Expand": Operator(_expand, static=(1,)),
    "Flatten": Operator(_flatten),
    "Gather": Operator(_gather),
    "Identity": Operator(_identity),
    "Pad": Operator(_pad, static=(1, 3)),
    "Range": Operator(_range, static=(0, 1, 2)),
    "Reshape": Operator(_reshape, static=(1,)),
    "ScatterND": Operator(_scatter_nd),
    "Shape": Operator(_shape),
    "Size": Operator(_size),
    "Slice": Operator(_slice, static=(1, 2, 3, 4)),
    "Split": Operator(_split, static=(1,)),
    "Squeeze": Operator(_squeeze, static=(1,)),
    "Tile": Operator(_tile, static=(1,)),
    "TopK": Operator(_top_k, static=(1,)),
    "Transpose": Operator(_transpose),
    "Trilu": Operator(_triangle, static=(1,)),
    "Unsqueeze": Operator(_unsqueeze, static=(1,)),
}
