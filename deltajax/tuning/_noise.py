"""The camera's noise, from what differs where nothing moves, and the pulses that compression adds to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

TILE = 16  # side of the tiles that are told apart as still or moving, in pixels
SHARE = 0.99  # of the cells of still tiles that the first guess of a threshold holds back
SMALL = 1 / 8  # of the clip's range of values: a frame that changes its median tile by more is a cut, not a pulse


@dataclass(frozen=True)
class Noise:
    """What a clip's still tiles do from one frame to the next.

    A tile is still between two frames if its mean absolute difference is at most one and a half times the median
    tile's: robust as long as less than half of the picture moves.

    Attributes:
        deviation: of one pixel and channel in one frame, in the units of the frame, from the median over the still
            tiles of their mean absolute difference (Gaussian noise has sqrt(pi) / 2 of it). Compression takes much of
            the noise away: 0 where still tiles are equal.
        still: share of the tiles that are still, mean over the frames.
        differences: the absolute differences of the still tiles, `[n, TILE, TILE, C]`, a sample of at most 4096.
    """

    deviation: float
    still: float
    differences: Float[np.ndarray, "n side side channels"]

    def guess(self, norm: str, cell: int) -> float:
        """The threshold that holds back 99 % of the still cells of that size, in the units of the frame."""
        whole = self.differences[:, : TILE // cell * cell, : TILE // cell * cell] if cell <= TILE else self.differences
        side = min(cell, TILE)
        count, rows, columns, channels = whole.shape
        cells = whole.reshape(count, rows // side, side, columns // side, side, channels)
        cells = np.moveaxis(cells, 2, 3).reshape(-1, side * side * channels)
        if norm == "linf":
            size = cells.max(axis=1)
        else:
            size = cells.sum(axis=1) if norm == "l1" else np.sqrt((cells**2).sum(axis=1))
        return float(np.quantile(size, SHARE))


@dataclass(frozen=True)
class Pulses:
    """Single frames in which far more tiles change than before and after, and by little: a codec's key frames.

    A tile counts as changed if its largest change from the frame before exceeds one and a half times that of the
    upper quarter of the tiles in the median frame. Not seen are pulses in a clip of which more than a quarter moves,
    and those of one camera among many.

    Attributes:
        count: how many there are.
        period: frames from one to the next, the median; `None` if there is one only.
        share: of the tiles that change in them, the median.
        usual: the same in the median frame of the clip.
        median, largest: the largest change of a tile that stood still before and after, in the units of the frame:
            with ``norm="linf"`` a `tau` as large as `largest` keeps every pulse out, `median` half of its tiles.
    """

    count: int
    period: float | None
    share: float
    usual: float
    median: float
    largest: float

    def __str__(self) -> str:
        when = f"every {self.period:g} frames" if self.period is not None else "once"
        return (f"compression pulses: {when}, {self.share:.0%} of the tiles change at once ({self.usual:.0%} in the "
                f"median frame), by {self.median:.3g} in the median and {self.largest:.3g} at most: the tau that would "
                "keep half or all of them out")


def find_pulses(frames: Float[np.ndarray, "n streams rows columns channels"]) -> Pulses | None:
    """In consecutive frames; `None` if there are no pulses."""
    peaks = np.stack([tiles.max(axis=(1, 2, 3)) for tiles in _changes(frames)])
    changed = peaks > 1.5 * np.median(np.quantile(peaks, 0.75, axis=1))
    shares = changed.mean(axis=1)
    usual = float(np.median(shares))
    around = np.pad(shares, 1)
    beside = np.maximum(np.maximum(around[:-2], around[2:]), usual)
    small = np.median(peaks, axis=1) <= SMALL * np.ptp(frames)
    found = np.flatnonzero((shares > 0.1 + 2 * beside) & small)
    if not len(found) or len(peaks) < 3:
        return None
    neighbours = np.pad(changed, ((1, 1), (0, 0)))
    still = ~(neighbours[found] | neighbours[found + 2])
    sizes = peaks[found][still & changed[found]]
    sizes = sizes if len(sizes) else peaks[found][changed[found]]
    period = float(np.median(np.diff(found))) if len(found) > 1 else None
    return Pulses(len(found), period, float(np.median(shares[found])), usual, float(np.median(sizes)),
                  float(sizes.max()))


def _changes(frames: Float[np.ndarray, "n streams rows columns channels"]) -> Iterator[np.ndarray]:
    """From each frame to the next, the absolute differences by tile: `[tiles, TILE, TILE, C]`, the rest left out."""
    _, streams, rows, columns, channels = frames.shape
    padded = np.pad(frames, ((0, 0), (0, 0), (0, max(0, TILE - rows)), (0, max(0, TILE - columns)), (0, 0)), "edge")
    down, across = padded.shape[2] // TILE, padded.shape[3] // TILE
    for before, after in itertools.pairwise(padded):
        gap = np.abs(after.astype(np.float32) - before.astype(np.float32))[:, : down * TILE, : across * TILE]
        tiles = gap.reshape(streams, down, TILE, across, TILE, channels).swapaxes(2, 3)
        yield tiles.reshape(-1, TILE, TILE, channels)


def estimate_noise(frames: Float[np.ndarray, "n streams rows columns channels"]) -> Noise:
    """From consecutive frames, two or more; smaller than a tile in one direction, the picture is one tile there."""
    count = len(frames)
    kept, shares, means = [], [], []
    per_pair = max(1, 4096 // (count - 1))
    for tiles in _changes(frames):
        mean = tiles.mean(axis=(1, 2, 3))
        still = mean <= 1.5 * np.median(mean)
        means.append(mean[still])
        shares.append(still.mean())
        tiles = tiles[still]
        kept.append(tiles[:: -(-len(tiles) // per_pair)])
    deviation = float(np.median(np.concatenate(means))) * np.sqrt(np.pi) / 2
    return Noise(float(deviation), float(np.mean(shares)), np.concatenate(kept))
