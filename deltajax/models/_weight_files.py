"""Weight files as flat dictionaries of arrays: safetensors, ONNX, Keras' .h5, both of torch's formats without torch.

A torch file is a pickle, and a pickle can run any program. The reader here lets it build tensors and ordered
dictionaries of them, and nothing else: another name in the pickle is an error, never an import.

Source of the formats: torch/serialization.py, `_save` (zip, since torch 1.6) and `_legacy_save` (before).
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import load_file

from deltajax.onnx import read_initialisers

from ._keras_files import read_keras

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype("?"),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads every array of a weight file, under its flat name.

    Args:
        path: a .safetensors file, or what `torch.save` made of a state dict (.pth, .pt, .th), alone or as the
            "state_dict" of a dictionary; or a Keras file (.h5), whose names are then as in ``conv2d/kernel``; or an
            .onnx file, whose initialisers are read.

    Raises:
        ValueError: the file is missing, damaged, or holds something else than named arrays; h5py or onnx is missing.
    """
    if not path.is_file():
        raise ValueError(f"the weight file '{path}' does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"the weight file '{path}' is not a safetensors file ({error})") from error
    if path.suffix == ".h5":
        return read_keras(path)
    if path.suffix == ".onnx":
        return read_initialisers(path)
    try:
        with path.open("rb") as file:
            loaded = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except Exception as error:  # a damaged pickle raises almost anything (docs of `pickle.UnpicklingError`)
        raise ValueError(
            f"the weight file '{path}' is not one that torch.save makes of a state dict ({error}); "
            "download it again, or save its state dict as .safetensors"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) for name, array in loaded.items()
    ):
        raise ValueError(
            f"the weight file '{path}' holds no state dict; save model.state_dict() and give that"
        )
    return dict(loaded)


class _StorageType(NamedTuple):
    """Stands for a class such as torch.FloatStorage, which a pickle only names."""

    dtype: np.dtype


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2, but a view may not leave its storage; strides count elements."""
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if min(0, offset, *shape, *strides) < 0 or (0 not in shape and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches outside its storage")
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides)


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


_BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors from the storages that `storage` hands out, and refuses every name it does not know."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, np.dtype, int], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _BUILDERS:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}, which no plain weight file needs")
        return _BUILDERS[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(view):
            raise pickle.UnpicklingError(f"it has an unknown kind of storage: {pid!r}")
        return self._storage(key, storage_type.dtype, count)


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        root = next((n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if root is None:
            raise pickle.UnpicklingError("the zip holds no data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        storages: dict[str, np.ndarray] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype, count)
            return storages[key]

        return _TensorUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """Five pickles (magic, protocol, system, the object, the storages' keys), then storage after storage."""
    file.seek(0, io.SEEK_END)
    file_size = file.tell()
    file.seek(0)
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if count * dtype.itemsize > file_size:
            raise pickle.UnpicklingError("it is cut off")
        return storages.setdefault(key, np.zeros(count, dtype))

    def load() -> Any:
        return _TensorUnpickler(file, storage).load()

    if load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("its magic number is missing")
    _protocol, system = load(), load()
    if not system.get("little_endian", True):
        raise pickle.UnpicklingError("its numbers are big-endian")
    loaded, keys = load(), load()
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if count != storages[key].size:
            raise pickle.UnpicklingError(f"storage {key} has {count} numbers instead of {storages[key].size}")
        data = file.read(storages[key].nbytes)
        if len(data) < storages[key].nbytes:
            raise pickle.UnpicklingError("it is cut off")
        storages[key][...] = np.frombuffer(data, storages[key].dtype)
    return loaded
