"""Plan, then run: trace, lower by rules, group into segments, choose tiles, lay out the cache.

The jaxpr is walked once. What depends on neither params nor frame, or on params alone, becomes fixed and is
computed in `init`. Every other equation is lowered by its rule to operations on tiles, or kept whole. Operations are
then grouped into *segments*: a window operation with the pointwise ones after it (and cheap ones before it) runs on
a tile in one go, and only values that something outside the segment reads get a slot in the cache.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from . import _jaxpr
from ._channels_last import Order, channels_last, in_own_order
from ._geometry import Span, TileAxis, choose_tile
from ._program import Hidden, Kind, Lift, Op, Program, Refused, TileOp, Value, evaluate_fixed, sources_of
from ._tiles import NONE, Axes, Grid, Layout, Margins, Pool
from .rules import LIFTS, RULES, SEEN_THROUGH
from .rules.reshape import squeezed

Spans = tuple[Span, Span]
Target = Callable[[TileOp], tuple[int, int]]


@dataclasses.dataclass(eq=False)
class Reading:
    """Which part of every value a tile needs, and how each operation is then applied."""

    needs: dict[Value, Spans]
    inputs: dict[TileOp, tuple[Spans, ...]]  # what each of its inputs is cropped to, if it is tiled
    pads: dict[TileOp, tuple[tuple[int, int], tuple[int, int]]]


@dataclasses.dataclass(eq=False)
class TileSegment:
    name: str
    ops: list[TileOp]
    reads: list[Value]  # tiled values from outside: maps and fixed maps
    others: list[Value]  # fixed and whole operands
    writes: list[Value]  # maps with a slot
    grid: Grid
    tile: Reading  # for one tile
    whole: Reading  # for the whole picture at once: the dense path
    flops: float  # of the dense path, for one call of the function
    flops_per_tile: float  # of one tile of one stream, halos included
    native: Any = None  # how `native` does it, where it is asked to and can
    not_native: str = ""  # and why it cannot

    def on(self, grid: Grid) -> Reading:
        """What tiles of another size need; `tile` is this for the segment's own `grid`."""
        stays = self.tile.needs[self.writes[0]]
        return _read_spans(self.ops, self.writes, _moving(grid.tile, (stays[0].num == 0, stays[1].num == 0)))

    @property
    def maps(self) -> list[Value]:
        return [v for v in self.reads if v.kind is Kind.MAP]

    @property
    def wholes(self) -> list[Value]:
        return [v for v in self.others if v.kind is Kind.WHOLE]

    @property
    def beside(self) -> list[Value]:
        """What it reads beside tiles, in the form in which it is read."""
        return self.others if self.native is None else [*self.native.fixed, *self.wholes]


@dataclasses.dataclass(eq=False)
class WholeSegment:
    name: str
    ops: list[Op]
    reads: list[Value]  # maps, whole and fixed values from outside
    writes: list[Value]  # whole values that others read, and lifted maps
    flops: float


Segment = TileSegment | WholeSegment


def is_native(segment: Segment) -> TypeGuard[TileSegment]:
    return isinstance(segment, TileSegment) and segment.native is not None


