"""The step against what others need for the whole frame: jitted JAX, torch, ONNX Runtime, OpenVINO; all in one run.

    python tests/baselines.py --json baselines.json               # everything; half an hour, on a quiet machine
    python tests/baselines.py --only stack15 --density .005 .02 .08 --pattern square
    python tests/baselines.py --only unet hrnet-w32 --frames 6    # heavy ones in less time
    python tests/baselines.py --read baselines.json               # tables and figure again, from the file

Networks have random weights, the same for everybody, and frames of 512x384, batch 1; the step is exact (tau 0). Each
baseline uses all cores that the process may use. All are measured in turns, a few frames at a time: a pause lets the
threads of the one before go to sleep, a frame that is not counted wakes those of the next. Not counted either is what
makes of a frame what a library takes: torch and the others find float32 pictures, normalised and with the channels in
front, while the networks of `deltajax.models` take uint8 frames and normalise them themselves, in the time given.
Who does not give the outputs of ours is left out and named, and the exit status is 1. Only what computes in float32
can be the best dense baseline, but of steps in bfloat16, which are compared with that as well: bfloat16 and int8
stand beside it with their difference. The int8 graph is ONNX Runtime's static quantisation (QDQ, per channel),
calibrated on the frames that it is measured on.

Beside what the tests need: torch, torchvision, timm, onnxruntime, openvino. What is not there is left out and named.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import itertools
import json as json_format
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import originals
import tyro
from flax import linen as nn
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from others import import_or_reason
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from weights import random_params

import deltajax as dj
from deltajax._bench import PATTERNS, STACK15_SIZE, Bench, Subject, subject
from deltajax._incremental import Kernels
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
DENSITIES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)
WARM = 2  # frames that nobody counts, at the start
TURN = 3  # frames that count in a turn, after one that does not
FRAMES = 15
PAUSE = 0.05  # seconds; the threads of OpenMP spin for some ten milliseconds before they sleep
# Largest difference from the outputs of ours, by the largest of them. What bfloat16 and int8 lose is a finding: their
# graphs are held to float32's figure first.
AGREED = {"f32": 1e-3, "bf16": 0.3, "int8": 2.0}
JAX = "JAX"
LIBRARIES = ("jax", "torch", "torchvision", "timm", "onnxruntime", "openvino")


# ---------------------------------------------------------------------------------------------------- what is found


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One library on the whole frame.

    Attributes:
        ms, p90: median and ninth decile, in milliseconds.
        difference: largest, from the dense network in JAX, by the largest output.
        precision: a key of AGREED; only in f32 it can be the best.
    """

    name: str
    ms: float
    p90: float
    difference: float
    precision: str = "f32"


