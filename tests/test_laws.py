"""The seven laws of the design, one section each; `check_incremental` states the first.

1 exact, 2 held reference, 3 receptive field, 4 masks, 5 buckets, 6 dense path, 7 one compile.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import assert_close, changes, check_incremental, tolerance

import deltajax as dj


def conv(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def kernels(count, channels=3, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((3, 3, channels, channels)) / 5, dtype) for _ in range(count)]


def stack(params, frame):
    for kernel in params:
        frame = jax.nn.relu(conv(frame, kernel))
    return frame


def positive(params, frame):
    """Layers in which no pixel's change is ever lost: what is reached has changed."""
    for kernel in params:
        frame = conv(frame, jnp.abs(kernel) + 0.1)
    return frame


def run(inc, params, frames, mask=None):
    """`(outputs, masks, caches)` of a jitted step over frames."""
    cache, _ = inc.init(params, frames[0])
    step, found = jax.jit(inc.step), []
    for frame in frames:
        output, cache, moved = step(params, cache, mask, frame)
        found.append((np.asarray(output), np.asarray(moved), cache))
    return [list(part) for part in zip(*found, strict=True)]


# ------------------------------------------------------------------------------------------------------ 1: exact


def test_1_a_still_stack_costs_nothing_and_a_moving_one_is_exact():
    frames = changes((24, 30, 3))
    inc, caches = check_incremental(stack, kernels(3), frames, tile=6)
    still, all_moved = inc.stats(caches[2]), inc.stats(caches[5])
    assert float(still.flops_issued) == 0 and float(still.frame_density) == 0 and int(still.tiles_issued) == 0
    assert float(all_moved.flops_issued) == float(all_moved.flops_dense) and float(all_moved.frame_density) == 1
    assert int(all_moved.tiles_issued) == int(all_moved.tiles_total)
    one = inc.stats(caches[1])
    assert float(one.frame_density) == pytest.approx(1 / (24 * 30))
    assert 0 < float(one.flops_useful) < float(one.flops_issued) < float(one.flops_dense)


def test_1_the_first_frame_whatever_the_mask_says():
    """A fresh cache has everything computed, also with a mask of zeros and a frame of zeros."""
    params, frame = kernels(2), jnp.zeros((9, 11, 3))
    inc = dj.incremental(lambda p, x: stack(p, x) + 1)
    cache, mask = inc.init(params, frame)
    assert mask.shape == (9, 11) and bool(mask.all())
    output, cache, moved = jax.jit(inc.step)(params, cache, jnp.zeros_like(mask), frame)
    np.testing.assert_array_equal(output, jnp.ones_like(output))
    assert bool(jnp.all(moved))


