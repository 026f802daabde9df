"""Convolution in all its forms, each against `lax.conv_general_dilated` on the whole picture.

Several rows of the table share one compilation: they are the outputs of one function.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from law import changes, check_incremental

import deltajax as dj
from deltajax.rules import conv

# kernel, strides, padding, kernel dilation, input dilation, groups (of 4 channels)
KERNELS = {
    "3x3 same": ((3, 3), (1, 1), "SAME", (1, 1), (1, 1), 1),
    "3x3 valid": ((3, 3), (1, 1), "VALID", (1, 1), (1, 1), 1),
    "1x1": ((1, 1), (1, 1), "SAME", (1, 1), (1, 1), 1),
    "1x5": ((1, 5), (1, 1), "SAME", (1, 1), (1, 1), 1),
    "7x1 valid": ((7, 1), (1, 1), "VALID", (1, 1), (1, 1), 1),
    "2x2 same": ((2, 2), (1, 1), "SAME", (1, 1), (1, 1), 1),
    "4x4 lopsided": ((4, 4), (1, 1), ((3, 1), (0, 2)), (1, 1), (1, 1), 1),
    "wide padding": ((3, 3), (1, 1), ((4, 5), (6, 3)), (1, 1), (1, 1), 1),
    "negative padding": ((3, 3), (1, 1), ((-2, 1), (1, -3)), (1, 1), (1, 1), 1),
    "stride 2 same": ((3, 3), (2, 2), "SAME", (1, 1), (1, 1), 1),
    "stride 2 valid": ((3, 3), (2, 2), "VALID", (1, 1), (1, 1), 1),
    "stride 3x2": ((3, 3), (3, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 1),
    "stride over kernel": ((2, 2), (4, 3), "VALID", (1, 1), (1, 1), 1),
    "patches 4x4": ((4, 4), (4, 4), "VALID", (1, 1), (1, 1), 1),
    "dilated 2": ((3, 3), (1, 1), "SAME", (2, 2), (1, 1), 1),
    "dilated 3x2 stride 2": ((3, 3), (2, 2), "SAME", (3, 2), (1, 1), 1),
    "transposed 2": ((4, 4), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2), 1),
    "transposed 2 3x3": ((3, 3), (1, 1), ((1, 2), (1, 2)), (1, 1), (2, 2), 1),
    "transposed 3 2x2": ((2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1), (3, 3), 1),
    "transposed 2x1 odd": ((3, 2), (1, 1), ((2, 1), (0, 1)), (1, 1), (2, 1), 1),
    "transposed 2 stride 3": ((3, 3), (3, 3), ((1, 1), (1, 1)), (1, 1), (2, 2), 1),
    "transposed dilated": ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), (2, 2), 1),
    "groups 2": ((3, 3), (1, 1), "SAME", (1, 1), (1, 1), 2),
    "depthwise": ((3, 3), (1, 1), "SAME", (1, 1), (1, 1), 4),
    "depthwise stride 2": ((5, 5), (2, 2), "SAME", (1, 1), (1, 1), 4),
    "depthwise dilated": ((3, 3), (1, 1), "SAME", (2, 3), (1, 1), 4),
    "groups dilated even": ((2, 4), (1, 1), ((1, 0), (2, 1)), (1, 2), (1, 1), 2),
}
LAYOUTS = {  # input, kernel, output; the frame is the input without its N
    "NHWC": ("NHWC", "HWIO", "NHWC", (-3, -2)),
    "NCHW": ("NCHW", "OIHW", "NCHW", (-2, -1)),
    "NWHC": ("NWHC", "HWIO", "NCHW", (-2, -3)),  # columns before rows
    "mixed": ("NHWC", "OHWI", "NWHC", (-3, -2)),  # the output has them the other way round
}


def kernels(names, numbers, dtype, channels=4, seed=1):
    rng = np.random.default_rng(seed)
    made = {}
    for name in names:
        size, *_, groups = KERNELS[name]
        lengths = {"H": size[0], "W": size[1], "I": channels // groups, "O": channels}
        shape = [lengths[letter] for letter in numbers[1]]
        made[name] = jnp.asarray(rng.standard_normal(shape) / np.sqrt(size[0] * size[1]), dtype)
    return made


def convolutions(numbers, streams=False):
    def fn(params, frame):
        x = frame if streams else frame[None]
        return {
            name: lax.conv_general_dilated(
                x, kernel, *KERNELS[name][1:3], KERNELS[name][4], KERNELS[name][3], numbers[:3], KERNELS[name][5]
            )
            for name, kernel in params.items()
        }

    return fn


def split(names, count):
    names = list(names)
    return [names[start::count] for start in range(count)]


@pytest.mark.parametrize("names", split(KERNELS, 4), ids=lambda names: names[0])
def test_every_form(names):
    """A picture of prime sides, tiles that do not divide it, any mask."""
    numbers = LAYOUTS["NHWC"]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, jnp.float32), changes((19, 23, 4)), tile=5, dense_share=0.8,
        given=len(names) % 2 == 0, hasty=True,
    )


def test_optimised():
    """As it is run: with all of the compiler's optimisations, on tiles that divide the picture."""
    numbers = LAYOUTS["NHWC"]
    names = ["3x3 same", "stride 2 same", "transposed 2", "groups 2", "depthwise", "1x1"]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, jnp.float32), changes((16, 24, 4)), tile=8, given=True,
    )


