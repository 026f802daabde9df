"""`deltajax explain`, `demo` and `bench`: options that are passed on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from rich.console import Console

import deltajax as dj
from deltajax._incremental import Kernels
from deltajax.cli.network import UserError
from deltajax.cli.session import progress
from deltajax.models import VisionModel, get_model


@dataclass(frozen=True)
class Explain:
    """Show how a network is made incremental: its segments, rules, tiles, halos and cache."""

    model: str
    """The network's name, such as slim-320 (faces) or digits; a wrong name has all of them listed. Or an ONNX file of a
    network that takes one picture."""

    weights: Path | None = None
    """Weight file, checked against the network. Not needed: only the shapes of weights are read."""

    size: tuple[int, int] | None = None
    """Height and width of the frames, for a network that takes any size."""

    kernels: Kernels = "xla"
    """native: which segments the kernels of deltajax's own do, and why not the others; native-bf16: in bfloat16."""

    def run(self) -> None:
        """Prints the report of `Incremental.explain`, which reads only the shapes of weights.

        Raises:
            UserError: the model, its weights or the size do not fit together.
        """
        try:
            if self.model.endswith(".onnx"):
                what = _of_file(self.model, self.weights, self.size)
                frame = jax.ShapeDtypeStruct((*what.size, 3), what.dtype)
                print(dj.incremental(what.fn, kernels=self.kernels).explain(what.params, frame))
                return
            model = get_model(self.model)
            params = model.shapes() if self.weights is None else model.load(self.weights)
            blank = model.prepare(np.zeros((*self._size(model), 3), np.uint8))
            jax.eval_shape(model.apply, params, blank)  # a network may refuse a size
            print(dj.incremental(model.apply, kernels=self.kernels).explain(params, blank))
        except ValueError as error:
            raise UserError(error) from error

    def _size(self, model: VisionModel) -> tuple[int, int]:
        """Height and width of the frames; `UserError` if the model takes no such frames or it is not said which."""
        fixed = model.frame_size
        size = self.size or fixed
        if size is None:
            raise UserError(
                f"the model {self.model!r} takes frames of any size; say which with --size 480 640"
            )
        if fixed is not None and size != fixed:
            raise UserError(
                f"the model {self.model!r} takes frames of {fixed[0]} {fixed[1]}, not {size[0]} {size[1]}; "
                "leave --size out"
            )
        if min(size) < 1:
            raise UserError(f"--size {size[0]} {size[1]} must be two positive numbers: height and width")
        return size


@dataclass(frozen=True)
class Demo:
    """Find gliding digits in a generated clip; write a picture strip and an mp4; print what was saved."""

    out: Path = Path()
    """The folder to write to."""
    kernels: Kernels = "xla"
    """native: the step by kernels of deltajax's own, for CPUs; they need a C++ compiler, once. native-bf16: the same in
    bfloat16, where the processor has it. Dense stays JAX's, in float32."""

    def run(self) -> None:
        """Needs no network and no data: the clip is drawn here, the weights are in the package.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        from deltajax._demo import demo

        demo(folder(self.out), kernels=self.kernels)


@dataclass(frozen=True)
class Bench:
    """Measure a network dense and incremental, in turns, over the share of the frame that changes."""

    model: str = "stack15"
    """stack15, the fifteen convolutions that the README quotes, or a network's name, such as slim-320 or digits, or an
    ONNX file of a network that takes one picture."""

    weights: Path | None = None
    """Weight file of the network. Left out: random weights, which take the same time."""

    size: tuple[int, int] | None = None
    """Height and width of the frames. Left out: the network's own, or 384 512."""

    density: tuple[float, ...] = (0.0, 0.005, 0.02, 0.08, 0.25, 1.0)
    """Shares of the frame, in 0..1, that a moving square changes."""

    pattern: Literal["square", "scattered"] = "square"
    """What changes: a square that moves, or blocks of 16x16 here and there."""

    kernels: Kernels = "xla"
    """native: the step by kernels of deltajax's own, for CPUs; they need a C++ compiler, once. native-bf16: the same in
    bfloat16, where the processor has it. Dense stays JAX's, in float32."""

    breakdown: float | None = None
    """A share of the frame at which every segment is measured by itself as well: dense, step, issued, useful."""

    calibrate: bool = False
    """Instead: measure how fast this machine is on tiles and on whole pictures, and keep that on disk. From then on it
    decides between the two; without it, what two cores of a server do. Close other programs first."""

    out: Path = Path()
    """The folder for the plot (PNG)."""

    def run(self) -> None:
        """Prints a table of compile time, first frame and steady state, and writes a plot.

        Raises:
            UserError: the model is unknown, the weights are another's, a density is outside 0..1, or the
                folder cannot be made or written to.
        """
        if self.calibrate:
            _calibrate()
            return
        for name, shares in (("density", self.density), ("breakdown", (self.breakdown or 0.0,))):
            outside = [share for share in shares if not 0 <= share <= 1]
            if outside:
                raise UserError(f"--{name} {outside[0]} must be a share of the frame, between 0 and 1")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"--size {self.size[0]} {self.size[1]} must be two positive numbers: height and width")
        if self.model.endswith(".onnx"):
            try:
                what = _of_file(self.model, self.weights, self.size)
                jax.eval_shape(what.fn, what.params, jax.ShapeDtypeStruct((*what.size, 3), what.dtype))
            except ValueError as error:
                raise UserError(error) from error
        elif self.model != "stack15":
            try:
                model = get_model(self.model)
                params = model.shapes() if self.weights is None else model.load(self.weights)
                size = self.size or model.frame_size or (384, 512)
                jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((*size, 3), np.uint8))
            except ValueError as error:
                raise UserError(error) from error
        from deltajax._bench import bench

        bench(model=self.model, weights=self.weights, densities=self.density, out=folder(self.out),
              by_segment=self.breakdown, size=self.size, pattern=self.pattern, kernels=self.kernels)


def _of_file(path: str, weights: Path | None, size: tuple[int, int] | None):
    """The network of an ONNX file.

    Raises:
        ValueError: it cannot be read, or takes no such frames; or `weights` are given besides.
    """
    from deltajax._bench import subject

    if weights is not None:
        raise ValueError(f"--weights {weights} has no place beside '{path}', which has its own; leave it out")
    return subject(path, None, size)


def _calibrate() -> None:
    from deltajax import _rates
    from deltajax._calibrate import WIDTHS, calibrate

    with progress(Console(stderr=True), len(WIDTHS), "convolutions") as advance:
        found = calibrate(advance)
    try:
        file = _rates.keep(found)
    except OSError as error:
        raise UserError(f"the file '{_rates.place()}' cannot be written ({error.strerror})") from error
    print(f"{_rates.machine()}: a tile costs {1e6 * found.tile_overhead:.1f} us and its FLOPs at "
          f"{found.tile_rate / 1e9:.0f} GFLOP/s; a whole picture {found.dense_rate / 1e9:.0f} GFLOP/s")
    print(f"kept in '{file}'; remove it to go back to the defaults")


def folder(path: Path) -> Path:
    """`path`, made if need be; `UserError` if that or writing to it is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder '{path}' cannot be made ({error.strerror}); give another --out"
        ) from error
    if not os.access(path, os.W_OK):
        raise UserError(f"the folder '{path}' cannot be written to; give another --out")
    return path
