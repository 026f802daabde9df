"""Operations that mix one picture axis and keep the other: along rows, over tokens, attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import changes, check_incremental

import deltajax as dj

SHAPE = (13, 18, 4)
RNG = np.random.default_rng(3)
SIZES = {"dense": (4, 6), "rows": (13, 5), "cols": (18, 7), "picture": (13, 18, 3), "tokens": (234, 2),
         "bias": (13, 1, 1), "by_row": (13, 4, 3), "class": (1, 4)}
PARAMS = {name: jnp.asarray(RNG.normal(0, 0.3, size), jnp.float32) for name, size in SIZES.items()}


def same_size(x, band):
    return jnp.einsum("hwc,wv->hvc", x, band)


def attention(q, k, v):
    """[.., tokens, heads, width] each, as Flax writes it."""
    scores = jnp.einsum("...qhd,...khd->...hqk", q / np.sqrt(q.shape[-1]), k)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)


def heads(x):
    return x.reshape(*x.shape[:-1], 2, 2)


ALONG = {
    "mean of rows": lambda p, x: x.mean(axis=0),
    "max of columns, kept": lambda p, x: x - x.max(axis=1, keepdims=True),
    "over a row and the channels": lambda p, x: x.sum(axis=(1, 2)),
    "argmax": lambda p, x: jnp.argmax(x, axis=0),
    "softmax over rows": lambda p, x: jax.nn.softmax(x, axis=0),
    "normalised columns": lambda p, x: (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True) + 1e-3),
    "cumsum": lambda p, x: jnp.cumsum(x, axis=0),
    "sort": lambda p, x: jnp.sort(x, axis=1),
    "top_k": lambda p, x: lax.top_k(x.transpose(0, 2, 1), 3)[0],
    "flip": lambda p, x: x[:, ::-1],
    "far roll": lambda p, x: jnp.roll(x, 9, axis=1),
    "one row": lambda p, x: x[4] * 2,
    "one column, by index": lambda p, x: jnp.take(x, jnp.asarray(7), axis=1),
    "row broadcast": lambda p, x: x + x[:1] * x[:, 2:3],
    "row from constants": lambda p, x: x + p["bias"],
    "reduce": lambda p, x: lax.reduce(x, 0.5, lambda a, b: jnp.maximum(a, b), (0,)),
    "matrix on rows": lambda p, x: jnp.einsum("hwc,hk->kwc", x, p["rows"]),
    "matrix on columns": lambda p, x: jnp.einsum("hwc,wk->hkc", x, p["cols"]),
    "matrix from the right": lambda p, x: jnp.einsum("wk,hwc->khc", p["cols"], x),
    "matrices by row": lambda p, x: jnp.einsum("hwc,hcd->hwd", x, p["by_row"]),
    "row and channels": lambda p, x: jnp.einsum("hwc,hck->wk", x, p["by_row"]),
    "all of the picture": lambda p, x: jnp.einsum("hwc,hwk->kc", x, p["picture"]),
    "all of it, from the right": lambda p, x: jnp.einsum("hwk,hwc->kc", p["picture"], x),
    "each with each, by channel": lambda p, x: jnp.einsum("hc,wc->hw", x[:, 3], x[2]),
    "position by position": lambda p, x: jnp.einsum("hwc,hwd->hwcd", x, x * 2),
    "take with a table": lambda p, x: x[:, np.array([[0, 1, 2], [9, 8, 17]])],
    "take outside": lambda p, x: jnp.take(x, np.array([1, 3, 40]), axis=1, mode="fill", fill_value=2.0),
    "replace a square": lambda p, x: x.at[2:5, 3:9].set(0.5),
    "less the mean of a channel": lambda p, x: x.at[..., 1].add(-0.5).at[2:4, 5].multiply(p["bias"][:2, 0]),
    "replace by itself": lambda p, x: lax.dynamic_update_slice(x, x[:4, :5] * 2, (6, 7, 0)),
    "slice at a constant": lambda p, x: lax.dynamic_slice(x, (3, 16, 0), (5, 6, 4)),
    "padded with a parameter": lambda p, x: lax.pad(x, p["bias"][0, 0, 0], [(1, 2, 0), (0, 1, 1), (0, 0, 0)]),
    "window of its own": lambda p, x: lax.reduce_window(x, 0.25, lambda a, b: jnp.maximum(a, b) * 1, (3, 2, 1),
                                                        (2, 1, 1), "SAME"),
}
TOKENS = {
    "dense over tokens": lambda p, x: jax.nn.relu(x.reshape(-1, 4) @ p["dense"]),
    "in a batch, with a class": lambda p, x: jnp.concatenate(
        [p["class"][None], x.reshape(1, -1, 4)], axis=1) @ p["dense"],
    "mixed tokens": lambda p, x: jnp.einsum("nc,nm->mc", (x.reshape(-1, 4) @ p["dense"])[:, :3], p["tokens"]),
    "attention": lambda p, x: attention(*(heads(x[::2, ::3].reshape(1, -1, 4) @ p["dense"][:, i: i + 4])
                                          for i in range(3))),
    "attention without a batch": lambda p, x: attention(*(heads(x[::2, ::3].reshape(-1, 4) @ p["dense"][:, i: i + 4])
                                                          for i in range(3))),
    "attention, then back to a picture": lambda p, x: attention(*[heads(
        x[::2, ::3].reshape(1, -1, 4) @ p["dense"][:, :4])] * 3).reshape(7, 6, 4) * 2,
    "attention along rows": lambda p, x: attention(*[heads(x)] * 3),
    "attention in windows": lambda p, x: attention(*[heads(
        x[:12].reshape(4, 3, 6, 3, 4).transpose(0, 2, 1, 3, 4).reshape(24, 9, 4) @ p["dense"][:, :4])] * 3),
}
CONTROL = {
    "scan over layers": lambda p, x: lax.scan(lambda y, w: (jax.nn.relu(y + w), y.mean()), x,
                                              jnp.stack([p["bias"], p["bias"] * 2, p["bias"] - 1]))[0],
    "its results": lambda p, x: lax.scan(lambda y, w: (y * w, y[:2]), x, jnp.arange(3.0), reverse=True)[1],
    "fori": lambda p, x: lax.fori_loop(0, 3, lambda i, y: y * 0.5 + x * i, x),
    "while with a known end": lambda p, x: lax.while_loop(
        lambda c: c[0] < 20, lambda c: (c[0] * 2, jnp.sin(c[1]) + c[0]), (3, x))[1],
    "decided": lambda p, x: lax.cond(True, lambda y: y + 1, lambda y: y * 2, x),
    "decided by params": lambda p, x: lax.cond(p["bias"][0, 0, 0] > 0, lambda y: y + 1, lambda y: y * 2, x),
    "decided by the frame": lambda p, x: lax.cond(x[0, 0, 0] > 0.5, lambda y: y + 1, lambda y: y * 2, x),
    "one of three": lambda p, x: lax.switch((x[0, 0, 0] * 3).astype(int),
                                            [jnp.sin, lambda y: y[::-1], lambda y: y * 2], x),
}


@pytest.mark.parametrize("table", [
    pytest.param(ALONG, id="along"), pytest.param(TOKENS, id="tokens"), pytest.param(CONTROL, id="control")])
def test_the_law(table):
    """All rows of a table as one function; nothing of it falls back, but for the flattening that ends in the output."""
    fn = lambda params, x: {name: row(params, x) for name, row in table.items()}  # noqa: E731
    check_incremental(fn, PARAMS, changes(SHAPE), rel=1e-5, hasty=True, dense_share=1.0)


def test_dense_paths():
    """The whole of a map at once, and its mask from the masks of what it reads."""
    names = "mean of rows", "max of columns, kept", "cumsum", "flip", "far roll", "matrix on rows", "take outside"
    check_incremental(lambda params, x: {name: ALONG[name](params, x) for name in names}, PARAMS, changes(SHAPE),
                      rel=1e-5, hasty=True, dense_share=0.0)


@pytest.mark.parametrize("name", [*ALONG, *TOKENS, *CONTROL])
def test_by_rule(name):
    fn = {**ALONG, **TOKENS, **CONTROL}[name]
    assert dj.incremental(fn, fallback="error").explain(PARAMS, changes(SHAPE)[0]).fallback_share == 0


def test_streams():
    """Cameras do not see each other's tokens."""
    def fn(params, x):
        y = x[:, ::2, ::3].reshape(2, -1, 4) @ params["dense"][:, :4]
        return attention(*[heads(y)] * 3), x.mean(axis=1), jnp.flip(x, 2)

    check_incremental(fn, PARAMS, changes((2, *SHAPE)), rel=1e-5, hasty=True)