@pytest.mark.xla
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_a_strip(monkeypatch, layout):
    """On several cores the tiles of a bucket are convolved side by side."""
    monkeypatch.setattr(conv, "cores", lambda: 2)
    monkeypatch.setattr(conv, "STRIP", 300)
    monkeypatch.setattr(conv, "STRIP_WASTE", 1.6)
    numbers = LAYOUTS[layout]
    names = ["3x3 same", "stride 2 valid", "4x4 lopsided"]
    if layout == "NHWC":
        names += ["stride over kernel", "dilated 2", "1x5"]
    lengths = {"H": 33, "W": 42, "C": 4}
    shape = tuple(lengths[letter] for letter in numbers[0][1:])
    fn, params = convolutions(numbers), kernels(names, numbers, jnp.float32)
    frames = changes(shape, rows=numbers[3][0], cols=numbers[3][1])
    how: dict[str, Any] = {"tile": 8, "bucket": 3, "spatial_axes": numbers[3]}
    check_incremental(fn, params, frames, **how, given=True, hasty=True, dense_share=1.0)
    inc = dj.incremental(fn, **how)
    cache, mask = inc.init(params, frames[0])
    text = str(jax.make_jaxpr(inc.step)(params, cache, mask, frames[0]))
    assert text.count(" = concatenate[") >= len(names)


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_every_layout(layout):
    numbers = LAYOUTS[layout]
    names = ["4x4 lopsided", "stride 3x2", "transposed 2x1 odd", "groups dilated even", "7x1 valid"]
    lengths = {"H": 13, "W": 22, "C": 4}
    shape = tuple(lengths[letter] for letter in numbers[0][1:])
    rows, cols = numbers[3]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, jnp.float32), changes(shape, rows=rows, cols=cols),
        spatial_axes=numbers[3], tile=6, hasty=True,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_narrow_floats(dtype):
    numbers = LAYOUTS["NHWC"]
    names = ["3x3 same", "stride 2 same", "transposed 2", "depthwise", "dilated 2"]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, dtype), changes((17, 18, 4), dtype), tile=6
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_streams(layout):
    """Three cameras of which one moves."""
    numbers = LAYOUTS[layout]
    names = ["3x3 same", "stride 2 valid", "transposed 2 3x3", "groups 2", "wide padding"]
    shape = (3, 11, 14, 4) if layout == "NHWC" else (3, 4, 11, 14)
    rows, cols = numbers[3]
    check_incremental(
        convolutions(numbers, streams=True), kernels(names, numbers, jnp.float32),
        changes(shape, rows=rows, cols=cols), spatial_axes=numbers[3], tile=5, given=True, hasty=True,
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (13, 1), (2, 3), (5, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_tiny_pictures(size):
    numbers = LAYOUTS["NHWC"]
    names = ["3x3 same", "4x4 lopsided", "wide padding", "stride 2 same", "transposed 2", "dilated 2"]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, jnp.float32), changes((*size, 4)), tile=4, dense_share=1.0,
        hasty=True,
    )


@pytest.mark.parametrize(("tile", "bucket", "dense_share"), [(1, 1, 1.0), (3, 7, 1.0), (64, 2, 1.0), (7, 4, 0.0)])
def test_any_tile_and_bucket(tile, bucket, dense_share):
    """Tiles of one position, buckets that do not divide the list, one tile for all, always dense."""
    numbers = LAYOUTS["NHWC"]
    names = ["3x3 same", "stride 3x2", "transposed 2"]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, jnp.float32), changes((12, 15, 4)), tile=tile, bucket=bucket,
        dense_share=dense_share, hasty=True,
    )


