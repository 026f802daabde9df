"""Audits find the error that is there, and thresholds follow them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import deltajax as dj
from deltajax._audit import FEWEST, KEPT, Audit, measure_audit, output_error
from deltajax._control import HIGHEST, LOWEST, SHARE, Control
from deltajax.tuning import metrics

RNG = np.random.default_rng(8)
PARAMS = jnp.asarray(RNG.standard_normal((3, 3, 3, 4)) / 5, jnp.float32)


def network(kernel, frame):
    x = frame.astype(jnp.float32)[None] / 255
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    return {"map": jax.nn.relu(x), "mean": x.mean(axis=(0, 1))}


def clip(length, noise=3.0, shape=(24, 32, 3), seed=0):
    """A still picture, a noisy camera, a square that wanders."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 190, shape)
    frames = base + rng.normal(0, noise, (length, *shape))
    for number in range(length):
        frames[number, 4:12, number % 20: number % 20 + 8] = 240
    return jnp.asarray(np.clip(frames, 0, 255).astype(np.uint8))


@functools.partial(jax.jit, static_argnums=0)
def run(inc, frames):
    """Outputs and statistics of every frame."""

    def step(cache, frame):
        output, cache, _ = inc.step(PARAMS, cache, None, frame)
        return cache, (output, inc.stats(cache))

    return lax.scan(step, inc.init(PARAMS, frames[0])[0], frames)[1]


def true_errors(outputs, frames):
    dense = jax.vmap(functools.partial(network, PARAMS))(frames)
    return np.asarray(jax.vmap(output_error)(dense, outputs))


def test_an_audit_finds_the_true_error():
    """One in each run of ten frames, and what it finds is the error of that frame."""
    frames = clip(60)
    outputs, stats = run(dj.incremental(network, tau=9.0, tile=8, audit=0.1), frames)
    true = true_errors(outputs, frames)
    counts = np.asarray(stats.audit.count)
    assert counts[9::10].tolist() == [1, 2, 3, 4, 5, 6]
    audited = np.flatnonzero(np.diff(counts, prepend=0))
    assert len(set(audited % 10)) > 1  # drawn, not every tenth
    np.testing.assert_allclose(np.asarray(stats.audit.last)[audited], true[audited], rtol=1e-4)
    assert (true[1:] > 0).all()
    assert np.isnan(np.asarray(stats.audit.last)[: audited[0]]).all()
    np.testing.assert_allclose(stats.audit.mean[-1], true[audited].mean(), rtol=1e-4)


def test_exact_steps_have_no_error():
    frames = clip(FEWEST)
    _, stats = run(dj.incremental(network, tile=8, audit=1.0), frames)
    assert np.asarray(stats.audit.count).tolist() == list(range(1, FEWEST + 1))
    assert np.isinf(stats.audit.upper[-2]) and float(stats.audit.upper[-1]) < 2e-6


def test_an_audit_sees_what_the_step_does_wrong():
    """It does not share the fault: a trusted mask that claims too little is found out."""
    frames = clip(20)
    inc = dj.incremental(network, trust_mask=True, tile=8, audit=0.5)
    cache, _ = inc.init(PARAMS, frames[0])
    step = jax.jit(inc.step)
    for frame in frames:
        _, cache, _ = step(PARAMS, cache, jnp.zeros((24, 32), bool), frame)
    assert float(inc.stats(cache).audit.last) > 0.01


def test_the_bound_covers_the_error():
    """Of 400 frames after the 19th audit, at least 95 % have an error below the bound known at that time."""
    frames = clip(400)
    outputs, stats = run(dj.incremental(network, tau=12.0, tile=8, audit=0.1), frames)
    known = np.asarray(stats.audit.count) >= FEWEST
    assert np.isinf(np.asarray(stats.audit.upper)[~known]).all()
    covered = true_errors(outputs, frames) <= np.asarray(stats.audit.upper)
    assert covered[known].mean() >= 0.95
    low, mean, high = (np.asarray(getattr(stats.audit, name))[-1] for name in ("low", "mean", "high"))
    assert 0 <= low < mean < high < np.asarray(stats.audit.upper)[-1]


