"""What a layer is: `incremental` of one operation, which trusts the mask it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._explain import Report
from .._incremental import Cache, Incremental, _check_threshold, incremental
from .._plan import TileSegment
from .._program import Kind
from .._stats import Stats

X = Any  # an array, a `jax.ShapeDtypeStruct`, or a tuple of them for a layer of several maps
Mask = Any  # booleans, None, or a tuple of them


class Options(TypedDict, total=False):
    """What every layer on maps takes besides its own arguments.

    Attributes:
        tau: threshold on the change of the layer's *result*, in its units: a position that moves by no more
            (by `norm`, over channels) keeps its old value, and its mask is unset. 0 is exact. To threshold
            what goes into a network, use `detect`.
        norm: ``"l1"``, ``"l2"`` or ``"linf"``.
        spatial_axes: the row and column axes of `x`, from the end; ``(-3, -2)`` for `[H, W, C]`, ``(-2, -1)``
            for `[C, H, W]`.
        tile: side of the square tiles of work, in positions of the result.
        bucket: number of tiles that are computed at a time.
        dense_share: with a larger share of its tiles to do, the layer is computed densely; None estimates it.
    """

    tau: float
    norm: str
    spatial_axes: tuple[int, int]
    tile: int | None
    bucket: int | None
    dense_share: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer, made by the functions of `deltajax.layers`. State is in the cache alone.

    Law: with ``tau=0``, and a mask that is set wherever `x` changed since the last call, `y` is the dense
    layer of `x`, and the mask that comes out is set wherever `y` changed. With ``mask=None`` the layer
    compares `x` with what it holds, and the law needs no mask. On a fresh cache everything is computed,
    whatever the mask says.

    A *map* `x` is `[H, W, C]`, or `[S, H, W, C]` for S streams; its mask is `[H, W]` or `[S, H, W]`, one
    boolean for each position. A *vector* is `[F]` or `[S, F]`; it changes as one, and its mask is a single
    boolean.
    """

    name: str
    fn: Callable[..., Array]  # of (params, x), or of (params, (x, ...)) where the layer takes several
    options: Options
    vectors: bool = False  # takes vectors too
    several: bool = False  # takes a tuple
    joined: bool = False  # `fn` reads the tuple joined along channels
    detection: Mapping[str, Any] | None = None  # of `detect`: how it looks, besides the mask
    # A transformation for each form of x (vector or map; channels of the parts) and segment that `tau` holds
    # back. Never part of a result.
    _forms: dict[tuple[bool, tuple[int, ...], str | None], Incremental] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        _check_threshold("tau", self.options.get("tau", 0.0))
        self._made(False, (), None)  # refuses bad options here, where the user wrote them

    def init(self, params: PyTree, x: X) -> Cache:
        """A fresh cache.

        Args:
            params: what every call will be given.
            x: an input, or its `jax.ShapeDtypeStruct`; only shape and dtype are read. A tuple for a layer of
                several.

        Raises:
            ValueError: `params` or `x` does not fit the layer; the message names it.
        """
        inc, frame = self._spec(params, x)
        return inc.init(params, frame)[0]

    def __call__(
        self, params: PyTree, cache: Cache, mask: Mask, x: X
    ) -> tuple[Array, Cache, Bool[Array, " ..."]]:
        """``(y, cache, mask)``; pure.

        Args:
            params: as in `init`.
            cache: of `init` or of the last call.
            mask: where `x` changed since the last call, as the layer before says; None to find out here. For
                a layer of several maps one mask for each (any None: all are compared), or a single one for
                all.
            x: of the shape and dtype that the cache was made for.

        Raises:
            ValueError: `x`, `mask` or `cache` does not fit; the message names it and the remedy.
        """
        parts = self._parts(x)
        vector = len(parts[0].shape) <= 2
        frame = self._frame(parts)
        given = self._mask(mask, len(parts))
        if given is not None and vector:
            if given.shape != ():
                raise ValueError(
                    f"`mask` (shape {given.shape}) of layer {self.name!r} must be a single boolean, for `x` "
                    f"{tuple(parts[0].shape)} is a vector; use None if nothing is known."
                )
            given = jnp.broadcast_to(given, frame.shape[:-1])
        return self._form(params, parts).step(params, cache, given, frame)

    def shape(self, params: PyTree, x: X) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `y`: what the next layer's `init` needs. Arguments as in `init`."""
        inc, frame = self._spec(params, x)
        return jax.eval_shape(inc.fn, params, frame)

    def change_map(self, cache: Cache) -> Bool[Array, " ..."]:
        """The mask that came out of the call that made `cache`."""
        inc = self._of(cache)
        plan = inc._plan_of(cache)
        (value,) = plan.outputs
        if value.kind is not Kind.MAP:
            return cache["whole_flags"][0, plan.wholes.index(value)]
        at = plan.maps.index(value)
        mask = cache["masks"][at] & cache["flags"][:, at, None, None]
        assert value.axes is not None
        return mask if value.axes.stream is not None else mask[0]

    def stats(self, cache: Cache) -> Stats:
        """What the call that made `cache` found and computed; see `Stats`."""
        return self._of(cache).stats(cache)

    def explain(self, params: PyTree, x: X) -> Report:
        """How the layer is done; print it. Arguments as in `init`."""
        inc, frame = self._spec(params, x)
        return inc.explain(params, frame)

    # ------------------------------------------------------------------------------------------------ forms

    @property
    def _spatial(self) -> tuple[int, int]:
        return self.options.get("spatial_axes", (-3, -2))

    def _parts(self, x: X) -> tuple[Any, ...]:
        """`x` as a tuple of arrays that fit each other."""
        if isinstance(x, (tuple, list)) != self.several:
            wanted = "a tuple of arrays" if self.several else "one array"
            raise ValueError(f"`x` (={type(x).__name__}) of layer {self.name!r} must be {wanted}.")
        parts = tuple(x) if self.several else (x,)
        if not parts or any(not hasattr(part, "shape") or not hasattr(part, "dtype") for part in parts):
            names = ", ".join(type(part).__name__ for part in parts) or "an empty tuple"
            raise ValueError(f"`x` (={names}) of layer {self.name!r} must be arrays; use jnp.asarray.")
        shapes = [tuple(part.shape) for part in parts]
        rank = len(shapes[0])
        if rank not in ((1, 2, 3, 4) if self.vectors else (3, 4)):
            wanted = "[H, W, C] or [S, H, W, C]" if self._spatial == (-3, -2) else "[C, H, W] or [S, C, H, W]"
            wanted += ", or a vector [F] or [S, F]" if self.vectors else ""
            raise ValueError(
                f"`x` of layer {self.name!r} has shape {shapes[0]}; expected {wanted}: add what is missing."
            )
        if len(parts) > 1:
            channel = self._channel(rank)
            if len({(len(s), *s[:channel], *s[channel + 1:]) for s in shapes}) > 1:
                raise ValueError(f"`x` of layer {self.name!r} has shapes {shapes}; only channels may differ.")
            dtypes = sorted({str(part.dtype) for part in parts})
            if len(dtypes) > 1:
                raise ValueError(f"`x` of layer {self.name!r} has dtypes {dtypes}; make them one.")
        return parts

    def _channel(self, rank: int) -> int:
        """The channel axis of a map or vector of this rank."""
        if rank <= 2:
            return rank - 1
        picture = {rank + axis for axis in self._spatial}
        return max(axis for axis in range(rank) if axis not in picture)

    def _frame(self, parts: tuple[Any, ...]) -> Array:
        """The engine takes one frame: maps are joined along channels, a vector is a picture of one pixel."""
        rank = len(parts[0].shape)
        frame = parts[0] if len(parts) == 1 else jnp.concatenate(parts, self._channel(rank))
        return frame if rank > 2 else jnp.expand_dims(frame, (-3, -2))

    def _spec(self, params: PyTree, x: X) -> tuple[Incremental, jax.ShapeDtypeStruct]:
        parts = self._parts(x)
        return self._form(params, parts), self._frame_shape(parts)

    def _frame_shape(self, parts: tuple[Any, ...]) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(self._frame, tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in parts))

    def _mask(self, mask: Mask, count: int) -> Array | None:
        masks = tuple(mask) if isinstance(mask, (tuple, list)) else (mask,) * count
        if len(masks) != count:
            raise ValueError(f"`mask` of layer {self.name!r} has {len(masks)} parts where `x` has {count}.")
        if any(m is None for m in masks):
            return None
        first, *more = map(jnp.asarray, masks)
        for m in more:
            if m.shape != first.shape or m.dtype != first.dtype:
                raise ValueError(
                    f"`mask` of layer {self.name!r} has parts {first.dtype}{list(first.shape)} and "
                    f"{m.dtype}{list(m.shape)}; all must be booleans over the same picture."
                )
            first = first | m
        return first

    def _form(self, params: PyTree, parts: tuple[Any, ...]) -> Incremental:
        """The transformation for inputs of this form."""
        rank = len(parts[0].shape)
        channels = tuple(part.shape[self._channel(rank)] for part in parts) if self.several else ()
        plain = self._made(rank <= 2, channels, None)
        tau = self.options.get("tau", 0.0)
        if tau == 0:
            return plain
        plan = plain.plan(params, self._frame_shape(parts))
        made = [s.name for s in plan.segments if isinstance(s, TileSegment) and plan.outputs[0] in s.writes]
        if not made:
            raise ValueError(
                f"`tau` (={tau}) of layer {self.name!r} must be 0 for `x` {tuple(parts[0].shape)}: its "
                "result has no picture or is `x` itself; use `detect` on a map before it."
            )
        return self._made(rank <= 2, channels, made[0])

    def _made(self, vector: bool, channels: tuple[int, ...], held: str | None) -> Incremental:
        key = vector, channels, held
        if key in self._forms:
            return self._forms[key]
        options: dict[str, Any] = {name: value for name, value in self.options.items() if name != "tau"}
        if vector:
            options["spatial_axes"] = (-3, -2)
        if held is not None:
            options["taus"] = {held: self.options.get("tau", 0.0)}
        options |= {"trust_mask": True} if self.detection is None else self.detection

        def fn(params, frame):
            if vector:  # its picture of one pixel ends here: the engine does what follows whole, in a `cond`
                frame = lax.squeeze(frame, (frame.ndim - 3, frame.ndim - 2))
            if not self.several or self.joined:
                return self.fn(params, frame)
            ends = [sum(channels[: i + 1]) for i in range(len(channels) - 1)]
            return self.fn(params, tuple(jnp.split(frame, ends, self._channel(frame.ndim))))

        self._forms[key] = incremental(fn, **options)
        return self._forms[key]

    def _of(self, cache: Cache) -> Incremental:
        """The form that a cache was made by."""
        for inc in self._forms.values():
            try:
                inc._plan_of(cache)
            except ValueError:
                continue
            return inc
        raise ValueError(f"`cache` was not made by this layer {self.name!r}; call its `init` first.")


def layer(fn: Callable[[PyTree, Array], Array], **options: Unpack[Options]) -> Layer:
    """Any function of ``(params, x)`` as a layer: for a block that the other layers do not spell.

    Law: as of `Layer`, with ``fn(params, x)`` as the dense layer. `x` is a map or a vector; whatever `fn`
    does is planned as by `incremental`. `tau` holds back the result alone; for one within, use `incremental`
    with `taus`.
    """
    return Layer(getattr(fn, "__name__", "layer"), fn, options, vectors=True)
