"""What is saved and what is remembered: the paper's formula against counted FLOPs, and bytes layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from rich.table import Table

import deltajax as dj
from deltajax.models import simple_cnn
from deltajax.models.cnn3 import CNN3

from ._sequences import Sequences
from ._sequential import Cnn3

Params = dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """One convolution, mean over frames.

    Attributes:
        skipped: positions whose receptive field did not change, of `positions`.
        operations: the paper's ``K x K x C``, saved for each skipped position and filter (section 4).
        formula: FLOPs saved by it: two for each of these operations.
        counted: FLOPs saved by deltajax in the segment that holds this convolution (what is pooled or multiplied
            in the same segment included), position by position (useful) and as computed, by tiles (issued).
    """

    layer: str
    positions: int
    skipped: float
    operations: int
    filters: int
    formula: float
    useful: float
    issued: float
    dense: float


def savings(params: Params, sequences: Sequences) -> tuple[Saving, ...]:
    """The paper's formula for the operations saved, and what deltajax counts, over all frames but the first ones."""
    inc = dj.incremental(simple_cnn.apply)
    network = Cnn3()

    @jax.jit
    def run(frames: Float[Array, "t 64 64 1"]):
        def one(carry, frame):
            cache, sequential = carry
            _, cache, _ = inc.step(params, cache, None, frame)
            _, sequential, maps = network.step(params, sequential, frame)
            found = {name: jnp.sum(change > 0) for name, change in maps.items()}
            counted = {s.name: (s.flops_dense, s.flops_useful, s.flops_issued) for s in inc.stats(cache).segments}
            return (cache, sequential), (found, counted)

        start = inc.init(params, frames[0])[0], network.init()
        return lax.scan(one, start, frames)[1]

    results = [jax.tree.map(lambda x: np.asarray(x)[1:], run(frames)) for frames in sequences.frames]
    computed, counted = jax.tree.map(lambda *parts: float(np.mean(np.stack(parts))), *results)
    rows = []
    for layer, scale in (("conv1", 1), ("conv2", 2)):
        kernel = params[layer]["kernel"]
        positions = math.prod(n // scale for n in simple_cnn.FRAME_SHAPE[:2])
        skipped = positions - computed[layer]
        operations, filters = math.prod(kernel.shape[:3]), kernel.shape[3]
        full, useful, issued = counted[layer]
        rows.append(Saving(
            layer, positions, skipped, operations, filters, 2 * operations * filters * skipped,
            full - useful, full - issued, full,
        ))
    return tuple(rows)


def savings_table(rows: tuple[Saving, ...], name: str) -> Table:
    """`savings`, in MFLOP a frame."""
    drawn = Table(title=f"Saved, MFLOP a frame, {name}", caption=(
        "formula: skipped x K x K x C x filters x 2; useful, issued: counted in deltajax's segment, with the pooling "
        "and products in it"
    ))
    for heading in ("layer", "skipped", "of", "K x K x C", "filters", "formula", "useful", "issued", "of dense"):
        drawn.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(
            row.layer, f"{row.skipped:.0f}", f"{row.positions}", f"{row.operations}", f"{row.filters}",
            *(f"{flops / 1e6:.2f}" for flops in (row.formula, row.useful, row.issued, row.dense)),
        )
    return drawn


@dataclass(frozen=True)
class Memory:
    """Bytes of one layer (or segment).

    Attributes:
        params: of this layer.
        activation: its output, as a dense network has it while it runs.
        cache: what is remembered of its output from frame to frame.
        mask: its change map.
        kept: its params once more, rearranged.
    """

    layer: str
    params: int
    activation: int
    cache: int
    mask: int
    kept: int = 0


def memory(params: Params) -> tuple[tuple[Memory, ...], tuple[Memory, ...]]:
    """Layer by layer for CNN3 by hand (`dj.layers`), segment by segment for `incremental`."""
    network = CNN3()
    cache, _ = network.init(params)
    x, rows = jax.ShapeDtypeStruct(simple_cnn.FRAME_SHAPE, jnp.float32), []
    for name, layer in network.layers.items():
        x = layer.shape(params.get(name), x)
        kept = _bytes(cache[name]["fixed"])
        masks = _bytes((cache[name]["masks"], cache[name]["flags"], cache[name]["whole_flags"]))
        values = _bytes((cache[name]["maps"], cache[name]["wholes"]))
        activation = math.prod(x.shape) * x.dtype.itemsize
        rows.append(Memory(name, _bytes(params.get(name, {})), activation, values, masks, kept))
    frame = jax.ShapeDtypeStruct(simple_cnn.FRAME_SHAPE, jnp.float32)
    report = dj.incremental(simple_cnn.apply).explain(params, frame)
    segments = [Memory(s.name, 0, 0, s.cache_bytes, s.mask_bytes, s.kept_bytes) for s in report.segments]
    rest = report.cache_bytes - sum(s.cache + s.mask + s.kept for s in segments)
    mask = math.prod(simple_cnn.FRAME_SHAPE[:2])
    return tuple(rows), (Memory("frame", 0, 0, rest - mask, mask), *segments)


def memory_tables(layers: tuple[Memory, ...], segments: tuple[Memory, ...]) -> tuple[Table, Table]:
    """Bytes, dense against incremental."""
    hand = Table(title="Memory layer by layer, KiB: dense, and CNN3 by hand from dj.layers")
    for heading in ("layer", "params", "activation", "remembered", "change map", "kept kernel"):
        hand.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for row in (*layers, _total(layers)):
        hand.add_row(row.layer, *map(_kib, (row.params, row.activation, row.cache, row.mask, row.kept)))
    whole = Table(title="Memory segment by segment, KiB: deltajax.incremental")
    for heading in ("segment", "remembered", "change map", "kept kernel"):
        whole.add_column(heading, justify="left" if heading == "segment" else "right", no_wrap=True)
    for row in (*segments, _total(segments)):
        whole.add_row(row.layer, *map(_kib, (row.cache, row.mask, row.kept)))
    return hand, whole


def _total(rows: tuple[Memory, ...]) -> Memory:
    columns = zip(*((r.params, r.activation, r.cache, r.mask, r.kept) for r in rows), strict=True)
    return Memory("in all", *(sum(column) for column in columns))


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f}"


def _bytes(tree: Mapping[str, Any] | tuple[Any, ...]) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
