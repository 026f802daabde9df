"""The step on an accelerator: one and many streams, float32 and bfloat16, against dense JAX and torch.

    python tests/accelerators.py --json gpu.json
    python tests/accelerators.py --only stack15 resnet50 --streams 16 --density .02 --dtype f32
    python tests/accelerators.py --workers 12 --compile-only  # side by side, into JAX's persistent cache
    python tests/accelerators.py --workers 3                  # one is measured while the next ones are made ready
    python tests/accelerators.py --scan                       # frames in a `lax.scan`, both of the step and of JAX

Networks, sizes and weights are those of `baselines`; the step is exact (tau 0), and each stream has a square of noise
of its own that moves over a background of its own. Streams are mapped: `jax.vmap` of the network and of the step, a
batch for torch. float32 means what each library makes of it by default in convolutions, on an NVIDIA GPU TF32; in
bfloat16 params are, and the input of every module is cast. torch runs eagerly with the channels last, cuDNN's fastest
algorithms, from a CUDA graph. A time is that of FRAMES frames given one after the other, waited for at the end, by
their number; the median of all rounds, all in turns. Frames are on the device before. Of several workers only one
measures at a time; but where they compile side by side XLA, which tries algorithms out, may choose worse ones.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # there are torch and other workers

import contextlib
import dataclasses
import itertools
import json as json_format
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import originals
import tyro
from baselines import NETWORKS, network
from flax import linen as nn
from jaxtyping import Array, PyTree
from others import import_or_reason
from rich.console import Console
from rich.table import Table

import deltajax as dj
from deltajax._bench import STACK15_SIZE, Subject

FRAMES = 8
DENSITIES = (0.0, 0.005, 0.02, 0.08, 0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One density; milliseconds for a frame of all streams, shares of the dense FLOPs; `difference` is from dense."""

    density: float
    ms: float
    issued: float
    useful: float
    difference: float


@dataclasses.dataclass(frozen=True)
class Found:
    """One network in one precision with so many streams.

    Attributes:
        scan: whether frames were in a `lax.scan`.
        dense_ms, torch_ms: milliseconds for a frame of all streams; a reason where torch has none.
        compile_seconds: of the step.
    """

    name: str
    dtype: str
    streams: int
    scan: bool
    device: str
    gflop: float
    dense_ms: float
    torch_ms: float | str
    compile_seconds: float
    rows: list[Row]

    @property
    def best_ms(self) -> float:
        return self.dense_ms if isinstance(self.torch_ms, str) else min(self.dense_ms, self.torch_ms)


