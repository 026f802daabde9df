"""Rules: what plain networks are made of, each operation against itself on the whole picture.

Rows of a table that share a compilation are outputs of one function. `DENSE` rows are the mechanism's other half:
no rule, still right, and named.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from law import changes, check_incremental

import deltajax as dj
from deltajax import _jaxpr
from deltajax.rules import RULES
from deltajax.rules.elementwise import NAMES

SHAPE = (13, 18, 4)
RNG = np.random.default_rng(7)
BIAS = jnp.asarray(RNG.standard_normal(4), jnp.float32)
KERNEL = jnp.asarray(RNG.standard_normal((3, 3, 4, 4)) / 6, jnp.float32)
MATRIX = jnp.asarray(RNG.standard_normal((4, 6)) / 2, jnp.float32)
POSITIONS = jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32)
PARAMS = {"bias": BIAS, "kernel": KERNEL, "matrix": MATRIX, "positions": POSITIONS}


def conv(x, kernel, padding="SAME", strides=(1, 1)):
    return lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def each(table, names=None):
    """All rows of a table as one function with a dict of results."""
    return lambda params, frame: {name: table[name](params, frame) for name in names or table}


def window(x, function, start, size, strides=(1, 1, 1), padding="VALID", **dilations):
    return lax.reduce_window(x, np.asarray(start, x.dtype), function, size, strides, padding, **dilations)


def refusals(fn, params, frame, **options):
    return [s.reason for s in dj.incremental(fn, **options).explain(params, frame).segments if s.reason]


# ------------------------------------------------------------------------------------------------------- pooling

POOLS = {
    "max 2x2 /2": lambda p, x: window(x, lax.max, -np.inf, (2, 2, 1), (2, 2, 1)),
    "max 3x3 /2 same": lambda p, x: window(x - 2, lax.max, -np.inf, (3, 3, 1), (2, 2, 1), "SAME"),
    "max 3x3 dilated": lambda p, x: window(x, lax.max, -np.inf, (3, 3, 1), window_dilation=(2, 1, 1)),
    "max 5x1 lopsided": lambda p, x: window(-x, lax.max, -np.inf, (5, 1, 1), padding=((4, 1), (0, 0), (0, 0))),
    "min 3x2 same": lambda p, x: window(x, lax.min, np.inf, (3, 2, 1), (1, 1, 1), "SAME"),
    "sum 3x3 same": lambda p, x: window(x, lax.add, 0, (3, 3, 1), (1, 1, 1), "SAME"),
    "average counted": lambda p, x: nn.avg_pool(x[None], (3, 3), (2, 2), "SAME", count_include_pad=False)[0],
    "sum up 2": lambda p, x: window(x, lax.add, 0, (3, 3, 1), base_dilation=(2, 2, 1)),
    "sum over channels too": lambda p, x: window(x, lax.add, 0, (2, 2, 2), (2, 2, 2)),
    "lrn": lambda p, x: x / (1 + window(x * x, lax.add, 0, (1, 1, 3), padding="SAME")),
    "integers": lambda p, x: window((x * 50).astype(jnp.int32), lax.max, np.iinfo(np.int32).min, (2, 3, 1)),
}


def test_pools():
    fn = each(POOLS)
    check_incremental(fn, PARAMS, changes(SHAPE), tile=4, dense_share=0.8)
    assert not refusals(fn, PARAMS, changes(SHAPE)[0])


UNPOOLS = {
    "2x2": lambda x: nn.max_pool(x[None], (2, 2), (2, 2))[0] ** 2,
    "3x3 /2 same, of ties": lambda x: jnp.sin(nn.max_pool(x[None], (3, 3), (2, 2), "SAME")[0]),
    "2x3 /3x1 lopsided": lambda x: nn.max_pool(x[None], (2, 3), (3, 1), ((1, 0), (2, 2)))[0] ** 2,
    "1x2 /5": lambda x: nn.max_pool(x[None], (1, 2), (5, 5))[0] ** 2,
    "min": lambda x: window(x, lax.min, np.inf, (2, 4, 1), (3, 1, 1), "SAME") ** 2,
    "of its sum": lambda x: nn.max_pool(x[None], (3, 3), (1, 1))[0],
    "of its mean": lambda x: jnp.sin(nn.max_pool(x[None], (3, 3), (2, 2))[0].mean((0, 1))),
}


@pytest.mark.parametrize("names", [list(UNPOOLS)[1:2], pytest.param(list(UNPOOLS), marks=pytest.mark.slow)],
                         ids=lambda names: names[0])
def test_gradients_of_pools(names):
    """Of a sum, for the frame in steps of a quarter: the first of equal values is selected."""
    def fn(params, x):
        x = jnp.round(x * 4)
        return {name: jax.grad(lambda x, name=name: UNPOOLS[name](x).sum())(x) for name in names}

    check_incremental(fn, PARAMS, changes(SHAPE), tile=5, dense_share=1.0, hasty=True)
    assert not refusals(fn, PARAMS, changes(SHAPE)[0])


def test_tangents_of_pools():
    """Forwards, and with windows over channels; backwards again over channels."""
    both = lambda x: window(x, lax.max, -np.inf, (3, 2, 2), (2, 2, 1), ((1, 1), (0, 0), (1, 0)))  # noqa: E731
    fn = lambda p, x: (jax.jvp(both, (x,), (jnp.sin(3 * x),))[1],  # noqa: E731
                       jax.grad(lambda x: (both(x) ** 2).sum())(x),
                       jax.jvp(both, (p["positions"],), (x,))[1])
    check_incremental(fn, PARAMS, changes(SHAPE), tile=5, dense_share=1.0, hasty=True)
    assert not refusals(fn, PARAMS, changes(SHAPE)[0])


# --------------------------------------------------------------------------------------------------- elementwise

UNARY = """abs acos asin atan cbrt ceil cos cosh erf erfc exp exp2 expm1 floor is_finite
log log1p logistic neg round rsqrt sign sin sinh asinh sqrt square tan tanh erf_inv""".split()
BINARY = "add atan2 div eq ge gt le lt max min mul ne nextafter pow rem sub".split()
INTEGER = """bitwise_and bitwise_or bitwise_xor shift_left shift_right_logical shift_right_arithmetic""".split()


def elementwise_float(params, x):
    half = 0.9 * x
    found = {name: getattr(lax, name)(half) for name in UNARY}
    found |= {name: getattr(lax, name)(half + 0.05, 0.3 + jnp.flip(half, 2)) for name in BINARY}
    found["acosh"], found["atanh"] = lax.acosh(1 + half), lax.atanh(half)
    found["integer_pow"], found["clamp"] = x**3, lax.clamp(0.2, x, 0.7)
    found["select"] = jnp.where(x > 0.5, x, -x)
    found["select three"] = lax.select_n((3 * x).astype(jnp.int32), x, -x, 2 * x)
    found["convert"] = x.astype(jnp.int32)
    found["precision"] = lax.reduce_precision(x, 5, 6)
    found["name"], found["stop"] = checkpoint_name(x + 1, "here"), lax.stop_gradient(x * 2)
    found["barrier"], found["barrier two"] = lax.optimization_barrier((x + 3, x * 3))
    found["copy"] = lax.copy_p.bind(x)
    found["bits"] = lax.bitcast_convert_type(x, jnp.int32)
    return found


def elementwise_special(params, x):
    """Series and continued fractions: slow to compile."""
    half = 0.9 * x
    found = {name: getattr(lax, name)(half) for name in ("bessel_i0e", "bessel_i1e", "digamma", "lgamma")}
    found["igamma"] = lax.igamma(half + 0.5, half + 0.1)
    found["igamma_grad_a"] = lax.igamma_grad_a(half + 0.5, half + 0.1)
    found["zeta"], found["polygamma"] = lax.zeta(x + 1.5, x + 0.5), lax.polygamma(jnp.ones_like(x), x + 0.5)
    found["betainc"] = lax.betainc(x + 0.5, x + 0.7, half)
    return found


def elementwise_other(params, x):
    i = (x * 100).astype(jnp.int32)
    one = jnp.asarray(3, jnp.int32)
    found: dict[str, jax.Array] = {name: getattr(lax, name)(i) for name in ("clz", "population_count", "bitwise_not")}
    found |= {name: getattr(lax, name)(i, jnp.broadcast_to(one, i.shape)) for name in INTEGER}
    z = lax.complex(x, 1 - x)
    found |= {"complex": z, "real": lax.real(z), "imag": lax.imag(z), "conj": lax.conj(z), "product": z * z}
    found["and"], found["or"], found["not"] = (x > 0.3) & (x < 0.6), (x > 0.8) | (x < 0.2), ~(x > 0.5)
    return found


@pytest.mark.parametrize(
    "fn", [elementwise_float, elementwise_other, pytest.param(elementwise_special, marks=pytest.mark.slow)]
)
def test_elementwise(fn):
    """No fallback, whatever the dtype of the result."""
    check_incremental(fn, PARAMS, changes(SHAPE), tile=6)
    report = dj.incremental(fn).explain(PARAMS, changes(SHAPE)[0])
    assert {s.how for s in report.segments} == {"tiles"}


def test_elementwise_names_are_all_tried():
    """A name in the rule's list that no test tries could be anything."""
    seen = set()
    for fn in (elementwise_float, elementwise_other, elementwise_special):
        jaxpr, _, _ = _jaxpr.trace(fn, PARAMS, changes(SHAPE)[0])
        stack = [jaxpr]
        while stack:
            for eqn in stack.pop().eqns:
                seen.add(eqn.primitive.name)
                inner = _jaxpr.wrapped(eqn)
                stack += [] if inner is None else [inner[0]]
    assert set(NAMES) - seen <= {"add_any", "igammac", "pvary"}


