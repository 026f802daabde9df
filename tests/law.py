"""The law that the tests are about: a step *is* the function, whatever changed, whatever the mask.

`check_incremental` states it once; every table of cases goes through it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import deltajax as dj

# Of `jax.jit`: with all optimisations, as users compile; the suite does without them where it can, see conftest.py.
AS_RUN = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if jax.__version_info__ < (0, 11):
    AS_RUN["xla_cpu_use_fusion_emitters"] = True

F32 = 2e-6  # of the largest output: tiles are summed in another order than pictures in a few shapes


def tolerance(dtype, rel: float = F32, ulps: int = 1) -> float:
    """Allowed error as a share of max |y|; 0 for what is not a float.

    Narrow floats are summed in float32 and rounded once for each layer: where the sum's order moves the value across
    a rounding boundary, it lands on the neighbour, one unit in the last place (`eps`) away.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    eps = float(jnp.finfo(dtype).eps)
    return ulps * eps if eps > 1e-6 else rel


def _wide(x) -> np.ndarray:
    """As float64 (or complex128), for numpy knows no NaN in bfloat16."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return np.asarray(x)
    return np.asarray(x).astype(np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64)


def assert_close(got, want, rel: float, name: str = "") -> None:
    """Same shape, dtype, NaNs and infinities; finite values within `rel` of the largest."""
    form = (got.shape, got.dtype)
    assert form == (want.shape, want.dtype), f"{name}: {form}, not {want.shape}, {want.dtype}"
    if rel == 0 or got.size == 0:
        np.testing.assert_array_equal(_wide(got), _wide(want), err_msg=name)
        return
    a, b = _wide(got), _wide(want)
    finite = np.isfinite(b)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=f"{name}: NaN")
    np.testing.assert_array_equal(a[np.isinf(b)], b[np.isinf(b)], err_msg=f"{name}: infinity")
    error, size = np.abs(a[finite] - b[finite]), np.abs(b[finite])
    if error.size:
        assert error.max() <= rel * size.max(), (
            f"{name}: off by {error.max():.3g} where max |y| is {size.max():.3g}, at "
            f"{np.argwhere(np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)) > rel * size.max())[:5].tolist()}"
        )


def differs(a, b) -> np.ndarray:
    """Where two arrays differ; a NaN differs from everything, as in `detect`."""
    return np.asarray(a) != np.asarray(b)


def beyond_rounding(new, old, rel: float) -> np.ndarray:
    """Where a result changed by more than two ways of computing one value may differ; a NaN that stays did not.

    Nothing but rounding can tell a tile from the same place of a picture, and that is no news to a reader.
    """
    a, b = _wide(new), _wide(old)
    found = (a != b) & ~(np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    if rel and finite.any():
        with np.errstate(invalid="ignore", over="ignore"):
            found &= ~finite | (np.abs(a - b) > rel * np.abs(a[finite]).max())
    return found


def picture_mask(value, moved: np.ndarray) -> np.ndarray:
    """Reduce `[*shape]` to the form of a mask of that output: its streams and picture, or a single boolean."""
    if not value.is_tiled or value.kind.value != "map":
        return moved.any()
    axes = value.axes
    keep = [axis for axis in (axes.stream, axes.row, axes.col) if axis is not None]
    mask = moved.any(axis=tuple(a for a in range(moved.ndim) if a not in keep))
    left = sorted(keep)
    return mask.transpose([left.index(a) for a in keep])


def sound_mask(inc: dj.Incremental, params, old, new, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """A mask over the frame's cells of what changed between two frames, and some cells too many."""
    plan = inc.plan(params, new)
    moved = picture_mask(plan.frame, differs(new, old))
    cell = inc.options.how.cell
    height, width = moved.shape[-2:]
    wide = np.pad(moved, [(0, 0)] * (moved.ndim - 2) + [(0, -height % cell), (0, -width % cell)])
    cells = wide.reshape(*wide.shape[:-2], wide.shape[-2] // cell, cell, wide.shape[-1] // cell, cell)
    cells = cells.any(axis=(-3, -1))
    return cells | (np.random.default_rng(seed).random(cells.shape) < noise)


def check_incremental(
    fn: Callable, params: Any, frames: Sequence[Any], *, given: bool = False, noise: float = 0.05,
    rel: float = F32, ulps: int = 1, hasty: bool = False, **options: Any,
) -> tuple[dj.Incremental, list[Any]]:
    """Run the step over `frames`; check every law that holds for each of them.

    Law: every output equals `fn(params, frame)` bit for bit or within `tolerance`; its mask is set wherever it
    changed by more than that; the cache keeps its structure (XLA itself refuses the `cond` otherwise); the same step
    from the same cache gives the same bits.

    Args:
        given: whether the step is given a sound mask with some cells too many, or None.
        noise: the share of cells that a given mask claims beyond those that changed.
        hasty: compile without optimisations, in a third of the time: for long tables about geometry. What depends
            on how a loop is vectorised (elementwise functions, sums, whole networks) needs them.
        options: of `incremental`.

    Returns:
        The transformation, and the cache after each frame.
    """
    inc = dj.incremental(fn, **options)
    cache, mask = inc.init(params, frames[0])
    first = cache
    compiled = functools.partial(jax.jit, compiler_options={} if hasty else AS_RUN)
    full = compiled(fn)

    @compiled
    def step(params, cache, mask, frame, keep):
        output, new, moved = inc.step(params, cache, mask, frame)
        return output, lax.cond(keep, lambda: new, lambda: cache), moved

    outputs, caches = [], []
    for number, frame in enumerate(frames):
        if not given:
            mask = None
        elif number:
            mask = jnp.asarray(sound_mask(inc, params, frames[number - 1], frame, number, noise))
        output, cache, changed = step(params, cache, mask, frame, True)
        want = full(params, frame)
        assert jax.tree.structure(output) == jax.tree.structure(want)
        plan = inc.plan(params, frame)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(want)[0]]
        for value, order, path, got, right, m in zip(
            plan.outputs, plan.orders, paths, *map(jax.tree.leaves, (output, want, changed)), strict=True
        ):
            where = f"frame {number}, output {path}"
            assert_close(got, right, tolerance(right.dtype, rel, ulps), where)
            if number:
                before = jax.tree.leaves(outputs[-1])[paths.index(path)]
                moved = beyond_rounding(got, before, tolerance(right.dtype, rel, ulps))
                truth = picture_mask(value, moved if order is None else moved.transpose(np.argsort(order)))
                assert m.dtype == bool and m.shape == truth.shape, f"{where}: mask {m.dtype} {m.shape}"
                assert not (truth & ~np.asarray(m)).any(), f"{where}: changed where its mask is unset"
        outputs.append(output)
        caches.append(cache)
    again, kept, _ = step(params, first, mask, frames[0], False)
    for a, b in itertools.chain(
        zip(jax.tree.leaves(again), jax.tree.leaves(outputs[0]), strict=True),
        zip(jax.tree.leaves(kept), jax.tree.leaves(first), strict=True),
    ):
        assert_close(a, b, 0, "the same step again")
    return inc, caches


