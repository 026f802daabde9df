"""Layers that work position by position: a change at a position changes the result there and nowhere else."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Unpack

from jaxtyping import Array

from ._layer import Layer, Options


def detect(
    tau: float = 0.0, *, norm: str = "linf", cell: int = 1, field: int = 1, reference: str = "held",
    spatial_axes: tuple[int, int] = (-3, -2),
) -> Layer:
    """Where the frame changed: the first layer of a network, and a threshold between two.

    Law: a position is set in the mask where the norm of its difference from the held frame is above `tau`, or
    where the mask that goes in is set; there `y` takes the frame's value, elsewhere it keeps the held one. So
    ``norm(x - y) <= tau`` wherever the given mask is unset, for ever.

    Between two layers of a network, give it ``mask=None``: a mask is united with what it finds, and the layer
    before sets all that moved at all.

    Source: Borji, arXiv 2407.01782, section 3, "If there is enough change (determined by L1 or L2 norm
    greater than threshold tau) inside a receptive field"; the paper compares with the previous frame.

    Args:
        tau: threshold, in the units of the frame.
        norm: ``"l1"``, ``"l2"`` or ``"linf"``, over the channels of a position, a cell or a field.
        cell: side in pixels of the square cells that change as one. The mask that goes in has one boolean for
            each cell, the one that comes out one for each pixel.
        field: side in pixels (odd) of the neighbourhood over which the norm is taken, as the paper does over
            the receptive field of the first convolution.
        reference: ``"held"``, or ``"previous"`` for the paper's own: `y` is then the frame itself, and slow
            change goes unseen.
        spatial_axes: see `Options`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    found = {"tau": tau, "norm": norm, "cell": cell, "field": field, "reference": reference}
    return Layer("detect", lambda _, x: x, {"spatial_axes": spatial_axes}, detection=found)


def elementwise(fn: Callable[[Array], Array], **options: Unpack[Options]) -> Layer:
    """``y = fn(x)``, for a function of each position (or of each value) on its own; `params` is not read.

    `x` is a map or a vector. ``fn`` may mix channels (softmax over them, say). For one with params use
    `layer`.
    """
    return Layer("elementwise", lambda _, x: fn(x), options, vectors=True)


def join(fn: Callable[..., Array], **options: Unpack[Options]) -> Layer:
    """``y = fn(x1, x2, ...)``, position by position, for a tuple ``x = (x1, x2, ...)`` and a tuple of masks.

    The maps have one picture and dtype, and may differ in channels; or all are vectors. `params` is not read.

    The engine takes one frame, so the maps are copied side by side along channels in every call, whatever
    changed: a network of many joins is better written as a function and given to `incremental`, which reads
    them in place.
    """
    return Layer("join", lambda _, parts: fn(*parts), options, vectors=True, several=True)


def add(**options: Unpack[Options]) -> Layer:
    """The sum of a tuple of maps or vectors, as after a residual branch; see `join`."""
    return join(lambda *parts: functools.reduce(operator.add, parts), **options)


def concatenate(*, spatial_axes: tuple[int, int] = (-3, -2)) -> Layer:
    """A tuple of maps or vectors side by side along channels; see `join`."""
    options: Options = {"spatial_axes": spatial_axes}
    return Layer("concatenate", lambda _, x: x, options, vectors=True, several=True, joined=True)
