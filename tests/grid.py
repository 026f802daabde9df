"""Every network of the registry under every transformation of JAX, each cell against the dense network.

    python tests/grid.py                          # all; see docs/judges.md for how long it takes
    python tests/grid.py --only resnet8 digits    # some networks
    python tests/grid.py --columns vmap grad      # under some transformations

Networks get random weights and frames of their own size, or a smaller one in `SMALLER`. The table is printed as
markdown; the exit status is 1 if a cell failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from law import assert_close, changes, check_incremental
from weights import random_params

import deltajax as dj
from deltajax import _jaxpr
from deltajax.models import get_model, model_names

SMALL = ("convnext-t", "efficientnet-b0", "hrnet-w32", "mobilenetv2", "mobilenetv3", "prisma-net", "resnet18",
         "resnet50", "vit-s")
SMALLER = {  # their `apply` takes other sizes, too
    "digits": (48, 64), "espnet": (64, 96), "fastestdet": (96, 96), "unet": (64, 96), **dict.fromkeys(SMALL, (64, 64)),
}
DEEP = 2e-5  # of the largest output: up to sixty layers, and softmaxes, add their rounding up
STEEP = 1e-10  # of the largest gradient, in float64
SHARE = 2e-3  # of the outputs in whole numbers, which may differ where two classes tie
DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One network: a function of params and frame, with frames `[n, height, width, 3]`, uint8."""

    name: str
    fn: Callable[[Any, Any], Any]
    params: Any
    frames: jax.Array

    @functools.cached_property
    def inc(self) -> dj.Incremental:
        return dj.incremental(self.fn)

    @functools.cached_property
    def cache(self) -> Any:
        return self.inc.init(self.params, self.frames[0])[0]

    @functools.cached_property
    def dense(self) -> list[Any]:
        run = jax.jit(self.fn)
        return [run(self.params, frame) for frame in self.frames]

    @functools.cached_property
    def rel(self) -> float:
        """How far outputs may be off, by the largest: `DEEP`, or as far as `moved` params move the dense ones.

        With random weights some networks are ill-conditioned: logits in the hundreds, and a softmax of them.
        """
        run = jax.jit(self.fn)
        return max(DEEP, *(distance(run(params, frame), want) for params in moved(self.params)
                           for frame, want in zip(self.frames, self.dense, strict=True)))


def spec_of(apply: Callable[[Any, Any], Any], frame: jax.ShapeDtypeStruct) -> Any:
    """Shapes of the params that a network of the registry takes: its own `init` runs where it calls Flax's `apply`."""
    found: list[Any] = []
    plain = nn.Module.apply

    def init(self, variables, *args, **options):
        made = self.init(jax.random.key(0), *args, **options)
        found.append(made["params"] if "params" in variables else made)
        return plain(self, made, *args, **options)

    with mock.patch.object(nn.Module, "apply", init):
        jax.eval_shape(lambda x: (apply({}, x), found)[1], frame)
        (spec,) = jax.eval_shape(lambda x: (found.clear(), apply({}, x), list(found))[2], frame)
    return spec


def case(name: str) -> Case:
    model = get_model(name)
    size = SMALLER.get(name, model.frame_size)
    assert size is not None, f"{name} takes any size: give it one in `SMALLER`"
    first, pixel, _, _, box, *_ = changes((*size, 3), np.uint8, high=256)
    # Without a size of its own a network has the same params at any.
    frame = jax.ShapeDtypeStruct((*size, 3), jnp.uint8)
    spec = model.shapes() if model.frame_size is None else spec_of(model.apply, frame)
    return Case(name, model.apply, random_params(spec), jnp.asarray(np.stack([first, pixel, pixel, box])))


def moved(params: Any) -> Iterator[Any]:
    """Params of which each is one unit in the last place larger or smaller: rounding may do as much."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        yield jax.tree.map(
            lambda x, rng=rng: jnp.nextafter(x, jnp.asarray(rng.choice([-jnp.inf, jnp.inf], x.shape), x.dtype)), params)


def distance(got: Any, want: Any) -> float:
    """Largest difference of any array of floats, by the largest value of that array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max((float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs
                if jnp.issubdtype(b.dtype, jnp.inexact)), default=0.0)


