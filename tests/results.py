"""Every network with real weights on every clip of a static camera: what is saved, at what error, in what time.

    python tests/results.py --out results.json   # all pairs; an hour or two by native kernels, many by XLA's
    python tests/results.py --only fastestdet --clips vtest.avi asl/again.mkv       # some

    python tests/results.py --only resnet50 hrnet-w32 --options.tolerance .02       # heavy backbones, random weights

Needs the weights and clips in the folder that DELTAJAX_DATA names. A pair of a network and a clip is tuned as
`deltajax tune` does it, on those consecutive frames of the clip's first third in which most changes, and measured on
the frames after that third: nothing that it is measured on was seen by the search. Finished pairs are kept in the
JSON; those made with the same options are not made again (`--again` measures them once more, with the thresholds that
they have), and the tables, in markdown, one for each tolerance, have every pair of the file. The step is measured as a
user has it, with its own detection and its thresholds, and so it is compiled for each clip; JAX_COMPILATION_CACHE_DIR
keeps that. CIFAR-10's ResNets have real weights too, but no clip shows what they know. Heavy backbones have random
ones, at 512x384: their times and FLOPs are what they would be, and their error is that of the output, relative to it.

Where ONNX Runtime and OpenVINO are there, both run the dense network too, in float32 and in int8, in turns with the
rest, from a file that `to_onnx` writes; int8 is calibrated on frames of the clip's first third. The best dense baseline
is the fastest in float32, jitted JAX among them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import baselines
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import originals
import tyro
from jaxtyping import PyTree
from rich.console import Console
from to_onnx import to_onnx

import deltajax as dj
from deltajax._bench import STACK15_SIZE
from deltajax._incremental import Kernels
from deltajax.cli.network import load_network
from deltajax.models import VisionModel, get_model
from deltajax.models._random import random_params
from deltajax.models._resize import sample
from deltajax.tuning import lowered
from deltajax.tuning._trials import Metric, Setting
from deltajax.tuning.metrics import output_error
from deltajax.tuning.tasks import boxes_of, classes_of, follow_of, metric_of, task_of
from deltajax.video import busiest, changes_in, open_source

WEIGHTS = {
    "slim-320": "version-slim-320.pth",
    "fastestdet": "fastestdet_coco.pth",
    "prisma-net": "prisma_net_256.onnx",
    "espnet": "espnet_p2_q8_cityscapes.pth",
    "rfb-320": "version-RFB-320.pth",
    "blazeface": "blazeface.pth",
    "mobilenet-vww": "mlperf_tiny_vww_mobilenetv1_025_96.h5",
}
SURVEILLANCE = ("vtest.avi", "car-detection.mp4", "bottle-detection.mp4", "issue53_brightness_change.avi")
SIGNS = ("again", "bird", "book", "brother", "eat", "help", "hungry", "learn", "milk", "night", "no", "please",
         "school", "sister", "sorry", "student", "thanks", "walk", "want", "yes")
CLIPS = (*SURVEILLANCE, "nasa_13013.mp4", "tree.avi", *(f"asl/{sign}.mkv" for sign in SIGNS))
HEAVY = ("resnet18", "resnet50", "hrnet-w32")
NETWORKS = (*WEIGHTS, *HEAVY)
LESS_EXACT = ("bf16", "int8")  # how names of baselines end that do not compute in float32
SAME = 5e-3  # largest error of another library's output, relative to it, in float32
CALIBRATED = 4  # frames that int8's ranges are taken from
SEARCH = ("setting", "met", "tuned_error", "check_error", "tuned_issued", "trials")  # of a row: what the search found
WHOLE = 4  # one frame in so many is also computed whole by the step, and by the dense network under a little noise


@dataclasses.dataclass(frozen=True)
class Options:
    """What a pair was made with; one made with others is made again.

    Attributes:
        tolerance: of the task's error, mean over the frames.
        lag: how far boxes, and outputs that are all that is found, may stay behind; see `dj.tune`.
        trials: settings tried, at most.
        tuned, reported: frames, at most.
        norms, cells: what is tried.
        tile, dense_share, kernels: of `incremental`; `kernels` is not passed on if left out.
    """

    tolerance: float = 0.005
    lag: float = 0.5
    trials: int = 40
    tuned: int = 40
    reported: int = 300
    norms: tuple[str, ...] = ("l2",)
    cells: tuple[int, ...] = (4, 8)
    tile: int | None = 4
    dense_share: float | None = 0.8
    kernels: Kernels | None = None

    @property
    def passed_on(self) -> dict[str, Any]:
        """To `incremental`."""
        given = {"kernels": self.kernels} if self.kernels else {}
        return {"tile": self.tile, "dense_share": self.dense_share} | given


# ---------------------------------------------------------------------------------------------------- a pair


class Parts(NamedTuple):
    """Frames of a clip, as the network takes them; each part is consecutive."""

    tuned: list[np.ndarray]
    reported: list[np.ndarray]


def parts(changes: Sequence[float], tuned: int, reported: int) -> tuple[range, range]:
    """The numbers of the frames: of the first third, those among which most changes; and those after the third.

    Args:
        changes: of each frame, how far it is from the one before.
        tuned, reported: how many, at most.
    """
    third = len(changes) // 3
    # Thresholds that were found where nothing happens are blind to what happens later.
    return busiest(changes[:third], tuned), range(third, min(len(changes), third + reported))


def read(path: Path, prepare: Callable[[np.ndarray], Any], tuned: int, reported: int) -> tuple[Parts, tuple[int, int]]:
    """``(frames, (height, width) of the clip)``."""
    with open_source(str(path)) as source:
        size, changes = source.size, list(changes_in(source.frames))
    first, second = parts(changes, tuned, reported)
    found = Parts([], [])
    with open_source(str(path)) as source:
        for number, frame in enumerate(source.frames):
            for numbers, frames in zip((first, second), found, strict=True):
                if number in numbers:
                    frames.append(np.asarray(prepare(frame.rgb)))
            if number >= second.stop:
                break
    return found, size


class Judge:
    """The task's error, a finer one that sees what stands still, and how much there is to find at all."""

    def __init__(self, model: VisionModel, size: tuple[int, int], output: PyTree):
        self.model, self.size = model, size
        self.task = task_of(model.interpret(output, size))
        self.error: Metric = metric_of(self.task, model, size)
        self.placement: Metric = follow_of(self.task, model, size) or self.error

    @property
    def follow(self) -> Metric | None:
        """For the search; of output that nothing is made of, any tolerance may be more than all that it does."""
        return self.placement if self.task in ("boxes", "output") else None

    def things(self, output: PyTree) -> float | None:
        """Boxes; of a map of classes, the share that is not of its most frequent one; of a class, `None`."""
        result = self.model.interpret(output, self.size)
        if self.task == "boxes":
            return float(len(boxes_of(result)[0]))
        if self.task == "regions":
            counts = np.unique(classes_of(result), return_counts=True)[1]
            return 1 - float(counts.max() / counts.sum())
        return None


