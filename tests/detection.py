"""What each way of detection finds in real clips, and what it leaves out.

    python tests/detection.py                                # six clips
    python tests/detection.py --clips issue53_brightness_change.avi --frames 59

Needs the clips in the folder that DELTAJAX_DATA names. The network is the frame itself, in tiles of 16: so the tiles
issued are those that hold a change, and the output's error is what the held frame lacks.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from real import data

import deltajax as dj
from deltajax.video import open_source

CLIPS = ("vtest.avi", "car-detection.mp4", "bottle-detection.mp4", "issue53_brightness_change.avi", "nasa_13013.mp4",
         "asl/again.mkv")
# Over a cell of c x c positions and three channels, l2 = RMS * c * sqrt(3).
WAYS: dict[str, dict[str, Any]] = {
    "a position by more than 16": {"tau": 16.0},
    "a cell of 4, one value by more than 16": {"tau": 16.0, "cell": 4},
    "a cell of 16, one value by more than 16": {"tau": 16.0, "cell": 16},
    "a cell of 4, by an RMS of 4": {"tau": 4 * 4 * 3**0.5, "cell": 4, "norm": "l2"},
    "a cell of 16, by an RMS of 3": {"tau": 3 * 16 * 3**0.5, "cell": 16, "norm": "l2"},
    "a cell of 16, by an RMS of 4": {"tau": 4 * 16 * 3**0.5, "cell": 16, "norm": "l2"},
    "the same, by 6, none older than 60 frames": {"tau": 6 * 16 * 3**0.5, "cell": 16, "norm": "l2", "max_age": 60},
    "the same, by 4 in 4 frames in a row, or by 8": {
        "tau": 4 * 16 * 3**0.5, "cell": 16, "norm": "l2", "stand": 4, "large": 8 * 16 * 3**0.5,
    },
}


def measure(frames: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the tiles issued, and RMS error of the held frame, for every frame but the first."""
    inc = dj.incremental(lambda _, frame: frame.astype(jnp.float32), tile=16, dense_share=1.0, **options)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(cache, frame):
        output, cache, _ = inc.step((), cache, None, frame)
        stats = inc.stats(cache)
        error = jnp.sqrt(jnp.mean((output - frame.astype(jnp.float32)) ** 2))
        return cache, (stats.tiles_issued / stats.tiles_total, error)

    cache, _ = inc.init((), frames[0])
    found = []
    for frame in frames:
        cache, figures = step(cache, frame)
        found.append(figures)
    shares, errors = np.array(found[1:], np.float64).T
    return shares, errors


def brightness(first: np.ndarray, last: np.ndarray) -> tuple[float, float, float]:
    """Share of the positions (every other row and column) with a value that is off by more than 8: as it is; less one
    offset for the whole picture; less one gain and offset. Those of offsets to 40 and gains from .8 to 1.2 that leave
    the fewest."""
    first, last = first[::2, ::2].astype(np.float32), last[::2, ::2].astype(np.float32)

    def left(gain: float, offset: int) -> float:
        return float((np.abs(last - gain * first - offset).max(axis=-1) > 8).mean())

    offsets, gains = range(-40, 41), [n / 20 for n in range(16, 25)]
    return left(1, 0), min(left(1, n) for n in offsets), min(left(g, n) for g in gains for n in offsets)


def main(clips: Sequence[str] = CLIPS, frames: int = 100) -> int:
    """Print a table for each clip.

    Args:
        clips: below `video/static`.
        frames: of each, from its first one on.
    """
    for clip in clips:
        with open_source(str(data(f"video/static/{clip}"))) as source:
            pictures = np.stack([frame.rgb for frame in itertools.islice(source.frames, frames)])
        print(f"\n{clip}, {len(pictures)} frames\n\n| a change is | tiles of 16: median | 90 % | mean | "
              "error held: RMS | largest |\n|---|---|---|---|---|---|")
        for name, options in WAYS.items():
            shares, errors = measure(pictures, options)
            print(f"| {name} | {np.median(shares):.1%} | {np.quantile(shares, 0.9):.1%} | {shares.mean():.1%} | "
                  f"{np.sqrt(np.mean(errors**2)):.2f} | {errors.max():.2f} |", flush=True)
        plain, offset, gain = brightness(pictures[0], pictures[-1])
        print(f"\nFrom the first frame to the last {plain:.0%} of the positions change by more than 8; less the best "
              f"offset {offset:.0%}, less the best gain and offset {gain:.0%}.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
