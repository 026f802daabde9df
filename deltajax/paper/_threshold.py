"""Figure 6: accuracy, run time and FLOPs over the threshold; and what each reference makes of slow change."""

from __future__ import annotations

import functools
import itertools
import math
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

from ._sequences import Digits, Sequences, crossfade
from ._table import accuracy, dense, follow, joined, seconds

Params = dict[str, Any]
NORMS, REFERENCES = ("l1", "l2", "linf"), ("held", "previous")
FIELD = 3  # the norm is taken over the receptive field of the first layer, as in the paper


@dataclass(frozen=True)
class Point:
    """One threshold.

    Attributes:
        tau: on the norm over 3x3 pixels of 0..1.
        accuracy: share of frames named rightly.
        agreement: share of frames named as the dense network names them.
        milliseconds: a frame.
        issued: share of the dense FLOPs.
    """

    norm: str
    reference: str
    tau: float
    accuracy: float
    agreement: float
    milliseconds: float
    issued: float


@dataclass(frozen=True)
class Sweep:
    """All thresholds on one experiment, and the dense network beside them."""

    name: str
    points: tuple[Point, ...]
    dense_accuracy: float
    dense_milliseconds: float


def sweep(
    params: Params, experiments: Sequence[Sequences], taus: Sequence[float], done: Callable[[], None], rounds: int = 5,
    norms: Sequence[str] = NORMS,
) -> tuple[Sweep, ...]:
    """Every threshold, norm and reference on every experiment; at tau 0, where they are all the same, once.

    Args:
        done: called after each setting.
    """
    videos = [joined(e) for e in experiments]
    part = math.gcd(*(len(frames) for frames, _ in videos))  # one shape, one compile
    full = jax.jit(dense)
    truths = [np.asarray(full(params, frames)) for frames, _ in videos]
    took = [seconds([functools.partial(full, params, frames)], rounds)[0] for frames, _ in videos]
    settings = [(NORMS[-1], REFERENCES[0], 0.0), *itertools.product(norms, REFERENCES, [t for t in taus if t > 0])]
    points: list[list[Point]] = [[] for _ in experiments]
    for norm, reference, tau in settings:
        inc = dj.incremental(simple_cnn.apply, tau=tau, norm=norm, field=FIELD if tau else 1, reference=reference)
        run = jax.jit(functools.partial(follow, inc))

        def parts(frames, inc=inc, run=run):
            cache, _ = inc.init(params, frames[0])
            results = []
            for start in range(0, len(frames), part):
                cache, result = run(params, cache, frames[start: start + part])
                results.append(result)
            return jax.tree.map(lambda *xs: np.concatenate(xs), *results)

        for found, truth, (frames, labels) in zip(points, truths, videos, strict=True):
            logits, issued = parts(frames)
            (each,) = seconds([functools.partial(parts, frames)], rounds)
            found.append(Point(
                norm, reference, tau, accuracy(logits, labels), accuracy(logits, truth.argmax(-1)),
                1e3 * each / len(frames), float(issued.mean()),
            ))
        done()
    return tuple(
        Sweep(e.name, tuple(found), accuracy(truth, labels), 1e3 * dense_took / len(labels))
        for e, found, truth, (_, labels), dense_took in zip(experiments, points, truths, videos, took, strict=True)
    )


def table(sweep: Sweep) -> Table:
    """`Sweep`: accuracy and issued FLOPs, one row for each threshold."""
    drawn = Table(title=f"Accuracy in % (FLOPs issued), {sweep.name}; dense {100 * sweep.dense_accuracy:.1f}")
    ways = list(itertools.product(NORMS, REFERENCES))
    for heading in ("tau", *(f"{norm} {reference}" for norm, reference in ways)):
        drawn.add_column(heading, justify="right", no_wrap=True)
    found = {(p.norm, p.reference, p.tau): p for p in sweep.points}
    exact = sweep.points[0]
    for tau in sorted({p.tau for p in sweep.points}):
        row = [found.get((*way, tau), exact) for way in ways]
        drawn.add_row(f"{tau:g}", *(f"{100 * p.accuracy:.1f} ({100 * p.issued:.0f} %)" for p in row))
    return drawn


@dataclass(frozen=True)
class Fade:
    """A slow change, seen through each reference.

    Attributes:
        frames: the clip.
        named: by network ("dense" or a reference), what each frame is named.
        behind: by reference, the largest |frame - what the network was computed on|, in grey levels, frame by frame.
        first, last: the digits that the clip starts and ends with.
    """

    frames: Float[Array, "t 64 64 1"]
    named: dict[str, Int[np.ndarray, " t"]]
    behind: dict[str, Float[np.ndarray, " t"]]
    first: int
    last: int
    tau: float


def fade(params: Params, digits: Digits, levels: int = 60, tau: float = 4.0) -> Fade:
    """One digit becomes another by one grey level a frame, at a contrast of `levels`; `tau` in grey levels, by pixel.

    The first two digits of different name are taken that the dense network reads at this contrast.

    Raises:
        ValueError: there are no such two.
    """
    names = jax.jit(jax.vmap(simple_cnn.apply, (None, 0)))
    first, last, frames = _readable_pair(names, params, digits, levels)
    named = {"dense": np.asarray(names(params, frames)).argmax(-1)}
    behind = {}
    for reference in REFERENCES:
        inc = dj.incremental(simple_cnn.apply, tau=tau / 255, reference=reference)
        used = _used(inc, params, frames)
        named[reference] = np.asarray(used[0]).argmax(-1)
        behind[reference] = 255 * np.asarray(used[1])
    return Fade(frames, named, behind, first, last, tau)


def _readable_pair(names: Callable, params: Params, digits: Digits, levels: int):
    labels = np.asarray(digits.labels)
    for a, b in itertools.combinations(range(len(labels)), 2):
        frames = crossfade(digits.images[a], digits.images[b], levels, levels)
        found = np.asarray(names(params, frames)).argmax(-1)
        if labels[a] != labels[b] and (found[[0, -1]] == labels[[a, b]]).all() and len(set(found)) == 2:
            return int(labels[a]), int(labels[b]), frames
    raise ValueError(
        f"`digits` (={len(labels)} of them) holds no two of different name that alone are read while one becomes "
        f"the other at a contrast of {levels} grey levels; give more of them."
    )


def _used(inc: dj.Incremental, params: Params, frames: Float[Array, "t 64 64 1"]):
    """Logits, and how far each frame is from the pixels that the network was last computed on.

    With the held reference those are the held frame; with the previous one they are not kept, and are followed here.
    """

    @jax.jit
    def run(frames):
        def one(carry, frame):
            cache, used = carry
            logits, cache, _ = inc.step(params, cache, None, frame)
            used = jnp.where(inc.frame_mask(cache)[..., None], frame, used)
            return (cache, used), (logits, abs(frame - used).max())

        start = inc.init(params, frames[0])[0], jnp.zeros_like(frames[0])
        return lax.scan(one, start, frames)[1]

    return run(frames)
