"""`deltajax tune`: thresholds for a network, from a clip."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import PyTree, UInt8
from rich.console import Console

import deltajax as dj
from deltajax._incremental import Kernels
from deltajax.cli.network import UserError, load_network
from deltajax.cli.session import name_of, progress, stop_on_signal
from deltajax.models import VisionModel
from deltajax.tuning.tasks import MEANING, Task, follow_of, metric_of, task_of
from deltajax.video import VideoError, busiest, changes_in, open_source

LOOKED_THROUGH = 3000  # frames: two minutes of a camera


@dataclass(frozen=True)
class Tune:
    """Find the thresholds with which a network costs least on a clip, within an error that you allow.

    Writes them (JSON, for `deltajax run --taus`), the trade-off (PNG) and every trial (JSON lines): started again
    with the same words, it goes on where it was. Ctrl-C ends the search early with the best so far.
    """

    input: tyro.conf.Positional[str]
    """A video file, a folder of images, a quoted pattern of images ("shots/*.png"), or a camera's number."""

    model: str
    """The network's name, such as slim-320 (faces) or digits; a wrong name has all of them listed."""

    weights: Path | None = None
    """Weight file: the authors' own (.pth) or .safetensors. Left out: the weights in the package, if any."""

    tolerance: float | None = None
    """The error allowed, mean over the frames, in the metric's units: .01 is one point of F1, mIoU or agreement."""

    budget: float | None = None
    """Instead of --tolerance: the share of the dense FLOPs (0 to 1) to spend; the least error within it is found."""

    ms: float | None = None
    """Or instead: the milliseconds a frame to spend, on this machine as busy as it is; the least error within them is
    found. Times are noted with the trials: started again, the same words give the same thresholds."""

    metric: Literal["auto", "boxes", "regions", "class", "output"] = "auto"
    """Against the dense network: boxes: 1 - F1 at IoU .5; regions: 1 - mean IoU; class: share of frames with another
    likeliest class; output: relative root mean square. auto: that of the network's task."""

    lag: float = 0.5
    """Of boxes, by intersections over union of .5 to .95: how much of what a network would be off by that computed the
    first frame and then nothing may be left, 0 to 1. At 1 a box need not move until half of it is wrong."""

    out: Path | None = None
    """The JSON file. Left out: INPUT's name and the model's, in the current folder."""

    frames: int = 48
    """How many frames are used, one behind the other; the last quarter of them only to check what was found."""

    start: int | None = None
    """The first of them, counted from 0. Left out: those between which most changes, of the first 3,000 frames."""

    trials: int = 60
    """How many settings are tried, at most."""

    kernels: Kernels = "xla"
    """native: kernels of deltajax's own, for CPUs; they need a C++ compiler, once. What is found fits all, but their
    smaller tiles issue less. native-bf16: the same in bfloat16, where the processor has it."""

    seed: int = 0
    """Of the random steps: the same words give the same thresholds."""

    def run(self) -> None:
        """Searches, writes and prints what was found.

        Raises:
            UserError, VideoError: what the user has to change; finished trials stay in their file.
        """
        network = load_network(self.model, self.weights, kernels=self.kernels)
        out = self.out or Path(f"{name_of(self.input)}.{self.model}.taus.json")
        if out.suffix.lower() != ".json":
            raise UserError(f"the output '{out}' must end in .json")
        if not out.parent.is_dir():
            raise UserError(f"the output '{out}' needs the folder '{out.parent}'; make it first")
        if self.frames < 4 or (self.start or 0) < 0:
            raise UserError(f"--frames {self.frames} must be at least 4, and --start {self.start} at least 0")
        console, model = Console(), network.model
        start = self._first_frame() if self.start is None else self.start
        with open_source(self.input) as source:
            size = source.size
            wanted = itertools.islice(source.frames, start, start + self.frames)
            frames = [np.asarray(model.prepare(frame.rgb)) for frame in wanted]
        if len(frames) < 4:
            raise UserError(f"the input {self.input!r} has {len(frames)} frames from --start {start}; "
                            "tuning needs at least 4")
        log = out.with_suffix(".trials.jsonl")
        try:
            task = self._task(model, network.params, frames[0], size)
            metric = metric_of(task, model, size)
            with progress(Console(stderr=True), self.trials, "trials") as advance, stop_on_signal() as stop:

                def after_trial(*_: Any) -> bool:
                    advance()
                    return stop.is_set()

                found = dj.tune(
                    network.incremental, network.params, frames, tolerance=self.tolerance, budget=self.budget,
                    time_budget=None if self.ms is None else self.ms / 1000, metric=metric,
                    follow=follow_of(task, model, size), lag=self.lag, trials=self.trials, seed=self.seed, log=log,
                    progress=after_trial,
                )
            found.save(out)
            found.plot(out.with_suffix(".png"))
        except OSError as error:
            raise UserError(f"the output '{out}' cannot be written ({error.strerror}); give another --out") from error
        except ValueError as error:
            raise UserError(error) from error
        lines = [f"frames {start} to {start + len(frames) - 1}; error by {MEANING[task]}", str(found)]
        if not found.met:
            lines.append("nothing tried meets the budget; this is the nearest to it")
        elif not found.chosen.setting.tau and not found.chosen.setting.taus:
            lines.append("no thresholds keep the tolerance and save a tenth of the FLOPs: this is the exact setting")
        lines.append(f"wrote '{out}', '{out.with_suffix('.png')}' and '{log}'")
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _first_frame(self) -> int:
        """Where most happens: thresholds that were found where nothing does are blind to what comes later."""
        changes: list[float] = []
        with open_source(self.input) as source:
            if source.live:
                return 0
            with contextlib.suppress(VideoError):  # good until where it breaks off; the frames taken are read once more
                for change in changes_in(itertools.islice(source.frames, LOOKED_THROUGH)):
                    changes.append(change)
        return busiest(changes, self.frames).start

    def _task(self, model: VisionModel, params: PyTree, frame: UInt8[np.ndarray, "rows columns 3"], size) -> Task:
        """What is asked for, if the network's result can be judged so."""
        result = model.interpret(jax.tree.map(np.asarray, jax.jit(model.apply)(params, frame)), size)
        task = task_of(result)
        if self.metric not in ("auto", "output", task):
            other = "output" if task == "output" else f"{task} or output"
            raise UserError(f"--metric {self.metric} does not fit the model {self.model!r}; use {other}")
        return task if self.metric == "auto" else self.metric
