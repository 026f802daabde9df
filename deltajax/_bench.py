"""`deltajax bench`: a network dense and incremental, in turns, over the share of the frame that changes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from . import _breakdown, onnx
from ._incremental import Incremental, Kernels, incremental
from .models import get_model
from .models._random import random_params

FRAMES = 24  # measured at each density, after WARM others
WARM = 3
BLOCK = 16  # side in pixels of what changes in `scattered_blocks`

# The fifteen 3x3 convolutions (11.86 GFLOP at 512x384): channels in, channels out, stride.
STACK15 = (
    (3, 32, 2), (32, 64, 2), *[(64, 64, 1)] * 6, (64, 128, 2), *[(128, 128, 1)] * 6,
)  # fmt: skip
STACK15_SIZE = (384, 512)


def stack15_params(seed: int = 0) -> list[tuple[Array, Array]]:
    """Kernels `[3, 3, in, out]` of He's size and biases, one pair for each layer."""
    keys = jax.random.split(jax.random.key(seed), len(STACK15))
    return [
        (jax.random.normal(key, (3, 3, i, o)) * (2 / (9 * i)) ** 0.5, jnp.full((o,), 0.01))
        for key, (i, o, _) in zip(keys, STACK15, strict=True)
    ]


def stack15(params: list[tuple[Array, Array]], frame: Float[Array, "h w 3"]) -> Float[Array, "y x 128"]:
    """Fifteen 3x3 convolutions with bias and relu, three of them with stride 2: the network of the README's figures."""
    x = frame[None]
    for (kernel, bias), (_, _, stride) in zip(params, STACK15, strict=True):
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    return x[0]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a function, its params, a frame's shape and dtype."""

    name: str
    fn: Callable[[PyTree, Array], PyTree]
    params: PyTree
    size: tuple[int, int]
    dtype: Any


def subject(name: str, weights: Path | None, size: tuple[int, int] | None = None) -> Subject:
    """``"stack15"``, an ONNX file, or a model of `deltajax.models`; without `weights` random ones: they take as long.

    Raises:
        ValueError: there is no such model, the file is none that takes a picture, or frames of another size.
    """
    if name == "stack15":
        return Subject(name, stack15, stack15_params(), size or STACK15_SIZE, np.dtype(np.float32))
    if name.endswith(".onnx"):
        fn, params, declared = onnx.load_of_picture(name)
        if declared is not None and size not in (None, declared):
            raise ValueError(f"'{name}' takes frames of {declared[0]} {declared[1]}, not {size[0]} {size[1]}")
        return Subject(Path(name).stem, fn, params, size or declared or STACK15_SIZE, np.dtype(np.float32))
    model = get_model(name)
    params = random_params(model.shapes()) if weights is None else model.load(weights)
    return Subject(name, model.apply, params, size or model.frame_size or STACK15_SIZE, np.dtype(np.uint8))


