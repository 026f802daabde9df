"""Frames in, frames out: video files, folders of images and cameras through PyAV, H.264 mp4 files back.

Two laws. Every frame of a source has the size of its first frame, or the source ends with an error that names
the frame. Whatever ends a run, what a `VideoWriter` has written can be played.
"""

from __future__ import annotations

import glob
import math
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import BlockingIOError as NotYetError
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DEFAULT_RATE = Fraction(25)
BT709 = 1  # the number that H.264 (ITU-T H.264, annex E) gives to these primaries, this curve and this matrix


class VideoError(ValueError):
    """A source or a target that cannot be read or written; the message is one line that says what to do."""


class Frame(NamedTuple):
    """One picture and when it is shown, in seconds on the source's clock, which need not start at zero."""

    rgb: UInt8[np.ndarray, "height width 3"]
    time: Fraction


@dataclass(frozen=True)
class Source:
    """An opened source of frames that all have one size.

    Attributes:
        name: what the user called it.
        size: (height, width) in pixels, upright: a rotation noted in the file has been applied.
        frame_rate: frames a second, the average that the source declares; 25 for images, which carry none.
        length: how many frames it declares, `None` for a camera and for files that do not say.
        frames: the frames, to be walked through once. Raises `VideoError` where the source breaks off.
        live: a camera: what has been read is not to be had again.
    """

    name: str
    size: tuple[int, int]
    frame_rate: Fraction
    length: int | None
    frames: Iterator[Frame]
    live: bool


@contextmanager
def open_source(name: str) -> Iterator[Source]:
    """Opens whatever `name` stands for, and decodes its first frame to know the size.

    Args:
        name: a video file, a folder of images, a pattern of images (`"shots/*.png"`), or a camera's number.

    Raises:
        VideoError: nothing is there, or no frame can be had from it.
    """
    path, live = Path(name), False
    if path.is_dir():
        opened = _open_images(name, [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES])
    elif path.exists():
        opened = _open_file(name, path)
    elif name.isdecimal():
        opened, live = _open_camera(name), True
    elif glob.has_magic(name):
        opened = _open_images(name, [Path(p) for p in glob.glob(name, recursive=True)])
    else:
        raise VideoError(
            f"the input {name!r} does not exist; give a video file, a folder or pattern of images, "
            "or the number of a camera"
        )
    frame_rate, length, frames = opened
    with closing(frames):
        first = next(frames, None)
        if first is None:
            raise VideoError(f"the input {name!r} holds no frames; is it the recording you meant?")
        height, width, _ = first.rgb.shape
        yield Source(name, (height, width), frame_rate, length, _of_one_size(name, first, frames), live)


def changes_in(frames: Iterable[Frame]) -> Iterator[float]:
    """How far each frame is from the one before: grey levels, the mean over every fourth pixel of every fourth row."""
    before = None
    for frame in frames:
        picture = frame.rgb[::4, ::4].astype(np.int16)
        yield 0.0 if before is None else float(np.abs(picture - before).mean())
        before = picture


def busiest(changes: Sequence[float], count: int) -> range:
    """The numbers of `count` frames, or as many as there are, one behind the other, between which most changes."""
    count = min(count, len(changes))
    sums = [sum(changes[first + 1 : first + count]) for first in range(len(changes) - count + 1)]
    first = sums.index(max(sums))
    return range(first, first + count)


