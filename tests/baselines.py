"""The step against what others need for the whole frame: jitted JAX, torch, ONNX Runtime, OpenVINO; all in one run.

    python tests/baselines.py --json baselines.json               # everything; half an hour, on a quiet machine
    python tests/baselines.py --only stack15 --density .005 .02 .08 --pattern square

Networks have random weights, the same for everybody, and frames of 512x384, batch 1; the step is exact (tau 0). Each
baseline uses all cores that the process may use. All are measured in turns, a few frames at a time: a pause lets the
threads of the one before go to sleep, a frame that is not counted wakes those of the next. Not counted either is what
makes of a frame what a library takes: torch and the others find float32 pictures, normalised and with the channels in
front, while the networks of `deltajax.models` take uint8 frames and normalise them themselves, in the time given.
Who does not give the outputs of ours is left out and named, and the exit status is 1.

Beside what the tests need: torch, torchvision, timm, onnxruntime, openvino. What is not there is left out and named.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json as json_format
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import originals
import tyro
from flax import linen as nn
from matplotlib.figure import Figure
from others import import_or_reason
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from weights import random_params

import deltajax as dj
from deltajax._bench import PATTERNS, STACK15_SIZE, Bench, Subject, subject
from deltajax.models._classifier import normalised
from deltajax.models._published import shapes
from deltajax.models.hrnet import HRNet
from deltajax.models.imagenet import MobileNetV2, ResNet
from deltajax.models.unet import UNet

NETWORKS: dict[str, nn.Module | None] = {
    "stack15": None,  # not of Flax
    "unet": UNet(),
    "resnet18": ResNet((2, 2, 2, 2), 1),
    "resnet50": ResNet((3, 4, 6, 3), 4),
    "mobilenetv2": MobileNetV2(),
    "hrnet-w32": HRNet(),
}
DENSITIES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.25, 0.3, 0.5, 1.0)
WARM = 3  # frames that nobody counts, at the start
TURN = 3  # frames that count in a turn, after one that does not
TURNS = 5
PAUSE = 0.05  # seconds; the threads of OpenMP spin for some ten milliseconds before they sleep
AGREED = 1e-3  # largest difference from the outputs of ours, by the largest of them
ROUGHLY = 0.3  # the same in bfloat16, of a file that is held to AGREED in float32
JAX = "JAX"
LIBRARIES = ("jax", "torch", "torchvision", "timm", "onnxruntime", "openvino")


# ---------------------------------------------------------------------------------------------------- what is found


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One library on the whole frame.

    Attributes:
        ms, p90: median and ninth decile, in milliseconds.
        difference: largest, from the dense network in JAX, by the largest output.
        exact: whether it computes in float32; only then it can be the best.
    """

    name: str
    ms: float
    p90: float
    difference: float
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    """The step at one density of one pattern; times in milliseconds, shares of the frame and of the dense FLOPs."""

    pattern: str
    asked: float
    changed: float
    ms: float
    p90: float
    issued: float
    useful: float
    difference: float


@dataclasses.dataclass(frozen=True)
class Found:
    """One network.

    Attributes:
        size: (height, width) of a frame.
        left_out: by baseline, why it was not measured.
        disagreed: those of them that gave other outputs than ours.
    """

    name: str
    size: tuple[int, int]
    cores: int
    gflop: float
    baselines: list[Baseline]
    rows: list[Row]
    left_out: dict[str, str]
    disagreed: list[str]

    @property
    def best(self) -> Baseline:
        return min((b for b in self.baselines if b.exact), key=lambda b: b.ms)

    @property
    def jax(self) -> Baseline:
        return next(b for b in self.baselines if b.name == JAX)

    def as_json(self) -> dict[str, Any]:
        rows = [
            dataclasses.asdict(r) | {"x_jax": self.jax.ms / r.ms, "x_best": self.best.ms / r.ms} for r in self.rows
        ]
        return dataclasses.asdict(self) | {"best": self.best.name, "rows": rows}


