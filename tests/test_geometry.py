"""Windows, spans, tiles: every small case against brute force. No jax here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from deltajax._geometry import Span, TileAxis, Window, choose_tile, hull

WINDOWS = [
    Window(size, stride, lo, hi, dilation, base)
    for size, stride, lo, hi, dilation, base in itertools.product(
        (1, 2, 3, 4), (1, 2, 3), (-1, 0, 2), (0, 1), (1, 2), (1, 2, 3)
    )
]


def taps(window, output, inputs):
    """The inputs that an output reads, straight from the definition."""
    found = set()
    for k in range(window.size):
        at = output * window.stride - window.pad_lo + k * window.dilation
        if 0 <= at <= (inputs - 1) * window.base_dilation and at % window.base_dilation == 0:
            found.add(at // window.base_dilation)
    return found


def test_number_of_outputs():
    """As many as there are positions at which the window lies within the padded input."""
    for window, inputs in itertools.product(WINDOWS, range(7)):
        spread = (inputs - 1) * window.base_dilation + 1 if inputs else 0
        room = window.pad_lo + spread + window.pad_hi
        assert window.outputs(inputs) == len([o for o in range(0, room + 1, window.stride)
                                              if o + window.extent <= room])


def test_identity_reads_just_itself():
    assert [window for window in WINDOWS if window.is_identity] == [Window()]
    assert taps(Window(), 3, 5) == {3}


def test_outputs_that_are_reached():
    """Those with a first tap before the end of the inputs and a last one behind their start; a broadcast's are all."""
    for window in WINDOWS:
        outputs = window.outputs(9)
        for start, stop in itertools.combinations(range(10), 2):
            first, last = start * window.base_dilation, (stop - 1) * window.base_dilation
            at = [o * window.stride - window.pad_lo for o in range(outputs)]
            want = [o for o, tap in enumerate(at) if tap <= last and tap + window.extent > first]
            assert list(window.reached(range(start, stop), outputs)) == want
            read = {o for o in range(outputs) if taps(window, o, 9) & set(range(start, stop))}
            assert read <= set(want)
        assert not window.reached(range(3, 3), outputs)
    assert Window(1, 0).reached(range(2, 3), 7) == range(7)


