"""Kernels of deltajax's own: the law, by every form that they know, and to a bit between one tile and another."""

import dataclasses
import functools
import os
import platform
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import AS_RUN, changes, check_incremental
from test_inplace import copies_in_loop, optimised

import deltajax as dj
from deltajax import native
from deltajax._bench import stack15
from deltajax._detect import Detection, detect
from deltajax._plan import thresholded
from deltajax._tiles import Axes, Layout
from deltajax.native import _encode, _library, _segment


def _compiler() -> bool:
    try:
        return bool(_library.compiler())
    except ValueError:
        return False


pytestmark = pytest.mark.skipif(not _compiler(), reason="needs a C++ compiler: g++, clang++ or CXX")

RNG = np.random.default_rng(3)
SAME = "SAME"


def kernel(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def channels(count, low=-1.0, high=1.0):
    return jnp.asarray(RNG.uniform(low, high, count), jnp.float32)


def conv(x, w, stride=1, padding=SAME, dilation=1, spread=1, groups=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, (spread, spread), (dilation, dilation), ("NHWC", "HWIO", "NHWC"), groups)


def pool(x, kind, size=3, stride=2, padding=SAME):
    start, join = {"max": (-jnp.inf, lax.max), "min": (jnp.inf, lax.min), "sum": (0.0, lax.add)}[kind]
    return lax.reduce_window(x, start, join, (1, size, size, 1), (1, stride, stride, 1), padding)


def plain(p, x):
    return jax.nn.relu(conv(x, p[0]) + p[1])


def normalised(p, x):
    """Scale and shift as layers of batch norm write them; bounds on both sides."""
    return jnp.clip((conv(x, p[0], 2, ((1, 0), (2, 1))) - p[1]) * p[2] + p[3], 0.0, 6.0)


def inverted(p, x):
    """MobileNetV2's block: wide, one kernel for each channel, narrow, and around it the input."""
    y = jnp.minimum(jax.nn.relu(conv(x, p[0]) * p[1]), 6)
    y = jax.nn.relu(conv(y, p[2], groups=y.shape[-1]) + p[3])
    return x + conv(y, p[4])


def bottleneck(p, x):
    y = jax.nn.relu(conv(x, p[0]))
    return jax.nn.relu(conv(jax.nn.relu(conv(y, p[1], 2)), p[2]) + conv(x, p[3], 2))


def up_and_join(p, x):
    """A U-Net's step: down by pooling, up by a transposed convolution, joined; channels parted again."""
    y = jax.nn.relu(conv(x, p[0]))
    up = conv(pool(y, "max", 2), p[1], padding=((1, 1), (1, 1)), spread=2)
    both = jnp.concatenate([y, up], axis=-1)
    return conv(both[..., 2:], p[2]) + both[..., :1]


def of_all_kinds(p, x):
    y = conv(x, p[0], dilation=3)
    y = y / (1 + jnp.abs(y)) - jnp.square(y) + jnp.exp(-y) + jax.nn.sigmoid(y) * jnp.tanh(y) - lax.rsqrt(1 + y * y)
    y = y + jax.nn.elu(y) + jax.nn.softplus(y) - jax.nn.mish(3 * y) + jnp.log(jnp.abs(y) + 1e-3) * jnp.log1p(y * y)
    return jnp.where(y > 0, y, p[1] * y) + jnp.sqrt(jnp.maximum(y, 0.1)) + jnp.clip(y, -1.0, p[2])


def gated(p, x):
    """Squeeze-and-excite: the whole picture decides on the channels."""
    y = jax.nn.relu(conv(x, p[0]))
    gate = jax.nn.sigmoid(y.mean(axis=(1, 2)) @ p[1])
    return conv(y * gate[:, None, None, :], p[2])


def normed(p, x):
    """Norms by groups, of which each has several channels, and by one number for all of them."""
    y = conv(x, p[0])
    groups = y.reshape(*y.shape[:3], 4, -1)
    groups = (groups - groups.mean((1, 2, 4), keepdims=True)) * lax.rsqrt(groups.var((1, 2, 4), keepdims=True) + 0.1)
    y = conv(groups.reshape(y.shape) * p[1], p[2])
    return conv(y / (1 + jnp.abs(y).max((1, 2, 3), keepdims=True)), p[2])


def pooled(p, x):
    y = x - pool(x, "max", 3, 1) + pool(x, "min", 5, 1)
    return pool(y, "sum", 3, 2, ((0, 0), (1, 1), (0, 2), (0, 0))) / 9


def padded(p, x):
    """A picture with a margin of its own, and channels of zeros behind its own (BlazeFace)."""
    y = lax.pad(conv(x, p[0]), jnp.float32(0.5), ((0, 0, 0), (1, 2, 0), (2, 0, 0), (0, 0, 0)))
    return conv(y, p[1], padding="VALID") + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 3)))