def same(got: Any, want: Any, rel: float) -> None:
    """Equal but for rounding; whole numbers equal but for a small share."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(b.dtype, jnp.inexact):
            assert_close(jnp.asarray(a), b, rel, name)
        else:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert np.mean(np.asarray(a) != np.asarray(b)) <= SHARE, name


def each_same(got: Any, want: Sequence[Any], rel: float) -> None:
    """`got` has a leading axis over `want`."""
    for number, right in enumerate(want):
        same(jax.tree.map(lambda x, number=number: x[number], got), right, rel)


# ------------------------------------------------------------------------------------------------------- columns


def with_jit(case: Case) -> None:
    step, cache = jax.jit(case.inc.step), case.cache
    for frame, want in zip(case.frames, case.dense, strict=True):
        output, cache, _ = step(case.params, cache, None, frame)
        same(output, want, case.rel)
    assert step._cache_size() == 1


def with_scan(case: Case) -> None:
    def body(cache, frame):
        output, cache, _ = case.inc.step(case.params, cache, None, frame)
        return cache, output

    each_same(jax.jit(functools.partial(lax.scan, body))(case.cache, case.frames)[1], case.dense, case.rel)


def with_vmap(case: Case) -> None:
    """Two cameras, the second one frame ahead."""
    caches = jax.tree.map(lambda x: jnp.stack([x, x]), case.cache)
    step = jax.jit(jax.vmap(case.inc.step, (None, 0, None, 0)))
    for number in range(len(case.frames) - 1):
        output, caches, _ = step(case.params, caches, None, case.frames[number: number + 2])
        each_same(output, case.dense[number: number + 2], case.rel)


def with_grad(case: Case) -> None:
    """Of the sum of squares of all outputs in floats, for the params, after one frame; in float64.

    In float32 nothing can be said: where a ReLU stands near its corner, params that are moved by a unit in the last
    place move the dense gradient of mobilenetv3 by a quarter of its largest.
    """
    def loss(params, run):
        outputs = jax.tree.leaves(run(params))
        return sum(jnp.sum(x**2) for x in outputs if jnp.issubdtype(x.dtype, jnp.inexact)) + 0.0

    with jax.enable_x64(True):
        fn, first, last = retyped(case.fn, jnp.float64), case.frames[0], case.frames[-1]
        params, inc = jax.tree.map(lambda x: x.astype(jnp.float64), case.params), dj.incremental(fn)
        _, cache, _ = jax.jit(inc.step)(params, inc.init(params, first)[0], None, first)
        got = jax.jit(jax.grad(lambda p: loss(p, lambda p: inc.step(p, cache, None, last)[0])))(params)
        want = jax.jit(jax.grad(lambda p: loss(p, lambda p: fn(p, last))))(params)
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == jnp.float64
            assert float(jnp.abs(a - b).max()) <= STEEP * largest


def with_cond(case: Case) -> None:
    """Every other frame is looked at; the others keep cache and output."""
    held = jax.tree.map(jnp.zeros_like, case.dense[0])

    def body(carry, item):
        number, frame = item

        def look(carry):
            output, cache, _ = case.inc.step(case.params, carry[1], None, frame)
            return output, cache

        carry = lax.cond(number % 2 == 0, look, lambda carry: carry, carry)
        return carry, carry[0]

    numbers = jnp.arange(len(case.frames))
    _, outputs = jax.jit(functools.partial(lax.scan, body))((held, case.cache), (numbers, case.frames))
    each_same(outputs, [case.dense[number - number % 2] for number in range(len(case.frames))], case.rel)


def with_donation(case: Case) -> None:
    step, cache = jax.jit(case.inc.step, donate_argnums=1), jax.tree.map(jnp.copy, case.cache)
    for frame, want in zip(case.frames, case.dense, strict=True):
        old = cache
        output, cache, _ = step(case.params, cache, None, frame)
        same(output, want, case.rel)
        assert all(x.is_deleted() for x in old["maps"])


def with_shard_map(case: Case) -> None:
    """A camera on each of four devices, one frame apart."""
    devices = jax.devices()[:DEVICES]
    assert len(devices) == DEVICES, "set jax_num_cpu_devices"
    mesh, split, whole = Mesh(np.array(devices), ("s",)), PartitionSpec("s"), PartitionSpec()
    caches = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), case.cache)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(whole, split, split), out_specs=split, check_vma=False)
    def step(params, caches, frames):
        output, caches, _ = jax.vmap(case.inc.step, (None, 0, None, 0))(params, caches, None, frames)
        return output, caches

    count = len(case.frames)
    for number in range(2):
        chosen = [(number + device) % count for device in range(DEVICES)]
        output, caches = step(case.params, caches, case.frames[jnp.asarray(chosen)])
        assert all(len(x.sharding.device_set) == DEVICES for x in jax.tree.leaves(output))
        each_same(output, [case.dense[i] for i in chosen], case.rel)


def with_export(case: Case) -> None:
    """One artefact for cpu, cuda and tpu; called on this platform."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (case.params, case.cache, case.frames[0]))
    params, cache, frame = shapes
    exported = jax.export.export(jax.jit(case.inc.step), platforms=["cpu", "cuda", "tpu"])(params, cache, None, frame)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    again, cache = jax.export.deserialize(exported.serialize()), case.cache
    for frame, want in zip(case.frames[:2], case.dense, strict=False):
        output, cache, _ = again.call(case.params, cache, None, frame)
        same(output, want, case.rel)


