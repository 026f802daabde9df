"""The paper's figures 4, 5 and 6, and the slow change, for the wall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltajax.models.cnn3 import CNN3

from ._sequences import Sequences
from ._table import dense
from ._threshold import NORMS, REFERENCES, Fade, Sweep

Params = dict[str, Any]
COLOURS = {"l1": "#3b6ea5", "l2": "#c8501e", "linf": "#4c9a4c"}
RIGHT, WRONG = "#2a7d2a", "#b3261e"
MAP = "magma"


def figure4(params: Params, experiments: Sequence[Sequences], rows: int = 3, columns: int = 10) -> Figure:
    """The sequences as the networks see them, each frame with the name that the dense network gives it."""
    rows = min(rows, len(experiments[0].frames))
    figure = Figure(figsize=(1.05 * columns, 1.3 * rows * len(experiments) + 0.7), layout="constrained")
    parts = figure.subfigures(len(experiments), 1)
    for part, sequences in zip(np.atleast_1d(np.asarray(parts)), experiments, strict=True):
        part.suptitle(f"Experiment {sequences.name}", fontsize=12, x=0.01, ha="left", weight="bold")
        axes = part.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            frames = sequences.frames[row, :columns]
            named = np.asarray(dense(params, frames)).argmax(-1)
            for column, at in enumerate(axes[row][: len(frames)]):
                right = named[column] == sequences.labels[row, column]
                _picture(at, frames[column, ..., 0], "gray", 0, 1)
                at.set_title(f"{named[column]}", fontsize=11, color=RIGHT if right else WRONG, pad=2)
            for at in axes[row][len(frames):]:
                at.set_visible(False)
    return figure


def change_maps(
    params: Params, frames: Float[Array, "t 64 64 1"]
) -> tuple[Float[np.ndarray, "t 64 64"], dict[str, Bool[np.ndarray, "t h w"]]]:
    """|frame - the one before|, and the change maps of CNN3 by hand, by layer."""
    network = CNN3()
    maps = [name for name in network.layers if name not in ("fc1", "fc2")]

    @jax.jit
    def run(frames):
        def one(cache, frame):
            _, cache, _ = network.step(params, cache, None, frame)
            return cache, {name: network.layers[name].change_map(cache[name]) for name in maps}

        return lax.scan(one, network.init(params)[0], frames)[1]

    found = jax.tree.map(np.asarray, run(frames))
    video = np.asarray(frames)[..., 0]
    return np.abs(np.diff(video, axis=0, prepend=0)), found


def figure5(params: Params, frames: Float[Array, "t 64 64 1"], columns: int = 5) -> Figure:
    """Change maps of the input and of all four layers while a digit moves right by one pixel a frame."""
    difference, maps = change_maps(params, frames)
    titles = {"conv1": "1st convolution", "pool1": "1st pooling", "conv2": "2nd convolution", "pool2": "2nd pooling"}
    shown = range(1, min(columns, len(frames) - 1) + 1)
    figure = Figure(figsize=(1.75 * len(shown) + 1.5, 11), layout="constrained")
    axes = figure.subplots(2 + len(titles), len(shown), squeeze=False)
    for column, number in enumerate(shown):
        _picture(axes[0][column], frames[number, ..., 0], "gray", 0, 1)
        axes[0][column].set_title(f"frame {number}", fontsize=12)
        _picture(axes[1][column], difference[number], MAP, 0, 1)
        axes[1][column].set_title(f"{np.mean(difference[number] > 0):.1%}", fontsize=10, pad=2)
        for row, name in enumerate(titles, 2):
            _picture(axes[row][column], maps[name][number], MAP, 0, 1.3)
            axes[row][column].set_title(f"{maps[name][number].mean():.1%}", fontsize=10, pad=2)
    sizes = [f"{m.shape[1]}x{m.shape[2]}" for m in (maps[name] for name in titles)]
    labels = ["frame", "|difference|\n64x64", *(f"{t}\n{s}" for t, s in zip(titles.values(), sizes, strict=True))]
    for at, label in zip(axes[:, 0], labels, strict=True):
        at.set_ylabel(label, fontsize=11)
    figure.suptitle("What changes when a digit moves right by one pixel, exact (tau 0)", fontsize=13)
    return figure


def figure6(sweeps: Sequence[Sweep]) -> Figure:
    """Accuracy, run time and issued FLOPs over tau: one row for each experiment, a line for each norm and reference."""
    figure = Figure(figsize=(12.5, 3.6 * len(sweeps) + 0.5), layout="constrained")
    grid = figure.subplots(len(sweeps), 3, squeeze=False)
    for axes, sweep in zip(grid, sweeps, strict=True):
        for norm in NORMS:
            for reference in REFERENCES:
                points = [p for p in sweep.points if p.tau == 0 or (p.norm, p.reference) == (norm, reference)]
                style: dict[str, Any] = {
                    "color": COLOURS[norm], "linestyle": "-" if reference == "held" else "--", "markersize": 4,
                    "marker": "o" if reference == "held" else "x", "label": f"{norm}, {reference}",
                }
                taus = [p.tau for p in points]
                axes[0].plot(taus, [100 * p.accuracy for p in points], **style)
                axes[1].plot(taus, [p.milliseconds for p in points], **style)
                axes[2].plot(taus, [100 * p.issued for p in points], **style)
        axes[0].axhline(100 * sweep.dense_accuracy, color="0.3", linewidth=0.9, linestyle=":")
        axes[1].axhline(sweep.dense_milliseconds, color="0.3", linewidth=0.9, linestyle=":", label="dense")
        axes[0].set(ylabel="accuracy, %", title=sweep.name)
        axes[1].set(ylabel="ms a frame", ylim=(0, None), title="run time")
        axes[2].set(ylabel="% of dense", ylim=(0, None), title="FLOPs issued")
        for at in axes:
            at.set_xscale("symlog", linthresh=0.02, linscale=0.4)
            at.set_xlim(0, None)
            at.set_xlabel("tau, on the norm over 3x3 pixels")
            _plain(at)
    handles, labels = grid[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def slow_change(fade: Fade) -> Figure:
    """One digit becomes another so slowly that no frame differs from the one before by more than a grey level."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 2.6)))
    count = len(fade.frames)
    shown = np.linspace(0, count - 1, 7).astype(int)
    for at, number in zip(above.subplots(1, len(shown)), shown, strict=True):
        _picture(at, fade.frames[number, ..., 0], "gray", 0, float(fade.frames.max()))
        at.set_title(f"frame {number}", fontsize=10)
    named, behind = below.subplots(2, 1, sharex=True)
    looks = {"dense": ("0.3", ":", 4), "held": ("#3b6ea5", "-", 2), "previous": ("#c8501e", "--", 2)}
    for name, (colour, line, width) in looks.items():
        label = name if name == "dense" else f"{name} reference"
        named.plot(fade.named[name], color=colour, linestyle=line, linewidth=width, label=label)
    named.set(ylabel="named", yticks=sorted({int(n) for names in fade.named.values() for n in names}))
    for name in REFERENCES:
        behind.plot(fade.behind[name], color=looks[name][0], linestyle=looks[name][1], linewidth=2)
    behind.axhline(fade.tau, color="0.3", linewidth=0.9)
    behind.annotate(f"tau = {fade.tau:g}", (1, fade.tau), (-4, 3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", color="0.3")
    behind.set(xlabel="frame", ylabel="grey levels behind", xlim=(0, count - 1), ylim=(0, None))
    named.legend(frameon=False, loc="center right")
    for at in (named, behind):
        _plain(at)
    figure.suptitle("A change of one grey level a frame: the previous frame hides it, the held frame does not")
    return figure


def _picture(at: Axes, picture: Any, colours: str, low: float, high: float) -> None:
    at.imshow(np.asarray(picture, np.float32), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    at.set(xticks=[], yticks=[])


def _plain(at: Axes) -> None:
    at.grid(alpha=0.25)
    at.spines[["top", "right"]].set_visible(False)
