"""The command line: a run from file to file, and one line and exit code 2 for whatever the user got wrong."""

import itertools
import os
import re
import signal
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import deltajax.models
from deltajax.cli import main
from deltajax.cli.measurements import largest_difference
from deltajax.cli.session import stop_on_signal
from deltajax.draw import ORANGE, draw_boxes
from deltajax.models import VisionModel, get_model, model_names
from deltajax.video import VideoWriter, open_source


def apply(params, frame):
    x = frame[None].astype(jnp.float32) / 255
    edges = jax.lax.conv_general_dilated(
        x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return {"edges": jax.nn.relu(edges[0])}


def load(path):
    if path is not None:
        raise ValueError(f"'{path}' holds no tiny weights; leave --weights out")
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3, 4)), jnp.float32)


TINY = VisionModel(
    name="tiny",
    summary="one convolution",
    frame_size=None,
    apply=apply,
    shapes=lambda: jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32),
    prepare=lambda rgb: rgb,
    load=load,
    interpret=lambda output, size: output["edges"].max(),
    draw=lambda rgb, peak: draw_boxes(rgb, np.array([[2, 2, 10, 10]])),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The registry knows one more model."""
    monkeypatch.setitem(deltajax.models._MODULES, "tiny", "tiny_model")
    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=TINY))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def interruptible():
    """A job that a shell starts in the background ignores SIGINT, and so would what it runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def picture(number: int, size=(48, 64)) -> np.ndarray:
    """A still ramp, and a bright square that moves two pixels a frame."""
    rgb = np.repeat(np.linspace(40, 120, size[1], dtype=np.uint8)[None, :, None], size[0], 0).repeat(3, 2)
    rgb[20:28, 16 + 2 * number : 24 + 2 * number] = 250
    return rgb


def save_images(folder: Path, count: int = 6, size=(48, 64), first: int = 0) -> str:
    """Lossless frames: only the square changes."""
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(picture(number, size)).save(folder / f"{number}.png")
    return str(folder)


def write_clip(path: Path, count: int = 8, size=(48, 64), rate=Fraction(25, 2)) -> str:
    with VideoWriter(path, size, rate) as writer:
        for number in range(count):
            writer.write(picture(number, size))
    return str(path)


def decode(path: Path | str) -> list[np.ndarray]:
    with open_source(str(path)) as source:
        return [frame.rgb for frame in source.frames]


def test_a_clip_becomes_a_clip_with_the_result_drawn_on_it(tmp_path, capsys):
    clip = write_clip(tmp_path / "clip.mp4")
    assert main(["run", clip, "--model", "tiny", "--out", "found.mp4"]) == 0
    with open_source("found.mp4") as source:
        assert (source.size, source.length, source.frame_rate) == ((48, 64), 8, Fraction(25, 2))
        last = list(source.frames)[-1].rgb.astype(int)
    assert last[2:11, 2, 1].mean() > last[2:11, 2, 0].mean() + 60  # the green edge of the box
    printed = capsys.readouterr().out
    for words in ("incremental", "density", "FLOPs issued", "first frame", "8 frames in"):
        assert words in printed
    assert "wrote 'found.mp4': 8 frames of 64x48 at 12.5 frames/s" in printed


def test_without_out_the_names_of_input_and_model_are_used(tmp_path):
    assert main(["run", save_images(tmp_path / "shots"), "--model", "tiny"]) == 0
    assert len(decode("shots.tiny.mp4")) == 6