@pytest.mark.parametrize("frames", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_1_bfloat16_as_at_the_first_frame(frames):
    """At tau 0 nothing is accumulated, so the last frame's difference is that of any other."""
    params = kernels(2, dtype=jnp.bfloat16)
    inc = dj.incremental(stack, tile=4)
    first = jnp.zeros((12, 14, 3), jnp.bfloat16)

    def body(carry, key):
        cache, frame = carry
        where, what = jax.random.split(key)
        keep = jax.random.uniform(where, (12, 14, 1)) > 0.02
        frame = jnp.where(keep, frame, jax.random.uniform(what, frame.shape).astype(frame.dtype))
        output, cache, _ = inc.step(params, cache, None, frame)
        dense = stack(params, frame)
        error = jnp.max(jnp.abs(output.astype(jnp.float32) - dense.astype(jnp.float32)))
        return (cache, frame), (error, jnp.max(jnp.abs(dense)).astype(jnp.float32))

    cache, _ = inc.init(params, first)
    keys = jax.random.split(jax.random.key(0), frames)
    _, (errors, sizes) = jax.jit(lambda c: lax.scan(body, c, keys))((cache, first))
    allowed = tolerance(jnp.bfloat16, ulps=2) * np.asarray(sizes)
    assert (np.asarray(errors) <= allowed).all()
    half = frames // 2
    assert np.max(errors[half:]) <= np.max(errors[:half]) + allowed.max() / 2


# ---------------------------------------------------------------------------------------------- 2: held reference


def ramp(count, rate, shape=(8, 8, 1)):
    return [np.full(shape, rate * i, np.float32) for i in range(count)]


def test_2_a_slow_ramp_never_drifts():
    """.01 a frame for 500 frames: held within tau of the frame for ever, and the output exact on what is held."""
    frames, tau = ramp(500, 0.01), 0.02
    outputs, _, _ = run(dj.incremental(lambda p, x: x * 1, tau=tau), {}, frames)
    apart = np.abs(np.asarray(outputs) - np.asarray(frames)).max(axis=(1, 2, 3))
    assert apart.max() <= tau and apart[-50:].max() <= tau
    assert len({float(o[0, 0, 0]) for o in outputs}) < 260  # and it does hold: it changes at every third frame


def test_2_the_previous_frame_as_reference_drifts():
    """The paper's own variant: a change of .01 a frame is below tau for ever, and nothing is ever seen."""
    frames = ramp(500, 0.01)
    outputs, _, _ = run(dj.incremental(lambda p, x: x * 1, tau=0.02, reference="previous"), {}, frames)
    assert np.abs(outputs[-1] - frames[-1]).max() > 4.9


def test_2_thresholds_inside_hold_too():
    """`taus`: each segment's result stays within its own threshold of the exact one on its held inputs."""
    params = kernels(1, 1)
    fn = lambda p, x: conv(x, p[0])  # noqa: E731
    frames = [np.full((12, 12, 1), 0.001 * i, np.float32) for i in range(200)]
    inc = dj.incremental(fn, taus={"conv1": 0.01}, tile=5)
    outputs, masks, _ = run(inc, params, frames)
    exact = np.asarray(jax.vmap(lambda x: fn(params, x))(jnp.asarray(frames)))
    assert np.abs(np.asarray(outputs) - exact).max() <= 0.01 * (1 + 1e-5)
    assert 0 < np.asarray(masks[1:]).mean() < 0.5


@pytest.mark.parametrize("dense_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("streams", [0, 2])
def test_2_a_fresh_cache_holds_nothing_back(dense_share, streams):
    """A threshold larger than the output must not keep the zeros that a fresh cache holds."""
    params = kernels(2)
    shape = (streams, 9, 9, 3) if streams else (9, 9, 3)
    fn = (lambda p, x: jax.vmap(stack, (None, 0))(p, x)) if streams else stack
    frame = changes(shape)[0]
    inc = dj.incremental(fn, taus={"conv1": 100.0, "conv2": 100.0}, dense_share=dense_share, tile=4)
    outputs, masks, _ = run(inc, params, [frame, frame * 0.5])
    dense = jax.jit(fn)(params, frame)
    assert_close(jnp.asarray(outputs[0]), dense, 2e-6)
    np.testing.assert_array_equal(outputs[1], outputs[0])
    assert not masks[1].any()


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize(("cell", "field"), [(1, 1), (3, 1), (1, 5), (4, 3)])
def test_2_thresholds_by_every_norm(norm, cell, field):
    """What is held differs from the frame by at most tau in that norm, over cells or neighbourhoods; the rest moved."""
    tau, rng = 0.3, np.random.default_rng(3)
    inc = dj.incremental(lambda p, x: x * 1, tau=tau, norm=norm, cell=cell, field=field, tile=4)
    frames = [rng.random((10, 13, 2)).astype(np.float32) * 0.2 for _ in range(4)]
    frames += [frames[-1] + np.float32(0.31), frames[-1]]
    outputs, _, caches = run(inc, {}, frames)
    for before, frame, held, cache in zip([None, *outputs], frames, outputs, caches, strict=False):
        if before is None:
            continue
        size = measured(frame - before, norm, cell, field)
        moved = np.asarray(inc.frame_mask(cache))
        clear = np.abs(size - tau) > 1e-6
        np.testing.assert_array_equal(moved[clear], (size > tau)[clear])
        np.testing.assert_array_equal(held, np.where(moved[..., None], frame, before))
        assert (measured(frame - held, norm, cell, field) <= tau + 1e-6).all()


def measured(difference, norm, cell, field):
    """The norm over channels, then over each position's cell or neighbourhood, in plain numpy."""
    height, width, _ = difference.shape
    power = np.abs(difference) if norm != "l2" else difference**2
    position = power.max(-1) if norm == "linf" else power.sum(-1)
    join = np.max if norm == "linf" else np.sum
    half = field // 2
    near = np.array([[join(position[max(0, y - half): y + half + 1, max(0, x - half): x + half + 1])
                      for x in range(width)] for y in range(height)])
    out = np.array([[join(near[y // cell * cell: (y // cell + 1) * cell, x // cell * cell: (x // cell + 1) * cell])
                     for x in range(width)] for y in range(height)])
    return np.sqrt(out) if norm == "l2" else out


# ---------------------------------------------------------------------------------------------- 3: receptive field


def meets(tile, extent, low, high):
    """Tiles of one axis that the positions `low` to `high` lie in, counted by hand."""
    return len({p // tile for p in range(max(0, low), min(extent - 1, high) + 1)})


@pytest.fixture(scope="module")
def five():
    """Five 3x3 convolutions on 64 x 80 with tiles of 16: `(pixel) -> (tiles issued, changed positions)` by layer."""
    fn = lambda p, x: positive(p, x)  # noqa: E731
    params = kernels(5, 1)
    inc = dj.incremental(fn, tile=16)
    base = np.zeros((64, 80, 1), np.float32)
    cache, _ = inc.init(params, base)
    _, cache, _ = jax.jit(inc.step)(params, cache, None, base)

    @jax.jit
    def poke(row, col):
        frame = jnp.asarray(base).at[row, col].set(1.0)
        _, after, moved = inc.step(params, cache, None, frame)
        return jnp.stack([s.tiles_issued for s in inc.stats(after).segments]), moved

    return poke


@pytest.mark.parametrize("row", [*range(18), 31, 40, 58, 63])
def test_3_one_pixel_through_five_convolutions(five, row):
    """It issues in each layer just the tiles that its field meets: at most 4 of tiles of 16, at any alignment."""
    for col in (0, 2, 5, 10, 11, 15, 16, 21, 26, 27, 42, 79):
        issued, moved = five(row, col)
        want = [meets(16, 64, row - k, row + k) * meets(16, 80, col - k, col + k) for k in range(1, 6)]
        assert np.asarray(issued).tolist() == want and max(want) <= 4
        field = np.zeros((64, 80), bool)
        field[max(0, row - 5): row + 6, max(0, col - 5): col + 6] = True
        np.testing.assert_array_equal(np.asarray(moved), field)  # the 11x11 that depend on it, no more, no less


GEOMETRY = {  # kernel, stride, padding, kernel dilation, input dilation
    "valid": ((3, 3), (1, 1), "VALID", (1, 1), (1, 1)),
    "stride 2": ((3, 3), (2, 2), "SAME", (1, 1), (1, 1)),
    "stride 3 even": ((2, 4), (3, 2), ((1, 0), (2, 2)), (1, 1), (1, 1)),
    "dilated": ((3, 3), (1, 1), "SAME", (3, 2), (1, 1)),
    "transposed": ((4, 4), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2)),
    "wide padding": ((3, 3), (1, 1), ((4, 4), (4, 4)), (1, 1), (1, 1)),
    "5x5": ((5, 5), (1, 1), "SAME", (1, 1), (1, 1)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_3_masks_are_exact_in_every_geometry(name):
    """Mask and values change at just those outputs that read the pixel, and only their tiles are issued."""
    size, stride, padding, dilation, spread = GEOMETRY[name]
    kernel = jnp.ones((*size, 1, 1))

    def fn(p, x):
        return lax.conv_general_dilated(x[None], kernel, stride, padding, spread, dilation,
                                        ("NHWC", "HWIO", "NHWC"))[0]

    base = np.zeros((21, 26, 1), np.float32)
    inc = dj.incremental(fn, tile=6)
    cache, _ = inc.init({}, base)
    step = jax.jit(inc.step)
    _, cache, _ = step({}, cache, None, base)
    tile_rows, tile_cols = inc.explain({}, base).segments[0].tile
    for row, col in [(0, 0), (1, 7), (10, 12), (11, 13), (20, 25), (6, 24)]:
        frame = base.copy()
        frame[row, col] = 1
        output, after, moved = step({}, cache, None, frame)
        truth = np.asarray(fn({}, jnp.asarray(frame)))[..., 0] != 0
        np.testing.assert_array_equal(np.asarray(output)[..., 0] != 0, truth)
        np.testing.assert_array_equal(np.asarray(moved), truth)
        tiles = {(r // tile_rows, c // tile_cols) for r, c in np.argwhere(truth)}
        height, width = truth.shape
        ragged = bool(height % tile_rows or width % tile_cols)
        if tiles:  # what lies in the gap between two strides is read by none, yet is in a tile's span
            assert len(tiles) <= int(inc.stats(after).tiles_issued) <= len(tiles) * (2 if ragged else 1)


def test_3_explain_gives_field_and_halo():
    report = dj.incremental(stack, tile=16).explain(kernels(5), np.zeros((64, 64, 3), np.float32))
    assert [s.receptive_field for s in report.segments] == [(k, k) for k in (3, 5, 7, 9, 11)]
    assert all(s.tile == (16, 16) and s.halo == (2, 2) for s in report.segments)


# --------------------------------------------------------------------------------------------------------- 4: masks


def test_4_a_mask_that_claims_too_much_costs_only_time():
    """All ones, in every frame: the same outputs."""
    params, frames = kernels(2), changes((14, 17, 3))
    exact, _, _ = run(dj.incremental(stack, tile=5), params, frames)
    much, _, _ = run(dj.incremental(stack, tile=5), params, frames, jnp.ones((14, 17), bool))
    for a, b in zip(exact, much, strict=True):
        assert_close(jnp.asarray(b), jnp.asarray(a), 2e-6)


def test_4_a_mask_that_claims_too_little_is_only_a_hint():
    """Without `trust_mask` the frame is compared all the same, and what is found is united with the mask."""
    params, frames = kernels(1), changes((9, 11, 3))[:5]
    outputs, _, _ = run(dj.incremental(stack, tile=5), params, frames, jnp.zeros((9, 11), bool))
    for output, frame in zip(outputs, frames, strict=True):
        assert_close(jnp.asarray(output), stack(params, jnp.asarray(frame)), 2e-6)


def test_4_one_changed_tile_is_enough():
    """A change in the first tile shows, though what reached the last one changed nothing there."""
    frame = np.full((4, 16, 1), -1, np.float32)
    moved = frame.copy()
    moved[0, 0], moved[0, 15] = 1, -2
    inc = dj.incremental(lambda p, x: jax.nn.relu(x), tile=4, dense_share=1.0)
    _, masks, _ = run(inc, {}, [frame, moved])
    # Accelerators do not compare where there is no threshold.
    assert np.argwhere(masks[1]).tolist() == ([[0, 0], [0, 15]] if inc.options.at_once else [[0, 0]])


def test_4_trusted_masks_are_believed():
    """With `trust_mask` what is not claimed is not looked at; claimed and unclaimed are as the law says."""
    frame = np.zeros((8, 8, 1), np.float32)
    moved = frame + 1
    claim = np.zeros((8, 8), bool)
    claim[2:4, 3:6] = True
    inc = dj.incremental(lambda p, x: x * 2, trust_mask=True, tile=4)
    cache, _ = inc.init({}, frame)
    step = jax.jit(inc.step)
    _, cache, _ = step({}, cache, jnp.asarray(claim), frame)
    output, cache, mask = step({}, cache, jnp.asarray(claim), moved)
    np.testing.assert_array_equal(np.asarray(output)[..., 0], 2.0 * claim)
    np.testing.assert_array_equal(np.asarray(mask), claim)


@pytest.mark.parametrize(("bad", "tau"), [(np.nan, 0.0), (np.nan, 0.1), (np.inf, 0.0), (-np.inf, 0.1)])
def test_4_what_is_not_finite_leaves_no_trace(bad, tau):
    """It counts as changed, spoils what depends on it, and two frames later nothing shows that it was there."""
    params = kernels(2)

    def fn(p, x):
        y = stack(p, x)
        pooled = lax.reduce_window(y, -np.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        return {"map": y, "pooled": pooled, "mean": y.mean(axis=(0, 1)), "max": x.max(),
                "soft": jax.nn.softmax(x.mean(axis=(0, 1))), "dense": x.reshape(-1) @ jnp.ones((18 * 16 * 3, 2))}

    clean = changes((18, 16, 3))[0]
    spoilt = clean.copy()
    spoilt[7, 4, 1] = bad
    frames = [clean, spoilt, spoilt, clean, clean]
    inc, caches = check_incremental(fn, params, frames, tau=tau, tile=5, hasty=True)
    for leaf in jax.tree.leaves(caches[-1]["maps"] + caches[-1]["wholes"]):
        assert np.isfinite(np.asarray(leaf)).all()
    assert float(inc.stats(caches[1]).frame_density) == pytest.approx(1 / (18 * 16))


# ------------------------------------------------------------------------------------------- 5 and 6: buckets, dense


@pytest.mark.parametrize("bucket", [1, 3, 4, 32, 1000])
def test_5_more_changed_tiles_than_slots(bucket):
    """Any number of changed tiles from none to all, for a bucket of any size."""
    rng = np.random.default_rng(1)
    frame = rng.random((20, 24, 2)).astype(np.float32)
    frames = [frame]
    for count in (0, 1, 2, 3, 4, 5, 7, 12, 29, 30):
        frame = frame.copy()
        for tile in rng.permutation(30)[:count]:
            frame[tile // 6 * 4 + 1, tile % 6 * 4 + 2] += 1
        frames.append(frame)
    fn = lambda p, x: conv(x, p[0], padding="SAME")[..., :1] * 2  # noqa: E731
    check_incremental(fn, kernels(1, 2), frames, tile=4, bucket=bucket, dense_share=1.0, hasty=True)


@pytest.mark.xla
def test_6_the_dense_path_is_taken_where_most_changed():
    """Above `dense_share` the tiles issued are all of them, and their FLOPs those of the dense function."""
    params, frames = kernels(1), changes((16, 16, 3))
    frames[1] = frames[0].copy()
    frames[1][:9, :] += 1  # of 16 tiles, 12 are reached
    for share, want in ((0.7, 16), (0.8, 12), (1.0, 12)):
        inc = dj.incremental(stack, tile=4, dense_share=share)
        _, _, caches = run(inc, params, frames[:2])
        stats = inc.stats(caches[1])
        assert int(stats.tiles_issued) == want and int(stats.tiles_total) == 16
        assert (float(stats.flops_issued) == float(stats.flops_dense)) == (want == 16)


def test_6_paths_agree():
    """Tiles, dense and anything between give the same output from frame to frame."""
    params, frames = kernels(2), changes((15, 18, 3))
    found = [run(dj.incremental(stack, tile=5, dense_share=share), params, frames)[0] for share in (0.0, 0.5, 1.0)]
    for outputs in zip(*found, strict=True):
        for other in outputs[1:]:
            assert_close(jnp.asarray(other), jnp.asarray(outputs[0]), 2e-6)


# ------------------------------------------------------------------------------------------------------- 7: compile


def test_7_a_thousand_frames_one_trace():
    """Nothing, one pixel, a part, everything, NaN: whatever changes, `fn` is traced for the plan and never again."""
    traces = []

    def fn(params, frame):
        traces.append(frame.shape)
        return conv(frame, params[0])

    params = kernels(1, 1)
    inc = dj.incremental(fn, tile=4)
    frame = np.zeros((9, 10, 1), np.float32)
    cache, mask = inc.init(params, frame)
    step = jax.jit(inc.step, donate_argnums=1)
    rng, compiled = np.random.default_rng(0), None
    for number in range(1000):
        count = rng.choice([0, 1, 2, 30, 90])
        frame = frame.copy()
        frame.reshape(-1)[rng.permutation(90)[:count]] = rng.random(count)
        frame[0, 0, 0] = np.nan if number % 97 == 5 else number
        _, cache, mask = step(params, cache, mask, frame)
        compiled = step._cache_size() if number == 0 else compiled
    assert traces == [(9, 10, 1)] and step._cache_size() == compiled == 1
    assert int(cache["age"][0]) == 1000


def test_7_plans_are_shared_between_traces():
    """Another jit of the same step traces the step again, not the function."""
    traces = []

    def fn(params, frame):
        traces.append(1)
        return frame * params

    inc = dj.incremental(fn)
    cache, _ = inc.init(2.0, np.ones((4, 4, 1), np.float32))
    for _ in range(3):
        jax.jit(lambda c, x: inc.step(2.0, c, None, x))(cache, np.ones((4, 4, 1), np.float32))
    assert len(traces) == 1
