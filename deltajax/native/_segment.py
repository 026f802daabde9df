"""From a plan to native segments, and one of them in a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._plan import Plan, TileSegment
from .._program import Kind, Program, Value
from . import _library
from ._encode import NORMS, PER_CALL, Native, Part, encode
from ._packing import in_one
from ._slots import Unsupported

NEAR = 32 << 20  # bytes of maps that a core finds in the last of its caches a frame later


def attach(plan: Plan, keep_all: bool) -> None:
    """Mark the segments of `plan` that can be done natively; what those read is fixed in another form.

    Args:
        keep_all: whether the other form is kept as well: audits of tiles compute them with XLA.

    Raises:
        ValueError: the kernels cannot be had; see `_library.build`.
    """
    lanes = _library.lanes()
    for segment in plan.segments:
        if isinstance(segment, TileSegment):
            try:
                segment.native = encode(plan.program, plan.layouts, segment, lanes)
            except Unsupported as refused:
                segment.not_native = str(refused)
    done = [s for s in plan.segments if isinstance(s, TileSegment) and s.native is not None]
    size = sum(math.prod(plan.layouts[v].stored_shape(1)) * v.dtype.itemsize for v in plan.maps)
    packed, begins = in_one([part for segment in done for part in segment.native.parts])
    for segment in done:
        places = tuple(begins[part] for part in segment.native.parts)
        segment.native = dataclasses.replace(segment.native, packed=(packed, places), size=size)
    needed: list[Value] = []
    for segment in plan.segments:
        needed += segment.reads
        if isinstance(segment, TileSegment):
            needed += [*segment.beside, *(v for v in segment.others if keep_all or not v.is_kept)]
    plan.fixed = list(dict.fromkeys(v for v in [*needed, *plan.outputs] if v.kind is Kind.FIXED))


def cost(program: Program, segment: TileSegment) -> float:
    """FLOPs that the kernels do of a segment for a whole picture, wherever what it reads and writes is stored; infinite
    where they cannot.

    Raises:
        ValueError: the kernels cannot be had; see `_library.build`.
    """
    try:
        native = encode(program, {v: v.layout() for v in [*segment.reads, *segment.writes]}, segment, _library.lanes())
    except Unsupported:
        return math.inf
    return segment.grid.per_stream * native.flops_per_tile


def _argument(
    streams: int, arrays: Mapping[Part, Mapping[Value, jax.Array]], part: Part, value: Value, axis: int | None
) -> jax.Array:
    found = arrays[part][value]
    if part in ("stored", "mask", "flag"):
        return found
    if part == "gate" and axis is not None:  # `[V, ...]`, streams among them, to `[S, channels]`
        return jnp.moveaxis(found, axis + 1, 1).reshape(streams, -1)
    per_call = found.reshape(len(found), -1)
    spread = jnp.repeat(per_call, streams // len(found), axis=0, total_repeat_length=streams)
    return spread[:, 0] if part == "gate flag" else spread


def run(
    segment: TileSegment, arrays: Mapping[Part, Mapping[Value, jax.Array]], fixed: Mapping[Value, jax.Array],
    fresh: jax.Array, tau: float | jax.Array, norm: str, due: jax.Array | None,
    state: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
) -> tuple[tuple[tuple[jax.Array, ...], ...], jax.Array]:
    """``(state, issued [S])`` of one segment; `state` has for each map that it writes its storage, mask and flags.

    Args:
        arrays: for each part the arrays by value: stored maps, masks, flags, whole values and their flags.
        fixed: fixed values, what is packed among them.
        fresh: `[S]`: for which everything is new.
        tau: the threshold: a number, or an array of one or for each stream.
        due: `[S, ny, nx]`: the tiles whose turn it is to be compared exactly; None for none.
    """
    native: Native = segment.native
    assert native.packed is not None
    streams, (packed, begins) = fresh.shape[0], native.packed
    words = [len(begins), *begins, len(native.words)]
    for across, one in native.words.items():
        of_call = [isinstance(tau, jax.Array) or tau > 0, NORMS[norm], streams * native.size > NEAR]
        words += [across, *one[: PER_CALL.start], *of_call, *one[PER_CALL.stop:]]
    thresholds = jnp.broadcast_to(jnp.asarray(tau, jnp.float32), (streams,))
    given: list[Any] = [fresh, thresholds, jnp.zeros((0,), bool) if due is None else due, fixed[packed]]
    given += [_argument(streams, arrays, *argument) for argument in native.arguments]
    first = len(given)
    kept = [x for stored, mask, _ in state for x in (stored, mask)]
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept]
    specs += [jax.ShapeDtypeStruct((streams,), bool) for _ in state] + [jax.ShapeDtypeStruct((streams,), jnp.int32)]
    call = jax.ffi.ffi_call(
        _library.SEGMENT, specs, input_output_aliases={first + i: i for i in range(len(kept))},
    )
    results = call(*given, *kept, segment=np.array(words, np.int64))
    pairs = results[: len(kept)]
    flags = results[len(kept): -1]
    return tuple((pairs[2 * i], pairs[2 * i + 1], flags[i]) for i in range(len(state))), results[-1]
