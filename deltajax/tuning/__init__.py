"""Thresholds that tune themselves on a clip.

Law: same function, params, frames, metric, goal and seed give the same thresholds, whether a run was interrupted and
resumed or not. A budget of time alone is met on a clock, which is not the same twice: there the law holds for one log,
in which every time that was measured is noted and not measured again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from .._incremental import Incremental, _check_choice, incremental
from . import metrics as metrics
from ._noise import Noise as Noise
from ._noise import Pulses as Pulses
from ._noise import estimate_noise, find_pulses
from ._result import Tuning as Tuning
from ._search import Goal, Spent, search
from ._trials import Frames, Log, Metric, Runner
from ._trials import Setting as Setting
from ._trials import Standing as Standing
from ._trials import Trial as Trial

AIM = 0.9  # of the tolerance, and of a time: other frames are other frames
CHECKS = 8  # at most, on the frames that were kept from the search
WORTH = 0.9  # of what the exact setting costs: a setting that costs more saves nothing that is worth an error
RETREAT = 8  # octaves, at most, from a setting that does too much on frames that the search did not see


def tune(
    inc: Incremental | Callable[[PyTree, Any], PyTree],
    params: PyTree,
    frames: Frames,
    *,
    tolerance: float | None = None,
    budget: float | None = None,
    time_budget: float | None = None,
    metric: Metric | None = None,
    follow: Metric | None = None,
    lag: float = 0.5,
    norms: Sequence[str] = ("linf", "l2"),
    cells: Sequence[int] = (4, 16),
    trials: int = 60,
    held_out: float = 0.25,
    seed: int = 0,
    log: str | Path | None = None,
    progress: Callable[[int, int, Trial], object] | None = None,
) -> Tuning:
    """Find `tau`, `norm`, `cell` and `taus` on the frames of a clip: the cheapest within a tolerance, or the best
    within a budget. ``dj.incremental(fn, **tuning.options)`` is then the tuned function.

    A trial runs the clip's first part from its first frame on, with one setting; its error is the metric's mean over
    the frames after the first. What is chosen was also tried on the clip's last part, which the search never saw: the
    best trial that meets the goal there too; if none keeps the tolerance, the best one with its thresholds lowered,
    octave by octave, until it does; and what saves less than a tenth of the exact setting's FLOPs is not worth an
    error: then it is that. The network is compiled once for each norm, not for each setting.

    Args:
        inc: a function of ``(params, frame)``, or its `incremental` form, whose tile, bucket, field, reference and
            other options are kept; its thresholds, norm and cell are what is searched; `max_age`, `stand`, audits and
            `max_error` are left out of the trials.
        params: as in `Incremental.init`.
        frames: consecutive frames of one shape and dtype, at least 4; 20 to 100 do.
        tolerance: the error not to be exceeded, in the metric's own units; the search aims at nine tenths of it.
        budget: the issued FLOPs not to be exceeded, as a share of the dense function's, in (0, 1].
        time_budget: the seconds a frame not to be exceeded, on this machine as busy as it is; the search aims at nine
            tenths of it. Measured is the compiled step alone, each frame as the shorter of two runs, the mean over
            the frames after the first. Give one of the three.
        metric: ``(dense output, output) -> error``, both in numpy; 0 is equal, larger is worse. Left out: the output
            error, `metrics.output_error`: root mean square of the difference, relative to that of the dense output.
        follow: a finer error of the same form, where a network that stands still may pass under `metric`, as it does
            under `metrics.box_error` until half of each box is wrong (then: `metrics.placement_error`). A setting has
            to keep this as well: `follow`'s mean may be at most `lag` of what it is for a network that computes the
            first frame and then nothing, or what the camera's noise makes of the dense network. Where nothing moves
            but noise it asks nothing.
        lag: that share, in (0, 1].
        norms, cells: what is tried for `norm` and `cell`; cells of the size of a tile serve noisy cameras best.
        trials: how many settings are tried, at most, on the first part.
        held_out: the share of the frames that is kept from the search, in [0, .5]; 0 checks nothing.
        seed: of the random steps.
        log: a file in which finished trials are noted, and from which a rerun takes them, as long as params, frames,
            options and metric are the same; a metric is known by its name and its code, not by what it closes over.
        progress: called with the number of trials done, their largest number and the last one; a true answer ends
            the search, and the best so far is the result.

    Returns:
        The thresholds, what they cost and save, and every trial. Where nothing meets the goal, `met` is false and the
        setting is the exact one (for a tolerance) or the cheapest tried (for a budget of either kind).

    Raises:
        ValueError: an option has a value outside its range, or the log belongs to something else.
    """
    goal = _goal(tolerance, budget, time_budget)
    aim = Goal(None if tolerance is None else AIM * tolerance, budget,
               None if time_budget is None else AIM * time_budget)
    whole = {"trials": trials, **{f"cells[{number}]": cell for number, cell in enumerate(cells)}}
    for name, count in whole.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"`{name}` (={count!r}) must be a whole number >= 1.")
    for norm in norms:
        _check_choice("norms", norm, ("l1", "l2", "linf"))
    if not norms or not cells:
        raise ValueError("`norms` and `cells` must name at least one norm and one cell each; leave them out.")
    if not 0 < lag <= 1:
        raise ValueError(f"`lag` (={lag!r}) must lie in (0, 1]: a share of what a network is off by that stands still.")
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"`held_out` (={held_out!r}) must lie in [0, 0.5]; 0 keeps no frames from the search.")
    shapes = {(tuple(np.shape(frame)), str(getattr(frame, "dtype", type(frame)))) for frame in frames}
    if len(frames) < 4 or len(shapes) != 1:
        raise ValueError(
            f"`frames` (={len(frames)} of {sorted(shapes)}) must be at least 4 frames of one shape and dtype."
        )
    inc = inc if isinstance(inc, Incremental) else incremental(inc)
    how = dataclasses.replace(inc.options.how, stand=1, large=None)
    options = dataclasses.replace(inc.options, how=how, taus={}, max_age=None)
    inc = dataclasses.replace(inc, options=options, audit=None, control=None, _plans={}, _measures={})
    pictures = _pictures(inc, frames)
    noise = estimate_noise(pictures)
    runner = Runner(inc, params, frames, metric or metrics.output_error, norms[0], follow, lag, noise.deviation)
    notes = Log(None if log is None else Path(log), runner.fingerprint())
    detections = [(norm, cell) for norm in norms for cell in cells]
    least = _one_level(frames)
    guesses = [max(noise.guess(norm, cell), least) for norm, cell in detections]
    end = len(frames) - min(round(held_out * len(frames)), len(frames) - 2)
    end = len(frames) if len(frames) - end < 2 else end
    made: dict[Any, Trial] = {}
    stopped = False

    def attempt(setting: Setting, on_kept: bool = False) -> Trial:
        found = notes.get(setting, on_kept, goal.timed)
        if found is None:
            span = (end, len(frames)) if on_kept else (0, end)
            found = runner.run(setting, *span, on_kept, goal.timed)
            notes.add(found)
        return found

    def asked(setting: Setting) -> Trial:
        nonlocal stopped
        key = _key(setting)
        if key not in made:
            if stopped or len(made) == trials:
                raise Spent
            made[key] = attempt(setting)
            stopped = progress is not None and bool(progress(len(made), trials, made[key]))
        return made[key]

    def ask(detection: int, point: np.ndarray) -> Trial:
        norm, cell = detections[detection]
        taus = {name: _rounded(runner.scale(name, norm) * 2.0**octaves)
                for name, octaves in zip(runner.units, point[1:], strict=True)}
        return asked(Setting(norm, cell, _rounded(guesses[detection] * 2.0 ** point[0]), taus))

    exact = asked(Setting(norms[0], 1, 0.0, {}))
    search(ask, aim, len(detections), len(runner.units), trials - 1, seed)
    ranked = sorted(made.values(), key=aim.rank)
    chosen, check = ranked[0], None
    if not aim.fits(chosen) and tolerance is not None:
        chosen = exact
    if end < len(frames):
        chosen, check = _checked(aim, goal, ranked, exact, lambda trial: attempt(trial.setting, True))
        if chosen is exact and tolerance is not None and aim.fits(ranked[0]) and not stopped:
            lower = [lowered(ranked[0].setting, octaves) for octaves in range(1, RETREAT + 1)]
            chosen, check = next(
                ((trial, kept) for setting in lower
                 if goal.fits(kept := attempt(setting, True)) and aim.fits(trial := attempt(setting))),
                (chosen, check),
            )
            made.setdefault(_key(chosen.setting), chosen)
    if tolerance is not None and chosen is not exact and chosen.issued > WORTH * exact.issued:
        chosen, check = exact, None if check is None else attempt(exact.setting, True)
    wanted = {"tolerance" if goal.of_error else "time_budget" if goal.timed else "budget": goal.limit}
    return Tuning(chosen, check, tuple(made.values()), wanted, noise.deviation, noise.still, runner.units,
                  find_pulses(pictures), runner.standing(0, end))


def _checked(aim: Goal, goal: Goal, ranked: list[Trial], exact: Trial, attempt: Callable[[Trial], Trial]):
    """The best trial that meets the goal on the kept frames too: ``(trial, its check)``.

    After each that does not, the next to be checked keeps a limit lower by a tenth, so that few are run.
    """
    limit = math.inf
    first: tuple[Trial, Trial] | None = None
    checks = 0
    for trial in [trial for trial in ranked if aim.fits(trial)]:
        limited = goal.limited(trial)
        if limited > limit:
            continue
        check = attempt(trial)
        first = first or (trial, check)
        if goal.fits(check):
            return trial, check
        limit, checks = 0.9 * limited, checks + 1
        if checks == CHECKS:
            break
    if goal.of_error:
        return exact, attempt(exact)
    return first or (ranked[0], attempt(ranked[0]))


def _key(setting: Setting) -> tuple[Any, ...]:
    return setting.norm, setting.cell, setting.tau, *setting.taus.values()


def lowered(setting: Setting, octaves: float) -> Setting:
    """Along the line of the search: the frame's threshold by half as many octaves."""
    taus = {name: _rounded(tau * 2.0**-octaves) for name, tau in setting.taus.items()}
    return dataclasses.replace(setting, tau=_rounded(setting.tau * 2.0 ** (-octaves / 2)), taus=taus)


