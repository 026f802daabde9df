"""Scenes made from numbers alone: digits drawn with strokes, gliding over a still texture under sensor noise.

The same seed gives the same pixels. Lengths are pixels, grey levels 0..255, angles radians, y points down.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

GLYPH = 64  # side of a drawn digit's square

# How each digit may be written: strokes, parted by bars, through points x,y in hundredths of a side.
SKELETONS = (
    ("50,8 30,17 20,50 30,83 50,92 70,83 80,50 70,17 50,8",),
    ("32,28 44,19 53,8 | 53,8 52,92", "52,8 50,92", "32,28 44,19 53,8 | 53,8 52,92 | 30,92 72,92"),
    ("22,30 32,13 55,8 75,24 66,48 42,70 20,91 | 20,91 80,91",),
    ("22,18 46,8 71,18 68,38 42,47 | 42,47 70,54 77,74 55,92 20,84",),
    ("64,8 18,64 | 18,64 85,64 | 64,8 64,92", "28,10 22,52 | 22,52 80,52 | 72,10 68,92"),
    ("74,10 31,10 | 31,10 26,46 | 26,46 50,38 75,52 75,76 50,92 20,84",),
    ("66,10 40,26 24,56 29,83 52,92 74,80 71,58 50,50 27,66",),
    ("20,10 80,10 | 80,10 57,46 42,92", "20,10 80,10 | 80,10 57,46 42,92 | 38,48 74,48"),
    ("50,47 28,31 32,13 50,8 68,13 72,31 50,47 25,66 29,85 50,92 71,85 75,66 50,47",),
    ("74,27 60,10 40,10 25,26 31,44 52,50 70,40 74,27 | 74,27 72,60 62,92",),
)


class Digit(NamedTuple):
    """A digit in a frame, and the box of its ink."""

    name: int
    top: float
    left: float
    bottom: float
    right: float


class Scene(NamedTuple):
    """A frame and what is in it."""

    frame: UInt8[np.ndarray, "height width 3"]
    digits: tuple[Digit, ...]


def draw_digit(rng: np.random.Generator, name: int) -> Float32[np.ndarray, "64 64"]:
    """A handwritten-looking digit: ink from 0 to 1, its box filling most of a 64x64 square.

    One of the digit's skeletons; its points jittered, then bent by a smooth random field, sheared and
    stretched; drawn with a round pen of random width.
    """
    strokes = [stroke.split() for stroke in SKELETONS[name][rng.integers(len(SKELETONS[name]))].split("|")]
    moved: dict[str, np.ndarray] = {}  # strokes that meet in a point still meet there
    for point in itertools.chain(*strokes):
        moved.setdefault(point, np.array(point.split(","), float) / 100 - 0.5 + rng.normal(0, 0.018, 2))
    lines = [_spline(np.stack([moved[point] for point in stroke])) for stroke in strokes]
    phase, strength = rng.uniform(0, 2 * np.pi, (2, 2)), rng.normal(0, 0.02, (2, 2))
    angle, shear, stretch = rng.normal(0, 0.08), rng.normal(0.0, 0.14), rng.normal(1.0, 0.09)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn @ np.array([[stretch, -shear], [0.0, 1.0]])
    points = np.concatenate(lines)
    bend = (strength * np.sin(5.0 * points[:, None, ::-1] + phase)).sum(1)
    points = (points + bend) @ shape.T
    pen = rng.uniform(0.038, 0.075)
    low, high = points.min(0) - pen, points.max(0) + pen
    scale = (GLYPH - 4) / (high - low).max()
    points, pen = (points - (low + high) / 2) * scale + (GLYPH - 1) / 2, pen * scale
    grid = np.arange(GLYPH, dtype=np.float32)
    squared = (grid[:, None, None] - points[:, 1]) ** 2 + (grid[None, :, None] - points[:, 0]) ** 2
    return np.clip(pen + 0.5 - np.sqrt(squared.min(-1)), 0, 1).astype(np.float32)


def draw_texture(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "height width 3"]:
    """A still, dark background in grey levels: marbled, woven or grained, in two muted tones."""
    fold = _clouds(rng, height, width, 160)
    clouds = _clouds(rng, height, width, 96)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 30)
    along = (np.cos(angle) * x + np.sin(angle) * y) / period
    across = (np.cos(angle) * y - np.sin(angle) * x) / period
    kind = rng.integers(4)
    if kind == 0:
        figure = clouds
    elif kind == 1:
        figure = 0.75 * np.sin(2 * np.pi * (along / 4 + 1.6 * fold)) + 0.45 * clouds
    elif kind == 2:
        figure = 0.5 * np.sin(2 * np.pi * (along + 0.3 * fold)) * np.sin(2 * np.pi * across) + 0.7 * clouds
    else:
        streaks = _clouds(rng, height, max(width // 24, 2), 12)
        figure = 0.5 * clouds + _resized(streaks, height, width)
    figure = figure + 0.12 * rng.standard_normal((height, width), np.float32)  # grain of the material, still
    share = np.clip(0.5 + 0.3 * figure, 0, 1)[..., None].astype(np.float32)
    dark = rng.uniform(14, 60) * (1 + 0.25 * rng.uniform(-1, 1, 3))
    light = dark + rng.uniform(18, 60) * (1 + 0.3 * rng.uniform(-1, 1, 3))
    return (dark + (light - dark) * share).astype(np.float32)


def paste(
    frame: Float32[np.ndarray, "height width 3"],
    ink: Float[np.ndarray, "side side"] | UInt8[np.ndarray, "side side"],
    name: int,
    centre: tuple[float, float],
    size: float,
    angle: float = 0.0,
    shear: float = 0.0,
    colour: tuple[float, float, float] = (235.0, 235.0, 235.0),
) -> Digit:
    """Lays a digit over `frame`, in place, at a position that need not be whole pixels.

    Args:
      frame: grey levels.
      ink: how much ink, 0..1, or 0..255 in bytes.
      name: which digit it is.
      centre: (y, x) of the middle of its square.
      size: side of its square in the frame.
      angle: turned by so much.
      shear: and slanted.
      colour: of the ink, in grey levels.

    Returns:
      The digit and the box of its ink, which may reach out of the frame.
    """
    height, width, _ = frame.shape
    half = int(np.ceil(0.85 * size * (1 + abs(shear)))) + 1
    top, left = int(np.floor(centre[0])) - half, int(np.floor(centre[1])) - half
    side = ink.shape[0]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    back = np.array([[1.0, shear], [0.0, 1.0]]) @ turn * (side / size)  # frame (x, y) -> ink (x, y)
    middle = np.array([centre[1] - left + 0.5, centre[0] - top + 0.5])
    shift = side / 2 - back @ middle
    whole = ink if ink.dtype != np.uint8 else ink.astype(np.float32) / 255
    alpha = np.asarray(
        Image.fromarray(whole.astype(np.float32)).transform(
            (2 * half, 2 * half),
            Image.Transform.AFFINE,
            (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1]),
            Image.Resampling.BILINEAR,
        )
    )
    rows, columns = np.flatnonzero(alpha.max(1) > 0.3), np.flatnonzero(alpha.max(0) > 0.3)
    y0, y1, x0, x1 = max(top, 0), min(top + 2 * half, height), max(left, 0), min(left + 2 * half, width)
    if y0 < y1 and x0 < x1:
        part = alpha[y0 - top : y1 - top, x0 - left : x1 - left, None]
        frame[y0:y1, x0:x1] += part * (np.asarray(colour, np.float32) - frame[y0:y1, x0:x1])
    return Digit(
        name,
        float(top + rows[0]),
        float(left + columns[0]),
        float(top + rows[-1] + 1),
        float(left + columns[-1] + 1),
    )


def ink_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """A bright colour, tinted a little, in grey levels."""
    red, green, blue = rng.uniform(165, 250) * (1 - 0.35 * rng.uniform(0, 1, 3) * rng.uniform(0, 1))
    return float(red), float(green), float(blue)


def expose(
    rng: np.random.Generator, frame: Float32[np.ndarray, "height width 3"], noise: float
) -> UInt8[np.ndarray, "height width 3"]:
    """What a sensor would give: normal noise of `noise` grey levels in each channel, rounded to bytes."""
    noisy = frame + np.float32(noise) * rng.standard_normal(frame.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def glide(seed: int = 0, frames: int = 120, size: int = 512, noise: float = 1.5) -> Iterator[Scene]:
    """A clip: the ten digits over a still texture, each gliding for part of the time and then resting.

    Args:
      seed: decides everything random.
      frames: how many.
      size: height and width.
      noise: standard deviation of the sensor noise, grey levels.
    """
    rng = np.random.default_rng(seed)
    background = draw_texture(rng, size, size)
    background *= _vignette(size)
    names = rng.permutation(10)
    inks = [draw_digit(rng, int(name)) for name in names]
    colours = [ink_colour(rng) for _ in names]
    ways = _ways(rng, frames, size, len(names))
    sensor = np.random.default_rng((seed, frames))
    for way in ways:
        frame = background.copy()
        digits = [
            paste(frame, ink, int(name), (y, x), side, angle, colour=colour)
            for name, ink, colour, (y, x, side, angle) in zip(names, inks, colours, way, strict=True)
        ]
        yield Scene(expose(sensor, frame, noise), tuple(digits))


def _ways(
    rng: np.random.Generator, frames: int, size: int, count: int
) -> Float[np.ndarray, "frames count 4"]:
    """(y, x, side, angle) of each digit in each frame; no two digits ever come near each other."""
    apart, edge = size / 6.0, size / 9.0
    ways: list[np.ndarray] = []
    time = np.linspace(0, 1, frames)
    begins = np.linspace(-0.25, 0.9, count)  # in every frame some move and some rest
    while len(ways) < count:
        begin = begins[len(ways)]
        side = rng.uniform(0.09, 0.145) * size
        start, go = rng.uniform(edge, size - edge, 2), rng.normal(0, 0.18 * size, 2)
        moving = np.clip((time - begin) / 0.34, 0, 1)
        done = (moving - np.sin(2 * np.pi * moving) / (2 * np.pi))[:, None]  # starts and stops softly
        bow = np.array([-go[1], go[0]]) * rng.normal(0, 0.3)
        path = start + done * go + np.sin(np.pi * done) * bow
        inside = (path.min() > edge) and (path.max() < size - edge)
        clear = all(np.hypot(*(path - other[:, :2]).T).min() > apart for other in ways)
        if inside and clear and np.hypot(*go) > 0.12 * size:
            angle = rng.normal(0, 0.06) + rng.normal(0, 0.25) * np.sin(2 * np.pi * done)
            ways.append(np.concatenate([path, np.full_like(done, side), angle], 1))
    return np.stack(ways, 1)


def _vignette(size: int) -> Float32[np.ndarray, "size size 1"]:
    """Light that falls off towards the corners, 1 in the middle."""
    across = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    return (1 - 0.22 * (across[:, None] + across))[..., None]


def _resized(
    picture: Float32[np.ndarray, "h w"], height: int, width: int
) -> Float32[np.ndarray, "height width"]:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _clouds(
    rng: np.random.Generator, height: int, width: int, coarsest: float
) -> Float32[np.ndarray, "height width"]:
    """Smooth noise in octaves, from `coarsest` pixels down to two; standard deviation 1."""
    total = np.zeros((height, width), np.float32)
    spacing, weight = coarsest, 1.0
    while spacing >= 2:
        shape = (int(height / spacing) + 2, int(width / spacing) + 2)
        total += weight * _resized(rng.standard_normal(shape, np.float32), height, width)
        spacing, weight = spacing / 2, 0.6 * weight
    return (total - total.mean()) / total.std()


def _spline(points: Float[np.ndarray, "n 2"], between: int = 14) -> Float[np.ndarray, "m 2"]:
    """A Catmull-Rom curve through `points` (closed where the last is the first), sampled densely."""
    closed = len(points) > 2 and np.allclose(points[0], points[-1])
    before = points[-2] if closed else 2 * points[0] - points[1]
    after = points[1] if closed else 2 * points[-1] - points[-2]
    p = np.concatenate([before[None], points, after[None]])
    t = np.linspace(0, 1, between * (9 // len(points) + 1))[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = 2 * b + t * (c - a) + t**2 * (2 * a - 5 * b + 4 * c - d) + t**3 * (3 * b - a - 3 * c + d)
    return (curve / 2).transpose(1, 0, 2).reshape(-1, 2)