@dataclasses.dataclass(eq=False)
class Plan:
    """Everything static about one function at one frame shape."""

    program: Program
    params: list[Value]
    frame: Value
    outputs: list[Value]
    orders: list[Order | None]  # of each output: where the function's own axes lie in it, if elsewhere
    out_tree: Any
    segments: list[Segment]
    layouts: dict[Value, Layout]
    fixed: list[Value]  # kept in the cache: fixed operands and (stored) fixed maps
    maps: list[Value]  # the slots; the first is the held frame
    wholes: list[Value]
    pooled: dict[Value, int] = dataclasses.field(default_factory=dict)  # without an array of their own
    pool: Pool = Pool(())

    @property
    def streams(self) -> int:
        return self.program.streams

    @property
    def own(self) -> list[Value]:
        """The maps with an array of their own; the first is the held frame."""
        return [value for value in self.maps if value not in self.pooled]

    @property
    def flops(self) -> float:
        return sum((segment.flops for segment in self.segments), 0.0)

    def returned(self, outputs: Sequence[jax.Array]) -> list[jax.Array]:
        """Outputs `[V, ...]` with their axes where the function has them."""
        return [in_own_order(array, order) for array, order in zip(outputs, self.orders, strict=True)]

    def evaluate_fixed(self, params: Sequence[Any]) -> tuple[Any, ...]:
        """The fixed values that the segments read: what a cache keeps, maps in storage form; params as they are."""
        known = dict(zip(self.params, params, strict=True))
        made = iter(self._make_kept([known.get(value, value.held) for value in self._sources]))
        return tuple(next(made) if value.is_kept else jnp.asarray(known.get(value, value.held)) for value in self.fixed)

    @property
    def _kept(self) -> list[Value]:
        return [value for value in self.fixed if value.is_kept]

    @functools.cached_property
    def _sources(self) -> list[Value]:
        """The params and constants that the values which a cache keeps are made of."""
        return sources_of(self._kept)

    @functools.cached_property
    def _make_kept(self) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """Compiled as one: to compile each operation by itself takes longer than all of them do. Constants are handed
        over like params, for XLA would compute with them, slowly, while it compiles.
        """
        def make(sources: Sequence[Any]) -> tuple[Any, ...]:
            arrays = evaluate_fixed(self._kept, dict(zip(self._sources, sources, strict=True)))
            return tuple(
                self.layouts[value].store(jnp.asarray(array)[None]) if value.is_tiled else jnp.asarray(array)
                for value, array in zip(self._kept, arrays, strict=True)
            )

        return jax.jit(make)


def leaves_picture(value: Value, spans: Spans, grid: Grid | None) -> bool:
    """Whether some tile reads `value` outside its picture."""
    origins = [(0,), (0,)] if grid is None else [grid.rows.origins(), grid.cols.origins()]
    return any(
        span.margins(at, n) != (0, 0) for span, at, n in zip(spans, origins, value.picture, strict=True)
    )


def thresholded(plan: Plan) -> list[TileSegment]:
    """The segments that a threshold can do something for: tiles of real numbers that another segment reads."""
    read = {value for segment in plan.segments for value in segment.reads}
    read |= {value for segment in plan.segments if isinstance(segment, TileSegment) for value in segment.others}
    return [
        segment for segment in plan.segments
        if isinstance(segment, TileSegment) and any(value in read for value in segment.writes)
        and all(jnp.issubdtype(value.dtype, jnp.floating) for value in segment.writes)
    ]


def lower(
    fn, params: Any, frame: jax.ShapeDtypeStruct, axes: Axes, on_cpu: bool = True
) -> tuple[Program, list[Value], Value, list[Value], list[Order | None], Any]:
    """Trace `fn` and lower every equation by its rule: ``(program, params, frame, outputs, orders, out_tree)``."""
    streams = 1 if axes.stream is None else frame.shape[axes.stream]
    jaxpr, constants, out_tree = _jaxpr.trace(fn, params, frame)
    program = Program(streams, on_cpu)
    leaves = [Value(v.aval.shape, v.aval.dtype, Kind.FIXED) for v in jaxpr.invars[:-1]]
    source = Value(frame.shape, frame.dtype, Kind.MAP, axes)

    found, orders = _lower_turned(program, jaxpr, constants, [*leaves, source], as_they_lie=True)
    return program, leaves, source, [_shown(program, value) for value in found], orders, out_tree


def _lower_turned(
    program: Program, jaxpr, constants, arguments: Sequence[Value | Hidden], around: str = "",
    as_they_lie: bool = False,
) -> tuple[list[Value | Hidden], list[Order | None]]:
    """Every equation, with channels last: the results, and where their axes lie."""
    turned, more, orders = channels_last(jaxpr, as_they_lie)
    if turned is jaxpr:
        return _lower_all(program, jaxpr, constants, arguments, around), orders
    given = [_given(program, constant) for constant in constants]
    return _lower_all(program, turned, more, [*given, *arguments], around), orders