def enlarged(p, x):
    """A smaller picture's nearest positions, added to the larger one (a feature pyramid's step)."""
    y = conv(x, p[0], 2)
    for axis in (1, 2):
        y = jnp.repeat(y, 2, axis)
    return conv(jax.nn.relu(y + x @ p[1]), p[2])


def shuffled(p, x):
    """Channels turned round, parted by turns and joined (ShuffleNet); every second position (a ResNet shortcut)."""
    y = conv(x[..., ::-1], p[0])
    y = jnp.concatenate([y[..., ::2], y[..., 1::2]], axis=-1)
    return conv(y, p[1], 2) + lax.reduce_precision(y[:, ::2, ::2], 8, 23)


def blocks(p, x):
    """Kernels of 3x3 between many channels, done by blocks of 2x2 positions."""
    y = jax.nn.relu(conv(x, p[0]))
    return jax.nn.relu(conv(conv(y, p[1]) * p[2] + p[3], p[4]) + y[..., :20])


def strided_blocks(p, x):
    """The same with strides, and with inputs spread in both ways that double a picture."""
    y = jax.nn.relu(conv(x, p[0]))
    z = jax.nn.relu(conv(y, p[1], 2, ((0, 1), (0, 1))) + p[2])
    return conv(z, p[3], padding=((2, 1), (2, 1)), spread=2) + conv(z, p[4], padding=((1, 2), (1, 2)), spread=2) + y


def residuals(p, x):
    """What is added to a convolution: before it or behind, bounded before or after, of two of them, and two maps."""
    found = []
    for first, point, wide in p:
        y = conv(x, first)
        a = jnp.clip(conv(y, point) + y, -1.0, 1.0)
        b = y + conv(a, wide)
        c = jnp.minimum(conv(b, wide) + conv(b, point), 2.0)
        found.append(jax.nn.relu(jax.nn.relu(conv(c, point)) + b) + (conv(c, point) + conv(c, point[:, :, ::-1])))
        found.append(conv(c, point) + y + b)
    return jnp.concatenate(found, -1)


def before_activation(p, x):
    """Blocks that begin with relu, of what others read as it is: for one convolution, for others as well, kept."""
    found = []
    for first, each, point in p:
        y = conv(x, first)
        z = conv(conv(jax.nn.relu(y), each, groups=each.shape[-1]), point) + y
        active = jax.nn.relu(z)
        active = jax.nn.relu(conv(conv(active, each, groups=each.shape[-1]), point) + active - z)
        both = [conv(active, each, 2, ((low, 2 - low), (low, 2 - low)), groups=each.shape[-1]) for low in (1, 2)]
        lifted = conv(jnp.maximum(z, 0.25), each, 2, ((1, 1), (1, 1)), groups=each.shape[-1])
        found += [conv(both[0], point) - both[1], jnp.maximum(both[0], 0.5), lifted]
    return jnp.concatenate(found, -1)


def over_channels(p, x):
    """ConvNeXt's block: a layer norm, dense layers and GELU, in both forms, between them; a softmax over channels."""
    found = []
    for each, wide, narrow in p:
        y = conv(x @ wide[: x.shape[-1]], each, groups=each.shape[-1])
        y = (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-3)
        y = jax.nn.gelu(y @ wide, approximate=False) + jax.nn.gelu(y @ wide, approximate=True) + lax.erf(y)
        y = y @ narrow + y - y.max(-1, keepdims=True) * y.min(-1, keepdims=True)
        found.append(jax.nn.softmax(y) + y**7)
    return jnp.concatenate(found, -1)


def several_axes(p, x):
    """Dense layers over channels on two axes, in their order and the other way round; a kernel whose inputs come last,
    and one that comes first."""
    y = jnp.einsum("bhwc,cij->bhwij", x, p[0])
    y = lax.dot_general(y, p[1], (((4, 3), (0, 1)), ((), ()))) + lax.dot_general(y, p[2], (((3, 4), (0, 1)), ((), ())))
    return y + lax.dot_general(y, p[3], (((3,), (1,)), ((), ()))) * lax.dot_general(
        p[4], y, (((0,), (3,)), ((), ())))[..., None]


def grouped(p, x):
    """ResNeXt's convolutions, with what is left over of vectors; and several results for each channel."""
    y = jax.nn.relu(conv(x, p[0]) + p[1])
    z = jax.nn.relu(conv(y, p[2], 2, groups=3) * p[3] - p[4])
    up = conv(z, p[5], padding=((1, 2), (1, 2)), spread=2, groups=5)
    return conv(y, p[6], groups=12) + jnp.concatenate([up, y, y], -1)


def counted(p, x):
    """Any number of channels, whatever part of a vector is left over."""
    found = []
    for wide, shift, each, narrow in p:
        y = pool(conv(conv(x, wide) + shift, each, 2, groups=each.shape[-1]), "max", 3, 1)
        found.append(conv(y, narrow))
    return sum(found)