def test_a_token_changes_its_row_and_its_column():
    """Of attention's scores; all other tokens of the layers before are left alone."""
    def fn(params, x):
        y = x.reshape(-1, 4) @ params["dense"]
        return y[:, :2] @ y[:, 2:4].T

    inc = dj.incremental(fn, tile=6, dense_share=1.0)
    frame = np.asarray(RNG.random((6, 6, 4)), np.float32)
    cache, mask = inc.init(PARAMS, frame)
    step = jax.jit(inc.step)
    _, cache, _ = step(PARAMS, cache, mask, frame)
    other = frame.copy()
    other[2, 3] += 1
    _, cache, mask = step(PARAMS, cache, None, other)
    rows = {row.name: int(row.tiles_issued) for row in inc.stats(cache).segments}
    assert rows["dot1"] == 1 and rows["dot2"] == 11  # of 6 and 36
    assert np.asarray(mask).sum() == 2 * 36 - 1


def test_a_shared_row_is_read_once():
    """Attention's softmax is not stored: maximum, exponentials, sum and the mean of values are one segment."""
    report = dj.incremental(TOKENS["attention without a batch"]).explain(PARAMS, changes(SHAPE)[0])
    assert [s.name for s in report.segments if s.name.startswith("dot")] == [f"dot{n}" for n in range(1, 6)]
    assert {"reduce_max", "exp", "reduce_sum", "div", "dot"} <= set(report.segments[-2].operations)


def test_a_function_applied_in_place_is_no_update():
    """`.apply` is a scatter of zeros to the eye."""
    fn = lambda p, x: x.at[2:5].apply(jnp.sin)  # noqa: E731
    inc, _ = check_incremental(fn, {}, changes(SHAPE), hasty=True)
    assert any("it applies a function" in s.reason for s in inc.explain({}, changes(SHAPE)[0]).segments)


def test_too_long_a_loop_is_named():
    fn = lambda p, x: lax.fori_loop(0, 1000, lambda i, y: y * 0.5 + x, x)  # noqa: E731
    with pytest.raises(ValueError, match="1000 turns of"):
        dj.incremental(fn, fallback="error").init({}, changes(SHAPE)[0])
