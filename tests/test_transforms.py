"""A step under every transformation of JAX, and every way to carry its cache about."""

from __future__ import annotations

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from law import assert_close, changes, check_incremental

import deltajax as dj

SHAPE = (12, 15, 3)
RNG = np.random.default_rng(11)
PARAMS = {
    "kernels": [jnp.asarray(RNG.standard_normal((3, 3, 3, 3)) / 5, jnp.float32) for _ in range(2)],
    "dense": jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32),
}


def conv(x, kernel, strides=(1, 1)):
    return lax.conv_general_dilated(x[None], kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def fn(params, frame):
    """A map and a vector: two convolutions, a global mean, a matrix, a softmax."""
    x = jax.nn.relu(conv(frame, params["kernels"][0]))
    y = jnp.tanh(conv(x, params["kernels"][1], (2, 2)))
    return {"map": y, "classes": jax.nn.softmax(y.mean(axis=(0, 1)) @ params["dense"])}


INC = dj.incremental(fn, tile=4)


def same(got, want, rel=2e-6):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert_close(jnp.asarray(a), jnp.asarray(b), rel, jax.tree_util.keystr(path))


@functools.cache
def step():
    return jax.jit(INC.step)


def after(frames, mask=None):
    """Outputs and caches, frame by frame."""
    cache, _ = INC.init(PARAMS, frames[0])
    outputs, caches = [], [cache]
    for frame in frames:
        output, cache, _ = step()(PARAMS, cache, mask, frame)
        outputs.append(output)
        caches.append(cache)
    return outputs, caches


# ------------------------------------------------------------------------------------------------- jit and scan


def test_eager():
    """Without jit, too; only slower."""
    inc = dj.incremental(lambda p, x: (conv(x, p["kernels"][0]), x.max()), tile=4)
    frames = changes(SHAPE)[:2]
    cache, mask = inc.init(PARAMS, frames[0])
    for frame in frames:
        output, cache, moved = inc.step(PARAMS, cache, mask, frame)
        same(output, (conv(jnp.asarray(frame), PARAMS["kernels"][0]), frame.max()))
    assert moved[0].shape == (12, 15) and moved[1].shape == ()


def test_init_from_a_shape():
    frame = changes(SHAPE)[0]
    by_shape, _ = INC.init(PARAMS, jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, by_shape, INC.init(PARAMS, frame)[0])


def test_init_inside_jit():
    """The whole life of a cache inside one compiled function."""
    frames = jnp.asarray(changes(SHAPE)[:3])

    @jax.jit
    def last(params, frames):
        cache, _ = INC.init(params, frames[0])
        for frame in frames:
            output, cache, _ = INC.step(params, cache, None, frame)
        return output

    same(last(PARAMS, frames), fn(PARAMS, frames[2]))


@pytest.mark.parametrize("given", [False, True])
def test_scan(given):
    """From the first frame on, with no mask and with a given one."""
    frames = jnp.asarray(changes(SHAPE))
    cache, ones = INC.init(PARAMS, frames[0])

    def body(cache, frame):
        output, cache, moved = INC.step(PARAMS, cache, ones if given else None, frame)
        return cache, (output, moved, INC.stats(cache).frame_density, INC.frame_mask(cache))

    cache, (outputs, moved, density, pictures) = jax.jit(lambda c, f: lax.scan(body, c, f))(cache, frames)
    same(outputs, jax.vmap(fn, (None, 0))(PARAMS, frames))
    assert moved["map"].shape == (7, 6, 8)
    if not given:
        np.testing.assert_allclose(np.asarray(density)[:3], [1, 1 / 180, 0], atol=1e-6)
        np.testing.assert_allclose(np.asarray(pictures).mean(axis=(1, 2)), density, atol=1e-6)


def test_statistics_are_compiled_once_and_are_the_same_in_jit():
    """Outside jit hundreds of small operations would be compiled one by one."""
    inc = dataclasses.replace(INC, _plans={}, _measures={})
    _, *caches = after(changes(SHAPE)[:3])[1]
    inc.init(PARAMS, jax.ShapeDtypeStruct(SHAPE, np.float32))
    compiled = []

    def listen(event: str, seconds: float, **_):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        apart = [inc.stats(caches[0])]
        assert compiled.count("/jax/core/compile/backend_compile_duration") == 1
        compiled.clear()
        apart += [inc.stats(cache) for cache in caches[1:]]
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    inside = jax.jit(lambda caches: [inc.stats(cache) for cache in caches])(caches)
    for got, want in zip(jax.tree.leaves(apart), jax.tree.leaves(inside), strict=True):
        np.testing.assert_array_equal(got, want)
    issued = [int(stats.tiles_issued) for stats in apart]
    assert 0 == issued[2] < issued[1] < issued[0] == int(apart[0].tiles_total)


def test_donation():
    """The donated cache is gone, nothing else is, and the outputs are the same."""
    frames = changes(SHAPE)
    donating = jax.jit(INC.step, donate_argnums=1)
    cache, _ = INC.init(PARAMS, frames[0])
    for frame in frames:
        old = cache
        output, cache, _ = donating(PARAMS, cache, None, frame)
        same(output, fn(PARAMS, jnp.asarray(frame)))
        assert all(x.is_deleted() for x in old["maps"])
    assert not any(x.is_deleted() for x in jax.tree.leaves(PARAMS))


def test_inside_cond():
    """Every other frame is looked at; the others keep cache and output."""
    frames = jnp.asarray(changes(SHAPE))
    cache, _ = INC.init(PARAMS, frames[0])
    held = jax.tree.map(jnp.zeros_like, fn(PARAMS, frames[0]))

    def body(carry, item):
        number, frame = item

        def look(carry):
            output, cache, _ = INC.step(PARAMS, carry[1], None, frame)
            return output, cache

        carry = lax.cond(number % 2 == 0, look, lambda carry: carry, carry)
        return carry, carry[0]

    _, outputs = jax.jit(lambda c: lax.scan(body, c, (jnp.arange(7), frames)))((held, cache))
    looked = jnp.stack([frames[i - i % 2] for i in range(7)])
    same(outputs, jax.vmap(fn, (None, 0))(PARAMS, looked))


def test_no_tracer_leaks():
    frames = changes(SHAPE)[:2]
    inc = dj.incremental(fn, tile=5)
    with jax.checking_leaks():
        cache, _ = inc.init(PARAMS, frames[0])
        output, cache, _ = jax.jit(inc.step)(PARAMS, cache, None, frames[0])
        jax.make_jaxpr(jax.vmap(inc.step, (None, 0, None, 0)))(
            PARAMS, jax.tree.map(lambda x: x[None], cache), None, frames[1][None])
    same(output, fn(PARAMS, jnp.asarray(frames[0])))


# --------------------------------------------------------------------------------------------------------- caches


def test_a_cache_is_plain():
    """Dicts, tuples and arrays, so that anything can carry it."""
    cache, _ = INC.init(PARAMS, changes(SHAPE)[0])

    def plain(x):
        if isinstance(x, dict):
            return all(isinstance(k, str) and plain(v) for k, v in x.items())
        return all(map(plain, x)) if type(x) is tuple else isinstance(x, jax.Array)

    assert plain(cache)


def test_a_cache_is_saved_forked_and_rewound():
    frames = changes(SHAPE)
    outputs, caches = after(frames)
    for number in (1, 3, 5):
        again, saved, _ = step()(PARAMS, caches[number], None, frames[number])  # rewound, from the old cache
        jax.tree.map(np.testing.assert_array_equal, again, outputs[number])
        jax.tree.map(np.testing.assert_array_equal, saved, caches[number + 1])
    stored = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, caches[4])))
    other, _, _ = step()(PARAMS, stored, None, frames[0])  # forked: another future, from a file
    same(other, fn(PARAMS, jnp.asarray(frames[0])))