def test_compare_measures_both_and_at_tau_0_there_is_no_difference(tmp_path, capsys):
    assert main(["run", save_images(tmp_path / "shots"), "--model", "tiny", "--compare"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dense +[\d.]+ ms +[\d.]+ ms +[\d.]+ frames/s", printed)
    assert re.search(r"speed-up +[\d.]+ x", printed)
    gap = re.search(r"largest \|difference\| from dense, over all frames: edges (\S+)", printed)
    assert gap is not None
    assert float(gap[1]) < 1e-5


def test_tau_is_in_grey_levels(tmp_path, capsys):
    (tmp_path / "shots").mkdir()
    for number in range(4):
        Image.fromarray(picture(0) + np.uint8(3 * (number % 2))).save(tmp_path / "shots" / f"{number}.png")
    for tau, density in (("2.5", "100.00 %"), ("3", "0.00 %")):
        assert main(["run", "shots", "--model", "tiny", "--tau", tau]) == 0
        assert re.search(rf"density +{density}", capsys.readouterr().out)


def test_audits_and_new_scenes_are_told(tmp_path, capsys):
    """With a threshold the error found is in the summary; thresholds that follow it are, too."""
    (tmp_path / "shots").mkdir()
    for number in range(8):
        rgb = picture(0) + np.uint8(3 * (number % 2))
        Image.fromarray(rgb if number < 4 else 255 - rgb // 2).save(tmp_path / "shots" / f"{number}.png")
    watched = ["run", "shots", "--model", "tiny", "--audit", "0.5", "--scene-cut", "27"]
    assert main([*watched, "--tau", "3", "--max-age", "100"]) == 0
    printed = capsys.readouterr().out
    found = re.search(r"audits: 4; error (\S+) \(95 % confidence: \S+ to \S+\); 19 of them would say", printed)
    assert found is not None
    assert 0 < float(found[1]) < 0.1
    assert "new scene or too large an error: 1" in printed
    assert main([*watched, "--max-error", ".2"]) == 0
    assert "thresholds at the end: 2^" in capsys.readouterr().out
    assert main([*watched[:-2], "--audit", "0"]) == 0
    assert "audits" not in capsys.readouterr().out
    assert main([*watched[:-4], "--max-error", "-1"]) == 2
    assert "`max_error` (=-1.0) must be a number >= 0" in capsys.readouterr().err


def test_the_overlay_tints_what_changed_and_captions_it(tmp_path):
    folder = save_images(tmp_path / "shots", size=(144, 192))
    assert main(["run", folder, "--model", "tiny", "--overlay", "mask", "--out", "o.mp4"]) == 0
    assert main(["run", folder, "--model", "tiny", "--overlay", "none", "--out", "n.mp4"]) == 0
    tinted, plain = decode("o.mp4")[3].astype(int), decode("n.mp4")[3].astype(int)
    changed = np.abs(tinted - plain).max(axis=-1)
    assert changed[21:27, 20:22].mean() > 25  # where the square was, and is no longer
    assert changed[60:100, 60:].max() < 15
    assert np.abs(tinted[140, 3] - ORANGE).max() < 60


def test_the_overlay_lies_where_the_model_put_the_picture(tmp_path, monkeypatch):
    """A letterbox of twice the height: bars of half the picture's height above and below."""

    boxed = {
        "prepare": lambda rgb: np.pad(rgb, ((72, 72), (0, 0), (0, 0))),
        "place": lambda size: (slice(72, 72 + size[0]), slice(None)),
        "draw": lambda rgb, peak: rgb,
    }
    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=VisionModel(**{**vars(TINY), **boxed})))
    folder = save_images(tmp_path / "shots", size=(144, 192))
    assert main(["run", folder, "--model", "tiny", "--overlay", "mask", "--out", "o.mp4"]) == 0
    changed = np.abs(decode("o.mp4")[3].astype(int) - picture(3, (144, 192))).max(axis=-1)[:100]
    rows, columns = np.nonzero(changed > 25)
    np.testing.assert_allclose([rows.min(), rows.max(), columns.min(), columns.max()], [20, 27, 20, 29], atol=2)


def test_odd_sides_are_padded_and_the_summary_says_so(tmp_path, capsys):
    assert (
        main(["run", save_images(tmp_path / "shots", size=(47, 63)), "--model", "tiny", "--out", "o.mp4"])
        == 0
    )
    assert "64x48 (63x47 padded to the even sides that H.264 needs)" in capsys.readouterr().out
    assert decode("o.mp4")[0].shape == (48, 64, 3)


def test_one_frame_is_a_video_too(tmp_path, capsys):
    save_images(tmp_path / "shots", 1)
    assert main(["run", "shots/*.png", "--model", "tiny", "--compare"]) == 0
    assert "1 frames in" in capsys.readouterr().out
    assert len(decode("images.tiny.mp4")) == 1


@pytest.mark.slow  # compiles the whole detector
@pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real weights and clips"
)
def test_faces_on_a_webcam_clip(tmp_path, capsys):
    data = Path(os.environ["DELTAJAX_DATA"])
    with (
        open_source(str(data / "video/static/asl/again.mkv")) as source,
        VideoWriter(tmp_path / "again.mp4", source.size, source.frame_rate) as writer,
    ):
        for frame in itertools.islice(source.frames, 10):
            writer.write(frame.rgb, frame.time)
    weights = str(data / "weights/version-slim-320.pth")
    assert main(["run", "again.mp4", "--model", "slim-320", "--weights", weights, "--compare"]) == 0
    gaps = re.search(r"over all frames: boxes (\S+), scores (\S+)", capsys.readouterr().out)
    assert gaps is not None
    assert max(float(gaps[1]), float(gaps[2])) < 1e-5
    before, after = decode("again.mp4")[9].astype(int), decode("again.slim-320.mp4")[9].astype(int)
    rows, columns = np.nonzero(np.abs(after - before).max(axis=-1) > 60)
    edges = np.array([columns.min() / 640, columns.max() / 640, rows.max() / 480])  # the label is on top
    np.testing.assert_allclose(edges, [0.455, 0.556, 0.360], atol=0.03)


