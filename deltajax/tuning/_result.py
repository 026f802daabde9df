"""What tuning found: thresholds that `incremental` takes, and what they cost and save."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ._noise import Pulses
from ._search import Goal
from ._trials import Setting, Standing, Trial


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The setting that was chosen, and every trial on the way to it.

    Attributes:
        chosen: the trial on the frames that were searched.
        check: the same setting on the frames that were kept from the search; `None` if none were.
        trials: all trials on the searched frames, in the order in which they were made; the first is exact.
        goal: what was asked for: ``{"tolerance": ...}``, ``{"budget": ...}`` or ``{"time_budget": ...}``.
        noise: the camera's noise on the frames, one standard deviation, in the units of the frame.
        still: share of the 16-pixel tiles that stood still from frame to frame.
        units: one standard deviation of every segment that can have a threshold.
        pulses: the frames in which compression changes most of the picture at once; `None` if there are none.
        standing: what a network would be off by, on the searched frames, that computes the first and then nothing;
            `None` in files of before this was looked at.
    """

    chosen: Trial
    check: Trial | None
    trials: tuple[Trial, ...]
    goal: dict[str, float]
    noise: float
    still: float
    units: dict[str, float]
    pulses: Pulses | None = None
    standing: Standing | None = None

    @property
    def options(self) -> dict[str, Any]:
        """For ``incremental(fn, **options)``: `tau`, `norm`, `cell` and `taus`."""
        return {**dataclasses.asdict(self.chosen.setting)}

    @property
    def met(self) -> bool:
        """Whether the goal was met, on the kept frames too."""
        goal, made = self._goal, [self.chosen] + ([self.check] if self.check is not None else [])
        return all(goal.fits(trial) for trial in made)

    @property
    def curve(self) -> list[Trial]:
        """The trials that no other one beats in both error (or how far it is behind) and cost, the cheapest first."""
        goal, best, front = self._goal, float("inf"), []
        for trial in sorted(self.trials, key=lambda trial: (goal.cost(trial), goal.error(trial))):
            if goal.error(trial) < best:
                best = goal.error(trial)
                front.append(trial)
        return front

    @property
    def _goal(self) -> Goal:
        return Goal(*(self.goal.get(name) for name in ("tolerance", "budget", "time_budget")))

    def save(self, path: str | Path) -> None:
        """Writes JSON; whatever stops it, the file is the old one or the new one."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({"deltajax": "tuning", **dataclasses.asdict(self)}, indent=1) + "\n")
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | Path) -> Tuning:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        try:
            row = json.loads(Path(path).read_text())
            if row.pop("deltajax") != "tuning":
                raise KeyError("deltajax")
            check = None if row["check"] is None else _trial(row["check"])
            trials = tuple(_trial(trial) for trial in row["trials"])
            pulses = None if row.get("pulses") is None else Pulses(**row["pulses"])
            standing = None if row.get("standing") is None else Standing(**row["standing"])
            read = {"chosen": _trial(row["chosen"]), "check": check, "trials": trials, "pulses": pulses,
                    "standing": standing}
            return cls(**{**row, **read})
        except OSError as error:
            raise ValueError(f"the thresholds '{path}' cannot be read ({error.strerror})") from error
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"'{path}' holds no thresholds of `deltajax tune` ({error!r})") from error

    def plot(self, path: str | Path) -> None:
        """Draws the trade-off, error over issued FLOPs (over time, if that was the goal), to a PNG."""
        from matplotlib.figure import Figure

        goal = self._goal
        figure = Figure((6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()

        def costs(*trials: Trial) -> list[float]:
            return [(1000 if goal.timed else 100) * goal.cost(trial) for trial in trials]

        def errors(*trials: Trial) -> list[float]:
            return [goal.error(trial) for trial in trials]

        axes.scatter(costs(*self.trials), errors(*self.trials), s=12, c="0.7", label="trials")
        axes.step(costs(*self.curve), errors(*self.curve), where="post", color="C0", label="best of them")
        axes.plot(costs(self.chosen), errors(self.chosen), "o", color="C3", label="chosen")
        if self.check is not None:
            axes.plot(costs(self.check), errors(self.check), "x", color="C3", label="chosen, on frames kept aside")
        if goal.of_error:
            axes.axhline(goal.limit, color="0.4", linestyle=":", label="tolerance")
        else:
            axes.axvline((1000 if goal.timed else 100) * goal.limit, color="0.4", linestyle=":", label="budget")
        least = max(1e-6, max(errors(*self.trials), default=0) / 1e3)  # below it the scale is linear, down to 0
        axes.set_yscale("symlog", linthresh=least)
        axes.set_ylim(bottom=-least / 4)
        axes.set(xlabel="ms a frame" if goal.timed else "FLOPs issued, % of dense",
                 ylabel="error, mean over the frames, or as far behind", xlim=(0, None if goal.timed else 102))
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, dpi=150)

    def __str__(self) -> str:
        setting, chosen = self.chosen.setting, self.chosen
        lines = [
            f"noise of the camera: {self.noise:.2g} (one deviation, units of the frame); "
            f"{self.still:.0%} of the tiles stand still",
            f"norm {setting.norm} over cells of {setting.cell}, tau {setting.tau:.4g}, "
            f"{sum(tau > 0 for tau in setting.taus.values())} segments with a threshold",
            f"{_figures(chosen)} of dense; {len(self.trials)} trials",
        ]
        if self.pulses is not None:
            lines.insert(1, str(self.pulses))
        if self.check is not None:
            lines.append(f"on frames kept aside: {_figures(self.check)}")
        if self.standing is not None:
            lines.append(self._stood_still(self.standing))
        return "\n".join(lines)

    def _stood_still(self, standing: Standing) -> str:
        found = f"a network that computed the first frame and then nothing: error {standing.error:.3g}"
        if standing.apart is not None:
            found += f", by the finer error {standing.apart:.3g} (the tuned one: {self.chosen.apart:.3g})"
        goal = self._goal
        if goal.of_error and standing.error <= goal.limit and not standing.moves:
            found += ". It would pass: these frames put no threshold to the test; tune where something happens"
        return found


def _figures(trial: Trial) -> str:
    time = "" if trial.seconds is None else f"{1000 * trial.seconds:.3g} ms a frame, "
    return (f"error {trial.error:.3g} (worst frame {trial.worst:.3g}), {time}FLOPs issued {trial.issued:.1%}, "
            f"useful {trial.useful:.1%}")


def _trial(row: dict[str, Any]) -> Trial:
    return Trial(**{**row, "setting": Setting(**row["setting"])})
