"""What a traced function is lowered to: values, and operations on tiles or on whole arrays.

A *fixed* value depends on no frame: it is computed once, in `init`. A *map* has two picture axes; its tiles can be
computed on their own. A *whole* value depends on the frame but has no picture left (or its picture cannot be
followed): it is recomputed when anything it reads changed.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._geometry import BROADCAST, Window
from ._tiles import NONE, Axes, Layout, Margins


class Kind(enum.Enum):
    FIXED = "fixed"
    WHOLE = "whole"
    MAP = "map"


@dataclasses.dataclass(eq=False)
class Value:
    """One array of the function. Of kind FIXED with `axes`, it is a fixed map: gathered by tiles like a map."""

    shape: tuple[int, ...]
    dtype: Any
    kind: Kind
    axes: Axes | None = None
    op: Op | None = dataclasses.field(default=None, repr=False)
    index: int = 0
    held: Any = None  # of a constant: the array
    constant: bool = False  # depends on neither params nor frame

    @property
    def is_tiled(self) -> bool:
        return self.axes is not None

    @property
    def is_kept(self) -> bool:
        """Of a fixed value: whether it is in the cache. Params come with each call, single constants are built in."""
        return self.op is not None or (self.constant and math.prod(self.shape) > 1)

    @property
    def map_axes(self) -> Axes:
        """Of a map: its axes."""
        assert self.axes is not None
        return self.axes

    @property
    def picture(self) -> tuple[int, int]:
        return self.map_axes.picture(self.shape)

    def layout(self, margins: Margins = NONE, outside: Margins = NONE) -> Layout:
        return Layout(self.shape, self.dtype, self.map_axes, margins, outside)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A map with one picture axis: its value has a first axis of length 1 that the function's own array lacks."""

    value: Value