def test_steps_compose():
    """The mask out of one step is the mask into the next: two functions in a row are one."""
    front = dj.incremental(lambda p, x: jax.nn.relu(conv(x, p["kernels"][0])), tile=4)
    back = dj.incremental(lambda p, x: conv(x, p["kernels"][1]), tile=4, trust_mask=True)
    frames = changes(SHAPE)
    one, _ = front.init(PARAMS, frames[0])
    two, _ = back.init(PARAMS, jax.ShapeDtypeStruct(SHAPE, jnp.float32))

    @jax.jit
    def both(one, two, frame):
        middle, one, moved = front.step(PARAMS, one, None, frame)
        output, two, _ = back.step(PARAMS, two, moved, middle)
        return output, one, two

    for frame in frames:
        output, one, two = both(one, two, frame)
        same(output, conv(jax.nn.relu(conv(jnp.asarray(frame), PARAMS["kernels"][0])), PARAMS["kernels"][1]))


# ----------------------------------------------------------------------------------------------------------- vmap


def cameras(count):
    """`[frames, cameras, ...]`: each camera has a clip of its own; the last stands still."""
    clips = np.stack([changes(SHAPE, seed=seed) for seed in range(count)], axis=1)
    clips[:, -1] = clips[0, -1]
    return jnp.asarray(clips)


