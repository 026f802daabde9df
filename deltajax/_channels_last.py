"""A traced function over again, with its channels last: behind the picture's axes, wherever a convolution meets them.

Torch has them first, and so has whatever comes from it, by ONNX or Equinox. Tiles of such a map are rows of a few
numbers each, far apart, which XLA's CPU convolutions take ten times as long for, and which native kernels do not read.
Nothing is copied for it: each array is noted with where its axes lie, and equations are told other axes; transpositions
of the function's own only change the note. What is made of arrays that lie differently, and what has no rule here, is
transposed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from . import _jaxpr
from .rules.elementwise import NAMES as ELEMENTWISE

Order = tuple[int, ...]  # of the function's own axes: where each lies in the array at hand


@dataclasses.dataclass(frozen=True)
class _Lying:
    """An array of the function whose axes lie in another order.

    Attributes:
        home: the order of what a convolution gave, that this is made of: others follow it, and axes that a sum has
            taken away come back to where they were. None if it is of no convolution's.
    """

    array: Any
    order: Order
    home: Order | None = None

    def lying(self, order: Order) -> Any:
        """The array with its axes in that order."""
        back = _inverse(order)
        permutation = tuple(self.order[axis] for axis in back)
        return self.array if permutation == tuple(range(len(back))) else lax.transpose(self.array, permutation)


@dataclasses.dataclass(frozen=True)
class _Spread:
    """A `broadcast_in_dim` that is made in whatever order it is asked for: mostly a bias, for a whole map."""

    core: _Lying
    shape: tuple[int, ...]
    dims: tuple[int, ...]  # of the core's own axes: which ones of the result
    traceback: Any

    @property
    def home(self) -> Order | None:
        home = self.core.home
        return home if home is not None and len(home) == len(self.shape) else None

    @property
    def order(self) -> Order:
        """As the core lies, behind what is new."""
        if self.home is not None:
            return self.home
        new = [axis for axis in range(len(self.shape)) if axis not in self.dims]
        return _inverse((*new, *(self.dims[axis] for axis in _inverse(self.core.order))))

    def lying(self, order: Order) -> Any:
        places = [order[dim] for dim in self.dims]
        core = self.core.lying(_ranks(places))
        shape = tuple(self.shape[axis] for axis in _inverse(order))
        with _jaxpr.from_line(self.traceback):
            return lax.broadcast_in_dim(core, shape, sorted(places))


_Array = _Lying | _Spread


def _inverse(order: Sequence[int]) -> Order:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _ranks(numbers: Sequence[int]) -> Order:
    """The place of each among all of them."""
    return _inverse(_inverse(numbers))


def _places(atom: Any) -> Order:
    """Every axis in its own place."""
    return tuple(range(len(atom.aval.shape)))


def _own(array: _Array) -> Any:
    """As the function has it."""
    return array.lying(tuple(range(len(array.order))))


def _permuted(each: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """What belongs to each of the function's own axes, in that order."""
    return tuple(each[axis] for axis in _inverse(order))


def channels_last(jaxpr: Any, as_they_lie: bool) -> tuple[Any, Sequence[Any], list[Order | None]]:
    """``(jaxpr, constants, orders)``: the same function, of its constants first and then of its arguments, and of each
    result where the function's own axes lie in it (None: in their places).

    What has its channels last already comes back as it is.

    Args:
        as_they_lie: whether results may come in any order.
    """
    if not _turns(jaxpr):
        return jaxpr, (), [None] * len(jaxpr.outvars)
    orders: list[Order | None] = []
    reads = [*jaxpr.constvars, *jaxpr.invars]

    def run(*arrays):
        found = _evaluate(jaxpr, [_Lying(x, _places(v)) for v, x in zip(reads, arrays, strict=True)], None)
        if not as_they_lie:
            found = [_Lying(_own(x), _places(v)) for v, x in zip(jaxpr.outvars, found, strict=True)]
        orders.extend(None if x.order == _places(v) else x.order for v, x in zip(jaxpr.outvars, found, strict=True))
        return [x.lying(x.order) for x in found]

    turned, constants, _ = _jaxpr.trace(run, *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in reads))
    return turned, constants, orders


def in_own_order(array: jax.Array, order: Order | None) -> jax.Array:
    """A result `[V, ...]` as the function has it."""
    return array if order is None else lax.transpose(array, (0, *(axis + 1 for axis in order)))


