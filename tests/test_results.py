"""`results.py` on a drawn clip: which frames it takes, what it measures, what its file and tables say."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import results
from PIL import Image
from real import needs_data
from to_onnx import to_onnx

import deltajax as dj
from deltajax.models import VisionModel
from deltajax.scenes import glide

OPTIONS = results.Options(tolerance=0.05, trials=6, tuned=6, reported=8, cells=(4,))


def apply(params, frame):
    """Bright or not, from two convolutions."""
    x = frame[None].astype(jnp.float32) / 255
    for kernel in params:
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x[0, :, :, 0]


PARAMS = [jnp.full((3, 3, 3, 4), 1 / 27), jnp.full((3, 3, 4, 1), 1 / 36)]
MODEL = VisionModel(
    name="bright", summary="what is bright", frame_size=None, apply=apply,
    shapes=lambda: jax.eval_shape(lambda: PARAMS),
    prepare=lambda rgb: rgb, load=lambda path: PARAMS, interpret=lambda output, size: output, draw=lambda rgb, _: rgb,
)


def contest() -> results.Contest:
    return results.Contest(apply, PARAMS, OPTIONS.passed_on)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of pictures of gliding digits under a camera's noise."""
    folder = tmp_path_factory.mktemp("clip")
    for number, scene in enumerate(glide(frames=21, size=96)):
        Image.fromarray(scene.frame).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def made(clip):
    return results.pair(contest(), MODEL, clip, OPTIONS)


@pytest.fixture(scope="module")
def row(made):
    found, report, task = made
    return results.row("slim-320", "vtest.avi", OPTIONS, found, report, task)


@pytest.mark.parametrize(
    ("count", "tuned", "reported"), [(795, 40, 300), (47, 40, 300), (59, 40, 300), (1189, 40, 300), (3, 1, 1)]
)
def test_the_report_begins_after_the_first_third(count, tuned, reported):
    first, second = results.parts([0.0] * count, tuned, reported)
    assert first.start >= 0
    assert first.stop <= second.start == count // 3
    assert 0 < len(first) <= tuned
    assert 0 < len(second) <= reported
    assert second.stop <= count


def test_tuned_is_where_most_happens():
    changes = [0.0] * 60
    changes[9], changes[12], changes[40] = 1.0, 1.0, 5.0
    first, _ = results.parts(changes, 5, 10)
    assert list(first) == [8, 9, 10, 11, 12]


def test_frames_are_the_clips_own(clip):
    frames, size = results.read(clip, MODEL.prepare, OPTIONS.tuned, OPTIONS.reported)
    assert size == (96, 96)
    assert (len(frames.tuned), len(frames.reported)) == (6, 8)
    pictures = [np.asarray(Image.open(clip / f"{number:02}.png")) for number in range(15)]
    assert [number for number in range(7) if (pictures[number] == frames.tuned[0]).all()] in ([0], [1])
    np.testing.assert_array_equal(frames.reported, pictures[7:])


def test_what_is_reported_is_what_the_tuned_function_does(clip, made):
    """Errors and FLOPs of `incremental` with the thresholds found, which has them as numbers."""
    found, report, task = made
    assert task == "regions"
    frames = results.read(clip, MODEL.prepare, OPTIONS.tuned, OPTIONS.reported)[0].reported
    inc = dj.incremental(apply, tile=OPTIONS.tile, dense_share=OPTIONS.dense_share, **found["setting"])
    judge = results.Judge(MODEL, (96, 96), np.asarray(apply(PARAMS, frames[0])))
    step, (cache, _) = jax.jit(inc.step), inc.init(PARAMS, frames[0])
    for number, frame in enumerate(frames):
        output, cache, _ = step(PARAMS, cache, None, frame)
        if number:
            stats, dense = inc.stats(cache), np.asarray(apply(PARAMS, frame))
            assert report.errors[number - 1] == pytest.approx(judge.error(dense, np.asarray(output)), abs=1e-6)
            assert report.issued[number - 1] == pytest.approx(float(stats.flops_issued / stats.flops_dense), rel=1e-5)
            assert report.things[number - 1] == pytest.approx(judge.things(dense))
            standing = judge.error(dense, np.asarray(apply(PARAMS, frames[0])))
            assert report.standing[number - 1] == report.standing_placement[number - 1] == pytest.approx(standing)
    assert report.placement == report.errors  # a map of classes sees small changes itself
    assert {len(getattr(report, name)) for name in ("dense_ms", "step_ms", "useful", "density", "standing")} == {7}
    assert len(report.whole_ms) == len(report.noise) == 1  # of frame 4; that of frame 0 compiled
    assert min(report.standing) > 0  # the digits move