def moving_square(size: tuple[int, int], dtype: Any, density: float, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames `[h, w, 3]` in which a square of fresh noise moves and changes over a still background of noise.

    The square covers `density` of the frame; 0 gives still frames, 1 a new frame each time. What it leaves behind
    is background again, so that somewhat more than `density` changes in a frame.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    background, number = _noise(rng, height, width, dtype), 0
    side = round((density * height * width) ** 0.5)
    rows, cols = (height, width) if density == 1 else (min(side, height), min(side, width))
    while True:
        frame = background.copy()
        if side:
            top = (4 * number) % (height - rows + 1)
            left = (6 * number) % (width - cols + 1)
            frame[top: top + rows, left: left + cols] = _noise(rng, rows, cols, dtype)
        number += 1
        yield frame


def scattered_blocks(size: tuple[int, int], dtype: Any, density: float, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames `[h, w, 3]` in which blocks of BLOCK x BLOCK pixels at random places become fresh noise, and stay.

    Blocks do not overlap: they are drawn from a grid that lies elsewhere in each frame, so that no grid of tiles is
    favoured; the border cuts them. They cover `density` of the frame to the nearest block, and nothing else changes:
    0 gives still frames, 1 a new frame each time.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    rows, cols = (-(-side // BLOCK) + 1 for side in size)  # one more than fit, for the grid moves
    frame = _noise(rng, height, width, dtype)
    while True:
        top, left = rng.integers(0, BLOCK, 2)
        turn = rng.permutation(rows * cols).reshape(rows, cols)  # of each block, to be chosen
        turn = turn.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[top : top + height, left : left + width]
        covered = np.cumsum([0, *np.bincount(turn.ravel(), minlength=rows * cols)])
        blocks = np.abs(covered - density * height * width).argmin()
        frame = np.where((turn < blocks)[..., None], _noise(rng, height, width, dtype), frame)
        yield frame


def _noise(rng: np.random.Generator, height: int, width: int, dtype: Any) -> np.ndarray:
    values = rng.random((height, width, 3), dtype=np.float32)
    return (values * 255).astype(dtype) if dtype == np.uint8 else values.astype(dtype)


PATTERNS = {"square": moving_square, "scattered": scattered_blocks}


@dataclasses.dataclass(frozen=True)
class Row:
    """One density; times are medians in milliseconds, shares are of the dense FLOPs."""

    asked: float
    density: float
    dense_ms: float
    step_ms: float
    issued: float
    useful: float
    difference: float

    @property
    def speedup(self) -> float:
        return self.dense_ms / self.step_ms

    @property
    def efficiency(self) -> float:
        """Time that the issued FLOPs would take at the dense rate, over the time taken."""
        return self.issued * self.dense_ms / self.step_ms


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start), result


class Bench:
    """The compiled dense function and step of a subject.

    Attributes:
        compile_seconds, first_ms: of dense and step; the first frame of the step is a dense one.
    """

    def __init__(self, what: Subject, inc: Incremental):
        self.what, self.inc = what, inc
        frame = jax.ShapeDtypeStruct((*what.size, 3), what.dtype)
        self.cache = jax.block_until_ready(inc.init(what.params, frame)[0])
        start = time.perf_counter()
        self.dense = jax.jit(what.fn).lower(what.params, frame).compile()
        middle = time.perf_counter()

        def step(params, cache, frame):
            output, cache, _ = inc.step(params, cache, None, frame)
            return output, cache

        self.step = jax.jit(step, donate_argnums=1).lower(what.params, self.cache, frame).compile()
        self.compile_seconds = (middle - start, time.perf_counter() - middle)
        self.stats = jax.jit(inc.stats)
        first = jnp.asarray(next(moving_square(what.size, what.dtype, 0.0)))
        dense_ms, _ = _timed(lambda: self.dense(what.params, first))
        step_ms, (_, self.cache) = _timed(lambda: self.step(what.params, self.cache, first))
        self.first_ms = (dense_ms, step_ms)

    def measure(self, density: float, tick: Callable[[], None] = lambda: None, pattern: str = "square") -> Row:
        """Dense and step in turns over FRAMES frames."""
        frames = PATTERNS[pattern](self.what.size, self.what.dtype, density)
        dense, steps, found = [], [], []
        difference = 0.0
        for number in range(WARM + FRAMES):
            frame = jax.block_until_ready(jnp.asarray(next(frames)))
            dense_ms, expected = _timed(lambda frame=frame: self.dense(self.what.params, frame))
            step_ms, (output, self.cache) = _timed(
                lambda frame=frame: self.step(self.what.params, self.cache, frame)
            )
            tick()
            if number < WARM:
                continue
            dense.append(dense_ms)
            steps.append(step_ms)
            s = self.stats(self.cache)
            found.append([float(x) for x in (s.frame_density, s.flops_issued, s.flops_useful, s.flops_dense)])
            difference = max(difference, *jax.tree.leaves(jax.tree.map(_difference, expected, output)))
        share, issued, useful, total = (statistics.median(column) for column in zip(*found, strict=True))
        return Row(density, share, statistics.median(dense), statistics.median(steps), issued / total, useful / total,
                   difference)


def _difference(expected: Array, output: Array) -> float:
    """Largest difference, relative to the largest value."""
    a, b = np.asarray(expected, np.float64), np.asarray(output, np.float64)
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(a), initial=0), 1e-30))


