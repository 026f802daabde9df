"""Params of an inference network from a training checkpoint: every batch norm is folded into the layer before it.

    scale * (conv(x) + bias - mean) / sqrt(variance + eps) + shift  =  folded(x) + folded bias
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._published import Params, Published


class Layer(NamedTuple):
    """What a file calls the arrays of one layer, kernel and bias or batch norm or both.

    Attributes:
        kernel: [rows, columns, in, out], or [in, out] of a dense layer.
        bias: [out]; None where there is none.
        norm: the scale, shift, mean and variance [out] of the batch norm that follows; empty where none does.
    """

    kernel: str
    bias: str | None = None
    norm: tuple[str, ...] = ()

    @property
    def per_channel(self) -> tuple[str, ...]:
        return self.norm if self.bias is None else (self.bias, *self.norm)


def fold_layers(
    arrays: Mapping[str, np.ndarray],
    layers: Mapping[str, Layer],
    wanted: Mapping[str, Any],
    eps: float,
    published: Published,
    origin: str,
) -> Params:
    """Flax params ``{"params": {layer: {"kernel", "bias"}}}`` in float32, each checked against the network.

    Args:
        arrays: the file's, kernels in the layout of `Layer`.
        layers: by the name that the network gives each layer.
        wanted: the network's params, or their shapes; every layer has a kernel and a bias.
        eps: what batch norm adds to the variance.
        published: for errors.
        origin: what to call the arrays in an error: their file.

    Raises:
        ValueError: an array is missing, left over, or has another shape.
    """
    left = dict(arrays)
    params: dict[str, dict[str, Array]] = {}
    faults = []
    for name, layer in layers.items():
        shape = wanted[name]["kernel"].shape
        expected = {layer.kernel: shape} | dict.fromkeys(layer.per_channel, shape[-1:])
        found = {array: left.pop(array) for array in expected if array in left}
        wrong = [array for array, like in expected.items() if array not in found or found[array].shape != like]
        faults += [
            f"{array} is {found[array].shape} instead of {expected[array]}" if array in found else f"{array} is missing"
            for array in wrong
        ]
        if not wrong:
            params[name] = _folded(layer, found, eps)
    published.check(origin, [*faults, *(f"{array} is not part of it" for array in left)])
    return {"params": params}


def _folded(layer: Layer, arrays: Mapping[str, np.ndarray], eps: float) -> dict[str, Array]:
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    kernel = wide[layer.kernel]
    bias = np.zeros(kernel.shape[-1]) if layer.bias is None else wide[layer.bias]
    if layer.norm:
        scale, shift, mean, variance = (wide[name] for name in layer.norm)
        gain = scale / np.sqrt(variance + eps)
        kernel, bias = kernel * gain, (bias - mean) * gain + shift
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
