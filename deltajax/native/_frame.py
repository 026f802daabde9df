"""The frame against the held frame, by one pass over both; see `_detect.detect` for the law."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from .._detect import Detection, holds
from .._tiles import NONE, Layout
from . import _library

GATHERED = {"linf": 1, "l1": 2, "l2": 3}  # in `detect.h`


def detects(layout: Layout, how: Detection) -> bool:
    """Whether the kernels can: not where other frames, or positions outside of a cell, have a say."""
    rank = len(layout.shape) + (layout.axes.stream is None)
    channels_last = [layout.axes.stored(axis) for axis in (layout.axes.row, layout.axes.col)] == [1, 2] and rank == 4
    of_this_frame = how.reference == "held" and how.stand == how.field == 1 and how.scene_cut is None
    terms = layout.shape[-1] * min(how.cell, max(layout.picture)) ** 2
    room = layout.dtype == jnp.float32 or (layout.dtype == jnp.uint8 and terms * 255**2 < 2**31)
    return channels_last and of_this_frame and room


def detect(
    layout: Layout, how: Detection, stored: jax.Array, frame: jax.Array, given: jax.Array | None, fresh: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(held, mask, flags)``; arguments as of `_detect.detect`."""
    plain = dataclasses.replace(layout, margins=NONE)
    streams, (height, width) = fresh.shape[0], layout.picture
    (top, _), (left, _) = layout.margins
    tau = jnp.broadcast_to(jnp.asarray(how.tau, jnp.float32), (streams,))
    mask = jnp.zeros((0,), bool) if given is None else jnp.broadcast_to(given, (streams, height, width))
    words = [int(layout.dtype == jnp.uint8), GATHERED[how.norm] if holds(how.tau) else 0,
             int(given is not None and how.trust), min(how.cell, max(height, width)), height, width, layout.shape[-1],
             *stored.shape[1:3], top, left]
    assert math.prod(stored.shape[3:]) == layout.shape[-1]
    specs = [jax.ShapeDtypeStruct(stored.shape, stored.dtype), jax.ShapeDtypeStruct((streams, height, width), bool),
             jax.ShapeDtypeStruct((streams,), bool)]
    call = jax.ffi.ffi_call(_library.DETECT, specs, input_output_aliases={1: 0})
    held, mask, flags = call(plain.store(frame), stored, fresh, tau, mask, detection=np.array(words, np.int64))
    return held, mask, flags
