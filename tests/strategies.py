"""Published ways to find thresholds against ours, on one number of trial runs: `python tests/strategies.py`.

All of them start where ours does: the noise's threshold for the frame, octaves of one standard deviation for the
segments; and all are judged alike: fewest issued FLOPs within the tolerance, on the frames that they searched. The
error is the relative output error or, with `--metric task`, that of the network's task; tolerances are shares of the
error of a network that computes the first frame and then nothing: .1 is strict, 1 is no limit at all. By the task's
error boxes have to move besides, as `deltajax tune` has it. A trial run that two strategies ask for is made once and
counted for each.

What was read, and what is followed:

* `greedy`: CBinfer (Cavigelli and Benini, arXiv 1808.05488; `tuneThresholdParameters` in lukasc-ch/CBinfer,
  pycbinfer/__init__.py). Followed: one layer after the other from the front, its threshold raised by a constant factor
  while the loss stays within that layer's tolerance, then one step back; later layers at 0 until their turn; the first
  layer has the largest tolerance (25 times the others' there, a third of all here). Not followed, each in its favour:
  a factor of 2, not 1.2, and layers in runs where the trials do not reach for three a layer (theirs is not
  bounded: at 1.2 it takes hundreds); a layer may use what those before it left over; a layer whose first step fails
  stays at 0 (theirs keeps a threshold that was not tried).
* `one_scale`: Event Neural Networks (Dutson, Li and Gupta, ECCV 2022), in their code (WISION-Lab/event-nn-tf,
  eventnn/policies.py and adjustments.py): one scale for the whole network, times a deviation for each layer (optional
  there, for each value). Not followed: they try six scales by hand, this halves the interval to the end of the trials.
* `evolution`: a derivative-free search of all thresholds at once, (1+1) with the one-fifth rule. Nothing of the kind is
  in that code, and the paper's own text was not at hand; it stands for what one would take off the shelf.
* `ours` is the tuner's search on the same thresholds; `ours_all` also chooses norm and cell, as `dj.tune` does (which
  keeps a tenth of the tolerance in hand besides, and checks on other frames).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from real import data, pictures

import deltajax as dj
from deltajax._incremental import Kernels
from deltajax.models import VisionModel, get_model
from deltajax.scenes import glide
from deltajax.tuning import Setting, Trial, metrics
from deltajax.tuning._noise import estimate_noise
from deltajax.tuning._search import HIGHEST, LOWEST, START, Ask, Goal, Spent, search
from deltajax.tuning._trials import Metric, Runner
from deltajax.tuning.tasks import follow_of, metric_of, task_of

LAG = 0.5  # as in `dj.tune`
DETECTIONS = (("linf", 1), ("linf", 4), ("l2", 1), ("l2", 4))


def greedy(ask: Ask, goal: Goal, segments: int, trials: int, seed: int) -> None:
    """CBinfer's, front to back."""
    runs = [np.array([0]), *(1 + part for part in np.array_split(np.arange(segments), min(segments, trials // 3 - 1)))]
    point = np.full(segments + 1, LOWEST)
    for number, run in enumerate(runs):
        share = goal.limit * (1 / 3 + 2 / 3 * number / (len(runs) - 1))
        for octave in itertools.count(0.0 if number == 0 else START):
            moved = point.copy()
            moved[run] = octave
            if octave > HIGHEST or goal.error(ask(0, moved)) > share:
                break
            point = moved


def one_scale(ask: Ask, goal: Goal, segments: int, trials: int, seed: int) -> None:
    """Event Neural Networks': octave by octave until the tolerance is left, then halfway."""
    start, inside, outside, at = np.array([0.0, *[START] * segments]), None, None, 0.0
    for _ in range(trials):
        inside, outside = (at, outside) if goal.fits(ask(0, start + at)) else (inside, at)
        if inside is not None and outside is not None:
            at = (inside + outside) / 2
        else:
            at += 1 if outside is None else -1


def evolution(ask: Ask, goal: Goal, segments: int, trials: int, seed: int) -> None:
    """A (1+1) evolution strategy in octaves."""
    rng, width = np.random.default_rng(seed), 1.0
    point = np.array([0.0, *[START] * segments])
    best = ask(0, point)
    while True:
        moved = np.clip(point + width * rng.normal(size=point.shape), LOWEST, HIGHEST)
        trial = ask(0, moved)
        if goal.rank(trial) < goal.rank(best):
            point, best, width = moved, trial, width * 1.5
        else:
            width *= 1.5**-0.25


def ours(ask: Ask, goal: Goal, segments: int, trials: int, seed: int) -> None:
    """The tuner's, with one norm and cell."""
    search(ask, goal, 1, segments, trials, seed)


def ours_all(ask: Ask, goal: Goal, segments: int, trials: int, seed: int) -> None:
    """The tuner's, with every norm and cell."""
    search(ask, goal, len(DETECTIONS), segments, trials, seed)


STRATEGIES = {greedy: False, one_scale: False, evolution: True, ours: True, ours_all: True}  # is there chance in it?


class Problem:
    """A network on a clip, with all trials that were made of it."""

    def __init__(
        self, function: Callable[..., Any], params: Any, clip: Sequence[np.ndarray],
        metric: Metric = metrics.output_error, follow: Metric | None = None, kernels: Kernels = "xla",
    ):
        noise = estimate_noise(np.stack(clip).astype(np.float32)[:, None])
        inc = dj.incremental(function, kernels=kernels)
        self._runner = Runner(inc, params, clip, metric, "linf", follow, LAG, noise.deviation)
        self._guesses = [max(1.0, noise.guess(norm, cell)) for norm, cell in DETECTIONS]
        self._made = functools.cache(lambda norm, cell, tau, taus: self._runner.run(
            Setting(norm, cell, tau, dict(zip(self._runner.units, taus, strict=True))), 0, len(clip)))

    @property
    def segments(self) -> int:
        """How many can have a threshold."""
        return len(self._runner.units)

    def frozen(self) -> float:
        """The error of computing nothing after the first frame."""
        return self._made("linf", 1, 1e30, (1e30,) * self.segments).error

    def cheapest(self, strategy: Callable[..., None], tolerance: float, trials: int, seed: int) -> Trial | None:
        """With the fewest issued FLOPs within the tolerance; none if nothing that was tried keeps it."""
        goal, made = Goal(tolerance, None), {}

        def ask(detection: int, point: np.ndarray) -> Trial:
            (norm, cell), guess = DETECTIONS[detection], self._guesses[detection]
            scales = [self._runner.scale(name, norm) for name in self._runner.units]
            key = norm, cell, guess * 2.0 ** point[0], tuple(np.multiply(scales, 2.0 ** point[1:]).tolist())
            if key not in made and len(made) == trials:
                raise Spent
            made[key] = self._made(*key)
            return made[key]

        with contextlib.suppress(Spent):
            strategy(ask, goal, self.segments, trials, seed)
        return min(filter(goal.fits, made.values()), key=goal.rank, default=None)


class Row(NamedTuple):
    """Issued FLOPs as shares of the dense ones, for each seed; exact (1) where nothing kept the tolerance."""

    strategy: str
    tolerance: float
    issued: list[float]


def compare(
    problem: Problem, tolerances: Sequence[float], trials: int, seeds: int, names: Sequence[str] = ()
) -> Iterator[Row]:
    """The strategies of these names (all of them, if none is named) at every tolerance, a share of the frozen error."""
    for tolerance, (strategy, chance) in itertools.product(tolerances, STRATEGIES.items()):
        if names and strategy.__name__ not in names:
            continue
        limit, tries = tolerance * problem.frozen(), range(seeds if chance else 1)
        found = [problem.cheapest(strategy, limit, trials, seed) for seed in tries]
        yield Row(strategy.__name__, tolerance, [1.0 if trial is None else trial.issued for trial in found])


def drawn_clip(count: int, size: int = 192) -> list[np.ndarray]:
    """Digits gliding over a texture under noise."""
    return [scene.frame for scene in itertools.islice(glide(frames=120, size=size), count)]


CASES = {  # network: weights, clip and its first frame
    "digits": None,
    "slim-320": ("version-slim-320.pth", "static/asl/again.mkv", 20),
    "rfb-320": ("version-RFB-320.pth", "static/asl/no.mkv", 20),
    "fastestdet": ("fastestdet_coco.pth", "static/vtest.avi", 20),
    "prisma-net": ("prisma_net_256.onnx", "static/asl/bird.mkv", 20),
}


@dataclass(frozen=True)
class Comparison:
    """Compares the strategies; the real networks' weights and clips are in the folder that DELTAJAX_DATA names."""

    networks: tuple[str, ...] = tuple(CASES)
    tolerances: tuple[float, ...] = (0.1, 0.2, 0.4)
    strategies: tuple[str, ...] = ()
    trials: int = 40
    seeds: int = 3
    frames: int = 24
    metric: Literal["output", "task"] = "output"
    kernels: Kernels = "native"

    def run(self) -> None:
        """Prints a line for each strategy and tolerance."""
        for name in self.networks:
            model, case = get_model(name), CASES[name]
            if case is None:
                params, clip = model.load(None), drawn_clip(self.frames)
            else:
                weights, video, first = case
                params = model.load(data(f"weights/{weights}"))
                clip = [np.asarray(model.prepare(rgb)) for rgb in pictures(video, *range(first, first + self.frames))]
            metric, follow = self._metrics(model, params, clip[0])
            problem = Problem(model.apply, params, clip, metric, follow, self.kernels)
            print(f"{name}: {problem.segments} segments, error if frozen {problem.frozen():.4g}", flush=True)
            for row in compare(problem, self.tolerances, self.trials, self.seeds, self.strategies):
                shares = " ".join(f"{100 * share:.1f}" for share in row.issued)
                print(f"{name} tolerance {row.tolerance:g} {row.strategy}: % of FLOPs issued {shares}", flush=True)

    def _metrics(self, model: VisionModel, params: Any, frame: np.ndarray) -> tuple[Metric, Metric | None]:
        if self.metric == "output":
            return metrics.output_error, None
        size = frame.shape[0], frame.shape[1]
        task = task_of(model.interpret(jax.tree.map(np.asarray, jax.jit(model.apply)(params, frame)), size))
        return metric_of(task, model, size), follow_of(task, model, size)


if __name__ == "__main__":
    tyro.cli(Comparison).run()