def resized(p, x):
    """Pictures of other sizes, from two neighbours to many and of odd ratios; mirrored edges; rows mixed at will."""
    found = []
    for first, point in p:
        y = conv(x, first)
        n, height, width, _ = y.shape
        wide = conv(jax.image.resize(y, (n, 2 * height, 2 * width, y.shape[3]), "linear"), point)
        back = jax.image.resize(wide, y.shape, "linear")
        cubic = jax.image.resize(y, (n, height + 7, 2 * width - 3, y.shape[3]), "cubic")
        near = jax.image.resize(y, (n, 8 * (height // 8 + 1), 8 * (width // 8), y.shape[3]), "nearest")  # none halfway
        edges = [np.pad(np.arange(k), (2, 3), "reflect") for k in (height, width)]
        mirrored = jnp.take(jnp.take(jax.nn.relu(y), edges[0], axis=1), edges[1], axis=2)
        y = conv(mirrored, point)[:, 2:-3, 2:-3] + back + cubic[:, 7:, width - 3:]
        found += [y[:, :, : width // 2], conv(near, point)[:, :height, : width // 2]]
    return jnp.concatenate(found, -1)


def exchanged(p, x):
    """Runs of channels that change places: ShuffleNet's two groups, others, behind some and before some."""
    def moved(y, sizes, *order):
        return y.reshape(*y.shape[:3], *sizes).transpose(0, 1, 2, *(3 + axis for axis in order)).reshape(y.shape)

    y = conv(x, p[0])
    z = moved(y, (2, 12), 1, 0) - moved(y, (12, 2), 1, 0) + moved(y, (3, 8), 1, 0)
    z = conv(z, p[1]) + moved(y, (2, 3, 4), 2, 0, 1) + moved(y, (2, 3, 4), 0, 2, 1) - moved(y, (2, 3, 4), 1, 0, 2)
    return conv(moved(z, (2, 3, 2, 2), 0, 3, 1, 2), p[1])


COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 25, 31, 32, 33, 40, 41, 48, 56, 57)

CASES = {
    "conv": (plain, [kernel(3, 3, 3, 40), channels(40)], 3),
    "even kernel": (plain, [kernel(2, 4, 5, 16), channels(16)], 5),
    "few channels": (plain, [kernel(5, 5, 1, 3), channels(3)], 1),
    "strided and normalised": (normalised, [kernel(3, 4, 3, 33), channels(33), channels(33), channels(33)], 3),
    "inverted residual": (inverted, [kernel(1, 1, 7, 35), channels(35), kernel(3, 3, 1, 35), channels(35),
                                     kernel(1, 1, 35, 7)], 7),
    "bottleneck": (bottleneck, [kernel(1, 1, 4, 8), kernel(3, 3, 8, 8), kernel(1, 1, 8, 20), kernel(1, 1, 4, 20)], 4),
    "up and join": (up_and_join, [kernel(3, 3, 3, 6), kernel(2, 2, 6, 5), kernel(3, 3, 9, 17)], 3),
    "elementwise": (of_all_kinds, [kernel(3, 3, 2, 6), channels(6), channels(6, 0.1, 0.5)], 2),
    "gate": (gated, [kernel(3, 3, 3, 9), kernel(9, 9), kernel(1, 1, 9, 4)], 3),
    "enlarged": (enlarged, [kernel(3, 3, 3, 6), kernel(3, 6), kernel(3, 3, 6, 9)], 3),
    "shuffle": (shuffled, [kernel(3, 3, 3, 10), kernel(3, 3, 10, 10)], 3),
    "blocks": (blocks, [kernel(3, 3, 3, 35), kernel(3, 3, 35, 50), channels(50), channels(50), kernel(3, 3, 50, 20)],
               3),
    "strided blocks": (strided_blocks, [kernel(3, 3, 3, 20), kernel(3, 3, 20, 35), channels(35), kernel(3, 3, 35, 20),
                                        kernel(3, 3, 35, 20)], 3),
    "residuals": (residuals, [(kernel(3, 3, 3, n), kernel(1, 1, n, n), kernel(3, 3, n, n)) for n in (5, 8, 16, 20, 35)],
                  3),
    "before activation": (before_activation, [
        (kernel(3, 3, 3, n), kernel(3, 3, 1, n), kernel(1, 1, n, n)) for n in (4, 8, 16, 20)], 3),
    "counts": (counted, [(kernel(3, 3, 3, n), channels(n), kernel(3, 3, 1, n), kernel(1, 1, n, 2)) for n in COUNTS], 3),
    "over channels": (over_channels, [(kernel(3, 3, 1, n), kernel(n, n), kernel(n, n)) for n in (4, 16, 21)], 4),
    "several axes": (several_axes, [kernel(4, 3, 5), kernel(5, 3, 18), kernel(3, 5, 18), kernel(18, 18),
                                     kernel(18)], 4),
    "groups": (grouped, [kernel(3, 3, 3, 12), channels(12), kernel(3, 3, 4, 45), channels(45), channels(45),
                         kernel(3, 3, 9, 180), kernel(3, 3, 1, 204)], 3),
    "pools": (pooled, [], 19),
    "pads": (padded, [kernel(3, 3, 4, 5), kernel(4, 3, 5, 7)], 4),
    "resized": (resized, [(kernel(3, 3, 3, n), kernel(1, 1, n, n)) for n in (5, 16, 20)], 3),
    "norms": (normed, [kernel(3, 3, 3, 12), channels(12), kernel(3, 3, 12, 12)], 3),
    "exchanged": (exchanged, [kernel(3, 3, 3, 24), kernel(1, 1, 24, 24)], 3),
}


def native_share(inc, params, frame) -> float:
    """Of the FLOPs of what is done on tiles."""
    tiles = [s for s in inc.explain(params, frame).segments if s.how in ("native", "tiles")]
    return sum(s.flops for s in tiles if s.how == "native") / sum(s.flops for s in tiles)


def held_back(fn, params, frame) -> dict[str, float]:
    """For every segment that can have one, a threshold that holds nothing back."""
    return {segment.name: 1e-30 for segment in thresholded(dj.incremental(fn, kernels="native").plan(params, frame))}


@pytest.mark.parametrize("name, held", [*((name, False) for name in CASES), ("blocks", True), ("residuals", True)])
def test_every_form(name, held, monkeypatch):
    monkeypatch.setattr(_segment, "NEAR", 0)  # what comes next is asked for ahead
    fn, params, count = CASES[name]
    size = (23, 30) if name not in ("up and join", "enlarged", "strided blocks", "groups") else (22, 30)

    def network(params, frame):
        return fn(params, frame[None])[0]

    frames = changes((*size, count))
    taus = held_back(network, params, frames[0]) if held else {}
    # Scale and shift are taken into the kernels, and exponentials are Cephes': each rounds once more.
    check_incremental(network, params, frames, rel=4e-6, kernels="native", taus=taus)
    assert native_share(dj.incremental(network, kernels="native"), params, frames[0]) > 0.95


@pytest.mark.parametrize("name, tile, size, near, held", [
    ("inverted residual", 5, (22, 194), 0, False), ("inverted residual", 6, (22, 194), 0, False),
    ("up and join", 5, (22, 194), float("inf"), False), ("blocks", 4, (23, 199), 0, False),
    ("strided blocks", 4, (22, 198), 0, False), ("strided blocks", 6, (4, 198), 0, False),
    ("residuals", 4, (24, 68), 0, False), ("before activation", 4, (24, 68), 0, False),
    ("over channels", 4, (24, 68), 0, False), ("several axes", 4, (24, 68), 0, False),
    ("groups", 4, (24, 68), 0, False), ("resized", 4, (24, 68), 0, False), ("resized", 5, (23, 30), 0, False),
    ("exchanged", 4, (24, 68), 0, False), ("norms", 4, (24, 68), 0, False),
    ("blocks", 4, (23, 199), 0, True), ("blocks", 6, (24, 200), 0, True), ("blocks", 8, (24, 200), 0, True),
    ("blocks", 4, (2, 198), 0, True),
    ("residuals", 4, (24, 68), 0, True),
])
def test_where_a_position_is_computed_makes_no_difference_to_a_bit(name, tile, size, near, held, monkeypatch):
    monkeypatch.setattr(_segment, "NEAR", near)  # whether what comes next is asked for ahead
    fn, params, count = CASES[name]
    frames = changes((2, *size, count))  # wide enough for runs of tiles to be done as one, the ragged last among them
    inc = dj.incremental(fn, kernels="native", tile=tile, taus=held_back(fn, params, frames[0]) if held else {})
    step = jax.jit(inc.step)
    cache, _ = inc.init(params, frames[0])
    fresh = cache
    for frame in frames:
        output, cache, _ = step(params, cache, None, frame)
        whole, _, _ = step(params, fresh, None, frame)
        np.testing.assert_array_equal(output, whole)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="leaves out instructions of x86")
def test_nor_does_it_with_narrower_vectors(tmp_path):
    """GCC fused multiply-adds of some blocks of 8 floats and not of others; of 16 it fused all."""
    compiler = f"{shlex.join(_library.compiler())} -mno-avx512f"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "makes_no_difference"], check=False,
        capture_output=True, text=True, env={**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("held, near", [(False, 5), (True, 9)])
def test_what_is_not_finite_stays_in_its_blocks(held, near):
    """Of a block of 2x2, or 4x4, all positions are lost together; the frame after finds none of it."""
    fn, params, count = CASES["blocks"]
    before = RNG.standard_normal((1, 24, 32, count)).astype(np.float32)
    broken = before.copy()
    broken[0, 9, 13], broken[0, 17, 2] = np.nan, np.inf
    inc = dj.incremental(fn, kernels="native", taus=held_back(fn, params, before) if held else {})
    cache, _ = inc.init(params, before)
    step, outputs = jax.jit(inc.step), []
    for frame in (before, broken, before):
        output, cache, _ = step(params, cache, None, frame)
        outputs.append(np.asarray(output))
    first, lost, last = outputs
    np.testing.assert_array_equal(last, first)
    reached = ~np.isfinite(fn(params, broken)).all(-1)
    beside = np.asarray(pool(jnp.asarray(reached[..., None], jnp.float32), "max", near, 1)[..., 0] > 0)
    lost = ~np.isfinite(lost).all(-1)
    assert reached.any() and (lost >= reached).all() and (lost <= beside).all()


@pytest.mark.parametrize("held, most", [(False, 1), (True, 3)])
def test_blocks_round_hardly_more_than_direct_sums(held, most):
    """Of 64 channels, root mean square, as many times what XLA's convolution does."""
    x, w = np.maximum(RNG.standard_normal((1, 24, 24, 64)), 0).astype(np.float32), kernel(3, 3, 64, 64)
    same = np.pad(np.eye(64, dtype=np.float32)[None, None], ((1, 1), (1, 1), (0, 0), (0, 0)))

    def fn(_, x):
        return conv(conv(x, w), same)

    inc = dj.incremental(fn, kernels="native", taus=held_back(fn, (), x) if held else {})
    cache, _ = inc.init((), x)
    output, _, _ = jax.jit(inc.step)((), cache, None, x)
    with jax.enable_x64(True):
        right = np.asarray(conv(jnp.asarray(x, jnp.float64), jnp.asarray(w, jnp.float64)))
    ours, theirs = (np.sqrt(np.square(found - right).mean()) for found in (output, conv(x, w)))
    assert ours < most * theirs, ours / theirs


@pytest.mark.parametrize("norm, more", [
    ("linf", {"max_age": 5}), ("l2", {}),  # turns begin in the middle of runs of tiles
    pytest.param("linf", {}, marks=pytest.mark.slow), pytest.param("l1", {}, marks=pytest.mark.slow),
])
def test_thresholds_and_turns(norm, more):
    """A held result stays within the segment's threshold, in the same places as with XLA's kernels."""
    fn, params, count = CASES["bottleneck"]
    frames = [f * 0.2 for f in changes((1, 24, 96, count))]
    results = []
    for kernels in ("native", "xla"):
        inc = dj.incremental(fn, kernels=kernels, tile=4, norm=norm, taus={"conv1": 0.15}, dense_share=1.0, **more)
        cache, _ = inc.init(params, frames[0])
        step, outputs = jax.jit(inc.step), []
        for frame in frames:
            output, cache, mask = step(params, cache, None, frame)
            outputs.append((output, mask))
        results.append(outputs)
    for (output, mask), (xla, xla_mask) in zip(*results, strict=True):
        np.testing.assert_allclose(output, xla, atol=4e-6)
        assert not (mask & ~xla_mask).any()


@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_what_has_changed_is_what_the_norm_says(norm):
    """Of any number of channels, by as many tiles as lie side by side; where no norm is near the threshold."""
    by = {"linf": np.max, "l1": np.sum, "l2": lambda x, axis: np.sqrt(np.square(x).sum(axis))}[norm]
    for count in (1, 2, 3, 4, 8, 16, 20, 33):
        gap = np.abs(RNG.standard_normal((1, 8, 76, count))).astype(np.float32) * (RNG.random((1, 8, 76, 1)) < 0.7)
        size, tau = by(gap, -1), float(by(np.ones(count), 0)) * 0.8
        gap[np.abs(size - tau) < 1e-3] = 0
        same, add = np.eye(count, dtype=np.float32)[None, None], np.zeros((3, 3, count, 1), np.float32)
        add[1, 1] = 1
        inc = dj.incremental(lambda _, x, same=same, add=add: conv(conv(x, same), add), kernels="native", norm=norm,
                             tile=4, taus={"conv1": tau})
        cache, _ = inc.init((), np.zeros_like(gap))
        output, cache, _ = jax.jit(inc.step)((), cache, None, np.zeros_like(gap))
        output, cache, _ = jax.jit(inc.step)((), cache, None, gap)
        held = np.where((by(gap, -1) > tau)[..., None], gap, 0).sum(-1, keepdims=True)
        np.testing.assert_allclose(output, held, rtol=1e-5, atol=1e-5, err_msg=f"{count} channels")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_which_channel_is_the_largest_is_a_whole_number(dtype):
    """The first of several, or the first NaN; in a smaller type what is left of it. No threshold holds it back."""
    def network(_, x):
        y = x * 2
        return jnp.argmax(y, -1).astype(dtype), jnp.argmin(y[..., :3], -1).astype(dtype)

    x = np.zeros((1, 21, 30, 300), np.float32)
    frames = [x]
    for number in range(4):  # few change, those of before go back
        frame = x.copy()
        place = RNG.integers(0, 21, 60), RNG.integers(0, 30, 60)
        frame[0, *place] = RNG.integers(-3, 4, (60, 300))
        frame[0, place[0][:5], place[1][:5], 7 * number] = np.nan
        frames.append(frame)
    names = [segment.name for segment in dj.incremental(network).plan((), x).segments]
    inc = dj.incremental(network, kernels="native", taus=dict.fromkeys(names, 5.0))
    assert native_share(inc, (), x) == 1
    cache, _ = inc.init((), x)
    step, before = jax.jit(inc.step), None
    for frame in frames:
        found, cache, masks = step((), cache, None, frame)
        right = [np.argmax(frame, -1).astype(dtype), np.argmin(frame[..., :3], -1).astype(dtype)]
        for number, (array, mask) in enumerate(zip(found, masks, strict=True)):
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, right[number])
            if before is not None:
                np.testing.assert_array_equal(mask, before[number] != right[number])
        before = right


def test_what_a_byte_holds_of_a_large_number():
    """Of a channel beyond 255 what is left."""
    def network(_, frame):
        return jnp.argmax(frame * 2, -1).astype(jnp.uint8).astype(jnp.float32) + 1

    frames = [RNG.standard_normal((21, 30, 300)).astype(np.float32) for _ in range(3)]
    check_incremental(network, (), frames, kernels="native")
    assert "it reads what a byte holds" in str(dj.incremental(network, kernels="native").explain((), frames[0]))


def test_bytes_are_written_as_they_are():
    def network(_, frame):
        return frame[..., ::-1]

    frames = [RNG.integers(0, 256, (21, 30, 3), dtype=np.uint8) for _ in range(3)]
    check_incremental(network, (), frames, kernels="native")
    report = dj.incremental(network, kernels="native").explain((), frames[0])
    assert [segment.how for segment in report.segments] == ["native"]


def test_one_number_of_all_of_a_picture_is_spread_over_its_channels():
    def network(params, frame):
        return conv(frame[None] / jnp.abs(frame).max(), params)

    params, frames = kernel(3, 3, 3, 20), changes((23, 30, 3))
    check_incremental(network, params, frames, kernels="native", rel=4e-6)
    assert native_share(dj.incremental(network, kernels="native"), params, frames[0]) > 0.9


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "logistic", "erf", "rsqrt"])
def test_functions_of_one_number_wherever_it_lies(name):
    """Near to 0, far from it, and where there is no number."""
    far = np.concatenate([np.linspace(-20, 20, 2001), np.logspace(-30, 30, 1500), -np.logspace(-30, 1, 1500)])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, -2.0, 3.4e38]
    frame = np.resize(np.concatenate([far, special]).astype(np.float32), (40, 32, 4))

    def network(params, frame):
        return getattr(lax, name)(frame) * 2.0

    inc = dj.incremental(network, kernels="native")
    assert native_share(inc, (), frame) == 1
    found, _, _ = inc.step((), inc.init((), frame)[0], None, frame)
    np.testing.assert_allclose(found, jax.jit(network)((), frame), rtol=1e-6, atol=1e-35)


