"""Random weights for a network, and the state dict that its authors would have made of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltajax.models._state_dict import LEAVES
from deltajax.models._weights import flatten

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


def random_params(spec: Any, seed: int = 0) -> Any:
    """Arrays like `spec` (of `jax.eval_shape`), such that values neither die away nor grow over the layers."""
    noise = np.random.default_rng(seed)

    def leaf(path, like):
        if path[-1].key == "kernel":
            array = noise.normal(0, (2 / np.prod(like.shape[:-1])) ** 0.5, like.shape)
        else:
            array = noise.uniform(*RANGES[path[-1].key], like.shape)
        return jnp.asarray(array.astype(like.dtype))

    return jax.tree_util.tree_map_with_path(leaf, spec)


def state_dict_from_params(params: Any) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state_dict`, with arrays in one piece, as safetensors wants them."""
    weights = {}
    for path, array in flatten(params).items():
        _, *modules, leaf = path.split("/")
        array = np.asarray(array)  # for jax would compile a transpose for each shape
        if leaf == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        weights[".".join((*modules, LEAVES.get(leaf, leaf)))] = np.ascontiguousarray(array)
    return weights
