"""Tiles in the kernels' memory: what is where, when its place is free again, and all of it in whole numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

from .._geometry import Window
from .._plan import Spans
from .._tiles import Axes

# Numbers of the kinds in `segment.h`.
CONVOLUTION, DEPTHWISE, POOL, ELEMENTWISE, JOIN, PART, OUTSIDE, CONVERT, TAKE, WINOGRAD, REDUCE = range(11)
CHOOSE, PAIR, UNPAIR, BAND, EXCHANGE = range(11, 16)
TILE, CHANNELS, NUMBER, GATE = range(4)  # where an operand is
OF_PAIRS, FROM_PAIRS = 1, 2  # whether products are, and whether what is read lies so
RECTIFIED = 1  # code of a depthwise convolution that reads relu of what is there


class Unsupported(Exception):
    """`kernels.cc` cannot do this segment; the message says why."""


@dataclasses.dataclass(eq=False)
class Slot:
    """A tile of one value, in the picture's own memory or in the scratch.

    Attributes:
        paired: whether it has two numbers in bfloat16 in the place of one: half as many channels.
        is_stored: whether there is what is stored: zeros outside the picture.
    """

    source: int
    channels: int
    spans: Spans
    picture: tuple[int, int]
    paired: bool = False
    is_stored: bool = False
    first: int = -1  # numbers of the operations that make it and last read it
    last: int = -1
    offset: int = -1

    @property
    def numbers(self) -> int:
        """Channels of the value."""
        return self.channels * (1 + self.paired)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.spans[0].length, self.spans[1].length, self.channels


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value's tile in a slot: from that row and column on."""

    slot: Slot
    top: int
    left: int

    def moved(self, have: Spans, want: Spans) -> Ref:
        rows, cols = (b.offset - a.offset for a, b in zip(have, want, strict=True))
        return Ref(self.slot, self.top + rows, self.left + cols)


@dataclasses.dataclass(eq=False)
class Operation:
    kind: int
    out: Slot
    code: int = 0
    part: int = 0
    columns: int = 0
    channels_in: int = 0
    first: int = 0
    count: int = 0
    fill: float = 0.0
    pairs: int = 0
    into: Ref | None = None
    axes: tuple[list[int], list[int]] = ([1, 0], [1, 0])
    # From where, reference or argument, number.
    operands: list[tuple[int, Any, float]] = dataclasses.field(default_factory=list)

    def refs(self) -> list[Ref]:
        return [r for r in (self.into, *(o[1] for o in self.operands)) if isinstance(r, Ref)]


def channels_of(shape: Sequence[int], axes: Axes, where: str) -> int:
    """Channels of a map that lies in memory as rows x columns x channels.

    Raises:
        Unsupported: it does not.
    """
    before = [n for axis, n in enumerate(shape) if axis < axes.row and axis != axes.stream]
    if axes.col != axes.row + 1 or any(n != 1 for n in before) or (axes.stream or 0) > axes.row:
        raise Unsupported(f"{where}: its channels do not come last")
    return math.prod(n for axis, n in enumerate(shape) if axis > axes.col)


def channel_axis(shape: Sequence[int], axes: Axes) -> int:
    """The only axis of channels that is longer than 1 (or the last)."""
    after = [axis for axis in range(axes.col + 1, len(shape)) if shape[axis] > 1]
    if len(after) > 1:
        raise Unsupported("it has several axes of channels")
    return after[0] if after else len(shape) - 1


def axis_words(window: Window, low: int) -> list[int]:
    """The taps of every phase: results whose taps meet the same (spread) inputs."""
    phases = window.base_dilation // math.gcd(window.stride, window.base_dilation)
    words = [phases * window.stride // window.base_dilation, phases]
    for phase in range(phases):
        at = [(k, phase * window.stride + k * window.dilation - low) for k in range(window.size)]
        taps = [(k, spread // window.base_dilation) for k, spread in at if spread % window.base_dilation == 0]
        words += [len(taps), *itertools.chain.from_iterable(taps)]
    return words


def bits(number: float) -> int:
    return struct.unpack("<i", struct.pack("<f", number))[0]


def span_words(spans: Spans) -> list[int]:
    return [word for s in spans for word in (s.num, s.den, s.offset, s.length)]


def ref_words(slots: Sequence[Slot], ref: Ref | None) -> list[int]:
    return [0, 0, 0] if ref is None else [slots.index(ref.slot), ref.top, ref.left]


def operation_words(slots: Sequence[Slot], op: Operation) -> list[int]:
    words = [op.kind, op.code, slots.index(op.out), op.part, op.columns, op.channels_in, op.first, op.count,
             op.pairs, bits(op.fill), *ref_words(slots, op.into), *op.axes[0], *op.axes[1], len(op.operands)]
    for source, what, number in op.operands:
        where = ref_words(slots, what) if isinstance(what, Ref) else [what, 0, 0]
        words += [source, *where, bits(number)]
    return words


def slot_words(slot: Slot) -> list[int]:
    return [slot.source, slot.offset, *slot.shape, *span_words(slot.spans), *slot.picture]


def place(slots: Sequence[Slot], ops: Sequence[Operation], kept: Sequence[Ref]) -> int:
    """Give every slot its place in the scratch; how much that is, in floats.

    Elementwise operations on equal tiles in a row are done together, row by row: there a slot may only take the
    place of one of the same shape that nobody reads any more, and no other place becomes free before the last.
    """
    for number, op in enumerate(ops):
        op.out.first = number if op.out.first < 0 else op.out.first
        for slot in (op.out, *(r.slot for r in op.refs())):
            slot.last = number
    for ref in kept:
        ref.slot.last = len(ops)
    free: list[tuple[int, int]] = []  # offset, size
    end = number = 0
    while number < len(ops):
        run = _run(ops[number:])
        for op in ops[number: number + run]:
            if op.out.source >= 0 or op.out.offset >= 0:
                continue
            here = ops.index(op)
            dying = [r.slot for r in op.refs() if op.kind == ELEMENTWISE and (r.top, r.left) == (0, 0)
                     and r.slot.source < 0 and r.slot.last == here and r.slot.shape == op.out.shape]
            size = -(-math.prod(op.out.shape) // 16) * 16
            fits = sorted((s, o) for o, s in free if s >= size)
            if dying:
                op.out.offset = dying[0].offset
                dying[0].last = -1  # its place is taken over: it does not become free
            elif fits:
                had, op.out.offset = fits[0]
                free.remove((op.out.offset, had))
                if had > size:
                    free.append((op.out.offset + size, had - size))
            else:
                op.out.offset, end = end, end + size
        number += run
        for slot in slots:
            if slot.source < 0 and 0 <= slot.last < number:
                free.append((slot.offset, -(-math.prod(slot.shape) // 16) * 16))
                slot.last = -1
    return end


def _run(ops: Sequence[Operation]) -> int:
    """How many operations from the first on are done together."""
    first = ops[0]
    if first.kind != ELEMENTWISE:
        return 1
    alike = itertools.takewhile(lambda op: op.kind == ELEMENTWISE and op.out.shape[:2] == first.out.shape[:2], ops)
    first.count = len(list(alike))
    return first.count
