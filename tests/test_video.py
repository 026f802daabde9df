"""Sources and the writer: what goes in comes out, and every way to break off says so."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deltajax.video import DEFAULT_RATE, Frame, VideoError, VideoWriter, busiest, changes_in, open_source


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Grey level 8 * number on the left, a bright square that moves: frames can be told apart after H.264."""
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, : size[1] // 2] = 8 * number
    rgb[8:24, 34 + number % 12 : 50 + number % 12] = 230
    return rgb


def write_clip(path: Path, count: int = 12, size=(48, 64), rate=Fraction(25)) -> Path:
    with VideoWriter(path, size, rate) as writer:
        for number in range(count):
            writer.write(picture(number, size))
    return path


def decode(path: Path) -> list[np.ndarray]:
    with open_source(str(path)) as source:
        return [frame.rgb for frame in source.frames]


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(25, 2), Fraction(30000, 1001), Fraction(179, 6)])
def test_frames_size_and_rate_survive_writing_and_reading(tmp_path, rate):
    path = write_clip(tmp_path / "clip.mp4", 12, rate=rate)
    with open_source(str(path)) as source:
        assert (source.size, source.length) == ((48, 64), 12)
        assert float(source.frame_rate) == pytest.approx(float(rate), rel=1e-3)
        frames = list(source.frames)
    assert len(frames) == 12
    for number, frame in enumerate(frames):
        assert np.abs(frame.rgb.astype(int) - picture(number)).mean() < 6
        assert frame.time == pytest.approx(number / rate, abs=1e-3)


def test_where_most_changes():
    """Bytes do not wrap round; of equal places the first counts, of short clips all."""
    levels = [0, 0, 200, 10, 10, 10]
    changes = list(changes_in(Frame(np.full((9, 9, 3), level, np.uint8), Fraction(0)) for level in levels))
    assert changes == [0, 0, 200, 190, 0, 0]
    assert busiest(changes, 3) == range(1, 4)
    assert busiest(changes, 2) == range(1, 3)
    assert busiest(changes, 9) == range(6)
    assert busiest([0.0] * 5, 2) == range(2)
    assert busiest([], 2) == range(0)


def test_a_camera_is_live_and_a_file_is_not(tmp_path, monkeypatch):
    with open_source(str(write_clip(tmp_path / "clip.mp4", 2))) as source:
        assert not source.live
    monkeypatch.setattr("deltajax.video._open_camera", lambda name: (
        DEFAULT_RATE, None, (Frame(picture(number), Fraction(number)) for number in range(2))
    ))
    with open_source("7") as source:
        assert source.live