def primitives(jaxpr, found=None):
    """The names of all primitives in a jaxpr, however deep."""
    found = [] if found is None else found
    for eqn in jaxpr.eqns:
        found.append(eqn.primitive.name)
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                primitives(sub, found)
    return found


@pytest.mark.parametrize("batched_mask", [None, False, True])
def test_vmap_over_streams(batched_mask):
    """One step for each camera is one flat list of tiles, with caches of its own for each."""
    clips = cameras(3)
    frames = clips[0]
    caches, ones = jax.vmap(lambda x: INC.init(PARAMS, x))(frames)
    mask, axis = {None: (None, None), False: (ones[0], None), True: (ones, 0)}[batched_mask]
    many = jax.jit(jax.vmap(INC.step, (None, 0, axis, 0)))
    for frames in clips:
        output, caches, moved = many(PARAMS, caches, mask, frames)
        same(output, jax.vmap(fn, (None, 0))(PARAMS, frames))
    assert moved["map"].shape == (3, 6, 8) and moved["classes"].shape == (3,)
    assert caches["maps"][0].shape[:2] == (3, 1)


def test_vmap_does_each_cameras_own_work_only():
    """The still camera issues nothing; the moving ones what they issue alone (where none is dense)."""
    inc, clips = dj.incremental(lambda p, x: conv(x, p["kernels"][0]), tile=4, dense_share=1.0), cameras(3)
    caches, _ = jax.vmap(lambda x: inc.init(PARAMS, x))(clips[0])
    many = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
    for frames in clips[:2]:
        _, caches, _ = many(PARAMS, caches, None, frames)
    issued = jax.vmap(lambda c: inc.stats(c).tiles_issued)(caches)
    pixel, tile = (SHAPE[0] // 2, SHAPE[1] // 3), inc.explain(PARAMS, clips[0, 0]).segments[0].tile
    rows, cols = ({(at + d) // n for d in (-1, 0, 1)} for at, n in zip(pixel, tile, strict=True))
    assert issued.tolist() == [len(rows) * len(cols)] * 2 + [0]


@pytest.mark.parametrize("dense_share", [0.0, 1.0])
def test_vmap_over_caches_of_any_age(dense_share):
    """A fresh camera beside an old one, also with thresholds inside: each is treated by its own age."""
    frame = jnp.asarray(changes(SHAPE)[0])
    inc = dj.incremental(fn, tile=4, dense_share=dense_share, taus={"conv1": 5.0, "conv2": 5.0})
    fresh, _ = inc.init(PARAMS, frame)
    _, old, _ = jax.jit(inc.step)(PARAMS, fresh, None, frame)
    caches = jax.tree.map(lambda a, b: jnp.stack([a, b]), fresh, old)
    output, _, moved = jax.jit(jax.vmap(inc.step, (None, 0, None, None)))(PARAMS, caches, None, frame)
    same(jax.tree.map(lambda x: x[0], output), fn(PARAMS, frame))
    same(jax.tree.map(lambda x: x[1], output), fn(PARAMS, frame))
    assert moved["map"][0].all() and not moved["map"][1].any()


def test_vmap_keeps_the_loops():
    """No batched `while` (which runs as long as the longest) nor `select` in place of a `cond`."""
    frames = cameras(3)[0]
    caches, _ = jax.vmap(lambda x: INC.init(PARAMS, x))(frames)
    one = primitives(jax.make_jaxpr(INC.step)(PARAMS, jax.tree.map(lambda x: x[0], caches), None, frames[0]))
    many = primitives(jax.make_jaxpr(jax.vmap(INC.step, (None, 0, None, 0)))(PARAMS, caches, None, frames))
    assert (one.count("while"), one.count("cond")) == (many.count("while"), many.count("cond"))


def test_nested_vmap():
    """Rooms of cameras: two levels, one flat list."""
    clips = jnp.stack([cameras(2), cameras(2)[::-1]], axis=1)
    caches, _ = jax.vmap(jax.vmap(lambda x: INC.init(PARAMS, x)))(clips[0])
    many = jax.jit(jax.vmap(jax.vmap(INC.step, (None, 0, None, 0)), (None, 0, None, 0)))
    for frames in clips[:4]:
        output, caches, _ = many(PARAMS, caches, None, frames)
        same(output, jax.vmap(jax.vmap(fn, (None, 0)), (None, 0))(PARAMS, frames))


def test_vmap_of_a_shared_cache_and_other_axes():
    """What is not batched is broadcast; axes may lie anywhere."""
    frames = cameras(3)[1]
    _, caches = after([cameras(3)[0, 0]])
    many = jax.jit(jax.vmap(INC.step, (None, None, None, -1), out_axes=(-1, 0, 0)))
    output, caches, _ = many(PARAMS, caches[-1], None, jnp.moveaxis(frames, 0, -1))
    same(output, jax.vmap(fn, (None, 0), out_axes=-1)(PARAMS, frames))
    assert caches["age"].shape == (3, 1)


def test_vmap_over_params():
    """An ensemble: other kernels for each member, each with its own cache."""
    frames = changes(SHAPE)[:4]
    members = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), PARAMS)
    caches, _ = jax.vmap(INC.init, (0, None))(members, frames[0])
    many = jax.jit(jax.vmap(INC.step, (0, 0, None, None)))
    for frame in frames:
        output, caches, _ = many(members, caches, None, frame)
        same(output, jax.vmap(fn, (0, None))(members, jnp.asarray(frame)))


def test_vmap_with_fixed_parts_of_params():
    """A fixed map and a dense kernel are in the cache, once, and shared by all cameras."""

    def with_positions(params, frame):
        flat = jnp.tile(params["dense"], (60, 1)).reshape(-1, 5)
        return (frame + jnp.linspace(0, 1, 15)[None, :, None]) * 2, frame.reshape(-1) @ jnp.tile(flat, (3, 1))

    inc, clips = dj.incremental(with_positions, tile=4), cameras(2)
    caches, _ = jax.vmap(lambda x: inc.init(PARAMS, x))(clips[0])
    many = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
    for frames in clips[:4]:
        output, caches, _ = many(PARAMS, caches, None, frames)
        same(output, jax.vmap(with_positions, (None, 0))(PARAMS, frames))


@pytest.mark.parametrize("dense_share", [0.0, 1.0])
def test_vmap_with_a_gate_of_each_call(dense_share):
    """A map times a whole value: each camera's own, on tiles and densely."""
    def gated(params, x):
        return x * x.mean(axis=(0, 1), keepdims=True)

    inc, clips = dj.incremental(gated, tile=4, dense_share=dense_share), cameras(3)
    caches, _ = jax.vmap(lambda x: inc.init({}, x))(clips[0])
    many = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
    for frames in clips[:3]:
        output, caches, _ = many({}, caches, None, frames)
        same(output, jax.vmap(gated, (None, 0))({}, frames))


def test_scan_of_vmap_and_vmap_of_scan():
    clips = cameras(2)
    caches, _ = jax.vmap(lambda x: INC.init(PARAMS, x))(clips[0])
    dense = jax.vmap(jax.vmap(fn, (None, 0)), (None, 0))(PARAMS, clips)

    def body(cache, frame):
        output, cache, _ = INC.step(PARAMS, cache, None, frame)
        return cache, output

    def together(caches, frames):
        output, caches, _ = jax.vmap(INC.step, (None, 0, None, 0))(PARAMS, caches, None, frames)
        return caches, output

    _, outside = jax.jit(lambda c, f: lax.scan(together, c, f))(caches, clips)
    same(outside, dense)
    _, inside = jax.jit(jax.vmap(functools.partial(lax.scan, body), (0, 1), (0, 1)))(caches, clips)
    same(inside, dense)


# -------------------------------------------------------------------------------------------------------- streams


def test_streams_are_one_list():
    """`[S, H, W, C]`: the same outputs, and tiles of any camera fill any bucket."""
    clips = cameras(3)
    streams = dj.incremental(lambda p, x: jax.vmap(fn, (None, 0))(p, x), tile=4)
    cache, mask = streams.init(PARAMS, clips[0])
    assert mask.shape == (3, 12, 15)
    one = jax.jit(streams.step)
    for frames in clips:
        output, cache, mask = one(PARAMS, cache, None, frames)
        same(output, jax.vmap(fn, (None, 0))(PARAMS, frames))
    assert mask["map"].shape == (3, 6, 8)


def test_one_of_the_streams_moves_what_all_of_them_make():
    """Whole values are recomputed when any stream moved, not only when all did."""
    inc = dj.incremental(lambda p, x: (x.mean(axis=(1, 2)), x.max()), tile=4)
    frames = changes((3, *SHAPE))
    cache, _ = inc.init({}, frames[0])
    run = jax.jit(inc.step)
    for frame in frames[:4]:
        output, cache, _ = run({}, cache, None, frame)
        same(output, (frame.mean(axis=(1, 2)), frame.max()))


def test_one_stream_is_not_no_stream():
    frames = [f[None] for f in changes(SHAPE)]
    _, caches = check_incremental(lambda p, x: jax.vmap(fn, (None, 0))(p, x), PARAMS, frames, tile=4)
    assert caches[0]["masks"][0].shape == (1, 12, 15)


def test_vmap_over_rooms_of_streams():
    """vmap of a step over several streams: `[B, S, H, W, C]`."""
    clips = jnp.stack([cameras(2), cameras(2)[::-1]], axis=1)

    def room(params, frames):
        found = jax.vmap(fn, (None, 0))(params, frames)
        return found, frames.max(), found["map"] * found["classes"].sum(axis=1)[:, None, None, None]

    inc = dj.incremental(room, tile=4)
    caches, _ = jax.vmap(lambda x: inc.init(PARAMS, x))(clips[0])
    many = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
    for frames in clips[:4]:
        output, caches, moved = many(PARAMS, caches, None, frames)
        same(output, jax.vmap(room, (None, 0))(PARAMS, frames))
    assert moved[0]["map"].shape == (2, 2, 6, 8)


def test_vmap_with_a_fixed_map_for_each_stream():
    """Weights that differ by stream and position: each call's streams read their own, not the next call's."""
    clips = jnp.stack([cameras(2), cameras(2)[::-1]], axis=1)
    weights = jnp.asarray(RNG.random((2, *SHAPE)), jnp.float32)
    inc = dj.incremental(lambda weights, frames: frames * weights, tile=4, dense_share=1.0)
    caches, _ = jax.vmap(lambda x: inc.init(weights, x))(clips[0])
    many = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
    for frames in clips[:3]:
        output, caches, _ = many(weights, caches, None, frames)
        same(output, frames * weights[None])


def test_channels_first():
    def first(params, frame):
        return lax.conv_general_dilated(frame[None], params["kernels"][0].transpose(3, 2, 0, 1), (1, 1), "SAME")[0]

    frames = [f.transpose(2, 0, 1) for f in changes(SHAPE)]
    inc, _ = check_incremental(first, PARAMS, frames, spatial_axes=(-2, -1), tile=4, given=True)
    assert inc.init(PARAMS, frames[0])[1].shape == (12, 15)


def test_frames_of_bytes():
    """uint8 frames with tau in grey levels: differences of unsigned numbers do not wrap."""

    def bytes_in(params, frame):
        return frame.astype(jnp.float32) * (1 / 255)

    inc = dj.incremental(bytes_in, tau=3, tile=4)
    frame = np.full((8, 8, 1), 4, np.uint8)
    near, far = frame.copy(), frame.copy()
    near[0, 0], far[0, 0] = 1, 0
    cache, _ = inc.init({}, frame)
    run = jax.jit(inc.step)
    _, cache, _ = run({}, cache, None, frame)
    output, cache, mask = run({}, cache, None, near)
    assert not mask.any() and float(output[0, 0, 0]) == np.float32(4) / 255
    output, cache, mask = run({}, cache, None, far)
    assert int(mask.sum()) == 1 and float(output[0, 0, 0]) == 0


def test_shard_map_over_four_devices():
    """Streams shared out among devices: each has its own cache and its own list of tiles."""
    devices = jax.devices()[:4]
    if len(devices) < 4:
        pytest.skip("needs four devices")
    clips = cameras(8)
    mesh = Mesh(np.array(devices), ("s",))
    caches, _ = jax.vmap(lambda x: INC.init(PARAMS, x))(clips[0])
    split, whole = PartitionSpec("s"), PartitionSpec()

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(whole, split, split), out_specs=split, check_vma=False)
    def shared(params, caches, frames):
        output, caches, _ = jax.vmap(INC.step, (None, 0, None, 0))(params, caches, None, frames)
        return output, caches

    for frames in clips[:4]:
        output, caches = shared(PARAMS, caches, frames)
        same(output, jax.vmap(fn, (None, 0))(PARAMS, frames))
    assert len(output["map"].sharding.device_set) == 4


