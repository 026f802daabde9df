"""What commands that go through a video share: a progress bar, an end on request, the name of what they write."""

from __future__ import annotations

import glob
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(console: Console, length: int | None, what: str = "frames") -> Iterator[Callable[[], None]]:
    """Yields what is to be called after each of `length` things; nothing is drawn where nobody watches."""
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=length)
        yield lambda: bar.advance(task)


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the frame (the trial); a second one interrupts."""
    stop = threading.Event()
    before = {}

    def ask(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name_of(name: str) -> str:
    """Of an input as the user gave it: the file's without its suffix, or what kind of input it is."""
    path = Path(name)
    if path.exists():
        return path.resolve().stem
    if name.isdecimal():
        return f"camera-{name}"
    return "images" if glob.has_magic(name) else path.stem
