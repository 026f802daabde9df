"""Layers: each against its dense function, alone and in a network by hand, through every transformation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from law import assert_close, changes, differs, tolerance

import deltajax as dj
from deltajax import layers as L


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def draw(*shape: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(dtype)


def convolution(*kernel: int, bias: bool = True, dtype=np.float32):
    made = {"kernel": draw(*kernel, dtype=dtype)}
    return made | {"bias": draw(kernel[-1], seed=1, dtype=dtype)} if bias else made


def batched(fn, rank: int = 3):
    """A function of `[1, ...]` as one of a single picture too."""
    return lambda p, x: fn(p, x) if x.ndim > rank else fn(p, x[None])[0]


def loose(fn):
    """For what Flax computes: its own promotions are not ours to judge."""
    def full(*arguments):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*arguments)

    return full


def flax_conv(p, x, **options):
    features, size = p["kernel"].shape[-1], p["kernel"].shape[:2]
    return nn.Conv(features, size, use_bias="bias" in p, **options).apply({"params": p}, x)


def torch_conv(p, x):
    """Channels first, written out."""
    layout = ("NCHW", "HWIO", "NCHW")
    y = lax.conv_general_dilated(x, p["kernel"], (2, 2), [(1, 1), (1, 1)], dimension_numbers=layout)
    return y + p["bias"].reshape(1, -1, 1, 1)


def dense(p, x):
    return x.reshape(*x.shape[:-3], -1) @ p["kernel"] + p["bias"]


FIRST = {"spatial_axes": (-2, -1)}
BF16 = jnp.bfloat16

# name: layer, params, shape (and dtype) of x, the dense function
MAPS = {
    "conv": (L.conv(), convolution(3, 3, 3, 8), (21, 18, 3), flax_conv),
    "conv stride 2": (L.conv(strides=2, padding=1, activation=nn.relu), convolution(3, 3, 3, 4), (17, 20, 3),
                      lambda p, x: jax.nn.relu(flax_conv(p, x, strides=2, padding=1))),
    "conv dilated, no bias": (L.conv(padding="VALID", dilation=(2, 1)), convolution(3, 2, 3, 4, bias=False),
                              (17, 20, 3),
                              lambda p, x: flax_conv(p, x, kernel_dilation=(2, 1), padding="VALID")),
    "conv depthwise, streams": (L.conv(groups=4), convolution(3, 3, 1, 4), (3, 12, 14, 4),
                                lambda p, x: flax_conv(p, x, feature_group_count=4)),
    "conv asymmetric padding": (L.conv(padding=((2, 0), (1, 3)), input_dilation=2), convolution(4, 4, 3, 2),
                                (9, 11, 3),
                                lambda p, x: flax_conv(p, x, padding=((2, 0), (1, 3)), input_dilation=2)),
    "conv channels first": (L.conv(strides=2, padding=1, **FIRST), convolution(3, 3, 5, 6), (2, 5, 16, 19),
                            torch_conv),
    "conv bf16": (L.conv(), convolution(3, 3, 3, 8, dtype=BF16), (21, 18, 3, BF16),
                  lambda p, x: flax_conv(p, x, dtype=BF16)),
    "conv_transpose": (L.conv_transpose(strides=2), convolution(3, 3, 3, 4), (11, 9, 3),
                       lambda p, x: nn.ConvTranspose(4, (3, 3), (2, 2)).apply({"params": p}, x)),
    "max_pool": (L.max_pool(2), None, (18, 21, 3), lambda p, x: nn.max_pool(x, (2, 2), (2, 2))),
    "max_pool same": (L.max_pool(3, strides=2, padding="SAME"), None, (2, 18, 21, 3),
                      lambda p, x: nn.max_pool(x, (3, 3), (2, 2), "SAME")),
    "max_pool uint8": (L.max_pool((2, 3), strides=1), None, (18, 21, 1, np.uint8), lambda p, x:
                       lax.reduce_window(x, np.uint8(0), lax.max, (2, 3, 1), (1, 1, 1), "VALID")),
    "avg_pool": (L.avg_pool(2), None, (18, 21, 3), lambda p, x: nn.avg_pool(x, (2, 2), (2, 2))),
    "avg_pool inside": (L.avg_pool(3, strides=1, padding="SAME", count_padding=False), None, (2, 9, 12, 3),
                        lambda p, x: nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)),
    "elementwise": (L.elementwise(jax.nn.gelu), None, (18, 21, 3), lambda p, x: jax.nn.gelu(x)),
    "softmax of channels": (L.elementwise(lambda x: jax.nn.softmax(x, -3), **FIRST), None, (2, 4, 9, 12),
                            lambda p, x: jax.nn.softmax(x, -3)),
    "global_pool mean": (L.global_pool(), None, (18, 21, 3), lambda p, x: x.mean((0, 1))),
    "global_pool, streams": (L.global_pool("max", **FIRST), None, (3, 5, 18, 21), lambda p, x: x.max((2, 3))),
    "global_pool sum": (L.global_pool("sum"), None, (18, 21, 3), lambda p, x: x.sum((0, 1))),
    "dense": (L.dense(), convolution(12 * 10 * 3, 7), (12, 10, 3), dense),
    "dense, streams": (L.dense(activation=jax.nn.relu), convolution(12 * 10 * 3, 7), (2, 12, 10, 3),
                       lambda p, x: jax.nn.relu(dense(p, x))),
    "layer": (L.layer(lambda p, x: x * p["scale"].reshape(1, 1, -1)), {"scale": draw(3)}, (12, 10, 3),
              lambda p, x: x * p["scale"]),
}


def moved(new, old, spatial=(-3, -2)) -> np.ndarray:
    """Where a map or vector changed, as a mask of it."""
    difference = differs(new, old)
    if difference.ndim <= 2:
        return difference.any()
    return difference.any(-1 if spatial == (-3, -2) else -3)


SLOW = ("conv bf16", "conv depthwise, streams", "conv asymmetric padding", "conv channels first")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MAPS])
def test_a_layer_is_its_dense_function(name):
    layer, params, shape, full = MAPS[name]
    spatial = layer.options.get("spatial_axes", (-3, -2))
    shape, dtype = (shape[:-1], shape[-1]) if not isinstance(shape[-1], int) else (shape, np.float32)
    high = 200.0 if dtype == np.uint8 else 1.0
    frames = changes(shape, dtype, rows=spatial[0], cols=spatial[1], high=high)
    full = jax.jit(loose(batched(full) if len(shape) == 3 and "conv" in name else full))
    step, cache = jax.jit(layer), layer.init(params, jax.ShapeDtypeStruct(shape, dtype))
    rng = np.random.default_rng(0)
    before = None
    for number, x in enumerate(frames):
        # The first mask is empty: a fresh cache computes everything all the same. Later ones claim more.
        truth = moved(x, frames[number - 1], spatial)
        mask = truth | (rng.random(truth.shape) < 0.05) if number else np.zeros_like(truth)
        y, cache, out = step(params, cache, jnp.asarray(mask), x)
        want = full(params, x)
        assert_close(y, want, tolerance(y.dtype), f"{name}, frame {number}")
        assert layer.shape(params, x) == jax.ShapeDtypeStruct(y.shape, y.dtype)
        if number:
            truth = moved(y, before, spatial)
            assert out.shape == truth.shape and not (truth & ~np.asarray(out)).any()
            if not mask.any():
                assert not out.any()
        else:
            assert out.all()
        np.testing.assert_array_equal(layer.change_map(cache), out)
        before = y


@pytest.mark.parametrize("name", ["conv", "dense"])
def test_without_a_mask_a_layer_finds_out_itself(name):
    layer, params, shape, full = MAPS[name]
    step, cache = jax.jit(layer), layer.init(params, jax.ShapeDtypeStruct(shape, np.float32))
    full = batched(full) if name == "conv" else full
    for number, x in enumerate(changes(shape)):
        y, cache, out = step(params, cache, None, x)
        assert_close(y, full(params, x), tolerance(y.dtype), f"{name}, frame {number}")
        if number == 2:  # the same frame again
            assert not out.any() and layer.stats(cache).tiles_issued == 0


VECTORS = {
    "dense": (L.dense(), convolution(20, 7), (20,), lambda p, x: x @ p["kernel"] + p["bias"]),
    "dense, streams": (L.dense(activation=jax.nn.relu), convolution(20, 7), (3, 20),
                       lambda p, x: jax.nn.relu(x @ p["kernel"] + p["bias"].reshape(1, -1))),
    "softmax": (L.elementwise(jax.nn.softmax), None, (20,), lambda p, x: jax.nn.softmax(x)),
    "softmax, streams": (L.elementwise(jax.nn.softmax), None, (2, 20), lambda p, x: jax.nn.softmax(x)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_changes_as_one(name):
    layer, params, shape, full = VECTORS[name]
    step, cache = jax.jit(layer), layer.init(params, jax.ShapeDtypeStruct(shape, np.float32))
    first, second = draw(*shape), draw(*shape, seed=1)
    calls = (first, False, True), (first, False, False), (second, True, True), (second, True, False)
    for x, mask, changed in calls:
        y, cache, out = step(params, cache, jnp.asarray(mask), x)
        assert_close(y, full(params, x), tolerance(y.dtype), name)
        assert out.shape == () and bool(out) == changed == bool(layer.change_map(cache))


JOINS = {
    "add": (L.add(), [(12, 15, 3)] * 3, lambda a, b, c: a + b + c),
    "add, streams": (L.add(**FIRST), [(2, 4, 12, 15)] * 2, lambda a, b: a + b),
    "concatenate": (L.concatenate(), [(12, 15, 3), (12, 15, 5)], lambda a, b: jnp.concatenate([a, b], -1)),
    "concatenate, channels first": (L.concatenate(**FIRST), [(2, 12, 15), (3, 12, 15)],
                                    lambda a, b: jnp.concatenate([a, b], 0)),
    "gate": (L.join(lambda a, b: a * jax.nn.sigmoid(b)), [(12, 15, 3), (12, 15, 1)],
             lambda a, b: a * jax.nn.sigmoid(b)),
    "concatenate vectors": (L.concatenate(), [(4,), (6,)], lambda a, b: jnp.concatenate([a, b])),
}


@pytest.mark.parametrize("name", JOINS)
def test_a_join_reads_several_maps(name):
    layer, shapes, full = JOINS[name]
    spatial = layer.options.get("spatial_axes", (-3, -2))
    x = tuple(draw(*shape, seed=i) for i, shape in enumerate(shapes))
    cache = layer.init(None, tuple(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
    step = jax.jit(layer)
    masks = tuple(np.zeros(np.shape(moved(a, a, spatial)), bool) for a in x)
    y, cache, out = step(None, cache, masks, x)
    assert_close(y, full(*x), 0.0, name)
    assert out.all()
    for part in range(len(x)):  # one part moves in one corner
        new = list(x)
        new[part] = x[part].copy()
        new[part][..., -2:] += 1
        masks = tuple(moved(a, b, spatial) for a, b in zip(new, x, strict=True))
        x, before = tuple(new), y
        y, cache, out = step(None, cache, masks, x)
        assert_close(y, full(*x), 0.0, f"{name}, part {part}")
        np.testing.assert_array_equal(out, moved(y, before, spatial))
    assert len(layer.stats(cache).segments) == (name != "concatenate" and "concatenate," not in name)


def test_a_join_that_lacks_one_mask_compares_all():
    layer = L.concatenate()
    x = (draw(6, 7, 2), draw(6, 7, 1))
    step, cache = jax.jit(layer), layer.init(None, x)
    _, cache, out = step(None, cache, (np.zeros((6, 7), bool), None), x)
    assert out.all()
    other = x[0].copy()  # not in place: the first step may still be reading
    other[2, 3] += 1
    _, _, out = step(None, cache, (np.zeros((6, 7), bool), None), (other, x[1]))
    assert np.argwhere(out).tolist() == [[2, 3]]


# ------------------------------------------------------------------------------------------------- thresholds


def test_detect_holds_what_moves_by_no_more_than_tau():
    layer = L.detect(0.1, cell=2)
    frame = draw(9, 10, 3)
    cache = layer.init(None, frame)
    step = jax.jit(layer)
    _, cache, out = step(None, cache, jnp.zeros((5, 5), bool), frame)
    assert out.shape == (9, 10) and out.all()
    known = np.zeros((5, 5), bool)
    known[4, 4] = True  # this cell is claimed: it is taken whatever it holds
    new = frame + 0.05
    new[2, 3, 1] += 0.1
    held, cache, out = step(None, cache, jnp.asarray(known), new)
    want = np.zeros((9, 10), bool)
    want[2:4, 2:4] = want[8, 8:10] = True
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(held, np.where(want[..., None], new, frame))


def test_previous_reference_does_not_see_a_ramp_and_held_does():
    def seen(reference):
        layer = L.detect(0.02, reference=reference)
        frame = np.zeros((8, 8, 1), np.float32)
        cache = layer.init(None, frame)
        step, found = jax.jit(layer), 0
        for number in range(20):
            _, cache, out = step(None, cache, None, frame + np.float32(0.01) * np.float32(number))
            found += bool(out.any()) if number else 0
        return found

    assert seen("previous") == 0
    assert seen("held") >= 6


def test_tau_of_a_layer_holds_back_its_result():
    params = convolution(3, 3, 1, 4)
    params["kernel"] *= 0.1
    layer = L.conv(tau=0.05)
    x = draw(24, 24, 1)
    cache = layer.init(params, x)
    step = jax.jit(layer)
    first, cache, _ = step(params, cache, jnp.zeros((24, 24), bool), x)
    small, large = x.copy(), x.copy()
    small[5, 5] += 0.01
    mask = np.zeros((24, 24), bool)
    mask[5, 5] = True
    y, cache, out = step(params, cache, jnp.asarray(mask), small)
    assert not out.any()
    np.testing.assert_array_equal(y, first)
    large[5, 5] += 10
    y, _, out = step(params, cache, jnp.asarray(mask), large)
    want = batched(flax_conv)(params, large)
    assert out[4:7, 4:7].any() and out.sum() <= 9
    assert np.abs(y - want).max() <= 0.05
    assert_close(y[out], want[out], tolerance(y.dtype))


# ---------------------------------------------------------------------------------------- a network by hand


NETWORK = {
    "stem": L.conv(strides=2, activation=jax.nn.relu), "a": L.conv(activation=jax.nn.relu), "b": L.conv(),
    "add": L.add(), "relu": L.elementwise(jax.nn.relu), "pool": L.max_pool(2), "cat": L.concatenate(),
    "mean": L.avg_pool(2), "global": L.global_pool(), "fc": L.dense(),
}
PARAMS = {"stem": convolution(3, 3, 2, 8), "a": convolution(3, 3, 8, 8), "b": convolution(3, 3, 8, 8),
          "fc": convolution(16, 5)}
SHAPE = (32, 40, 2)


@loose
def function(params, x):
    """What the network is densely."""
    def conv(name, x, **options):
        return batched(lambda p, x: flax_conv(p, x, **options))(params[name], x)

    x = jax.nn.relu(conv("stem", x, strides=2))
    x = jax.nn.relu(x + conv("b", jax.nn.relu(conv("a", x))))
    x = jnp.concatenate([nn.max_pool(x, (2, 2), (2, 2)), nn.avg_pool(x, (2, 2), (2, 2))], -1).mean((0, 1))
    return x @ params["fc"]["kernel"] + params["fc"]["bias"]


def by_hand(params, cache, mask, x):
    new = {}

    def run(name, mask, x):
        y, new[name], out = NETWORK[name](params.get(name), cache[name], mask, x)
        return y, out

    x, m = run("stem", mask, x)
    y, my = run("a", m, x)
    y, my = run("b", my, y)
    x, m = run("add", (m, my), (x, y))
    x, m = run("relu", m, x)
    a, ma = run("pool", m, x)
    b, mb = run("mean", m, x)
    x, m = run("cat", (ma, mb), (a, b))
    x, m = run("global", m, x)
    y, m = run("fc", m, x)
    return y, new, m


def fresh(streams: tuple[int, ...] = ()):
    at = {"x": jax.ShapeDtypeStruct((*streams, *SHAPE), np.float32)}
    cache = {}
    wires = "stem:x:s a:s:y b:y:y add:s,y:x relu:x:x pool:x:a mean:x:b cat:a,b:x global:x:x fc:x:x"
    for name, reads, writes in (wire.split(":") for wire in wires.split()):
        x = tuple(at[r] for r in reads.split(","))
        x = x if len(x) > 1 else x[0]
        cache[name] = NETWORK[name].init(PARAMS.get(name), x)
        at[writes] = NETWORK[name].shape(PARAMS.get(name), x)
    return cache


def test_a_network_by_hand_is_the_transformed_function_and_the_dense_one():
    """Also inside `scan`, with masks and none compared."""
    inc = dj.incremental(function)
    inc_cache, _ = inc.init(PARAMS, jax.ShapeDtypeStruct(SHAPE, np.float32))
    cache, whole, full = fresh(), jax.jit(inc.step), jax.jit(function)
    assert all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(cache))
    frames = changes(SHAPE)
    masks = jnp.stack([jnp.asarray(moved(x, frames[number - 1])) for number, x in enumerate(frames)])

    @jax.jit
    def clip(cache, masks, frames):
        def body(cache, given):
            y, cache, out = by_hand(PARAMS, cache, *given)
            return cache, (y, out, sum(part["issued"].sum() for part in cache.values()))

        return lax.scan(body, cache, (masks, frames))[1]

    ys, outs, issued = clip(cache, masks, np.stack(frames))
    for number, x in enumerate(frames):
        other, inc_cache, other_out = whole(PARAMS, inc_cache, masks[number], x)
        want = full(PARAMS, x)
        assert_close(ys[number], want, tolerance(want.dtype), f"frame {number}")
        assert_close(other, want, tolerance(want.dtype), f"incremental, frame {number}")
        assert bool(outs[number]) == bool(other_out) == (number != 2)
    assert (issued > 0).tolist() == [True, True, False, True, True, True, True]  # still: nothing


def test_scan_without_masks():
    frames = np.stack(changes(SHAPE))
    stem, pool = NETWORK["stem"], NETWORK["pool"]
    cache = (stem.init(PARAMS["stem"], frames[0]), pool.init(None, stem.shape(PARAMS["stem"], frames[0])))

    @jax.jit
    def clip(cache, frames):
        def body(cache, x):
            x, first, _ = stem(PARAMS["stem"], cache[0], None, x)
            y, second, out = pool(None, cache[1], None, x)
            return (first, second), (y, out.any())

        return lax.scan(body, cache, frames)[1]

    y, out = clip(cache, frames)
    want = loose(lambda x: jax.nn.relu(flax_conv(PARAMS["stem"], x, strides=2)))(frames)
    assert_close(y, nn.max_pool(want, (2, 2), (2, 2)), 2e-6)
    assert out.tolist() == [True, True, False, True, True, True, True]


def test_vmap_and_streams_are_the_single_calls():
    block = ("stem", "pool")

    def two(params, caches, mask, x):
        x, first, mask = NETWORK["stem"](params, caches[0], mask, x)
        x, second, mask = NETWORK["pool"](None, caches[1], mask, x)
        return x, (first, second), mask

    clips = [changes(SHAPE, seed=seed) for seed in range(3)]

    def full(x):
        y = jax.nn.relu(batched(lambda p, x: flax_conv(p, x, strides=2))(PARAMS["stem"], x))
        return nn.max_pool(y, (2, 2), (2, 2))

    single, many = fresh(), fresh((3,))
    caches = jax.tree.map(lambda a: jnp.broadcast_to(a, (3, *a.shape)), tuple(single[name] for name in block))
    mapped = jax.jit(jax.vmap(two, in_axes=(None, 0, 0, 0)))
    together = tuple(many[name] for name in block)
    streams = jax.jit(two)
    for number in range(4):
        x = np.stack([clip[number] for clip in clips])
        mask = jnp.asarray(moved(x, np.stack([clip[number - 1] for clip in clips])))
        want = full(x)
        y, caches, out = mapped(PARAMS["stem"], caches, mask, x)
        assert_close(y, want, 2e-6, f"vmap, frame {number}")
        z, together, other = streams(PARAMS["stem"], together, mask, x)
        assert_close(z, want, 2e-6, f"streams, frame {number}")
        np.testing.assert_array_equal(out, other)


def test_the_gradient_is_that_of_the_dense_function():
    params = {"stem": PARAMS["stem"], "fc": convolution(8, 5)}
    x = np.zeros((16, 20, 8), np.float32)
    cache = {
        "stem": NETWORK["stem"].init(params["stem"], np.zeros(SHAPE, np.float32)),
        "add": NETWORK["add"].init(None, (x, x)),
        "global": NETWORK["global"].init(None, x),
        "fc": NETWORK["fc"].init(params["fc"], x[0, 0]),
    }

    def loss(params, cache, mask, x):
        new = {}
        x, new["stem"], m = NETWORK["stem"](params["stem"], cache["stem"], mask, x)
        x, new["add"], m = NETWORK["add"](None, cache["add"], (m, m), (x, x))
        x, new["global"], m = NETWORK["global"](None, cache["global"], m, x)
        y, new["fc"], m = NETWORK["fc"](params["fc"], cache["fc"], m, x)
        return (y**2).sum(), new

    def full(params, x):
        x = jax.nn.relu(batched(lambda p, x: flax_conv(p, x, strides=2))(params["stem"], x))
        return (((x + x).mean((0, 1)) @ params["fc"]["kernel"] + params["fc"]["bias"]) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 3), has_aux=True))
    frames = changes(SHAPE)
    for number in range(3):
        mask = jnp.asarray(moved(frames[number], frames[number - 1]))
        got, cache = gradient(params, cache, mask, frames[number])
        want = jax.grad(full, (0, 1))(params, frames[number])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert_close(a, b, 1e-5, f"frame {number}")


# ------------------------------------------------------------------------------------------------- the paper


def test_no_output_goes_stale_at_padding_one():
    """The paper's conv2d leaves 5 of the 9 results that read a pixel stale: its change map is not padded."""
    layer, params = L.conv(padding=1), convolution(3, 3, 1, 2)
    full = jax.jit(batched(lambda p, x: flax_conv(p, x, padding=1)))
    step = jax.jit(layer)
    x = draw(7, 7, 1)
    _, start, _ = step(params, layer.init(params, x), jnp.ones((7, 7), bool), x)
    for row, col in ((3, 3), (0, 0), (6, 6), (0, 4)):
        new = x.copy()
        new[row, col] += 1
        mask = jnp.zeros((7, 7), bool).at[row, col].set(True)
        y, _, out = step(params, start, mask, new)
        assert_close(y, full(params, new), 2e-6)
        want = np.zeros((7, 7), bool)
        want[max(0, row - 1): row + 2, max(0, col - 1): col + 2] = True
        np.testing.assert_array_equal(out, want)


