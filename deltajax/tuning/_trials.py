"""One network on one clip, run again and again with other thresholds: compiled once for each norm."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._detect import find, pictures
from .._env import Env
from .._incremental import Incremental, fixed_values
from .._plan import Plan, thresholded
from .._run import initial_state, run_step
from .._stats import measure

Metric = Callable[[PyTree, PyTree], float]
Frames = Sequence[Any] | np.ndarray | jax.Array

SWAY = 1.5  # a standing output and one that sways by noise are apart by the noise of both
SWAYED = 8  # frames, at most, in which that is measured


@dataclasses.dataclass(frozen=True)
class Setting:
    """The options of `incremental` that are tuned; thresholds in the units of the frame and of the segments."""

    norm: str
    cell: int
    tau: float
    taus: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A setting and what it did on the frames, the first left out: there is nothing to compare it with.

    Attributes:
        setting: the thresholds.
        error: the metric's mean over the frames; `worst`: its largest value.
        issued, useful: FLOPs as shares of the dense function's, means over the frames.
        density: share of the frame that changed, mean over the frames.
        held_out: whether the frames were those kept from the search.
        seconds: that the compiled step took, mean over the frames of the shorter of two runs; `None` if not asked for.
        apart: the mean of `follow`; 0 without.
        behind: that as a share of what may be left of it; at most 1 is near enough.
    """

    setting: Setting
    error: float
    worst: float
    issued: float
    useful: float
    density: float
    held_out: bool = False
    seconds: float | None = None
    apart: float = 0.0
    behind: float = 0.0


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far off a network is on some frames that computes the first of them and then nothing.

    Attributes:
        error: the metric's mean. Where it is within the tolerance, the frames put no threshold to the test.
        apart: the mean of `follow`; `None` if there is none.
        sway: the same of the dense network when the camera's noise is added to the frames once more; `None` likewise.
    """

    error: float
    apart: float | None = None
    sway: float | None = None

    @property
    def moves(self) -> bool:
        """Whether `follow` sees more than noise move; not without it."""
        return self.apart is not None and self.sway is not None and self.apart > SWAY * self.sway

    def allowed(self, lag: float) -> float:
        """What may be left of `follow`'s mean; infinite where nothing moves."""
        if not self.moves:
            return math.inf
        assert self.apart is not None and self.sway is not None
        return max(lag * self.apart, SWAY * self.sway)