@pytest.mark.parametrize("cell", [2, 4, 5])
def test_cells(cell):
    """A mask of cells, given over a picture that they do not divide."""
    numbers = LAYOUTS["NHWC"]
    check_incremental(
        convolutions(numbers), kernels(["3x3 same", "stride 2 same"], numbers, jnp.float32), changes((13, 18, 4)),
        given=True, cell=cell, tile=5, hasty=True,
    )


def along(x, kernel, numbers, strides, padding, **more):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **more)


SLIDING = {  # params: over three positions; of each channel on its own; over rows, columns and depths
    "along rows": lambda p, x: along(x, p["line"], ("NHC", "HIO", "NHC"), (1,), "SAME"),
    "along columns": lambda p, x: along(x.transpose(1, 2, 0), p["line"], ("NCH", "HIO", "NHC"), (2,), [(2, 0)]),
    "each channel": lambda p, x: along(x, p["each"], ("NHC", "HIO", "NHC"), (1,), [(2, 3)], lhs_dilation=(2,),
                                       rhs_dilation=(2,), feature_group_count=4),
    "with depths": lambda p, x: along(x[None, ..., None], p["deep"], ("NHWDC", "HWDIO", "NHWDC"), (1, 2, 1), "SAME"),
    "tokens": lambda p, x: along(x.reshape(1, -1, 4) @ p["line"][0], p["line"], ("NHC", "HIO", "NHC"), (1,), "SAME"),
}


@pytest.mark.parametrize("names", [
    ["along rows"], ["with depths"], pytest.param(list(SLIDING), marks=pytest.mark.slow)], ids=lambda names: names[-1])
def test_along_one_axis_and_along_three(names):
    rng = np.random.default_rng(2)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32)
              for name, shape in {"line": (3, 4, 4), "each": (4, 1, 8), "deep": (3, 3, 2, 1, 3)}.items()}
    fn = lambda p, x: {name: SLIDING[name](p, x) for name in names}  # noqa: E731
    inc, _ = check_incremental(fn, params, changes((13, 18, 4)), tile=5, dense_share=1.0, rel=1e-5, hasty=True)
    assert not [s for s in inc.explain(params, changes((13, 18, 4))[0]).segments if s.how == "dense"]


def test_channels_on_a_picture_axis_are_refused():
    fn = lambda p, x: along(x, jnp.ones((3, 18, 2)), ("NHC", "HIO", "NHC"), (1,), "SAME")  # noqa: E731
    frames = changes((1, 18, 4))
    inc, _ = check_incremental(lambda p, x: fn(p, x.transpose(0, 2, 1)), {}, frames, rel=1e-5, hasty=True)
    assert any("channels are a picture axis" in s.reason for s in inc.explain({}, frames[0]).segments)


def everywhere(layout, size, dtype):
    """In bfloat16 on one size, and not of mixed layouts; the others, which are as slow, are for `-m exhaustive`."""
    rare = dtype == jnp.bfloat16 and (size != (31, 37) or layout == "mixed")
    return pytest.param(layout, size, dtype, marks=pytest.mark.exhaustive if rare else pytest.mark.slow)


@pytest.mark.parametrize("names", split(KERNELS, 4), ids=lambda names: names[0])
@pytest.mark.parametrize(("layout", "size", "dtype"), list(itertools.starmap(everywhere, itertools.product(
    LAYOUTS, [(1, 29), (31, 37), (40, 24)], [jnp.float32, jnp.bfloat16],
))))
def test_every_form_everywhere(names, layout, size, dtype):
    numbers = LAYOUTS[layout]
    lengths = {"H": size[0], "W": size[1], "C": 4}
    shape = tuple(lengths[letter] for letter in numbers[0][1:])
    names = [n for n in names if n not in ("3x3 valid", "7x1 valid", "stride 2 valid", "negative padding",
                                           "stride over kernel", "patches 4x4") or size[0] > 8]
    check_incremental(
        convolutions(numbers), kernels(names, numbers, dtype),
        changes(shape, dtype, rows=numbers[3][0], cols=numbers[3][1]), spatial_axes=numbers[3],
        hasty=layout != "NHWC",  # as it is run once: the other layouts are moved axes
    )
