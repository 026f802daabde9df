"""Fixed values as the kernels read them: of a convolution its kernel, with the scale and shift that come after it taken
in; all of them in one array.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._program import Kind, Op, TileOp, Value
from ._slots import channels_of

LINE = 16  # floats: where a part begins
PAST = 64  # floats behind the last part: vectors read past the end of what they are asked for


# Of what has been made in this process, by how it is made and of what shapes: to find a form out takes longer than all
# else about a part, and networks have many that are alike.
_forms: dict[tuple[Any, ...], jax.ShapeDtypeStruct] = {}


def made_of(values: Sequence[Value], apply: Callable[..., Any], how: Any) -> Value:
    """What `apply` makes of fixed values, computed once, in `init`.

    Args:
        how: all that the form of what `apply` makes depends on, beside the values' shapes and dtypes.
    """
    op = Op("pack", tuple(values), (), lambda *xs: (apply(*xs),))
    key = (how, *((v.shape, v.dtype) for v in values))
    if key not in _forms:
        _forms[key] = jax.eval_shape(apply, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values))
    form = _forms[key]
    made = Value(form.shape, form.dtype, Kind.FIXED, None, op, constant=all(v.constant for v in values))
    op.outputs = (made,)
    return made


def in_one(parts: Sequence[Value]) -> tuple[Value, dict[Value, int]]:
    """All `parts` in one array of float32, and where in it each begins."""
    sizes = [-(-math.prod(part.shape) // LINE) * LINE for part in parts]

    def joined(*arrays):
        flat = [jnp.ravel(x).astype(jnp.float32) for x in arrays]
        return jnp.concatenate([*(jnp.pad(x, (0, n - x.size)) for x, n in zip(flat, sizes, strict=True)),
                                jnp.zeros((PAST,), jnp.float32)])

    begins = itertools.accumulate(sizes, initial=0)
    return made_of(parts, joined, "in one"), dict(zip(parts, begins, strict=False))


def pack(kernel: Any, lanes: int) -> Any:
    """A kernel `[rows, columns, in, out]` as `convolve` reads it: panels of `2 * lanes` output channels, each tap by
    tap, input by input. What is left over is a panel as well, as narrow as it fits.
    """
    taps, outputs = math.prod(kernel.shape[:3]), kernel.shape[3]
    flat, parts = kernel.reshape(taps, outputs), []
    whole = outputs // (2 * lanes)
    if whole:
        panels = flat[:, : whole * 2 * lanes].reshape(taps, whole, 2 * lanes)
        parts.append(jnp.transpose(panels, (1, 0, 2)).ravel())
    rest = outputs - whole * 2 * lanes
    if rest:
        step = lanes // 2 if lanes > 4 else lanes  # `HALF` of vector.h
        parts.append(jnp.pad(flat[:, whole * 2 * lanes:], ((0, 0), (0, -rest % step))).ravel())
    return jnp.concatenate(parts)


def paired(kernel: Any) -> Any:
    """Of a kernel `[rows, columns, in, out]` two inputs each in bfloat16 in the place of one float (the first in its
    lower half): `[rows, columns, in / 2, out]`."""
    even = jnp.pad(kernel, ((0, 0), (0, 0), (0, kernel.shape[2] % 2), (0, 0))).astype(jnp.bfloat16)
    two = jnp.stack([even[:, :, 0::2], even[:, :, 1::2]], axis=-1)
    return jax.lax.bitcast_convert_type(two, jnp.float32)


class Blocks(NamedTuple):
    """How kernels of 3x3 are done by fewer products.

    Attributes:
        code: in `winograd.h`.
        side: of a block of results.
        saved: share of the products.
        transform: `[kernels, 3]`: of the taps along one axis the kernels.
        most: bytes of kernels beyond which to read them costs more than is saved.
        fewest: blocks of a picture below which it does.
    """

    code: int
    side: int
    saved: float
    transform: tuple[tuple[float, ...], ...]
    most: float = math.inf
    fewest: int = 1


def _by_points(*points: float) -> tuple[tuple[float, ...], ...]:
    """Of three taps: the polynomial that they are, at these points and at infinity, each over what it is divided by."""
    by = {x: math.prod(x - y for y in points if y != x) for x in points}
    return (*((1 / n, x / n, x * x / n) for x, n in by.items()), (0, 0, 1))


_THREE = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)  # G of F(2, 3)
_SIX = _by_points(0, 0.625, -0.625, 1.5, -1.5)  # of F(4, 3); see `Large`
_TWO_AND_ONE = (1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0)  # of F(2, 2) for the outer taps; the inner one
# By the words of an axis (`axis_words`): how far results are apart in the input, phases, and of each its taps.
BLOCKS: dict[tuple[int, ...], Blocks] = {
    (1, 1, 3, 0, 0, 1, 1, 2, 2): Blocks(0, 2, 1 - 16 / 36, _THREE),
    (2, 1, 3, 0, 0, 1, 1, 2, 2): Blocks(1, 2, 1 - 25 / 36, _TWO_AND_ONE, 8 << 20),
    (1, 2, 2, 0, 0, 2, 1, 1, 1, 1): Blocks(2, 4, 1 - 25 / 36, _TWO_AND_ONE, 8 << 20),
    (1, 2, 1, 1, 0, 2, 0, 0, 2, 1): Blocks(3, 4, 1 - 25 / 36, _TWO_AND_ONE, 8 << 20),
}
# The same where results are held within a threshold. Without one, what differs by rounding alone has changed as well: a
# change would grow by whole blocks.
LARGE: dict[tuple[int, ...], Blocks] = {(1, 1, 3, 0, 0, 1, 1, 2, 2): Blocks(4, 4, 1 - 36 / 144, _SIX, 12 << 20, 16)}


def winograd(kernel: Any, blocks: Blocks) -> Any:
    """U = G g G^T (Lavin and Gray, arXiv 1509.09308, 4.1): `[3, 3, in, out]` to `[4, 4, ..]` or `[6, 6, ..]`."""
    transform = jnp.array(blocks.transform, kernel.dtype)
    return jnp.einsum("ai,bj,ijkl->abkl", transform, transform, kernel, precision=jax.lax.Precision.HIGHEST)


def affine(names: Sequence[str], numbers: Sequence[Any], channels: int) -> tuple[Any, Any]:
    """``(scale, shift)``, both `[channels]`, such that adding, subtracting, multiplying and dividing is
    ``x * scale + shift``."""
    scale, shift = jnp.ones((channels,), jnp.float32), jnp.zeros((channels,), jnp.float32)
    for name, number in zip(names, numbers, strict=True):
        by = jnp.broadcast_to(jnp.asarray(number, jnp.float32).ravel(), (channels,))
        if name in ("add", "sub"):
            shift = shift + (by if name == "add" else -by)
        else:
            scale, shift = (scale * by, shift * by) if name == "mul" else (scale / by, shift / by)
    return scale, shift


@dataclasses.dataclass
class Ends:
    """What becomes of a convolution's sums: numbers for each channel, then perhaps another map, then bounds.

    Attributes:
        added: the operation that adds the other map, and which of its inputs that is.
    """

    result: Value
    steps: list[tuple[str, Value]] = dataclasses.field(default_factory=list)
    added: tuple[TileOp, int] | None = None
    low: float = -math.inf
    high: float = math.inf

    def take(self, constant, op: TileOp, there: Collection[Value]) -> bool:
        """Whether the operation is one of these; it is then done. `there`: values that can be added."""
        if op.form is None or not op.pointwise or self.result.dtype != op.outputs[0].dtype:
            return False
        if op.form.name == "same":
            axes, channels = op.outputs[0].map_axes, self.result.map_axes
            return channels_of(op.outputs[0].shape, axes, "") == channels_of(self.result.shape, channels, "")
        if op.form.name != "elementwise" or len(op.inputs) != 2:
            return False
        number = int(op.inputs[0] is self.result)
        name, other = op.form.params[0], op.inputs[number]
        bounded = (self.low, self.high) != (-math.inf, math.inf)
        if name in ("add", "add_any") and other.is_tiled and other in there and other.dtype == jnp.float32:
            mine = channels_of(self.result.shape, self.result.map_axes, "")
            if bounded or self.added is not None or channels_of(other.shape, other.map_axes, "") != mine:
                return False
            self.added = op, number
            return True
        if other.kind is not Kind.FIXED or other.is_tiled or other.dtype != jnp.float32:
            return False
        if name in ("add", "mul") or (name in ("sub", "div") and op.inputs[0] is self.result):
            free = not bounded and self.added is None
            if free:
                channels = channels_of(op.outputs[0].shape, op.outputs[0].map_axes, "")
                if math.prod(other.shape) not in (1, channels):
                    return False
                self.steps.append((name, other))
            return free
        found = constant(other) if name in ("max", "min") else None
        bound = math.nan if found is None or found.size != 1 else float(found.reshape(()))
        if not self.low <= bound <= self.high:
            return False
        if name == "max":
            self.low = bound
        else:
            self.high = bound
        return True