def _goal(tolerance: float | None, budget: float | None, time_budget: float | None) -> Goal:
    limits = {"tolerance": tolerance, "budget": budget, "time_budget": time_budget}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(given) != 1:
        raise ValueError(
            f"give one of `tolerance` (={tolerance!r}), `budget` (={budget!r}) and `time_budget` (={time_budget!r}): "
            "the cheapest within an error, or the best within a share of the FLOPs or within seconds a frame."
        )
    for name, limit in given.items():
        if not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
            remedy = "for exact results use no thresholds" if name == "tolerance" else "nothing is done in none"
            raise ValueError(f"`{name}` (={limit!r}) must be a number > 0; {remedy}.")
        if name == "budget" and limit > 1:
            raise ValueError(f"`budget` (={limit!r}) must lie in (0, 1]: a share of the dense function's FLOPs.")
    return Goal(*(None if limit is None else float(limit) for limit in limits.values()))


def _pictures(inc: Incremental, frames: Frames) -> np.ndarray:
    """`[N, S, H, W, C]`."""
    pictures = np.stack([np.asarray(frame, np.float32) for frame in frames])
    axes = inc._axes(pictures.shape[1:])
    if axes.stream is None:
        pictures, stream, row, col = pictures[:, None], 1, axes.row + 2, axes.col + 2
    else:
        stream, row, col = axes.stream + 1, axes.row + 1, axes.col + 1
    pictures = np.moveaxis(pictures, (stream, row, col), (1, 2, 3))
    return pictures.reshape(*pictures.shape[:4], -1)


def _one_level(frames: Frames) -> float:
    """A grey level: 1 for whole numbers, a 255th of the range otherwise."""
    pictures = [np.asarray(frame) for frame in frames]
    if np.issubdtype(pictures[0].dtype, np.integer):
        return 1.0
    spread = max(float(p.max()) for p in pictures) - min(float(p.min()) for p in pictures)
    return spread / 255 if math.isfinite(spread) and spread > 0 else 1.0


def _rounded(value: float) -> float:
    """To four digits: what is printed is what was tried."""
    return float(f"{value:.4g}")
