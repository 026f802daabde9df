"""Weights and clips that are not in the repository: the folder that DELTAJAX_DATA names."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from deltajax.video import open_source

needs_data = pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)


def data(path: str) -> Path:
    return Path(os.environ["DELTAJAX_DATA"]) / path


def pictures(clip: str, *numbers: int) -> list[np.ndarray]:
    """Frames of a real clip by their numbers, uint8 RGB."""
    with open_source(str(data(f"video/{clip}"))) as source:
        frames = list(itertools.islice(source.frames, max(numbers) + 1))
    return [frames[number].rgb for number in numbers]