def table(found: Found) -> Table:
    """Baselines, then the step by pattern and density."""
    height, width = found.size
    title = (
        f"{found.name}, {found.gflop:.3g} GFLOP, {width}x{height}, batch 1, cores: {found.cores}; milliseconds; "
        f"best dense: {found.best.name}"
    )
    shown = Table(title=title)
    shown.add_column("", no_wrap=True)
    for heading in ("changed", "ms", "p90", "x dense JAX", "x best", "issued", "useful", "of ideal", "max diff"):
        shown.add_column(heading, justify="right", no_wrap=True)

    def times(ms: float, p90: float) -> list[str]:
        return [f"{ms:.2f}", f"{p90:.2f}", f"{found.jax.ms / ms:.2f}", f"{found.best.ms / ms:.2f}"]

    for b in found.baselines:
        shown.add_row(f"dense, {b.name}", "", *times(b.ms, b.p90), "", "", "", f"{b.difference:.1e}")
    shown.add_section()
    for r in found.rows:
        ideal = f"{r.issued * found.jax.ms / r.ms:.2f}" if r.issued else "-"
        shown.add_row(
            f"{r.pattern} {100 * r.asked:g} %", f"{100 * r.changed:.2f} %", *times(r.ms, r.p90),
            f"{100 * r.issued:.1f} %", f"{100 * r.useful:.1f} %", ideal, f"{r.difference:.1e}",
        )
    return shown


def crossover(founds: Sequence[Found], pattern: str) -> Figure:
    """How many times as fast as the best dense baseline, over the share of pixels that changed; a line a network."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for found in founds:
        rows = sorted((r for r in found.rows if r.pattern == pattern and r.changed > 0), key=lambda r: r.changed)
        label = f"{found.name} ({found.best.name} {found.best.ms:.0f} ms)"
        axes.plot([100 * r.changed for r in rows], [found.best.ms / r.ms for r in rows], "o-", ms=4, label=label)
    axes.axhline(1, color="0.2", linewidth=0.8)
    axes.annotate("best dense", (1, 1), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", color="0.2")
    axes.set(xscale="log", yscale="log", xlabel="pixels that changed, %", ylabel="times as fast as the best dense",
             title=f"{pattern}, exact, {founds[0].size[1]}x{founds[0].size[0]}, cores: {founds[0].cores}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize="small")
    return figure


# ---------------------------------------------------------------------------------------------------- who is measured


class Contestant:
    """One that is measured; `ms` are the times that count. Only `run` is timed, and it is done when it returns."""

    def __init__(self):
        self.ms: list[float] = []

    def frame(self) -> Any:
        """The next frame, as `run` takes it."""
        raise NotImplementedError

    def run(self, frame: Any) -> Any:
        raise NotImplementedError

    def note(self, frame: Any, output: Any) -> None:
        """Called after each frame that counts."""

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def p90(self) -> float:
        return float(np.quantile(self.ms, 0.9))


class Dense(Contestant):
    """A library on the whole frame.

    Args:
        name: of the baseline.
        frames: as `call` takes them.
        call: a frame to the output.
        output: what `call` returned, to what ours returns, in numpy.
        exact: whether it computes in float32.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Any],
        call: Callable[[Any], Any],
        output: Callable[[Any], np.ndarray],
        exact: bool = True,
    ):
        super().__init__()
        self.name, self.frames, self.run, self.output, self.exact = name, frames, call, output, exact
        self.endless = itertools.cycle(frames)

    def frame(self) -> Any:
        return next(self.endless)


class Step(Contestant):
    """The step of `bench` at one density; those of one network share one cache, and so the held frame."""

    def __init__(self, bench: Bench, pattern: str, density: float):
        super().__init__()
        self.bench, self.pattern, self.density = bench, pattern, density
        self.frames = PATTERNS[pattern](bench.what.size, bench.what.dtype, density)
        self.shares: list[list[float]] = []
        self.last: Any = None

    def frame(self) -> jax.Array:
        return jax.block_until_ready(jnp.asarray(next(self.frames)))

    def run(self, frame: jax.Array) -> Any:
        output, self.bench.cache = self.bench.step(self.bench.what.params, self.bench.cache, frame)
        return jax.block_until_ready((output, self.bench.cache))[0]

    def note(self, frame: jax.Array, output: Any) -> None:
        s = self.bench.stats(self.bench.cache)
        self.shares.append([float(x) for x in (s.frame_density, s.flops_issued, s.flops_useful, s.flops_dense)])
        self.last = frame, output

    def row(self) -> Row:
        frame, output = self.last
        expected = np.asarray(self.bench.dense(self.bench.what.params, frame))
        changed, issued, useful, total = (statistics.median(column) for column in zip(*self.shares, strict=True))
        return Row(self.pattern, self.density, changed, self.median, self.p90, issued / total, useful / total,
                   difference(expected, np.asarray(output)))