def _lower_all(
    program: Program, jaxpr, constants, arguments: Sequence[Value | Hidden], around: str = "", ours: bool = False
) -> list[Value | Hidden]:
    """Every equation of a jaxpr, and of those it wraps; where it is `ours`, all come from the line `around`."""
    env: dict[Any, Value | Hidden] = dict(zip(jaxpr.constvars, (_given(program, c) for c in constants), strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom) -> Value | Hidden:
        return program.given(_jaxpr.value(atom)) if isinstance(atom, _jaxpr.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        eqn, ins = _jaxpr.plain(eqn), [read(atom) for atom in eqn.invars]
        program.where = where = around if ours else _jaxpr.source(eqn, around)
        inner = _jaxpr.wrapped(eqn)
        outs = _lower_one(program, eqn, ins) if inner is None else _lower_all(program, *inner, ins, where, ours)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _given(program: Program, array: Any) -> Value:
    if isinstance(array, _jaxpr.Tracer):
        raise ValueError(
            f"`fn` closes over a traced array of shape {array.shape}; pass it in through `params` instead."
        )
    return program.given(array)


def _lower_one(program: Program, eqn: _jaxpr.Eqn, ins: list[Value | Hidden]) -> Sequence[Value | Hidden]:
    """One equation; with hidden axes, as `vmap` writes it for arrays that have them."""
    refusal, see = None, SEEN_THROUGH.get(eqn.primitive.name)
    if see is not None and any(isinstance(v, Hidden) or v.kind is not Kind.FIXED for v in ins):
        where = program.where
        try:
            return see(program, eqn, ins, lambda of, *given: _lower_turned(of, *given, around=where)[0])
        except Refused as refused:
            refusal, program.where = str(refused), where
            ins = [_shown(program, v) for v in ins]
    lift = LIFTS.get(eqn.primitive.name)
    if lift is not None:
        ins = lift(program, eqn, ins)
    plain = [v.value if isinstance(v, Hidden) else v for v in ins]
    if all(v is p for v, p in zip(ins, plain, strict=True)):
        return _apply_rule(program, eqn, plain, refusal)
    axes = [0 if isinstance(v, Hidden) else None for v in ins]
    specs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in plain]
    jaxpr, constants, _ = _jaxpr.trace(jax.vmap(lambda *xs: _jaxpr.bind(eqn, *xs), axes, axis_size=1), *specs)
    if any(inner.primitive is eqn.primitive and _shapes(inner) == _shapes(eqn) for inner in jaxpr.eqns):
        # The axis has gone into the streams, and the picture with it: hiding it once more would never end.
        return _apply_rule(program, eqn, [_shown(program, v) for v in ins], refusal)
    return [_without_first(program, v) for v in _lower_all(program, jaxpr, constants, plain, program.where, True)]


def _shapes(eqn: _jaxpr.Eqn) -> list[tuple[int, ...]]:
    """Of what it reads."""
    return [atom.aval.shape for atom in eqn.invars]


def _without_first(program: Program, value: Value | Hidden) -> Value | Hidden:
    """A value with a first axis of length 1 that the function does not know: hidden if the picture needs it."""
    if isinstance(value, Hidden):  # an axis is hidden before it
        axes = value.value.axes
        assert axes is not None
        if 1 not in (axes.stream, axes.row, axes.col):
            return Hidden(squeezed(program, value.value, (1,)))
        value = _shown(program, value)
    axes = value.axes if value.kind is Kind.MAP else None
    if axes is None or axes.stream == 0:
        return program.whole("squeeze", [value], [(value.shape[1:], value.dtype)], lambda x: (x[0],))[0]
    return Hidden(value) if 0 in (axes.row, axes.col) else squeezed(program, value, (0,))


def _shown(program: Program, value: Value | Hidden) -> Value:
    """The function's own array: whole, where an axis was hidden."""
    if not isinstance(value, Hidden):
        return value
    inner = value.value
    return program.whole("show", [inner], [(inner.shape[1:], inner.dtype)], lambda x: (x[0],))[0]


def _apply_rule(
    program: Program, eqn: _jaxpr.Eqn, ins: list[Value], refusal: str | None = None
) -> Sequence[Value | Hidden]:
    """The equation by its rule; whole where it has none or the rule refuses, or there is a `refusal` already."""
    name = eqn.primitive.name
    outs = [(getattr(v.aval, "shape", ()), getattr(v.aval, "dtype", None)) for v in eqn.outvars]
    if any(value.kind is not Kind.FIXED for value in ins):
        tiled = any(value.kind is Kind.MAP for value in ins)
        rule = RULES.get(name)
        if rule is None:
            refusal = (refusal or "no rule for it") if tiled else None
        elif (tiled or name in LIFTS) and not any(0 in shape for shape, _ in outs):  # nothing has no tiles
            try:
                return rule(program, eqn, ins)
            except Refused as refused:
                refusal = str(refused) if tiled else None
    broadcast = tuple(eqn.params["broadcast_dimensions"]) if name == "broadcast_in_dim" else None
    flops = _whole_flops(eqn) if any(value.kind is not Kind.FIXED for value in ins) else 0.0
    return program.whole(name, ins, outs, lambda *xs: _jaxpr.bind(eqn, *xs), flops=flops, refusal=refusal,
                         broadcast=broadcast)


def _whole_flops(eqn: _jaxpr.Eqn) -> float:
    from .rules import conv, dot

    if eqn.primitive.name == "conv_general_dilated":
        return conv.flops(eqn)
    if eqn.primitive.name == "dot_general":
        return dot.flops(eqn)
    return float(sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars))


