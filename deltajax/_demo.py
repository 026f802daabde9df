"""`deltajax demo`: a clip made on the spot, dense and incremental side by side; a table, a picture, a film.

Needs no network and no data: the clip comes from `scenes.glide`, the network and its weights from
`models.digits`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ._incremental import Kernels, incremental
from .draw import overlay_mask
from .models.digits import MODEL, STRIDE, Found, rightly_named
from .scenes import Digit, Scene, glide
from .video import VideoWriter

SEED = 5
NOISE = 1.5  # grey levels, of the sensor
TAU = 12.0  # grey levels: eight standard deviations of the noise, so that noise alone changes nothing
CELL = 4  # pixels; renewed as one, lest faint remains of a digit wait for the noise to lift them over tau
RATE = Fraction(30)
CAPTION = 48  # pixels under each panel of the film
INK, GROUND, CHANGED, DENSE = (232, 234, 238), (20, 22, 27), (255, 150, 40), (130, 140, 155)

Picture = UInt8[np.ndarray, "height width 3"]


class Step(NamedTuple):
    """One frame, computed in one way."""

    output: Float[np.ndarray, "i j 15"]
    changed: Bool[np.ndarray, "rows columns"]
    ms: float
    flops: float
    density: float


class Way(NamedTuple):
    """One way to compute a clip: what compiling took; `start` begins a run and gives its frame -> step."""

    compile_seconds: float
    start: Callable[[], Callable[[Array], Step]]


class Course(NamedTuple):
    """The clip, computed in one way.

    Attributes:
      name: for the table.
      compile_seconds: tracing and compiling.
      ms: for each frame; the first is computed whole.
      flops: computed for each frame.
      density: share of each frame's cells that changed.
      difference: largest difference from dense in each frame, relative to the largest dense value.
      right: digits rightly named in each frame.
    """

    name: str
    compile_seconds: float
    ms: Float[np.ndarray, " t"]
    flops: Float[np.ndarray, " t"]
    density: Float[np.ndarray, " t"]
    difference: Float[np.ndarray, " t"]
    right: Float[np.ndarray, " t"]


class Shown(NamedTuple):
    """A frame for the pictures: where it changed, and what was found incrementally."""

    frame: Picture
    changed: Bool[np.ndarray, "rows columns"]
    found: list[Found]


class Measured(NamedTuple):
    """The clip computed in four ways, and the frames to show."""

    dense: Course
    moving: Course
    still: Course
    exact: Course
    shown: list[Shown]
    digits: int


def demo(out: Path, frames: int = 120, size: int = 512, kernels: Kernels = "xla") -> Measured:
    """Runs the demonstration; prints a table, writes `demo.png` and `demo.mp4` into `out`.

    Args:
      out: a folder; it is made if there is none.
      frames: length of the clip, at least 6.
      size: height and width of a frame, pixels; a multiple of 8.
      kernels: of `deltajax.incremental`.

    Raises:
      ValueError: too short a clip, another size, or `out` cannot be written.
    """
    if frames < 6:
        raise ValueError(f"`frames` (={frames}) must be at least 6, or there is nothing to show.")
    if size < 64 or size % 8:
        raise ValueError(f"`size` (={size}) must be a multiple of 8 and at least 64.")
    console = Console(soft_wrap=True)

    def watch(what: Iterable[Any], doing: str) -> Iterable[Any]:
        return track(what, doing, frames, console=console, transient=True, disable=not console.is_terminal)

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`{out}` cannot be made ({error.strerror}); give another --out.") from error
    clip = list(watch(glide(SEED, frames, size, NOISE), "drawing the clip"))
    measured = measure(clip, lambda scenes: watch(scenes, "computing it in four ways"), kernels)
    console.print(table(measured))
    console.print(costs(measured), highlight=False)
    strip, film = out / "demo.png", out / "demo.mp4"
    draw_strip(strip, measured)
    with VideoWriter(film, film_frame(measured, 0).shape[:2], RATE) as writer:
        for i in watch(range(frames), "writing the film"):
            writer.write(film_frame(measured, i))
    console.print(f"wrote {strip} and {film}", highlight=False)
    return measured


def measure(
    clip: Sequence[Scene], watch: Callable[[Sequence[Scene]], Iterable[Scene]] = lambda scenes: scenes,
    kernels: Kernels = "xla",
) -> Measured:
    """Computes the clip in four ways, interleaved frame by frame, so that a busy machine slows all alike.

    Dense; incrementally with `TAU`; incrementally, but the first frame over and over, so nothing changes;
    incrementally with tau 0, where the noise changes nearly all of the frame and the result is exact.
    """
    params = MODEL.load(None)
    first = jnp.asarray(clip[0].frame)
    dense, tolerant, exact = (
        _dense(params, first),
        _incremental(params, first, TAU, kernels),
        _incremental(params, first, 0.0, kernels),
    )
    seconds = (
        dense.compile_seconds,
        tolerant.compile_seconds,
        tolerant.compile_seconds,
        exact.compile_seconds,
    )
    runs = (dense.start(), tolerant.start(), tolerant.start(), exact.start())
    steps: list[tuple[Step, ...]] = []
    for scene in watch(clip):
        frame = jax.block_until_ready(jnp.asarray(scene.frame))
        frames = (frame, frame, first, frame)
        steps.append(tuple(run(frame) for run, frame in zip(runs, frames, strict=True)))
    names = ("dense", "incremental", "still frame", "exact (tau 0)")
    of_dense = [step[0].output for step in steps]
    digits = [scene.digits for scene in clip]
    still = [of_dense[0]] * len(clip), [digits[0]] * len(clip)
    truths = (of_dense, digits), (of_dense, digits), still, (of_dense, digits)
    columns = zip(names, seconds, zip(*steps, strict=True), truths, strict=True)
    courses = (_course(name, cost, taken, *truth) for name, cost, taken, truth in columns)
    by_name = dict(zip(("dense", "moving", "still", "exact"), courses, strict=True))
    shown = [
        Shown(scene.frame, step[1].changed, MODEL.interpret(step[1].output, scene.frame.shape[:2]))
        for scene, step in zip(clip, steps, strict=True)
    ]
    return Measured(**by_name, shown=shown, digits=len(digits[0]))


def table(measured: Measured) -> Table:
    """A row for each way; medians over the frames after the first, which is computed whole."""
    frames = len(measured.shown)
    height, width, _ = measured.shown[0].frame.shape
    rows = Table(box=SIMPLE_HEAD, title=f"finding digits in {frames} frames of {width}x{height}")
    rows.add_column("")
    for head in ("ms", "dense / it", "GFLOP", "changed", "difference", "named"):
        rows.add_column(head, justify="right", no_wrap=True)
    usual = np.median(measured.dense.ms[1:])
    for course in measured[:4]:
        dense = course is measured.dense
        ms = np.median(course.ms[1:])
        rows.add_row(
            course.name,
            f"{ms:.2f}",
            f"{usual / ms:.1f}",
            f"{np.median(course.flops[1:]) / 1e9:.3f}",
            "" if dense else f"{np.median(course.density[1:]):.1%}",
            "" if dense else f"{course.difference.max():.1e}",
            f"{course.right.sum() / (frames * measured.digits):.1%}",
        )
    rows.caption = (
        f"tau {TAU:g}, sensor noise {NOISE:g} grey levels; ms, GFLOP, changed (share of the frame): medians "
        "after the first frame; difference: the largest from dense, relative; named: digits rightly found"
    )
    return rows


def costs(measured: Measured) -> str:
    """What is paid once: compiling, and the first frame, in a line."""
    seconds = f"{measured.dense.compile_seconds:.1f} s and {measured.moving.compile_seconds:.1f} s"
    first = f"{measured.dense.ms[0]:.0f} ms and {measured.moving.ms[0]:.0f} ms"
    return f"dense and incremental: compiled in {seconds}, first frame {first}"


def film_frame(measured: Measured, i: int) -> Picture:
    """Frame, change map and result side by side, a line of text under each."""
    moving, dense = measured.moving, measured.dense
    shown = measured.shown[i]
    share = moving.flops[i] / dense.flops[i]
    texts = (
        f"frame {i + 1}, sensor noise {NOISE:g}",
        f"{moving.density[i]:.1%} changed: {share:.0%} of the work",
        f"{moving.ms[i]:.1f} ms   (dense {dense.ms[i]:.1f} ms)",
    )
    panels = (shown.frame, change_map(shown), MODEL.draw(shown.frame, shown.found))
    height, width, _ = shown.frame.shape
    page = Image.new("RGB", (3 * width, height + CAPTION), GROUND)
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(max(width / 24, 8))
    for column, (panel, text) in enumerate(zip(panels, texts, strict=True)):
        page.paste(Image.fromarray(panel), (column * width, 0))
        pen.text((column * width + 14, height + CAPTION / 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(page)


def change_map(shown: Shown) -> Picture:
    """The frame, dark and grey, with what changed in colour."""
    grey = shown.frame.mean(-1, keepdims=True).repeat(3, -1)
    return overlay_mask((0.45 * grey).astype(np.uint8), shown.changed, CHANGED, opacity=0.8)


def draw_strip(path: Path, measured: Measured, columns: int = 5) -> None:
    """A PNG: frame, change map and result at some instants, and the time of every frame beneath."""
    frames = len(measured.shown)
    chosen = np.linspace(0, frames - 1, columns + 1).round().astype(int)[1:]
    ink, ground = _hex(INK), _hex(GROUND)
    figure = Figure(figsize=(3 * columns, 12.4), facecolor=ground, layout="constrained")
    grid = figure.add_gridspec(4, columns, height_ratios=(3, 3, 3, 2.6))
    for column, i in enumerate(chosen):
        shown = measured.shown[i]
        panels = (shown.frame, change_map(shown), MODEL.draw(shown.frame, shown.found))
        for row, (panel, label) in enumerate(zip(panels, ("frame", "what changed", "found"), strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(panel, interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0:
                axes.set_ylabel(label, color=ink, fontsize=15, labelpad=8)
            if row == 0:
                axes.set_title(f"frame {i + 1}", color=ink, fontsize=13)
            if row == 1:
                share = measured.moving.flops[i] / measured.dense.flops[i]
                told = f"{measured.moving.density[i]:.1%} changed, {share:.0%} of the work"
                axes.set_xlabel(told, color=ink, fontsize=12)
    axes = figure.add_subplot(grid[3, :], facecolor=ground)
    numbers = np.arange(2, frames + 1)
    colours = (DENSE, CHANGED, (94, 211, 133))
    for course, colour in zip((measured.dense, measured.moving, measured.still), colours, strict=True):
        told = f"{course.name}: {np.median(course.ms[1:]):.2f} ms"
        axes.plot(numbers, course.ms[1:], color=_hex(colour), linewidth=2, label=told)
    axes.set(xlim=(1, frames + 1), ylim=(0, 1.1 * np.quantile(measured.dense.ms[1:], 0.95)))
    axes.set_xlabel("frame", color=ink, fontsize=13)
    axes.set_ylabel("ms", color=ink, fontsize=13)
    axes.tick_params(colors=ink, labelsize=11)
    axes.spines[:].set_color(_hex(DENSE))
    axes.spines[["top", "right"]].set_visible(False)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(**place, ncols=3, frameon=False, labelcolor=ink, fontsize=13)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ValueError(f"`{path}` cannot be written ({error.strerror}); give another --out.") from error


def _course(
    name: str,
    compile_seconds: float,
    steps: Sequence[Step],
    dense: Sequence[Float[np.ndarray, "i j 15"]],
    digits: Sequence[Sequence[Digit]],
) -> Course:
    """Steps held against the dense outputs and against the digits that are there."""
    apart = [abs(s.output - d).max() / abs(d).max() for s, d in zip(steps, dense, strict=True)]
    size = (STRIDE * dense[0].shape[0], STRIDE * dense[0].shape[1])
    right = [rightly_named(MODEL.interpret(s.output, size), d) for s, d in zip(steps, digits, strict=True)]
    columns = ([s.ms for s in steps], [s.flops for s in steps], [s.density for s in steps], apart, right)
    return Course(name, compile_seconds, *(np.array(column, float) for column in columns))


def _dense(params: Any, frame: Array) -> Way:
    started = time.perf_counter()
    run = jax.jit(MODEL.apply).lower(params, frame).compile()
    seconds = time.perf_counter() - started
    inc = incremental(MODEL.apply)
    flops = float(inc.stats(inc.init(params, frame)[0]).flops_dense)
    everywhere = np.ones((1, 1), bool)

    def step(frame: Array) -> Step:
        output, ms = _timed(run, params, frame)
        return Step(np.asarray(output), everywhere, ms, flops, 1.0)

    return Way(seconds, lambda: step)


def _incremental(params: Any, frame: Array, tau: float, kernels: Kernels) -> Way:
    inc = incremental(MODEL.apply, tau=tau, cell=CELL, kernels=kernels)
    fresh, _ = inc.init(params, frame)
    started = time.perf_counter()
    run = jax.jit(inc.step, donate_argnums=1).lower(params, fresh, None, frame).compile()
    seconds = time.perf_counter() - started
    read = jax.jit(lambda cache: (inc.frame_mask(cache), inc.stats(cache)))

    def start() -> Callable[[Array], Step]:
        cache, _ = inc.init(params, frame)

        def step(frame: Array) -> Step:
            nonlocal cache
            (output, cache, _), ms = _timed(run, params, cache, None, frame)
            changed, stats = read(cache)
            density, flops = float(stats.frame_density), float(stats.flops_issued)
            return Step(np.asarray(output), np.asarray(changed), ms, flops, density)

        return step

    return Way(seconds, start)


def _timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `run` gives, and how many ms it took."""
    started = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return result, 1e3 * (time.perf_counter() - started)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
