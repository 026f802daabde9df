"""Functions that have channels before the picture: run over with channels last they give the same, and copy nothing.

`check_incremental` judges the whole step; here, what `channels_last` makes of a function is judged by itself: the same
numbers, in the orders that it says, whatever the equations between two convolutions are.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.extend import core as jex
from law import F32, assert_close, changes, check_incremental

import deltajax as dj
from deltajax import _jaxpr
from deltajax._audit import output_error
from deltajax._bench import subject
from deltajax._channels_last import channels_last, in_own_order
from deltajax._plan import is_native
from deltajax.native._library import compiler

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 10)).astype(np.float32))  # batch, channels, picture


def weight(*shape: int) -> jax.Array:
    """The same for the same shape."""
    kernel = np.random.default_rng(shape).normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return jnp.asarray(kernel.astype(np.float32))


W, FIRST = weight(8, 8, 3, 3), ("NCHW", "OIHW", "NCHW")
ONE, TWO, DEPTHWISE, STEM = weight(8, 8, 1, 1), weight(16, 8, 3, 3), weight(8, 1, 3, 3), weight(8, 3, 3, 3)


def conv(x, w=W, stride=1, numbers=FIRST, padding="SAME", **more):
    return lax.conv_general_dilated(x, w, (stride,) * (x.ndim - 2), padding, dimension_numbers=numbers, **more)


def between(function):
    """`function` between two convolutions of channels that come first."""
    return lambda x: function(conv(x))


def attention(x):
    tokens = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    scores = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", tokens, tokens))
    return jnp.einsum("bqk,bkc->bcq", scores, tokens).reshape(x.shape)


def shuffled(x):
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(0, 2, 1, 3, 4).reshape(x.shape)


def to_space(x):
    n, c, h, w = x.shape
    return x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def layer_norm(x):
    shift, scale = x.mean(1), jnp.maximum(jnp.square(x).mean(1) - jnp.square(x.mean(1)), 0)  # as Flax does it
    return (x - shift[:, None]) * (lax.rsqrt(scale[:, None] + 1e-5) * jnp.arange(8.0)[:, None, None])


FUNCTIONS = {
    "convolutions": lambda x: conv(jax.nn.relu(conv(x)), TWO, 2),
    "grouped": lambda x: conv(conv(x, DEPTHWISE, feature_group_count=8), weight(8, 2, 3, 3), feature_group_count=4),
    "transposed": lambda x: conv(x, W, padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    "dilated": lambda x: conv(x, W, rhs_dilation=(2, 1)),
    "by batch groups": lambda x: conv(x, weight(6, 8, 3, 3), batch_group_count=2),
    "kernel of its own order": lambda x: conv(x, W.transpose(2, 0, 3, 1), numbers=("NCHW", "HOWI", "NCHW")),
    "kernel turned by the function": lambda x: conv(x, jnp.transpose(W, (1, 0, 2, 3)) * 2),
    "channels last out": lambda x: conv(x, numbers=("NCHW", "OIHW", "NHWC")) * jnp.arange(8.0),
    "columns first": lambda x: conv(x, numbers=("NCWH", "OIWH", "NWHC")) + 1,
    "one axis": lambda x: conv(x[:, :, 0], weight(8, 8, 3), numbers=("NCH", "OIH", "NCH")),
    "three axes": lambda x: conv(x[:, :, None], weight(8, 8, 1, 3, 3), numbers=("NCDHW", "OIDHW", "NCDHW")),
    "frame turned": lambda x: conv(jnp.transpose(x[0, :3], (1, 2, 0)).transpose(2, 0, 1)[None], STEM),
    "frame normalised": lambda x: conv((x[0, :3][None] - jnp.arange(3.0)[:, None, None]) / 2, STEM),
    "bias": between(lambda x: conv(x + jnp.arange(8.0)[None, :, None, None])),
    "residual": lambda x: jax.nn.relu(x + conv(jax.nn.relu(conv(x)))),
    "positions": between(lambda x: x * jnp.arange(12.0)[:, None] + jnp.arange(10.0)),
    "choice": between(lambda x: jnp.where(x > x.mean(1, keepdims=True), x, jnp.clip(x, -0.1, 0.2))),
    "excite": between(lambda x: conv(x * jax.nn.sigmoid(conv(x.mean((2, 3), keepdims=True), ONE)))),
    "layer norm": between(layer_norm),
    "norm of channels last": between(lambda x: jnp.moveaxis(jax.nn.standardize(jnp.moveaxis(x, 1, -1)), -1, 1)),
    "max pool": between(lambda x: conv(lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 2), (1, 1, 2, 1), "SAME"))),
    "mean pool": between(lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1, 3), (1, 2, 1, 3), "VALID") / 6),
    "gradient of a pool": jax.grad(lambda x: jnp.square(
        lax.reduce_window(conv(x), -jnp.inf, lax.max, (1, 1, 2, 3), (1, 1, 2, 3), "VALID")).sum()),
    "sums along rows": between(lambda x: jnp.cumsum(x, axis=2) + jnp.cumsum(x, axis=1)),
    "sorted": between(lambda x: jnp.sort(x, axis=1) + lax.sort((x, -x), dimension=3)[1]),
    "class": between(lambda x: (jnp.argmax(x, 1), x.max(1), x.min((1, 3)), (x > 0).any(2))),
    "mirrored": between(lambda x: x[:, ::-1] + x[:, :, ::-1] + lax.rev(x, (1, 3))),
    "joined": between(lambda x: conv(jnp.concatenate([x, X[:, :3], -x], 1), weight(4, 19, 3, 3))),
    "parted": between(lambda x: [conv(part, weight(4, 4, 3, 3)) for part in jnp.split(x, 2, axis=1)]),
    "cut": between(lambda x: x[:, 1:7:2, 2:-1, ::3] + 0.5),
    "padded": between(lambda x: conv(jnp.pad(x, ((0, 0), (0, 0), (1, 2), (0, 3)), constant_values=0.25))),
    "reflected": between(lambda x: jnp.pad(x, ((0, 0), (0, 0), (2, 1), (1, 3)), mode="reflect")),
    "rolled": between(lambda x: jnp.roll(x, (1, -2), (2, 3))),
    "cut where it says": between(lambda x: lax.dynamic_slice(x, (0, jnp.int32(2), 1, 3), (2, 3, 5, 4))),
    "put where it says": between(lambda x: lax.dynamic_update_slice(x, X[:, :2, :3, :4], (0, jnp.int32(1), 2, 3))),
    "put by indices": between(lambda x: x.at[:, 1, 2:5].set(0.5)),
    "repeated": between(lambda x: conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))),
    "picked channels": between(lambda x: x[:, jnp.array([3, 0, 0, 7])] + jnp.take(x, jnp.array([1, 2, 3, 4]), axis=1)),
    "picked rows": between(lambda x: x[:, :, jnp.array([[3, 0], [5, 11]])]),
    "picked points": between(lambda x: x[:, :, jnp.array([3, 0, 5]), jnp.array([1, 1, 9])]),
    "looked up": between(lambda x: jnp.take_along_axis(x, jnp.argsort(x, axis=1), axis=1)),
    "resized": between(lambda x: conv(jax.image.resize(x, (2, 8, 24, 15), "linear"))),
    "resized by rows": between(lambda x: x + jnp.einsum("nchw,hk->nckw", x, weight(12, 12))),
    "shuffled": between(lambda x: conv(shuffled(x))),
    "to space": between(lambda x: conv(to_space(x), weight(4, 2, 3, 3))),
    "flattened": between(lambda x: x.reshape(2, -1) @ weight(960, 5)),
    "flattened in part": between(lambda x: x.reshape(2, 8, -1).max(-1).reshape(2, 8, 1, 1) * x),
    "tokens": between(lambda x: x.reshape(2, 8, 120).transpose(0, 2, 1) @ weight(8, 6)),
    "attention": between(attention),
    "products of two maps": between(lambda x: jnp.einsum("nchw,ndhw->ncd", x, jax.nn.relu(x))),
    "outer product": between(lambda x: jnp.einsum("nchw,k->nchwk", x, jnp.arange(3.0))),
    "a loop": between(lambda x: lax.scan(lambda y, w: (jax.nn.relu(conv(y, w)), y.mean()), x, jnp.stack([W, -W]))),
    "a branch": between(lambda x: lax.cond(x.sum() > 0, lambda: conv(x), lambda: x)),
    "jitted": between(jax.jit(lambda x: jax.checkpoint(conv)(jax.nn.relu6(x)))),
    "streams": jax.vmap(lambda x: conv(conv(x[None]))[0]),
    "no picture": lambda x: (conv(x).mean((2, 3)) @ weight(8, 4), jnp.float32(3), x),
    "squeezed": lambda x: conv(x[:1]).squeeze(0),
    "a bias and no more": lambda x: (conv(x), jnp.broadcast_to(x.mean((0, 2, 3))[None, :, None, None], x.shape)),
    "half": between(lambda x: conv(x.astype(jnp.bfloat16), W.astype(jnp.bfloat16)).astype(jnp.float32)),
}


def transpositions(jaxpr) -> list[tuple[int, ...]]:
    """What is transposed, of more than one axis that is longer than 1."""
    found = []
    for eqn in jaxpr.eqns:
        shape = eqn.invars[0].aval.shape if eqn.invars else ()
        if eqn.primitive.name == "transpose":
            long = [axis for axis in eqn.params["permutation"] if shape[axis] > 1]
            found += [shape] if long != sorted(long) else []
    return found


@pytest.mark.parametrize("as_they_lie", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_function(name, as_they_lie):
    function = FUNCTIONS[name]
    jaxpr, constants, structure = _jaxpr.trace(function, X)
    turned, more, orders = channels_last(jaxpr, as_they_lie)
    assert turned is not jaxpr
    assert as_they_lie or not any(orders)
    found = jex.jaxpr_as_fun(jex.ClosedJaxpr(turned, more))(*constants, X)
    found = [in_own_order(x[None], order)[0] for x, order in zip(found, orders, strict=True)]
    wanted = jax.tree.leaves(function(X))
    assert structure.num_leaves == len(found)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        assert_close(got, want, F32 if jnp.issubdtype(got.dtype, jnp.floating) else 0, name)


@pytest.mark.parametrize("name", [
    "convolutions", "grouped", "transposed", "bias", "residual", "positions", "choice", "excite", "layer norm",
    "max pool", "mean pool", "frame turned", "frame normalised", "sums along rows", "class", "parted", "cut", "padded",
    "rolled", "repeated", "picked channels", "picked rows", "jitted", "squeezed", "columns first", "one axis",
    "three axes",
])
def test_no_map_is_transposed(name):
    frame = X.transpose(0, 2, 3, 1)
    jaxpr, _, _ = _jaxpr.trace(lambda x: FUNCTIONS[name](x.transpose(0, 3, 1, 2)), frame)
    turned, _, _ = channels_last(jaxpr, True)
    kernels = [v.aval.shape for v in jaxpr.constvars]
    assert all(shape in kernels for shape in transpositions(turned))


def test_what_has_its_channels_last_is_left_alone():
    jaxpr, _, _ = _jaxpr.trace(lambda x: conv(x.transpose(0, 2, 3, 1), W, numbers=("NHWC", "OIHW", "NHWC")), X)
    turned, more, orders = channels_last(jaxpr, True)
    assert turned is jaxpr and not more and orders == [None]


# ---------------------------------------------------------------------------------------------------- in a step


def network(params, frame):
    """As torch writes it: from `[h, w, 3]` to scores and a map, both with channels first."""
    x = frame.transpose(2, 0, 1)[None].astype(jnp.float32) / 255
    x = jax.nn.relu(conv(x, params["stem"]) + params["bias"][:, None, None])
    y = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    y = jax.nn.relu(conv(y, params["deep"]) + y)
    y = y * (lax.rsqrt((y * y).mean(1, keepdims=True) + 0.1) * params["scale"][:, None, None])
    z = jax.image.resize(y, (1, y.shape[1], *x.shape[2:]), "linear")
    x = x + z + jnp.repeat(jnp.repeat(y, 2, axis=2), 2, axis=3)
    return {"map": conv(x, params["head"]), "classes": jnp.argmax(x, 1), "scores": x.mean((2, 3)) @ params["dense"]}


def params_of(side: int = 8):
    return {"stem": weight(side, 3, 3, 3), "bias": weight(side), "scale": 1 + weight(side),
            "deep": weight(side, side, 3, 3), "head": weight(5, side, 1, 1), "dense": weight(side, 4)}


FRAMES = changes((32, 40, 3), np.uint8, high=255)


@pytest.mark.parametrize("options", [{}, {"tile": 8}, {"dense_share": 0.0}, {"platform": "gpu"}], ids=str)
def test_the_law_holds(options):
    check_incremental(network, params_of(), FRAMES, **options)


@pytest.mark.parametrize("kernels", ["xla", "native"])
def test_the_law_holds_of_a_flattening(kernels):
    """And of a detector's head: positions of three boxes each, in the order of torch."""
    def heads(params, frame):
        x = jax.nn.relu(conv(frame.transpose(2, 0, 1)[None], params["stem"], 2))
        boxes = x.reshape(1, 2, 4, *x.shape[2:]).transpose(0, 1, 3, 4, 2).reshape(1, -1, 4)
        return x.reshape(1, -1) @ params["dense"], boxes, x.reshape(1, 8, -1) @ params["rows"]

    if kernels == "native":
        needs_compiler()
    params = {"stem": weight(8, 3, 3, 3), "dense": weight(8 * 8 * 10, 4), "rows": weight(80, 3)}
    inc, _ = check_incremental(heads, params, changes((16, 20, 3)), rel=4e-6, kernels=kernels)
    rows = inc.explain(params, np.zeros((16, 20, 3), np.float32)).segments
    assert any("partial" in row.name for row in rows), [row.name for row in rows]