# ------------------------------------------------------------------------------------------------------ derivatives


def loss(output):
    return jnp.sum(output["map"] ** 2) + jnp.sum(output["classes"] * jnp.arange(5.0))


def dense_loss(params, frame):
    return loss(fn(params, frame))


@functools.cache
def midway():
    """A cache in the middle of a clip, and the next frame."""
    frames = changes(SHAPE)
    return after(frames[:3])[1][-1], jnp.asarray(frames[4])


def step_loss(params, frame):
    output, _, _ = INC.step(params, midway()[0], None, frame)
    return loss(output)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["", "remat"])
def test_gradient_of_a_step(wrap):
    """With respect to params and frame it is the dense function's, whatever the cache is."""
    _, frame = midway()
    got = jax.jit(jax.grad(wrap(step_loss), (0, 1)))(PARAMS, frame)
    same(got, jax.grad(dense_loss, (0, 1))(PARAMS, frame), 1e-5)


def test_forward_derivative_of_a_step():
    _, frame = midway()
    tangents = (jax.tree.map(jnp.ones_like, PARAMS), jnp.cos(frame))
    got = jax.jit(functools.partial(jax.jvp, step_loss))((PARAMS, frame), tangents)
    same(got, jax.jvp(dense_loss, (PARAMS, frame), tangents), 1e-5)


