"""Weights of Keras' .h5 files, without Keras: an HDF5 file with one group for each layer.

Source of the format: keras/engine/saving.py, `save_weights_to_hdf5_group` (Keras 2): the array "kernel:0" of the
layer "conv2d" is the dataset conv2d/conv2d/kernel:0, below model_weights where the file holds a whole model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """Every weight under ``layer/name``, such as ``conv2d/kernel``; what the optimizer kept is left out.

    Raises:
        ValueError: h5py is not installed, or the file is damaged or no HDF5.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"the weight file '{path}' needs h5py to be read; install it with: pip install 'deltajax[keras]'"
        ) from error
    arrays: dict[str, np.ndarray] = {}

    def collect(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            parts = name.removesuffix(":0").split("/")
            arrays[f"{parts[0]}/{parts[-1]}"] = np.asarray(node)

    try:
        with h5py.File(path) as file:
            layers = file.get("model_weights", file)
            assert isinstance(layers, h5py.Group)
            layers.visititems(collect)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"the weight file '{path}' is not a whole HDF5 file ({error}); download it again"
        ) from error
    return arrays
