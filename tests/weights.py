"""Random weights for a network, so that its values neither die away nor grow over its layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RANGES = {"scale": (0.8, 1.2), "bias": (-0.2, 0.2), "mean": (-0.2, 0.2), "var": (0.5, 1.5), "slope": (0.1, 0.4)}


def random_params(spec: Any, seed: int = 0) -> Any:
    """Arrays like `spec` (of `jax.eval_shape`); kernels keep the variance of what they read, as He et al. have it."""
    noise = np.random.default_rng(seed)

    def leaf(path, like):
        if path[-1].key == "kernel":
            array = noise.normal(0, (2 / np.prod(like.shape[:-1])) ** 0.5, like.shape)
        else:
            array = noise.uniform(*RANGES[path[-1].key], like.shape)
        return jnp.asarray(array, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec)
