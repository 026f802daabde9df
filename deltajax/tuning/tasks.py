"""The error of a model of the registry in its own task, with the dense network's result for truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import PyTree

from ..models import VisionModel
from . import metrics

Task = Literal["boxes", "regions", "class", "output"]

# What an error of each is, in words.
MEANING: dict[Task, str] = {
    "boxes": "boxes: 1 - F1 against dense at an intersection over union of .5; the finer error: at .5 to .95",
    "regions": "regions: 1 - mean intersection over union against dense",
    "class": "class: share of frames whose likeliest class is not the dense one",
    "output": "output: root mean square against dense, relative to dense",
}


def task_of(result: Any) -> Task:
    """What a model's `interpret` gives, by its kind: boxes, a likeliest class, a map of classes, or anything else."""
    if hasattr(result, "boxes") or isinstance(result, list):
        return "boxes"
    if hasattr(result, "probability"):
        return "class"
    return "regions" if isinstance(result, np.ndarray) and result.ndim == 2 else "output"


def metric_of(task: Task, model: VisionModel, size: tuple[int, int]) -> Callable[[PyTree, PyTree], float]:
    """``(dense output, output) -> error`` for the task, for clips of that `(height, width)`; see `MEANING`."""

    def boxes(dense: PyTree, output: PyTree) -> float:
        return metrics.box_error(*_both(model, size, dense, output))

    def regions(dense: PyTree, output: PyTree) -> float:
        return metrics.region_error(*(classes_of(model.interpret(x, size)) for x in (dense, output)))

    def another_class(dense: PyTree, output: PyTree) -> float:
        return float(model.interpret(dense, size).name != model.interpret(output, size).name)

    return {"boxes": boxes, "regions": regions, "class": another_class, "output": metrics.output_error}[task]


def follow_of(task: Task, model: VisionModel, size: tuple[int, int]) -> Callable[[PyTree, PyTree], float] | None:
    """The finer error that `dj.tune` takes as `follow`, for boxes: by an intersection over union of .5 a box is right
    until half of it is wrong. The others see small changes themselves, or, a class, do not ask for them.
    """
    def placement(dense: PyTree, output: PyTree) -> float:
        return metrics.placement_error(*_both(model, size, dense, output))

    return placement if task == "boxes" else None


def _both(model: VisionModel, size: tuple[int, int], dense: PyTree, output: PyTree):
    """Boxes of both, then names of both."""
    (truth, truth_names), (found, names) = (boxes_of(model.interpret(x, size)) for x in (dense, output))
    return truth, found, truth_names, names


def boxes_of(result: Any) -> tuple[np.ndarray, list[Any] | None]:
    """Corners, best first, and what each is, if the network tells."""
    if hasattr(result, "boxes"):
        return result.boxes, getattr(result, "names", None)
    corners = [(thing.left, thing.top, thing.right, thing.bottom) for thing in result]
    return np.array(corners, float).reshape(-1, 4), [thing.name for thing in result]


def classes_of(result: np.ndarray) -> np.ndarray:
    """A class for each pixel; of a probability, whether it is at least one half."""
    return result if np.issubdtype(result.dtype, np.integer) else result >= 0.5
