"""`deltajax run`: a network on a video, frame by frame, and a video of what it found."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, PyTree, UInt8
from rich.console import Console

from deltajax._incremental import Kernels
from deltajax._pipeline import ahead
from deltajax.cli.measurements import Figures, Measurements
from deltajax.cli.network import Network, UserError, check_segments, load_network
from deltajax.cli.session import name_of, progress, stop_on_signal
from deltajax.draw import RGB, draw_caption, overlay_mask
from deltajax.models import VisionModel
from deltajax.video import Frame, Source, VideoWriter, open_source


@dataclass(frozen=True)
class Run:
    """Run a network on a video, recompute only what changed, and write the video with the result drawn on it.

    Ctrl-C ends the run early; what was written until then is a complete video. While a frame is drawn and encoded, the
    next is computed and the one after it decoded; with --compare one thing after the other, for the sake of its times.
    """

    input: tyro.conf.Positional[str]
    """A video file, a folder of images, a quoted pattern of images ("shots/*.png"), or a camera's number."""

    model: str
    """The network's name, such as slim-320 (faces) or digits; a wrong name has all of them listed."""

    weights: Path | None = None
    """Weight file: the authors' own (.pth) or .safetensors. Left out: the weights in the package, if any."""

    tau: float = 0.0
    """Changes of at most this many grey levels (0 to 255) are ignored. 0: the result is exact."""

    taus: Path | None = None
    """Instead of --tau: the thresholds that `deltajax tune` wrote, for the frame and inside the network."""

    max_error: float | None = None
    """Find the thresholds while running: the output's error (relative root mean square) that at most about one audit
    in twenty may exceed. With --tau or --taus, those are where it begins."""

    audit: float = 0.0
    """The share of the frames (0 to 1) in which the whole network is run as well, to know the error that is there."""

    max_age: int | None = None
    """Every tile is computed afresh once in this many frames, whatever the thresholds say."""

    scene_cut: float | None = None
    """A mean change of more than so many grey levels is a new scene and computed whole; 27 is a common choice."""

    kernels: Kernels = "xla"
    """native: kernels of deltajax's own, for CPUs, several times as fast; they need a C++ compiler, once. native-bf16:
    the same in bfloat16, where the processor has it: up to twice as fast again, and less exact."""

    out: Path | None = None
    """The mp4 to write. Left out: INPUT's name and the model's, in the current folder."""

    overlay: Literal["mask", "none"] = "none"
    """mask: tint what changed, and write each frame's figures into the picture."""

    compare: bool = False
    """Also run the whole network on every frame, in turns, nothing beside it: its speed, the largest difference."""

    def run(self) -> None:
        """Runs to the end of the input, to Ctrl-C or to an error, and prints a summary in each case.

        Raises:
            UserError, VideoError: what the user has to change; every frame before it has been written.
        """
        if self.taus is not None and self.tau:
            raise UserError(f"give --tau {self.tau:g} or --taus '{self.taus}', not both: the file has a tau of its own")
        network = load_network(
            self.model, self.weights, self.tau, self.taus, max_error=self.max_error, audit=self.audit,
            max_age=self.max_age, scene_cut=self.scene_cut, kernels=self.kernels,
        )
        out = self.out or Path(f"{name_of(self.input)}.{self.model}.mp4")
        if out.exists() and Path(self.input).exists() and out.samefile(self.input):
            raise UserError(f"the output '{out}' is the input itself; give another --out")
        console = Console()
        with open_source(self.input) as source:
            writer = VideoWriter(out, source.size, source.frame_rate)
            measured = Measurements(overlapped=not self.compare)
            try:
                with writer:
                    self._run_frames(network, source, writer, measured)
            finally:
                measured.wall_seconds = time.perf_counter() - measured.begun
                if measured.step_seconds:
                    console.print(measured.table(), highlight=False)
                    for line in (*measured.remarks(), _what_was_written(writer, source)):
                        console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _run_frames(
        self, network: Network, source: Source, writer: VideoWriter, measured: Measurements
    ) -> None:
        model, params = network.model, network.params
        messages = Console(stderr=True)
        with messages.status(f"compiling {model.name}"):
            start = time.perf_counter()
            blank = jnp.asarray(model.prepare(np.zeros((*source.size, 3), np.uint8)))
            if self.taus is not None:
                check_segments(network, self.taus, blank)
            compiled = _compile(network, blank, dense=self.compare, change_map=self.overlay == "mask")
            measured.compile_seconds = time.perf_counter() - start
        prepared = _prepared(model, source)
        with progress(messages, source.length) as advance, stop_on_signal() as stop, ExitStack() as stages:
            measured.begun = time.perf_counter()
            if measured.overlapped:
                prepared = stages.enter_context(ahead(prepared))
            results = _stepped(compiled, params, prepared)
            if measured.overlapped:
                results = stages.enter_context(ahead(results))
            for result in results:
                measured.add_step(result.seconds, result.figures)
                if result.dense is not None:
                    measured.add_dense(result.dense[0], result.output, result.dense[1])
                writer.write(_drawn(model, result, source.size, measured.caption()), result.picture.time)
                advance()
                if stop.is_set():
                    measured.stopped = True
                    break


