"""From a plan to native segments, and one of them in a step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._env import Env
from .._plan import Plan, TileSegment, is_native
from .._program import Kind, Program, Value
from .._tiles import Pool
from . import _library
from ._encode import NORMS, OF_A_WRITE, PER_CALL, Gate, Native, Part, encode
from ._packing import in_one
from ._slots import Unsupported, channels_of

BFLOAT16 = jnp.dtype(jnp.bfloat16)
NEAR = 4 << 20  # bytes of maps that cores find in caches of their own a frame later


def attach(plan: Plan, held: Collection[str], bfloat16: bool, keep_all: bool, pool: bool) -> None:
    """Mark the segments of `plan` that can be done natively; what those read is fixed in another form.

    Args:
        held: names of the segments whose results are held within a threshold.
        bfloat16: whether products are of bfloat16, where the processor has it.
        keep_all: whether the other form is kept as well: audits of tiles compute them with XLA.
        pool: whether maps are pooled where they can be.

    Raises:
        ValueError: the kernels cannot be had; see `_library.build`.
    """
    lanes, pairs = _library.lanes(), bfloat16 and _library.has_pairs()

    def encoded(segment: TileSegment) -> Native:
        return encode(plan.program, plan.layouts, segment, lanes, segment.name in held, pairs)

    for segment in plan.segments:
        if isinstance(segment, TileSegment):
            try:
                segment.native = encoded(segment)
            except Unsupported as refused:
                segment.not_native = str(refused)
    done = [segment for segment in plan.segments if is_native(segment)]
    pooled = _pooled(plan) if done and pool else []
    if pairs:
        plan.layouts.update({v: dataclasses.replace(plan.layouts[v], dtype=BFLOAT16) for v in _paired(plan, pooled)})
        for segment in done:
            segment.native = encoded(segment)  # once more: where what it reads and writes lies is known only now
    size = sum(plan.layouts[v].size for v in plan.maps)
    packed, begins = in_one([part for segment in done for part in segment.native.parts])
    for segment in done:
        places = tuple(begins[part] for part in segment.native.parts)
        segment.native = dataclasses.replace(segment.native, packed=(packed, places), size=size)
    if pooled:
        plan.pool = Pool(tuple(plan.layouts[value] for value in pooled))
        plan.pooled = {value: number for number, value in enumerate(pooled)}
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


def _pooled(plan: Plan) -> list[Value]:
    """The maps that native segments write, and read, or whole ones behind the last of those: XLA then reads the pool
    when nothing more is written there, and does not copy it."""
    last = max(number for number, segment in enumerate(plan.segments) if is_native(segment))
    written = {v for segment in plan.segments if is_native(segment) for v in segment.writes}
    for number, segment in enumerate(plan.segments):
        if not is_native(segment) and (isinstance(segment, TileSegment) or number < last):
            written -= set(segment.reads)
    return [value for value in plan.maps if value in written and value.dtype == jnp.float32]


def _paired(plan: Plan, pooled: Sequence[Value]) -> list[Value]:
    """Those of the pooled maps of which native kernels alone read numbers, two by two."""
    others = {v for segment in plan.segments if not is_native(segment) for v in segment.reads}
    return [v for v in pooled if v not in others and v not in plan.outputs
            and channels_of(v.shape, v.map_axes, "") % 2 == 0]


def _gate(array: jax.Array, streams: int, gate: Gate) -> jax.Array:
    """`[V, ...]`, streams among them, to `[S, channels]`."""
    if gate.streams is not None:
        array = jnp.moveaxis(array, gate.streams + 1, 1)
        array = array.reshape(streams, *array.shape[2:])
    array = array.reshape(len(array), *(array.shape[1:] or [1] * len(gate.shape)))
    array = jnp.broadcast_to(array, (len(array), *gate.shape)).reshape(len(array), -1)
    return jnp.repeat(array, streams // len(array), axis=0, total_repeat_length=streams)


class _Operands:
    """What a call hands over."""

    def __init__(self, given: Sequence[jax.Array]):
        self.given = list(given)
        self._numbers = {id(array): number for number, array in enumerate(given)}

    def add(self, array: jax.Array, begin: int = 0) -> list[int]:
        """Where an array lies: in which operand, from which of each stream's elements on, and how many elements it is
        from one stream to the next."""
        if id(array) not in self._numbers:
            self._numbers[id(array)] = len(self.given)
            self.given.append(array)
        return [self._numbers[id(array)], begin, math.prod(array.shape[1:])]


FLAGS = -1  # in place of an operand: the flags of the maps that this call writes


def run(
    env: Env, segments: Sequence[TileSegment], taus: Sequence[float | jax.Array], norm: str,
    dues: Sequence[jax.Array | None],
) -> jax.Array:
    """Bring what these segments write in `env` up to date; how many tiles that took, `[S, segments]`.

    Args:
        taus: their thresholds: each a number, or an array of one or for each stream.
        dues: `[S, ny, nx]`: the tiles whose turn it is to be compared exactly; None for none.
    """
    plan, streams = env.plan, env.streams
    packed, _ = segments[0].native.packed  # of the plan's segments all have the same
    thresholds = [jnp.broadcast_to(jnp.asarray(tau, jnp.float32), (streams,)) for tau in taus]
    operands = _Operands([env.fresh, jnp.stack(thresholds), env.fixed[packed]])
    writes = [value for segment in segments for value in segment.writes]
    columns = {value: number for number, value in enumerate(writes)}

    def place(part: Part, value: Value, gate: Gate | None = None) -> list[int]:
        number = plan.pooled.get(value)
        if part == "flag" and value in columns:
            return [FLAGS, columns[value], len(writes)]
        if part == "stored" and number is not None:
            return operands.add(env.pool[0], plan.pool.begins[number])
        if part == "mask" and number is not None:
            return operands.add(env.pool[1], plan.pool.mask_begins[number])
        if part == "stored":
            return operands.add(env.fixed[value] if value.kind is Kind.FIXED else env.maps[value])
        if gate is not None:
            return operands.add(_gate(env.wholes[value], streams, gate))
        if part == "gate flag":
            return operands.add(env.by_stream(env.whole_flags[value]))
        return operands.add(env.masks[value] if part == "mask" else env.flags[value])

    words = [len(segments)]
    for segment, tau, due in zip(segments, taus, dues, strict=True):
        native: Native = segment.native
        assert native.packed is not None
        begins = native.packed[1]
        places = [place(part, value) for value in segment.writes for part in OF_A_WRITE]
        places += [place(*array) for array in native.arrays]
        of_call = [isinstance(tau, jax.Array) or tau > 0, NORMS[norm], streams * native.size > NEAR, -1]
        if due is not None:
            of_call[-1] = len(places)
            places.append(operands.add(due))
        words += [len(begins), *begins, len(places), *itertools.chain(*places), len(native.words)]
        for across, one in native.words.items():
            words += [across, *one[: PER_CALL.start], *of_call, *one[PER_CALL.stop:]]
    written = {value: [place(part, value)[0] for part in ("stored", "mask")] for value in writes}
    in_place = list(dict.fromkeys(itertools.chain(*written.values())))
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.given[number] for number in in_place)]
    specs += [jax.ShapeDtypeStruct((streams, len(writes)), bool),
              jax.ShapeDtypeStruct((streams, len(segments)), jnp.int32)]
    call = jax.ffi.ffi_call(
        _library.SEGMENTS, specs, input_output_aliases={number: place for place, number in enumerate(in_place)},
    )
    *results, flags, issued = call(*operands.given, segments=np.array(words, np.int64))
    after = dict(zip(in_place, results, strict=True))
    for value, numbers in written.items():
        stored, mask = (after[number] for number in numbers)
        if value in plan.pooled:
            env.pool = stored, mask
        else:
            env.maps[value], env.masks[value] = stored, mask
        env.flags[value] = flags[:, columns[value]]
    return issued
