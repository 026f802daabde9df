"""A segment of a plan in whole numbers, for `segment.h`, which reads them in the order in which they are put here."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._geometry import TileAxis
from .._plan import Spans, TileSegment, flops_on, leaves_picture
from .._program import Kind, Program, TileOp, Value
from .._tiles import Grid, Layout
from ._packing import BLOCKS, LARGE, Blocks, Ends, affine, made_of, pack, paired, winograd
from ._slots import (
    BAND,
    CHANNELS,
    CHOOSE,
    CONVERT,
    CONVOLUTION,
    DEPTHWISE,
    ELEMENTWISE,
    EXCHANGE,
    FROM_PAIRS,
    GATE,
    JOIN,
    NUMBER,
    OF_PAIRS,
    OUTSIDE,
    PAIR,
    PART,
    POOL,
    RECTIFIED,
    REDUCE,
    TAKE,
    TILE,
    UNPAIR,
    WINOGRAD,
    Operation,
    Ref,
    Slot,
    Unsupported,
    axis_words,
    channel_axis,
    channels_of,
    operation_words,
    place,
    ref_words,
    slot_words,
    span_words,
)

# Numbers in `segment.h` and `elementwise.h`.
POOLS = {"max": 0, "min": 1, "sum": 2}
CODES = {
    name: code for code, name in enumerate("""
        add sub mul div max min neg abs square sqrt rsqrt exp logistic tanh erf erfc gt ge lt le eq ne select_n clamp
        copy log log1p expm1
    """.split())
}
SAME = {"add_any": "add", "stop_gradient": "copy", "optimization_barrier": "copy", "convert_element_type": "copy"}
WHOLE = {jnp.dtype(jnp.uint8): 1, jnp.dtype(jnp.int32): 2}  # numbers that are stored otherwise than as floats
PAIRED = 3
MOST_CHANNELS = 4096  # of elementwise operations: `SPREAD` in `tile.h`
PAIR_COST = 8  # products of one input and 8 channels that take as long as to make 8 pairs
NORMS = {"linf": 0, "l1": 1, "l2": 2}
# Tiles side by side are done as one, up to so many positions, and floats of scratch: what a core has near by.
MOST_ACROSS, MOST_SCRATCH = 64, 1 << 16
# The words that a call fills in: whether the segment has a threshold, in which norm, whether its maps are far away, and
# the array of the tiles whose turn it is.
PER_CALL = slice(7, 11)

Part = Literal["stored", "mask", "flag", "gate", "gate flag"]
OF_A_WRITE: tuple[Part, ...] = ("stored", "mask", "flag")  # the arrays of each map that is written


class Gate(NamedTuple):
    """How a whole value is spread over channels: which of its axes is the streams', and the lengths of the others."""

    streams: int | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Native:
    """How a segment is called.

    Attributes:
        words: by how many tiles side by side are done as one, the segment on a tile so much wider; but for the words
            `PER_CALL`.
        arrays: after the stored map, mask and flag of each that it writes: parts of which values; of a gate, how it is
            spread.
        flops_per_tile: those of a tile that are done: of some convolutions fewer than there are.
        parts: fixed values in the form in which the kernels read them, by the numbers that they have in the words.
        bfloat16: whether products are of it.
        packed: the parts of all segments in one array, so that a call of the step hands over one and not hundreds; and
            where in it each of these begins. Of a segment that is in no plan yet, nothing.
        size: bytes of all maps of the plan, for one stream.
    """

    words: dict[int, list[int]]
    arrays: tuple[tuple[Part, Value, Gate | None], ...]
    parts: tuple[Value, ...]
    flops_per_tile: float
    bfloat16: bool = False
    packed: tuple[Value, tuple[int, ...]] | None = None
    size: int = 0

    @property
    def fixed(self) -> list[Value]:
        """The fixed values that are read."""
        maps = [value for part, value, _ in self.arrays if part == "stored" and value.kind is Kind.FIXED]
        return maps if self.packed is None else [*maps, self.packed[0]]


