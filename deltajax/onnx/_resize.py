"""Resize and Upsample, axis by axis: a take of constant positions (nearest), or a product with a banded matrix.

Source: the operator's text and formulas, https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._operator import Operator

_NEAREST = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _positions(mode: str, inputs: int, outputs: int, scale: float, region: Sequence[float]) -> np.ndarray:
    """Where each output of an axis lies among the inputs, in input pixels, which may be outside."""
    at = np.arange(outputs, dtype=np.float64)
    middle = (at + 0.5) / scale - 0.5
    last = inputs - 1
    if mode == "asymmetric":
        return at / scale
    if mode == "half_pixel_symmetric":  # the output's own middle on the input's
        return middle + inputs / 2 * (1 - outputs / (inputs * scale))
    if mode == "tf_crop_and_resize":
        start, end = region
        step = (end - start) / (outputs - 1) if outputs > 1 else 0
        return ((start if outputs > 1 else (start + end) / 2) + at * step) * last
    if mode == "align_corners":
        return at * last / max(outputs - 1, 1)
    if mode == "pytorch_half_pixel" and outputs == 1:
        return at
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return middle
    raise NotImplementedError(f"coordinate_transformation_mode={mode!r}")


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel, "Cubic convolution interpolation for digital image processing" (1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _matrix(at: np.ndarray, inputs: int, kernel, reach: int, shrink: float, exclude_outside: bool) -> np.ndarray:
    """``[outputs, inputs]``: weights of `kernel`, `1 / shrink` as wide; positions outside count at the edge."""
    below = np.floor(at)
    start = int(np.floor(-reach / shrink)) + 1
    taps = np.arange(start, 2 - start)
    which = below[:, None].astype(int) + taps
    weights = kernel((taps - (at - below)[:, None]) * shrink)
    if exclude_outside:
        weights = np.where((which < 0) | (which >= inputs), 0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(at), inputs))
    np.add.at(matrix, (np.arange(len(at))[:, None], which.clip(0, inputs - 1)), weights)
    return matrix


def _resize(
    x, second=None, third=None, sizes=None, /, *,
    antialias=0, axes=None, coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75, exclude_outside=0,
    extrapolation_value=0.0, keep_aspect_ratio_policy="stretch", mode="nearest", nearest_mode="round_prefer_floor",
    opset,
):
    if opset < 11:  # the operands are input and scales, and this is what it did
        return _upsample(x, second, mode=mode)
    region, scales = second, third
    axes = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.size:
        targets = sizes.tolist()
        scales = [target / n for target, n in zip(targets, lengths, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            scale = min(scales) if keep_aspect_ratio_policy == "not_larger" else max(scales)
            scales, targets = [scale] * len(axes), [int(np.floor(scale * n + 0.5)) for n in lengths]
    else:
        assert scales is not None
        scales = scales.astype(np.float64).tolist()
        targets = [int(np.floor(n * scale)) for n, scale in zip(lengths, scales, strict=True)]
    cropped = coordinate_transformation_mode == "tf_crop_and_resize"
    regions = region.reshape(2, -1).T.tolist() if cropped and region is not None else [(0.0, 1.0)] * len(axes)
    kernel, reach = (_linear, 1) if mode == "linear" else (lambda d: _cubic(d, cubic_coeff_a), 2)
    for axis, target, scale, part in zip(axes, targets, scales, regions, strict=True):
        n = x.shape[axis]
        at = _positions(coordinate_transformation_mode, n, target, scale, part)
        if np.array_equal(at, np.arange(n)):
            continue
        if mode == "nearest":
            x = jnp.take(x, _NEAREST[nearest_mode](at).clip(0, n - 1).astype(np.int32), axis, mode="clip")
        else:
            shrink = min(scale, 1.0) if antialias else 1.0
            matrix = _matrix(at, n, kernel, reach, shrink, bool(exclude_outside)).astype(x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, matrix, ((axis,), (1,)), precision=lax.Precision.HIGHEST), -1, axis)
        if cropped:
            inside = ((at >= 0) & (at <= n - 1)).reshape(-1, *[1] * (x.ndim - 1 - axis))
            x = jnp.where(inside, x, jnp.asarray(extrapolation_value, x.dtype))
    return x


def _upsample(x, factors=None, /, *, mode="nearest", scales=None):
    """The factors are an attribute before opset 9."""
    factors = np.array(scales, np.float32) if factors is None else factors
    return _resize(
        x, None, factors, coordinate_transformation_mode="asymmetric", nearest_mode="floor", mode=mode, opset=11
    )


OPERATORS = {
    "Resize": Operator(_resize, static=(1, 2, 3)),
    "Upsample": Operator(_upsample, static=(1,)),
}
