"""From the flat names and layouts of a torch state dict to Flax params whose modules carry the same names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ._published import Params, Published, shapes
from ._weights import flatten, nest

LEAVES = {  # Flax's names, and here "slope", to torch's; a parameter of another name has the same in both
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load_state_dict(network: nn.Module, size: tuple[int, int], published: Published, path: Path | None) -> Params:
    """The params from the authors' file, or from a .safetensors file with the names of their state dict.

    Args:
        network: its modules carry the authors' names.
        size: (height, width) of a frame that it takes.
        published: where its weights are.
        path: the file.

    Raises:
        ValueError: no path (the package has no copy), no such file, or the weights of another network.
    """
    return params_from_state_dict(published.read(path), shapes(network, size), published, str(path))


def flax_layout(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict without its counts of batches, kernels as Flax has them, all under torch's names.

    Convolutions turn from [out, in, height, width] to [height, width, in, out], transposed ones from [in, out, height,
    width] to what `flax.linen.ConvTranspose(transpose_kernel=True)` takes, matrices from [out, in] to [in, out].
    """
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}
    return {
        name: array.transpose(axes[array.ndim]) if array.ndim in axes else array
        for name, array in weights.items()
        if not name.endswith(".num_batches_tracked")
    }


def params_from_state_dict(
    weights: Mapping[str, np.ndarray], wanted: Mapping[str, Any], published: Published, origin: str
) -> Params:
    """Renames and transposes weights: `"stem.0.weight"` becomes `["params"]["stem.0"]["kernel"]`.

    Args:
        weights: the state dict.
        wanted: collections of modules, some inside others, of leaves with shapes and dtypes, as `shapes` has them.
        published: for errors.
        origin: what to call the weights in an error.

    Raises:
        ValueError: a weight is missing, left over, or has another shape.
    """
    left = flax_layout(weights)
    params = {}
    faults = []
    for path, spec in flatten(wanted).items():
        _, *modules, leaf = path.split("/")
        name = ".".join((*modules, LEAVES.get(leaf, leaf)))
        array = left.pop(name, None)
        if array is None:
            faults.append(f"{name} is missing")
        elif array.shape != spec.shape:
            faults.append(f"{name} has shape {weights[name].shape}")
        else:
            params[path] = jnp.asarray(array, spec.dtype)
    published.check(origin, [*faults, *(f"{name} is not part of it" for name in left)])
    return nest(params)
