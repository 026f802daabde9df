"""Random weights: what a network of these shapes costs does not depend on what it has learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

RANGES = {
    "scale": (0.8, 1.2),
    "bias": (-0.2, 0.2),
    "mean": (-0.2, 0.2),
    "var": (0.5, 1.5),
    "slope": (0.1, 0.4),
    "gamma": (0.1, 0.4),
    "cls_token": (-0.2, 0.2),
    "pos_embed": (-0.2, 0.2),
}


def random_params(spec: PyTree, seed: int = 0) -> PyTree:
    """Arrays like `spec` (of `jax.eval_shape`), such that values neither die away nor grow over the layers."""
    noise = np.random.default_rng(seed)

    def leaf(path, like):
        if path[-1].key == "kernel":
            array = noise.normal(0, (2 / np.prod(like.shape[:-1])) ** 0.5, like.shape)
        else:
            array = noise.uniform(*RANGES[path[-1].key], like.shape)
        return jnp.asarray(array.astype(like.dtype))

    return jax.tree_util.tree_map_with_path(leaf, spec)
