"""The search for thresholds: in octaves, on a function that can only be tried.

A point is a detection (a norm and a cell) and a vector: how many octaves the input's threshold lies above its first
guess, then for every segment how many above one standard deviation. Three parts, one after the other:

1. Along a line on which all thresholds rise together: where does the goal stop being met? In full for the first
   detection, then near that place for the others: it is where the noise and the deviations put it for each.
2. From the best of these, groups of segments front to back, an octave up each, kept where it pays. Where not even the
   best saves anything, all together is too much: then group after group from the exact setting, as CBinfer does.
3. To the end of the budget a (1+1) evolution strategy whose step is not drawn blindly: of a hundred random steps it
   tries the one that a linear model of all trials so far thinks best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ._trials import Trial

LOWEST, HIGHEST = -16.0, 8.0  # octaves
# Within a tolerance: of the input, then of the segments. A task's error is blind where there is nothing to find, and
# whatever comes later must still be seen: it moves a value of some layer by more than a deviation. An error that was
# seen to rise, to more than a quarter of the tolerance and within it, is not blind: then there is no such end.
SEEING = 3.0, 0.0
START = -3.0  # the segments' first guess: an eighth of a standard deviation
GROUPS = 6  # at most, of segments that are raised together
DRAWN = 100  # steps among which the model chooses
RIDGE = 0.05
TIE = 1e-3  # of what is behind: enough to tell trials of one error apart


class Spent(Exception):
    """No trial is left."""


Ask = Callable[[int, np.ndarray], Trial]


class Goal:
    """Cheapest within a tolerance, or least error within a budget of issued FLOPs or of time."""

    def __init__(self, tolerance: float | None, budget: float | None, time_budget: float | None = None):
        self.of_error, self.timed = tolerance is not None, time_budget is not None
        limit = next((given for given in (tolerance, budget, time_budget) if given is not None), None)
        assert limit is not None
        self.limit = limit
        self.least_cost = 1e-6 if self.timed else 1e-4  # what a logarithm of it needs not tell from 0

    def cost(self, trial: Trial) -> float:
        """Seconds a frame for a budget of time, else the share of the FLOPs that were issued."""
        if not self.timed:
            return trial.issued
        assert trial.seconds is not None
        return trial.seconds

    def error(self, trial: Trial) -> float:
        """Within a tolerance, the trial's, or a share of the tolerance as large as the output is behind if that is
        more; within a budget, of trials with the same error less for the one that is less behind.
        """
        return max(trial.error, self.limit * trial.behind) if self.of_error else trial.error + TIE * trial.behind

    def limited(self, trial: Trial) -> float:
        """What the goal limits."""
        return self.error(trial) if self.of_error else self.cost(trial)

    def fits(self, trial: Trial) -> bool:
        """Whether the goal is met."""
        return self.limited(trial) <= self.limit

    def rank(self, trial: Trial) -> tuple[bool, float, float]:
        """Smaller is better: whatever meets the goal first, by what it is to make small."""
        limited, wanted = self.limited(trial), self.cost(trial) if self.of_error else self.error(trial)
        return (False, wanted, limited) if self.fits(trial) else (True, limited, wanted)


def search(ask: Ask, goal: Goal, detections: int, segments: int, trials: int, seed: int) -> None:
    """Asks until `ask` raises `Spent`; what it was told is all there is to know.

    Args:
        ask: ``(number of the detection, point) -> trial``.
        detections, segments: how many there are.
        trials: how many `ask` will grant.
        seed: of the random steps.
    """
    known: list[tuple[int, np.ndarray, Trial]] = []
    seeing = np.array([SEEING[0], *[SEEING[1]] * segments])

    def highest() -> np.ndarray:
        rises = any(goal.limit / 4 < trial.error <= goal.limit for _, _, trial in known)
        return seeing if goal.of_error and not rises else np.full(1 + segments, HIGHEST)

    def tried(detection: int, point: np.ndarray) -> Trial:
        point = np.clip(point, LOWEST, highest())
        trial = ask(detection, point)
        known.append((detection, point, trial))
        return trial

    try:
        turns = min(6, max(2, trials // (2 * detections)))
        at = _line(tried, goal, 0, segments, turns, 0.0, 2.0)
        for detection in range(1, detections):
            _line(tried, goal, detection, segments, (turns + 1) // 2, at, 1.0)
        best = min(known, key=lambda row: goal.rank(row[2]))
        if goal.of_error and goal.cost(best[2]) > 0.99 * max(goal.cost(trial) for _, _, trial in known):
            _from_exact(tried, goal, best[0], _groups(segments), segments)
            best = min(known, key=lambda row: goal.rank(row[2]))
        else:
            best = _front_to_back(tried, goal, best, _groups(segments))
        _evolve(tried, goal, best, known, highest, np.random.default_rng(seed))
    except Spent:
        return


def _line(tried: Ask, goal: Goal, detection: int, segments: int, turns: int, at: float, stride: float) -> float:
    """`stride` octaves at a time until the goal is left or reached, then halfway; the best place that was tried."""
    direction = np.array([0.5, *[1.0] * segments])  # on the frame an octave too many does more harm
    start = np.array([0.0, *[START] * segments])
    towards = 1 if goal.of_error else -1
    inside: float | None = None
    outside: float | None = None
    ranks = []
    for _ in range(turns):
        trial = tried(detection, start + at * direction)
        ranks.append((goal.rank(trial), at))
        if goal.fits(trial):
            inside = at
        else:
            outside = at
        if inside is not None and outside is not None:
            at = (inside + outside) / 2
        else:
            at += stride * towards if outside is None else -stride * towards
    return min(ranks)[1]


def _groups(segments: int) -> list[np.ndarray]:
    """The input's coordinate, then the segments' in at most `GROUPS` runs of one length, front to back."""
    return [np.array([0])] + [1 + part for part in np.array_split(np.arange(segments), GROUPS) if len(part)]


def _from_exact(tried: Ask, goal: Goal, detection: int, groups: Sequence[np.ndarray], segments: int) -> None:
    """Each group an octave at a time until its share of the tolerance is used up, the frame's the first third."""
    point = np.full(segments + 1, LOWEST)
    for number, group in enumerate(groups):
        share = goal.limit * (1 / 3 + 2 / 3 * number / max(1, len(groups) - 1))
        for octave in np.arange(0.0 if number == 0 else START, HIGHEST + 1):
            moved = point.copy()
            moved[group] = octave
            if goal.error(tried(detection, moved)) > share:
                break
            point = moved


