"""Integers only: windows, the spans of a tile through them, and grids of tiles. No jax in this file.

One picture axis at a time. A *window* says which inputs an output reads. A *span* says which interval of a value
a tile needs, as an affine function of the tile's origin. A *grid* says where the tiles lie. Everything the engine
knows about receptive fields, halos and margins follows from these three.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Window:
    """One axis of a window operation, in XLA's terms.

    Output `o` reads, in the input after `base_dilation` has spread it, the positions
    ``o * stride - pad_lo + k * dilation`` for ``k`` in ``range(size)``. Negative padding crops. With stride 0 all
    outputs read the same: a broadcast (size 1), or the whole axis (`whole_axis`).
    """

    size: int = 1
    stride: int = 1
    pad_lo: int = 0
    pad_hi: int = 0
    dilation: int = 1
    base_dilation: int = 1

    @property
    def extent(self) -> int:
        """Number of (spread) input positions from the first tap to the last."""
        return (self.size - 1) * self.dilation + 1

    @property
    def is_identity(self) -> bool:
        return self == Window()

    @property
    def is_disjoint(self) -> bool:
        """Whether no input is read by two outputs: pooling, patches."""
        return self.extent <= self.stride and self.base_dilation == 1

    def outputs(self, inputs: int) -> int:
        """Number of outputs over `inputs` inputs; any number where the stride is 0."""
        spread = (inputs - 1) * self.base_dilation + 1 if inputs else 0
        return max(0, (spread + self.pad_lo + self.pad_hi - self.extent) // self.stride + 1)

    def reached(self, inputs: range, outputs: int) -> range:
        """Of so many outputs, those whose taps lie around any of these inputs."""
        if not inputs or self.stride == 0:
            return range(outputs if inputs else 0)
        first = inputs.start * self.base_dilation + self.pad_lo - self.extent + 1
        last = (inputs.stop - 1) * self.base_dilation + self.pad_lo
        return range(max(0, -(-first // self.stride)), min(outputs, last // self.stride + 1))


def whole_axis(inputs: int) -> Window:
    """Every output reads everything: a sum along the axis that keeps it, a sort, a flip."""
    return Window(inputs, 0)


BROADCAST = Window(1, 0)


def reading_window(first: Sequence[int], last: Sequence[int], inputs: int) -> Window:
    """The window that holds, for every output `o`, the inputs ``first[o] .. last[o]``.

    Outputs lie over the inputs at some even spacing; of the simple ratios near it, the one whose window is the
    smallest. What an output reads inside its window is the operation's own affair.
    """
    outputs = len(first)
    best: tuple[int, Window] | None = None
    for spread in range(1, MOST_SPREAD + 1):
        near = spread * inputs / outputs
        for stride in {max(1, math.floor(near)), math.ceil(near)}:
            pad_lo = max(o * stride - spread * f for o, f in enumerate(first))
            size = max(spread * t - o * stride for o, t in enumerate(last)) + pad_lo + 1
            size = max(size, spread)  # or it falls between two inputs
            window = Window(size, stride, pad_lo, 0, 1, spread)
            needed = (outputs - 1) * stride + size
            window = dataclasses.replace(window, pad_hi=needed - ((inputs - 1) * spread + 1) - pad_lo)
            held = (size - 1) // spread + 1  # inputs
            if best is None or held < best[0]:
                best = held, window
    assert best is not None
    return best[1]


# Tiles must begin at multiples of the spread.
MOST_SPREAD = 8


@dataclasses.dataclass(frozen=True)
class Span:
    """The interval of a value that a tile needs: ``[origin * num // den + offset, ... + length)``.

    `origin` is the tile's first output position; it must be a multiple of `den`. With `num` 0 all tiles need the same.
    """

    num: int
    den: int
    offset: int
    length: int

    def start(self, origin):
        """First position for a tile at `origin` (an int, or an integer array)."""
        at = origin if self.num == 1 else origin * self.num  # what changes nothing would be traced all the same
        at = at if self.den == 1 else at // self.den
        return at + self.offset if self.offset else at

    def hull(self, other: Span) -> Span:
        """The smallest span that holds both; both must move alike with the origin."""
        if (self.num, self.den) != (other.num, other.den):
            raise ValueError(f"spans of different scale have no hull: {self} and {other}.")
        first = min(self.offset, other.offset)
        last = max(self.offset + self.length, other.offset + other.length)
        return dataclasses.replace(self, offset=first, length=last - first)

    def through(self, window: Window) -> tuple[Span, int, int]:
        """The span of the window's input, and the local padding that makes the window give just this span.

        Returns:
            ``(span, lo, hi)``: applying the window's size, stride and dilations to that span of the input, padded
            by `lo` and `hi` (in spread positions, may be negative), gives exactly `self.length` outputs.
        """
        spread = window.base_dilation
        first = self.offset * window.stride - window.pad_lo
        last = first + (self.length - 1) * window.stride + window.extent - 1
        begin, end = -(-first // spread), last // spread
        if end < begin:  # every tap falls between two inputs: one input stands in, the padding crops it away
            end = begin
        num, den = self.num * window.stride, self.den * spread
        common = math.gcd(num, den)
        span = Span(num // common, den // common, begin, end - begin + 1)
        return span, begin * spread - first, last - end * spread

    def margins(self, origins: tuple[int, ...], extent: int) -> tuple[int, int]:
        """How far the span leaves ``[0, extent)`` on either side, over all `origins`."""
        low = min(self.start(origin) for origin in origins)
        high = max(self.start(origin) for origin in origins) + self.length
        return max(0, -low), max(0, high - extent)


@dataclasses.dataclass(frozen=True)
class TileAxis:
    """The tiles on one axis: `count` tiles of `tile` positions cover `extent`; the last one is moved inwards."""

    extent: int
    tile: int

    @property
    def count(self) -> int:
        return -(-self.extent // self.tile)

    @property
    def ragged(self) -> bool:
        return self.extent % self.tile != 0

    def origin(self, index, minimum=min):
        """First position of tile `index`; pass `minimum=jnp.minimum` for index arrays."""
        return minimum(index * self.tile, self.extent - self.tile) if self.ragged else index * self.tile

    def origins(self) -> tuple[int, ...]:
        return tuple(self.origin(index) for index in range(self.count))


def hull(a: range, b: range) -> range:
    """The smallest interval that holds both."""
    return range(min(a.start, b.start), max(a.stop, b.stop)) if a and b else a or b


def choose_tile(extent: int, target: int, alignment: int = 1, overlap: float = 0.0) -> int:
    """A tile length for one axis: near `target`, all origins multiples of `alignment`, without overlap if possible.

    The whole axis is one tile where it is not longer than `target` or nothing else is aligned.

    Args:
        overlap: the share of the positions that may as well be in two tiles.
    """
    if extent <= target:
        return extent
    allowed = [
        tile
        for tile in range(max(1, target // 2 + 1), min(extent, target + target // 2) + 1)
        if tile % alignment == 0 and (extent - tile) % alignment == 0
    ]
    if not allowed:
        return extent
    even = [tile for tile in allowed if -extent % tile <= overlap * extent]
    return min(even or allowed, key=lambda tile: (abs(tile - target), -tile))
