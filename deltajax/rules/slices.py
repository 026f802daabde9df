"""Parts taken out of a map, put into one, and margins put around it: along the picture windows of one tap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Form, Kind, Program, Refused, Value
from .elementwise import expand


def slice_(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    p = eqn.params
    return sliced(program, ins[0], p["start_indices"], p["limit_indices"], p["strides"] or (1,) * len(ins[0].shape))


def sliced(program: Program, value: Value, starts: tuple[int, ...], limits: tuple[int, ...], strides: tuple[int, ...]):
    """Along the picture a slice is a window of one tap with negative padding."""
    axes = value.map_axes
    shape = tuple(-(-(b - a) // s) for a, b, s in zip(starts, limits, strides, strict=True))
    if axes.stream is not None and shape[axes.stream] != value.shape[axes.stream]:
        raise Refused("it picks streams")
    rows, cols = (Window(1, strides[a], -starts[a], limits[a] - value.shape[a]) for a in (axes.row, axes.col))

    def apply(pads, tiles):
        begin, end, step = ([fill, *given] for fill, given in ((0, starts), (tiles.shape[0], limits), (1, strides)))
        for axis in (axes.stream, axes.row, axes.col):
            if axis is not None:
                begin[axis + 1], end[axis + 1] = 0, tiles.shape[axis + 1]
        return (lax.slice(tiles, begin, end, step),)

    return program.tiles("slice", [value], [(shape, value.dtype, axes)], apply, rows=rows, cols=cols,
                         form=Form("part", (starts, limits, strides)))


def _starts(program: Program, indices: list[Value], shape, sizes) -> tuple[int, ...]:
    """Constant starts, kept inside as `dynamic_slice` does."""
    found = [program.constant(index) for index in indices]
    if any(index is None for index in found):
        raise Refused("its position is not a constant")
    return tuple(min(max(int(i), 0), n - m) for i, n, m in zip(found, shape, sizes, strict=True))  # type: ignore[arg-type]


def dynamic_slice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    value, *indices = ins
    if value.kind is not Kind.MAP:
        raise Refused("its position depends on the frame")
    sizes = tuple(eqn.params["slice_sizes"])
    starts = _starts(program, indices, value.shape, sizes)
    return sliced(program, value, starts, tuple(a + n for a, n in zip(starts, sizes, strict=True)), (1,) * len(starts))


def dynamic_update_slice(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """The update padded to the whole, where it lies; the operand elsewhere."""
    value, update, *indices = ins
    if value.kind is not Kind.MAP and update.kind is not Kind.MAP:
        raise Refused("its position depends on the frame")
    return _replaced(program, value, update, _starts(program, indices, value.shape, update.shape))


def _alone(new, old):
    return new


def _replaced(
    program: Program, value: Value, update: Value, starts: Sequence[int], combine: Callable[[Any, Any], Any] = _alone
):
    axes = (value if value.kind is Kind.MAP else update).map_axes
    config = [(a, n - a - m, 0) for a, n, m in zip(starts, value.shape, update.shape, strict=True)]
    if axes.stream is not None and config[axes.stream] != (0, 0, 0):
        raise Refused("it replaces some of the streams")
    if update.kind is Kind.MAP:
        wide = padded(program, program.turned(update, axes), config, 0)
    else:
        (wide,) = program.whole("pad", [update], [(value.shape, update.dtype)],
                                lambda x: (lax.pad(x, jnp.zeros((), x.dtype), config),))
    if value.kind is Kind.MAP:
        value = program.turned(value, axes)
    like = wide if update.kind is Kind.MAP else value
    return (select(program, _inside(value.shape, config), wide, value, like, combine),)


COMBINED = {"scatter": _alone, "scatter-add": lax.add, "scatter-sub": lambda new, old: old - new,
            "scatter-mul": lax.mul, "scatter-min": lax.min, "scatter-max": lax.max}


def scatter(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """One update at a constant place, as `x.at[2:5, 3].set(y)` and `.add(y)` make it."""
    value, indices, update = ins
    p = eqn.params
    numbers, mode = p["dimension_numbers"], p["mode"]
    how, _ = _jaxpr.opened(p["update_jaxpr"])
    if eqn.primitive.name == "scatter" and how is not None and how.outvars[0] is not how.invars[1]:
        raise Refused("it applies a function there")
    at = program.constant(indices)
    if at is None or at.ndim != 1 or numbers.operand_batching_dims:
        raise Refused("it replaces several parts, or its position is not a constant")
    inserted = numbers.inserted_window_dims
    order = list(numbers.update_window_dims)
    if order != sorted(order) or update.kind is Kind.MAP:
        raise Refused("what it puts there depends on the frame")
    sizes = list(update.shape)
    for axis in inserted:
        sizes.insert(axis, 1)
    starts = [0] * len(value.shape)
    for axis, start in zip(numbers.scatter_dims_to_operand_dims, at, strict=True):
        starts[axis] = int(start)
    inside = [min(max(s, 0), n - m) for s, n, m in zip(starts, value.shape, sizes, strict=True)]
    if inside != starts and mode != lax.GatherScatterMode.CLIP:
        return (value,)  # it is left out
    (wide,) = program.whole("expand", [update], [(sizes, update.dtype)], lambda x: (lax.expand_dims(x, inserted),))
    return _replaced(program, value, wide, inside, COMBINED[eqn.primitive.name])


def _inside(shape: tuple[int, ...], config) -> np.ndarray:
    """Where a padded array has values of its own; of length 1 on the axes that are not padded."""
    found = np.ones([1] * len(shape), bool)
    for axis, (n, (low, high, inner)) in enumerate(zip(shape, config, strict=True)):
        at = np.arange(n) - low
        own = (at >= 0) & (at < n - low - high) & (at % (inner + 1) == 0)
        if not own.all():
            found = found & own.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return found


def select(
    program: Program, own: np.ndarray, value: Value, other: Value, like: Value,
    combine: Callable[[Any, Any], Any] = _alone,
) -> Value:
    """`value` where it is its `own`, or what it makes of `other` there; `other` elsewhere."""
    which, *cases = (program.operand(v, like) for v in (program.given(own), value, other))
    kinds, tiled = [v.kind for v in (which, *cases)], [v.is_tiled for v in (which, *cases)]

    def apply(pads, *xs):
        which, new, old = expand(xs, kinds, tiled)
        return (jnp.where(which, combine(new, old), old),)

    return program.tiles("select", [which, *cases], [(like.shape, like.dtype, like.axes)], apply)[0]


def pad(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Along the picture a pad is a window of one tap that finds the padding value outside."""
    value, filler = ins
    if value.kind is not Kind.MAP:
        raise Refused("its padding value depends on the frame")
    axes, config = value.map_axes, list(eqn.params["padding_config"])
    if axes.stream is not None and config[axes.stream] != (0, 0, 0):
        raise Refused("it pads the streams")
    constant = program.constant(filler)
    if constant is not None:
        return (padded(program, value, config, constant.item()),)
    made = padded(program, value, config, 0)
    return (select(program, _inside(made.shape, config), made, filler, like=made),)


