"""From the flat names and layouts of a torch state dict to Flax params whose modules carry the same names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

Params = dict[str, dict[str, dict[str, Any]]]

LEAVES = {  # Flax's names, and here "slope", to torch's
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
            [in, out, height, width] for `flax.linen.ConvTranspose(transpose_kernel=True)`.
        wanted: collections of modules of leaves with shapes and dtypes: `jax.eval_shape` of the network's `init`.
        network: its name in an error.
        origin: what to call the weights in an error.
        hint: which file to give instead.

    Raises:
        ValueError: a weight is missing, left over, or has another shape.
    """
    left = {name: array for name, array in weights.items() if not name.endswith(".num_batches_tracked")}
    params: Params = {}
    faults = []
    for collection, module, leaf, spec in [
        (collection, module, leaf, spec)
        for collection, modules in wanted.items()
        for module, leaves in modules.items()
        for leaf, spec in leaves.items()
    ]:
        name = f"{module}.{LEAVES[leaf]}"
        array = left.pop(name, None)
        if array is None:
            faults.append(f"{name} is missing")
            continue
        if leaf == "kernel" and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if array.shape != spec.shape:
            faults.append(f"{name} has shape {weights[name].shape}")
            continue
        params.setdefault(collection, {}).setdefault(module, {})[leaf] = jnp.asarray(array, spec.dtype)
    faults += [f"{name} is not part of it" for name in left]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"'{origin}' holds no {network} weights: {', '.join(faults[:3])}{more}; {hint}")
    return params