@dataclasses.dataclass
class Report:
    """Of the frames after the first, in their order; times in milliseconds, FLOPs as shares of the dense network's.

    Attributes:
        dense_ms: the network in `jax.jit`.
        step_ms: the step with its thresholds.
        whole_ms: the step when it computes everything, on one frame in `WHOLE`; what its own kernels need.
        errors: the task's, against dense.
        placement: of `Judge`, against dense; the error itself where there is none.
        standing, standing_placement: both of the dense result of the first frame: of a network that stands still.
        noise: the same of the dense result of the frame with -1, 0 or 1 added to each value, on one frame in `WHOLE`:
            how much of an error is no error.
        things: of `Judge`.
        engines_ms, engines_errors: of other libraries on the whole frame, by name, on one frame in `WHOLE`: of two
            calls one after the other the second, which finds threads awake and caches full.
        engines_first_ms: the first of them, which comes after other work, as every call of the step does.
    """

    dense_ms: list[float] = dataclasses.field(default_factory=list)
    step_ms: list[float] = dataclasses.field(default_factory=list)
    whole_ms: list[float] = dataclasses.field(default_factory=list)
    issued: list[float] = dataclasses.field(default_factory=list)
    useful: list[float] = dataclasses.field(default_factory=list)
    density: list[float] = dataclasses.field(default_factory=list)
    errors: list[float] = dataclasses.field(default_factory=list)
    placement: list[float] = dataclasses.field(default_factory=list)
    standing: list[float] = dataclasses.field(default_factory=list)
    standing_placement: list[float] = dataclasses.field(default_factory=list)
    noise: list[float] = dataclasses.field(default_factory=list)
    things: list[float] = dataclasses.field(default_factory=list)
    engines_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    engines_first_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    engines_errors: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Contest:
    """A network dense and incremental, in turns.

    Attributes:
        inc: without thresholds: what is tuned, and compiled once for all settings.
    """

    def __init__(self, fn: Callable[[PyTree, Any], PyTree], params: PyTree, options: Mapping[str, Any]):
        self.fn, self.params, self.options = fn, params, dict(options)
        self.dense, self.inc = jax.jit(fn), dj.incremental(fn, **options)

    def run(
        self, setting: Mapping[str, Any], frames: Sequence[np.ndarray], judge: Judge | None = None,
        engines: Sequence[baselines.Dense] = (),
    ) -> Report:
        """The frames in turn from a fresh cache, by the step as a user has it; `judge` names no error if left out."""
        inc = dj.incremental(self.fn, **self.options, **setting)
        step = jax.jit(lambda cache, frame: inc.step(self.params, cache, None, frame)[:2], donate_argnums=0)
        (cache, _), (whole, _) = (inc.init(self.params, frames[0]) for _ in range(2))
        report, first, rng = Report(), None, np.random.default_rng(0)
        for number, picture in enumerate(frames):
            frame = jax.block_until_ready(jnp.asarray(picture))
            again = number % WHOLE == 0
            dense_ms, dense = _timed(self.dense, self.params, frame) if number % 2 else (0.0, None)
            if again:
                whole = {**whole, "age": jnp.zeros_like(whole["age"])}
                whole_ms, (_, whole) = _timed(step, whole, frame)
            step_ms, (output, cache) = _timed(step, cache, frame)
            if dense is None:
                dense_ms, dense = _timed(self.dense, self.params, frame)
            dense, output = (jax.tree.map(np.asarray, x) for x in (dense, output))
            if number:
                stats = inc.stats(cache)
                total = float(stats.flops_dense)
                report.dense_ms.append(dense_ms)
                report.step_ms.append(step_ms)
                report.whole_ms.extend([whole_ms] if again else [])
                report.issued.append(float(stats.flops_issued) / total)
                report.useful.append(float(stats.flops_useful) / total)
                report.density.append(float(stats.frame_density))
                if judge is not None:
                    report.errors.append(judge.error(dense, output))
                    report.placement.append(judge.placement(dense, output))
                    report.standing.append(judge.error(dense, first))
                    report.standing_placement.append(judge.placement(dense, first))
                    if again:
                        noisy = np.clip(picture.astype(np.int16) + rng.integers(-1, 2, picture.shape), 0, 255)
                        noisy = jax.tree.map(np.asarray, self.dense(self.params, noisy.astype(picture.dtype)))
                        report.noise.append(judge.error(dense, noisy))
                    things = judge.things(dense)
                    report.things.extend([] if things is None else [things])
                for engine in engines if again else ():
                    first_ms, _ = _timed(engine.run, picture)
                    ms, outputs = _timed(engine.run, picture)
                    report.engines_first_ms.setdefault(engine.name, []).append(first_ms)
                    report.engines_ms.setdefault(engine.name, []).append(ms)
                    if judge is not None:
                        error = judge.error(dense, engine.output(outputs))
                        report.engines_errors.setdefault(engine.name, []).append(error)
                    time.sleep(baselines.PAUSE)  # its threads go to sleep
            first = dense if first is None else first
        return report


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return 1e3 * (time.perf_counter() - start), result


