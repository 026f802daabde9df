"""Table 1: accuracy and run time of the four networks, beside the paper's own figures."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from rich.table import Table

import deltajax as dj
from deltajax.models import simple_cnn

from ._sequences import Sequences
from ._sequential import Cnn3, cnn2

Params = dict[str, Any]
Run = Callable[[Params, Float[Array, "frames 64 64 1"]], Float[Array, "frames 10"]]

# Table 1 of the paper: accuracy in %, seconds for 110 frames, for CNN1, CNN2, CNN3.
PAPER = {
    "I: repeated image": ((90.91, 0.212), (90.91, 2174.75), (90.91, 213.2)),
    "II: shifted image": ((43.63, 0.172), (43.63, 1664.5), (44.5, 370.5)),
}
DENSE, SEQUENTIAL, SKIPPING, INCREMENTAL = NETWORKS = ("CNN1 (dense)", "CNN2 (sequential)", "CNN3 (skips)", "deltajax")


@dataclass(frozen=True)
class Row:
    """One network on one experiment.

    Attributes:
        seconds: for all frames, median of the rounds.
        difference: the largest |logit - CNN1's|.
    """

    network: str
    accuracy: float
    seconds: float
    difference: float


@dataclass(frozen=True)
class Experiment:
    """A column of table 1."""

    name: str
    frames: int
    rows: tuple[Row, ...]

    def seconds(self, network: str) -> float:
        return next(row.seconds for row in self.rows if row.network == network)


def dense(params: Params, frames: Float[Array, "n 64 64 1"]) -> Float[Array, "n 10"]:
    """CNN1 on frame after frame (a batch of one, as in the paper)."""
    return lax.scan(lambda carry, frame: (carry, simple_cnn.apply(params, frame)), None, frames)[1]


def sequential(params: Params, frames: Float[Array, "n 64 64 1"]) -> Float[Array, "n 10"]:
    """CNN2 on frame after frame."""
    return lax.scan(lambda carry, frame: (carry, cnn2(params, frame)), None, frames)[1]


def skipping(network: Cnn3, params: Params, frames: Float[Array, "n 64 64 1"]) -> Float[Array, "n 10"]:
    """CNN3 on frame after frame, from a fresh cache."""

    def one(cache, frame):
        logits, cache, _ = network.step(params, cache, frame)
        return cache, logits

    return lax.scan(one, network.init(), frames)[1]


def incremental(
    inc: dj.Incremental, params: Params, frames: Float[Array, "n 64 64 1"]
) -> tuple[Float[Array, "n 10"], Float[Array, " n"]]:
    """The step on frame after frame, from a fresh cache: logits, and the share of the dense FLOPs issued."""
    return follow(inc, params, inc.init(params, frames[0])[0], frames)[1]


def follow(inc: dj.Incremental, params: Params, cache: dict[str, Any], frames: Float[Array, "n 64 64 1"]):
    """``(cache, (logits, share of the dense FLOPs issued))`` of the step on frame after frame."""

    def one(cache, frame):
        logits, cache, _ = inc.step(params, cache, None, frame)
        stats = inc.stats(cache)
        return cache, (logits, stats.flops_issued / stats.flops_dense)

    return lax.scan(one, cache, frames)


def contenders() -> dict[str, Run]:
    """The four networks, compiled at their first call."""
    inc = dj.incremental(simple_cnn.apply)
    return {
        DENSE: jax.jit(dense),
        SEQUENTIAL: jax.jit(sequential),
        SKIPPING: jax.jit(functools.partial(skipping, Cnn3())),
        INCREMENTAL: jax.jit(lambda params, frames: incremental(inc, params, frames)[0]),
    }


def seconds(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median time of each run; all take their turn in each round. Each must have been called before."""
    times = np.zeros((rounds, len(runs)))
    for this in range(rounds):
        for which, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[this, which] = time.perf_counter() - start
    return np.median(times, 0).tolist()


def accuracy(logits: Float[Array, "n 10"] | Float[np.ndarray, "n 10"], labels: Int[np.ndarray, " n"]) -> float:
    """Share of frames named rightly."""
    return float(np.mean(np.asarray(logits).argmax(-1) == labels))


def experiment(params: Params, sequences: Sequences, rounds: int = 7) -> Experiment:
    """All four networks on one experiment, the sequences one after the other as one video."""
    frames, labels = joined(sequences)
    runs = contenders()
    logits = {name: run(params, frames) for name, run in runs.items()}
    times = seconds([functools.partial(run, params, frames) for run in runs.values()], rounds)
    return Experiment(sequences.name, len(frames), tuple(
        Row(name, accuracy(logits[name], labels), took, float(jnp.abs(logits[name] - logits[DENSE]).max()))
        for name, took in zip(runs, times, strict=True)
    ))


