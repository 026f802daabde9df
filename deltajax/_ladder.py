"""How many tiles are done at once on an accelerator: bucket sizes for several segments together. Numbers only.

A rung of a ladder is a square that changes in all streams, or in some of them: each segment's bucket has room for the
tiles that the square reaches there on average. What a change reaches grows from layer to layer, and so do the buckets.
The last rung holds everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._geometry import TileAxis, hull
from ._plan import Segment, TileSegment
from ._program import Kind, Value

# Of the squares' sides, as a share of the picture's; and the shares of the streams that have the smallest one.
SIDES = tuple(1.2 ** -n for n in range(18, -1, -1))
FEW = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
# How many rungs at most, how many times as much work the next one is at least, but for the first, and the fewest tiles
# in a bucket: to do fewer is no faster.
RUNGS, APART, FEWEST = 7, 1.7, 32

Rung = tuple[int | None, ...]
Area = tuple[range, range]


def _square(extent: int, side: float) -> range:
    """In the middle."""
    length = math.ceil(side * extent)
    return range((extent - length) // 2, (extent - length) // 2 + length)


def _united(areas: Sequence[Area]) -> Area:
    rows, cols = range(0), range(0)
    for area in areas:
        if area[0] and area[1]:
            rows, cols = hull(rows, area[0]), hull(cols, area[1])
    return rows, cols


def _through(segment: TileSegment, areas: dict[Value, Area], everywhere: bool) -> None:
    """What the areas reach of the segment's own values, added to them."""
    for op in segment.ops:
        height, width = op.outputs[0].picture
        found = [(range(height), range(width))] if everywhere else []
        for value, (rows, cols) in zip(op.inputs, op.windows(), strict=True):
            if value in areas:
                above, beside = areas[value]
                found.append((rows.reached(above, height), cols.reached(beside, width)))
        areas.update((v, _united(found)) for v in op.outputs)


def _touched(axis: TileAxis, positions: range) -> float:
    """How many tiles so many positions lie in, on average over where they begin."""
    return min(axis.count, (len(positions) - 1) / axis.tile + 1)


def tiles_reached(segments: Sequence[Segment], side: float) -> list[float]:
    """Of one stream's tiles, those that the square reaches in each segment (of whole ones 0), where it is in all maps
    that they read from outside."""
    made = {value for segment in segments for value in segment.writes}
    areas: dict[Value, Area] = {}
    numbers = []
    for segment in segments:
        for value in segment.reads:
            if value.kind is Kind.MAP and value not in made:
                height, width = value.picture
                areas.setdefault(value, (_square(height, side), _square(width, side)))
        if not isinstance(segment, TileSegment):
            numbers.append(0.0)
            areas.update((v, (range(v.picture[0]), range(v.picture[1]))) for v in segment.writes if v.is_tiled)
            continue
        _through(segment, areas, everywhere=side == 1 or bool(segment.wholes))
        rows, cols = _united([areas[v] for v in segment.writes])
        numbers.append(_touched(segment.grid.rows, rows) * _touched(segment.grid.cols, cols) if rows and cols else 0.0)
    return numbers


def _rounded(size: int) -> int:
    """Up to a power of two or one and a half times one.

    XLA tries out algorithms for every convolution, which is most of what compiling takes; of those that are alike only
    once.
    """
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power * 3 >= size * 4 else power


def _rung(numbers: Sequence[float], above: Sequence[int]) -> Rung:
    """For each segment the size of its bucket, or None for all of it, densely."""
    sizes: list[int | None] = []
    for number, most in zip(numbers, above, strict=True):
        size = max(1, math.ceil(number))
        sizes.append(None if size > most else min(_rounded(max(size, FEWEST)), most))
    return tuple(sizes)


def _work(segments: Sequence[Segment], rung: Rung, streams: int, inner: int) -> float:
    """FLOPs, and positions, which is all that data movement has."""
    total = 0.0
    for segment, size in zip(segments, rung, strict=True):
        if isinstance(segment, TileSegment):
            tiles = segment.grid.per_stream * streams if size is None else size
            total += segment.flops * streams / inner if size is None else segment.flops_per_tile * size
            total += tiles * math.prod(segment.grid.tile)
    return total


def ladder(segments: Sequence[Segment], streams: int, inner: int, above: Sequence[int]) -> list[Rung]:
    """The rungs, the smallest first.

    Args:
        streams: that share the buckets; `inner` of them are in one call of the function.
        above: the number of a segment's tiles from which on, exclusively, it is done densely.
    """
    smallest = tiles_reached(segments, SIDES[0])
    wanted = [[n * streams * few for n in smallest] for few in FEW if streams * few >= 1]
    wanted += [[n * streams for n in tiles_reached(segments, side)] for side in SIDES]
    wanted[0] = [min(n, max(most, 0)) for n, most in zip(wanted[0], above, strict=True)]  # it may be less
    steps = [_rung(numbers, above) for numbers in wanted]
    rungs = [steps[-1]]
    for step in reversed(steps):  # each as large as it may be; and the least of all
        less, more = (_work(segments, rung, streams, inner) for rung in (step, rungs[0]))
        if step != rungs[0] and APART * less <= more:
            rungs.insert(0, step)
    return list(dict.fromkeys([steps[0], *rungs[1 - RUNGS:]]))