# ------------------------------------------------------------------------------------------------- bad input

CONV, X = convolution(3, 3, 3, 4), np.zeros((8, 8, 3), np.float32)
ERRORS = {
    "tau": (lambda: L.conv(tau=-1.0), r"`tau` \(=-1.0\) must be a number >= 0"),
    "tau is NaN": (lambda: L.max_pool(tau=float("nan")), r"`tau` \(=nan\)"),
    "norm": (lambda: L.detect(norm="l3"), r"`norm` \(='l3'\) must be one of"),
    "tau without a picture": (lambda: L.dense(tau=1.0).init(convolution(192, 2), X),
                              r"`tau` \(=1.0\) .* use `detect`"),
    "padding": (lambda: L.conv(padding="same"), r"`padding` \(='same'\) must be 'SAME'"),
    "padding of a spread input": (lambda: L.conv(input_dilation=2), r"`padding` \(='SAME'\) must be numbers"),
    "strides": (lambda: L.conv(strides=0), r"`strides` \(=0\) must be a whole number >= 1"),
    "window": (lambda: L.max_pool((2, 2, 2)), r"`window` \(=\(2, 2, 2\)\) must be one number, or two"),
    "groups": (lambda: L.conv(groups=3).init(convolution(3, 3, 1, 4), X), r"`groups` \(=3\) must divide"),
    "kind": (lambda: L.global_pool("min"), r"`kind` \(='min'\) must be one of"),
    "spatial_axes": (lambda: L.conv(spatial_axes=(-3, -1)), r"`spatial_axes` \(=\(-3, -1\)\)"),
    "channels": (lambda: L.conv().init(CONV, X[..., :2]), r"`x` of layer 'conv' has 2 channels, .* takes 3"),
    "values": (lambda: L.dense().init(convolution(100, 2), X), r"`x` of layer 'dense' has 192 values"),
    "params": (lambda: L.conv().init(None, X), r"`params` \(=NoneType\) of layer 'conv' must be a dict"),
    "kernel": (lambda: L.dense().init(CONV, X), r"params\['kernel'\] \(3, 3, 3, 4\) of layer 'dense'"),
    "bias": (lambda: L.conv().init(CONV | {"bias": np.zeros(3, np.float32)}, X), r"params\['bias'\] \(3,\)"),
    "dtype": (lambda: L.conv().init(CONV, X.astype(np.uint8)), r"`x` of layer 'conv' has dtype uint8"),
    "mean of integers": (lambda: L.avg_pool().init(None, X.astype(np.uint8)),
                         r"`x` of layer 'avg_pool' has dtype uint8"),
    "rank": (lambda: L.conv().init(CONV, X[0]),
             r"`x` of layer 'conv' has shape \(8, 3\); expected \[H, W, C\]"),
    "no array": (lambda: L.conv().init(CONV, 3), r"`x` \(=int\) of layer 'conv' must be arrays"),
    "no tuple": (lambda: L.add().init(None, X), r"`x` \(=ndarray\) of layer 'join' must be a tuple"),
    "a tuple": (lambda: L.conv().init(CONV, (X, X)), r"`x` \(=tuple\) of layer 'conv' must be one array"),
    "shapes": (lambda: L.add().init(None, (X, X[:4])), r"`x` of layer 'join' has shapes"),
    "dtypes": (lambda: L.add().init(None, (X, X.astype(np.int32))), r"`x` of layer 'join' has dtypes"),
    "masks": (lambda: L.add()(None, L.add().init(None, (X, X)), (None,), (X, X)),
              r"`mask` of layer 'join' has 1 parts"),
    "mask of a vector": (lambda: L.dense()(convolution(3, 2), {}, np.ones(3, bool), X[0, 0]),
                         "must be a single boolean"),
    "mask of a map": (lambda: L.conv()(CONV, L.conv().init(CONV, X), np.ones((4, 4), bool), X),
                      r"`mask` \(shape \(4, 4\)"),
    "another size": (lambda: L.conv()(CONV, L.conv().init(CONV, X), None, X[:4]), "does not fit `cache`"),
    "no cache": (lambda: L.conv()(CONV, None, None, X), r"`cache` \(=NoneType\) is not a cache"),
    "cache of another": (lambda: L.conv().stats(L.max_pool().init(None, X)),
                         r"`cache` was not made by this layer 'conv'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
