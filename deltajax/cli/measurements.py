"""What a run measured, frame by frame, and the table that sums it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from rich.table import Table

from deltajax._audit import FEWEST, AuditStats


class Figures(NamedTuple):
    """Of one step; see `deltajax.Stats`. Shares of the frame and of the FLOPs are in 0..1."""

    density: Any
    issued: Any
    whole_frames: Any
    cache_bytes: Any
    audit: AuditStats | None = None
    level: Any = None


@dataclass
class Measurements:
    """Times, densities and differences of the frames of one run.

    The first frame counts only in the differences: with nothing to compare it with, it is computed whole.

    Attributes:
        step_seconds: the time of the incremental step, for each frame.
        dense_seconds: the time of the whole network, for each frame; empty unless it ran as well.
        density: the share of the frame that changed, in 0..1.
        issued: the FLOPs that were computed, as a share of the whole network's.
        difference: for each output, the largest absolute difference from the whole network's; of one in whole
            numbers, the share of its entries that differ.
        whole: how many frames after the first were computed whole, for a new scene or for their error.
        audit, level: what the audits found so far, and the level of the thresholds that follow them.
        cache_bytes: what the incremental form remembers.
        compile_seconds: before the first frame.
        begun: when the first frame was asked for, by `time.perf_counter`.
        wall_seconds: from then to the closed file, everything included.
        overlapped: frames were decoded, drawn and encoded while others were computed, on the same cores.
        stopped: the user ended the run.
    """

    step_seconds: list[float] = field(default_factory=list)
    dense_seconds: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    issued: list[float] = field(default_factory=list)
    difference: dict[str, float] = field(default_factory=dict)
    whole: int = 0
    audit: AuditStats | None = None
    level: float | None = None
    cache_bytes: float = 0.0
    compile_seconds: float = 0.0
    begun: float = 0.0
    wall_seconds: float = 0.0
    overlapped: bool = False
    stopped: bool = False

    def add_step(self, seconds: float, figures: Figures) -> None:
        """Adds a frame."""
        self.whole += int(figures.whole_frames) if self.step_seconds else 0
        self.step_seconds.append(seconds)
        self.density.append(float(figures.density))
        self.issued.append(float(figures.issued))
        self.cache_bytes = float(figures.cache_bytes)
        self.audit = figures.audit
        self.level = None if figures.level is None else float(figures.level)

    def add_dense(self, seconds: float, output: PyTree, dense: PyTree) -> None:
        """Adds the whole network's run on the last frame; both outputs have the same structure."""
        self.dense_seconds.append(seconds)
        leaves = jax.tree_util.tree_leaves_with_path(output)
        for (path, ours), theirs in zip(leaves, jax.tree.leaves(dense), strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the output"
            ours, theirs = np.asarray(ours), np.asarray(theirs)
            if np.issubdtype(ours.dtype, np.integer):  # names of classes: how far apart two are says nothing
                name, gap = f"{name} (share that differs)", float(np.mean(ours != theirs))
            else:
                gap = largest_difference(ours, theirs)
            self.difference[name] = max(self.difference.get(name, 0.0), gap)

    def caption(self) -> str:
        """The last frame's figures, short enough to be written into its picture."""
        number = len(self.step_seconds) - 1
        return f"frame {number}   changed {self.density[-1]:.1%}   FLOPs {self.issued[-1]:.0%}"

    def table(self) -> Table:
        """Medians and 90th percentiles over all frames but the first."""
        table = Table("", "median", "90 %", "", box=None, pad_edge=False)
        table.columns[1].justify = table.columns[2].justify = "right"
        if self.step_seconds[1:]:
            table.add_row("incremental", *_spread(self.step_seconds, 1e3, "ms"), _rate(self.step_seconds))
        if self.dense_seconds[1:]:
            table.add_row("dense", *_spread(self.dense_seconds, 1e3, "ms"), _rate(self.dense_seconds))
            ratio = np.median(self.dense_seconds[1:]) / np.median(self.step_seconds[1:])
            table.add_row("speed-up", f"{ratio:.2f} x", "", "dense / incremental, in turns")
        if self.step_seconds[1:]:
            table.add_row("density", *_spread(self.density, 100, "%"), "of the frame changed")
            table.add_row("FLOPs issued", *_spread(self.issued, 100, "%"), "of the dense network's")
        return table

    def remarks(self) -> list[str]:
        """What the table leaves out, in lines: differences, the first frame, all that is not the network."""
        frames = len(self.step_seconds)
        lines = []
        if self.overlapped:
            lines.append("other frames were decoded and drawn beside the step; --compare times it alone")
        if self.difference:
            gaps = ", ".join(f"{name} {gap:.2g}" for name, gap in self.difference.items())
            lines.append(f"largest |difference| from dense, over all frames: {gaps}")
        if self.audit is not None:
            lines.append(_audited(self.audit))
        if self.level is not None:
            lines.append(f"thresholds at the end: 2^{self.level:+.1f} times those at level 0, the frame's half as far")
        if self.whole:
            lines.append(f"computed whole after the first frame, for a new scene or too large an error: {self.whole}")
        lines.append(
            f"first frame, always computed whole: {1e3 * self.step_seconds[0]:.1f} ms; "
            f"compiled in {self.compile_seconds:.1f} s; cache {self.cache_bytes / 1e6:.1f} MB"
        )
        lines.append(
            f"{frames} frames in {self.wall_seconds:.1f} s: {frames / self.wall_seconds:.1f} frames/s "
            "of the whole run, decoding, drawing and encoding included"
            + ("; stopped before the end" if self.stopped else "")
        )
        return lines


def _audited(audit: AuditStats) -> str:
    count, last, mean, low, high, upper = (
        float(x) for x in (audit.count, audit.last, audit.mean, audit.low, audit.high, audit.upper)
    )
    if count < 2:
        return f"audits: {count:.0f}, too few to say how large the error is" + (f"; it was {last:.2g}" if count else "")
    said = f"audits: {count:.0f}; error {mean:.2g} (95 % confidence: {low:.2g} to {high:.2g})"
    if count < FEWEST:
        return f"{said}; {FEWEST} of them would say how large it is in 95 % of the frames"
    return f"{said}, in 95 % of the frames below {upper:.2g}"


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|ours - theirs|; NaN in both or equal infinities do not differ, NaN in one is infinitely far."""
    same = (ours == theirs) | ((ours != ours) & (theirs != theirs))
    gaps = np.abs(ours[~same].astype(np.float64) - theirs[~same].astype(np.float64))
    return float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0))


def _spread(values: list[float], scale: float, unit: str) -> tuple[str, str]:
    """Median and 90th percentile without the first value."""
    steady = scale * np.array(values[1:])
    return f"{np.median(steady):.2f} {unit}", f"{np.percentile(steady, 90):.2f} {unit}"


def _rate(seconds: list[float]) -> str:
    return f"{1 / np.mean(seconds[1:]):.1f} frames/s"
