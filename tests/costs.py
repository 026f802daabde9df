"""What a step costs as frames grow, as time passes, in memory and in compilation: tables for docs/performance.md.

    python tests/costs.py growth       ms a frame over 5 densities x 4 sizes of the 15-layer stack, with a figure
    python tests/costs.py endurance    ms a frame over 10,000 frames in one scan
    python tests/costs.py memory       bytes of step and dense network, each network at 512x384
    python tests/costs.py compile      seconds to compile, cold and from JAX's persistent cache
    python tests/costs.py calls        ms a frame, a call for each frame and in one scan, dense network and step
    python tests/costs.py detection    ms of finding what changed in a frame and holding it, by size, norm and cell
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import deltajax as dj
from deltajax._bench import PATTERNS, Bench, Subject, stack15, stack15_params, subject
from deltajax._incremental import Kernels
from deltajax._run import detect_frame

SIZES = ((270, 480), (384, 512), (720, 1280), (1080, 1920))
DENSITIES = (0.0, 0.01, 0.04, 0.16, 1.0)
NETWORKS = ("stack15", "unet", "resnet18", "resnet50", "mobilenetv2", "hrnet-w32")
SIZE = (384, 512)


def growth(console: Console, out: Path, kernels: str) -> None:
    """Milliseconds of a step over density and size; a straight line through the origin is a cost of work alone."""
    table = Table(title="stack15, ms a step, moving square")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for heading in ("size", "megapixels", "dense", *(f"{100 * d:g} %" for d in DENSITIES)):
        table.add_column(heading, justify="right")
    for size in SIZES:
        what = Subject("stack15", stack15, stack15_params(), size, np.dtype(np.float32))
        run = Bench(what, dj.incremental(stack15, kernels=kernels))
        rows = [run.measure(density) for density in DENSITIES]
        pixels = math.prod(size) / 1e6
        cells = [f"{r.step_ms:.1f}" for r in rows]
        table.add_row(f"{size[1]}x{size[0]}", f"{pixels:.2f}", f"{rows[-1].dense_ms:.1f}", *cells)
        axes.plot([r.density * pixels for r in rows], [r.step_ms for r in rows], "o-", label=f"{size[1]}x{size[0]}")
    axes.set(xlabel="changed megapixels", ylabel="ms a step", title="15-layer stack, moving square", yscale="log")
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(out / "growth.png", dpi=150)
    console.print(table)


def endurance(console: Console, kernels: str) -> None:
    """A digit-sized change for 10,000 frames in one `lax.scan` of ten blocks: the blocks take the same time."""
    what = subject("digits", None, (128, 128))
    inc = dj.incremental(what.fn, tau=2.0, cell=4, kernels=kernels)
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (128, 128, 3), np.uint8)

    def frame(number):
        top, left = (number * 3) % 100, (number * 5) % 100
        square = (jnp.arange(28 * 28 * 3, dtype=jnp.int32).reshape(28, 28, 3) * 7 + number).astype(jnp.uint8)
        return lax.dynamic_update_slice(jnp.asarray(background), square, (top, left, 0))

    @jax.jit
    def block(cache, first):
        def one(cache, number):
            _, cache, _ = inc.step(what.params, cache, None, frame(number))
            return cache, inc.stats(cache).tiles_issued

        return lax.scan(one, cache, first + jnp.arange(1000))

    cache, _ = inc.init(what.params, frame(0))
    block.lower(cache, 0).compile()
    cells = []
    for number in range(10):
        start = time.perf_counter()
        cache, issued = jax.block_until_ready(block(cache, 1000 * number))
        if number:
            cells.append((1e3 * (time.perf_counter() - start) / 1000, float(issued.mean())))
    table = Table(title="digits, 128x128: ms a frame and tiles issued, blocks of 1,000 frames")
    for number in range(1, 10):
        table.add_column(f"{number + 1},000", justify="right")
    table.add_row(*(f"{ms:.3f}" for ms, _ in cells))
    table.add_row(*(f"{issued:.1f}" for _, issued in cells))
    console.print(table)


def memory(console: Console, names: list[str], kernels: str) -> None:
    """Bytes by XLA's own account: what is kept between frames, what a step needs beside it, the dense network's."""
    table = Table(title=f"MB at {SIZE[1]}x{SIZE[0]}, without params and frame")
    for heading in ("network", "all activations", "dense, temporary", "cache", "step, temporary", "step / activations"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        what = subject(name, None, SIZE)
        inc = dj.incremental(what.fn, kernels=kernels)
        frame = jax.ShapeDtypeStruct((*SIZE, 3), what.dtype)
        cache = jax.eval_shape(lambda p, inc=inc, frame=frame: inc.init(p, frame)[0], what.params)
        dense = jax.jit(what.fn).lower(what.params, frame).compile().memory_analysis()
        step = jax.jit(lambda p, c, f, inc=inc: inc.step(p, c, None, f)[:2], donate_argnums=1)
        whole = step.lower(what.params, cache, frame).compile().memory_analysis()
        plan = inc.plan(what.params, frame)
        heavy = [op for segment in plan.segments for op in segment.ops if getattr(op, "heavy", False)]
        activations = sum(math.prod(v.shape) * v.dtype.itemsize for op in heavy for v in op.outputs)
        kept = sum(math.prod(x.shape) * x.dtype.itemsize for part, x in _leaves(cache) if part != "fixed")
        extra = sum(math.prod(x.shape) * x.dtype.itemsize for part, x in _leaves(cache) if part == "fixed")
        peak = kept + extra + whole.temp_size_in_bytes
        sizes = activations, dense.temp_size_in_bytes, kept + extra, whole.temp_size_in_bytes
        table.add_row(name, *(f"{size / 1e6:.1f}" for size in sizes), f"{peak / activations:.2f}")
    console.print(table)


def _leaves(cache):
    return [(part, x) for part, values in cache.items() for x in jax.tree.leaves(values)]


CHILD = """
import sys, time, jax
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
import deltajax as dj
from deltajax._bench import subject
what = subject(sys.argv[1], None, (384, 512))
inc = dj.incremental(what.fn, kernels=sys.argv[3])
frame = jax.ShapeDtypeStruct((384, 512, 3), what.dtype)
start = time.perf_counter()
cache = jax.block_until_ready(inc.init(what.params, frame)[0])
initial = time.perf_counter()
lowered = jax.jit(lambda p, c, f: inc.step(p, c, None, f)[:2], donate_argnums=1).lower(what.params, cache, frame)
middle = time.perf_counter()
lowered.compile()
print(initial - start, middle - initial, time.perf_counter() - middle)
"""


def compilation(console: Console, names: list[str], kernels: str) -> None:
    """Plan, trace and compile in a process of its own, three times: without a cache, and twice with one filled."""
    table = Table(title="seconds of init + to trace + compile the step at 512x384")
    for heading in ("network", "cold", "from the cache"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                [float(x) for x in subprocess.run(
                    [sys.executable, "-c", CHILD, name, folder, kernels], check=True, capture_output=True, text=True
                ).stdout.split()]
                for _ in range(3)
            ]
        cold, warm = runs[0], [statistics.median(column) for column in zip(*runs[1:], strict=True)]
        table.add_row(name, *(" + ".join(f"{seconds:.1f}" for seconds in run) for run in (cold, warm)))
        console.print(f"{name}: {cold}, {warm}")
    console.print(table)


CALLS = ("stack15", "slim-320", "fastestdet")
IN_SCAN, TURNS = 24, 9  # frames


def calls(console: Console, names: list[str], kernels: str) -> None:
    """A call hands over every param and all of the cache; of params that it closes over only what is read, and a scan
    does it once for all of its frames.
    """
    table = Table(title=f"ms a frame: called for each, in a scan of {IN_SCAN}")
    for heading in ("network", "", "dense", "still", ".5 %", "2 %"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in names:
        what = subject(name, None, SIZE if name == "stack15" else None)
        inc = dj.incremental(what.fn, kernels=kernels)
        cache, _ = inc.init(what.params, jax.ShapeDtypeStruct((*what.size, 3), what.dtype))

        def one(params, cache, frame, inc=inc):
            output, cache, _ = inc.step(params, cache, None, frame)
            return cache, output

        def dense(params, cache, frame, what=what):
            return cache, what.fn(params, frame)

        rows = {"called": [], "called, params closed over": [], "in a scan": []}
        for fn, density in ((dense, 0.02), *((one, share) for share in (0.0, 0.005, 0.02))):
            made = PATTERNS["square"](what.size, what.dtype, density)
            frames = [jnp.asarray(next(made)) for _ in range(IN_SCAN)]
            called = jax.jit(fn, donate_argnums=1)
            closed = jax.jit(functools.partial(fn, what.params), donate_argnums=0)

            @functools.partial(jax.jit, donate_argnums=1)
            def scanned(params, cache, frames, fn=fn):
                return lax.scan(functools.partial(fn, params), cache, frames)

            own, stacked = jax.tree.map(jnp.copy, cache), jnp.stack(frames)
            found = {row: [] for row in rows}
            for _ in range(TURNS + 1):
                for row in rows:
                    start = time.perf_counter()
                    if row == "in a scan":
                        own, _ = jax.block_until_ready(scanned(what.params, own, stacked))
                    else:
                        call = closed if "closed" in row else functools.partial(called, what.params)
                        for frame in frames:
                            own, output = call(own, frame)
                            jax.block_until_ready(output)
                    found[row].append(1e3 * (time.perf_counter() - start) / IN_SCAN)
            for row, ms in found.items():
                rows[row].append(statistics.median(ms[1:]))  # the first compiles
        for row, ms in rows.items():
            table.add_row(name if row == "called" else "", row, *(f"{x:.3f}" for x in ms))
    console.print(table)


def detection(console: Console, kernels: str) -> None:
    """Two frames of bytes a few levels apart, in turns, by thresholds that let little or nothing through, or none."""
    table, rng = Table(title="ms of detection, uint8"), np.random.default_rng(0)
    ways = [(0.0, "linf", 1), *((8.0 * cell, norm, cell) for norm in ("linf", "l2") for cell in (1, 4, 16))]
    table.add_column("size")
    for tau, norm, cell in ways:
        table.add_column(f"{norm}, cell {cell}" if tau else "exact", justify="right")
    for height, width in ((240, 320), *SIZES[1:]):
        frames = jnp.asarray(rng.integers(0, 250, (1, height, width, 3)), jnp.uint8)
        frames = frames, frames + jnp.asarray(rng.integers(0, 5, frames.shape), jnp.uint8)
        cells = []
        for tau, norm, cell in ways:
            inc = dj.incremental(lambda _, x: x, tau=tau, norm=norm, cell=cell, kernels=kernels)
            plan, fresh = inc.plan(None, frames[0][0]), jnp.zeros((1,), bool)
            found = jax.jit(functools.partial(detect_frame, plan, inc.options), donate_argnums=0)
            held, times = jnp.copy(plan.layouts[plan.frame].store(frames[0])), []
            for number in range(101):
                start = time.perf_counter()
                held, *_ = jax.block_until_ready(found(held, frames[number % 2], None, fresh))
                times.append(1e3 * (time.perf_counter() - start))
            cells.append(f"{statistics.median(times[1:]):.2f}")  # the first compiles
        table.add_row(f"{width}x{height}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("growth", "endurance", "memory", "compile", "calls", "detection"))
    parser.add_argument("--only", nargs="+", help=f"networks: of memory and compile among {', '.join(NETWORKS)}; of "
                        "calls any that `deltajax bench` knows")
    parser.add_argument("--kernels", choices=get_args(Kernels), default="xla", help="of the step")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the figure")
    options = parser.parse_args()
    console = Console()
    if options.part == "growth":
        growth(console, options.out, options.kernels)
    elif options.part == "endurance":
        endurance(console, options.kernels)
    elif options.part == "detection":
        detection(console, options.kernels)
    else:
        parts = {"memory": (memory, NETWORKS), "compile": (compilation, NETWORKS), "calls": (calls, CALLS)}
        part, names = parts[options.part]
        part(console, options.only or names, options.kernels)


if __name__ == "__main__":
    main()
