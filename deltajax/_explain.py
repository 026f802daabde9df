"""The report of a plan: one row for each segment."""

from __future__ import annotations

import collections
import dataclasses
import io
import math

from rich.console import Console
from rich.table import Table

from ._plan import Plan, Segment, TileSegment
from ._program import Kind, Lift, TileOp, Value


@dataclasses.dataclass(frozen=True)
class SegmentReport:
    """One segment of the plan.

    Attributes:
        name: as `taus` and `stats` call it.
        operations: the primitives in order.
        how: ``"tiles"``, ``"native"`` (tiles, by kernels of deltajax's own), ``"native-bf16"`` (the same in bfloat16),
            ``"whole"`` (works on values without a picture) or ``"dense"`` (a fallback).
        reason: of a fallback: primitive, reason and source line for each.
        source: the user's line that made the segment's main operation.
        tile: rows and columns of a tile of the result; None for whole segments.
        halo: how far a tile reads beyond its own part of the input, rows and columns.
        receptive_field: rows and columns of the frame that one result position depends on.
        cache_bytes: its slots: the values that something else reads.
        mask_bytes: their change maps.
        kept_bytes: what it reads of params alone, rearranged once in `init` and kept in the cache.
        flops: of the dense path.
        not_native: with ``kernels="native"``, why it is done by XLA.
    """

    name: str
    operations: tuple[str, ...]
    how: str
    reason: str
    source: str
    tile: tuple[int, int] | None
    halo: tuple[int, int] | None
    receptive_field: tuple[int, int] | None
    cache_bytes: int
    mask_bytes: int
    kept_bytes: int
    flops: float
    not_native: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """How a function is done incrementally. Print it, or read its rows.

    Attributes:
        segments: in the order in which they run.
        flops: of the dense function.
        cache_bytes: of the cache: held frame, slots, change maps, what is kept of params.
    """

    segments: tuple[SegmentReport, ...]
    flops: float
    cache_bytes: int

    @property
    def fallback_share(self) -> float:
        """Share of the dense FLOPs in fallbacks, in [0, 1]."""
        return sum(s.flops for s in self.segments if s.how == "dense") / max(self.flops, 1.0)

    def __str__(self) -> str:
        table = Table(title=None, show_lines=False)
        for heading in ("segment", "operations", "how", "from", "tile", "halo", "field", "KiB", "kept", "MFLOP"):
            left = heading in ("segment", "operations", "how", "from")
            table.add_column(heading, justify="left" if left else "right")
        for s in self.segments:
            operations = ", ".join(s.operations[:6]) + (f" and {len(s.operations) - 6} more" if len(s.operations) > 6
                                                        else "")
            table.add_row(s.name, operations, s.how, _short(s.source), _by(s.tile), _by(s.halo), _by(s.receptive_field),
                          f"{(s.cache_bytes + s.mask_bytes) / 1024:.0f}", f"{s.kept_bytes / 1024:.0f}",
                          f"{s.flops / 1e6:.2f}")
        out = io.StringIO()
        console = Console(file=out, width=140, color_system=None, force_jupyter=False)
        console.print(table)
        console.print(
            f"{self.flops / 1e6:.1f} MFLOP dense, cache {self.cache_bytes / 2**20:.1f} MiB, "
            f"dense fallback for {100 * self.fallback_share:.1f} % of the FLOPs",
            highlight=False,
        )
        for s in self.segments:
            if s.reason:
                console.print(f"{s.name}: dense fallback: {s.reason}", highlight=False, soft_wrap=True)
            if s.not_native:
                console.print(f"{s.name}: not native: {s.not_native}", highlight=False, soft_wrap=True)
        return out.getvalue().rstrip()


def _short(source: str) -> str:
    """``/a/b/file.py:12 (name)`` to ``file.py:12``."""
    return source.split(" (")[0].rsplit("/", 1)[-1]


def _by(pair: tuple[int, int] | None) -> str:
    return "-" if pair is None else f"{pair[0]}x{pair[1]}"


