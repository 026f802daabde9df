"""Does a threshold make a network robust? SimpleCNN under pixel noise and a one-step attack, dense and incremental.

The source paper (Borji, arXiv 2407.01782) hopes that a network which ignores small changes withstands distorted
input. What can be said beforehand: with a held reference the output is the dense network's at the held frame. Where
a clean frame is held and the noise stays within tau, the network never sees the noise; where a noisy frame is held,
it goes on seeing that one. Three sequences part the two:

    clean first   a clean frame, then the same digit under noise
    noisy first   the noise is there from the first frame on
    cut           a clean frame of another digit, then this digit under noise

Found on 50 MNIST test digits, seed 0 (a point is one frame of a hundred): an attack within tau is never seen after a
clean frame (FGSM, epsilon .2: 100 % for tau .2 and .4, dense 14 %), and after a noisy one a threshold changes
nothing. Gaussian noise of half of tau and more can do harm: what passes is a scatter of single pixels, which this
network reads worse than noise everywhere (sigma .15, tau .2: 77 %, dense 96 %); where the dense network has failed
altogether, it helps a little (sigma .3, tau .4: 35 %, dense 0 %). Salt and pepper are larger than any tau and pass.
After a cut part of the gain stays, for the black ground, which both digits share, is still held clean. So it is the
held frame that withstands, not the network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ._incremental import Incremental, incremental
from .models import simple_cnn

Params = dict[str, Any]
Digits = Float[Array, "n 64 64 1"]
Clips = Float[Array, "n t 64 64 1"]

TAUS = (0.0, 0.05, 0.1, 0.2, 0.4)
LEVELS = {
    "Gaussian": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
    "salt, pepper": (0.005, 0.01, 0.02, 0.05),
    "FGSM": (0.02, 0.05, 0.1, 0.2),
}
UNITS = {"Gaussian": "sigma", "salt, pepper": "share of pixels", "FGSM": "epsilon"}
SEQUENCES = ("clean first", "noisy first", "cut")
NOISY = 2  # frames under noise, all that is counted, after the first frame


@dataclass(frozen=True)
class Result:
    """One kind and level of noise in one sequence; frames after the first.

    Attributes:
        sequence: one of `SEQUENCES`.
        kind: one of `LEVELS`.
        level: standard deviation, share of the pixels, or epsilon, for ink of 0..1.
        dense: share of frames that the dense network names rightly.
        accuracy: tau -> share of frames that the step names rightly.
        changed: tau -> share of pixels that changed by more than tau; the others are held.
    """

    sequence: str
    kind: str
    level: float
    dense: float
    accuracy: dict[float, float]
    changed: dict[float, float]

    @property
    def gains(self) -> dict[float, float]:
        """tau -> accuracy above the dense network's."""
        return {tau: share - self.dense for tau, share in self.accuracy.items()}


def gaussian(key: Array, clips: Clips, sigma: float) -> Clips:
    """Adds noise of standard deviation `sigma` to every pixel, cut off at 0 and 1."""
    return jnp.clip(clips + sigma * jax.random.normal(key, clips.shape), 0, 1)


def salt_and_pepper(key: Array, clips: Clips, share: float) -> Clips:
    """Turns `share` of the pixels black or white."""
    hit, white = jax.random.split(key)
    ink = jax.random.bernoulli(white, 0.5, clips.shape).astype(clips.dtype)
    return jnp.where(jax.random.bernoulli(hit, share, clips.shape), ink, clips)


def fgsm(params: Params, frames: Digits, labels: Int[Array, " n"], epsilon: float) -> Digits:
    """Moves every pixel by `epsilon` the way that raises the dense network's loss (Goodfellow et al., arXiv 1412.6572).

    The attack knows the network, but not what is held; while the clean frame is held, the step has this very
    derivative.
    """

    def loss(frame: Float[Array, "64 64 1"], label: Int[Array, ""]) -> Float[Array, ""]:
        return -jax.nn.log_softmax(simple_cnn.apply(params, frame))[label]

    return jnp.clip(frames + epsilon * jnp.sign(jax.vmap(jax.grad(loss))(frames, labels)), 0, 1)


