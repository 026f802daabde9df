"""Parameters to and from weight files: one flat name for each leaf, `conv1/kernel`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from ._weight_files import read_weights


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"conv1": {"kernel": k}}` becomes `{"conv1/kernel": k}`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return params


def write_params(path: Path, params: Mapping[str, Any], dtype: Any = np.float16) -> None:
    """Writes nested dicts of arrays to `path`, rounded to `dtype`.

    A file is either the old one or the new one: it is written beside `path` and then renamed.
    """
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(save({name: np.asarray(leaf, dtype) for name, leaf in flatten(params).items()}))
    beside.replace(path)


def read_params(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Reads nested dicts of float32 arrays whose names and shapes are those of `like`.

    Args:
      path: a weight file with flat names, of any float type.
      like: nested dicts of arrays or `jax.ShapeDtypeStruct`; only names and shapes are read.

    Raises:
      ValueError: the file is missing or damaged, or holds the weights of another model.
    """
    flat = read_weights(path)
    found = {name: leaf.shape for name, leaf in flat.items()}
    expected = {name: leaf.shape for name, leaf in flatten(like).items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"the weight file '{path}' belongs to another model: `{name}` is "
                f"{found.get(name, 'missing')} there, expected {expected.get(name, 'no such name')}; "
                "give the file of this model, or leave it out to use the shipped weights"
            )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), nest(flat))


def read_shipped(name: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """`read_params` of the file `name` that ships inside the package."""
    with as_file(files("deltajax.models") / "weights" / name) as path:
        return read_params(path, like)