def test_the_law_holds_of_a_loop():
    def network(params, frame):
        x = conv(frame.transpose(2, 0, 1)[None], params["stem"])
        return lax.scan(lambda y, w: (jax.nn.relu(conv(y, w)), y.mean((2, 3))), x, params["turns"])

    params = {"stem": weight(8, 3, 3, 3), "turns": jnp.stack([W, -W])}
    check_incremental(network, params, changes((16, 20, 3)), rel=4e-6)


def needs_compiler() -> None:
    try:
        compiler()
    except ValueError as missing:
        pytest.skip(str(missing))


def test_with_native_kernels_everything_but_the_head_of_scores_is_native():
    needs_compiler()
    inc, _ = check_incremental(network, params_of(16), FRAMES, kernels="native", rel=4e-6)
    plan = inc.plan(params_of(16), FRAMES[0])
    others = [segment.name for segment in plan.segments if not is_native(segment)]
    assert all(name.startswith(("whole", "partial")) for name in others), others


def test_a_norm_and_a_resize_of_flax_stay_native():
    """Channels last all along: products with the matrix of a resize would lie otherwise."""
    class Net(nn.Module):
        @nn.compact
        def __call__(self, frame):
            x = nn.gelu(nn.LayerNorm()(nn.Conv(16, (3, 3), strides=2)(frame[None])))
            y = nn.elu(nn.Conv(16, (3, 3), strides=2)(x))
            y = jax.image.resize(y, (*x.shape[:3], 16), "bilinear")
            return nn.ConvTranspose(4, (3, 3), strides=(2, 2))(jnp.concatenate([x, y], -1))

    needs_compiler()
    frames = changes((32, 40, 3))
    params = Net().init(jax.random.key(0), frames[0])
    inc, _ = check_incremental(Net().apply, params, frames, kernels="native", rel=4e-6)
    assert all(row.how == "native" for row in inc.explain(params, frames[0]).segments)