class Runner:
    """Runs `inc` with any setting; `units` are the segments that a threshold can do something for.

    Attributes:
        units: of each segment whose result another one reads, one standard deviation of it on the frames: over all
            positions and channels, mean square over its results. Segments of whole numbers, constant ones and those
            without tiles are left out.
    """

    # `noise`: the camera's, one deviation, in the units of the frame; the others as in `tune`.
    def __init__(
        self, inc: Incremental, params: PyTree, frames: Frames, metric: Metric, norm: str,
        follow: Metric | None = None, lag: float = 1.0, noise: float = 0.0,
    ):
        self._inc, self._params, self._metric = inc, params, metric
        self._follow, self._lag, self._noise = follow, lag, noise
        self.frames = [jnp.asarray(frame) for frame in frames]
        self.plan = inc.plan(params, frames[0])
        # Once, not for each trial: to make it of the params takes longer than to run many a clip.
        self._kept = inc.init(params, frames[0])[0]["fixed"]
        self._whole = jax.jit(inc.fn)
        self._dense = [self._computed(frame) for frame in frames]
        self._standing: dict[tuple[int, int], Standing] = {}
        self._steps: dict[str, Any] = {}
        self._finds: dict[tuple[str, int], Any] = {}
        self._written: dict[str, list[Any]] = {}
        self._shares = jax.jit(functools.partial(_shares, self.plan))
        self.units = self._measure_units(norm)

    def _measure_units(self, norm: str) -> dict[str, float]:
        plan, found = self.plan, {}
        for segment in thresholded(plan):
            self._written[segment.name] = segment.writes
        # A fresh cache has everything computed, whatever masks and thresholds say.
        squares = {name: [] for name in self._written}
        zeros, everywhere = jnp.zeros((len(plan.segments),)), jnp.ones((plan.streams, *plan.frame.picture), bool)
        for number in sorted({0, len(self.frames) // 2, len(self.frames) - 1}):
            _, state = self._step(norm)(*self._fresh(), zeros, everywhere, self.frames[number])
            env = Env.of(plan, 1, {}, state)
            for name, values in self._written.items():
                for value in values:
                    result = plan.layouts[value].load(env.map(value))
                    squares[name].append(float(jnp.var(result.astype(jnp.float32))))
        for name, parts in squares.items():
            unit = math.sqrt(sum(parts) / len(parts))
            if math.isfinite(unit) and unit > 0:
                found[name] = unit
        return found

    def scale(self, name: str, norm: str) -> float:
        """The threshold of segment `name` that a difference of one unit in every channel reaches."""
        value = self._written[name][0]
        channels = math.prod(value.shape[axis] for axis in value.map_axes.channels(len(value.shape)))
        return self.units[name] * {"linf": 1.0, "l2": math.sqrt(channels), "l1": float(channels)}[norm]

    def _fresh(self):
        """``(params, kept, state)`` of a fresh cache, for a step, which takes the state over."""
        return jax.tree.leaves(self._params), self._kept, initial_state(self.plan, self._inc.options.how)

    def _step(self, norm: str):
        if norm not in self._steps:
            self._steps[norm] = jax.jit(functools.partial(tuned_step, self._inc, self.plan, norm), donate_argnums=2)
        return self._steps[norm]

    def _find(self, norm: str, cell: int):
        if (norm, cell) not in self._finds:
            self._finds[norm, cell] = jax.jit(functools.partial(find_changed, self._inc, self.plan, norm, cell))
        return self._finds[norm, cell]

    def run(self, setting: Setting, first: int, end: int, held_out: bool = False, timed: bool = False) -> Trial:
        """The frames `first` to before `end` in turn, from a fresh cache; `timed`: twice, with their times."""
        errors, followed, figures, seconds = [], [], [], []
        for number, output, shares, taken in self._frames(setting, first, end):
            output = jax.tree.map(np.asarray, output)
            errors.append(self._error(number, output))
            followed.append(0.0 if self._follow is None else self._error(number, output, self._follow))
            figures.append(np.asarray(shares))
            seconds.append(taken)
        means = np.mean(np.array(figures, np.float64), axis=0).tolist()
        apart = float(np.mean(followed))
        trial = Trial(setting, float(np.mean(errors)), float(np.max(errors)), *means, held_out=held_out, apart=apart,
                      behind=apart / self._allowed(first, end, held_out))
        if not timed:
            return trial
        again = [taken for *_, taken in self._frames(setting, first, end)]
        return dataclasses.replace(trial, seconds=float(np.mean(np.minimum(seconds, again))))

    def _frames(self, setting: Setting, first: int, end: int) -> Iterator[tuple[int, PyTree, Any, float]]:
        """After the first: ``(number, output, shares of the FLOPs and the frame, seconds of the step)``."""
        step, find_changed = self._step(setting.norm), self._find(setting.norm, setting.cell)
        taus = jnp.asarray([setting.taus.get(segment.name, 0.0) for segment in self.plan.segments], jnp.float32)
        leaves, kept, state = self._fresh()
        for number in range(first, end):
            start = time.perf_counter()
            given = find_changed(state["maps"][0], self.frames[number], setting.tau)
            output, state = jax.block_until_ready(step(leaves, kept, state, taus, given, self.frames[number]))
            taken = time.perf_counter() - start
            if number > first:
                yield number, output, self._shares(kept, state), taken

    def standing(self, first: int, end: int) -> Standing:
        """Of a network that stands still after frame `first`."""
        if (first, end) not in self._standing:
            still, numbers = self._dense[first], range(first + 1, end)
            error = float(np.mean([self._error(number, still) for number in numbers]))
            apart = sway = None
            if self._follow is not None:
                apart = float(np.mean([self._error(number, still, self._follow) for number in numbers]))
                some = numbers[:: -(-len(numbers) // SWAYED)]
                sway = float(np.mean([self._error(number, self._swayed(number), self._follow) for number in some]))
            self._standing[first, end] = Standing(error, apart, sway)
        return self._standing[first, end]

    def _allowed(self, first: int, end: int, held_out: bool) -> float:
        """Kept frames in which less moves than in those before them allow as much: a threshold holds as much back."""
        spans = [(first, end), (0, first)] if held_out else [(first, end)]
        seen = [standing for span in spans if (standing := self.standing(*span)).moves]
        return max((standing.allowed(self._lag) for standing in seen), default=math.inf)

    def _computed(self, frame: Any) -> PyTree:
        return jax.tree.map(np.asarray, self._whole(self._params, frame))

    def _swayed(self, number: int) -> PyTree:
        """The dense output of a frame with the camera's noise on it once more."""
        frame = np.asarray(self.frames[number])
        noisy = frame + np.random.default_rng(number).normal(0, self._noise, frame.shape)
        if np.issubdtype(frame.dtype, np.integer):
            limits = np.iinfo(frame.dtype)
            noisy = np.clip(np.rint(noisy), limits.min, limits.max)
        return self._computed(noisy.astype(frame.dtype))

    def _error(self, number: int, output: PyTree, by: Metric | None = None) -> float:
        error = float((by or self._metric)(self._dense[number], output))
        if not error >= 0:
            name = "metric" if by is None else "follow"
            raise ValueError(f"`{name}` returned {error} for frame {number}; it must be >= 0, and 0 if all is equal.")
        return error

    def fingerprint(self) -> str:
        """Of all that a trial's result depends on beside its setting."""
        digest = hashlib.sha256()
        leaves, tree = jax.tree.flatten(self._params)
        inc = self._inc
        how, run = inc.options.how, inc.options
        options = (
            inc.spatial_axes, how.field, how.reference, how.scene_cut, inc.tile, run.bucket, run.dense_share,
        )
        segments = [(segment.name, segment.flops) for segment in self.plan.segments]
        judges = identity(self._metric), self._follow and (identity(self._follow), self._lag)
        digest.update(repr((str(tree), judges, options, segments)).encode())
        for array in (*leaves, *self.frames):
            array = np.ascontiguousarray(array)
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def identity(function: Callable[..., Any]) -> str:
    """Module, name and, of what is written in Python, the code: another text under the same name is another metric.

    What it reads from elsewhere (globals, closures, attributes) is not looked at; bytecode is that of one Python
    version, so another one makes its trials anew.
    """
    function = inspect.unwrap(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(function if named is function else named.__call__, "__code__", None)
    digest = hashlib.sha256(repr(_code(code)).encode()).hexdigest() if code is not None else ""
    return f"{named.__module__}.{named.__qualname__} {digest}"


def _code(value: Any) -> Any:
    """What a code object does, without the places where it was written; of constants, their text in a fixed order."""
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_code(constant) for constant in value.co_consts]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def tuned_step(inc: Incremental, plan: Plan, norm: str, leaves, kept, state, taus, given, frame):
    """``(output, state)`` with the thresholds as an array, one for each segment: one compilation for all of them.

    Args:
        leaves, kept, state: the params' leaves, the cache's "fixed" and the rest of the cache.
        given: of `find_changed`.
    """
    how = dataclasses.replace(inc.options.how, tau=0.0, norm=norm, trust=True)
    names = [segment.name for segment in plan.segments]
    outputs, state, _ = run_step(
        plan, dataclasses.replace(inc.options, how=how, taus={name: taus[i] for i, name in enumerate(names)}),
        fixed_values(plan, leaves, kept), state, given, frame[None],
    )
    return plan.out_tree.unflatten([x[0] for x in plan.returned(outputs)]), state


def _shares(plan: Plan, kept, state):
    """Of the last step, apart from it: its time is without them."""
    stats = measure(plan, {"fixed": kept, **state})
    return stats.flops_issued / stats.flops_dense, stats.flops_useful / stats.flops_dense, stats.frame_density


def find_changed(inc: Incremental, plan: Plan, norm: str, cell: int, stored, frame, tau):
    """What changed in the frame, apart from the step: another cell need not have the network compiled again."""
    how = dataclasses.replace(inc.options.how, tau=tau, norm=norm, cell=cell)
    layout = plan.layouts[plan.frame]
    return find(layout, how, *pictures(layout, stored, frame[None]))


class Log:
    """Finished trials, one JSON object in a line, behind a line that says what they were made with."""

    def __init__(self, path: Path | None, fingerprint: str):
        self._path = path
        self._known: dict[str, Trial] = {}
        if path is None:
            return
        head = json.dumps({"deltajax": "tune", "fingerprint": fingerprint})
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and lines[0] != head:
            raise ValueError(
                f"`log` (='{path}') holds trials of another network, other frames or another metric; "
                "remove it or name another file."
            )
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # cut off when the run was killed: the trial is made again
                continue
            trial = Trial(**{**row, "setting": Setting(**row["setting"])})
            self._known[_key(trial.setting, trial.held_out)] = trial
        # Written anew, so that a cut-off line does not swallow the next one.
        path.write_text("".join(f"{text}\n" for text in (head, *map(_line, self._known.values()))))

    def get(self, setting: Setting, held_out: bool, timed: bool = False) -> Trial | None:
        """The trial, if it was made before, and timed if that is asked for."""
        found = self._known.get(_key(setting, held_out))
        if found is None or timed:
            return found if found is not None and found.seconds is not None else None
        return dataclasses.replace(found, seconds=None)

    def add(self, trial: Trial) -> None:
        """Writes it down at once."""
        self._known[_key(trial.setting, trial.held_out)] = trial
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(_line(trial) + "\n")


def _line(trial: Trial) -> str:
    return json.dumps(dataclasses.asdict(trial))


def _key(setting: Setting, held_out: bool) -> str:
    return json.dumps([dataclasses.asdict(setting), held_out], sort_keys=True)
