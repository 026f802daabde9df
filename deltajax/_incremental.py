"""`incremental(fn)`: the public transformation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, PyTree

from . import _bound, _masks, native
from ._audit import Audit, ErrorOf, output_error
from ._control import Control
from ._detect import Detection
from ._explain import Report, report
from ._options import Options
from ._plan import Plan, cone, make_plan, thresholded
from ._program import Kind, TileOp, Value
from ._run import initial_state, run_step
from ._stats import Stats, measure
from ._tiles import Axes

Kernels = Literal["xla", "native", "native-bf16"]
Cache = dict[str, Any]
Frame = Array | np.ndarray | jax.ShapeDtypeStruct


def incremental(
    fn: Callable[[PyTree, Array], PyTree],
    *,
    tau: float | Literal["auto"] = 0.0,
    norm: str = "linf",
    spatial_axes: tuple[int, int] | None = None,
    cell: int = 1,
    field: int = 1,
    reference: str = "held",
    taus: Mapping[str, float] | None = None,
    tile: int | None = None,
    bucket: int | None = None,
    dense_share: float | None = None,
    trust_mask: bool = False,
    stand: int = 1,
    large: float | None = None,
    max_age: int | None = None,
    scene_cut: float | None = None,
    audit: float = 0.0,
    audit_tiles: int | None = None,
    audit_error: ErrorOf | None = None,
    max_error: float | None = None,
    fallback: str = "dense",
    kernels: Kernels = "xla",
    platform: str | None = None,
) -> Incremental:
    """Turn ``fn(params, frame)`` into a step that recomputes only what changed.

    Law: with ``tau=0``, ``step(params, cache, mask, frame)`` returns ``fn(params, frame)`` for any frames, as exactly
    as the backend computes a tile like a picture (bit for bit in most cases, else within 2e-6 of the largest output
    in float32 on the CPU). With ``tau>0`` it returns ``fn(params, held)``, where the *held frame* keeps every
    position at the value that was last used, and ``norm(frame - held) <= tau`` at every position for ever.
    Recomputed values overwrite old ones; nothing is accumulated, so nothing drifts.

    The idea is that of Borji, "Addressing a fundamental limitation in deep vision models: lack of spatial
    attention", arXiv 2407.01782, section 3, there with the previous frame as the reference.

    Args:
        fn: a pure function of ``(params, frame)``; returns any pytree of arrays. A frame is `[H, W, C]`, or
            `[S, H, W, C]` for S streams (cameras) which `fn` must treat alike and apart.
        tau: the input threshold, in the units of the frame (grey levels for uint8); a position changes when the
            norm of its difference from the held frame is above it. ``"auto"``: with `max_error`, all thresholds are
            found while the step runs.
        norm: ``"l1"``, ``"l2"`` or ``"linf"``, over the channels of a position, a cell or a field.
        spatial_axes: the frame's row and column axes, counted from the end; the default ``(-3, -2)`` is NHWC/HWC,
            ``(-2, -1)`` is NCHW/CHW.
        cell: side in pixels of the square cells of the frame's mask, which change as one.
        field: side in pixels (odd) of the neighbourhood over which the norm is taken: the receptive field of the
            first layer, as in the paper.
        reference: ``"held"``, or ``"previous"`` for the paper's own variant, which compares with the previous frame
            and drifts with slow change.
        taus: a threshold for each named segment (see `explain` for the names), in the units of that segment's
            result, over its channels by `norm`: a smaller change is held back and stops there.
        tile: side of the square tiles of work, in positions of each segment's own result.
        bucket: number of tiles that are computed at a time.
        dense_share: a segment with a larger share of its tiles to do is computed densely; None estimates the share
            from the work in a tile.
        trust_mask: where a mask is given, look no further than it (it then claims everything that changed).
        stand: a change of the frame counts once it has been there in so many frames in a row, at most 127: noise that
            comes and goes does not. Then ``norm(frame - held) <= large`` holds for ever, and ``> tau`` in fewer than
            `stand` frames in a row.
        large: with `stand`: the change that counts at once, in the units of `tau`.
        max_age: in this many frames every tile, of the frame and of every segment with a threshold, has one turn in
            which nothing is held back. The turns are spread evenly: no frame does more than a `max_age`-th of them.
            So a difference that thresholds hold back is let through a segment within `max_age` frames. None: never.
        scene_cut: a frame whose mean absolute difference from the held one is above this, in the units of the frame,
            shows a new scene: it is computed whole, and no threshold holds anything back. 27 grey levels of 255 is a
            common choice (PySceneDetect's); a compressed video's key frames make 1 to 3. None: never.
        audit: the share of the frames, in [0, 1], in which the whole function is computed as well and the output
            compared with it; drawn at random, one from each run of 1 / `audit` frames. What was found is in `stats`.
            Such a frame costs a dense pass more.
        audit_tiles: in an audit, so many tiles of 8x8 of each output, drawn at random, in place of all of it: each
            is computed from the part of the frame that it depends on. That pays where receptive fields (see `explain`)
            are small parts of the frame: then ``audit=1.0`` looks at a few tiles in every frame.
        audit_error: ``(dense output, output) -> error``, a function that JAX can trace. Left out: root mean square
            of the difference relative to that of the dense output, of the worst of the output's arrays.
        max_error: the error that at most about one in twenty audits may exceed: after each audit all thresholds are
            lowered or raised together, and one that finds too large an error has the next frame computed whole.
            Audits are then one in twenty frames, if `audit` does not say otherwise.
        kernels: how segments are done on tiles: ``"xla"`` by XLA's operations, everywhere; ``"native"`` by kernels of
            deltajax's own (see `native`), on CPUs, with a C++ compiler at hand when they are used for the first time
            on a machine. They are several times as fast; what they compute is equal within rounding; not a bit of it
            depends on which tiles were computed when. A NaN or an infinity spoils whole blocks of 2x2 results of a 3x3
            convolution (4x4 of a transposed one, and of a segment with a threshold), until it is gone. What they cannot
            do stays with XLA; `explain` says what that is. Such a step cannot be exported. ``"native-bf16"``: the same
            of a float32 network in bfloat16, where the processor multiplies it (AVX-512 BF16; elsewhere it is
            ``"native"``): what products are made of is rounded to 8 bits, as in OpenVINO's and oneDNN's bfloat16, and
            so are maps that only such segments read; sums, all else and the outputs are float32. Up to twice as fast,
            with half the memory for maps, and .2 to .5 % of a layer's result off; the laws hold of it as it is.
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``: what the step is laid out for. On a CPU, small buckets of tiles in
            loops; on the others, all tiles of a frame at once, in a bucket of one of a few sizes. Either runs
            everywhere, with equal results within rounding. On a CPU a value that was computed and is the same
            counts as unchanged; on the others only where there is a threshold, and elsewhere all that a change reaches
            counts as changed. None: `jax.default_backend()`; name it to export for others.
        fallback: what becomes of operations that cannot be done on tiles: ``"dense"`` computes them whole, whenever
            something that they read changed, and `explain` names them; ``"error"`` refuses the function.

    Raises:
        ValueError: an option has a value outside its range; the message names it. With ``fallback="error"``, `init`
            and `step` raise it for a function with fallbacks, with primitive, reason and source line of each; with
            `audit_tiles` for one of which a tile cannot be computed alone, or not for less than all of the output; with
            ``kernels="native"`` where there is no compiler, or JAX does not compute on the CPU.
    """
    if tau != "auto":
        _check_threshold("tau", tau)
    elif max_error is None or taus:
        raise ValueError("`tau='auto'` needs the error to be allowed in `max_error`, and no `taus`.")
    if not isinstance(audit, (int, float, np.integer, np.floating)) or not 0 <= audit <= 1:
        raise ValueError(f"`audit` (={audit!r}) must lie in [0, 1]: the share of the frames; .05 is one in twenty.")
    if max_error is not None:
        _check_threshold("max_error", max_error)
        audit = audit or AUDIT
    elif audit_error is not None and not audit:
        raise ValueError("`audit_error` says how audits judge, but there are none; give `audit`, such as .05.")
    for name, value in (taus or {}).items():
        _check_threshold(f"taus[{name!r}]", value)
    _check_choice("norm", norm, ("l1", "l2", "linf"))
    _check_choice("reference", reference, ("held", "previous"))
    _check_choice("fallback", fallback, ("dense", "error"))
    _check_choice("kernels", kernels, get_args(Kernels))
    if platform is not None:
        _check_choice("platform", platform, ("cpu", "gpu", "tpu"))
    if scene_cut is not None:
        _check_threshold("scene_cut", scene_cut)
    if audit_tiles is not None and (not audit or audit_error is not None):
        raise ValueError(f"`audit_tiles` (={audit_tiles}) goes with `audit`, and without `audit_error`.")
    counts = {"audit_tiles": audit_tiles, "cell": cell, "field": field, "tile": tile, "bucket": bucket, "stand": stand,
              "max_age": max_age}
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(f"`{name}` (={count!r}) must be a whole number >= 1.")
    if large is not None:
        _check_threshold("large", large)
    if (stand > 1) != (large is not None) or stand > 127:
        raise ValueError(
            f"`stand` (={stand}) must be at most 127, and `large` (={large}) goes with more than 1: the change that "
            "need not stand."
        )
    if field % 2 == 0:
        raise ValueError(f"`field` (={field}) must be odd, so that it has a centre; use {field + 1}.")
    if dense_share is not None and not 0 <= dense_share <= 1:
        raise ValueError(f"`dense_share` (={dense_share}) must lie in [0, 1]; 1 never takes the dense path.")
    spatial = (-3, -2) if spatial_axes is None else tuple(spatial_axes)
    if len(spatial) != 2 or any(not isinstance(a, int) or a >= 0 for a in spatial) or spatial[0] == spatial[1]:
        raise ValueError(
            f"`spatial_axes` (={spatial_axes!r}) must name two axes from the end, rows first; use (-3, -2) for NHWC "
            "or (-2, -1) for NCHW."
        )
    how = Detection(0.0 if isinstance(tau, str) else float(tau), norm, cell, field, reference, trust_mask, scene_cut,
                    stand, large)
    options = Options(how, dict(taus or {}), bucket, dense_share, max_age, platform, kernels != "xla",
                      kernels == "native-bf16", pool=True)
    audits = Audit(max(1, round(1 / audit)), audit_error or output_error, audit_tiles) if audit else None
    control = Control(float(max_error), tau == "auto") if max_error is not None else None
    return Incremental(fn, options, (spatial[0], spatial[1]), tile, fallback, audits, control)


AUDIT = 0.05  # the share of the frames that is audited, where thresholds follow the audits and nothing is said


# What a tile should be at least: 4x4 positions, and work that hides what comes with it (from 256 channels on, 3x3, that
# is 4x4 positions; with 128 it is 8x8).
SMALLEST_TILE, TILE_FLOPS = 4, 8e6
ACCELERATOR_TILE = 8


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    """A Python number is weakly typed: it must not widen what it is multiplied with."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    aval = jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _check_threshold(name: str, value: float) -> None:
    if not isinstance(value, (int, float, np.integer, np.floating)) or math.isnan(value) or value < 0:
        raise ValueError(f"`{name}` (={value!r}) must be a number >= 0; use 0 for exact results.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, choices))}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Incremental:
    """The incremental form of a function; made by `incremental`. It holds options only: all state is in the cache."""

    fn: Callable[[PyTree, Array], PyTree]
    options: Options
    spatial_axes: tuple[int, int]
    tile: int | None
    fallback: str
    audit: Audit | None
    control: Control | None
    # Plans by shapes, and the compiled statistics of each: what jit's own memory of traces is to a jitted function.
    # Never part of a result.
    _plans: dict[Any, Plan] = dataclasses.field(default_factory=dict, repr=False)
    _measures: dict[Plan, Callable[[Cache], Stats]] = dataclasses.field(default_factory=dict, repr=False)

    # ------------------------------------------------------------------------------------------------ plan

    def _axes(self, shape: tuple[int, ...]) -> Axes:
        rank = len(shape)
        row, col = (rank + axis for axis in self.spatial_axes)
        others = [axis for axis in range(rank) if axis not in (row, col)]
        if min(row, col) < 0 or len(others) > 2:
            raise ValueError(
                f"`frame` has shape {shape}; expected [H, W, C] or [S, H, W, C] (with `spatial_axes=(-2, -1)`: "
                f"[H, W], [C, H, W] or [S, C, H, W]), and `spatial_axes` is {self.spatial_axes}."
            )
        return Axes(others[0] if len(others) == 2 else None, row, col)

    def plan(self, params: PyTree, frame: Frame) -> Plan:
        """The plan for these shapes: made once."""
        if not hasattr(frame, "shape") or not hasattr(frame, "dtype"):
            raise ValueError(f"`frame` (={type(frame).__name__}) must be an array or a jax.ShapeDtypeStruct.")
        if 0 in frame.shape:
            raise ValueError(f"`frame` has shape {tuple(frame.shape)}: it is empty.")
        dtype = jax.dtypes.canonicalize_dtype(frame.dtype)
        if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            raise ValueError(f"`frame` has dtype {frame.dtype}; expected a floating or integer type (uint8, float32).")
        axes = self._axes(tuple(frame.shape))
        leaves, tree = jax.tree.flatten(params)
        specs = [_spec(x) for x in leaves]
        key = (tree, tuple((s.shape, s.dtype, s.weak_type) for s in specs), tuple(frame.shape), dtype)
        if key not in self._plans:
            spec = jax.ShapeDtypeStruct(frame.shape, dtype)
            small = self._native_target if self.options.native else None
            plan = make_plan(self.fn, tree.unflatten(specs), spec, axes, self._target, small, native.cost,
                             on_cpu=not self.options.at_once)
            known = [segment.name for segment in plan.segments]
            unknown = sorted(set(self.options.taus) - set(known))
            if unknown:
                raise ValueError(f"`taus` names unknown segments {unknown}; the segments are {known}.")
            dense = [s for s in report(plan).segments if s.how == "dense"] if self.fallback == "error" else []
            if dense:
                told = "; ".join(s.reason for s in dense)
                raise ValueError(f"`fn` has operations that are not done on tiles: {told}. Use `fallback='dense'`.")
            if self.audit is not None and self.audit.tiles is not None:
                self._check_cones(plan)
            if self.options.native:
                keep_all = self.audit is not None and self.audit.tiles is not None
                held = {name for name, tau in self.options.taus.items() if tau > 0}
                if self.control is not None and self.control.find_units:
                    held.update(segment.name for segment in thresholded(plan))
                native.attach(plan, held, self.options.bfloat16, keep_all, self.options.pool)
            self._plans[key] = plan
        return self._plans[key]

    def _check_cones(self, plan: Plan) -> None:
        for value in plan.outputs:
            try:
                share = 0.0 if value.kind is Kind.FIXED else cone(plan, value)[0].flops_per_tile / max(plan.flops, 1.0)
            except ValueError as error:
                raise ValueError(f"`audit_tiles` cannot be used with this `fn`: {error}; leave it out.") from error
            if share > 1:
                raise ValueError(
                    f"`audit_tiles` does not pay with this `fn`: a tile of its output depends on so much that it costs "
                    f"{share:.1f} times all of the output; leave it out."
                )

    def _target(self, op: TileOp) -> tuple[int, int]:
        """The tile wished for: small where the picture is small, for there a change spreads over more of it, and where
        a small one is work enough."""
        if self.tile is not None:
            return self.tile, self.tile
        if self.options.at_once:  # there larger ones win nothing
            return ACCELERATOR_TILE, ACCELERATOR_TILE
        picture = op.outputs[0].picture
        each = op.flops / (math.prod(picture) * op.outputs[0].layout().streams)
        side = 16 if min(picture) >= 96 else 8
        while side > SMALLEST_TILE and (side // 2) ** 2 * each >= TILE_FLOPS:
            side //= 2
        return side, side

    def _native_target(self, op: TileOp) -> tuple[int, int]:
        """Small: a tile costs next to nothing but its work, and the fewer positions it has, the fewer are in vain."""
        side = self.tile or SMALLEST_TILE
        return side, side

    # ------------------------------------------------------------------------------------------------ use

    def init(self, params: PyTree, frame: Frame) -> tuple[Cache, Bool[Array, "..."]]:
        """A fresh cache, and the mask of all ones (the paper's initial change map).

        Args:
            params: the parameters that every step will be called with.
            frame: a frame, or its `jax.ShapeDtypeStruct`; only shape and dtype are read.

        Returns:
            ``(cache, mask)``: a pytree of dicts, tuples and arrays; booleans over the frame's cells, `[h, w]` or
            `[S, h, w]`.
        """
        plan = self.plan(params, frame)
        fixed = plan.evaluate_fixed(jax.tree.leaves(params))
        kept = tuple(x for v, x in zip(plan.fixed, fixed, strict=True) if v.is_kept)
        state = initial_state(plan, self.options.how)
        if self.audit is not None:
            state["audit"] = self.audit.initial()
        if self.control is not None:
            state["control"] = self.control.initial(plan)
        return {"fixed": kept, **state}, jnp.ones(self._mask_shape(plan), bool)

    def step(
        self, params: PyTree, cache: Cache, mask: Bool[Array, "..."] | None, frame: Array
    ) -> tuple[PyTree, Cache, PyTree]:
        """One frame: ``(output, cache, mask)``. Pure; see `incremental` for the law.

        Args:
            params: as in `init`.
            cache: of `init` or of the last step. A fresh cache has everything computed, whatever the mask says.
            mask: where the frame is known to have changed, over its cells; united with what detection finds. None
                if nothing is known. A mask that claims too much costs only time.
            frame: of the shape and dtype that the cache was made for. On a CPU, JAX reads a NumPy array where it lies,
                also after a jitted call has returned: put the next frame into another array, or wait for the output.

        Returns:
            The output; the new cache; and for each array of the output where it changed: booleans over its picture
            (`[h, w]` or `[S, h, w]`), or one boolean where it has no picture. That an unchanged value was computed
            again by the dense path, and there perhaps rounded otherwise, is not a change.

        Raises:
            ValueError: shapes or dtypes do not fit the cache; the message names the argument and the remedy.
        """
        plan = self.plan(params, frame)
        self._check(plan, cache, mask, frame)
        leaves = jax.tree.leaves(params)
        state = {name: part for name, part in cache.items() if name != "fixed"}
        given = None
        if mask is not None:
            given = mask if mask.ndim == 3 else mask[None]
        step = _differentiable(self, plan, jax.tree.structure(params))
        outputs, state, masks = step(leaves, cache["fixed"], state, given, jnp.asarray(frame)[None])
        outputs = [x[0] for x in outputs]
        masks = [
            m if v.kind is Kind.MAP and v.axes is not None and v.axes.stream is not None else m[0]
            for v, m in zip(plan.outputs, masks, strict=True)
        ]
        unflatten = plan.out_tree.unflatten
        return unflatten(outputs), {"fixed": cache["fixed"], **state}, unflatten(masks)

    def stats(self, cache: Cache) -> Stats:
        """What the last step found and computed; attributes are arrays and may be read inside jit and scan."""
        plan = self._plan_of(cache)
        if plan not in self._measures:  # hundreds of small operations: one by one they compile three times as long
            self._measures[plan] = jax.jit(functools.partial(measure, plan))
        return self._measures[plan](cache)

    def frame_mask(self, cache: Cache) -> Bool[Array, "..."]:
        """The frame's change map in the last step, by pixels: `[H, W]` or `[S, H, W]`."""
        plan = self._plan_of(cache)
        mask = cache["masks"][0] & cache["flags"][:, 0, None, None]
        return mask if plan.layouts[plan.frame].axes.stream is not None else mask[0]

    def error_bound(self, params: PyTree, cache: Cache) -> PyTree:
        """How far the last output can be from ``fn(params, frame)``, value by value; arrays of the output's shapes.

        Law: ``|output - fn(params, frame)| <= error_bound(params, cache)`` for every frame that the held frame may
        stand for (within `tau` in each value; with `stand`, within `large`), up to rounding; 0 with `tau` and all
        `taus` 0. It is found by interval arithmetic from the held frame, in some two dense passes, without the frame.
        A worst case: exact for one linear layer, far too large for a deep network, and silent about the usual error.
        Behind an operation without a rule it is inf, as for a fresh cache; an index (argmax) or a truth is bounded as
        a number, so 0 says that it is right. Under ``trust_mask`` it holds if the masks claimed all that they should.
        Jit it.

        Raises:
            ValueError: the cache is of no plan of this `Incremental`; call `init` or `step` first. With `max_error`
                thresholds move: there are audits.
        """
        if self.control is not None:
            raise ValueError("`error_bound` has no bound where `max_error` moves the thresholds; see `stats`.")
        plan = self._plan_of(cache)
        plan = self.plan(params, jax.ShapeDtypeStruct(plan.frame.shape, plan.frame.dtype))
        return _bound.error_bound(self.fn, plan, self.options, params, cache)

    def explain(self, params: PyTree, frame: Frame) -> Report:
        """How the function is done, one row for each segment; print it."""
        return report(self.plan(params, frame))

    # ------------------------------------------------------------------------------------------------ checks

    def _mask_shape(self, plan: Plan) -> tuple[int, ...]:
        cells = tuple(-(-n // self.options.how.cell) for n in plan.frame.picture)
        return cells if plan.layouts[plan.frame].axes.stream is None else (plan.streams, *cells)

    def _plan_of(self, cache: Cache) -> Plan:
        """The plan that a cache was made by."""
        for plan in reversed(self._plans.values()):
            if _fits(plan, cache):
                return plan
        raise ValueError("`cache` was not made by this `Incremental`; call its `init` or `step` first.")

    def _check(self, plan: Plan, cache: Cache, mask: Any, frame: Any) -> None:
        if not isinstance(cache, dict) or "maps" not in cache or not cache["maps"]:
            raise ValueError(f"`cache` (={type(cache).__name__}) is not a cache; make one with `init`.")
        kept = {"audit": self.audit, "control": self.control, "stood": self.options.how.stand > 1 or None,
                "pool": plan.pooled or None}
        if {name for name, part in kept.items() if part is not None} != kept.keys() & cache.keys():
            raise ValueError(
                "`cache` was made with other `audit`, `max_error`, `stand` or `kernels`; make one with `init`."
            )
        if not _fits(plan, cache):
            held, layout = cache["maps"][0], plan.layouts[plan.frame]
            raise ValueError(
                f"`frame` (shape {tuple(frame.shape)}, {frame.dtype}) does not fit `cache`, whose held frame is stored "
                f"as {tuple(held.shape)}, {held.dtype} where {layout.stored_shape(plan.streams)}, {layout.dtype} is "
                "needed; frame size, dtype, params and `platform` must stay as they were in `init`: for others call it "
                "again."
            )
        if mask is not None:
            expected = self._mask_shape(plan)
            if np.shape(mask) != expected or not jnp.issubdtype(jnp.result_type(mask), bool):
                raise ValueError(
                    f"`mask` (shape {np.shape(mask)}, {jnp.result_type(mask)}) must be booleans of shape {expected}, "
                    f"one for each cell of {self.options.how.cell} pixels; use None if nothing is known."
                )


def _fits(plan: Plan, cache: Cache) -> bool:
    forms = [(plan.layouts[v].stored_shape(plan.streams), v.dtype) for v in plan.own]
    if plan.pooled:
        forms.append(((plan.streams, plan.pool.begins[-1]), jnp.dtype(jnp.float32)))
    found = [(tuple(x.shape), x.dtype) for x in (*cache["maps"], *cache.get("pool", ())[:1])]
    return found == forms


# ---------------------------------------------------------------------------------------------- transformations


def fixed_values(plan: Plan, params: list[Any], kept: tuple[Any, ...]) -> dict[Value, Any]:
    """What the segments read that depends on no frame: the flat params, single constants, the rest from the cache."""
    known = dict(zip(plan.params, params, strict=True))
    rest = iter(kept)
    fixed = {}
    for value in plan.fixed:
        if value.is_kept:
            fixed[value] = next(rest)
        else:
            fixed[value] = known[value] if value in known else jnp.asarray(value.held)
    return fixed


def _core(inc: Incremental, plan: Plan, tree):
    """The step with a rule for vmap: more calls, one flat list of tiles."""

    @custom_vmap
    def core(params, kept, state, given, frame):
        fixed = fixed_values(plan, params, kept)
        if given is not None:
            given = _masks.spread(given, inc.options.how.cell, plan.frame.picture)
        options, audit, control = inc.options, state.get("audit"), state.get("control")
        if inc.control is not None:
            options = inc.control.options(plan, options, control)
        outputs, state, masks = run_step(plan, options, fixed, state, given, frame)
        if (auditor := inc.audit) is not None:
            def look(count):
                if auditor.tiles is not None:
                    return auditor.of_tiles(plan, fixed, frame, outputs, count)
                fn = functools.partial(inc.fn, tree.unflatten(params))
                return auditor.of_whole(fn, frame, plan.out_tree.unflatten(plan.returned(outputs)))

            state["audit"], errors = auditor.run(look, audit)
            if inc.control is not None:
                state["control"], state["age"] = inc.control.after(plan, control, errors, state)
        return plan.returned(outputs), state, masks

    @core.def_vmap
    def flat_list(size, batched, params, kept, state, given, frame):
        """Calls side by side are streams: `[B, S, ...]` to `[B * S, ...]`."""
        if any(jax.tree.leaves(batched[:2])) and any(jax.tree.leaves(batched[0])):
            # Other params for each call share no kernel: one call after the other.
            arguments = _batch(size, tuple(batched), (params, kept, state, given, frame))
            return jax.lax.map(lambda a: core(*a), arguments), _all(core, arguments, True)
        kept = jax.tree.map(lambda x, b: x[0] if b else x, kept, batched[1])
        rest = _batch(size, tuple(batched[2:]), (state, given, frame))
        rest = jax.tree.map(lambda x: x.reshape(size * x.shape[1], *x.shape[2:]), rest)
        results = core(params, kept, *rest)
        results = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return core


def _batch(size: int, batched, arguments):
    return jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *jnp.shape(x))), arguments, batched)


def _all(core, arguments, value: bool):
    shapes = jax.eval_shape(lambda a: core(*jax.tree.map(lambda x: x[0], a)), arguments)
    return jax.tree.map(lambda _: value, shapes)


def _differentiable(inc: Incremental, plan: Plan, tree):
    """The step with the derivative of the dense function at the held frame; none flows through the cache.

    At ``tau=0`` the output does not depend on the cache, and the held frame is the frame: this is then the exact
    derivative. `while_loop` has no reverse mode of its own.
    """
    core = _core(inc, plan, tree)

    @jax.custom_jvp
    def step(params, kept, state, given, frame):
        return core(params, kept, state, given, frame)

    @step.defjvp
    def derivative(primals, tangents):
        params, _, _, _, frame = primals
        results = step(*primals)
        _, state, masks = results
        held = frame
        if inc.options.how.reference == "held":
            held = _at(frame, plan.layouts[plan.frame].load(state["maps"][0]))

        def dense(params, frames):
            each = jax.vmap(lambda x: jax.tree.leaves(inc.fn(tree.unflatten(params), x)))
            return each(frames)

        _, moved = jax.jvp(dense, (params, held), (tangents[0], tangents[4]))
        return results, (moved, _no_tangent(state), _no_tangent(masks))

    return step


def _at(frame: Array, held: Array) -> Array:
    """The held values, with the frame's derivatives of any order."""
    if not jnp.issubdtype(frame.dtype, jnp.inexact):
        return held
    return jnp.where(held == frame, frame, frame + jax.lax.stop_gradient(held - frame))


def _no_tangent(values):
    return jax.tree.map(
        lambda x: jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact)
        else np.zeros(x.shape, jax.dtypes.float0), values
    )