def with_float32(case: Case) -> None:
    """The whole law, masks and all, with a given mask that claims too much."""
    if all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(case.dense[0])):
        check_incremental(case.fn, case.params, list(case.frames), given=True, rel=case.rel)
        return
    with_jit(case)


def with_bfloat16(case: Case) -> None:
    """Every float of the network in bfloat16: the step is as near to it as float32 is, or `moved` params, or nearer."""
    narrow = retyped(case.fn, jnp.bfloat16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), case.params)
    dense, step = jax.jit(narrow), jax.jit(dj.incremental(narrow).step)
    cache = dj.incremental(narrow).init(params, case.frames[0])[0]
    for frame, wide in zip(case.frames, case.dense, strict=True):
        output, cache, _ = step(params, cache, None, frame)
        others = [wide, *(dense(other, frame) for other in moved(params))]
        for got, want, *near in zip(*map(jax.tree.leaves, (output, dense(params, frame), *others)), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            a, b, *c = (np.asarray(x).astype(np.float64) for x in (got, want, *near))
            if jnp.issubdtype(want.dtype, jnp.inexact):
                eps = float(jnp.finfo(jnp.bfloat16).eps)
                assert np.abs(a - b).max() <= max(np.abs(b - x).max() for x in c) + eps * np.abs(b).max()
            else:
                assert np.mean(a != b) <= max(np.mean(b != x) for x in c) + SHARE


def retyped(fn: Callable[[Any, Any], Any], dtype: Any) -> Callable[[Any, Any], Any]:
    """`fn` with `dtype` wherever it has float32, whatever casts it is written with."""
    def cast(x):
        return x.astype(dtype) if x.dtype == jnp.float32 else x

    def run(jaxpr, constants, arguments):
        env = dict(zip(jaxpr.constvars, map(cast, map(jnp.asarray, constants)), strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return cast(jnp.asarray(_jaxpr.value(atom))) if isinstance(atom, _jaxpr.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            ins, inner = [read(atom) for atom in eqn.invars], _jaxpr.wrapped(eqn)
            changed = {name: jnp.dtype(dtype) for name, value in eqn.params.items()
                       if isinstance(value, np.dtype) and value == jnp.float32}
            outs = run(*inner, ins) if inner is not None else _jaxpr.bind(eqn, *ins, **changed)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def other(params, frame):
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
        jaxpr, constants, tree = _jaxpr.trace(fn, plain, frame)
        return tree.unflatten(run(jaxpr, constants, [*map(cast, jax.tree.leaves(params)), frame]))

    return other


COLUMNS: dict[str, Callable[[Case], None]] = {
    "jit": with_jit,
    "scan": with_scan,
    "vmap": with_vmap,
    "grad": with_grad,
    "cond": with_cond,
    "donation": with_donation,
    "shard_map": with_shard_map,
    "export": with_export,
    "float32": with_float32,
    "bfloat16": with_bfloat16,
}
FULL = ("jit", "float32", "bfloat16")  # compiled as users do; for the others, shapes and rules are what is tested


@contextlib.contextmanager
def compiling(column: str):
    """Compile in half the time where it does not matter how well."""
    jax.config.update("jax_disable_most_optimizations", column not in FULL)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def main(only: tuple[str, ...] = (), columns: tuple[str, ...] = tuple(COLUMNS)) -> int:
    """Run the grid and print it, seconds in each cell.

    Args:
        only: names of networks.
        columns: names of transformations.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print("| network | frame | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns), flush=True)
    failures, start = 0, time.monotonic()
    for name in only or model_names():
        row = case(name)
        cells = []
        for column in columns:
            begin = time.monotonic()
            try:
                with compiling(column):
                    COLUMNS[column](row)
            except Exception:
                traceback.print_exc()
                failures += 1
                cells.append("**FAILED**")
            else:
                cells.append(f"{time.monotonic() - begin:.0f}")
        height, width = row.frames.shape[1:3]
        print(f"| {name} | {height}x{width} | " + " | ".join(cells) + " |", flush=True)
        jax.clear_caches()
    print(f"\nCells in seconds; {failures} failed; {(time.monotonic() - start) / 60:.0f} minutes in all.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