@dataclasses.dataclass(frozen=True)
class Row:
    """The step at one density of one pattern; times in milliseconds, shares of the frame and of the dense FLOPs.

    Attributes:
        kernels: what `incremental` was given; nothing if empty.
    """

    pattern: str
    asked: float
    changed: float
    ms: float
    p90: float
    issued: float
    useful: float
    difference: float
    kernels: str = ""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it may be compared with: of a step in bfloat16 that as well."""
        return ("f32", "bf16") if self.kernels == "native-bf16" else ("f32",)

    @property
    def line(self) -> str:
        """What the rows of one line of the figure have in common."""
        return f"{self.pattern}, {self.kernels}" if self.kernels else self.pattern


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
        return self.best_in("f32")

    def best_in(self, *precisions: str) -> Baseline:
        """The fastest of those that compute in one of these."""
        return min((b for b in self.baselines if b.precision in precisions), key=lambda b: b.ms)

    @property
    def jax(self) -> Baseline:
        return next(b for b in self.baselines if b.name == JAX)

    def as_json(self) -> dict[str, Any]:
        rows = [
            dataclasses.asdict(r) | {"x_jax": self.jax.ms / r.ms, "x_best": self.best_in(*r.precisions).ms / r.ms}
            for r in self.rows
        ]
        return dataclasses.asdict(self) | {"best": self.best.name, "rows": rows}

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> Found:
        """The inverse of `as_json`; what follows from the rest is left."""
        kept = {field.name: made[field.name] for field in dataclasses.fields(cls)}
        rows = [Row(**{field.name: row[field.name] for field in dataclasses.fields(Row)}) for row in made["rows"]]
        baselines = [Baseline(**baseline) for baseline in made["baselines"]]
        return cls(**kept | {"size": tuple(made["size"]), "baselines": baselines, "rows": rows})


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

    def times(ms: float, p90: float, best: Baseline = found.best) -> list[str]:
        return [f"{ms:.2f}", f"{p90:.2f}", f"{found.jax.ms / ms:.2f}", f"{best.ms / ms:.2f}"]

    for b in found.baselines:
        shown.add_row(f"dense, {b.name}", "", *times(b.ms, b.p90), "", "", "", f"{b.difference:.1e}")
    shown.add_section()
    for r in found.rows:
        ideal = f"{r.issued * found.jax.ms / r.ms:.2f}" if r.issued else "-"
        shown.add_row(
            f"{r.line} {100 * r.asked:g} %", f"{100 * r.changed:.2f} %",
            *times(r.ms, r.p90, found.best_in(*r.precisions)),
            f"{100 * r.issued:.1f} %", f"{100 * r.useful:.1f} %", ideal, f"{r.difference:.1e}",
        )
    return shown


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """Where a line over a logarithmic axis first comes up to 1; None if it does not, or lies above from the start.

    Args:
        points: (x, y), x growing and above 0.
    """
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if y < 1 <= next_y:
            return math.exp(math.log(x) + (1 - y) / (next_y - y) * math.log(next_x / x))
    return None


def sweep(founds: Sequence[Found]) -> Figure:
    """Time over the best dense baseline's time, over the share of pixels that changed; a panel for each network.

    A cross, with its share, is where a line comes up to the best dense baseline: what changes less is worth it.
    """
    columns = min(3, len(founds))
    rows = -(-len(founds) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.3, 2.9 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, found in zip(panels, founds, strict=False):
        panel(axes, found)
    for axes in panels[len(founds):]:
        axes.remove()
    named: dict[str, Any] = {}
    for axes in panels[: len(founds)]:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, line)
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=6, frameon=False, fontsize="small")
    figure.supxlabel("pixels that changed, %", fontsize="medium")
    figure.supylabel("time over the best dense time", fontsize="medium")
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def panel(axes: Any, found: Found) -> None:
    """One network."""
    for level, name, color in ((1, "best dense", "0.2"), (found.jax.ms / found.best.ms, "dense JAX", "0.6")):
        axes.axhline(level, color=color, linewidth=0.9, linestyle="-" if level == 1 else "--", label=name)
    for line in dict.fromkeys(row.line for row in found.rows):
        moving = sorted((r for r in found.rows if r.line == line and r.changed > 0), key=lambda r: r.changed)
        points = [(100 * r.changed, r.ms / found.best.ms) for r in moving]
        (drawn,) = axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1.2, label=line)
        if (share := crossing(points)) is not None:
            axes.plot([share], [1], "x", color=drawn.get_color(), markersize=8, markeredgewidth=2)
            axes.annotate(f"{share:.2g} %", (share, 1), (0, 8), textcoords="offset points", color=drawn.get_color(),
                          fontsize="small", ha="center")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_title(f"{found.name} ({found.best.name} {found.best.ms:.0f} ms)", fontsize="medium")
    axes.grid(alpha=0.25)


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
        precision: that it computes in, a key of AGREED.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Any],
        call: Callable[[Any], Any],
        output: Callable[[Any], np.ndarray],
        precision: str = "f32",
    ):
        super().__init__()
        self.name, self.frames, self.run, self.output, self.precision = name, frames, call, output, precision
        self.endless = itertools.cycle(frames)

    def frame(self) -> Any:
        return next(self.endless)


class Step(Contestant):
    """The step of `bench` at one density; those of one network share one cache, and so the held frame."""

    def __init__(self, bench: Bench, pattern: str, density: float, kernels: str = ""):
        super().__init__()
        self.bench, self.pattern, self.density, self.kernels = bench, pattern, density, kernels
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
                   difference(expected, np.asarray(output)), self.kernels)


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


def network(name: str, size: tuple[int, int] = STACK15_SIZE) -> Subject:
    """`name` of NETWORKS, with random weights, for frames of (height, width); logits are what it returns."""
    flax = NETWORKS[name]
    if flax is None:
        return subject(name, None, size)
    return Subject(name, flax.apply, random_params(shapes(flax, (224, 224))), size, np.dtype(np.uint8))


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
    if no_file is not None:
        yield from ((name, no_file) for name in ("ONNX Runtime", "OpenVINO"))
        return
    files = {"f32": path, "int8": path.with_suffix(".int8.onnx")}
    no_int8 = originals.write_int8(path, frames, files["int8"])
    yield from onnxruntime_baselines(files, frames, cores)
    yield from openvino_baselines(files, frames, cores)
    if no_int8 is not None:
        yield "int8", no_int8


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
    files: Mapping[str, Path], frames: Sequence[np.ndarray], cores: int
) -> Iterator[Dense | tuple[str, str]]:
    """In each precision that `files` has a file of."""
    onnxruntime = import_or_reason("onnxruntime")
    if isinstance(onnxruntime, str):
        yield "ONNX Runtime", onnxruntime
        return
    for precision, path in files.items():
        if not path.exists():
            continue
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        # Its threads spin within a run, as they do by default, and not after it, in the time of the others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def call(x, session=session):
            return session.run(None, {session.get_inputs()[0].name: x})

        name = "ONNX Runtime" if precision == "f32" else f"ONNX Runtime {precision}"
        yield Dense(name, frames, call, lambda outputs: as_ours(outputs[0]), precision)


def openvino_baselines(
    files: Mapping[str, Path], frames: Sequence[np.ndarray], cores: int
) -> Iterator[Dense | tuple[str, str]]:
    """In float32, in bfloat16 where the processor has it, and in int8 if `files` has a file of it."""
    openvino = import_or_reason("openvino")
    if isinstance(openvino, str):
        yield "OpenVINO", openvino
        return
    for precision, hint, path in (("f32", "f32", files["f32"]), ("bf16", "bf16", files["f32"]),
                                  ("int8", "f32", files["int8"])):
        if not path.exists():
            continue
        hints = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if taken != hint:
            yield f"OpenVINO {precision}", f"it computes in {taken} on this processor"
            continue
        request = compiled.create_infer_request()

        def call(x, request=request):
            return request.infer({0: x}, share_inputs=True, share_outputs=True)

        yield Dense(f"OpenVINO {precision}", frames, call, lambda outputs: as_ours(outputs[0]), precision)


# ---------------------------------------------------------------------------------------------------- the run


def measure(
    what: Subject,
    patterns: Sequence[str],
    densities: Sequence[float],
    frames: int = FRAMES,
    kernels: Sequence[str] = ("",),
    others: Callable[[], Iterator[Dense | tuple[str, str]]] = lambda: iter(()),
    tick: Callable[[int], Callable[[], None]] = lambda total: lambda: None,
) -> Found:
    """One network: dense in JAX, `others` and the step at each density of each pattern, all in turns.

    Args:
        what: the network.
        patterns: names of PATTERNS.
        densities: shares of the frame, in 0..1.
        frames: that count of each, to the next multiple of TURN.
        kernels: of `incremental`, each with a step of its own; not passed on if empty.
        others: makes the baselines, or says why there are none.
        tick: of the number of turns in all to what is called after each.
    """
    benches = {name: Bench(what, dj.incremental(what.fn, **{"kernels": name} if name else {})) for name in kernels}
    bench = benches[kernels[0]]
    source = PATTERNS["square"](what.size, what.dtype, 1.0)
    whole = [jnp.asarray(next(source)) for _ in range(4)]
    ours = Dense(JAX, whole, lambda frame: jax.block_until_ready(bench.dense(what.params, frame)), np.asarray)
    expected = np.asarray(bench.dense(what.params, whole[0]))
    dense, left_out, disagreed, differences = [ours], {}, [], [0.0]
    for other in others():
        if isinstance(other, tuple):
            left_out[other[0]] = other[1]
            continue
        apart = difference(expected, other.output(other.run(other.frames[0])))
        if apart <= AGREED[other.precision]:
            dense.append(other)
            differences.append(apart)
        else:
            left_out[other.name] = f"its outputs differ from those of ours by {apart:.1e} of the largest"
            disagreed.append(other.name)
    # The kernels of one case follow one another, so that a machine that grows slower does so for all of them.
    cases = itertools.product(patterns, densities, kernels)
    steps = [Step(benches[name], pattern, density, name) for pattern, density, name in cases]
    turns = -(-frames // TURN)
    in_turns([*dense, *steps], turns, tick(turns * (len(dense) + len(steps))))
    baselines = [
        Baseline(d.name, d.median, d.p90, apart, d.precision) for d, apart in zip(dense, differences, strict=True)
    ]
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


def measure_all(
    names: Sequence[str],
    size: tuple[int, int],
    patterns: Sequence[str],
    densities: Sequence[float],
    frames: int,
    kernels: Sequence[str],
    shown: Callable[[Found], None],
) -> list[Found]:
    """One network after the other; `shown` is called after each."""
    founds: list[Found] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)

            def tick(total: int, bar=bar, task=task) -> Callable[[], None]:
                bar.update(task, total=total)
                return lambda: bar.advance(task)

            what = network(name, size)

            def others(what=what, folder=folder) -> Iterator[Dense | tuple[str, str]]:
                return dense_baselines(what, cores(), Path(folder))

            founds.append(measure(what, patterns, densities, frames, kernels, others, tick))
        shown(founds[-1])
        jax.clear_caches()
    return founds


def read(path: Path) -> list[Found]:
    """What `--json` wrote."""
    return [Found.from_json(made) for made in json_format.loads(path.read_text())["networks"]]


def main(
    only: tuple[str, ...] = (),
    density: tuple[float, ...] = DENSITIES,
    pattern: tuple[Literal["square", "scattered"], ...] = ("square", "scattered"),
    frames: int = FRAMES,
    kernels: tuple[Kernels, ...] = (),
    size: tuple[int, int] = STACK15_SIZE,
    json: Path | None = None,
    out: Path = Path(),
    read_from: Annotated[tuple[Path, ...], tyro.conf.arg(name="read")] = (),
) -> int:
    """Measure, print a table for each network, write sweep.png.

    Args:
        only: names of networks; all if there are none.
        density: shares of the frame that change, in 0..1.
        pattern: a square of noise that moves, or 16x16 blocks at random places.
        frames: that count of each baseline and of each density, to the next multiple of three.
        kernels: what `deltajax.incremental` is given; each has its rows. Nothing if left out.
        size: (height, width) of a frame.
        json: file for all that was found, written anew after each network.
        out: folder of the figure.
        read_from: files that `json` wrote; nothing is measured.
    """
    unknown = [name for name in only if name not in NETWORKS]
    if unknown:
        raise ValueError(f"`only` names {unknown[0]!r}; the networks are {', '.join(NETWORKS)}")
    outside = [share for share in density if not 0 <= share <= 1]
    if outside:
        raise ValueError(f"`density` (={outside[0]}) must be a share of the frame, in 0..1")
    if frames < 1:
        raise ValueError(f"`frames` (={frames}) must be at least 1")
    console = Console(width=None if sys.stdout.isatty() else 140)
    printed: list[Found] = []

    def shown(found: Found) -> None:
        console.print(table(found))
        for baseline, reason in found.left_out.items():
            console.print(f"left out: {baseline}: {reason}", highlight=False, soft_wrap=True)
        printed.append(found)
        if json is not None:
            everything = {"versions": versions(), "networks": [found.as_json() for found in printed]}
            json.write_text(json_format.dumps(everything, indent=1))

    if read_from:
        for found in itertools.chain.from_iterable(map(read, read_from)):
            if not only or found.name in only:
                shown(found)
    else:
        console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        measure_all(only or tuple(NETWORKS), size, pattern, density, frames, kernels or ("",), shown)
    save(sweep(printed), out / "sweep.png")
    console.print(f"wrote {out / 'sweep.png'}", highlight=False)
    return 1 if any(found.disagreed for found in printed) else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
