"""Random small networks, random sizes, random options, random changes: the law holds for all of them.

A network is drawn as a list of layers, each of which reads any earlier value; sizes include primes and single rows.
The fast and the slow test draw the same networks in every run, the exhaustive one others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from law import check_incremental

NUMBERS = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: `kind` with its numbers, reading the values at `reads` (counted back from the last)."""

    kind: str
    reads: tuple[int, ...]
    numbers: tuple[Any, ...] = ()


small = st.integers(1, 3)
pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
LAYERS = st.one_of(
    st.tuples(st.just("conv"), st.tuples(small, small, st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 2]), pads,
                                         pads, st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, 1, 2]),
                                         st.sampled_from([1, 1, 2]))),
    st.tuples(st.just("pool"), st.tuples(st.sampled_from(["max", "min", "sum"]), small, small,
                                         st.sampled_from([1, 2]), st.sampled_from([1, 2]), pads, pads)),
    st.tuples(st.just("pointwise"), st.tuples(st.sampled_from(["relu", "tanh", "bias", "square", "positions"]))),
    st.tuples(st.just("pad"), st.tuples(pads, pads, st.sampled_from([0.0, 0.5]))),
    st.tuples(st.just("crop"), st.tuples(small, small, st.sampled_from([1, 1, 2]))),
    st.tuples(st.just("join"), st.tuples(st.sampled_from(["add", "mul", "channels", "rows", "cols"]))),
    st.tuples(st.just("excite"), st.tuples(st.sampled_from(["mean", "max"]))),
    st.tuples(st.just("mirror"), st.tuples(st.sampled_from([0, 1]))),
    st.tuples(st.just("swap"), st.tuples()),
    st.tuples(st.just("channel_mean"), st.tuples()),
)
NETWORKS = st.lists(
    st.builds(lambda layer, reads: Layer(layer[0], reads, layer[1]), LAYERS,
              st.tuples(st.sampled_from([1, 1, 1, 2, 3]), st.integers(1, 4))),
    min_size=1, max_size=5,
)
SIZES = st.tuples(*[st.sampled_from([1, 2, 5, 7, 8, 11, 13, 16, 17])] * 2)
OPTIONS = st.fixed_dictionaries({
    "tile": st.sampled_from([None, 1, 3, 4, 5, 8]),
    "bucket": st.sampled_from([None, 1, 3, 8]),
    "dense_share": st.sampled_from([0.0, 0.5, 0.6, 1.0]),
    "cell": st.sampled_from([1, 1, 2, 4]),
})
HEADS = st.sampled_from(["maps", "mean", "flatten", "last", "softmax"])


def kernel(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def apply(number: int, layer: Layer, values: list[jax.Array]) -> jax.Array | None:
    """The layer's value, or None where it does not fit (it is then left out)."""
    x, other = (values[-min(back, len(values))] for back in layer.reads)
    height, width, channels = x.shape
    match layer.kind, *layer.numbers:
        case "conv", kh, kw, sy, sx, py, px, dilation, up, groups:
            groups = groups if channels % groups == 0 else 1
            window = kernel(number, kh, kw, channels // groups, 2 * groups)
            return lax.conv_general_dilated(x[None], window, (sy, sx), (py, px), (up, up), (dilation, dilation),
                                            NUMBERS, groups)[0]
        case "pool", how, kh, kw, sy, sx, py, px:
            py, px = ((min(low, k - 1), min(high, k - 1)) for (low, high), k in ((py, kh), (px, kw)))
            join, start = {"max": (lax.max, -np.inf), "min": (lax.min, np.inf), "sum": (lax.add, 0.0)}[how]
            return lax.reduce_window(x, np.float32(start), join, (kh, kw, 1), (sy, sx, 1), (py, px, (0, 0)))
        case "pointwise", "relu":
            return jax.nn.relu(x)
        case "pointwise", "tanh":
            return jnp.tanh(x)
        case "pointwise", "bias":
            return x + kernel(number, 1, 1, channels)
        case "pointwise", "square":
            return jnp.tanh(x) ** 2
        case "pointwise", "positions":
            return x * jnp.linspace(0.5, 1, width)[None, :, None] + jnp.linspace(0, 1, height)[:, None, None]
        case "pad", rows, cols, value:
            return jnp.pad(x, (rows, cols, (0, 0)), constant_values=value)
        case "crop", top, left, stride:
            return x[top::stride, left:]
        case "join", ("add" | "mul") as how:
            if other.shape != x.shape:
                return None
            return x + other if how == "add" else jnp.tanh(x) * jnp.tanh(other)
        case "join", axis:
            axis = ("rows", "cols", "channels").index(axis)
            if any(a != b for i, (a, b) in enumerate(zip(x.shape, other.shape, strict=True)) if i != axis):
                return None
            return jnp.concatenate([x, other], axis)
        case "excite", how:
            return x * jax.nn.sigmoid(getattr(x, how)(axis=(0, 1), keepdims=True))
        case "mirror", axis:
            return jnp.flip(x, axis)
        case "swap",:
            return x.swapaxes(0, 1)
        case "channel_mean",:
            return x - x.mean(axis=-1, keepdims=True)
    raise AssertionError(layer)


def network(layers: list[Layer], head: str):
    def fn(params, frame):
        values = [frame]
        for number, layer in enumerate(layers):
            made = apply(number, layer, values)
            if made is not None and 0 not in made.shape and made.size < 8000 and made.shape[-1] < 9:
                values.append(made)
        last = values[-1]
        match head:
            case "maps":
                return tuple(values)
            case "mean":
                return last.mean(axis=(0, 1)), last
            case "flatten":
                return last.reshape(-1) @ kernel(99, last.size, 3)
            case "softmax":
                return jax.nn.softmax(last.max(axis=(0, 1)) @ kernel(98, last.shape[-1], 3))
        return last

    return fn


def clip(size, seed):
    """Frames in which a random share of random pixels moves, or a rectangle, or all, or nothing."""
    rng = np.random.default_rng(seed)
    frame = rng.random((*size, 2)).astype(np.float32)
    frames = [frame]
    for kind in rng.permutation(["pixel", "few", "box", "all", "none"])[:4]:
        frame, new = frame.copy(), rng.random((*size, 2)).astype(np.float32)
        where = np.zeros(size, bool)
        y, x = rng.integers(size[0]), rng.integers(size[1])
        if kind == "pixel":
            where[y, x] = True
        elif kind == "few":
            where = rng.random(size) < 0.1
        elif kind == "box":
            where[y: y + 4, x: x + 4] = True
        elif kind == "all":
            where[:] = True
        frames.append(np.where(where[..., None], new, frame))
    return frames


def check(layers, head, size, seed, given, options, hasty=False):
    # Sums that cancel, and up to five layers of rounding.
    check_incremental(network(layers, head), {}, clip(size, seed), given=given, rel=1e-5, hasty=hasty, **options)


ARGUMENTS = (NETWORKS, HEADS, SIZES, st.integers(0, 9), st.booleans(), OPTIONS)


@settings(max_examples=40)
@given(*ARGUMENTS)
def test_random_networks(layers, head, size, seed, masked, options):
    check(layers, head, size, seed, masked, options, hasty=True)


@pytest.mark.slow
@settings(max_examples=80)
@given(*ARGUMENTS)
def test_more_random_networks(layers, head, size, seed, masked, options):
    check(layers, head, size, seed, masked, options, hasty=True)


@pytest.mark.exhaustive
@settings(max_examples=500, derandomize=False)
@given(*ARGUMENTS)
def test_many_random_networks(layers, head, size, seed, masked, options):
    check(layers, head, size, seed, masked, options)
