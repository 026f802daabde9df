"""MNIST and CIFAR-10 by TensorFlow Datasets: prepared from their original files, read back without TensorFlow.

Preparing runs TFDS' own builders (`mnist` 3.0.1, `cifar10` 3.0.2) with the original files in place of its
downloads, so it needs TensorFlow but no network. Reading takes the array_record files that it wrote, which carry
checksums of their own, through `as_data_source`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .cifar10 import Cifar10
from .mnist import Mnist


def prepare_mnist(files: Path, folder: Path) -> None:
    """Prepares MNIST for `read_mnist_tfds`. What `folder` already holds stays as it is.

    Args:
      files: holds the four original .gz files, each checked against the SHA-256 that TFDS publishes.
      folder: TFDS' data folder; gets some 27 MB in `mnist/3.0.1`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged or another one; or `folder` holds MNIST prepared in another form.
      ModuleNotFoundError: TensorFlow or TFDS is not installed.
    """
    _prepare("mnist", files, folder)


def prepare_cifar10(files: Path, folder: Path) -> None:
    """Prepares CIFAR-10 for `read_cifar10_tfds`. What `folder` already holds stays as it is.

    Args:
      files: holds the original `cifar-10-binary.tar.gz`, checked against the SHA-256 that TFDS publishes.
      folder: TFDS' data folder; the pictures go to `cifar10/3.0.2`.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as `prepare_mnist`.
    """
    _prepare("cifar10", files, folder)


def read_mnist_tfds(folder: Path) -> Mnist:
    """All of MNIST from a folder that `prepare_mnist` prepared, in the order of TFDS, which shuffles.

    Raises:
      FileNotFoundError: nothing prepared in `folder`.
      ValueError: a prepared file is damaged or missing, or no array_record.
      ModuleNotFoundError: TFDS is not installed.
    """
    parts = []
    for rows in _read("mnist", folder):
        parts.append(np.stack([row["image"][..., 0] for row in rows]))
        parts.append(np.array([row["label"] for row in rows], np.uint8))
    return Mnist(*parts)


def read_cifar10_tfds(folder: Path) -> tuple[Cifar10, Cifar10]:
    """CIFAR-10's training and test set from a folder that `prepare_cifar10` prepared, in the original order.

    Raises:
      FileNotFoundError, ValueError, ModuleNotFoundError: as `read_mnist_tfds`.
    """
    train, test = (sorted(rows, key=lambda row: row["id"]) for rows in _read("cifar10", folder))
    return _cifar10(train), _cifar10(test)


def _cifar10(rows: list[dict[str, Any]]) -> Cifar10:
    images = np.stack([row["image"] for row in rows])
    return Cifar10(images, np.array([row["label"] for row in rows], np.uint8))


def _builder(name: str, folder: Path) -> Any:
    """TFDS' builder of array_record files. TFDS is imported late: it is an extra, and slow to import."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ModuleNotFoundError('TensorFlow Datasets is not installed; add it with: pip install "deltajax[train]"')
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=folder, file_format="array_record")
    except ValueError as error:  # only TFRecord and the like, which cannot be read without TensorFlow
        reason = str(error).split(": ")[-1]
        told = f"`{folder}` holds `{name}` prepared in another form ({reason}); give another folder."
        raise ValueError(told) from error


def _prepare(name: str, files: Path, folder: Path) -> None:
    builder = _builder(name, folder)
    for original in builder.url_infos.values():
        _check(files / original.filename, original.checksum)
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(f"preparing `{name}` needs TensorFlow; add it with: pip install tensorflow-cpu")
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True, exist_ok=True)
    # Unpacked files go where nothing old can be: TFDS takes those that it finds there without a check.
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpacked-") as unpacked:
        how = tfds.download.DownloadConfig(manual_dir=files, try_download_gcs=False)
        builder.download_and_prepare(download_dir=unpacked, download_config=how)


def _check(path: Path, sha256: str) -> None:
    """TFDS checks as well, but a missing file it downloads, and its message of a damaged one has four lines."""
    if not path.is_file():
        raise FileNotFoundError(f"`{path}`: no such file; give the folder that holds the original files.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"`{path}` is damaged or another file: SHA-256 {found[:12]}..., expected {sha256[:12]}...; "
            "download it again."
        )


def _read(name: str, folder: Path) -> tuple[list[dict[str, Any]], ...]:
    """The rows of `train` and of `test`."""
    again = f"prepare it with deltajax.datasets.prepare_{name}, which needs TensorFlow"
    builder = _builder(name, folder)
    if not {"train", "test"} <= set(builder.info.splits):
        raise FileNotFoundError(f"`{folder}` holds no prepared `{name}`; {again}.")
    try:
        sources = [builder.as_data_source(split) for split in ("train", "test")]
        return tuple(source.__getitems__(range(len(source))) for source in sources)
    except RuntimeError as error:  # what array_record raises for missing files and wrong checksums
        reason = str(error).split(";")[0]
        raise ValueError(f"`{builder.data_dir}` is damaged ({reason}); remove it and {again}.") from error