def in_turns(contestants: Sequence[Contestant], turns: int, tick: Callable[[], None] = lambda: None) -> None:
    """Measure TURN frames of each, `turns` times over."""
    for contestant in contestants:
        for _ in range(WARM):
            contestant.run(contestant.frame())
    for _ in range(turns):
        for contestant in contestants:
            first, *others = [contestant.frame() for _ in range(1 + TURN)]
            time.sleep(PAUSE)
            contestant.run(first)  # wakes the threads; and the cache may hold another density's frame
            for frame in others:
                start = time.perf_counter()
                output = contestant.run(frame)
                contestant.ms.append(1e3 * (time.perf_counter() - start))
                contestant.note(frame, output)
            tick()


def difference(expected: np.ndarray, output: np.ndarray) -> float:
    """Largest, by the largest expected value; infinite if the shapes or a single value say nothing."""
    if expected.shape != output.shape or not np.isfinite(output).all():
        return float("inf")
    a, b = expected.astype(np.float64), output.astype(np.float64)
    return float(np.abs(a - b).max() / np.abs(a).max())


# ---------------------------------------------------------------------------------------------------- the baselines


def network(name: str) -> Subject:
    """`name` of NETWORKS, with random weights; logits are what it returns."""
    flax = NETWORKS[name]
    if flax is None:
        return subject(name, None)
    return Subject(name, flax.apply, random_params(shapes(flax, (224, 224))), STACK15_SIZE, np.dtype(np.uint8))