def test_other_libraries_run_the_same_network(made, row):
    """ONNX Runtime is among the tests' requirements; in int8 a thing or another becomes another one."""
    _, report, _ = made
    assert {"ONNX Runtime", "ONNX Runtime int8"} <= report.engines_ms.keys()
    assert report.engines_errors["ONNX Runtime"] == [0]  # of frame 4
    assert report.engines_errors["ONNX Runtime int8"][0] < 0.1
    assert row["engines_ms"]["ONNX Runtime"] == report.engines_ms["ONNX Runtime"][0] > 0


def test_who_gives_other_outputs_is_left_out(monkeypatch):
    monkeypatch.setattr(results, "to_onnx", lambda fn, params, frame: to_onnx(
        lambda params, x: 1.1 * fn(params, x), params, frame
    ))
    found, left_out = results.engines(contest(), [np.full((8, 8, 3), 200, np.uint8)])
    assert "ONNX Runtime" not in {engine.name for engine in found}
    assert "differ from those of ours by 1.0e-01" in left_out["ONNX Runtime"]


def test_the_best_dense_one_is_in_float32(row):
    quick = row | {"dense_ms": 9.0, "step_ms": [2.0, 4.0, 5.0],
                   "engines_ms": {"A": 3.0, "B int8": 1.0, "C int8": 2.0, "D bf16": 0.5},
                   "engines_first_ms": {"A": 5.0, "B int8": 4.0, "C int8": 4.0, "D bf16": 4.0},
                   "engines_errors": {"A": 0.0, "B int8": 0.25, "C int8": 0.5, "D bf16": 0.125}}
    assert results.best_dense(quick) == (3.0, "A")
    assert results.less_exact(quick, "int8") == [(1.0, 0.25)] and results.less_exact(quick, "bf16") == [(0.5, 0.125)]
    assert "| 3.0 A | 1.50 / 0.75 | 2.50 | 0.5, 12.50 | 1.0, 25.00 |" in results.table([quick])
    assert results.summary([quick]).splitlines()[2].endswith("| 1.50 | 2.50 | 1, 0; 1, 1 |")
    alone = quick | {"engines_ms": {}, "engines_first_ms": {}, "engines_errors": {}}
    assert results.best_dense(alone) == (9.0, "JAX")
    assert "| 9.0 JAX | 4.50 / 2.25 | 4.50 |  |  |" in results.table([alone])


def test_a_heavy_network_is_judged_by_its_output():
    model, params = results.network("resnet18", Path())
    frame = model.prepare(np.zeros((60, 100, 3), np.uint8))
    assert frame.shape == (384, 512, 3)
    judge = results.Judge(model, (60, 100), np.ones(1000, np.float32))
    assert judge.task == "output"
    assert judge.error(np.full(1000, 2.0), np.full(1000, 2.1)) == pytest.approx(0.05)
    assert judge.things(np.ones(1000)) is None
    assert judge.follow is judge.error  # the search is not to be content with an output that stands still
    assert params["params"]["fc"]["kernel"].shape == (512, 1000)


def test_kernels_are_passed_on_only_if_given():
    assert "kernels" not in OPTIONS.passed_on
    assert dataclasses.replace(OPTIONS, kernels="native").passed_on["kernels"] == "native"


