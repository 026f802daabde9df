"""The time of a step by segment: the rows are the plan's segments, and their shares those of the step's statistics."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import deltajax as dj
from deltajax._bench import moving_square
from deltajax._breakdown import breakdown, table

SIZE = (40, 48)
PARAMS = jnp.asarray(np.random.default_rng(0).normal(0, 0.2, (2, 3, 3, 3, 3)), jnp.float32)


def network(params, frame):
    x = frame[None]
    for kernel in params:
        x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x[0], x.mean() * x[0, :1, :1]


@pytest.mark.parametrize(("density", "platform"), [
    pytest.param(0.0, None, marks=pytest.mark.slow), (0.02, None), (0.02, "gpu"),
    pytest.param(1.0, None, marks=pytest.mark.slow),
])
def test_rows_are_segments_with_the_shares_of_the_step(density, platform):
    inc = dj.incremental(network, tile=8, platform=platform)
    rows = breakdown(inc, PARAMS, moving_square(SIZE, np.float32, density))
    frames = [jnp.asarray(x) for x in itertools.islice(moving_square(SIZE, np.float32, density), 15)]
    plan = inc.plan(PARAMS, frames[0])
    assert [r.name for r in rows] == [segment.name for segment in plan.segments]
    assert all(r.dense_ms > 0 and r.step_ms > 0 for r in rows)
    cache, _ = inc.init(PARAMS, frames[0])
    step = jax.jit(lambda cache, frame: inc.step(PARAMS, cache, None, frame)[1])
    found = []
    for frame in frames:
        cache = step(cache, frame)
        found.append([float(s.flops_useful / s.flops_dense) for s in inc.stats(cache).segments[:2]])
    for row, useful in zip(rows, np.median(found[3:], axis=0), strict=False):
        assert row.useful == pytest.approx(useful, abs=1e-6)
        assert row.useful <= row.issued or row.issued == 0
    if density == 0:
        assert {r.issued for r in rows} == {0.0}
    if density == 1:
        assert {r.issued for r in rows} == {1.0}
    assert table(rows, "by segment").row_count == len(rows) + 1