# ---------------------------------------------------------------------------------------------------- segments


@dataclasses.dataclass(eq=False)
class _Group:
    picture: tuple[int, int] | None  # None: whole operations
    ops: list[Any] = dataclasses.field(default_factory=list)
    repeated: list[Any] = dataclasses.field(default_factory=list)  # of `ops`: those at home in an earlier group

    @property
    def cheap(self) -> bool:
        """Only pointwise operations and data movement: cheaper to repeat in a reader's halo than to store."""
        return self.picture is not None and all(op.cheap for op in self.ops)


def _live(ops: Sequence[Op], outputs: Sequence[Value]) -> list[Op]:
    needed, kept = set(outputs), []
    for op in reversed(ops):
        if needed.intersection(op.outputs):
            kept.append(op)
            needed.update(op.inputs)
    return kept[::-1]


def _whole_last(ops: Sequence[Op]) -> list[Op]:
    """The same operations, whole ones as late as their readers allow: so that they gather in few segments."""
    waiting = [op for op in ops if op.outputs[0].kind is not Kind.FIXED]
    made_by = {value: number for number, op in enumerate(waiting) for value in op.outputs}
    needs = [{made_by[v] for v in op.inputs if v in made_by} for op in waiting]
    readers: list[list[int]] = [[] for _ in waiting]
    for number, sources in enumerate(needs):
        for source in sources:
            readers[source].append(number)

    def entry(number: int) -> tuple[bool, int]:
        return not isinstance(waiting[number], TileOp), number

    ready = [entry(number) for number, sources in enumerate(needs) if not sources]
    heapq.heapify(ready)
    order: list[Op] = []
    while ready:
        _, now = heapq.heappop(ready)
        order.append(waiting[now])
        for reader in readers[now]:
            needs[reader].remove(now)
            if not needs[reader]:
                heapq.heappush(ready, entry(reader))
    return order


def _group(ops: Sequence[Op], outputs: Sequence[Value]) -> list[_Group]:
    groups: list[_Group] = []
    home: dict[Value, int] = {}
    readers: dict[Value, set[Op | None]] = collections.defaultdict(set)
    for op in ops:
        for value in op.inputs:
            readers[value].add(op)
    for value in outputs:
        readers[value].add(None)

    def swallowed(op: TileOp) -> list[_Group]:
        """The groups that `op` alone reads, and the groups that only those read: their results need no slots.

        As long as one operation is heavy at most, for that decides the tile, and no position is computed twice.
        """
        inside: set[Op | None] = {op}
        found: list[_Group] = []
        heavy = op.heavy
        for group in reversed(groups):
            if group.picture is None:
                continue
            made = {v for o in group.ops if o not in group.repeated for v in o.outputs}
            works = any(o.heavy for o in group.ops)
            if (heavy and works) or not any(made.intersection(o.inputs) for o in inside if o):
                continue
            if not all(readers[v] <= {*inside, *group.ops} for v in made):
                continue
            ops = dict.fromkeys(o for g in [group, *found] for o in g.ops)
            if _divides(_live([*ops, op], op.outputs), op.outputs):
                found.insert(0, group)
                inside.update(group.ops)
                heavy = heavy or works
        return found

    for op in _whole_last(ops):
        latest = max((home[v] for v in op.inputs if v in home), default=-1)
        if isinstance(op, TileOp):
            picture = op.outputs[0].picture
            if latest < 0 and op.pointwise:  # reads the frame alone, as do the operations that it joins
                latest = next((i for i, g in enumerate(groups) if g.picture == picture and g.cheap and all(
                    home.get(v, i) == i for o in g.ops for v in o.inputs)), -1)
            if latest < 0 or not op.pointwise or groups[latest].picture != picture:
                group = _Group(picture)
                # Rather than store what is cheap to repeat, or read only here:
                taken = [*swallowed(op), *(groups[home[v]] for v in op.inputs if v in home and groups[home[v]].cheap)]
                prologue = dict.fromkeys(o for g in sorted(taken, key=groups.index) for o in g.ops)
                group.ops += _live(list(prologue), op.inputs)
                group.repeated = list(group.ops)
                groups.append(group)
                latest = len(groups) - 1
        else:
            whole = [i for i, group in enumerate(groups) if group.picture is None and i >= latest]
            if not whole:
                groups.append(_Group(None))
            latest = whole[-1] if whole else len(groups) - 1
        groups[latest].ops.append(op)
        home.update((value, latest) for value in op.outputs)
    return groups


