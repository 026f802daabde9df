"""Steps laid out for accelerators, on the CPU: all tiles of a frame at once, by the same laws.

`python -m pytest --platform gpu ...` runs any other test so.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import assert_close, changes, check_incremental

import deltajax as dj
from deltajax import _at_once, _ladder
from deltajax._plan import TileSegment

RNG = np.random.default_rng(7)
PARAMS = [jnp.asarray(RNG.standard_normal((3, 3, i, o)) / 5, jnp.float32) for i, o in ((3, 8), (8, 8), (8, 4))]


def conv(x, kernel, stride=1):
    form = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=form)


def network(params, frame):
    """A strided convolution, a gate over the whole picture, an upsampling and a join."""
    first = jax.nn.relu(conv(frame[None], params[0]))
    x = conv(first, params[1], 2) + 0.1
    x = x * jax.nn.sigmoid(jnp.mean(x, axis=(1, 2), keepdims=True))
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return conv(x + first, params[2])[0]


@pytest.mark.parametrize("options", [
    {}, {"dense_share": 1.0, "given": True}, {"dense_share": 0.0}, {"tile": 5},
    {"tile": 5, "bucket": 3, "dense_share": 1.0},
], ids=str)
def test_exact(options):
    check_incremental(network, PARAMS, changes((36, 44, 3)), hasty=True, platform="gpu", **options)


def test_narrow_types_and_channels_first():
    def first(params, frame):
        return jnp.moveaxis(network(params, jnp.moveaxis(frame, 0, -1)), -1, 0)

    frames = changes((3, 36, 44), rows=-2, cols=-1)
    check_incremental(first, PARAMS, frames, spatial_axes=(-2, -1), hasty=True, platform="gpu")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    check_incremental(network, narrow, changes((36, 44, 3), jnp.bfloat16), ulps=4, hasty=True, platform="gpu")


@pytest.mark.parametrize("options", [
    {"tau": 0.3, "cell": 4, "norm": "l2"}, {"tau": 0.3, "dense_share": 0.0}, {"tau": 0.3, "dense_share": 1.0},
    {"tau": 0.2, "max_age": 3}, {"tau": 0.3, "tile": 5, "dense_share": 1.0},
    {"tau": 0.2, "max_age": 3, "dense_share": 0.0}, {"tau": 0.1, "stand": 2, "large": 0.5},
    {"reference": "previous", "tau": 0.1, "scene_cut": 0.2},
], ids=str)
def test_what_is_held_back_is_what_is_held_back_by_buckets(options):
    """Frame by frame the same outputs, masks and statistics, with thresholds in every segment that can have one."""
    frames = changes((36, 44, 3), seed=3)
    frames += [frames[-1] + np.float32(0.06) * step for step in range(1, 6)]  # and a slow drift
    named = [s.name for s in dj.incremental(network).plan(PARAMS, frames[0]).segments]
    taus = {name: 0.05 for name in named if name.startswith("conv")} if "tau" in options else {}
    assert "conv2" in named
    found = []
    for platform in ("cpu", "gpu"):
        inc = dj.incremental(network, taus=taus, platform=platform, **{"tile": 4, **options})
        cache, _ = inc.init(PARAMS, frames[0])
        step, rows = jax.jit(inc.step), []
        for frame in frames:
            output, cache, mask = step(PARAMS, cache, None, frame)
            rows.append((output, mask, inc.stats(cache)))
        found.append(rows)
    for (output, mask, stats), (again, same, others) in zip(*found, strict=True):
        assert_close(again, output, 2e-6)
        np.testing.assert_array_equal(mask, same)
        assert float(stats.flops_useful) == float(others.flops_useful)
        assert int(stats.whole_frames) == int(others.whole_frames)


def test_streams_share_one_bucket():
    """Under vmap, each stream with a change of its own; and nothing of one is written into another."""
    clips = np.stack([changes((36, 44, 3), seed=s) for s in range(3)], axis=1)
    clips[3, 1] = clips[2, 1]  # one of them stands still where the others move
    inc = dj.incremental(network, platform="gpu", dense_share=1.0)
    cache, _ = inc.init(PARAMS, clips[0, 0])
    fixed = cache.pop("fixed")
    state = jax.tree.map(lambda x: jnp.stack([x] * 3), cache)

    def one(state, frame):
        output, cache, _ = inc.step(PARAMS, {"fixed": fixed, **state}, None, frame)
        return output, {name: part for name, part in cache.items() if name != "fixed"}

    step, dense = jax.jit(jax.vmap(one)), jax.jit(jax.vmap(lambda frame: network(PARAMS, frame)))
    for number, frames in enumerate(clips[:6]):
        output, state = step(state, frames)
        assert_close(output, dense(frames), 2e-6)
        if number == 3:
            tiles = jax.vmap(lambda state: inc.stats({"fixed": fixed, **state}).tiles_issued)(state)
            assert tiles[1] == 0 < tiles[0]


def test_a_small_change_shows():
    """In the mask that comes out, where a single tile was reached; and nothing of it is left in the next frame."""
    inc = dj.incremental(lambda kernel, frame: conv(frame[None], kernel)[0], platform="gpu", tile=8)
    frame = np.zeros((32, 32, 3), np.float32)
    cache, _ = inc.init(PARAMS[0], frame)
    step = jax.jit(inc.step)
    _, cache, _ = step(PARAMS[0], cache, None, frame)
    frame = frame.copy()  # not in place: the first step may still be reading
    frame[3, 3] = 1
    _, cache, mask = step(PARAMS[0], cache, None, frame)
    assert int(inc.stats(cache).tiles_issued) == 1 and np.argwhere(mask).tolist() == [
        [y, x] for y in (2, 3, 4) for x in (2, 3, 4)
    ]
    assert not step(PARAMS[0], cache, None, frame)[2].any()


def test_a_whole_segment_behind_tiles():
    """One of so much work that it asks whether it may be skipped, in the chunk of the tiles that it reads."""
    def gram(params, frame):
        x = conv(frame[None], params[0])[0].reshape(-1, 8)
        return jnp.tanh(x @ x.T).sum(axis=1)

    inc = dj.incremental(gram, platform="gpu")
    plan = inc.plan(PARAMS, np.zeros((36, 44, 3), np.float32))
    (whole,) = (segment for segment in plan.segments if not isinstance(segment, TileSegment))
    assert whole.flops > _at_once.WORTH_ASKING * plan.flops
    check_incremental(gram, PARAMS, changes((36, 44, 3)), hasty=True, platform="gpu")


def test_a_whole_value_becomes_a_map_again():
    def ranked(params, frame):
        """A softmax over all positions and channels, then a convolution."""
        x = conv(frame[None], params[0])
        return conv(jax.nn.softmax(x.reshape(-1)).reshape(x.shape), params[1])[0]

    check_incremental(ranked, PARAMS, changes((36, 44, 3)), hasty=True, platform="gpu", dense_share=1.0)


def test_against_the_previous_frame_all_that_differs_is_marked():
    """Of a tile that is computed, also what small changes of earlier frames, that counted for nothing, do to it."""
    def two(params, frame):
        return conv(conv(frame[None], params[0]), params[1])[0]

    frames = [np.zeros((24, 24, 3), np.float32) for _ in range(3)]
    frames[1][8:10] = frames[2][8:10] = 0.05
    frames[2][4, 4] = 1
    masks = []
    for platform in ("cpu", "gpu"):
        inc = dj.incremental(two, tau=0.1, reference="previous", tile=4, dense_share=1.0, platform=platform)
        cache, _ = inc.init(PARAMS, frames[0])
        step = jax.jit(inc.step)
        for frame in frames:
            _, cache, mask = step(PARAMS, cache, None, frame)
        masks.append(np.asarray(mask))
    np.testing.assert_array_equal(*masks)
    assert masks[0][8:10].any() and not masks[0][16:].any()


def tiled(size=(96, 128), tile=4):
    """The segments with tiles of the network for frames of that size."""
    plan = dj.incremental(network, platform="gpu", tile=tile).plan(PARAMS, np.zeros((*size, 3), np.float32))
    return [segment for segment in plan.segments if isinstance(segment, TileSegment)]


@pytest.mark.parametrize("streams", [1, 5, 64])
def test_a_ladder_rises_by_half_at_least_and_ends_with_everything(streams):
    segments = tiled()[:2]  # behind them all depends on everything
    work = np.array([segment.flops_per_tile for segment in segments])
    everything = [streams * s.grid.per_stream for s in segments]
    for most in (everything, [n // 2 for n in everything]):
        rungs = _ladder.ladder(segments, streams, 1, most)
        assert 3 <= len(rungs) <= _ladder.RUNGS
        held = [[total if n is None else n for n, total in zip(rung, everything, strict=True)] for rung in rungs]
        for number, (small, large) in enumerate(itertools.pairwise(held)):
            assert all(0 < a <= b for a, b in zip(small, large, strict=True))
            assert not number or work @ large > 1.5 * work @ small
        assert held[-1] == everything and (None in rungs[-1]) == (most != everything)


def test_a_rung_has_room_for_what_a_square_reaches_on_average():
    """By the masks of squares at all places."""
    first, second = tiled()[:2]
    side, counts = 1 / 8, []
    for y, x in itertools.product(range(40, 48), range(48, 56)):
        mask = np.zeros((96, 128), bool)
        mask[y: y + 12, x: x + 16] = True
        rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        near = [[(at.min() - 1) // 4, (at.max() + 1) // 4] for at in (rows, cols)]  # of 3x3, tiles of 4
        then = [[-(-(at.min() - 3) // 2) // 4, (at.max() + 1) // 2 // 4] for at in (rows, cols)]  # 3x3 again, strided
        counts.append([math.prod(b - a + 1 for a, b in ends) for ends in (near, then)])
    assert first.grid.tile == second.grid.tile == (4, 4) and second.writes[0].picture == (48, 64)
    np.testing.assert_allclose(_ladder.tiles_reached([first, second], side), np.mean(counts, axis=0), rtol=0.06)


def test_buckets_have_few_sizes():
    """Each holds what it is for, with less than half of it more; two sizes for each power of two."""
    sizes = {n: _ladder._rounded(n) for n in range(1, 2000)}
    assert all(n <= size < 1.5 * n or size == n for n, size in sizes.items())
    assert sorted(set(sizes.values()))[:9] == [1, 2, 3, 4, 6, 8, 12, 16, 24]


@pytest.mark.parametrize(("worth", "questions"), [(8, 1), (0, None)])
def test_chunks_ask_together(monkeypatch, worth, questions):
    """All of a small network by one question, besides whether there is anything to do; or each segment by its own."""
    monkeypatch.setattr(_at_once, "WORTH", worth)
    frames = changes((36, 44, 3))
    check_incremental(network, PARAMS, frames, hasty=True, platform="gpu")
    inc = dj.incremental(network, platform="gpu")
    cache, _ = inc.init(PARAMS, frames[0])
    found = str(jax.make_jaxpr(inc.step)(PARAMS, cache, None, frames[0])).count(" cond[")
    assert found == 1 + (questions or len(inc.plan(PARAMS, frames[0]).segments))


def _outer_questions(jaxpr) -> int:
    """Those that are asked whatever the answer to another one is."""
    inner = (p for eqn in jaxpr.eqns if eqn.primitive.name != "cond" for p in eqn.params.values())
    closed = [p.jaxpr if hasattr(p, "jaxpr") else p for p in inner if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
    return sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) + sum(map(_outer_questions, closed))


@pytest.mark.parametrize("taus", [{}, {"conv1": 0.1, "conv2": 0.1, "conv3": 0.1}], ids=["exact", "thresholds"])
def test_a_still_frame_asks_one_question(taus):
    """However many runs of segments there are."""
    inc = dj.incremental(network, platform="gpu", taus=taus)
    frame = jax.ShapeDtypeStruct((36, 44, 3), jnp.float32)
    plan = inc.plan(PARAMS, frame)
    assert set(taus) <= {segment.name for segment in plan.segments} and len(plan.segments) > 3
    cache, _ = jax.eval_shape(lambda params: inc.init(params, frame), PARAMS)
    assert _outer_questions(jax.make_jaxpr(inc.step)(PARAMS, cache, None, frame).jaxpr) == 1


def test_every_rung_holds_what_comes_to_it():
    """From one tile to all of them, through each size of the ladder; a bucket has no loop."""
    def thin(kernel, frame):
        return conv(frame[None], kernel)[0]

    inc = dj.incremental(thin, tile=4, dense_share=1.0, platform="tpu")
    frame = np.zeros((64, 64, 3), np.float32)
    cache, _ = inc.init(PARAMS[0], frame)
    jaxpr = str(jax.make_jaxpr(inc.step)(PARAMS[0], cache, None, frame))
    assert " while[" not in jaxpr and " sort[" not in jaxpr and " scatter[" in jaxpr
    step, dense, issued = jax.jit(inc.step), jax.jit(thin), []
    _, cache, _ = step(PARAMS[0], cache, None, frame)
    for rows in (0, 1, 3, 9, 15, 16, 17, 33, 64):
        frame = frame.copy()
        frame[:rows, :4] += RNG.random((rows, 4, 3)).astype(np.float32)
        frame[:rows // 2] += RNG.random((rows // 2, 64, 3)).astype(np.float32)
        output, cache, _ = step(PARAMS[0], cache, None, frame)
        assert_close(output, dense(PARAMS[0], frame), 2e-6)
        issued.append(int(inc.stats(cache).tiles_issued))
    assert issued[0] == 0 and issued[1] == 2 and issued[-1] > 128 and len(set(issued)) > 6


def test_a_step_for_others_is_exported_from_here():
    inc = dj.incremental(network, platform="gpu")
    frame = jax.ShapeDtypeStruct((36, 44, 3), jnp.float32)
    cache, _ = inc.init(PARAMS, frame)
    made = jax.export.export(jax.jit(inc.step), platforms=("cuda", "tpu"))(PARAMS, cache, None, frame)
    assert made.platforms == ("cuda", "tpu")


def test_an_unknown_platform():
    with pytest.raises(ValueError, match=r"`platform` \(='cuda'\) must be one of 'cpu', 'gpu', 'tpu'"):
        dj.incremental(network, platform="cuda")