class _Result(NamedTuple):
    """What was computed for one picture; `changed` for an overlay, `dense` (seconds and output) for a comparison."""

    picture: Frame
    output: PyTree
    figures: Figures
    changed: Bool[np.ndarray, "rows columns"] | None
    seconds: float
    dense: tuple[float, PyTree] | None


def _prepared(model: VisionModel, source: Source) -> Iterator[tuple[Frame, UInt8[Array, "rows columns 3"]]]:
    for picture in source.frames:
        yield picture, jax.block_until_ready(jnp.asarray(model.prepare(picture.rgb)))


def _stepped(compiled: _Compiled, params: PyTree, prepared: Iterable[tuple[Frame, Array]]) -> Iterator[_Result]:
    cache, dense = compiled.cache, None
    for number, (picture, frame) in enumerate(prepared):
        # In turns, so that neither always comes first to a warm cache or a slower clock.
        if compiled.dense and number % 2:
            dense = _timed(compiled.dense, params, frame)
        seconds, (output, cache, figures) = _timed(compiled.step, cache, frame)
        if compiled.dense and not number % 2:
            dense = _timed(compiled.dense, params, frame)
        # Before the next step, which takes the cache's memory.
        changed = np.asarray(compiled.change_map(cache)) if compiled.change_map else None
        yield _Result(picture, output, figures, changed, seconds, dense)


def _drawn(model: VisionModel, result: _Result, size: tuple[int, int], caption: str) -> RGB:
    rgb, found = result.picture.rgb, model.interpret(jax.tree.map(np.asarray, result.output), size)
    if result.changed is None:
        return model.draw(rgb, found)
    return draw_caption(model.draw(overlay_mask(rgb, result.changed[model.place(size)]), found), caption)


class _Compiled(NamedTuple):
    cache: PyTree
    step: Callable[[PyTree, Array], tuple[PyTree, PyTree, Figures]]
    change_map: Callable[[PyTree], Bool[Array, "rows columns"]] | None
    dense: Callable[..., PyTree] | None


def _compile(network: Network, frame: UInt8[Array, "rows columns 3"], dense: bool, change_map: bool) -> _Compiled:
    """Compiles everything that the loop calls, so that no frame's time has a compilation in it."""
    incremental, params = network.incremental, network.params
    cache, _ = incremental.init(params, frame)

    def step(params: PyTree, cache: PyTree, frame: Array) -> tuple[PyTree, PyTree, Figures]:
        output, cache, _ = incremental.step(params, cache, None, frame)
        stats = incremental.stats(cache)
        issued = stats.flops_issued / stats.flops_dense
        return output, cache, Figures(
            stats.frame_density, issued, stats.whole_frames, stats.cache_bytes, stats.audit, stats.level
        )

    if incremental.options.native:  # what it needs of them is in the cache; handed over, each costs every call
        once = jax.jit(functools.partial(step, params), donate_argnums=0).lower(cache, frame).compile()
    else:
        once = functools.partial(jax.jit(step, donate_argnums=1).lower(params, cache, frame).compile(), params)
    return _Compiled(
        cache,
        once,
        jax.jit(incremental.frame_mask).lower(cache).compile() if change_map else None,
        jax.jit(network.model.apply).lower(params, frame).compile() if dense else None,
    )


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start, result


def _what_was_written(writer: VideoWriter, source: Source) -> str:
    height, width = writer.padded_size
    text = f"wrote '{writer.path}': {writer.frames_written} frames of {width}x{height}"
    if writer.padded_size != source.size:
        text += f" ({source.size[1]}x{source.size[0]} padded to the even sides that H.264 needs)"
    return f"{text} at {float(source.frame_rate):.4g} frames/s"