def in_bfloat16(what: Subject) -> Subject:
    """The same with bfloat16 params and, of Flax modules, inputs."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, what.params)
    module = NETWORKS[what.name]
    if module is None:
        return dataclasses.replace(what, params=params, dtype=np.dtype(jnp.bfloat16))

    def narrow(x: Any) -> Any:
        return x.astype(jnp.bfloat16) if getattr(x, "dtype", None) == jnp.float32 else x

    def cast(call, args, kwargs, context):
        return call(*jax.tree.map(narrow, args), **kwargs)

    def fn(params: PyTree, frame: Array) -> PyTree:
        with nn.intercept_methods(cast):
            return module.apply(params, frame)

    return dataclasses.replace(what, fn=fn, params=params)


def clip(streams: int, what: Subject, density: float, seed: int = 0) -> list[Array]:
    """FRAMES frames `[streams, h, w, 3]`; each stream is `moving_square` of `deltajax bench`, made on the device."""
    height, width = what.size
    side = round((density * height * width) ** 0.5)
    rows, cols = (height, width) if density == 1 else (min(side, height), min(side, width))

    def noise(key: Array, *shape: int) -> Array:
        x = jax.random.uniform(key, (streams, *shape, 3))
        return (x * 255).astype(jnp.uint8) if what.dtype == np.uint8 else x.astype(what.dtype)

    @jax.jit
    def frame(background: Array, key: Array, number: Array) -> Array:
        if not side:
            return background
        at = number + 5 * jnp.arange(streams)  # each is elsewhere
        top, left = (4 * at) % (height - rows + 1), (6 * at) % (width - cols + 1)
        return jax.vmap(lambda x, new, y, x0: jax.lax.dynamic_update_slice(x, new, (y, x0, 0)))(
            background, noise(key, rows, cols), top, left)

    keys = jax.random.split(jax.random.key(seed), 1 + FRAMES)
    background = noise(keys[0], height, width)
    return [jax.block_until_ready(frame(background, key, jnp.int32(n))) for n, key in enumerate(keys[1:])]


def mapped(
    what: Subject, streams: int, inc: dj.Incremental, frames: int | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """The step of all streams, ``(params, fixed, state, frame) -> (outputs, state)``, and its arguments' shapes.

    Args:
        frames: so many in a `lax.scan`: there are as many outputs.
    """

    def step(params, fixed, state, frame):
        output, cache, _ = inc.step(params, {"fixed": fixed, **state}, None, frame)
        return output, {name: part for name, part in cache.items() if name != "fixed"}

    def wide(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((streams, *x.shape), x.dtype)

    frame = jax.ShapeDtypeStruct((*what.size, 3), what.dtype)
    cache = jax.eval_shape(lambda params: inc.init(params, frame)[0], what.params)
    state = {name: jax.tree.map(wide, part) for name, part in cache.items() if name != "fixed"}
    params = jax.eval_shape(lambda params: params, what.params)
    call, given = jax.vmap(step, (None, None, 0, 0)), wide(frame)
    if frames is None:
        return jax.jit(call, donate_argnums=2), (params, cache["fixed"], state, given)

    def calls(params, fixed, state, given):
        state, outputs = jax.lax.scan(lambda state, frame: call(params, fixed, state, frame)[::-1], state, given)
        return outputs, state

    given = jax.ShapeDtypeStruct((frames, *given.shape), given.dtype)
    return jax.jit(calls, donate_argnums=2), (params, cache["fixed"], state, given)


class Steps:
    """The mapped step, compiled, with its cache."""

    def __init__(self, what: Subject, streams: int, inc: dj.Incremental, traced: Any):
        self.params = what.params
        start = time.perf_counter()
        self.step = traced.compile()
        self.compile_seconds = time.perf_counter() - start

        @jax.jit
        def fresh(params):
            cache, _ = inc.init(params, jax.ShapeDtypeStruct((*what.size, 3), what.dtype))
            return {
                name: part if name == "fixed" else jax.tree.map(lambda x: jnp.repeat(x[None], streams, 0), part)
                for name, part in cache.items()
            }

        self.cache = fresh(what.params)
        axes = {name: None if name == "fixed" else 0 for name in self.cache}
        self._stats = jax.jit(jax.vmap(inc.stats, (axes,))).lower(self.cache).compile()

    def _split(self) -> tuple[Any, dict[str, Any]]:
        return self.cache["fixed"], {name: part for name, part in self.cache.items() if name != "fixed"}

    def __call__(self, frame: Array) -> Array:
        fixed, state = self._split()
        output, state = self.step(self.params, fixed, state, frame)
        self.cache = {"fixed": fixed, **state}
        return output

    def shares(self) -> tuple[float, float, float]:
        """FLOPs issued and useful in the last frame, of the dense ones; and those, of all streams."""
        stats = self._stats(self.cache)
        issued, useful, dense = (float(jnp.sum(x)) for x in (stats.flops_issued, stats.flops_useful, stats.flops_dense))
        return issued / dense, useful / dense, dense


def torch_module(what: Subject, dtype: str) -> Any | str:
    """The network in torch on the GPU; or why there is none."""
    torch = import_or_reason("torch")
    if isinstance(torch, str):
        return torch
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    params = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, what.params)
    module = originals.torch_module(what.name, jax.tree.map(np.asarray, params))
    if isinstance(module, str):
        return module
    kind = torch.float32 if dtype == "f32" else torch.bfloat16
    return module.to("cuda", kind, memory_format=torch.channels_last)


def torch_call(module: Any, what: Subject, streams: int) -> Callable[[], None]:
    """Enqueues one frame of all streams."""
    import torch

    torch.backends.cudnn.benchmark = True
    kind = next(module.parameters()).dtype
    given = torch.rand(streams, 3, *what.size, device="cuda", dtype=kind).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch's manual has it: algorithms are chosen before the capture
            for _ in range(3):
                module(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(given)
    return graph.replay


_device: Any = contextlib.nullcontext()  # the lock of all workers


def _begin(lock: Any) -> None:
    """A worker starts."""
    global _device
    _device = lock


@dataclasses.dataclass(frozen=True)
class Job:
    """One network in one precision with so many streams, to be measured or compiled.

    Attributes:
        options: of `deltajax.incremental`.
    """

    name: str
    dtype: Literal["f32", "bf16"]
    streams: int
    size: tuple[int, int]
    densities: tuple[float, ...]
    options: dict[str, Any]
    scan: bool
    rounds: int

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}, {self.streams} streams" + ", in a scan" * self.scan

    def subject(self) -> Subject:
        what = network(self.name, self.size)
        return what if self.dtype == "f32" else in_bfloat16(what)

    def frames(self, what: Subject, density: float) -> list[Array]:
        """What is given in one call after the other."""
        frames = clip(self.streams, what, density)
        return [jnp.stack(frames)] if self.scan else frames

    def lowered(self, what: Subject, inc: dj.Incremental) -> tuple[Any, Any]:
        """The mapped step and the network in JAX, traced and not yet compiled."""
        step, arguments = mapped(what, self.streams, inc, FRAMES if self.scan else None)
        dense = jax.vmap(what.fn, (None, 0))

        def reference(params, given):
            return jax.lax.map(lambda frame: dense(params, frame), given) if self.scan else dense(params, given)

        return step.lower(*arguments), jax.jit(reference).lower(arguments[0], arguments[-1])


def compiled(job: Job) -> str:
    """Step and network into JAX's persistent cache; how long that took."""
    what = job.subject()
    traced = job.lowered(what, dj.incremental(what.fn, **job.options))
    start = time.perf_counter()
    for one in traced:
        one.compile()
    return f"compiled in {time.perf_counter() - start:.1f} s"