def changes(shape: tuple[int, ...], dtype=np.float32, *, rows: int = -3, cols: int = -2, seed: int = 0,
            low: float = 0.0, high: float = 1.0) -> list[np.ndarray]:
    """Frames with every kind of change: all, one pixel, none, corners, a rectangle, all again, back.

    Values lie in ``[low, high)``; `rows` and `cols` name the picture axes.
    """
    rng = np.random.default_rng(seed)

    def fresh():
        return (low + (high - low) * rng.random(shape)).astype(np.float32).astype(dtype)

    def moved(frame, top, left, height, width):
        frame, new = frame.copy(), fresh()
        at = [slice(None)] * len(shape)
        at[rows], at[cols] = slice(top, top + height), slice(left, left + width)
        if len(shape) == 4:
            at[0] = slice(0, 1)  # one stream only
        frame[tuple(at)] = new[tuple(at)]
        return frame

    height, width = shape[rows], shape[cols]
    first = fresh()
    pixel = moved(first, height // 2, width // 3, 1, 1)
    corners = moved(moved(pixel, height - 1, width - 1, 1, 1), 0, 0, 1, 1)
    box = moved(corners, height // 4, width // 4, max(1, height // 3), max(1, width // 3))
    return [first, pixel, pixel, corners, box, fresh(), first]