def test_reductions_over_channels_keep_nan_and_infinities():
    """Wherever they are among the channels: in a whole vector, or in what is left over."""
    x = RNG.standard_normal((1, 8, 48, 37)).astype(np.float32)
    for row, bad in enumerate((np.nan, np.inf, -np.inf)):
        x[0, row, np.arange(37), np.arange(37)] = bad

    inc = dj.incremental(lambda _, x: jnp.stack([x.max(-1), x.min(-1)], -1) * 2, kernels="native")
    cache, _ = inc.init((), x)
    right = np.stack([x.max(-1), x.min(-1)], -1) * 2  # XLA loses some NaN
    np.testing.assert_array_equal(jax.jit(inc.step)((), cache, None, x)[0], right)


@pytest.mark.parametrize("by", [128.0, -0.25, 2.0**-100, 3.0])
def test_what_is_divided_by_a_power_of_two_is_the_same_to_the_bit(by):
    """And by any other number."""
    x = (RNG.standard_normal((1, 8, 8, 4)) * 100).astype(np.float32)

    def fn(_, x):
        return conv((x - 127) / np.float32(by), np.eye(4, dtype=np.float32)[None, None])

    inc = dj.incremental(fn, kernels="native")
    cache, _ = inc.init((), x * 0)
    np.testing.assert_array_equal(jax.jit(inc.step)((), cache, None, x)[0], (x - np.float32(127)) / np.float32(by))


