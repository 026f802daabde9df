"""The cache is updated in place: no copy of a cache-sized array inside the frame loop of the compiled program.

XLA:CPU copies a whole buffer where it cannot prove that what is read is read before it is overwritten; that made a
first prototype 3 to 12 times slower. The optimised HLO is the judge.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from law import AS_RUN

import deltajax as dj
from deltajax._bench import moving_square, stack15, stack15_params

SIZE = (96, 128)


def copies_in_loop(text: str, sizes: set[int]) -> list[str]:
    """Copies of arrays of so many elements in computations other than the entry, which runs once."""
    found, entry = [], False
    for line in text.splitlines():
        if re.match(r"(ENTRY )?%[\w.\-]+ \(", line):
            entry = line.startswith("ENTRY")
        match = re.search(r"= \w+\[([\d,]+)\]\S* copy\(", line)
        if match and not entry:
            elements = 1
            for n in match.group(1).split(","):
                elements *= int(n)
            if elements in sizes:
                found.append(line.strip()[:160])
    return found


def optimised(inc: dj.Incremental) -> tuple[str, set[int]]:
    """The compiled program, and how many elements the maps in its cache have."""
    frames = moving_square(SIZE, jnp.dtype("float32"), 0.02)
    clip = jnp.stack([next(frames) for _ in range(3)])
    params = stack15_params()
    cache, _ = inc.init(params, clip[0])

    def film(params, cache, clip):
        return lax.scan(lambda c, frame: (inc.step(params, c, None, frame)[1], None), cache, clip)[0]

    sizes = {array.size for array in (*cache["maps"], *cache.get("pool", ()))}
    return jax.jit(film).lower(params, cache, clip).compile(AS_RUN).as_text(), sizes


@pytest.mark.parametrize("options", [
    pytest.param({}, id="exact", marks=pytest.mark.slow),
    pytest.param({"tau": 0.1}, id="tau", marks=pytest.mark.slow),
    pytest.param({"tau": 0.1, "taus": {"conv5": 0.1, "conv12": 0.1}}, id="thresholds inside"),
    pytest.param({"tile": 5}, id="ragged tiles", marks=pytest.mark.slow),
    pytest.param({"bucket": 3}, id="odd buckets", marks=pytest.mark.slow),
])
def test_nothing_of_the_caches_size_is_copied_in_the_loop(options):
    text, sizes = optimised(dj.incremental(stack15, **options))
    assert min(sizes) >= 6 * 8 * 128
    assert copies_in_loop(text, sizes) == []


def test_the_search_finds_a_copy():
    text = "%body (p: f32[8]) -> f32[8] {\n  %c = f32[10,1000]{1,0} copy(%p)\n}\nENTRY %main (p: f32[8]) -> f32[8] {\n"
    assert len(copies_in_loop(text + "  %d = f32[10,1000]{1,0} copy(%p)\n}", {10_000})) == 1