def engines(
    contest: Contest, frames: Sequence[np.ndarray], graph: onnx.ModelProto | None = None
) -> tuple[list[baselines.Dense], dict[str, str]]:
    """Other libraries on the whole frame, from frames as the network takes them; and why others are left out.

    Args:
        contest: with the network.
        frames: that int8 is calibrated on.
        graph: the network for them; `to_onnx` makes it if left out.
    """
    expected, structure = jax.tree.flatten(jax.tree.map(np.asarray, contest.dense(contest.params, frames[0])))

    def output(outputs: Any) -> PyTree:
        return structure.unflatten([np.array(outputs[number]) for number in range(len(expected))])

    found, left_out = [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = {"f32": Path(folder) / "f32.onnx", "int8": Path(folder) / "int8.onnx"}
        onnx.save(graph or to_onnx(contest.fn, contest.params, frames[0]), files["f32"])
        no_int8 = originals.write_int8(files["f32"], frames[:: -(-len(frames) // CALIBRATED)], files["int8"])
        left_out |= {} if no_int8 is None else {"int8": no_int8}
        for library in (baselines.onnxruntime_baselines, baselines.openvino_baselines):
            for made in library(files, list(frames), baselines.cores()):
                if isinstance(made, tuple):
                    left_out[made[0]] = made[1]
                else:
                    found.append(baselines.Dense(made.name, frames, made.run, output, made.precision))
    for engine in [engine for engine in found if engine.precision == "f32"]:
        apart = output_error(structure.unflatten(expected), engine.output(engine.run(frames[0])))
        if apart > SAME:
            left_out[engine.name] = f"its outputs differ from those of ours by {apart:.1e}"
            found.remove(engine)
    return found, left_out


def chosen(found: dj.Tuning) -> dict[str, Any]:
    """What a row has of the search: the words of `SEARCH`."""
    check = None if found.check is None else found.check.error
    return {
        "setting": found.options, "met": found.met, "tuned_error": found.chosen.error, "check_error": check,
        "tuned_issued": found.chosen.issued, "trials": len(found.trials),
    }


def row(
    network: str, clip: str, options: Options, found: Mapping[str, Any], report: Report, task: str
) -> dict[str, Any]:
    """What goes into the file: what was `chosen`; medians and means over the reported frames."""
    p50, p90, p99 = (float(np.quantile(report.step_ms, q)) for q in (0.5, 0.9, 0.99))
    engines, first = (
        {name: statistics.median(ms) for name, ms in times.items()}
        for times in (report.engines_ms, report.engines_first_ms)
    )
    errors = {name: statistics.fmean(found) for name, found in report.engines_errors.items()}
    return {
        "network": network, "clip": clip, "options": _plain(options), "task": task,
        "frames": 1 + len(report.step_ms), "things": statistics.fmean(report.things) if report.things else None,
        "error": statistics.fmean(report.errors), "worst": max(report.errors),
        "placement": statistics.fmean(report.placement), "standing": statistics.fmean(report.standing),
        "standing_placement": statistics.fmean(report.standing_placement), "noise": statistics.fmean(report.noise),
        "issued": statistics.fmean(report.issued), "useful": statistics.fmean(report.useful),
        "density": statistics.fmean(report.density),
        "dense_ms": statistics.median(report.dense_ms), "whole_ms": statistics.median(report.whole_ms),
        "step_ms": [p50, p90, p99], "engines_ms": engines, "engines_first_ms": first, "engines_errors": errors,
        "x_dense": statistics.median(a / b for a, b in zip(report.dense_ms, report.step_ms, strict=True)), **found,
    }


def best_dense(row: Mapping[str, Any], of: str = "engines_ms") -> tuple[float, str]:
    """``(milliseconds, name)`` of the fastest in float32, by the column `of` (of rows that have it)."""
    engines = {name: ms for name, ms in row.get(of, row["engines_ms"]).items() if not name.endswith(LESS_EXACT)}
    return min((ms, name) for name, ms in {"JAX": row["dense_ms"], **engines}.items())


def less_exact(row: Mapping[str, Any], precision: str) -> list[tuple[float, float]]:
    """``(milliseconds, error)`` of the fastest in this precision, of `LESS_EXACT`; none if there is none."""
    engines = [(ms, row["engines_errors"][name]) for name, ms in row["engines_ms"].items() if name.endswith(precision)]
    return sorted(engines)[:1]


def _plain(options: Options) -> dict[str, Any]:
    """As it comes back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


# ---------------------------------------------------------------------------------------------------- the table


def trivial(row: Mapping[str, Any]) -> bool:
    """Whether the dense network finds next to nothing, so that its result is hardly put to the test."""
    return row["things"] is not None and row["things"] < (0.1 if row["task"] == "boxes" else 0.002)


def _things(row: Mapping[str, Any]) -> str:
    if row["things"] is None:
        return ""
    text = f"{row['things']:.1f}" if row["task"] == "boxes" else f"{100 * row['things']:.1f} %"
    return text + (" *" if trivial(row) else "")


def fewer(row: Mapping[str, Any]) -> float:
    """How many times fewer FLOPs than dense are issued."""
    return 1 / row["issued"] if row["issued"] else math.inf


def _within(row: Mapping[str, Any], of: str = "error") -> bool:
    return row[of] <= row["options"]["tolerance"]


def _times(x: float) -> str:
    return "all" if math.isinf(x) else f"{x:.3g}"


def _quick(row: Mapping[str, Any], precision: str) -> str:
    return "".join(f"{ms:.1f}, {100 * error:.2f}" for ms, error in less_exact(row, precision))


# A column is a heading and what stands in it for a row of the file.
COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "network": lambda r: r["network"],
    "clip": lambda r: r["clip"],
    "frames": lambda r: str(r["frames"]),
    "found": _things,
    "error": lambda r: f"{100 * r['error']:.2f}" if _within(r) else f"**{100 * r['error']:.2f}**",
    "of noise": lambda r: f"{100 * r['noise']:.2f}",
    "standing still": lambda r: f"{100 * r['standing']:.2f}",
    "placement (standing still)": lambda r: f"{100 * r['placement']:.1f} ({100 * r['standing_placement']:.1f})",
    "issued / useful": lambda r: f"{100 * r['issued']:.1f} / {100 * r['useful']:.1f} %",
    "times fewer": lambda r: _times(fewer(r)),
    "dense ms": lambda r: f"{r['dense_ms']:.1f}",
    "whole ms": lambda r: f"{r['whole_ms']:.1f}",
    "step ms p50 / p90 / p99": lambda r: " / ".join(f"{ms:.1f}" for ms in r["step_ms"]),
    "x dense": lambda r: f"{r['x_dense']:.2f}",
    "x whole": lambda r: f"{r['whole_ms'] / r['step_ms'][0]:.2f}",
    "best dense ms": lambda r: "{:.1f} {}".format(*best_dense(r)),
    "x best dense p50 / p90": lambda r: " / ".join(f"{best_dense(r)[0] / ms:.2f}" for ms in r["step_ms"][:2]),
    "x its first call": lambda r: f"{best_dense(r, 'engines_first_ms')[0] / r['step_ms'][0]:.2f}",
    "bf16 ms, error": lambda r: _quick(r, "bf16"),
    "int8 ms, error": lambda r: _quick(r, "int8"),
    "tau, cell": lambda r: f"{r['setting']['tau']:.3g}, {r['setting']['cell']}" if r["setting"]["tau"] else "exact",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In markdown; errors in points, those above the tolerance in bold."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(text(r) for text in COLUMNS.values()) + " |" for r in rows]
    return "\n".join(lines)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians by network and kind of clip, in markdown; a pair counts whether it kept the tolerance or not."""
    groups: dict[str, list[Mapping[str, Any]]] = {
        "static, all": list(rows),
        "static, something to find": [r for r in rows if not trivial(r)],
        "surveillance, all": [r for r in rows if r["clip"] in SURVEILLANCE],
        "surveillance, something to find": [r for r in rows if r["clip"] in SURVEILLANCE and not trivial(r)],
    }
    for name in dict.fromkeys(r["network"] for r in rows):
        groups[name] = [r for r in rows if r["network"] == name]
    lines = ["| pairs | how many | within the tolerance (standing still) | times fewer FLOPs, median | of those within "
             "| x dense, median | x whole, median | x best dense, median | x its first call, median "
             "| p50 and p90 below best dense; below its first call |",
             "|" + "---|" * 10]
    for name, group in groups.items():
        if group:
            within = [fewer(r) for r in group if _within(r)]
            still = sum(_within(r, "standing") for r in group)
            ahead = "; ".join(
                ", ".join(str(sum(r["step_ms"][k] <= best_dense(r, of)[0] for r in group)) for k in (0, 1))
                for of in ("engines_ms", "engines_first_ms")
            )
            lines.append(
                f"| {name} | {len(group)} | {len(within)} ({still}) | {_times(statistics.median(map(fewer, group)))} "
                f"| {_times(statistics.median(within)) if within else '-'} "
                f"| {statistics.median(r['x_dense'] for r in group):.2f} "
                f"| {statistics.median(r['whole_ms'] / r['step_ms'][0] for r in group):.2f} "
                f"| {statistics.median(best_dense(r)[0] / r['step_ms'][0] for r in group):.2f} "
                f"| {statistics.median(best_dense(r, 'engines_first_ms')[0] / r['step_ms'][0] for r in group):.2f} "
                f"| {ahead} |"
            )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- the run


def pair(
    contest: Contest, model: VisionModel, path: Path, options: Options, known: Mapping[str, Any] | None = None,
    graph: onnx.ModelProto | None = None,
) -> tuple[dict[str, Any], Report, str]:
    """Tunes on the first part of a clip and reports on the second: ``(what was chosen, report, task)``.

    Args:
        known: of an earlier row, which then is only measured again.
        graph: of `engines`.
    """
    frames, size = read(path, model.prepare, options.tuned, options.reported)
    output = jax.tree.map(np.asarray, contest.dense(contest.params, frames.tuned[0]))
    judge = Judge(model, size, output)
    found = dict(known) if known else chosen(dj.tune(
        contest.inc, contest.params, frames.tuned, tolerance=options.tolerance, metric=judge.error,
        follow=judge.follow, lag=options.lag, norms=options.norms, cells=options.cells, trials=options.trials,
    ))
    others, left_out = engines(contest, frames.tuned, graph)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    return found, contest.run(found["setting"], frames.reported, judge, others), judge.task


def network(name: str, folder: Path) -> tuple[VisionModel, PyTree]:
    """``(model, params)``; a heavy one has random params, and its output is all that it finds."""
    if name not in HEAVY:
        loaded = load_network(name, folder / "weights" / WEIGHTS[name])
        return loaded.model, loaded.params
    model = get_model(name)
    as_it_is = dataclasses.replace(
        model, frame_size=STACK15_SIZE, prepare=lambda rgb: sample(rgb, STACK15_SIZE),
        interpret=lambda output, size: output,
    )
    return as_it_is, random_params(model.shapes())


def load_rows(path: Path | None) -> list[dict[str, Any]]:
    """What a file has; nothing if there is none."""
    return json.loads(path.read_text())["rows"] if path is not None and path.exists() else []


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Whatever stops it, the file is the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"jax": jax.__version__, "rows": list(rows)}, indent=1) + "\n")
    os.replace(part, path)


def _key(row: Mapping[str, Any]) -> tuple[str, str, float]:
    return row["network"], row["clip"], row["options"]["tolerance"]


def _rank(row: Mapping[str, Any]) -> tuple[float, int, int]:
    return row["options"]["tolerance"], NETWORKS.index(row["network"]), CLIPS.index(row["clip"])


def main(
    only: tuple[str, ...] = (), clips: tuple[str, ...] = (), out: Path | None = None, again: bool = False,
    lower: float = 0.0, options: Options = Options(),
) -> int:
    """Make what is missing, then print the table and its medians.

    Args:
        only: names of networks; all with real weights if there are none.
        clips: paths in video/static; all if there are none.
        out: the JSON file of finished pairs, written anew after each.
        again: measure finished pairs again, with the thresholds that they have.
        lower: with `again`, thresholds lower by so many octaves, the frame's by half as many; give a copy of the file.
        options: of tuning and report.
    """
    for name, given, known in (("only", only, NETWORKS), ("clips", clips, CLIPS)):
        unknown = [word for word in given if word not in known]
        if unknown:
            raise ValueError(f"`{name}` names {unknown[0]!r}; there are {', '.join(known)}")
    if lower and not again:
        raise ValueError(f"`lower` (={lower!r}) lowers thresholds of finished pairs; give `again` too, or leave it out")
    if "DELTAJAX_DATA" not in os.environ:
        raise ValueError("DELTAJAX_DATA names no folder with the real weights and clips; set it")
    folder, messages = Path(os.environ["DELTAJAX_DATA"]), Console(stderr=True)
    rows = {_key(r): r for r in load_rows(out)}
    for name in only or WEIGHTS:
        done = [c for c in clips or CLIPS if rows.get((name, c, options.tolerance), {}).get("options")
                == _plain(options)]
        missing = done if again else [c for c in clips or CLIPS if c not in done]
        if not missing:
            continue
        model, params = network(name, folder)
        contest = Contest(model.apply, params, options.passed_on)
        for clip in missing:
            start, key = time.monotonic(), (name, clip, options.tolerance)
            known = {word: rows[key][word] for word in SEARCH} if again else None
            if known and lower:
                known["setting"] = dataclasses.asdict(lowered(Setting(**known["setting"]), lower))
            found, report, task = pair(contest, model, folder / "video" / "static" / clip, options, known)
            rows[key] = made = row(name, clip, options, found, report, task)
            messages.print(f"{name} {clip}: error {made['error']:.4f}, issued {made['issued']:.3f}, "
                           f"{time.monotonic() - start:.0f} s", highlight=False, soft_wrap=True)
            if out is not None:
                save_rows(out, sorted(rows.values(), key=_rank))
        jax.clear_caches()
    for tolerance in sorted({key[2] for key in rows}):
        shown = sorted((r for key, r in rows.items() if key[2] == tolerance), key=_rank)
        print(f"Tolerance {100 * tolerance:g} points\n\n{table(shown)}\n\n{summary(shown)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
