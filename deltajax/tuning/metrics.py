"""How far an output is from the dense one: 0 where both are equal, larger is worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

MATCH = 0.5  # the least intersection over union of two boxes of one thing


def output_error(dense: PyTree, output: PyTree) -> float:
    """Root mean square of the difference over that of the dense output, of the worst of the output's arrays.

    Of arrays of whole numbers (names of classes), the share of the entries that differ.
    """
    pairs = zip(jax.tree.leaves(dense), jax.tree.leaves(output), strict=True)
    return max((_gap(np.asarray(first), np.asarray(second)) for first, second in pairs), default=0.0)


def _gap(dense: np.ndarray, output: np.ndarray) -> float:
    if not np.issubdtype(dense.dtype, np.inexact):
        return float(np.mean(dense != output)) if dense.size else 0.0
    dense, output = dense.astype(np.float64), output.astype(np.float64)
    same = (dense == output) | (np.isnan(dense) & np.isnan(output))
    if same.all():
        return 0.0
    gap, size = np.sqrt(np.sum((output[~same] - dense[~same]) ** 2)), np.sqrt(np.nansum(dense**2))
    return float(gap / size) if np.isfinite(gap) and size > 0 else float("inf")


def box_error(
    dense: Float[np.ndarray, "n 4"], found: Float[np.ndarray, "m 4"],
    dense_names: Sequence[Any] | None = None, found_names: Sequence[Any] | None = None,
    match: float = MATCH,
) -> float:
    """1 - F1 of the boxes found, with the dense ones for truth; 0 where there are none on either side.

    Each box found, best first, takes the free dense box of its name that it shares most with, if the intersection
    over union is at least `match`. So a box that stays where it was while its thing moves on is right for a while.

    Args:
        dense, found: two opposite corners of each, the smaller coordinates first.
        dense_names, found_names: what each of them is; all the same if left out.
        match: the least intersection over union of two boxes of one thing.
    """
    if len(dense) == 0 and len(found) == 0:
        return 0.0
    free = np.ones(len(dense), bool)
    matched = 0
    for number, box in enumerate(found):
        shares = np.where(free, _shares(box, dense), 0)
        if dense_names is not None and found_names is not None:
            shares = np.where([name == found_names[number] for name in dense_names], shares, 0)
        if shares.size and shares.max() >= match:
            free[int(shares.argmax())] = False
            matched += 1
    return 1 - 2 * matched / (len(dense) + len(found))


def placement_error(
    dense: Float[np.ndarray, "n 4"], found: Float[np.ndarray, "m 4"],
    dense_names: Sequence[Any] | None = None, found_names: Sequence[Any] | None = None,
) -> float:
    """The mean of `box_error` over the matches .5, .55, ... .95, as COCO's detection challenge averages precision: it
    sees whether a box moves with its thing, and not the sway of a twentieth.

    Args:
        dense, found, dense_names, found_names: as in `box_error`.
    """
    matches = np.arange(50, 100, 5) / 100
    return float(np.mean([box_error(dense, found, dense_names, found_names, match) for match in matches]))


def _shares(box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Intersection over union with each of `boxes`."""
    box, boxes = np.asarray(box, np.float64), np.asarray(boxes, np.float64).reshape(-1, 4)
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    return shared / np.maximum((box[2:] - box[:2]).clip(0).prod() + areas - shared, 1e-12)


def region_error(dense: np.ndarray | Bool[np.ndarray, "..."], found: np.ndarray) -> float:
    """1 - the mean intersection over union of the classes that either map names, with the dense map for truth.

    Args:
        dense, found: the class of every pixel, of one shape.
    """
    classes = np.union1d(dense, found)
    shares = [np.sum((dense == c) & (found == c)) / np.sum((dense == c) | (found == c)) for c in classes]
    return 1 - float(np.mean(shares))
