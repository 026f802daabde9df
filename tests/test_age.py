"""Nothing that is remembered grows older than `max_age`, and a new scene is computed whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import assert_close

import deltajax as dj
from deltajax._age import LONGEST, Turn, older
from deltajax._geometry import TileAxis
from deltajax._tiles import Grid

RNG = np.random.default_rng(5)
KERNELS = [jnp.asarray(RNG.standard_normal((3, 3, c, 4)) / np.sqrt(9 * c), jnp.float32) for c in (3, 4)]


def network(kernels, frame):
    x = frame.astype(jnp.float32)
    for kernel in kernels:
        x = x[None] if frame.ndim == 3 else x
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.tanh(x[0] if frame.ndim == 3 else x)
    return x


def thresholds(frame, tau=0.5):
    report = dj.incremental(network, tile=4).explain(KERNELS, frame)
    return {segment.name: tau for segment in report.segments}


@pytest.mark.parametrize("extent", [(12, 20), (13, 17), (5, 3)])
@pytest.mark.parametrize("max_age", [1, 4, 7, 100])
def test_every_tile_has_one_turn(extent, max_age):
    """In any `max_age` frames in a row, each tile has one turn, and no frame more than its share."""
    grid = Grid(*(TileAxis(n, min(n, 4)) for n in extent))
    share = -(-grid.per_stream // max_age)
    had = np.zeros((2, grid.rows.count, grid.cols.count), int)
    for frame in range(9, 9 + max_age):
        turn = Turn(max_age, jnp.asarray([frame, frame + 3], jnp.int32))
        now = np.asarray(turn.tiles(grid))
        assert now.sum(axis=(1, 2)).max() <= share
        had += now
        numbers = jnp.arange(2 * grid.per_stream)
        assert np.array_equal(turn.has(grid, numbers, numbers // grid.per_stream), now.reshape(-1))
        wide = np.repeat(np.repeat(now, grid.rows.tile, axis=1), grid.cols.tile, axis=2)
        assert np.array_equal(turn.positions(grid), wide[:, : extent[0], : extent[1]])
    assert (had == 1).all()


def test_an_age_never_begins_again():
    assert older(jnp.asarray([0, 1, LONGEST])).tolist() == [1, 2, 2]


@pytest.mark.xla
@pytest.mark.parametrize("reference", ["held", "previous"])
@pytest.mark.parametrize("shape", [pytest.param((20, 24, 3), marks=pytest.mark.slow), (2, 19, 18, 3)])
def test_what_was_held_back_is_let_in(shape, reference):
    """A change below all thresholds shows nothing without `max_age`, and all of it after its turns."""
    first = RNG.random(shape).astype(np.float32)
    after = first + np.float32(0.01)
    options = {"tau": 0.1, "taus": thresholds(first), "tile": 4, "reference": reference}
    dense = network(KERNELS, jnp.asarray(after))

    def run(inc, frames):
        cache, _ = inc.init(KERNELS, first)
        step = jax.jit(inc.step)
        output = None
        for frame in [first, *[after] * frames]:
            output, cache, _ = step(KERNELS, cache, None, frame)
        return output

    turns = 6 * 3  # the frame's, and those of two segments
    np.testing.assert_array_equal(run(dj.incremental(network, **options), turns), network(KERNELS, first))
    aged = dj.incremental(network, max_age=6, **options)
    assert not np.allclose(run(aged, 2), dense, atol=1e-4)
    assert_close(run(aged, turns), dense, 2e-6)


@pytest.mark.parametrize("dense_share", [0.0, 1.0])
def test_columns_first(dense_share):
    """Pictures stored by columns have their turns, too, on either path."""
    first = RNG.random((18, 10, 3)).astype(np.float32)
    after = first + np.float32(0.01)
    inc = dj.incremental(network, tau=0.1, taus=thresholds(first), tile=4, max_age=6, dense_share=dense_share,
                         spatial_axes=(-2, -3))
    cache, _ = inc.init(KERNELS, first)
    step = jax.jit(inc.step)
    for frame in [first, *[after] * 18]:
        output, cache, _ = step(KERNELS, cache, None, frame)
    assert_close(output, network(KERNELS, jnp.asarray(after)), 2e-6)


def test_turns_are_spread_evenly():
    """On a still clip every frame issues its share of each segment's tiles, and no more."""
    frame = RNG.random((24, 24, 3)).astype(np.float32)
    inc = dj.incremental(network, tau=0.1, taus=thresholds(frame), tile=4, max_age=9)
    cache, _ = inc.init(KERNELS, frame)
    step = jax.jit(inc.step)
    _, cache, _ = step(KERNELS, cache, None, frame)
    for _ in range(18):
        _, cache, mask = step(KERNELS, cache, None, frame)
        assert [int(segment.tiles_issued) for segment in inc.stats(cache).segments] == [4, 4]  # 36 tiles in 9 frames
        assert not np.asarray(mask).any()


def test_without_thresholds_a_still_frame_costs_nothing():
    frame = RNG.random((24, 24, 3)).astype(np.float32)
    inc = dj.incremental(network, tile=4, max_age=2)
    cache, _ = inc.init(KERNELS, frame)
    for _ in range(3):
        _, cache, _ = jax.jit(inc.step)(KERNELS, cache, None, frame)
    assert int(inc.stats(cache).tiles_issued) == 0