def _of_one_size(name: str, first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    height, width, _ = first.rgb.shape
    for number, frame in enumerate(rest, start=1):
        if frame.rgb.shape != first.rgb.shape:
            raise VideoError(
                f"frame {number} of {name!r} is {frame.rgb.shape[1]}x{frame.rgb.shape[0]} pixels, the frames "
                f"before it are {width}x{height}; a run needs one size, so split or rescale it"
            )
        yield frame


def _open_images(name: str, paths: list[Path]) -> tuple[Fraction, int, Generator[Frame, None, None]]:
    if not paths:
        kinds = " ".join(IMAGE_SUFFIXES)
        raise VideoError(f"the input {name!r} matches no images; looked for files ending in {kinds}")
    return DEFAULT_RATE, len(paths), _image_frames(sorted(paths, key=_natural_order))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """frame9 before frame10: runs of digits are compared as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]


def _image_frames(paths: list[Path]) -> Generator[Frame, None, None]:
    for number, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError as error:
            raise VideoError(
                f"frame {number} ('{path}') is not an image that can be read ({error}); remove or replace it"
            ) from error
        yield Frame(rgb, number / DEFAULT_RATE)


def _open_file(name: str, path: Path) -> tuple[Fraction, int | None, Generator[Frame, None, None]]:
    if path.stat().st_size == 0:
        raise VideoError(f"the input {name!r} is empty (0 bytes); record or copy it again")
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise VideoError(
            f"the input {name!r} is no video, or a cut-off one whose index is lost ({error.strerror}); "
            "record or copy it again"
        ) from error
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        container.close()
        raise VideoError(
            f"the input {name!r} is a single image; give a folder or pattern of images, or a video file"
        )
    return _open_container(name, container)


def _open_camera(name: str) -> tuple[Fraction, int | None, Generator[Frame, None, None]]:
    try:
        if sys.platform == "darwin":
            container = av.open(name, format="avfoundation", options={"framerate": "30"})
        elif sys.platform == "win32":
            cameras = [d for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
            if int(name) >= len(cameras):
                raise VideoError(f"there is no camera {name}; {len(cameras)} were found, counted from 0")
            container = av.open(f"video={cameras[int(name)].name}", format="dshow")
        else:
            container = av.open(f"/dev/video{name}", format="v4l2")
    except FFmpegError as error:
        raise VideoError(
            f"camera {name} cannot be opened ({error.strerror}); is it plugged in, free, and may you use it? "
            "(a file of that name does not exist either)"
        ) from error
    return _open_container(name, container)


def _open_container(
    name: str, container: InputContainer
) -> tuple[Fraction, int | None, Generator[Frame, None, None]]:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        container.close()
        raise VideoError(f"the input {name!r} has no video track; give a file with pictures in it")
    # One thread: decoding ahead in the background would take time from whatever the caller measures.
    stream.thread_count = 1
    rate = stream.average_rate or stream.guessed_rate
    frame_rate = Fraction(rate.numerator, rate.denominator) if rate else DEFAULT_RATE
    return frame_rate, stream.frames or None, _decoded_frames(name, container, stream, frame_rate)


def _decoded_frames(
    name: str, container: InputContainer, stream: VideoStream, frame_rate: Fraction
) -> Generator[Frame, None, None]:
    decoded = packets = 0
    # An mp4 says how many packets it has. Other containers (avi) count frames that were never stored as well.
    promised = stream.frames if "mp4" in container.format.name else 0
    broken = ""
    with container:
        try:
            for packet in _packets(container, stream):
                packets += packet.size > 0
                for picture in packet.decode():
                    rgb = picture.to_ndarray(format="rgb24")
                    if picture.rotation:
                        rgb = np.ascontiguousarray(np.rot90(rgb, picture.rotation // 90))
                    yield Frame(rgb, _shown_at(picture, decoded / frame_rate))
                    decoded += 1
        except FFmpegError as error:
            broken = error.strerror or str(error)
    if not broken and packets < promised:
        broken = f"{packets} of {promised} packets are there"
    if broken:
        raise VideoError(
            f"the input {name!r} breaks off: {decoded} frames were decoded, then: {broken}; "
            "record or copy it again for the rest"
        )


def _shown_at(picture: av.VideoFrame, otherwise: Fraction) -> Fraction:
    if picture.pts is None or not picture.time_base:
        return otherwise
    return picture.pts * Fraction(picture.time_base.numerator, picture.time_base.denominator)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    while True:
        try:
            yield from container.demux(stream)
        except NotYetError:
            time.sleep(0.002)  # avfoundation says "try again" until the camera has its next picture
        else:
            return


class VideoWriter:
    """Writes RGB frames to an H.264 mp4 that plays everywhere, even if the program is killed on the way.

    While it is written the file consists of fragments of about two seconds; closing makes an ordinary mp4 of
    it (FFmpeg's `hybrid_fragmented`). H.264 in yuv420p needs even sides: an odd one is padded by repeating
    the last row or column, so no pixel is lost.

    Args:
        path: the file, ending in .mp4; one that exists is overwritten when the first frame comes.
        size: (height, width) of the frames in pixels.
        frame_rate: frames a second; the file's clock can show it exactly.

    Raises:
        VideoError: the file cannot be made.
    """

    def __init__(self, path: Path, size: tuple[int, int], frame_rate: Fraction):
        self.path = path
        self.size = size
        self.padded_size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.frames_written = 0
        if path.suffix.lower() != ".mp4":
            raise VideoError(f"the output '{path}' must end in .mp4")
        if not path.parent.is_dir():
            raise VideoError(f"the output '{path}' needs the folder '{path.parent}'; make it first")
        # 15 instead of the 1000000/66667 of some avi files, 30000/1001 left as it is.
        self._frame_rate = frame_rate.limit_denominator(1001)
        # A multiple of the rate's numerator shows each frame exactly; at most 1/10,000 s also suits cameras.
        self._tick = 1 / Fraction(self._frame_rate.numerator * math.ceil(10_000 / self._frame_rate.numerator))
        self._first_time: Fraction | None = None
        self._last_tick = -1
        self._existed = path.exists()
        self._started = False
        try:
            path.open("ab").close()
        except OSError as error:
            raise self._failure(error) from error
        self._container = av.open(
            str(path), "w", container_options={"movflags": "hybrid_fragmented", "flush_packets": "1"}
        )
        # No B-frames: reordering would delay the first picture by two, as fragments have no edit list.
        self._stream = self._container.add_stream(
            "libx264", rate=self._frame_rate, options={"preset": "veryfast", "crf": "20", "bf": "0"}
        )
        self._stream.height, self._stream.width = self.padded_size
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = max(1, round(2 * self._frame_rate))
        self._stream.thread_count = 1  # as for the decoder: no work in the background of a measurement
        self._stream.time_base = self._stream.codec_context.time_base = self._tick
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709

    def write(self, rgb: UInt8[np.ndarray, "height width 3"], time: Fraction | None = None) -> None:
        """Appends a frame, shown at `time` on the first frame's clock, or one frame after the one before.

        Raises:
            ValueError: the frame has another size than the file.
            VideoError: it cannot be written (a full disk).
        """
        if rgb.shape != (*self.size, 3):
            raise ValueError(f"`rgb` has shape {rgb.shape}, the file '{self.path}' takes {(*self.size, 3)}")
        extra = [(0, padded - side) for padded, side in zip(self.padded_size, self.size, strict=True)]
        picture = av.VideoFrame.from_ndarray(np.pad(rgb, [*extra, (0, 0)], mode="edge"), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        picture.pts = self._last_tick = max(self._tick_of(time), self._last_tick + 1)
        picture.time_base = self._tick
        try:
            if not self._started:
                self._container.start_encoding()
                self._started = True
            self._container.mux(self._stream.encode(picture))
        except FFmpegError as error:
            raise self._failure(error) from error
        self.frames_written += 1

    def _tick_of(self, time: Fraction | None) -> int:
        if time is None:
            return 0 if self._last_tick < 0 else self._last_tick + round(1 / (self._frame_rate * self._tick))
        if self._first_time is None:
            self._first_time = time
        time -= self._first_time
        # Matroska rounds times to milliseconds: put a steady rate back where it was.
        steady = round(time * self._frame_rate) / self._frame_rate
        return round((steady if abs(steady - time) <= Fraction(1, 1000) else time) / self._tick)

    def _failure(self, error: OSError | FFmpegError) -> VideoError:
        return VideoError(
            f"the output '{self.path}' cannot be written ({error.strerror}); "
            "give another --out, or make room and permission there"
        )

    def close(self) -> None:
        """Writes what the encoder still holds and finishes the file; without a frame there is no file."""
        if not self._started:
            # FFmpeg crashes when it is asked to end a file that it never began.
            if not self._existed and self.path.is_file():
                self.path.unlink()
            return
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
        except FFmpegError as error:
            raise self._failure(error) from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