def padded(program: Program, value: Value, config: list[tuple[int, int, int]], fill: float | int) -> Value:
    axes = value.map_axes
    shape = tuple(low + high + n + max(0, n - 1) * inner
                  for n, (low, high, inner) in zip(value.shape, config, strict=True))
    rows, cols = (Window(1, 1, config[a][0], config[a][1], 1, config[a][2] + 1) for a in (axes.row, axes.col))

    def apply(pads, tiles):
        local = [(0, 0, 0), *config]
        for axis, (low, high) in zip((axes.row, axes.col), pads, strict=True):
            local[axis + 1] = (low, high, config[axis][2])
        return (lax.pad(tiles, jnp.asarray(fill, tiles.dtype), local),)

    return program.tiles("pad", [value], [(shape, value.dtype, axes)], apply, rows=rows, cols=cols, fill=fill,
                         form=Form("pad", tuple(config)))[0]


def split(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, along, at = value.map_axes, eqn.params["axis"], 0
    if along == axes.stream:
        raise Refused("it parts the streams")
    made = []
    for size in eqn.params["sizes"]:
        starts = [0] * len(value.shape)
        limits = list(value.shape)
        starts[along], limits[along] = at, at + size
        at += size
        made += sliced(program, value, tuple(starts), tuple(limits), (1,) * len(starts))
    return tuple(made)


RULES = {
    "slice": slice_,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    **dict.fromkeys(COMBINED, scatter),
    "pad": pad,
    "split": split,
}