class _Arrays:
    """What a segment reads, however wide its tile is; numbered behind the arrays of the maps that it writes."""

    def __init__(self, writes: int):
        self.arrays: list[tuple[Part, Value, Gate | None]] = []
        self.parts: dict[tuple[Any, ...], Value] = {}
        self._first = len(OF_A_WRITE) * writes

    def array(self, part: Part, value: Value, gate: Gate | None = None) -> int:
        """The number of one that is read."""
        if (part, value, gate) not in self.arrays:
            self.arrays.append((part, value, gate))
        return self._first + self.arrays.index((part, value, gate))

    def part(self, values: Sequence[Value], how: Any, apply: Callable[..., Any]) -> int:
        """The number of what `apply` makes of fixed values; `how` says what that is."""
        key = (*values, how)
        if key not in self.parts:
            self.parts[key] = made_of(values, apply, how)
        return list(self.parts).index(key)


class _Encoder:
    """One segment on a tile; what it cannot say raises `Unsupported`."""

    def __init__(self, program: Program, layouts: Mapping[Value, Layout], segment: TileSegment, grid: Grid,
                 lanes: int, held: bool, pairs: bool, arrays: _Arrays):
        self.program, self.layouts, self.segment = program, layouts, segment
        self.lanes, self.held, self.pairs = lanes, held, pairs
        self.grid, self.tile = grid, segment.on(grid)
        self.array, self.fixed = arrays.array, arrays.part
        self.slots: list[Slot] = []
        self.ops: list[Operation] = []
        self.refs: dict[Value, Ref] = {}  # of what is stored as pairs: these
        self.unpaired: dict[Value, Ref] = {}  # and its numbers, when something reads them
        self.readers: dict[Value, int] = {}
        self.gates: set[int] = set()
        self.done: set[TileOp] = set()  # with an operation before them
        self.rectified: set[Value] = set()  # that are stored as they are, and of which relu is read
        self.saved = 0.0  # FLOPs

    # -------------------------------------------------------------------------------------------- values

    def slot(
        self, channels: int, spans: Spans, picture: tuple[int, int], source: int = -1, paired: bool = False
    ) -> Slot:
        self.slots.append(Slot(source, channels, spans, picture, paired))
        return self.slots[-1]

    def numbers(self, value: Value) -> Ref:
        """A value's tile in floats."""
        ref = self.refs[value]
        if not ref.slot.paired:
            return ref
        if value not in self.unpaired:
            assert (ref.top, ref.left) == (0, 0)
            copy = self.slot(2 * ref.slot.channels, self.tile.needs[value], value.picture)
            copy.is_stored = True
            self.ops.append(Operation(UNPAIR, copy, into=ref))
            self.unpaired[value] = Ref(copy, 0, 0)
        return self.unpaired[value]

    def made(self, value: Value, where: str, also: tuple[Any, ...] = ()) -> Slot:
        """Scratch for the result of an operation: floats, whatever it is called."""
        if value.dtype not in (jnp.float32, jnp.bool_, *also):
            raise Unsupported(f"{where}: its result is {value.dtype}")
        slot = self.slot(channels_of(value.shape, value.map_axes, where), self.tile.needs[value], value.picture)
        self.refs[value] = Ref(slot, 0, 0)
        return slot

    def operand(self, op: TileOp, number: int) -> Ref:
        """A tiled input cropped to what the operation reads, with what it finds outside the picture."""
        value = op.inputs[number]
        want, have = self.tile.inputs[op][number], self.tile.needs[value]
        leaves, ref = self.leaves(op, number), self.numbers(value)
        if not leaves or (op.fill == 0 and ref.slot.is_stored):  # margins of what is stored are zero
            return ref.moved(have, want)
        assert op.fill is not None
        if ref.slot.source >= 0 or self.readers[value] > 1 or ref.slot.shape[:2] != tuple(s.length for s in have):
            copy = self.slot(ref.slot.channels, want, value.picture)
            self.ops.append(Operation(PART, copy, columns=1, count=copy.channels, into=ref.moved(have, want)))
            ref, have = Ref(copy, 0, 0), want
        self.ops.append(Operation(OUTSIDE, ref.slot, fill=float(op.fill), into=Ref(ref.slot, 0, 0)))
        return ref.moved(have, want)

    def leaves(self, op: TileOp, number: int) -> bool:
        """Whether an operation reads outside of the picture, and what it finds there matters."""
        value, want = op.inputs[number], self.tile.inputs[op][number]
        return op.fill is not None and value.kind is Kind.MAP and leaves_picture(value, want, self.grid)

    def as_stored(self, op: TileOp, number: int) -> Ref:
        """As `operand`, but as pairs what is stored so."""
        value, want = op.inputs[number], self.tile.inputs[op][number]
        if self.refs[value].slot.paired and (op.fill == 0 or not self.leaves(op, number)):
            return self.refs[value].moved(self.tile.needs[value], want)
        return self.operand(op, number)

    def pairs_of(self, op: TileOp, number: int) -> Ref:
        """As `operand`, but as pairs."""
        into = self.as_stored(op, number)
        if into.slot.paired:
            return into
        value, want = op.inputs[number], self.tile.inputs[op][number]
        copy = self.slot(-(-into.slot.channels // 2), want, value.picture, paired=True)
        self.ops.append(Operation(PAIR, copy, count=into.slot.channels, into=into))
        return Ref(copy, 0, 0)

    # -------------------------------------------------------------------------------------------- operations

    def convolution(self, op: TileOp, order: Sequence[int], groups: int) -> None:
        shape = tuple(op.inputs[1].shape[axis] for axis in order)
        self.products(op, 0, shape, ("kernel", order), lambda kernel: jnp.transpose(kernel, order), groups,
                      self.is_depthwise(op, order, groups))

    def dense(
        self, op: TileOp, number: int, contracted: Sequence[int], terms: Sequence[int], free: Sequence[int]
    ) -> None:
        """A kernel of a single tap. `contracted`: axes of the map, of the input `number`; `terms`: those of the other
        one; `free`: what that one has besides."""
        value, kernel = op.inputs[number], op.inputs[1 - number]
        if kernel.kind is not Kind.FIXED or kernel.is_tiled:
            raise Unsupported(f"{op.label}: what it is multiplied by depends on the frame, or on the position")
        order = (*(term for _, term in sorted(zip(contracted, terms, strict=True))), *free)
        inputs, outputs = (math.prod(kernel.shape[axis] for axis in axes) for axes in (terms, free))
        if inputs != channels_of(value.shape, value.map_axes, op.label):
            raise Unsupported(f"{op.label}: it sums over some axes of channels and not over others")
        shape = (1, 1, inputs, outputs)
        self.products(op, number, shape, ("dense", order), lambda kernel: jnp.transpose(kernel, order).reshape(shape))

    def products(self, op: TileOp, number: int, shape: tuple[int, ...], how: Any, arranged: Callable[[Any], Any],
                 groups: int = 1, depthwise: bool = False) -> None:
        """A convolution of the input `number`; `arranged` makes of the other one a kernel of this shape, `[rows,
        columns, in, out]`."""
        value, kernel = op.inputs[number], op.inputs[1 - number]
        if kernel.dtype != jnp.float32 or value.dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it is not in float32")
        ends = self.ends(op.outputs[0], adds=not depthwise)
        out = self.made(ends.result, op.label)
        pads = self.tile.pads[op]
        axes = axis_words(op.rows, pads[0][0]), axis_words(op.cols, pads[1][0])
        kind, count = (DEPTHWISE, 0) if depthwise else (CONVOLUTION, shape[0] * shape[1])
        blocks = self.blocks(axes, shape, out) if groups == 1 else None
        if blocks is not None:
            kind = WINOGRAD
            self.saved += blocks.saved * flops_on(self.tile, op) / op.outputs[0].layout().streams
        pairs = self.pairs and not depthwise and (groups == 1 or shape[2] % 2 == 0)
        pairs = pairs and (blocks is not None or self.pays(op, number, shape, out))
        direct = pairs and blocks is None  # blocks make pairs of their frequencies
        read = self.pairs_of if direct else self.as_stored if pairs or depthwise else self.operand
        into = read(op, number)
        terms = -(-shape[2] // 2) if direct else shape[2]
        others, names = [v for _, v in ends.steps], tuple(name for name, _ in ends.steps)

        def packed(kernel, *numbers):
            scaled = arranged(kernel) * affine(names, numbers, out.channels)[0].reshape(1, 1, 1, -1)
            if depthwise:
                return scaled.reshape(-1, groups)
            if blocks is not None:
                scaled = winograd(scaled, blocks)
            factors = paired(scaled) if pairs else scaled
            return jnp.concatenate([pack(part, self.lanes) for part in jnp.split(factors, groups, axis=3)])

        code = groups if kind == CONVOLUTION else 0
        if blocks is not None:
            code = blocks.code
        elif depthwise and value in self.rectified:
            code = RECTIFIED
        what = how, shape, kind, blocks, pairs, names, groups, out.channels, self.lanes
        part = self.fixed([kernel, *others], what, packed)
        shift = -1
        if others:
            shift = self.fixed(others, ("shift", names, out.channels), lambda *xs: affine(names, xs, out.channels)[1])
        operands: list[tuple[int, Any, float]] = [(NUMBER, 0, ends.low), (NUMBER, 0, ends.high)]
        if ends.added is not None:
            operands.append((TILE, self.operand(*ends.added), 0.0))
        self.ops.append(Operation(kind, out, code=code, part=part, columns=shape[1], channels_in=terms,
                                   first=shift, count=count,
                                   pairs=OF_PAIRS * pairs + FROM_PAIRS * into.slot.paired, into=into, axes=axes,
                                   operands=operands))

    def pays(self, op: TileOp, number: int, shape: Sequence[int], out: Slot) -> bool:
        """Whether products of pairs save more than it takes to make these."""
        if self.refs[op.inputs[number]].slot.paired:
            return True
        read = math.prod(span.length for span in self.tile.inputs[op][number])
        saved = math.prod(shape[:2]) * (shape[2] // 2) * -(-shape[3] // 8) * math.prod(out.shape[:2])
        return saved > PAIR_COST * read * -(-shape[2] // 16)

    def reduce(self, op: TileOp, kind: str) -> None:
        self.over_channels(op, REDUCE, kind)

    def choose(self, op: TileOp, kind: str) -> None:
        """Its results are floats until they are written."""
        self.over_channels(op, CHOOSE, kind, also=(jnp.int32,))

    def over_channels(self, op: TileOp, what: int, kind: str, also: tuple[Any, ...] = ()) -> None:
        out = self.made(op.outputs[0], op.label, also)
        if op.inputs[0].dtype != jnp.float32 or out.channels != 1:
            raise Unsupported(f"{op.label}: it is not of float32, or leaves channels")
        into = self.operand(op, 0)
        self.ops.append(Operation(what, out, code=POOLS[kind], count=into.slot.channels, into=into))

    def is_depthwise(self, op: TileOp, order: Sequence[int], groups: int) -> bool:
        channels = [channels_of(v.shape, v.map_axes, op.label) for v in (op.inputs[0], op.outputs[0])]
        rows, cols = (op.inputs[1].shape[axis] for axis in order[:2])
        return (groups > 1 and channels == [groups, groups] and rows * cols <= 512
                and op.rows.base_dilation == op.cols.base_dilation == 1)

    def blocks(self, axes: tuple[list[int], list[int]], shape: Sequence[int], out: Slot) -> Blocks | None:
        """How a convolution can be done in blocks: its results are whole ones, the same in whichever tile of a row."""
        if axes[0] != axes[1] or tuple(shape[:2]) != (3, 3) or min(shape[2:]) < self.lanes:
            return None
        cols, tile = out.spans[1], self.segment.grid.cols.tile
        for found in (LARGE.get(tuple(axes[0])) if self.held else None, BLOCKS.get(tuple(axes[0]))):
            if found is None or 4 * len(found.transform) ** 2 * shape[2] * shape[3] > found.most:
                continue
            whole = all(span.length % found.side == 0 for span in out.spans)
            many = math.prod(-(-n // found.side) for n in out.picture) >= found.fewest
            if whole and many and tile * cols.num % (found.side * cols.den) == 0:
                return found
        return None

    def ends(self, value: Value, adds: bool) -> Ends:
        """The operations after a convolution that can be done with it, as it is packed or while it is in registers.

        `adds`: whether a map that is there already can be added, as a residual is.
        """
        found, there = Ends(value), self.refs if adds else ()
        while (op := self.only_reader(found.result)) is not None and found.take(self.program.constant, op, there):
            self.done.add(op)
            found.result = op.outputs[0]
        return found

    def only_reader(self, value: Value) -> TileOp | None:
        """The operation of the segment that alone reads a value."""
        readers = [op for op in self.segment.ops if value in op.inputs]
        return readers[0] if self.readers.get(value) == len(readers) == 1 and len(readers[0].outputs) == 1 else None

    def pool(self, op: TileOp, kind: str) -> None:
        if op.rows.base_dilation != 1 or op.cols.base_dilation != 1 or op.rows.size * op.cols.size > 512:
            raise Unsupported(f"{op.label}: its input is spread, or its window large")
        if op.inputs[0].dtype != jnp.float32 or op.fill != {"max": -np.inf, "min": np.inf, "sum": 0}[kind]:
            raise Unsupported(f"{op.label}: it is not in float32, or starts with another number")
        into = self.operand(op, 0)
        axes = axis_words(op.rows, 0), axis_words(op.cols, 0)
        self.ops.append(Operation(POOL, self.made(op.outputs[0], op.label), code=POOLS[kind], columns=op.cols.size,
                                   into=into, axes=axes))

    def same(self, op: TileOp) -> None:
        (value,) = [v for v in op.inputs if v.is_tiled]
        result = op.outputs[0]
        number = op.inputs.index(value)
        ref = self.operand(op, number)
        if not op.pointwise or channels_of(result.shape, result.map_axes, op.label) != ref.slot.channels:
            raise Unsupported(f"{op.label}: it changes more than the axes' names")
        self.refs[result] = ref

    def part(self, op: TileOp, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> None:
        value, result = op.inputs[0], op.outputs[0]
        axis, steps = channel_axis(value.shape, value.map_axes), (op.rows.stride, op.cols.stride)
        if value.dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it is not in float32")
        into = self.operand(op, 0)
        if into.slot.channels == limits[axis] - starts[axis] and {*steps, strides[axis]} == {1}:
            self.refs[result] = into
            return
        self.pick(op, into, starts[axis], strides[axis], steps)

    def pick(self, op: TileOp, into: Ref, first: int, step: int, steps: tuple[int, int] = (1, 1)) -> None:
        """Every so many channels from `first` on, of every so many rows and columns."""
        out = self.made(op.outputs[0], op.label)
        self.ops.append(Operation(PART, out, first=first, columns=step, count=out.channels, into=into,
                                   axes=([steps[0], 0], [steps[1], 0])))

    def repeat(self, op: TileOp, axis: int, times: int) -> None:
        """Tiles begin where a position is first repeated; what lies outside the picture, nobody uses."""
        if op.inputs[0].dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it is not in float32")
        into, have = self.operand(op, 0), self.tile.needs[op.outputs[0]]
        axes = []
        for number, (out, read) in enumerate(zip(have, self.tile.inputs[op][0], strict=True)):
            by = times if number == axis else 1
            found = [(out.offset + i) // by - read.offset for i in range(out.length)]
            axes.append([1, out.length, *(n for i in found for n in (1, 0, min(max(i, 0), read.length - 1)))])
        out = self.made(op.outputs[0], op.label)
        self.ops.append(Operation(TAKE, out, count=out.channels, into=into, axes=(axes[0], axes[1])))

    def band(self, op: TileOp, axis: int, first: np.ndarray, weights: np.ndarray) -> None:
        """Whatever the order of the result's axes, it lies as rows x columns x channels: who reads it sees to that."""
        result = op.outputs[0]
        if op.inputs[0].dtype != jnp.float32 or result.dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it is not in float32")
        table = np.concatenate([first[:, None], weights], axis=1).astype(np.float32)
        part = self.fixed([], ("band", table.shape, table.tobytes()), lambda: jnp.asarray(table))
        into = self.operand(op, 0)
        out = self.slot(into.slot.channels, self.tile.needs[result], result.picture)
        self.refs[result] = Ref(out, 0, 0)
        self.ops.append(Operation(BAND, out, code=axis, part=part, count=weights.shape[1], into=into))

    def transpose(self, op: TileOp, order: Sequence[int]) -> None:
        """Two runs of channels that change places; where the picture's axes are makes no difference to a tile."""
        value, result = op.inputs[0], op.outputs[0]
        if value.dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it is not in float32")
        channels, axes, into = channels_of(result.shape, result.map_axes, op.label), value.map_axes, self.operand(op, 0)
        now = [a for a in order if a not in (axes.stream, axes.row, axes.col) and value.shape[a] > 1]
        before = sorted(now)
        if now == before:
            self.refs[result] = into
            return
        kept = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        after = next(i for i, (a, b) in enumerate(zip(before[::-1], now[::-1], strict=True)) if a != b)
        moved = now[kept: len(now) - after]
        split = moved.index(min(moved))  # now behind those that were behind it
        if moved[split:] + moved[:split] != sorted(moved):
            raise Unsupported(f"{op.label}: more than two runs of channels change places")
        first, second, inner = (math.prod(value.shape[a] for a in run)
                                for run in (moved[split:], moved[:split], before[len(now) - after:]))
        out = self.made(result, op.label)
        assert out.channels == channels == into.slot.channels
        self.ops.append(Operation(EXCHANGE, out, first=first, columns=second, count=inner, into=into))

    def rev(self, op: TileOp, dimensions: Sequence[int]) -> None:
        value = op.inputs[0]
        axis, into = channel_axis(value.shape, value.map_axes), self.operand(op, 0)
        if any(value.shape[a] > 1 for a in dimensions if a != axis):
            raise Unsupported(f"{op.label}: it turns the picture round")
        if value.dtype == jnp.float32:
            self.pick(op, into, into.slot.channels - 1, -1)
        elif value.dtype == jnp.uint8 and into.slot.source >= 0:
            self.bytes(op, into, into.slot.channels - 1, -1)
        else:
            raise Unsupported(f"{op.label}: it is of {value.dtype}")

    def bytes(self, op: TileOp, into: Ref, first: int = 0, step: int = 1) -> None:
        """The frame's bytes as floats, in some order of channels."""
        out = self.made(op.outputs[0], op.label, also=(jnp.uint8,))
        self.ops.append(Operation(CONVERT, out, first=first, columns=step, into=into))

    def pad(self, op: TileOp, *config: tuple[int, int, int]) -> None:
        value, result = op.inputs[0], op.outputs[0]
        axis = channel_axis(result.shape, result.map_axes)
        if any(inner for _, _, inner in config) or min(config[axis][:2]) < 0 or value.dtype != jnp.float32:
            raise Unsupported(f"{op.label}: it pads between, or takes away, or is not in float32")
        into, low = self.operand(op, 0), config[axis][0]
        out = self.made(result, op.label)
        if into.slot.channels == out.channels:
            self.ops.append(Operation(PART, out, columns=1, count=out.channels, into=into))
            return
        self.ops.append(Operation(ELEMENTWISE, out, code=CODES["copy"], operands=[(NUMBER, 0, float(op.fill or 0))]))
        self.ops.append(Operation(JOIN, out, first=low, count=into.slot.channels, into=into))

    def join(self, op: TileOp, along: int) -> None:
        result = op.outputs[0]
        if any(not v.is_tiled or v.dtype != jnp.float32 for v in op.inputs):
            raise Unsupported(f"{op.label}: not all of it is a map of float32")
        if channel_axis(result.shape, result.map_axes) != along:
            raise Unsupported(f"{op.label}: it has several axes of channels")
        into = [self.operand(op, number) for number in range(len(op.inputs))]
        out, first = self.made(result, op.label), 0
        for ref in into:
            self.ops.append(Operation(JOIN, out, first=first, count=ref.slot.channels, into=ref))
            first += ref.slot.channels

    def elementwise(self, op: TileOp, name: str, params: Mapping[str, Any]) -> None:
        result = op.outputs[0]
        if name == "convert_element_type" and op.inputs[0].dtype == jnp.uint8 and result.dtype == jnp.float32:
            into = self.operand(op, 0)
            if into.slot.source >= 0:
                self.bytes(op, into)
            elif any(made.kind == CHOOSE and made.out is into.slot for made in self.ops):
                raise Unsupported(f"{op.label}: it reads what a byte holds of a number")  # which may be larger
            else:
                self.refs[result] = into  # floats already
            return
        if name == "convert_element_type" and op.inputs[0].dtype == jnp.int32 and result.dtype in WHOLE:
            self.refs[result] = self.operand(op, 0)  # what a byte holds of it is seen to when it is written
            return
        if name == "convert_element_type" and result.dtype == jnp.bool_ and op.inputs[0].dtype != jnp.bool_:
            raise Unsupported(f"{op.label}: it makes truths of numbers")
        name = SAME.get(name, name)
        if name == "reduce_precision" and (params["exponent_bits"], params["mantissa_bits"]) == (8, 23):
            name = "copy"
        if name == "integer_pow" and params["y"] == 2:
            name = "square"
        if name == "max" and (ref := self.to_be_rectified(op)) is not None:
            self.refs[result] = ref
            self.rectified.add(result)
            return
        if name == "integer_pow" and params["y"] > 2 and op.inputs[0].dtype == jnp.float32:
            self.refs[result] = self.power(self.operand(op, 0), params["y"], self.tile.needs[result], result.picture)
            return
        code = CODES.get(name)
        if code is None or len(op.inputs) > 3 or (name == "rsqrt" and params.get("accuracy")):
            raise Unsupported(f"{op.label}: there is no such operation")
        out_channels = channels_of(result.shape, result.map_axes, op.label)
        if out_channels > MOST_CHANNELS:
            raise Unsupported(f"{op.label}: it has more than {MOST_CHANNELS} channels")
        operands = [self.elementwise_operand(op, number, out_channels) for number in range(len(op.inputs))]
        if name == "div" and operands[1][0] == NUMBER and _power_of_two(operands[1][2]):
            code, operands[1] = CODES["mul"], (NUMBER, 0, 1 / operands[1][2])  # the same to the bit, and faster
        self.ops.append(Operation(ELEMENTWISE, self.made(result, op.label), code=code, operands=operands))

    def power(self, base: Ref, by: int, spans: Spans, picture: tuple[int, int]) -> Ref:
        """By as few products as its bits need."""

        def product(a: Ref, b: Ref) -> Ref:
            out = self.slot(a.slot.channels, spans, picture)
            self.ops.append(Operation(ELEMENTWISE, out, code=CODES["mul"], operands=[(TILE, a, 0.0), (TILE, b, 0.0)]))
            return Ref(out, 0, 0)

        if by == 1:
            return base
        square = self.power(product(base, base), by // 2, spans, picture)
        return product(square, base) if by % 2 else square

    def to_be_rectified(self, op: TileOp) -> Ref | None:
        """What relu is made of, where that is stored and one depthwise convolution alone reads relu: it does it itself.

        What it finds outside the picture is zero either way, for margins of what is stored are.
        """
        reader = self.only_reader(op.outputs[0])
        if reader is None or reader.form is None or reader.form.name != "convolution":
            return None
        if not self.is_depthwise(reader, *reader.form.params) or len(op.inputs) != 2:
            return None
        number = 0 if op.inputs[0].is_tiled else 1
        value, other = op.inputs[number], op.inputs[1 - number]
        zero = self.program.constant(other) if other.kind is Kind.FIXED and not other.is_tiled else None
        stored = value in self.refs and self.refs[value].slot.is_stored and value.dtype == jnp.float32
        if not stored or zero is None or zero.size != 1 or float(zero.reshape(())) != 0:
            return None
        same = self.refs[value].slot.numbers == channels_of(op.outputs[0].shape, op.outputs[0].map_axes, op.label)
        return self.as_stored(op, number) if same else None

    def elementwise_operand(self, op: TileOp, number: int, channels: int) -> tuple[int, Any, float]:
        value, result = op.inputs[number], op.outputs[0]
        if value.dtype not in (jnp.float32, jnp.bool_):
            raise Unsupported(f"{op.label}: it reads {value.dtype}")
        if value.is_tiled:
            ref = self.operand(op, number)
            if ref.slot.channels not in (1, channels):
                raise Unsupported(f"{op.label}: its operands differ in channels")
            return TILE, ref, 0.0
        constant = self.program.constant(value) if value.kind is Kind.FIXED else None
        if constant is not None and constant.size == 1:
            return NUMBER, 0, float(constant.reshape(()))
        axes = result.map_axes
        shape = [1 if a in (axes.row, axes.col, axes.stream) else n for a, n in enumerate(result.shape)]
        if value.kind is Kind.WHOLE:
            streams = axes.stream if axes.stream is not None and value.shape[axes.stream] > 1 else None
            wide = [n for a, n in enumerate(shape) if a != streams]  # of a norm by groups, each has several channels
            fits = len(value.shape) in (0, len(shape)) and all(n in (1, m) for a, (n, m) in enumerate(
                zip(value.shape, shape, strict=False)) if a != streams)
            if not fits or math.prod(wide) != channels or value.dtype != jnp.float32:
                raise Unsupported(f"{op.label}: what is whole has other channels, or is not in float32")
            self.gates.add(self.array("gate flag", value))
            return GATE, self.array("gate", value, Gate(streams, tuple(wide))), 0.0
        return CHANNELS, self.fixed([value], tuple(shape), lambda x: jnp.broadcast_to(
            jnp.asarray(x, jnp.float32), shape).ravel()), 0.0

    # -------------------------------------------------------------------------------------------- all of it

    def words(self) -> tuple[int, list[int]]:
        """Floats of scratch, and all of it."""
        segment, layouts = self.segment, self.layouts
        counts = itertools.chain.from_iterable(op.inputs for op in segment.ops)
        for value in [*counts, *segment.writes]:
            self.readers[value] = self.readers.get(value, 0) + 1
        sources = []
        for number, value in enumerate(segment.reads):
            if value.dtype not in (jnp.float32, jnp.uint8):
                raise Unsupported(f"it reads {value.dtype}")
            spans = self.tile.needs[value]
            channels = channels_of(value.shape, value.map_axes, "what it reads")
            sources += [*self.stored(value, layouts[value], self.array("stored", value)), *span_words(spans)]
            moves = value.kind is Kind.MAP
            sources += [self.array(part, value) if moves else -1 for part in ("mask", "flag")]
            paired = layouts[value].dtype == jnp.bfloat16
            slot = self.slot(channels // (1 + paired), spans, value.picture, number, paired)
            slot.is_stored = True
            self.refs[value] = Ref(slot, 0, 0)
        for op in segment.ops:
            if op in self.done:
                continue
            if op.form is None or len(op.outputs) != 1:
                raise Unsupported(f"{op.label}: there is no such operation")
            getattr(self, op.form.name)(op, *op.form.params)
        writes = []
        for number, value in enumerate(segment.writes):
            if value.dtype not in WHOLE and value.dtype != jnp.float32:
                raise Unsupported(f"it writes {value.dtype}")
            if value.dtype in WHOLE and self.refs[value].slot.source >= 0:
                raise Unsupported(f"it writes {value.dtype} as they are read")
            have, (height, width) = self.tile.needs[value], self.grid.tile
            want = (dataclasses.replace(have[0], offset=0, length=height),
                    dataclasses.replace(have[1], offset=0, length=width))
            array = len(OF_A_WRITE) * number
            stored = [*self.stored(value, layouts[value], array), array + 1, array + 2]
            writes.append((self.numbers(value).moved(have, want), stored))
        gates = sorted(self.gates)
        scratch = place(self.slots, self.ops, [ref for ref, _ in writes])
        count, grid = (segment.grid.rows.count, segment.grid.cols.count), self.grid
        words = [*count, *grid.tile, grid.rows.extent, grid.cols.extent, scratch, 0, 0, 0, -1]
        words += [len(segment.reads), *sources, len(gates), *gates, len(self.slots)]
        for slot in self.slots:
            words += slot_words(slot)
        words.append(len(self.ops))
        for op in self.ops:
            words += operation_words(self.slots, op)
        words.append(len(writes))
        for ref, stored in writes:
            words += [*ref_words(self.slots, ref), *stored]
        return scratch, words

    def stored(self, value: Value, layout: Layout, array: int) -> list[int]:
        height, width = layout.picture
        (top, bottom), (left, right) = layout.margins
        channels, kind = channels_of(value.shape, value.map_axes, "what is stored"), WHOLE.get(value.dtype, 0)
        if layout.dtype == jnp.bfloat16:
            channels, kind = channels // 2, PAIRED
        return [array, kind, height + top + bottom, width + left + right, top, left, channels, height, width]


def _power_of_two(number: float) -> bool:
    """Whether it is one, of which the inverse is a float32 as well."""
    return abs(math.frexp(number)[0]) == 0.5 and 2.0**-126 <= abs(number) <= 2.0**126


def encode(
    program: Program, layouts: Mapping[Value, Layout], segment: TileSegment, lanes: int, held: bool = False,
    pairs: bool = False,
) -> Native:
    """The segment for `kernels.cc`; `layouts` of all that it reads and writes.

    Args:
        held: whether its results are held within a threshold.
        pairs: whether products are of bfloat16.

    Raises:
        Unsupported: it has something that is not done there.
    """
    arrays, found, across, cols = _Arrays(len(segment.writes)), {}, 1, segment.grid.cols
    flops = segment.flops_per_tile
    while across == 1 or across * cols.tile <= min(cols.extent, MOST_ACROSS):
        grid = Grid(segment.grid.rows, TileAxis(cols.extent, across * cols.tile))
        encoder = _Encoder(program, layouts, segment, grid, lanes, held, pairs, arrays)
        scratch, words = encoder.words()
        if across == 1:
            flops -= encoder.saved
        if across > 1 and scratch > MOST_SCRATCH:
            break
        found[across] = words
        across *= 2
    return Native(found, tuple(arrays.arrays), tuple(arrays.parts.values()), flops, pairs)