def test_the_file_is_h264_in_yuv420p_and_closed_as_an_ordinary_mp4(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert b"moov" in path.read_bytes()
    assert b"moof" not in path.read_bytes()[-2000:]


def test_odd_sides_are_padded_by_repeating_the_edge(tmp_path):
    path = write_clip(tmp_path / "odd.mp4", 3, size=(47, 63))
    last = decode(path)[2]
    assert last.shape == (48, 64, 3)
    assert np.abs(last[:47, :63].astype(int) - picture(2, (47, 63))).mean() < 6


def test_times_rounded_to_milliseconds_become_steady_again(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", (48, 64), Fraction(30)) as writer:
        for number in range(30):
            writer.write(picture(number), Fraction(round(1000 * number / 30), 1000))
    with open_source(str(tmp_path / "clip.mp4")) as source:
        assert source.frame_rate == 30


def test_uneven_times_are_kept(tmp_path):
    times = [Fraction(n) for n in (7, 8, 11)]
    with VideoWriter(tmp_path / "clip.mp4", (48, 64), Fraction(15)) as writer:
        for number, time in enumerate(times):
            writer.write(picture(number), time)
    with open_source(str(tmp_path / "clip.mp4")) as source:
        assert [frame.time for frame in source.frames] == [0, 1, 4]


def test_time_that_stands_still_moves_on_by_a_tick(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", (48, 64), Fraction(25)) as writer:
        for number in range(4):
            writer.write(picture(number), Fraction(3))
    assert len(decode(tmp_path / "clip.mp4")) == 4


def test_a_phone_held_upright_is_read_upright(tmp_path):
    # ISO 14496-12, 8.3.2: the track header ends in a matrix of nine 32-bit numbers; this one turns clockwise.
    clip = bytearray(write_clip(tmp_path / "clip.mp4", 3).read_bytes())
    matrix = clip.rindex(b"tkhd") + 4 + 40
    clip[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(clip)
    with open_source(str(tmp_path / "turned.mp4")) as source:
        assert source.size == (64, 48)
        for frame, lying in zip(source.frames, decode(tmp_path / "clip.mp4"), strict=True):
            np.testing.assert_array_equal(frame.rgb, np.rot90(lying, -1))


def test_colours_survive(tmp_path):
    rgb = np.zeros((64, 64, 3), np.uint8)
    for corner, colour in enumerate([(200, 40, 90), (30, 180, 60), (20, 60, 200), (240, 240, 20)]):
        rgb[32 * (corner // 2) :, 32 * (corner % 2) :] = colour
    with VideoWriter(tmp_path / "clip.mp4", (64, 64), Fraction(25)) as writer:
        writer.write(rgb)
    read = decode(tmp_path / "clip.mp4")[0].astype(int)
    for row, column in [(12, 12), (12, 52), (52, 12), (52, 52)]:
        assert np.abs(read[row, column] - rgb[row, column]).max() < 8


def test_a_killed_writer_leaves_a_playable_file(tmp_path):
    path = tmp_path / "killed.mp4"
    program = f"""
        import os, signal
        from fractions import Fraction
        from pathlib import Path
        import numpy as np
        from deltajax.video import VideoWriter
        writer = VideoWriter(Path({str(path)!r}), (48, 64), Fraction(10))
        for number in range(100):
            writer.write(np.full((48, 64, 3), number, np.uint8))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert ended.returncode == -signal.SIGKILL
    assert len(decode(path)) >= 40  # all but the encoder's look-ahead and the unfinished fragment


def test_a_frame_of_another_size_is_refused_by_the_writer(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", (48, 64), Fraction(25)) as writer:
        writer.write(picture(0))
        with pytest.raises(ValueError, match=r"`rgb` has shape \(32, 64, 3\)"):
            writer.write(picture(0, (32, 64)))
    assert len(decode(tmp_path / "clip.mp4")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.avi", "must end in .mp4"),
        ("nowhere/clip.mp4", "needs the folder"),
        ("taken.mp4", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_made(tmp_path, name, message):
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / name, (48, 64), Fraction(25))


def test_without_a_frame_nothing_is_made_and_nothing_overwritten(tmp_path):
    write_clip(tmp_path / "new.mp4", 0)
    assert not (tmp_path / "new.mp4").exists()
    before = write_clip(tmp_path / "old.mp4", 2).read_bytes()
    write_clip(tmp_path / "old.mp4", 0)
    assert (tmp_path / "old.mp4").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk without room")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "clip.mp4").symlink_to("/dev/full")
    with pytest.raises(VideoError, match=r"cannot be written \(No space left on device\)"):
        write_clip(tmp_path / "clip.mp4")


def save_images(folder: Path, names: list[str], size=(48, 64)) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number, size)).save(folder / name)
    return folder


def test_a_folder_is_read_in_natural_order_and_other_files_are_skipped(tmp_path):
    folder = save_images(tmp_path / "shots", ["shot1.png", "shot2.png", "shot9.png", "shot10.png"])
    (folder / "notes.txt").write_text("no picture")
    with open_source(str(folder)) as source:
        assert (source.length, source.frame_rate, source.size) == (4, DEFAULT_RATE, (48, 64))
        for number, frame in enumerate(source.frames):
            np.testing.assert_array_equal(frame.rgb, picture(number))


def test_a_pattern_picks_images_and_grey_or_transparent_ones_become_rgb(tmp_path):
    save_images(tmp_path, ["a1.png", "a2.png", "b1.png"])
    Image.fromarray(picture(5)).convert("RGBA").save(tmp_path / "a3.png")
    Image.fromarray(picture(5)).convert("L").save(tmp_path / "a4.png")
    with open_source(str(tmp_path / "a*.png")) as source:
        assert [frame.rgb.shape for frame in source.frames] == [(48, 64, 3)] * 4


def test_a_size_that_changes_names_the_frame_and_both_sizes(tmp_path):
    save_images(tmp_path, ["1.png", "2.png"])
    save_images(tmp_path, ["3.png"], size=(32, 40))
    with open_source(str(tmp_path)) as source:
        frames = [next(source.frames), next(source.frames)]
        assert len(frames) == 2
        with pytest.raises(
            VideoError, match=r"frame 2 of .* is 40x32 pixels, the frames before it are 64x48"
        ):
            next(source.frames)


def test_a_broken_image_is_named(tmp_path):
    save_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with open_source(str(tmp_path)) as source:
        next(source.frames)
        with pytest.raises(VideoError, match=r"frame 1 \('.*2.png'\) is not an image"):
            next(source.frames)


def noise_clip(path: Path, count: int = 40) -> Path:
    """An mp4 with its index in front, as cameras and web servers write it: half of it still opens."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", container_options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(count):
            rgb = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_cut_mp4_gives_what_is_there_then_says_how_much(tmp_path):
    whole = noise_clip(tmp_path / "whole.mp4")
    assert len(decode(whole)) == 40
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    frames = []
    with (
        open_source(str(cut)) as source,
        pytest.raises(VideoError, match=r"breaks off: (\d+) frames were decoded") as caught,
    ):
        for frame in source.frames:
            frames.append(frame)
    assert 15 < len(frames) < 30
    assert f" {len(frames)} frames" in str(caught.value)
    for frame, same in zip(frames[:-1], decode(whole), strict=False):
        np.testing.assert_array_equal(frame.rgb, same)


def test_an_mp4_cut_between_two_packets_is_noticed_too(tmp_path):
    whole = noise_clip(tmp_path / "whole.mp4")
    with av.open(str(whole)) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: ends[19]])
    with pytest.raises(
        VideoError, match=r"breaks off: 20 frames were decoded, then: 20 of 40 packets are there"
    ):
        decode(cut)


def make_input(kind: str, folder: Path) -> str:
    path = folder / "input.mp4"
    match kind:
        case "missing":
            pass
        case "empty":
            path.touch()
        case "text":
            path.write_text("this is no video\n" * 100)
        case "index lost":
            write_clip(folder / "whole.mp4")
            path.write_bytes((folder / "whole.mp4").read_bytes()[:900])
        case "image":
            path = save_images(folder, ["one.png"]) / "one.png"
        case "jpeg":
            path = save_images(folder, ["one.jpg"]) / "one.jpg"
        case "folder without images":
            path.mkdir()
        case "pattern without matches":
            path = folder / "*.png"
        case "sound":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("aac", rate=16000, layout="mono")
                sound = av.AudioFrame.from_ndarray(
                    np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
                )
                sound.sample_rate = 16000
                container.mux(stream.encode(sound))
                container.mux(stream.encode())
        case "no frames":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                container.start_encoding()
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "missing",
            "does not exist; give a video file, a folder or pattern of images, or the number of a camera",
        ),
        ("empty", r"is empty \(0 bytes\)"),
        ("text", "is no video"),
        ("index lost", "cut-off one whose index is lost"),
        ("image", "is a single image; give a folder or pattern of images, or a video file"),
        ("jpeg", "is a single image"),
        ("folder without images", "matches no images; looked for files ending in .bmp"),
        ("pattern without matches", "matches no images"),
        ("sound", "has no video track"),
        ("no frames", "input"),
    ],
)
def test_an_input_that_cannot_be_opened(tmp_path, kind, message):
    with pytest.raises(VideoError, match=message) as caught, open_source(make_input(kind, tmp_path)):
        pass
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_not_there():
    with pytest.raises(VideoError, match="camera 97"), open_source("97"):
        pass


def test_a_file_named_like_a_camera_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(write_clip(tmp_path / "clip.mp4"), tmp_path / "3")
    with open_source("3") as source:
        assert source.length == 12


@pytest.mark.skipif(
    "DELTAJAX_DATA" not in os.environ, reason="DELTAJAX_DATA names no folder with the real clips"
)
@pytest.mark.parametrize(
    ("clip", "size", "count", "rate"),
    [
        ("static/asl/again.mkv", (480, 640), 77, 30),
        ("static/tree.avi", (240, 320), 68, 15),
        ("static/nasa_13013.mp4", (270, 480), 390, 29.97),
        ("moving/udacity_test_video.mp4", (720, 1280), 38, 25),
    ],
)
def test_real_clips_are_read_to_the_end(clip, size, count, rate):
    path = Path(os.environ["DELTAJAX_DATA"]) / "video" / clip
    with open_source(str(path)) as source:
        assert source.size == size
        assert float(source.frame_rate) == pytest.approx(rate, rel=1e-3)
        times = [frame.time for frame in source.frames]
    assert len(times) == count
    assert times == sorted(set(times))
