"""Random weights for a network, and the files that its authors would have made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deltajax.models._folding import Layer
from deltajax.models._random import random_params as random_params
from deltajax.models._state_dict import LEAVES
from deltajax.models._weights import flatten


def random_layers(layers: Mapping[str, Layer], spec: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """What `fold_layers` takes, under the authors' names: kernels in Flax's layout, biases and batch norms."""
    noise = np.random.default_rng(seed)
    arrays = {}
    for name, layer in layers.items():
        shape = spec[name]["kernel"].shape
        arrays[layer.kernel] = noise.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        arrays |= {other: noise.uniform(0.2, 0.6, shape[-1]) for other in layer.per_channel}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def to_torch(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `flax_layout`, with arrays in one piece, as safetensors wants them."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}
    return {
        name: np.ascontiguousarray(np.asarray(array).transpose(axes.get(array.ndim, range(array.ndim))))
        for name, array in arrays.items()
    }


def state_dict_from_params(params: Any) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state_dict`."""
    return to_torch({
        ".".join((*modules, LEAVES.get(leaf, leaf))): array
        for (_, *modules, leaf), array in ((path.split("/"), array) for path, array in flatten(params).items())
    })