BROADCASTS = {
    "bias": lambda p, x: x + p["bias"][None, None],
    "scalar": lambda p, x: x * 2.5 + p["bias"][0],
    "python scalar param": lambda p, x: x * p["bias"][1],
    "rows": lambda p, x: x * jnp.arange(13, dtype=jnp.float32)[:, None, None],
    "columns": lambda p, x: x + jnp.linspace(0, 1, 18)[None, :, None],
    "positions of params": lambda p, x: x * p["positions"],
    "positions of constants": lambda p, x: x - np.asarray(POSITIONS),
    "one channel": lambda p, x: x * x[..., :1],
    "channel mean": lambda p, x: x - jnp.mean(x, axis=-1, keepdims=True),
    "squeeze and excite": lambda p, x: x * jax.nn.sigmoid(jnp.mean(x, axis=(0, 1), keepdims=True)),
    "iota": lambda p, x: x + lax.broadcasted_iota(jnp.float32, SHAPE, 1),
    "causal mask": lambda p, x: jnp.where(lax.broadcasted_iota(jnp.int32, SHAPE, 0) < 6, x, 0),
    "relu6": lambda p, x: jax.nn.relu6(10 * x - 3),
    "gelu": lambda p, x: jax.nn.gelu(x),
    "swish": lambda p, x: jax.nn.silu(x),
    "softmax of channels": lambda p, x: jax.nn.softmax(x, axis=-1),
    "layer norm": lambda p, x: jax.nn.standardize(x, axis=-1),
    "clip by params": lambda p, x: jnp.clip(x, jnp.min(p["bias"]), 0.4),
    "first pixel": lambda p, x: x - x[:1, :1],
}


