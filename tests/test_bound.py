"""The bound on the output's error: it holds for every frame that is held back, and for one layer it is attained."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from real import data, needs_data, pictures
from test_random import HEADS, NETWORKS, network

import deltajax as dj
from deltajax import _jaxpr
from deltajax._bound import Interval, interpret
from deltajax.models import get_model


def kernel(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values / math.sqrt(math.prod(shape[:-1])), jnp.float32)


def conv(x, window, stride=1, padding="SAME"):
    return lax.conv_general_dilated(x[None], window, (stride, stride), padding,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def pool(x, how, start):
    return lax.reduce_window(x, np.float32(start), how, (2, 2, 1), (2, 2, 1), "VALID")


def noisy(shape, tau, count=4, seed=0, dtype=np.float32, span=1.0):
    """Drift and noise about the size of `tau`, so that some is held back, and a part that moves."""
    rng = np.random.default_rng(seed)
    frame = rng.random(shape) * span
    found = []
    for _ in range(count):
        found.append(np.clip(frame, 0, span).astype(dtype))
        frame = frame + rng.uniform(-0.9 * tau, 0.9 * tau, shape)
        frame[..., 2:6, 3:7, :] = rng.random(frame[..., 2:6, 3:7, :].shape) * span
    return found


def check(fn, params, frames, **options):
    """The law, for every frame; the greatest bound of each frame."""
    inc = dj.incremental(fn, **options)
    cache, _ = inc.init(params, frames[0])
    step, bound, dense = (jax.jit(f) for f in (inc.step, inc.error_bound, fn))
    greatest = []
    for number, frame in enumerate(frames):
        output, cache, _ = step(params, cache, None, frame)
        bounds, right = bound(params, cache), dense(params, frame)
        assert jax.tree.structure(bounds) == jax.tree.structure(output)
        for got, most, want in zip(*map(jax.tree.leaves, (output, bounds, right)), strict=True):
            assert most.shape == got.shape and not np.isnan(most).any() and (most >= 0).all()
            got64, want64 = (np.asarray(x, np.float64) for x in (got, want))
            error, size = np.abs(got64 - want64), np.abs(want64)
            rounding = 5e-6 * size.max() if jnp.issubdtype(got.dtype, jnp.inexact) else 0
            over = error - np.asarray(most, np.float64) * (1 + 1e-5) - rounding
            assert (over <= 0).all(), f"frame {number}: off by {error.max():.3g}, over by {over.max():.3g}"
        greatest.append([float(most.max()) for most in jax.tree.leaves(bounds)])
    return greatest


# ------------------------------------------------------------------------------------------------------ networks

IMAGE = (16, 20, 3)


def stack(params, x):
    x = jax.nn.relu(conv(x, params[0]))
    return jax.nn.relu(conv(pool(x, lax.max, -np.inf), params[1], 2) + 0.1)


def residual(params, x):
    x = conv(x, params[0])
    return x + conv(jax.nn.leaky_relu(conv(x, params[1])), params[2]), jnp.argmax(x, axis=-1), (x > 0).any(-1)


def gated(params, x):
    x = jax.nn.silu(conv(x, params[0]))
    x = x * jax.nn.sigmoid(x.mean((0, 1)) @ params[3])[None, None]
    return pool(x, lax.add, 0) / 4


def classes(params, x):
    x = jnp.tanh(conv(x, params[0], 2)).reshape(-1)
    return jax.nn.softmax(x @ params[4])


def resized(params, x):
    x = jax.image.resize(conv(x, params[0], 2), (16, 20, 8), "bilinear")
    return jnp.concatenate([x, jnp.flip(x, 1)], -1)[::2]


def attention(params, x):
    x = conv(x, params[0], 4).reshape(-1, 8)
    x = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 0.1)
    return jax.nn.softmax((x @ params[3]) @ x.T) @ x


NETS = {f.__name__: f for f in (stack, residual, gated, classes, resized, attention)}
PARAMS = [kernel(3, 3, 3, 8), kernel(3, 3, 8, 8, seed=1), kernel(3, 3, 8, 8, seed=2), kernel(8, 8, seed=3),
          kernel(8 * 10 * 8, 5, seed=4)]


def fed(fn, tau):
    """Some named segment of `fn`, with a threshold."""
    spec = jax.ShapeDtypeStruct(IMAGE, np.float32)
    return {s.name: tau for s in dj.incremental(fn).explain(PARAMS, spec).segments[:2] if s.how == "tiles"}


@pytest.mark.parametrize("name, inside, options", [
    ("stack", 0.0, {"tau": 0.03}), ("residual", 0.05, {"tau": 0.02, "norm": "l2", "cell": 2}),
    ("gated", 0.05, {"tau": 0.03}), ("classes", 0.0, {"tau": 0.02, "norm": "l1", "field": 3}),
    ("resized", 0.05, {"tau": 0.01}), ("attention", 0.02, {"tau": 0.01}),
])
def test_no_output_is_farther_off_than_its_bound(name, inside, options):
    taus = fed(NETS[name], inside)
    greatest = check(NETS[name], PARAMS, noisy(IMAGE, options["tau"], seed=len(name)), taus=taus, **options)
    assert all(frame[0] > 0 and max(frame) < np.inf for frame in greatest)


@pytest.mark.parametrize("name", ["stack", "residual"])
def test_without_thresholds_it_is_nothing(name):
    assert not any(x for frame in check(NETS[name], PARAMS, noisy(IMAGE, 0.1, count=2)) for x in frame)


@pytest.mark.parametrize("options", [{"taus": {"conv1": 0.1}}, {"tau": 0.05, "reference": "previous"}], ids=str)
def test_where_the_frame_itself_is_kept_it_is_the_error(options):
    inc, frames = dj.incremental(stack, **options), noisy(IMAGE, 0.05)
    cache, _ = inc.init(PARAMS, frames[0])
    step = jax.jit(inc.step)
    for frame in frames:
        output, cache, _ = step(PARAMS, cache, None, frame)
    error = np.abs(output - stack(PARAMS, frames[-1]))
    assert error.max() > 0.01
    np.testing.assert_allclose(jax.jit(inc.error_bound)(PARAMS, cache), error, atol=2e-6)


def test_grey_levels_end_at_0_and_255():
    def fn(params, x):
        return conv(x.astype(jnp.float32) / 255, params)

    greatest = check(fn, PARAMS[0], noisy(IMAGE, 6, dtype=np.uint8, span=255), tau=6.0)
    inc = dj.incremental(lambda params, x: x * params, tau=6.5)
    frame = np.asarray([0, 3, 128, 254], np.uint8).reshape(1, 4, 1)
    _, cache, _ = jax.jit(inc.step)(np.uint8(1), inc.init(np.uint8(1), frame)[0], None, frame)
    np.testing.assert_array_equal(inc.error_bound(np.uint8(1), cache).ravel(), [6, 6, 6, 6])
    assert greatest[0][0] <= 6 / 255 * float(jnp.abs(PARAMS[0]).sum((0, 1, 2)).max()) * 1.00001


def test_channels_first():
    def fn(params, x):
        return stack(params, x.transpose(1, 2, 0)).transpose(2, 0, 1)

    frames = [x.transpose(2, 0, 1) for x in noisy(IMAGE, 0.03)]
    check(fn, PARAMS, frames, tau=0.03, spatial_axes=(-2, -1))


def test_streams():
    fn = jax.vmap(gated, (None, 0))
    check(fn, PARAMS, noisy((2, *IMAGE), 0.03), tau=0.03)


def test_vmap_over_caches():
    inc, frames = dj.incremental(stack, tau=0.03), noisy(IMAGE, 0.03, 2)
    step, first = jax.jit(inc.step), inc.init(PARAMS, frames[0])[0]
    caches = [step(PARAMS, first, None, frame)[1] for frame in frames]
    together = jax.jit(jax.vmap(inc.error_bound, (None, 0)))(PARAMS, jax.tree.map(lambda *x: jnp.stack(x), *caches))
    one = jax.jit(inc.error_bound)
    np.testing.assert_allclose(together, [one(PARAMS, cache) for cache in caches], rtol=1e-5)


def test_one_linear_layer_attains_it():
    window, tau = kernel(3, 3, 2, 1), 0.125
    held = np.random.default_rng(0).random((9, 9, 2)).astype(np.float32)
    worst = held.copy()
    worst[3:6, 4:7] += tau * np.sign(window[..., 0])
    inc = dj.incremental(lambda params, x: conv(x, params), tau=tau * 1.001)
    step = jax.jit(inc.step)
    output, cache, _ = step(window, inc.init(window, held)[0], None, held)
    again, cache, _ = step(window, cache, None, worst)
    np.testing.assert_array_equal(output, again)  # all of it is held back
    error = jnp.abs(again - conv(jnp.asarray(worst), window))[4, 5, 0]
    np.testing.assert_allclose(error * 1.001, inc.error_bound(window, cache)[4, 5, 0], rtol=1e-5)


def test_a_dead_relu_stops_it():
    inc = dj.incremental(lambda params, x: jax.nn.relu(conv(x, params) - 100), tau=0.5)
    frame = np.ones(IMAGE, np.float32)
    _, cache, _ = jax.jit(inc.step)(PARAMS[0], inc.init(PARAMS[0], frame)[0], None, frame)
    assert not np.any(inc.error_bound(PARAMS[0], cache))


def test_behind_an_operation_without_a_rule_anything_may_be():
    def fn(params, x):
        spectrum = jnp.fft.fft(x, axis=0)
        return jnp.abs(spectrum), spectrum, jnp.where(x > 2, jnp.cumprod(x, 0), 3), x + 1, jnp.float32(params)

    inc, frame = dj.incremental(fn, tau=0.1), np.ones(IMAGE, np.float32)
    cache, _ = inc.init(2.0, frame)
    cache = jax.jit(inc.step)(2.0, cache, None, frame)[1]
    size, spectrum, hidden, linear, fixed = inc.error_bound(2.0, cache)
    assert np.isinf(size).all() and np.isinf(spectrum).all() and spectrum.dtype == np.float32
    assert not hidden.any() and not fixed.any()
    np.testing.assert_allclose(linear, 0.1, rtol=1e-5)


def test_a_fresh_cache_promises_nothing():
    for tau in (0.0, 0.1):
        inc = dj.incremental(stack, tau=tau)
        assert np.isinf(inc.error_bound(PARAMS, inc.init(PARAMS, np.ones(IMAGE, np.float32))[0])).all()


def test_another_cache_is_refused():
    inc, other = dj.incremental(stack), dj.incremental(classes)
    cache, _ = other.init(PARAMS, np.ones(IMAGE, np.float32))
    with pytest.raises(ValueError, match="`cache` was not made by this `Incremental`; call its `init` or `step` first"):
        inc.error_bound(PARAMS, cache)


@needs_data
@pytest.mark.slow  # compiles the whole network
def test_a_real_network_on_a_real_clip():
    model = get_model("slim-320")
    frames = [model.prepare(rgb) for rgb in pictures("static/vtest.avi", 0, 3, 6)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = model.load(data("weights/version-slim-320.pth"))
        boxes, scores = zip(*check(model.apply, params, frames, tau=8.0), strict=True)
    assert max(scores) <= 1 and max(boxes) > 1e6  # all that is known of so deep a network


# ------------------------------------------------------------------------------------------------------ rules

SIGNED, POSITIVE = (-2.0, 2.0), (0.3, 3.0)
INDICES = np.asarray([2, 0, 0, 3])
FLOATS = {
    **{name: (getattr(jnp, name), SIGNED) for name in (
        "abs square exp exp2 expm1 tanh sin cos sinh cosh arctan arcsinh cbrt floor ceil round sign negative "
        "argmax argmin isfinite cumsum sort max min sum var".split())},
    **{name: (getattr(jnp, name), POSITIVE) for name in "log log1p sqrt reciprocal".split()},
    **{name: (getattr(jax.nn, name), SIGNED) for name in (
        "relu relu6 gelu silu hard_swish elu softplus leaky_relu sigmoid softmax log_softmax".split())},
    "rsqrt": (lax.rsqrt, POSITIVE), "erf": (lax.erf, SIGNED), "erfc": (lax.erfc, SIGNED),
    "of no sign": (lambda x: 1 / x, SIGNED), "root of less": (lambda x: jnp.sqrt(jnp.maximum(x, 0)), SIGNED),
    "powers": (lambda x: [x**n for n in (2, 3, -1, -2)], SIGNED),
    "its square": (lambda x: x * x, SIGNED), "with itself": (lambda x: x * x[::-1] - x, SIGNED),
    "power": (lambda x: x ** x[::-1], POSITIVE), "quotient": (lambda x: x / x[::-1], POSITIVE),
    "clip": (lambda x: jnp.clip(x, -x[::-1] - 1, 1), SIGNED),
    "comparisons": (lambda x: [x < 0, x <= x[::-1], x > 1, x >= 0, x == 0, x != x[::-1], ~(x < 0) & (x > -1),
                               (x < 0) ^ (x > -1), jnp.any(x > 1), jnp.all(x > 1)], SIGNED),
    "choice": (lambda x: jnp.where(x > 0, x, x[::-1] * 3), SIGNED),
    "of three": (lambda x: lax.select_n(jnp.argmax(x, 1, keepdims=True) + jnp.zeros_like(x, int), x, -x, x + 1, x * 0),
                 SIGNED),
    "matrix": (lambda x: x @ (jnp.arange(20.0).reshape(4, 5) - 9), SIGNED), "product": (lambda x: x @ x.T, SIGNED),
    "rows": (lambda x: x[INDICES], SIGNED), "dynamic": (lambda x: lax.dynamic_slice(x, (1, 2), (3, 2)), SIGNED),
    "written": (lambda x: x.at[1:3].set(x[:2] * 2).at[INDICES].add(x[:4]), SIGNED),
    "top": (lambda x: lax.top_k(x, 2), SIGNED), "pad": (lambda x: jnp.pad(x, 2, "reflect"), SIGNED),
    "to integers": (lambda x: [(x * 9).astype(np.int32), x.astype(bool), (x * 200).astype(np.int8)], POSITIVE),
    "split": (lambda x: jnp.stack(jnp.split(x, 2, 1)), SIGNED),
    "max pool": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (2, 2), (1, 1), "SAME"), SIGNED),
    "sum pool": (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 1), "SAME"), SIGNED),
    "branches": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: -x, x), SIGNED),
    "known branch": (lambda x: lax.switch(jnp.int32(7), [jnp.sin, lambda x: -x, jnp.exp], x), SIGNED),
    "scan": (lambda x: lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), x[0], x, reverse=True), SIGNED),
    "counted": (lambda x: lax.fori_loop(0, 3, lambda i, x: x.at[i].set(x[i + 1] / (i + 1)), x), SIGNED),
    "checkpoint": (jax.checkpoint(lambda x: jnp.exp(x) - 1), SIGNED),
    "shares": (lambda x: jnp.exp(x - 7) / jnp.exp(x - 7).sum(0, keepdims=True), SIGNED),
    "not quite shares": (lambda x: jnp.exp(x - x[:1]) / jnp.exp(x - x[:1]).sum(1, keepdims=True), SIGNED),
}
WHOLE = {
    "uint8 wraps": lambda x: [x + np.uint8(9), x - np.uint8(9), x * np.uint8(2), x // np.uint8(3), x.sum(0), ~x],
    "int32": lambda x: [abs(x.astype(np.int32) - 128), (x.astype(np.int32) - 9) ** 2, -x.astype(np.int32), x.sum()],
    "narrower": lambda x: [x.astype(np.int8), (x.astype(np.uint32) * np.uint32(2**24)).astype(np.int32),
                           (x.astype(np.int32) + 77).astype(np.uint8), x.astype(np.float32)],
    "bits": lambda x: [x & np.uint8(3), x >> np.uint8(1), x % np.uint8(7)],
    "products": lambda x: jnp.dot(x.astype(np.int32), x.astype(np.int32).T),
}


def assert_holds(function, lo, hi, points):
    """What comes out holds the function at all points between, in its shapes and dtypes."""
    jaxpr, constants, _ = _jaxpr.trace(function, jax.ShapeDtypeStruct(lo.shape, lo.dtype))
    found = jax.jit(lambda lo, hi: [(x.lo, x.hi) for x in interpret(jaxpr, constants, [Interval(lo, hi)])])(lo, hi)
    each = jax.jit(function)
    for point in points:
        results, _ = jax.tree.flatten_with_path(each(point))
        for (low, high), (path, y) in zip(found, results, strict=True):
            name = jax.tree_util.keystr(path)
            assert (low.shape, low.dtype, high.shape, high.dtype) == (y.shape, y.dtype) * 2, name
            low, high, y = (np.asarray(x, np.float64) for x in (low, high, y))
            slack = 3e-6 * np.maximum(1, np.abs(y)) if jnp.issubdtype(results[0][1].dtype, jnp.inexact) else 0
            assert ((low - slack <= y) & (y <= high + slack)).all(), (name, low, y, high)
    return found


@pytest.mark.parametrize("domain", [SIGNED, POSITIVE], ids=str)
def test_a_rule_holds_whatever_lies_between(domain):
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(*domain, (2, 5, 4)).astype(np.float32), axis=0)
    ends[1, 3:] = ends[0, 3:]  # certain, as it turns out
    points = [*ends, *(rng.uniform(*ends).astype(np.float32) for _ in range(12))]
    points += [np.where(rng.random((5, 4)) < 0.5, *ends) for _ in range(12)]
    table = {name: function for name, (function, its) in FLOATS.items() if its == domain}

    def each(x):
        return {name: function(x) for name, function in table.items()}

    found = assert_holds(each, *ends, points)
    names, _ = jax.tree.flatten_with_path(jax.eval_shape(each, ends[0]))
    for (path, _), pair in zip(names, found, strict=True):
        known = path[0].key in ("of no sign", "powers") or all(np.isfinite(np.asarray(x, float)).all() for x in pair)
        assert known, path
    assert_holds(each, ends[0], ends[0].copy(), [ends[0]])


def test_whole_numbers_that_may_wrap_around_are_anything():
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, 256, (2, 5, 4)).astype(np.uint8), axis=0)
    ends[:, 0], ends[1, 1:3] = 7, ends[0, 1:3] | 1
    points = [*ends, *(rng.integers(*ends, endpoint=True).astype(np.uint8) for _ in range(30))]
    assert_holds(lambda x: {name: function(x) for name, function in WHOLE.items()}, *ends, points)


def test_softmax_is_exact():
    lo, hi = jnp.asarray([0.0, -1, 2, -9]), jnp.asarray([1.0, 3, 2, 20])
    low, high = assert_holds(jax.nn.softmax, lo, hi, [lo, hi])[0]
    for i in range(4):
        least, most = hi.at[i].set(lo[i]), lo.at[i].set(hi[i])
        np.testing.assert_allclose([low[i], high[i]], [jax.nn.softmax(x)[i] for x in (least, most)], rtol=1e-6)


def random_bound(layers, head, size, tau, seed):
    """Frames anywhere within tau give what the interval says."""
    rng = np.random.default_rng(seed)
    held = rng.random((*size, 2)).astype(np.float32)
    points = [held + tau * np.float32(s) * np.sign(rng.normal(size=held.shape)).astype(np.float32) for s in (1, 1, 0.5)]
    assert_holds(lambda x: network(layers, head)({}, x), held - np.float32(tau), held + np.float32(tau),
                 [held, *points])


DRAWN = (NETWORKS, HEADS, st.sampled_from([(1, 7), (8, 8), (13, 11)]), st.sampled_from([0.01, 0.2, 2.0]),
         st.integers(0, 9))


@settings(max_examples=10)
@given(*DRAWN)
def test_random_networks(layers, head, size, tau, seed):
    random_bound(layers, head, size, tau, seed)


@pytest.mark.slow
@settings(max_examples=30)
@given(*DRAWN)
def test_more_random_networks(layers, head, size, tau, seed):
    random_bound(layers, head, size, tau, seed)


def test_a_change_that_has_to_stand_may_be_large_until_it_does():
    """Then the held frame is within `large`, not within `tau`; where thresholds move there is no bound."""
    still, fn = np.zeros((6, 6, 3), np.float32), lambda _, frame: frame * 2
    inc = dj.incremental(fn, tau=0.1, stand=3, large=0.5)
    cache, _ = inc.init({}, still)
    step = jax.jit(inc.step)
    _, cache, _ = step({}, cache, None, still)
    output, cache, _ = step({}, cache, None, still + 0.4)
    assert (np.abs(np.asarray(output) - 2 * (still + 0.4)) <= np.asarray(inc.error_bound({}, cache))).all()
    assert float(np.max(inc.error_bound({}, cache))) == pytest.approx(1.0)
    inc = dj.incremental(fn, tau=0.1, max_error=0.1)
    with pytest.raises(ValueError, match="`error_bound` has no bound where `max_error`"):
        inc.error_bound({}, inc.init({}, still)[0])