def _repeat_in_readers(
    parts: Sequence[tuple[_Group, list[Value]]], outputs: Sequence[Value], order: Mapping[Op, int]
) -> None:
    """Of the last part, what is made pointwise of something else that it writes, as a `relu` beside its own input, is
    made by those who read it, the parts before: a map less to compare, to write and to keep.

    Args:
        order: of all operations.
    """
    (last, writes), readers = parts[-1], [group for group, _ in parts[:-1]]
    made = {v: op for op in last.ops if op not in last.repeated and isinstance(op, TileOp) for v in op.outputs}

    def path(value: Value, stored: set[Value]) -> list[TileOp] | None:
        """The operations that make it of what is stored."""
        if value in stored or value.kind is Kind.FIXED:
            return []
        op = made.get(value)
        if op is None or not (op.pointwise and op.cheap):
            return None
        paths = [path(v, stored) for v in op.inputs]
        return None if None in paths else [*(o for p in paths if p for o in p), op]

    for value in [v for v in writes if v not in outputs]:
        reading = [group for group in readers if any(value in op.inputs for op in group.ops)]
        found = path(value, {*writes} - {value})
        if found is not None and all(group.picture is not None for group in reading):
            writes.remove(value)
            for group in reading:
                group.repeated = list({*found, *group.repeated})
                group.ops = sorted({*found, *group.ops}, key=order.__getitem__)  # it may make some of `stored` itself


def _read_spans(ops: Sequence[TileOp], writes: Sequence[Value], tile: Spans) -> Reading:
    """From the tile of the results backwards to what is needed of every value."""
    needs: dict[Value, Spans] = dict.fromkeys(writes, tile)
    inputs, pads = {}, {}
    for op in reversed(ops):
        rows, cols = _hull(needs[v] for v in op.outputs if v in needs)
        needs.update((v, (rows, cols)) for v in op.outputs)
        found = [(rows.through(r), cols.through(c)) for r, c in op.windows()]
        inputs[op] = tuple((r[0], c[0]) for r, c in found)
        pads[op] = tuple(side[1:] for side in found[op.first_tiled])
        for value, spans in zip(op.inputs, inputs[op], strict=True):
            if value.is_tiled:
                needs[value] = _hull([needs[value], spans]) if value in needs else spans
    return Reading(needs, inputs, pads)


def _hull(spans: Iterable[Spans]) -> Spans:
    return functools.reduce(lambda a, b: (a[0].hull(b[0]), a[1].hull(b[1])), spans)


def _moving(tile: tuple[int, int], fixed: tuple[bool, bool]) -> Spans:
    """A tile's own span: where it is the whole axis it stays at 0, and whatever it reads stays as well."""
    rows, cols = (Span(0 if stays else 1, 1, 0, n) for n, stays in zip(tile, fixed, strict=True))
    return rows, cols


def _undivided(ops: Sequence[TileOp], writes: Sequence[Value]) -> tuple[bool, bool]:
    """For rows and columns, whether all of the axis must be one tile.

    So it is where an operation reads the whole axis for each result, and where two paths to a value move otherwise
    with the tile: what is read here and along the axis there has no smaller hull.
    """
    found = []
    for axis in (0, 1):
        fixed = writes[0].picture[axis] == 1 or any(
            pair[axis].stride == 0 and pair[axis].size > 1 for op in ops for pair in op.windows()
        )
        try:
            _read_spans(ops, writes, _moving((1, 1), (axis != 0 or fixed, axis != 1 or fixed)))
        except ValueError:
            fixed = True
        found.append(fixed)
    return found[0], found[1]


