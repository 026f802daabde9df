"""One item ahead in another thread: order, bounds, errors, closing. A deadlock ends the process with all its stacks."""

import gc
import threading
import time
import weakref
from contextlib import closing

import pytest

from deltajax._pipeline import ahead

PATIENCE = 20.0  # seconds; far more than anything here takes
pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture(autouse=True)
def _leaves_no_thread():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Counting:
    """0, 1, 2, ... and how many of them were begun; unlike a generator, it goes on after the error at `fails_at`."""

    def __init__(self, count: int, fails_at: int | None = None):
        self.count, self.fails_at, self.begun = count, fails_at, 0

    def __iter__(self):
        return self

    def __next__(self) -> int:
        if self.begun == self.count:
            raise StopIteration
        number, self.begun = self.begun, self.begun + 1
        if number == self.fails_at:
            raise OSError(f"no item {number}")
        return number

    def settled(self) -> int:
        """How many were begun, when nothing more happens."""
        seen = -1
        while seen != self.begun:
            seen = self.begun
            time.sleep(0.05)
        return seen


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_the_same_items_in_the_same_order(count):
    with ahead(Counting(count)) as items:
        assert list(items) == list(range(count))
        assert list(items) == []


def test_the_next_item_is_fetched_while_the_caller_has_one():
    begun = threading.Event()

    def source():
        yield threading.current_thread()
        begun.set()
        yield threading.current_thread()

    with ahead(source()) as items:
        first = next(items)
        assert begun.wait(PATIENCE)
        assert next(items) is first is not threading.current_thread()


def test_at_most_one_item_is_ahead():
    source = Counting(10)
    with ahead(source) as items:
        for number in items:
            assert source.settled() == min(number + 2, 10)
    source = Counting(10)
    with ahead(numbers := Counting(10)) as first, ahead(first) as items:
        for number in items:
            assert numbers.settled() <= number + 3


def test_memory_is_bounded():
    class Item:
        pass

    alive = weakref.WeakSet()

    def source():
        for _ in range(200):
            item = Item()
            alive.add(item)
            yield item
            del item

    most = 0
    with ahead(source()) as items:
        for _ in items:
            gc.collect(0)
            most = max(most, len(alive))
    assert 1 <= most <= 3  # the caller's, the one before it until it is replaced, and the next


def test_the_first_error_comes_in_its_place_and_ends_the_items():
    source, seen = Counting(10, fails_at=3), []
    with ahead(source) as items, pytest.raises(OSError, match="no item 3"):
        for number in items:
            seen.append(number)
    assert seen == [0, 1, 2]
    assert source.settled() == 4


def test_an_error_passes_through_all_stages_after_the_items_before_it():
    source, seen = Counting(10, fails_at=3), []
    with pytest.raises(OSError, match="no item 3"), ahead(source) as first, ahead(10 * n for n in first) as second:
        for item in second:
            seen.append(item)
    assert seen == [0, 10, 20]
    assert source.begun == 4


@pytest.mark.parametrize("error", [ValueError("full"), KeyboardInterrupt()])
def test_an_error_of_the_caller_stops_all_stages(error):
    source = Counting(1000)
    with pytest.raises(type(error)) as caught, ahead(source) as first, ahead(10 * item for item in first) as second:
        assert [next(second), next(second)] == [0, 10]
        raise error
    assert caught.value is error
    assert source.settled() <= 5  # one ahead of what one ahead of the second was made from, and the one being fetched


def test_closing_waits_for_the_item_that_was_begun_and_then_the_source_is_the_callers_again():
    finished = []

    def source():
        for number in range(5):
            time.sleep(0.05 * number)
            finished.append(number)
            yield number

    with closing(source()) as numbers:
        with ahead(numbers) as items:
            assert next(items) == 0
        assert finished == [0, 1]
        assert next(numbers) == 2


def test_nothing_is_begun_before_the_first_item_is_asked_for():
    source = Counting(3)
    with ahead(source):
        pass
    assert source.begun == 0