@pytest.mark.slow
def test_age_under_vmap_and_the_dense_path():
    """Calls of different ages have their turns apart, also where all tiles are computed at once."""
    frames = RNG.random((3, 16, 16, 3)).astype(np.float32)
    inc = dj.incremental(network, tau=0.2, taus=thresholds(frames[0]), tile=4, max_age=5, dense_share=0.0)
    caches, _ = jax.vmap(lambda f: inc.init(KERNELS, f))(frames)
    step = jax.jit(jax.vmap(lambda c, f: inc.step(KERNELS, c, None, f)))
    alone = [inc.init(KERNELS, frame)[0] for frame in frames]
    one = jax.jit(inc.step)
    caches["age"] = caches["age"] + jnp.asarray([[0], [0], [3]], jnp.int32)
    alone[2]["age"] = alone[2]["age"] + 3
    for number in range(7):
        moved = frames + np.float32(0.02 * number)
        outputs, caches, _ = step(caches, moved)
        for call in range(3):
            output, alone[call], _ = one(KERNELS, alone[call], None, moved[call])
            assert_close(outputs[call], output, 2e-6)


def test_a_new_scene_is_computed_whole():
    """Thresholds hold nothing back in it; noise of a key frame is none; another stream's is none of ours."""
    clip = RNG.integers(0, 80, (2, 16, 20, 3)).astype(np.uint8)
    noise = clip + RNG.integers(0, 5, clip.shape).astype(np.uint8)
    cut = noise.copy()
    cut[1] = 255 - cut[1] // 2
    inc = dj.incremental(network, tau=200.0, taus=thresholds(clip, 3.0), tile=4, scene_cut=27.0)
    cache, _ = inc.init(KERNELS, clip)
    step = jax.jit(inc.step)
    whole = []
    for frame in (clip, noise, cut):
        output, cache, mask = step(KERNELS, cache, None, frame)
        whole.append(int(inc.stats(cache).whole_frames))
    assert whole == [2, 0, 1]
    assert np.asarray(mask)[1].all() and not np.asarray(mask)[0].any()
    assert_close(output[1], network(KERNELS, jnp.asarray(cut))[1], 2e-6)
    assert_close(output[0], network(KERNELS, jnp.asarray(clip))[0], 2e-6)


def test_a_frame_without_numbers_is_no_scene():
    frame = RNG.random((12, 12, 3)).astype(np.float32)
    spoilt = frame.copy()
    spoilt[3, 4] = np.nan
    inc = dj.incremental(network, tau=0.1, tile=4, scene_cut=0.2)
    cache, _ = inc.init(KERNELS, frame)
    whole = []
    for x in (frame, spoilt, frame):
        output, cache, _ = jax.jit(inc.step)(KERNELS, cache, None, x)
        whole.append(int(inc.stats(cache).whole_frames))
    assert whole == [1, 0, 0]
    assert_close(output, network(KERNELS, jnp.asarray(frame)), 2e-6)


@pytest.mark.parametrize("cell", [1, 4])
def test_a_change_has_to_stand(cell):
    """Three frames in a row, or be large; where it came and went, nothing changed."""
    still = np.full((8, 12, 3), 100, np.uint8)
    frames = np.stack([still] * 9)
    frames[1, 0, 0] = frames[3, 0, 0] = frames[7, 0, 0] = 120  # comes and goes
    frames[2:, 4, 4] = 120  # stays from 2 on
    frames[5, 0, 8] = 180  # large
    inc = dj.incremental(lambda p, x: x.astype(jnp.float32), tau=10.0, cell=cell, tile=4, stand=3, large=60.0)
    cache, _ = inc.init({}, still)
    step = jax.jit(inc.step)
    seen = []
    for frame in frames:
        output, cache, mask = step({}, cache, None, frame)
        assert np.abs(np.asarray(output) - frame.astype(np.float32)).max() <= 60
        seen.append([bool(np.asarray(mask)[y, x]) for y, x in ((0, 0), (4, 4), (0, 8))])
    expected = np.zeros((9, 3), bool)
    expected[0] = True
    expected[4, 1] = expected[5, 2] = True
    expected[6, 2] = True  # back again, by as much
    assert seen == expected.tolist()


@pytest.mark.slow
def test_standing_under_vmap():
    frames = RNG.integers(0, 40, (6, 2, 8, 8, 3)).astype(np.uint8)
    inc = dj.incremental(network, tau=10.0, tile=4, stand=2, large=30.0)
    caches, _ = jax.vmap(lambda f: inc.init(KERNELS, f))(frames[0])
    alone = [inc.init(KERNELS, frame)[0] for frame in frames[0]]
    step, one = jax.jit(jax.vmap(lambda c, f: inc.step(KERNELS, c, None, f))), jax.jit(inc.step)
    for frame in frames:
        outputs, caches, _ = step(caches, frame)
        for call in range(2):
            output, alone[call], _ = one(KERNELS, alone[call], None, frame[call])
            assert_close(outputs[call], output, 2e-6)


@pytest.mark.parametrize(("options", "message"), [
    ({"stand": 2}, r"`stand` \(=2\) must be at most 127, and `large` \(=None\) goes with"),
    ({"large": 9.0}, r"`stand` \(=1\) .* `large` \(=9.0\) goes with more than 1"),
    ({"stand": 200, "large": 9.0}, r"`stand` \(=200\) must be at most 127"),
    ({"max_age": 0}, r"`max_age` \(=0\) must be a whole number >= 1"),
    ({"max_age": 2.5}, r"`max_age` \(=2.5\) must be a whole number"),
    ({"scene_cut": -1.0}, r"`scene_cut` \(=-1.0\) must be a number >= 0"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dj.incremental(network, **options)
