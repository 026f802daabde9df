"""Clips of FRAMES frames made from one picture: what stands still, what moves, and single changes.

A picture is square; lengths are given for a side of 32 and grow with it, but every shift is by one pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

FRAMES = 10
NOISE = 2.0  # grey levels, standard deviation: a small camera's in fair light

Picture = UInt8[np.ndarray, "side side 3"]
Clip = UInt8[np.ndarray, "frames side side 3"]


class Sequence(NamedTuple):
    """A way to make a clip: `make(picture, number)`, where the number (of the picture) seeds what is random."""

    name: str
    make: Callable[[Picture, int], Clip]


def still(picture: Picture, number: int = 0) -> Clip:
    """The picture again and again."""
    return np.repeat(picture[None], FRAMES, axis=0)


def noisy(picture: Picture, number: int = 0) -> Clip:
    """The picture again and again, with sensor noise that is new in each frame."""
    noise = np.random.default_rng(number).normal(0, NOISE, (FRAMES, *picture.shape))
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def shifted(picture: Picture, number: int = 0) -> Clip:
    """The picture moves to the right by one pixel a frame; its left column is repeated where it has left.

    On the network's own size, not on a larger canvas: what was trained on pictures of that size stays comparable.
    """
    columns = np.arange(picture.shape[1]) - np.arange(FRAMES)[:, None]
    return np.moveaxis(picture[:, columns.clip(0)], 1, 0)


def moving_patch(picture: Picture, number: int = 0) -> Clip:
    """A textured patch of 6x6 slides over the still picture at half its height, two pixels a frame."""
    side = picture.shape[0]
    patch, pace = 3 * side // 16, side // 16
    texture = np.random.default_rng(number).integers(0, 256, (patch, patch, 3), np.uint8)
    clip = still(picture)
    top = (side - patch) // 2
    for frame, left in zip(clip, range(0, FRAMES * pace, pace), strict=True):
        frame[top : top + patch, left : left + patch] = texture
    return clip


def changed_square(picture: Picture, number: int, side: int) -> Clip:
    """Each frame is the last one with a square of `side` pixels inverted, somewhere else each time."""
    places = np.random.default_rng(number).integers(0, picture.shape[0] - side + 1, (FRAMES, 2))
    clip = still(picture)
    for frame, (top, left) in enumerate(places[1:], start=1):
        clip[frame] = clip[frame - 1]
        clip[frame, top : top + side, left : left + side] ^= 255
    return clip


SEQUENCES = (
    Sequence("still", still),
    Sequence("noisy", noisy),
    Sequence("shifted", shifted),
    Sequence("moving patch", moving_patch),
)
CHANGES = (
    Sequence("one pixel", lambda picture, number: changed_square(picture, number, 1)),
    Sequence("4x4 patch", lambda picture, number: changed_square(picture, number, 4)),
    Sequence("shift by a pixel", shifted),
)
