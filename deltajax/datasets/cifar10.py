"""CIFAR-10 in memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Cifar10(NamedTuple):
    """Pictures of 32x32 RGB bytes and their classes 0..9; 50,000 and 10,000 in the real set."""

    images: UInt8[np.ndarray, "n 32 32 3"]
    labels: UInt8[np.ndarray, " n"]
