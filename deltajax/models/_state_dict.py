"""From the flat names and layouts of a torch state dict to Flax params whose modules carry the same names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ._weights import flatten, nest

Params = dict[str, dict[str, Any]]

LEAVES = {  # Flax's names, and here "slope", to torch's; a parameter of another name has the same in both
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def params_from_state_dict(
    weights: dict[str, np.ndarray], wanted: dict[str, Any], network: str, origin: str, hint: str
) -> Params:
    """Renames and transposes weights: `"stem.0.weight"` becomes `["params"]["stem.0"]["kernel"]`.

    Args:
        weights: the state dict; convolution kernels as [out, in, height, width], those of transposed convolutions as
            [in, out, height, width] for `flax.linen.ConvTranspose(transpose_kernel=True)`, those of dense layers as
            [out, in].
        wanted: collections of modules, one inside the other or not, of leaves with shapes and dtypes: `jax.eval_shape`
            of the network's `init`.
        network: its name in an error.
        origin: what to call the weights in an error.
        hint: which file to give instead.

    Raises:
        ValueError: a weight is missing, left over, or has another shape.
    """
    left = {name: array for name, array in weights.items() if not name.endswith(".num_batches_tracked")}
    params = {}
    faults = []
    for path, spec in flatten(wanted).items():
        _, *modules, leaf = path.split("/")
        name = ".".join((*modules, LEAVES.get(leaf, leaf)))
        array = left.pop(name, None)
        if array is None:
            faults.append(f"{name} is missing")
            continue
        if leaf == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if array.shape != spec.shape:
            faults.append(f"{name} has shape {weights[name].shape}")
            continue
        params[path] = jnp.asarray(array, spec.dtype)
    faults += [f"{name} is not part of it" for name in left]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"'{origin}' holds no {network} weights: {', '.join(faults[:3])}{more}; {hint}")
    return nest(params)