def test_broadcasts():
    check_incremental(each(BROADCASTS), PARAMS, changes(SHAPE), tile=5, hasty=True)


@pytest.mark.xla  # native kernels keep it packed, in whole lines
def test_a_bias_is_never_spread():
    """A broadcast bias stays a row of channels: no map of it in the cache."""
    inc = dj.incremental(lambda p, x: x + jnp.broadcast_to(p["bias"], x.shape))
    cache, _ = inc.init(PARAMS, changes(SHAPE)[0])
    assert all(x.size <= 4 for x in cache["fixed"])


# --------------------------------------------------------------------------------------------------- shape moves

MOVES = {
    "transpose": lambda p, x: x.transpose(2, 0, 1) * 2,
    "transpose the picture": lambda p, x: jnp.swapaxes(x, 0, 1) + 1,
    "split channels": lambda p, x: x.reshape(13, 18, 2, 2).sum(-1),
    "merge channels": lambda p, x: x.reshape(13, 18, 2, 2).swapaxes(2, 3).reshape(13, 18, 4),
    "expand": lambda p, x: x[:, None, :, :, None] * 3,
    "squeeze": lambda p, x: jnp.squeeze(x[None, ..., :1]),
    "crop": lambda p, x: x[2:9, 5:],
    "every other": lambda p, x: x[::2, 1::3],
    "pick channels": lambda p, x: x[..., 1:3],
    "pad": lambda p, x: jnp.pad(x, ((1, 2), (3, 0), (0, 1))),
    "pad with a value": lambda p, x: jnp.pad(x, ((2, 2), (2, 2), (0, 0)), constant_values=0.7),
    "pad inside": lambda p, x: lax.pad(x, 0.5, ((1, 1, 1), (0, -2, 2), (0, 0, 0))),
    "beside itself": lambda p, x: x + lax.pad(x, 0.0, ((1, -1, 0), (-2, 2, 0), (0, 0, 0))),  # two spans of one value
    "pad, then convolve": lambda p, x: conv(
        jnp.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=1), p["kernel"], "VALID"),
    "add, then convolve": lambda p, x: conv(x + 1, p["kernel"]),  # outside the picture is 0, not 0 + 1
    "join with nothing": lambda p, x: jnp.roll(jnp.concatenate([x[:0], x], axis=0), 0, axis=1),
    "join channels": lambda p, x: jnp.concatenate([x, 2 * x, p["positions"]], axis=-1),
    "join rows": lambda p, x: jnp.concatenate([x, 1 - x], axis=0),
    "join columns of three": lambda p, x: jnp.concatenate([x[:, :5], x[:, 9:], x], axis=1),
    "stack": lambda p, x: jnp.stack([x, x * x], axis=2),
    "stack, first": lambda p, x: jnp.stack([p["positions"], x]),
    "unstack": lambda p, x: getattr(lax, "unstack", jnp.unstack)(x, axis=2)[1] * 2,  # jax 0.10.0 has it in numpy only
    "split": lambda p, x: jnp.split(x, 2, axis=-1)[1],
    "split the picture": lambda p, x: jnp.split(x, 3, axis=1)[1],
    "flip channels": lambda p, x: x[..., ::-1],
    "space to depth": lambda p, x: jnp.concatenate([x[:12:2, ::2], x[1:12:2, 1::2]], axis=-1),
    "channel order": lambda p, x: jnp.cumsum(x, axis=-1),
    "sorted channels": lambda p, x: jnp.sort(x, axis=-1),
    "argmax of channels": lambda p, x: jnp.argmax(x, axis=-1),
    "max of channels": lambda p, x: jnp.max(x, axis=-1, keepdims=True),
    "one axis of one": lambda p, x: x[:1].reshape(18, 4)[None] * 2,
}
STAY = [name for name in MOVES if name not in ("one axis of one",)]