def _front_to_back(tried: Ask, goal: Goal, best, groups: Sequence[np.ndarray]):
    towards = 1 if goal.of_error else -1
    for group in groups:
        for _ in range(2):
            detection, point, trial = best
            moved = point.copy()
            moved[group] += towards
            found = tried(detection, moved)
            if goal.rank(found) >= goal.rank(trial):
                break
            best = detection, moved, found
    return best


def _evolve(
    tried: Ask, goal: Goal, best, known, highest: Callable[[], np.ndarray], rng: np.random.Generator
) -> None:
    width = 0.5
    for _ in range(1_000):  # `tried` ends it, save where every point is known already
        detection, point, trial = best
        if goal.of_error and np.all(point >= highest()) and goal.fits(trial):
            return  # nothing lies higher
        model = _Model(goal, [(p, t) for d, p, t in known if d == detection], point)
        steps = rng.normal(size=(DRAWN, len(point))) * (rng.random((DRAWN, len(point))) < rng.random((DRAWN, 1)))
        steps = width * steps + width * rng.normal(size=(DRAWN, 1))
        moved = np.clip(point + steps, LOWEST, highest())
        moved = moved[model.best_of(moved)]
        found = tried(detection, moved)
        if goal.rank(found) < goal.rank(trial):
            best, width = (detection, moved, found), min(1.0, 1.3 * width)
        else:
            width *= 0.85
            if width < 0.1:
                width = 0.5


class _Model:
    """log error and log cost, linear in the point; trials near the best one weigh more."""

    def __init__(self, goal: Goal, trials: Sequence[tuple[np.ndarray, Trial]], centre: np.ndarray):
        self._goal, self._centre = goal, centre
        points = np.array([point for point, _ in trials]) - centre
        errors = np.array([goal.error(trial) for _, trial in trials])
        self._least = 1e-2 * ((goal.of_error and goal.limit) or float(np.median(errors))) + 1e-12
        costs = np.array([goal.cost(trial) for _, trial in trials])
        values = np.stack([np.log(errors + self._least), np.log(costs + goal.least_cost)], axis=1)
        weights = 1 / (1 + (points**2).mean(axis=1))
        inputs = np.concatenate([np.ones((len(points), 1)), points], axis=1)
        weighted = inputs * weights[:, None]
        pull = RIDGE * np.eye(inputs.shape[1])
        pull[0, 0] = 0
        self._slopes = np.linalg.solve(inputs.T @ weighted + pull, weighted.T @ values)

    def best_of(self, points: np.ndarray) -> int:
        """The point that meets the goal, and best, as far as the model knows."""
        offsets = points - self._centre
        error, cost = (np.concatenate([np.ones((len(points), 1)), offsets], axis=1) @ self._slopes).T
        if self._goal.of_error:
            limited, wanted, bound = error, cost, np.log(self._goal.limit + self._least)
        else:
            limited, wanted, bound = cost, error, np.log(self._goal.limit + self._goal.least_cost)
        return int(np.argmin(wanted + 10 * np.maximum(0, limited - bound)))