def interrupting(monkeypatch, at: int) -> None:
    """Ctrl-C arrives while frame `at` is drawn."""
    drawn = iter(range(1000))

    def draw(rgb, peak):
        if next(drawn) == at:
            signal.raise_signal(signal.SIGINT)
        return rgb

    model = VisionModel(**{**vars(TINY), "draw": draw})
    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=model))


@pytest.mark.usefixtures("never_hangs")
def test_ctrl_c_closes_the_file_and_prints_the_summary(tmp_path, capsys, monkeypatch):
    interrupting(monkeypatch, at=4)
    assert main(["run", write_clip(tmp_path / "clip.mp4"), "--model", "tiny", "--out", "o.mp4"]) == 0
    printed = capsys.readouterr().out
    assert "5 frames in" in printed
    assert "stopped before the end" in printed
    assert len(decode("o.mp4")) == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("never_hangs")
def test_a_second_ctrl_c_closes_the_file_too(tmp_path, capsys, monkeypatch):
    """Both arrive while frame 4 is drawn: it is lost, the four before it are not, and no thread goes on."""
    drawn = iter(range(1000))

    def draw(rgb, peak):
        if next(drawn) == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return rgb

    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=VisionModel(**{**vars(TINY), "draw": draw})))
    before = set(threading.enumerate())
    assert main(["run", write_clip(tmp_path / "clip.mp4"), "--model", "tiny", "--out", "o.mp4"]) == 130
    assert "wrote 'o.mp4': 4 frames" in capsys.readouterr().out
    assert len(decode("o.mp4")) == 4
    assert set(threading.enumerate()) <= before


def later_frames_prepared(monkeypatch, timeout: float) -> list[bool]:
    """For each of six frames that is drawn: is the one after the next prepared by then, or within `timeout` seconds?"""
    begun = [threading.Event() for _ in range(7)]  # the first is prepared to compile, before all frames
    prepared, drawn, met = iter(begun), iter(range(6)), []

    def prepare(rgb):
        next(prepared).set()
        return rgb

    def draw(rgb, peak):
        met.append(begun[min(next(drawn) + 3, 6)].wait(timeout))
        return rgb

    model = VisionModel(**{**vars(TINY), "prepare": prepare, "draw": draw})
    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=model))
    return met