@pytest.mark.parametrize("names", [list(MOVES)[0::3], list(MOVES)[1::3], list(MOVES)[2::3]], ids=lambda n: n[0])
def test_shape_moves(names):
    check_incremental(each(MOVES, names), PARAMS, changes(SHAPE), tile=5, hasty=True)
    report = dj.incremental(each(MOVES, [n for n in names if n in STAY])).explain(PARAMS, changes(SHAPE)[0])
    assert not [s.reason for s in report.segments if s.reason]


# ----------------------------------------------------------------------------------------- reductions and matrices

REDUCTIONS = {
    "global mean": lambda p, x: x.mean(axis=(0, 1)),
    "global max": lambda p, x: x.max(axis=(0, 1)),
    "global min": lambda p, x: (-x).min(axis=(0, 1)),
    "global max of negatives": lambda p, x: (x - 2).max(axis=(0, 1)),
    "everything": lambda p, x: x.sum(),
    "product": lambda p, x: (1 + x / 100).prod(axis=(0, 1)),
    "any": lambda p, x: (x > 0.999).any(axis=(0, 1)),
    "all": lambda p, x: (x > 0.001).all(),
    "count": lambda p, x: (x > 0.5).astype(jnp.int32).sum(axis=(0, 1)),
    "extremes": lambda p, x: x.max(axis=(0, 1)) - x.min(),
    "mean, kept": lambda p, x: x.mean(axis=(0, 1), keepdims=True),
    "variance": lambda p, x: x.var(axis=(0, 1)),
    "dense after flatten": lambda p, x: x.reshape(-1) @ jnp.tile(p["matrix"], (13 * 18, 1)),
    "dense after flatten, batched": lambda p, x: x[None].reshape(1, -1) @ jnp.tile(p["matrix"], (13 * 18, 1)),
    "dense after flatten, channels first": lambda p, x: x.transpose(2, 0, 1).reshape(-1)
    @ jnp.tile(p["matrix"], (13 * 18, 1)),
    "dense after flatten, columns first": lambda p, x: x.swapaxes(0, 1).reshape(-1)
    @ jnp.tile(p["matrix"], (13 * 18, 1)),
    "tokens": lambda p, x: x.reshape(-1, 4) @ p["matrix"],
    "tokens of one channel": lambda p, x: (x[..., 0].reshape(-1) @ jnp.ones((13 * 18, 2)))[None],
    "dot over channels": lambda p, x: x @ p["matrix"],
    "dot from the left": lambda p, x: jnp.einsum("co,hwc->ohw", p["matrix"], x),
    "two channel axes": lambda p, x: jnp.einsum("hwab,abo->hwo", x.reshape(13, 18, 2, 2), p["matrix"].reshape(2, 2, 6)),
    "softmax at the end": lambda p, x: jax.nn.softmax(x.mean(axis=(0, 1)) @ p["matrix"]),
}