def test_thresholds_of_nothing_give_no_error(clip):
    frames = results.read(clip, MODEL.prepare, OPTIONS.tuned, 4)[0].reported
    judge = results.Judge(MODEL, (96, 96), np.asarray(apply(PARAMS, frames[0])))
    report = contest().run({"norm": "l2", "cell": 1, "tau": 0.0, "taus": {}}, frames, judge)
    assert report.errors == [0, 0, 0]
    assert min(report.density) > 0.5
    still = contest().run({"norm": "l2", "cell": 1, "tau": 0.0, "taus": {}}, [frames[0]] * 3, judge)
    assert still.issued == still.useful == still.standing == [0, 0]


def test_a_row_survives_its_file(tmp_path, row):
    path = tmp_path / "results.json"
    assert results.load_rows(path) == []
    results.save_rows(path, [row])
    assert results.load_rows(path) == [row]
    assert json.loads(path.read_text())["jax"] == jax.__version__
    assert row["error"] <= row["worst"]
    assert row["step_ms"] == sorted(row["step_ms"])


def test_table_and_medians(row):
    good = row | {"issued": 0.1, "error": 0.001, "things": 0.3, "standing": 0.25, "placement": 0.02}
    bad = good | {"issued": 0.5, "error": 0.06}
    none = good | {"issued": 0.0, "clip": "tree.avi", "task": "boxes", "things": 0.0, "standing": 0.0}
    lines = results.table([good, bad, none]).splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "| 30.0 % | 0.10 |" in lines[2]
    assert "| 25.00 | 2.0 (" in lines[2]
    assert "| **6.00** |" in lines[3]
    assert "| 0.0 * |" in lines[4]
    assert "| all |" in lines[4]
    assert results.fewer(none) == math.inf
    medians = results.summary([good, bad, none]).splitlines()
    assert medians[2].startswith("| static, all | 3 | 2 (1) | 10 | all |")
    assert medians[3].startswith("| static, something to find | 2 | 1 (0) | 6 | 10 |")
    assert medians[4].startswith("| surveillance, all | 2 | 1 (0) | 6 | 10 |")


def test_words_that_are_not_known_are_named(monkeypatch):
    with pytest.raises(ValueError, match="`only` names 'resnet20'"):
        results.main(only=("resnet20",))
    with pytest.raises(ValueError, match="`clips` names 'cat"):
        results.main(clips=("cat.avi",))
    with pytest.raises(ValueError, match="lowers thresholds of finished pairs"):
        results.main(lower=1.0)
    monkeypatch.delenv("DELTAJAX_DATA", raising=False)
    with pytest.raises(ValueError, match="DELTAJAX_DATA names no folder"):
        results.main()


@pytest.mark.slow
@needs_data
def test_a_real_pair_is_made_once(tmp_path, capsys):
    """Blazeface on a webcam: a face in every frame, and fewer FLOPs."""
    out = tmp_path / "results.json"
    options = dataclasses.replace(results.Options(), trials=8, tuned=12, reported=12, tolerance=0.2, cells=(8,))
    for _ in range(2):
        assert results.main(only=("blazeface",), clips=("asl/again.mkv",), out=out, options=options) == 0
    assert capsys.readouterr().err.count("asl/again.mkv: error") == 1
    (row,) = results.load_rows(out)
    assert results.main(only=("blazeface",), clips=("asl/again.mkv",), out=out, again=True, options=options) == 0
    (again,) = results.load_rows(out)
    same = {word: value for word, value in row.items() if "ms" not in word and "x_" not in word}
    assert again["dense_ms"] != row["dense_ms"] and again | same == again  # the same thresholds, other times
    arguments = {"only": ("blazeface",), "clips": ("asl/again.mkv",), "out": out, "options": options}
    assert results.main(**arguments, again=True, lower=2.0) == 0
    (low,) = results.load_rows(out)
    assert low["setting"]["tau"] == pytest.approx(row["setting"]["tau"] / 2, rel=1e-3) and low["issued"] > row["issued"]
    assert row["task"] == "boxes"
    assert 1 <= row["things"] < 1.5
    assert row["error"] <= 0.2
    assert row["issued"] < 0.8