def test_a_frame_of_bytes_with_nan_in_the_params_and_streams_under_vmap():
    def network(params, frame):
        return plain(params, frame[:, :, ::-1].astype(jnp.float32)[None] / 255)[0]

    params = [kernel(3, 3, 3, 20).at[1, 1, 0, 0].set(jnp.nan), channels(20)]
    inc = dj.incremental(network, kernels="native")
    frames = jnp.asarray(RNG.integers(0, 256, (4, 16, 17, 3)), jnp.uint8)
    cache, _ = inc.init(params, frames[0])
    caches = jax.tree.map(lambda x: jnp.stack([x] * 4), cache)
    outputs, _, _ = jax.jit(jax.vmap(inc.step, (None, 0, None, 0)))(params, caches, None, frames)
    np.testing.assert_allclose(outputs, jax.vmap(lambda x: network(params, x))(frames), rtol=1e-5, atol=1e-6)


def test_nothing_of_the_caches_size_is_copied_in_the_loop():
    text, sizes = optimised(dj.incremental(stack15, kernels="native"))
    assert "deltajax_segments" in text
    assert copies_in_loop(text, sizes) == []


def test_nothing_is_copied_for_what_is_read_whole_in_the_middle():
    """A gate of the largest values: XLA sorts a map that has an array of its own, and none of those that share one."""
    def network(params, frame):
        y = jax.nn.relu(conv(plain(params[:2], frame[None]), params[2]))
        return conv(y * jax.nn.sigmoid(jnp.sort(y.ravel())[-9:]), params[3])[0]

    params = [kernel(3, 3, 3, 9), channels(9), kernel(3, 3, 9, 9), kernel(1, 1, 9, 4)]
    clip = jnp.asarray(np.stack(changes((24, 32, 3))))
    inc = dj.incremental(network, kernels="native")
    cache, _ = inc.init(params, clip[0])

    @jax.jit
    def film(cache, clip):
        def one(cache, frame):
            output, cache, _ = inc.step(params, cache, None, frame)
            return cache, output

        return lax.scan(one, cache, clip)

    sizes = {array.size for array in (*cache["maps"], *cache["pool"])}
    assert len(cache["maps"]) == 2 and len(cache["pool"]) == 2
    assert copies_in_loop(film.lower(cache, clip).compile(AS_RUN).as_text(), sizes) == []
    np.testing.assert_allclose(film(cache, clip)[1], jax.vmap(lambda x: network(params, x))(clip), atol=4e-6)


