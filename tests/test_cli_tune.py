"""`deltajax tune` and `deltajax run --taus`: from a clip to thresholds and back."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import deltajax as dj
import deltajax.models
from deltajax.cli import main
from deltajax.models import VisionModel
from deltajax.models.slim import Faces
from deltajax.tuning.tasks import metric_of, task_of


def apply(params, frame):
    x = frame[None].astype(jnp.float32) / 255
    for kernel in params:
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.sigmoid(x[0, :, :, 0])


def load(path):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape) / 3, jnp.float32) for shape in ((3, 3, 3, 4), (3, 3, 4, 1))]


SMALL = VisionModel(
    name="small", summary="two convolutions", frame_size=None, apply=apply, shapes=lambda: jax.eval_shape(load, None),
    prepare=lambda rgb: rgb, load=load, interpret=lambda output, size: output, draw=lambda rgb, found: rgb,
)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """The registry knows one more model; the clip is a square that glides under noise."""
    monkeypatch.setitem(deltajax.models._MODULES, "small", "small_model")
    monkeypatch.setitem(sys.modules, "small_model", SimpleNamespace(MODEL=SMALL))
    monkeypatch.chdir(tmp_path)
    Path("shots").mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        frame = 60 + rng.normal(0, 1.5, (48, 64, 3)) + np.linspace(0, 90, 64)[:, None]
        frame[20:28, 8 + 3 * number : 16 + 3 * number] = 250
        Image.fromarray(np.uint8(frame.round())).save(f"shots/{number}.png")


def failed(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("deltajax: error: ")
    return lines[0]


@pytest.mark.slow
def test_thresholds_are_found_written_and_used(capsys):
    words = ["tune", "shots", "--model", "small", "--tolerance", "0.05", "--frames", "8", "--trials", "6"]
    assert main([*words, "--metric", "output"]) == 0
    printed = capsys.readouterr().out
    for text in ("; error by output: root mean square", "noise of the camera: 1.5", "on frames kept aside",
                 "wrote 'shots.small.taus.json', 'shots.small.taus.png' and 'shots.small.taus.trials.jsonl'"):
        assert text in printed
    tuned = dj.Tuning.load("shots.small.taus.json")
    assert tuned.met
    assert len(tuned.trials) == 6
    assert Path("shots.small.taus.png").exists()
    before = Path("shots.small.taus.trials.jsonl").read_text()
    assert main([*words, "--metric", "output"]) == 0
    assert Path("shots.small.taus.trials.jsonl").read_text() == before
    assert dj.Tuning.load("shots.small.taus.json") == tuned
    capsys.readouterr()
    assert "remove it or name another file" in failed(capsys, *words)  # the metric of the task, regions
    assert main(["run", "shots", "--model", "small", "--taus", "shots.small.taus.json"]) == 0
    issued = re.search(r"FLOPs issued +([\d.]+) %", capsys.readouterr().out)
    assert issued is not None
    assert float(issued[1]) < 60


def test_it_looks_where_something_happens(monkeypatch, capsys):
    """Of a still clip with a moving end, and of what can be read of one that breaks off."""
    for number in range(10, 30):
        shutil.copy("shots/0.png", f"shots/{number}.png")
    seen = []

    def given(inc, params, frames, **options):
        seen.append(frames)
        raise ValueError("enough")

    monkeypatch.setattr(dj, "tune", given)
    words = ["shots", "--model", "small", "--tolerance", "1", "--frames", "5"]
    Path("shots/0.png").rename("shots/50.png")  # the square jumps back
    for number in range(1, 10):
        Path(f"shots/{number}.png").rename(f"shots/{50 + number}.png")
    assert "enough" in failed(capsys, "tune", *words)
    pictures = [np.asarray(Image.open(f"shots/{50 + number}.png")) for number in range(10)]
    assert any(np.array_equal(seen[-1], pictures[first : first + 5]) for first in range(6))
    Path("shots/53.png").write_bytes(b"no picture")
    assert "enough" in failed(capsys, "tune", *words)
    assert len(seen[-1]) == 5
    np.testing.assert_array_equal(seen[-1][-1], pictures[2])
    Path("shots/10.png").write_bytes(b"no picture")
    assert "is not an image" in failed(capsys, "tune", *words)


def test_ctrl_c_ends_the_search_with_the_best_so_far(monkeypatch, capsys):
    real_tune = dj.tune

    def interrupted(*arguments, progress, **options):
        def after_trial(done, total, trial):
            if done == 3:
                signal.raise_signal(signal.SIGINT)
            return progress(done, total, trial)

        return real_tune(*arguments, progress=after_trial, **options)

    monkeypatch.setattr(dj, "tune", interrupted)
    assert main(["tune", "shots", "--model", "small", "--budget", "0.5", "--out", "a.json"]) == 0
    assert "3 trials" in capsys.readouterr().out
    assert len(dj.Tuning.load("a.json").trials) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shots", "--model", "small"], "give one of `tolerance` (=None), `budget` (=None)"),
        (["shots", "--model", "small", "--tolerance", "-1"], "`tolerance` (=-1.0) must be a number > 0"),
        (["shots", "--model", "small", "--ms", "0"], "`time_budget` (=0.0) must be a number > 0"),
        (["shots", "--model", "small", "--budget", "2"], "`budget` (=2.0) must lie in (0, 1]"),
        (["shots", "--model", "small", "--tolerance", "1", "--trials", "0"], "`trials` (=0) must be"),
        (["shots", "--model", "small", "--tolerance", "1", "--frames", "3"], "--frames 3 must be at least 4"),
        (["shots", "--model", "small", "--tolerance", "1", "--start", "8"], "has 2 frames from --start 8; tuning"),
        (["shots", "--model", "small", "--tolerance", "1", "--metric", "boxes"], "use regions or output"),
        (["shots", "--model", "small", "--tolerance", "1", "--out", "a.txt"], "'a.txt' must end in .json"),
        (["shots", "--model", "small", "--tolerance", "1", "--out", "no/a.json"], "needs the folder 'no'; make it"),
        (["no.mp4", "--model", "small", "--tolerance", "1"], "'no.mp4' does not exist"),
        (["shots", "--model", "smaller", "--tolerance", "1"], "there is no model 'smaller'"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(capsys, arguments, message):
    assert message in failed(capsys, "tune", *arguments)
    assert [path.name for path in Path().iterdir()] == ["shots"]


def test_thresholds_of_another_network_are_refused(capsys):
    setting = {"norm": "linf", "cell": 1, "tau": 2.0, "taus": {"conv9": 1.0}}
    trial = {"setting": setting, "error": 0.0, "worst": 0.0, "issued": 1.0, "useful": 1.0, "density": 1.0,
             "held_out": False}
    row = {"deltajax": "tuning", "chosen": trial, "check": None, "trials": [trial], "goal": {"budget": 1.0},
           "noise": 1.0, "still": 1.0, "units": {}}
    Path("a.json").write_text(json.dumps(row))
    Path("b.json").write_text("{}")
    error = failed(capsys, "run", "shots", "--model", "small", "--taus", "a.json")
    assert "'a.json' are another network's, or another frame size's: `taus` names unknown segments ['conv9']" in error
    error = failed(capsys, "run", "shots", "--model", "small", "--taus", "b.json")
    assert "'b.json' holds no thresholds of `deltajax tune`" in error
    error = failed(capsys, "run", "shots", "--model", "small", "--taus", "c.json")
    assert "'c.json' cannot be read" in error
    error = failed(capsys, "run", "shots", "--model", "small", "--taus", "a.json", "--tau", "3")
    assert "give --tau 3 or --taus 'a.json', not both" in error


def test_every_task_has_its_metric():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 40]], float)
    scores = np.array([0.9, 0.8])
    cases = [
        (Faces(boxes, scores), Faces(boxes[:1], scores[:1]), "boxes", 1 / 3),
        ([], [SimpleNamespace(name=3, left=0, top=0, right=4, bottom=4)], "boxes", 1.0),
        (SimpleNamespace(name="cat", probability=0.9), SimpleNamespace(name="dog", probability=0.9), "class", 1.0),
        (np.array([[0, 0], [1, 1]]), np.array([[0, 0], [1, 0]]), "regions", 1 - (2 / 3 + 1 / 2) / 2),
        (np.array([[0.1, 0.9]]), np.array([[0.2, 0.6]]), "regions", 0.0),
    ]
    model = SimpleNamespace(interpret=lambda output, size: output)
    for dense, found, task, error in cases:
        assert task_of(dense) == task
        metric = metric_of(task, model, (48, 64))
        assert metric(dense, found) == pytest.approx(error)
        assert metric(dense, dense) == 0