@pytest.mark.slow
def test_the_interval_covers_the_mean():
    """Of 2,000 drawn clips of errors the 95 % interval holds the true mean in 93 to 97 %."""
    drawn = np.random.default_rng(3).normal(2.0, 0.3, (2000, 12)).astype(np.float32)
    errors = np.full((2000, 1, KEPT), np.nan, np.float32)
    errors[:, 0, :12] = drawn
    stats = jax.vmap(lambda e: measure_audit({"count": jnp.asarray([12]), "errors": e}))(jnp.asarray(errors))
    assert 0.93 < np.mean((stats.low <= 2.0) & (stats.high >= 2.0)) < 0.97


def test_only_the_last_errors_count():
    audit = Audit(1, lambda dense, output: output)
    state = audit.initial()
    for number in range(2 * KEPT):
        error = 9.0 if number < KEPT else 1.0
        state, _ = audit.run(functools.partial(jnp.full_like, fill_value=error, dtype=jnp.float32), state)
    found = measure_audit(state)
    assert (int(found.count), float(found.mean), float(found.upper)) == (2 * KEPT, 1.0, 1.0)


def test_errors_of_all_kinds():
    a = {"x": jnp.asarray([3.0, 4.0]), "class": jnp.asarray([1, 2, 3, 4])}
    b = {"x": jnp.asarray([3.0, 4.5]), "class": jnp.asarray([1, 2, 3, 9])}
    assert float(output_error(a, b)) == pytest.approx(metrics.output_error(a, b)) == pytest.approx(0.25)
    broken = {"x": jnp.asarray([3.0, jnp.nan]), "class": a["class"]}
    assert np.isinf(output_error(a, broken)) and output_error(broken, broken) == 0


@pytest.mark.slow
def test_errors_of_the_users_own():
    """Any function that JAX can trace; what is not a number is an infinite error."""
    frames = clip(6)
    for of, expected in ((lambda dense, output: jnp.max(jnp.abs(dense["map"])) * 0 + 7.0, 7.0),
                         (lambda dense, output: jnp.nan, np.inf)):
        _, stats = run(dj.incremental(network, tau=5.0, tile=8, audit=1.0, audit_error=of), frames)
        np.testing.assert_allclose(stats.audit.last, expected)


def test_an_error_is_one_number():
    inc = dj.incremental(network, tile=8, audit=1.0, audit_error=lambda dense, output: dense["mean"] - output["mean"])
    with pytest.raises(ValueError, match=r"`audit_error` must return one number, not an array of shape \(4,\)"):
        run(inc, clip(2))


def test_audits_under_vmap():
    """All calls are audited where one has its turn, each with its own error."""
    frames = jnp.stack([clip(10, noise, seed=seed) for seed, noise in enumerate((0.0, 4.0))])
    inc = dj.incremental(network, tau=9.0, tile=8, audit=0.2)
    caches = jax.vmap(lambda f: inc.init(PARAMS, f)[0])(frames[:, 0])
    step = jax.jit(jax.vmap(lambda c, f: inc.step(PARAMS, c, None, f)))
    for number in range(10):
        _, caches, _ = step(caches, frames[:, number])
    stats = jax.vmap(inc.stats)(caches)
    assert stats.audit.count.tolist() == [2, 2]
    assert float(stats.audit.last[0]) < 2e-6 < 0.001 < float(stats.audit.last[1])


def deep(kernels, frame):
    """Strides, padding, a pool, a resize, two outputs of other sizes, positions that are fixed."""
    x = frame.astype(jnp.float32) / 255 + jnp.linspace(0, 1, frame.size).reshape(frame.shape)[..., :1]
    for stride, kernel in zip((1, 2, 1), kernels, strict=True):
        x = x if x.ndim == 4 else x[None]
        x = lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.sigmoid(x)
    x = x if frame.ndim == 4 else x[0]
    wide = jax.image.resize(x, (*x.shape[:-3], 2 * x.shape[-3], 2 * x.shape[-2], x.shape[-1]), "linear")
    return x, {"class": jnp.argmax(wide, axis=-1), "wide": wide}


