"""What a run measured, frame by frame, and the table that sums it up."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import PyTree
from rich.table import Table


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
        cache_bytes: what the incremental form remembers.
        compile_seconds: before the first frame.
        wall_seconds: from the first frame to the last, everything included.
        stopped: the user ended the run.
    """

    step_seconds: list[float] = field(default_factory=list)
    dense_seconds: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    issued: list[float] = field(default_factory=list)
    difference: dict[str, float] = field(default_factory=dict)
    cache_bytes: float = 0.0
    compile_seconds: float = 0.0
    wall_seconds: float = 0.0
    stopped: bool = False

    def add_step(self, seconds: float, density: float, issued: float, cache_bytes: float) -> None:
        """Adds a frame."""
        self.step_seconds.append(seconds)
        self.density.append(density)
        self.issued.append(issued)
        self.cache_bytes = cache_bytes

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
        if self.difference:
            gaps = ", ".join(f"{name} {gap:.2g}" for name, gap in self.difference.items())
            lines.append(f"largest |difference| from dense, over all frames: {gaps}")
        lines.append(
            f"first frame, always computed whole: {1e3 * self.step_seconds[0]:.1f} ms; "
            f"compiled in {self.compile_seconds:.1f} s; cache {self.cache_bytes / 1e6:.1f} MB"
        )
        lines.append(
            f"{frames} frames in {self.wall_seconds:.1f} s: {frames / self.wall_seconds:.1f} frames/s "
            "with decoding, drawing and encoding" + ("; stopped before the end" if self.stopped else "")
        )
        return lines


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
