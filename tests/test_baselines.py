"""`baselines.py` without the baselines: its pattern of change, its order of measuring, its tables and figure."""

import dataclasses
import io
import itertools
import json
import types

import baselines
import jax
import numpy as np
import onnx
import originals
import pytest
from jax import lax
from rich.console import Console
from to_onnx import to_onnx

import deltajax as dj
from deltajax._bench import Subject, scattered_blocks, stack15_params

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


def subject_of_small() -> Subject:
    params = jax.random.normal(jax.random.key(0), (3, 3, 3, 4))
    return Subject("small", small, params, SIZE, np.dtype(np.float32))


@pytest.fixture(scope="module")
def found():
    what = subject_of_small()
    source = baselines.PATTERNS["square"](SIZE, what.dtype, 1.0)
    frames = [next(source) for _ in range(2)]

    def others():
        yield "absent", "absent does not import"
        yield baselines.Dense("another", frames, lambda x: 1.01 * small(what.params, x), np.asarray)
        yield baselines.Dense("the same", frames, lambda x: small(what.params, x), np.asarray)

    return baselines.measure(what, ("square", "scattered"), (0.0, 0.3), 3, others=others)


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
    rough = baselines.Baseline("rough", 0.001, 0.001, 0.01, "int8")
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
    assert baselines.Found.from_json(read) == found
    (axes,) = baselines.sweep([found]).axes
    best, dense, square, scattered = axes.lines[:4]
    assert best.get_ydata()[0] == 1
    assert dense.get_ydata()[0] == pytest.approx(found.jax.ms / found.best.ms)
    assert square.get_xdata() == pytest.approx([100 * row.changed])
    assert square.get_ydata() == pytest.approx([row.ms / found.best.ms])
    assert scattered.get_label().startswith("scattered")


@pytest.mark.parametrize(
    ("points", "share"),
    [
        ([(1, 0.5), (100, 1.5)], 10),  # in the middle of two decades
        ([(1, 0.5), (10, 1), (100, 0.9)], 10),
        ([(1, 0.5), (100, 0.9)], None),
        ([(1, 1.5), (100, 2)], None),
        ([(1, 0.5)], None),
    ],
)
def test_the_crossing_is_read_off_a_logarithmic_axis(points, share):
    assert baselines.crossing(points) == (share if share is None else pytest.approx(share))


def test_the_crossing_is_marked(found):
    rows = [dataclasses.replace(found.rows[1], changed=x, ms=y * found.best.ms) for x, y in ((0.01, 0.5), (1, 1.5))]
    figure = baselines.sweep([dataclasses.replace(found, rows=rows)])
    (axes,) = figure.axes
    assert axes.lines[-1].get_xdata() == pytest.approx([10])
    assert "10 %" in [text.get_text() for text in axes.texts]
    assert "square" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_of_the_kernels_has_its_rows(monkeypatch):
    """Whatever `incremental` may be told; what is not given is not passed on."""
    told = []

    def incremental(fn, **options):
        told.append(options)
        return dj.incremental(fn)

    monkeypatch.setattr(baselines, "dj", types.SimpleNamespace(incremental=incremental))
    found = baselines.measure(subject_of_small(), ("square",), (0.0, 0.3), 4, ("xla", "native"))
    assert told == [{"kernels": "xla"}, {"kernels": "native"}]
    assert [(r.kernels, r.asked) for r in found.rows] == [("xla", 0), ("native", 0), ("xla", 0.3), ("native", 0.3)]
    assert found.rows[2].changed == found.rows[3].changed
    assert {r.line for r in found.rows} == {"square, xla", "square, native"}
    baselines.measure(subject_of_small(), ("square",), (0.0,), 1)
    assert told[2:] == [{}]


def test_frames_are_counted_in_whole_turns():
    counted = baselines.Dense("d", [0], lambda x: x, np.asarray)
    baselines.in_turns([counted], 2)
    assert len(counted.ms) == 2 * baselines.TURN


def named(params, frame):
    """Two convolutions, the mean over all places, and a dense layer."""
    kernels, dense, bias = params
    x = frame[None]
    for kernel in kernels:
        x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x.mean((1, 2)) @ dense + bias


@pytest.mark.parametrize("classifies", [False, True])
def test_int8_is_the_same_network_roughly(tmp_path, classifies):
    onnxruntime = pytest.importorskip("onnxruntime")
    path, to, rng = tmp_path / "f32.onnx", tmp_path / "int8.onnx", np.random.default_rng(0)
    if classifies:
        params = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((2, 3, 3, 3, 3), (3, 7), (7,))]
        shape, model = (*SIZE, 3), to_onnx(named, params, np.zeros((*SIZE, 3), np.float32))
    else:
        shape, model = (1, 3, *SIZE), originals.stack15_onnx(stack15_params(), SIZE)
    onnx.save(model, path)
    frames = [rng.random(shape, np.float32) for _ in range(2)]
    assert originals.write_int8(path, frames, to) is None
    sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (path, to)]
    expected, output = (session.run(None, {"frame": frames[0]})[0] for session in sessions)
    assert 1e-4 < baselines.difference(expected, output) < 0.1
    kinds = {node.op_type for node in onnx.load(to).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_a_file_is_read_instead_of_measured(tmp_path, found, capsys):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"networks": [found.as_json()]}))
    assert baselines.main(read_from=(path,), out=tmp_path) == 1  # one of its baselines disagreed
    assert "left out: absent" in capsys.readouterr().out
    assert 0 < (tmp_path / "sweep.png").stat().st_size < 80_000


def test_what_a_user_got_wrong_is_named():
    with pytest.raises(ValueError, match="`only` names 'vgg'; the networks are stack15, unet"):
        baselines.main(only=("vgg",))
    with pytest.raises(ValueError, match=r"`density` \(=2.0\) must be a share"):
        baselines.main(density=(2.0,))
    with pytest.raises(ValueError, match=r"`frames` \(=0\) must be at least 1"):
        baselines.main(frames=0)