def test_what_is_not_done_is_told():
    def network(params, frame):
        return jnp.cumsum(conv(frame[None], params)[0], -1)

    report = dj.incremental(network, kernels="native").explain(kernel(3, 3, 4, 8), jnp.zeros((16, 16, 4)))
    assert report.segments[0].how == "tiles"
    assert "not native: cumsum: there is no such operation" in str(report)
    check_incremental(network, kernel(3, 3, 4, 8), changes((16, 16, 4)), kernels="native")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        _library.build()


def test_with_a_compiler_that_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(ValueError, match="could not be compiled by false"):
        _library.build()


def test_it_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "user_cache_path", lambda name: tmp_path)
    ran, really = [], _library._run

    def run(command):
        ran.append(command)
        return really(command)

    monkeypatch.setattr(_library, "_run", run)
    source = tmp_path / "kernels.cc"
    source.write_text('extern "C" int deltajax_lanes() { return 4; }')
    monkeypatch.setattr(_library, "FOLDER", tmp_path)
    first, second = _library.build(), _library.build()
    assert first == second and first.exists()
    assert sum("-o" in command for command in ran) == 1
    source.write_text('extern "C" int deltajax_lanes() { return 8; }')
    assert _library.build() != first


def test_a_cache_of_other_kernels_is_refused():
    frame, (fn, params, _) = jnp.zeros((1, 16, 16, 7)), CASES["inverted residual"]
    xla, ours = (dj.incremental(fn, kernels=kernels) for kernels in ("xla", "native"))
    for inc, other in ((xla, ours), (ours, xla)):
        with pytest.raises(ValueError, match=r"made with other .* or `kernels`; make one with `init`"):
            inc.step(params, other.init(params, frame)[0], None, frame)