def report(plan: Plan) -> Report:
    """One row for each segment of `plan`."""
    frame = plan.frame.picture
    # Receptive fields, forwards: (size, step) in the frame for rows and columns.
    fields: dict[Value, tuple[tuple[int, float], ...]] = {plan.frame: ((1, 1.0), (1, 1.0))}
    rows = []
    kept: set[Value] = set()  # by an earlier segment
    for segment in plan.segments:
        if isinstance(segment, TileSegment):
            for op in segment.ops:
                fields.update((v, _field(op, fields, frame)) for v in op.outputs)
            field = fields[segment.writes[0]]
            seen = tuple(min(n, size) for (size, _), n in zip(field, frame, strict=True))
        else:
            fields.update((v, tuple((n, 1.0) for n in frame)) for v in segment.writes if v.is_tiled)
            seen = None
        rows.append(_row(plan, segment, seen, kept))
        kept.update(segment.reads)
        kept.update(segment.beside if isinstance(segment, TileSegment) else ())
    held, masks = _slot(plan, plan.frame)
    size = held + masks + sum(r.cache_bytes + r.mask_bytes + r.kept_bytes for r in rows)
    return Report(tuple(rows), plan.flops, size)


def _slot(plan: Plan, value: Value) -> tuple[int, int]:
    """Bytes of a value's slot, and of its change map."""
    if not value.is_tiled:
        return math.prod(value.shape) * value.dtype.itemsize, 0
    stored = plan.layouts[value].size * plan.streams
    return stored, math.prod(value.picture) * plan.streams if value.kind is Kind.MAP else 0


def _field(op: TileOp, fields, frame) -> tuple[tuple[int, float], ...]:
    found = []
    for axis, window in enumerate(op.windows()[op.first_tiled]):
        sizes = [fields[v][axis] for v in op.inputs if v.kind is Kind.MAP and v in fields]
        if any(v.kind is Kind.WHOLE for v in op.inputs) or not sizes:
            found.append((frame[axis], 1.0))
            continue
        size, step = max(sizes)
        taps = (window.extent - 1) // window.base_dilation
        found.append((min(frame[axis], round(size + taps * step)), step * window.stride / window.base_dilation))
    return tuple(found)


def _halo(segment: TileSegment) -> tuple[int, int]:
    def one(axis: int) -> int:
        tile, spans = segment.grid.tile[axis], [(segment.tile.needs[v][axis], v.picture[axis]) for v in segment.maps]
        return max(max(0, s.length - (tile * s.num // s.den or n)) for s, n in spans)

    return one(0), one(1)


def _row(plan: Plan, segment: Segment, field, kept: set[Value]) -> SegmentReport:
    slots, masks = (sum(sizes) for sizes in zip(*(_slot(plan, v) for v in segment.writes), strict=True))
    reads = {*segment.reads, *(segment.beside if isinstance(segment, TileSegment) else ())}
    more = sum(_slot(plan, v)[0] for v in reads - kept if v.kind is Kind.FIXED and v.is_kept)
    names = tuple(op.label for op in segment.ops)
    main = max(segment.ops, key=lambda op: op.flops)
    if isinstance(segment, TileSegment):
        how = "tiles" if segment.native is None else "native-bf16" if segment.native.bfloat16 else "native"
        return SegmentReport(segment.name, names, how, "", main.where, segment.grid.tile, _halo(segment), field,
                             slots, masks, more, segment.flops, segment.not_native)
    refused = [op for op in segment.ops if op.refusal and not isinstance(op, Lift)]
    reasons = collections.Counter(f"{op.label}: {op.refusal}, at {op.where}" for op in refused)
    reason = "; ".join(text + (f" ({n} times)" if n > 1 else "") for text, n in reasons.items())
    return SegmentReport(segment.name, names, "dense" if refused else "whole", reason, main.where, None, None, None,
                         slots, masks, more, segment.flops)