def test_the_hull_of_intervals():
    assert hull(range(2, 4), range(3, 9)) == range(2, 9) and hull(range(5, 6), range(1, 2)) == range(1, 6)
    assert hull(range(0), range(3, 4)) == hull(range(3, 4), range(7, 7)) == range(3, 4)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_span_through_a_window_holds_all_that_is_read(length):
    """What outputs `[origin, origin + length)` read lies in the span; no end of it is unread by some window of taps."""
    for window in WINDOWS:
        span, *_ = Span(1, 1, 0, length).through(window)
        for origin in range(0, 6 * window.base_dilation, window.base_dilation):
            read = set().union(*(taps(window, o, 10**6) for o in range(origin, origin + length)))
            start = span.start(origin)
            inside = set(range(start, start + span.length))
            assert {r for r in read if r >= 0} <= inside
            if window.base_dilation == 1 and start >= 0:
                assert start == min(read) and start + span.length - 1 == max(read)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_local_padding_gives_just_the_tile(length):
    """A window of the same size, stride and dilations over the span, padded so, gives the tile's own outputs."""
    signal = np.random.default_rng(0).standard_normal(64)
    for window in WINDOWS:
        weights = np.arange(1.0, window.size + 1)
        inputs = 12

        def value(at, inputs=inputs, window=window):
            inside = 0 <= at <= (inputs - 1) * window.base_dilation and at % window.base_dilation == 0
            return signal[at // window.base_dilation] if inside else 0.0

        whole = [
            sum(w * value(o * window.stride - window.pad_lo + k * window.dilation) for k, w in enumerate(weights))
            for o in range(window.outputs(inputs))
        ]
        span, lo, hi = Span(1, 1, 0, length).through(window)
        for origin in range(0, len(whole) - length + 1, window.base_dilation):
            start = span.start(origin)
            tile = [signal[p] if 0 <= p < inputs else 0.0 for p in range(start, start + span.length)]
            spread = np.zeros((span.length - 1) * window.base_dilation + 1)
            spread[:: window.base_dilation] = tile
            padded = np.concatenate([np.zeros(max(0, lo)), spread, np.zeros(max(0, hi))])
            padded = padded[max(0, -lo): len(padded) - max(0, -hi)]  # a tap between two inputs: all is cropped
            got = [
                sum(w * padded[o * window.stride + k * window.dilation] for k, w in enumerate(weights))
                for o in range((len(padded) - window.extent) // window.stride + 1)
            ]
            np.testing.assert_allclose(got, whole[origin: origin + length], err_msg=str((window, origin)))


def test_spans_compose():
    """Through two windows: what the second needs of the first, and that of the input, tap by tap."""
    some = WINDOWS[:: 29]
    for first, second in itertools.product(some, some):
        middle, _, _ = Span(1, 1, 0, 2).through(second)
        span, _, _ = middle.through(first)
        step = math.lcm(middle.den, span.den)
        for origin in (0, step, 2 * step):
            read = set()
            for o in (origin, origin + 1):
                for k in range(second.size):
                    at = o * second.stride - second.pad_lo + k * second.dilation
                    if at % second.base_dilation:
                        continue
                    for j in range(first.size):
                        deep = at // second.base_dilation * first.stride - first.pad_lo + j * first.dilation
                        if deep % first.base_dilation == 0:
                            read.add(deep // first.base_dilation)
            start = span.start(origin)
            assert read <= set(range(start, start + span.length)), (first, second, origin)


def test_hull():
    for a, b in itertools.product(range(-2, 3), range(1, 4)):
        one, other = Span(2, 1, a, b), Span(2, 1, 0, 2)
        both = one.hull(other)
        assert both == other.hull(one)
        for origin in range(4):
            union = set(range(one.start(origin), one.start(origin) + b)) | set(range(2 * origin, 2 * origin + 2))
            assert (both.start(origin), both.start(origin) + both.length - 1) == (min(union), max(union))
    with pytest.raises(ValueError, match="different scale"):
        Span(2, 1, 0, 1).hull(Span(1, 1, 0, 1))


def test_margins():
    """The least that must be added on either side, so that no tile reads outside."""
    for tile, extent, num, offset, length in itertools.product((1, 3, 4), (5, 8), (1, 2), (-3, 0, 2), (1, 6)):
        axis, span = TileAxis(extent, tile), Span(num, 1, offset, length)
        inputs = extent * num
        read = [p for origin in axis.origins() for p in range(span.start(origin), span.start(origin) + length)]
        assert span.margins(axis.origins(), inputs) == (max(0, -min(read)), max(0, max(read) + 1 - inputs))


def test_tiles_cover_the_axis():
    """Each position lies in a tile, no tile leaves the axis, and only the last overlaps its neighbour."""
    for extent in range(1, 24):
        for tile in range(1, extent + 1):
            axis = TileAxis(extent, tile)
            origins = axis.origins()
            assert len(origins) == axis.count == len(set(origins))
            assert all(0 <= o <= extent - tile for o in origins)
            assert set().union(*(range(o, o + tile) for o in origins)) == set(range(extent))
            assert all(b - a == tile for a, b in itertools.pairwise(origins[:-1]))
            assert axis.ragged == (extent % tile != 0) == (len(origins) * tile != extent)


def test_choice_of_tile():
    """Aligned, near the target, without overlap where that is possible."""
    for extent, target, alignment in itertools.product(range(1, 60), (1, 3, 8, 16), (1, 2, 3, 4)):
        tile = choose_tile(extent, target, alignment)
        assert 1 <= tile <= extent
        axis = TileAxis(extent, tile)
        assert all(origin % alignment == 0 for origin in axis.origins())
        assert tile == extent or tile <= target + target // 2
        near = [t for t in range(max(1, target // 2 + 1), min(extent, target + target // 2) + 1)
                if t % alignment == 0 and extent % t == 0]
        if extent > target and near:
            assert extent % tile == 0
    assert [choose_tile(extent, 4, 1, 0.15) for extent in (3, 5, 7, 10, 14, 15, 30)] == [3, 5, 4, 5, 4, 4, 4]