def sequence(name: str, clean: Digits, noisy: Clips, others: Int[np.ndarray, " n"]) -> Clips:
    """A first frame as the name says, then the noisy ones.

    Args:
        noisy: one frame more than follow; the first is there for ``"noisy first"``.
        others: for each digit the number of one with another name, for ``"cut"``.
    """
    first = {"clean first": clean, "noisy first": noisy[:, 0], "cut": clean[others]}[name]
    return jnp.concatenate([first[:, None], noisy[:, 1:]], 1)


def other_digits(labels: UInt8[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each digit the next one, all round, that has another name.

    Raises:
        ValueError: all have the same name.
    """
    differ = labels[:, None] != labels
    if not differ.any(1).all():
        raise ValueError(f"`labels` are all {labels[0]}; give digits of at least two names.")
    n = len(labels)
    onwards = (np.arange(n)[:, None] + np.arange(n)) % n
    return onwards[np.arange(n), np.take_along_axis(differ, onwards, 1).argmax(1)]


def follow(
    inc: Incremental, params: Params, clips: Clips
) -> tuple[Int[Array, "n t"], Float[Array, "n t"]]:
    """What the step names each frame, and the share of its pixels that changed; each clip from a fresh cache."""
    fresh = inc.init(params, clips[0, 0])[0]

    def one(cache: dict[str, Any], frame: Array):
        logits, cache, _ = inc.step(params, cache, None, frame)
        return cache, (logits.argmax(), inc.stats(cache).frame_density)

    return lax.map(lambda clip: lax.scan(one, fresh, clip)[1], clips)


def measure(
    params: Params, images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"], seed: int,
    done: Callable[[], None] = lambda: None,
) -> tuple[Result, ...]:
    """Every kind and level of noise in every sequence, dense and with every tau.

    Args:
        seed: decides the noise.
        done: called after each result.
    """
    clean = simple_cnn.place(jnp.asarray(images), np.zeros((len(images), 2), int))
    others, names = other_digits(labels), jnp.asarray(labels, jnp.int32)
    dense = jax.jit(jax.vmap(jax.vmap(lambda frame: simple_cnn.apply(params, frame).argmax())))
    steps = {tau: jax.jit(functools.partial(follow, incremental(simple_cnn.apply, tau=tau))) for tau in TAUS}
    distort = {
        "Gaussian": jax.jit(gaussian),
        "salt, pepper": jax.jit(salt_and_pepper),
        "FGSM": jax.jit(lambda _, clips, epsilon: _still(fgsm(params, clips[:, 0], names, epsilon))),
    }

    def right(named: Any) -> float:
        return float((np.asarray(named)[:, 1:] == labels[:, None]).mean())

    results = []
    for number, (kind, level) in enumerate((kind, level) for kind, levels in LEVELS.items() for level in levels):
        noisy = distort[kind](jax.random.key(seed + number), _still(clean), level)
        for name in SEQUENCES:
            clips = sequence(name, clean, noisy, others)
            found = {tau: step(params, clips) for tau, step in steps.items()}
            results.append(Result(
                name, kind, level, right(dense(clips)), {tau: right(named) for tau, (named, _) in found.items()},
                {tau: float(changed[:, 1:].mean()) for tau, (_, changed) in found.items()},
            ))
            done()
    return tuple(results)


def _still(frames: Digits) -> Clips:
    return jnp.repeat(frames[:, None], NOISY + 1, 1)


def noise_tables(results: Sequence[Result], origin: str) -> list[Table]:
    """`Result`, a table for each sequence: accuracy, and in brackets the share of the pixels that changed."""
    tables = []
    for name in dict.fromkeys(r.sequence for r in results):
        drawn = Table(title=f"% rightly named (% of pixels changed), {name}, {origin}", box=SIMPLE, pad_edge=False,
                      collapse_padding=True)
        for heading in ("noise", "level", "dense", *(f"tau {tau:g}" for tau in TAUS)):
            drawn.add_column(heading, justify="left" if heading == "noise" else "right", no_wrap=True)
        rows = [r for r in results if r.sequence == name]
        for r, after in itertools.zip_longest(rows, rows[1:]):
            cells = (f"{100 * r.accuracy[tau]:.0f} ({100 * r.changed[tau]:.0f})" for tau in TAUS)
            last = after is None or after.kind != r.kind
            drawn.add_row(r.kind, f"{r.level:g}", f"{100 * r.dense:.0f}", *cells, end_section=last)
        tables.append(drawn)
    return tables


def verdict(results: Sequence[Result]) -> list[str]:
    """For each sequence and kind of noise, the most that a threshold gained and lost over the dense network."""
    told = []
    for name, kind in dict.fromkeys((r.sequence, r.kind) for r in results):
        gains = [
            (gain, f"{100 * gain:+.1f} points (level {r.level:g}, tau {tau:g})")
            for r in results if (r.sequence, r.kind) == (name, kind) for tau, gain in r.gains.items()
        ]  # fmt: skip
        (best, gained), (worst, lost) = max(gains), min(gains)
        found = [*([f"gains at most {gained}"] if best > 0 else []), *([f"loses at most {lost}"] if worst < 0 else [])]
        told.append(f"{name}, {kind}: a threshold {' and '.join(found) or 'changes nothing'}")
    return told


def draw(results: Sequence[Result]) -> Figure:
    """Accuracy over the level: a row for each sequence, a column for each kind of noise."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(len(SEQUENCES), len(LEVELS), sharey=True, sharex="col", squeeze=False)
    colours = ("#f2b701", "#e3781b", "#c23b4e", "#7d2a7d", "#2f2a6b")
    for (row, name), (column, kind) in itertools.product(enumerate(SEQUENCES), enumerate(LEVELS)):
        axes, shown = panels[row][column], [r for r in results if (r.sequence, r.kind) == (name, kind)]
        levels = [r.level for r in shown]
        for tau, colour in zip(TAUS, colours, strict=False):
            accuracies = [100 * r.accuracy[tau] for r in shown]
            axes.plot(levels, accuracies, "o-", color=colour, markersize=4, label=f"tau {tau:g}")
        axes.plot(levels, [100 * r.dense for r in shown], "x--", color="0.2", markersize=6, label="dense")
        axes.set(title=f"{name}: {kind}", ylim=(-3, 103))
        axes.locator_params(axis="x", nbins=6)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if row == len(SEQUENCES) - 1:
            axes.set_xlabel(UNITS[kind])
        if column == 0:
            axes.set_ylabel("frames rightly named, %")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle("SimpleCNN under noise, dense and with a threshold on the frame (held reference)")
    return figure


def noise(
    images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"], out: Path, *, count: int = 50,
    seed: int = 0, console: Console | None = None,
) -> tuple[Result, ...]:
    """Measures with the shipped weights, prints a table for each sequence, writes ``noise.png`` into `out`.

    Args:
        images: digits in MNIST's form.
        labels: their names.
        out: an existing folder.
        count: the first so many digits are used.
        seed: decides the noise.
        console: where to print; the standard output if left out.

    Raises:
        ValueError: more digits asked for than there are, fewer than two, or all of one name.
    """
    if not 2 <= count <= len(images):
        raise ValueError(f"`count` (={count}) must be 2..{len(images)}: that many digits there are.")
    console = console or Console()
    total = len(SEQUENCES) * sum(map(len, LEVELS.values()))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("noise", total=total)
        results = measure(
            simple_cnn.load_params(), images[:count], labels[:count], seed, lambda: progress.advance(bar)
        )
    for thing in (*noise_tables(results, f"{count} digits"), *verdict(results)):
        console.print(thing, highlight=False, soft_wrap=isinstance(thing, str))
    draw(results).savefig(out / "noise.png", dpi=130)
    console.print(f"wrote {out / 'noise.png'}", highlight=False)
    return results