def measured(job: Job) -> Found | str:
    """What was found; or why nothing was: out of memory, say."""
    jax.clear_caches()  # what the job before has left
    try:
        return _measured(job)
    except jax.errors.JaxRuntimeError as error:  # the others are still worth having
        return str(error).splitlines()[0]


def _measured(job: Job) -> Found:
    what, streams = job.subject(), job.streams
    inc = dj.incremental(what.fn, **job.options)
    traced_step, traced_dense = job.lowered(what, inc)
    steps = Steps(what, streams, inc, traced_step)
    clips = {density: job.frames(what, density) for density in job.densities}
    whole = job.frames(what, 1.0)
    module = torch_module(what, job.dtype)
    reference = traced_dense.compile()

    def timed(call: Callable[[Array], Any], frames: Sequence[Array]) -> float:
        for frame in frames[-2:]:
            wait(call(frame))
        start, result = time.perf_counter(), None
        for frame in frames:
            result = call(frame)
        wait(result)
        return 1e3 * (time.perf_counter() - start) / FRAMES

    def wait(result: Any) -> None:
        jax.block_until_ready(result)
        if not isinstance(module, str):
            import torch

            torch.cuda.synchronize()

    dense_ms, torch_ms, steps_ms = [], [], {density: [] for density in job.densities}
    found: dict[float, tuple[float, float, float]] = {}
    with _device:
        torchs = None if isinstance(module, str) else torch_call(module, what, streams)
        for turn in range(1 + job.rounds):  # the first does not count
            dense = timed(lambda frame: reference(what.params, frame), whole)
            other = None if torchs is None else timed(lambda _: torchs(), [whole[0]] * FRAMES)
            times = {density: timed(steps, frames) for density, frames in clips.items()}
            if turn:
                dense_ms.append(dense)
                torch_ms += [] if other is None else [other]
                for density, ms in times.items():
                    steps_ms[density].append(ms)
    for density, frames in clips.items():
        for frame in frames[:2]:
            output, expected = steps(frame), reference(what.params, frame)
        issued, useful, flops = steps.shares()
        found[density] = issued, useful, difference(expected, output)
    rows = [Row(density, statistics.median(steps_ms[density]), *found[density]) for density in job.densities]
    return Found(what.name, job.dtype, streams, job.scan, jax.devices()[0].device_kind, flops / 1e9,
                 statistics.median(dense_ms), module if isinstance(module, str) else statistics.median(torch_ms),
                 steps.compile_seconds, rows)