def test_gradient_through_a_scan():
    """Training on a clip: the sum over its frames, none of it through the cache."""
    clip = jnp.asarray(changes(SHAPE)[:4])

    def total(params, clip):
        cache, _ = INC.init(lax.stop_gradient(params), clip[0])

        def body(cache, frame):
            output, cache, _ = INC.step(params, cache, None, frame)
            return cache, loss(output)

        return lax.scan(body, cache, clip)[1].sum()

    got = jax.jit(jax.grad(total, (0, 1)))(PARAMS, clip)
    want = jax.grad(lambda p, c: jax.vmap(dense_loss, (None, 0))(p, c).sum(), (0, 1))(PARAMS, clip)
    same(got, want, 1e-5)


def test_gradient_over_vmap():
    frames = cameras(3)[4]
    caches, _ = jax.vmap(lambda x: INC.init(PARAMS, x))(frames)

    def total(params, frames):
        output, _, _ = jax.vmap(INC.step, (None, 0, None, 0))(params, caches, None, frames)
        return jax.vmap(loss)(output).sum()

    got = jax.jit(jax.grad(total, (0, 1)))(PARAMS, frames)
    want = jax.grad(lambda p, c: jax.vmap(dense_loss, (None, 0))(p, c).sum(), (0, 1))(PARAMS, frames)
    same(got, want, 1e-5)
    each = jax.jit(jax.vmap(jax.grad(lambda c, x: loss(INC.step(PARAMS, c, None, x)[0]), 1), (0, 0)))(caches, frames)
    same(each, jax.vmap(jax.grad(dense_loss, 1), (None, 0))(PARAMS, frames), 1e-5)