@dataclasses.dataclass(frozen=True)
class Flattened:
    """Of a reshape: the axes first..last of what it reads, picture included, became the axis `out`.

    Attributes:
        order: those axes, in the order in which they are read.
    """

    first: int
    last: int
    out: int
    order: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Op:
    """An operation on whole arrays: ``apply(*inputs) -> outputs``."""

    label: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    apply: Callable[..., tuple[Any, ...]]
    flops: float = 0.0
    where: str = ""
    refusal: str | None = None  # why an operation that reads a map is not done on tiles
    broadcast: tuple[int, ...] | None = None  # of a broadcast: where the operand's axes went
    flattened: Flattened | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where tiles lie on one axis: the first positions `[K]` of the result and of the input, the result's length.

    `all` says that every tile is the whole axis.
    """

    result: Any
    source: Any
    length: int
    all: bool = False


@dataclasses.dataclass(frozen=True)
class Form:
    """What an operation is, in a word and its numbers, for who does it otherwise than by `apply`: `native`.

    * ``convolution``: the axes of the kernel that are rows, columns, input and output channels; the groups.
    * ``dense``: which input is the map; its axes that are contracted, those of the other one, and that one's others.
    * ``pool``: ``max``, ``min`` or ``sum``, over a window; ``reduce``: the same over channels, that are then no more;
      ``choose``: which channel has the largest or smallest.
    * ``elementwise``: the primitive's name and parameters.
    * ``repeat``: every row (0) or column (1) so many times.
    * ``band``: along rows (0) or columns (1) each result is a sum of positions: the first one of each, ``[outputs]``,
      and what they are multiplied by, ``[outputs, terms]``.
    * ``transpose``: the order in which axes are read.
    * ``rev``: the axes along which it is turned round.
    * ``same``: the same numbers in the same order.
    * ``join``: along an axis. ``part``: from, to and step on every axis. ``pad``: before, after, between on every axis.
    """

    name: str
    params: tuple[Any, ...] = ()


@dataclasses.dataclass(eq=False)
class TileOp(Op):
    """An operation on tile arrays: ``apply(pads, *tiles) -> tiles``.

    All tiled inputs are read through the same windows, but where `each` names a pair for every input. Fixed operands
    come as they are, whole ones as ``[K, ...]``. `pads` is the local padding of rows and columns that `Span.through`
    found for the first tiled input. An operation that is not the same everywhere is *placed*: it is given a `Place`
    for rows and columns instead of `pads`.
    """

    rows: Window = Window()
    cols: Window = Window()
    fill: float | int | None = None  # what a window finds outside the picture
    heavy: bool = False  # too much work to repeat in a reader's halo
    placed: bool = False
    each: tuple[tuple[Window, Window], ...] | None = None
    form: Form | None = None

    def windows(self) -> tuple[tuple[Window, Window], ...]:
        """Rows and columns of every input."""
        return self.each or ((self.rows, self.cols),) * len(self.inputs)

    @property
    def first_tiled(self) -> int:
        return next(i for i, value in enumerate(self.inputs) if value.is_tiled)

    @property
    def cheap(self) -> bool:
        """Pointwise, or data movement."""
        return not self.heavy and all(window.size == 1 for pair in self.windows() for window in pair)

    @property
    def pointwise(self) -> bool:
        return all(window.is_identity for pair in self.windows() for window in pair)


@dataclasses.dataclass(eq=False)
class Lift(Op):
    """A whole value turned into a map again: its mask is found by comparing it with what was held."""


class Refused(Exception):
    """A rule cannot do this equation on tiles; the message is the reason given to the user."""


@dataclasses.dataclass
class Program:
    """The lowered function; rules append to it."""

    streams: int = 1  # streams inside one call of the function
    on_cpu: bool = True  # where it will run
    ops: list[Op] = dataclasses.field(default_factory=list, repr=False)
    where: str = ""

    def _emit(self, cls, label, inputs, outs, apply, kind, **more) -> tuple[Value, ...]:
        op = cls(label, tuple(inputs), (), apply, where=self.where, **more)
        constant = kind is Kind.FIXED and all(value.constant for value in inputs)
        op.outputs = tuple(
            Value(tuple(shape), jnp.dtype(dtype) if not jnp.issubdtype(dtype, jax.dtypes.extended) else dtype,
                  kind, axes, op, index, constant=constant)
            for index, (shape, dtype, axes) in enumerate(outs)
        )
        self.ops.append(op)
        return op.outputs

    def given(self, array: Any) -> Value:
        """A constant."""
        return Value(np.shape(array), jnp.result_type(array), Kind.FIXED, held=array, constant=True)

    def constant(self, value: Value) -> np.ndarray | None:
        """What a constant value is, so that a rule can read its structure; None if it is none."""
        if not value.constant:
            return None
        with jax.ensure_compile_time_eval():
            return np.asarray(evaluate_fixed([value], {})[0])

    def tiles(self, label: str, inputs: Sequence[Value], outs, apply, **more) -> tuple[Value, ...]:
        """Append a TileOp; `outs` are ``(shape, dtype, axes)``."""
        return self._emit(TileOp, label, inputs, outs, apply, Kind.MAP, **more)

    def whole(self, label: str, inputs: Sequence[Value], outs, apply, **more) -> tuple[Value, ...]:
        """Append an operation on whole arrays; fixed if all it reads is."""
        kind = Kind.FIXED if all(value.kind is Kind.FIXED for value in inputs) else Kind.WHOLE
        return self._emit(Op, label, inputs, [(s, d, None) for s, d in outs], apply, kind, **more)

    def lift(self, value: Value, axes: Axes) -> Value:
        """A whole value as a map with these axes."""
        return self._emit(
            Lift, "compare", [value], [(value.shape, value.dtype, axes)], lambda x: (x,), Kind.MAP
        )[0]

    def turned(self, value: Value, axes: Axes) -> Value:
        """The same map with its picture on other axes: copied, and compared with what was held there."""
        if value.axes == axes:
            return value
        return self.lift(self.whole("turn", [value], [(value.shape, value.dtype)], lambda x: (x,))[0], axes)

    def operand(self, value: Value, like: Value) -> Value:
        """`value` in a form that a pointwise operation on the tiles of map `like` can read.

        Maps on the same picture and scalars stay; a map with one picture axis of length 1 is spread over it. What is
        constant over the picture loses its picture axes (a broadcast bias is never spread over the picture); what is
        fixed but varies becomes a fixed map; what is whole but varies is lifted.

        Raises:
            Refused: the shapes do not meet on the picture.
        """
        axes = like.map_axes
        if value.kind is Kind.MAP:
            return self._fitted(value, like)
        if value.shape == ():
            return value
        if len(value.shape) != len(like.shape):
            raise Refused(f"its operands differ in rank: {value.shape} and {like.shape}")
        core = value if axes.picture(value.shape) == (1, 1) else self._uniform(value, axes)
        by_stream = axes.stream is not None and core is not None and core.shape[axes.stream] > 1
        if core is not None and not (by_stream and core.kind is Kind.FIXED):
            return core
        shape = list(value.shape)
        shape[axes.row], shape[axes.col] = like.picture
        if axes.stream is not None and value.kind is Kind.WHOLE:
            shape[axes.stream] = like.shape[axes.stream]  # a lifted map has its own mask for each stream
        if value.shape != tuple(shape):
            value = self.whole("spread", [value], [(shape, value.dtype)],
                               lambda x, shape=tuple(shape): (jnp.broadcast_to(x, shape),))[0]
        if value.kind is Kind.WHOLE:
            return self.lift(value, axes)
        return self.fixed_map(value, axes)

    def _fitted(self, value: Value, like: Value) -> Value:
        """A map on the axes of `like`, spread over an axis on which it is of length 1."""
        axes, has = like.axes, value.axes
        assert axes is not None and has is not None
        if has == axes and value.picture == like.picture:
            return value
        told = f"its operands' pictures differ: {value.shape} and {like.shape}"
        if len(value.shape) != len(like.shape) or has.stream != axes.stream:
            raise Refused(told)
        if has != axes:
            op = value.op
            if op is not None and op.broadcast is not None and value.shape == like.shape:
                value = self._narrow(value, axes)
                has = value.axes
                assert has is not None
            if any(value.shape[a] not in (1, like.shape[a]) for a in (axes.row, axes.col)):
                raise Refused(told)
            ones = all(a == b or value.shape[a] == value.shape[b] == 1
                       for a, b in ((has.row, axes.row), (has.col, axes.col)))
            if ones:  # which of its axes of length 1 is called the picture's is all the same
                (value,) = self.tiles("move", [value], [(value.shape, value.dtype, axes)], lambda pads, x: (x,),
                                      form=Form("same"))
            else:
                value = self.turned(value, axes)
        if value.picture == like.picture:
            return value
        if any(n not in (1, m) for n, m in zip(value.picture, like.picture, strict=True)):
            raise Refused(told)
        rows, cols = (Window() if n == m else BROADCAST for n, m in zip(value.picture, like.picture, strict=True))
        shape = list(value.shape)
        shape[axes.row], shape[axes.col] = like.picture

        def spread(places, tiles):
            wide = list(tiles.shape)
            wide[axes.row + 1], wide[axes.col + 1] = places[0].length, places[1].length
            return (jnp.broadcast_to(tiles, wide),)

        return self.tiles("spread", [value], [(shape, value.dtype, axes)], spread, rows=rows, cols=cols,
                          placed=True)[0]

    def _narrow(self, value: Value, axes: Axes) -> Value:
        """What a broadcast on tiles read, with length 1 where it was spread along an axis of `axes`."""
        op = value.op
        assert op is not None and op.broadcast is not None and value.axes is not None
        (core,) = op.inputs
        kept = {new for axis, new in enumerate(op.broadcast) if core.shape[axis] == value.shape[new]}
        shape = tuple(1 if a in (axes.row, axes.col) and a not in kept else n for a, n in enumerate(value.shape))
        if shape == value.shape:
            return value
        back = [a for a, (n, m) in enumerate(zip(shape, value.shape, strict=True)) if n != m]
        return self.tiles("narrow", [value], [(shape, value.dtype, value.axes)],
                          lambda pads, x: (lax.slice(x, [0] * x.ndim, [
                              1 if a - 1 in back else n for a, n in enumerate(x.shape)]),))[0]

    def fixed_map(self, value: Value, axes: Axes) -> Value:
        """A fixed value that tiles are gathered from."""
        op = Op("fixed map", (value,), (), lambda x: (x,), where=self.where)
        made = Value(value.shape, value.dtype, Kind.FIXED, axes, op, constant=value.constant)
        op.outputs = (made,)
        self.ops.append(op)
        return made

    def _uniform(self, value: Value, axes: Axes) -> Value | None:
        """If `value` is a broadcast that is constant over the picture: the same with picture axes of length 1."""
        op = value.op
        if op is None or op.broadcast is None:
            return None
        (core,) = op.inputs
        for axis, target in enumerate(op.broadcast):
            if target in (axes.row, axes.col) and core.shape[axis] != 1:
                return None
        shape = [1] * len(value.shape)
        for axis, target in enumerate(op.broadcast):
            shape[target] = core.shape[axis]
        dims = op.broadcast
        return self.whole(
            "expand", [core], [(shape, value.dtype)],
            lambda x: (lax.broadcast_in_dim(x, tuple(shape), dims),), broadcast=dims,
        )[0]


def sources_of(values: Sequence[Value]) -> list[Value]:
    """The fixed values without an operation, params and constants, that these are made of; each once."""
    found: dict[Value, None] = {}
    seen: set[Value] = set()
    waiting = list(reversed(values))
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.op is None:
            found[value] = None
        else:
            waiting += reversed(value.op.inputs)
    return list(found)


def evaluate_fixed(values: Sequence[Value], known: dict[Value, Any]) -> list[Any]:
    """Compute fixed values from those `known` (the params); constants need none."""
    done = dict(known)

    def get(value: Value):
        if value not in done:
            if value.op is None:
                done[value] = value.held
            else:
                results = value.op.apply(*(get(v) for v in value.op.inputs))
                done.update(zip(value.op.outputs, results, strict=True))
        return done[value]

    return [get(value) for value in values]
