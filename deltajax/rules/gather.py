"""`gather` with constant indices, each axis by its own: upsampling, `take`, rolls, patches, single rows, `tile`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._program import Kind, Program, Refused, Value
from .pool import bounds
from .resample import split_axis, take, transposed
from .reshape import dropped
from .slices import select, sliced
from .warp import along, warped

Label = tuple[str, int]  # of an axis: ("offset", operand axis), ("batch", axis of the indices), ("gone", operand axis)


def gather(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: along every axis, what begins at its own list of constant starts; see `warped` where axes go together."""
    value, indices = ins
    p, aval = eqn.params, eqn.outvars[0].aval
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if value.kind is not Kind.MAP or indices.kind is not Kind.FIXED:
        raise Refused("its indices depend on the frame")
    found = program.constant(indices)
    if found is None:
        raise Refused("its indices are not constant")
    if numbers.operand_batching_dims:
        raise Refused("its indices differ from stream to stream")
    starts = {axis: found[..., i] for i, axis in enumerate(numbers.start_index_map)}
    # Where a promise to stay inside is broken, XLA clips.
    fills = p["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    outside = _filling(p["fill_value"], value.dtype) if fills else None
    together = [k for axis in starts for k in along(starts, axis)]
    if len(set(together)) < len(together):
        return warped(program, eqn, value, starts, outside)
    labels: list[Label] = []
    for axis, (n, size) in enumerate(zip(value.shape, sizes, strict=True)):  # `value` changes, its first shape does not
        at, here = starts.get(axis, np.zeros((), int)), len(labels)
        name = ("gone" if axis in numbers.collapsed_slice_dims else "offset", axis)
        varies = along(starts, axis)
        if not varies:
            first = int(np.clip(at.flat[0], 0, n - size))
            if outside is not None and first != at.flat[0]:
                raise Refused("it reads outside")
            if size != n:
                value = _part(program, value, here, first, first + size)
            labels.append(name)
            continue
        lengths = [at.shape[k] for k in varies]
        begins = np.moveaxis(at, varies, range(len(varies))).reshape(math.prod(lengths), -1)[:, 0]
        inside = np.clip(begins, 0, n - size)
        value = _take(program, value, (inside[:, None] + np.arange(size)).reshape(-1), here)
        if outside is not None and (inside != begins).any():
            own = np.repeat(inside == begins, size).reshape([-1 if a == here else 1 for a in range(len(value.shape))])
            value = select(program, own, value, program.given(outside), like=value)
        for i, length in enumerate(lengths if name[0] == "offset" else lengths[:-1]):
            value = _split(program, value, here + i, length)
        labels += [("batch", k) for k in varies] + ([name] if name[0] == "offset" else [])
    missing = [("batch", k) for k in range(found.ndim - 1) if ("batch", k) not in labels]
    if missing:
        value = _widened(program, value, tuple(found.shape[k] for _, k in missing))
        labels += missing
    batch = [d for d in range(len(aval.shape)) if d not in numbers.offset_dims]
    offset = [a for a in range(len(sizes)) if a not in numbers.collapsed_slice_dims]
    place = {**{("batch", k): d for k, d in enumerate(batch)},
             **{("offset", a): d for a, d in zip(offset, numbers.offset_dims, strict=True)}}
    gone = [i for i, label in enumerate(labels) if label[0] == "gone"]
    order = [*gone, *sorted((i for i, label in enumerate(labels) if label in place), key=lambda i: place[labels[i]])]
    if order != sorted(order):
        value = transposed(program, value, order)
        gone = list(range(len(gone)))
    return (dropped(program, value, tuple(gone)) if gone else value,)


def _filling(value, dtype) -> np.ndarray:
    """What `jnp.take` finds outside."""
    if value is None:
        low, high = bounds(dtype)
        signed = jnp.issubdtype(dtype, jnp.signedinteger)
        value = np.nan if jnp.issubdtype(dtype, jnp.inexact) else low if signed else high
    return np.asarray(value, dtype)


def _part(program: Program, value: Value, axis: int, first: int, last: int) -> Value:
    low, high = [0] * len(value.shape), list(value.shape)
    low[axis], high[axis] = first, last
    return sliced(program, value, tuple(low), tuple(high), (1,) * len(low))[0]


def _take(program: Program, value: Value, which: np.ndarray, axis: int) -> Value:
    axes, shape = value.map_axes, list(value.shape)
    if axis == axes.stream:
        raise Refused("it mixes the streams")
    if axis in (axes.row, axes.col):
        return take(program, value, which, axis)
    shape[axis] = len(which)

    def apply(pads, tiles):
        return (jnp.take(tiles, jnp.asarray(which, jnp.int32), axis + 1, mode="clip"),)

    return program.tiles("take channels", [value], [(shape, value.dtype, axes)], apply)[0]


def _split(program: Program, value: Value, axis: int, blocks: int) -> Value:
    """`[.., blocks * n, ..]` to `[.., blocks, n, ..]`."""
    axes = value.map_axes
    if axis in (axes.row, axes.col):
        return split_axis(program, value, axis, blocks)
    shape = (*value.shape[:axis], blocks, value.shape[axis] // blocks, *value.shape[axis + 1:])
    return program.tiles(
        "reshape", [value], [(shape, value.dtype, axes.moved(lambda a: a + (a > axis)))],
        lambda pads, x: (x.reshape(*x.shape[: axis + 1], *shape[axis: axis + 2], *x.shape[axis + 2:]),),
    )[0]


def _widened(program: Program, value: Value, more: tuple[int, ...]) -> Value:
    """With further axes, along which it repeats."""
    return program.tiles(
        "broadcast_in_dim", [value], [((*value.shape, *more), value.dtype, value.axes)],
        lambda pads, x: (lax.broadcast_in_dim(x, (*x.shape, *more), tuple(range(x.ndim))),),
    )[0]


def tile(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Law: every axis repeats as a whole."""
    (value,) = ins
    for axis, times in enumerate(eqn.params["reps"]):
        if times > 1:
            value = _take(program, value, np.arange(times * value.shape[axis]) % value.shape[axis], axis)
    return (value,)


RULES = {"gather": gather, "tile": tile}