def test_kernels_that_there_are_not():
    with pytest.raises(ValueError, match="`kernels` \\(='cuda'\\) must be one of 'xla', 'native'"):
        dj.incremental(plain, kernels="cuda")


@pytest.mark.parametrize("name, tile", [("inverted residual", (5, 4)), ("blocks", (4, 4))])
def test_tiles_overlap_only_where_blocks_of_2x2_pay(name, tile):
    fn, params, count = CASES[name]
    inc = dj.incremental(fn, kernels="native")
    report = inc.explain(params, jax.ShapeDtypeStruct((1, 30, 40, count), jnp.float32))
    assert report.segments[-1].tile == tile, report


@pytest.mark.parametrize("stride, spread, padding, share", [
    (1, 1, (1, 1), 16 / 36), (2, 1, (0, 1), 25 / 36), (2, 1, (1, 1), 25 / 36), (1, 2, (2, 1), 25 / 36),
    (1, 2, (1, 2), 25 / 36), (1, 3, (2, 2), 1), (3, 1, (1, 1), 1),
])
def test_kernels_of_3x3_between_many_channels_take_fewer_products(stride, spread, padding, share):
    """But not strided ones of so many channels that to read sixteen kernels instead of nine costs more."""
    inc = dj.incremental(lambda p, x: conv(x, p, stride, (padding, padding), spread=spread), kernels="native", tile=4)
    for count, found in ((16, share), (512, share if share < 0.5 else 1)):
        params = jax.ShapeDtypeStruct((3, 3, count, count), jnp.float32)
        (segment,) = inc.plan(params, jax.ShapeDtypeStruct((1, 24, 24, count), jnp.float32)).segments
        assert segment.native.flops_per_tile == pytest.approx(found * segment.flops_per_tile), count


