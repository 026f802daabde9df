"""The paper's image sequences (Borji, arXiv 2407.01782, section 4 and figure 4), and one that changes slowly."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from deltajax import scenes
from deltajax.models.simple_cnn import DIGIT, place

TIMES = 10  # frames of each image, as in the paper
INK = 20  # MNIST's digits fill a box of 20x20 in the middle of 28x28


class Digits(NamedTuple):
    """Digits in MNIST's form, and where they come from."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: UInt8[np.ndarray, " n"]
    origin: str


class Sequences(NamedTuple):
    """One sequence for each digit."""

    name: str
    frames: Float[Array, "n t 64 64 1"]
    labels: Int[np.ndarray, "n t"]


def drawn_digits(count: int, seed: int = 0) -> Digits:
    """Digits drawn by `scenes.draw_digit` and scaled as MNIST's were, for use without MNIST; 0..9 in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = np.stack([_like_mnist(scenes.draw_digit(rng, int(name))) for name in labels])
    return Digits(images, labels.astype(np.uint8), "digits drawn by deltajax")


def _like_mnist(ink: Float[np.ndarray, "64 64"]) -> UInt8[np.ndarray, "28 28"]:
    rows, cols = (np.flatnonzero(ink.max(axis)) for axis in (1, 0))
    box = ink[rows[0]: rows[-1] + 1, cols[0]: cols[-1] + 1]
    height, width = (max(1, round(n * INK / max(box.shape))) for n in box.shape)
    small = Image.fromarray((255 * box).round().astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    image = np.zeros((DIGIT, DIGIT), np.uint8)
    top, left = (DIGIT - height) // 2, (DIGIT - width) // 2
    image[top: top + height, left: left + width] = np.asarray(small)
    return image


def repeated(digits: Digits, times: int = TIMES) -> Sequences:
    """Experiment I: each digit stands still in the centre."""
    return _placed("I: repeated image", digits, np.zeros(times, int))


def shifted(digits: Digits, times: int = TIMES) -> Sequences:
    """Experiment II: each digit moves right by one pixel a frame."""
    return _placed("II: shifted image", digits, np.arange(times))


def _placed(name: str, digits: Digits, right: Int[np.ndarray, " t"]) -> Sequences:
    n, t = len(digits.images), len(right)
    by = np.tile(np.stack([np.zeros(t, int), right], 1), (n, 1))
    frames = place(jnp.asarray(np.repeat(digits.images, t, 0)), by)
    return Sequences(name, frames.reshape(n, t, *frames.shape[1:]), np.repeat(digits.labels, t).reshape(n, t))


def turning(digits: Digits, times: int = 55) -> Sequences:
    """Slow change, which the paper has not: each digit turns into the next at full contrast, within `times` frames.

    A frame is labelled with the digit of which it shows more.
    """
    pairs = range(len(digits.images) - 1)
    frames = jnp.stack([crossfade(digits.images[i], digits.images[i + 1], times - 1, 255) for i in pairs])
    half = np.arange(times) >= times / 2
    labels = np.stack([np.where(half, digits.labels[i + 1], digits.labels[i]) for i in pairs])
    return Sequences("III: one digit turns into the next", frames, labels)


def crossfade(
    first: UInt8[np.ndarray, "28 28"], last: UInt8[np.ndarray, "28 28"], steps: int, contrast: int
) -> Float[Array, "steps+1 64 64 1"]:
    """One digit turns into another in `steps` equal steps, both drawn with `contrast` of 255 grey levels."""
    share = np.linspace(0, 1, steps + 1)[:, None, None]
    grey = contrast / 255 * ((1 - share) * first + share * last)
    return place(jnp.asarray(grey.round().astype(np.uint8)), np.zeros((steps + 1, 2), int))
