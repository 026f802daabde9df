"""Moves along the picture that are read off constants: resizes, takes, splits and merges; by rule, and exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import changes, check_incremental

import deltajax as dj
from deltajax._geometry import Window, reading_window

SHAPE = (24, 32, 4)


def resize(height, width, method, **more):
    return lambda p, x: jax.image.resize(x, (height, width, x.shape[-1]), method, **more)


def bilinear_by_index(x):
    """Torch's way to enlarge by two: four gathers with constant indices and weights."""
    rows, cols = (np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1) for n in x.shape[:2])
    r0, c0 = np.floor(rows).astype(int), np.floor(cols).astype(int)
    r1, c1 = np.minimum(r0 + 1, x.shape[0] - 1), np.minimum(c0 + 1, x.shape[1] - 1)
    v, u = (jnp.asarray(rows - r0, x.dtype)[:, None, None], jnp.asarray(cols - c0, x.dtype)[None, :, None])
    above = x[r0[:, None], c0[None]] * (1 - u) + x[r0[:, None], c1[None]] * u
    below = x[r1[:, None], c0[None]] * (1 - u) + x[r1[:, None], c1[None]] * u
    return above * (1 - v) + below * v


def space_to_depth(x, n):
    h, w, c = x.shape
    return x.reshape(h // n, n, w // n, n, c).transpose(0, 2, 1, 3, 4).reshape(h // n, w // n, n * n * c)


def depth_to_space(x, n):
    h, w, c = x.shape
    return x.reshape(h, w, n, n, c // n // n).transpose(0, 2, 1, 3, 4).reshape(h * n, w * n, c // n // n)


LOCAL = {
    **{f"resize {method} up": resize(48, 64, method) for method in ("nearest", "bilinear", "cubic", "lanczos3")},
    **{f"resize {method} down": resize(12, 16, method) for method in ("nearest", "bilinear", "cubic")},
    "resize up by 3/2": resize(36, 48, "bilinear"),
    "resize down by 3/4": resize(18, 24, "bilinear"),
    "resize to odd": resize(31, 45, "bilinear"),
    "resize without antialias": resize(12, 16, "bilinear", antialias=False),
    "rows only": resize(48, 32, "bilinear"),
    "bilinear by index": lambda p, x: bilinear_by_index(x),
    "pooling as a matrix": lambda p, x: jnp.einsum("hwc,hi->iwc", x, jnp.asarray(np.kron(np.eye(12), [[0.5], [0.5]]),
                                                                             x.dtype)),
    "take": lambda p, x: jnp.take(x, jnp.arange(0, 24, 2), axis=0),
    "repeat": lambda p, x: jnp.repeat(jnp.repeat(x, 2, 0), 3, 1),
    "roll": lambda p, x: jnp.roll(x, (1, -2), (0, 1)),
    "roll channels": lambda p, x: jnp.roll(x, 1, 2),
    "shuffle channels": lambda p, x: x[..., jnp.array([2, 0, 3, 1])],
    "channel shuffle": lambda p, x: x.reshape(24, 32, 2, 2).swapaxes(2, 3).reshape(24, 32, 4),
    "space to depth": lambda p, x: space_to_depth(x, 2),
    "focus": lambda p, x: jnp.concatenate([x[i::2, j::2] for i in (0, 1) for j in (0, 1)], -1),
    "depth to space": lambda p, x: depth_to_space(x, 2),
    "there and back": lambda p, x: depth_to_space(jax.nn.relu(space_to_depth(x, 4) - 0.3), 4),
    "windows": lambda p, x: x.reshape(3, 8, 4, 8, 4).swapaxes(1, 2).max((2, 3)),
    "mean pool by reshape": lambda p, x: x.reshape(12, 2, 16, 2, 4).mean((1, 3)),
    "patches": lambda p, x: x.reshape(6, 4, 8, 4, 4).transpose(0, 2, 1, 3, 4).reshape(6, 8, 64) @ p["patch"],
    "reflect": lambda p, x: jnp.pad(x, ((1, 2), (3, 1), (0, 0)), mode="reflect"),
    "symmetric": lambda p, x: jnp.pad(x, ((2, 0), (0, 2), (0, 0)), mode="symmetric"),
    "edge": lambda p, x: jnp.pad(x, ((1, 1), (2, 3), (0, 0)), mode="edge"),
    "flip channels": lambda p, x: x[..., ::-1],
}
ROWS, COLS = np.meshgrid(np.arange(24), np.arange(32), indexing="ij")


def turned(x, angle):
    """The first channel about its centre, bilinear."""
    row, col = ROWS - 11.5, COLS - 15.5
    at = row * np.cos(angle) - col * np.sin(angle) + 11.5, row * np.sin(angle) + col * np.cos(angle) + 15.5
    return jax.scipy.ndimage.map_coordinates(x[..., 0], at, 1)


TOGETHER = {  # what is read moves along both axes, or along one and the channels, at once
    "nearest": lambda p, x: x[np.clip(ROWS + (COLS > 9), 0, 23), np.clip(COLS - ROWS // 8, 0, 31)],
    "points": lambda p, x: x[np.array([3, 20, 7]), np.array([30, 1, 2]), 1:3] * 2,
    "outside": lambda p, x: x.at[np.array([3, 50]), np.array([2, 1])].get(mode="fill", fill_value=7.0),
    "no promise kept": lambda p, x: x.at[np.array([3, 50]), np.array([2, 1])].get(mode="promise_in_bounds"),
    "nor along one axis": lambda p, x: x.at[:, np.array([3, 50])].get(mode="promise_in_bounds"),
    "patches": lambda p, x: jax.vmap(lambda y, u: lax.dynamic_slice(x, (y, u, 0), (3, 5, 2)))(
        np.array([3, 8, 22, 1]), np.array([2, 3, 9, 30])),
    "windows": lambda p, x: x[np.arange(6)[:, None, None] + np.arange(2) * 3, np.arange(8)[:, None] + np.arange(2)],
    "rows and channels": lambda p, x: x[np.array([3, 20, 7]), :, np.array([3, 1, 2])] * 2,
    "channels": lambda p, x: x.reshape(24, 32, 2, 2)[:, :, np.array([0, 1, 1]), np.array([1, 0, 1])],
    "mirrored": lambda p, x: x[np.minimum(COLS.T, 23), ROWS.T],
    "diagonal": lambda p, x: x[jnp.arange(24), jnp.arange(24)],
    "turned a little": lambda p, x: turned(x, 0.05),
    "turned": lambda p, x: turned(x, 1.2),
    "tile": lambda p, x: jnp.tile(x, (2, 1, 3)),
}
FALLBACK = {
    "rows by what is seen": (lambda p, x: x[jnp.argsort(x[:, 0, 0])], "depend on the frame"),
}
PARAMS = {
    "patch": jnp.asarray(np.random.default_rng(1).normal(size=(64, 5)), jnp.float32) / 8,
}


def each(names, table):
    return lambda p, x: {name: table[name](p, x) for name in names}


@pytest.mark.parametrize("start", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
@pytest.mark.parametrize("tile", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_by_rule_and_exact(start, tile):
    names = list(LOCAL)[start::4]
    inc, _ = check_incremental(each(names, LOCAL), PARAMS, changes(SHAPE), tile=tile, given=tile == 5, hasty=True,
                               dense_share=0.9)
    report = inc.explain(PARAMS, changes(SHAPE)[0])
    assert not [s for s in report.segments if s.how == "dense"], str(report)


@pytest.mark.parametrize("names", [
    list(TOGETHER)[:3], ["nor along one axis", "patches", "tile"],
    pytest.param(list(TOGETHER)[3:], marks=pytest.mark.slow)],
    ids=lambda names: names[0])
def test_indices_that_go_together(names):
    fn = each(names, TOGETHER)
    inc, _ = check_incremental(fn, {}, changes(SHAPE), tile=5, hasty=True, dense_share=1.0)
    assert not [s for s in inc.explain({}, changes(SHAPE)[0]).segments if s.how == "dense"]


def test_a_warp_reads_what_is_near():
    """One row below; as columns move with the rows, two to the left."""
    report = dj.incremental(TOGETHER["nearest"], tile=4).explain({}, changes(SHAPE)[0])
    assert report.segments[0].halo == (1, 2)


def test_fallbacks_can_be_refused():
    fn = FALLBACK["rows by what is seen"][0]
    with pytest.raises(ValueError, match=r"`fn`.*gather.*depend on the frame, at .*test_resample.py:\d+"):
        dj.incremental(fn, fallback="error").init({}, changes(SHAPE)[0])
    dj.incremental(LOCAL["reflect"], fallback="error").init({}, changes(SHAPE)[0])
    with pytest.raises(ValueError, match="`fallback`"):
        dj.incremental(fn, fallback="whole")


@pytest.mark.parametrize("name", FALLBACK)
def test_what_is_not_local_is_named_and_exact(name):
    fn, reason = FALLBACK[name]
    inc, _ = check_incremental(fn, PARAMS, changes(SHAPE), hasty=True)
    assert any(reason in s.reason for s in inc.explain(PARAMS, changes(SHAPE)[0]).segments)


def test_streams_and_channels_first():
    """Three cameras, NCHW: enlarge, join, convolve."""

    def fn(p, x):
        up = jax.image.resize(x, (3, 4, 32, 24), "bilinear")
        deep = jax.nn.relu(lax.conv(up, jnp.ones((4, 4, 3, 3)) / 36, (2, 2), "SAME"))
        return {"joined": jnp.concatenate([deep, x], 1), "shuffled": x.reshape(3, 4, 8, 2, 6, 2).max((3, 5))}

    check_incremental(fn, {}, changes((3, 4, 16, 12), rows=-2, cols=-1), spatial_axes=(-2, -1), tile=5, hasty=True)


def test_one_pixel_reaches_what_its_weights_reach():
    """Bilinear, twice as large: a pixel has a part in 4x4 of the result."""
    inc = dj.incremental(resize(48, 64, "bilinear"))
    frame = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    cache, mask = inc.init({}, frame)
    step = jax.jit(inc.step)
    _, cache, _ = step({}, cache, mask, frame)
    other = frame.copy()  # not in place: the first step may still be reading
    other[10, 12] += 1
    _, cache, mask = step({}, cache, None, other)
    found = np.argwhere(np.asarray(mask))
    np.testing.assert_array_equal(found.min(0), (19, 23))
    np.testing.assert_array_equal(found.max(0), (22, 26))
    assert inc.stats(cache).tiles_issued <= 8


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 48), (24, 16), (7, 7), (16, 31), (13, 5), (1, 3), (5, 1)])
def test_the_window_holds_what_is_read(inputs, outputs):
    """And no more than a few positions besides, where the results lie evenly."""
    centre = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    first = np.clip(np.floor(centre), 0, inputs - 1).astype(int)
    last = np.clip(np.ceil(centre), 0, inputs - 1).astype(int)
    window = reading_window(first.tolist(), last.tolist(), inputs)
    assert window.outputs(inputs) == outputs
    for o in range(outputs):
        begin = o * window.stride - window.pad_lo
        held = {i for i in range(inputs) if begin <= i * window.base_dilation < begin + window.extent}
        assert set(range(first[o], last[o] + 1)) <= held
    assert window.size / window.base_dilation <= 5


def test_a_plain_copy_has_the_identity_as_its_window():
    assert reading_window(list(range(9)), list(range(9)), 9) == Window()