@pytest.mark.parametrize("names", [list(REDUCTIONS)[:12], list(REDUCTIONS)[12:]], ids=["reduce", "dot"])
def test_reductions(names):
    check_incremental(each(REDUCTIONS, names), PARAMS, changes(SHAPE), tile=6)


def test_whole_values_in_a_row():
    """Gates one behind the other: what is whole runs after what it reads, and again whenever that changed."""
    def fn(p, x):
        for _ in range(3):
            x = x * jax.nn.sigmoid(x.mean(axis=(0, 1), keepdims=True))
        first = x[::-1].max(axis=(0, 1))
        never = (x * first[None, None] > 1e9).any(axis=(0, 1))  # of its two operands only `first` ever changes
        return x, jnp.where(never, 0.0, first), jnp.sort(conv(first[None, None] * x, p["kernel"]).max(axis=(0, 1)))

    # On tiles throughout: the dense path takes whatever is reached for changed.
    check_incremental(fn, PARAMS, changes(SHAPE), tile=6, dense_share=1.0, hasty=True)


def test_reductions_of_streams():
    """Each stream's own sums; a sum over streams as well."""
    table = {
        "mean": lambda p, x: x.mean(axis=(1, 2)),
        "over streams": lambda p, x: x.max(axis=(0, 1, 2)),
        "flatten": lambda p, x: x.reshape(x.shape[0], -1) @ jnp.tile(p["matrix"], (11 * 10, 1)),
        "excite": lambda p, x: x * jax.nn.sigmoid(x.mean(axis=(1, 2), keepdims=True)),
        "softmax": lambda p, x: jax.nn.softmax(x.mean(axis=(1, 2)) @ p["matrix"]),
        "by stream": lambda p, x: x * jnp.arange(3, dtype=jnp.float32)[:, None, None, None],
        "of stream 0": lambda p, x: x + x[:1],
        "mixed": lambda p, x: jnp.roll(x, 1, axis=0) - x.mean(axis=0, keepdims=True),
    }
    check_incremental(each(table), PARAMS, changes((3, 11, 10, 4)), tile=4, given=True, hasty=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 9)], ids=str)
def test_strides_that_meet_on_a_picture_of_length_1(size):
    """A stride of 2 and one of 1 give the same single row; their sum reads the frame at two scales."""
    table = {
        "conv": lambda p, x: jax.nn.relu(conv(x, p["kernel"], strides=[1 + (n == 1) for n in size])) + x,
        "pool": lambda p, x: window(x, lax.max, -np.inf, (3, 3, 1), (*(1 + (n == 1) for n in size), 1), "SAME") * x,
        "up": lambda p, x: x + window(x, lax.add, 0, (1, 1, 1), base_dilation=(*(1 + (n == 1) for n in size), 1)),
    }
    check_incremental(each(table), PARAMS, changes((*size, 4)), tile=3, hasty=True)


