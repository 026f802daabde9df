"""Masks against brute force: what is reached, which tiles, what changed."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltajax import _masks
from deltajax._geometry import Span, TileAxis, Window, choose_tile

WINDOWS = [
    Window(), Window(3, 1, 1, 1), Window(3, 2, 1, 1), Window(3, 2, 0, 1), Window(2, 1, 0, 1), Window(4, 3, 2, 0),
    Window(3, 1, 2, 2, 2), Window(3, 1, -1, -2), Window(4, 1, 2, 2, 1, 2), Window(3, 3, 1, 1, 1, 2), Window(1, 2),
    Window(2, 5), Window(1, 1, 3, 4), Window(3, 1, 2, 2, 2, 3), Window(17, 17), Window(18, 20, 3, 2),
]
RNG = np.random.default_rng(5)


def reads(window, inputs):
    """`[outputs, inputs]`: which output reads which input."""
    table = np.zeros((window.outputs(inputs), inputs), bool)
    for output, k in itertools.product(range(len(table)), range(window.size)):
        at = output * window.stride - window.pad_lo + k * window.dilation
        if 0 <= at <= (inputs - 1) * window.base_dilation and at % window.base_dilation == 0:
            table[output, at // window.base_dilation] = True
    return table


@pytest.mark.parametrize("size", [(1, 19), (7, 8), (20, 23)], ids=str)
def test_reach_is_exact(size):
    """An output is set just where one of its taps is: for every window, on either axis."""
    masks = [RNG.random((2, *size)) < share for share in (0.0, 0.03, 0.3, 1.0)]
    for number, rows in enumerate(WINDOWS):
        cols = WINDOWS[(number * 7 + 3) % len(WINDOWS)]
        up, across = reads(rows, size[0]), reads(cols, size[1])
        if 0 in (len(up), len(across)):
            continue
        run = jax.jit(functools.partial(_masks.reach, rows=rows, cols=cols, shape=(len(up), len(across))))
        for mask in masks:
            want = np.einsum("or,src,pc->sop", up, mask, across, dtype=int) > 0
            np.testing.assert_array_equal(run(jnp.asarray(mask)), want, err_msg=str((rows, cols)))


@pytest.mark.parametrize("tile", [1, 3, 4, 6])
def test_tiles_reached_is_exact(tile):
    """A tile is set just where its span holds a set position (of a ragged axis' last tile: the unmoved span)."""
    size = (21, 26)
    mask = RNG.random((2, *size)) < 0.04
    for window in WINDOWS[:14]:
        outputs = [window.outputs(n) for n in size]
        if 0 in outputs:
            continue
        axes = []
        for count in outputs:
            length = choose_tile(count, tile, window.base_dilation)
            span, _, _ = Span(1, 1, 0, length).through(window)
            axes.append((TileAxis(count, length), span))
        hit = [np.array([[span.start(t * axis.tile) <= p < span.start(t * axis.tile) + span.length or axis.count == 1
                          for p in range(n)] for t in range(axis.count)])
               for (axis, span), n in zip(axes, size, strict=True)]
        want = np.einsum("tr,src,uc->stu", hit[0], mask, hit[1], dtype=int) > 0
        got = jax.jit(lambda m, axes=axes: _masks.tiles_reached(m, *axes))(jnp.asarray(mask))
        np.testing.assert_array_equal(got, want, err_msg=str((window, axes)))


def test_tiles_of_several_maps():
    """Each as by itself, whether alike or not."""
    axes = [(TileAxis(12, length), Span(1, 1, -1, length + 2)) for length in (3, 4)]
    asked = [(jnp.asarray(RNG.random((2, 12, 12)) < 0.04), axes[row], axes[col])
             for row, col in ((0, 0), (0, 1), (0, 0), (1, 0), (0, 1), (0, 0))]
    for found, one in zip(_masks.tiles_reached_each(asked), asked, strict=True):
        np.testing.assert_array_equal(found, _masks.tiles_reached(*one))


def test_every_changed_output_has_a_tile():
    """Soundness where it matters, ragged grids and all: an output that is reached lies in a tile that is listed."""
    size = (19, 23)
    for window, tile in itertools.product(WINDOWS[:14], (2, 5)):
        outputs = tuple(window.outputs(n) for n in size)
        if 0 in outputs:
            continue
        axes = []
        for count in outputs:
            length = choose_tile(count, tile, window.base_dilation)
            axes.append((TileAxis(count, length), Span(1, 1, 0, length).through(window)[0]))
        run = jax.jit(lambda m, w=window, a=axes, o=outputs: (_masks.reach(m, w, w, o), _masks.tiles_reached(m, *a)))
        for _ in range(6):
            reached, tiles = map(np.asarray, run(jnp.asarray(RNG.random((1, *size)) < 0.01)))
            covered = np.zeros(outputs, bool)
            for t, u in np.argwhere(tiles[0]):
                top, left = axes[0][0].origin(int(t)), axes[1][0].origin(int(u))
                covered[top: top + axes[0][0].tile, left: left + axes[1][0].tile] = True
            assert not (reached[0] & ~covered).any(), (window, tile)


@pytest.mark.parametrize("cell", [1, 2, 3, 7])
def test_spread(cell):
    shape = (10, 13)
    cells = RNG.random((2, -(-shape[0] // cell), -(-shape[1] // cell))) < 0.3
    want = cells.repeat(cell, 1).repeat(cell, 2)[:, : shape[0], : shape[1]]
    np.testing.assert_array_equal(_masks.spread(jnp.asarray(cells), cell, shape), want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8, jnp.int32, jnp.bool_])
def test_changed_at_zero_is_inequality(dtype):
    old = jnp.asarray(RNG.integers(0, 3, (2, 6, 7, 3)), dtype)
    new = jnp.asarray(RNG.integers(0, 3, (2, 6, 7, 3)), dtype)
    want = np.asarray(old != new).any(-1)
    np.testing.assert_array_equal(_masks.changed(new, old, (3,), 0.0), want)
    assert not _masks.changed(old, old, (3,), 0.0).any()


def test_changed_counts_unsigned_and_narrow_differences_right():
    """A difference is taken wide: bytes do not wrap, and 256 + 1 is not 256."""
    low, high = jnp.full((1, 1, 1, 1), 3, jnp.uint8), jnp.full((1, 1, 1, 1), 203, jnp.uint8)
    for (a, b), norm in itertools.product(((low, high), (high, low)), ("l1", "l2", "linf")):
        assert not bool(_masks.changed(a, b, (3,), 200.0, norm)[0, 0, 0])
        assert bool(_masks.changed(a, b, (3,), 199.0, norm)[0, 0, 0])
    black, white = jnp.zeros((1, 200, 200, 1), jnp.uint8), jnp.full((1, 200, 200, 1), 255, jnp.uint8)
    for tau, norm in ((255.0 * 200, "l2"), (255.0 * 200**2, "l1")):  # squares add up to more than 2**31
        found = [bool(_masks.changed(black, white, (3,), tau + d, norm, 200).all()) for d in (-1, 1)]
        assert found == [True, False]
    many = jnp.ones((1, 1, 1, 300), jnp.bfloat16)
    assert bool(_masks.changed(many, 0 * many, (3,), 299.0, "l1")[0, 0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [(1,), (3,), (1, 4)])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_changed_is_the_norm_over_cells(norm, channels, dtype):
    """By the definition, in float64: cells that do not fit the picture, channels before and behind it."""
    rng = np.random.default_rng(0)
    size = iter((7, 10))
    shape = [2, *(3 if axis in channels else next(size) for axis in range(1, 3 + len(channels)))]
    new, old = (rng.integers(0, 256, shape).astype(dtype) for _ in range(2))
    gaps = np.abs(np.moveaxis(new.astype(float) - old, channels, range(-len(channels), 0))).reshape(2, 7, 10, -1)
    for cell in (1, 3, 4, 16):
        norms = np.zeros((2, 7, 10))
        for top, left in itertools.product(range(0, 7, cell), range(0, 10, cell)):
            part = slice(None), slice(top, top + cell), slice(left, left + cell)
            flat = gaps[part].reshape(2, -1)
            norms[part] = np.linalg.norm(flat, ord={"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1)[:, None, None]
        tau = float(np.median(norms)) + 0.1
        assert cell == 16 or 0 < (norms > tau).mean() < 1
        for given in (tau, jnp.float32(tau), jnp.full((2, 1, 1), tau, jnp.float32)):
            found = _masks.changed(jnp.asarray(new), jnp.asarray(old), channels, given, norm, cell)
            np.testing.assert_array_equal(found, norms > tau)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_what_is_not_finite_has_changed(norm):
    """NaN always; with a threshold, infinity too, even where it stays."""
    for bad in (np.nan, np.inf, -np.inf):
        old = np.zeros((1, 4, 5, 2), np.float32)
        new = old.copy()
        new[0, 2, 3, 1] = bad
        alone = np.zeros((1, 4, 5), bool)
        alone[0, 2, 3] = True
        for tau, pair in itertools.product((0.0, 1e30), ((new, old), (old, new), (new, new))):
            got = _masks.changed(*map(jnp.asarray, pair), (3,), tau, norm)
            stays = pair[0] is pair[1] and tau == 0 and not np.isnan(bad)
            np.testing.assert_array_equal(got, alone & (not stays))


def test_zeros_of_either_sign_are_equal():
    zero = jnp.zeros((1, 2, 2, 1))
    assert not _masks.changed(zero, -zero, (3,), 0.0).any()


def test_at():
    """A tile mask selects in a tile array wherever its picture axes are."""
    mask = jnp.asarray(RNG.random((3, 4, 5)) < 0.5)
    assert _masks.at(mask, 5, 2, 3).shape == (3, 1, 4, 5, 1)
    turned = _masks.at(mask, 4, 3, 1)
    assert turned.shape == (3, 5, 1, 4)
    np.testing.assert_array_equal(turned[:, :, 0, :].swapaxes(1, 2), mask)


@pytest.mark.parametrize("overlap", [False, True])
def test_tiles_that_overlap_are_united(overlap):
    """Tiles that are not used leave no trace; of two that overlap neither unsets what the other found."""
    at = np.array([[0, 0, 0], [0, 2 if overlap else 4, 0], [1, 0, 4], [1, 4, 4]])
    used = np.array([True, True, False, True])
    tiles = RNG.random((4, 4, 4)) < 0.5
    want = np.zeros((2, 8, 8), bool)
    for (stream, y, x), tile, use in zip(at, tiles, used, strict=True):
        want[stream, y: y + 4, x: x + 4] |= tile & use
    for order in (slice(None), slice(None, None, -1)):
        found = _masks.unite_tiles(jnp.zeros((2, 8, 8), bool), jnp.asarray(tiles[order]), jnp.asarray(used[order]),
                                   tuple(jnp.asarray(at[order].T)), overlap=overlap)
        np.testing.assert_array_equal(found, want)