def joined(sequences: Sequences) -> tuple[Float[Array, "frames 64 64 1"], Int[np.ndarray, " frames"]]:
    """The sequences one after the other as one video."""
    return sequences.frames.reshape(-1, *sequences.frames.shape[2:]), sequences.labels.reshape(-1)


def table(experiments: Sequence[Experiment], origin: str) -> Table:
    """Table 1, ours and the paper's."""
    drawn = Table(title=f"Table 1: accuracy and run time, {origin}")
    for heading in ("network", "accuracy", "ms/frame", "x CNN1", "max |diff|", "paper", "ms/frame"):
        drawn.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for ours in experiments:
        drawn.add_row(f"[bold]{ours.name}, {ours.frames} frames")
        for row, theirs in zip(ours.rows, (*PAPER[ours.name], None), strict=True):
            drawn.add_row(
                row.network, f"{100 * row.accuracy:.2f} %", f"{1e3 * row.seconds / ours.frames:.3f}",
                f"{ours.seconds(DENSE) / row.seconds:.2f}", f"{row.difference:.1e}",
                *(("-", "-") if theirs is None else (f"{theirs[0]:.2f} %", f"{1e3 * theirs[1] / 110:,.1f}")),
                end_section=row is ours.rows[-1],
            )
    return drawn


def ratios(experiments: Sequence[Experiment]) -> Table:
    """What the paper concludes from table 1: ratios of run times, each within one run."""
    drawn = Table(title="Ratios of run time")
    headings = [e.name.split(":")[0] for e in experiments]
    for heading in ("", *(f"Exp. {h}" for h in headings), *(f"paper, {h}" for h in headings)):
        drawn.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for over, under in ((SEQUENTIAL, SKIPPING), (SKIPPING, DENSE), (DENSE, INCREMENTAL)):
        ours = [f"{e.seconds(over) / e.seconds(under):.2f}" for e in experiments]
        drawn.add_row(f"{over} / {under}", *ours, *(_paper_ratio(e.name, over, under) for e in experiments))
    return drawn


def _paper_ratio(name: str, over: str, under: str) -> str:
    known = dict(zip(NETWORKS, PAPER[name], strict=False))
    return f"{known[over][1] / known[under][1]:,.1f}" if over in known and under in known else "-"


@dataclass(frozen=True)
class Whole:
    """Dense and incremental at tau 0 on many sequences.

    Attributes:
        agreement: share of frames that both name alike.
        difference: the largest |logit - dense|.
        dense_seconds, step_seconds: for all frames, measured in turns.
    """

    name: str
    frames: int
    dense_accuracy: float
    accuracy: float
    agreement: float
    difference: float
    dense_seconds: float
    step_seconds: float


def whole(
    params: Params, sequences: Callable[[slice], Sequences], count: int, done: Callable[[], None], part: int = 100
) -> Whole:
    """Both on `count` sequences, `part` of them at a time, in turns.

    Args:
        sequences: a slice of the digits -> their sequences.
        done: called after each part.
    """
    full = jax.jit(dense)
    inc = dj.incremental(simple_cnn.apply)
    step = jax.jit(lambda params, frames: incremental(inc, params, frames)[0])
    right, spent, alike, worst, frames, name = np.zeros(2), np.zeros(2), 0, 0.0, 0, ""
    for start in range(0, count, part):
        now = sequences(slice(start, min(start + part, count)))
        name = now.name
        video, labels = joined(now)
        if frames == 0 or len(now.frames) < part:  # a new shape: compile outside of the time
            jax.block_until_ready((full(params, video), step(params, video)))
        results = []
        for which, run in enumerate((full, step)):
            begin = time.perf_counter()
            results.append(np.asarray(run(params, video)))
            spent[which] += time.perf_counter() - begin
            right[which] += (results[-1].argmax(-1) == labels).sum()
        alike += int((results[0].argmax(-1) == results[1].argmax(-1)).sum())
        worst = max(worst, float(np.abs(results[0] - results[1]).max()))
        frames += len(video)
        done()
    return Whole(name, frames, right[0] / frames, right[1] / frames, alike / frames, worst, *spent)


def whole_table(rows: Sequence[Whole], origin: str) -> Table:
    """`Whole`, one row for each experiment and network."""
    drawn = Table(title=f"Dense and deltajax at tau 0 on all of {origin}")
    for heading in ("network", "accuracy", "ms/frame", "x CNN1", "named alike", "max |diff|"):
        drawn.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(f"[bold]{row.name}, {row.frames:,} frames")
        drawn.add_row(DENSE, f"{100 * row.dense_accuracy:.2f} %", f"{1e3 * row.dense_seconds / row.frames:.3f}", "1")
        drawn.add_row(
            INCREMENTAL, f"{100 * row.accuracy:.2f} %", f"{1e3 * row.step_seconds / row.frames:.3f}",
            f"{row.dense_seconds / row.step_seconds:.2f}", f"{100 * row.agreement:.3f} %", f"{row.difference:.1e}",
            end_section=True,
        )
    return drawn
