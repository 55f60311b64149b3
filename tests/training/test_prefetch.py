"""The prefetch thread: order, errors at their place, and an end without hanging."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from unialign_jax.errors import UserError
from unialign_jax.training.prefetch import Prefetch


def test_items_come_in_order_and_placed() -> None:
    prefetch = Prefetch(iter(range(5)), lambda x: x * 10)
    assert [prefetch.next()[0] for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(StopIteration):
        prefetch.next()
    prefetch.close()


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items():
        yield 1
        raise UserError("record 2 is bad")

    prefetch = Prefetch(items(), lambda x: x)
    assert prefetch.next()[0] == 1
    with pytest.raises(UserError, match="record 2 is bad"):
        prefetch.next()
    prefetch.close()


def test_closing_stops_an_endless_iterator_and_closes_it() -> None:
    class Items:
        closed = False

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            self.closed = True

    items = Items()
    prefetch = Prefetch(items, lambda x: x, depth=1)  # type: ignore[arg-type]
    prefetch.next()
    prefetch.close()
    assert items.closed
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_waiting_is_measured() -> None:
    def slow():
        for i in itertools.count():
            time.sleep(0.03)
            yield i

    prefetch = Prefetch(slow(), lambda x: x)
    _, waited = prefetch.next()
    assert waited > 0.02
    time.sleep(0.1)
    _, waited = prefetch.next()
    assert waited < 0.02
    prefetch.close()