def _divides(ops: Sequence[Any], writes: Sequence[Value]) -> bool:
    """Whether the tiles of the results, no larger than the last operation alone has them, need disjoint parts of all
    that is work to compute.
    """
    fixed = _undivided(ops, writes)
    needs = _read_spans(ops, writes, _moving((1, 1), fixed)).needs
    return fixed == _undivided(ops[-1:], writes) and all(
        fixed[axis] or needs[v][axis].length * needs[v][axis].den == needs[v][axis].num
        for op in ops if not op.cheap for v in op.outputs for axis in (0, 1)
    )


def flops_on(tile: Reading, op: TileOp) -> float:
    """FLOPs of an operation in all streams, on as many positions as the tile needs of its result, halo included."""
    height, width = op.outputs[0].picture
    rows, cols = tile.needs[op.outputs[0]]
    return op.flops * rows.length * cols.length / (height * width)


def _tile_segment(name: str, group: _Group, writes: list[Value], wish, overlap: float = 0.0) -> TileSegment:
    ops: list[TileOp] = _live(group.ops, writes)  # type: ignore[assignment]
    made = {value for op in ops for value in op.outputs}
    outside = list(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
    assert group.picture is not None
    fixed = _undivided(ops, writes)
    unit = _read_spans(ops, writes, _moving((1, 1), fixed))
    alignment = [math.lcm(*(spans[axis].den for spans in unit.needs.values())) for axis in (0, 1)]
    rows, cols = (
        TileAxis(n, n if whole else choose_tile(n, want, a, overlap))
        for n, whole, want, a in zip(group.picture, fixed, wish(ops, unit), alignment, strict=True)
    )
    grid = Grid(rows, cols)
    tile = _read_spans(ops, writes, _moving(grid.tile, fixed))
    streams = ops[0].outputs[0].layout().streams
    flops = flops_per_tile = 0.0
    for op in ops:
        flops += op.flops
        flops_per_tile += flops_on(tile, op) / streams
    return TileSegment(
        name, ops, [v for v in outside if v.is_tiled], [v for v in outside if not v.is_tiled], writes, grid,
        tile, _read_spans(ops, writes, _moving(group.picture, (True, True))), flops, flops_per_tile,
    )


def _wished(ops: Sequence[TileOp], unit: Reading, target) -> tuple[int, int]:
    """The tile of results that gives the heaviest operation a tile of its target; one partial result at a time."""
    if any(op.label.startswith("partial") for op in ops):
        return 1, 1
    heaviest = max(ops, key=lambda op: (op.heavy, op.flops))
    rows, cols = (
        max(1, side * span.den // max(1, span.num))
        for side, span in zip(target(heaviest), unit.needs[heaviest.outputs[0]], strict=True)
    )
    return rows, cols


def _margins(segments: Sequence[Segment]) -> dict[Value, Margins]:
    """How far outside the picture each stored value is read."""
    found: dict[Value, Margins] = collections.defaultdict(lambda: NONE)
    for segment in segments:
        if isinstance(segment, WholeSegment):
            continue
        grid = segment.grid
        for reading, origins in (
            (segment.tile, (grid.rows.origins(), grid.cols.origins())), (segment.whole, ((0,), (0,))),
        ):
            for value in segment.reads:
                rows, cols = (
                    span.margins(at, extent)
                    for span, at, extent in zip(reading.needs[value], origins, value.picture, strict=True)
                )
                found[value] = _larger(found[value][0], rows), _larger(found[value][1], cols)
    return found


def _larger(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), max(a[1], b[1])


# Native kernels do tiles that overlap like any others, and some convolutions at less cost on even numbers of positions:
# see `winograd.h`.
NATIVE_OVERLAPS = 0.0, 0.15


def make_plan(
    fn, params: Any, frame: jax.ShapeDtypeStruct, axes: Axes, target: Target, native_target: Target | None = None,
    native_cost: Callable[[Program, TileSegment], float] = lambda program, segment: math.inf, on_cpu: bool = True,
) -> Plan:
    """The plan of `fn` for frames of this shape.

    Args:
        target: the tile wished for an operation's results.
        native_target: the same in segments whose `native_cost` is finite, once they have such tiles.
        native_cost: of a whole picture, to choose among tilings; infinite where it cannot be done.
        on_cpu: where the steps will run.
    """
    program, leaves, source, outputs, orders, out_tree = lower(fn, params, frame, axes, on_cpu)
    ops = _live(program.ops, outputs)
    order = {op: number for number, op in enumerate(ops)}
    groups = _group(ops, outputs)

    # Backwards: a group writes what later groups or the function's outputs read of it.
    needed = {value for value in outputs if value.kind is not Kind.FIXED}
    segments: list[Segment] = []
    counts: collections.Counter[str] = collections.Counter()
    parts: list[tuple[_Group, list[Value]]] = []
    for group in reversed(groups):
        made = [value for op in group.ops if op not in group.repeated for value in op.outputs]
        writes = [value for value in made if value in needed]
        if not writes:
            continue
        ops = _live(group.ops, writes)
        inside = {value for op in ops for value in op.outputs}
        needed -= set(writes)
        needed |= {v for op in ops for v in op.inputs if v not in inside and v.kind is not Kind.FIXED}
        parts.append((group, writes))
        _repeat_in_readers(parts, outputs, order)
    for group, writes in reversed(parts):
        ops = _live(group.ops, writes)
        kind = _kind(ops)
        counts[kind] += 1
        name = f"{kind}{counts[kind]}"
        if group.picture is not None:
            tiled = functools.partial(_tile_segment, name, group, writes)
            segment, cost = None, math.inf
            if native_target is not None:
                wish = functools.partial(_wished, target=native_target)
                tilings = {found.grid: found for found in (tiled(wish, overlap) for overlap in NATIVE_OVERLAPS)}
                costs = {grid: native_cost(program, found) for grid, found in tilings.items()}
                best = min(costs, key=costs.__getitem__)
                segment, cost = tilings[best], costs[best]
            if segment is None or math.isinf(cost):
                segment = tiled(functools.partial(_wished, target=target))
            segments.append(segment)
            continue
        inside = {value for op in ops for value in op.outputs}
        reads = list(dict.fromkeys(v for op in ops for v in op.inputs if v not in inside))
        segments.append(WholeSegment(name, ops, reads, writes, sum(op.flops for op in ops)))

    margins = _margins(segments)
    maps = [source, *(v for s in segments for v in s.writes if v.is_tiled)]
    reads = [v for s in segments for v in (s.reads if isinstance(s, WholeSegment) else [*s.reads, *s.others])]
    fixed = list(dict.fromkeys(v for v in [*reads, *outputs] if v.kind is Kind.FIXED))
    layouts = {
        value: value.layout(margins[value]) if on_cpu else value.layout(outside=margins[value])
        for value in dict.fromkeys([*maps, *(v for v in fixed if v.is_tiled)])
    }
    wholes = [v for s in segments for v in s.writes if not v.is_tiled]
    return Plan(program, leaves, source, outputs, orders, out_tree, segments, layouts, fixed, maps, wholes)


CONE_TILE = 8  # positions of the output, each way


def cone(plan: Plan, output: Value) -> tuple[TileSegment, dict[Value, Layout]]:
    """All that a tile of `output` depends on, as one segment that reads only the frame and what is fixed; and layouts
    for what it reads.

    Raises:
        ValueError: something in it is not done on tiles; the message says what.
    """
    ops = _live([op for op in plan.program.ops if op.outputs[0].kind is not Kind.FIXED], [output])
    whole = [op for op in ops if not isinstance(op, TileOp)]
    if whole or output.kind is not Kind.MAP:
        raise ValueError(f"an output depends on the whole picture, by {_kind(whole) if whole else 'itself'}")
    group = _Group(output.picture, ops)
    segment = _tile_segment("cone", group, [output], lambda ops, unit: (CONE_TILE, CONE_TILE))
    margins = _margins([segment])
    return segment, {v: v.layout(margins[v]) for v in segment.reads}


def _kind(ops: Sequence[Op]) -> str:
    """What a segment is named after: its heaviest operation."""
    if not isinstance(ops[0], TileOp):
        return "compare" if all(isinstance(op, Lift) for op in ops) else "whole"
    label = max((op for op in ops if isinstance(op, TileOp)), key=lambda op: (op.heavy, not op.pointwise)).label
    for kind in ("conv", "dot", "pool", "partial"):
        if kind in label.split():
            return kind
    return "pointwise" if all(op.pointwise for op in ops if isinstance(op, TileOp)) else "move"
