"""How fast this machine is: what decides between tiles and the dense path where nobody said.

Measured by `deltajax bench --calibrate` and kept in a file of the user's, one entry for each kind of device and number
of cores; without it, what two cores of a server do, or one accelerator. Only times depend on it, never results.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from platformdirs import user_cache_path

from ._buckets import cores
from ._plan import TileSegment
from ._program import Program


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rough, for one decision.

    Attributes:
        tile_overhead: what a tile costs beside its FLOPs, in seconds.
        tile_rate, dense_rate: FLOPs a second, on tiles in buckets and on a whole picture.
    """

    tile_overhead: float
    tile_rate: float
    dense_rate: float


DEFAULT = Rates(10e-6, 150e9, 200e9)
# Of an H200, in TF32, by the stack of 15 convolutions: there a tile is what it moves, and that goes with its FLOPs.
ACCELERATOR = Rates(0.0, 125e12, 250e12)


def place() -> Path:
    """The file."""
    return user_cache_path("deltajax") / "rates.json"


def machine() -> str:
    """What the rates are for."""
    return f"{jax.default_backend()} {jax.devices()[0].device_kind} {cores()} cores"


@functools.cache
def rates(on_cpu: bool) -> Rates:
    """Those of this machine; read once. Of one that has no such device, what a usual one does.

    Raises:
        ValueError: the file cannot be understood; the message says where it is.
    """
    file, otherwise = place(), DEFAULT if on_cpu else ACCELERATOR
    if on_cpu != (jax.default_backend() == "cpu") or not file.exists():
        return otherwise
    try:
        found = json.loads(file.read_text())
        return Rates(**found[machine()]) if machine() in found else otherwise
    except (ValueError, TypeError) as error:
        remedy = "remove it, or run `deltajax bench --calibrate`"
        raise ValueError(f"'{file}' holds no rates ({error}); {remedy}") from error


def keep(measured: Rates) -> Path:
    """Write them down beside those of other machines; they hold from now on."""
    file = place()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(file.read_text()) if file.exists() else {}
    except ValueError:
        known = {}  # damaged: `rates` tells to come here
    known[machine()] = dataclasses.asdict(measured)
    file.write_text(json.dumps(known, indent=2))
    rates.cache_clear()
    return file


def fit(tiles: Sequence[tuple[float, float]], pictures: Sequence[tuple[float, float]]) -> Rates:
    """From pairs of FLOPs and seconds, of a tile and of a whole picture: a line, and the median rate.

    Neither part of a line can be negative: where noise makes it so, the other one explains all.
    """
    flops, seconds = np.array(tiles).T
    slope, overhead = np.polyfit(flops, seconds, 1)
    if slope <= 0:
        slope, overhead = 0.0, float(np.mean(seconds))
    if overhead < 0:
        slope, overhead = float(np.sum(seconds * flops) / np.sum(flops * flops)), 0.0
    rate = 1 / slope if slope else float(np.max(flops / seconds))
    return Rates(float(overhead), float(rate), statistics.median(work / time for work, time in pictures))


# Above this share the dense path is at least as fast however much work a tile is; below this share, or this number
# (what one changed pixel can reach), it is not worth asking.
MOST_TILES, LEAST_TILES, FEW_TILES = 0.6, 0.25, 4


def dense_above(segment: TileSegment, streams: int, program: Program, share: float | None) -> int:
    """The number of tiles, of those of `streams` streams, above which a segment is done densely: soon, where a tile is
    little work."""
    total = segment.grid.per_stream * streams
    if share is None:
        known = rates(program.on_cpu)
        tile = segment.flops_per_tile / known.tile_rate + known.tile_overhead
        dense = segment.flops / known.dense_rate / program.streams
        gain = dense / (segment.grid.per_stream * tile) if tile else 1.0  # data movement has no FLOPs
        share = min(MOST_TILES, max(LEAST_TILES, gain))
        return min(max(FEW_TILES, int(share * total)), total - 1)  # all of them are never better done as tiles
    return int(share * total)
