"""Trains SimpleCNN, the network of the source paper, on MNIST digits in black 64x64 frames.

    python -m train.mnist --data DIR --out out/mnist

Seed 0, batch 32 as in the paper, 6 epochs: 18 minutes on two busy CPU cores. The weights, rounded to float16,
name 99.29 % of all 10,000 test digits in the centre, 97.61 % when moved by up to 18 pixels. The shipped
`deltajax/models/weights/simple_cnn.safetensors` is what this command wrote with jax 0.10.2.

Every second training digit is moved at random, because the paper's Experiment II moves digits pixel by pixel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int, UInt8

from deltajax.datasets import Mnist, read_mnist, read_mnist_tfds
from deltajax.datasets.mnist import Images, Labels
from deltajax.models import simple_cnn
from deltajax.models.simple_cnn import MARGIN, place

from .loop import Batch, Params, Task, command, fit


@dataclass(frozen=True)
class Args:
    """Train SimpleCNN on MNIST digits in black 64x64 frames."""

    data: Path | None = None
    """Folder with the four MNIST .gz files; each is checked against its published SHA-256."""
    tfds: Path | None = None
    """Instead of --data: a folder that `deltajax.datasets.prepare_mnist` prepared with TensorFlow Datasets."""
    out: Path = Path("out/mnist")
    """Folder for weights, curve and checkpoints."""
    resume: bool = False
    """Go on after the last epoch in --out."""
    verify: bool = True
    """Check the SHA-256 of the files; --no-verify takes a data set of your own in the same form."""
    epochs: int = 6
    """How often all training digits are seen."""
    batch: int = 32
    """Digits in a step; 32 as in the paper."""
    rate: float = 1e-3
    """Peak learning rate of AdamW."""
    shift: Annotated[int, tyro.conf.arg(metavar="PIXELS")] = MARGIN
    """Every second digit is moved by up to this far each way; 0 leaves all in the centre."""
    seed: int = 0
    """Decides everything random."""


def max_by_reshape(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """The largest of each 2x2; the gradient of `max` costs XLA:CPU a tenth of that of `reduce_window`."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


@jax.jit
def count_right(
    params: Params, digits: UInt8[Array, "n 28 28"], labels: UInt8[Array, " n"], shift: Int[Array, "n 2"]
) -> Int[Array, ""]:
    """How many digits the network names rightly."""
    logits = simple_cnn.apply(params, place(digits, shift))
    return (logits.argmax(-1) == labels).sum()


def accuracy(params: Params, images: Images, labels: Labels, shift: int = 0, batch: int = 500) -> float:
    """Share of digits named rightly, each moved by up to `shift` pixels each way (seeded; 0: all centred)."""
    by = np.random.default_rng(0).integers(-shift, shift + 1, (len(images), 2))
    parts = [slice(i, i + batch) for i in range(0, len(images), batch)]
    return sum(int(count_right(params, images[p], labels[p], by[p])) for p in parts) / len(images)


def task(data: Mnist, batch: int, shift: int, seed: int) -> Task:
    """The training set in a new order each epoch; what the end of the order leaves over is left out."""
    steps = len(data.train_images) // batch

    def loss(params: Params, digits: Batch, key: Array) -> Float[Array, ""]:
        images, labels = digits  # pyright: ignore[reportGeneralTypeIssues]
        by = jax.random.randint(key, (batch, 2), -shift, shift + 1) * (jnp.arange(batch) % 2)[:, None]
        logits = simple_cnn.apply(params, place(images, by), pool=max_by_reshape)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32)).mean()

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng((seed, epoch)).permutation(len(data.train_images))
        for chosen in order[: steps * batch].reshape(steps, batch):
            yield data.train_images[chosen], data.train_labels[chosen]

    def evaluate(params: Params) -> dict[str, float]:
        test = data.test_images, data.test_labels
        return {
            "test, centred": accuracy(params, *test),
            f"test, moved by up to {MARGIN}": accuracy(params, *test, shift=MARGIN),
        }

    return Task("SimpleCNN on MNIST", simple_cnn.init_params, loss, batches, steps, evaluate)


def train(args: Args) -> None:
    """Trains as `args` say.

    Raises:
      FileNotFoundError, ValueError: bad data, a bad argument, or a folder of another run.
    """
    if (args.data is None) == (args.tfds is None):
        raise ValueError("give either `--data` (folder of the four .gz files) or `--tfds` (prepared folder).")
    if not 0 <= args.shift <= MARGIN:
        raise ValueError(f"`--shift` (={args.shift}) must be 0..{MARGIN}, or digits leave the frame.")
    data = read_mnist(args.data, args.verify) if args.data else read_mnist_tfds(args.tfds)  # pyright: ignore
    if not 1 <= args.batch <= len(data.train_images):
        raise ValueError(f"`--batch` (={args.batch}) must be 1..{len(data.train_images)}.")
    if args.epochs < 1:
        raise ValueError(f"`--epochs` (={args.epochs}) must be at least 1.")
    fit(
        task(data, args.batch, args.shift, args.seed),
        out=args.out,
        epochs=args.epochs,
        rate=args.rate,
        decay=1e-4,
        seed=args.seed,
        resume=args.resume,
        settings={"batch": args.batch, "shift": args.shift},
    )
    shipped = simple_cnn.load_params(args.out / "weights.safetensors")
    reached = accuracy(shipped, data.test_images, data.test_labels)
    print(f"{args.out / 'weights.safetensors'}: {reached:.2%} of the centred test digits")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = tyro.cli(Args, args=argv)
    return command(lambda: train(args), args.out)


if __name__ == "__main__":
    sys.exit(main())
