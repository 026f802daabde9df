"""Tiles in memory: for every order of axes, what is stored is loaded, gathered and written back."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from deltajax._buckets import for_each_bucket, tile_list, tile_lists
from deltajax._geometry import TileAxis
from deltajax._tiles import NONE, SLICES, Axes, Grid, Layout

RNG = np.random.default_rng(2)
LENGTHS = {"s": 3, "r": 6, "c": 7, "k": 2}
ORDERS = ["".join(order) for rank in ("rc", "rck", "src", "srck") for order in itertools.permutations(rank)]
MARGINS = ((1, 2), (0, 3))


def layout(order, margins=MARGINS, outside=NONE):
    axes = Axes(order.index("s") if "s" in order else None, order.index("r"), order.index("c"))
    return Layout(tuple(LENGTHS[a] for a in order), jnp.dtype(jnp.float32), axes, margins, outside)


def canonical(order, value):
    """`[calls, *order]` to `[calls * streams, r, c, k]` by names alone."""
    value = np.asarray(value)
    letters = "v" + order
    for missing in "sk":
        if missing not in letters:
            value, letters = value[..., None], letters + missing
    value = np.einsum(f"{letters}->vsrck", value)
    return value.reshape(-1, *value.shape[2:])


def as_tiles(order, tiles):
    """A tile array `[K, *order]` (stream axis of length 1) to `[K, r, c, k]` by names alone."""
    tiles = np.asarray(tiles)
    letters = "v" + order
    if "k" not in letters:
        tiles, letters = tiles[..., None], letters + "k"
    if "s" in letters:
        tiles, letters = tiles.squeeze(letters.index("s")), letters.replace("s", "")
    return np.einsum(f"{letters}->vrck", tiles)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("calls", [1, 2])
def test_store_and_load(order, calls):
    """A round trip is the identity; the margins are zero."""
    for margins in (MARGINS, NONE):
        plan = layout(order, margins)
        value = jnp.asarray(RNG.standard_normal((calls, *plan.shape)), jnp.float32)
        stored = plan.store(value)
        assert stored.shape == plan.stored_shape(calls * plan.streams)
        np.testing.assert_array_equal(plan.load(stored), value)
        assert np.count_nonzero(stored) == value.size


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("margins", "outside"), [(MARGINS, NONE), (NONE, MARGINS)], ids=["margins", "none"])
def test_gather_window_read_write(order, margins, outside):
    """All ways to read a part of the picture agree with indexing by name; a write changes that part alone."""
    plan = layout(order, margins, outside)
    value = jnp.asarray(RNG.standard_normal((2, *plan.shape)), jnp.float32)
    stored, truth = plan.store(value), canonical(order, value)
    padded = np.pad(truth, ((0, 0), *MARGINS, (0, 0)))
    turns = 1 if len(order) % 2 else SLICES  # few tiles are sliced one by one, many gathered at once
    stream = jnp.asarray([0, len(truth) - 1, len(truth) // 2] * turns, jnp.int32)
    y, x = jnp.asarray([-1, 2, 4] * turns, jnp.int32), jnp.asarray([0, 3, 6] * turns, jnp.int32)
    height, width = 4, 4
    want = np.stack([padded[s, top + 1: top + 1 + height, left: left + width]
                     for s, top, left in zip(*(np.asarray(a) for a in (stream, y, x)), strict=True)])
    tiles = plan.gather(stored, stream, y, x, height, width)
    np.testing.assert_array_equal(as_tiles(order, tiles), want)
    for k in range(3) if outside == NONE else (1,):
        one = plan.read(stored, stream[k], y[k], x[k], height, width)
        np.testing.assert_array_equal(one, tiles[k: k + 1])
    every = plan.window(stored, -1, 2, 5, 6)
    np.testing.assert_array_equal(as_tiles(order, every), padded[:, 0:5, 2:8])
    after = plan.write(stored, tiles[1:2] * 0 + 7, stream[1], y[1], x[1])
    padded[int(stream[1]), 3:7, 3:7] = 7
    np.testing.assert_array_equal(canonical(order, plan.load(after)), padded[:, 1:-2, :-3])
    whole = plan.store_whole(plan.window(stored, 0, 0, *plan.picture))
    np.testing.assert_array_equal(whole, stored)


def test_a_fixed_map_repeats_for_further_streams():
    plan = layout("rck")
    stored = plan.store(jnp.asarray(RNG.standard_normal((1, *plan.shape)), jnp.float32))
    at = jnp.asarray([0, 5], jnp.int32)
    tiles = plan.gather(stored, at, at * 0, at * 0, 2, 2)
    np.testing.assert_array_equal(tiles[0], tiles[1])


@pytest.mark.parametrize(("rows", "cols"), [((6, 3), (8, 4)), ((7, 3), (8, 4)), ((6, 3), (10, 4)),
                                            ((5, 5), (3, 1))])
def test_grid_numbers_every_tile_once(rows, cols):
    grid = Grid(TileAxis(*rows), TileAxis(*cols))
    numbers = jnp.arange(3 * grid.per_stream, dtype=jnp.int32)
    stream, y, x = (np.asarray(a) for a in grid.origin(numbers))
    want = list(itertools.product(range(3), grid.rows.origins(), grid.cols.origins()))
    assert list(zip(stream.tolist(), y.tolist(), x.tolist(), strict=True)) == want


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("sizes", [(1,), (3,), (100,), (8, 2), (9, 4, 1)], ids=str)
def test_every_candidate_is_done_once(share, sizes):
    """Ascending, each one once; the unused slots of the last bucket repeat a tile that is listed."""
    candidates = RNG.random((2, 4, 5)) < share
    tiles, count = tile_list(jnp.asarray(candidates))
    assert int(count) == candidates.sum()
    assert tiles[: int(count)].tolist() == np.flatnonzero(candidates).tolist()

    def body(numbers, used, done):
        slots = jnp.arange(len(numbers)) < used
        return done.at[jnp.where(slots, numbers, 40)].add(1), jnp.where(slots, 0, numbers).max(initial=-1)

    done = for_each_bucket(tiles, count, sizes, lambda n, u, s: body(n, u, s[0]),
                           (jnp.zeros(41, jnp.int32), jnp.asarray(-1, jnp.int32)))[0]
    np.testing.assert_array_equal(done[:40], candidates.reshape(-1).astype(int))


@pytest.mark.parametrize("size", [1, 127, 128, 129, 5000, 40_000])
def test_the_lists_for_accelerators_are_the_same(size):
    """Through block borders, also of blocks of blocks, and with the first, the last, none and all of them."""
    flags = RNG.random((4, 2, size)) < 0.3
    flags[0], flags[1], flags[2, :, [0, -1]] = False, True, True
    grids = [jnp.asarray(flags[0, :, None]), *(jnp.asarray(one[:, :, None]) for one in flags)]
    tiles, first, counts = tile_lists(grids)
    assert tiles.dtype == first.dtype == counts.dtype == jnp.int32
    for found, start, by_stream in zip(grids, first, counts, strict=True):
        wanted, count = tile_list(found)
        np.testing.assert_array_equal(by_stream, found.sum(axis=(1, 2)))
        np.testing.assert_array_equal(tiles[start: start + count], wanted[:count])
