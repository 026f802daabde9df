"""A stage of a video's way in a thread of its own: the next item is made while the caller is busy with this one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_END = object()


@contextmanager
def ahead(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Yields `items` to be walked through as they are, but fetched by another thread, one ahead.

    * Order: the caller gets what `items` gives, in that order.
    * At most one is ahead: while the caller has an item, the next is fetched, and no other. So memory is bounded, and a
      camera's pictures do not grow old in a queue.
    * The first error of `items` ends them and is raised where its item would have come, after all items before it.
    * However the `with` ends, an item that was begun is finished, no other is begun, and the thread is gone.

    A chain of them, each walking through the one before, is a pipeline: an error of any stage comes out at its end, and
    an error of whoever stands at its end stops all stages. What runs at the same time is what lets go of Python's lock:
    FFmpeg, XLA, numpy and Pillow on whole pictures.

    Args:
        items: what is fetched. While the `with` lasts it belongs to the other thread.
    """
    with ThreadPoolExecutor(1) as thread:
        yield _each_with_the_next_begun(iter(items), thread)


def _each_with_the_next_begun(items: Iterator[T], thread: ThreadPoolExecutor) -> Generator[T, None, None]:
    following = thread.submit(next, items, _END)
    while (item := following.result()) is not _END:
        following = thread.submit(next, items, _END)
        yield item  # pyright: ignore[reportReturnType]