KERNELS = [jnp.asarray(RNG.standard_normal((3, 3, c, 4)), jnp.float32) for c in (3, 4, 4)]


@pytest.mark.parametrize("streams", [(), pytest.param((2,), marks=pytest.mark.slow)])
def test_tiles_are_computed_afresh_as_the_function_has_them(streams):
    """An exact step has no error in any of a thousand tiles; one with thresholds has that of the function."""
    frames = jnp.stack([clip(4, shape=(36, 44, 3), seed=seed) for seed in range(2)], axis=1)
    frames = frames if streams else frames[:, 0]
    found = []
    for tau in (0.0, 20.0):
        inc = dj.incremental(deep, tau=tau, tile=4, audit=1.0, audit_tiles=200)
        cache, _ = inc.init(KERNELS, frames[0])
        step = jax.jit(inc.step)
        for frame in frames:
            output, cache, _ = step(KERNELS, cache, None, frame)
        found.append((float(inc.stats(cache).audit.last), float(output_error(deep(KERNELS, frames[-1]), output))))
    assert found[0][0] < 2e-6
    assert found[1][0] == pytest.approx(found[1][1], rel=0.2)
    assert found[1][1] > 0.005


@pytest.mark.slow
def test_tiles_under_vmap():
    frames = jnp.stack([clip(3, noise, (24, 32, 3), seed) for seed, noise in enumerate((0.0, 4.0))])
    inc = dj.incremental(deep, tau=9.0, tile=8, audit=1.0, audit_tiles=40)
    caches = jax.vmap(lambda f: inc.init(KERNELS, f)[0])(frames[:, 0])
    step = jax.jit(jax.vmap(lambda c, f: inc.step(KERNELS, c, None, f)))
    for number in range(3):
        _, caches, _ = step(caches, frames[:, number])
    still, noisy = jax.vmap(inc.stats)(caches).audit.last.tolist()
    assert still < noisy / 2


def test_tiles_need_an_output_of_tiles():
    with pytest.raises(ValueError, match=r"`audit_tiles` cannot be used .* an output depends on the whole picture"):
        dj.incremental(network, audit=1.0, audit_tiles=2).init(PARAMS, clip(1)[0])