@pytest.mark.parametrize("options, larger", [
    ({}, ()), ({"tau": 1.0}, ()), ({"taus": {"conv1": 0.0}}, ()), ({"taus": {"conv1": 1.0}}, (0,)),
    ({"tau": "auto", "max_error": 0.1}, (0, 1)),
])
def test_blocks_are_larger_where_results_are_held_within_a_threshold(options, larger):
    """But not of so many channels, or so small a picture, that to read 36 kernels costs more; nor the output's, which
    nobody holds back."""
    inc = dj.incremental(lambda p, x: conv(conv(conv(x, p), p), p), kernels="native", **options)
    for count, side, found in ((16, 24, 1 / 4), (512, 24, 4 / 9), (16, 14, 1 / 4), (16, 12, 4 / 9)):
        params = jax.ShapeDtypeStruct((3, 3, count, count), jnp.float32)
        segments = inc.plan(params, jax.ShapeDtypeStruct((1, side, side, count), jnp.float32)).segments
        shares = [segment.native.flops_per_tile / segment.flops_per_tile for segment in segments]
        assert shares == pytest.approx([found if i in larger else 4 / 9 for i in range(3)]), count


@pytest.mark.parametrize("name, spared", [("inverted residual", True), ("blocks", False)])
def test_what_a_convolution_adds_and_a_depthwise_one_reads_takes_no_pass_of_its_own(name, spared, monkeypatch):
    """A residual, and relu of what is stored; but not what is made behind the convolution, as a part of channels."""
    ops, real = [], _encode.operation_words
    monkeypatch.setattr(_encode, "operation_words", lambda slots, op: ops.append(op) or real(slots, op))
    fn, params, count = CASES[name]

    def network(p, x):
        return fn(p, x) if not spared else fn(p, jax.nn.relu(fn(p, x)))

    dj.incremental(network, kernels="native").plan(params, jax.ShapeDtypeStruct((1, 24, 24, count), jnp.float32))
    assert ops and spared == all(op.kind != _encode.ELEMENTWISE for op in ops)


@pytest.mark.parametrize("norm, tau, cell", [
    ("linf", 0.0, 1), ("linf", 0.0, 3), ("linf", 7.5, 1), ("linf", 7.0, 4), ("l1", 9.0, 1), ("l1", 60.0, 5),
    ("l2", 9.0, 1), ("l2", 40.0, 8), ("l2", 400.0, 64),
])
@pytest.mark.parametrize("dtype, count", [(np.uint8, 3), (np.float32, 1), (np.float32, 4)])
def test_detection_finds_and_holds_what_xla_does(dtype, count, norm, tau, cell):
    """Of two streams, without and with a given mask (then one of them is fresh), and trusting it; few and many changes,
    and mere noise."""
    shape = (2, 37, 50, count)
    layout = Layout(shape, jnp.dtype(dtype), Axes(0, 1, 2), ((1, 2), (0, 3)))
    how = Detection(tau, norm, cell, 1, "held")
    assert native.detects(layout, how)
    _library.lanes()
    old = RNG.integers(0, 256, shape)
    noisy = np.clip(old + RNG.integers(-8, 9, shape), 0, 255)
    some = old.copy()
    some[1, 5:8, 33:] = 255 - some[1, 5:8, 33:]
    given = jnp.asarray(RNG.random((2, 37, 50)) < 0.02)
    stored = layout.store(jnp.asarray(old[None], dtype))
    frames = [jnp.asarray(new[None], dtype) for new in (old, noisy, some, RNG.integers(0, 256, shape))]
    if dtype == np.float32:
        frames = [frame.at[0, 1, 20, 30, 0].set(jnp.nan) for frame in frames]
    for mask, trust, fresh in ((None, False, [False, False]), (given, False, [True, False]),
                               (given, True, [False, False])):
        asked = layout, dataclasses.replace(how, trust=trust)
        ours, xla = (jax.jit(functools.partial(f, *asked)) for f in (native.detect, detect))
        for frame in frames:
            arguments = stored, frame, mask, jnp.asarray(fresh)
            for got, want in zip(ours(*arguments), xla(*arguments)[:3], strict=True):
                np.testing.assert_array_equal(got, want)