def test_gradient_of_streams_and_channels_first():
    frames = jnp.moveaxis(cameras(2)[4], -1, 1)

    def first(params, x):
        return lax.conv_general_dilated(x, params.transpose(3, 2, 0, 1), (1, 1), "SAME")

    inc, kernel = dj.incremental(first, spatial_axes=(-2, -1)), PARAMS["kernels"][0]
    cache, _ = inc.init(kernel, frames)
    got = jax.jit(jax.grad(lambda p, x: jnp.sum(inc.step(p, cache, None, x)[0] ** 2), (0, 1)))(kernel, frames)
    same(got, jax.grad(lambda p, x: jnp.sum(first(p, x) ** 2), (0, 1))(kernel, frames), 1e-5)


def test_second_derivatives():
    """Of frame and params, at a cache in the middle of a clip."""
    inc = dj.incremental(lambda p, x: p * x**3)
    frame = jnp.asarray(changes((4, 5, 1))[0])
    _, cache, _ = inc.step(3.0, inc.init(3.0, frame)[0], None, frame * 0.5)
    slope = jax.jit(jax.grad(lambda p, x: inc.step(p, cache, None, x)[0].sum(), 1))
    np.testing.assert_allclose(jax.grad(lambda x: slope(3.0, x).sum())(frame), 18 * frame, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(slope)(3.0, frame), 3 * frame**2, rtol=1e-6)