def pictures(name: str, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the network makes of frames `[h, w, 3]` first, as others take it: float32 `[1, 3, h, w]`."""
    first = {"stack15": np.asarray, "unet": lambda frame: frame.astype(np.float32) / 255}
    made = [np.asarray(first.get(name, lambda frame: normalised(frame)[0])(frame)) for frame in frames]
    return [np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32) for x in made]


def as_ours(output: Any) -> np.ndarray:
    """`[1, classes]` to `[classes]`, `[1, c, h, w]` to `[h, w, c]`; a copy, for a library may use its memory again."""
    return np.moveaxis(np.asarray(output)[0], 0, -1).copy()


def dense_baselines(what: Subject, cores: int, folder: Path) -> Iterator[Dense | tuple[str, str]]:
    """Those of other libraries, and for each that cannot be had its name and the reason.

    Args:
        what: the network.
        cores: threads for each of them.
        folder: for the ONNX file.
    """
    source = PATTERNS["square"](what.size, what.dtype, 1.0)
    frames = pictures(what.name, [next(source) for _ in range(4)])
    module = originals.torch_module(what.name, what.params)
    path = folder / f"{what.name}.onnx"
    no_file = originals.write_onnx(what.name, what.params, module, what.size, path)
    yield from torch_baselines(module, frames, cores)
    for name, baselines in (("ONNX Runtime", onnxruntime_baselines), ("OpenVINO", openvino_baselines)):
        if no_file is not None:
            yield name, no_file
        else:
            yield from baselines(name, path, frames, cores)


def torch_baselines(module: Any, frames: Sequence[np.ndarray], cores: int) -> Iterator[Dense | tuple[str, str]]:
    """Eager and compiled, both with the channels last in memory."""
    if isinstance(module, str):
        yield "torch", module
        return
    import torch

    torch.set_num_threads(cores)
    module = module.to(memory_format=torch.channels_last)
    tensors = [torch.from_numpy(x).contiguous(memory_format=torch.channels_last) for x in frames]
    # Frozen, weights are constants: batch norms are folded and kernels packed once.
    compiled = torch.compile(module, options={"freezing": True})
    for name, call in (("torch", module), ("torch.compile", compiled)):
        run = torch.inference_mode()(call.__call__)
        try:
            run(tensors[0])
        except Exception as error:  # the compiler's or its toolchain's, whatever their type
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            yield Dense(name, tensors, run, as_ours)


def onnxruntime_baselines(
    name: str, path: Path, frames: Sequence[np.ndarray], cores: int
) -> Iterator[Dense | tuple[str, str]]:
    onnxruntime = import_or_reason("onnxruntime")
    if isinstance(onnxruntime, str):
        yield name, onnxruntime
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    # Its threads spin within a run, as they do by default, and not after it, in the time of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    frame = session.get_inputs()[0].name
    yield Dense(name, frames, lambda x: session.run(None, {frame: x}), lambda outputs: as_ours(outputs[0]))


def openvino_baselines(
    name: str, path: Path, frames: Sequence[np.ndarray], cores: int
) -> Iterator[Dense | tuple[str, str]]:
    """In float32, and in bfloat16 where the processor has it."""
    openvino = import_or_reason("openvino")
    if isinstance(openvino, str):
        yield name, openvino
        return
    for kind, exact in (("f32", True), ("bf16", False)):
        hints = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if taken != kind:
            yield f"{name} {kind}", f"it computes in {taken} on this processor"
            continue
        request = compiled.create_infer_request()

        def call(x, request=request):
            return request.infer({0: x}, share_inputs=True, share_outputs=True)

        yield Dense(f"{name} {kind}", frames, call, lambda outputs: as_ours(outputs[0]), exact)


# ---------------------------------------------------------------------------------------------------- the run


def measure(
    what: Subject,
    patterns: Sequence[str],
    densities: Sequence[float],
    turns: int = TURNS,
    others: Callable[[], Iterator[Dense | tuple[str, str]]] = lambda: iter(()),
    tick: Callable[[int], Callable[[], None]] = lambda total: lambda: None,
) -> Found:
    """One network: dense in JAX, `others` and the step at each density of each pattern, all in turns.

    Args:
        what: the network.
        patterns: names of PATTERNS.
        densities: shares of the frame, in 0..1.
        turns: how many, of TURN frames.
        others: makes the baselines, or says why there are none.
        tick: of the number of turns in all to what is called after each.
    """
    bench = Bench(what, dj.incremental(what.fn))
    source = PATTERNS["square"](what.size, what.dtype, 1.0)
    frames = [jnp.asarray(next(source)) for _ in range(4)]
    ours = Dense(JAX, frames, lambda frame: jax.block_until_ready(bench.dense(what.params, frame)), np.asarray)
    expected = np.asarray(bench.dense(what.params, frames[0]))
    dense, left_out, disagreed, differences = [ours], {}, [], [0.0]
    for other in others():
        if isinstance(other, tuple):
            left_out[other[0]] = other[1]
            continue
        apart = difference(expected, other.output(other.run(other.frames[0])))
        if apart <= (AGREED if other.exact else ROUGHLY):
            dense.append(other)
            differences.append(apart)
        else:
            left_out[other.name] = f"its outputs differ from those of ours by {apart:.1e} of the largest"
            disagreed.append(other.name)
    steps = [Step(bench, pattern, density) for pattern in patterns for density in densities]
    in_turns([*dense, *steps], turns, tick(turns * (len(dense) + len(steps))))
    baselines = [Baseline(d.name, d.median, d.p90, apart, d.exact) for d, apart in zip(dense, differences, strict=True)]
    gflop = float(bench.stats(bench.cache).flops_dense) / 1e9
    return Found(what.name, what.size, cores(), gflop, baselines, [step.row() for step in steps], left_out, disagreed)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    there = {}
    for name in LIBRARIES:
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            there[name] = "not installed"
    return there


def main(
    only: tuple[str, ...] = (),
    density: tuple[float, ...] = DENSITIES,
    pattern: tuple[Literal["square", "scattered"], ...] = ("square", "scattered"),
    json: Path | None = None,
    out: Path = Path(),
    turns: int = TURNS,
) -> int:
    """Measure, print a table for each network, write crossover-PATTERN.png.

    Args:
        only: names of networks; all if there are none.
        density: shares of the frame that change, in 0..1.
        pattern: a square of noise that moves, or 16x16 blocks at random places.
        json: file for all that was found, written anew after each network.
        out: folder of the figures.
        turns: how many of three frames each.
    """
    unknown = [name for name in only if name not in NETWORKS]
    if unknown:
        raise ValueError(f"`only` names {unknown[0]!r}; the networks are {', '.join(NETWORKS)}")
    outside = [share for share in density if not 0 <= share <= 1]
    if outside:
        raise ValueError(f"`density` (={outside[0]}) must be a share of the frame, in 0..1")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
    founds: list[Found] = []
    for name in only or NETWORKS:
        with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)

            def tick(total: int, bar=bar, task=task) -> Callable[[], None]:
                bar.update(task, total=total)
                return lambda: bar.advance(task)

            what = network(name)

            def others(what=what, folder=folder) -> Iterator[Dense | tuple[str, str]]:
                return dense_baselines(what, cores(), Path(folder))

            founds.append(measure(what, pattern, density, turns, others, tick))
        console.print(table(founds[-1]))
        for baseline, reason in founds[-1].left_out.items():
            console.print(f"left out: {baseline}: {reason}", highlight=False, soft_wrap=True)
        if json is not None:
            everything = {"versions": versions(), "networks": [found.as_json() for found in founds]}
            json.write_text(json_format.dumps(everything, indent=1))
        jax.clear_caches()
    for name in pattern:
        path = out / f"crossover-{name}.png"
        crossover(founds, name).savefig(path, dpi=150)
        console.print(f"wrote {path}", highlight=False)
    return 1 if any(found.disagreed for found in founds) else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
