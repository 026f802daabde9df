"""The camera's noise, from what differs where nothing moves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

TILE = 16  # side of the tiles that are told apart as still or moving, in pixels
SHARE = 0.99  # of the cells of still tiles that the first guess of a threshold holds back


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


def estimate_noise(frames: Float[np.ndarray, "n streams rows columns channels"]) -> Noise:
    """From consecutive frames, two or more; smaller than a tile in one direction, the picture is one tile there."""
    count, streams, rows, columns, channels = frames.shape
    padded = np.pad(frames, ((0, 0), (0, 0), (0, max(0, TILE - rows)), (0, max(0, TILE - columns)), (0, 0)), "edge")
    down, across = padded.shape[2] // TILE, padded.shape[3] // TILE
    kept, shares, means = [], [], []
    per_pair = max(1, 4096 // (count - 1))
    for before, after in itertools.pairwise(padded):
        gap = np.abs(after.astype(np.float32) - before.astype(np.float32))[:, : down * TILE, : across * TILE]
        tiles = gap.reshape(streams, down, TILE, across, TILE, channels).swapaxes(2, 3)
        tiles = tiles.reshape(-1, TILE, TILE, channels)
        mean = tiles.mean(axis=(1, 2, 3))
        still = mean <= 1.5 * np.median(mean)
        means.append(mean[still])
        shares.append(still.mean())
        tiles = tiles[still]
        kept.append(tiles[:: -(-len(tiles) // per_pair)])
    deviation = float(np.median(np.concatenate(means))) * np.sqrt(np.pi) / 2
    return Noise(float(deviation), float(np.mean(shares)), np.concatenate(kept))
