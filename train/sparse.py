"""Fine-tunes SimpleCNN so that less of it changes from frame to frame: the penalty on change, trained through the step.

    python -m train.sparse --data DIR --out out/sparse

Seed 0, 1600 clips of 4 frames, 2 epochs: 6.4 minutes of training on two busy CPU cores (another training beside it),
and 7.7 for measuring three networks (2.7 of CPU time). On 300 clips of 8 frames with MNIST test digits, noise .03,
accuracy (FLOPs issued, all frames but the first), with jax 0.10.2; "control" is the same command with `--penalty 0`:

    threshold inside, spreads   untuned            control            tuned
    0.6                         98.38 % (98.5 %)   98.14 % (98.1 %)   98.19 % (94.8 %)
    0.8                         98.38 % (84.9 %)   98.14 % (85.2 %)   98.24 % (43.3 %)
    1.0                         98.38 % (38.8 %)   98.00 % (39.0 %)   98.24 % (35.4 %)
    1.4                         98.38 % (28.3 %)   98.00 % (28.3 %)   98.10 % (28.2 %)

So at a threshold near the noise the penalty halves the work, and it is the penalty that does it. It makes the
network deaf to noise, not to motion: at larger thresholds, or with one of 4 sigma on the frame (28 % at no threshold
inside, 21 % at 1.4, all three networks), nothing is left to win, and these cheaper settings need no tuning.
In shorter trials a penalty on changes above the threshold alone (`--hold 0.8`) saved less than one on all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import deltajax as dj
from deltajax.datasets.mnist import Images, Labels, Mnist, read_mnist
from deltajax.models import simple_cnn
from deltajax.models.simple_cnn import FRAME_SHAPE, MARGIN, place

from .loop import Batch, Params, Task, command, fit
from .mnist import max_by_reshape

FRAME = jax.ShapeDtypeStruct(FRAME_SHAPE, jnp.float32)
WAYS = ((0, 0), (0, 0), (0, 0), (0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # a digit stands still every second time
START = 8  # pixels from the centre, at most, in a clip's first frame
TILE = 4  # side in positions; a convolution at these sizes is done in tiles of 4 pooled positions
TEST_FRAMES = 8
GLANCED = 100  # test clips that are looked at after each epoch
SIGMAS = 4.0  # of the noise, for a threshold on the frame that hides it
EQUAL = 0.005  # accuracies this near count as equal

Activations = tuple[Float[Array, "*t 32 32 32"], Float[Array, "*t 16 16 64"]]


@dataclass(frozen=True)
class Args:
    """Fine-tune SimpleCNN on short clips with a penalty on change, and measure the FLOPs that it saves."""

    data: Path
    """Folder with the four MNIST .gz files; each is checked against its published SHA-256."""
    out: Path = Path("out/sparse")
    """Folder for weights, curves and checkpoints."""
    resume: bool = False
    """Go on after the last epoch in --out."""
    verify: bool = True
    """Check the SHA-256 of the files; --no-verify takes a data set of your own in the same form."""
    control: Path | None = None
    """Weights of another run (such as one with --penalty 0), measured beside this one."""
    clips: int = 1600
    """Training digits; each makes a new clip in every epoch."""
    frames: int = 4
    """Frames in a training clip."""
    noise: float = 0.03
    """Standard deviation of the sensor noise, on ink of 0..1."""
    penalty: float = 1.0
    """Weight of the change beside the cross-entropy; 0 tunes on the clips alone."""
    hold: float = 0.0
    """Threshold inside while training, in spreads of each layer of the untuned network; 0 presses on every change."""
    glance: float = 0.8
    """Threshold inside for the FLOPs that are told after each epoch, in the same unit."""
    holds: tuple[float, ...] = (0.0, 0.4, 0.6, 0.8, 1.0, 1.4)
    """Thresholds inside to measure with, in the same unit."""
    test: int = 300
    """Test clips to measure on."""
    epochs: int = 2
    """How often every training digit is seen."""
    batch: int = 16
    """Clips in a step."""
    rate: float = 5e-4
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Decides everything random."""