def test_tiles_that_cost_more_than_all_are_refused():
    def wide(kernel, frame):
        for _ in range(5):
            frame = lax.conv_general_dilated(
                frame.astype(jnp.float32)[None], kernel, (1, 1), "SAME", rhs_dilation=(8, 8),
                dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
        return frame

    with pytest.raises(ValueError, match=r"`audit_tiles` does not pay .* costs \d+\.\d times all of the output"):
        dj.incremental(wide, audit=1.0, audit_tiles=2).init(PARAMS[..., :3], clip(1)[0])


# ---------------------------------------------------------------------------------------------- control


def changing_clip(length=240):
    """Two clips joined: a camera with little noise, then another scene with much."""
    return jnp.concatenate([clip(length // 2, 0.3), clip(length // 2, 25.0, seed=4)])


@pytest.mark.parametrize("options", [pytest.param({"tau": "auto"}, marks=pytest.mark.slow), {"tau": 30.0}])
def test_few_audits_find_too_large_an_error(options):
    """Across a change of the clip's character, and thresholds are lower after it."""
    frames = changing_clip()
    allowed = 0.02
    inc = dj.incremental(network, tile=8, max_error=allowed, audit=0.2, **options)
    outputs, stats = run(inc, frames)
    true = true_errors(outputs, frames)
    assert (true > allowed).mean() < 0.2
    assert float(jnp.mean((stats.flops_issued / stats.flops_dense)[20:120])) < 0.9  # it does hold something back
    level = np.asarray(stats.level)
    assert level[119] > level[-1]
    without = run(dj.incremental(network, tile=8, tau=30.0), frames)[0]
    assert (true_errors(without, frames) > allowed)[130:].mean() > 0.5


def test_too_large_an_error_is_answered_by_a_whole_frame():
    frames = clip(40)
    inc = dj.incremental(network, tau=50.0, tile=8, max_error=1e-4, audit=1.0)
    _, stats = run(inc, frames)
    found = np.asarray(stats.audit.last) > 1e-4
    assert found[:-1].any()
    assert (np.asarray(stats.whole_frames)[1:][found[:-1]] == 1).all()


def test_the_law_of_the_share():
    """However errors follow the level, no more of them are too large than the law says."""
    plan = dj.incremental(network).plan(PARAMS, jnp.zeros((24, 32, 3), jnp.uint8))
    control = Control(1.0, find_units=False)
    step = jax.jit(lambda state, error: control.after(plan, state, error, {"age": jnp.ones((1,), jnp.int32)}))
    rng = np.random.default_rng(2)
    for hardness in (lambda n: 0.0, lambda n: 6.0 * (n % 100 > 50), lambda n: rng.normal(0, 4), lambda n: n / 100):
        state, bad, audits = control.initial(plan), 0, 600
        for number in range(audits):
            level = float(state["level"][0])
            error = 0.0 if level <= LOWEST else 2.0 ** (level + hardness(number))
            bad += error > 1.0
            state, _ = step(state, jnp.asarray([error], jnp.float32))
        assert bad <= SHARE * audits + HIGHEST - LOWEST + 1


@pytest.mark.slow
def test_a_level_for_each_call():
    """Under vmap a noisy camera has other thresholds than a still one."""
    frames = jnp.stack([clip(60, noise, seed=seed) for seed, noise in enumerate((0.5, 12.0))])
    inc = dj.incremental(network, tau=6.0, tile=8, max_error=0.01, audit=0.2)
    caches = jax.vmap(lambda f: inc.init(PARAMS, f)[0])(frames[:, 0])
    step = jax.jit(jax.vmap(lambda c, f: inc.step(PARAMS, c, None, f)))
    for number in range(60):
        _, caches, _ = step(caches, frames[:, number])
    level = jax.vmap(inc.stats)(caches).level
    assert float(level[0]) > float(level[1])


@pytest.mark.parametrize(("options", "message"), [
    ({"audit": 1.5}, r"`audit` \(=1.5\) must lie in \[0, 1\]"),
    ({"audit": "often"}, r"`audit` \(='often'\) must lie in"),
    ({"audit_tiles": 2}, r"`audit_tiles` \(=2\) goes with `audit`"),
    ({"audit_tiles": 0, "audit": 1.0}, r"`audit_tiles` \(=0\) must be a whole number >= 1"),
    ({"max_error": -0.1}, r"`max_error` \(=-0.1\) must be a number >= 0"),
    ({"tau": "auto"}, r"`tau='auto'` needs the error to be allowed in `max_error`"),
    ({"tau": "best", "max_error": 0.1}, r"`tau` \(='best'\) must be a number >= 0"),
    ({"audit_error": output_error}, r"`audit_error` .* there are none; give `audit`"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dj.incremental(network, **options)


def test_a_fresh_cache_with_everything_can_be_donated():
    frame = clip(1)[0]
    inc = dj.incremental(network, tau="auto", max_error=0.1, tile=8, max_age=9, scene_cut=27.0, stand=2, large=60.0)
    cache, _ = inc.init(PARAMS, frame)
    output, cache, _ = jax.jit(inc.step, donate_argnums=1)(PARAMS, cache, None, frame)
    assert int(inc.stats(cache).whole_frames) == 1
    np.testing.assert_allclose(output["map"], network(PARAMS, frame)["map"], atol=1e-6)


def test_a_cache_of_other_options():
    frame = clip(1)[0]
    cache, _ = dj.incremental(network, tile=8).init(PARAMS, frame)
    with pytest.raises(ValueError, match=r"`cache` was made with other `audit`, `max_error`"):
        dj.incremental(network, tile=8, audit=0.1).step(PARAMS, cache, None, frame)
