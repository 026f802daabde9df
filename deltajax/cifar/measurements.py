"""What the step does on clips made from pictures: right answers, work and time; and how a change grows with depth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, UInt8

from deltajax import incremental
from deltajax.cifar.sequences import FRAMES, Clip
from deltajax.cifar.sequences import Sequence as Made
from deltajax.datasets import Cifar10
from deltajax.models import VisionModel


@dataclass(frozen=True)
class Subject:
    """A network with its params.

    Attributes:
        labelled: whether its classes are those of CIFAR-10, so that an answer can be right.
    """

    model: VisionModel
    params: PyTree
    labelled: bool


class Watched(NamedTuple):
    """The frames of one clip after its first.

    Attributes:
        answers, expected: the class that the step and the dense network name.
        difference: the largest of their logits', as a share of the largest logit.
        issued, useful: FLOPs of each segment.
        step_ms, dense_ms: time of a frame, the mean over the clip.
    """

    answers: Array
    expected: Array
    difference: float
    issued: Float[np.ndarray, "frames segments"]
    useful: Float[np.ndarray, "frames segments"]
    step_ms: float
    dense_ms: float


@dataclass(frozen=True)
class Row:
    """One network, sequence and threshold, over all pictures; first frames, which are computed whole, left out.

    Attributes:
        tau: grey levels.
        accuracy: share of frames named rightly; None where the network has other classes. `dense_accuracy` likewise.
        agreement: share of frames to which the step gives the dense network's class.
        issued_median, issued_mean, useful_median, useful_mean: FLOPs of a frame, as a share of the dense ones.
        dense_ms, step_ms: medians over the pictures of a clip's mean time for a frame.
        difference: the largest from the dense logits, as a share of the largest logit of the clip.
    """

    network: str
    sequence: str
    tau: float
    accuracy: float | None
    dense_accuracy: float | None
    agreement: float
    issued_median: float
    issued_mean: float
    useful_median: float
    useful_mean: float
    dense_ms: float
    step_ms: float
    difference: float


@dataclass(frozen=True)
class Growth:
    """How far one kind of change spreads in one network at tau 0, segment by segment in the order of computing.

    Segments of less than a thousandth of the FLOPs are left out: the head, and what only moves data.

    Attributes:
        flops: of each segment, dense.
        reached: share of each segment's positions that the change reaches; mean over frames and pictures.
        issued: FLOPs of the tiles computed, as a share of the segment's dense ones; mean likewise.
    """

    network: str
    change: str
    flops: Float[np.ndarray, " segments"]
    reached: Float[np.ndarray, " segments"]
    issued: Float[np.ndarray, " segments"]

    @property
    def depth(self) -> Float[np.ndarray, " segments"]:
        """Share of the network's FLOPs up to and with each segment, in 0..1."""
        return np.cumsum(self.flops) / self.flops.sum()

    def reached_at(self, depth: float) -> float:
        """Share of positions reached in the segment in which `depth`, a share of the FLOPs, lies."""
        return float(self.reached[min(np.searchsorted(self.depth, depth), len(self.reached) - 1)])

    def saved(self, work: Float[np.ndarray, " segments"]) -> Float[np.ndarray, " segments"]:
        """FLOPs saved up to and with each segment, as a share of the dense ones up to there.

        Args:
            work: `reached`, what tiles of one position would compute, or `issued`.
        """
        return 1 - np.cumsum(work * self.flops) / np.cumsum(self.flops)


