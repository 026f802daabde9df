"""What another operation can do while it has the numbers in registers: passes over a tile that are spared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._slots import (
    CONVOLUTION,
    DEPTHWISE,
    ELEMENTWISE,
    NUMBER,
    OUTSIDE,
    RECTIFIED,
    TILE,
    WINOGRAD,
    Operation,
    Ref,
    Slot,
)

UNBOUND = (-math.inf, math.inf)


def rectified_where_read(ops: Sequence[Operation], kept: Sequence[Slot], most: int) -> list[Operation]:
    """``relu`` of what is stored, read by nothing but one depthwise convolution: that does it itself.

    What it finds outside the picture is zero either way, for margins of what is stored are. `kept`: what is read behind
    all operations. `most`: the number of ``max``.
    """
    left = list(ops)
    for op in ops:
        if op.kind != DEPTHWISE or op.into is None:
            continue
        made = [o for o in left if o.out is op.into.slot]
        if not made or made[0].kind != ELEMENTWISE or made[0].code != most or not _read_once(left, op.into.slot, kept):
            continue
        if any(o.kind != OUTSIDE or o.fill != 0 for o in made[1:]):
            continue
        refs, numbers = made[0].refs(), [n for source, _, n in made[0].operands if source == NUMBER]
        if len(refs) != 1 or numbers != [0.0] or refs[0].slot.source < 0 or refs[0].slot.channels != op.out.channels:
            continue
        op.into = Ref(refs[0].slot, refs[0].top + op.into.top, refs[0].left + op.into.left)
        op.code = RECTIFIED
        left = [o for o in left if o not in made]
    return left


def added_where_made(
    ops: Sequence[Operation], kept: Sequence[Slot], add: int, bounds: tuple[int, int]
) -> list[Operation]:
    """What is added to a convolution's results position by position, as a residual is, and bounds after that.

    Args:
        kept: what is read behind all operations.
        add: its number.
        bounds: the numbers of ``max`` and ``min``.
    """
    left = list(ops)
    for op in ops:
        if op.kind not in (CONVOLUTION, WINOGRAD) or (op.operands[0][2], op.operands[1][2]) != UNBOUND:
            continue
        after = _only_reader(left, op.out, kept)
        if after is None or after.code != add or len(after.operands) != 2:
            continue
        others = [what for source, what, _ in after.operands if source == TILE and what.slot is not op.out]
        mine = [what for source, what, _ in after.operands if source == TILE and what.slot is op.out]
        if len(others) != 1 or len(mine) != 1 or (mine[0].top, mine[0].left) != (0, 0):
            continue
        (other,) = others
        late = any(o.out is other.slot for o in left[left.index(op):])  # it is made only later
        if late or other.slot.channels != op.out.channels or after.out.shape != op.out.shape:
            continue
        op.operands.append((TILE, other, 0.0))
        op.out = after.out
        left.remove(after)
        while (after := _only_reader(left, op.out, kept)) is not None and after.code in bounds:
            low, high = op.operands[0][2], op.operands[1][2]
            numbers = [n for source, _, n in after.operands if source == NUMBER]
            if len(numbers) != 1 or len(after.refs()) != 1 or not low <= numbers[0] <= high or \
                    after.out.shape != op.out.shape or (after.refs()[0].top, after.refs()[0].left) != (0, 0):
                break
            op.operands[bounds.index(after.code)] = (NUMBER, 0, numbers[0])
            op.out = after.out
            left.remove(after)
    return left


def _readers(ops: Sequence[Operation], slot: Slot) -> list[Operation]:
    return [o for o in ops if o.kind != OUTSIDE and any(r.slot is slot for r in o.refs())]


def _read_once(ops: Sequence[Operation], slot: Slot, kept: Sequence[Slot]) -> bool:
    return len(_readers(ops, slot)) == 1 and not any(k is slot for k in kept)


def _only_reader(ops: Sequence[Operation], slot: Slot, kept: Sequence[Slot]) -> Operation | None:
    """The elementwise operation that alone reads a slot, which nothing but one operation writes."""
    if not _read_once(ops, slot, kept) or len([o for o in ops if o.out is slot]) != 1:
        return None
    (reader,) = _readers(ops, slot)
    return reader if reader.kind == ELEMENTWISE else None
