"""`baselines.py` without the baselines: its pattern of change, its order of measuring, its tables."""

import io
import itertools
import json

import baselines
import jax
import numpy as np
import pytest
from jax import lax
from rich.console import Console

from deltajax._bench import Subject, scattered_blocks

SIZE = (32, 48)


def changes_of(density: float, size=(96, 130), count=12) -> list[np.ndarray]:
    source = scattered_blocks(size, np.dtype(np.float32), density)
    frames = [next(source) for _ in range(count + 1)]
    return [(a != b).any(axis=-1) for a, b in itertools.pairwise(frames)]


@pytest.mark.parametrize("density", [0.01, 0.05, 0.25, 0.6])
def test_scattered_blocks_cover_the_density(density):
    changed = changes_of(density)
    assert max(abs(mask.sum() - density * mask.size) for mask in changed) <= 16 * 16 / 2
    assert (np.sum(changed, axis=0) > 0).mean() > density  # elsewhere in each frame
    edges = [np.nonzero(np.diff(mask, axis=0))[0] % 16 for mask in changed]
    assert len(np.unique(np.concatenate(edges))) > 4  # and not on one grid


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_scattered_blocks_may_be_nothing_and_everything(density):
    assert all((mask == density).all() for mask in changes_of(density))


def test_scattered_blocks_are_of_the_frames_type():
    frame = next(scattered_blocks(SIZE, np.dtype(np.uint8), 0.1))
    assert (frame.shape, frame.dtype, frame.max() > 250) == ((*SIZE, 3), np.uint8, True)


def small(params, frame):
    x = lax.conv_general_dilated(frame[None], params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x)[0]


@pytest.fixture(scope="module")
def found():
    params = jax.random.normal(jax.random.key(0), (3, 3, 3, 4))
    what = Subject("small", small, params, SIZE, np.dtype(np.float32))
    source = baselines.PATTERNS["square"](SIZE, what.dtype, 1.0)
    frames = [next(source) for _ in range(2)]

    def others():
        yield "absent", "absent does not import"
        yield baselines.Dense("another", frames, lambda x: 1.01 * small(params, x), np.asarray)
        yield baselines.Dense("the same", frames, lambda x: small(params, x), np.asarray)

    return baselines.measure(what, ("square", "scattered"), (0.0, 0.3), 1, others)


def test_every_contestant_is_measured_and_who_differs_is_not(found):
    assert [b.name for b in found.baselines] == ["JAX", "the same"]
    assert found.left_out.keys() == {"absent", "another"}
    assert found.disagreed == ["another"]
    assert [(r.pattern, r.asked) for r in found.rows] == [
        ("square", 0), ("square", 0.3), ("scattered", 0), ("scattered", 0.3)
    ]
    assert [r.changed for r in found.rows[::2]] == [0, 0]
    assert all(0.2 < r.changed < 0.6 and 0 < r.useful <= 1 for r in found.rows[1::2])
    assert max(r.difference for r in found.rows) <= 2e-6


def test_the_best_is_the_fastest_in_float32(found):
    rough = baselines.Baseline("rough", 0.001, 0.001, 0.01, exact=False)
    quick = baselines.Baseline("quick", 0.002, 0.002, 0.0)
    others = [*found.baselines, rough, quick]
    assert baselines.Found("n", SIZE, 1, 1.0, others, found.rows, {}, []).best is quick


def test_table_json_and_figure_tell_what_was_found(found):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(baselines.table(found))
    lines = console.export_text().splitlines()
    row = found.rows[1]
    line = next(line for line in lines if "square 30 %" in line)
    assert f"{found.best.ms / row.ms:.2f}" in line and f"{100 * row.issued:.1f} %" in line
    read = json.loads(json.dumps(found.as_json()))
    assert read["best"] == found.best.name
    assert read["rows"][1]["x_jax"] == pytest.approx(found.jax.ms / row.ms)
    axes = baselines.crossover([found], "square").axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx([100 * row.changed])
    assert axes.lines[0].get_ydata() == pytest.approx([found.best.ms / row.ms])


def test_what_a_user_got_wrong_is_named():
    with pytest.raises(ValueError, match="`only` names 'vgg'; the networks are stack15, unet"):
        baselines.main(only=("vgg",))
    with pytest.raises(ValueError, match=r"`density` \(=2.0\) must be a share"):
        baselines.main(density=(2.0,))