def test_narrow_sums():
    """Partial sums are kept in float32, so bfloat16 loses nothing that the dense sum keeps."""
    table = {name: REDUCTIONS[name] for name in ("global mean", "everything", "global max", "variance")}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    table["dense"] = lambda p, x: x.reshape(-1) @ jnp.tile(p["matrix"], (13 * 18, 1))
    table["dot"] = lambda p, x: x @ p["matrix"]
    check_incremental(each(table), params, changes(SHAPE, jnp.bfloat16), tile=6, ulps=2)


# ----------------------------------------------------------------------------------------------------- networks


def network(frame_shape, module, *, seed=0):
    params = module.init(jax.random.key(seed), jnp.zeros((1, *frame_shape)))
    return (lambda p, x: module.apply(p, x[None])[0]), params


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(8, (3, 3), name="a")(x))
        z = nn.Conv(8, (3, 3), name="b")(y)
        y = nn.relu(y + z)
        z = nn.Conv(8, (3, 3), strides=2, name="c")(y)
        return nn.relu(z + nn.Conv(8, (1, 1), strides=2, name="d")(y))


class Excited(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(x.mean(axis=(1, 2))))))
        return nn.Conv(4, (3, 3))(x * gate[:, None, None, :])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x))
        return nn.Conv(4, (3, 3))(nn.relu(x))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        top = nn.relu(nn.Conv(6, (3, 3))(x))
        low = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(top, (2, 2), (2, 2))))
        up = nn.ConvTranspose(6, (2, 2), strides=(2, 2))(low)
        return nn.Conv(3, (3, 3))(jnp.concatenate([top, up], axis=-1))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        return nn.softmax(nn.Dense(5)(nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))))


class Depthwise(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), strides=2)(x)))
        y = nn.Conv(8, (5, 5), feature_group_count=8)(nn.hard_swish(nn.Conv(8, (1, 1))(x)))
        return x + nn.Conv(8, (1, 1))(y)


NETWORKS = {"residual": Residual, "squeeze and excite": Excited, "group norm": Normed, "u-net": UNet,
            "classifier": Classifier, "inverted residual": Depthwise}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("residual", "u-net", "classifier") else pytest.mark.slow)
             for name in NETWORKS]
)
def test_networks(name):
    """Flax modules of a few layers; two layers may each add their own rounding."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        fn, params = network((20, 28, 3), NETWORKS[name]())
        inc, caches = check_incremental(fn, params, changes((20, 28, 3)), tile=4, rel=4e-6)
        assert not refusals(fn, params, changes((20, 28, 3))[0])
    still = inc.stats(caches[2])
    assert int(still.tiles_issued) == 0 and float(still.flops_issued) == 0


# ------------------------------------------------------------------------------------- wrappers, and no rule at all

DENSE = {
    "gather": lambda p, x: x[jnp.argsort(x[:, 0, 0])],
    "fft": lambda p, x: jnp.abs(jnp.fft.fft2(x[..., 0])),
    "conv_general_dilated": lambda p, x: nn.Conv(2, (3, 3)).apply({"params": {
        "kernel": x[:3, :3, :, None] * jnp.ones((1, 1, 1, 2)), "bias": jnp.zeros(2)}}, x[None]),
    "dot_general": lambda p, x: jnp.einsum("hwc,hkc->wk", x, x),
    "reshape": lambda p, x: x.reshape(26, 9, 4) + 1,
    "scan": lambda p, x: lax.scan(lambda c, row: (c + row, c), x[0], x)[1],
    "while": lambda p, x: lax.while_loop(lambda y: y.max() > 0.1, lambda y: y * 0.5, x),
    "dynamic_slice": lambda p, x: lax.dynamic_slice(x, (jnp.argmax(x[:, 0, 0]), 0, 0), (1, 18, 4)),
}


def test_without_a_rule():
    check_incremental(each(DENSE), PARAMS, changes(SHAPE), rel=1e-5, hasty=True)


@pytest.mark.parametrize("name", DENSE)
def test_a_fallback_is_named(name):
    """explain() gives primitive, reason and the user's own file and line."""
    report = dj.incremental(DENSE[name]).explain(PARAMS, changes(SHAPE)[0])
    (reason,) = (s.reason for s in report.segments if s.how == "dense")
    line = DENSE[name].__code__.co_firstlineno
    assert f"{name}: " in reason and f", at {__file__}:{line} (" in reason
    assert report.fallback_share > 0 and reason in str(report)