def test_gradient_of_params_where_the_frame_is_bytes():
    """Frames, params and outputs of whole numbers have no derivative and are in no one's way."""

    def mixed(params, x):
        return {"map": conv(x.astype(jnp.float32), params["kernels"][0]) * params["count"].astype(jnp.float32),
                "above": x > 3, "max": x.max()}

    inc, frame = dj.incremental(mixed), jnp.asarray(changes(SHAPE, np.uint8, high=200)[0])
    params = {**PARAMS, "count": jnp.asarray(2)}
    cache, _ = inc.init(params, frame)

    def total(kernels, step):
        return jnp.sum(step({**params, "kernels": kernels})["map"] ** 2)

    got = jax.jit(jax.grad(lambda k: total(k, lambda p: inc.step(p, cache, None, frame)[0])))(PARAMS["kernels"])
    same(got, jax.grad(lambda k: total(k, lambda p: mixed(p, frame)))(PARAMS["kernels"]), 1e-5)


def test_gradient_at_the_held_frame():
    """With a threshold the derivative is taken where the output was: on the held values."""
    inc = dj.incremental(lambda p, x: p * x**2, tau=0.5)
    frame = jnp.full((4, 4, 1), 2.0)
    cache, _ = inc.init(3.0, frame)
    _, cache, _ = inc.step(3.0, cache, None, frame)
    value, slope = jax.value_and_grad(lambda x: inc.step(3.0, cache, None, x)[0].sum())(frame + 0.4)
    assert float(value) == 3 * 4 * 16
    np.testing.assert_allclose(slope, jnp.full((4, 4, 1), 12.0))


# --------------------------------------------------------------------------------------------------------- export


def test_export_for_all_platforms():
    """One file for cpu, cuda and tpu, with the cache as a plain pytree; reading it back and calling it is exact."""
    frames = changes(SHAPE)
    cache, _ = INC.init(PARAMS, frames[0])
    exported = jax.export.export(jax.jit(INC.step), platforms=["cpu", "cuda", "tpu"])(
        PARAMS, cache, None, jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for frame in frames[:2]:
        output, cache, _ = exported.call(PARAMS, cache, None, frame)
        same(output, fn(PARAMS, jnp.asarray(frame)))
    pytest.importorskip("flatbuffers", reason="jax.export writes files with it")
    again = jax.export.deserialize(exported.serialize())
    output, cache, _ = again.call(PARAMS, cache, None, frames[4])
    same(output, fn(PARAMS, jnp.asarray(frames[4])))
