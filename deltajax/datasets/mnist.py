"""MNIST from its four original files: gzip, a big-endian header, raw bytes.

The format is LeCun's: two zero bytes, a type code (8 = uint8), the number of axes, each axis' length as
a big-endian uint32, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

Images = UInt8[np.ndarray, "n 28 28"]
Labels = UInt8[np.ndarray, " n"]

# Published in tensorflow/datasets, url_checksums/mnist.txt.
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
UINT8 = 8
REMEDY = "download it again"


class Mnist(NamedTuple):
    """Digits of 28x28 uint8, white ink on black, and their names 0..9; 60,000 and 10,000 in the real set."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def read_idx(path: Path, sha256: str | None = None) -> UInt8[np.ndarray, " ..."]:
    """The array in one gzipped idx file of bytes.

    Args:
      path: the file.
      sha256: the sum that the compressed file must have, in hex; None to take any.

    Raises:
      FileNotFoundError: no file at `path`.
      ValueError: another sum, no gzip, no idx of bytes, or fewer or more values than the header says.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`{path}`: no such file; the folder must hold the four MNIST files {', '.join(SHA256)}."
        )
    packed = path.read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"`{path}` is damaged or another file: SHA-256 {found[:12]}..., expected {sha256[:12]}...; "
            f"{REMEDY}, or add --no-verify to take files of your own."
        )
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"`{path}` is no whole gzip file ({error}); {REMEDY}.") from error
    rank = raw[3] if raw[:3] == bytes((0, 0, UINT8)) and len(raw) > 3 else 0
    start = 4 + 4 * rank
    if not rank or len(raw) < start:
        raise ValueError(f"`{path}` is no idx file of bytes (it starts with {raw[:4].hex(' ')}); {REMEDY}.")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", rank, offset=4))
    if len(raw) - start != np.prod(shape):
        raise ValueError(f"`{path}` holds {len(raw) - start} values, its header says {shape}; {REMEDY}.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_mnist(folder: Path, verify: bool = True) -> Mnist:
    """All of MNIST from the four files in `folder`, each checked against its published SHA-256.

    Args:
      folder: holds the four files named in `SHA256`.
      verify: False takes files with other sums (a data set of the same form).

    Raises:
      FileNotFoundError, ValueError: as `read_idx`; also where images and labels do not belong together.
    """
    arrays = {name: read_idx(folder / name, digest if verify else None) for name, digest in SHA256.items()}
    for part in ("train", "t10k"):
        x, y = arrays[f"{part}-images-idx3-ubyte.gz"], arrays[f"{part}-labels-idx1-ubyte.gz"]
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or not len(y) or y.max() > 9:
            raise ValueError(
                f"`{folder}`: {part} images are {x.shape} and labels {y.shape}, expected [n, 28, 28] and [n] "
                "of 0..9; give files that belong together."
            )
    return Mnist(*arrays.values())
