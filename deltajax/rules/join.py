"""Maps joined: along channels, along new axes, along the picture."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jaxpr
from .._geometry import Window
from .._program import Form, Kind, Program, Refused, Value
from .._tiles import Axes


def concatenate(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Along channels; along the picture, every part is padded to the whole and picked by position."""
    return _concatenate(program, ins, int(eqn.params["dimension"]), eqn.outvars[0].aval)


def _concatenate(program: Program, ins: list[Value], along: int, aval):
    ins = [v for v in ins if v.shape[along] > 0]
    if len(ins) == 1:
        return (ins[0],)
    like = next(v for v in ins if v.kind is Kind.MAP)
    axes = like.map_axes
    if along == axes.stream:
        raise Refused("it joins streams")
    if along in (axes.row, axes.col):
        return _join(program, ins, along, axes, aval)
    shape = list(like.shape)
    operands = []
    for value in ins:
        shape[along] = value.shape[along]
        if value.kind is not Kind.MAP and len(value.shape) == len(shape):
            value = _spread(program, value, axes, tuple(shape))
        operands.append(program.operand(value, like))

    def apply(pads, *tiles):
        picture = tiles[next(i for i, v in enumerate(operands) if v.kind is Kind.MAP)].shape
        parts = []
        for tile, value in zip(tiles, operands, strict=True):
            if value.kind is Kind.FIXED and not value.is_tiled:
                tile = tile[None]
            target = list(picture)
            target[along + 1] = tile.shape[along + 1]
            parts.append(jnp.broadcast_to(tile, target))
        return (jnp.concatenate(parts, along + 1),)

    return program.tiles("concatenate", operands, [(aval.shape, aval.dtype, axes)], apply, form=Form("join", (along,)))


def stack(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    """Every part with a new channel axis, then joined along it."""
    along, parts = eqn.params["axis"], []
    for value in ins:
        shape = (*value.shape[:along], 1, *value.shape[along:])
        if value.kind is Kind.MAP:
            axes = value.map_axes
            parts += program.tiles("expand", [value], [(shape, value.dtype, axes.moved(lambda a: a + (a >= along)))],
                                   lambda pads, tiles: (jnp.expand_dims(tiles, along + 1),), form=Form("same"))
        else:
            parts += program.whole("expand", [value], [(shape, value.dtype)], lambda x: (jnp.expand_dims(x, along),))
    return _concatenate(program, parts, along, eqn.outvars[0].aval)


def unstack(program: Program, eqn: _jaxpr.Eqn, ins: list[Value]):
    (value,) = ins
    axes, along = value.map_axes, eqn.params["axis"]
    if along in (axes.stream, axes.row, axes.col):
        raise Refused("it parts the picture or the streams")
    left = axes.moved(lambda a: a - (a > along))
    outs = [(var.aval.shape, var.aval.dtype, left) for var in eqn.outvars]
    return program.tiles("unstack", [value], outs, lambda pads, tiles: _jaxpr.bind(eqn, tiles, axis=along + 1))


def _spread(program: Program, value: Value, axes: Axes, shape: tuple[int, ...]) -> Value:
    """Undo nothing where the value fits already; a concatenation broadcasts nothing by itself."""
    if value.shape != shape:
        raise Refused(f"its operands' pictures differ: {value.shape} and {shape}")
    return value


def _fixed_part(program: Program, value: Value, low: int, high: int, along: int, axes: Axes) -> Value:
    """Something fixed in its place in a joined picture, such as a class token."""
    edges = [(low, high) if a == along else (0, 0) for a in range(len(value.shape))]
    shape = [n + sum(edge) for n, edge in zip(value.shape, edges, strict=True)]
    (wide,) = program.whole("pad", [value], [(shape, value.dtype)], lambda x: (jnp.pad(x, edges),))
    return program.fixed_map(wide, axes)


def _join(program: Program, ins: list[Value], along: int, axes: Axes, aval):
    start, parts = 0, []
    for value in ins:
        low, high = start, aval.shape[along] - start - value.shape[along]
        start += value.shape[along]
        if value.kind is Kind.FIXED:
            parts.append(_fixed_part(program, value, low, high, along, axes))
            continue
        if value.kind is not Kind.MAP:
            value = program.lift(value, axes)
        value = program.turned(value, axes)
        config = [(0, 0, 0)] * (len(aval.shape) + 1)
        rows = Window(1, 1, low, high) if along == axes.row else Window()
        cols = Window(1, 1, low, high) if along == axes.col else Window()

        def widen(pads, tiles, config=config):
            local = list(config)
            local[axes.row + 1], local[axes.col + 1] = (*pads[0], 0), (*pads[1], 0)
            return (lax.pad(tiles, jnp.zeros((), tiles.dtype), local),)

        parts.append(program.tiles("pad", [value], [(aval.shape, aval.dtype, axes)], widen,
                                   rows=rows, cols=cols, fill=0)[0])
    number = np.zeros([aval.shape[a] if a == along else 1 for a in range(len(aval.shape))], np.int32)
    edges = np.cumsum([v.shape[along] for v in ins])
    index = np.searchsorted(edges, np.arange(aval.shape[along]), side="right").astype(np.int32)
    which = program.operand(program.given(index.reshape(number.shape)), next(p for p in parts if p.kind is Kind.MAP))

    def pick(pads, which, *tiles):
        out = tiles[0]
        for i, tile in enumerate(tiles[1:], 1):
            out = jnp.where(which == i, tile, out)
        return (out,)

    return program.tiles("concatenate", [which, *parts], [(aval.shape, aval.dtype, axes)], pick)


RULES = {"concatenate": concatenate, "stack": stack, "unstack": unstack}
