"""`init`: what a cache keeps of params and constants is made by one compiled function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import _compiler

import deltajax as dj

NATIVE = pytest.param("native", marks=pytest.mark.skipif(not _compiler(), reason="needs a C++ compiler"))
SIZE, CHANNELS = (24, 32), 32
CLOSED_OVER = np.random.default_rng(0).normal(0, 0.06, (3, 3, CHANNELS, CHANNELS)).astype(np.float32)


def network(params, frame):
    """One kernel is a param, divided by another param as norms do; one is closed over."""
    x, axes = frame[None], ("NHWC", "HWIO", "NHWC")
    for kernel in (params["kernel"] / params["scale"], CLOSED_OVER * 2):
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes))
    return x[0]


def params_of(seed):
    kernel = jax.random.normal(jax.random.key(seed), (3, 3, 3, CHANNELS))
    return {"kernel": kernel, "scale": 1.0 + seed}  # a plain number as well


FRAME = jax.random.uniform(jax.random.key(9), (*SIZE, 3))


@pytest.mark.parametrize("kernels", ["xla", NATIVE])
def test_every_init_runs_one_compiled_function(kernels):
    inc = dj.incremental(network, kernels=kernels)
    caches = [inc.init(params_of(seed), FRAME)[0] for seed in (0, 1, 0)]
    make = inc.plan(params_of(0), FRAME)._make_kept
    assert make._cache_size() == 1
    first, other, again = (jax.tree.leaves(cache["fixed"]) for cache in caches)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kernels", ["xla", NATIVE])
def test_constants_are_handed_over_to_it(kernels):
    """In the program XLA would transform them while it compiles, which takes long."""
    inc = dj.incremental(network, kernels=kernels)
    plan = inc.plan(params_of(0), FRAME)
    assert any(np.size(value.held) == CLOSED_OVER.size for value in plan._sources if value not in plan.params)
    held = [np.zeros((), np.float32) if value in plan.params and value.shape == () else
            jnp.zeros(value.shape, value.dtype) for value in plan._sources]
    assert len(plan._make_kept.lower(held).as_text()) < CLOSED_OVER.nbytes


@pytest.mark.parametrize("kernels", ["xla", NATIVE])
def test_the_law_holds_of_any_params_under_one_plan(kernels):
    inc = dj.incremental(network, kernels=kernels)
    for seed in (0, 1):
        params = params_of(seed)
        cache, _ = inc.init(params, FRAME)
        traced, _ = jax.jit(inc.init)(params, FRAME)
        for frame in (FRAME, FRAME.at[3:6, 4:9].add(1)):
            output, cache, _ = jax.jit(inc.step)(params, cache, None, frame)
            same, traced, _ = jax.jit(inc.step)(params, traced, None, frame)
            np.testing.assert_allclose(output, network(params, frame), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(output, same, rtol=1e-5, atol=1e-5)