def test_tiles_again_after_a_fallback():
    """A scan over rows is whole; the convolution after it compares, and goes on with tiles."""
    fn = lambda p, x: conv(jax.nn.relu(conv(lax.map(lambda row: row * 2, x), p["kernel"])), p["kernel"])  # noqa: E731
    frames = changes((24, 24, 4))
    inc, caches = check_incremental(fn, PARAMS, frames, tile=4)
    how = "native" if inc.options.native else "tiles"
    assert [s.how for s in inc.explain(PARAMS, frames[0]).segments] == ["dense", how, how]
    stats = inc.stats(caches[1])  # one pixel moved
    assert all(0 < int(row.tiles_issued) <= 9 for row in stats.segments[1:])


@functools.partial(jax.custom_jvp)
def leaky(x):
    return jnp.where(x > 0.5, x, 0.1 * x)


leaky.defjvp(lambda primals, tangents: (leaky(*primals), tangents[0]))


@jax.custom_vjp
def straight(x):
    return jnp.round(x)


straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def test_wrappers_are_looked_through():
    table = {
        "jit": lambda p, x: jax.jit(lambda y: conv(y, p["kernel"]))(x),
        "jit of jit": lambda p, x: jax.jit(jax.jit(lambda y: y * p["bias"][None, None]))(x),
        "remat": lambda p, x: jax.checkpoint(lambda y: jnp.tanh(conv(y, p["kernel"])))(x),
        "custom_jvp": lambda p, x: leaky(x) + jax.nn.relu(x),
        "custom_vjp": lambda p, x: straight(3 * x),
        "vmap": lambda p, x: jax.vmap(lambda row: jnp.tanh(row))(x),
    }
    check_incremental(each(table), PARAMS, changes(SHAPE), tile=5)
    assert not refusals(each(table), PARAMS, changes(SHAPE)[0])


# -------------------------------------------------------------------------------------------------- odd functions

ODD = {
    "the frame": lambda p, x: x,
    "params": lambda p, x: (p["bias"], x * 2),
    "a constant": lambda p, x: (jnp.arange(3), np.float32(2.5), x.sum()),
    "twice": lambda p, x: (x * 2, x * 2),
    "the same value twice": lambda p, x: [x.mean()] * 2,
    "no frame": lambda p, x: p["bias"] * 2,
    "nested": lambda p, x: {"a": (x + 1, [x.max()]), "b": None},
    "bool": lambda p, x: x > 0.5,
    "small int": lambda p, x: (x * 9).astype(jnp.uint8),
    "shape only": lambda p, x: jnp.zeros(x.shape) + 1,
    "nothing": lambda p, x: x[:, :0],
    "no channels": lambda p, x: x[..., :0] * 2,
    "weak type": lambda p, x: jnp.where(x > 0.5, 1.0, 0.0),
    "intermediate too": lambda p, x: (jax.nn.relu(y := conv(x, p["kernel"])), y, y.mean()),
    "derivative inside": lambda p, x: jax.grad(lambda y: jnp.sum(jnp.tanh(y) ** 2))(x),
    "random": lambda p, x: x + jax.random.normal(jax.random.key(0), x.shape),
    "a key": lambda p, x: jax.random.key_data(jax.random.key(3)) + jnp.uint32(1),
    "dead code": lambda p, x: (conv(x, p["kernel"]), x * 2)[1],
}


def test_odd_functions():
    check_incremental(each(ODD), PARAMS, changes(SHAPE), tile=6, hasty=True)


def test_dead_code_has_no_segment():
    report = dj.incremental(ODD["dead code"]).explain(PARAMS, changes(SHAPE)[0])
    assert [s.name for s in report.segments] == ["pointwise1"]