class Course:
    """One network at one threshold, compiled: the step and the dense network, each in a scan over a clip.

    Both scans take the frames after a clip's first. The first one goes through the same program beforehand,
    repeated, which leaves the cache as one step would. So there is one compilation for each network and threshold.
    """

    def __init__(self, subject: Subject, tau: float, tile: int):
        model, self.params = subject.model, subject.params
        assert model.frame_size is not None
        self.subject, self.tau = subject, tau
        self.inc = incremental(model.apply, tau=tau, tile=tile)
        frames = jax.ShapeDtypeStruct((FRAMES - 1, *model.frame_size, 3), jnp.uint8)
        frame = jax.ShapeDtypeStruct(frames.shape[1:], frames.dtype)
        self.flops = np.array([segment.flops for segment in self.inc.explain(self.params, frame).segments])
        self.fresh = jax.block_until_ready(jax.jit(lambda params: self.inc.init(params, frame)[0])(self.params))
        self.step = jax.jit(self._scan).lower(self.params, self.fresh, frames, True).compile()
        self.dense = jax.jit(lambda params, frames: lax.map(lambda frame: model.apply(params, frame), frames))
        self.dense = self.dense.lower(self.params, frames).compile()

    def _scan(self, params: PyTree, cache: PyTree, frames: UInt8[Array, "n h w 3"], count_flops: Any):
        """``(cache, (logits [n, classes], FLOPs issued and useful [n, 2, segments]))``; zeros where not counted."""

        def figures(cache: PyTree) -> Float[Array, "2 segments"]:
            segments = self.inc.stats(cache).segments
            return jnp.stack(
                [jnp.stack([getattr(s, name) for s in segments]) for name in ("flops_issued", "flops_useful")]
            )

        def step(cache: PyTree, frame: Array):
            logits, cache, _ = self.inc.step(params, cache, None, frame)
            like = jnp.zeros((2, len(self.flops)), jnp.float32)
            return cache, (logits, lax.cond(count_flops, figures, lambda _: like, cache))

        return lax.scan(step, cache, frames)

    def watch(self, clip: Clip) -> Watched:
        """One clip: the figures first, then step and dense timed without them, one after the other."""
        first, rest = jnp.asarray(np.repeat(clip[:1], FRAMES - 1, axis=0)), jnp.asarray(clip[1:])
        cache, _ = self.step(self.params, self.fresh, first, False)
        _, (logits, work) = jax.block_until_ready(self.step(self.params, cache, rest, True))
        expected = jax.block_until_ready(self.dense(self.params, rest))
        step_ms = _timed(lambda: self.step(self.params, cache, rest, False))
        dense_ms = _timed(lambda: self.dense(self.params, rest))
        gap = float(jnp.abs(logits - expected).max() / jnp.abs(expected).max())
        issued, useful = np.moveaxis(np.asarray(work, np.float64), 1, 0)
        return Watched(logits.argmax(-1), expected.argmax(-1), gap, issued, useful, step_ms, dense_ms)

    def row(self, sequence: str, clips: Sequence[Watched], labels: Sequence[int]) -> Row:
        """The figures of one sequence; `labels` are those of the pictures."""
        answers, expected = (np.stack([getattr(clip, name) for clip in clips]) for name in ("answers", "expected"))
        truth = np.asarray(labels)[:, None]
        labelled = self.subject.labelled
        issued, useful = (
            np.concatenate([getattr(clip, name).sum(1) for clip in clips]) / self.flops.sum()
            for name in ("issued", "useful")
        )
        return Row(
            network=self.subject.model.name,
            sequence=sequence,
            tau=self.tau,
            accuracy=float((answers == truth).mean()) if labelled else None,
            dense_accuracy=float((expected == truth).mean()) if labelled else None,
            agreement=float((answers == expected).mean()),
            issued_median=float(np.median(issued)),
            issued_mean=float(issued.mean()),
            useful_median=float(np.median(useful)),
            useful_mean=float(useful.mean()),
            dense_ms=float(np.median([clip.dense_ms for clip in clips])),
            step_ms=float(np.median([clip.step_ms for clip in clips])),
            difference=max(clip.difference for clip in clips),
        )

    def growth(self, change: str, clips: Sequence[Watched]) -> Growth:
        """How the change grew in these clips."""
        kept = self.flops > self.flops.sum() / 1000
        reached, issued = (
            np.concatenate([getattr(clip, name) for clip in clips]).mean(0)[kept] / self.flops[kept]
            for name in ("useful", "issued")
        )
        return Growth(self.subject.model.name, change, self.flops[kept], reached, issued)


def _timed(call: Callable[[], Any]) -> float:
    """Milliseconds for one frame of a scan."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start) / (FRAMES - 1)


def compile_courses(
    subjects: Iterable[Subject], taus: Sequence[float], tile: int, tick: Callable[[], None]
) -> list[Course]:
    """A `Course` for each subject and threshold, subject by subject; compiled on all cores.

    Args:
        taus: grey levels.
        tile: side of the tiles of work, in positions.
        tick: called after each.
    """

    def compiled(choice: tuple[Subject, float]) -> Course:
        course = Course(*choice, tile)
        tick()
        return course

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, [(subject, tau) for subject in subjects for tau in taus]))


def watch_all(course: Course, sequence: Made, images: Cifar10, tick: Callable[[], None]) -> list[Watched]:
    """A clip of each picture, resized to what the network takes."""
    watched = []
    for number, image in enumerate(images.images):
        watched.append(course.watch(sequence.make(course.subject.model.prepare(image), number)))
        tick()
    return watched