@jax.custom_jvp
def max_pool(x: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h//2 w//2 c"]:
    """The largest of each 2x2: on tiles like any pooling, with the derivative of `max_by_reshape`, cheap on a CPU."""
    return simple_cnn.max_pool(x)


@max_pool.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    def reshaped(x: Array) -> Array:
        return max_by_reshape(x.reshape(-1, *x.shape[-3:])).reshape(*x.shape[:-3], x.shape[-3] // 2, -1, x.shape[-1])

    return jax.jvp(reshaped, primals, tangents)


def watched(params: Params, frame: Float[Array, "64 64 1"]) -> tuple[Float[Array, " 10"], Activations]:
    """SimpleCNN that hands out its pooled activations too, in front of the second and the dense layer."""
    seen: list[Array] = []

    def pool(x: Array) -> Array:
        seen.append(max_pool(x))
        return seen[-1]

    logits = simple_cnn.apply(params, frame, pool)
    return logits, tuple(seen)  # pyright: ignore[reportReturnType]


def make_clips(
    key: Array, digits: UInt8[Array, "n 28 28"], frames: int, noise: float
) -> Float[Array, "n {frames} 64 64 1"]:
    """Each digit moves by one pixel or stands still, under noise of standard deviation `noise`, cut off at 0 and 1."""
    where, ways, grain = jax.random.split(key, 3)
    n = len(digits)
    start = jax.random.randint(where, (n, 1, 2), -START, START + 1)
    moves = jnp.asarray(WAYS)[jax.random.randint(ways, (n, frames), 0, len(WAYS))]
    by = start + jnp.cumsum(moves, 1)
    clips = place(jnp.repeat(digits, frames, 0), by.reshape(-1, 2)).reshape(n, frames, *FRAME_SHAPE)
    return jnp.clip(clips + noise * jax.random.normal(grain, clips.shape), 0, 1)


def spread(activations: Float[Array, "*t h w c"]) -> Float[Array, ""]:
    """Standard deviation of a layer over frames and places, root of the mean square over channels.

    A constant added to a channel does not widen it, as it does not lessen the change.
    """
    return jnp.sqrt(activations.reshape(-1, activations.shape[-1]).var(0).mean())


class Layer(NamedTuple):
    """A convolution's segment.

    Attributes:
      name: what `taus` calls it.
      spread: of its activations in the untuned network: the unit of its thresholds.
      weight: share of the network's FLOPs in the segment that reads it: what a change in it costs.
    """

    name: str
    spread: float
    weight: float


def layers(params: Params, clips: Float[Array, "n t 64 64 1"]) -> tuple[Layer, ...]:
    """The convolutions of the network; `clips` are those that the spread is measured on."""
    found = dj.incremental(watched).explain(params, FRAME)
    pairs = [(a.name, b.flops / found.flops) for a, b in pairwise(found.segments) if a.name.startswith("conv")]
    wide = spreads(params, clips)
    return tuple(Layer(name, each, weight) for (name, weight), each in zip(pairs, wide, strict=True))


def spreads(params: Params, clips: Float[Array, "n t 64 64 1"]) -> list[float]:
    """The spread of each activation of the dense network."""
    _, activations = jax.vmap(watched, (None, 0))(params, clips.reshape(-1, *FRAME_SHAPE))
    return [float(spread(a)) for a in activations]


def thresholded(layers: Sequence[Layer], hold: float, tau: float = 0.0) -> dj.Incremental:
    """The step with a threshold of `hold` spreads on the result of each convolution, and of `tau` on the frame."""
    return dj.incremental(watched, tau=tau, taus={layer.name: hold * layer.spread for layer in layers})


def follow(
    inc: dj.Incremental, params: Params, clip: Float[Array, "t 64 64 1"]
) -> tuple[Float[Array, "t 10"], Activations]:
    """Logits and activations of the step on frame after frame, from a fresh cache; differentiable in params.

    Unrolled, for inside a loop XLA:CPU runs the gradients of convolutions five to ten times slower.
    """

    def one(cache: dict[str, Any], frame: Array):
        output, cache, _ = inc.step(params, cache, None, frame)
        return cache, output

    return lax.scan(one, inc.init(params, clip[0])[0], clip, unroll=True)[1]


def change(activations: Float[Array, "n t h w c"]) -> Float[Array, ""]:
    """Mean over tiles of the largest |activation(t) - activation(t-1)| in the tile, in spreads of the layer.

    The largest, for one change above the threshold is enough to have the tile's readers computed. In spreads, so that
    nothing is won by smaller activations: with larger weights behind them they are the same network, at another
    threshold.
    """
    n, t, h, w, c = activations.shape
    tiles = activations.reshape(n, t, h // TILE, TILE, w // TILE, TILE, c)
    return jnp.abs(jnp.diff(tiles, axis=1)).max((3, 5, 6)).mean() / spread(activations)


def loss(
    inc: dj.Incremental, pressure: Sequence[float], params: Params, clips: Float[Array, "n t 64 64 1"],
    labels: Int[Array, " n"],
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Cross-entropy of every frame, plus the change of each layer times `pressure`; and the changes.

    Logits and activations are both what the step hands out, not a dense twin's: with thresholds inside they are the
    held ones, so that the loss is that of what runs in the end; without, the derivative is the dense one exactly.
    """
    logits, activations = jax.vmap(lambda clip: follow(inc, params, clip))(clips)
    names = jnp.broadcast_to(labels[:, None], logits.shape[:2])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, names).mean()
    changes = tuple(map(change, activations))
    return entropy + sum(p * c for p, c in zip(pressure, changes, strict=True)), changes


@dataclass(frozen=True)
class Point:
    """One network with one threshold, on all frames of all clips but the first ones, which are always dense.

    Attributes:
      accuracy: share of frames named rightly.
      issued: share of the dense FLOPs.
    """

    accuracy: float
    issued: float


def measurer(inc: dj.Incremental) -> Callable[[Params, Float[Array, "n t 64 64 1"], Labels], Point]:
    """(params, clips, labels) -> point; every clip from a fresh cache, as one camera and not as one of many streams."""

    @jax.jit
    def run(params: Params, clips: Array):
        fresh = inc.init(params, clips[0, 0])[0]

        def one(cache: dict[str, Any], frame: Array):
            (logits, _), cache, _ = inc.step(params, cache, None, frame)
            stats = inc.stats(cache)
            return cache, (logits.argmax(), stats.flops_issued / stats.flops_dense)

        return lax.map(lambda clip: lax.scan(one, fresh, clip)[1], clips)

    def measure(params: Params, clips: Array, labels: Labels) -> Point:
        named, issued = (np.asarray(x)[:, 1:] for x in run(params, clips))
        return Point(float((named == labels[:, None]).mean()), float(issued.mean()))

    return measure


@dataclass(frozen=True)
class Curve:
    """The points of every network over the thresholds inside, with one threshold on the frame."""

    tau: float
    holds: tuple[float, ...]
    points: dict[str, list[Point]]


def sweep(
    networks: dict[str, Params], layers: Sequence[Layer], holds: Sequence[float], noise: float, clips: Array,
    labels: Labels,
) -> tuple[Curve, ...]:
    """All networks over `holds`, with no threshold on the frame and with one that hides the noise."""
    curves = []
    for tau in dict.fromkeys((0.0, SIGMAS * noise)):
        points: dict[str, list[Point]] = {name: [] for name in networks}
        for hold in track(holds, f"measuring, tau {tau:g}", console=Console(stderr=True), transient=True):
            measure = measurer(thresholded(layers, hold, tau))
            for name, params in networks.items():
                points[name].append(measure(params, clips, labels))
        curves.append(Curve(tau, tuple(holds), points))
    return tuple(curves)


def table(curve: Curve) -> Table:
    """`Curve`: accuracy and issued FLOPs, one row for each threshold."""
    drawn = Table(title=f"% rightly named (% of FLOPs issued), threshold on the frame {curve.tau:g}")
    for heading in ("threshold inside, spreads", *curve.points):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for hold, *points in zip(curve.holds, *curve.points.values(), strict=True):
        drawn.add_row(f"{hold:g}", *(f"{100 * p.accuracy:.2f} ({100 * p.issued:.1f})" for p in points))
    return drawn


def cheapest(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point of fewest issued FLOPs among those not more than `EQUAL` below `accuracy`; None if all are."""
    return min((p for p in points if p.accuracy >= accuracy - EQUAL), key=lambda p: p.issued, default=None)


def draw(curves: Sequence[Curve]) -> Figure:
    """A column for each threshold on the frame: accuracy over issued FLOPs, issued FLOPs over the threshold inside."""
    figure = Figure(figsize=(5 * len(curves) + 0.5, 7), layout="constrained")
    panels = figure.subplots(2, len(curves), sharey="row", squeeze=False)
    shares = [100 * p.accuracy for curve in curves for points in curve.points.values() for p in points]
    for (above, below), curve in zip(panels.T, curves, strict=True):
        looks = zip(curve.points.items(), ("0.45", "#c8501e", "#3b6ea5"), "osD", strict=False)
        for (name, points), colour, marker in looks:
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.3}
            issued = [100 * p.issued for p in points]
            above.plot(issued, [100 * p.accuracy for p in points], **style, label=name)
            below.plot(curve.holds, issued, **style, label=name)
        above.set(xlabel="FLOPs issued, % of dense", title=f"threshold on the frame: {curve.tau:g}", xlim=(0, 105))
        above.set_ylim(min(shares) - 1, max(shares) + 1)  # a narrower axis would make much of chance
        below.set(xlabel="threshold inside, spreads", ylim=(0, 105))
        for axes in (above, below):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("frames rightly named, %")
    panels[1][0].set_ylabel("FLOPs issued, % of dense")
    panels[1][0].legend(frameon=False, loc="best")
    return figure


def task(args: Args, data: Mnist, untuned: Params, found: Sequence[Layer]) -> Task:
    """Clips of the first `args.clips` training digits, new ones in each epoch; what is left over is left out."""
    steps = args.clips // args.batch
    inc, pressure = thresholded(found, args.hold), [args.penalty * layer.weight for layer in found]
    measure = measurer(thresholded(found, args.glance))
    glance, labels = test_clips(data.test_images[:GLANCED], args.noise), data.test_labels[:GLANCED]

    def clip_loss(params: Params, digits: Batch, key: Array) -> Float[Array, ""]:
        images, names = digits  # pyright: ignore[reportGeneralTypeIssues]
        clips = make_clips(key, images, args.frames, args.noise)
        return loss(inc, pressure, params, clips, names.astype(jnp.int32))[0]

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng((args.seed, epoch)).permutation(args.clips)
        for chosen in order[: steps * args.batch].reshape(steps, args.batch):
            yield data.train_images[chosen], data.train_labels[chosen]

    def evaluate(params: Params) -> dict[str, float]:
        point = measure(params, glance, labels)
        return {"named rightly": point.accuracy, "FLOPs issued": point.issued}

    return Task("SimpleCNN, with a penalty on change", lambda _: untuned, clip_loss, batches, steps, evaluate)


def test_clips(images: Images, noise: float) -> Float[Array, "n t 64 64 1"]:
    """The same clips whatever the seed of the training."""
    return make_clips(jax.random.key(1), jnp.asarray(images), TEST_FRAMES, noise)


def train(args: Args) -> tuple[Curve, ...]:
    """Trains as `args` say, then measures the network before and after, and that of `args.control`.

    Raises:
      FileNotFoundError, ValueError: bad data, a bad argument, or a folder of another run.
    """
    data = read_mnist(args.data, args.verify)
    check(args, len(data.train_images), len(data.test_images))
    networks = {"untuned": simple_cnn.load_params()}
    if args.control is not None:
        networks["control"] = simple_cnn.load_params(args.control)
    sample = jnp.asarray(data.train_images[: min(GLANCED, args.clips)])
    found = layers(networks["untuned"], make_clips(jax.random.key(2), sample, args.frames, args.noise))
    fit(
        task(args, data, networks["untuned"], found),
        out=args.out, epochs=args.epochs, rate=args.rate, decay=1e-4, seed=args.seed, resume=args.resume,
        settings={name: getattr(args, name) for name in ("clips", "frames", "noise", "penalty", "hold", "batch")},
    )  # fmt: skip
    networks["tuned"] = simple_cnn.load_params(args.out / "weights.safetensors")
    clips, labels = test_clips(data.test_images[: args.test], args.noise), data.test_labels[: args.test]
    for name, params in networks.items():
        wide = (f"{layer.name} {each:.3f}" for layer, each in zip(found, spreads(params, clips), strict=True))
        print(f"{name}: spread of {', '.join(wide)}")
    return sweep(networks, found, sorted(args.holds), args.noise, clips, labels)


def report(curves: Sequence[Curve], out: Path) -> None:
    """Prints the tables, and for each network the fewest FLOPs at the accuracy of the untuned one; draws the curves."""
    console = Console()
    reach = curves[0].points["untuned"][0].accuracy
    for curve in curves:
        console.print(table(curve))
        for name, points in curve.points.items():
            best = cheapest(points, reach)
            told = "at none of the thresholds" if best is None else f"from {100 * best.issued:.1f} % of the FLOPs on"
            console.print(
                f"{name}: within {100 * EQUAL:g} points of {100 * reach:.2f} % {told}", highlight=False, soft_wrap=True
            )
    draw(curves).savefig(out / "sparse.png", dpi=130)
    console.print(f"wrote {out / 'weights.safetensors'} and {out / 'sparse.png'}", highlight=False, soft_wrap=True)


def check(args: Args, train_digits: int, test_digits: int) -> None:
    """Refuses arguments outside their range.

    Raises:
      ValueError: names the argument, its value and the range.
    """
    for name, most in (("clips", train_digits), ("batch", args.clips), ("test", test_digits)):
        if not 1 <= getattr(args, name) <= most:
            raise ValueError(f"`--{name}` (={getattr(args, name)}) must be 1..{most}.")
    if args.epochs < 1:
        raise ValueError(f"`--epochs` (={args.epochs}) must be at least 1.")
    if not 2 <= args.frames <= MARGIN - START:
        raise ValueError(
            f"`--frames` (={args.frames}) must be 2..{MARGIN - START}: a change needs two, and in more than that a "
            "digit may leave the frame."
        )
    given = [(name, getattr(args, name)) for name in ("penalty", "noise", "hold", "glance")]
    for name, value in (*given, *(("holds", hold) for hold in args.holds)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`--{name}` (={value}) must be a number >= 0; 0 leaves it out.")
    if not args.holds:
        raise ValueError("`--holds` (=()) must name at least one threshold; 0 is exact.")
    if not (math.isfinite(args.rate) and args.rate > 0):
        raise ValueError(f"`--rate` (={args.rate}) must be a number > 0.")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = tyro.cli(Args, args=argv)
    return command(lambda: report(train(args), args.out), args.out)


if __name__ == "__main__":
    sys.exit(main())