@pytest.mark.usefixtures("never_hangs")
def test_while_a_frame_is_drawn_the_next_ones_are_on_their_way(tmp_path, capsys, monkeypatch):
    met = later_frames_prepared(monkeypatch, timeout=20)
    assert main(["run", save_images(tmp_path / "shots"), "--model", "tiny", "--out", "o.mp4"]) == 0
    assert met == 6 * [True]
    printed = capsys.readouterr().out
    assert "other frames were decoded and drawn beside the step" in printed
    assert re.search(r"6 frames in [\d.]+ s: [\d.]+ frames/s of the whole run", printed)


@pytest.mark.usefixtures("never_hangs")
def test_compare_has_nothing_beside_what_it_times(tmp_path, capsys, monkeypatch):
    met = later_frames_prepared(monkeypatch, timeout=0.1)
    before = set(threading.enumerate())
    assert main(["run", save_images(tmp_path / "shots"), "--model", "tiny", "--compare", "--out", "o.mp4"]) == 0
    assert met == [*5 * [False], True]  # the last one is itself what is asked for
    assert set(threading.enumerate()) <= before
    assert "beside the step" not in capsys.readouterr().out


@pytest.mark.usefixtures("never_hangs")
def test_both_ways_give_the_same_video(tmp_path, monkeypatch):
    """Results that are drawn late are not overwritten by the next step, which takes over the cache's memory."""
    shown = {
        "interpret": lambda output, size: output["edges"][..., :3],
        "draw": lambda rgb, edges: (rgb // 2 + 127 * np.minimum(edges, 1)).astype(np.uint8),
    }
    monkeypatch.setitem(sys.modules, "tiny_model", SimpleNamespace(MODEL=VisionModel(**{**vars(TINY), **shown})))
    command = ["run", save_images(tmp_path / "shots", 20, size=(144, 192)), "--model", "tiny", "--overlay", "mask"]
    assert main([*command, "--out", "beside.mp4"]) == 0
    assert main([*command, "--out", "after.mp4", "--compare"]) == 0
    assert Path("beside.mp4").read_bytes() == Path("after.mp4").read_bytes()


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk without room")
def test_a_full_disk_stops_all_stages_with_one_line(tmp_path, capsys):
    Path("o.mp4").symlink_to("/dev/full")
    before = set(threading.enumerate())
    error, _ = failed(capsys, "run", write_clip(tmp_path / "clip.mp4"), "--model", "tiny", "--out", "o.mp4")
    assert "'o.mp4' cannot be written (No space left on device)" in error
    assert set(threading.enumerate()) <= before


def failed(capsys, *arguments: str) -> tuple[str, str]:
    """Runs a command that must fail as the user's error; returns what it wrote to stderr and stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("deltajax: error: ")
    return lines[0], captured.out


def test_a_truncated_mp4_keeps_what_was_decoded(tmp_path, capsys):
    noise = np.random.default_rng(0)
    with VideoWriter(tmp_path / "whole.mp4", (48, 64), Fraction(10)) as writer:
        for _ in range(60):
            writer.write(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    # With its index in front, as cameras write it; the fragments of an unfinished file have theirs all along.
    import av

    with av.open("whole.mp4") as whole, av.open("front.mp4", "w", options={"movflags": "faststart"}) as front:
        stream = front.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                front.mux(packet)
    content = Path("front.mp4").read_bytes()
    Path("cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    error, printed = failed(capsys, "run", "cut.mp4", "--model", "tiny", "--out", "o.mp4")
    count = re.search(r"'cut.mp4' breaks off: (\d+) frames were decoded", error)
    assert count is not None
    assert 20 < int(count[1]) < 50
    assert f"{count[1]} frames in" in printed
    assert len(decode("o.mp4")) == int(count[1])


def test_a_size_that_changes_keeps_what_was_written(tmp_path, capsys):
    save_images(tmp_path / "shots", 4)
    save_images(tmp_path / "shots", 2, size=(32, 40), first=4)
    error, printed = failed(capsys, "run", "shots", "--model", "tiny", "--out", "o.mp4")
    assert "frame 4 of 'shots' is 40x32 pixels, the frames before it are 64x48" in error
    assert "wrote 'o.mp4': 4 frames" in printed
    assert len(decode("o.mp4")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip.mp4", "--model", "resnet"], "no model 'resnet'; the models are "),
        (["clip.mp4", "--model", "slim-320"], "not in the package; pass --weights version-slim-320.pth"),
        (["clip.mp4", "--model", "slim-320", "--weights", "no.pth"], "weight file 'no.pth' does not exist"),
        (["clip.mp4", "--model", "slim-320", "--weights", "clip.mp4"], "weight file 'clip.mp4' is not one"),
        (["clip.mp4", "--model", "slim-320", "--weights", "other.safetensors"], "holds no slim-320 weights"),
        (["clip.mp4", "--model", "tiny", "--weights", "no.pth"], "leave --weights out"),
        (["clip.mp4", "--model", "tiny", "--tau", "-1"], "`tau` (=-1.0) must be"),
        (["clip.mp4", "--model", "tiny", "--tau", "nan"], "`tau` (=nan) must be"),
        (["no.mp4", "--model", "tiny"], "'no.mp4' does not exist; give a video file, a folder"),
        (["empty.mp4", "--model", "tiny"], "'empty.mp4' is empty (0 bytes)"),
        (["text.mp4", "--model", "tiny"], "'text.mp4' is no video"),
        (["shots/0.png", "--model", "tiny"], "is a single image; give a folder or pattern of images"),
        (["nothing", "--model", "tiny"], "'nothing' matches no images"),
        (["shots/*.jpg", "--model", "tiny"], "'shots/*.jpg' matches no images"),
        (["96", "--model", "tiny"], "camera 96 cannot be opened"),
        (["clip.mp4", "--model", "tiny", "--out", "old.avi"], "'old.avi' must end in .mp4"),
        (["clip.mp4", "--model", "tiny", "--out", "no/o.mp4"], "needs the folder 'no'; make it"),
        (["clip.mp4", "--model", "tiny", "--out", "folder.mp4"], "'folder.mp4' cannot be written"),
        (["clip.mp4", "--model", "tiny", "--out", "clip.mp4"], "'clip.mp4' is the input itself"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    write_clip(tmp_path / "clip.mp4", 2)
    before = Path("clip.mp4").read_bytes()
    save_images(tmp_path / "shots", 2)
    save_file({"a": np.zeros(3)}, "other.safetensors")
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video\n" * 50)
    Path("nothing").mkdir()
    Path("folder.mp4").mkdir()
    made = set(tmp_path.iterdir())
    error, _ = failed(capsys, "run", *arguments)
    assert message in error
    assert set(tmp_path.iterdir()) == made
    assert Path("clip.mp4").read_bytes() == before


def test_a_run_that_fails_early_leaves_the_last_runs_output_alone(tmp_path, capsys):
    write_clip(tmp_path / "clip.mp4", 3)
    before = write_clip(tmp_path / "o.mp4", 2)
    content = Path(before).read_bytes()
    failed(capsys, "run", "no.mp4", "--model", "tiny", "--out", "o.mp4")
    failed(capsys, "run", "clip.mp4", "--model", "tiny", "--tau", "-3", "--out", "o.mp4")
    assert Path("o.mp4").read_bytes() == content


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "clip.mp4"], ["run", "x", "--model", "tiny", "--no"]]
)
def test_a_command_that_cannot_be_parsed_is_exit_code_2_too(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_explain_prints_the_report(capsys):
    assert main(["explain", "--model", "tiny", "--size", "32", "48"]) == 0
    assert "dense fallback for 0.0 % of the FLOPs" in capsys.readouterr().out


@pytest.mark.slow  # traces whole networks
@pytest.mark.parametrize("name", model_names())
def test_explain_needs_no_weights_and_next_to_nothing_falls_back(name, capsys):
    size = [] if get_model(name).frame_size else ["--size", "240", "320"]
    assert main(["explain", "--model", name, *size]) == 0
    share = re.search(r"dense fallback for ([\d.]+) % of the FLOPs", capsys.readouterr().out)
    assert share is not None
    assert float(share[1]) <= 2


@pytest.mark.slow
def test_explaining_fifty_layers_takes_seconds():
    start = time.process_time()
    assert main(["explain", "--model", "resnet50"]) == 0
    assert time.process_time() - start < 20  # one or two, and twice that with every type checked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny"], "takes frames of any size; say which with --size 480 640"),
        (["--model", "tiny", "--size", "0", "4"], "--size 0 4 must be two positive numbers"),
        (["--model", "nets"], "there is no model 'nets'"),
        (["--model", "tiny", "--size", "4", "4", "--weights", "no.pth"], "leave --weights out"),
        (["--model", "slim-320", "--size", "4", "4"], "takes frames of 240 320, not 4 4; leave --size out"),
        (["--model", "unet", "--size", "20", "8"], "`frame` has shape (20, 8, 3); its height and width must be"),
    ],
)
def test_explain_refuses_in_one_line(capsys, arguments, message):
    assert message in failed(capsys, "explain", *arguments)[0]


def test_demo_and_bench_pass_their_options_on(monkeypatch, capsys):
    calls = []
    demo = SimpleNamespace(demo=lambda out, kernels: calls.append((out, kernels)))
    bench = SimpleNamespace(bench=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "deltajax._demo", demo)
    monkeypatch.setitem(sys.modules, "deltajax._bench", bench)
    assert main(["demo", "--out", "a/b", "--kernels", "native"]) == 0
    assert main(["bench", "--density", "0.1", "0.5", "--model", "tiny"]) == 0
    expected = {"model": "tiny", "weights": None, "densities": (0.1, 0.5), "out": Path(), "by_segment": None,
                "size": None, "pattern": "square", "kernels": "xla"}
    assert calls == [(Path("a/b"), "native"), expected]
    assert main([*"bench --model tiny --breakdown 0.3 --size 20 30 --pattern scattered --kernels native".split()]) == 0
    assert calls[2]["kernels"] == "native"
    assert calls[2]["by_segment"] == 0.3
    assert calls[2]["size"] == (20, 30)
    assert calls[2]["pattern"] == "scattered"
    assert Path("a/b").is_dir()
    assert "--density 2.0 must be a share" in failed(capsys, "bench", "--density", "2")[0]
    assert "--breakdown -1.0 must be a share" in failed(capsys, "bench", "--breakdown", "-1")[0]
    assert "--size 0 4 must be two positive numbers" in failed(capsys, "bench", "--size", "0", "4")[0]
    assert "there is no model 'nets'" in failed(capsys, "bench", "--model", "nets")[0]
    Path("file").touch()
    assert "'file' cannot be made" in failed(capsys, "demo", "--out", "file")[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0),
        ([1.0, 2.0], [1.5, 2.0], 0.5),
        ([np.nan], [1.0], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([], [], 0.0),
        ([True, False], [True, True], 1.0),
    ],
)
def test_largest_difference(ours, theirs, expected):
    assert largest_difference(np.array(ours), np.array(theirs)) == expected


def test_cifar_names_what_is_missing(tmp_path, capsys):
    assert main(["cifar", "--data", "nowhere", "--weights", "x.th"]) == 2
    assert "nowhere" in capsys.readouterr().err
