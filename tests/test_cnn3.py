"""The paper's CNN3, written by hand, against its dense twin in Flax, with the trained weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law import assert_close

import deltajax as dj
from deltajax.models import simple_cnn
from deltajax.models.cnn3 import CNN3


def digit() -> np.ndarray:
    """A seven, drawn with two strokes, soft at the edges."""
    row, col = np.mgrid[:64, :64].astype(np.float32)

    def stroke(y0, x0, y1, x1):
        length = (y1 - y0) ** 2 + (x1 - x0) ** 2
        t = np.clip(((row - y0) * (y1 - y0) + (col - x0) * (x1 - x0)) / length, 0, 1)
        return np.hypot(row - y0 - t * (y1 - y0), col - x0 - t * (x1 - x0))

    distance = np.minimum(stroke(24, 25, 24, 38), stroke(24, 38, 41, 30))
    return np.clip(2 - distance, 0, 1).astype(np.float32)[..., None]


@pytest.fixture(scope="module")
def params():
    return simple_cnn.load_params()


@pytest.fixture(scope="module")
def exact(params):
    """The network at tau 0, its compiled step, and the dense function."""
    network = CNN3()
    return network, jax.jit(network.step), jax.jit(simple_cnn.apply)


def test_a_shifting_digit_gets_the_logits_of_flax(exact, params):
    network, step, full = exact
    cache, mask = network.init(params)
    assert mask.shape == (64, 64) and mask.all()
    before, last = None, np.zeros((64, 64, 1), np.float32)
    for shift in (0, 1, 2, 2, 3, 10):
        frame = np.roll(digit(), shift, 1)
        logits, cache, mask = step(params, cache, jnp.asarray((frame != last).any(-1)), frame)
        want = full(params, frame)
        assert_close(logits, want, 2e-6, f"shift {shift}")
        assert bool(mask) == (before is None or not np.array_equal(logits, before))
        before, last = np.asarray(logits), frame
    assert want.argmax() == logits.argmax()


def test_the_digit_is_read(exact, params):
    assert exact[2](params, digit()).argmax() == 7


def test_a_still_frame_issues_nothing(exact, params):
    network, step, _ = exact
    cache, mask = network.init(params)
    first, cache, out = step(params, cache, mask, digit())
    assert out
    second, cache, out = step(params, cache, jnp.zeros_like(mask), digit())
    assert not out
    np.testing.assert_array_equal(first, second)
    for name, layer in network.layers.items():
        assert not cache[name]["issued"].any(), name
        assert not layer.change_map(cache[name]).any(), name


def test_one_pixel_reaches_the_maps_that_the_paper_shows(exact, params):
    """Figure 5, for one pixel: frame 1x1, conv1 3x3, pool1 2x2, conv2 4x4, pool2 3x3, or fewer."""
    network, step, full = exact
    cache, mask = network.init(params)
    frame = np.random.default_rng(0).random((64, 64, 1)).astype(np.float32)
    _, cache, _ = step(params, cache, mask, frame)
    frame = frame.copy()  # not in place: the first step may still be reading
    frame[30, 30] = 1 - frame[30, 30]
    logits, cache, _ = step(params, cache, jnp.zeros((64, 64), bool).at[30, 30].set(True), frame)
    assert_close(logits, full(params, frame), 2e-6)
    reach = {"frame": (30, 31), "conv1": (29, 32), "pool1": (14, 16), "conv2": (13, 17), "pool2": (6, 9)}
    for name, (first, end) in reach.items():
        found = np.array(network.layers[name].change_map(cache[name]))
        assert found.any(), name
        found[first:end, first:end] = False
        assert not found.any(), name


def test_by_hand_is_the_transformed_network(exact, params):
    network, step, _ = exact
    inc = dj.incremental(simple_cnn.apply)
    other_cache, mask = inc.init(params, digit())
    cache, _ = network.init(params)
    other = jax.jit(inc.step)
    for shift in (0, 1):
        frame = np.roll(digit(), shift, 1)
        logits, cache, _ = step(params, cache, mask, frame)
        want, other_cache, _ = other(params, other_cache, mask, frame)
        assert_close(logits, want, 4e-6)


def test_tau_computes_on_the_held_frame(params):
    network = CNN3(tau=0.3, norm="l2")
    cache, mask = network.init(params)
    frame = digit()
    step = jax.jit(network.step)
    _, cache, _ = step(params, cache, mask, frame)
    logits, cache, changed = step(params, cache, jnp.zeros_like(mask), frame + np.float32(0.01))
    assert not changed
    assert_close(logits, simple_cnn.apply(params, frame), 2e-6)
