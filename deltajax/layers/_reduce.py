"""Layers that end the picture: a change anywhere changes their one vector."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._layer import Layer, Options
from ._window import kernel_and_bias


def dense(*, activation: Callable[[Array], Array] | None = None, **options: Unpack[Options]) -> Layer:
    """A fully connected layer over all values of a map (flattened in its own order) or of a vector.

    Law: `y = activation(flatten(x) @ kernel + bias)`. Of a map, the products are kept tile by tile; those of
    changed
    tiles are computed afresh, and the sum over all tiles is taken afresh: nothing accumulates. Of a vector,
    all is computed if it changed.

    Params: ``{"kernel": [values, features], "bias": [features]}`` as in Flax; the bias may be missing. For a
    dense layer at each position use `conv` with a 1x1 kernel.

    Args:
        activation: a function of each value of the result.

    Returns:
        A layer whose `y` is `[features]`, or `[S, features]` for S streams, and whose mask is a single
        boolean.

    Raises:
        ValueError: `params` or `x` does not fit; the message names it.
    """
    def fn(params: PyTree, x: Array) -> Array:
        kernel, bias = kernel_and_bias("dense", params, x, 2, "[values, features]")
        lead = x.shape[:1] if x.ndim in (2, 4) else ()
        values = math.prod(x.shape[len(lead):])
        if values != kernel.shape[0]:
            raise ValueError(
                f"`x` of layer 'dense' has {values} values (shape {tuple(x.shape)}), but params['kernel'] of "
                f"shape {tuple(kernel.shape)} takes {kernel.shape[0]}."
            )
        flat = x.reshape(*lead, values)
        y = lax.dot_general(flat, kernel, (((len(lead),), (0,)), ((), ())))
        if bias is not None:
            y = y + bias.reshape((1,) * len(lead) + bias.shape)
        return y if activation is None else activation(y)

    return Layer("dense", fn, options, vectors=True)


def global_pool(kind: str = "mean", **options: Unpack[Options]) -> Layer:
    """The mean, maximum or sum over the picture, channel by channel; `params` is not read.

    Law: taken afresh from partial results of squares of positions, of which only the changed ones are
    recomputed.

    Args:
        kind: ``"mean"``, ``"max"`` or ``"sum"``.

    Returns:
        A layer whose `y` is `[C]`, or `[S, C]` for S streams, and whose mask is a single boolean.
    """
    kinds = {"mean": jnp.mean, "max": jnp.max, "sum": jnp.sum}
    if kind not in kinds:
        raise ValueError(f"`kind` (={kind!r}) must be one of {', '.join(map(repr, kinds))}.")
    spatial = options.get("spatial_axes", (-3, -2))
    return Layer("global_pool", lambda _, x: kinds[kind](x, axis=spatial), options)