def _turns(jaxpr: Any) -> bool:
    """Whether channels come before the picture in a convolution, or behind something else when a picture is resized."""
    def one(eqn: _jaxpr.Eqn) -> bool:
        inner = _jaxpr.wrapped(eqn)
        if inner is not None:
            return _turns(inner[0])
        if eqn.primitive.name == "dot_general":
            contracted, batch = eqn.params["dimension_numbers"]
            ranks = [len(v.aval.shape) for v in eqn.invars]
            return not batch[0] and any(
                rank >= 4 and len(axes) == 1 and axes[0] != rank - 1
                for rank, axes in zip(ranks, contracted, strict=True))
        if eqn.primitive.name != "conv_general_dilated":
            return False
        numbers = eqn.params["dimension_numbers"]
        return {numbers.lhs_spec, numbers.out_spec} != {_last(len(numbers.lhs_spec))}

    return any(map(one, jaxpr.eqns))


def _last(rank: int) -> Order:
    """Batch, channels, picture: in which axes a convolution finds them."""
    return 0, rank - 1, *range(1, rank - 1)


def _evaluate(jaxpr: Any, given: Sequence[_Array], around: Any) -> list[_Array]:
    """Every equation, and those that it wraps; `around` is the traceback of what wraps this."""
    env: dict[Any, _Array] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

    def read(atom) -> _Array:
        return _Lying(atom.val, _places(atom)) if isinstance(atom, _jaxpr.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        ins, inner = [read(atom) for atom in eqn.invars], _jaxpr.wrapped(eqn)
        traceback = _jaxpr.traceback(eqn, around)
        if inner is not None:
            consts = [_Lying(x, _places(v)) for v, x in zip(inner[0].constvars, inner[1], strict=True)]
            outs = _evaluate(inner[0], [*consts, *ins], traceback)
        else:
            with _jaxpr.from_line(traceback):
                outs = RULES.get(eqn.primitive.name, _as_it_is)(_jaxpr.plain(eqn), ins)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


# ------------------------------------------------------------------------------------------------------- rules


def _as_it_is(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    outs = _jaxpr.bind(eqn, *map(_own, ins))
    return [_Lying(x, _places(v)) for v, x in zip(eqn.outvars, outs, strict=True)]


def _is_settled(array: _Array) -> bool:
    return array.home is not None and len(array.home) == len(array.order)


def _follow(ins: Sequence[_Array]) -> tuple[Order, Order | None]:
    """The order in which several arrays of the same rank are read together, and the home of what is made of them."""
    if settled := [x.order for x in ins if _is_settled(x)]:
        return settled[0], settled[0]
    order = next((x.order for x in ins if x.order != tuple(range(len(x.order)))), ins[0].order)
    return order, next((x.home for x in ins if x.home is not None), None)


def _together(eqn: _jaxpr.Eqn, ins: Sequence[_Array], changes: Callable[[Order], dict[str, Any]]) -> list[_Array]:
    """An equation that leaves axes where they are; scalars beside. `changes` of its parameters, by their order."""
    rank = len(eqn.outvars[0].aval.shape)
    order, home = _follow([x for x in ins if len(x.order) == rank] or ins)
    if any(len(x.order) not in (0, rank) for x in ins) or len(order) != rank:
        return _as_it_is(eqn, ins)
    outs = _jaxpr.bind(eqn, *(x.lying(order) if x.order else _own(x) for x in ins), **changes(order))
    return [_Lying(x, order, home) for x in outs]


def _elementwise(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    return _together(eqn, ins, lambda order: {})


def _by_axis(*names: str) -> Callable[[_jaxpr.Eqn, Sequence[_Array]], list[_Array]]:
    """Parameters that are an axis, or some."""

    def rule(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
        def moved(order: Order) -> dict[str, Any]:
            found = {name: eqn.params[name] for name in names}
            return {name: order[axis] if isinstance(axis, int) else tuple(order[a] for a in axis)
                    for name, axis in found.items()}

        return _together(eqn, ins, moved)

    return rule


def _for_axes(*names: str) -> Callable[[_jaxpr.Eqn, Sequence[_Array]], list[_Array]]:
    """Parameters with something for each axis."""

    def rule(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
        return _together(eqn, ins, lambda order: {
            name: _permuted(eqn.params[name], order) for name in names if eqn.params.get(name) is not None})

    return rule


def _without(order: Order, axes: Sequence[int]) -> Order:
    """Where the other axes lie when these are gone."""
    return _ranks([at for axis, at in enumerate(order) if axis not in axes])


def _reduce(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    (value,) = ins
    axes = eqn.params["axes"]
    outs = _jaxpr.bind(eqn, value.lying(value.order), axes=tuple(sorted(value.order[axis] for axis in axes)))
    return [_Lying(x, _without(value.order, axes), value.home) for x in outs]


def _squeeze(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    (value,) = ins
    gone = eqn.params["dimensions"]
    (out,) = _jaxpr.bind(eqn, value.lying(value.order), dimensions=tuple(sorted(value.order[axis] for axis in gone)))
    return [_Lying(out, _without(value.order, gone), value.home)]


def _transpose(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    (value,), permutation = ins, eqn.params["permutation"]
    order = tuple(value.order[axis] for axis in permutation)
    if _is_settled(value) or isinstance(value, _Lying):
        return [_Lying(value.lying(value.order), order, order if _is_settled(value) else None)]
    to = _inverse(permutation)
    shape = tuple(value.shape[axis] for axis in permutation)
    return [dataclasses.replace(value, shape=shape, dims=tuple(to[dim] for dim in value.dims))]


def _spread(eqn: _jaxpr.Eqn, value: _Array, dims: Sequence[int]) -> list[_Array]:
    core = value if isinstance(value, _Lying) else _Lying(value.lying(value.order), value.order, value.home)
    return [_Spread(core, eqn.outvars[0].aval.shape, tuple(dims), eqn.source_info.traceback)]


def _broadcast(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    return _spread(eqn, ins[0], eqn.params["broadcast_dimensions"]) if len(ins) == 1 else _as_it_is(eqn, ins)


def _grouped(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """A reshape as the smallest groups of axes that become groups of axes."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        one, other = (i < len(old) and old[i] == 1), (j < len(new) and new[j] == 1)
        before, after = [], []
        if one or other:
            before, after = [i][: int(one)], [j][: int(other)]
        else:
            before, after = [i], [j]
            while (a := math.prod(old[k] for k in before)) != (b := math.prod(new[k] for k in after)):
                if a < b:
                    before.append(before[-1] + 1)
                else:
                    after.append(after[-1] + 1)
        groups.append((before, after))
        i, j = i + len(before), j + len(after)
    return groups


def _reshape(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    """Axes that become one have to lie side by side, in their own order; all others stay where they are."""
    value, old, new = ins[0], eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.params.get("dimensions") is not None or len(ins) > 1 or 0 in old:
        return _as_it_is(eqn, ins)
    places, last = [], -1.0
    groups = _grouped(old, new)
    if len(new) > len(old) and all(len(before) <= len(after) == 1 for before, after in groups):
        return _spread(eqn, value, [after[0] for before, after in groups if before])
    for before, _ in groups:
        long = [axis for axis in before if old[axis] > 1] or before
        last = max((value.order[axis] for axis in long), default=last + 1 / (len(new) + 1))  # what is new, behind
        places.append(last)
    lie = sorted(range(len(groups)), key=places.__getitem__)
    reading = [axis for group in lie for axis in groups[group][0]]
    made = [axis for group in lie for axis in groups[group][1]]
    order, home = value.order, value.home
    if isinstance(value, _Spread):  # it can be made in the order in which it is read
        order, home = _inverse(reading), value.core.home
    turn = tuple(order[axis] for axis in reading)
    (out,) = _jaxpr.bind(eqn, value.lying(order), new_sizes=tuple(new[axis] for axis in made),
                         dimensions=None if turn == tuple(sorted(turn)) else turn)
    return [_Lying(out, _inverse(made), None if home is None else _inverse(made))]


def _convolution(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    value, kernel = ins
    numbers = eqn.params["dimension_numbers"]
    last = _last(len(numbers.lhs_spec))

    def order(spec: Sequence[int]) -> Order:
        """From where it finds batch, channels and picture to where they shall lie."""
        return tuple(at for _, at in sorted(zip(spec, last, strict=True)))

    # The kernel as XLA's CPU convolutions want it, rows, columns, in, out: a param is turned once, in `init`.
    outputs, inputs, *picture = numbers.rhs_spec
    (out,) = _jaxpr.bind(
        eqn, value.lying(order(numbers.lhs_spec)), kernel.lying(_inverse((*picture, inputs, outputs))),
        dimension_numbers=lax.ConvDimensionNumbers(last, (len(last) - 1, len(last) - 2, *range(len(last) - 2)), last),
    )
    return [_Lying(out, order(numbers.out_spec), order(numbers.out_spec))]


def _dot(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    contracted, batch = eqn.params["dimension_numbers"]

    def moved(each: Sequence[Sequence[int]]) -> tuple[Order, ...]:
        return tuple(tuple(x.order[axis] for axis in axes) for x, axes in zip(ins, each, strict=True))

    order = list(range(len(batch[0])))
    for x, *gone in zip(ins, contracted, batch, strict=True):
        order += [len(order) + at for at in _without(x.order, [*itertools.chain(*gone)])]
    (out,) = _jaxpr.bind(eqn, *(x.lying(x.order) for x in ins), dimension_numbers=(moved(contracted), moved(batch)))
    found = _Lying(out, tuple(order))
    settled = next((i for i, x in enumerate(ins) if _is_settled(x)), None)
    if settled is None or batch[0] or not contracted[0]:
        return [found]
    # What a map's axis becomes, by a resize, lies where that axis lay.
    free = [[axis for axis in range(len(x.order)) if axis not in gone] for x, gone in zip(ins, contracted, strict=True)]
    at, places = min(ins[settled].order[axis] for axis in contracted[settled]), []
    for i, x in enumerate(ins):
        places += [x.order[axis] if i == settled else at for axis in free[i]]
    like = _ranks(places)
    return [_Lying(found.lying(like), like, like)]


def _dynamic_slice(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    value, starts = ins[0], [_own(x) for x in ins[1:]]
    (out,) = _jaxpr.bind(eqn, value.lying(value.order), *_permuted(starts, value.order),
                         slice_sizes=_permuted(eqn.params["slice_sizes"], value.order))
    return [_Lying(out, value.order, value.home)]


def _dynamic_update_slice(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    order, home = _follow(ins[:2])
    (out,) = _jaxpr.bind(eqn, *(x.lying(order) for x in ins[:2]), *_permuted([_own(x) for x in ins[2:]], order))
    return [_Lying(out, order, home)]


def _gather(eqn: _jaxpr.Eqn, ins: Sequence[_Array]) -> list[_Array]:
    """What is picked along an axis lies where that axis lay."""
    value, indices = ins
    numbers, rank = eqn.params["dimension_numbers"], len(eqn.outvars[0].aval.shape)
    if numbers.operand_batching_dims:
        return _as_it_is(eqn, ins)
    order, gone = value.order, numbers.collapsed_slice_dims
    left = [axis for axis in range(len(order)) if axis not in gone]
    first = min((order[axis] for axis in numbers.start_index_map if axis in gone), default=-1)
    places = [float(first)] * rank
    for axis, out in zip(left, numbers.offset_dims, strict=True):
        places[out] = order[axis] + 0.5  # behind the axes of the indices where both begin
    lie = sorted(range(rank), key=places.__getitem__)
    result = _inverse(lie)
    (out,) = _jaxpr.bind(
        eqn, value.lying(order), _own(indices), slice_sizes=_permuted(eqn.params["slice_sizes"], order),
        dimension_numbers=numbers._replace(
            offset_dims=tuple(sorted(result[axis] for axis in numbers.offset_dims)),
            collapsed_slice_dims=tuple(sorted(order[axis] for axis in gone)),
            start_index_map=tuple(order[axis] for axis in numbers.start_index_map),
        ),
    )
    return [_Lying(out, result, result if _is_settled(value) else None)]


_WINDOW = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"

RULES: dict[str, Callable[[_jaxpr.Eqn, Sequence[_Array]], list[_Array]]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split(), _reduce),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp split".split(), _by_axis("axis")),
    **dict.fromkeys("sort concatenate".split(), _by_axis("dimension")),
    "rev": _by_axis("dimensions"),
    **dict.fromkeys("""
        reduce_window_sum reduce_window_max reduce_window_min select_and_scatter_add select_and_gather_add
        """.split(), _for_axes(*_WINDOW)),
    "pad": _for_axes("padding_config"),
    "slice": _for_axes("start_indices", "limit_indices", "strides"),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
}
