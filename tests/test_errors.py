"""Bad input: a message of one line that names the argument, its value and the remedy."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import deltajax as dj


def fn(params, frame):
    return lax.conv_general_dilated(frame[None], params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


KERNEL = jnp.ones((3, 3, 2, 2))
FRAME = np.zeros((6, 7, 2), np.float32)
INC = dj.incremental(fn)


def refuse(call, *parts, error=ValueError):
    """The call is refused, in one line that holds all the parts."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert re.search(part, message), f"no {part!r} in: {message}"
    return message


OPTIONS = {
    "tau below 0": ({"tau": -1.0}, "`tau`", "-1.0", "use 0"),
    "tau NaN": ({"tau": float("nan")}, "`tau`", "nan", "use 0"),
    "tau text": ({"tau": "0.1"}, "`tau`", "0.1", "number"),
    "norm": ({"norm": "l3"}, "`norm`", "l3", "'l1', 'l2', 'linf'"),
    "reference": ({"reference": "next"}, "`reference`", "next", "'held', 'previous'"),
    "taus below 0": ({"taus": {"conv1": -2}}, "conv1", "-2", "use 0"),
    "tile": ({"tile": 0}, "`tile`", "0", ">= 1"),
    "tile not whole": ({"tile": 2.5}, "`tile`", "2.5", "whole"),
    "bucket": ({"bucket": -4}, "`bucket`", "-4", ">= 1"),
    "cell": ({"cell": True}, "`cell`", "True", "whole"),
    "even field": ({"field": 4}, "`field`", "4", "use 5"),
    "dense share": ({"dense_share": 1.5}, "`dense_share`", "1.5", r"\[0, 1\]"),
    "axes from the front": ({"spatial_axes": (0, 1)}, "`spatial_axes`", r"\(0, 1\)", r"\(-3, -2\)"),
    "one axis": ({"spatial_axes": (-2,)}, "`spatial_axes`", "-2", r"\(-2, -1\)"),
    "the same axis": ({"spatial_axes": (-2, -2)}, "`spatial_axes`", "-2", "two axes"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options, *parts = OPTIONS[name]
    refuse(lambda: dj.incremental(fn, **options), *parts)


FRAMES = {
    "rank 2": (np.zeros((6, 7), np.float32), "`frame`", r"\(6, 7\)", r"\[H, W, C\]", "spatial_axes"),
    "rank 5": (np.zeros((1, 1, 6, 7, 2), np.float32), "`frame`", r"\(1, 1, 6, 7, 2\)", "S, H, W, C"),
    "empty": (np.zeros((0, 7, 2), np.float32), "`frame`", r"\(0, 7, 2\)", "empty"),
    "bool": (np.zeros((6, 7, 2), bool), "`frame`", "bool", "uint8, float32"),
    "complex": (np.zeros((6, 7, 2), np.complex64), "`frame`", "complex64", "floating or integer"),
    "a list": ([[0.0]], "`frame`", "list", "array"),
    "None": (None, "`frame`", "NoneType", "array"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name):
    frame, *parts = FRAMES[name]
    refuse(lambda: INC.init(KERNEL, frame), *parts)
    refuse(lambda: INC.explain(KERNEL, frame), *parts)
    cache, _ = INC.init(KERNEL, FRAME)
    refuse(lambda: INC.step(KERNEL, cache, None, frame), *parts)


def test_channels_that_break_the_function():
    """The function's own error comes through, from its own line."""
    with pytest.raises((TypeError, ValueError), match="feature_group_count") as caught:
        INC.init(KERNEL, np.zeros((6, 7, 3), np.float32))
    assert any(str(entry.path) == __file__ and entry.name == "fn" for entry in caught.traceback)


STEPS = {
    "another size": ({"frame": np.zeros((6, 8, 2), np.float32)}, "`frame`", r"\(6, 8, 2\)", "init"),
    "another dtype": ({"frame": np.zeros((6, 7, 2), np.float16)}, "`frame`", "float16", "init"),
    "mask of another shape": ({"mask": np.ones((6, 8), bool)}, "`mask`", r"\(6, 8\)", r"\(6, 7\)", "None"),
    "mask of numbers": ({"mask": np.ones((6, 7), np.float32)}, "`mask`", "float32", "booleans", "None"),
    "mask with channels": ({"mask": np.ones((6, 7, 2), bool)}, "`mask`", r"\(6, 7, 2\)", r"\(6, 7\)"),
    "no cache": ({"cache": None}, "`cache`", "NoneType", "init"),
    "an empty cache": ({"cache": {}}, "`cache`", "init"),
    "a pair for a cache": ({"cache": ({}, None)}, "`cache`", "tuple", "init"),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", STEPS)
def test_steps(name, wrap):
    changed, *parts = STEPS[name]
    cache, mask = INC.init(KERNEL, FRAME)
    arguments = {"cache": cache, "mask": mask, "frame": FRAME} | changed
    if name == "another dtype":  # the convolution itself needs one dtype
        step = lambda c, m, x: INC.step(KERNEL.astype(jnp.float16), c, m, x)  # noqa: E731
    else:
        step = lambda c, m, x: INC.step(KERNEL, c, m, x)  # noqa: E731
    refuse(lambda: wrap(step)(*arguments.values()), *parts)


@pytest.mark.parametrize("other", [lambda p, x: x, lambda p, x: fn(p, fn(p, x)), lambda p, x: fn(p, x).mean((0, 1))],
                         ids=["less", "more", "vector"])
def test_a_cache_of_another_function(other):
    cache, _ = dj.incremental(other).init(KERNEL, FRAME)
    refuse(lambda: INC.step(KERNEL, cache, None, FRAME), "`cache`", "init")


def test_a_cache_of_other_options():
    """Cells and thresholds are not in the cache; streams and sizes are."""
    inc = dj.incremental(fn)
    cache, _ = dj.incremental(fn, cell=2, tau=0.5).init(KERNEL, FRAME)
    inc.step(KERNEL, cache, None, FRAME)
    elsewhere, _ = dj.incremental(fn, platform="cpu" if inc.options.at_once else "gpu").init(KERNEL, FRAME)
    refuse(lambda: inc.step(KERNEL, elsewhere, None, FRAME), "`cache`", "`platform`", "init")
    streams, _ = dj.incremental(lambda p, x: jax.vmap(fn, (None, 0))(p, x)).init(KERNEL, np.stack([FRAME] * 2))
    refuse(lambda: inc.step(KERNEL, streams, None, FRAME), "init")


def test_params_of_another_shape():
    cache, _ = INC.init(KERNEL, FRAME)
    wide = jnp.ones((3, 3, 2, 5))
    refuse(lambda: INC.step(wide, cache, None, FRAME), "params", "init")


def test_unknown_segment_in_taus():
    inc = dj.incremental(fn, taus={"conv7": 0.1})
    refuse(lambda: inc.init(KERNEL, FRAME), "`taus`", "conv7", r"\['conv1'\]")


def test_a_function_that_closes_over_a_tracer():
    def outer(kernel):
        inc = dj.incremental(lambda params, frame: fn(kernel, frame))
        return inc.init({}, FRAME)[0]["age"]

    refuse(lambda: jax.jit(outer)(KERNEL), "`fn`", "closes over", "params")


def test_stats_of_a_foreign_cache():
    cache, _ = dj.incremental(lambda p, x: x[:2]).init({}, FRAME)
    refuse(lambda: dj.incremental(fn).stats(cache), "`cache`", "init")


def test_a_picture_that_is_no_map_is_told():
    """A function whose picture cannot be followed is no error: it is done densely and said so."""
    report = dj.incremental(lambda p, x: jnp.fft.fft2(x[..., 0]).real).explain({}, FRAME)
    assert report.fallback_share > 0 and "fft: no rule for it" in str(report)
