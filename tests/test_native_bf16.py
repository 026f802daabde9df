"""Native kernels with products and maps in bfloat16: the law to the bit, and no more than that rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import changes, check_incremental
from test_native import CASES, _compiler, conv, held_back, kernel, native_share, pool

import deltajax as dj
from deltajax._bench import stack15, stack15_params
from deltajax.native import _encode, _library, _segment

pytestmark = pytest.mark.skipif(not _compiler(), reason="needs a C++ compiler: g++, clang++ or CXX")


with_pairs = pytest.mark.usefixtures("_pairs")
RNG = np.random.default_rng(5)


@pytest.fixture
def _pairs():
    if not _library.has_pairs():
        pytest.skip("needs a processor that multiplies bfloat16")


def rounded(x):
    """To bfloat16, of which numbers are floats as well."""
    return jnp.asarray(x, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32)


def steps(inc, params, frames):
    """What a step gives for each frame, and what it would give computing everything."""
    step = jax.jit(inc.step)
    fresh, _ = inc.init(params, frames[0])
    cache = fresh
    for frame in frames:
        output, cache, _ = step(params, cache, None, frame)
        yield np.asarray(output), np.asarray(step(params, fresh, None, frame)[0])


@with_pairs
@pytest.mark.parametrize("name, held, near", [
    *((name, False, 0) for name in CASES), ("blocks", True, 0), ("residuals", True, 0),
    ("inverted residual", False, float("inf")), ("blocks", False, float("inf")),
])
def test_where_a_position_is_computed_makes_no_difference_to_a_bit(name, held, near, monkeypatch):
    """And the result is that of bfloat16: not more exact, where there are products, and hardly less."""
    monkeypatch.setattr(_segment, "NEAR", near)
    monkeypatch.setattr(_encode, "PAIR_COST", 0)  # products of pairs wherever they can be
    fn, params, count = CASES[name]
    size = (24, 68) if name in ("up and join", "enlarged", "strided blocks", "groups") else (23, 70)
    frames = changes((2, *size, count))
    inc = dj.incremental(fn, kernels="native-bf16", taus=held_back(fn, params, frames[0]) if held else {})
    for frame, (output, whole) in zip(frames, steps(inc, params, frames), strict=True):
        np.testing.assert_array_equal(output, whole)
        right = np.asarray(fn(params, frame))
        error = np.linalg.norm(output - right) / np.linalg.norm(right)
        assert error < 2e-2 and (error > 1e-3 or name in ("pools", "few channels")), error


@with_pairs
@pytest.mark.parametrize("channels", [(3, 32, 40), (7, 35, 18), (20, 16, 2), (64, 64, 48), (48, 8, 6)])
def test_it_is_what_is_rounded_that_is_multiplied_and_the_rest_is_exact(channels, monkeypatch):
    """Direct convolutions: of five taps, of one, of one channel; the map between two of them is of bfloat16 as well."""
    monkeypatch.setattr(_encode, "PAIR_COST", 0)
    first, second = kernel(5, 3, *channels[:2]), kernel(1, 3, *channels[1:])

    def network(_, x):
        return conv(jax.nn.relu(conv(x, first)), second)

    frames = changes((1, 23, 70, channels[0]))
    inc = dj.incremental(network, kernels="native-bf16")
    for frame, (output, _) in zip(frames, steps(inc, (), frames), strict=True):
        between = jax.nn.relu(conv(rounded(frame), rounded(first)))
        right = conv(rounded(between), rounded(second))
        # A sum that lies between two numbers is rounded to either: half a unit in the last place of a few inputs.
        assert np.abs(output - right).max() < 2e-3 * np.abs(right).max()
        assert np.median(np.abs(output - right)) < 1e-6 * np.abs(right).max()


@with_pairs
def test_depthwise_convolutions_read_what_is_stored_and_multiply_floats():
    """Of relu and of what it is made of, with strides, by whole rows and by channels, where nothing else rounds."""
    for count in (2, 4, 6, 8, 16, 20, 34, 48):
        same, each = np.eye(count, dtype=np.float32)[None, None], kernel(3, 3, 1, count)

        def network(_, x, same=same, each=each, count=count):
            y = conv(x, same)
            strided = conv(y, each, 2, ((1, 1), (1, 1)), groups=count)
            return conv(jax.nn.relu(y), each, groups=count), strided, pool(y, "max", 3, 1)

        frames = changes((1, 22, 70, count))
        inc = dj.incremental(network, kernels="native-bf16")
        cache, _ = inc.init((), frames[0])
        step = jax.jit(inc.step)
        for frame in frames:
            found, cache, _ = step((), cache, None, frame)
            y = rounded(frame)
            right = (conv(jax.nn.relu(y), each, groups=count), conv(y, each, 2, ((1, 1), (1, 1)), groups=count),
                     pool(y, "max", 3, 1))
            for a, b in zip(found, right, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{count} channels")


@with_pairs
@pytest.mark.parametrize("held, most", [(False, 2.5), (True, 6)])
def test_blocks_round_little_more_than_direct_products(held, most):
    """Of 64 channels, root mean square: frequencies are rounded and not inputs."""
    x, w = np.maximum(RNG.standard_normal((1, 24, 24, 64)), 0).astype(np.float32), kernel(3, 3, 64, 64)
    same = np.pad(np.eye(64, dtype=np.float32)[None, None], ((2, 2), (2, 2), (0, 0), (0, 0)))  # a direct one

    def fn(_, x):
        return conv(conv(x, w), same)

    inc = dj.incremental(fn, kernels="native-bf16", taus=held_back(fn, (), x) if held else {})
    cache, _ = inc.init((), x)
    output, _, _ = jax.jit(inc.step)((), cache, None, x)
    right = np.asarray(conv(x, w))
    ours, direct = (np.sqrt(np.square(y - right).mean()) for y in (output, rounded(conv(rounded(x), rounded(w)))))
    assert direct < ours < most * direct, ours / direct


@with_pairs
@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_what_has_changed_is_what_the_norm_says_of_what_is_stored(norm):
    """Of any number of channels, by as many tiles as lie side by side; where no norm is near the threshold."""
    by = {"linf": np.max, "l1": np.sum, "l2": lambda x, axis: np.sqrt(np.square(x).sum(axis))}[norm]
    for count in (1, 2, 4, 6, 8, 16, 20, 34):
        gap = np.abs(RNG.standard_normal((1, 8, 76, count))) * (RNG.random((1, 8, 76, 1)) < 0.7)
        gap = np.array(rounded(gap))
        size, tau = by(gap, -1), float(by(np.ones(count), 0)) * 0.8
        gap[np.abs(size - tau) < 1e-3] = 0
        same, add = np.eye(count, dtype=np.float32)[None, None], np.zeros((3, 3, count, 1), np.float32)
        add[1, 1] = 1
        inc = dj.incremental(lambda _, x, same=same, add=add: conv(conv(x, same), add), kernels="native-bf16", tile=4,
                             norm=norm, taus={"conv1": tau})
        cache, _ = inc.init((), np.zeros_like(gap))
        output, cache, _ = jax.jit(inc.step)((), cache, None, np.zeros_like(gap))
        output, cache, _ = jax.jit(inc.step)((), cache, None, gap)
        held = np.where((by(gap, -1) > tau)[..., None], gap, 0).sum(-1, keepdims=True)
        np.testing.assert_allclose(output, held, rtol=1e-5, atol=1e-5, err_msg=f"{count} channels")


@with_pairs
def test_a_change_below_the_rounding_of_what_is_stored_goes_no_further():
    """Nor does the sign of a zero."""
    same = np.eye(4, dtype=np.float32)[None, None]
    row = np.pad(same, ((0, 0), (1, 1), (0, 0), (0, 0)))  # reads a stored map, and no row beside its own
    inc = dj.incremental(lambda _, x: conv(conv(x, same) * 0.5, row), kernels="native-bf16", tile=4)
    x = np.ones((1, 16, 16, 4), np.float32)
    x[0, 0] = 0
    cache, _ = inc.init((), x)
    step, marks = jax.jit(inc.step), []
    for frame in (x, np.where(x == 0, np.float32(-1.5e-38), np.float32(1.001)), x * 1.02):
        _, cache, mask = step((), cache, None, frame)
        marks.append((*(int(segment.tiles_issued) for segment in inc.stats(cache).segments), int(mask.sum())))
    assert marks == [(16, 16, 256), (16, 0, 0), (16, 16, 15 * 16)]


@with_pairs
def test_what_is_not_finite_is_gone_when_its_cause_is():
    fn, params, count = CASES["blocks"]
    before = RNG.standard_normal((1, 24, 32, count)).astype(np.float32)
    broken = before.copy()
    broken[0, 9, 13], broken[0, 17, 2] = np.nan, np.inf
    inc = dj.incremental(fn, kernels="native-bf16")
    found = [output for output, _ in steps(inc, params, [before, broken, broken, before])]
    np.testing.assert_array_equal(found[3], found[0])
    np.testing.assert_array_equal(found[2], found[1])
    reached = ~np.isfinite(fn(params, broken)).all(-1)
    beside = np.asarray(pool(jnp.asarray(reached[..., None], jnp.float32), "max", 5, 1)[..., 0] > 0)
    lost = ~np.isfinite(found[1]).all(-1)
    assert reached.any() and (lost >= reached).all() and (lost <= beside).all()


@with_pairs
def test_maps_take_half_the_memory_but_those_that_others_read():
    """Not the output, nor what is read whole, nor maps of an odd number of channels."""
    params = stack15_params()
    frame = jax.ShapeDtypeStruct((96, 128, 3), jnp.float32)
    ours, floats = (dj.incremental(stack15, kernels=k).plan(params, frame) for k in ("native-bf16", "native"))
    assert [s.native.bfloat16 for s in ours.segments] == [True] * 15
    inner = sum(floats.layouts[v].size for v in floats.maps if v is not floats.frame and v not in floats.outputs)
    assert sum(floats.layouts[v].size for v in floats.maps) - sum(ours.layouts[v].size for v in ours.maps) == inner / 2
    assert 4 * (floats.pool.begins[-1] - ours.pool.begins[-1]) == pytest.approx(inner / 2, rel=1e-2)
    shapes = [kernel(3, 3, 3, 9), kernel(3, 3, 9, 8), kernel(3, 3, 8, 4)]

    def gated(params, x):
        y = conv(conv(x[None], params[0]), params[1])
        return conv(y, params[2]) * y.mean()

    plan = dj.incremental(gated, kernels="native-bf16").plan(shapes, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    kinds = {(value.shape[-1], plan.layouts[value].dtype.name) for value in plan.maps}
    assert kinds == {(3, "float32"), (9, "float32"), (8, "float32"), (4, "float32")}


@with_pairs
def test_explain_says_so_and_counts_it():
    fn, params, count = CASES["bottleneck"]
    frame = jax.ShapeDtypeStruct((1, 32, 32, count), jnp.float32)
    ours, floats = (dj.incremental(fn, kernels=kernels).explain(params, frame) for kernels in ("native-bf16", "native"))
    assert {s.how for s in ours.segments} == {"native-bf16"} and {s.how for s in floats.segments} == {"native"}
    assert ours.segments[0].cache_bytes * 2 == floats.segments[0].cache_bytes
    assert ours.cache_bytes < floats.cache_bytes


@with_pairs
@pytest.mark.parametrize("taps, stride, inputs, outputs, stored, taken", [
    (1, 1, 8, 8, False, False), (3, 2, 4, 1, False, False), (3, 2, 4, 1, True, True), (3, 2, 3, 16, False, False),
    (3, 1, 3, 32, False, True), (1, 1, 32, 32, False, True),
])
def test_products_of_pairs_are_taken_where_they_pay(taps, stride, inputs, outputs, stored, taken, monkeypatch):
    ops, real = [], _encode.operation_words
    monkeypatch.setattr(_encode, "operation_words", lambda slots, op: ops.append(op) or real(slots, op))
    first = kernel(1, 1, inputs, inputs)

    def network(params, x):
        return conv(conv(x, first) if stored else x, params, stride)

    x = jax.ShapeDtypeStruct((1, 32, 32, inputs), jnp.float32)
    dj.incremental(network, kernels="native-bf16").plan(kernel(taps, taps, inputs, outputs), x)
    last = [op for op in ops if op.kind == _encode.CONVOLUTION][-1]
    assert bool(last.pairs & _encode.OF_PAIRS) == taken


def test_on_other_processors_it_is_float32(monkeypatch):
    monkeypatch.setattr(_library, "has_pairs", lambda: False)
    fn, params, count = CASES["bottleneck"]

    def network(params, frame):
        return fn(params, frame[None])[0]

    frames = changes((23, 30, count))
    check_incremental(network, params, frames, rel=4e-6, kernels="native-bf16")
    assert native_share(dj.incremental(network, kernels="native-bf16"), params, frames[0]) > 0.95


@with_pairs
def test_a_cache_of_floats_is_refused():
    frame, (fn, params, _) = jnp.zeros((1, 16, 16, 4)), CASES["bottleneck"]
    bf16, floats = (dj.incremental(fn, kernels=kernels) for kernels in ("native-bf16", "native"))
    for inc, other in ((bf16, floats), (floats, bf16)):
        with pytest.raises(ValueError, match=r"does not fit `cache`"):
            inc.step(params, other.init(params, frame)[0], None, frame)


@with_pairs
@pytest.mark.parametrize("streams", [1, 3])
def test_what_reads_maps_to_find_thresholds_reads_numbers(streams):
    """By how much a layer varies, and so how the search and `tau="auto"` begin, under vmap as well."""
    fn, params, count = CASES["bottleneck"]
    clip = np.stack(changes((1, 24, 32, count))[:3])
    frames = np.stack([clip * (1 + number) for number in range(streams)])

    def network(params, x):
        return fn(params, fn(params, x)[..., :count])

    found = []
    for kernels in ("native", "native-bf16"):
        inc = dj.incremental(network, kernels=kernels, tau="auto", max_error=0.05)
        step = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))
        caches = jax.vmap(lambda x, inc=inc: inc.init(params, x)[0])(frames[:, 0])
        for number in range(3):
            _, caches, _ = step(params, caches, None, frames[:, number])
        found.append(np.asarray(caches["control"]["units"]))
    assert found[0].min() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=2e-2)


@with_pairs
def test_the_search_for_thresholds_reads_numbers():
    fn, params, count = CASES["blocks"]
    clip = [frame[0] for frame in changes((1, 24, 32, count))]
    inc = dj.incremental(lambda p, x: fn(p, x[None])[0], kernels="native-bf16")
    found = dj.tune(inc, params, clip, tolerance=0.3, trials=4)
    assert found.met and 0 < found.chosen.error <= 0.3
