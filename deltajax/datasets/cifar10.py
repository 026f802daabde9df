"""CIFAR-10 from its original binary files, or from pictures sorted into folders by class.

The binary format is Krizhevsky's: records of 3,073 bytes, the label and then 1,024 red, 1,024 green and 1,024 blue
values in row-major order; no header. https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

Images = UInt8[np.ndarray, "n 32 32 3"]
Labels = UInt8[np.ndarray, " n"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes

# Published in tensorflow/datasets, tensorflow_datasets/url_checksums/cifar10.txt.
SHA256 = {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}
BATCHES = {"train": re.compile(r"data_batch_\d+.*\.bin(\.gz)?"), "test": re.compile(r"test_batch.*\.bin(\.gz)?")}
PICTURE = re.compile(r"(?:.*/)?(?P<split>[^/]+)/(?P<label>[^/]+)/[^/]+\.(?:jpe?g|png)", re.IGNORECASE)
REMEDY = "download it again"
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)


class Cifar10(NamedTuple):
    """Pictures of 32x32 RGB and the number of each one's class in `CLASSES`."""

    images: Images
    labels: Labels


def read_cifar10_binary(path: Path, split: str = "test", sha256: str | None = None) -> Cifar10:
    """Pictures from original record files, in the order of the files.

    Args:
      path: one record file (.bin, or .bin.gz as gzip packed it); a folder of them; or the original archive,
        cifar-10-binary.tar.gz, whose published SHA-256 is then checked.
      split: "train" (data_batch_*) or "test" (test_batch): which files of a folder or of the archive. A single file
        is read whatever its name.
      sha256: the sum that the file `path` must have, in hex; None takes any file but the archive by its own sum.

    Raises:
      FileNotFoundError: nothing at `path`, or no file of the split in it.
      ValueError: another sum, damaged or cut off, a label above 9, or an unknown split.
    """
    _check_split(split)
    single = path.is_file() and path.name.endswith((".bin", ".bin.gz"))
    if path.is_dir():
        found = [(file, file.read_bytes()) for file in sorted(path.glob("*.bin*"))]
    elif path.is_file():
        content = path.read_bytes()
        _check_sum(path, content, sha256 or SHA256.get(path.name))
        found = [(path, content)] if single else _members(path, content)
    else:
        raise FileNotFoundError(f"`{path}`: no such file or folder; give a .bin file of CIFAR-10 or their folder.")
    files = [(file, content) for file, content in found if single or BATCHES[split].fullmatch(file.name)]
    if not files:
        raise FileNotFoundError(f"`{path}` holds no CIFAR-10 {split} files (data_batch_1.bin, test_batch.bin).")
    parts = [_records(file, content) for file, content in files]
    return Cifar10(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def read_cifar10_pictures(path: Path, split: str = "test") -> Cifar10:
    """Pictures from ``<split>/<class>/<name>.jpg`` or ``.png``, class by class and by name.

    Args:
      path: a folder, or a tar archive (packed with xz, gzip, bzip2 or not at all), that holds the split's folder.
      split: the name of the folder, usually "train" or "test".

    Raises:
      FileNotFoundError: nothing at `path`, or no picture of the split in it.
      ValueError: a damaged archive or picture, a picture that is not 32x32, or a folder that is no class.
    """
    if path.is_dir():
        found = [(file, file.read_bytes()) for file in (path / split).glob("*/*") if file.is_file()]
    elif path.is_file():
        found = _members(path, path.read_bytes())
    else:
        raise FileNotFoundError(f"`{path}`: no such file or folder; give the folder that holds `{split}/<class>/`.")
    images, labels = [], []
    for file, content in sorted(found, key=lambda item: (item[0].parent.name, item[0].name)):
        match = PICTURE.fullmatch(file.as_posix())
        if match is None or match["split"] != split:
            continue
        if match["label"] not in CLASSES:
            raise ValueError(f"`{path}`: the folder of `{file}` is no class of CIFAR-10 ({', '.join(CLASSES)}).")
        images.append(_picture(file, content))
        labels.append(CLASSES.index(match["label"]))
    if not images:
        raise FileNotFoundError(f"`{path}` holds no pictures named {split}/<class>/<name>.jpg or .png.")
    return Cifar10(np.stack(images), np.asarray(labels, np.uint8))


def read_cifar10(path: Path, split: str = "test") -> Cifar10:
    """`read_cifar10_binary` or `read_cifar10_pictures`, by what there is at `path`.

    Raises:
      FileNotFoundError, ValueError: as those two.
    """
    pictures = (path / split).is_dir() if path.is_dir() else ".tar" in path.name and path.name not in SHA256
    return (read_cifar10_pictures if pictures else read_cifar10_binary)(path, split)


def _check_split(split: str) -> None:
    if split not in BATCHES:
        raise ValueError(f"`split` (={split!r}) must be one of {', '.join(map(repr, BATCHES))}.")


def _check_sum(path: Path, content: bytes, expected: str | None) -> None:
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise ValueError(
            f"`{path}` is damaged or another file: SHA-256 {found[:12]}..., expected {expected[:12]}...; {REMEDY}."
        )


def _members(path: Path, content: bytes) -> list[tuple[Path, bytes]]:
    """The files of a tar archive, names and contents."""

    def read() -> Iterator[tuple[Path, bytes]]:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield Path(member.name), file.read()

    try:
        return list(read())
    except DAMAGE as error:
        reason = str(error).partition("\n")[0]  # tarfile has a line for each way of packing
        raise ValueError(f"`{path}` is no whole tar archive ({reason}); {REMEDY}.") from error


def _records(path: Path, content: bytes) -> Cifar10:
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except DAMAGE as error:
            raise ValueError(f"`{path}` is no whole gzip file ({error}); {REMEDY}.") from error
    if not content or len(content) % RECORD:
        raise ValueError(
            f"`{path}` holds {len(content)} bytes, no whole number of CIFAR-10 records of {RECORD}; {REMEDY}."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].copy()
    if labels.max() >= len(CLASSES):
        raise ValueError(
            f"`{path}`: record {int(labels.argmax())} has label {labels.max()}, above 9: no CIFAR-10 file; {REMEDY}."
        )
    return Cifar10(np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels)


def _picture(path: Path, content: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            rgb = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"`{path}` is no whole picture ({error}); {REMEDY}.") from error
    if rgb.shape != (SIDE, SIDE, 3):
        raise ValueError(f"`{path}` is {rgb.shape[1]}x{rgb.shape[0]}, expected {SIDE}x{SIDE}; give CIFAR-10's own.")
    return rgb