def difference(expected: Array, output: Array) -> float:
    """Largest, by the largest expected value."""
    a, b = expected.astype(jnp.float32), output.astype(jnp.float32)
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)))


def table(founds: Sequence[Found]) -> Table:
    """Milliseconds for a frame of all streams; `x best` is against the faster of dense JAX and torch."""
    shown = Table(title=f"{founds[0].device}; milliseconds for a frame of all streams")
    for heading in ("network", "streams", "JAX", "torch", "square", "step", "x JAX", "x best", "issued", "useful",
                    "difference"):
        shown.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for f in founds:
        torchs = "-" if isinstance(f.torch_ms, str) else f"{f.torch_ms:.3f}"
        network = f"{f.name} {f.dtype}" + ", scan" * f.scan
        for number, r in enumerate(f.rows):
            first = (network, str(f.streams), f"{f.dense_ms:.3f}", torchs) if not number else ("",) * 4
            shown.add_row(*first, f"{100 * r.density:g} %", f"{r.ms:.3f}", f"{f.dense_ms / r.ms:.2f}",
                          f"{f.best_ms / r.ms:.2f}", f"{100 * r.issued:.1f} %", f"{100 * r.useful:.1f} %",
                          f"{r.difference:.1e}")
        shown.add_section()
    return shown


def main(
    only: tuple[str, ...] = ("stack15", "resnet50", "unet"),
    streams: tuple[int, ...] = (1, 16, 64),
    dtype: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16"),
    density: tuple[float, ...] = DENSITIES,
    size: tuple[int, int] = STACK15_SIZE,
    tile: int | None = None,
    dense_share: float | None = None,
    platform: Literal["cpu", "gpu", "tpu"] | None = None,
    scan: bool = False,
    rounds: int = 5,
    workers: int = 1,
    compile_only: bool = False,
    json: Path | None = None,
) -> int:
    """Measure and print; a combination that fails (out of memory, say) is named, and the exit status is 1.

    Args:
        only: names of networks.
        streams: how many; each number is a measurement.
        dtype: precisions.
        density: shares of the frame that the square covers, in 0..1.
        size: (height, width) of a frame.
        tile, dense_share, platform: of `deltajax.incremental`.
        scan: give frames in a `lax.scan`.
        rounds: of all that is measured, in turns; one more does not count.
        workers: processes side by side.
        compile_only: into JAX's persistent cache; nothing is measured.
        json: file for all that was found, written anew after each measurement.
    """
    unknown = [name for name in only if name not in NETWORKS]
    if unknown:
        raise ValueError(f"`only` names {unknown[0]!r}; the networks are {', '.join(NETWORKS)}")
    given = {"tile": tile, "dense_share": dense_share, "platform": platform}
    options = {name: value for name, value in given.items() if value is not None}
    jobs = [Job(*which, size, density, options, scan, rounds) for which in itertools.product(only, dtype, streams)]
    console = Console(width=None if sys.stdout.isatty() else 140)
    founds: list[Found] = []
    failed = 0
    with _run(compiled if compile_only else measured, jobs, workers) as results:
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                failed += not compile_only
                console.print(f"{job}: {result}", highlight=False)
                continue
            founds.append(result)
            console.print(table([result]))
            if json is not None:
                json.write_text(json_format.dumps([dataclasses.asdict(found) for found in founds], indent=1))
    if founds:
        console.print(table(founds))
    return 1 if failed else 0


@contextlib.contextmanager
def _run(call: Callable[[Job], Found | str], jobs: Sequence[Job], workers: int) -> Iterator[Iterator[Found | str]]:
    """The results, in order, as they come."""
    if workers == 1:
        yield map(call, jobs)
        return
    context = multiprocessing.get_context("spawn")
    # A process for each job: what it leaves on the device goes with it.
    with ProcessPoolExecutor(workers, context, _begin, (context.Lock(),), max_tasks_per_child=1) as pool:
        yield pool.map(call, jobs)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