def bench(
    model: str, weights: Path | None, densities: Sequence[float], out: Path, by_segment: float | None = None,
    size: tuple[int, int] | None = None, pattern: str = "square", kernels: Kernels = "xla",
) -> list[Row]:
    """Measure, print the table, write ``bench-MODEL.png`` to `out`; `by_segment`: a density; `pattern`: of PATTERNS."""
    console = Console()
    what = subject(model, weights, size)
    model = what.name
    with console.status(f"compiling {model}"):
        run = Bench(what, incremental(what.fn, kernels=kernels))
    rows = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(model, total=len(densities) * (WARM + FRAMES))
        for density in densities:
            rows.append(run.measure(density, lambda: progress.advance(task), pattern))
    height, width = what.size
    title = f"{model}, {width}x{height}, {jax.default_backend()}, exact (tau 0), medians of {FRAMES} frames, ms"
    table = Table(title=title)
    for heading in (pattern, "changed", "dense", "step", "x dense", "issued", "useful", "of ideal", "max diff"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(
            f"{100 * r.asked:g} %", f"{100 * r.density:.1f} %", f"{r.dense_ms:.2f}", f"{r.step_ms:.2f}",
            f"{r.speedup:.2f}", f"{100 * r.issued:.1f} %", f"{100 * r.useful:.1f} %",
            "-" if r.issued == 0 else f"{r.efficiency:.2f}", f"{r.difference:.1e}",
        )
    console.print(table)
    console.print(
        "issued, useful: share of the dense FLOPs; of ideal: what the issued FLOPs would take at the dense rate, over "
        "the time taken; max diff: from dense, relative", highlight=False,
    )
    console.print(
        f"dense: compiled in {run.compile_seconds[0]:.1f} s, first frame {run.first_ms[0]:.1f} ms; "
        f"step: compiled in {run.compile_seconds[1]:.1f} s, first (dense) frame {run.first_ms[1]:.1f} ms",
        highlight=False,
    )
    if by_segment is not None:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("by segment", total=1 + _breakdown.WARM + _breakdown.FRAMES)
            found = _breakdown.breakdown(
                run.inc, what.params, PATTERNS[pattern](what.size, what.dtype, by_segment),
                lambda: progress.advance(task),
            )
        console.print(_breakdown.table(found, f"{model} by segment, {pattern}, {100 * by_segment:g} %, ms"))
    path = out / f"bench-{model}.png"
    plot(rows, f"{model}, {width}x{height}, {jax.default_backend()}").savefig(path, dpi=150)
    console.print(f"wrote {path}", highlight=False)
    return rows


def plot(rows: Sequence[Row], title: str) -> Figure:
    """Speed-up over density, with the bound that the issued and the useful FLOPs set."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    moving = [r for r in rows if r.density > 0]
    x = [100 * r.density for r in moving]
    axes.plot(x, [1 / max(r.useful, 1e-9) for r in moving], ":", color="0.6", label="bound: useful FLOPs")
    axes.plot(x, [1 / max(r.issued, 1e-9) for r in moving], "--", color="0.6", label="bound: issued FLOPs")
    axes.plot(x, [r.speedup for r in moving], "o-", color="#c8501e", label="measured")
    axes.axhline(1, color="0.2", linewidth=0.8)
    axes.annotate("dense", (1, 1), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", color="0.2")
    axes.set(xscale="log", yscale="log", xlabel="pixels that changed, %", ylabel="times as fast as dense", title=title)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    return figure