def test_params_of_python_numbers():
    check_incremental(lambda p, x: x * p["a"] + p["b"], {"a": 2.0, "b": 1}, changes(SHAPE))


def test_frames_without_channels():
    """`[H, W]`, with `spatial_axes=(-2, -1)`."""
    table = {"map": lambda p, x: x * 2, "conv": lambda p, x: conv(jnp.stack([x] * 4, -1), p["kernel"]),
             "sum": lambda p, x: x.sum(), "lifted": lambda p, x: x[..., None] * p["bias"][None, None]}
    check_incremental(each(table), PARAMS, changes((9, 11), rows=-2, cols=-1), spatial_axes=(-2, -1), given=True,
                      hasty=True)


def test_float64():
    params = jax.tree.map(np.asarray, PARAMS)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        table = {"conv": lambda p, x: conv(x, p["kernel"]), "mean": REDUCTIONS["global mean"],
                 "argmax": lambda p, x: jnp.argmax(x, axis=-1), "dot": REDUCTIONS["dot over channels"]}
        check_incremental(each(table), params, changes(SHAPE, np.float64), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_dtypes_of_frames(dtype):
    frames = changes(SHAPE, dtype, high=200)
    check_incremental(
        lambda p, x: (conv(x.astype(jnp.float32) / 255, p["kernel"]), x // dtype(2), x.max()), PARAMS, frames, tile=6,
        hasty=True,
    )


def test_rules_name_primitives_of_this_jax():
    """A rule under a name that no primitive has would never be asked."""
    from jax.extend.core import primitives

    known = {p.name for p in vars(primitives).values() if hasattr(p, "name")}
    # Not among those that jax.extend lists:
    elsewhere = {"name", "optimization_barrier", "pvary", "scatter-sub", "split", "stack", "tile", "unstack"}
    assert set(RULES) - known <= elsewhere


def test_pooling_joins_what_it_alone_reads():
    """Then the convolution before it has no slot; a second reader, or overlapping windows, keep it."""

    def names(then):
        def fn(params, x):
            return then(conv(x, params["kernel"]))

        report = dj.incremental(fn).explain({"kernel": jnp.ones((3, 3, 4, 4))}, changes(SHAPE)[0])
        return [segment.name for segment in report.segments]

    def conv(x, kernel):
        return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]

    def pool(x, stride):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (stride, stride, 1), "VALID")

    assert names(lambda x: pool(x, 2)) == ["conv1"]
    assert names(lambda x: (pool(x, 2), x)) == ["conv1", "pool1"]
    assert names(lambda x: pool(x, 1)) == ["conv1", "pool1"]


def test_what_is_pointwise_beside_its_own_input_has_no_slot():
    """As a `relu` in a network of residuals: who reads it makes it; but what goes out, or is read whole, is stored."""

    def slots(then):
        def fn(params, x):
            y = conv(x, params["kernel"])
            z = jax.nn.relu(y + params["bias"].reshape(1, 1, 4))
            return then(conv(z, params["kernel"]) + y, z)

        frames = changes(SHAPE)
        check_incremental(fn, PARAMS, frames, tile=6, hasty=True)
        return sum(value.is_tiled for s in dj.incremental(fn).plan(PARAMS, frames[0]).segments for value in s.writes)

    sums = functools.partial(window, function=lax.add, start=0, size=(3, 3, 1), padding="SAME")
    assert slots(lambda out, z: out) == 2
    assert slots(lambda out, z: (out, sums(2 * z))) == 3
    assert slots(lambda out, z: (out, sums(z), z)) == 4
    assert slots(lambda out, z: (out, sums(z), jnp.sort(z.ravel()))) == 4


def test_a_reader_that_makes_one_input_itself_and_then_another():
    """A pool repeats what is cheap before it; a convolution of one position makes that group dear, and it is stored."""

    def fn(params, x):
        doubled = x * 2
        positive = jax.nn.relu(doubled)
        summed = window(positive, lax.add, 0, (3, 3, 1), padding="SAME") + doubled
        mixed = conv(positive, params["kernel"][:1, :1])
        return doubled, summed, mixed, window(positive, lax.max, -np.inf, (5, 5, 1), padding="SAME")

    check_incremental(fn, PARAMS, changes(SHAPE), tile=6, hasty=True)