def test_outputs_masks_bounds_and_audits_are_in_the_functions_own_order():
    params = params_of()
    inc = dj.incremental(network, tau=4.0)
    cache, _ = inc.init(params, FRAMES[0])
    for frame in FRAMES[:3]:
        output, cache, mask = inc.step(params, cache, None, frame)
    shapes = {name: x.shape for name, x in output.items()}
    assert shapes == {"map": (1, 5, 32, 40), "classes": (1, 32, 40), "scores": (1, 4)}
    assert {name: x.shape for name, x in mask.items()} == {"map": (32, 40), "classes": (32, 40), "scores": ()}
    assert {name: x.shape for name, x in inc.error_bound(params, cache).items()} == shapes

    def head(params, frame):
        return network(params, frame)["map"]

    for options in ({}, {"audit_tiles": 4}):
        audited = dj.incremental(head, tau=4.0, audit=1.0, **options)
        cache, _ = audited.init(params, FRAMES[0])
        errors = []
        for frame in (FRAMES[0], FRAMES[0] // 2 * 2):  # the threshold holds all of that back
            output, cache, _ = audited.step(params, cache, None, frame)
            errors.append(float(output_error(head(params, frame), output)))
        assert errors[0] < 1e-6 < errors[1] < 0.1
        found = float(audited.stats(cache).audit.last)
        assert found == pytest.approx(errors[1], rel=1e-3) if not options else 0 < found < 3 * errors[1]


def test_derivatives():
    params, frame = params_of(), FRAMES[0].astype(np.float32)
    inc = dj.incremental(lambda p, x: network(p, x)["map"])
    cache, _ = inc.init(params, frame)

    def loss(step, params, frame):
        return jnp.sum(jnp.tanh(step(params, frame)) ** 2)

    mine = jax.grad(functools.partial(loss, lambda p, x: inc.step(p, cache, None, x)[0]), (0, 1))(params, frame)
    dense = jax.grad(functools.partial(loss, lambda p, x: network(p, x)["map"]), (0, 1))(params, frame)
    for got, want in zip(jax.tree.leaves(mine), jax.tree.leaves(dense), strict=True):
        assert_close(got, want, 1e-5, "derivative")


def test_explain_names_the_functions_own_lines():
    rows = dj.incremental(network).explain(params_of(), FRAMES[0]).segments
    assert all("test_channels_last.py" in row.source for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "convnext_tiny", "lraspp_mobilenet_v3_large"])
def test_networks_of_torchvision_are_native(tmp_path, name):
    """As they come from torch by ONNX: what is done on tiles, and what engines are measured against."""
    for library in ("torch", "torchvision", "onnx"):
        pytest.importorskip(library)
    import of_torch

    needs_compiler()
    of_torch.write(of_torch.module_of(name), (64, 64), tmp_path / "net.onnx")
    what = subject(str(tmp_path / "net.onnx"), None)
    frames = [np.asarray(frame) for frame in changes((64, 64, 3))[:4]]
    inc, _ = check_incremental(what.fn, what.params, frames, rel=1e-5, kernels="native")
    rows = inc.explain(what.params, frames[0]).segments
    assert any(row.how == "native" for row in rows)
    others = [(row.name, row.how, row.not_native) for row in rows if row.how not in ("native", "whole")]
    assert not others, others
